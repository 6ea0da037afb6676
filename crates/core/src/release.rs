//! What the agent writes into a pod's annotation, as JSON, and what the gate reads there.
//!
//! Both sides may be of different versions while an upgrade rolls: fields may be added, never
//! renamed or given another meaning; unknown fields are ignored.

mod progress;
pub(crate) mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::progress::{ContainerProgress, Progress};
use self::words::{BY_KUBELET, CAME_SINCE, NOT_SEEN, OVERTAKEN, not_accepted};
use crate::digest::Digest;
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::pod::Start;
use crate::record::{Confirmation, RolledBack};
use crate::time::near;

/// How far a release's time may lie from the reader's clock: the gate ignores a release outside of
/// this. Agent and gate share the node's clock; an older release was meant for an earlier run of the
/// gate.
pub const FRESHNESS: Duration = Duration::from_mins(2);

/// The moment from which `IfNotPresent` is safe for a pod, and what was found per container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// When the agent decided it.
    pub time: Timestamp,
    /// By container name.
    pub containers: BTreeMap<String, ContainerRelease>,
    /// When the gate opened by itself, if it did not see the release: the entries of the containers say
    /// what they started from then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen: Option<Timestamp>,
}

/// What was found for one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRelease {
    /// The image as the pod names it.
    pub image: String,
    /// How the try ended for this container.
    pub outcome: Outcome,
    /// Why the tag's current content is not used.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// What the container starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// When the registry last said that the tag points to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Timestamp>,
    /// That the image's name was pointed back to it by hand, if it was.
    #[serde(
        rename = "rolledBack",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub rolled_back: Option<RolledBack>,
    /// What the tag points to since the container has started, if that is something else; said of pods that are
    /// not held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Digest>,
    /// What the first pod of its rollout got on this node, if the pod is to start from the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Digest>,
    /// What the container was seen to run since, if that is other content than [`ContainerRelease::digest`]: the image's
    /// name had been moved when it started, or started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<Digest>,
    /// Whether nobody has seen a registry confirm that, before the container started from it: somebody may have moved the
    /// name by hand.
    #[serde(
        rename = "runsUnproven",
        default,
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub runs_unproven: bool,
    /// Why the pod must not use a cached copy, or what else the agent did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Whether the registry has refused the kubelet's pull, which used the pod's credentials.
    #[serde(
        rename = "kubeletRefused",
        default,
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub kubelet_refused: bool,
    /// Whether nobody has seen where what it starts from has come from: the node may have had a copy that the agent could
    /// not prove usable, or the container has started from one that has come since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unproven: bool,
    /// What the agent had answered, if the container started despite it (see [`Release::unseen`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<Outcome>,
}

impl Release {
    /// Whether the gate may act on it now. A release that an earlier run of the gate did not see records
    /// what the pod did without it; it is no answer to a later run.
    pub fn is_fresh(&self, now: Timestamp, freshness: Duration) -> bool {
        self.unseen.is_none() && near(now, self.time, freshness)
    }

    /// Whether every container may start.
    pub fn opens(&self) -> bool {
        self.containers
            .values()
            .all(|container| container.outcome != Outcome::Refused)
    }

    /// Whether the agent had refused a container that nevertheless started.
    pub fn refused(&self) -> bool {
        let mut containers = self.containers.values();
        containers.any(|container| container.answered == Some(Outcome::Refused))
    }

    /// The same release after the gate has opened by itself at this time without seeing it: the kubelet
    /// has started refused containers from the copy on the node.
    #[must_use]
    pub fn unseen_at(mut self, at: Timestamp) -> Self {
        self.unseen = Some(at);
        for container in self.containers.values_mut() {
            if container.outcome == Outcome::Refused {
                container.answered = Some(container.outcome);
                container.outcome = if container.digest.is_some() {
                    Outcome::Fallback
                } else {
                    Outcome::Unavailable
                };
            }
        }
        self
    }
}

impl ContainerRelease {
    /// One that says nothing else of this image.
    pub fn new(image: &str, outcome: Outcome) -> Self {
        Self {
            image: image.to_owned(),
            outcome,
            failure: None,
            digest: None,
            confirmed: None,
            rolled_back: None,
            moved: None,
            rollout: None,
            runs: None,
            runs_unproven: false,
            note: None,
            kubelet_refused: false,
            unproven: false,
            answered: None,
        }
    }

