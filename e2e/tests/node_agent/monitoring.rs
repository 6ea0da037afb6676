//! Every query of dashboards and alerts, on a real Prometheus that scrapes the agent while things go wrong.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_e2e::process;
use trylatest_e2e::prometheus::{Prometheus, Series};
use trylatest_e2e::registry::{Fault, Scheme};
use trylatest_e2e::workload::is_running;
use trylatest_monitoring::Sources;
use trylatest_monitoring::query::selectors;
use trylatest_monitoring::source::Dashboard;

use crate::config::{ARRIVES, configure};
use crate::private::{became, becomes, private, with_secret};
use crate::refused::refuses_pod;
use crate::{Node, SOON, STALLED, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![],
        // It looks at the whole node, and takes its agent away.
        alone: tests![every_query_shows_what_happens],
    }
}

/// Prometheus' own port, on the cluster's address.
const PORT: u16 = 9090;

/// How long Prometheus may take to see something: it looks every second.
const SEEN: Duration = Duration::from_secs(30);

/// Over which time rates are taken: some scrapes.
const RATE: &str = "10s";

/// A layer of this size takes seconds at this pace, so that a scrape sees it come.
const LARGE: usize = 6 << 20;
const SLOW: Fault = Fault::SlowBlob {
    bytes_per_second: 1 << 20,
};

/// What at least an agent must have counted for the alert: three containers.
const FALLBACKS: usize = 3;

/// Parts of queries that may stay 0, because nothing here makes them rise for certain.
const QUIET: [&str; 18] = [
    "!= bool min by (image)",
    "1 - trylatest_index_open",
    "result=~\"timeout|error\"",
    "result!=\"success\"",
    "trylatest_fallback_images_unconfirmed",
    "trylatest_gate_image_restored_total",
    "trylatest_gate_image_wanted_total",
    "trylatest_gates_unseen_total",
    "trylatest_index_failures_total",
    "trylatest_kept_copies_let_go_total",
    "trylatest_kept_copies_unpinned",
    "trylatest_names_given_back_total",
    "trylatest_other_digests_total",
    "trylatest_overflows_total",
    "trylatest_overruled_containers_total",
    "trylatest_pins_ignored",
    "trylatest_pods_behind",
    "trylatest_watch_failures_total",
];

/// The alerts whose reason is there; the others need hours, or do not happen.
const ALERTS: [&str; 7] = [
    "TryLatestFallbacksRising",
    "TryLatestRegistryFailing",
    "TryLatestRefusedPods",
    "TryLatestGatesUnanswered",
    "TryLatestAgentDown",
    "TryLatestAgentDownWhilePodsWait",
    "TryLatestConfigRefused",
];

/// It is pending until Prometheus has its first target.
const BEFORE_THE_FIRST_SCRAPE: &str = "TryLatestAgentsAbsent";

/// A Prometheus that scrapes the agent, since when, and the sources of what it is asked.
struct Seen {
    prometheus: Prometheus,
    begin: f64,
    sources: Sources,
    node: String,
}

impl Seen {
    async fn shows(&self, query: &str) -> anyhow::Result<()> {
        self.prometheus.shows(self.begin, query, SEEN).await
    }

    async fn alerts(&self, name: &str) -> anyhow::Result<()> {
        self.shows(&format!("ALERTS{{alertname=\"{name}\"}}")).await
    }

    async fn since(&self, query: &str) -> anyhow::Result<Vec<Series>> {
        self.prometheus.since(self.begin, query).await
    }
}

async fn every_query_shows_what_happens(node: &Node) -> anyhow::Result<()> {
    if !node.tools.prometheus().exists() {
        eprintln!("skipped: this machine has no Prometheus");
        return Ok(());
    }
    let seen = watched(node).await?;
    starts(node, &seen).await?;
    hands_over(node, &seen).await?;
    fails(node, &seen).await?;
    is_well_formed(node).await?;
    is_refused_a_configuration(node, &seen).await?;
    loses_its_agent(node, &seen).await?;

    let mut wrong = Vec::new();
    let shown = panels(&seen, &mut wrong).await?;
    alerts(&seen, &mut wrong).await?;
    let file = node.tools.root().join("target/monitoring.json");
    fs::write(&file, shown.to_string()).with_context(|| file.display().to_string())?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    seen.prometheus.stop().await
}

