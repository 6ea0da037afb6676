//! Image volumes: the kubelet looks for their images whenever it starts a container, so the gate holds what mounts
//! them.

use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_e2e::registry::{Fault, Scheme};
use trylatest_e2e::workload::{PodSpec, is_running, release};

use crate::private::{AFTER_BACK_OFF, SECRET, became, becomes, private};
use crate::{Node, SOON, Space, Tests, tests};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            a_pod_mounts_what_the_tag_points_to_or_the_copy,
            a_pod_that_is_not_held_mounts_the_copy_and_the_next_one_what_is_new,
            a_private_volume_is_pulled_by_the_kubelet,
            a_plain_volume_beside_a_private_image_is_left_alone,
            a_plain_volume_of_the_private_image_itself_is_pulled_with_it,
            a_plain_volume_of_the_private_image_has_the_copy_if_the_kubelet_cannot_pull,
        ],
        alone: Vec::new(),
    }
}

/// How long an image may wait for its try: 10 s for each image of the tests beside.
const TRIED: Duration = Duration::from_secs(60 + 45);

/// As its release names it.
const VOLUME: &str = "volume/models";

/// The image of a pod's containers, which is not TryLatest.
async fn with_app(space: &Space<'_>) -> anyhow::Result<String> {
    let app = format!("{}-app", space.repository);
    space.push_to(&app, "app").await?;
    Ok(space.registry.image(&app, "latest"))
}

/// A pod that mounts the space's image; `reader` prints what is in it.
fn pod(space: &Space<'_>, app: &str, name: &str, annotations: &Value) -> anyhow::Result<Pod> {
    let mounts = json!([{"name": "models", "mountPath": "/models"}]);
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "imagePullSecrets": [{"name": SECRET}],
            "initContainers": [{
                "name": "reader", "image": app, "imagePullPolicy": "IfNotPresent",
                "args": ["cat", "/models/version"], "volumeMounts": mounts,
            }],
            "containers": [{
                "name": "app", "image": app, "imagePullPolicy": "IfNotPresent", "volumeMounts": mounts,
            }],
            "volumes": [{
                "name": "models",
                "image": {"reference": space.image(), "pullPolicy": "TryLatest"},
            }],
        },
    }))?)
}

/// Runs it and checks what it has mounted; what is said of the volume, once that has one of these outcomes.
async fn mounts(
    space: &Space<'_>,
    pod: &Pod,
    version: &str,
    outcomes: &[&str],
) -> anyhow::Result<Value> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let pods = space.work.pods();
    pods.create(&PostParams::default(), pod).await?;
    let is_told = |pod: &Pod| {
        let release = release(pod).unwrap_or_default();
        let outcome = release["containers"][VOLUME]["outcome"].as_str();
        is_running(pod) && outcome.is_some_and(|outcome| outcomes.contains(&outcome))
    };
    let what = format!("it runs and says {outcomes:?}");
    space
        .work
        .wait_pod(name, &what, AFTER_BACK_OFF, is_told)
        .await?;
    space.says(name, "reader", version).await?;
    space.work.released(name, VOLUME).await
}

async fn a_pod_mounts_what_the_tag_points_to_or_the_copy(node: &Node) -> anyhow::Result<()> {
    let space = node.space("volume").await?;
    let app = with_app(&space).await?;
    let plain = json!({});
    space.push("one").await?;
    // The kubelet may have pulled it before the gate began.
    let first = pod(&space, &app, "first", &plain)?;
    mounts(&space, &first, "one", &["fresh", "unchanged"]).await?;
    let two = space.push("two").await?;
    let release = mounts(
        &space,
        &pod(&space, &app, "second", &plain)?,
        "two",
        &["fresh"],
    )
    .await?;
    ensure!(release["digest"] == two.as_str(), "{release}");
    space.push("three").await?;
    space.registry.fault(Fault::Unavailable).await?;
    let third = pod(&space, &app, "third", &plain)?;
    let release = mounts(&space, &third, "two", &["fallback"]).await?;
    ensure!(release["digest"] == two.as_str(), "{release}");
    let event = space.work.wait_event("third", "TryLatestFallback", SOON);
    let event = event.await?;
    ensure!(event.contains(VOLUME), "{event}");
    let log = space.work.gate_log("third").await?;
    ensure!(log.contains(&format!("fallback: {VOLUME}: ")), "{log}");
    space.end().await
}

