//! The signs of life that the agent writes into a pod's annotation while it works on the pod.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::outcome::Failure;
use crate::text;

/// A sign of life while the agent works on a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// When it was written.
    pub time: Timestamp,
    /// By container name.
    pub containers: BTreeMap<String, ContainerProgress>,
}

/// How far the try for one container's image has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerProgress {
    /// The image as the pod names it.
    pub image: String,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// Bytes of this pull that have arrived.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes that this pull will take, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// The kubelet is to pull it, not the agent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_kubelet: bool,
    /// Why the try before failed.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl ContainerProgress {
    /// The kubelet is about to pull this image, or pulls it.
    pub(crate) fn by_kubelet(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            attempt: 1,
            bytes: 0,
            total_bytes: None,
            by_kubelet: true,
            failure: None,
        }
    }

    /// One line for the gate's log, without the container's name.
    pub fn describe(&self) -> String {
        let image = &self.image;
        let mut line = if self.by_kubelet {
            format!("waiting for the kubelet to pull {image}")
        } else {
            format!("pulling {image}")
        };
        if self.bytes > 0 {
            line.push_str(", ");
            line.push_str(&text::bytes(self.bytes));
            if let Some(total) = self.total_bytes {
                line.push_str(" of ");
                line.push_str(&text::bytes(total));
            }
        }
        if self.attempt > 1 {
            line.push_str(", try ");
            line.push_str(&self.attempt.to_string());
        }
        if let Some(failure) = &self.failure {
            line.push_str("; previous try: ");
            line.push_str(&failure.to_string());
        }
        line
    }
}
