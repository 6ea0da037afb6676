//! `doctor`: what keeps TryLatest from working in this cluster, and what to do about it.
//!
//! [`gather`] asks the API server, each question with a deadline; what it may not see is recorded as such. The rules
//! ([`install`], [`admission`], [`fleet`], [`kubelet`]) are functions of what was gathered.

mod admission;
mod fleet;
mod gather;
mod install;
mod kubelet;
mod version;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;
use trylatest_core::text::some_of;

use self::gather::Facts;
use crate::args::DoctorArgs;
use crate::cluster::{Cluster, Looked, now};
use crate::output::{self, BAD, DIM, GOOD, ODD, PLAIN, styled};

/// The worst finding is a warning.
const WARNING: u8 = 3;

/// The worst finding is an error.
const ERROR: u8 = 4;

/// Most objects that a finding names.
const NAMED: usize = 5;

/// How bad it is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Severity {
    /// Pods do not get what TryLatest promises.
    Error,
    /// They may not, or later.
    Warning,
    /// Worth to know.
    Info,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// A name that stays the same, for scripts.
    pub(crate) check: &'static str,
    /// What it is about: names of nodes, policies or pods. Empty if it is about the cluster.
    pub(crate) about: BTreeSet<String>,
    /// What is so.
    pub(crate) what: String,
    /// What to do.
    pub(crate) fix: String,
}

/// Something that could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NotSeen {
    what: String,
    why: String,
}

/// What `doctor` answers.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    findings: Vec<Finding>,
    not_seen: Vec<NotSeen>,
}

impl Report {
    /// Something about the cluster as a whole.
    fn add(&mut self, severity: Severity, check: &'static str, what: &str, fix: &str) {
        self.add_about(severity, check, [], what, fix);
    }

    /// Something about these objects. The same of others joins it.
    fn add_about(
        &mut self,
        severity: Severity,
        check: &'static str,
        about: impl IntoIterator<Item = String>,
        what: &str,
        fix: &str,
    ) {
        let known = self
            .findings
            .iter_mut()
            .find(|finding| finding.check == check && finding.what == what);
        match known {
            Some(finding) => finding.about.extend(about),
            None => self.findings.push(Finding {
                severity,
                check,
                about: about.into_iter().collect(),
                what: what.to_owned(),
                fix: fix.to_owned(),
            }),
        }
    }

    /// What was looked at; none, and a note of it, if it could not be.
    fn seen<'a, T>(&mut self, what: &str, looked: &'a Looked<T>) -> Option<&'a T> {
        match looked {
            Ok(seen) => Some(seen),
            Err(unseen) => {
                self.not_looked_at(what, unseen.why());
                None
            }
        }
    }

    fn not_looked_at(&mut self, what: &str, why: &str) {
        let not_seen = NotSeen {
            what: what.to_owned(),
            why: why.to_owned(),
        };
        if !self.not_seen.contains(&not_seen) {
            self.not_seen.push(not_seen);
        }
    }

    fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).min()
    }
}

/// Looks, and prints what it has found. The exit code is that of the worst finding.
///
/// # Errors
/// The API server does not answer at all, or stdout cannot be written.
pub(crate) async fn run(cluster: &Cluster, args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let DoctorArgs { kubelets, output } = *args;
    let facts = gather::gather(cluster, kubelets).await?;
    let report = examine(&facts, now());
    output::print(output, &report, render)?;
    Ok(match report.worst() {
        Some(Severity::Error) => ExitCode::from(ERROR),
        Some(Severity::Warning) => ExitCode::from(WARNING),
        Some(Severity::Info) | None => ExitCode::SUCCESS,
    })
}

/// Every rule.
fn examine(facts: &Facts, now: Timestamp) -> Report {
    let mut report = Report::default();
    install::examine(facts, &mut report);
    admission::examine(facts, &mut report);
    fleet::examine(facts, now, &mut report);
    kubelet::examine(facts, &mut report);
    report
        .findings
        .sort_by_key(|finding| (finding.severity, finding.check));
    report
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let (style, word) = match finding.severity {
            Severity::Error => (BAD, "ERROR  "),
            Severity::Warning => (ODD, "WARNING"),
            Severity::Info => (PLAIN, "INFO   "),
        };
        let about = match finding.about.len() {
            0 => String::new(),
            _ => format!(" ({})", some_of(finding.about.iter(), NAMED)),
        };
        let check = styled(DIM, &format!("[{}]", finding.check));
        let word = styled(style, word);
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
        (0, 0) => GOOD,
        (0, _) => ODD,
        _ => BAD,
    };
    let line = format!(
        "{}, {}; {} could not be looked at",
        trylatest_core::text::count(errors, "error"),
        trylatest_core::text::count(warnings, "warning"),
        trylatest_core::text::count(report.not_seen.len(), "thing")
    );
    text.push_str(&styled(style, &line));
    text.push_str(
        "\nWhat only a node can see (registry mirrors, the kubelet's records, its disk) is not looked at here.\n",
    );
    text
}

#[cfg(test)]
mod tests;
