//! What is committed is what the sources make, and names nothing that is not there.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

fn sources() -> Sources {
    Sources::here().unwrap()
}

#[test]
fn what_is_committed_is_what_the_sources_make() {
    for file in sources().generate().unwrap() {
        let path = file.path.display();
        let committed = fs::read_to_string(&file.path).unwrap_or_default();
        assert!(
            committed == file.text,
            "{path} is not what its source makes: run `just monitoring`"
        );
    }
}

/// The names in the first column of the tables of docs/metrics.md.
fn documented() -> BTreeSet<String> {
    let page = read(&sources().root().join("docs/metrics.md")).unwrap();
    let names = page.lines().filter_map(|line| {
        let name = line.strip_prefix("| `")?.split('`').next()?;
        name.contains('_').then(|| name.to_owned())
    });
    names.collect()
}

/// A histogram has no series of its own name.
fn of_histogram(name: &str) -> &str {
    let parts = ["_bucket", "_sum", "_count"];
    let base = parts.into_iter().find_map(|part| name.strip_suffix(part));
    base.unwrap_or(name)
}

#[test]
fn every_metric_of_a_query_is_documented() {
    let documented = documented();
    for query in sources().queries() {
        for name in query.metrics() {
            let known = name == "up" || documented.contains(of_histogram(&name));
            assert!(known, "{}: docs/metrics.md has no {name}", query.place);
        }
    }
}

#[test]
fn every_documented_metric_is_in_a_query() {
    // Nobody looks at these; they explain others, or are for those who debug.
    let unseen = [
        "process_max_fds",
        "process_start_time_seconds",
        "process_virtual_memory_bytes",
        "trylatest_config_loaded_timestamp_seconds",
    ];
    let queries = sources().queries();
    let names: BTreeSet<_> = queries.iter().flat_map(Query::metrics).collect();
    let shown: BTreeSet<_> = names.iter().map(|name| of_histogram(name)).collect();
    for name in documented() {
        let seen = shown.contains(name.as_str());
        assert!(seen != unseen.contains(&name.as_str()), "{name}");
    }
}

#[test]
fn every_query_names_a_metric() {
    for query in sources().queries() {
        assert!(!query.metrics().is_empty(), "{}", query.place);
    }
}

#[test]
fn a_dashboard_names_its_variables_and_no_others() {
    for dashboard in sources().dashboards() {
        let names: Vec<_> = dashboard
            .variables
            .iter()
            .map(|v| v.name.as_str())
            .collect();
        for query in dashboard.queries() {
            let filled: Vec<_> = names.iter().map(|name| (*name, "x")).collect();
            let text = query.filled("5m", &filled);
            assert!(!text.contains('$'), "{}: {text}", query.place);
            let used = names
                .iter()
                .all(|name| query.text.contains(&format!("${name}")));
            assert!(used, "{}: does not use {names:?}", query.place);
        }
    }
}

#[test]
fn every_alert_says_what_to_do() {
    let sources = sources();
    let base = "https://github.com/trylatest/trylatest/blob/main/";
    for alert in sources.rules().alerts() {
        let name = &alert.alert;
        assert!(name.starts_with("TryLatest"), "{name}");
        let severity = alert.labels.get("severity").map(String::as_str);
        assert!(matches!(severity, Some("warning" | "critical")), "{name}");
        for key in ["summary", "description"] {
            let text = alert.annotations.get(key).map_or("", |text| text.trim());
            assert!(text.ends_with('.'), "{name}: {key}: {text}");
        }
        let runbook = format!("docs/runbooks/{name}.md");
        let url = alert.annotations.get("runbook_url").map(String::as_str);
        assert_eq!(url, Some(format!("{base}{runbook}").as_str()), "{name}");
        let page = read(&sources.root().join(&runbook)).unwrap();
        assert!(page.starts_with(&format!("# {name}\n")), "{runbook}");
        let parts: Vec<_> = page
            .lines()
            .filter(|line| line.starts_with("## "))
            .collect();
        let wanted = ["## Meaning", "## Impact", "## Diagnosis", "## Mitigation"];
        assert_eq!(parts, wanted, "{runbook}");
    }
}

#[test]
fn every_runbook_is_of_an_alert() {
    let sources = sources();
    let names: BTreeSet<_> = sources
        .rules()
        .alerts()
        .map(|alert| alert.alert.clone())
        .collect();
    for entry in fs::read_dir(sources.root().join("docs/runbooks")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap();
        assert!(names.contains(name), "{}", path.display());
    }
}

/// Debian's Prometheus knows no Kubernetes: this is all that is checked of how the agents are found.
#[test]
fn the_agents_are_found_by_what_the_daemon_set_says() {
    let root = sources().root().to_owned();
    let yaml = |path: &str| -> Value {
        serde_saphyr::from_str(&read(&root.join("manifests").join(path)).unwrap()).unwrap()
    };
    let agent = &yaml("base/daemonset.yaml");
    let namespace = &agent["metadata"]["namespace"];
    let labels = &agent["spec"]["template"]["metadata"]["labels"];
    let port = &agent["spec"]["template"]["spec"]["containers"][0]["ports"][0]["name"];

    let monitor = yaml("monitoring/podmonitor.yaml");
    assert_eq!(&monitor["metadata"]["namespace"], namespace);
    assert_eq!(&monitor["spec"]["selector"]["matchLabels"], labels);
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!(&endpoint["port"], port);

    let scrape = &yaml("monitoring/scrape.yaml")["scrape_configs"][0];
    let found = &scrape["kubernetes_sd_configs"][0]["namespaces"]["names"][0];
    assert_eq!(found, namespace);
    let keep = &scrape["relabel_configs"][0];
    let values = labels.as_object().unwrap().values().chain([port]);
    let values: Vec<_> = values.map(|value| value.as_str().unwrap()).collect();
    let mut wanted: Vec<_> = keep["regex"].as_str().unwrap().split(';').collect();
    wanted.sort_unstable();
    let mut values = values;
    values.sort_unstable();
    assert_eq!(wanted, values);

    assert_eq!(
        &scrape["job_name"],
        &endpoint["relabelings"][0]["replacement"]
    );
}

#[test]
fn a_source_with_an_unknown_key_is_refused() {
    let text = "uid: a\ntitle: b\ndescription: c.\nrows: []\nrefesh: 1m\n";
    let error = source::parse(text, Path::new("a.yaml")).unwrap_err();
    assert!(format!("{error:#}").contains("refesh"), "{error:#}");
}
