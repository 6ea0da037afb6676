//! From a tree to a configuration, with everything that is wrong on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use super::meant::meant;
use super::tree::{self, At, Node, Value};
use super::{
    Ceilings, Config, FALLBACK_ON, FRESHNESS, InvalidConfig, KEEP, KEPT, MAX_AGE, PROBLEMS_MAX,
    Problem, STALL, Section, TRY,
};
use crate::duration::Range;
use crate::image::{ImagePrefix, InvalidImagePrefix};
use crate::namespace::{InvalidNamespace, NamespacePattern};
use crate::outcome::FailureClass;
use crate::time::written;

/// What a file may have.
const PARTS: [&str; 4] = ["defaults", "registries", "namespaces", "ceilings"];

/// What is a container's: what a namespace and a pod may set, and what has a ceiling.
const CONTAINERS: [&str; 3] = [TRY, MAX_AGE, FALLBACK_ON];

/// What is decided at admission, where nobody can read this file.
const HOLD: &str = "hold";

/// Longest wait that can be set: a longer one is a mistake.
const WAIT_MAX: Duration = Duration::from_hours(24);

/// What a rule's duration may be.
#[derive(Clone, Copy)]
struct RuleRange {
    range: Range,
    /// What to do instead of writing a word of [`OFF`].
    off: &'static str,
}

const WAIT: RuleRange = RuleRange {
    range: Range::wait(WAIT_MAX),
    off: "it cannot be switched off; the maximum is 24h",
};

const ASKED: RuleRange = RuleRange {
    range: WAIT.range.or_zero(),
    off: "write 0s to ask the registry for each pod",
};

const AGE: RuleRange = RuleRange {
    range: Range::AGE,
    off: "leave this line out if copies may have any age",
};

const KEEPING: RuleRange = RuleRange {
    range: KEPT,
    off: "write off to keep no copies",
};

/// What people write to switch a rule off.
const OFF: [&str; 6] = ["off", "no", "false", "never", "none", "disabled"];

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

/// What is no name of what a part of the file is about.
struct NotOne {
    words: String,
    /// What may be meant.
    suggestion: Option<String>,
}

impl From<InvalidImagePrefix> for NotOne {
    fn from(error: InvalidImagePrefix) -> Self {
        Self {
            words: error.to_string(),
            suggestion: error.suggestion,
        }
    }
}

