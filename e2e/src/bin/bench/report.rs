//! The measurements as rows, and the targets that TryLatest sets itself.

use std::time::Duration;

use comfy_table::Table;
use serde::Serialize;

const MIB: u64 = 1 << 20;

/// Times of one case with one policy.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) case: &'static str,
    pub(crate) policy: &'static str,
    /// How many ran.
    pub(crate) n: usize,
    /// Null if none did.
    pub(crate) p50_ms: Option<u64>,
    pub(crate) min_ms: Option<u64>,
    pub(crate) max_ms: Option<u64>,
    /// The median of a round.
    pub(crate) registry_requests: u64,
    /// Pods of all rounds that took the cached copy because their try failed.
    pub(crate) fallbacks: usize,
    /// Pods of all rounds whose gate opened without having seen an answer.
    pub(crate) unanswered: usize,
}

#[derive(Serialize)]
pub(crate) struct Agent {
    pub(crate) own_part_p50_ms: u64,
    pub(crate) rss_idle_bytes: u64,
    pub(crate) rss_after_burst_bytes: u64,
    pub(crate) image_bytes: u64,
}

/// What the agent used beside running pods.
#[derive(Serialize)]
pub(crate) struct Idle {
    pub(crate) pods: usize,
    pub(crate) seconds: u64,
    pub(crate) cpu_ms: u64,
    pub(crate) rss_bytes: u64,
}

#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) pods: Vec<Row>,
    /// Null if the cases that show it were left out.
    pub(crate) agent: Option<Agent>,
    /// Likewise.
    pub(crate) idle: Option<Idle>,
}

impl Report {
    fn p50(&self, case: &str, policy: &str) -> Option<u64> {
        let mut rows = self.pods.iter();
        rows.find(|row| row.case == case && row.policy == policy)?
            .p50_ms
    }
}

/// One measured round.
#[derive(Clone, Copy, Default)]
pub(crate) struct Round {
    /// None if not all ran.
    pub(crate) took: Option<Duration>,
    pub(crate) requests: u64,
    pub(crate) fallbacks: usize,
    pub(crate) unanswered: usize,
}

pub(crate) fn row(case: &'static str, policy: &'static str, rounds: &[Round]) -> Row {
    let mut times: Vec<u64> = rounds
        .iter()
        .filter_map(|round| u64::try_from(round.took?.as_millis()).ok())
        .collect();
    times.sort_unstable();
    let mut requests: Vec<u64> = rounds.iter().map(|round| round.requests).collect();
    requests.sort_unstable();
    Row {
        case,
        policy,
        n: times.len(),
        p50_ms: middle(&times),
        min_ms: times.first().copied(),
        max_ms: times.last().copied(),
        registry_requests: middle(&requests).unwrap_or_default(),
        fallbacks: rounds.iter().map(|round| round.fallbacks).sum(),
        unanswered: rounds.iter().map(|round| round.unanswered).sum(),
    }
}

/// The median of sorted numbers.
pub(crate) fn middle(sorted: &[u64]) -> Option<u64> {
    let half = sorted.len() / 2;
    let upper = *sorted.get(half)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(u64::midpoint(upper, sorted[half - 1]))
}

pub(crate) fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([
        "case",
        "policy",
        "n",
        "p50 ms",
        "min",
        "max",
        "registry requests",
        "fallbacks",
        "unanswered",
    ]);
    let ms = |ms: Option<u64>| ms.map_or("never".to_owned(), |ms| ms.to_string());
    for row in &report.pods {
        table.add_row([
            row.case.to_owned(),
            row.policy.to_owned(),
            row.n.to_string(),
            ms(row.p50_ms),
            ms(row.min_ms),
            ms(row.max_ms),
            row.registry_requests.to_string(),
            row.fallbacks.to_string(),
            row.unanswered.to_string(),
        ]);
    }
    table.trim_fmt()
}

/// Gates of restarted pods that nothing reached; none if such pods were not measured.
fn unanswered(report: &Report) -> Option<u64> {
    let mut rows = report
        .pods
        .iter()
        .filter(|row| row.policy == "TryLatest" && row.case.starts_with("restart-"))
        .peekable();
    rows.peek()?;
    u64::try_from(rows.map(|row| row.unanswered).sum::<usize>()).ok()
}

