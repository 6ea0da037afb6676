use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prometheus::proto::{MetricFamily, MetricType};
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::plan::{Fallback, Pulls, Standing};

use super::*;

const PAGE: &str = include_str!("../../../../../docs/metrics.md");

fn metrics() -> Metrics {
    Metrics::new("1.2.3").unwrap()
}

fn assert_shows(metrics: &Metrics, lines: &[&str]) {
    let text = metrics.text().unwrap();
    for line in lines {
        assert!(
            text.lines().any(|shown| shown == *line),
            "{line} is not in\n{text}"
        );
    }
}

fn release(container: &serde_json::Value) -> Release {
    let json =
        serde_json::json!({"time": "2026-01-01T12:00:00Z", "containers": {"app": container}});
    serde_json::from_value(json).unwrap()
}

fn tried(image: &str, failure: Option<FailureClass>) -> Try {
    let mut json = serde_json::json!({
        "image": image, "started": "2026-01-01T12:00:00Z", "durationMillis": 70, "result": "unchanged",
    });
    if let Some(class) = failure {
        json["result"] = "failed".into();
        json["class"] = class.as_str().into();
        json["message"] = "why".into();
    }
    serde_json::from_value(json).unwrap()
}

fn image(name: &str) -> NodeImage {
    NodeImage {
        image: name.parse().unwrap(),
        outcome: Outcome::Fresh,
        class: None,
        digest: format!("sha256:{}", "ab".repeat(32)).parse().ok(),
        tried: "2026-01-01T12:00:00Z".parse().unwrap(),
        rolled_back: None,
        confirmed: None,
        pods: 1,
        pods_refused: 0,
        pods_unavailable: 0,
        pods_from_cache: 0,
        pods_behind: 2,
    }
}

#[test]
fn expected_series_are_there_before_the_first_event() {
    assert_shows(
        &metrics(),
        &[
            "trylatest_build_info{version=\"1.2.3\"} 1",
            "trylatest_tries_total{class=\"network\",registry=\"other\",result=\"failed\"} 0",
            "trylatest_container_releases_total{outcome=\"refused\"} 0",
            "trylatest_fallbacks_total{class=\"unknown\",registry=\"other\"} 0",
            "trylatest_api_calls_total{operation=\"release\",result=\"timeout\"} 0",
            "trylatest_runtime_calls_total{result=\"unreachable\"} 0",
            "trylatest_pull_duration_seconds_count{result=\"cut\"} 0",
            "trylatest_gates_unseen_total{answer=\"refuse\"} 0",
            "trylatest_overruled_containers_total{container=\"gate\",policy=\"Always\"} 0",
            "trylatest_overflows_total{channel=\"gates\"} 0",
            "trylatest_overflows_total{channel=\"moved\"} 0",
            "trylatest_gate_image_wanted_total{result=\"made\"} 0",
            "trylatest_kept_copies_let_go_total{reason=\"age\"} 0",
        ],
    );
}

#[test]
fn a_start_without_a_gate_counts_once() {
    let metrics = metrics();
    let told = |digest: &str, moved: Option<&str>| {
        release(&serde_json::json!({
            "image": "a", "outcome": "not-held", "digest": digest, "moved": moved,
        }))
    };
    let (one, two) = ("sha256:1", "sha256:2");
    metrics.became(&told(one, None), None);
    metrics.became(&told(one, Some(two)), Some(&told(one, None)));
    metrics.became(&told(two, None), Some(&told(one, Some(two))));
    let line = "trylatest_container_releases_total{outcome=\"not-held\"} 2";
    assert_shows(&metrics, &[line]);
}

#[test]
fn a_container_that_is_not_as_its_rollout_counts_once() {
    let metrics = metrics();
    let release = |rollout: &str, runs: &str| {
        let digest = |n: &str| format!("sha256:{}", n.repeat(64));
        let runs = (!runs.is_empty()).then(|| digest(runs));
        release(&serde_json::json!({
            "image": "app", "outcome": "same", "digest": digest("1"), "rollout": digest(rollout), "runs": runs,
        }))
    };
    let (same, moved, mixed) = (release("1", ""), release("1", "2"), release("2", "2"));
    let count = |count| format!("trylatest_other_digests_total {count}");
    for (shown, released) in [(0, &same), (1, &mixed)] {
        metrics.released(released, Duration::ZERO);
        assert_shows(&metrics, &[&count(shown)]);
    }
    for (shown, release, before) in [(2, &moved, &same), (2, &mixed, &moved)] {
        metrics.became(release, Some(before));
        assert_shows(&metrics, &[&count(shown)]);
    }
}

