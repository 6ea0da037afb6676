//! From a tree to a configuration, with everything that is wrong on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::tree::{self, At, Node, Value};
use super::{
    Ceilings, Config, FALLBACK_ON, FRESHNESS, InvalidConfig, MAX_AGE, PROBLEMS_MAX, Problem, STALL,
    Section, TRY,
};
use crate::image::ImagePrefix;
use crate::outcome::FailureClass;

/// What a file may have.
const PARTS: [&str; 3] = ["defaults", "registries", "ceilings"];

/// What a section may have.
const RULES: [&str; 5] = [TRY, STALL, FRESHNESS, MAX_AGE, FALLBACK_ON];

/// What has a ceiling: what a pod may set.
const CEILINGS: [&str; 3] = [TRY, MAX_AGE, FALLBACK_ON];

/// Longest wait that can be set: a longer one is a mistake.
const WAIT_MAX: Duration = Duration::from_hours(24);

/// Words that people write for a rule because it is called so elsewhere.
const OTHER_WORDS: [(&str, &str); 4] = [
    ("timeout", TRY),
    ("default", "defaults"),
    ("registry", "registries"),
    ("limits", "ceilings"),
];

pub(super) fn parse(text: &str) -> Result<Config, InvalidConfig> {
    let mut reader = Reader::default();
    let config = match tree::read(text) {
        Ok(root) => reader.config(&root),
        Err(problem) => {
            reader.problems.push(problem);
            Config::default()
        }
    };
    let mut problems = reader.problems;
    if problems.is_empty() {
        return Ok(config);
    }
    problems.sort_by_key(|problem| (problem.line, problem.column));
    let more = problems.len().saturating_sub(PROBLEMS_MAX);
    problems.truncate(PROBLEMS_MAX);
    Err(InvalidConfig { problems, more })
}

/// The name of an entry.
struct Key<'n> {
    at: At,
    text: &'n str,
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    problems: Vec<Problem>,
    /// With the lines that say so.
    ceilings: Ceilings,
    lines: BTreeMap<&'static str, u64>,
}

impl Reader {
    fn wrong(&mut self, at: At, path: &str, message: impl AsRef<str>) {
        let colon = if path.is_empty() { "" } else { ": " };
        let message = format!("{path}{colon}{}", message.as_ref());
        self.problems.push(at.problem(message));
    }

    fn config(&mut self, root: &Node) -> Config {
        if is_object(root) {
            let words = "this is a Kubernetes object; a configuration is what stands in its data";
            self.wrong(root.at, "", words);
            return Config::default();
        }
        let parts = self.mapping(root, "", &PARTS);
        // What the others are measured against.
        if let Some(node) = parts.get("ceilings") {
            self.ceilings(node);
        }
        let defaults = parts.get("defaults");
        let defaults = defaults.map(|node| self.section(node, "defaults"));
        let registries = parts.get("registries");
        let registries = registries.map(|node| self.registries(node));
        Config {
            defaults: defaults.unwrap_or_default(),
            registries: registries.unwrap_or_default(),
            ceilings: self.ceilings.clone(),
        }
    }

    fn registries(&mut self, node: &Node) -> BTreeMap<ImagePrefix, Section> {
        let mut sections = BTreeMap::new();
        let mut lines: BTreeMap<ImagePrefix, u64> = BTreeMap::new();
        for (key, node) in self.entries(node, "registries") {
            let path = format!("registries[{}]", key.text);
            let section = self.section(node, &path);
            match key.text.parse::<ImagePrefix>() {
                Ok(prefix) => {
                    if let Some(line) = lines.get(&prefix) {
                        self.wrong(key.at, &path, format!("it is in line {line} already"));
                    } else {
                        lines.insert(prefix.clone(), key.at.line());
                        sections.insert(prefix, section);
                    }
                }
                Err(error) => self.wrong(key.at, "registries", error.to_string()),
            }
        }
        sections
    }