/// Starts Prometheus with the alerts, and waits until it has scraped the agent.
async fn watched(node: &Node) -> anyhow::Result<Seen> {
    let sources = Sources::here()?;
    let (cluster, name) = (&node.cluster, node.cluster.node_name());
    let agent = SocketAddr::from((cluster.address(), 9776));
    let rules = sources.root().join("manifests/monitoring/rules.yaml");
    let config = json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [rules],
        // As scrape.yaml; Debian's Prometheus does not know Kubernetes.
        "scrape_configs": [{
            "job_name": "trylatest-agent",
            "static_configs": [{"targets": [agent], "labels": {"node": name}}],
        }],
    });
    let log = cluster.logs().join("prometheus.log");
    let (program, folder) = (node.tools.prometheus(), cluster.dir().join("prometheus"));
    let address = SocketAddr::from((cluster.address(), PORT));
    let prometheus = Prometheus::start(&program, &folder, &log, address, &config).await?;
    let seen = Seen {
        begin: prometheus.now().await?,
        prometheus,
        sources,
        node: name,
    };
    seen.shows("up == 1").await?;
    Ok(seen)
}

/// Images come, one of them slowly; a pod starts without a gate.
async fn starts(node: &Node, seen: &Seen) -> anyhow::Result<()> {
    let space = node.space("shown").await?;
    space.push_big("one", LARGE).await?;
    space.registry.fault(SLOW).await?;
    let image = space.image();
    space.work.create(&tried("slow", &image)).await?;
    seen.shows("trylatest_running_pulls_received_bytes > 0")
        .await?;
    space.registry.heal().await?;
    space
        .work
        .wait_pod("slow", "it runs", SOON, is_running)
        .await?;
    space.run("again", "unchanged", "one").await?;
    let unheld = tried("unheld", &image).annotated(keys::HOLD, keys::HOLD_NONE);
    space.work.run(&unheld, SOON).await?;
    seen.shows("trylatest_container_releases_total{outcome=\"not-held\"} > 0")
        .await?;
    space.end().await
}

