//! `trylatest config check`: what a configuration file says, or everything that is wrong with it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, bail};
use trylatest_core::config::{Config, InvalidConfig, TEXT_MAX_BYTES};

use crate::args::{CheckArgs, ConfigArgs, ConfigCommand};

/// Runs the command.
///
/// # Errors
/// The file cannot be read or is not valid.
pub fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    let ConfigArgs { command } = args;
    match command {
        ConfigCommand::Check(CheckArgs { file }) => check(file),
    }
}

fn check(file: &Path) -> anyhow::Result<()> {
    let (text, name) = if file == Path::new("-") {
        (read(io::stdin()), "stdin".to_owned())
    } else {
        let text = File::open(file).and_then(read);
        (text, file.display().to_string())
    };
    let text = text.with_context(|| format!("reading {name}"))?;
    match Config::parse(&text) {
        Ok(config) => crate::printed(summary(&name, &config).as_bytes()),
        Err(invalid) => {
            crate::printed(report(&name, &invalid).as_bytes())?;
            match invalid.problems.len() + invalid.more {
                1 => bail!("{name}: 1 problem; an agent refuses this file"),
                count => bail!("{name}: {count} problems; an agent refuses this file"),
            }
        }
    }
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
             f.yaml:3:10: defaults.stall: invalid duration: \"5\"; write it like 5s or 1h30m\n"
        );
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
