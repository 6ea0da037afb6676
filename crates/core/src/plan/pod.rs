//! A gated pod of this node: what is known about it, and what is owed to it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::event::{Action, Answer, Silence};
use super::image::Image;
use super::repeat::{Repeats, UNSEEN_AFTER};
use super::round::Round;
use super::runs::{self, Contents};
use super::settle::{NodeNow, Unseen};
use crate::image::ImageName;
use crate::outcome::Outcome;
use crate::pod::{GateState, GatedPod, Start, TryContainer};
use crate::release::{ContainerRelease, FRESHNESS, Release};
use crate::rules::{NodeRules, Rules};
use crate::time::{Now, age};

/// An agent that comes back does not report what is older: the API server keeps Events for this long
/// by default, and the same Event would be written again.
pub(super) const NEWS: Duration = Duration::from_hours(1);

/// A gate that has not started so long after its pod's sandbox cannot start, or waits for its image.
const GATE_FOLLOWS: Duration = Duration::from_secs(2);

/// When and how a pod was released with an image, or refused.
pub(super) type ReleasedWith<'a> = (Timestamp, &'a ContainerRelease);

/// A gated pod of this node and what it waits for.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) seen: GatedPod,
    /// Since when the container runtime runs its gate.
    runtime_runs_gate_since: Option<Timestamp>,
    /// When its sandbox was last seen to start.
    pub(super) sandbox_started: Option<Duration>,
    pub(super) round: Option<Round>,
    /// The newest release known: the pod's own, or one sent that the watch has not shown yet.
    pub(super) released: Option<Release>,
    /// When it was decided, if this agent has decided it: to write it again changes its own time.
    pub(super) decided: Option<Timestamp>,
    complained: bool,
    /// When the gate opened by itself, if that was reported.
    reported_open: Option<Timestamp>,
    /// Likewise, if the release was amended for it, or that is under way.
    amended: Option<Timestamp>,
    repeats: Repeats,
    /// What has become of containers that were left to the kubelet, by name.
    pub(super) settled: BTreeMap<String, ContainerRelease>,
    /// How containers were released that the kubelet has not accepted for a time.
    pub(super) accepted: BTreeMap<String, ContainerRelease>,
    /// The release before what became of it was written: the watch may still show it.
    pub(super) settled_from: Option<Release>,
    /// The release with what became of it, while that is being written: the watch may show it before the answer comes.
    pub(super) settling: Option<Release>,
    pub(super) settle_failures: u32,
    /// Since when it is known, if it was released before.
    pub(super) found_released: Option<Duration>,
    /// What its containers have started from unseen.
    pub(super) unseen: Vec<Unseen>,
    /// What its containers run that were released with something else.
    pub(super) contents: Contents,
    /// When what has become of the release may be written; none while that is under way.
    pub(super) settle_at: Option<Duration>,
}

impl Pod {
    pub(super) fn new(mut pod: GatedPod, now: Now) -> Self {
        let mut repeats = Repeats::default();
        repeats.gate_changed(now.up);
        let found_released = pod.released.is_some().then_some(now.up);
        Self {
            released: pod.released.take(),
            decided: None,
            seen: pod,
            runtime_runs_gate_since: None,
            sandbox_started: None,
            round: None,
            complained: false,
            reported_open: None,
            amended: None,
            repeats,
            settled: BTreeMap::new(),
            accepted: BTreeMap::new(),
            settled_from: None,
            settling: None,
            settle_failures: 0,
            found_released,
            unseen: Vec::new(),
            contents: Contents::new(),
            settle_at: Some(Duration::ZERO),
        }
    }

    /// Takes over a newer state of the pod. The watch may lag behind our own write.
    pub(super) fn update(&mut self, mut pod: GatedPod, now: Now) {
        let theirs = pod.released.take();
        let newer = match (&theirs, &self.released) {
            (Some(theirs), Some(ours)) => theirs.time >= ours.time,
            (theirs, _) => theirs.is_some(),
        };
        let is_own = theirs == self.settled_from || theirs == self.settling;
        if newer && theirs != self.released && !is_own {
            let same = |theirs: &Release, ours: &Release| theirs.containers == ours.containers;
            let ours = self.released.as_ref().zip(theirs.as_ref());
            if ours.is_some_and(|(ours, theirs)| same(theirs, ours)) {
                self.repeats.sent(now.up);
            } else {
                // Our own write may be seen before its answer.
                self.repeats.written(now.up);
                self.decided = None;
            }
            self.released = theirs;
        }
        runs::forget(&mut self.contents, &pod);
        let before = self.gate_state();
        self.seen = pod;
        self.note_gate_change(before, now);
    }

