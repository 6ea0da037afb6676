//! Prometheus' own tool checks the alerts, their timing, and the syntax of every query. Without it, these tests
//! are skipped: `cargo run -p trylatest-bootstrap -- tools` gets it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::{Value, json};
use trylatest_bootstrap::Tools;
use trylatest_monitoring::Sources;

type Test = fn(&Path, &Sources) -> Result<(), Failed>;

fn main() -> ExitCode {
    let tests: [(&str, Test); 3] = [
        ("the_rules_are_valid", the_rules_are_valid),
        (
            "the_alerts_fire_when_they_should",
            the_alerts_fire_when_they_should,
        ),
        ("every_query_is_valid", every_query_is_valid),
    ];
    let trials = tests.map(|(name, test)| Trial::ignorable_test(name, move || run(test)));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

fn run(test: Test) -> Result<Completion, Failed> {
    let tools = Tools::here()?;
    let promtool = tools.promtool();
    if !promtool.exists() {
        let missing = format!("{} is missing", promtool.display());
        return Ok(Completion::ignored_with(missing));
    }
    test(&promtool, &Sources::here()?)?;
    Ok(Completion::Completed)
}

/// Runs promtool; what it prints is the message if it fails.
fn promtool(program: &Path, args: &[&str], file: &Path) -> Result<(), Failed> {
    let output = Command::new(program).args(args).arg(file).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(String::from_utf8_lossy(&said).into_owned().into())
}

fn folder(sources: &Sources) -> PathBuf {
    sources.root().join("manifests/monitoring")
}

fn the_rules_are_valid(program: &Path, sources: &Sources) -> Result<(), Failed> {
    let rules = folder(sources).join("rules.yaml");
    promtool(program, &["check", "rules"], &rules)
}

/// Each alert has a case in which it fires and one in which it does not.
fn the_alerts_fire_when_they_should(program: &Path, sources: &Sources) -> Result<(), Failed> {
    let tests = folder(sources).join("rules_test.yaml");
    let read: Value = serde_saphyr::from_str(&fs::read_to_string(&tests)?)?;
    let all = |value: &Value, key| value[key].as_array().cloned().unwrap_or_default();
    let cases = all(&read, "tests").into_iter();
    let cases: Vec<_> = cases
        .flat_map(|test| all(&test, "promql_expr_test"))
        .collect();
    for alert in sources.rules().alerts() {
        let firing = format!("alertname=\"{}\", alertstate=\"firing\"", alert.alert);
        let named = format!("alertname=\"{}\"", alert.alert);
        let has = |words: &str, silent| {
            cases.iter().any(|case| {
                let expr = case["expr"].as_str().unwrap_or_default();
                expr.contains(words) && all(case, "exp_samples").is_empty() == silent
            })
        };
        if !has(&firing, false) || !has(&named, true) {
            return Err(format!("{named}: no case in which it fires, or none in which not").into());
        }
    }
    promtool(program, &["test", "rules"], &tests)
}

/// A dashboard's queries as rules, because promtool reads no query alone.
fn every_query_is_valid(program: &Path, sources: &Sources) -> Result<(), Failed> {
    let rules = sources.queries().into_iter().map(|query| {
        let filled = query.filled("5m", &[("node", "node-1")]);
        json!({"alert": query.place, "expr": filled})
    });
    let rules = json!({"groups": [{"name": "queries", "rules": rules.collect::<Vec<_>>()}]});
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("queries.yaml");
    fs::write(&file, rules.to_string())?;
    promtool(program, &["check", "rules"], &file)
}
