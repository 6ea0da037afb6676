//! A dashboard as people write it.

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::query::Query;

/// So many columns has a dashboard in Grafana.
pub const COLUMNS: u32 = 24;

/// One dashboard.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dashboard {
    /// Grafana's key, part of the address.
    pub uid: String,
    /// Shown on top and in lists.
    pub title: String,
    /// What the dashboard answers.
    pub description: String,
    /// What the reader chooses beside the data source.
    #[serde(default)]
    pub variables: Vec<Variable>,
    /// From top to bottom.
    pub rows: Vec<Row>,
}

/// A choice of one value of a label.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// `$name` in queries.
    pub name: String,
    /// Shown beside the choice.
    pub title: String,
    /// The metric whose label has the values.
    pub metric: String,
    /// That label.
    pub label: String,
}

/// Panels beneath a heading.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The heading.
    pub title: String,
    /// From left to right; they wrap.
    pub panels: Vec<Panel>,
}

/// One picture.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Panel {
    /// The heading.
    pub title: String,
    /// How it is drawn.
    #[serde(rename = "as")]
    pub drawn: Drawn,
    /// Grafana's name of the unit, e.g. `s`, `bytes`, `short`.
    pub unit: String,
    /// In columns, of [`COLUMNS`].
    pub width: u32,
    /// What it says, and when to worry.
    pub description: String,
    /// From this value on it is yellow.
    pub yellow: Option<f64>,
    /// From this value on it is red.
    pub red: Option<f64>,
    /// Below this value it is red.
    pub red_below: Option<f64>,
    /// What is drawn. In a table, each is a column.
    pub queries: Vec<PanelQuery>,
}

/// One query of a panel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PanelQuery {
    /// PromQL.
    pub query: String,
    /// The name of each series, with `{{label}}`; the head of a table's column. Without one, the table shows only the
    /// labels of its series.
    pub legend: String,
    /// Only in a table: the unit of this column, if it is not the panel's.
    pub unit: Option<String>,
}

/// How a panel is drawn.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Drawn {
    /// Lines over time.
    Lines,
    /// Areas over time that add up.
    Stacked,
    /// The last value, large.
    Number,
    /// The last values, a row for each set of labels.
    Table,
}

impl Dashboard {
    pub(crate) fn panels(&self) -> impl Iterator<Item = &Panel> {
        self.rows.iter().flat_map(|row| &row.panels)
    }

    /// Every query of its panels and variables.
    pub fn queries(&self) -> impl Iterator<Item = Query> {
        self.panels().flat_map(|panel| {
            let place = format!("{}: {}", self.title, panel.title);
            panel.queries.iter().map(move |query| Query {
                place: place.clone(),
                text: query.query.clone(),
            })
        })
    }

    fn check(&self) -> anyhow::Result<()> {
        for panel in self.panels() {
            let title = &panel.title;
            let fits = (1..=COLUMNS).contains(&panel.width);
            ensure!(fits, "{title}: the width is not 1 to {COLUMNS}");
            ensure!(!panel.queries.is_empty(), "{title}: no query");
            let ends = panel.description.trim_end().ends_with('.');
            ensure!(ends, "{title}: the description is no sentence");
        }
        Ok(())
    }
}

/// Reads a dashboard's source; `path` is for messages.
///
/// # Errors
/// It is not YAML, a key is unknown or missing, or a panel cannot be drawn.
pub fn parse(text: &str, path: &Path) -> anyhow::Result<Dashboard> {
    let place = || path.display().to_string();
    let dashboard: Dashboard = serde_saphyr::from_str(text).with_context(place)?;
    dashboard.check().with_context(place)?;
    Ok(dashboard)
}
