//! A container whose pod's time is up: it takes the copy. While a try runs, it waits longer if the registry may yet
//! refuse the image, or if there is no copy, or none that could be checked.

use std::time::Duration;

use super::super::image::{Attempt, Image};
use super::{Cause, Context, LOOK_AGAIN, Request, Wait, Waiting, look};
use crate::outcome::{Failure, FailureClass};
use crate::verdict::{CachedCopy, Evidence};

/// A pod waits no longer than this for a registry's first word when its own time is up. A try that
/// stalls is not waited for, but one that may be waiting in containerd's queue has not stalled.
const FIRST_WORD: Duration = Duration::from_secs(30);

impl Waiting {
    /// Its next state and what that needs; none if nothing changes.
    pub(super) fn step_late(
        &self,
        cause: Cause<'_>,
        context: &Context<'_>,
    ) -> Option<(Wait, Request)> {
        let is_over = self.timer().is_some_and(|end| end <= context.now.up);
        Some(match (&self.wait, cause) {
            (Wait::FirstWord { .. }, Cause::Time) if !context.may_yet_be_refused() => look(false),
            (Wait::FirstWord { .. }, Cause::Time) if is_over => look(true),
            (&Wait::NextLook { unheard, .. }, Cause::Time) if is_over => look(unheard),
            (Wait::LastTry, Cause::TryMissed) => look(false),
            (&Wait::NextLook { unheard, .. }, Cause::TryMissed) => look(unheard),
            (&Wait::Look { unheard }, Cause::Looked(copy)) => {
                (self.looked(copy, unheard, context), Request::Nothing)
            }
            // This was the last try.
            (_, Cause::TryEnded { evidence, .. }) => {
                (self.concluded(evidence, context), Request::Nothing)
            }
            (
                _,
                Cause::Time
                | Cause::TryMissed
                | Cause::Looked(_)
                | Cause::Away
                | Cause::Pulled { .. }
                | Cause::Spared(_)
                | Cause::Nothing,
            ) => return None,
        })
    }

    /// The copy was looked at.
    fn looked(&self, copy: &CachedCopy, unheard: bool, context: &Context<'_>) -> Wait {
        let now = context.now.up;
        if context.may_yet_be_refused() && !unheard {
            let until = now + FIRST_WORD;
            return Wait::FirstWord { until };
        }
        let stalled = context.image.attempt.as_deref();
        let stalled = stalled.and_then(Attempt::why_passed_over);
        let failure = stalled.or_else(|| self.failure.clone());
        let failure = failure.unwrap_or_else(|| late(context.image));
        let evidence = Evidence::of_look(failure, copy.clone());
        if let Some(done) = self.judged(&evidence, context) {
            done
        } else if context.image.attempt.is_none()
            || context.image.is_stalled() && matches!(copy, CachedCopy::Unknown { .. })
        {
            self.given_up(&evidence, context)
        } else if matches!(copy, CachedCopy::Unknown { .. }) {
            let at = now + LOOK_AGAIN;
            Wait::NextLook { at, unheard }
        } else {
            Wait::LastTry
        }
    }
}

/// Why nothing came in time.
fn late(image: &Image) -> Failure {
    let (class, words) = match &image.attempt {
        None => (
            FailureClass::Local,
            "the pod's timeout has passed, and this image was still waiting for its turn on this node",
        ),
        Some(attempt) if !attempt.asks() => (
            FailureClass::Local,
            "the pod's timeout has passed, and the node's copy was still being checked",
        ),
        Some(attempt) if attempt.flow.flows => (
            FailureClass::Timeout,
            "the pod's timeout has passed; the download continues for the next pod",
        ),
        Some(attempt) if attempt.has_answer() => (
            FailureClass::Timeout,
            "the pod's timeout has passed; the registry has answered, but no data has arrived yet",
        ),
        Some(_) => (
            FailureClass::Timeout,
            "the pod's timeout has passed, and the registry has not answered",
        ),
    };
    Failure::new(class, words)
}
