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

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Planner;
use super::event::Action;
use super::image::{Attempt, Image};
use super::pod::Pod;
use super::round::Round;
use super::wait::{Cause, Context, Spare};
use crate::digest::Digest;
use crate::identity::Identity;
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass};
use crate::pod::GatedPod;
use crate::record::{LocalCopy, Try, TryResult};
use crate::rules::Rules;
use crate::time::Now;
use crate::verdict::{CachedCopy, Evidence, Terms};

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

/// How a hand-over ended.
#[derive(Debug)]
enum End {
    Pulled,
    Failed(Failure),
    Abandoned,
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
    /// keeps no records, only that tells who may have it.
    pub(super) fn learn_of_pulls(&mut self, now: Now, plan: &mut Vec<Action>) {
        let mut pulls = Vec::new();
        for pod in self.pods.values_mut() {
            let identity = &pod.seen.identity;
            pulls.extend(pod.pulled.drain(..).map(|pull| (pull, identity.clone())));
        }
        for ((name, digest), identity) in pulls {
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

    /// The kubelet has pulled: the name is there again.
    pub(super) fn returned(
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
    pub(super) fn given_back(
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

    fn handover(&mut self, name: &ImageName, id: u64) -> Option<&mut Handover> {
        let handover = self.images.get_mut(name)?.handover.as_deref_mut();
        handover.filter(|handover| handover.id == id)
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
        let facts = self.knowledge.facts(name);
        for pod in self.pods.values_mut() {
            // Another identity's pull may still end otherwise.
            if failed && handover.is_for_another(&pod.seen.identity) {
                continue;
            }
            let rules = Rules::of(&pod.seen, Some(name), &self.rules);
            let terms = Terms {
                facts: &facts,
                rules: &rules,
                now: now.wall,
            };
            pod.settle(name, evidence, terms, now);
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
