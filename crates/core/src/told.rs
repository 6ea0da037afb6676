//! What a pod's owner is told of its release, as Events: one for each reason, with what to do at the end.

use std::collections::BTreeMap;

use crate::image::ImageName;
use crate::outcome::{FailureClass, Outcome};
use crate::release::{ContainerRelease, Release};

/// Longest note of an Event in bytes (`pkg/apis/core/validation/events.go`, `NoteLengthLimit`).
const NOTE_MAX_BYTES: usize = 1024;

/// In place of what is left out of a note.
const CUT: &str = "…";

/// Why an Event is written about a release. The words are stable: people filter and alert by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// [`Outcome::Refused`].
    Refused,
    /// [`Outcome::Unavailable`].
    Unavailable,
    /// [`Outcome::Fallback`].
    Fallback,
    /// The container runs something else than its rollout.
    OtherDigest,
    /// The tag has moved since the container started without a gate.
    Moved,
    /// [`Outcome::NotHeld`].
    NotHeld,
    /// [`Outcome::Same`].
    Same,
    /// [`Outcome::Fresh`].
    Fresh,
    /// [`Outcome::Unchanged`].
    Unchanged,
}

impl Reason {
    /// Every reason, the worst first.
    pub const ALL: [Self; 9] = [
        Self::Refused,
        Self::Unavailable,
        Self::Fallback,
        Self::OtherDigest,
        Self::Moved,
        Self::NotHeld,
        Self::Same,
        Self::Fresh,
        Self::Unchanged,
    ];

    /// The Event's reason.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "TryLatestRefused",
            Self::Unavailable => "TryLatestUnavailable",
            Self::Fallback => "TryLatestFallback",
            Self::OtherDigest => "TryLatestOtherDigest",
            Self::Moved => "TryLatestMoved",
            Self::NotHeld => "TryLatestNotHeld",
            Self::Same => "TryLatestSame",
            Self::Fresh => "TryLatestFresh",
            Self::Unchanged => "TryLatestUnchanged",
        }
    }

    /// Whether a person may have to look.
    pub const fn is_warning(self) -> bool {
        match self {
            Self::Refused | Self::Unavailable | Self::Fallback | Self::OtherDigest => true,
            Self::Moved | Self::NotHeld | Self::Same | Self::Fresh | Self::Unchanged => false,
        }
    }

    /// None of a hand-over: its end is told. Nor of what is no image's name, of which the pod's settings are told: the kubelet
    /// may start it all the same, as it does with an image ID that the node has.
    fn of(container: &ContainerRelease) -> Option<Self> {
        Some(match container.outcome {
            Outcome::Fresh | Outcome::Unchanged | Outcome::Same if container.is_other() => {
                Self::OtherDigest
            }
            // It has fallen back before, and does not run that copy any more.
            Outcome::Fallback if container.is_other() && !container.runs_fallback() => {
                Self::OtherDigest
            }
            Outcome::Fresh => Self::Fresh,
            Outcome::Unchanged => Self::Unchanged,
            Outcome::Same => Self::Same,
            Outcome::Fallback => Self::Fallback,
            Outcome::NotHeld if container.moved.is_some() => Self::Moved,
            Outcome::NotHeld => Self::NotHeld,
            Outcome::HandedOver => return None,
            Outcome::Unavailable if has_bad_name(container) => return None,
            Outcome::Unavailable => Self::Unavailable,
            Outcome::Refused => Self::Refused,
        })
    }

    /// What the owner can do, if anything.
    fn advice(self, container: &ContainerRelease) -> Option<&'static str> {
        let class = container.class();
        match self {
            Self::Refused => Some(
                "to do: nothing if the registry will be back, because the gate asks again; otherwise check the pod's \
                 credentials and its trylatest.dev annotations",
            ),
            Self::Unavailable if container.is_not_accepted() => {
                class.map(|class| if_not_accepted(class, container.kubelet_refused))
            }
            Self::Unavailable => class.map(if_nothing_is_there),
            Self::Fallback => class.map(if_pull_failed),
            Self::OtherDigest => Some("to do: restart the rollout if it has to run one digest"),
            Self::Moved => Some("to do: restart the pod to run the new image"),
            Self::NotHeld | Self::Same | Self::Fresh | Self::Unchanged => None,
        }
    }
}

