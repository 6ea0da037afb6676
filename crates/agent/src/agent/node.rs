//! Writes the node's report: as soon as what it says there changes, but at most every ten seconds, and again every four
//! to six minutes in case somebody has overwritten it.

use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use trylatest_core::node::NodeReport;
use trylatest_k8s::{ApiError, Operation};

use super::api::{Api, words};
use crate::clock;

/// Between two writes: everyone who watches nodes gets each of them.
const PAUSE: Duration = Duration::from_secs(10);

/// The longest pause before a write that failed is repeated; the shortest is [`PAUSE`]. An API server that fails, fails
/// for all nodes together.
const RETRY_AT_MOST: Duration = Duration::from_secs(20);

/// How often an unchanged report is written again, by the node: many nodes' reports change together, for example when a
/// registry of the whole fleet fails, and they must not be written together ever after.
const RESYNC_AT_LEAST: Duration = Duration::from_secs(240);
const RESYNC_AT_MOST: Duration = Duration::from_secs(360);

/// Writes the reports that it receives.
pub(super) struct NodeWriter {
    pub(super) api: Api,
    pub(super) report: watch::Receiver<Option<NodeReport>>,
}

impl NodeWriter {
    /// Runs until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            // First: the task that reports may have ended for the same reason.
            biased;
            () = stop.cancelled() => Ok(()),
            result = self.write() => result,
        }
    }

    async fn write(mut self) -> anyhow::Result<()> {
        // Since when the condition has its value; read once, then known.
        let mut since: Option<(bool, Timestamp)> = None;
        let mut written: Option<NodeReport> = None;
        let node = self.api.writer.node();
        let resync = of_node(node, RESYNC_AT_LEAST, RESYNC_AT_MOST);
        let retry = of_node(node, PAUSE, RETRY_AT_MOST);
        let mut resync_at = Instant::now() + resync;
        loop {
            if Instant::now() >= resync_at {
                written = None;
                resync_at = Instant::now() + resync;
            }
            let report = self.report.borrow_and_update().clone();
            let is_written =
                |report: &NodeReport| written.as_ref().is_some_and(|w| w.is_written_as(report));
            if let Some(report) = report.filter(|report| !is_written(report)) {
                if let Err(error) = self.write_once(&report, &mut since).await {
                    warn!(error = %words(&error), "the node's report could not be written; retrying");
                    sleep(retry).await;
                    continue;
                }
                // The node's annotations do not have all images.
                written = Some(NodeReport {
                    images: Vec::new(),
                    ..report
                });
                resync_at = Instant::now() + resync;
                sleep(PAUSE).await;
            }
            // A changed report and the resync lead to the next turn. A closed channel means that the main
            // task has ended, which says why itself.
            if let Ok(Err(_)) = timeout_at(resync_at, self.report.changed()).await {
                anyhow::bail!("nobody reports on this node any more");
            }
        }
    }

    async fn write_once(
        &self,
        report: &NodeReport,
        since: &mut Option<(bool, Timestamp)>,
    ) -> Result<(), ApiError> {
        let now = clock::wall();
        if since.is_none() {
            let read = self.api.writer.condition().await;
            *since = self.api.count(Operation::NodeCondition, read)?;
        }
        let changed = match *since {
            Some((fallback, then)) if fallback == report.fallback => then,
            before => {
                if before.is_some() {
                    info!(
                        fallback = report.fallback,
                        message = report.message,
                        "the node's condition changes"
                    );
                }
                now
            }
        };
        let written = self.api.writer.report_node(report, changed, now).await;
        self.api.count(Operation::NodeReport, written)?;
        *since = Some((report.fallback, changed));
        Ok(())
    }
}

/// A time between these that is the node's own: always the same, and seldom another node's.
fn of_node(node: &str, least: Duration, most: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    hasher.write(node.as_bytes());
    let span = most.saturating_sub(least).as_millis().max(1);
    let jitter = u128::from(hasher.finish()) % span;
    least + Duration::from_millis(u64::try_from(jitter).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_have_written_together_do_not_write_together_again() {
        for (least, most) in [(RESYNC_AT_LEAST, RESYNC_AT_MOST), (PAUSE, RETRY_AT_MOST)] {
            // Ten nodes would be even.
            let step = most.saturating_sub(least) / 120;
            let mut by_step = std::collections::BTreeMap::<u128, u32>::new();
            for node in 0..1200 {
                let again = of_node(&format!("node-{node}"), least, most);
                assert!(again >= least && again < most, "{again:?}");
                let step = again.saturating_sub(least).as_millis() / step.as_millis();
                *by_step.entry(step).or_default() += 1;
            }
            assert!(by_step.len() > 110 && by_step.values().all(|nodes| *nodes < 30));
        }
    }
}
