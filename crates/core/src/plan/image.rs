//! When an image is tried: at once for the first pod, merged for those that follow, later after a
//! failure that left nothing to start from.

use std::time::Duration;

use super::backoff::Backoff;
use super::event::{Ask, Flow};
use super::handover::{Handover, Kept};
use crate::image::ImageName;
use crate::outcome::Failure;
use crate::time::Now;
use crate::verdict::Evidence;

/// Pods that come this soon after a try began are likely one burst, and wait for each other.
const MERGE_WINDOW: Duration = Duration::from_secs(2);

/// A burst is over when no pod of it came for this long. The gate's own start takes far longer,
/// so the wait is not seen.
const QUIET: Duration = Duration::from_millis(300);

/// The first pod of a burst waits no longer than this for the others.
const QUIET_MAX: Duration = Duration::from_millis(1000);

/// Between tries that leave a pod with nothing to start from.
const RETRY: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(10),
};

/// The tries of one image that a pod of this node waits for, or did. What few images have at a time is boxed: there is
/// one of these for each image that is remembered.
#[derive(Debug, Default)]
pub(super) struct Image {
    pub(super) attempt: Option<Box<Attempt>>,
    last_start: Option<Duration>,
    failures_in_a_row: u32,
    /// A try that stood still was cut for a newcomer, and nothing has come since.
    pub(super) is_patient: bool,
    /// When a try that stood still was cut because its registry was back, if nothing has come since.
    pub(super) started_over: Option<Duration>,
    queue: Option<Queue>,
    /// The try that has just ended had only to look, and found no copy.
    is_missing: bool,
    /// It fell back, and is tried again although no pod waits for that.
    pub(super) is_refreshed: bool,
    /// The kubelet is to pull it, or does.
    pub(super) handover: Option<Box<Handover>>,
    /// When the last hand-over ended.
    pub(super) handed_back: Option<Duration>,
    /// A try that the registry has refused, and that is not remembered yet: a hand-over may follow.
    pub(super) refused: Option<Box<(Attempt, Evidence)>>,
}

/// A try that runs.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) id: u64,
    pub(super) started: Now,
    pub(super) ask: Ask,
    /// Why the registry was not to be asked for each pod when it began, if it probes.
    pub(super) probe: Option<Failure>,
    /// How long nothing may move before it has stalled.
    stall: Duration,
    pub(super) flow: Flow,
    /// Since when it is known that nothing moves, if nothing does.
    pub(super) stalled: Option<Duration>,
    /// It is to end.
    pub(super) is_cut: bool,
    /// That it stands still is remembered.
    pub(super) is_recorded: bool,
}

impl Attempt {
    /// Whether its failure says something of the registry.
    pub(super) fn asks(&self) -> bool {
        self.ask == Ask::Always
    }

    /// Whether the registry has said something to it, as far as is known while it runs.
    pub(super) fn has_answer(&self) -> bool {
        self.flow.flows || self.flow.total_bytes.is_some()
    }
}

/// What a running try says of its registry.
#[derive(Clone, Copy, Debug)]
pub(super) enum News {
    /// Bytes have come, to a try that began then.
    Answer(Duration),
    /// Nothing has come for the stall deadline.
    Silence,
}

/// Who waits for the next try to begin.
#[derive(Clone, Copy, Debug)]
struct Queue {
    first: Duration,
    last: Duration,
    /// The try is due, and others have their turn.
    waits: bool,
}

impl Image {
    /// What the kubelet does not find, if a hand-over has taken the name away.
    pub(super) fn away(&self) -> Option<&Kept> {
        self.handover.as_ref()?.away()
    }

    /// Somebody waits for a try that begins at `at` or later.
    pub(super) fn queue(&mut self, at: Duration) {
        if self.waits_for_turn() {
            // It begins as soon as there is a turn, for the newcomer too.
            return;
        }
        // A newcomer does not wait out another pod's back-off.
        let first = self.queue.map_or(at, |queue| queue.first.min(at));
        self.queue = Some(Queue {
            first,
            last: at,
            waits: false,
        });
    }

    /// It is tried again although no pod waits for that.
    pub(super) fn refresh(&mut self, at: Duration) {
        self.is_refreshed = true;
        self.queue(at);
    }

