//! A container whose pod has time: it waits for its image's try. If nothing moves in that, it takes a copy that it may
//! use at once.

use std::time::Duration;

use super::super::image::Attempt;
use super::{Cause, Context, Request, Wait, Waiting, look};
use crate::verdict::{CachedCopy, Evidence};

impl Waiting {
    /// Its next state, and what that needs; none if nothing changes. Its time may have been up just now.
    pub(super) fn step_in_time(
        &mut self,
        cause: Cause<'_>,
        until: Duration,
        context: &Context<'_>,
    ) -> Option<(Wait, Request)> {
        let is_over = until <= context.now.up;
        let is_stalled = matches!(self.wait, Wait::Stalled { .. });
        Some(match cause {
            Cause::Time if is_over => look(false),
            Cause::Time if !is_stalled && context.is_passed_over() => {
                (Wait::Stalled { until }, Request::Look)
            }
            Cause::TryMissed if is_stalled => (Wait::Try { until }, Request::Nothing),
            Cause::Looked(copy) if is_stalled => {
                (self.stalled(copy, until, context), Request::Nothing)
            }
            Cause::TryEnded { is_good: false, .. } => (Wait::Try { until }, Request::Try),
            Cause::TryEnded { evidence, .. } if !is_over => self.tried(evidence, until, context),
            // Its time is up: this was the last try.
            Cause::TryEnded { evidence, .. } => {
                (self.concluded(evidence, context), Request::Nothing)
            }
            Cause::Time
            | Cause::TryMissed
            | Cause::Looked(_)
            | Cause::Away
            | Cause::Pulled { .. }
            | Cause::Spared(_)
            | Cause::Nothing => return None,
        })
    }

    /// The try has ended in time.
    fn tried(
        &mut self,
        evidence: &Evidence,
        until: Duration,
        context: &Context<'_>,
    ) -> (Wait, Request) {
        if context.is_for_kubelet(evidence) {
            let refused = Box::new(evidence.clone());
            return (Wait::Kubelet { until, refused }, Request::Nothing);
        }
        let mut done = self.judged(evidence, context);
        if done.is_none() && context.is_better_left_to_kubelet(evidence) {
            done = Some(self.given_up(evidence, context));
        }
        if let Some(done) = done {
            return (done, Request::Nothing);
        }
        self.failed_tries += 1;
        self.failure = evidence.result.failure().cloned();
        (Wait::Try { until }, Request::Retry)
    }

    /// The copy was looked at because nothing moves. A pod that has none, or that must not use it, gains
    /// nothing from an early end.
    fn stalled(&self, copy: &CachedCopy, until: Duration, context: &Context<'_>) -> Wait {
        let attempt = context.image.attempt.as_deref();
        let Some(failure) = attempt.and_then(Attempt::why_passed_over) else {
            return Wait::Try { until };
        };
        let evidence = Evidence::of_look(failure, copy.clone());
        let done = self.judged(&evidence, context);
        let done = done.filter(|done| !done.is_refused());
        done.unwrap_or(Wait::Stalled { until })
    }
}
