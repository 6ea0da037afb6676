//! What a pod gets while the registry answers.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use serde_json::json;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::registry::{Fault, RequestKind};
use trylatest_e2e::workload::{PodSpec, image_id, is_running};

use crate::{Node, SOON, Space, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            fresh_then_unchanged_then_moved,
            a_digest_on_the_node_asks_no_registry,
            init_containers_and_sidecars_are_held_too,
            a_slow_download_is_caught_up,
            progress_is_shown_with_bytes,
            a_deleted_pod_leaves_the_others_alone,
        ],
        alone: tests![
            twenty_pods_cost_two_requests,
            an_answer_that_is_young_enough_serves_later_pods,
        ],
    }
}

async fn fresh_then_unchanged_then_moved(node: &Node) -> anyhow::Result<()> {
    let space = node.space("moved").await?;
    let first = space.push("one").await?;
    let release = space.run("first", "fresh", "one").await?;
    ensure!(release["digest"] == first, "{release}");
    space.run("second", "unchanged", "one").await?;
    let moved = space.push("two").await?;
    let release = space.run("third", "fresh", "two").await?;
    ensure!(release["digest"] == moved, "{release}");
    let pod = space.work.pods().get("third").await?;
    let runs = image_id(&pod).context("a running pod has an image")?;
    ensure!(runs.ends_with(&moved), "the kubelet says it runs {runs}");
    let log = space.work.gate_log("third").await?;
    let told = format!("fresh: app: pulled {}", space.image());
    ensure!(log.contains(&told), "the gate said {log:?}");
    let event = "Normal TryLatestFresh: app: pulled";
    space.work.wait_event("third", event, SOON).await?;
    space.end().await
}

async fn twenty_pods_cost_two_requests(node: &Node) -> anyhow::Result<()> {
    let space = node.space("burst").await?;
    space.push("one").await?;
    space.run("first", "fresh", "one").await?;
    let before = space.registry.requests();
    let image = space.image();
    let names: Vec<String> = (0..20).map(|n| format!("pod-{n}")).collect();
    let runs = names.iter().map(|name| async {
        let spec = PodSpec::new(name, &image, "TryLatest");
        space.work.run(&spec, SOON * 2).await
    });
    try_join_all(runs).await?;
    let asked = space.registry.requests().since(&before).total();
    ensure!((1..=2).contains(&asked), "{asked} requests for 20 pods");
    for name in &names {
        let release = space.work.released(name, "app").await?;
        ensure!(release["outcome"] == "unchanged", "{name}: {release}");
    }
    space.end().await
}

async fn an_answer_that_is_young_enough_serves_later_pods(node: &Node) -> anyhow::Result<()> {
    let variable = "TRYLATEST_FRESHNESS";
    node.install.set_variable(variable, Some("5m")).await?;
    let served = Box::pin(serves_later_pods(node)).await;
    node.install.set_variable(variable, None).await?;
    served
}

async fn serves_later_pods(node: &Node) -> anyhow::Result<()> {
    let space = node.space("young").await?;
    space.push("one").await?;
    space.run("first", "fresh", "one").await?;
    let before = space.registry.requests();
    space.push("two").await?;
    for name in ["second", "third"] {
        space.run(name, "unchanged", "one").await?;
    }
    let asked = space.registry.requests().since(&before).total();
    ensure!(asked == 0, "{asked} requests");
    space.end().await
}

async fn a_digest_on_the_node_asks_no_registry(node: &Node) -> anyhow::Result<()> {
    let space = node.space("digest").await?;
    let digest = space.push("one").await?;
    let image = format!("{}@{digest}", space.image());
    let spec = PodSpec::new("first", &image, "TryLatest");
    space.run_spec(&spec, SOON, "fresh", "one").await?;
    let before = space.registry.requests();
    let spec = PodSpec::new("second", &image, "TryLatest");
    space.run_spec(&spec, SOON, "unchanged", "one").await?;
    let asked = space.registry.requests().since(&before);
    ensure!(asked.total() == 0, "a digest cannot move: {asked}");
    space.end().await
}

