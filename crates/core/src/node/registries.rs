//! The registries that a node does not ask for each pod now, as lines of its annotation. Written by agents, and read by
//! `kubectl trylatest`.
//!
//! ```text
//! NOT-ASKED network  registry.example  since 2026-01-01T12:03Z
//! ```

use std::fmt::Write as _;

use jiff::Timestamp;

use super::lines::{GAP, minute, without_middle};
use crate::outcome::FailureClass;

/// Most registries, each on a line.
const REGISTRIES_MAX: usize = 10;

/// Longest name in bytes: with the longest class, the line has just as many as kubectl shows. It is the same for all
/// classes, so that a name that is cut is cut alike on all nodes.
const NAME_MAX_BYTES: usize = 89;

/// What a line begins with.
const WORD: &str = "NOT-ASKED ";

/// Before the time.
const SINCE: &str = "since ";

/// A registry whose circuit is open: pods that have a copy do not wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRegistry {
    /// Its name.
    pub registry: String,
    /// How it failed when the circuit opened. The last failure may be another; what is written to the node does not
    /// change with each of them.
    pub class: FailureClass,
    /// Since when the circuit is open, as far as this run of the agent knows.
    pub since: Timestamp,
}

impl OpenRegistry {
    /// The registries that a node's annotation names, in the order of their names. Not all may have room in it.
    pub fn read(lines: &str) -> impl Iterator<Item = Self> {
        let lines = lines.lines().filter_map(|line| line.strip_prefix(WORD));
        lines.filter_map(|line| {
            let mut words = line.split(GAP);
            let class = words.next()?.parse().ok()?;
            let registry = words.next()?.to_owned();
            let since = words.next()?.strip_prefix(SINCE)?.parse().ok()?;
            Some(Self {
                registry,
                class,
                since,
            })
        })
    }

    fn line(&self) -> String {
        let Self {
            registry,
            class,
            since,
        } = self;
        let (name, since) = (registry.clone(), minute(*since));
        let name = without_middle(name, NAME_MAX_BYTES / 2, NAME_MAX_BYTES);
        format!("{WORD}{class}{GAP}{name}{GAP}{SINCE}{since}")
    }
}

/// A line for each, the first after a line break.
pub(super) fn lines(open: &[OpenRegistry]) -> String {
    let mut text = String::new();
    for registry in open.iter().take(REGISTRIES_MAX) {
        text.push('\n');
        text.push_str(&registry.line());
    }
    if let Some(more @ 1..) = open.len().checked_sub(REGISTRIES_MAX) {
        let _ = write!(text, "\nnot asked either: {more} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::lines::LINE_MAX_BYTES;
    use super::*;
    use crate::node::NodeReport;

    fn open(registry: &str) -> OpenRegistry {
        OpenRegistry {
            registry: registry.to_owned(),
            class: FailureClass::ServerError,
            since: "2026-01-01T12:03:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let registries = ["reg.example:5000", "[::1]:5000"].map(open);
        let none = NodeReport::new(vec![], false);
        let report = none.clone().with_registries(&registries);
        assert_eq!(
            report.lines,
            "none\nNOT-ASKED server-error  reg.example:5000  since 2026-01-01T12:03Z\nNOT-ASKED server-error  [::1]:5000  \
             since 2026-01-01T12:03Z"
        );
        let read: Vec<_> = OpenRegistry::read(&report.lines).collect();
        assert_eq!(read, registries);
        assert!(!report.is_written_as(&none));
        assert!(none.is_written_as(&none.clone().with_registries(&[])));
    }

    #[test]
    fn other_lines_are_none_of_them() {
        for line in [
            "FALLBACK network  reg.example/app:1  sha256:0  confirmed 2026-01-01T12:03Z  1 pod",
            "NOT-ASKED network  reg.example",
            "NOT-ASKED later  reg.example  since 2026-01-01T12:03Z",
            "NOT-ASKED network  reg.example  since today",
            "NOT-ASKED ",
        ] {
            assert_eq!(OpenRegistry::read(line).count(), 0, "{line}");
        }
    }

    /// kubectl cuts a longer line, and with it the time.
    #[test]
    fn a_line_keeps_both_ends_of_a_long_name() {
        let long = |class| OpenRegistry {
            class,
            ..open(&format!("{}.registry.example:5000", "r".repeat(250)))
        };
        let all = FailureClass::ALL.map(|class| long(class).line());
        let longest = all.iter().map(String::len).max();
        assert_eq!(longest, Some(LINE_MAX_BYTES), "{all:?}");
        let text = lines(&FailureClass::ALL.map(long));
        let names: Vec<_> = OpenRegistry::read(&text)
            .map(|open| open.registry)
            .collect();
        assert_eq!(names.len(), FailureClass::ALL.len());
        assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
        let ends = names[0].starts_with("rrr") && names[0].ends_with("r.registry.example:5000");
        assert!(ends, "{names:?}");
        let fits = "r".repeat(NAME_MAX_BYTES);
        assert!(open(&fits).line().contains(&fits));
    }

    #[test]
    fn a_few_are_named() {
        let all: Vec<_> = (10..30).map(|n| open(&format!("r{n}.example"))).collect();
        let text = lines(&all);
        assert_eq!(text.lines().count(), REGISTRIES_MAX + 2, "{text}");
        assert!(text.ends_with("\nnot asked either: 10 more"), "{text}");
        assert_eq!(OpenRegistry::read(&text).count(), REGISTRIES_MAX);
    }
}