async fn a_pod_that_is_not_held_mounts_the_copy_and_the_next_one_what_is_new(
    node: &Node,
) -> anyhow::Result<()> {
    let space = node.space("volumehold").await?;
    let app = with_app(&space).await?;
    let unheld = json!({ keys::HOLD: keys::HOLD_NONE });
    space.push("one").await?;
    let mut plain = pod(&space, &app, "plain", &json!({}))?;
    for volume in plain
        .spec
        .iter_mut()
        .flat_map(|spec| spec.volumes.iter_mut().flatten())
    {
        if let Some(image) = &mut volume.image {
            image.pull_policy = Some("IfNotPresent".to_owned());
        }
    }
    space
        .work
        .pods()
        .create(&PostParams::default(), &plain)
        .await?;
    space
        .work
        .wait_pod("plain", "it runs", SOON, is_running)
        .await?;
    let two = space.push("two").await?;
    let first = pod(&space, &app, "first", &unheld)?;
    let release = mounts(&space, &first, "one", &["not-held"]).await?;
    // Which copy it is, the kubelet does not say.
    ensure!(release["digest"].is_null(), "{release}");
    let filter = format!("name=={}", space.image());
    trylatest_e2e::cluster::wait::until("the new copy is there", TRIED, || async {
        let containerd = node.cluster.containerd();
        let list = containerd.ctr(&["images", "list", &filter]).await?;
        Ok(list.contains(&two).then_some(()))
    })
    .await?;
    let second = pod(&space, &app, "second", &unheld)?;
    mounts(&space, &second, "two", &["not-held"]).await?;
    space.end().await
}

async fn a_private_volume_is_pulled_by_the_kubelet(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "volumeprivate", Scheme::Basic).await?;
    let app = with_app(&space).await?;
    let plain = json!({});
    let any = ["fresh", "unchanged"];
    mounts(&space, &pod(&space, &app, "first", &plain)?, "one", &any).await?;
    space.push("two").await?;
    let second = pod(&space, &app, "second", &plain)?;
    mounts(&space, &second, "two", &["fresh"]).await?;
    space.registry.fault(Fault::Unavailable).await?;
    let third = pod(&space, &app, "third", &plain)?;
    mounts(&space, &third, "two", &["fallback"]).await?;
    space.end().await
}

/// A pod whose private image is TryLatest, and whose image volume `models` is not; `reader` prints what is in that.
fn beside_private(
    space: &Space<'_>,
    reader: &str,
    name: &str,
    models: &str,
) -> anyhow::Result<Pod> {
    let mounts = json!([{"name": "models", "mountPath": "/models"}]);
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "imagePullSecrets": [{"name": SECRET}],
            "initContainers": [{
                "name": "reader", "image": reader, "imagePullPolicy": "IfNotPresent",
                "args": ["cat", "/models/version"], "volumeMounts": mounts,
            }],
            "containers": [{
                "name": "app", "image": space.image(), "imagePullPolicy": "TryLatest",
                "volumeMounts": mounts,
            }],
            "volumes": [{
                "name": "models", "image": {"reference": models, "pullPolicy": "IfNotPresent"},
            }],
        },
    }))?)
}

/// Another image, which the kubelet could not pull again: it is always there.
async fn a_plain_volume_beside_a_private_image_is_left_alone(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "volumeplain", Scheme::Basic).await?;
    let reader = with_app(&space).await?;
    let models = format!("{}-models", space.repository);
    space.push_to(&models, "model").await?;
    let volume = space.registry.image(&models, "latest");
    let pods = space.work.pods();
    let pod = beside_private(&space, &reader, "before", &volume)?;
    pods.create(&PostParams::default(), &pod).await?;
    became(&space, "before", "fresh", "one").await?;
    space.registry.fault_on(&models, Fault::Unavailable)?;
    let asked = space.registry.requests().total_on(&models);
    space.push("two").await?;
    for (name, outcome) in [("moved", "fresh"), ("next", "unchanged")] {
        let pod = beside_private(&space, &reader, name, &volume)?;
        pods.create(&PostParams::default(), &pod).await?;
        became(&space, name, outcome, "two").await?;
        space.says(name, "reader", "model").await?;
    }
    let now = space.registry.requests().total_on(&models);
    ensure!(now == asked, "the volume's image was asked for");
    space.end().await
}

/// Its name is away when the kubelet comes to the volume for the second time, after the gate, and not before.
async fn a_plain_volume_of_the_private_image_itself_is_pulled_with_it(
    node: &Node,
) -> anyhow::Result<()> {
    let space = private(node, "volumeself", Scheme::Basic).await?;
    let reader = with_app(&space).await?;
    let image = space.image();
    becomes(&space, "before", "fresh", "one").await?;
    space.push("two").await?;
    let pod = beside_private(&space, &reader, "moved", &image)?;
    let pods = space.work.pods();
    pods.create(&PostParams::default(), &pod).await?;
    became(&space, "moved", "fresh", "two").await?;
    space.says("moved", "reader", "two").await?;
    space.end().await
}

/// The registry asks for credentials, and then fails.
async fn a_plain_volume_of_the_private_image_has_the_copy_if_the_kubelet_cannot_pull(
    node: &Node,
) -> anyhow::Result<()> {
    let space = private(node, "volumefails", Scheme::Basic).await?;
    let reader = with_app(&space).await?;
    let image = space.image();
    becomes(&space, "before", "fresh", "one").await?;
    // The image of its first container is there as well.
    let plain = PodSpec::new("plain", &reader, "IfNotPresent");
    space.work.run(&plain, SOON).await?;
    let fails = Fault::Unavailable.with_credentials();
    space.registry.fault(fails).await?;
    let pod = beside_private(&space, &reader, "app", &image)?;
    let pods = space.work.pods();
    pods.create(&PostParams::default(), &pod).await?;
    became(&space, "app", "fallback", "one").await?;
    space.says("app", "reader", "one").await?;
    space.end().await
}
