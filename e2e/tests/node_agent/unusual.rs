//! Pods that few people have, and that start in another way than others.

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_core::release::{FRESHNESS, Release};
use trylatest_e2e::cluster::{OTHER_RUNTIME, wait};
use trylatest_e2e::install::running_container;
use trylatest_e2e::registry::Fault;
use trylatest_e2e::workload::{annotation, image_id, is_running, release, restarts};

use crate::{Node, STALLED, Space, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            a_pod_that_restarts_as_a_whole_is_tried_again,
            a_runtime_with_a_snapshotter_of_its_own,
            an_agent_on_another_containerd_does_not_begin,
        ],
        alone: Vec::new(),
    }
}

/// What a container exits with that was killed.
const KILLED: i32 = 137;

/// The kubelet restarts all containers in place, the gate among them (KEP-5532). A gate that runs again soon opens with
/// the release that it has; later, the image is tried again.
async fn a_pod_that_restarts_as_a_whole_is_tried_again(node: &Node) -> anyhow::Result<()> {
    let space = node.space("whole").await?;
    space.push("one").await?;
    let image = space.image();
    let mut pod = serde_json::to_value(tried("app", &image).object()?)?;
    let container = &mut pod["spec"]["containers"][0];
    container["restartPolicy"] = json!("Never");
    container["restartPolicyRules"] = json!([{
        "action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [KILLED]},
    }]);
    starts(&space, pod, "one").await?;
    restart(&space, 1, "fresh").await?;
    space.push("two").await?;
    becomes_stale(&space).await?;
    restart(&space, 2, "fresh").await?;
    space.says("app", "app", "two").await?;
    space.end().await
}

/// Waits until a gate that starts would not open with the release that the pod has.
#[expect(clippy::disallowed_methods, reason = "the gate goes by real time")]
async fn becomes_stale(space: &Space<'_>) -> anyhow::Result<()> {
    let pod = space.work.pods().get("app").await?;
    let given: Release = serde_json::from_str(annotation(&pod, keys::RELEASED).context("none")?)?;
    wait::until("the release is stale", 2 * FRESHNESS, || async {
        let is_fresh = given.is_fresh(Timestamp::now(), FRESHNESS);
        Ok((!is_fresh).then_some(()))
    })
    .await
}

/// Kills the container, and waits until the pod runs again with this outcome, so many times in all.
async fn restart(space: &Space<'_>, times: i32, outcome: &str) -> anyhow::Result<()> {
    let pod = space.work.pods().get("app").await?;
    let id = running_container(&pod).context("the container does not run")?;
    space.node.cluster.kill_container(&id).await?;
    let again = |pod: &Pod| {
        let is = release(pod).is_some_and(|r| r["containers"]["app"]["outcome"] == outcome);
        is && is_true(pod) && restarts(pod) == times && gate_restarts(pod) == times
    };
    let again = space.work.wait_pod("app", "it runs again", STALLED, again);
    again.await.map(drop)
}

fn gate_restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.init_container_statuses.as_ref()?.first())
        .map_or(0, |gate| gate.restart_count)
}

/// containerd unpacks an image for such a runtime only when it makes the container: the agent's copy is good for it.
async fn a_runtime_with_a_snapshotter_of_its_own(node: &Node) -> anyhow::Result<()> {
    let classes: Api<RuntimeClass> = Api::all(node.cluster.client());
    let class = json!({"metadata": {"name": OTHER_RUNTIME}, "handler": OTHER_RUNTIME});
    let class: RuntimeClass = serde_json::from_value(class)?;
    classes.create(&PostParams::default(), &class).await?;
    let started = is_tried(node, "runtime", &json!({"runtimeClassName": OTHER_RUNTIME})).await;
    let params = DeleteParams::default();
    classes.delete(OTHER_RUNTIME, &params).await?;
    started
}

/// A containerd that does not run the agent's pod is not the kubelet's: what the agent pulled there would start nothing.
async fn an_agent_on_another_containerd_does_not_begin(node: &Node) -> anyhow::Result<()> {
    // The port is taken: that is found out later.
    let other = ["agent", "--pod-name=of-another-containerd"];
    let began = node.trylatest(&other).await;
    let why = format!("{:#}", began.err().context("it has begun")?);
    ensure!(why.contains("does not run this agent's pod"), "{why}");
    Ok(())
}

/// A pod with these fields gets what the tag points to, and its copy in an outage.
async fn is_tried(node: &Node, name: &str, fields: &Value) -> anyhow::Result<()> {
    let space = node.space(name).await?;
    let image = space.image();
    for (name, version) in [("first", "one"), ("moved", "two"), ("outage", "two")] {
        match name {
            "outage" => space.registry.fault(Fault::Unavailable).await?,
            _ => drop(space.push(version).await?),
        }
        let mut pod = serde_json::to_value(tried(name, &image).object()?)?;
        for (field, value) in fields.as_object().into_iter().flatten() {
            pod["spec"][field] = value.clone();
        }
        let release = starts(&space, pod, version).await?;
        let expected = if name == "outage" {
            "fallback"
        } else {
            "fresh"
        };
        ensure!(release["outcome"] == expected, "{name}: {release}");
    }
    space.end().await
}

/// Creates a pod, and waits until it runs what its release says: the release of its container.
async fn starts(space: &Space<'_>, pod: Value, version: &str) -> anyhow::Result<Value> {
    let pod: Pod = serde_json::from_value(pod)?;
    let params = PostParams::default();
    let pod = space.work.pods().create(&params, &pod).await?;
    let name = pod.metadata.name.unwrap_or_default();
    let runs = space.work.wait_pod(&name, "it runs", STALLED, is_true);
    let release = release(&runs.await?).unwrap_or_default();
    space.says(&name, "app", version).await?;
    Ok(release["containers"]["app"].clone())
}

/// Whether it runs the digest that its release names.
fn is_true(pod: &Pod) -> bool {
    let release = release(pod).unwrap_or_default();
    let digest = release["containers"]["app"]["digest"].as_str();
    let runs = image_id(pod).unwrap_or_default();
    is_running(pod) && digest.is_some_and(|digest| runs.ends_with(digest))
}
