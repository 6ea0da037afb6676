//! A release that its gate does not act on is written again.
//!
//! The kubelet refreshes the gate's volume when the pod changes. On a busy node it can miss a change
//! that comes while it still writes the one before, and looks again only a minute later: long after
//! the gate has lost its patience. Another change makes it look.

use std::time::Duration;

/// The kubelet puts a changed annotation into a volume within a second or so. What was written this
/// long ago and is not there never comes.
pub(super) const UNSEEN_AFTER: Duration = Duration::from_secs(5);

/// On a busy node the kubelet shows seconds later than the container runtime that a gate has ended.
const ENDED_IS_SHOWN: Duration = Duration::from_secs(15);

/// They cover the gate's patience of 20 s. After that it has opened, or its node is gone.
const REPEATS_MAX: u32 = 3;

/// Since when a release could have been seen, as far as this agent knows, and how often it was written
/// again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Repeats {
    gate: Duration,
    /// When the container runtime said that it has ended.
    ended: Option<Duration>,
    written: Duration,
    count: u32,
}

impl Repeats {
    /// The gate was first seen to be as it is.
    pub(super) fn gate_changed(&mut self, at: Duration) {
        self.gate = at;
    }

    /// The container runtime runs it.
    pub(super) fn gate_runs(&mut self) {
        self.ended = None;
    }

    /// The container runtime does not run it any more.
    pub(super) fn gate_ended(&mut self, at: Duration) {
        self.ended = Some(at);
    }

    /// A release was written.
    pub(super) fn written(&mut self, at: Duration) {
        self.written = at;
        self.count = 0;
    }

    /// It is sent again.
    pub(super) fn sent(&mut self, at: Duration) {
        self.written = at;
    }

    /// It was written again.
    pub(super) fn written_again(&mut self) {
        self.count = self.count.saturating_add(1);
    }

    /// Whether it was written again, and so was not seen for long.
    pub(super) fn have_begun(self) -> bool {
        self.count > 0
    }

    /// When to write it again, if the gate runs until then.
    pub(super) fn due(self) -> Option<Duration> {
        let unseen = self.gate.max(self.written) + UNSEEN_AFTER;
        let ended = self.ended.map(|at| at + ENDED_IS_SHOWN);
        (self.count < REPEATS_MAX).then(|| unseen.max(ended.unwrap_or_default()))
    }
}
