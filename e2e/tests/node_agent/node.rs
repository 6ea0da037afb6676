//! The agent and the gate themselves: their image, their memory, their index, their probes.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::machine::{Running, check_listeners, processes_of};
use trylatest_e2e::registry::Fault;
use trylatest_e2e::usage::Usage;
use trylatest_e2e::workload::GATE;

use crate::{Node, SOON, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            the_gate_is_small_while_it_waits,
            the_agent_is_ready_and_counts,
            the_index_is_shown_while_the_agent_runs,
            applying_the_manifests_again_changes_nothing,
        ],
        alone: tests![
            a_corrupt_index_is_rebuilt,
            the_agent_counts_how_long_pods_wait,
            the_agent_is_small,
            nothing_listens_beyond_loopback,
            an_agent_whose_address_is_gone_works,
        ],
    }
}

/// The promise for the gate.
const GATE_BYTES_MAX: u64 = 4 << 20;

/// The promise for the agent.
const AGENT_BYTES_MAX: u64 = 20 << 20;

async fn the_gate_is_small_while_it_waits(node: &Node) -> anyhow::Result<()> {
    let space = node.space("small").await?;
    // Nothing is on the node and nothing comes: the gate waits.
    space.registry.fault(Fault::NeverAnswers).await?;
    let image = space.image();
    space.work.create(&tried("app", &image)).await?;
    let pod = space
        .work
        .wait_pod("app", "its gate waits", SOON, |pod| gate(pod).is_some())
        .await?;
    let id = gate(&pod).context("the gate waits")?;
    let pid = node
        .cluster
        .containerd()
        .pid_of(id.trim_start_matches("containerd://"))
        .await?;
    // It has looked at its file when it says what the agent does.
    let waits = || async {
        let log = space.work.gate_log("app").await.unwrap_or_default();
        Ok(log.contains("trying: app").then_some(()))
    };
    wait::until("the gate shows progress", SOON, waits).await?;
    let usage = Usage::of(pid)?;
    eprintln!(
        "a waiting gate: {} KiB, {} KiB of it its own, {:?} of CPU",
        usage.resident_bytes >> 10,
        usage.anonymous_bytes >> 10,
        usage.cpu
    );
    ensure!(usage.resident_bytes < GATE_BYTES_MAX, "{usage:?}");
    ensure!(usage.cpu < Duration::from_millis(100), "{usage:?}");
    space.end().await
}

/// The container id of a running gate.
fn gate(pod: &Pod) -> Option<String> {
    let statuses = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    let gate = statuses.iter().find(|status| status.name == GATE)?;
    gate.state.as_ref()?.running.as_ref()?;
    gate.container_id.clone()
}

async fn the_agent_is_ready_and_counts(node: &Node) -> anyhow::Result<()> {
    for probe in ["/livez", "/readyz"] {
        let (status, said) = node.install.get(probe).await?;
        ensure!(status == 200, "{probe}: {status} {said}");
    }
    let version = format!(
        "trylatest_build_info{{version=\"{}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    ensure!(node.install.metric(&version).await? > 0.0);
    ensure!(node.install.metric("trylatest_index_open").await? > 0.0);
    Ok(())
}

async fn the_agent_counts_how_long_pods_wait(node: &Node) -> anyhow::Result<()> {
    let space = node.space("waits").await?;
    space.push("one").await?;
    let late = Fault::Latency(Duration::from_secs(2));
    space.registry.fault(late).await?;
    let series = "trylatest_hold_duration_seconds_sum";
    let before = node.install.metric(series).await?;
    space.run("app", "fresh", "one").await?;
    let waited = node.install.metric(series).await? - before;
    ensure!(waited >= 2.0, "{series} has grown by {waited}");
    space.end().await
}

async fn the_index_is_shown_while_the_agent_runs(node: &Node) -> anyhow::Result<()> {
    let space = node.space("images").await?;
    let digest = space.push("one").await?;
    space.run("first", "fresh", "one").await?;
    space.registry.fault(Fault::Unavailable).await?;
    space.run("second", "fallback", "one").await?;
    let images = images(node, "json").await?;
    let images: Vec<Value> = serde_json::from_str(&images)?;
    let ours = images.iter().find(|image| image["image"] == space.image());
    let ours = ours.with_context(|| format!("{} is not in {images:?}", space.image()))?;
    let tries = ours["tries"].as_array().context("tries")?;
    ensure!(tries[0]["result"] == "failed", "{ours}");
    ensure!(
        tries[1]["result"] == "fresh" && tries[1]["digest"] == digest,
        "{ours}"
    );
    let table = self::images(node, "table").await?;
    ensure!(table.contains(&space.image()), "{table}");
    space.end().await
}

pub(crate) async fn images(node: &Node, output: &str) -> anyhow::Result<String> {
    node.trylatest(&["images", "-o", output]).await
}

async fn applying_the_manifests_again_changes_nothing(node: &Node) -> anyhow::Result<()> {
    let said = node.install.apply(&node.cluster).await?;
    ensure!(said.lines().count() > 5, "{said}");
    let changed: Vec<_> = said
        .lines()
        .filter(|line| !line.ends_with(" unchanged"))
        .collect();
    ensure!(changed.is_empty(), "{changed:?}");
    Ok(())
}

async fn a_corrupt_index_is_rebuilt(node: &Node) -> anyhow::Result<()> {
    let space = node.space("corrupt").await?;
    space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    node.install.away().await?;
    let file = node.install.state_dir().join("index.redb");
    let spoiled = fs::write(&file, b"this is no index");
    node.install.back().await?;
    spoiled.context("spoil the index")?;
    space.run("after", "unchanged", "one").await?;
    let log = node.install.log(false).await?;
    ensure!(log.contains("moved aside"), "{log}");
    let images = images(node, "json").await?;
    ensure!(images.contains(&space.image()), "{images}");
    space.end().await
}

/// The agent among others: it is found by its cgroup.
async fn nothing_listens_beyond_loopback(node: &Node) -> anyhow::Result<()> {
    check_listeners(node.cluster.dir(), 7)?;
    let folder = node.cluster.dir();
    let agent = |process: &Running| process.args.starts_with("/trylatest agent");
    ensure!(
        processes_of(folder)?.iter().any(agent),
        "the agent was not seen"
    );
    Ok(())
}

/// As after the node's address has changed: no interface has the agent's, which is reserved for documentation.
async fn an_agent_whose_address_is_gone_works(node: &Node) -> anyhow::Result<()> {
    let space = node.space("address").await?;
    space.push("one").await?;
    let gone = Ipv4Addr::new(192, 0, 2, 1);
    let works = async {
        node.install.set_address(gone, Ipv4Addr::LOCALHOST).await?;
        space.run("app", "fresh", "one").await?;
        let log = node.install.log(false).await?;
        ensure!(log.contains("no interface has this address"), "{log}");
        anyhow::Ok(())
    };
    let works = works.await;
    let own = node.cluster.address();
    node.install.set_address(own, own).await?;
    works?;
    space.end().await
}

async fn the_agent_is_small(node: &Node) -> anyhow::Result<()> {
    let id = node.install.container().await?;
    let pid = node
        .cluster
        .containerd()
        .pid_of(id.trim_start_matches("containerd://"))
        .await?;
    let usage = Usage::of(pid)?;
    eprintln!(
        "the agent: {} KiB, {} KiB of it its own",
        usage.resident_bytes >> 10,
        usage.anonymous_bytes >> 10
    );
    ensure!(usage.resident_bytes < AGENT_BYTES_MAX, "{usage:?}");
    Ok(())
}
