//! When an image is tried: at once for the first pod, merged for those that follow, later after a
//! failure that left nothing to start from.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use jiff::Timestamp;

use super::{Ask, Flow};
use crate::image::ImageName;
use crate::record::{ImageRecord, Try};
use crate::time::Now;
use crate::verdict::Known;

/// Pods that come this soon after a try began are likely one burst, and wait for each other.
const MERGE_WINDOW: Duration = Duration::from_secs(2);

/// A burst is over when no pod of it came for this long. The gate's own start takes far longer,
/// so the wait is not seen.
const QUIET: Duration = Duration::from_millis(300);

/// The first pod of a burst waits no longer than this for the others.
const QUIET_MAX: Duration = Duration::from_millis(1000);

/// First and longest pause between tries that leave a pod with nothing to start from.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// One image that a pod of this node waits for, or did.
#[derive(Debug, Default)]
pub(super) struct Image {
    pub(super) known: Known,
    /// When the try ended that brought [`Known::confirmed`].
    confirmed_until: Option<Timestamp>,
    pub(super) last_try: Option<Try>,
    pub(super) attempt: Option<Attempt>,
    last_start: Option<Duration>,
    failures_in_a_row: u32,
    queue: Option<Queue>,
    /// The try that has just ended had only to look, and found no copy.
    is_missing: bool,
    /// When the registry last answered a try of it.
    pub(super) answered: Option<Duration>,
}

/// A try that runs.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) id: u64,
    pub(super) started: Now,
    pub(super) ask: Ask,
    pub(super) flow: Flow,
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

/// Who waits for the next try to begin.
#[derive(Clone, Copy, Debug)]
struct Queue {
    first: Duration,
    last: Duration,
    /// The try is due, and others have their turn.
    waits: bool,
}

impl Image {
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
            self.queue(now.up + backoff(self.failures_in_a_row, name, node));
        }
    }

    /// Nobody waits any more.
    pub(super) fn leave(&mut self) {
        self.queue = None;
    }

    /// When the next try is to begin, if somebody waits for one and none runs.
    pub(super) fn due(&self) -> Option<Duration> {
        let queue = self.queue?;
        if self.attempt.is_some() {
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
        self.attempt.is_some() || self.queue.is_some()
    }

    /// Whether the try that runs, or is about to, may still end with the registry's first refusal of an
    /// image that it has never given to anybody: a pod with little time must not be faster than a 401.
    /// What it has refused already is refused without a wait.
    pub(super) fn may_yet_be_refused(&self) -> bool {
        let silent = match &self.attempt {
            Some(running) => !running.flow.flows,
            None => self.waits_for_turn(),
        };
        silent && self.known.confirmed.is_none() && !self.known.needs_credentials
    }

    /// A running try has come this far.
    pub(super) fn moved(&mut self, now: Now, attempt: u64, flow: Flow) {
        let running = self.attempt.as_mut().filter(|a| a.id == attempt);
        let Some(running) = running else {
            return;
        };
        if flow.flows && flow.bytes != running.flow.bytes {
            self.answered = Some(now.up);
        }
        running.flow = flow;
    }

    /// A try begins.
    pub(super) fn start(&mut self, now: Now, id: u64, ask: Ask) {
        self.queue = None;
        self.is_missing = false;
        if ask != Ask::IfAbsent {
            self.last_start = Some(now.up);
        }
        self.attempt = Some(Attempt {
            id,
            started: now,
            ask,
            flow: Flow::default(),
        });
    }

    /// Whether its next try has only to look whether a copy is here. Only what the registry has given
    /// to anybody is taken for granted.
    pub(super) fn is_settled(&self, name: &ImageName) -> bool {
        name.has_digest() && self.known.is_public() && !self.is_missing
    }

    /// A try that had only to look has found no copy: it is pulled like any other.
    pub(super) fn misses(&mut self, now: Now) {
        self.is_missing = true;
        self.queue(now.up);
    }

    /// A try has ended; `record` says how.
    pub(super) fn finish(&mut self, record: &Try) {
        self.attempt = None;
        if record.confirmation().is_some() {
            self.failures_in_a_row = 0;
        } else {
            self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        }
        self.remember(record);
    }

    /// Takes over what a try has shown.
    pub(super) fn remember(&mut self, record: &Try) {
        if let Some(confirmed) = record.confirmation() {
            self.known.confirmed = Some(confirmed);
            self.confirmed_until = Some(record.started + record.duration);
        }
        if let Some(needs) = record.needs_credentials() {
            self.known.needs_credentials = needs;
        }
        self.last_try = Some(record.clone());
    }

    /// Whether the registry has said, at this time or later, that the tag points to this digest.
    pub(super) fn is_confirmed_since(&self, time: Timestamp, digest: &str) -> bool {
        let confirmed = self.known.confirmed.as_ref();
        confirmed.is_some_and(|confirmed| confirmed.digest == digest)
            && self.confirmed_until.is_some_and(|until| until >= time)
    }

    /// Takes over what an earlier run of the agent has written down.
    pub(super) fn recall(&mut self, record: &ImageRecord) {
        self.last_try = record.tries.first().cloned();
        self.confirmed_until = record.confirmed.as_ref().map(|confirmed| confirmed.time);
        self.known = Known {
            confirmed: record.confirmed.clone(),
            needs_credentials: record.needs_credentials,
        };
    }
}

/// Doubles from the first to the longest pause, with a quarter of jitter either way. The jitter
/// comes from the image, the node and the count: it differs between all of them and needs no
/// randomness.
fn backoff(failures: u32, name: &ImageName, node: &str) -> Duration {
    let (first, longest) = BACKOFF;
    let pause = first
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(longest);
    let mut hasher = DefaultHasher::new();
    (name, node, failures).hash(&mut hasher);
    let percent = u32::try_from(hasher.finish() % 51).unwrap_or(0) + 75;
    pause * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_differ_between_images_and_nodes() {
        let names: Vec<ImageName> = (0..20)
            .map(|n| format!("reg.example/app{n}").parse().unwrap())
            .collect();
        for name in &names {
            for failures in 0..40 {
                let pause = backoff(failures, name, "node");
                assert!(pause >= BACKOFF.0 * 3 / 4 && pause <= BACKOFF.1 * 5 / 4);
            }
            assert!(backoff(1, name, "node") < Duration::from_millis(1251));
            assert!(backoff(8, name, "node") > Duration::from_secs(7));
        }
        let different: std::collections::BTreeSet<_> =
            names.iter().map(|name| backoff(3, name, "node")).collect();
        assert!(different.len() > 5);
        let nodes = (0..20).map(|n| backoff(3, &names[0], &format!("node{n}")));
        let different: std::collections::BTreeSet<_> = nodes.collect();
        assert!(different.len() > 5);
    }
}
