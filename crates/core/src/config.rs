//! What the administrator configures in a file: rules for every image, for those of a registry and for the pods of a
//! namespace, and ceilings that no pod exceeds. Here as data, and how to read it from text; [`crate::rules`] says what
//! follows for a pod.
//!
//! ```yaml
//! defaults: {try: 30s, stall: 5s, freshness: 0s, max-age: 720h, fallback-on: [network, timeout]}
//! registries:
//!   registry.example.com: {stall: 20s}
//!   registry.example.com/team: {try: 60s, freshness: 1m, keep: 30d}
//! namespaces:
//!   team-*: {try: 10s, max-age: 24h}
//! ceilings: {try: 2m, max-age: 720h}
//! ```
//!
//! A file is good or it is not: [`Config::parse`] names every problem that it finds, and a file with one says nothing.

mod meant;
mod parse;
mod resolve;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

pub(crate) use self::meant::meant;
pub use self::resolve::{Place, Resolved};
use crate::duration::Range;
use crate::image::ImagePrefix;
use crate::namespace::NamespacePattern;
use crate::outcome::FailureClass;
use crate::time::written;

/// Longest text that is read: as long as a ConfigMap may be.
pub const TEXT_MAX_BYTES: usize = 1 << 20;

/// Most problems that are named.
const PROBLEMS_MAX: usize = 50;

/// A configuration. An empty one leaves everything to the agent's flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What applies to every image, before the flags.
    pub defaults: Section,
    /// What applies to the images below these, before that.
    pub registries: BTreeMap<ImagePrefix, Section>,
    /// What applies to the pods of these namespaces, before both. Only what is a container's: a pull and a kept copy
    /// belong to pods of several namespaces.
    pub namespaces: BTreeMap<NamespacePattern, Section>,
    /// What no pod exceeds.
    pub ceilings: Ceilings,
}

/// Rules for some images or pods. What is missing is left to whoever comes next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// How long a pod waits before it takes the cached copy.
    pub try_for: Option<Duration>,
    /// How long nothing may move before a pull has stalled.
    pub stall: Option<Duration>,
    /// A registry's answer that is no older serves later pods.
    pub freshness: Option<Duration>,
    /// A cached copy whose tag was last confirmed longer ago is refused.
    pub max_age: Option<Duration>,
    /// The failure classes that allow the cached copy.
    pub fallback_on: Option<BTreeSet<FailureClass>>,
    /// How long a copy is kept that no pod uses; zero if copies are not kept.
    pub keep: Option<Duration>,
}

/// The most that a pod may ask for, and the flags give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ceilings {
    /// No pod waits longer for a try.
    pub try_for: Option<Duration>,
    /// No pod starts from a copy that is older, whether it says so or not.
    pub max_age: Option<Duration>,
    /// No pod starts from the copy after a failure of another class.
    pub fallback_on: Option<BTreeSet<FailureClass>>,
}

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1; 0 if the problem has no place.
    pub line: u64,
    /// The column in characters, from 1.
    pub column: u64,
    /// What it is about, such as `defaults.try`; empty if it is the file.
    pub key: String,
    /// What is wrong, and what to write instead.
    pub message: String,
    /// What may be meant.
    pub suggestion: Option<String>,
}

impl Problem {
    /// What is wrong with what, without its place.
    pub fn words(&self) -> String {
        let Self { key, message, .. } = self;
        let colon = if key.is_empty() { "" } else { ": " };
        format!("{key}{colon}{message}")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.words()),
            line => write!(f, "line {line}, column {}: {}", self.column, self.words()),
        }
    }
}

/// A file that is not valid: all that is wrong with it, in the order of its lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.lines())]
pub struct InvalidConfig {
    /// At least one.
    pub problems: Vec<Problem>,
    /// So many more were found.
    pub more: usize,
}

impl InvalidConfig {
    /// One that has no place in the file.
    pub fn of_file(message: impl Into<String>) -> Self {
        let problem = Problem {
            line: 0,
            column: 0,
            key: String::new(),
            message: message.into(),
            suggestion: None,
        };
        Self {
            problems: vec![problem],
            more: 0,
        }
    }

    fn lines(&self) -> String {
        let mut lines: Vec<String> = self.problems.iter().map(Problem::to_string).collect();
        if self.more > 0 {
            lines.push(format!("and {} more", self.more));
        }
        lines.join("\n")
    }

