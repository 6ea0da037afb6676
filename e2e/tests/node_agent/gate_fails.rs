//! A private image's name goes before the pod's gate starts. So it has to come back if that gate never starts, or dies:
//! the pod, and others of its image, are then no worse off than with `IfNotPresent`. Every test wants the node for
//! itself.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::PostParams;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::install::IMAGE;
use trylatest_e2e::registry::{Fault, Scheme};
use trylatest_e2e::workload::GATE;

use crate::deaths::gate_runs;
use crate::gate_image::Moved;
use crate::handover::{is_there_again, nothing_is_aside, runs};
use crate::private::{SECRET, alice, became, becomes, outcome_of, private, with_secret};
use crate::{Node, SOON, Space, Tests, tests};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![],
        alone: tests![
            the_name_goes_before_the_gate_starts_and_comes_back_with_the_pods_end,
            a_gate_that_cannot_start_has_the_name_away_for_two_minutes,
            a_gate_that_cannot_start_is_in_no_other_pods_way,
            a_gate_that_dies_while_the_name_is_away_runs_again,
            a_gate_that_dies_for_good_gives_the_name_back,
        ],
    }
}

/// How long a name may be away at most (ADR 8), and the same on a busy machine.
const AWAY: Duration = Duration::from_secs(120 + 45);

/// Nobody makes or pulls it.
const NOWHERE: &str = "mirror.invalid/busybox:0.1.0";

/// A pod `app` whose gate cannot start, because its image cannot be had.
struct Stuck<'a> {
    /// The pod's namespace.
    moved: Moved<'a>,
    /// Its image, and another namespace whose gates start.
    space: Space<'a>,
}

impl<'a> Stuck<'a> {
    /// Its image is private and on the node, and the kubelet is to pull it although the gate has never run.
    async fn with_its_name_away(node: &'a Node, name: &str) -> anyhow::Result<Self> {
        let space = private(node, name, Scheme::Basic).await?;
        becomes(&space, "before", "fresh", "one").await?;
        let moved = Moved::to(node, NOWHERE).await?;
        let host = space.registry.host();
        let stuck = Self { moved, space };
        let work = &stuck.moved.space.work;
        work.pull_secret(SECRET, &host, &alice()).await?;
        let image = stuck.space.image();
        work.create(&with_secret("app", &image)).await?;
        let pod = work.wait_pod("app", "it is handed over", SOON, is_handed_over);
        let gate = gate_of(&pod.await?);
        let has_run = gate.is_some_and(|gate| {
            gate.container_id.is_some()
                || gate
                    .last_state
                    .is_some_and(|last| last.terminated.is_some())
        });
        ensure!(!has_run, "its gate has a container");
        is_away(&stuck.space).await?;
        Ok(stuck)
    }

    /// The gate's image is there from now on.
    async fn gate_starts(&self) -> anyhow::Result<()> {
        let containerd = self.space.node.cluster.containerd();
        let tag = ["images", "tag", IMAGE, NOWHERE];
        containerd.ctr(&tag).await.map(drop)
    }

    async fn end(self) -> anyhow::Result<()> {
        let containerd = self.space.node.cluster.containerd();
        containerd.ctr(&["images", "remove", NOWHERE]).await?;
        self.moved.undo().await?;
        self.space.end().await
    }
}

fn is_handed_over(pod: &Pod) -> bool {
    outcome_of(pod).as_deref() == Some("handed-over")
}

fn gate_of(pod: &Pod) -> Option<ContainerStatus> {
    let status = pod.status.as_ref()?;
    let mut inits = status.init_container_statuses.iter().flatten();
    inits.find(|init| init.name == GATE).cloned()
}

/// The kubelet finds no copy of the space's image.
async fn is_away(space: &Space<'_>) -> anyhow::Result<()> {
    let image = space.image();
    let containerd = space.node.cluster.containerd();
    let names = containerd.ctr(&["images", "list", "--quiet"]).await?;
    ensure!(names.lines().all(|name| name != image), "{image} is there");
    Ok(())
}