    fn section(&mut self, node: &Node, path: &str) -> Section {
        let rules = self.mapping(node, path, &RULES);
        let mut wait = |key: &str, may_be_zero: bool| {
            let node = rules.get(key)?;
            self.duration(node, &format!("{path}.{key}"), may_be_zero, Some(WAIT_MAX))
        };
        let (try_for, stall) = (wait(TRY, false), wait(STALL, false));
        let freshness = wait(FRESHNESS, true);
        let max_age = rules
            .get(MAX_AGE)
            .and_then(|node| self.duration(node, &format!("{path}.{MAX_AGE}"), false, None));
        let fallback_on = rules
            .get(FALLBACK_ON)
            .and_then(|node| self.classes(node, &format!("{path}.{FALLBACK_ON}")));
        let ceilings = self.ceilings.clone();
        let durations = [
            (TRY, try_for, ceilings.try_for),
            (MAX_AGE, max_age, ceilings.max_age),
        ];
        for (key, value, ceiling) in durations {
            if let Some((value, ceiling)) = value.zip(ceiling)
                && value > ceiling
            {
                let ceiling = humantime::format_duration(ceiling);
                self.above_ceiling(&rules, path, key, &format!("it is more than {ceiling}"));
            }
        }
        if let Some((classes, ceiling)) = fallback_on.as_ref().zip(ceilings.fallback_on.as_ref()) {
            let beyond: Vec<&str> = classes.difference(ceiling).map(|c| c.as_str()).collect();
            if !beyond.is_empty() {
                let words = format!("{} not in the list", beyond.join(", "));
                self.above_ceiling(&rules, path, FALLBACK_ON, &words);
            }
        }
        Section {
            try_for,
            stall,
            freshness,
            max_age,
            fallback_on,
        }
    }

    /// The administrator contradicts himself: nobody can know what is meant.
    fn above_ceiling(
        &mut self,
        rules: &BTreeMap<&'static str, &Node>,
        path: &str,
        key: &'static str,
        words: &str,
    ) {
        let line = self.lines.get(key).copied().unwrap_or_default();
        if let Some(node) = rules.get(key) {
            let message = format!("{words}, the ceiling in line {line}");
            self.wrong(node.at, &format!("{path}.{key}"), message);
        }
    }

    fn ceilings(&mut self, node: &Node) {
        let rules = self.mapping(node, "ceilings", &CEILINGS);
        self.lines = rules
            .iter()
            .map(|(key, node)| (*key, node.at.line()))
            .collect();
        let mut ceiling = |key: &str, most| {
            let node = rules.get(key)?;
            self.duration(node, &format!("ceilings.{key}"), false, most)
        };
        let (try_for, max_age) = (ceiling(TRY, Some(WAIT_MAX)), ceiling(MAX_AGE, None));
        let fallback_on = rules
            .get(FALLBACK_ON)
            .and_then(|node| self.classes(node, &format!("ceilings.{FALLBACK_ON}")));
        self.ceilings = Ceilings {
            try_for,
            max_age,
            fallback_on,
        };
    }

