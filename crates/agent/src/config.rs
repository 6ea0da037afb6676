//! `trylatest config check`: what a configuration file says, or everything that is wrong with it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;
use trylatest_core::config::{Config, InvalidConfig, Resolved, TEXT_MAX_BYTES};
use trylatest_core::namespace::NamespaceName;

use crate::args::{CheckArgs, CheckOutput, ConfigArgs, ConfigCommand};

/// Runs the command.
///
/// # Errors
/// The file cannot be read or is not valid.
pub fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    let ConfigArgs { command } = args;
    match command {
        ConfigCommand::Check(args) => check(args),
    }
}

fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let CheckArgs { file, output, .. } = args;
    let (text, name) = if file == Path::new("-") {
        (read(io::stdin()), "stdin".to_owned())
    } else {
        let text = File::open(file).and_then(read);
        (text, file.display().to_string())
    };
    let text = text.with_context(|| format!("reading {name}"))?;
    let parsed = Config::parse(&text);
    let printed = match (output, &parsed) {
        (CheckOutput::Json, parsed) => Checked::new(&name, parsed, args).json()?,
        (CheckOutput::Text, Ok(config)) => summary(&name, config) + &for_whom(config, args),
        (CheckOutput::Text, Err(invalid)) => report(&name, invalid),
    };
    crate::printed(printed.as_bytes())?;
    match parsed {
        Ok(_) => Ok(()),
        Err(invalid) => match invalid.problems.len() + invalid.more {
            1 => bail!("{name}: 1 problem; an agent refuses this file"),
            count => bail!("{name}: {count} problems; an agent refuses this file"),
        },
    }
}

/// The answer for programs.
#[derive(Serialize)]
struct Checked<'a> {
    file: &'a str,
    valid: bool,
    /// What is wrong, in the order of the lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<Wrong<'a>>,
    /// How many more problems were found.
    #[serde(skip_serializing_if = "is_zero")]
    more: usize,
    /// What the file says, by the place in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<BTreeMap<String, String>>,
    /// What applies to the image and the namespace that were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    resolved: Option<BTreeMap<&'static str, Applies>>,
}

#[derive(Serialize)]
struct Wrong<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<u64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    key: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    suggestion: Option<&'a str>,
}

