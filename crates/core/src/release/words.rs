//! What a release says to people: one line for each container, and the notes in it.

use jiff::Timestamp;

use super::ContainerRelease;
use crate::digest::Digest;
use crate::outcome::{FailureClass, Outcome};
use crate::record::last_confirmed;

/// Who has asked.
pub(crate) const BY_KUBELET: &str = "the kubelet has asked the registry, with credentials";

/// The agent began after the name was taken away, or has given it back before the kubelet came.
pub(super) const NOT_SEEN: &str =
    "TryLatest has not seen the kubelet pull it: the registry may or may not have confirmed it";

/// Who has brought it is not known.
pub(crate) const CAME_SINCE: &str =
    "it has come to this node after the pod was left to the kubelet";

/// Who was refused, besides the agent, which has no credentials.
const KUBELET_REFUSED: &str =
    "the registry also refused the kubelet's pull, which used this pod's credentials";

/// The same of an earlier pull than the one that has failed now.
const KUBELET_HAD_REFUSED: &str =
    "before that, the registry refused the kubelet's pull, which used this pod's credentials";

/// What spares a pod the kubelet's back-off: a failure is remembered for its identity, for 1 to 15 minutes.
pub(crate) const NOT_ASKED: &str = "the kubelet was not asked to pull it, because that failed a short while ago for a pod \
                                    with the same namespace, service account and pull secrets; it is asked again for \
                                    pods that start some minutes later";

/// The gate was open before the pull had ended, and the container started after that.
pub(super) const OVERTAKEN: &str = "the pull ended before the container started";

impl ContainerRelease {
    /// One line for the gate's log and the pod's Event, without the container's name.
    pub fn describe(&self, now: Timestamp) -> String {
        let image = &self.image;
        let is_handed_over = self.outcome == Outcome::HandedOver;
        let digest = self.digest.as_ref().map_or("no proven copy", Digest::short);
        let confirmed = last_confirmed(self.confirmed, self.rolled_back.as_ref(), now);
        let mut line = match self.outcome {
            Outcome::Fresh if self.digest.is_none() => {
                format!("pulled {image}; the kubelet does not say which copy")
            }
            Outcome::Fresh => format!("pulled {image}: {digest}"),
            Outcome::Unchanged => format!("{image} is unchanged: {digest}"),
            Outcome::Same => format!(
                "starting {image} from what this rollout has on this node already: {digest}, {confirmed}; the registry \
                 was not asked"
            ),
            Outcome::Fallback if self.digest.is_none() => {
                format!("started {image}; the kubelet does not say which copy")
            }
            Outcome::Fallback if self.unproven => format!("started {image}: {digest}, {confirmed}"),
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
        for words in self.refused_words().into_iter().chain(self.note.as_deref()) {
            line.push_str("; ");
            line.push_str(words);
        }
        self.describe_other(&mut line);
        if let Some(answered) = self.answered {
            line.push_str("; the agent had answered \"");
            line.push_str(answered.as_str());
            line.push_str("\", but the gate could not see it");
        }
        line
    }

    /// That the registry has refused the pod's credentials, unless its failure says so. An outage does not undo that.
    fn refused_words(&self) -> Option<&'static str> {
        let is_outage = self.class().is_some_and(FailureClass::is_outage);
        match self.outcome {
            Outcome::Unavailable if is_outage => Some(KUBELET_HAD_REFUSED),
            Outcome::Unavailable => None,
            _ => Some(KUBELET_REFUSED),
        }
        .filter(|_| self.kubelet_refused)
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
            if self.runs_unproven {
                line.push_str(", which no registry had confirmed by then");
            }
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

pub(super) fn begin_with(words: &str, note: Option<String>) -> String {
    match note {
        Some(note) => format!("{words}; {note}"),
        None => words.to_owned(),
    }
}

/// That the kubelet does not start a pod from the copy that is here, and has failed to pull like this.
pub(super) fn not_accepted(class: FailureClass) -> String {
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