/// A target: what, how much was measured, and the most that it may be.
type Line = (&'static str, Option<u64>, Option<u64>);

/// The targets of private images.
fn private(report: &Report) -> [Line; 3] {
    let p50 = |case: &str, policy: &str| report.p50(case, policy);
    let own = "private-20-images";
    let public = p50("public-unchanged", "TryLatest").map(|public| public + 150);
    let always = p50(own, "Always").map(|always| always * 12 / 10);
    [
        (
            "private, unchanged, ms",
            p50("private-unchanged", "TryLatest"),
            public,
        ),
        (
            "private, in an outage, ms",
            p50("private-outage", "TryLatest"),
            p50("public-outage", "TryLatest").map(|public| public + 50),
        ),
        (
            "20 private images at once, ms",
            p50(own, "TryLatest"),
            always,
        ),
    ]
}

/// The targets of a registry that accepts and never answers.
fn outage(report: &Report) -> [Line; 3] {
    let p50 = |case: &str| report.p50(case, "TryLatest");
    [
        (
            "never answers, ms",
            p50("never-answers"),
            Some(STALL_MS + 1500),
        ),
        (
            "later in the outage, ms",
            p50("outage-later"),
            p50("one-unchanged").map(|healthy| healthy + 200),
        ),
        (
            "50 images in the outage, ms",
            p50("outage-50-images"),
            p50("unchanged-50-images"),
        ),
    ]
}

/// The agent's own targets.
fn agent(report: &Report) -> [Line; 4] {
    let agent = report.agent.as_ref();
    let rss = agent.map(|agent| agent.rss_idle_bytes.max(agent.rss_after_burst_bytes));
    let idle = report.idle.as_ref();
    [
        (
            "the agent's own part, ms",
            agent.map(|agent| agent.own_part_p50_ms),
            Some(60),
        ),
        (
            "the agent's memory, KiB",
            rss.map(|rss| rss / 1024),
            Some(20 * MIB / 1024),
        ),
        (
            "the image's size, KiB",
            agent.map(|agent| agent.image_bytes / 1024),
            Some(12 * MIB / 1024),
        ),
        (
            "the agent beside 109 pods, µs of CPU a second",
            idle.map(|idle| idle.cpu_ms * 1000 / idle.seconds.max(1)),
            Some(2000),
        ),
    ]
}

/// The targets, and whether TryLatest meets them. Targets without a measurement are left out.
pub(crate) fn targets(report: &Report) -> String {
    let p50 = |case, policy| report.p50(case, policy);
    let ours = |case: &str| {
        let mut rows = report.pods.iter();
        rows.find(|row| row.case == case && row.policy == "TryLatest")
    };
    let thirds = |ms: Option<u64>| ms.map(|ms| ms * 13 / 10);
    let against_always = |case| (p50(case, "TryLatest"), thirds(p50(case, "Always")));
    let fallbacks = |case| ours(case).map(|row| u64::try_from(row.fallbacks).unwrap_or(u64::MAX));
    let unchanged = "restart-30-images, unchanged";
    let moved = "restart-30-images, moved";
    let silent = "restart-30-images, silent";
    let one = p50("one-unchanged", "TryLatest").zip(p50("one-unchanged", "IfNotPresent"));
    let (unchanged_ms, unchanged_most) = against_always(unchanged);
    let (moved_ms, moved_most) = against_always(moved);
    let silent_most = thirds(p50(unchanged, "TryLatest")).map(|ms| ms + STALL_MS);
    let lines: [Line; 9] = [
        (
            "one pod, beyond IfNotPresent, ms",
            one.map(|(ours, plain)| ours.saturating_sub(plain)),
            Some(650),
        ),
        (
            "20 at once, against Always, ms",
            p50("burst-20", "TryLatest"),
            p50("burst-20", "Always"),
        ),
        (
            "20 at once, registry requests",
            ours("burst-20").map(|row| row.registry_requests),
            Some(2),
        ),
        ("30 images, unchanged, ms", unchanged_ms, unchanged_most),
        (
            "30 images, unchanged, fallbacks",
            fallbacks(unchanged),
            Some(0),
        ),
        ("30 images, moved, ms", moved_ms, moved_most),
        ("30 images, moved, fallbacks", fallbacks(moved), Some(0)),
        (
            "30 images, silent, ms",
            p50(silent, "TryLatest"),
            silent_most,
        ),
        ("30 images, unanswered gates", unanswered(report), Some(0)),
    ];
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["target", "measured", "at most", ""]);
    for (what, measured, most) in lines
        .into_iter()
        .chain(agent(report))
        .chain(private(report))
        .chain(outage(report))
    {
        if let (Some(measured), Some(most)) = (measured, most) {
            let met = if measured <= most { "met" } else { "MISSED" };
            table.add_row([what, &measured.to_string(), &most.to_string(), met]);
        }
    }
    table.trim_fmt()
}

/// The agent's stall deadline.
const STALL_MS: u64 = 5000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(middle(&[]), None);
        assert_eq!(middle(&[3]), Some(3));
        assert_eq!(middle(&[1, 4]), Some(2));
        assert_eq!(middle(&[1, 2, 9]), Some(2));
    }

    #[test]
    fn what_never_ran_has_no_median() {
        let never = Round {
            requests: 3,
            fallbacks: 1,
            ..Round::default()
        };
        let row = row("case", "Always", &[never, never]);
        assert_eq!((row.n, row.p50_ms), (0, None));
        assert_eq!((row.registry_requests, row.fallbacks), (3, 2));
    }

    #[test]
    fn what_was_not_measured_is_no_target() {
        let fell_back = Round {
            took: Some(Duration::from_secs(1)),
            fallbacks: 1,
            ..Round::default()
        };
        let report = Report {
            pods: vec![row("restart-30-images, moved", "TryLatest", &[fell_back])],
            agent: None,
            idle: None,
        };
        let lines = targets(&report);
        assert_eq!(lines.lines().count(), 3, "{lines}");
        assert!(lines.contains("MISSED"), "{lines}");
    }
}
