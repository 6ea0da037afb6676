//! The tables of `docs/monitoring.md`.

use anyhow::Context as _;

use crate::rules::Rules;
use crate::source::Dashboard;

/// The page with its tables as they should be: what stands between two marks is replaced.
///
/// # Errors
/// A mark is missing.
pub fn with_tables<'a>(
    page: &str,
    dashboards: impl Iterator<Item = &'a Dashboard>,
    rules: &Rules,
) -> anyhow::Result<String> {
    let mut page = page.to_owned();
    for dashboard in dashboards {
        page = replaced(&page, &dashboard.uid, &panels(dashboard))?;
    }
    replaced(&page, "alerts", &alerts(rules))
}

fn replaced(page: &str, name: &str, table: &str) -> anyhow::Result<String> {
    let begin = format!("<!-- {name}: made by `just monitoring` -->\n");
    let end = format!("<!-- end of {name} -->\n");
    let (before, rest) = page
        .split_once(&begin)
        .with_context(|| format!("no line {begin:?}"))?;
    let (_, after) = rest
        .split_once(&end)
        .with_context(|| format!("no line {end:?}"))?;
    Ok(format!("{before}{begin}{table}{end}{after}"))
}

fn panels(dashboard: &Dashboard) -> String {
    let mut table = "| panel | what it shows |\n|---|---|\n".to_owned();
    for panel in dashboard.panels() {
        let line = format!("| {} | {} |\n", panel.title, one_line(&panel.description));
        table.push_str(&line);
    }
    table
}

fn alerts(rules: &Rules) -> String {
    let mut table = "| alert | severity | it fires when |\n|---|---|---|\n".to_owned();
    for alert in rules.alerts() {
        let name = &alert.alert;
        let of = |map: &std::collections::BTreeMap<String, String>, key| {
            one_line(map.get(key).map_or("", String::as_str))
        };
        let line = format!(
            "| [{name}](runbooks/{name}.md) | {} | {} |\n",
            of(&alert.labels, "severity"),
            of(&alert.annotations, "summary")
        );
        table.push_str(&line);
    }
    table
}

fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}