/// A private image's pod is released before it is known what it starts from.
#[test]
fn what_became_of_a_release_counts_with_its_registry() {
    let metrics = metrics();
    let given = |outcome: &str| {
        release(&serde_json::json!({
            "image": "r.example:5000/app", "outcome": outcome, "class": "timeout", "message": "why",
        }))
    };
    metrics.registries.know("r.example:5000");
    metrics.released(&given("handed-over"), Duration::from_secs(2));
    metrics.became(&given("fallback"), Some(&given("handed-over")));
    metrics.became(&given("fallback"), Some(&given("fallback")));
    assert_shows(
        &metrics,
        &[
            "trylatest_container_releases_total{outcome=\"handed-over\"} 1",
            "trylatest_container_releases_total{outcome=\"fallback\"} 1",
            "trylatest_fallbacks_total{class=\"timeout\",registry=\"r.example:5000\"} 1",
            "trylatest_hold_duration_seconds_sum 2",
        ],
    );
}

#[test]
fn registries_have_series_of_their_own_as_long_as_they_are_known() {
    let metrics = metrics();
    metrics.tried(&tried("one.example/app", Some(FailureClass::Network)));
    metrics.tried(&tried("one.example/app", None));
    // It is nobody's try but the user's.
    let mut by_hand = tried("one.example/app", None);
    by_hand.by_hand = true;
    metrics.tried(&by_hand);
    let failure = Failure::new(FailureClass::Network, "why");
    metrics.registries.circuit_opened("one.example", &failure);
    let open = ["one.example", "two.example"].map(str::to_owned);
    metrics.registries.set_open_circuits(open.iter());
    assert_shows(
        &metrics,
        &[
            "trylatest_tries_total{class=\"network\",registry=\"one.example\",result=\"failed\"} 1",
            "trylatest_tries_total{class=\"none\",registry=\"one.example\",result=\"unchanged\"} 1",
            "trylatest_tries_total{class=\"none\",registry=\"one.example\",result=\"fresh\"} 0",
            "trylatest_circuit_openings_total{class=\"network\",registry=\"one.example\"} 1",
            "trylatest_open_circuits{registry=\"one.example\"} 1",
            "trylatest_open_circuits{registry=\"other\"} 1",
            "trylatest_try_duration_seconds_count{result=\"unchanged\"} 1",
        ],
    );
    metrics.registries.retain(&["two.example"]);
    metrics.registries.set_open_circuits(open[..1].iter());
    assert!(!metrics.text().unwrap().contains("one.example"));
    assert_shows(
        &metrics,
        &[
            "trylatest_open_circuits{registry=\"two.example\"} 0",
            "trylatest_open_circuits{registry=\"other\"} 1",
        ],
    );
}

/// The page says how many series there can be.
#[test]
fn the_number_of_series_is_bounded() {
    let samples = |metrics: &Metrics| {
        let text = metrics.text().unwrap();
        text.lines().filter(|line| !line.starts_with('#')).count()
    };
    let metrics = metrics();
    let at_first = samples(&metrics);
    for n in 0..100 {
        metrics.tried(&tried(&format!("r{n}.example/app"), None));
    }
    let images: Vec<NodeImage> = (0..100).map(|n| image(&format!("app{n}"))).collect();
    metrics.set_images(&images);
    let at_most = samples(&metrics);
    let said = format!("{at_first} series when it starts, and at most {at_most}");
    let page = PAGE.replace('\n', " ");
    assert!(page.contains(&said), "{said}");
    assert_shows(
        &metrics,
        &["trylatest_tries_total{class=\"none\",registry=\"other\",result=\"unchanged\"} 84"],
    );
}

