//! How far a command is with long work, for whoever waits for it.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use trylatest_core::text;

/// Shows steps on stderr: on a terminal, in one line that is written again and goes in the end; otherwise, one line
/// each.
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

/// Between two lines about one download where nobody sees it grow.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How wide the bar is.
const CELLS: u64 = 24;

/// Shows on stderr how much of an image has come: on a terminal, a bar; otherwise, a line now and then.
pub(crate) struct Bar {
    is_terminal: bool,
    said: Option<(Instant, String)>,
}

impl Bar {
    /// On this process's stderr.
    pub(crate) fn on_stderr() -> Self {
        Self {
            is_terminal: stderr().is_terminal(),
            said: None,
        }
    }

    /// The download begins.
    pub(crate) fn begin(&mut self, words: &str) {
        eprintln!("{words}");
        self.said = Some((Instant::now(), String::new()));
    }

    /// So many bytes are here, of so many if that is known.
    pub(crate) fn show(&mut self, bytes: u64, total: Option<u64>) {
        let line = line(bytes, total, self.is_terminal);
        if self.is_terminal {
            rewrite(&line);
        } else if self.says(Instant::now(), &line) {
            eprintln!("{line}");
        }
    }

    /// Whether this line is said: it is new, and the last one is a while ago.
    fn says(&mut self, now: Instant, line: &str) -> bool {
        let is_due = self
            .said
            .as_ref()
            .is_none_or(|(at, said)| now.duration_since(*at) >= LINE_EVERY && said != line);
        if is_due {
            self.said = Some((now, line.to_owned()));
        }
        is_due
    }

    /// It has ended.
    pub(crate) fn end(&mut self) {
        if self.is_terminal {
            rewrite("");
        }
    }
}

fn line(bytes: u64, total: Option<u64>, with_bar: bool) -> String {
    let here = text::bytes(bytes);
    let Some(total) = total.filter(|total| *total > 0) else {
        return if bytes == 0 {
            "waiting for the registry".to_owned()
        } else {
            here
        };
    };
    let bytes = bytes.min(total);
    let percent = bytes.saturating_mul(100) / total;
    let words = format!("{percent:>3} %  {here} of {}", text::bytes(total));
    if !with_bar {
        return words.trim_start().to_owned();
    }
    let full = usize::try_from(bytes.saturating_mul(CELLS) / total).unwrap_or(0);
    let bar = format!("{}{}", "=".repeat(full), if full > 0 { ">" } else { "" });
    let width = usize::try_from(CELLS).unwrap_or(0) + 1;
    format!("[{bar:<width$}] {words}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_bar_grows_with_the_bytes() {
        assert_eq!(line(0, None, true), "waiting for the registry");
        assert_eq!(line(3 * MIB, None, true), "3.0 MiB");
        assert_eq!(line(0, Some(0), false), "waiting for the registry");
        assert_eq!(
            line(0, Some(4 * MIB), true),
            "[                         ]   0 %  0 B of 4.0 MiB"
        );
        assert_eq!(
            line(2 * MIB, Some(4 * MIB), true),
            "[============>            ]  50 %  2.0 MiB of 4.0 MiB"
        );
        assert_eq!(
            line(4 * MIB, Some(4 * MIB), true),
            "[========================>] 100 %  4.0 MiB of 4.0 MiB"
        );
        // More than was announced: an earlier pull has left something behind.
        assert!(line(5 * MIB, Some(4 * MIB), true).contains("100 %"));
        assert_eq!(line(MIB, Some(4 * MIB), false), "25 %  1.0 MiB of 4.0 MiB");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_terminal_a_line_is_said_now_and_then_and_not_twice() {
        let mut bar = Bar {
            is_terminal: false,
            said: None,
        };
        let start = Instant::now();
        assert!(bar.says(start, "a"));
        assert!(!bar.says(start + LINE_EVERY / 2, "b"));
        assert!(!bar.says(start + LINE_EVERY, "a"));
        assert!(bar.says(start + LINE_EVERY, "b"));
    }
}
