//! Pictures of dashboards for the docs, from what a Prometheus has answered.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;

use crate::source::{COLUMNS, Dashboard, Drawn, Panel};

/// What one query has returned.
#[derive(Clone, Debug, Deserialize)]
pub struct Answer {
    /// As in [`crate::query::Query`].
    pub place: String,
    /// As in [`crate::query::Query`].
    pub query: String,
    /// As Prometheus returns it.
    pub series: Vec<Series>,
}

/// A series of an answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Series {
    metric: BTreeMap<String, String>,
    values: Vec<(f64, String)>,
}

impl Series {
    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        let numbers = self.values.iter().map(|(time, text)| (*time, text.parse()));
        numbers.filter_map(|(time, number)| {
            let number: f64 = number.ok()?;
            number.is_finite().then_some((time, number))
        })
    }
}

/// One line of a panel.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// What all panels of a picture share: the time that it covers, in seconds.
#[derive(Clone, Copy)]
struct Span {
    begin: f64,
    end: f64,
}

/// Sizes in pixels.
const COLUMN: u32 = 50;
const HEIGHT: u32 = 190;
const HEADING: u32 = 34;
const PAD: u32 = 12;
/// Of a panel's title and of its legend.
const TOP: u32 = 42;
const BOTTOM: u32 = 34;

/// Points that are so many seconds apart belong to two lines: Prometheus looks every second.
const GAP: f64 = 5.0;

/// So many lines are drawn and named in one panel.
const LINES: usize = 8;

const COLORS: [&str; LINES] = [
    "#2f7ed8", "#c0392b", "#27ae60", "#e67e22", "#8e44ad", "#16a085", "#7f8c8d", "#b7950b",
];

/// The picture of a dashboard as SVG. Areas are drawn as lines, numbers over time; tables are left out.
pub fn svg(dashboard: &Dashboard, answers: &[Answer]) -> String {
    let span = span(answers);
    let (mut body, mut y) = (String::new(), PAD);
    for row in &dashboard.rows {
        text(&mut body, (PAD, y + 20), "16", "#222", &row.title);
        y += HEADING;
        let (mut x, mut any) = (0, false);
        for panel in row
            .panels
            .iter()
            .filter(|panel| panel.drawn != Drawn::Table)
        {
            if x + panel.width > COLUMNS {
                (x, y) = (0, y + HEIGHT);
            }
            let lines = lines(dashboard, panel, answers);
            one(&mut body, (x * COLUMN, y), panel, &lines, span);
            (x, any) = (x + panel.width, true);
        }
        y += if any { HEIGHT } else { 0 };
    }
    let (width, height) = (COLUMNS * COLUMN, y + PAD);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#f4f5f7\"/>\n{body}</svg>\n"
    )
}

fn span(answers: &[Answer]) -> Span {
    let series = answers.iter().flat_map(|answer| &answer.series);
    let times: Vec<f64> = series
        .flat_map(|series| series.values.iter().map(|(time, _)| *time))
        .collect();
    Span {
        begin: times.iter().copied().fold(f64::INFINITY, f64::min),
        end: times.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    }
}

/// The lines of a panel that have a point, the highest first.
fn lines(dashboard: &Dashboard, panel: &Panel, answers: &[Answer]) -> Vec<Line> {
    let place = format!("{}: {}", dashboard.title, panel.title);
    let mut lines = Vec::new();
    for query in &panel.queries {
        let ours = |answer: &&Answer| answer.place == place && answer.query == query.query;
        let series = answers.iter().find(ours).map(|answer| &answer.series);
        lines.extend(series.into_iter().flatten().map(|series| Line {
            name: named(&query.legend, &series.metric),
            points: series.points().collect(),
        }));
    }
    lines.retain(|line| !line.points.is_empty());
    lines.sort_by(|one, other| peak(other).total_cmp(&peak(one)));
    lines.truncate(LINES);
    lines
}

fn peak(line: &Line) -> f64 {
    line.points
        .iter()
        .fold(0.0, |peak, (_, value)| value.max(peak))
}

/// The legend with the labels' values in it.
fn named(legend: &str, labels: &BTreeMap<String, String>) -> String {
    let mut name = legend.to_owned();
    for (label, value) in labels {
        name = name.replace(&format!("{{{{{label}}}}}"), value);
    }
    name
}

