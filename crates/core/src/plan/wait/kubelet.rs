//! A container that waits for the kubelet's pull.

use super::super::same::Rollout;
use super::{Cause, Context, LOOK_AGAIN, Request, Spare, Wait, Waiting};
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::record::TryResult;
use crate::release::ContainerRelease;
use crate::release::words::{BY_KUBELET, note_not_asked};
use crate::verdict::{CachedCopy, Evidence};

/// What a try that was refused has shown, with another failure.
fn failed(failure: &Failure, refused: &Evidence) -> Evidence {
    Evidence {
        result: TryResult::Failed(failure.clone()),
        ..refused.clone()
    }
}

impl Waiting {
    /// The registry has refused the image, and the kubelet may open it.
    pub(super) fn step_with_kubelet(&mut self, cause: Cause<'_>, context: &Context<'_>) -> Request {
        let Wait::Kubelet { until, refused } = &self.wait else {
            return Request::Nothing;
        };
        let (until, refused) = (*until, refused.clone());
        self.wait = match cause {
            Cause::Away => self.left_to_kubelet(&refused, context),
            Cause::Time if until <= context.now.up && context.is_away() => {
                self.handed_over(context)
            }
            // The copy comes or goes, or this pod waits for its turn, or for its other containers.
            Cause::Time if until <= context.now.up => {
                let until = context.now.up + LOOK_AGAIN;
                Wait::Kubelet { until, refused }
            }
            Cause::Spared(Spare::Failed(Some(failure))) => {
                self.spared(&failed(failure, &refused), context)
            }
            Cause::Spared(Spare::Failed(None)) => self.concluded(&refused, context),
            // Without a copy, there is nothing better to do.
            Cause::Spared(Spare::Hangs(_)) if refused.copy == CachedCopy::Absent => {
                return Request::Nothing;
            }
            Cause::Spared(Spare::Hangs(failure)) => {
                let settled = self.concluded(&failed(failure, &refused), context);
                // Nor if it must not use the copy.
                if settled.is_refused() {
                    return Request::Nothing;
                }
                settled
            }
            Cause::Pulled { evidence, by, .. } if evidence.result.failure().is_some() => {
                if *by != context.rules.identity {
                    return Request::Nothing;
                }
                let mut settled = self.concluded(evidence, context);
                if let Wait::Done(release) = &mut settled {
                    release.failed_for_kubelet();
                }
                settled
            }
            // The tag may have moved since.
            Cause::Pulled { is_good: false, .. } => {
                self.wait = Wait::Try { until };
                return Request::Try;
            }
            Cause::Pulled { evidence, .. } => {
                let done = self.judged_pull(evidence, context);
                done.unwrap_or_else(|| {
                    // The kubelet has proven that another pod may have it.
                    let evidence = Evidence {
                        copy: evidence.copy.clone(),
                        ..*refused
                    };
                    self.concluded(&evidence, context)
                })
            }
            Cause::TryEnded { .. }
            | Cause::Time
            | Cause::TryMissed
            | Cause::Looked(_)
            | Cause::Nothing => return Request::Nothing,
        };
        Request::Nothing
    }

    /// It was left to the kubelet, and the name is there again before its release was sent: it is judged without that.
    pub(in crate::plan) fn is_there_again(&mut self, context: &Context<'_>) {
        let Some(given) = self.decided() else {
            return;
        };
        let copy = match given.digest.clone() {
            Some(digest) => CachedCopy::Usable {
                digest,
                size_bytes: 0,
            },
            None => CachedCopy::Absent,
        };
        let nobody_asked = || {
            let words = "the kubelet was not asked to pull: the image's name is there again";
            Failure::new(FailureClass::Local, words)
        };
        let failure = given.failure.clone().unwrap_or_else(nobody_asked);
        let rollout = given.rollout.clone();
        self.wait = self.concluded(&Evidence::of_look(failure, copy), context);
        if let Wait::Done(release) = &mut self.wait {
            release.rollout = rollout;
        }
    }

    /// What a container waits for next whose image the kubelet is about to pull, or pulls, for another pod.
    pub(super) fn while_away(&self, cause: Cause<'_>, context: &Context<'_>) -> Option<Wait> {
        context.image.handover.as_ref()?;
        let is_over = self.timer().is_some_and(|end| end <= context.now.up);
        let is_late = is_over || matches!(self.wait, Wait::Look { .. } | Wait::LastTry);
        match (&self.wait, cause) {
            (Wait::Done(_) | Wait::Kubelet { .. }, _) => None,
            (_, Cause::Time | Cause::Looked(_)) if is_late && context.is_away() => {
                Some(self.handed_over(context))
            }
            // The copy comes or goes, and this pod may not have it for the asking: the end tells.
            (Wait::Try { .. } | Wait::FirstWord { .. } | Wait::NextLook { .. }, Cause::Time)
            | (Wait::Look { .. }, Cause::Looked(_))
                if is_late =>
            {
                let at = context.now.up + LOOK_AGAIN;
                let unheard = matches!(
                    self.wait,
                    Wait::Look { unheard: true } | Wait::NextLook { unheard: true, .. }
                );
                Some(Wait::NextLook { at, unheard })
            }
            _ => None,
        }
    }

    /// What the kubelet has pulled, if this pod may have it.
    pub(super) fn judged_pull(&self, evidence: &Evidence, context: &Context<'_>) -> Option<Wait> {
        let facts = context.knowledge.facts(context.name);
        let identity = &context.rules.identity;
        let digest = evidence.copy.digest()?;
        let may = context.rules.without_proof || facts.may_have(digest, identity);
        let mut done = may.then(|| self.judged(evidence, context))?;
        if let Some(Wait::Done(release)) = &mut done {
            release.note = Some(BY_KUBELET.to_owned());
        }
        done
    }

    /// The decision now, without the kubelet's own word.
    fn spared(&self, evidence: &Evidence, context: &Context<'_>) -> Wait {
        let mut done = self.concluded(evidence, context);
        if let Wait::Done(release) = &mut done {
            release.note = note_not_asked(release.outcome, release.note.take());
        }
        done
    }

    /// The pod leads. If the kubelet's pull fails, it starts from what is kept, and since the try somebody may have moved
    /// the name to what this pod must not have.
    fn left_to_kubelet(&self, refused: &Evidence, context: &Context<'_>) -> Wait {
        match context.image.away().and_then(|kept| kept.digest.clone()) {
            Some(digest) if !context.is_away() => {
                let copy = CachedCopy::Usable {
                    digest,
                    size_bytes: 0,
                };
                let evidence = Evidence {
                    copy,
                    ..refused.clone()
                };
                self.concluded(&evidence, context)
            }
            _ => self.handed_over(context),
        }
    }

    /// The kubelet finds no copy, and pulls.
    pub(super) fn handed_over(&self, context: &Context<'_>) -> Wait {
        let refused = match &self.wait {
            Wait::Kubelet { refused, .. } => refused.result.failure().cloned(),
            _ => self.failure.clone(),
        };
        let facts = context.knowledge.facts(context.name);
        let kept = context.image.away().and_then(|kept| kept.digest.as_ref());
        Wait::Done(Box::new(ContainerRelease {
            failure: refused,
            digest: kept.cloned(),
            confirmed: kept.and_then(|digest| facts.confirmed_at(digest)),
            rolled_back: kept.and_then(|digest| facts.rolled_back_here(digest).cloned()),
            rollout: context.rollout.and_then(Rollout::first).cloned(),
            ..ContainerRelease::new(&self.written, Outcome::HandedOver)
        }))
    }
}
