//! A container that is to start from what its pod's rollout has.

use super::super::same::Origin;
use super::{Cause, Context, Request, Wait, Waiting, has_spoken, terms};
use crate::outcome::{Failure, Outcome};
use crate::verdict::{CachedCopy, Decision, Evidence, may_start_unasked};

/// Why a pod starts from a copy to which its rollout fell back.
const ROLLOUT_FELL_BACK: &str = "this rollout fell back to it on this node before, and its pods are to run the same; \
                                 the registry was not asked";

impl Waiting {
    /// Its pod's rollout has something of this image: it looks whether that is here before it waits for a try.
    pub(in crate::plan) fn look_first(&mut self) {
        if let Wait::Try { until } = self.wait {
            self.wait = Wait::Same { until };
        }
    }

    /// Whether it does.
    pub(in crate::plan) fn looks_first(&self) -> bool {
        matches!(self.wait, Wait::Same { .. })
    }

    /// What follows from what its rollout has, if anything does. Before a try of its own it looks again: another pod of
    /// its rollout may have been served by the one that has just ended.
    pub(super) fn with_rollout(
        &self,
        cause: Cause<'_>,
        context: &Context<'_>,
    ) -> Option<(Wait, Request)> {
        match (&self.wait, cause) {
            (&Wait::Same { until }, Cause::Looked(copy)) => {
                let done = self.same(copy, context);
                let tried = (Wait::Try { until }, Request::Try);
                Some(done.map_or(tried, |done| (done, Request::Nothing)))
            }
            // What is there now, it says better than a look that is under way.
            (&Wait::Same { until }, Cause::TryEnded { evidence, .. }) => {
                let done = self.same(&evidence.copy, context);
                let tried = (Wait::Try { until }, Request::Try);
                Some(done.map_or(tried, |done| (done, Request::Nothing)))
            }
            (
                &(Wait::Try { until } | Wait::Stalled { until }),
                Cause::TryEnded { is_good: false, .. },
            ) if context.rollout.is_some() => Some((Wait::Same { until }, Request::Look)),
            _ => None,
        }
    }

    /// The decision, if its rollout has what is here, and it may start from that.
    fn same(&self, copy: &CachedCopy, context: &Context<'_>) -> Option<Wait> {
        let digest = copy.digest().filter(|_| !context.is_moving)?;
        let origin = context.rollout?.origin(digest)?;
        let facts = context.knowledge.facts(context.name);
        let spoken = has_spoken(context.name, context.knowledge);
        if !may_start_unasked(digest, terms(&facts, context), spoken) {
            return None;
        }
        if let Origin::FellBack(class) = origin {
            let failure = Failure::new(class, ROLLOUT_FELL_BACK);
            let evidence = Evidence::of_look(failure, copy.clone());
            let done = self.judged(&evidence, context);
            return done.filter(|done| !done.is_refused());
        }
        let same = Decision::plain(Outcome::Same);
        Some(self.done(same, None, Some(digest), context))
    }
}
