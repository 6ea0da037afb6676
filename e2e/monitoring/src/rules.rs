//! Alerts. The source is the plain rules file of Prometheus; what the Prometheus Operator reads has the same
//! text in it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

use crate::query::Query;

/// What the Prometheus Operator wants around the groups.
const HEAD: &str = "\
# Made from rules.yaml by `just monitoring`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: trylatest
  namespace: trylatest-system
  labels:
    app.kubernetes.io/name: trylatest
spec:
";

/// The rules file.
#[derive(Debug)]
pub struct Rules {
    text: String,
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    #[expect(dead_code, reason = "Prometheus wants it; it says nothing here")]
    name: String,
    rules: Vec<Alert>,
}

/// One alert.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// Its name.
    pub alert: String,
    /// PromQL: it fires for each series that this returns.
    pub expr: String,
    /// How long that must last.
    #[serde(rename = "for")]
    pub lasts: Option<String>,
    /// How long it goes on firing after that.
    pub keep_firing_for: Option<String>,
    /// `severity` among them.
    pub labels: BTreeMap<String, String>,
    /// `summary`, `description`, `runbook_url`.
    pub annotations: BTreeMap<String, String>,
}

impl Rules {
    /// Reads the rules file; `path` is for messages.
    ///
    /// # Errors
    /// It is not YAML, or a key is unknown or missing.
    pub fn parse(text: String, path: &Path) -> anyhow::Result<Self> {
        let File { groups } =
            serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
        Ok(Self { text, groups })
    }

    /// All alerts.
    pub fn alerts(&self) -> impl Iterator<Item = &Alert> {
        self.groups.iter().flat_map(|group| &group.rules)
    }

    pub(crate) fn queries(&self) -> impl Iterator<Item = Query> {
        self.alerts().map(|alert| Query {
            place: alert.alert.clone(),
            text: alert.expr.clone(),
        })
    }

    /// The same rules as an object for the Prometheus Operator.
    pub fn for_operator(&self) -> String {
        let from = self.text.find("groups:").unwrap_or(0);
        let mut out = HEAD.to_owned();
        for line in self.text[from..].lines() {
            if !line.is_empty() {
                out.push_str("  ");
                out.push_str(line);
            }
            out.push('\n');
        }
        out
    }
}
