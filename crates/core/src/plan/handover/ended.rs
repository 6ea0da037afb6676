//! How a hand-over ends, and who learns of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::Planner;
use super::super::event::Action;
use super::super::settle::EndedPull;
use super::super::wait::{Cause, Context, Spare};
use super::{Handover, Kept, Phase};
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass};
use crate::record::{Try, TryResult};
use crate::time::Now;
use crate::verdict::{CachedCopy, Evidence};

/// How a hand-over ended.
#[derive(Debug)]
enum End {
    Pulled,
    Failed(Failure),
    Abandoned,
}

impl Planner {
    /// The kubelet has pulled: the name is there again.
    pub(in crate::plan) fn returned(
        &mut self,
        now: Now,
        name: &ImageName,
        id: u64,
        copy: CachedCopy,
        plan: &mut Vec<Action>,
    ) {
        let handover = self.handover(name, id);
        // What is being given back ends with that.
        if handover.is_some_and(|handover| handover.away().is_some()) {
            self.handover_ended(now, name, End::Pulled, copy, plan);
        }
    }

    /// The name was given back, or the kubelet was there first.
    pub(in crate::plan) fn given_back(
        &mut self,
        now: Now,
        name: &ImageName,
        id: u64,
        copy: CachedCopy,
        by_kubelet: bool,
        plan: &mut Vec<Action>,
    ) {
        let verifies = self.rules.kubelet_verifies;
        let Some(handover) = self.handover(name, id) else {
            return;
        };
        let Phase::Returning {
            kept,
            failure,
            was_tried,
        } = &handover.phase
        else {
            return;
        };
        let kept = kept.as_ref();
        // An answer of containerd may have been lost.
        let differs =
            |kept: &Kept| copy.digest().is_some() && copy.digest() != kept.digest.as_ref();
        // The kubelet has shown that its pull for this pod failed, so what is there was pulled for others. Where it keeps
        // no records, they alone may have it. A pull that only showed nothing may have ended well.
        let is_others =
            |failure: &Failure| *was_tried && !verifies && failure.class != FailureClass::Timeout;
        let end = match failure.clone() {
            Some(failure) if is_others(&failure) => End::Failed(failure),
            _ if kept.is_some_and(|kept| by_kubelet || differs(kept)) => End::Pulled,
            None if kept.is_none() => End::Abandoned,
            Some(failure) => End::Failed(failure),
            None => End::Abandoned,
        };
        self.handover_ended(now, name, end, copy, plan);
    }

    /// It is remembered, and everybody who waits for it, or was released with it, hears of it.
    fn handover_ended(
        &mut self,
        now: Now,
        name: &ImageName,
        end: End,
        copy: CachedCopy,
        plan: &mut Vec<Action>,
    ) {
        let Some(handover) = self.images.get_mut(name).and_then(|i| i.handover.take()) else {
            return;
        };
        self.handed_back(now, name);
        // A pull of the kubelet and the refusal before it are one try.
        let is_pulled = matches!(end, End::Pulled);
        let is_abandoned = matches!(end, End::Abandoned);
        let is_left_alone = !is_pulled && (handover.was_left_alone() || is_abandoned);
        if is_left_alone && let Some((attempt, evidence)) = handover.refused.as_deref() {
            self.remember(now, name, attempt, evidence, plan);
        }
        let kept = match &handover.phase {
            Phase::Away(kept) => kept.digest.clone(),
            Phase::Returning { kept, .. } => kept.as_ref().and_then(|kept| kept.digest.clone()),
            Phase::Leaving => None,
        };
        let result = match end {
            End::Pulled if kept.is_some() && kept.as_ref() == copy.digest() => TryResult::Unchanged,
            End::Pulled => TryResult::Fresh,
            End::Failed(failure) => TryResult::Failed(failure),
            End::Abandoned => return self.returned_unpulled(now, name, plan),
        };
        let evidence = Evidence {
            result,
            copy,
            healed: None,
            digests: BTreeSet::new(),
        };
        if !is_left_alone {
            self.kubelet_tried(now, name, &handover, &evidence, plan);
        }
        self.settle_pods(now, name, &handover, &evidence);
        if let Some(failure) = evidence.result.failure().filter(|_| is_left_alone) {
            // Who waits and must not use the copy has another turn.
            let spare = Spare::Hangs(failure.clone());
            return self.step(now, name, |_, _| Cause::Spared(&spare), plan);
        }
        let (by, began) = (&handover.identity, handover.began.up);
        let cause = |since| Cause::Pulled {
            evidence: &evidence,
            by,
            is_good: began >= since,
        };
        self.step(now, name, |_, round| cause(round.since), plan);
    }

    /// The pods that were released with it learn what it came to.
    fn settle_pods(
        &mut self,
        now: Now,
        name: &ImageName,
        handover: &Handover,
        evidence: &Evidence,
    ) {
        let failed = evidence.result.failure().is_some();
        let pull = EndedPull {
            now,
            name,
            evidence,
            facts: &self.knowledge.facts(name),
            node: &self.rules,
        };
        for pod in self.pods.values_mut() {
            // Another identity's pull may still end otherwise.
            if failed && handover.is_for_another(&pod.seen.identity) {
                continue;
            }
            pod.settle(&pull);
        }
    }

    /// The kubelet's pull is remembered as a try, and whom its failure spares the next.
    fn kubelet_tried(
        &mut self,
        now: Now,
        name: &ImageName,
        handover: &Handover,
        evidence: &Evidence,
        plan: &mut Vec<Action>,
    ) {
        match &evidence.result {
            TryResult::Failed(failure) => {
                self.spared.add(now, name, &handover.identity, failure);
            }
            TryResult::Fresh | TryResult::Unchanged => {
                self.spared.pulled(name);
                self.release_brake();
            }
        }
        let refused = handover.refused.as_deref();
        let refused = refused.and_then(|(_, refused)| refused.result.failure());
        let by = Some(handover.identity.clone());
        let tried = Try {
            refused: refused.is_some_and(|failure| failure.class == FailureClass::Unauthorized),
            ..evidence.to_try(name, handover.began, now, by)
        };
        self.add_try(tried, plan);
    }

    /// The name is there again, and nobody has asked the registry with credentials. Those that wait have their own
    /// turn; a pod that was released with it starts from the copy.
    fn returned_unpulled(&mut self, now: Now, name: &ImageName, plan: &mut Vec<Action>) {
        let Some(image) = self.images.get(name) else {
            return;
        };
        for pod in self.pods.values_mut() {
            let gate_runs = pod.gate_runs();
            let Some(round) = pod.round.as_mut().filter(|round| !round.is_sent) else {
                continue;
            };
            let containers = round.containers.iter_mut();
            for container in containers.filter(|container| container.is_handed_over(name)) {
                container.is_there_again(&Context {
                    now,
                    name,
                    image,
                    knowledge: &self.knowledge,
                    rules: &Arc::clone(&container.rules),
                    gate_runs,
                    rollout: None,
                    is_moving: false,
                });
            }
        }
        self.step(now, name, |_, _| Cause::Time, plan);
    }

    /// The kubelet goes on to the next pull, and pods that wait out its back-off find the name.
    fn handed_back(&mut self, now: Now, name: &ImageName) {
        if let Some(image) = self.images.get_mut(name) {
            image.handed_back = Some(now.up);
        }
        self.pull_moved(now);
    }
}