    /// The first ones on one line of at most this many bytes, and how many more there are. The API server refuses an
    /// Event whose note is longer than it may be.
    pub fn summary(&self, max_bytes: usize) -> String {
        let all = self.problems.len() + self.more;
        let more = |told: usize| match all - told {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let mut words = String::new();
        let mut told = 0;
        for problem in &self.problems {
            let separator = if told == 0 { "" } else { "; " };
            let line = format!("{separator}{problem}");
            let room = max_bytes.saturating_sub(words.len() + more(told + 1).len());
            if told > 0 && line.len() > room {
                break;
            }
            words.push_str(&line[..line.floor_char_boundary(room)]);
            told += 1;
        }
        words + &more(told)
    }
}

impl Config {
    /// Reads a file. One without content is valid and says nothing.
    ///
    /// # Errors
    /// Everything that is wrong with it. A mistake in the YAML itself hides what follows it.
    pub fn parse(text: &str) -> Result<Self, InvalidConfig> {
        if text.len() > TEXT_MAX_BYTES {
            return Err(InvalidConfig::of_file(format!(
                "the file has more than {TEXT_MAX_BYTES} bytes"
            )));
        }
        parse::parse(text)
    }

    /// Everything that it says, each by its place in the file: `defaults.try` and `30s`.
    pub fn entries(&self) -> BTreeMap<String, String> {
        let mut entries = BTreeMap::new();
        let mut add = |place: &str, section: Vec<(&str, String)>| {
            for (key, value) in section {
                entries.insert(format!("{place}.{key}"), value);
            }
        };
        add("defaults", self.defaults.entries());
        for (prefix, section) in &self.registries {
            add(&Place::Registry(prefix).to_string(), section.entries());
        }
        for (pattern, section) in &self.namespaces {
            add(&Place::Namespace(pattern).to_string(), section.entries());
        }
        add("ceilings", self.ceilings.as_section().entries());
        entries
    }

    /// What is different in `after`, one line each.
    pub fn changes(&self, after: &Self) -> Vec<String> {
        let (before, after) = (self.entries(), after.entries());
        let places: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let changes =
            places
                .into_iter()
                .filter_map(|place| match (before.get(place), after.get(place)) {
                    (Some(was), Some(is)) if was == is => None,
                    (Some(was), Some(is)) => Some(format!("{place}: {was} becomes {is}")),
                    (Some(was), None) => Some(format!("{place}: {was} is removed")),
                    (None, is) => Some(format!("{place}: {}", is.map_or("", String::as_str))),
                });
        changes.collect()
    }
}

impl Ceilings {
    fn as_section(&self) -> Section {
        let Self {
            try_for,
            max_age,
            fallback_on,
        } = self.clone();
        Section {
            try_for,
            max_age,
            fallback_on,
            ..Section::default()
        }
    }
}

impl Section {
    /// What a section may have.
    pub(crate) const KEYS: [&str; 6] = [TRY, STALL, FRESHNESS, MAX_AGE, FALLBACK_ON, KEEP];

    /// What it says about one rule.
    fn entry(&self, key: &str) -> Option<String> {
        let mut own = self.entries().into_iter();
        own.find_map(|(other, value)| (other == key).then_some(value))
    }

    fn entries(&self) -> Vec<(&'static str, String)> {
        let Self {
            try_for,
            stall,
            freshness,
            max_age,
            fallback_on,
            keep,
        } = self;
        let durations = [
            (TRY, try_for),
            (STALL, stall),
            (FRESHNESS, freshness),
            (MAX_AGE, max_age),
            (KEEP, keep),
        ];
        let durations = durations.into_iter();
        let durations = durations.filter_map(|(key, value)| Some((key, written((*value)?))));
        let classes = fallback_on.iter().map(|classes| {
            let classes: Vec<&str> = classes.iter().map(|class| class.as_str()).collect();
            (FALLBACK_ON, classes.join(", "))
        });
        durations.chain(classes).collect()
    }
}

pub(crate) const TRY: &str = "try";
pub(crate) const STALL: &str = "stall";
pub(crate) const FRESHNESS: &str = "freshness";
pub(crate) const MAX_AGE: &str = "max-age";
pub(crate) const FALLBACK_ON: &str = "fallback-on";
const KEEP: &str = "keep";

/// How long copies can be kept; longer than the longest is a mistake.
pub const KEPT: Range = Range {
    most: Some(Duration::from_hours(366 * 24)),
    examples: ["14d", "12h"],
    ..Range::AGE.or_zero()
};

#[cfg(test)]
mod tests;