    /// The container runtime runs its gate, or does not.
    pub(super) fn set_gate_running(&mut self, runs: bool, now: Now) {
        let before = self.gate_state();
        let since = self.runtime_runs_gate_since;
        if runs {
            self.repeats.gate_runs();
        } else if since.is_some() {
            self.repeats.gate_ended(now.up);
        }
        self.runtime_runs_gate_since = runs.then(|| since.unwrap_or(now.wall));
        self.note_gate_change(before, now);
    }

    /// The container runtime does not say any more whether its gate runs.
    pub(super) fn forget_gate_at_runtime(&mut self, now: Now) {
        let before = self.gate_state();
        self.runtime_runs_gate_since = None;
        self.note_gate_change(before, now);
    }

    fn note_gate_change(&mut self, before: GateState, now: Now) {
        if self.gate_state() != before {
            self.repeats.gate_changed(now.up);
        }
    }

    /// How far its gate has come. The kubelet looks at its containers once a second and shows a start only then; the
    /// container runtime has said so before.
    fn gate_state(&self) -> GateState {
        match (self.seen.gate, self.runtime_runs_gate_since) {
            (GateState::Pending, Some(since)) => GateState::Running { since },
            (shown, _) => shown,
        }
    }

    /// The release of its round was written.
    pub(super) fn release_written(&mut self, release: Release, now: Now) {
        // Of a pod whose images have changed meanwhile, the round is about the new ones.
        if self.is_about_its_images(&release) {
            self.round = None;
        }
        self.repeats.written(now.up);
        self.decided = Some(release.time);
        self.released = Some(release);
    }

    /// A release that it had was written, again or with what it came to.
    pub(super) fn release_rewritten(&mut self, release: Release) {
        if release.unseen.is_none() {
            // It may have overtaken what the gate's end had made of it.
            self.amended = None;
            self.repeats.written_again();
        }
        self.released = Some(release);
    }

    /// That could not be written. What it came to is written when the watch shows the pod again, at the
    /// latest when it begins again.
    pub(super) fn rewrite_failed(&mut self) {
        self.amended = None;
    }

    /// What is to be written to it now: its release, that again, or a sign of life.
    pub(super) fn send_due(&mut self, node: &NodeNow<'_>) -> Option<Action> {
        let now = node.now;
        let id = self.seen.id.clone();
        let shows = self.progress_due().is_some_and(|due| due <= now.up);
        let Some(round) = &mut self.round else {
            return self.repeat(now).or_else(|| self.settle_due(node));
        };
        if let Some(release) = round.release_due(now) {
            return Some(Action::Release {
                pod: id,
                release,
                waits_since: round.began,
            });
        }
        shows.then(|| Action::Progress(id, round.progress(now, node.images)))
    }

    /// When something is due for it.
    pub(super) fn timers(
        &self,
        now: Now,
        images: &BTreeMap<ImageName, Image>,
    ) -> impl Iterator<Item = Duration> {
        let round = self.round.as_ref().and_then(Round::timer);
        let timers = [round, self.progress_due(), self.repeat_due()];
        timers
            .into_iter()
            .flatten()
            .chain(self.settle_timers(now, images))
    }

    /// Whether its gate runs, or is about to. The kubelet gets the images of volumes before it starts the gate, and
    /// does not show how it fares with that: of a pod that has any, the gate has to run.
    pub(super) fn gate_is_here(&self, now: Now) -> bool {
        match self.gate_state() {
            GateState::Running { .. } => true,
            GateState::Pending => {
                let has_volumes = self.seen.has_image_volumes;
                let started = self.sandbox_started.filter(|_| !has_volumes);
                started.is_some_and(|started| now.up < started + GATE_FOLLOWS)
            }
            GateState::Open | GateState::NotWanted | GateState::GaveUp { .. } => false,
        }
    }

    /// Whether its gate runs, and waits.
    pub(super) fn gate_runs(&self) -> bool {
        matches!(self.gate_state(), GateState::Running { .. })
    }

    /// When its release is to be written again, because the gate runs and does not act on it.
    fn repeat_due(&self) -> Option<Duration> {
        let waits = self.gate_runs()
            && !self.seen.terminated
            && self.released.is_some()
            && self.round.is_none();
        waits.then(|| self.repeats.due())?
    }

