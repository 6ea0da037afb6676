//! How the kubelet's pulls fare, as the statuses of pods show it.

use std::collections::BTreeMap;

use super::Planner;
use super::event::Action;
use super::handover::Handover;
use super::pod::Pod;
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass};
use crate::pod::Start;
use crate::rules::Rules;
use crate::time::Now;
use crate::verdict::{Terms, is_forbidden};

/// What the pods show of one hand-over.
#[derive(Debug, Default)]
struct Fare {
    /// Containers that still need the name to be away.
    users: usize,
    /// Why the kubelet does not get the image for a pod of its identity.
    failure: Option<Failure>,
    /// The kubelet has come to a container of such a pod.
    is_next: bool,
    /// It does not get it for a pod of another identity, which says nothing about the others.
    others_fail: bool,
    /// A pod of it may not take the copy if the registry fails.
    is_strict: bool,
}

impl Fare {
    fn of(
        name: &ImageName,
        handover: &Handover,
        pods: &BTreeMap<String, Pod>,
        may_not: impl Fn(&Pod) -> bool,
    ) -> Self {
        let mut fare = Self::default();
        for pod in pods.values() {
            let is_own = !handover.is_for_another(&pod.seen.identity);
            for start in pod.handed_over(name) {
                fare.users += 1;
                fare.is_strict |= is_own && may_not(pod);
                match start {
                    Some(Start::Wanting(why) | Start::Behind(why)) if is_own => {
                        fare.failure = Some(why.clone());
                    }
                    Some(Start::Wanting(_) | Start::Behind(_)) => fare.others_fail = true,
                    // That others wait says nothing, either.
                    Some(Start::Next) => fare.is_next |= is_own,
                    Some(Start::Started { .. }) | None => {}
                }
            }
        }
        fare
    }
}

impl Planner {
    /// Looks whether the kubelet's pulls fail, or hang, or are not needed any more.
    pub(super) fn watch_handovers(&mut self, now: Now, plan: &mut Vec<Action>) {
        let mut hang = Vec::new();
        for (name, image) in &mut self.images {
            let Some(handover) = &mut image.handover else {
                continue;
            };
            let Some(kept) = handover.away().cloned() else {
                continue;
            };
            // The rules of today: the rounds of these pods are over.
            let open = self.circuits.of(name).map(|open| open.not_asked(now));
            let facts = self.knowledge.facts(name);
            let may_not = |pod: &Pod| {
                let rules = &Rules::of(&pod.seen, Some(name), &self.rules);
                let (facts, now) = (&facts, now.wall);
                let terms = Terms { facts, rules, now };
                let forbids = |why: &Failure| is_forbidden(why.class, kept.digest.as_ref(), terms);
                rules.is_strict() || open.as_ref().is_some_and(forbids)
            };
            let fare = Fare::of(name, handover, &self.pods, may_not);
            if fare.is_next || self.unwell_since.is_some() {
                handover.next.get_or_insert(now.up);
            } else {
                handover.next = None;
            }
            handover.others_fail |= fare.others_fail;
            let mut failure = fare.failure;
            let nudge = handover.nudge_at();
            if fare.is_next && failure.is_none() && nudge.is_some_and(|at| at <= now.up) {
                handover.is_nudged = true;
                let pods = self.pods.values();
                let own = pods.filter(|pod| !handover.is_for_another(&pod.seen.identity));
                plan.extend(own.filter_map(|pod| pod.nudge(name, now)));
            }
            let is_overdue = handover.is_overdue(now);
            if is_overdue && fare.is_next && failure.is_none() {
                failure = Some(shows_nothing());
                hang.push((name.clone(), handover.identity.clone()));
            }
            let was_tried = failure.is_some();
            // The kubelet has not come to it, and the registry fails: there is a copy to start from.
            let is_idle = !fare.is_next && !fare.is_strict && kept.digest.is_some();
            if let Some(not_asked) = open.filter(|_| is_idle) {
                failure.get_or_insert(not_asked);
            }
            if fare.users == 0 || failure.is_some() || is_overdue || self.is_stopping {
                plan.push(handover.give_back(name, Some(kept), failure, was_tried, now));
            }
        }
        for (name, identity) in hang {
            self.put_on_brake(now, &name, &identity);
        }
    }
}

fn shows_nothing() -> Failure {
    let words = "the kubelet's pull has shown no progress; the pod's Events may say why";
    Failure::new(FailureClass::Timeout, words)
}