/// A private image is pulled by the kubelet, so slowly that its name is seen to be away.
async fn hands_over(node: &Node, seen: &Seen) -> anyhow::Result<()> {
    let space = private(node, "shown-private", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    space.push_big("two", LARGE).await?;
    space.registry.fault(SLOW).await?;
    let image = space.image();
    space.work.create(&with_secret("after", &image)).await?;
    // Whole seconds, so that it has been away for one at least when a scrape sees it.
    seen.shows("trylatest_oldest_name_away_age_seconds > 0")
        .await?;
    space.registry.heal().await?;
    became(&space, "after", "fresh", "two").await?;
    space.end().await
}

/// A registry fails: pods fall back, one must not, and one has nothing to fall back to.
async fn fails(node: &Node, seen: &Seen) -> anyhow::Result<()> {
    let space = node.space("shown-outage").await?;
    space.push("one").await?;
    let absent = format!("{}-absent", space.repository);
    space.push_to(&absent, "one").await?;
    space.run("before", "fresh", "one").await?;
    space.registry.fault(Fault::Unavailable).await?;
    for n in 0..FALLBACKS {
        space.run(&format!("after-{n}"), "fallback", "one").await?;
    }
    let (image, absent) = (space.image(), space.registry.image(&absent, "latest"));
    let strict = tried("strict", &image).annotated("trylatest.dev/max-age", "1s");
    refuses_pod(&space, &strict).await?;
    space.work.create(&tried("waits", &absent)).await?;
    seen.shows("trylatest_oldest_waiting_pod_age_seconds > 0")
        .await?;
    for alert in ["FallbacksRising", "RegistryFailing", "RefusedPods"] {
        seen.alerts(&format!("TryLatest{alert}")).await?;
    }
    space.registry.heal().await?;
    space
        .work
        .wait_pod("waits", "it runs", STALLED, is_running)
        .await?;
    space.end().await
}

/// Prometheus' own tool has nothing to say against names, types and help texts.
async fn is_well_formed(node: &Node) -> anyhow::Result<()> {
    let (status, metrics) = node.install.get("/metrics").await?;
    ensure!(status == 200, "{status} {metrics}");
    let check = ["check", "metrics"];
    process::run(&node.tools.promtool(), check, Some(metrics.as_bytes())).await?;
    Ok(())
}

async fn is_refused_a_configuration(node: &Node, seen: &Seen) -> anyhow::Result<()> {
    configure(node, Some("ceilings:\n  tri: 8s\n")).await?;
    let alert = "ALERTS{alertname=\"TryLatestConfigRefused\"}";
    let shown = seen.prometheus.shows(seen.begin, alert, ARRIVES).await;
    configure(node, None).await?;
    shown
}

/// The agent goes while a pod waits for it. Another pod starts without an agent, which counts it when it is back.
async fn loses_its_agent(node: &Node, seen: &Seen) -> anyhow::Result<()> {
    let broken = node.space("shown-broken").await?;
    broken.push("one").await?;
    broken.registry.fault(Fault::Unavailable).await?;
    let begin = seen.prometheus.now().await?;
    broken.work.create(&tried("waits", &broken.image())).await?;
    let waits = "trylatest_waiting_pods > 0";
    seen.prometheus.shows(begin, waits, SEEN).await?;
    let space = node.space("shown-alone").await?;
    space.push("one").await?;
    node.install.away().await?;
    let image = space.image();
    let ran = async {
        space.work.run(&tried("alone", &image), SOON).await?;
        seen.alerts("TryLatestAgentDown").await?;
        seen.alerts("TryLatestAgentDownWhilePodsWait").await?;
        anyhow::Ok(())
    };
    let ran = ran.await;
    node.install.back().await?;
    ran?;
    seen.alerts("TryLatestGatesUnanswered").await?;
    broken.end().await?;
    space.end().await
}

/// Asks what every panel asks, for the whole time. What the panels show, for pictures.
async fn panels(seen: &Seen, wrong: &mut Vec<String>) -> anyhow::Result<Value> {
    let mut shown = Vec::new();
    let mut quiet: BTreeSet<&str> = BTreeSet::new();
    for query in seen.sources.dashboards().flat_map(Dashboard::queries) {
        let filled = query.filled(RATE, &[("node", &seen.node)]);
        let series = seen.since(&filled).await?;
        let peak = series.iter().filter_map(Series::peak).reduce(f64::max);
        let part = QUIET.iter().find(|part| query.text.contains(*part));
        quiet.extend(part.copied());
        match peak {
            None => wrong.push(format!("{}: nothing: {filled}", query.place)),
            Some(peak) if peak <= 0.0 && part.is_none() => {
                wrong.push(format!("{}: only {peak}: {filled}", query.place));
            }
            Some(_) => {}
        }
        shown.push(json!({"place": query.place, "query": query.text, "series": series}));
    }
    let unused = QUIET.iter().filter(|part| !quiet.contains(*part));
    wrong.extend(unused.map(|part| format!("no query has {part}")));
    Ok(shown.into())
}

/// The alerts whose reason was there were pending at least, with words for people; the others were not.
async fn alerts(seen: &Seen, wrong: &mut Vec<String>) -> anyhow::Result<()> {
    for alert in seen.sources.rules().alerts() {
        let name = alert.alert.as_str();
        let query = format!("ALERTS{{alertname=\"{name}\"}}");
        let raised = !seen.since(&query).await?.is_empty();
        let wanted = ALERTS.contains(&name);
        if raised != wanted && name != BEFORE_THE_FIRST_SCRAPE {
            wrong.push(format!("{name}: raised: {raised}, wanted: {wanted}"));
        }
        for selector in selectors(&alert.expr) {
            if seen.since(selector).await?.is_empty() {
                wrong.push(format!("{name}: nothing: {selector}"));
            }
        }
    }
    let rules = seen.prometheus.api("rules").await?;
    let groups = rules["groups"].as_array().context("no groups")?;
    for rule in groups
        .iter()
        .filter_map(|group| group["rules"].as_array())
        .flatten()
    {
        if rule["health"] != "ok" {
            wrong.push(format!("{rule}"));
        }
        for alert in rule["alerts"].as_array().into_iter().flatten() {
            let text = alert["annotations"]["description"].as_str();
            // What a template could not fill in.
            if text.is_none_or(|text| text.contains(['<', '{'])) {
                wrong.push(format!("{alert}"));
            }
        }
    }
    Ok(())
}
