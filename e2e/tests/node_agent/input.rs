//! Invalid input: the pod starts, and a Warning Event says what applies instead.

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use serde_json::json;
use trylatest_e2e::workload::PodSpec;

use crate::{Node, SOON, Tests, tests};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            bad_settings_are_named_and_the_default_is_used,
            an_unknown_container_is_named,
            an_unparsable_image_is_left_to_the_kubelet,
        ],
        alone: tests![],
    }
}

/// Longer than a computer can count seconds.
const TOO_LONG: &str = "5124095576030431h 15s 500ms 500ms";

async fn bad_settings_are_named_and_the_default_is_used(node: &Node) -> anyhow::Result<()> {
    let space = node.space("settings").await?;
    space.push("one").await?;
    let image = space.image();
    let spec = PodSpec::new("app", &image, "TryLatest")
        .annotated("trylatest.dev/timeout", TOO_LONG)
        .annotated("trylatest.dev/fallback-on", "network,dns")
        .annotated("trylatest.dev/max-age", "-1h");
    space.run_spec(&spec, SOON, "fresh", "one").await?;
    for key in ["timeout", "fallback-on", "max-age"] {
        let words = format!("Warning TryLatestBadSetting: trylatest.dev/{key}");
        let event = space.work.wait_event("app", &words, SOON).await?;
        ensure!(event.contains("the default applies"), "{event}");
    }
    space.end().await
}

async fn an_unknown_container_is_named(node: &Node) -> anyhow::Result<()> {
    let space = node.space("names").await?;
    space.push("one").await?;
    let image = space.image();
    let spec =
        PodSpec::new("app", &image, "Always").annotated("trylatest.dev/containers", "app,web");
    space.run_spec(&spec, SOON, "fresh", "one").await?;
    let event = space
        .work
        .wait_event("app", "Warning TryLatestBadSetting", SOON)
        .await?;
    ensure!(event.contains("web"), "{event}");
    space.end().await
}

async fn an_unparsable_image_is_left_to_the_kubelet(node: &Node) -> anyhow::Result<()> {
    let space = node.space("unparsable").await?;
    space.push("one").await?;
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "app"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {"name": "app", "image": space.image(), "imagePullPolicy": "TryLatest"},
                {"name": "bad", "image": "UPPER/Case:::", "imagePullPolicy": "TryLatest"},
            ],
        },
    }))?;
    space
        .work
        .pods()
        .create(&PostParams::default(), &pod)
        .await?;
    let event = space
        .work
        .wait_event("app", "Warning TryLatestBadSetting: container bad:", SOON);
    let event = event.await?;
    ensure!(event.contains("left to the kubelet"), "{event}");
    // The gate opens: the kubelet says the rest, and the other container starts.
    space
        .work
        .wait_event("app", "InvalidImageName", SOON)
        .await?;
    let started = |pod: &Pod| {
        let statuses = pod
            .status
            .as_ref()
            .and_then(|status| status.container_statuses.as_ref());
        let mut statuses = statuses.into_iter().flatten();
        statuses.any(|status| status.name == "app" && status.ready)
    };
    space
        .work
        .wait_pod("app", "its good container runs", SOON, started)
        .await?;
    space.end().await
}
