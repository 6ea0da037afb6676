//! A gated pod of this node, as far as TryLatest needs to know it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::digest::Digest;
use crate::identity::Identity;
use crate::image::{ImageName, InvalidImageName};
use crate::keys;
use crate::outcome::Failure;
use crate::release::Release;
use crate::settings::Settings;
use crate::text;

/// Namespace and name, and the uid that distinguishes a pod from a later one of the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
}

/// A pod that admission has gated, or has left without a gate because it is not to be held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatedPod {
    /// Which pod.
    pub id: PodId,
    /// When it was created, in whole seconds, rounded down (as the API server says it).
    pub created: Timestamp,
    /// Its TryLatest containers and image volumes, except those that the kubelet pulls at each start.
    pub containers: Vec<TryContainer>,
    /// Whether it has image volumes, TryLatest ones or others: the kubelet gets their images before it starts the gate.
    pub has_image_volumes: bool,
    /// The gate and TryLatest containers that no longer have the pull policy that admission gave them.
    pub overruled: Vec<Overruled>,
    /// Whose credentials the kubelet pulls with for it.
    pub identity: Identity,
    /// How far the kubelet has come with its TryLatest containers, by their names.
    pub starts: BTreeMap<String, Start>,
    /// What its annotations set.
    pub settings: Settings,
    /// The rollout that it belongs to, if that can be known.
    pub revision: Option<Revision>,
    /// Its `activeDeadlineSeconds`: after that the kubelet ends the pod for good. The wait for images
    /// counts.
    pub active_deadline: Option<Duration>,
    /// What could not be read, in words for a Warning Event.
    pub complaints: Vec<String>,
    /// How far its gate has come.
    pub gate: GateState,
    /// The image that the gate will start from, while it has not started.
    pub gate_image: Option<GateImage>,
    /// The release it carries.
    pub released: Option<Release>,
    /// Its containers have ended for good, or it is being deleted: TryLatest has nothing left to do for
    /// it.
    pub terminated: bool,
}

impl GatedPod {
    /// One that has no containers to look after and sets nothing, and whose gate has not started.
    pub fn new(id: PodId, created: Timestamp) -> Self {
        Self {
            id,
            created,
            containers: Vec::new(),
            has_image_volumes: false,
            overruled: Vec::new(),
            identity: Identity::default(),
            starts: BTreeMap::new(),
            settings: Settings::default(),
            revision: None,
            active_deadline: None,
            complaints: Vec::new(),
            gate: GateState::Pending,
            gate_image: None,
            released: None,
            terminated: false,
        }
    }
}

/// What pods have in common that were made from one version of one template, within a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision {
    /// The uid of the object that has made the pod.
    pub owner: String,
    /// Which version of that object's template it was, if the object has more than one.
    pub version: Option<String>,
}

/// One container, or image volume, whose image TryLatest looks after.
///
/// The kubelet looks for a volume's image each time that it starts a container of the pod, and mounts what it finds
/// into the containers that it starts then (`pkg/kubelet/kuberuntime/kuberuntime_manager.go`, `getImageVolumes`). So a
/// gate holds a volume like a container, and a container that restarts may get a newer copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TryContainer {
    /// The container's name; a volume's begins with [`keys::VOLUME_PREFIX`].
    pub name: String,
    /// The image as the pod names it.
    pub written: String,
    /// The same in full, or why it is not a valid image name.
    pub image: Result<ImageName, InvalidImageName>,
}

impl TryContainer {
    /// Whether it is an image volume.
    fn is_volume(&self) -> bool {
        self.name.starts_with(keys::VOLUME_PREFIX)
    }

    /// Which one it is, in a message.
    pub(crate) fn describe(&self) -> String {
        let kind = if self.is_volume() { "" } else { "container " };
        format!("{kind}{}", self.name)
    }
}

/// How far the kubelet has come with a container, by its status, or with an image volume, by the statuses of the
/// containers that mount it. One that is not known waits for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// It is its turn: nothing that starts before it is left.
    Next,
    /// The kubelet could not get its image.
    Wanting(Failure),
    /// The kubelet could not get its image for something else in the pod, which comes first. That may have another pull
    /// policy, so it says nothing about the copy.
    Behind(Failure),
    /// It has started; all that mount it have.
    Started {
        /// What it runs, if the kubelet says so. Of a volume it seldom does.
        digest: Option<Digest>,
        /// Since when it runs without a break; none while it does not. Of a volume, when the last of those that run
        /// has started.
        since: Option<Timestamp>,
        /// It has started more than once since the gate opened; of a volume, one that mounts it has.
        again: bool,
    },
}

/// A container whose pull policy is not the `IfNotPresent` that it should have: another admission policy
/// has changed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overruled {
    /// The container's name.
    pub name: String,
    /// What it has instead.
    pub policy: OtherPolicy,
    /// What shows it.
    pub trace: Trace,
}

/// What shows that another admission policy has interfered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// The container does not have the policy that admission gave it.
    Policy,
    /// It had another policy before our admission saw the pod, but its template said TryLatest. The
    /// template may also have been changed while our admission was away.
    Template,
    /// Admission has removed it from the pod again, which happens only to the gate.
    Removed,
}