    /// Its release with a new time, if it is to be written again.
    fn repeat(&mut self, now: Now) -> Option<Action> {
        self.repeat_due().filter(|due| *due <= now.up)?;
        self.repeats.sent(now.up);
        let release = Release {
            time: now.wall,
            ..self.released.clone()?
        };
        Some(Action::Rewrite(self.seen.id.clone(), release))
    }

    /// Whether a round runs, and is about the images that the pod has now: they may be changed while
    /// the gate holds it.
    pub(super) fn is_in_its_round(&self) -> bool {
        let round = self.round.as_ref();
        round.is_some_and(|round| round.is_about(&self.seen.containers))
    }

    fn is_about_its_images(&self, release: &Release) -> bool {
        self.seen.containers.iter().all(|container| {
            let given = release.containers.get(&container.name);
            given.is_some_and(|given| given.image == container.written)
        })
    }

    /// What follows if the gate has opened by itself: it is reported to its owner, and a release that
    /// the gate should have honoured says what became of it.
    pub(super) fn gave_up(&mut self, now: Now) -> Vec<Action> {
        let GateState::GaveUp { since, at } = self.seen.gate else {
            return Vec::new();
        };
        let release = self.released.as_ref();
        if self.seen.terminated || release.is_some_and(|release| release.unseen == Some(at)) {
            return Vec::new();
        }
        // What was already stale when the gate began was meant for an earlier run.
        let meant = release.filter(|release| release.is_fresh(release.time.max(since), FRESHNESS));
        let amended = meant.map(|release| release.clone().unseen_at(at));
        let mut actions = Vec::new();
        let news = age(now.wall, at) <= NEWS;
        if news && self.reported_open.replace(at) != Some(at) {
            let id = self.seen.id.clone();
            let long_before = |then: Timestamp| age(at, then) >= UNSEEN_AFTER;
            actions.push(match &amended {
                Some(release) if self.repeats.have_begun() || long_before(release.time) => {
                    Action::Unseen(id, at, Answer::Released(release.clone()))
                }
                None if self.showed_itself(now).is_some_and(long_before) => {
                    Action::Unseen(id, at, Answer::AtWork)
                }
                _ if self.round.as_ref().is_some_and(Round::is_unwritten) => {
                    Action::Unanswered(id, at, Silence::Unwritten)
                }
                _ => Action::Unanswered(id, at, Silence::NoAgent),
            });
        }
        if let Some(release) = amended
            && self.amended.replace(at) != Some(at)
        {
            actions.push(Action::Rewrite(self.seen.id.clone(), release));
        }
        actions
    }

    /// When the next sign of life is due; none if no round runs, or the release is decided.
    fn progress_due(&self) -> Option<Duration> {
        self.round.as_ref()?.progress_due(self.gate_runs())
    }

    /// When the round that still runs gave its first sign of life, if it did.
    fn showed_itself(&self, now: Now) -> Option<Timestamp> {
        let first = self.round.as_ref()?.shown?;
        Some(now.wall - now.up.checked_sub(first)?)
    }

    /// The release of its round could not be written.
    pub(super) fn release_failed(&mut self, now: Now) {
        if let Some(round) = &mut self.round {
            round.send_failed(now, &self.seen.id.uid);
        }
    }

    /// Whether the gate waits, or will, for a release that it does not have.
    ///
    /// One that went stale before the gate ran is not given again before it runs: its sandbox may
    /// not come for hours, or the kubelet waits out a refusal.
    pub(super) fn wants_release(&self, now: Now) -> bool {
        match (&self.released, self.gate_state()) {
            _ if self.seen.terminated => false,
            (_, GateState::Open | GateState::NotWanted | GateState::GaveUp { .. }) => false,
            (None, GateState::Pending | GateState::Running { .. }) => true,
            (Some(release), GateState::Pending) => !self.is_about_its_images(release),
            (Some(release), GateState::Running { .. }) => {
                !release.is_fresh(now.wall, FRESHNESS) || !self.is_about_its_images(release)
            }
        }
    }

    /// The images of its containers.
    pub(super) fn images(&self) -> impl Iterator<Item = &ImageName> {
        let containers = self.seen.containers.iter();
        containers.filter_map(|container| container.image.as_ref().ok())
    }

    /// Whether its release lets it start.
    pub(super) fn may_start(&self) -> bool {
        self.released.as_ref().is_some_and(Release::opens)
    }

