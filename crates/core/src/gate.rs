//! What the gate does with what it reads: wait, open, or refuse.

use std::time::Duration;

use jiff::Timestamp;

use crate::release::{Progress, Release};
use crate::text;
use crate::time::Now;

/// How long the gate waits without any sign of an agent.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How a gate ended: the first word of the last line that it leaves in the pod's status, where people
/// and the agent find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It acted on a release that opens it.
    Opened,
    /// It opened by itself, because nobody answered.
    Unanswered,
    /// It acted on a release that refuses a container.
    Refused,
}

impl End {
    /// Every end.
    pub const ALL: [Self; 3] = [Self::Opened, Self::Unanswered, Self::Refused];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Unanswered => "unanswered",
            Self::Refused => "refused",
        }
    }

    /// Reads it from a gate's last message. Of a long message the kubelet keeps the end
    /// (`pkg/kubelet/kuberuntime/kuberuntime_container.go`, `getTerminationMessage`).
    pub fn of(message: &str) -> Option<Self> {
        let word = message.lines().next_back()?.split(' ').next()?;
        Self::ALL.into_iter().find(|end| end.as_str() == word)
    }
}

/// The gate's state between two looks at the pod's annotations.
#[derive(Debug)]
pub struct Gate {
    patience: Duration,
    freshness: Duration,
    /// When the agent last showed itself, or the gate's start.
    last_sign: Duration,
    seen: Option<Timestamp>,
    /// What was printed last.
    told: Vec<String>,
}

/// What was read from the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The release annotation, if there is one and it can be read.
    pub released: Option<Release>,
    /// The progress annotation, likewise.
    pub progress: Option<Progress>,
}

/// What the gate does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Look again when something changes, and after this time at the latest.
    Wait(Duration),
    /// Exit 0.
    Open,
    /// Exit 0: nobody answered.
    OpenUnanswered,
    /// Exit non-zero.
    Refuse,
}

impl Gate {
    /// A gate that starts to wait now.
    pub fn new(now: Now, patience: Duration, freshness: Duration) -> Self {
        Self {
            patience,
            freshness,
            last_sign: now.up,
            seen: None,
            told: Vec::new(),
        }
    }

    /// Looks at what the volume contains now. Returns the lines to print, and what to do next.
    ///
    /// Only what is fresh counts. The gate does not act on a release or progress of an earlier run of
    /// this pod, and does not take it for a sign of a living agent.
    pub fn observe(&mut self, now: Now, reading: &Reading) -> (Vec<String>, Step) {
        let released = reading.released.as_ref();
        if let Some(release) = released.filter(|r| r.is_fresh(now.wall, self.freshness)) {
            let step = if release.opens() {
                Step::Open
            } else {
                Step::Refuse
            };
            return (describe_release(release, now.wall), step);
        }
        let mut lines = Vec::new();
        if let Some(progress) = &reading.progress
            && self.seen != Some(progress.time)
            && crate::time::near(now.wall, progress.time, self.freshness)
        {
            self.seen = Some(progress.time);
            self.last_sign = now.up;
            lines = describe_progress(progress);
            if lines == self.told {
                lines.clear();
            } else {
                self.told.clone_from(&lines);
            }
        }
        let left = (self.last_sign + self.patience).saturating_sub(now.up);
        if left.is_zero() {
            (Vec::new(), Step::OpenUnanswered)
        } else {
            (lines, Step::Wait(left))
        }
    }
}

fn describe_release(release: &Release, now: Timestamp) -> Vec<String> {
    release
        .containers
        .iter()
        .map(|(name, container)| {
            format!("{}: {name}: {}", container.outcome, container.describe(now))
        })
        .map(|line| text::on_one_line(&line))
        .collect()
}

fn describe_progress(progress: &Progress) -> Vec<String> {
    progress
        .containers
        .iter()
        .map(|(name, container)| format!("trying: {name}: {}", container.describe()))
        .map(|line| text::on_one_line(&line))
        .collect()
}

/// Takes one annotation's value out of a downward-API `metadata.annotations` file.
///
/// The kubelet writes one `key="value"` a line, the value quoted as a Go string with `%q`
/// (`pkg/fieldpath/fieldpath.go`, `FormatMap`). Returns none if the key is absent or its value
/// cannot be read.
pub fn annotation(file: &str, key: &str) -> Option<String> {
    file.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .and_then(unquote)
}

/// Undoes Go's `%q`. Its escapes are those of JSON, and `\a`, `\v`, `\x..` and `\U........`.
fn unquote(quoted: &str) -> Option<String> {
    let inner = quoted.strip_prefix('"')?.strip_suffix('"')?;
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next()? {
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            'x' => code_point(&mut chars, 2)?,
            'u' => code_point(&mut chars, 4)?,
            'U' => code_point(&mut chars, 8)?,
            same @ ('\\' | '"' | '\'') => same,
            _ => return None,
        });
    }
    Some(out)
}

