//! What the two doctors find, and how they end: `trylatest doctor` on a node, `kubectl trylatest doctor` for a cluster.
//!
//! Each has rules of its own. What a script reads of them is the same: the JSON, the severities and the exit codes.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::text;

/// How bad it is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Pods do not get what TryLatest promises.
    Error,
    /// They may not, or later.
    Warning,
    /// Worth knowing.
    Info,
}

impl Severity {
    /// What a line about it begins with; each is as long as the others.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Error => "ERROR  ",
            Self::Warning => "WARNING",
            Self::Info => "INFO   ",
        }
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A name that stays the same, for scripts.
    pub check: &'static str,
    /// What it is about: names of nodes, policies or pods. Empty if it is about all that was looked at.
    pub about: BTreeSet<String>,
    /// What is so.
    pub what: String,
    /// What to do.
    pub fix: String,
}

impl Finding {
    /// Something about all that was looked at.
    pub fn new(
        severity: Severity,
        check: &'static str,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            check,
            about: BTreeSet::new(),
            what: what.into(),
            fix: fix.into(),
        }
    }
}

/// Something that could not be looked at. It is no finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NotSeen {
    /// What was to be looked at.
    pub what: String,
    /// Why it could not be.
    pub why: String,
}

/// What a doctor answers.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Once it is [`Report::sorted`], the worst first.
    pub findings: Vec<Finding>,
    /// What was looked at.
    pub seen: BTreeSet<String>,
    /// What could not be looked at.
    pub not_seen: Vec<NotSeen>,
}

impl Report {
    /// One more finding. If it was found of others before, what it is about joins them.
    pub fn push(&mut self, finding: Finding) {
        let mut known = self.findings.iter_mut();
        let same = known.find(|known| known.check == finding.check && known.what == finding.what);
        match same {
            Some(known) => known.about.extend(finding.about),
            None => self.findings.push(finding),
        }
    }

    /// One more, about all that was looked at.
    pub fn add(&mut self, severity: Severity, check: &'static str, what: &str, fix: &str) {
        self.push(Finding::new(severity, check, what, fix));
    }

    /// One more, about these objects.
    pub fn add_about(
        &mut self,
        severity: Severity,
        check: &'static str,
        about: impl IntoIterator<Item = String>,
        what: &str,
        fix: &str,
    ) {
        self.push(Finding {
            about: about.into_iter().collect(),
            ..Finding::new(severity, check, what, fix)
        });
    }

    /// Something was looked at, whatever was found.
    pub fn looked_at(&mut self, what: &str) {
        self.seen.insert(what.to_owned());
    }

    /// Something could not be looked at; the same is recorded once.
    pub fn not_looked_at(&mut self, what: &str, why: &str) {
        let not_seen = NotSeen {
            what: what.to_owned(),
            why: why.to_owned(),
        };
        if !self.not_seen.contains(&not_seen) {
            self.not_seen.push(not_seen);
        }
    }

    /// The same, the worst first.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.findings
            .sort_by_key(|finding| (finding.severity, finding.check));
        self
    }

    /// How bad the worst finding is.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).min()
    }

    /// How much was looked at, in words: who has seen nothing has found nothing.
    pub fn coverage(&self) -> String {
        if self.seen.is_empty() {
            return "could not look at anything, so it is unknown whether TryLatest works here"
                .to_owned();
        }
        let seen = text::count(self.seen.len(), "thing");
        match self.not_seen.len() {
            0 => format!("looked at {seen}"),
            missing => format!("looked at {seen}, could not look at {missing}"),
        }
    }

    /// What the program ends with. 1 is for a doctor that could look at nothing, as for one that fails; 2 for wrong
    /// usage.
    pub fn exit_code(&self) -> u8 {
        match self.worst() {
            Some(Severity::Error) => 4,
            Some(Severity::Warning) => 3,
            Some(Severity::Info) | None if self.seen.is_empty() => 1,
            Some(Severity::Info) | None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_worst_finding_decides_how_it_ends() {
        let mut report = Report::default();
        assert_eq!((report.worst(), report.exit_code()), (None, 1));
        report.looked_at("nodes");
        assert_eq!((report.worst(), report.exit_code()), (None, 0));
        report.add(Severity::Info, "a", "it is so", "do this");
        assert_eq!(report.exit_code(), 0);
        report.add(Severity::Error, "c", "it is so", "do this");
        report.add(Severity::Warning, "b", "it is so", "do this");
        assert_eq!(report.worst(), Some(Severity::Error));
        assert_eq!(report.exit_code(), 4);
        let report = report.sorted();
        let checks: Vec<_> = report.findings.iter().map(|f| f.check).collect();
        assert_eq!(checks, ["c", "b", "a"]);
        let mut report = Report::default();
        report.add(Severity::Warning, "b", "it is so", "do this");
        assert_eq!(report.exit_code(), 3);
    }

    #[test]
    fn who_has_seen_nothing_does_not_say_that_all_is_well() {
        let mut report = Report::default();
        report.not_looked_at("nodes", "forbidden");
        assert_eq!(report.exit_code(), 1);
        assert!(report.coverage().starts_with("could not look at anything"));
        report.add(Severity::Info, "a", "it is so", "do this");
        assert_eq!(report.exit_code(), 1);
        report.add(Severity::Error, "b", "it is so", "do this");
        assert_eq!(report.exit_code(), 4);
        let mut report = Report::default();
        report.looked_at("policies");
        report.looked_at("policies");
        report.not_looked_at("nodes", "forbidden");
        assert_eq!(report.coverage(), "looked at 1 thing, could not look at 1");
        assert_eq!(report.exit_code(), 0);
    }

    #[test]
    fn the_same_of_several_is_one_finding() {
        let mut report = Report::default();
        for name in ["node-2", "node-1"] {
            let about = [name.to_owned()];
            report.add_about(Severity::Info, "a", about, "it is so", "do this");
        }
        report.looked_at("policies");
        report.not_looked_at("nodes", "forbidden");
        report.not_looked_at("nodes", "forbidden");
        let expected = json!({
            "findings": [{
                "severity": "info", "check": "a", "about": ["node-1", "node-2"], "what": "it is so", "fix": "do this",
            }],
            "seen": ["policies"],
            "notSeen": [{"what": "nodes", "why": "forbidden"}],
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
    }
}
