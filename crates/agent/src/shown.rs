//! How far a command is with long work, for whoever waits for it.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::sync::atomic::{AtomicU64, Ordering};

/// Shows steps on stderr: on a terminal, in one line that is written again and goes in the end; otherwise, one line each.
pub(crate) struct Shown {
    is_terminal: bool,
    /// What was last shown of the current step, in percent.
    percent: AtomicU64,
}

impl Shown {
    /// On this process's stderr.
    pub(crate) fn on_stderr() -> Self {
        Self {
            is_terminal: stderr().is_terminal(),
            percent: AtomicU64::new(0),
        }
    }

    /// A step begins.
    pub(crate) fn step(&self, words: &str) {
        self.percent.store(0, Ordering::Relaxed);
        if self.is_terminal {
            rewrite(&format!("{words} ..."));
        } else {
            eprintln!("{words}");
        }
    }

    /// How far the step is.
    pub(crate) fn is_at(&self, words: &str, done: u64, of: u64) {
        let percent = done.saturating_mul(100) / of.max(1);
        let before = self.percent.swap(percent, Ordering::Relaxed);
        if self.is_terminal && percent != before {
            rewrite(&format!("{words} ... {percent} %"));
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if self.is_terminal {
            rewrite("");
        }
    }
}

/// Writes the line again. A terminal that is gone is no reason to stop.
fn rewrite(words: &str) {
    let mut stderr = stderr();
    let _ = write!(stderr, "\r\x1b[K{words}");
    let _ = stderr.flush();
}
