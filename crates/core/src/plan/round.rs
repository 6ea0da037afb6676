//! One run of a pod's gate, from the moment it needs a release until it has one.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::image::Image;
use super::node::Given;
use super::repeat::{Seeable, UNSEEN_AFTER};
use super::{Action, Answer, Silence};
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::pod::{GateState, GatedPod, TryContainer};
use crate::release::{ContainerRelease, FRESHNESS, Release};
use crate::time::{Now, age};
use crate::verdict::{Copy, Decision, Evidence, Terms, give_up, judge};

/// The first sign of life on a pod, if its gate runs by then and can see it. Most tries are over, and
/// cost one write in all.
const FIRST_PROGRESS: Duration = Duration::from_secs(2);

/// From then on a pod gets signs of life whether its gate is known to run or not: the kubelet may
/// report late, and the gate's patience is twice this.
const GATE_MAY_RUN: Duration = Duration::from_secs(10);

/// Between two signs of life: a quarter of the gate's patience, so that it survives lost writes.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// An agent that comes back does not report what is older: the API server keeps Events for this long
/// by default, and the same Event would be written again.
pub(super) const NEWS: Duration = Duration::from_hours(1);

/// Of a pod's `activeDeadlineSeconds`, the part that may be spent on a try where a copy is here.
const DEADLINES_SHARE: u32 = 4;

/// A pod waits no longer than this for a registry's first word when its own time is up. A try that
/// hangs ends sooner by its stall deadline, but one that may be waiting in containerd's queue does not.
const FIRST_WORD: Duration = Duration::from_secs(30);

/// First and longest pause before a release is sent again.
const RESEND: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// A gated pod of this node and what it waits for.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) seen: GatedPod,
    pub(super) round: Option<Round>,
    /// The newest release known: the pod's own, or one sent that the watch has not shown yet.
    released: Option<Release>,
    complained: bool,
    /// When the gate opened by itself, if that was told.
    told_unanswered: Option<Timestamp>,
    /// Likewise, if the release was amended for it, or that is under way.
    amended: Option<Timestamp>,
    seeable: Seeable,
}

/// What a run of the gate waits for.
#[derive(Debug)]
pub(super) struct Round {
    /// When it began.
    pub(super) began: Duration,
    /// A check that began no earlier than this is good for the pod.
    pub(super) since: Duration,
    /// When the pod takes the cached copy.
    pub(super) deadline: Duration,
    pub(super) slots: Vec<Slot>,
    /// When the next sign of life is due.
    progress_at: Duration,
    /// When the first was written.
    shown: Option<Duration>,
    pub(super) send: Sending,
}

/// Whether the release is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    Idle { failures: u32, not_before: Duration },
    InFlight { failures: u32 },
}

/// One container of a round.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) written: String,
    pub(super) wait: Wait,
    pub(super) attempts: u32,
    pub(super) failure: Option<Failure>,
}

/// What a container waits for.
///
/// ```text
/// Try ── its try ends ────────────────────────────────► Done
///  └─ the pod's time is up ─► Inspection ── a copy ───► Done
///        Inspection ── no copy, and a try runs ─► LastTry ── it ends ─► Done
///        Inspection ── the registry has not said yet who may have it ─► FirstWord
///        FirstWord ── bytes flow, or its own time is up ─► Inspection;  its try ends ─► Done
/// ```
#[derive(Clone, Debug)]
pub(super) enum Wait {
    /// The image's try.
    Try(ImageName),
    /// The pod's time is up: the proof of a cached copy.
    Inspection {
        image: ImageName,
        /// It has waited for the registry's first word in vain.
        unheard: bool,
    },
    /// The pod's time is up, but the registry may yet refuse the image: its first word.
    FirstWord { image: ImageName, until: Duration },
    /// The pod's time is up and there is no copy: the end of the try that runs.
    LastTry(ImageName),
    /// Nothing.
    Done(Box<ContainerRelease>),
}

impl Pod {
    pub(super) fn new(mut pod: GatedPod, now: Now) -> Self {
        let mut seeable = Seeable::default();
        seeable.gate_changed(now.up);
        Self {
            released: pod.released.take(),
            seen: pod,
            round: None,
            complained: false,
            told_unanswered: None,
            amended: None,
            seeable,
        }
    }

    /// Takes over a newer state of the pod. The watch may lag behind our own write.
    pub(super) fn update(&mut self, mut pod: GatedPod, now: Now) {
        let theirs = pod.released.take();
        let newer = match (&theirs, &self.released) {
            (Some(theirs), Some(ours)) => theirs.time >= ours.time,
            (theirs, _) => theirs.is_some(),
        };
        if newer {
            self.released = theirs;
        }
        if self.seen.gate != pod.gate {
            self.seeable.gate_changed(now.up);
        }
        self.seen = pod;
    }