async fn init_containers_and_sidecars_are_held_too(node: &Node) -> anyhow::Result<()> {
    let space = node.space("inits").await?;
    space.push("one").await?;
    let other = format!("{}-other", space.repository);
    space.push_to(&other, "other").await?;
    let other_image = space.registry.image(&other, "latest");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "app", "annotations": {"trylatest.dev/containers": "*"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "initContainers": [
                {"name": "setup", "image": space.image(), "args": ["cat", "/version"]},
                {"name": "sidecar", "image": other_image, "restartPolicy": "Always"},
            ],
            "containers": [{"name": "app", "image": space.image()}],
        },
    }))?;
    space
        .work
        .pods()
        .create(&PostParams::default(), &pod)
        .await?;
    space
        .work
        .wait_pod("app", "it runs", SOON, is_running)
        .await?;
    for container in ["setup", "sidecar", "app"] {
        let release = space.work.released("app", container).await?;
        ensure!(release["outcome"] == "fresh", "{container}: {release}");
    }
    space.says("app", "setup", "one").await?;
    space.says("app", "sidecar", "other").await?;
    space.end().await
}

/// One MiB is what containerd writes at a time.
const BIG: usize = 6 << 20;

async fn a_slow_download_is_caught_up(node: &Node) -> anyhow::Result<()> {
    let space = node.space("slow").await?;
    space.push("one").await?;
    space.run("first", "fresh", "one").await?;
    let moved = space.push_big("two", BIG).await?;
    // On a busy machine the pod takes seconds to start, and the old copy has to be there until then.
    let slow = Fault::SlowBlob {
        bytes_per_second: 1 << 19,
    };
    space.registry.fault(slow).await?;
    let image = space.image();
    let spec = tried("second", &image).annotated("trylatest.dev/timeout", "2s");
    let release = space.run_spec(&spec, SOON, "fallback", "one").await?;
    ensure!(release["class"] == "timeout", "{release}");
    // The download goes on although the pod did not wait for it.
    let caught_up = |text: &str| text.contains(&moved);
    wait_for_copy(&space, caught_up).await?;
    space.registry.heal().await?;
    space.run("third", "unchanged", "two").await?;
    space.end().await
}

async fn wait_for_copy(space: &Space<'_>, wanted: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let filter = format!("name=={}", space.image());
    wait::until("the copy is there", SOON, || async {
        let list = space
            .node
            .cluster
            .containerd()
            .ctr(&["images", "list", &filter])
            .await?;
        Ok(wanted(&list).then_some(()))
    })
    .await
}

async fn progress_is_shown_with_bytes(node: &Node) -> anyhow::Result<()> {
    let space = node.space("progress").await?;
    space.push_big("one", BIG).await?;
    let slow = Fault::SlowBlob {
        bytes_per_second: 1 << 20,
    };
    space.registry.fault(slow).await?;
    // A pod with nothing to start from waits as long as bytes flow, longer than it would try.
    let image = space.image();
    let spec = tried("app", &image).annotated("trylatest.dev/timeout", "1s");
    space.run_spec(&spec, SOON, "fresh", "one").await?;
    let log = space.work.gate_log("app").await?;
    ensure!(log.contains("trying: app: pulling"), "{log}");
    ensure!(log.contains("MiB"), "{log}");
    space.end().await
}

async fn a_deleted_pod_leaves_the_others_alone(node: &Node) -> anyhow::Result<()> {
    let space = node.space("deleted").await?;
    space.push("one").await?;
    let late = Fault::Latency(Duration::from_secs(1));
    space.registry.fault(late).await?;
    let image = space.image();
    let asked = |requests: &trylatest_e2e::registry::Requests| {
        requests.count(RequestKind::HeadManifest) > 0
    };
    space.work.create(&tried("gone", &image)).await?;
    tokio::time::timeout(SOON, space.registry.wait_until(asked)).await?;
    space.work.create(&tried("stays", &image)).await?;
    space.work.delete_pod("gone").await?;
    space
        .work
        .wait_pod("stays", "it runs", SOON, is_running)
        .await?;
    // By a try of its own: the one before began earlier than this pod.
    let release = space.work.released("stays", "app").await?;
    ensure!(release["outcome"] == "unchanged", "{release}");
    space.end().await
}