#[tokio::test(start_paused = true)]
async fn ages_grow_while_nothing_happens() {
    let metrics = metrics();
    let clock = Clock::start();
    let now = clock.now();
    let standing = |count| Standing {
        count,
        since: Some(now.up),
    };
    let figures = Figures {
        pods: 5,
        waiting: standing(2),
        pulls: Pulls {
            moving: 3,
            stalled: 1,
            received_bytes: 100,
            expected_bytes: 700,
        },
        away: standing(1),
        fallback: Fallback {
            pods: 4,
            images: 3,
            unconfirmed: 1,
            oldest: Some(now.wall - Duration::from_secs(1000)),
        },
        images: 9,
    };
    metrics.set_figures(figures, clock);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_shows(
        &metrics,
        &[
            "trylatest_pods 5",
            "trylatest_waiting_pods 2",
            "trylatest_oldest_waiting_pod_age_seconds 60",
            "trylatest_running_pulls{state=\"moving\"} 3",
            "trylatest_running_pulls{state=\"stalled\"} 1",
            "trylatest_running_pulls_received_bytes 100",
            "trylatest_running_pulls_expected_bytes 700",
            "trylatest_names_away 1",
            "trylatest_oldest_name_away_age_seconds 60",
            "trylatest_fallback_pods 4",
            "trylatest_fallback_images 3",
            "trylatest_fallback_images_unconfirmed 1",
            "trylatest_oldest_fallback_copy_age_seconds 1060",
            "trylatest_index_images 9",
        ],
    );
    metrics.set_figures(Figures::default(), clock);
    assert_shows(
        &metrics,
        &[
            "trylatest_oldest_waiting_pod_age_seconds 0",
            "trylatest_oldest_name_away_age_seconds 0",
            "trylatest_oldest_fallback_copy_age_seconds 0",
        ],
    );
}

/// Type, labels and meaning, by name.
type Series = BTreeMap<String, (String, Vec<String>, String)>;

/// With a series of each.
fn families() -> Vec<MetricFamily> {
    let metrics = metrics();
    metrics.set_images(&[image("app")]);
    metrics.registry.gather()
}

fn served() -> Series {
    let series = families().into_iter().map(|family| {
        let kind = match family.get_field_type() {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            MetricType::HISTOGRAM => "histogram",
            other => panic!("{other:?}"),
        };
        let labels = family.get_metric()[0].get_label().iter();
        let mut labels: Vec<_> = labels.map(|label| label.name().to_owned()).collect();
        labels.sort();
        let (name, help) = (family.name().to_owned(), family.help().to_owned());
        (name, (kind.to_owned(), labels, help))
    });
    series.collect()
}

/// The cells of a table's lines, but for its head.
fn rows(text: &str) -> impl Iterator<Item = Vec<String>> {
    let lines = text.lines().filter(|line| line.starts_with("| `"));
    lines.map(|line| {
        let line = line.replace("\\|", "");
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    })
}

fn quoted(cell: &str) -> Vec<String> {
    let mut words: Vec<_> = cell
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    words.sort();
    words
}

#[test]
fn the_page_lists_what_is_served() {
    let (page, _) = PAGE.split_once("## Labels").unwrap();
    let documented: Series = rows(page)
        .map(|row| {
            let [name, kind, labels, help] = &row[..] else {
                panic!("{row:?}");
            };
            let help = help.clone();
            (quoted(name).remove(0), (kind.clone(), quoted(labels), help))
        })
        .collect();
    let served = served();
    for (name, series) in &documented {
        assert_eq!(served.get(name), Some(series), "{name} is on the page");
    }
    for (name, series) in &served {
        assert_eq!(documented.get(name), Some(series), "{name} is served");
    }
}

#[test]
fn the_page_lists_the_values_of_labels() {
    let (_, page) = PAGE.split_once("## Labels").unwrap();
    let mut values: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for family in families() {
        for label in family
            .get_metric()
            .iter()
            .flat_map(prometheus::proto::Metric::get_label)
        {
            let key = (label.name().to_owned(), family.name().to_owned());
            let values = values.entry(key).or_default();
            values.insert(label.value().to_owned());
        }
    }
    let free = ["image", "version"].map(str::to_owned);
    values.retain(|(label, _), _| !free.contains(label));
    let (rest, named): (Vec<_>, Vec<_>) = rows(page).partition(|row| quoted(&row[1]).is_empty());
    for row in named.into_iter().chain(rest) {
        let [label, of, words] = &row[..] else {
            panic!("{row:?}");
        };
        let (label, of) = (quoted(label).remove(0), quoted(of));
        if free.contains(&label) {
            continue;
        }
        let is_meant =
            |key: &(String, String)| key.0 == label && (of.is_empty() || of.contains(&key.1));
        let meant: BTreeSet<String> = values
            .extract_if(.., |key, _| is_meant(key))
            .flat_map(|(_, words)| words)
            .collect();
        let words: BTreeSet<String> = quoted(words).into_iter().collect();
        assert_eq!(words, meant, "{label} {of:?}");
    }
    assert!(values.is_empty(), "{values:?} is not on the page");
}
