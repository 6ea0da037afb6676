//! How calls to containerd fail.

use std::time::Duration;

use trylatest_core::image::ImageName;
use trylatest_core::outcome::Failure;

/// A pull that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pulling {image} failed: {failure}")]
pub struct PullError {
    image: ImageName,
    failure: Failure,
}

impl PullError {
    /// A failed pull of this image.
    pub fn new(image: ImageName, failure: Failure) -> Self {
        Self { image, failure }
    }

    /// Why it failed: classified, without secrets, short.
    pub fn failure(&self) -> Failure {
        self.failure.clone()
    }
}

/// A call to containerd that failed. Pulls have their own error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// No answer in time.
    #[error("{operation}: containerd did not answer within {timeout:?}")]
    Timeout {
        /// What was asked.
        operation: &'static str,
        /// The deadline.
        timeout: Duration,
    },
    /// No connection, or it broke during the call.
    #[error("{operation}: containerd cannot be reached: {why}")]
    Unreachable {
        /// What was asked.
        operation: &'static str,
        /// What the connection said.
        why: String,
    },
    /// containerd answered with an error.
    #[error("{operation}: containerd answered {code:?}: {message}")]
    Answered {
        /// What was asked.
        operation: &'static str,
        /// Its code.
        code: tonic::Code,
        /// Its message, shortened.
        message: String,
    },
    /// There is no such image or alias.
    #[error("{operation}: {name} does not exist")]
    NotFound {
        /// What was asked.
        operation: &'static str,
        /// What is missing.
        name: String,
    },
    /// The alias could be taken for an image's name.
    #[error("invalid alias {alias:?}: it could be taken for an image's name")]
    BadAlias {
        /// The alias.
        alias: String,
    },
    /// The event stream has ended; later events would be missed.
    #[error("containerd has ended the event stream")]
    EventsEnded,
}

impl RuntimeError {
    /// Whether this was refused, for what it is: another call may go well.
    pub fn is_an_answer(&self) -> bool {
        match self {
            Self::Answered { .. } | Self::NotFound { .. } | Self::BadAlias { .. } => true,
            Self::Timeout { .. } | Self::Unreachable { .. } | Self::EventsEnded => false,
        }
    }
}
