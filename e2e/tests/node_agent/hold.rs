//! Pods that nothing holds (`trylatest.dev/hold: none`): they start as with `IfNotPresent`, and their next start has
//! what the tag points to.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::Api;
use serde_json::Value;
use trylatest_core::keys;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::install::running_container;
use trylatest_e2e::registry::Scheme;
use trylatest_e2e::workload::{PodSpec, annotation, is_running, restarts};

use crate::node::images;
use crate::private::{private, with_secret};
use crate::{Node, SOON, Space, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            a_container_that_restarts_has_its_image_tried,
            a_tag_that_has_moved_is_told_and_the_next_pod_runs_it,
            an_absent_image_is_pulled_by_the_kubelet,
            a_private_image_is_left_alone,
            an_unknown_value_is_complained_about,
        ],
        alone: Vec::new(),
    }
}

/// How long an image may wait for its try: 10 s for each image of the tests beside.
const TRIED: Duration = Duration::from_secs(60 + 45);

/// What starts again and again is tried in this time at most once.
const AFTER_START: Duration = Duration::from_secs(5 * 60);

fn unheld<'a>(name: &'a str, image: &'a str) -> PodSpec<'a> {
    tried(name, image).annotated(keys::HOLD, keys::HOLD_NONE)
}

/// Has the kubelet bring a copy that the agent knows nothing of; what it says and its digest.
async fn with_copy<'a>(node: &'a Node, name: &str) -> anyhow::Result<(Space<'a>, String)> {
    let space = node.space(name).await?;
    let digest = space.push("one").await?;
    let image = space.image();
    let plain = PodSpec::new("copy", &image, "IfNotPresent");
    space.work.run(&plain, SOON).await?;
    Ok((space, digest))
}

/// Runs it and waits until it is told what it runs.
async fn starts(space: &Space<'_>, spec: &PodSpec<'_>, version: &str) -> anyhow::Result<Value> {
    let name = spec.name;
    space.work.run(spec, SOON).await?;
    let pod = space.work.pods().get(name).await?;
    let inits = pod.spec.and_then(|spec| spec.init_containers);
    ensure!(inits.unwrap_or_default().is_empty(), "{name} has a gate");
    space.says(name, "app", version).await?;
    let event = space.work.wait_event(name, "TryLatestNotHeld", SOON);
    let event = event.await?;
    ensure!(event.starts_with("Normal "), "{event}");
    let release = space.work.released(name, "app").await?;
    ensure!(release["outcome"] == "not-held", "{name}: {release}");
    Ok(release)
}

/// As in an Event.
fn short(digest: &str) -> &str {
    &digest[..19]
}

/// The last try of the space's image that the agent remembers, once there is one.
async fn last_try(space: &Space<'_>, limit: Duration) -> anyhow::Result<Value> {
    wait::until("the image is tried", limit, || async {
        let images = images(space.node, "json").await?;
        let images: Vec<Value> = serde_json::from_str(&images)?;
        let image = images.iter().find(|image| image["image"] == space.image());
        let tried = image.map(|image| image["tries"][0].clone());
        Ok(tried.filter(Value::is_object))
    })
    .await
}

async fn a_tag_that_has_moved_is_told_and_the_next_pod_runs_it(node: &Node) -> anyhow::Result<()> {
    let (space, one) = with_copy(node, "holdmoved").await?;
    let two = space.push("two").await?;
    let image = space.image();
    let release = starts(&space, &unheld("first", &image), "one").await?;
    ensure!(release["digest"] == one.as_str(), "{release}");
    let event = space.work.wait_event("first", "TryLatestMoved", TRIED);
    let event = event.await?;
    for digest in [&one, &two] {
        ensure!(event.contains(short(digest)), "no {digest}: {event}");
    }
    let release = space.work.released("first", "app").await?;
    ensure!(release["moved"] == two.as_str(), "{release}");
    is_reported(&space, 1).await?;
    let release = starts(&space, &unheld("next", &image), "two").await?;
    ensure!(release["digest"] == two.as_str(), "{release}");
    ensure!(release["moved"].is_null(), "{release}");
    ensure!(release["confirmed"].is_string(), "{release}");
    space.work.delete_pod("first").await?;
    is_reported(&space, 0).await?;
    space.end().await
}

