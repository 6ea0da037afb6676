//! Private images: the kubelet pulls them, because only it has the credentials.
//!
//! A registry that wants credentials is alive, and the kubelet is the one to ask it. `IfNotPresent` asks
//! nobody while the image's name is on the node, so the name is taken away first; an alias keeps the copy.
//! The name comes back with the kubelet's pull, or is given back when that fails:
//!
//! ```text
//!   Wait::Kubelet ──► Leaving ── Action::TakeAway ──► Away ── the kubelet pulls ─────► over
//!                                                      │                                ▲
//!          its pull fails, hangs, or nobody needs it   └──► Returning ─ Action::GiveBack ┘
//! ```
//!
//! One pod leads: it is released with the name away. The others wait for what the kubelet brings it. A
//! name that was taken away is always given back: by the kubelet, by this agent, or, from the alias, by the
//! next one.
//!
//! While one of the kubelet's pulls hangs, no other pod that has a copy is left to it (`brake`).

mod ended;
mod pod;

use std::time::Duration;

use super::Planner;
use super::event::Action;
use super::image::{Attempt, Image};
use super::pod::Pod;
use super::round::Round;
use super::settle::Unseen;
use super::wait::{Cause, Spare};
use crate::digest::Digest;
use crate::identity::Identity;
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass};
use crate::pod::GatedPod;
use crate::record::{LocalCopy, Try, TryResult};
use crate::time::Now;
use crate::verdict::Evidence;

/// A pod waits no longer than this for an agent that sees how a hand-over ends.
const WELL_WITHIN: Duration = Duration::from_secs(5);

/// A pod waits no longer than this for containerd to take a name away or to give it back.
const STUCK: Duration = Duration::from_secs(10);

/// A name stays away for no longer than this while nothing moves: a pod's own init containers may run
/// before the container that needs the image.
const AWAY_MAX: Duration = Duration::from_secs(120);

/// The kubelet shows that a pull has failed when it next looks at the pod: after its back-off, 10 to 15 s
/// later. It looks at once, or as soon as the pull has ended, if the pod has changed
/// (`pkg/kubelet/pod_workers.go`, `completeWork`). So the pod is changed: this long after its container was
/// next, which most pulls do not take.
const NUDGE: Duration = Duration::from_secs(1);

/// One image's hand-over to the kubelet.
#[derive(Debug)]
pub(super) struct Handover {
    pub(super) id: u64,
    began: Now,
    /// The pod that leads, by its uid.
    leader: String,
    /// Whose credentials the kubelet has for it.
    pub(super) identity: Identity,
    phase: Phase,
    /// The try that the registry has refused; remembered unless the kubelet pulls.
    refused: Option<Box<(Attempt, Evidence)>>,
    /// When the phase began.
    since: Duration,
    /// When something of a pull of the kubelet last moved.
    moved: Duration,
    /// The same of this one.
    moved_itself: Duration,
    /// When a container that needs the image was first seen to be next.
    pub(super) next: Option<Duration>,
    /// Its pod was changed for the kubelet to look at it.
    pub(super) is_nudged: bool,
    /// Pods of another identity have failed without the copy.
    pub(super) others_fail: bool,
    /// How long nothing may move.
    stall: Duration,
}

/// What a name pointed to when it was taken away, if there was a copy.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) digest: Option<Digest>,
}

#[derive(Debug)]
enum Phase {
    /// The name is being taken away.
    Leaving,
    /// The kubelet finds no copy.
    Away(Kept),
    /// The name is being given back, because of this; none if nobody needs the pull any more.
    Returning {
        /// None if the name could not be taken.
        kept: Option<Kept>,
        failure: Option<Failure>,
        /// The failure was the kubelet's.
        was_tried: bool,
    },
}

