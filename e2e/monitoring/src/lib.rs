//! Dashboards and alerts: what is committed in `manifests/monitoring`, made from sources that people read.
//!
//! ```text
//!   dashboards/*.yaml ─► source ─┬─► grafana ───► dashboards/*.json        Grafana
//!                                └─► page ──────► docs/monitoring.md       the tables of panels
//!   rules.yaml ────────► rules ──────────────────► prometheusrule.yaml     Prometheus Operator
//! ```
//!
//! In: the sources below a repository. Out: the text of every generated file, and every query with the place
//! where it stands, for the tests that run them. It writes nothing itself and knows no Prometheus.

pub mod draw;
pub mod grafana;
pub mod page;
pub mod query;
pub mod rules;
pub mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use query::Query;
use rules::Rules;
use source::Dashboard;

/// The dashboards; each has a source and a generated file of this name.
const DASHBOARDS: [&str; 2] = ["fleet", "node"];

const FOLDER: &str = "manifests/monitoring";

/// Everything that people write.
#[derive(Debug)]
pub struct Sources {
    root: PathBuf,
    /// With the name of their file, in the order of [`DASHBOARDS`].
    dashboards: Vec<(&'static str, Dashboard)>,
    rules: Rules,
}

/// A file that is made and committed.
#[derive(Debug)]
pub struct Generated {
    /// Where it belongs.
    pub path: PathBuf,
    /// What it contains.
    pub text: String,
}

impl Sources {
    /// The sources of the repository in which this program was built.
    ///
    /// # Errors
    /// As [`Sources::read`].
    pub fn here() -> anyhow::Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = package.ancestors().nth(2);
        Self::read(root.context("the package is in the repository")?)
    }

    /// The sources of a repository.
    ///
    /// # Errors
    /// A file is missing or wrong; the message says which, and where.
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        let folder = root.join(FOLDER);
        let dashboard = |name| {
            let path = folder.join(format!("dashboards/{name}.yaml"));
            anyhow::Ok((name, source::parse(&read(&path)?, &path)?))
        };
        let rules = folder.join("rules.yaml");
        Ok(Self {
            root: root.to_owned(),
            dashboards: DASHBOARDS
                .into_iter()
                .map(dashboard)
                .collect::<Result<_, _>>()?,
            rules: Rules::parse(read(&rules)?, &rules)?,
        })
    }

    /// The repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The alerts.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The dashboards.
    pub fn dashboards(&self) -> impl Iterator<Item = &Dashboard> {
        self.dashboards.iter().map(|(_, dashboard)| dashboard)
    }

    /// Every generated file as it should be.
    ///
    /// # Errors
    /// The page that is only partly generated cannot be read, or has lost its marks.
    pub fn generate(&self) -> anyhow::Result<Vec<Generated>> {
        let folder = self.root.join(FOLDER);
        let mut files = Vec::new();
        for (name, dashboard) in &self.dashboards {
            files.push(Generated {
                path: folder.join(format!("dashboards/{name}.json")),
                text: grafana::json(dashboard),
            });
        }
        files.push(Generated {
            path: folder.join("prometheusrule.yaml"),
            text: self.rules.for_operator(),
        });
        let path = self.root.join("docs/monitoring.md");
        files.push(Generated {
            text: page::with_tables(&read(&path)?, self.dashboards(), &self.rules)
                .with_context(|| path.display().to_string())?,
            path,
        });
        Ok(files)
    }

    /// Pictures of the dashboards for the docs.
    ///
    /// # Errors
    /// The answers are not what the test of the queries writes.
    pub fn pictures(&self, answers: &str) -> anyhow::Result<Vec<Generated>> {
        let answers: Vec<draw::Answer> = serde_json::from_str(answers)?;
        let one = |(name, dashboard): &(&str, Dashboard)| Generated {
            path: self.root.join(format!("docs/monitoring/{name}.svg")),
            text: draw::svg(dashboard, &answers),
        };
        Ok(self.dashboards.iter().map(one).collect())
    }

    /// Every query of dashboards and alerts.
    pub fn queries(&self) -> Vec<Query> {
        let panels = self.dashboards().flat_map(Dashboard::queries);
        panels.chain(self.rules.queries()).collect()
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests;
