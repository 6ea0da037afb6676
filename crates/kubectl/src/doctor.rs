//! `doctor`: what keeps TryLatest from working in this cluster, and what to do about it.
//!
//! [`gather`] asks the API server, each question with a deadline; what it may not see is recorded as such. The rules
//! ([`install`], [`admission`], [`fleet`], [`kubelet`]) are functions of what was gathered.

mod admission;
mod fleet;
mod gather;
mod install;
mod kubelet;

use std::fmt::Write as _;
use std::process::ExitCode;

use jiff::Timestamp;
use trylatest_core::doctor::{Finding, Report, Severity};
use trylatest_core::text::some_of;

use self::gather::Facts;
use crate::args::DoctorArgs;
use crate::cluster::{Cluster, Looked, now};
use crate::output::{self, BAD, DIM, GOOD, ODD, PLAIN, styled};

/// Most objects that a finding names.
const NAMED: usize = 5;

/// What was looked at; none, and a note of it, if it could not be.
fn seen<'a, T>(report: &mut Report, what: &str, looked: &'a Looked<T>) -> Option<&'a T> {
    match looked {
        Ok(seen) => {
            report.looked_at(what);
            Some(seen)
        }
        Err(unseen) => {
            report.not_looked_at(what, unseen.why());
            None
        }
    }
}

/// Looks, and prints what it has found. The exit code is that of the worst finding, or says that nothing was seen.
///
/// # Errors
/// The API server does not answer at all, or stdout cannot be written.
pub(crate) async fn run(cluster: &Cluster, args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let DoctorArgs { kubelets, output } = *args;
    let facts = gather::gather(cluster, kubelets).await?;
    let report = examine(&facts, now());
    output::print(output, &report, render)?;
    Ok(ExitCode::from(report.exit_code()))
}

/// Every rule.
fn examine(facts: &Facts, now: Timestamp) -> Report {
    let mut report = Report::default();
    install::examine(facts, &mut report);
    admission::examine(facts, &mut report);
    fleet::examine(facts, now, &mut report);
    kubelet::examine(facts, &mut report);
    report.sorted()
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let style = match finding.severity {
            Severity::Error => BAD,
            Severity::Warning => ODD,
            Severity::Info => PLAIN,
        };
        let about = match finding.about.len() {
            0 => String::new(),
            _ => format!(" ({})", some_of(finding.about.iter(), NAMED)),
        };
        let check = styled(DIM, &format!("[{}]", finding.check));
        let word = styled(style, finding.severity.word());
        let Finding { what, fix, .. } = finding;
        let _ = writeln!(text, "{word} {what}{about} {check}\n        {fix}");
    }
    for not_seen in &report.not_seen {
        let word = styled(DIM, "NOT LOOKED AT");
        let _ = writeln!(text, "{word} {}: {}", not_seen.what, not_seen.why);
    }
    let count = |severity| {
        let findings = report.findings.iter();
        findings
            .filter(|finding| finding.severity == severity)
            .count()
    };
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let style = match (errors, warnings) {
        (0, 0) if report.seen.is_empty() => ODD,
        (0, 0) if report.not_seen.is_empty() => GOOD,
        (0, 0) => PLAIN,
        (0, _) => ODD,
        _ => BAD,
    };
    let line = format!(
        "{}, {}; {}",
        trylatest_core::text::count(errors, "error"),
        trylatest_core::text::count(warnings, "warning"),
        report.coverage()
    );
    text.push_str(&styled(style, &line));
    text.push_str(
        "\nWhat only a node can see (registry mirrors, the kubelet's records, its disk) is not looked at here.\n",
    );
    text
}

#[cfg(test)]
mod tests;
