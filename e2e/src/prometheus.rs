//! A real Prometheus on a loopback address, and what it answers.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::wait::until;
use crate::install::get;
use crate::process::{Process, Spec};

/// How long it may take to be ready; a second is usual.
const READY: Duration = Duration::from_secs(30);

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// How long it may take to end.
const STOP: Duration = Duration::from_secs(10);

/// The distance between the samples of a range.
const STEP: Duration = Duration::from_secs(1);

/// A Prometheus that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    address: SocketAddr,
}

/// One series of an answer.
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
pub struct Series {
    /// Its labels, its name among them.
    #[serde(rename = "metric")]
    pub labels: BTreeMap<String, String>,
    /// Seconds since 1970, and a number as text; `NaN` is one.
    pub values: Vec<(f64, String)>,
}

impl Series {
    /// The largest value. None if there is no number.
    pub fn peak(&self) -> Option<f64> {
        let numbers = self.values.iter().filter_map(|(_, text)| text.parse().ok());
        numbers
            .filter(|number: &f64| !number.is_nan())
            .max_by(f64::total_cmp)
    }
}

impl Prometheus {
    /// Starts `program` with its files in `folder` and what it prints in `log`, and waits until it is ready.
    /// `config` is its configuration.
    ///
    /// # Errors
    /// It does not come up; the message holds its last lines.
    pub async fn start(
        program: &Path,
        folder: &Path,
        log: &Path,
        address: SocketAddr,
        config: &Value,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        // JSON is YAML too.
        let file = folder.join("prometheus.yml");
        fs::write(&file, config.to_string())
            .with_context(|| format!("write {}", file.display()))?;
        let mut process = Spec::new("prometheus", program, log)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .spawn()
            .await?;
        until("Prometheus is ready", READY, || {
            let runs = process.check();
            async move {
                runs?;
                let answer = get(address, "/-/ready").await;
                Ok(answer.ok().filter(|(status, _)| *status == 200))
            }
        })
        .await?;
        Ok(Self { process, address })
    }

    /// What its API answers to a path below `/api/v1/`.
    ///
    /// # Errors
    /// It does not answer, or says that something is wrong.
    pub async fn api(&self, path: &str) -> anyhow::Result<Value> {
        let path = format!("/api/v1/{path}");
        let answer = tokio::time::timeout(ANSWER, get(self.address, &path)).await;
        let (status, body) = answer.with_context(|| format!("no answer to {path}"))??;
        ensure!(status == 200, "{path}: {status} {body}");
        let mut answer: Value = serde_json::from_str(&body)?;
        Ok(answer["data"].take())
    }

    /// Its clock, in seconds since 1970.
    ///
    /// # Errors
    /// As [`Prometheus::api`].
    pub async fn now(&self) -> anyhow::Result<f64> {
        let answer = self.api("query?query=time()").await?;
        answer["result"][0].as_f64().context("no time")
    }

    /// What a query has returned at each second from `begin` until now.
    ///
    /// # Errors
    /// As [`Prometheus::api`]; the query is wrong.
    pub async fn since(&self, begin: f64, query: &str) -> anyhow::Result<Vec<Series>> {
        let (end, query, step) = (self.now().await?, escaped(query), STEP.as_secs());
        let path = format!("query_range?query={query}&start={begin}&end={end}&step={step}");
        let mut answer = self.api(&path).await?;
        Ok(serde_json::from_value(answer["result"].take())?)
    }

    /// Waits until a query has returned something since `begin`.
    ///
    /// # Errors
    /// It has not within `limit`; the query is wrong.
    pub async fn shows(&self, begin: f64, query: &str, limit: Duration) -> anyhow::Result<()> {
        until(&format!("Prometheus shows {query}"), limit, || async {
            let shown = self.since(begin, query).await?;
            Ok((!shown.is_empty()).then_some(()))
        })
        .await
    }

    /// Ends it.
    ///
    /// # Errors
    /// It cannot be signalled.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.process.stop(STOP).await.map(drop)
    }
}

/// As in the query of an address.
fn escaped(text: &str) -> String {
    let escaped = text.bytes().map(|byte| {
        if byte.is_ascii_alphanumeric() {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    });
    escaped.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn queries_are_escaped() {
        assert_eq!(
            escaped("a{b=\"ä\"} + 1"),
            "a%7Bb%3D%22%C3%A4%22%7D%20%2B%201"
        );
    }

    #[test]
    fn a_peak_is_a_number() {
        let of = |values: Value| {
            let series = json!({"metric": {}, "values": values});
            serde_json::from_value::<Series>(series).unwrap().peak()
        };
        assert_eq!(of(json!([[1.5, "NaN"], [2, "3"], [3, "-1"]])), Some(3.0));
        assert_eq!(of(json!([[1, "NaN"]])), None);
        assert_eq!(of(json!([[1, "+Inf"]])), Some(f64::INFINITY));
    }
}