    /// Each of its images with what one container was given; nothing if the pod has no release yet, or has ended.
    pub(super) fn given_images(&self) -> BTreeMap<&ImageName, ReleasedWith<'_>> {
        let release = self.released.as_ref().filter(|_| !self.seen.terminated);
        let containers = release.iter().flat_map(|_| &self.seen.containers);
        containers
            .filter_map(|container| {
                let given = release?.containers.get(&container.name)?;
                let image = container.image.as_ref().ok()?;
                let time = self.decided.unwrap_or(release?.time);
                (given.image == container.written).then_some((image, (time, given)))
            })
            .collect()
    }

    /// Its containers of this image, with what they were released with.
    pub(super) fn released_with(
        &self,
        name: &ImageName,
    ) -> impl Iterator<Item = (&TryContainer, &ContainerRelease)> {
        let release = self.released.as_ref();
        let containers = self.seen.containers.iter();
        containers.filter_map(move |container| {
            let given = release?.containers.get(&container.name)?;
            let is_same = container.image.as_ref() == Ok(name) && given.image == container.written;
            is_same.then_some((container, given))
        })
    }

    /// Whether there was nothing to start a container of this image from, and it has not started.
    pub(super) fn has_nothing_for(&self, name: &ImageName) -> bool {
        self.released_with(name).any(|(container, given)| {
            given.outcome == Outcome::Unavailable && !has_started(&self.seen, &container.name)
        })
    }

    /// How long until a release that the gate has not used yet goes stale.
    pub(super) fn stale_in(&self, now: Now) -> Option<Duration> {
        let release = self.released.as_ref()?;
        if self.seen.terminated || !self.gate_runs() || self.round.is_some() {
            return None;
        }
        // Anybody may have written that time: nothing is added to it.
        let age = now.wall.duration_since(release.time);
        let left = SignedDuration::try_from(FRESHNESS).unwrap_or_default() - age;
        Some(
            (left + SignedDuration::from_millis(1))
                .try_into()
                .unwrap_or(Duration::ZERO),
        )
    }

    /// The complaints to make, the first time they are asked for.
    pub(super) fn complaints(&mut self, node: &NodeRules) -> Vec<Action> {
        if std::mem::replace(&mut self.complained, true) || self.released.is_some() {
            return Vec::new();
        }
        let bad_names = self.seen.containers.iter().filter_map(|container| {
            let error = container.image.as_ref().err()?;
            let which = container.describe();
            Some(format!("{which}: {error}; left to the kubelet"))
        });
        let of_settings = if self.seen.is_unheld() {
            self.seen.needs_gate().into_iter().collect()
        } else {
            node.exceeded_by(&self.seen)
        };
        self.seen
            .complaints
            .iter()
            .cloned()
            .chain(of_settings)
            .chain(bad_names)
            .map(|words| Action::Complain(self.seen.id.clone(), words))
            .collect()
    }

    /// Begins a round.
    pub(super) fn begin(&mut self, now: Now, node: &NodeRules) {
        let since = self.since(now);
        self.settled.clear();
        self.accepted.clear();
        self.settled_from = None;
        self.found_released = None;
        let containers = self.seen.containers.iter().map(|container| {
            let image = container.image.as_ref().ok();
            (container, Rules::of(&self.seen, image, node))
        });
        self.round = Some(Round::begin(containers, since, now));
    }

    /// What a report of the node says about it; the rest of it changes more often.
    pub(super) fn is_reported_as(&self, other: &GatedPod) -> bool {
        let GatedPod {
            containers,
            released,
            terminated,
            ..
        } = other;
        let given = self.released.iter().flat_map(|ours| &ours.containers);
        let mut unavailable = given.filter(|(_, given)| given.outcome == Outcome::Unavailable);
        *terminated == self.seen.terminated
            && *containers == self.seen.containers
            && (released.is_none() || *released == self.released)
            && unavailable
                .all(|(name, _)| has_started(&self.seen, name) == has_started(other, name))
    }

    /// The earliest moment that surely lies after the pod began to need a release.
    ///
    /// The API server and the kubelet write whole seconds, rounded down: a second is added. A pod that
    /// already had a release needs a new one since its gate runs again, not since it was created.
    fn since(&self, now: Now) -> Duration {
        let began = match (self.released.is_some(), self.gate_state()) {
            (false, _) => self.seen.created,
            (true, GateState::Running { since }) => since,
            (true, _) => return now.up,
        };
        let ago = now.wall.duration_since(began) - SignedDuration::from_secs(1);
        now.up
            .saturating_sub(ago.try_into().unwrap_or(Duration::ZERO))
    }
}

fn has_started(pod: &GatedPod, container: &str) -> bool {
    matches!(pod.starts.get(container), Some(Start::Started { .. }))
}