/// Waits until the node says that so many pods run what the tag has left.
async fn is_reported(space: &Space<'_>, behind: u64) -> anyhow::Result<()> {
    let nodes: Api<NodeObject> = Api::all(space.node.cluster.client());
    let name = space.node.cluster.node_name();
    wait::until("the node says how many are behind", SOON, || async {
        let node = nodes.get(&name).await?;
        let annotations = node.metadata.annotations.unwrap_or_default();
        let lines = annotations
            .get(keys::NODE_IMAGES)
            .map_or("", String::as_str);
        // Those with such pods come first; others may be too many for the annotation.
        let ours = lines.lines().find(|line| line.contains(&space.image()));
        let is_moved = ours.is_some_and(|ours| ours.starts_with("MOVED  "));
        let counts = |ours: &str| ours.contains(&format!("  {behind} of "));
        let is_right = if behind > 0 {
            is_moved && ours.is_some_and(counts)
        } else {
            !is_moved
        };
        Ok(is_right.then_some(()))
    })
    .await
}

async fn an_absent_image_is_pulled_by_the_kubelet(node: &Node) -> anyhow::Result<()> {
    let space = node.space("holdabsent").await?;
    let digest = space.push("one").await?;
    let image = space.image();
    let release = starts(&space, &unheld("app", &image), "one").await?;
    ensure!(release["digest"] == digest.as_str(), "{release}");
    let pulled = "Successfully pulled image";
    space.work.wait_event("app", pulled, SOON).await?;
    let tried = last_try(&space, TRIED).await?;
    ensure!(tried["result"] == "unchanged", "{tried}");
    space.end().await
}

/// Nobody waits for it: its name is not taken away, and the agent asks no second time.
async fn a_private_image_is_left_alone(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "holdprivate", Scheme::Basic).await?;
    let image = space.image();
    let spec = with_secret("first", &image).annotated(keys::HOLD, keys::HOLD_NONE);
    starts(&space, &spec, "one").await?;
    let refused = last_try(&space, TRIED).await?;
    ensure!(refused["class"] == "unauthorized", "{refused}");
    space.push("two").await?;
    let spec = with_secret("second", &image).annotated(keys::HOLD, keys::HOLD_NONE);
    starts(&space, &spec, "one").await?;
    let again = last_try(&space, SOON).await?;
    ensure!(again == refused, "it was tried again: {again}");
    let events = space.work.events("first").await?;
    ensure!(
        !events.iter().any(|event| event.contains("TryLatestMoved")),
        "{events:?}"
    );
    space.end().await
}

/// Once it has restarted again, it runs what the try has brought.
async fn a_container_that_restarts_has_its_image_tried(node: &Node) -> anyhow::Result<()> {
    let (space, _) = with_copy(node, "holdrestart").await?;
    let image = space.image();
    starts(&space, &unheld("app", &image), "one").await?;
    last_try(&space, TRIED).await?;
    let two = space.push("two").await?;
    restart(&space, 1).await?;
    space.says("app", "app", "one").await?;
    let event = space
        .work
        .wait_event("app", "TryLatestMoved", AFTER_START + TRIED);
    let event = event.await?;
    ensure!(event.contains(short(&two)), "{event}");
    restart(&space, 2).await?;
    space.says("app", "app", "two").await?;
    let is_told = |pod: &Pod| {
        let release = annotation(pod, keys::RELEASED);
        let release = release.and_then(|json| serde_json::from_str::<Value>(json).ok());
        release.is_some_and(|release| release["containers"]["app"]["digest"] == two.as_str())
    };
    space
        .work
        .wait_pod("app", "it is told", SOON, is_told)
        .await?;
    space.end().await
}

/// Kills the container and waits until the kubelet has started it again, so many times in all.
async fn restart(space: &Space<'_>, times: i32) -> anyhow::Result<()> {
    let pod = space.work.pods().get("app").await?;
    let id = running_container(&pod).context("the container does not run")?;
    space.node.cluster.kill_container(&id).await?;
    let again = |pod: &Pod| is_running(pod) && restarts(pod) == times;
    let limit = SOON + Duration::from_secs(10);
    let again = space.work.wait_pod("app", "it runs again", limit, again);
    again.await.map(|_| ())
}

async fn an_unknown_value_is_complained_about(node: &Node) -> anyhow::Result<()> {
    let space = node.space("holdunknown").await?;
    space.push("one").await?;
    let image = space.image();
    let spec = tried("app", &image).annotated(keys::HOLD, "off");
    space.run_spec(&spec, SOON, "fresh", "one").await?;
    let event = space.work.wait_event("app", "TryLatestBadSetting", SOON);
    let event = event.await?;
    ensure!(event.starts_with("Warning "), "{event}");
    ensure!(event.contains(keys::HOLD), "{event}");
    space.end().await
}
