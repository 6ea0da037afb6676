//! What the API server says of itself, by its own metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use hyper::Request;
use kube::Client;
use serde::Serialize;
use tokio::time::Instant;

/// What agents read and write; their requests and the simulated kubelets' are about these.
const OURS: [&str; 3] = ["pods", "nodes", "events"];

/// The API server's counters at a moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    at: Instant,
    cpu_seconds: f64,
    rss_bytes: f64,
    watches: f64,
    /// By verb, resource and subresource.
    requests: BTreeMap<String, f64>,
    /// Refused because of too many requests.
    refused: f64,
    /// Of requests that are no watches: how many took at most so long, in milliseconds.
    durations: BTreeMap<u64, f64>,
}

/// Between two moments.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cost {
    /// Of one processor.
    pub(crate) cpu: f64,
    pub(crate) rss_mib: u64,
    /// Of pods, at the end.
    pub(crate) watches: u64,
    /// Of all requests that are no watches: an upper bound, as the histogram has it.
    pub(crate) p99_ms: Option<u64>,
    pub(crate) refused: u64,
    /// Per second, by verb and resource.
    pub(crate) requests: BTreeMap<String, f64>,
}

impl Snapshot {
    /// Takes one.
    pub(crate) async fn take(client: &Client) -> anyhow::Result<Self> {
        let request = Request::get("/metrics").body(Vec::new())?;
        let text = client.request_text(request).await;
        Ok(Self::read(&text.context("read the API server's metrics")?))
    }

    fn read(text: &str) -> Self {
        let mut snapshot = Self {
            at: Instant::now(),
            cpu_seconds: 0.0,
            rss_bytes: 0.0,
            watches: 0.0,
            requests: BTreeMap::new(),
            refused: 0.0,
            durations: BTreeMap::new(),
        };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some(series) = Series::parse(line) {
                snapshot.add(&series);
            }
        }
        snapshot
    }

    fn add(&mut self, series: &Series<'_>) {
        let Series { name, value, .. } = *series;
        let resource = series.label("resource");
        let verb = series.label("verb");
        match name {
            "process_cpu_seconds_total" => self.cpu_seconds = value,
            "process_resident_memory_bytes" => self.rss_bytes = value,
            "apiserver_longrunning_requests" if (verb, resource) == ("WATCH", "pods") => {
                self.watches += value;
            }
            "apiserver_request_total" => {
                if series.label("code") == "429" {
                    self.refused += value;
                }
                if OURS.contains(&resource) {
                    let name = match series.label("subresource") {
                        "" => format!("{verb} {resource}"),
                        sub => format!("{verb} {resource}/{sub}"),
                    };
                    *self.requests.entry(name).or_default() += value;
                }
            }
            "apiserver_request_duration_seconds_bucket"
                if OURS.contains(&resource) && verb != "WATCH" =>
            {
                let le = series.label("le").parse().unwrap_or(f64::INFINITY);
                let bound = Duration::try_from_secs_f64(le).map_or(u128::MAX, |le| le.as_millis());
                let bound = u64::try_from(bound).unwrap_or(u64::MAX);
                *self.durations.entry(bound).or_default() += value;
            }
            _ => {}
        }
    }

    /// How many watches of pods there are.
    pub(crate) fn watches(&self) -> u64 {
        whole(self.watches)
    }

    /// What has happened since `before`.
    pub(crate) fn since(&self, before: &Self) -> Cost {
        let seconds = (self.at - before.at).as_secs_f64();
        let requests = self.requests.iter().map(|(name, now)| {
            let then = before.requests.get(name).copied().unwrap_or_default();
            (name.clone(), (now - then) / seconds)
        });
        Cost {
            cpu: (self.cpu_seconds - before.cpu_seconds) / seconds,
            rss_mib: whole(self.rss_bytes) >> 20,
            watches: self.watches(),
            p99_ms: self.p99_since(before),
            refused: whole(self.refused - before.refused),
            requests: requests.filter(|(_, rate)| *rate > 0.0).collect(),
        }
    }

    fn p99_since(&self, before: &Self) -> Option<u64> {
        let grown = |(bound, now): (&u64, &f64)| {
            let then = before.durations.get(bound).copied().unwrap_or_default();
            (*bound, now - then)
        };
        let grown: Vec<(u64, f64)> = self.durations.iter().map(grown).collect();
        let (_, all) = *grown.last()?;
        let enough = grown.iter().find(|(_, count)| *count >= all * 0.99);
        enough.filter(|_| all > 0.0).map(|(bound, _)| *bound)
    }
}

/// Metrics are floats; these are counts.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts and bytes, far below what a float cannot hold"
)]
fn whole(value: f64) -> u64 {
    value.max(0.0).round() as u64
}

/// A line of metrics.
struct Series<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
}

impl<'a> Series<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        Some(Self {
            name,
            labels: labels.trim_end_matches('}'),
            value: value.parse().ok()?,
        })
    }

    /// A label's value; empty if there is none. None of those that are read has a comma in it.
    fn label(&self, name: &str) -> &'a str {
        let mut labels = self.labels.split(',');
        let value = labels.find_map(|label| label.strip_prefix(name)?.strip_prefix('='));
        value.map_or("", |value| value.trim_matches('"'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = r#"
# HELP process_cpu_seconds_total Total
process_cpu_seconds_total 10
process_resident_memory_bytes 1.048576e+09
apiserver_request_duration_seconds_bucket{resource="pods",verb="PATCH",le="0.1"} 5
apiserver_request_duration_seconds_bucket{resource="pods",verb="PATCH",le="+Inf"} 5
"#;

    const AFTER: &str = r#"
process_cpu_seconds_total 12
process_resident_memory_bytes 2.097152e+09
apiserver_longrunning_requests{resource="pods",verb="WATCH"} 7
apiserver_request_total{code="200",resource="pods",subresource="",verb="PATCH"} 20
apiserver_request_total{code="429",resource="pods",subresource="status",verb="PATCH"} 3
apiserver_request_total{code="200",resource="leases",subresource="",verb="PUT"} 9
apiserver_request_duration_seconds_bucket{resource="pods",verb="PATCH",le="0.1"} 6
apiserver_request_duration_seconds_bucket{resource="pods",verb="PATCH",le="0.2"} 105
apiserver_request_duration_seconds_bucket{resource="pods",verb="PATCH",le="+Inf"} 105
apiserver_request_duration_seconds_bucket{resource="pods",verb="WATCH",le="+Inf"} 1000
"#;

    #[test]
    fn what_has_happened_is_the_difference() {
        let before = Snapshot::read(BEFORE);
        let after = Snapshot {
            at: before.at + Duration::from_secs(4),
            ..Snapshot::read(AFTER)
        };
        let cost = after.since(&before);
        assert!((cost.cpu - 0.5).abs() < 1e-9, "{cost:?}");
        assert_eq!((cost.rss_mib, cost.watches), (2000, 7));
        assert_eq!((cost.p99_ms, cost.refused), (Some(200), 3));
        let names: Vec<&str> = cost.requests.keys().map(String::as_str).collect();
        assert_eq!(names, ["PATCH pods", "PATCH pods/status"]);
    }
}
