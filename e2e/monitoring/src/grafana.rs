//! A dashboard as Grafana reads it.

use serde_json::{Map, Value, json};

use crate::source::{COLUMNS, Dashboard, Drawn, Panel, Variable};

/// Heights in Grafana's units of about 30 pixels.
const OF_HEADING: u32 = 1;
const OF_NUMBER: u32 = 4;
const OF_OTHERS: u32 = 8;

/// The version of Grafana's dashboard format that this is: Grafana 10 and later read it, and turn it into their own.
const SCHEMA: u32 = 39;

/// The dashboard's file.
pub fn json(dashboard: &Dashboard) -> String {
    let variables = dashboard.variables.iter().map(variable);
    let value = json!({
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description.trim_end(),
        "tags": ["trylatest"],
        "schemaVersion": SCHEMA,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "",
        "links": [{
            "type": "dashboards", "title": "TryLatest", "tags": ["trylatest"], "asDropdown": false,
            "includeVars": false, "keepTime": true, "icon": "external link", "tooltip": "", "targetBlank": false,
        }],
        "annotations": {"list": []},
        "templating": {"list": std::iter::once(data_source()).chain(variables).collect::<Vec<_>>()},
        "panels": panels(dashboard),
    });
    format!("{value:#}\n")
}

fn data_source() -> Value {
    json!({
        "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
        "hide": 0, "refresh": 1, "regex": "", "includeAll": false, "multi": false,
    })
}

/// The data source that the reader has chosen.
fn chosen() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

fn variable(variable: &Variable) -> Value {
    let query = format!("label_values({}, {})", variable.metric, variable.label);
    json!({
        "name": variable.name, "label": variable.title, "type": "query", "datasource": chosen(),
        "definition": query, "query": {"query": query, "refId": variable.name},
        "hide": 0, "refresh": 2, "regex": "", "sort": 1, "includeAll": false, "multi": false,
    })
}

/// Where the next panel goes.
#[derive(Default)]
struct Place {
    x: u32,
    y: u32,
    /// Of the tallest panel in this line.
    height: u32,
}

impl Place {
    /// Begins a new line, if anything is in this one.
    fn wrap(&mut self) {
        self.y += self.height;
        (self.x, self.height) = (0, 0);
    }

    fn take(&mut self, width: u32, height: u32) -> Value {
        if self.x + width > COLUMNS {
            self.wrap();
        }
        let place = json!({"x": self.x, "y": self.y, "w": width, "h": height});
        self.x += width;
        self.height = self.height.max(height);
        place
    }
}

fn panels(dashboard: &Dashboard) -> Vec<Value> {
    let mut place = Place::default();
    let mut all = Vec::new();
    for row in &dashboard.rows {
        place.wrap();
        all.push(json!({
            "id": all.len() + 1, "type": "row", "title": row.title, "collapsed": false, "panels": [],
            "gridPos": place.take(COLUMNS, OF_HEADING),
        }));
        for panel in &row.panels {
            let height = match panel.drawn {
                Drawn::Number => OF_NUMBER,
                Drawn::Lines | Drawn::Stacked | Drawn::Table => OF_OTHERS,
            };
            let at = place.take(panel.width, height);
            all.push(one(panel, all.len() + 1, &at));
        }
    }
    all
}

fn one(panel: &Panel, id: usize, at: &Value) -> Value {
    let (kind, options, custom) = match panel.drawn {
        Drawn::Lines => ("timeseries", lines(), drawn(0, "none")),
        Drawn::Stacked => ("timeseries", lines(), drawn(40, "normal")),
        Drawn::Number => ("stat", number(), json!({})),
        Drawn::Table => (
            "table",
            json!({"frameIndex": 0, "showHeader": true, "cellHeight": "sm"}),
            json!({"align": "auto", "inspect": false}),
        ),
    };
    let mut value = json!({
        "id": id, "type": kind, "title": panel.title, "description": panel.description.trim_end(),
        "datasource": chosen(), "gridPos": at, "options": options,
        "targets": targets(panel),
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit, "min": 0, "custom": custom,
                "color": {"mode": color(panel)}, "thresholds": thresholds(panel),
            },
            "overrides": units(panel),
        },
    });
    if panel.drawn == Drawn::Table {
        value["transformations"] = columns(panel);
    }
    value
}

fn lines() -> Value {
    json!({
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    })
}

fn drawn(fill: u32, stacking: &str) -> Value {
    json!({
        "drawStyle": "line", "lineWidth": 1, "fillOpacity": fill, "showPoints": "never", "spanNulls": false,
        "stacking": {"mode": stacking, "group": "A"},
    })
}

fn number() -> Value {
    json!({
        "colorMode": "value", "graphMode": "area", "textMode": "auto", "justifyMode": "auto", "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
        "wideLayout": true, "showPercentChange": false, "percentChangeColorMode": "standard",
    })
}

/// Lines have a colour each; what stands alone, that of its value.
fn color(panel: &Panel) -> &'static str {
    match panel.drawn {
        Drawn::Lines | Drawn::Stacked => "palette-classic",
        Drawn::Number | Drawn::Table => "thresholds",
    }
}

fn thresholds(panel: &Panel) -> Value {
    let lowest = panel.red_below.map_or("green", |_| "red");
    let mut steps = vec![json!({"color": lowest, "value": null})];
    for (color, value) in [
        ("green", panel.red_below),
        ("yellow", panel.yellow),
        ("red", panel.red),
    ] {
        steps.extend(value.map(|value| json!({"color": color, "value": value})));
    }
    json!({"mode": "absolute", "steps": steps})
}

/// A, B, C …
fn letter(number: usize) -> String {
    let letter = u8::try_from(number).map_or('Z', |number| char::from(b'A' + number.min(25)));
    letter.to_string()
}

fn targets(panel: &Panel) -> Vec<Value> {
    let table = panel.drawn == Drawn::Table;
    let targets = panel.queries.iter().enumerate().map(|(number, query)| {
        json!({
            "refId": letter(number), "datasource": chosen(), "editorMode": "code",
            "expr": query.query.trim_end(), "legendFormat": query.legend,
            "instant": table, "range": !table, "format": if table { "table" } else { "time_series" },
        })
    });
    targets.collect()
}

/// Columns with a unit of their own.
fn units(panel: &Panel) -> Vec<Value> {
    let of_query = panel.queries.iter().filter_map(|query| {
        let unit = query.unit.as_ref()?;
        Some(json!({
            "matcher": {"id": "byName", "options": query.legend},
            "properties": [{"id": "unit", "value": unit}],
        }))
    });
    of_query.collect()
}

/// One row for each set of labels, one column for each query under its name.
fn columns(panel: &Panel) -> Value {
    let (mut names, mut hidden) = (Map::new(), Map::new());
    for name in ["Time", "__name__", "job", "instance"] {
        hidden.insert(name.to_owned(), json!(true));
    }
    for (number, query) in panel.queries.iter().enumerate() {
        let column = match panel.queries.len() {
            1 => "Value".to_owned(),
            _ => format!("Value #{}", letter(number)),
        };
        if query.legend.is_empty() {
            hidden.insert(column, json!(true));
        } else {
            names.insert(column, json!(query.legend));
        }
    }
    json!([
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {
            "excludeByName": hidden, "indexByName": {}, "renameByName": names,
        }},
    ])
}