fn one(out: &mut String, (x, y): (u32, u32), panel: &Panel, lines: &[Line], span: Span) {
    let (width, height) = (panel.width * COLUMN, HEIGHT);
    let (left, top) = (x + PAD / 2, y + PAD / 2);
    let (inner, high) = (width - PAD, height - PAD);
    let _ = writeln!(
        out,
        "<rect x=\"{left}\" y=\"{top}\" width=\"{inner}\" height=\"{high}\" rx=\"4\" fill=\"#fff\" stroke=\"#d8dce2\"/>"
    );
    text(out, (left + 8, top + 18), "12", "#222", &panel.title);
    let highest = lines.iter().map(peak).fold(0.0, f64::max);
    let shown = amount(highest, &panel.unit);
    text(out, (left + 8, top + 34), "10", "#888", &shown);
    let (from, wide) = (f64::from(left + 8), f64::from(inner - 16));
    let (base, tall) = (
        f64::from(top + high - BOTTOM),
        f64::from(high - BOTTOM - TOP),
    );
    for (number, line) in lines.iter().enumerate() {
        let color = COLORS[number % LINES];
        let at = |&(time, value): &(f64, f64)| {
            let x = from + wide * (time - span.begin) / (span.end - span.begin).max(1.0);
            let y = base - tall * value / if highest > 0.0 { highest } else { 1.0 };
            format!("{x:.1},{y:.1}")
        };
        // Where nothing was scraped, there is no line.
        let runs = line.points.chunk_by(|one, next| next.0 - one.0 < GAP);
        for run in runs {
            let points: Vec<_> = run.iter().map(at).collect();
            let points = points.join(" ");
            let _ = writeln!(
                out,
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>"
            );
        }
    }
    legend(out, (left + 8, top + high - 20), inner - 16, lines);
}

/// The lines' names in two rows, as far as they fit.
fn legend(out: &mut String, (x, y): (u32, u32), width: u32, lines: &[Line]) {
    const OF_LETTER: usize = 6;
    let (mut at, mut row) = (0_u32, 0);
    for (number, line) in lines.iter().enumerate() {
        let taken = line.name.chars().count() * OF_LETTER + 12;
        let taken = u32::try_from(taken).unwrap_or(u32::MAX);
        if at > 0 && at.saturating_add(taken) > width {
            (at, row) = (0, row + 1);
        }
        if row > 1 {
            return;
        }
        let place = (x + at, y + row * 13);
        text(out, place, "10", COLORS[number % LINES], &line.name);
        at = at.saturating_add(taken);
    }
}

fn text(out: &mut String, (x, y): (u32, u32), size: &str, color: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" fill=\"{color}\">{words}</text>"
    );
}

/// A value with its unit, for people.
fn amount(value: f64, unit: &str) -> String {
    match unit {
        "s" => format!("{value:.2} s"),
        "bytes" => format!("{:.1} MiB", value / f64::from(1 << 20)),
        "percentunit" => format!("{:.1} %", value * 100.0),
        _ => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_the_lines_and_their_names() {
        let board = "uid: a\ntitle: A\ndescription: b.\nrows: [{title: Row & more, panels: [{title: P, as: lines, \
                     unit: s, width: 8, description: c., queries: [{query: q, legend: 'n {{x}}'}]}]}]\n";
        let board = crate::source::parse(board, std::path::Path::new("a")).unwrap();
        let answer = r#"[{"place": "A: P", "query": "q", "series": [
            {"metric": {"x": "one"}, "values": [[1.0, "NaN"], [2.0, "1"], [3.0, "4"]]},
            {"metric": {"x": "none"}, "values": [[1.0, "NaN"]]}]}]"#;
        let answers: Vec<Answer> = serde_json::from_str(answer).unwrap();
        let svg = svg(&board, &answers);
        assert!(svg.contains(">n one</text>"), "{svg}");
        assert!(
            svg.contains("Row &amp; more") && svg.contains("4.00 s"),
            "{svg}"
        );
        assert_eq!(svg.matches("<polyline").count(), 1);
    }
}
