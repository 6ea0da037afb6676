//! A gated pod of this node, as far as TryLatest needs to know it.

use jiff::Timestamp;

use crate::image::{ImageName, InvalidImageName};
use crate::release::Release;
use crate::settings::Settings;

/// Namespace and name, and the uid that tells a pod from a later one of the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
}

/// A pod that admission has gated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatedPod {
    /// Which pod.
    pub id: PodId,
    /// When it was created, in whole seconds, rounded down (as the API server says it).
    pub created: Timestamp,
    /// Its TryLatest containers.
    pub containers: Vec<TryContainer>,
    /// What its annotations set.
    pub settings: Settings,
    /// What could not be read, in words for a Warning Event.
    pub complaints: Vec<String>,
    /// How far its gate is.
    pub gate: GateState,
    /// The release it carries.
    pub released: Option<Release>,
    /// It has ended or is being deleted: nothing is owed to it.
    pub ended: bool,
}

/// One container whose image TryLatest looks after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TryContainer {
    /// The container's name.
    pub name: String,
    /// The image as the pod names it.
    pub written: String,
    /// The same in full, or why it is no image name.
    pub image: Result<ImageName, InvalidImageName>,
}

/// How far a pod's gate is, by its container status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateState {
    /// Not started yet, or between two runs.
    Pending,
    /// It runs, and waits for a fresh release.
    Running {
        /// Since when, in whole seconds, rounded down.
        since: Timestamp,
    },
    /// It has opened, or the pod has no gate: nothing waits for a release.
    Open,
    /// It has opened by itself, because it saw no answer: the pod runs what the kubelet found.
    GaveUp {
        /// Since when it had waited, in whole seconds, rounded down.
        since: Timestamp,
        /// When it opened, likewise.
        at: Timestamp,
    },
}