fn has_bad_name(container: &ContainerRelease) -> bool {
    let class = container.class();
    class == Some(FailureClass::Invalid) && container.image.parse::<ImageName>().is_err()
}

fn if_pull_failed(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Network | FailureClass::Timeout => {
            "to do: check that the node reaches the registry; a pod that starts after that gets the new image"
        }
        FailureClass::ServerError | FailureClass::RateLimited => {
            "to do: nothing until the registry recovers; a pod that starts after that gets the new image"
        }
        FailureClass::NotFound => "to do: check that the registry has this tag",
        FailureClass::Unauthorized => "to do: check the pod's imagePullSecrets",
        FailureClass::Invalid => {
            "to do: check the image's name, and that the image is complete and for this node's platform"
        }
        FailureClass::Blocked => "to do: ask whoever runs the node's image verifier",
        FailureClass::Local => "to do: check the node's disk and containerd",
        FailureClass::Unknown => "to do: look the message up in containerd's log",
    }
}

/// The pod does not start, and the kubelet tries again by itself.
fn if_nothing_is_there(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Network | FailureClass::Timeout => {
            "to do: check that the node reaches the registry; the pod starts by itself once the kubelet can pull the image"
        }
        FailureClass::ServerError | FailureClass::RateLimited => {
            "to do: nothing; the pod starts by itself once the registry recovers and the kubelet can pull the image"
        }
        FailureClass::NotFound
        | FailureClass::Unauthorized
        | FailureClass::Invalid
        | FailureClass::Blocked
        | FailureClass::Local
        | FailureClass::Unknown => if_pull_failed(class),
    }
}

/// The registry has to let the pod pull before the kubelet starts it from the copy. An outage hides whether it would: it is
/// no reason to suspect the pod's secret, unless the registry has refused that before.
fn if_not_accepted(class: FailureClass, was_refused: bool) -> &'static str {
    match class {
        FailureClass::Network | FailureClass::Timeout if !was_refused => {
            "to do: check that the node reaches the registry; the pod starts by itself once the registry lets it pull"
        }
        FailureClass::ServerError | FailureClass::RateLimited if !was_refused => {
            "to do: nothing; the pod starts by itself once the registry recovers and lets it pull"
        }
        FailureClass::Network | FailureClass::Timeout => {
            "to do: check the pod's imagePullSecrets, and that the node reaches the registry; the pod starts once the \
             registry lets it pull"
        }
        FailureClass::ServerError | FailureClass::RateLimited => {
            "to do: check the pod's imagePullSecrets; the pod starts once the registry recovers and lets it pull"
        }
        FailureClass::NotFound => {
            "to do: check that the registry has this tag, and that the pod's imagePullSecrets give access to it"
        }
        FailureClass::Unauthorized => {
            "to do: check the pod's imagePullSecrets: they have to name a secret in the pod's namespace that gives \
             access to this image"
        }
        FailureClass::Unknown => {
            "to do: check the pod's imagePullSecrets, and look the message up in containerd's log"
        }
        FailureClass::Invalid | FailureClass::Blocked | FailureClass::Local => {
            if_pull_failed(class)
        }
    }
}

/// An Event about a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its reason.
    pub reason: Reason,
    /// Its note, which fits.
    pub note: String,
}

impl Release {
    /// What the owner is told that has been told of `before`: a hand-over when it has ended.
    pub fn told_after(&self, before: Option<&Self>) -> Vec<Told> {
        let mut news: BTreeMap<Reason, Vec<(&String, &ContainerRelease)>> = BTreeMap::new();
        for (name, container) in &self.containers {
            let known = before.and_then(|before| before.containers.get(name));
            if let Some(reason) = Reason::of(container)
                && container.is_news_after(known)
            {
                news.entry(reason).or_default().push((name, container));
            }
        }
        let told = |(reason, containers): (Reason, Vec<_>)| Told {
            reason,
            note: self.note(reason, &containers),
        };
        news.into_iter().map(told).collect()
    }

