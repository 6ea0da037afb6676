//! What the administrator configures in a file: rules for every image and for those of a registry, and ceilings that no
//! pod exceeds. Here as data, and how to read it from text; [`crate::rules`] says what follows for a pod.
//!
//! ```yaml
//! defaults: {try: 30s, stall: 5s, freshness: 0s, max-age: 720h, fallback-on: [network, timeout]}
//! registries:
//!   registry.example.com: {stall: 20s}
//!   registry.example.com/team: {try: 60s, freshness: 1m}
//! ceilings: {try: 2m, max-age: 720h}
//! ```
//!
//! A file is good or it is not: [`Config::parse`] names every problem that it finds, and a file with one says nothing.

mod parse;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::image::{ImageName, ImagePrefix};
use crate::outcome::FailureClass;

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
    /// What no pod exceeds.
    pub ceilings: Ceilings,
}

/// Rules for some images. What is missing is left to whoever comes next.
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
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            column,
            message,
        } = self;
        match line {
            0 => f.write_str(message),
            _ => write!(f, "line {line}, column {column}: {message}"),
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
            message: message.into(),
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

    /// The first ones on one line of about this many bytes, and how many more there are.
    pub fn summary(&self, max_bytes: usize) -> String {
        let all = self.problems.len() + self.more;
        let mut words = String::new();
        let mut told = 0;
        for problem in &self.problems {
            let line = problem.to_string();
            if told > 0 && words.len() + line.len() > max_bytes {
                break;
            }
            words.push_str(if told == 0 { "" } else { "; " });
            words.push_str(&line);
            told += 1;
        }
        words.truncate(words.floor_char_boundary(max_bytes));
        match all - told {
            0 => words,
            more => format!("{words}; and {more} more"),
        }
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

    /// What the most specific section that says this says: the longest prefix of the image's repository first, then
    /// the shorter ones, then the defaults.
    pub fn find<T>(
        &self,
        image: Option<&ImageName>,
        rule: impl Fn(&Section) -> Option<T>,
    ) -> Option<T> {
        let mut place = image.map(ImageName::repository);
        while let Some(prefix) = place {
            let section = self.registries.get(prefix);
            if let Some(found) = section.and_then(&rule) {
                return Some(found);
            }
            place = prefix.rsplit_once('/').map(|(above, _)| above);
        }
        rule(&self.defaults)
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
            add(&format!("registries[{prefix}]"), section.entries());
        }
        let Ceilings {
            try_for,
            max_age,
            fallback_on,
        } = self.ceilings.clone();
        let ceilings = Section {
            try_for,
            max_age,
            fallback_on,
            ..Section::default()
        };
        add("ceilings", ceilings.entries());
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

impl Section {
    fn entries(&self) -> Vec<(&'static str, String)> {
        let Self {
            try_for,
            stall,
            freshness,
            max_age,
            fallback_on,
        } = self;
        let durations = [
            (TRY, try_for),
            (STALL, stall),
            (FRESHNESS, freshness),
            (MAX_AGE, max_age),
        ];
        let shown = |value: Duration| humantime::format_duration(value).to_string();
        let durations = durations.into_iter();
        let durations = durations.filter_map(|(key, value)| Some((key, shown((*value)?))));
        let classes = fallback_on.iter().map(|classes| {
            let classes: Vec<&str> = classes.iter().map(|class| class.as_str()).collect();
            (FALLBACK_ON, classes.join(", "))
        });
        durations.chain(classes).collect()
    }
}

const TRY: &str = "try";
const STALL: &str = "stall";
const FRESHNESS: &str = "freshness";
const MAX_AGE: &str = "max-age";
const FALLBACK_ON: &str = "fallback-on";

#[cfg(test)]
mod tests;