async fn the_name_goes_before_the_gate_starts_and_comes_back_with_the_pods_end(
    node: &Node,
) -> anyhow::Result<()> {
    let stuck = Stuck::with_its_name_away(node, "stuckdeleted").await?;
    stuck.moved.space.work.delete_pod("app").await?;
    is_there_again(&stuck.space).await?;
    nothing_is_aside(node).await?;
    becomes(&stuck.space, "next", "unchanged", "one").await?;
    stuck.end().await
}

async fn a_gate_that_cannot_start_has_the_name_away_for_two_minutes(
    node: &Node,
) -> anyhow::Result<()> {
    let stuck = Stuck::with_its_name_away(node, "stuckaway").await?;
    let image = stuck.space.image();
    let named = || async {
        let names = node
            .cluster
            .containerd()
            .ctr(&["images", "list", "--quiet"]);
        let names = names.await?;
        Ok(names.lines().any(|name| name == image).then_some(()))
    };
    wait::until("the name is there again", AWAY, named).await?;
    nothing_is_aside(node).await?;
    // In an outage it starts from the copy, as it would have without a gate.
    stuck.space.registry.fault(Fault::Unavailable).await?;
    stuck.gate_starts().await?;
    became(&stuck.moved.space, "app", "fallback", "one").await?;
    stuck.end().await
}

async fn a_gate_that_cannot_start_is_in_no_other_pods_way(node: &Node) -> anyhow::Result<()> {
    let stuck = Stuck::with_its_name_away(node, "stuckbeside").await?;
    becomes(&stuck.space, "next", "unchanged", "one").await?;
    nothing_is_aside(node).await?;
    // The kubelet's pull was good for the first one as well.
    stuck.gate_starts().await?;
    became(&stuck.moved.space, "app", "unchanged", "one").await?;
    stuck.end().await
}

/// A pod `app` whose gate is killed before it has seen its release.
async fn killed_with_the_name_away<'a>(
    node: &'a Node,
    name: &str,
    restart_policy: &str,
) -> anyhow::Result<Space<'a>> {
    let space = private(node, name, Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    let late = Fault::Latency(Duration::from_secs(3));
    space.registry.fault(late).await?;
    let image = space.image();
    let mut pod = with_secret("app", &image).object()?;
    if let Some(spec) = &mut pod.spec {
        spec.restart_policy = Some(restart_policy.to_owned());
    }
    let pods = space.work.pods();
    pods.create(&PostParams::default(), &pod).await?;
    let waits = space
        .work
        .wait_pod("app", "its gate waits", SOON, gate_runs);
    let gate = gate_of(&waits.await?).and_then(|gate| gate.container_id);
    let gate = gate.context("its gate has no container")?;
    // It does not bring the release to the gate.
    node.cluster.kubelet().freeze().await?;
    let killed = async {
        let handed_over = space
            .work
            .wait_pod("app", "it is handed over", SOON, is_handed_over);
        handed_over.await?;
        is_away(&space).await?;
        node.cluster.kill_container(&gate).await
    };
    let killed = killed.await;
    node.cluster.kubelet().thaw().await?;
    killed?;
    space.registry.heal().await?;
    Ok(space)
}

async fn a_gate_that_dies_while_the_name_is_away_runs_again(node: &Node) -> anyhow::Result<()> {
    let space = killed_with_the_name_away(node, "gatedies", "Always").await?;
    runs(&space, "app").await?;
    became(&space, "app", "unchanged", "one").await?;
    let gate = gate_of(&space.work.pods().get("app").await?);
    let restarts = gate.map(|gate| gate.restart_count);
    ensure!(restarts == Some(1), "its gate: {restarts:?} restarts");
    nothing_is_aside(node).await?;
    space.end().await
}

/// As a Job's pod may.
async fn a_gate_that_dies_for_good_gives_the_name_back(node: &Node) -> anyhow::Result<()> {
    let space = killed_with_the_name_away(node, "gatefails", "Never").await?;
    let failed = |pod: &Pod| {
        let status = pod.status.as_ref();
        status.and_then(|status| status.phase.as_deref()) == Some("Failed")
    };
    space.work.wait_pod("app", "it fails", SOON, failed).await?;
    is_there_again(&space).await?;
    nothing_is_aside(node).await?;
    becomes(&space, "next", "unchanged", "one").await?;
    space.end().await
}
