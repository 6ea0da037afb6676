//! Writes the node's report: as soon as what it says there changes, but at most every ten seconds, and again every five
//! minutes in case somebody has overwritten it.

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

/// How often an unchanged report is written again.
const RESYNC: Duration = Duration::from_secs(300);

/// Writes the reports that it receives.
pub(super) struct NodeWriter {
    pub(super) api: Api,
    pub(super) report: watch::Receiver<Option<NodeReport>>,
}

impl NodeWriter {
    /// Runs until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            result = self.write() => result,
        }
    }

    async fn write(mut self) -> anyhow::Result<()> {
        // Since when the condition has its value; read once, then known.
        let mut since: Option<(bool, Timestamp)> = None;
        let mut written: Option<NodeReport> = None;
        let mut resync_at = Instant::now() + RESYNC;
        loop {
            if Instant::now() >= resync_at {
                written = None;
                resync_at = Instant::now() + RESYNC;
            }
            let report = self.report.borrow_and_update().clone();
            let is_written =
                |report: &NodeReport| written.as_ref().is_some_and(|w| w.is_written_as(report));
            if let Some(report) = report.filter(|report| !is_written(report)) {
                if let Err(error) = self.write_once(&report, &mut since).await {
                    warn!(error = %words(&error), "the node's report could not be written; retrying");
                    sleep(PAUSE).await;
                    continue;
                }
                // The node's annotations do not have all images.
                written = Some(NodeReport {
                    images: Vec::new(),
                    ..report
                });
                resync_at = Instant::now() + RESYNC;
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