    fn note(&self, reason: Reason, containers: &[(&String, &ContainerRelease)]) -> String {
        let lines = containers
            .iter()
            .map(|(name, container)| format!("{name}: {}", container.describe(self.time)));
        let mut note = lines.collect::<Vec<_>>().join("; ");
        let advice = containers
            .iter()
            .filter_map(|(_, container)| reason.advice(container));
        let mut advice: Vec<&str> = advice.collect();
        advice.sort_unstable();
        advice.dedup();
        let end = advice.iter().map(|advice| "; ".len() + advice.len()).sum();
        let most = NOTE_MAX_BYTES.saturating_sub(end);
        if note.len() > most {
            note.truncate(note.floor_char_boundary(most.saturating_sub(CUT.len())));
            note.push_str(CUT);
        }
        for advice in advice {
            note.push_str("; ");
            note.push_str(advice);
        }
        note
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Failure;
    use crate::pod::Start;

    fn container(image: &str, outcome: Outcome, class: Option<FailureClass>) -> ContainerRelease {
        ContainerRelease {
            failure: class.map(|class| Failure::new(class, "why")),
            ..ContainerRelease::new(image, outcome)
        }
    }

    fn release(containers: impl IntoIterator<Item = ContainerRelease>) -> Release {
        let names = ('a'..='z').map(String::from);
        Release {
            time: "2026-01-01T12:00:00Z".parse().unwrap(),
            containers: names.zip(containers).collect(),
            unseen: None,
        }
    }

    #[test]
    fn containers_with_one_outcome_share_an_event() {
        let fallback = |image| ContainerRelease {
            digest: "sha256:1".parse().ok(),
            ..container(image, Outcome::Fallback, Some(FailureClass::Network))
        };
        let fresh = container("two", Outcome::Fresh, None);
        let release = release([fallback("one"), fresh, fallback("three")]);
        let [fallback, fresh] = &release.told_after(None)[..] else {
            panic!("{:?}", release.told_after(None));
        };
        assert_eq!(
            (fallback.reason, fresh.reason),
            (Reason::Fallback, Reason::Fresh)
        );
        assert!(
            fallback.note.starts_with("a: using the cached copy of one"),
            "{}",
            fallback.note
        );
        assert!(
            fallback
                .note
                .contains("; c: using the cached copy of three")
        );
        assert_eq!(
            fallback.note.matches("to do: ").count(),
            1,
            "{}",
            fallback.note
        );
        assert_eq!(
            fresh.note,
            "b: pulled two; the kubelet does not say which copy"
        );
        assert_eq!(release.told_after(Some(&release)), []);
    }

    #[test]
    fn a_container_that_leaves_its_rollouts_copy_does_not_fall_back_again() {
        let first = ContainerRelease {
            digest: "sha256:1".parse().ok(),
            rollout: "sha256:1".parse().ok(),
            ..container("one", Outcome::Fallback, Some(FailureClass::Network))
        };
        let other = ContainerRelease {
            runs: "sha256:2".parse().ok(),
            ..first.clone()
        };
        let (first, other) = (release([first]), release([other]));
        assert_eq!(first.told_after(None)[0].reason, Reason::Fallback);
        let told = other.told_after(Some(&first));
        assert_eq!(told[0].reason, Reason::OtherDigest, "{told:?}");
        assert!(
            told[0].note.contains("was started from sha256:2"),
            "{told:?}"
        );
    }

    #[test]
    fn a_long_note_ends_with_what_to_do() {
        let long = format!("registry.example/{}:latest", "ä".repeat(400));
        let classes = [FailureClass::NotFound, FailureClass::Local];
        let containers = classes.map(|class| container(&long, Outcome::Unavailable, Some(class)));
        let told = &release(containers).told_after(None)[0];
        assert!(told.note.len() <= NOTE_MAX_BYTES, "{}", told.note.len());
        let end = "…; to do: check that the registry has this tag; to do: check the node's disk and containerd";
        assert!(told.note.ends_with(end), "{}", told.note);
    }

    /// An outage is no advice for a pod whose credentials the registry has refused, and no reason to suspect others.
    #[test]
    fn a_pod_whose_copy_is_not_accepted_is_told_to_check_its_credentials() {
        let left = ContainerRelease {
            digest: "sha256:1".parse().ok(),
            ..container("one", Outcome::HandedOver, Some(FailureClass::Unauthorized))
        };
        let mut refused = ContainerRelease {
            outcome: Outcome::Fallback,
            ..left.clone()
        };
        refused.failed_for_kubelet();
        let maybe = "; it may want the registry to accept the pod's credentials first; ";
        for (before, class, because, advice) in [
            (
                &left,
                FailureClass::Network,
                maybe,
                "to do: check that the node reaches the registry; the pod starts by itself once the registry lets it pull",
            ),
            (
                &left,
                FailureClass::ServerError,
                maybe,
                "to do: nothing; the pod starts by itself once the registry recovers and lets it pull",
            ),
            (
                &refused,
                FailureClass::Network,
                maybe,
                "to do: check the pod's imagePullSecrets, and that the node reaches the registry; the pod starts once the \
                 registry lets it pull",
            ),
            (
                &left,
                FailureClass::Unauthorized,
                ", because the registry does not let this pod pull the image; ",
                "to do: check the pod's imagePullSecrets: they have to name a secret in the pod's namespace that gives \
                 access to this image",
            ),
            (
                &left,
                FailureClass::NotFound,
                ", and the registry does not find the image for this pod; ",
                "to do: check that the registry has this tag, and that the pod's imagePullSecrets give access to it",
            ),
            (
                &refused,
                FailureClass::ServerError,
                maybe,
                "to do: check the pod's imagePullSecrets; the pod starts once the registry recovers and lets it pull",
            ),
        ] {
            let start = Start::Wanting(Failure::new(class, "why"));
            let time = "2026-01-01T12:00:20Z".parse().unwrap();
            let settled = before.settled(&start, time).unwrap();
            let told = &release([settled]).told_after(Some(&release([before.clone()])))[0];
            assert_eq!(told.reason, Reason::Unavailable);
            let words = "the kubelet did not start it from the copy on the node";
            let end = format!("{words}{because}{advice}");
            assert!(told.note.ends_with(&end), "{}", told.note);
            let was_refused = told.note.contains("refused the kubelet's pull");
            assert_eq!(was_refused, *before == refused, "{}", told.note);
        }
    }

    /// There is none.
    #[test]
    fn a_pod_without_a_copy_is_not_told_of_one() {
        let left = container("one", Outcome::HandedOver, None);
        let start = Start::Wanting(Failure::new(FailureClass::Network, "why"));
        let time = "2026-01-01T12:00:20Z".parse().unwrap();
        let told = &release([left.settled(&start, time).unwrap()]).told_after(None)[0];
        assert_eq!(
            told.note,
            "a: one could not be pulled and is left to the kubelet; network: why; to do: check that the node reaches \
             the registry; the pod starts by itself once the kubelet can pull the image"
        );
    }

    /// The complaint about the pod names it, and the kubelet may start an image ID.
    #[test]
    fn a_bad_name_is_told_once() {
        let id = format!("sha256:{}", "12".repeat(32));
        let told = |image: &str| {
            let bad = container(image, Outcome::Unavailable, Some(FailureClass::Invalid));
            release([bad]).told_after(None).len()
        };
        for (image, number) in [("UPPER/Case:::", 0), (&id, 0), ("incomplete", 1)] {
            assert_eq!(told(image), number, "{image}");
        }
    }

    #[test]
    fn whatever_warns_says_what_to_do() {
        for reason in Reason::ALL {
            for class in FailureClass::ALL {
                let bare = container("one", Outcome::Unavailable, Some(class));
                let not_accepted = ContainerRelease {
                    digest: "sha256:1".parse().ok(),
                    ..bare.clone()
                };
                for container in [bare, not_accepted] {
                    let advice = reason.advice(&container);
                    let has_advice = reason.is_warning() || reason == Reason::Moved;
                    assert_eq!(advice.is_some(), has_advice, "{reason:?} {class}");
                }
            }
        }
        assert!(Reason::ALL.is_sorted());
    }
}
