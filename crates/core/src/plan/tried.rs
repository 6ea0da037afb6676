//! The end of a try: what is remembered, and whom it affects.

use std::time::Duration;

use super::Planner;
use super::event::{Action, Ask, TryEnded};
use super::image::Attempt;
use super::wait::Cause;
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass};
use crate::record::Try;
use crate::time::Now;
use crate::verdict::Evidence;

impl Planner {
    /// A try has ended: it is remembered, and everybody who waits for it moves on.
    pub(super) fn try_ended(&mut self, now: Now, ended: TryEnded, plan: &mut Vec<Action>) {
        let TryEnded {
            image: name,
            attempt: id,
            evidence,
        } = ended;
        let Some(image) = self.images.get_mut(&name) else {
            return;
        };
        let Some(attempt) = image.attempt.take_if(|attempt| attempt.id == id) else {
            return;
        };
        if attempt.ask == Ask::IfAbsent && evidence.copy.digest().is_none() {
            image.misses(now);
            return self.step(now, &name, |_, _| Cause::TryMissed, plan);
        }
        let failure = evidence.result.failure();
        image.finish(failure.is_some());
        if attempt.asks() && !failure.is_some_and(is_silence) {
            image.answered = Some(now.up);
        }
        if failure.is_none() {
            self.spared.forget(&name);
        }
        let began = attempt.started.up;
        let cause = |since| Cause::TryEnded {
            evidence: &evidence,
            is_good: is_good_for(since, began, failure),
        };
        let asked = attempt.asks();
        let had_answer = attempt.has_answer();
        let may_be_private = failure.is_some_and(|failure| {
            let class = failure.class;
            class == FailureClass::Unauthorized || class == FailureClass::NotFound
        });
        if asked && may_be_private {
            // A hand-over may follow, and they are remembered as one.
            image.refused = Some((attempt, evidence.clone()));
            if failure.is_some_and(|failure| failure.class == FailureClass::Unauthorized) {
                self.knowledge.refused(&name);
            }
        } else {
            self.remember(now, &name, &attempt, &evidence, plan);
        }
        self.step(now, &name, |_, round| cause(round.since), plan);
        if let Some(failure) = failure.filter(|_| asked && !had_answer) {
            self.share_silence(now, &name, began, failure, plan);
        }
    }

    /// Where nobody has asked the registry, there is nothing to remember.
    pub(super) fn remember(
        &mut self,
        now: Now,
        name: &ImageName,
        attempt: &Attempt,
        evidence: &Evidence,
        plan: &mut Vec<Action>,
    ) {
        if attempt.asks() {
            self.add_try(evidence.to_try(name, attempt.started, now, None), plan);
        }
    }

    /// Remembers a try of the agent or a pull of the kubelet.
    pub(super) fn add_try(&mut self, tried: Try, plan: &mut Vec<Action>) {
        self.knowledge.add(&tried);
        self.report_changed = true;
        plan.push(Action::Record(tried));
    }
}

/// Whether an ended try says something about a pod that came at `since`.
///
/// A success does if it began after the pod: the tag may have moved in between. So do a registry's
/// answers. That the registry gave none is as true for a pod that came meanwhile, and spares it
/// the same wait.
fn is_good_for(since: Duration, began: Duration, failure: Option<&Failure>) -> bool {
    failure.is_some_and(is_silence) || began >= since
}

/// Whether a failure is none of a registry's answers.
fn is_silence(failure: &Failure) -> bool {
    match failure.class {
        FailureClass::Timeout | FailureClass::Network | FailureClass::Local => true,
        FailureClass::ServerError
        | FailureClass::RateLimited
        | FailureClass::NotFound
        | FailureClass::Unauthorized
        | FailureClass::Invalid
        | FailureClass::Blocked
        | FailureClass::Unknown => false,
    }
}
