//! What would happen to an image now, and why, as data: the answer of
//! [`Planner::explain`](crate::plan::Planner::explain), for people and programs.
//!
//! It is made for one pod: one that the node has, or one that sets nothing. What is said of a failure comes from
//! [`crate::verdict`], like the decision itself.
//!
//! The JSON is an interface: fields may be added, never renamed or given another meaning.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::identity::Identity;
use crate::image::ImageName;
use crate::keep::KeptCopy;
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::record::{Confirmation, ImageRecord, RolledBack, Try, Week};
use crate::rules::RuleInForce;
use crate::verdict::CachedCopy;

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// An image, for a pod that sets nothing.
    Image {
        /// Which image.
        image: ImageName,
        /// The pod's namespace, if rules are to be those of one.
        namespace: Option<String>,
    },
    /// A pod of this node, for one that is like it.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// What was looked up of one image, beside what the planner knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The copy, as the container runtime lists it.
    pub copy: CachedCopy,
    /// The copies of it that are kept; none if that is not known.
    pub kept: Option<Vec<KeptCopy>>,
    /// What the index says; none if it says nothing, or cannot be read.
    pub record: Option<ImageRecord>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// When it was true.
    pub time: Timestamp,
    /// The node's name.
    pub node: String,
    /// The pod that was asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodNow>,
    /// The image, or those of the pod's TryLatest containers.
    pub images: Vec<ImageNow>,
}

/// A pod that was asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodNow {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whose credentials the kubelet has for it.
    pub identity: Identity,
    /// What is wrong with its settings and image names, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub complaints: Vec<String>,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageNow {
    /// The image, in full.
    pub image: ImageName,
    /// The containers of the pod that was asked about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
    /// What happens to a pod that comes now.
    pub now: Foreseen,
    /// What such a pod gets once the registry has failed like this, for every class.
    pub after: Vec<After>,
    /// The node's copy.
    pub copy: CopyNow,
    /// Who may use it.
    pub access: Access,
    /// The copies that are kept for the next outage; none if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Vec<KeptNow>>,
    /// The last tries, newest first.
    pub tries: Vec<Try>,
    /// How those of the last seven days went, if the index says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub week: Option<Week>,
    /// The rules in force.
    pub rules: Vec<RuleInForce>,
    /// The image's registry.
    pub registry: RegistryNow,
    /// The pull that runs, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullNow>,
    /// The containers of this node that use it or wait for it, those first that wait.
    pub users: Vec<User>,
    /// So many more do.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_users: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl ImageNow {
    /// Whether the node has something of it, or remembers it. What could not be looked at may be there.
    pub fn is_known(&self) -> bool {
        self.copy.state != CopyState::Absent
            || self.copy.tag.is_some()
            || self.kept.as_ref().is_none_or(|kept| !kept.is_empty())
            || !self.tries.is_empty()
            || self.pull.is_some()
            || !self.users.is_empty()
    }
}

/// What comes first for a pod that comes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// It is not held: it starts, and the tag is checked afterwards.
    NotHeld,
    /// It starts from what its rollout has on the node.
    Same,
    /// The kubelet pulls the image for a pod: it waits for the end of that.
    Kubelet,
    /// The copy is only proven: the registry has just said where the name points, or the name is a digest.
    Look,
    /// The registry has failed and is not asked: it gets its outcome at once.
    NotAsked,
    /// The registry has failed, and this pod's try finds out whether it is back: it hardly waits for that.
    Probe,
    /// A pull runs and does not move: it does not wait for that.
    PassedOver,
    /// The registry is asked.
    Ask,
}

/// What happens to a pod that comes now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Foreseen {
    /// What comes first.
    pub step: Step,
    /// What it gets, if nobody has to be asked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Why, in words.
    pub why: String,
}

/// What follows from one class of failures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct After {
    /// How the try has failed.
    pub class: FailureClass,
    /// What the pod gets.
    pub outcome: Outcome,
    /// Why, where the outcome does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What stands under the image's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyState {
    /// A copy that a container can start from, as the container runtime lists it.
    Usable,
    /// Nothing.
    Absent,
    /// Nothing, while the kubelet pulls: the copy is kept aside until then.
    Aside,
    /// Something that no container can start from.
    Unusable,
    /// Nobody knows: the container runtime did not answer.
    Unknown,
}

/// The node's copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyNow {
    /// What stands under the name.
    pub state: CopyState,
    /// What is wrong with it, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What the name points to, or did when the copy was put aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Its size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// When the registry last said that the tag points to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Timestamp>,
    /// That the name was pointed back to it by hand, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<RolledBack>,
    /// What the registry last said at all: maybe that the tag points to another digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Confirmation>,
}

/// Who says which pods may use a private copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judge {
    /// The kubelet, by its own records.
    Kubelet,
    /// The agent, by what it has seen the kubelet pull.
    Agent,
    /// Nobody: `--allow-unverified-fallback` gives it to every pod.
    Nobody,
}

/// Who may use the copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// Whether the registry's last answer was that it wants credentials.
    pub needs_credentials: bool,
    /// Whether the registry has given this digest without credentials.
    pub everybodys: bool,
    /// Who decides where it has not.
    pub judge: Judge,
    /// For whom the kubelet has pulled this digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pulled_for: Vec<Identity>,
}

/// A copy that is kept for the next outage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptNow {
    /// Which one.
    pub digest: Digest,
    /// Whether the kubelet's image collector has to spare it.
    pub pinned: bool,
    /// Since when the image's name has pointed to it.
    pub since: Timestamp,
    /// When a pod last used it, or could have.
    pub used: Timestamp,
}

impl From<KeptCopy> for KeptNow {
    fn from(copy: KeptCopy) -> Self {
        Self {
            digest: copy.digest,
            pinned: copy.pinned,
            since: copy.since,
            used: copy.used,
        }
    }
}

/// The image's registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryNow {
    /// Its host.
    pub name: String,
    /// Why it is not asked for each pod, if its circuit is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<OpenNow>,
}

/// A circuit that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenNow {
    /// How it failed last; maybe with another image.
    pub failure: Failure,
    /// When.
    pub failed: Timestamp,
    /// When it is asked again at the latest, if an image of it that fell back is still used.
    pub probe: Timestamp,
}

/// A pull that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullNow {
    /// For whom the kubelet pulls; none if it is the agent's try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_kubelet_for: Option<Identity>,
    /// When it began.
    pub began: Timestamp,
    /// Bytes that are here.
    pub bytes: u64,
    /// How many there will be, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Whether nothing has moved for the stall deadline.
    pub stands_still: bool,
}

/// How far a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserState {
    /// Its pod is held, and it waits for the image.
    Waits,
    /// The kubelet could not get the image.
    Fails,
    /// It may start.
    Starts,
    /// It must not use the copy.
    Refused,
    /// It has started.
    Runs,
}

/// A container of this node that uses the image or waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// Its pod's namespace.
    pub namespace: String,
    /// Its pod's name.
    pub pod: String,
    /// Its name.
    pub container: String,
    /// How far it is.
    pub state: UserState,
    /// Since when it waits, or when it was released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// What it was released with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// What it runs, or was released with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}
