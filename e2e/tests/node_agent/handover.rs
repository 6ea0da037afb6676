//! A name that is away while the kubelet pulls comes back, whoever dies meanwhile.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use trylatest_e2e::registry::{Fault, Scheme};
use trylatest_e2e::workload::is_running;

use crate::deaths::kill_agent;
use crate::gate_image::is_named;
use crate::private::{
    AFTER_BACK_OFF, became, becomes, nobody_else_starts, outcome_of, private, with_secret,
};
use crate::{Node, SOON, Space, Tests, tests};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![a_pod_that_is_deleted_while_the_name_is_away_leaves_it_there],
        alone: tests![
            killed_while_a_name_is_away,
            killed_while_a_name_is_away_and_the_registry_goes,
            killed_at_any_moment_of_a_handover,
            stopped_while_a_name_is_away,
            uninstalled_while_a_name_is_away,
            containerd_dies_while_a_name_is_away,
            the_api_server_goes_while_a_name_is_away,
            the_node_reboots_while_a_name_is_away,
        ],
    }
}

/// A private image that is on the node, and the pod `app` that waits for the kubelet's pull of it.
pub(crate) async fn with_its_name_away<'a>(
    node: &'a Node,
    name: &str,
) -> anyhow::Result<Space<'a>> {
    let space = private(node, name, Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    away(&space, "app").await?;
    Ok(space)
}

/// A pod whose image's name is away for some seconds, while the kubelet waits for the registry.
pub(crate) async fn away(space: &Space<'_>, name: &str) -> anyhow::Result<()> {
    let late = Fault::Latency(Duration::from_secs(2));
    space.registry.fault(late).await?;
    let image = space.image();
    space.work.create(&with_secret(name, &image)).await?;
    let handed_over = |pod: &Pod| outcome_of(pod).as_deref() == Some("handed-over");
    let wait = space
        .work
        .wait_pod(name, "it is handed over", SOON, handed_over);
    wait.await?;
    Ok(())
}

pub(crate) async fn is_there_again(space: &Space<'_>) -> anyhow::Result<()> {
    is_named(space.node, &space.image()).await
}

/// The pod whose image's name was away runs, after the kubelet's back-off if need be.
pub(crate) async fn runs(space: &Space<'_>, name: &str) -> anyhow::Result<()> {
    let runs = space
        .work
        .wait_pod(name, "it runs", AFTER_BACK_OFF, is_running);
    runs.await?;
    Ok(())
}

/// No name that was taken away is left away.
pub(crate) async fn nothing_is_aside(node: &Node) -> anyhow::Result<()> {
    node.install.nothing_is_aside(&node.cluster).await
}

async fn a_pod_that_is_deleted_while_the_name_is_away_leaves_it_there(
    node: &Node,
) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "deleted").await?;
    space.work.delete_pod("app").await?;
    is_there_again(&space).await?;
    space.registry.heal().await?;
    becomes(&space, "next", "unchanged", "one").await?;
    space.end().await
}

async fn killed_while_a_name_is_away(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "killedaway").await?;
    kill_agent(node).await?;
    is_there_again(&space).await?;
    space.registry.heal().await?;
    runs(&space, "app")
        .await
        .context("after the agent was killed")?;
    nothing_is_aside(node).await?;
    node.install.wait_ready().await?;
    space.end().await
}

async fn killed_while_a_name_is_away_and_the_registry_goes(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "killedgone").await?;
    space.registry.fault(Fault::Unavailable).await?;
    kill_agent(node).await?;
    is_there_again(&space).await?;
    became(&space, "app", "fallback", "one").await?;
    nothing_is_aside(node).await?;
    node.install.wait_ready().await?;
    nobody_else_starts(&space).await?;
    space.end().await
}

/// The steps from the try's end to the kubelet's pull take a second or two; this goes through them.
async fn killed_at_any_moment_of_a_handover(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "anymoment", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    let image = space.image();
    for moment in 0..6_u64 {
        node.install.wait_ready().await?;
        let name = format!("app-{moment}");
        let spec = with_secret(&name, &image);
        let kill = async {
            tokio::time::sleep(Duration::from_millis(250 * moment)).await;
            kill_agent(node).await
        };
        let (created, killed) = tokio::join!(space.work.create(&spec), kill);
        created?;
        killed?;
        let ran = runs(&space, &name).await;
        ran.with_context(|| format!("moment {moment}"))?;
        space.says(&name, "app", "one").await?;
    }
    nothing_is_aside(node).await?;
    node.install.wait_ready().await?;
    space.end().await
}

async fn stopped_while_a_name_is_away(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "stopaway").await?;
    node.install.away().await?;
    let there = is_there_again(&space).await;
    node.install.back().await?;
    there?;
    space.registry.heal().await?;
    runs(&space, "app")
        .await
        .context("after the agent was stopped")?;
    nothing_is_aside(node).await?;
    space.end().await
}

/// As the README says, without waiting for anything first.
async fn uninstalled_while_a_name_is_away(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "uninstall").await?;
    let removed = node.install.remove(&node.cluster).await;
    let there = is_there_again(&space).await;
    let left = nothing_is_aside(node).await;
    space.registry.heal().await?;
    let ran = runs(&space, "app").await;
    node.install.set_up(&node.cluster).await?;
    removed?;
    there?;
    left?;
    ran.context("after TryLatest was removed")?;
    space.end().await
}

async fn containerd_dies_while_a_name_is_away(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "containerdaway").await?;
    node.cluster.containerd().kill().await?;
    space.registry.heal().await?;
    node.cluster.containerd().revive().await?;
    is_there_again(&space).await?;
    runs(&space, "app").await?;
    nothing_is_aside(node).await?;
    space.end().await
}

/// The agent cannot see what the kubelet does, and the registry fails.
async fn the_api_server_goes_while_a_name_is_away(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "apiaway").await?;
    node.cluster.control_plane().stop_apiserver().await?;
    let failing = space.registry.fault(Fault::Unavailable).await;
    let there = is_there_again(&space).await;
    node.cluster.control_plane().start_apiserver().await?;
    failing?;
    there?;
    became(&space, "app", "fallback", "one").await?;
    nothing_is_aside(node).await?;
    space.end().await
}

async fn the_node_reboots_while_a_name_is_away(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "rebootaway").await?;
    space.registry.fault(Fault::Unavailable).await?;
    node.cluster.reboot().await?;
    is_there_again(&space).await?;
    runs(&space, "app").await?;
    nothing_is_aside(node).await?;
    node.install.wait_ready().await?;
    space.end().await
}