impl From<InvalidNamespace> for NotOne {
    fn from(error: InvalidNamespace) -> Self {
        Self {
            words: error.to_string(),
            suggestion: None,
        }
    }
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
        self.problems
            .push(at.problem(path, message.as_ref().into()));
    }

    /// The same for a word that is not known, but may be meant to be one that is.
    fn unknown(&mut self, at: At, path: &str, words: &str, (word, known): (&str, &[&'static str])) {
        let suggestion = meant(word, known);
        let hint = match suggestion {
            Some(meant) => format!("did you mean {meant:?}?"),
            None => format!("there are {}", known.join(", ")),
        };
        let problem = at.problem(path, format!("{words}; {hint}"));
        self.problems.push(Problem {
            suggestion: suggestion.map(str::to_owned),
            ..problem
        });
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
        let defaults = defaults.map(|node| self.section(node, "defaults", &Section::KEYS));
        let registries = parts.get("registries");
        let registries =
            registries.map(|node| self.sections::<ImagePrefix>(node, "registries", &Section::KEYS));
        let namespaces = parts.get("namespaces");
        let namespaces = namespaces
            .map(|node| self.sections::<NamespacePattern>(node, "namespaces", &CONTAINERS));
        Config {
            defaults: defaults.unwrap_or_default(),
            registries: registries.unwrap_or_default(),
            namespaces: namespaces.unwrap_or_default(),
            ceilings: self.ceilings.clone(),
        }
    }

    /// A section for each of many, in the part of the file that is about them.
    fn sections<K>(
        &mut self,
        node: &Node,
        part: &str,
        known: &[&'static str],
    ) -> BTreeMap<K, Section>
    where
        K: FromStr<Err: Into<NotOne>> + Clone + Ord,
    {
        let mut sections = BTreeMap::new();
        let mut lines: BTreeMap<K, u64> = BTreeMap::new();
        for (key, node) in self.entries(node, part) {
            let path = format!("{part}[{}]", key.text);
            let section = self.section(node, &path, known);
            match key.text.parse::<K>().map_err(Into::into) {
                Ok(name) => {
                    if let Some(line) = lines.get(&name) {
                        self.wrong(key.at, &path, format!("it is in line {line} already"));
                    } else {
                        lines.insert(name.clone(), key.at.line());
                        sections.insert(name, section);
                    }
                }
                Err(NotOne { words, suggestion }) => {
                    let hint = suggestion
                        .iter()
                        .map(|meant| format!("; did you mean {meant:?}?"));
                    let words = hint.fold(words, |words, hint| words + &hint);
                    let problem = key.at.problem(part, words);
                    self.problems.push(Problem {
                        suggestion,
                        ..problem
                    });
                }
            }
        }
        sections
    }

    fn section(&mut self, node: &Node, path: &str, known: &[&'static str]) -> Section {
        let rules = self.mapping(node, path, known);
        let mut duration = |key: &str, rule: RuleRange| {
            let node = rules.get(key)?;
            self.duration(node, &format!("{path}.{key}"), rule)
        };
        let (try_for, stall) = (duration(TRY, WAIT), duration(STALL, WAIT));
        let (freshness, max_age) = (duration(FRESHNESS, ASKED), duration(MAX_AGE, AGE));
        let fallback_on = rules
            .get(FALLBACK_ON)
            .and_then(|node| self.classes(node, &format!("{path}.{FALLBACK_ON}")));
        let keep = rules
            .get(KEEP)
            .and_then(|node| self.keep(node, &format!("{path}.{KEEP}")));
        let section = Section {
            try_for,
            stall,
            freshness,
            max_age,
            fallback_on,
            keep,
        };
        self.measure(&section, &rules, path);
        section
    }

    /// Whether a section is within the ceilings.
    fn measure(&mut self, section: &Section, rules: &BTreeMap<&'static str, &Node>, path: &str) {
        let ceilings = self.ceilings.clone();
        let durations = [
            (TRY, section.try_for, ceilings.try_for),
            (MAX_AGE, section.max_age, ceilings.max_age),
        ];
        for (key, value, ceiling) in durations {
            if let Some((value, ceiling)) = value.zip(ceiling)
                && value > ceiling
            {
                let ceiling = written(ceiling);
                self.above_ceiling(rules, path, key, &format!("it is more than {ceiling}"));
            }
        }
        let classes = section.fallback_on.as_ref();
        if let Some((classes, ceiling)) = classes.zip(ceilings.fallback_on.as_ref()) {
            let beyond: Vec<&str> = classes.difference(ceiling).map(|c| c.as_str()).collect();
            if !beyond.is_empty() {
                let words = format!("{} not in the list", beyond.join(", "));
                self.above_ceiling(rules, path, FALLBACK_ON, &words);
            }
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
        let rules = self.mapping(node, "ceilings", &CONTAINERS);
        self.lines = rules
            .iter()
            .map(|(key, node)| (*key, node.at.line()))
            .collect();
        let mut ceiling = |key: &str, rule: RuleRange| {
            let node = rules.get(key)?;
            let off = "leave this line out if there is no ceiling";
            self.duration(node, &format!("ceilings.{key}"), RuleRange { off, ..rule })
        };
        let (try_for, max_age) = (ceiling(TRY, WAIT), ceiling(MAX_AGE, AGE));
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
                None => match misplaced(key.text, path) {
                    Some(words) => self.wrong(key.at, &own, words),
                    None => self.unknown(key.at, &own, "unknown key", (key.text, known)),
                },
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

    fn duration(&mut self, node: &Node, path: &str, rule: RuleRange) -> Option<Duration> {
        let parsed = match &node.value {
            // 0 is the only number that needs no unit, as for the flags.
            Value::Text(text) | Value::Other(text) => parse_duration(text.trim(), rule),
            other => {
                let [one, two] = rule.range.examples;
                let found = other.describe();
                Err(format!(
                    "a duration such as {one} or {two} belongs here, not {found}"
                ))
            }
        };
        match parsed {
            Ok(duration) => Some(duration),
            Err(words) => {
                self.wrong(node.at, path, words);
                None
            }
        }
    }

    /// How long copies are kept.
    fn keep(&mut self, node: &Node, path: &str) -> Option<Duration> {
        match &node.value {
            Value::Text(text) if text == "off" => Some(Duration::ZERO),
            // Some writers of YAML take the word for a truth value.
            Value::Other(value) if value == "false" => Some(Duration::ZERO),
            _ => self.duration(node, path, KEEPING),
        }
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
                let words = format!("unknown failure class {word:?}");
                self.unknown(item.at, path, &words, (word, &known));
            }
            class.ok()
        });
        let classes = classes.collect();
        (self.problems.len() == before).then_some(classes)
    }
}

/// Reads a duration, or says what to write in its place.
fn parse_duration(text: &str, rule: RuleRange) -> Result<Duration, String> {
    rule.range.parse(text).map_err(|why| {
        if OFF.contains(&text.to_ascii_lowercase().as_str()) {
            // Not in the file's own word: YAML may have made `off` and `no` into `false`.
            format!("invalid duration; {}", rule.off)
        } else {
            format!("invalid duration {text:?}: {why}")
        }
    })
}

/// Whether it is a manifest, such as that of the `ConfigMap` itself.
fn is_object(root: &Node) -> bool {
    let Value::Map(entries) = &root.value else {
        return false;
    };
    let is_version = |key: &Node| matches!(&key.value, Value::Text(text) if text == "apiVersion");
    entries.iter().any(|(key, _)| is_version(key))
}

/// Why a key has no effect in this part of the file, if it has one in another, or elsewhere.
fn misplaced(key: &str, path: &str) -> Option<String> {
    let is_namespace = path.starts_with("namespaces[");
    let (is_pull, is_ours) = (
        [STALL, FRESHNESS].contains(&key),
        Section::KEYS.contains(&key),
    );
    let words = match key {
        HOLD => {
            "pods are held by admission, which cannot read this file; label the namespace with trylatest.dev/hold"
        }
        _ if is_pull && path == "ceilings" => {
            "it belongs under defaults or registries: no pod can set it"
        }
        KEEP if path == "ceilings" => "it belongs under defaults or registries: no pod can set it",
        _ if is_pull && is_namespace => {
            "it belongs under defaults or registries: pods of several namespaces share a pull"
        }
        KEEP if is_namespace => {
            "it belongs under defaults or registries: pods of several namespaces share a copy"
        }
        _ if is_ours && path.is_empty() => "it belongs under defaults, registries or namespaces",
        _ => return None,
    };
    Some(words.to_owned())
}