    /// A release was written: the first of its round, or one that the pod had.
    pub(super) fn release_sent(&mut self, release: Release, now: Now) {
        // Of a pod whose images have changed meanwhile, the round is about the new ones.
        if self.is_about_its_images(&release) && self.round.take().is_some() {
            self.seeable.written(now.up);
        }
        self.released = Some(release);
    }

    /// When its release is to be written again, because the gate runs and does not act on it.
    pub(super) fn repeat_due(&self) -> Option<Duration> {
        let runs = matches!(self.seen.gate, GateState::Running { .. });
        let waits = runs && !self.seen.ended && self.released.is_some() && self.round.is_none();
        waits.then(|| self.seeable.due())?
    }

    /// Its release with a new time, if it is to be written again.
    pub(super) fn repeat(&mut self, now: Now) -> Option<Action> {
        self.repeat_due().filter(|due| *due <= now.up)?;
        self.seeable.repeated(now.up);
        let release = Release {
            time: now.wall,
            ..self.released.clone()?
        };
        Some(Action::Rewrite(self.seen.id.clone(), release))
    }

    /// Whether a round runs, and is about the images that the pod has now: they may be changed while
    /// the gate holds it.
    pub(super) fn is_in_its_round(&self) -> bool {
        let now = self.seen.containers.iter().map(|c| (&c.name, &c.written));
        let round = self.round.as_ref();
        round.is_some_and(|round| round.slots.iter().map(|s| (&s.name, &s.written)).eq(now))
    }

    fn is_about_its_images(&self, release: &Release) -> bool {
        self.seen.containers.iter().all(|container| {
            let given = release.containers.get(&container.name);
            given.is_some_and(|given| given.image == container.written)
        })
    }