    /// What has become of it, if the container's status says more than was known when it was given.
    #[must_use]
    pub fn settled(&self, start: &Start, now: Timestamp) -> Option<Self> {
        match (self.outcome, start) {
            (
                Outcome::Fresh
                | Outcome::Unchanged
                | Outcome::Same
                | Outcome::Fallback
                | Outcome::HandedOver,
                Start::Wanting(failure),
            ) => Some(Self {
                outcome: Outcome::Unavailable,
                failure: Some(failure.clone()),
                note: self.digest.as_ref().map(|_| not_accepted(failure.class)),
                ..self.clone()
            }),
            // The registry answers now, or says something else to the kubelet, which has credentials.
            (Outcome::Unavailable, Start::Wanting(failure))
                if failure.class.is_answer() && self.class() != Some(failure.class) =>
            {
                Some(Self {
                    failure: Some(failure.clone()),
                    note: self.digest.as_ref().map(|_| not_accepted(failure.class)),
                    ..self.clone()
                })
            }
            (Outcome::HandedOver | Outcome::Unavailable, Start::Started { digest, since, .. }) => {
                self.started(digest.as_ref(), since.unwrap_or(now))
            }
            _ => None,
        }
    }

    /// What has become of it, which was left to the kubelet and has started from this since then.
    fn started(&self, digest: Option<&Digest>, since: Timestamp) -> Option<Self> {
        let Some(copy) = &self.digest else {
            return match self.outcome {
                _ if self.unproven => None,
                Outcome::HandedOver => Some(self.pulled_by_kubelet(Outcome::Fresh, digest, since)),
                _ => Some(self.came_since(digest, None)),
            };
        };
        Some(match digest {
            // An image volume, for example: it may be the copy.
            None => self.starts_unseen_from(None, None),
            Some(digest) if digest != copy => {
                self.pulled_by_kubelet(Outcome::Fresh, Some(digest), since)
            }
            Some(digest) if self.outcome == Outcome::HandedOver => {
                self.starts_unseen_from(Some(digest), self.confirmed)
            }
            // The kubelet has accepted it after all.
            Some(_) => Self {
                outcome: Outcome::Fallback,
                kubelet_refused: false,
                note: None,
                ..self.clone()
            },
        })
    }

    /// Why its pull failed, if it did.
    pub fn class(&self) -> Option<FailureClass> {
        self.failure.as_ref().map(|failure| failure.class)
    }

    /// Whether it starts from a copy that is known.
    pub(crate) fn has_copy(&self) -> bool {
        match self.outcome {
            Outcome::Fresh
            | Outcome::Unchanged
            | Outcome::Same
            | Outcome::Fallback
            | Outcome::NotHeld => self.digest.is_some(),
            Outcome::HandedOver | Outcome::Unavailable | Outcome::Refused => false,
        }
    }

    /// What it runs, as far as the pod says it.
    pub fn what_runs(&self) -> Option<&Digest> {
        self.runs.as_ref().or(self.digest.as_ref())
    }

    /// Whether it runs something else than the first pod of its rollout got on this node, or than it was released
    /// with, although it is to run the same.
    pub fn is_other(&self) -> bool {
        self.rollout.is_some()
            && (self.runs.is_some() || self.has_copy() && self.rollout != self.digest)
    }

    /// Whether it runs a copy that it fell back to, as far as the pod says it, or has started since from one that may be
    /// as old.
    pub fn runs_fallback(&self) -> bool {
        let is_newer = self.runs.is_some() && !self.runs_unproven;
        self.outcome == Outcome::Fallback && !is_newer && !self.unproven
    }

    /// The pull that the pod did not wait for has brought what the registry last confirmed, and the container runs that
    /// after all. One that has started again has run its copy before.
    #[must_use]
    pub fn overtaken(&self, start: &Start, confirmed: &Confirmation) -> Option<Self> {
        let brought = &confirmed.digest;
        let runs_it = matches!(
            start,
            Start::Started { digest, again: false, .. } if digest.as_ref() == Some(brought)
        );
        let fell_back = self.outcome == Outcome::Fallback && self.digest.as_ref() != Some(brought);
        (runs_it && fell_back).then(|| Self {
            outcome: Outcome::Fresh,
            failure: None,
            digest: Some(brought.clone()),
            confirmed: Some(confirmed.time),
            rolled_back: None,
            runs: None,
            runs_unproven: false,
            kubelet_refused: false,
            unproven: false,
            note: Some(OVERTAKEN.to_owned()),
            ..self.clone()
        })
    }