impl Handover {
    fn new(
        id: u64,
        leader: &Pod,
        refused: Option<Box<(Attempt, Evidence)>>,
        stall: Duration,
        now: Now,
    ) -> Self {
        Self {
            id,
            began: now,
            leader: leader.seen.id.uid.clone(),
            identity: leader.seen.identity.clone(),
            phase: Phase::Leaving,
            refused,
            since: now.up,
            moved: now.up,
            moved_itself: now.up,
            next: None,
            is_nudged: false,
            others_fail: false,
            stall,
        }
    }

    /// When it began.
    pub(super) fn began(&self) -> Now {
        self.began
    }

    /// What the kubelet does not find, if it does not.
    pub(super) fn away(&self) -> Option<&Kept> {
        match &self.phase {
            Phase::Away(kept) => Some(kept),
            Phase::Leaving | Phase::Returning { .. } => None,
        }
    }

    /// Since when a copy's name is away, if it is: to take it away is a matter of moments.
    pub(super) fn away_since(&self) -> Option<Duration> {
        let kept = match &self.phase {
            Phase::Leaving => None,
            Phase::Away(kept) => Some(kept),
            Phase::Returning { kept, .. } => kept.as_ref(),
        };
        kept?.digest.is_some().then_some(self.began.up)
    }

    /// When nothing has moved for too long.
    fn due(&self) -> Option<Duration> {
        self.away()?;
        let most = self.moved_itself.max(self.since) + AWAY_MAX;
        let since = match self.next {
            Some(next) => Some(next.max(self.moved)),
            // They do not wait longer for a pod whose turn has not come; nor is it theirs to say that it fails.
            None => self.others_fail.then_some(self.since),
        };
        Some(since.map_or(most, |since| (since + self.stall).min(most)))
    }

    /// When the kubelet is to look at the pod.
    pub(super) fn nudge_at(&self) -> Option<Duration> {
        self.away()?;
        let next = self.next.filter(|_| !self.is_nudged)?;
        Some(next + NUDGE.min(self.stall / 2))
    }

    /// Whether a pod of this identity only shares what another one has begun.
    pub(super) fn is_for_another(&self, identity: &Identity) -> bool {
        self.identity != *identity
    }

    /// Its name is to be given back.
    pub(super) fn give_back(
        &mut self,
        name: &ImageName,
        kept: Option<Kept>,
        failure: Option<Failure>,
        was_tried: bool,
        now: Now,
    ) -> Action {
        let returning = Phase::Returning {
            kept,
            failure,
            was_tried,
        };
        self.begin(returning, now);
        Action::GiveBack {
            image: name.clone(),
            id: self.id,
        }
    }

    fn begin(&mut self, phase: Phase, now: Now) {
        self.phase = phase;
        self.since = now.up;
        self.moved = now.up;
    }

    /// Whether it has ended, or is about to, without a pull of the kubelet.
    fn was_left_alone(&self) -> bool {
        matches!(
            &self.phase,
            Phase::Returning {
                failure: Some(_),
                was_tried: false,
                ..
            }
        )
    }

    /// When containerd has taken too long with the name.
    fn stuck_at(&self) -> Option<Duration> {
        self.away().is_none().then(|| self.since + STUCK)
    }

    pub(super) fn moved(&mut self, now: Now) {
        self.moved_itself = now.up;
    }

    pub(super) fn is_overdue(&self, now: Now) -> bool {
        self.due().is_some_and(|due| due <= now.up)
    }
}

