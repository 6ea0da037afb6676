//! What the agent writes into a pod's annotation, as JSON, and what the gate reads there.
//!
//! Both sides may be of different versions while an upgrade rolls: fields may be added, never
//! renamed or given another meaning; unknown fields are ignored.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::pod::Start;
use crate::record::{Confirmation, RolledBack};
use crate::text;
use crate::time::{age, near};

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

/// Who has asked.
pub(crate) const BY_KUBELET: &str = "the kubelet has asked the registry, with credentials";

/// The agent began after the name was taken away, or has given it back before the kubelet came.
const NOT_SEEN: &str =
    "TryLatest has not seen the kubelet pull it: the registry may or may not have confirmed it";

/// Who was refused, besides the agent, which has no credentials.
const KUBELET_REFUSED: &str =
    "the registry also refused the kubelet's pull, which used this pod's credentials";

/// What spares a pod the kubelet's back-off: a failure is remembered for its identity, for 1 to 15 minutes.
pub(crate) const NOT_ASKED: &str = "the kubelet was not asked to pull it, because that failed a short while ago for a pod \
                                    with the same namespace, service account and pull secrets; it is asked again for \
                                    pods that start some minutes later";

/// The gate was open before the pull had ended, and the container started after that.
const OVERTAKEN: &str = "the pull ended before the container started";

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
    /// Why the pod must not use a cached copy, or what else the agent did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
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
            note: None,
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
            // Without a digest, it may have started from a copy that could not be looked at.
            (Outcome::Unavailable, Start::Started { .. }) if self.digest.is_none() => None,
            (
                Outcome::HandedOver | Outcome::Unavailable,
                Start::Started {
                    digest: Some(digest),
                    ..
                },
            ) if self.digest.as_ref() == Some(digest) => Some(match self.outcome {
                Outcome::HandedOver => self.starts_unseen_from(digest, self.confirmed),
                _ => self.clone().starts_from_its_copy(),
            }),
            (
                Outcome::HandedOver | Outcome::Unavailable,
                Start::Started {
                    digest: Some(digest),
                    since,
                    ..
                },
            ) => Some(self.pulled_by_kubelet(Outcome::Fresh, digest, since.unwrap_or(now))),
            _ => None,
        }
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

    /// Whether it runs something else than the first pod of its rollout got on this node, or than it was released
    /// with, although it is to run the same.
    pub fn is_other(&self) -> bool {
        self.rollout.is_some()
            && (self.runs.is_some() || self.has_copy() && self.rollout != self.digest)
    }

    /// Whether it runs a copy that it fell back to, as far as the pod says it.
    pub fn runs_fallback(&self) -> bool {
        self.outcome == Outcome::Fallback && self.runs.is_none()
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
            note: Some(OVERTAKEN.to_owned()),
            ..self.clone()
        })
    }

    /// It has started from this, which the registry last confirmed at that time; nobody knows who has brought it. That the
    /// agent was refused before a hand-over says nothing of that.
    pub(crate) fn starts_unseen_from(&self, digest: &Digest, confirmed: Option<Timestamp>) -> Self {
        let is_same = self.digest.as_ref() == Some(digest);
        let was_left = self.outcome == Outcome::HandedOver;
        Self {
            outcome: Outcome::Fallback,
            failure: self.failure.clone().filter(|_| !was_left),
            digest: Some(digest.clone()),
            confirmed,
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

    /// Its failure is that of the kubelet's pull: its note says so if the registry has refused that.
    pub(crate) fn note_refusal(&mut self) {
        let class = self.failure.as_ref().map(|failure| failure.class);
        if self.outcome == Outcome::Fallback && class == Some(FailureClass::Unauthorized) {
            self.note = Some(begin_with(KUBELET_REFUSED, self.note.take()));
        }
    }

    /// Whether a copy is on the node from which the kubelet has not started it.
    pub(crate) fn is_not_accepted(&self) -> bool {
        self.outcome == Outcome::Unavailable && self.digest.is_some()
    }

    /// The kubelet has pulled it.
    #[must_use]
    pub fn pulled_by_kubelet(&self, outcome: Outcome, digest: &Digest, now: Timestamp) -> Self {
        Self {
            outcome,
            failure: None,
            digest: Some(digest.clone()),
            confirmed: Some(now),
            rolled_back: None,
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
                ..before.clone()
            };
            let newer = Self {
                runs: self.runs.clone(),
                ..before.clone()
            };
            before == self || back == *self || self.rollout.is_none() && newer == *self
        });
        !is_known && self.outcome != Outcome::HandedOver
    }

    /// One line for the gate's log and the pod's Event, without the container's name.
    pub fn describe(&self, now: Timestamp) -> String {
        let image = &self.image;
        let is_handed_over = self.outcome == Outcome::HandedOver;
        let digest = self.digest.as_ref().map_or("no proven copy", Digest::short);
        let confirmed = match (self.confirmed, &self.rolled_back) {
            (_, Some(back)) => back.describe(now),
            (Some(then), None) => format!("confirmed {} ago", text::short_duration(age(now, then))),
            (None, None) => "never confirmed by TryLatest".to_owned(),
        };
        let mut line = match self.outcome {
            Outcome::Fresh => format!("pulled {image}: {digest}"),
            Outcome::Unchanged => format!("{image} is unchanged: {digest}"),
            Outcome::Same => format!(
                "starting {image} from what this rollout has on this node already: {digest}, {confirmed}; the registry \
                 was not asked"
            ),
            Outcome::Fallback => {
                format!("using the cached copy of {image}: {digest}, {confirmed}")
            }
            Outcome::NotHeld => self.describe_not_held(&confirmed),
            Outcome::HandedOver => self.describe_hand_over(digest, &confirmed),
            Outcome::Unavailable => {
                format!("{image} could not be pulled and is left to the kubelet")
            }
            Outcome::Refused => {
                format!("this pod must not use the cached copy of {image}: {digest}, {confirmed}")
            }
        };
        if let Some(failure) = self.failure.as_ref().filter(|_| !is_handed_over) {
            line.push_str("; ");
            line.push_str(&failure.to_string());
        }
        if let Some(note) = &self.note {
            line.push_str("; ");
            line.push_str(note);
        }
        self.describe_other(&mut line);
        if let Some(answered) = self.answered {
            line.push_str("; the agent had answered \"");
            line.push_str(answered.as_str());
            line.push_str("\", but the gate could not see it");
        }
        line
    }

    /// That it differs from its rollout, or from its release.
    fn describe_other(&self, line: &mut String) {
        if let Some(first) = self.rollout.as_ref().filter(|_| self.has_copy())
            && self.rollout != self.digest
        {
            line.push_str("; the first pod of this rollout got another digest on this node, ");
            line.push_str(first.short());
        }
        if let Some(runs) = &self.runs {
            line.push_str(
                "; the image's name has been moved since, and the container was started from ",
            );
            line.push_str(runs.short());
        }
    }

    /// Who has brought the copy is not known: it may have been the kubelet, for this pod.
    fn describe_not_held(&self, confirmed: &str) -> String {
        let image = &self.image;
        let Some(runs) = self.digest.as_ref().map(Digest::short) else {
            return format!(
                "started {image} without checking its tag first; the kubelet does not say which copy"
            );
        };
        match &self.moved {
            Some(moved) => format!(
                "{image} has moved to {}, which is on the node for the next start; this pod runs {runs}",
                moved.short()
            ),
            None => format!("started {image} without checking its tag first: {runs}, {confirmed}"),
        }
    }

    /// That a registry does not give a private image to the agent is how it should be: no error is quoted.
    fn describe_hand_over(&self, digest: &str, confirmed: &str) -> String {
        let image = &self.image;
        let mut line = match &self.failure {
            Some(failure) if failure.class == FailureClass::Unauthorized => format!(
                "the registry wants credentials; the kubelet pulls {image} with those it has for this pod"
            ),
            // It may be hidden, or not there.
            Some(failure) if failure.class == FailureClass::NotFound => format!(
                "the registry does not find {image} without credentials; the kubelet tries with those it has \
                 for this pod"
            ),
            Some(failure) => format!(
                "the kubelet pulls {image} with the credentials it has for this pod; the agent's own try failed \
                 ({failure})"
            ),
            None => {
                format!("the kubelet pulls {image} with the credentials it has for this pod")
            }
        };
        if self.digest.is_some() {
            line.push_str("; the cached copy ");
            line.push_str(digest);
            line.push_str(", ");
            line.push_str(confirmed);
            line.push_str(", stays on the node, to be used if that pull fails");
        }
        line
    }
}

