//! Whether the agent is alive and ready, for the probes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The main task's loop turns every few seconds; if it has not for this long, it hangs.
const DEAD_AFTER: Duration = Duration::from_secs(60);

/// What the tasks say of themselves.
#[derive(Debug)]
pub(super) struct Health {
    beat: Mutex<Instant>,
    watching: AtomicBool,
    interrupted: AtomicBool,
    tidy: AtomicBool,
    runtime: AtomicBool,
    stopping: AtomicBool,
}

impl Health {
    pub(super) fn new() -> Self {
        Self {
            beat: Mutex::new(Instant::now()),
            watching: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            tidy: AtomicBool::new(false),
            runtime: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        }
    }

    /// The main task has turned.
    pub(super) fn beat(&self) {
        if let Ok(mut beat) = self.beat.lock() {
            *beat = Instant::now();
        }
    }

    /// The first list of pods is here.
    pub(super) fn set_watching(&self) {
        self.watching.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_watching(&self) -> bool {
        self.watching.load(Ordering::Relaxed)
    }

    /// containerd answers, or does not.
    pub(super) fn set_runtime(&self, answers: bool) {
        self.runtime.store(answers, Ordering::Relaxed);
    }

    /// The watch of pods is interrupted, or goes on.
    pub(super) fn set_interrupted(&self, interrupted: bool) {
        self.interrupted.store(interrupted, Ordering::Relaxed);
    }

    /// No image's name is away that an earlier agent has taken.
    pub(super) fn set_tidy(&self) {
        self.tidy.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_tidy(&self) -> bool {
        self.tidy.load(Ordering::Relaxed)
    }

    /// Whether the end of a hand-over would be seen.
    pub(super) fn can_hand_over(&self) -> bool {
        let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        is(&self.watching) && !is(&self.interrupted) && is(&self.tidy) && is(&self.runtime)
    }

    /// SIGTERM has come.
    pub(super) fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Why the agent is not alive, if so.
    pub(super) fn dead(&self) -> Option<String> {
        let silent = self
            .beat
            .lock()
            .map_or(Duration::MAX, |beat| beat.elapsed());
        (silent > DEAD_AFTER).then(|| format!("the main task has hung for {silent:?}"))
    }

    /// Why the agent is not ready, if so.
    pub(super) fn unready(&self) -> Option<&'static str> {
        if self.stopping.load(Ordering::Relaxed) {
            Some("stopping")
        } else if !self.is_watching() {
            Some("the pods of this node are not listed yet")
        } else if !self.runtime.load(Ordering::Relaxed) {
            Some("containerd does not answer")
        } else {
            None
        }
    }
}
