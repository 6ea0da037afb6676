//! What can go wrong with one call.

use std::fmt;
use std::time::Duration;

/// The calls that this crate makes, for messages and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Writing a release to a pod.
    Release,
    /// Writing a sign of life to a pod.
    Progress,
    /// Creating an Event.
    Event,
    /// Writing the node's annotations and condition.
    NodeReport,
    /// Reading the node's condition.
    NodeCondition,
    /// Reading the agent's own pod.
    OwnPod,
    /// Reading the DaemonSet of the agent's own pod.
    OwnDaemonSet,
    /// Reading the version of the node's kubelet.
    Kubelet,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 8] = [
        Self::Release,
        Self::Progress,
        Self::Event,
        Self::NodeReport,
        Self::NodeCondition,
        Self::OwnPod,
        Self::OwnDaemonSet,
        Self::Kubelet,
    ];

    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Progress => "progress",
            Self::Event => "event",
            Self::NodeReport => "node-report",
            Self::NodeCondition => "node-condition",
            Self::OwnPod => "own-pod",
            Self::OwnDaemonSet => "own-daemonset",
            Self::Kubelet => "kubelet",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A call to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The object is gone, or another one has its name. Do not retry.
    #[error("{operation}: {object} is gone")]
    Gone {
        /// What was attempted.
        operation: Operation,
        /// On which object.
        object: String,
    },
    /// No answer within the deadline. Retry.
    #[error("{operation}: {object}: no answer within {deadline:?}")]
    Timeout {
        /// What was attempted.
        operation: Operation,
        /// On which object.
        object: String,
        /// The deadline.
        deadline: Duration,
    },
    /// The API server could not be reached, or refused. Worth a retry with a pause: rights and
    /// admission policies may follow later.
    #[error("{operation}: {object}")]
    Call {
        /// What was attempted.
        operation: Operation,
        /// On which object.
        object: String,
        /// What was answered.
        source: Box<kube::Error>,
    },
}

impl ApiError {
    /// Whether the same call may work later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Gone { .. } => false,
            Self::Timeout { .. } | Self::Call { .. } => true,
        }
    }

    /// Whether the API server says that the object would not be valid then.
    pub(crate) fn is_invalid(&self) -> bool {
        let Self::Call { source, .. } = self else {
            return false;
        };
        matches!(source.as_ref(), kube::Error::Api(status) if status.is_invalid())
    }
}