fn code_point(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<char> {
    let mut value = 0;
    for _ in 0..digits {
        value = value * 16 + chars.next()?.to_digit(16)?;
    }
    char::from_u32(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Failure, FailureClass, Outcome};
    use crate::release::{ContainerProgress, ContainerRelease, FRESHNESS};

    const START: &str = "2026-01-01T12:00:00Z";

    fn at(seconds: u64) -> Now {
        let up = Duration::from_secs(seconds);
        Now {
            wall: START.parse::<Timestamp>().unwrap() + up,
            up,
        }
    }

    fn gate() -> Gate {
        Gate::new(at(0), PATIENCE, FRESHNESS)
    }

    fn released(seconds_before: u64, outcome: Outcome) -> Reading {
        let time = START.parse::<Timestamp>().unwrap() - Duration::from_secs(seconds_before);
        let container = ContainerRelease {
            failure: Some(Failure::new(FailureClass::Network, "refused")),
            digest: "sha256:1".parse().ok(),
            ..ContainerRelease::new("app:latest", outcome)
        };
        Reading {
            released: Some(Release {
                time,
                containers: [("app".to_owned(), container)].into(),
                unseen: None,
            }),
            progress: None,
        }
    }

    fn progress(seconds: u64) -> Reading {
        let container = ContainerProgress {
            image: "app:latest".into(),
            attempt: 1,
            bytes: 1,
            total_bytes: None,
            by_kubelet: false,
            failure: None,
        };
        Reading {
            released: None,
            progress: Some(Progress {
                time: at(seconds).wall,
                containers: [("app".to_owned(), container)].into(),
            }),
        }
    }

    #[test]
    fn a_fresh_release_opens_and_is_told() {
        let (lines, step) = gate().observe(at(1), &released(0, Outcome::Fallback));
        assert_eq!(step, Step::Open);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("fallback: app: using the cached copy"));
    }

    #[test]
    fn a_refusal_does_not_open() {
        let (_, step) = gate().observe(at(1), &released(0, Outcome::Refused));
        assert_eq!(step, Step::Refuse);
    }

    #[test]
    fn a_stale_release_neither_opens_nor_counts_as_a_sign() {
        let stale = released(121, Outcome::Fresh);
        let mut gate = gate();
        let (lines, step) = gate.observe(at(0), &stale);
        assert_eq!((lines, step), (vec![], Step::Wait(PATIENCE)));
        assert_eq!(gate.observe(at(20), &stale).1, Step::OpenUnanswered);
    }

    #[test]
    fn a_release_that_an_earlier_run_did_not_see_opens_nothing() {
        let mut spent = released(0, Outcome::Fallback);
        let release = spent.released.take().unwrap();
        spent.released = Some(release.unseen_at(at(0).wall));
        assert_eq!(
            gate().observe(at(1), &spent).1,
            Step::Wait(Duration::from_secs(19))
        );
    }

    #[test]
    fn progress_renews_the_patience_and_is_printed_once() {
        let mut gate = gate();
        let (lines, step) = gate.observe(at(15), &progress(14));
        assert_eq!(step, Step::Wait(PATIENCE));
        assert_eq!(lines, ["trying: app: pulling app:latest, 1 B"]);
        let (lines, step) = gate.observe(at(25), &progress(14));
        assert_eq!((lines, step), (vec![], Step::Wait(Duration::from_secs(10))));
        assert_eq!(gate.observe(at(35), &progress(14)).1, Step::OpenUnanswered);
    }

    #[test]
    fn an_agent_is_seen_though_the_clock_was_set_back() {
        let mut gate = gate();
        let (_, step) = gate.observe(at(10), &progress(10));
        assert_eq!(step, Step::Wait(PATIENCE));
        let back = |mut now: Now| {
            now.wall -= Duration::from_secs(3600);
            now
        };
        let mut later = progress(15);
        let sign = later.progress.as_mut().unwrap();
        sign.time = back(at(15)).wall;
        let (_, step) = gate.observe(back(at(15)), &later);
        assert_eq!(step, Step::Wait(PATIENCE));
    }

    #[test]
    fn the_last_line_says_how_it_ended() {
        for end in End::ALL {
            let words = format!("fresh: app: pulled app: 1\n{} after 0.10s", end.as_str());
            assert_eq!(End::of(&words), Some(end));
        }
        for words in ["", "\n", "unanswered: by an app\nopened", "something else"] {
            assert_ne!(End::of(words), Some(End::Unanswered), "{words}");
        }
    }

    #[test]
    fn a_set_clock_does_not_lengthen_the_wait() {
        let mut gate = gate();
        let mut later = at(20);
        later.wall = START.parse::<Timestamp>().unwrap() - Duration::from_secs(3600);
        assert_eq!(
            gate.observe(later, &Reading::default()).1,
            Step::OpenUnanswered
        );
    }

    #[test]
    fn annotations_are_read_as_the_kubelet_writes_them() {
        let file = "a=\"x=\\\"y\\\"\"\ntrylatest.dev/released=\"{\\\"time\\\":\\\"\\u00e4\\n\\\\\\x07\\U0001f600\\\"}\"\nb=\"\"";
        assert_eq!(annotation(file, "a").as_deref(), Some("x=\"y\""));
        assert_eq!(
            annotation(file, "trylatest.dev/released").as_deref(),
            Some("{\"time\":\"ä\n\\\u{7}😀\"}")
        );
        assert_eq!(annotation(file, "b").as_deref(), Some(""));
        assert_eq!(annotation(file, "trylatest.dev/rel"), None);
        for bad in [
            "a=\"\\",
            "a=\"",
            "a=x",
            "a=\"\\u12\"",
            "a=\"\\ud800\"",
            "a=\"\\q\"",
        ] {
            assert_eq!(annotation(bad, "a"), None, "{bad}");
        }
    }
}