impl Planner {
    /// Begins the hand-overs of pods whose gate runs, or is about to, and waits for nothing else, as far as the
    /// kubelet's limit of pulls allows: the oldest pods first. Taking the name away and releasing the pod take about as
    /// long as the kubelet needs for the gate, which then ends before the kubelet's next look.
    pub(super) fn start_handovers(&mut self, now: Now, plan: &mut Vec<Action>) {
        self.spare(now, plan);
        self.paced_until = None;
        if self.unwell_since.is_some() || self.is_stopping {
            return;
        }
        let mut ready: Vec<(Duration, &String)> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.gate_is_here(now))
            .filter_map(|(uid, pod)| Some((pod.round.as_ref()?, uid)))
            .filter(|(round, _)| round.waits_for_kubelet())
            .map(|(round, uid)| (round.began, uid))
            .collect();
        ready.sort();
        let ready: Vec<String> = ready.into_iter().map(|(_, uid)| uid.clone()).collect();
        for uid in ready {
            let Some(pod) = self.pods.get(&uid) else {
                continue;
            };
            let mut names = pod.waits_for_kubelet();
            names.sort();
            names.dedup();
            let is_busy = |image: &Image| image.attempt.is_some() || image.handover.is_some();
            let images = names.iter().filter_map(|name| self.images.get(name));
            if names.is_empty() || images.into_iter().any(is_busy) {
                continue;
            }
            if let Err(at) = self.pace.take(names.len(), now.up) {
                self.paced_until = Some(at);
                return;
            }
            for name in names {
                self.attempts += 1;
                let stall = self.rules.stall_of(&name);
                if let Some(image) = self.images.get_mut(&name) {
                    let refused = image.refused.take();
                    let handover = Handover::new(self.attempts, pod, refused, stall, now);
                    image.handover = Some(Box::new(handover));
                }
                let id = self.attempts;
                plan.push(Action::TakeAway { image: name, id });
            }
        }
    }

    /// Containers that are not to wait for the kubelet get their copy: its last pull for them has just
    /// failed, or one hangs, or the end of a hand-over could not be seen.
    fn spare(&mut self, now: Now, plan: &mut Vec<Action>) {
        let mut spared = Vec::new();
        if self.is_stopping {
            return;
        }
        let braked = self.brake(now);
        let since = self.unwell_since.map(|since| since + WELL_WITHIN);
        let is_unwell = since.is_some_and(|until| until <= now.up);
        for (uid, pod) in &self.pods {
            let refused = pod.round.as_ref().is_some_and(Round::is_refused);
            for name in pod.waits_for_kubelet() {
                let failure = self.spared_by(now, &name, &pod.seen.identity).cloned();
                let fails = || Some(self.circuits.of(&name)?.not_asked(now));
                let hung = || self.spared.hung(now, &name);
                let hangs = braked.clone().or_else(hung).or_else(fails);
                let handover = self.images.get(&name).and_then(|i| i.handover.as_deref());
                let stuck = handover.and_then(Handover::stuck_at);
                let is_stuck = stuck.is_some_and(|at| at <= now.up);
                if failure.is_some() || is_unwell || is_stuck || refused {
                    spared.push((uid.clone(), name, Spare::Failed(failure)));
                } else if let Some(hangs) = hangs.filter(|_| handover.is_none()) {
                    spared.push((uid.clone(), name, Spare::Hangs(hangs)));
                }
            }
        }
        for (uid, name, spare) in spared {
            let cause = Cause::Spared(&spare);
            self.step(now, &name, |pod, _| only(&uid, pod, cause), plan);
        }
    }

    /// The failure that spares a pod of this identity a pull of the kubelet, if there was one. A copy that
    /// nobody is known to have pulled, as one that was imported, is not worth one for each namespace.
    pub(super) fn spared_by(
        &self,
        now: Now,
        name: &ImageName,
        identity: &Identity,
    ) -> Option<&Failure> {
        let own = self.spared.failure(now, name, identity);
        let facts = self.knowledge.facts(name);
        let unproven = |copy: &LocalCopy| facts.confirmed_at(&copy.digest).is_none();
        let is_imported = facts.copy.as_ref().is_some_and(unproven);
        if own.is_some() || !is_imported || !identity.is_anybody() || !self.rules.kubelet_verifies {
            return own;
        }
        self.spared.failure_of_anybody(now, name)
    }

    /// A try whose refusal was left for a hand-over that did not come is remembered after all.
    pub(super) fn remember_refused(&mut self, now: Now, plan: &mut Vec<Action>) {
        let waits: Vec<ImageName> = self
            .pods
            .values()
            .flat_map(Pod::waits_for_kubelet)
            .collect();
        let mut given_up = Vec::new();
        for (name, image) in &mut self.images {
            if !waits.contains(name)
                && let Some(refused) = image.refused.take()
            {
                given_up.push((name.clone(), refused));
            }
        }
        for (name, refused) in given_up {
            let (attempt, evidence) = *refused;
            self.remember(now, &name, &attempt, &evidence, plan);
        }
    }

    /// The name is away, or could not be taken.
    pub(super) fn taken_away(
        &mut self,
        now: Now,
        name: &ImageName,
        id: u64,
        taken: Result<Option<Digest>, String>,
        plan: &mut Vec<Action>,
    ) {
        let Some(handover) = self.handover(name, id) else {
            return;
        };
        if !matches!(handover.phase, Phase::Leaving) {
            return;
        }
        let leader = handover.leader.clone();
        match taken {
            Ok(digest) => {
                handover.begin(Phase::Away(Kept { digest }), now);
                self.step(now, name, |pod, _| only(&leader, pod, Cause::Away), plan);
            }
            Err(why) => {
                let failure = Failure::new(FailureClass::Local, why);
                plan.push(handover.give_back(name, None, Some(failure), false, now));
            }
        }
    }

    /// What the kubelet has pulled for pods after their names were given back is remembered, too: where it
    /// keeps no records, only that tells who may have it. Of what else has come, the registry is asked later.
    pub(super) fn learn_of_unseen(&mut self, now: Now, plan: &mut Vec<Action>) {
        let mut all = Vec::new();
        for pod in self.pods.values_mut() {
            let identity = &pod.seen.identity;
            all.extend(pod.unseen.drain(..).map(|seen| (seen, identity.clone())));
        }
        for (unseen, identity) in all {
            let Unseen {
                name,
                digest,
                is_own_pull,
            } = unseen;
            if !is_own_pull {
                self.refresh.want(&name, now.wall);
                continue;
            }
            self.spared.forget(&name);
            let tried = Try {
                image: name,
                started: now.wall,
                duration: Duration::ZERO,
                result: TryResult::Fresh,
                digest: Some(digest),
                size_bytes: None,
                copy_unknown: false,
                pulled_for: Some(Box::new(identity)),
                refused: false,
                by_hand: false,
            };
            self.add_try(tried, plan);
        }
    }

    /// When one of them has taken too long, or the next may begin.
    pub(super) fn handovers_due(&self, now: Now) -> impl Iterator<Item = Duration> {
        let running = || self.images.values().filter_map(|i| i.handover.as_deref());
        let waits = self
            .pods
            .values()
            .any(|pod| !pod.waits_for_kubelet().is_empty());
        let stuck = running().filter_map(Handover::stuck_at);
        let stuck = stuck.filter(move |at| *at > now.up);
        let nudges = running().filter_map(Handover::nudge_at);
        // Where nobody can be seen to be next, there is nobody to be nudged.
        let nudges = nudges.filter(move |at| *at > now.up);
        let well_by = self.unwell_since.map(|since| since + WELL_WITHIN);
        let well_by = well_by.filter(|at| waits && !self.is_stopping && *at > now.up);
        running()
            .filter_map(Handover::due)
            .chain(nudges)
            .chain(stuck)
            .chain(self.paced_until)
            .chain(well_by)
    }

    fn handover(&mut self, name: &ImageName, id: u64) -> Option<&mut Handover> {
        let handover = self.images.get_mut(name)?.handover.as_deref_mut();
        handover.filter(|handover| handover.id == id)
    }

    /// Something of a pull of the kubelet has moved. It pulls one image after the other: while one moves, the
    /// others wait.
    pub(super) fn pull_moved(&mut self, now: Now) {
        let running = self
            .images
            .values_mut()
            .filter_map(|i| i.handover.as_deref_mut());
        for handover in running {
            handover.moved = now.up;
        }
    }
}

/// What has happened to this pod alone.
fn only<'a>(uid: &str, pod: &GatedPod, cause: Cause<'a>) -> Cause<'a> {
    if pod.id.uid == uid {
        cause
    } else {
        Cause::Nothing
    }
}
