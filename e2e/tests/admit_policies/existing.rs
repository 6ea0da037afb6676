//! Pods that exist: applied again, changed, and given ephemeral containers.

use std::sync::Arc;

use anyhow::ensure;
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_e2e::suite::Case;

use crate::Api;
use crate::space::{
    Apply, annotated, annotation, container, gate_of, not_gated, pod, pod_of, policies,
};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![
        Case::new("a_bare_pod_applied_twice", a_bare_pod_applied_twice),
        Case::new("a_pod_keeps_its_policy", a_pod_keeps_its_policy),
        Case::new("a_gated_pod_keeps_its_names", a_gated_pod_keeps_its_names),
        Case::new("a_new_image_in_a_pod", a_new_image_in_a_pod),
        Case::new("ephemeral_containers", ephemeral_containers),
        Case::new("a_forged_label_gates_nothing", a_forged_label_gates_nothing),
    ]
}

/// What does not change is not written: the version stays.
async fn a_bare_pod_applied_twice(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("twice").await?;
    let spec = json!({
        "initContainers": [container("init", "TryLatest")],
        "containers": [container("app", "TryLatest"), container("two", "")],
        "volumes": [{"name": "data", "image": {
            "reference": "registry.example/data:v1", "pullPolicy": "TryLatest",
        }}],
    });
    let table = [
        ("literal", json!({}), "init,app"),
        ("star", json!({ keys::CONTAINERS: " * " }), "init,app,two"),
        (
            "typo",
            json!({ keys::CONTAINERS: "typo, two" }),
            "init,app,two,typo",
        ),
    ];
    for by in Apply::BOTH {
        for (name, annotations, names) in &table {
            let name = format!("{name}-{by:?}").to_lowercase();
            let manifest = pod_of(&name, annotations, &spec);
            let first = space.apply_by(by, &manifest).await?;
            let second = space.apply_by(by, &manifest).await?;
            gate_of(&second, names)?;
            let version = |pod: &Value| pod["metadata"]["resourceVersion"].clone();
            ensure!(version(&first) == version(&second), "{name}: {second:#}");
        }
    }
    Ok(())
}

/// A pod's policy cannot change; asking for TryLatest afterwards is not an error.
async fn a_pod_keeps_its_policy(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("keeps").await?;
    for policy in ["Always", "Never", "IfNotPresent"] {
        let name = policy.to_lowercase();
        space.apply(&pod(&name, policy)).await?;
        let stored = space.apply(&pod(&name, "TryLatest")).await?;
        not_gated(&stored)?;
        ensure!(policies(&stored["spec"]) == [format!("app={policy}")]);
    }
    Ok(())
}

/// What is held was settled when the pod was made.
async fn a_gated_pod_keeps_its_names(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("names").await?;
    space.create(&pod("app", "TryLatest")).await?;
    for change in ["=other", "=*", "-"] {
        let change = format!("{}{change}", keys::CONTAINERS);
        space
            .kubectl(
                &["annotate", "--overwrite", "pod", "app", &change, "own=x"],
                None,
            )
            .await?;
        let stored = space.get("pod", "app").await?;
        gate_of(&stored, "app")?;
        ensure!(annotation(&stored, "own") == Some("x"));
    }
    // A release is the agent's to write, but the pod's owner may: it opens their own gate only.
    let release = format!("{}=mine", keys::RELEASED);
    space
        .kubectl(&["annotate", "pod", "app", &release], None)
        .await?;
    Ok(())
}

async fn a_new_image_in_a_pod(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("image").await?;
    space.create(&pod("app", "TryLatest")).await?;
    space
        .kubectl(
            &["set", "image", "pod/app", "app=registry.example/app:v2"],
            None,
        )
        .await?;
    let stored = space.get("pod", "app").await?;
    gate_of(&stored, "app")?;
    ensure!(stored["spec"]["containers"][0]["image"] == "registry.example/app:v2");
    Ok(())
}

/// They start in a pod that runs: nothing is held.
async fn ephemeral_containers(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("ephemeral").await?;
    space.create(&pod("app", "Always")).await?;
    let ephemeral = json!({"spec": {"ephemeralContainers": [
        container("debug", "TryLatest"), container("other", "Always"),
    ]}});
    let patch = ephemeral.to_string();
    space
        .kubectl(
            &[
                "patch",
                "pod",
                "app",
                "--subresource=ephemeralcontainers",
                "-p",
                &patch,
            ],
            None,
        )
        .await?;
    let stored = space.get("pod", "app").await?;
    not_gated(&stored)?;
    let made = &stored["spec"]["ephemeralContainers"];
    ensure!(made[0]["imagePullPolicy"] == "IfNotPresent", "{made:#}");
    ensure!(made[1]["imagePullPolicy"] == "Always", "{made:#}");
    Ok(())
}

/// The label alone makes the agent look at a pod that waits for nothing.
async fn a_forged_label_gates_nothing(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("label").await?;
    let mut forged = annotated("app", "Always", &json!({}));
    forged["metadata"]["labels"] = json!({ keys::GATED: keys::GATED_VALUE });
    let stored = space.apply(&forged).await?;
    ensure!(stored["spec"]["initContainers"].is_null(), "{stored:#}");
    ensure!(policies(&stored["spec"]) == ["app=Always"]);
    let again = space.apply(&forged).await?;
    ensure!(again["metadata"]["resourceVersion"] == stored["metadata"]["resourceVersion"]);
    Ok(())
}