#[derive(Serialize)]
struct Applies {
    /// None if that is left to the agent: to its flag, or to what applies without one.
    value: Option<String>,
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ceiling: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl<'a> Checked<'a> {
    fn new(file: &'a str, parsed: &'a Result<Config, InvalidConfig>, args: &CheckArgs) -> Self {
        let invalid = parsed.as_ref().err();
        let problems = invalid.map(|invalid| &invalid.problems).into_iter();
        let problems = problems.flatten().map(|problem| Wrong {
            line: Some(problem.line).filter(|line| *line > 0),
            column: Some(problem.column).filter(|column| *column > 0),
            key: &problem.key,
            message: &problem.message,
            suggestion: problem.suggestion.as_deref(),
        });
        let config = parsed.as_ref().ok();
        let resolved = config.and_then(|config| resolved(config, args));
        let resolved = resolved.map(|rules| {
            let rules = rules.into_iter().map(|rule| {
                let applies = Applies {
                    value: rule.value,
                    from: rule.from.map(|place| place.to_string()),
                    ceiling: rule.ceiling,
                };
                (rule.key, applies)
            });
            rules.collect()
        });
        Self {
            file,
            valid: config.is_some(),
            problems: problems.collect(),
            more: invalid.map_or(0, |invalid| invalid.more),
            rules: config.map(Config::entries),
            resolved,
        }
    }

    fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

/// What applies to the image and the namespace of the command line, if one is there.
fn resolved<'a>(config: &'a Config, args: &'a CheckArgs) -> Option<Vec<Resolved<'a>>> {
    let CheckArgs {
        image, namespace, ..
    } = args;
    let is_asked = image.is_some() || namespace.is_some();
    let namespace = namespace.as_ref().map(NamespaceName::as_str);
    is_asked.then(|| config.resolved(namespace, image.as_ref()))
}

/// The same for people.
fn for_whom(config: &Config, args: &CheckArgs) -> String {
    let Some(rules) = resolved(config, args) else {
        return String::new();
    };
    let image = args.image.iter().map(|image| format!(" the image {image}"));
    let namespace = args.namespace.iter();
    let namespace = namespace.map(|namespace| format!(" pods of the namespace {namespace}"));
    let whom: Vec<String> = image.chain(namespace).collect();
    let lines = rules.into_iter().map(|rule| {
        let ceiling = rule.ceiling.map(|ceiling| format!(", at most {ceiling}"));
        let said = match (rule.value, rule.from) {
            (Some(value), Some(place)) => format!("{value} ({place})"),
            _ => "left to the agent".to_owned(),
        };
        format!("  {}: {said}{}\n", rule.key, ceiling.unwrap_or_default())
    });
    let lines: Vec<String> = lines.collect();
    format!("For{}:\n{}", whom.join(" and"), lines.concat())
}

fn read(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(TEXT_MAX_BYTES as u64 + 1)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn summary(name: &str, config: &Config) -> String {
    let entries = config.entries();
    if entries.is_empty() {
        return format!("{name} is valid and says nothing: the agent's flags apply\n");
    }
    let lines = entries
        .iter()
        .map(|(place, value)| format!("  {place}: {value}\n"));
    let lines: Vec<String> = lines.collect();
    format!(
        "{name} is valid. What it does not say is left to the agent's flags:\n{}",
        lines.concat()
    )
}

/// A line for each problem that editors can follow: `file:line:column: message`.
fn report(name: &str, invalid: &InvalidConfig) -> String {
    let lines = invalid.problems.iter().map(|problem| {
        let place = match problem.line {
            0 => name.to_owned(),
            line => format!("{name}:{line}:{}", problem.column),
        };
        format!("{place}: {}\n", problem.words())
    });
    lines.collect::<Vec<String>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_file_is_summed_up() {
        let config = Config::parse("registries: {reg.example/: {try: 90s}}").unwrap();
        assert_eq!(
            summary("f.yaml", &config),
            "f.yaml is valid. What it does not say is left to the agent's flags:\n  \
             registries[reg.example].try: 1m 30s\n"
        );
        let nothing = summary("f.yaml", &Config::default());
        assert_eq!(
            nothing,
            "f.yaml is valid and says nothing: the agent's flags apply\n"
        );
    }

    #[test]
    fn problems_are_listed_as_editors_follow_them() {
        let invalid = Config::parse("defaults:\n  tri: 5s\n  stall: 5\n").unwrap_err();
        assert_eq!(
            report("f.yaml", &invalid),
            "f.yaml:2:3: defaults.tri: unknown key; did you mean \"try\"?\n\
             f.yaml:3:10: defaults.stall: invalid duration \"5\": the unit is missing; write 5s or 5m\n"
        );
    }

    fn args(image: Option<&str>, namespace: Option<&str>) -> CheckArgs {
        CheckArgs {
            file: "f.yaml".into(),
            image: image.map(|image| image.parse().unwrap()),
            namespace: namespace.map(|namespace| namespace.parse().unwrap()),
            output: CheckOutput::Json,
        }
    }

    fn json(text: &str, args: &CheckArgs) -> serde_json::Value {
        let parsed = Config::parse(text);
        let text = Checked::new("f.yaml", &parsed, args).json().unwrap();
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn programs_get_the_same_as_json() {
        let text = "registries: {reg.example: {try: 90s}}\nceilings: {try: 2m}";
        assert_eq!(
            json(text, &args(None, None)),
            serde_json::json!({
                "file": "f.yaml",
                "valid": true,
                "rules": {"registries[reg.example].try": "1m 30s", "ceilings.try": "2m"},
            })
        );
        assert_eq!(
            json("defaults:\n  tri: 5s\n", &args(Some("app"), None)),
            serde_json::json!({
                "file": "f.yaml",
                "valid": false,
                "problems": [{
                    "line": 2,
                    "column": 3,
                    "key": "defaults.tri",
                    "message": "unknown key; did you mean \"try\"?",
                    "suggestion": "try",
                }],
            })
        );
        let huge = "#".repeat(TEXT_MAX_BYTES + 1);
        let problem = &json(&huge, &args(None, None))["problems"][0];
        assert_eq!(problem["line"], serde_json::Value::Null);
        let many: Vec<String> = (0..60).map(|n| format!("key{n}: 1\n")).collect();
        assert_eq!(json(&many.concat(), &args(None, None))["more"], 10);
    }

    #[test]
    fn what_applies_to_a_pod_says_which_part_says_so() {
        let text = "registries: {reg.example: {try: 90s}}\nnamespaces: {team-*: {max-age: 1h}}\nceilings: {try: 2m}";
        let both = args(Some("reg.example/app"), Some("team-a"));
        assert_eq!(
            json(text, &both)["resolved"],
            serde_json::json!({
                "try": {"value": "1m 30s", "from": "registries[reg.example]", "ceiling": "2m"},
                "stall": {"value": null, "from": null},
                "freshness": {"value": null, "from": null},
                "max-age": {"value": "1h", "from": "namespaces[team-*]"},
                "fallback-on": {"value": null, "from": null},
                "keep": {"value": null, "from": null},
            })
        );
        let config = Config::parse(text).unwrap();
        assert_eq!(
            for_whom(&config, &both),
            "For the image reg.example/app:latest and pods of the namespace team-a:\n  \
             try: 1m 30s (registries[reg.example]), at most 2m\n  \
             stall: left to the agent\n  \
             freshness: left to the agent\n  \
             max-age: 1h (namespaces[team-*])\n  \
             fallback-on: left to the agent\n  \
             keep: left to the agent\n"
        );
        assert_eq!(for_whom(&config, &args(None, None)), "");
    }

    #[test]
    fn what_the_docs_and_the_example_show_is_valid() {
        let docs = include_str!("../../../docs/configuration.md");
        let shown = docs.split("```yaml\n").skip(1);
        let shown: Vec<&str> = shown.filter_map(|rest| rest.split("```").next()).collect();
        assert_eq!(shown.len(), 2);
        let example = include_str!("../../../manifests/overlays/example-node/config.yaml");
        for text in shown.into_iter().chain([example]) {
            let config = Config::parse(text).unwrap_or_else(|error| panic!("{error}\nin\n{text}"));
            assert_ne!(config, Config::default());
        }
    }
}