    /// It has started from this, which the registry last confirmed at that time; nobody knows who has brought it. That the
    /// agent was refused before a hand-over says nothing of that. Without a digest, the kubelet does not say what it is.
    pub(crate) fn starts_unseen_from(
        &self,
        digest: Option<&Digest>,
        confirmed: Option<Timestamp>,
    ) -> Self {
        let is_same = digest.is_some() && self.digest.as_ref() == digest;
        let was_left = self.outcome == Outcome::HandedOver;
        Self {
            outcome: Outcome::Fallback,
            failure: self.failure.clone().filter(|_| !was_left),
            digest: digest.cloned(),
            confirmed,
            unproven: digest.is_none(),
            kubelet_refused: false,
            rolled_back: self.rolled_back.clone().filter(|_| is_same),
            note: (is_same || confirmed.is_none()).then(|| NOT_SEEN.to_owned()),
            ..self.clone()
        }
    }

    /// Nothing was pulled: it starts from the copy that it names, if it names one.
    pub(crate) fn starts_from_its_copy(self) -> Self {
        Self {
            outcome: if self.digest.is_some() {
                Outcome::Fallback
            } else {
                Outcome::Unavailable
            },
            ..self
        }
    }

    /// Its failure is that of the kubelet's pull.
    pub(crate) fn failed_for_kubelet(&mut self) {
        self.kubelet_refused =
            self.outcome == Outcome::Fallback && self.class() == Some(FailureClass::Unauthorized);
    }

    /// Whether a copy is on the node from which the kubelet has not started it.
    pub(crate) fn is_not_accepted(&self) -> bool {
        self.outcome == Outcome::Unavailable && self.digest.is_some()
    }

    /// Whether there was no copy that it could start from.
    pub(crate) fn is_without_copy(&self) -> bool {
        self.outcome == Outcome::Unavailable && self.digest.is_none() && !self.unproven
    }

    /// There was no copy, and it has started from this. If the registry has confirmed that since, it is new. Otherwise
    /// the kubelet may have pulled it, or somebody has brought it by hand.
    pub(crate) fn came_since(&self, digest: Option<&Digest>, confirmed: Option<Timestamp>) -> Self {
        Self {
            outcome: if confirmed.is_some() {
                Outcome::Fresh
            } else {
                Outcome::Fallback
            },
            failure: None,
            digest: digest.cloned(),
            confirmed,
            unproven: confirmed.is_none(),
            note: Some(CAME_SINCE.to_owned()),
            ..self.clone()
        }
    }

    /// The kubelet has pulled it; without a digest, it does not say what.
    #[must_use]
    pub fn pulled_by_kubelet(
        &self,
        outcome: Outcome,
        digest: Option<&Digest>,
        now: Timestamp,
    ) -> Self {
        Self {
            outcome,
            failure: None,
            digest: digest.cloned(),
            confirmed: Some(now),
            rolled_back: None,
            kubelet_refused: false,
            unproven: false,
            note: Some(BY_KUBELET.to_owned()),
            ..self.clone()
        }
    }

    /// Whether the pod's owner is to hear of it, who has heard of `before`. A hand-over is told when it has ended; that
    /// a tag points again to what runs is as if it had not moved, and so is that a container runs again what it was
    /// released with. That it runs something newer is usual, except in a rollout that is to run one digest.
    pub fn is_news_after(&self, before: Option<&Self>) -> bool {
        let is_known = before.is_some_and(|before| {
            let back = Self {
                moved: None,
                runs: None,
                runs_unproven: false,
                ..before.clone()
            };
            let newer = Self {
                runs: self.runs.clone(),
                runs_unproven: self.runs_unproven,
                ..before.clone()
            };
            before == self || back == *self || self.rollout.is_none() && newer == *self
        });
        !is_known && self.outcome != Outcome::HandedOver
    }
}

#[cfg(test)]
mod tests;