/// A pull policy that a gate or a TryLatest container should not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OtherPolicy {
    /// The kubelet asks the registry at each start and starts nothing from the cached copy without
    /// its answer: our try would be in vain.
    Always,
    /// The kubelet never pulls: the container starts only if a try has left a copy on the node.
    Never,
}

impl OtherPolicy {
    /// Every policy.
    pub const ALL: [Self; 2] = [Self::Always, Self::Never];

    /// The word in Kubernetes, messages and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::Never => "Never",
        }
    }
}

/// Most names that a message lists for each policy.
const NAMES_MAX: usize = 3;

/// What the pod's owner should know about these, in words for one Warning Event.
pub fn describe_overruled(overruled: &[Overruled]) -> String {
    let kinds = OtherPolicy::ALL.map(|policy| [(policy, true), (policy, false)]);
    let changes = kinds.into_iter().flatten().filter_map(|(policy, removed)| {
        let names = overruled
            .iter()
            .filter(|other| (other.policy, other.trace == Trace::Removed) == (policy, removed));
        let names: Vec<&str> = names.map(|other| other.name.as_str()).collect();
        let means = match (policy, removed) {
            (_, true) => "removed from the pod again; TryLatest does nothing for this pod",
            (OtherPolicy::Always, false) => {
                "will not start while its registry is unreachable, even with a cached copy"
            }
            (OtherPolicy::Never, false) => "will not start unless a copy is on the node",
        };
        let (word, shown) = (policy.as_str(), text::some_of(&names, NAMES_MAX));
        (!names.is_empty()).then(|| format!("{word} on {shown} ({means})"))
    });
    let changes: Vec<String> = changes.collect();
    let meant = if overruled.iter().any(|o| o.trace == Trace::Template) {
        ". If the template is meant to say Always, remove its annotation trylatest.dev/literal"
    } else {
        ""
    };
    format!(
        "another admission policy has changed imagePullPolicy: {}. Exempt TryLatest pods from that policy: \
         docs/troubleshooting.md, \"A pod says Always although its template said TryLatest\"{meant}",
        changes.join("; ")
    )
}

/// The image that a gate will start from. Other admission policies may have changed its name and its
/// pull policy after ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateImage {
    /// The image's name.
    pub name: ImageName,
    /// The kubelet asks the registry for it even if it is on the node.
    pub always_pulled: bool,
    /// The kubelet has tried to get the image and failed.
    pub wanting: bool,
}

/// How far a pod's gate has come, by its container status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateState {
    /// Not started yet, or between two runs.
    Pending,
    /// It runs, and waits for a fresh release.
    Running {
        /// Since when: in whole seconds, rounded down, if the kubelet says so.
        since: Timestamp,
    },
    /// It has opened, or somebody has removed it: nothing waits for a release.
    Open,
    /// The pod is to have none: it starts at once.
    NotWanted,
    /// It has opened by itself, because it saw no answer: the pod runs what the kubelet found.
    GaveUp {
        /// When it had begun to wait, in whole seconds, rounded down.
        since: Timestamp,
        /// When it opened, likewise.
        at: Timestamp,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overruled(name: impl Into<String>, policy: OtherPolicy) -> Overruled {
        let name = name.into();
        Overruled {
            name,
            policy,
            trace: Trace::Policy,
        }
    }

    #[test]
    fn a_changed_policy_says_what_it_means_and_what_to_do() {
        let both = [
            overruled("trylatest-gate", OtherPolicy::Always),
            overruled("app", OtherPolicy::Always),
            overruled("job", OtherPolicy::Never),
        ];
        assert_eq!(
            describe_overruled(&both),
            "another admission policy has changed imagePullPolicy: Always on trylatest-gate, app (will \
             not start while its registry is unreachable, even with a cached copy); Never on job (will \
             not start unless a copy is on the node). Exempt TryLatest pods from that policy: \
             docs/troubleshooting.md, \"A pod says Always although its template said TryLatest\""
        );
    }

    #[test]
    fn a_gate_that_was_taken_away_is_not_said_to_wait() {
        let gate = Overruled {
            trace: Trace::Removed,
            ..overruled("trylatest-gate", OtherPolicy::Always)
        };
        let words = describe_overruled(&[gate, overruled("app", OtherPolicy::Always)]);
        assert!(
            words.starts_with(
                "another admission policy has changed imagePullPolicy: Always on trylatest-gate \
                 (removed from the pod again; TryLatest does nothing for this pod); Always on app (will not"
            ),
            "{words}"
        );
    }

    #[test]
    fn it_fits_into_an_event() {
        let mut many: Vec<_> = (0..100)
            .map(|n| overruled(format!("{n:063}"), OtherPolicy::ALL[n % 2]))
            .collect();
        many[0].trace = Trace::Template;
        many[2].trace = Trace::Removed;
        let words = describe_overruled(&many);
        assert!(words.contains("and 47 more"), "{words}");
        assert!(
            words.ends_with("remove its annotation trylatest.dev/literal"),
            "{words}"
        );
        assert!(words.len() <= 1024, "{}", words.len());
    }
}