/// The note of a container for which the kubelet was not asked: why not, if it uses the copy.
pub(crate) fn note_not_asked(outcome: Outcome, note: Option<String>) -> Option<String> {
    if outcome == Outcome::Fallback {
        Some(begin_with(NOT_ASKED, note))
    } else {
        note
    }
}

fn begin_with(words: &str, note: Option<String>) -> String {
    match note {
        Some(note) => format!("{words}; {note}"),
        None => words.to_owned(),
    }
}

/// That the kubelet does not start a pod from the copy that is here, and has failed to pull like this.
fn not_accepted(class: FailureClass) -> String {
    let why = match class {
        FailureClass::Unauthorized => ", because the registry does not let this pod pull the image",
        FailureClass::NotFound => ", and the registry does not find the image for this pod",
        // The kubelet does not say why.
        FailureClass::Network
        | FailureClass::Timeout
        | FailureClass::ServerError
        | FailureClass::RateLimited
        | FailureClass::Invalid
        | FailureClass::Blocked
        | FailureClass::Local
        | FailureClass::Unknown => {
            "; it may want the registry to accept the pod's credentials first"
        }
    };
    format!("the kubelet did not start it from the copy on the node{why}")
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn release() -> Release {
        let container = ContainerRelease {
            failure: Some(Failure::new(FailureClass::Network, "connection refused")),
            digest: format!("sha256:{}", "ab".repeat(32)).parse().ok(),
            confirmed: Some("2026-01-01T11:57:00Z".parse().unwrap()),
            ..ContainerRelease::new("127.0.0.1:5000/my/app:latest", Outcome::Fallback)
        };
        Release {
            time: "2026-01-01T12:00:00Z".parse().unwrap(),
            containers: [("app".to_owned(), container)].into(),
            unseen: None,
        }
    }

    #[test]
    fn the_json_is_flat_and_survives_a_round_trip() {
        let release = release();
        let json = serde_json::to_value(&release).unwrap();
        assert_eq!(json["containers"]["app"]["class"], "network");
        assert_eq!(json["containers"]["app"]["message"], "connection refused");
        assert_eq!(serde_json::from_value::<Release>(json).unwrap(), release);
    }

    #[test]
    fn without_a_failure_there_is_none_after_a_round_trip() {
        let mut release = release();
        let app = release.containers.get_mut("app").unwrap();
        app.failure = None;
        app.outcome = Outcome::Fresh;
        let json = serde_json::to_string(&release).unwrap();
        assert_eq!(serde_json::from_str::<Release>(&json).unwrap(), release);
    }

    #[test]
    fn fields_of_a_later_version_are_ignored() {
        let json = r#"{"time":"2026-01-01T12:00:00Z","later":1,
            "containers":{"app":{"image":"a","outcome":"fresh","more":{}}}}"#;
        assert!(serde_json::from_str::<Release>(json).unwrap().opens());
    }

    /// A gate may be older than the agent that answers it.
    #[test]
    fn a_failure_class_of_a_later_version_costs_the_reason_and_not_the_release() {
        let json = r#"{"time":"2026-01-01T12:00:00Z","containers":{"app":{"image":"a",
            "outcome":"refused","class":"of-tomorrow","message":"m"}}}"#;
        let release = serde_json::from_str::<Release>(json).unwrap();
        assert_eq!(release.containers["app"].failure, None);
        assert!(!release.opens());
    }

    #[test]
    fn a_release_is_fresh_within_two_minutes_either_way() {
        let release = release();
        for (now, fresh) in [
            ("2026-01-01T11:57:59Z", false),
            ("2026-01-01T11:58:00Z", true),
            ("2026-01-01T12:02:00Z", true),
            ("2026-01-01T12:02:01Z", false),
        ] {
            assert_eq!(
                release.is_fresh(now.parse().unwrap(), FRESHNESS),
                fresh,
                "{now}"
            );
        }
    }

    #[test]
    fn a_fallback_tells_what_why_and_how_old() {
        let release = release();
        assert_eq!(
            release.containers["app"].describe(release.time),
            "using the cached copy of 127.0.0.1:5000/my/app:latest: sha256:abababababab, \
             confirmed 3m ago; network: connection refused"
        );
    }

    /// A healthy start of a private image shows nothing that looks like an error.
    #[test]
    fn a_hand_over_says_that_it_is_the_ordinary_way() {
        let mut app = release().containers["app"].clone();
        app.outcome = Outcome::HandedOver;
        let mut said = |class: FailureClass| {
            app.failure = Some(Failure::new(class, "401 Unauthorized"));
            app.describe("2026-01-01T12:00:00Z".parse().unwrap())
        };
        assert_eq!(
            said(FailureClass::Unauthorized),
            "the registry wants credentials; the kubelet pulls 127.0.0.1:5000/my/app:latest with those it has \
             for this pod; the cached copy sha256:abababababab, confirmed 3m ago, stays on the node, to be used \
             if that pull fails"
        );
        let hidden = said(FailureClass::NotFound);
        let words = "the registry does not find 127.0.0.1:5000/my/app:latest without credentials; the kubelet tries";
        assert!(hidden.starts_with(words), "{hidden}");
        assert!(!hidden.contains("401"), "{hidden}");
        // Not the ordinary way: another pod's hand-over is in this one's way.
        assert!(said(FailureClass::Network).contains("own try failed (network: 401"));
        app.digest = None;
        app.failure = None;
        assert_eq!(
            app.describe("2026-01-01T12:00:00Z".parse().unwrap()),
            "the kubelet pulls 127.0.0.1:5000/my/app:latest with the credentials it has for this pod"
        );
    }

    #[test]
    fn what_has_moved_is_news_and_what_has_moved_back_is_not() {
        let mut app = release().containers["app"].clone();
        app.outcome = Outcome::NotHeld;
        let moved = ContainerRelease {
            moved: format!("sha256:{}", "cd".repeat(32)).parse().ok(),
            ..app.clone()
        };
        let again = ContainerRelease {
            digest: moved.moved.clone(),
            ..app.clone()
        };
        let newer = ContainerRelease {
            runs: moved.moved.clone(),
            ..app.clone()
        };
        let other = ContainerRelease {
            rollout: app.digest.clone(),
            ..newer.clone()
        };
        let of_rollout = ContainerRelease {
            runs: None,
            ..other.clone()
        };
        for (before, now, news) in [
            (None, &app, true),
            (Some(&app), &app, false),
            (Some(&app), &moved, true),
            (Some(&moved), &app, false),
            (Some(&moved), &again, true),
            (Some(&app), &newer, false),
            (Some(&newer), &app, false),
            (Some(&of_rollout), &other, true),
            (Some(&other), &of_rollout, false),
        ] {
            assert_eq!(now.is_news_after(before), news, "{before:?} {now:?}");
        }
        app.outcome = Outcome::HandedOver;
        assert!(!app.is_news_after(None));
    }

    #[test]
    fn a_refusal_that_no_gate_saw_says_what_runs_and_what_was_answered() {
        let mut release = release();
        let app = release.containers.get_mut("app").unwrap();
        app.outcome = Outcome::Refused;
        app.note = Some("the pod's max-age is 1m".into());
        let given = release.clone();
        let unseen = release.unseen_at("2026-01-01T12:00:20Z".parse().unwrap());
        let json = serde_json::to_value(&unseen).unwrap();
        assert_eq!(json["unseen"], "2026-01-01T12:00:20Z");
        assert_eq!(json["containers"]["app"]["outcome"], "fallback");
        assert_eq!(json["containers"]["app"]["answered"], "refused");
        assert_eq!(
            unseen.containers["app"].describe(unseen.time),
            "using the cached copy of 127.0.0.1:5000/my/app:latest: sha256:abababababab, \
             confirmed 3m ago; network: connection refused; the pod's max-age is 1m; the agent had \
             answered \"refused\", but the gate could not see it"
        );
        assert!(given.is_fresh(given.time, FRESHNESS) && !unseen.is_fresh(given.time, FRESHNESS));
        let mut bare = given;
        bare.containers.get_mut("app").unwrap().digest = None;
        let bare = bare.unseen_at(unseen.time);
        assert_eq!(bare.containers["app"].outcome, Outcome::Unavailable);
    }

    #[test]
    fn progress_tells_bytes_and_tries() {
        let progress = ContainerProgress {
            image: "app".into(),
            attempt: 2,
            bytes: 1024,
            total_bytes: Some(2048),
            by_kubelet: false,
            failure: Some(Failure::new(FailureClass::ServerError, "503")),
        };
        assert_eq!(
            progress.describe(),
            "pulling app, 1.0 KiB of 2.0 KiB, try 2; previous try: server-error: 503"
        );
    }
}