    /// Its try is due, but others have their turn.
    pub(super) fn wait_for_turn(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.waits = true;
        }
    }

    /// Whether nothing but others' turns keeps its try from beginning.
    pub(super) fn waits_for_turn(&self) -> bool {
        self.attempt.is_none() && self.queue.is_some_and(|queue| queue.waits)
    }

    /// Somebody has nothing to start from: try again after a pause.
    pub(super) fn queue_retry(&mut self, now: Now, name: &ImageName, node: &str) {
        if self.queue.is_none() {
            self.queue(now.up + RETRY.pause(self.failures_in_a_row, (name, node)));
        }
    }

    /// Nobody waits any more.
    pub(super) fn leave(&mut self) {
        self.is_refreshed = false;
        self.queue = None;
    }

    /// When the next try is to begin, if somebody waits for one and none runs.
    pub(super) fn due(&self) -> Option<Duration> {
        let queue = self.queue?;
        // While the kubelet pulls, a try would find no copy.
        if self.attempt.is_some() || self.handover.is_some() {
            return None;
        }
        let burst = self
            .last_start
            .is_some_and(|start| queue.first < start + MERGE_WINDOW);
        Some(if burst {
            (queue.last + QUIET).min(queue.first + QUIET_MAX)
        } else {
            queue.first
        })
    }

    /// Whether a try runs or is waited for.
    pub(super) fn is_busy(&self) -> bool {
        self.attempt.is_some() || self.queue.is_some() || self.handover.is_some()
    }

    /// Whether nothing moves in the try that runs, and it goes on.
    pub(super) fn is_stalled(&self) -> bool {
        let attempt = self.attempt.as_deref();
        attempt.is_some_and(|attempt| attempt.stalled.is_some() && !attempt.is_cut)
    }

    /// Whether pods do not wait for the try that runs, because it only probes the registry.
    pub(super) fn is_passed_over(&self, now: Now, gate_runs: bool) -> bool {
        let attempt = self.attempt.as_ref();
        attempt.is_some_and(|attempt| attempt.is_passed_over(now, gate_runs))
    }

    /// When it was last tried.
    pub(super) fn last_start(&self) -> Option<Duration> {
        self.last_start
    }

    /// Whether a try runs that asks the registry.
    pub(super) fn is_asking(&self) -> bool {
        self.attempt.as_deref().is_some_and(Attempt::asks)
    }

    /// Whether the registry has said something to the try that runs.
    pub(super) fn has_answer(&self) -> bool {
        self.attempt.as_deref().is_some_and(Attempt::has_answer)
    }

    /// Whether the try that runs, or is about to, may still end with the registry's first word.
    pub(super) fn awaits_first_word(&self) -> bool {
        match &self.attempt {
            Some(running) => !running.flow.flows && running.stalled.is_none(),
            None => self.waits_for_turn(),
        }
    }

    /// A running try has come this far: what that says of its registry, if it is news.
    pub(super) fn moved(&mut self, now: Now, attempt: u64, flow: Flow) -> Option<News> {
        let running = self.attempt.as_mut().filter(|a| a.id == attempt)?;
        let before = running.stalled;
        let came = flow.flows && flow.bytes != running.flow.bytes;
        running.flow = flow;
        // Once it has stalled, a runtime that is busier than it was excuses nothing.
        let is_still_stalled = before.is_some() && flow.still >= running.stall;
        let stalled = is_still_stalled || flow.has_stalled(running.stall);
        running.stalled = stalled.then(|| before.unwrap_or(now.up));
        if came {
            return Some(News::Answer(running.started.up));
        }
        let is_silent = before.is_none() && stalled && !running.has_answer();
        is_silent.then_some(News::Silence)
    }

    /// A try begins.
    pub(super) fn start(
        &mut self,
        now: Now,
        id: u64,
        ask: Ask,
        probe: Option<Failure>,
        stall: Duration,
    ) {
        self.queue = None;
        self.is_missing = false;
        if ask == Ask::Always {
            self.last_start = Some(now.up);
        }
        self.is_refreshed &= ask == Ask::IfAbsent;
        self.attempt = Some(Box::new(Attempt {
            id,
            started: now,
            ask,
            probe,
            stall,
            flow: Flow::default(),
            stalled: None,
            is_cut: false,
            is_recorded: false,
        }));
    }

    /// Whether its last try had only to look, and found no copy.
    pub(super) fn is_missing(&self) -> bool {
        self.is_missing
    }

    /// A try that had only to look has found no copy: it is pulled like any other.
    pub(super) fn misses(&mut self, now: Now) {
        self.is_missing = true;
        self.queue(now.up);
    }

    /// A try has ended.
    pub(super) fn finish(&mut self, failed: bool) {
        self.failures_in_a_row = if failed {
            self.failures_in_a_row.saturating_add(1)
        } else {
            0
        };
    }
}