    /// What follows if the gate has opened by itself: its owner is told, and a release that the gate
    /// should have honoured says what became of it.
    pub(super) fn gave_up(&mut self, now: Now) -> Vec<Action> {
        let GateState::GaveUp { since, at } = self.seen.gate else {
            return Vec::new();
        };
        let release = self.released.as_ref();
        if self.seen.ended || release.is_some_and(|release| release.unseen == Some(at)) {
            return Vec::new();
        }
        // What was already stale when the gate began was meant for an earlier run.
        let meant = release.filter(|release| release.is_fresh(release.time.max(since), FRESHNESS));
        let amended = meant.map(|release| release.clone().unseen_at(at));
        let mut actions = Vec::new();
        let news = age(now.wall, at) <= NEWS;
        if news && self.told_unanswered.replace(at) != Some(at) {
            let id = self.seen.id.clone();
            let long_before = |then: Timestamp| age(at, then) >= UNSEEN_AFTER;
            actions.push(match &amended {
                Some(release) if self.seeable.is_repeated() || long_before(release.time) => {
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

    /// How long the pod waits before it takes the cached copy. One with a short `activeDeadlineSeconds`
    /// needs that time for its work.
    fn time_to_try(&self, try_for: Duration) -> Duration {
        let short = self
            .seen
            .active_deadline
            .map(|whole| whole / DEADLINES_SHARE);
        let default = short.map_or(try_for, |short| try_for.min(short));
        self.seen.settings.timeout.unwrap_or(default)
    }

    /// When the next sign of life is due; none if the release is decided.
    pub(super) fn progress_due(&self) -> Option<Duration> {
        let round = self.round.as_ref().filter(|round| !round.is_decided())?;
        Some(match self.seen.gate {
            GateState::Running { .. } => round.progress_at,
            _ => round.progress_at.max(round.began + GATE_MAY_RUN),
        })
    }

    /// When the round that still runs gave its first sign of life, if it did.
    fn showed_itself(&self, now: Now) -> Option<Timestamp> {
        let first = self.round.as_ref()?.shown?;
        Some(now.wall - now.up.checked_sub(first)?)
    }

    /// A release, or what one came to, could not be written.
    pub(super) fn send_failed(&mut self, now: Now) {
        match &mut self.round {
            Some(round) => round.send_failed(now),
            // The watch shows the pod again, at the latest when it begins anew. A repeat is repeated.
            None => self.amended = None,
        }
    }

    /// Whether the gate waits, or will, for a release that it does not have.
    ///
    /// One that went stale before the gate ran is not given again before it runs: its sandbox may
    /// not come for hours, or the kubelet waits out a refusal.
    pub(super) fn wants_release(&self, now: Now) -> bool {
        match (&self.released, self.seen.gate) {
            _ if self.seen.ended => false,
            (_, GateState::Open | GateState::GaveUp { .. }) => false,
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

    /// Each of its images with one container's release; nothing if the pod was not released, was
    /// refused, or has ended.
    pub(super) fn released_images(&self) -> BTreeMap<&ImageName, Given<'_>> {
        let release = self.released.as_ref().filter(|release| release.opens());
        let release = release.filter(|_| !self.seen.ended);
        let containers = release.iter().flat_map(|_| &self.seen.containers);
        containers
            .filter_map(|container| {
                let given = release?.containers.get(&container.name)?;
                let image = container.image.as_ref().ok()?;
                (given.image == container.written).then_some((image, (release?.time, given)))
            })
            .collect()
    }

    /// How long until a release that the gate has not used yet goes stale.
    pub(super) fn stale_in(&self, now: Now) -> Option<Duration> {
        let release = self.released.as_ref()?;
        let runs = matches!(self.seen.gate, GateState::Running { .. });
        if self.seen.ended || !runs || self.round.is_some() {
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
    pub(super) fn complaints(&mut self) -> Vec<String> {
        if std::mem::replace(&mut self.complained, true) || self.released.is_some() {
            return Vec::new();
        }
        let bad_names = self.seen.containers.iter().filter_map(|container| {
            let error = container.image.as_ref().err()?;
            Some(format!(
                "container {}: {error}; left to the kubelet",
                container.name
            ))
        });
        self.seen
            .complaints
            .iter()
            .cloned()
            .chain(bad_names)
            .collect()
    }

    /// Begins a round.
    pub(super) fn begin(&mut self, now: Now, try_for: Duration) -> &Round {
        let slots = self.seen.containers.iter().map(Slot::new).collect();
        self.round.insert(Round {
            began: now.up,
            since: since(&self.seen, self.released.is_some(), now),
            deadline: now.up + self.time_to_try(try_for),
            slots,
            progress_at: now.up + FIRST_PROGRESS,
            shown: None,
            send: Sending::Idle {
                failures: 0,
                not_before: now.up,
            },
        })
    }
}

impl Round {
    /// The images that a try is wanted for.
    pub(super) fn wanted(&self) -> impl Iterator<Item = &ImageName> {
        self.slots.iter().filter_map(|slot| match &slot.wait {
            Wait::Try(image) => Some(image),
            Wait::Inspection { .. } | Wait::FirstWord { .. } | Wait::LastTry(_) | Wait::Done(_) => {
                None
            }
        })
    }

    /// When the wait for a first word is over.
    pub(super) fn next_unheard(&self) -> Option<Duration> {
        let until = self.slots.iter().filter_map(|slot| match slot.wait {
            Wait::FirstWord { until, .. } => Some(until),
            _ => None,
        });
        until.min()
    }

    /// The images whose cached copy is to be proven now, because there is no more time for a try.
    pub(super) fn overdue(
        &mut self,
        now: Now,
        images: &BTreeMap<ImageName, Image>,
    ) -> Vec<ImageName> {
        let late = now.up >= self.deadline;
        let mut overdue = Vec::new();
        for slot in &mut self.slots {
            let (image, unheard) = match &slot.wait {
                Wait::Try(image) if late => (image.clone(), false),
                Wait::FirstWord { image, until } => {
                    let silent = images.get(image).is_some_and(Image::may_yet_be_refused);
                    if silent && now.up < *until {
                        continue;
                    }
                    (image.clone(), silent)
                }
                _ => continue,
            };
            overdue.push(image.clone());
            slot.wait = Wait::Inspection { image, unheard };
        }
        overdue
    }

    /// The release, if every container is decided and it is time to send it; it counts as sent.
    pub(super) fn release_due(&mut self, now: Now) -> Option<Release> {
        if !matches!(self.send, Sending::Idle { not_before, .. } if not_before <= now.up) {
            return None;
        }
        let release = self.release(now)?;
        self.send = match self.send {
            Sending::Idle { failures, .. } | Sending::InFlight { failures } => {
                Sending::InFlight { failures }
            }
        };
        Some(release)
    }

    fn release(&self, now: Now) -> Option<Release> {
        let containers = self.slots.iter().map(|slot| match &slot.wait {
            Wait::Done(release) => Some((slot.name.clone(), (**release).clone())),
            Wait::Try(_) | Wait::Inspection { .. } | Wait::FirstWord { .. } | Wait::LastTry(_) => {
                None
            }
        });
        Some(Release {
            time: now.wall,
            containers: containers.collect::<Option<_>>()?,
            unseen: None,
        })
    }

    pub(super) fn is_decided(&self) -> bool {
        self.slots
            .iter()
            .all(|slot| matches!(slot.wait, Wait::Done(_)))
    }

    /// Whether the API server has refused the release, or has not answered.
    fn is_unwritten(&self) -> bool {
        let (Sending::Idle { failures, .. } | Sending::InFlight { failures }) = self.send;
        failures > 0
    }

    /// The release could not be written: when to try again.
    pub(super) fn send_failed(&mut self, now: Now) {
        let (Sending::Idle { failures, .. } | Sending::InFlight { failures }) = self.send;
        let pause = RESEND.0.saturating_mul(1 << failures.min(10)).min(RESEND.1);
        self.send = Sending::Idle {
            failures: failures.saturating_add(1),
            not_before: now.up + pause,
        };
    }

    pub(super) fn progress_sent(&mut self, now: Now) {
        self.progress_at = now.up + PROGRESS_EVERY;
    }

    /// A sign of life was written.
    pub(super) fn showed(&mut self, now: Now) {
        self.shown.get_or_insert(now.up);
    }
}

impl Slot {
    /// Its time is up, and the registry may yet refuse the image.
    pub(super) fn wait_for_first_word(&mut self, now: Now, image: &ImageName) {
        self.wait = Wait::FirstWord {
            image: image.clone(),
            until: now.up + FIRST_WORD,
        };
    }

    fn new(container: &TryContainer) -> Self {
        let mut slot = Self {
            name: container.name.clone(),
            written: container.written.clone(),
            wait: Wait::Done(Box::new(ContainerRelease {
                image: container.written.clone(),
                outcome: Outcome::Unavailable,
                failure: None,
                digest: None,
                confirmed: None,
                note: None,
                answered: None,
            })),
            attempts: 0,
            failure: None,
        };
        match &container.image {
            Ok(image) => slot.wait = Wait::Try(image.clone()),
            // The kubelet's own error tells the rest.
            Err(error) => slot.decide(
                Decision::plain(Outcome::Unavailable),
                Some(Failure::new(FailureClass::Invalid, error.to_string())),
                None,
                None,
            ),
        }
        slot
    }

    /// The image that this container still waits for.
    pub(super) fn image(&self) -> Option<&ImageName> {
        match &self.wait {
            Wait::Try(image)
            | Wait::Inspection { image, .. }
            | Wait::FirstWord { image, .. }
            | Wait::LastTry(image) => Some(image),
            Wait::Done(_) => None,
        }
    }

    /// How it was decided.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        match &self.wait {
            Wait::Done(release) => Some(release.outcome),
            _ => None,
        }
    }

    /// Decides the container if this evidence does.
    pub(super) fn settle(&mut self, evidence: Evidence<'_>, terms: Terms<'_>) -> bool {
        let Some(decision) = judge(evidence, terms) else {
            return false;
        };
        let digest = evidence.after.digest();
        let confirmed = digest.and_then(|digest| terms.known.confirmed_at(digest));
        let failure = evidence.failure.cloned();
        self.decide(decision, failure, digest.map(str::to_owned), confirmed);
        true
    }

    /// Decides the container without a proven copy.
    pub(super) fn give_up(&mut self, failure: Failure, copy: &Copy, terms: Terms<'_>) {
        let decision = give_up(failure.class, copy, terms);
        self.decide(decision, Some(failure), None, None);
    }

    fn decide(
        &mut self,
        decision: Decision,
        failure: Option<Failure>,
        digest: Option<String>,
        confirmed: Option<Timestamp>,
    ) {
        let Decision { outcome, note } = decision;
        self.wait = Wait::Done(Box::new(ContainerRelease {
            image: self.written.clone(),
            outcome,
            failure,
            digest,
            confirmed,
            note,
            answered: None,
        }));
    }
}

/// The earliest moment that surely lies after the pod began to need a release.
///
/// The API server and the kubelet write whole seconds, rounded down: a second is added. A pod that
/// already had a release needs a new one since its gate runs again, not since it was created.
fn since(pod: &GatedPod, again: bool, now: Now) -> Duration {
    let began = match (again, pod.gate) {
        (false, _) => pod.created,
        (true, GateState::Running { since }) => since,
        (true, GateState::Pending | GateState::Open | GateState::GaveUp { .. }) => return now.up,
    };
    let ago = now.wall.duration_since(began) - SignedDuration::from_secs(1);
    now.up
        .saturating_sub(ago.try_into().unwrap_or(Duration::ZERO))
}
