//! Counts calls to the API server, and translates their results for the planner.

use std::sync::Arc;

use tracing::{debug, warn};
use trylatest_core::plan::Written;
use trylatest_core::pod::PodId;
use trylatest_core::release::{Progress, Release};
use trylatest_k8s::{ApiError, Notice, Operation, Writer};

use super::metrics::{CallResult, Metrics};
use crate::clock;

/// A [`Writer`] that counts.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) writer: Writer,
    pub(super) metrics: Arc<Metrics>,
}

impl Api {
    /// Writes a release; logs why it failed.
    pub(super) async fn release(&self, pod: &PodId, release: &Release) -> Written {
        match self.count(Operation::Release, self.writer.release(pod, release).await) {
            Ok(()) => Written::Done,
            Err(error) if !error.is_retryable() => Written::Gone,
            Err(error) => {
                warn!(namespace = pod.namespace, pod = pod.name, error = %words(&error), "a release could not be written; retrying");
                Written::Failed
            }
        }
    }

    /// Writes a sign of life. True if it was written; the next one makes up for a lost one.
    pub(super) async fn progress(&self, pod: &PodId, progress: &Progress) -> bool {
        let written = self.writer.progress(pod, progress).await;
        let written = self.count(Operation::Progress, written);
        if let Err(error) = &written {
            debug!(namespace = pod.namespace, pod = pod.name, error = %words(error), "a sign of life could not be written");
        }
        written.is_ok()
    }

    /// Writes an Event for each outcome of a release in which a container is not as `before`.
    pub(super) async fn announce(&self, pod: &PodId, release: &Release, before: Option<&Release>) {
        for told in release.told_after(before) {
            self.notify(pod, &Notice::of_release(told)).await;
        }
    }

    /// Writes an Event. True if it was written.
    pub(super) async fn notify(&self, pod: &PodId, notice: &Notice) -> bool {
        let written = self.writer.notify(pod, notice, clock::wall()).await;
        let written = self.count(Operation::Event, written);
        if let Err(error) = &written {
            warn!(namespace = pod.namespace, pod = pod.name, reason = notice.reason, error = %words(error), "an Event could not be written");
        }
        written.is_ok()
    }

    /// Counts a call by its result.
    pub(super) fn count<T>(
        &self,
        operation: Operation,
        result: Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let word = match &result {
            Ok(_) => CallResult::Success,
            Err(ApiError::Gone { .. }) => CallResult::Gone,
            Err(ApiError::Timeout { .. }) => CallResult::Timeout,
            Err(ApiError::Call { .. }) => CallResult::Error,
        };
        self.metrics.calls.called(operation, word);
        result
    }
}

/// The error and its causes on one line, each only once: kube's own errors repeat theirs.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words.push_str(": ");
            words.push_str(&cause_words);
        }
        source = cause.source();
    }
    words
}
