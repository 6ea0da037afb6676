//! What a step of the story should show, what it did, and whether that is the same.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use serde::Serialize;
use serde_json::Value;

use crate::LIMIT;

/// What a step should show.
#[derive(Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) outcome: &'static str,
    pub(crate) class: Option<&'static str>,
    pub(crate) version: &'static str,
    /// What the gate says.
    pub(crate) gate: &'static str,
}

pub(crate) const fn as_expected(outcome: &'static str, version: &'static str) -> Expected {
    Expected {
        outcome,
        class: None,
        version,
        gate: outcome,
    }
}

/// The kubelet pulls, and this comes of it.
pub(crate) const fn handed_over(outcome: &'static str, version: &'static str) -> Expected {
    Expected {
        gate: "handed-over",
        ..as_expected(outcome, version)
    }
}

pub(crate) const fn falls_back(class: &'static str, version: &'static str) -> Expected {
    Expected {
        outcome: "fallback",
        class: Some(class),
        version,
        gate: "fallback",
    }
}

/// Pods of a step, and how long they took to run.
pub(crate) struct Ran {
    /// Ours.
    pub(crate) pod: String,
    pub(crate) ours: Option<Duration>,
    pub(crate) always: Option<Duration>,
}

/// What a user sees of our pod.
pub(crate) struct Seen {
    pub(crate) gate_log: String,
    pub(crate) app_log: String,
    pub(crate) event: Option<String>,
    pub(crate) node: Option<Node>,
    pub(crate) release: Value,
}

/// One step, as it is written to the JSON file.
#[derive(Serialize)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) expected: &'static str,
    pub(crate) outcome: String,
    pub(crate) class: Option<String>,
    pub(crate) digest: Option<String>,
    pub(crate) version: String,
    pub(crate) ours_ms: Option<u128>,
    pub(crate) always_ms: Option<u128>,
    pub(crate) ok: bool,
    pub(crate) problem: Option<String>,
}

impl Step {
    /// What a step was, and whether it was what it should be.
    pub(crate) fn new(name: &'static str, expected: Expected, ran: &Ran, seen: &Seen) -> Self {
        let problems = problems(expected, ran, seen);
        let word = |key: &str| seen.release[key].as_str().map(str::to_owned);
        Self {
            name,
            expected: expected.outcome,
            outcome: word("outcome").unwrap_or_default(),
            class: word("class"),
            digest: word("digest"),
            version: seen.app_log.trim().to_owned(),
            ours_ms: ran.ours.map(|took| took.as_millis()),
            always_ms: ran.always.map(|took| took.as_millis()),
            ok: problems.is_empty(),
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
        }
    }
}

/// What is not as it should be.
fn problems(expected: Expected, ran: &Ran, seen: &Seen) -> Vec<String> {
    let Expected {
        outcome,
        class,
        version,
        gate,
    } = expected;
    let release = &seen.release;
    let told = class.map_or(String::new(), |class| format!("{class}: "));
    let logged = |line: &str| line.starts_with(gate) && line.contains(&told);
    let checks = [
        (
            ran.ours.is_some(),
            format!("the pod does not run within {LIMIT:?}"),
        ),
        (
            ran.always.is_some() == class.is_none(),
            format!("Always runs: {}", ran.always.is_some()),
        ),
        (
            release["outcome"] == outcome && release["class"].as_str() == class,
            format!("the release says {release}"),
        ),
        (
            seen.gate_log.lines().any(logged),
            format!("the gate says {:?}", seen.gate_log),
        ),
        (
            seen.app_log.trim() == version,
            format!("the app says {:?}, not {version}", seen.app_log),
        ),
        (seen.event.is_some(), "there is no such Event".to_owned()),
        (seen.node.is_some(), "the node does not say so".to_owned()),
    ];
    let wrong = checks.into_iter().filter(|(right, _)| !right);
    wrong.map(|(_, what)| what).collect()
}

/// Whether the node says what is expected, of the copy with this digest: in its annotation, and in its condition.
pub(crate) fn says(node: &Node, expected: Expected, digest: &str) -> bool {
    let annotations = node.metadata.annotations.iter().flatten();
    let mut images = annotations.filter(|(key, _)| *key == "trylatest.dev/images");
    let images = images.next().map_or("", |(_, lines)| lines.as_str());
    // What affects a pod is in capitals.
    let words = [Some(expected.outcome), expected.class]
        .into_iter()
        .flatten();
    let words = words.collect::<Vec<_>>().join(" ").to_lowercase();
    let told = images.lines().any(|line| {
        let mut parts = line.split("  ");
        let first = parts.next();
        // The line shows the digest's beginning, after the image's name.
        let runs = parts.nth(1).filter(|copy| copy.starts_with("sha256:"));
        first.is_some_and(|first| first.to_lowercase() == words)
            && runs.is_some_and(|copy| digest.starts_with(copy))
    });
    let conditions = node
        .status
        .iter()
        .flat_map(|status| &status.conditions)
        .flatten();
    let mut ours = conditions.filter(|condition| condition.type_ == "TryLatestFallback");
    let condition = ours.next().is_some_and(|condition| match expected.class {
        None => condition.status == "False",
        Some(class) => {
            let message = condition.message.as_deref().unwrap_or_default();
            condition.status == "True" && message.ends_with(&format!(": {class}"))
        }
    });
    told && condition
}