    /// The entries of a mapping; nothing at all is an empty one.
    fn entries<'n>(&mut self, node: &'n Node, path: &str) -> Vec<(Key<'n>, &'n Node)> {
        let mut entries = Vec::new();
        match &node.value {
            Value::Nothing => {}
            Value::Map(all) => {
                for (key, node) in all {
                    match &key.value {
                        Value::Text(text) => entries.push((Key { at: key.at, text }, node)),
                        other => {
                            let found = other.describe();
                            self.wrong(key.at, path, format!("a name belongs here, not {found}"));
                        }
                    }
                }
            }
            other => {
                let found = other.describe();
                self.wrong(
                    node.at,
                    path,
                    format!("a mapping belongs here, not {found}"),
                );
            }
        }
        entries
    }

    /// Those whose keys are known. The others are named, as is a key that is there twice.
    fn mapping<'n>(
        &mut self,
        node: &'n Node,
        path: &str,
        known: &[&'static str],
    ) -> BTreeMap<&'static str, &'n Node> {
        let mut found: BTreeMap<&'static str, &Node> = BTreeMap::new();
        for (key, node) in self.entries(node, path) {
            let dot = if path.is_empty() { "" } else { "." };
            let own = format!("{path}{dot}{}", key.text);
            match known.iter().find(|known| **known == key.text) {
                None => {
                    let words = match key.text {
                        STALL | FRESHNESS if path == "ceilings" => {
                            "it belongs under defaults or registries: no pod can set it".to_owned()
                        }
                        rule if path.is_empty() && RULES.contains(&rule) => {
                            "it belongs under defaults or registries".to_owned()
                        }
                        other => format!("unknown key; {}", hint(other, known)),
                    };
                    self.wrong(key.at, &own, words);
                }
                Some(known) => match found.get(known) {
                    Some(first) => {
                        let words = format!("it is in line {} already", first.at.line());
                        self.wrong(key.at, &own, words);
                    }
                    None => {
                        found.insert(known, node);
                    }
                },
            }
        }
        found
    }

    fn duration(
        &mut self,
        node: &Node,
        path: &str,
        may_be_zero: bool,
        most: Option<Duration>,
    ) -> Option<Duration> {
        let parsed = match &node.value {
            Value::Text(text) => humantime::parse_duration(text.trim())
                .map_err(|error| format!("invalid duration {text:?} ({error})")),
            other => Err(format!("invalid duration: {}", other.describe())),
        };
        let words = match parsed {
            Ok(Duration::ZERO) if !may_be_zero => "it must be more than 0".to_owned(),
            Ok(value) if most.is_some_and(|most| value > most) => {
                let most = humantime::format_duration(most.unwrap_or_default());
                format!("the maximum is {most}")
            }
            Ok(value) => return Some(value),
            Err(words) => format!("{words}; write it like 5s or 1h30m"),
        };
        self.wrong(node.at, path, words);
        None
    }

    fn classes(&mut self, node: &Node, path: &str) -> Option<BTreeSet<FailureClass>> {
        let Value::List(items) = &node.value else {
            let found = node.value.describe();
            let words =
                format!("a list belongs here, not {found}; write it like [network, timeout]");
            self.wrong(node.at, path, words);
            return None;
        };
        if items.is_empty() {
            let words =
                "no failure class given; use imagePullPolicy: Always where no copy may be used";
            self.wrong(node.at, path, words);
            return None;
        }
        let before = self.problems.len();
        let classes = items.iter().filter_map(|item| {
            let Value::Text(word) = &item.value else {
                let found = item.value.describe();
                self.wrong(
                    item.at,
                    path,
                    format!("a failure class belongs here, not {found}"),
                );
                return None;
            };
            let class = word.parse();
            if class.is_err() {
                let known = FailureClass::ALL.map(FailureClass::as_str);
                let words = format!("unknown failure class {word:?}; {}", hint(word, &known));
                self.wrong(item.at, path, words);
            }
            class.ok()
        });
        let classes = classes.collect();
        (self.problems.len() == before).then_some(classes)
    }
}

/// Whether it is a manifest, such as that of the `ConfigMap` itself.
fn is_object(root: &Node) -> bool {
    let Value::Map(entries) = &root.value else {
        return false;
    };
    let is_version = |key: &Node| matches!(&key.value, Value::Text(text) if text == "apiVersion");
    entries.iter().any(|(key, _)| is_version(key))
}

/// What may be meant, or what there is.
fn hint(word: &str, known: &[&str]) -> String {
    let called = OTHER_WORDS.iter().find(|(other, _)| *other == word);
    let called = called
        .map(|(_, meant)| *meant)
        .filter(|meant| known.contains(meant));
    let near = known
        .iter()
        .map(|known| (distance(word, known), *known))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, known)| *distance <= known.len().min(word.len()).div_ceil(3).max(1));
    match called.or(near.map(|(_, known)| known)) {
        Some(meant) => format!("did you mean {meant:?}?"),
        None => format!("there are {}", known.join(", ")),
    }
}

/// How many letters have to be inserted, removed or replaced to get from one word to the other. Case and how words
/// are joined do not count: `maxAge` is `max-age`.
fn distance(one: &str, other: &str) -> usize {
    let plain = |word: &str| -> Vec<char> {
        let letters = word.chars().filter(|c| !matches!(c, '-' | '_'));
        letters
            .take(WORD_MAX)
            .flat_map(char::to_lowercase)
            .collect()
    };
    let (one, other) = (plain(one), plain(other));
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

/// Longer words are like none of ours.
const WORD_MAX: usize = 64;
