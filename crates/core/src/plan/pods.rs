//! How the planner learns of its pods: what the watch and the container runtime show of them, and what came of writing
//! to them.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

use super::Planner;
use super::event::{Action, Written};
use super::pod::{NEWS, Pod};
use super::unheld;
use crate::pod::{GatedPod, PodId};
use crate::release::Release;
use crate::time::{Now, age};

impl Planner {
    /// The whole list replaces what was seen before.
    pub(super) fn list(&mut self, now: Now, pods: Vec<GatedPod>, plan: &mut Vec<Action>) {
        let is_listed = |uid: &&String| pods.iter().any(|pod| pod.id.uid == **uid);
        let gone = self.pods.keys().filter(|uid| !is_listed(uid));
        for uid in gone.cloned().collect::<Vec<_>>() {
            self.gone(&uid);
        }
        self.changed.report = true;
        for pod in pods {
            self.see(now, pod, plan);
        }
    }

    /// Takes over how a pod is now. What it does not wait for any more is dropped.
    pub(super) fn see(&mut self, now: Now, pod: GatedPod, plan: &mut Vec<Action>) {
        let restarts = self.refresh.is_on();
        let pod = match self.pods.entry(pod.id.uid.clone()) {
            Entry::Occupied(entry) => {
                let known = entry.into_mut();
                let mut started = unheld::starts(Some(&known.seen), &pod, restarts);
                started.retain(|(name, _)| !known.is_content_with(name, &self.knowledge));
                self.refresh.want_all(started);
                self.changed.report |= !known.is_reported_as(&pod);
                known.update(pod, now);
                known
            }
            Entry::Vacant(entry) => {
                // The agent that has released a pod has reported it; one without a gate is never
                // released.
                let news = age(now.wall, pod.created) <= NEWS && pod.released.is_none();
                if news && !pod.overruled.is_empty() && !pod.terminated {
                    let overruled = Action::Overruled(pod.id.clone(), pod.overruled.clone());
                    plan.push(overruled);
                }
                self.changed.report = true;
                self.refresh.want_all(unheld::starts(None, &pod, restarts));
                let runs = self.running_gates.contains(entry.key());
                let pod = entry.insert(Pod::new(pod, now));
                pod.set_gate_running(runs, now);
                pod
            }
        };
        plan.extend(pod.gave_up(now));
        if !pod.wants_release(now) || !pod.is_in_its_round() {
            pod.round = None;
        }
    }

    /// A pod is gone. One that is not held may have run between two looks of the watch, which shows no pod that has
    /// ended: its next start is to have the current image, too.
    pub(super) fn gone(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else {
            return;
        };
        self.changed.report = true;
        if pod.seen.is_unheld() && !pod.seen.terminated {
            for name in pod.images().filter(|name| !pod.seen.is_done_with(name)) {
                self.refresh.want(name, pod.seen.created);
            }
        }
    }

    pub(super) fn gates_run(&mut self, now: Now, pods: BTreeSet<String>) {
        for (uid, pod) in &mut self.pods {
            pod.set_gate_running(pods.contains(uid), now);
        }
        self.running_gates = pods;
    }

    pub(super) fn gates_unknown(&mut self, now: Now) {
        for pod in self.pods.values_mut() {
            pod.forget_gate_at_runtime(now);
        }
        self.running_gates.clear();
    }

    pub(super) fn sandbox_started(&mut self, now: Now, uid: &str) {
        // One that the watch has not shown yet begins when its gate runs.
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.sandbox_started = Some(now.up);
        }
    }

    /// A sign of life was written to a pod.
    pub(super) fn showed(&mut self, now: Now, id: &PodId) {
        let pod = self.pods.get_mut(&id.uid);
        if let Some(round) = pod.and_then(|pod| pod.round.as_mut()) {
            round.showed(now);
        }
    }

    /// A pod's release was written, or was not: `again` if it had it before.
    pub(super) fn written(
        &mut self,
        now: Now,
        id: &PodId,
        release: Release,
        again: bool,
        written: Written,
    ) {
        let Some(pod) = self.pods.get_mut(&id.uid) else {
            return;
        };
        match (written, again) {
            (Written::Done, false) => pod.release_written(release, now),
            (Written::Done, true) => pod.release_rewritten(release),
            (Written::Gone, _) => {
                pod.round = None;
                pod.seen.terminated = true;
            }
            (Written::Failed, false) => return pod.release_failed(now),
            (Written::Failed, true) => return pod.rewrite_failed(),
        }
        self.changed.report = true;
    }

    /// What became of a pod's release was written, or was not.
    pub(super) fn settled(&mut self, now: Now, id: &PodId, release: Release, written: Written) {
        let Some(pod) = self.pods.get_mut(&id.uid) else {
            return;
        };
        match written {
            Written::Done => pod.release_settled(release),
            Written::Gone => pod.seen.terminated = true,
            Written::Failed => pod.settle_failed(now),
        }
        self.changed.report = true;
    }
}
