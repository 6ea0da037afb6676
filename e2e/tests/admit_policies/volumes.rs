//! Image volumes that say `TryLatest`, in pods and in templates.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_e2e::suite::Case;

use crate::Api;
use crate::space::{
    Apply, annotation, container, gate_for, gate_of, gates, image_volume, not_gated, pod_of,
    policies, volume_policies,
};
use crate::templates::{KINDS, object};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![
        Case::new("an_image_volume_is_gated", an_image_volume_is_gated),
        Case::new("volumes_by_hand_are_resolved", volumes_by_hand_are_resolved),
        Case::new("an_image_volume_that_is_not_held", that_is_not_held),
        Case::new("a_pod_keeps_the_names_of_its_volumes", keeps_its_names),
        Case::new("an_image_volume_in_a_template", in_a_template),
        Case::new("an_image_volume_that_is_overtaken", that_is_overtaken),
    ]
}

/// One container and these volumes.
fn spec(policy: &str, volumes: &[Value]) -> Value {
    json!({"containers": [container("app", policy)], "volumes": volumes})
}

async fn an_image_volume_is_gated(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("image-volume").await?;
    let volumes = [
        image_volume("one", "Always"),
        image_volume("two", "TryLatest"),
    ];
    let stored = space
        .create(&pod_of("only", &json!({}), &spec("Always", &volumes)))
        .await?;
    gate_for(&stored, keys::VOLUMES, "two")?;
    ensure!(
        annotation(&stored, keys::CONTAINERS).is_none(),
        "{stored:#}"
    );
    ensure!(policies(&stored["spec"]) == ["app=Always"]);
    let found = volume_policies(&stored["spec"]).join(" ");
    ensure!(found == "one=Always two=IfNotPresent", "{found}");
    let stored = space
        .create(&pod_of("both", &json!({}), &spec("TryLatest", &volumes)))
        .await?;
    gate_of(&stored, "app")?;
    gate_for(&stored, keys::VOLUMES, "two")?;
    // Where no agent is, it is a plain volume.
    let mut windows = spec("Always", &volumes);
    windows["os"] = json!({"name": "windows"});
    let stored = space
        .create(&pod_of("windows", &json!({}), &windows))
        .await?;
    not_gated(&stored)?;
    let found = volume_policies(&stored["spec"]).join(" ");
    ensure!(found == "one=Always two=IfNotPresent", "{found}");
    Ok(())
}

async fn volumes_by_hand_are_resolved(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("volumes").await?;
    let empty = json!({"name": "empty", "emptyDir": {}});
    let volumes = [
        image_volume("one", "Always"),
        empty,
        image_volume("two", ""),
    ];
    let spec = spec("Always", &volumes);
    for (index, (written, names, wanted)) in [
        ("two", "two", "one=Always two=IfNotPresent"),
        (
            " two , one,",
            "one,two",
            "one=IfNotPresent two=IfNotPresent",
        ),
        ("*", "one,two", "one=IfNotPresent two=IfNotPresent"),
        // What matches nothing is kept for the agent to complain about.
        ("typo,one", "one,typo", "one=IfNotPresent two=IfNotPresent"),
        ("empty", "empty", "one=Always two=IfNotPresent"),
        (
            "trylatest-gate",
            "trylatest-gate",
            "one=Always two=IfNotPresent",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let annotations = json!({ keys::VOLUMES: written });
        let pod = pod_of(&format!("pod-{index}"), &annotations, &spec);
        let stored = space.create(&pod).await?;
        gate_for(&stored, keys::VOLUMES, names)
            .with_context(|| format!("written as {written:?}"))?;
        let found = volume_policies(&stored["spec"]).join(" ");
        ensure!(found == wanted, "{written:?}: {found}");
        ensure!(policies(&stored["spec"]) == ["app=Always"], "{written:?}");
    }
    // Containers' names are not volumes'.
    for (index, annotations) in [json!({ keys::VOLUMES: " ,"}), json!({"own": "*"})]
        .into_iter()
        .enumerate()
    {
        let pod = pod_of(&format!("none-{index}"), &annotations, &spec);
        not_gated(&space.create(&pod).await?)?;
    }
    let pod = pod_of("star", &json!({ keys::CONTAINERS: "*" }), &spec);
    let stored = space.create(&pod).await?;
    gate_of(&stored, "app")?;
    ensure!(annotation(&stored, keys::VOLUMES).is_none(), "{stored:#}");
    Ok(())
}

async fn that_is_not_held(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("volume-hold").await?;
    let annotations = json!({ keys::HOLD: keys::HOLD_NONE });
    let spec = spec("Always", &[image_volume("data", "TryLatest")]);
    let stored = space.create(&pod_of("app", &annotations, &spec)).await?;
    ensure!(gates(&stored).is_empty(), "{stored:#}");
    let label = &stored["metadata"]["labels"][keys::GATED];
    ensure!(*label == keys::GATED_NONE, "the label is {label}");
    ensure!(
        annotation(&stored, keys::VOLUMES) == Some("data"),
        "{stored:#}"
    );
    ensure!(volume_policies(&stored["spec"]) == ["data=IfNotPresent"]);
    Ok(())
}

/// What the pod has was settled when it was made.
async fn keeps_its_names(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("volume-names").await?;
    let written = spec("TryLatest", &[image_volume("data", "TryLatest")]);
    for by in Apply::BOTH {
        let name = format!("app-{by:?}").to_lowercase();
        let manifest = pod_of(&name, &json!({ keys::VOLUMES: "*" }), &written);
        let first = space.apply_by(by, &manifest).await?;
        let second = space.apply_by(by, &manifest).await?;
        gate_for(&second, keys::VOLUMES, "data")?;
        let version = |pod: &Value| pod["metadata"]["resourceVersion"].clone();
        ensure!(version(&first) == version(&second), "{name}: {second:#}");
        for change in ["=other", "=*", "-"] {
            let change = format!("{}{change}", keys::VOLUMES);
            let args = ["annotate", "--overwrite", "pod", &name, &change];
            space.kubectl(&args, None).await?;
            gate_for(&space.get("pod", &name).await?, keys::VOLUMES, "data")?;
        }
    }
    // One that has none gets none.
    let plain = spec("TryLatest", &[image_volume("data", "Always")]);
    space.create(&pod_of("plain", &json!({}), &plain)).await?;
    let change = format!("{}=data", keys::VOLUMES);
    space
        .kubectl(&["annotate", "pod", "plain", &change], None)
        .await?;
    let stored = space.get("pod", "plain").await?;
    gate_of(&stored, "app")?;
    ensure!(annotation(&stored, keys::VOLUMES).is_none(), "{stored:#}");
    Ok(())
}

/// What is literal follows what is applied, and nothing else rolls a workload out.
async fn in_a_template(api: Arc<Api>) -> anyhow::Result<()> {
    for by in Apply::BOTH {
        for kind in KINDS {
            // A Job's template cannot change.
            if kind.1 == "Job" {
                continue;
            }
            let space = api.space("volume-template").await?;
            for (app, data, literal, policy) in [
                (
                    "TryLatest",
                    "TryLatest",
                    Some("app,volume/data"),
                    "IfNotPresent",
                ),
                ("TryLatest", "", Some("app"), "IfNotPresent"),
                (
                    "TryLatest",
                    "TryLatest",
                    Some("app,volume/data"),
                    "IfNotPresent",
                ),
                ("", "TryLatest", Some("volume/data"), "IfNotPresent"),
                ("", "Always", None, "Always"),
                ("", "TryLatest", Some("volume/data"), "IfNotPresent"),
                ("", "IfNotPresent", None, "IfNotPresent"),
            ] {
                let template =
                    json!({"metadata": {}, "spec": spec(app, &[image_volume("data", data)])});
                let manifest = object(kind, &template);
                let first = space.apply_by(by, &manifest).await?;
                let why = || format!("{by:?} {kind:?} {app:?} {data:?}");
                let stored = first.pointer(kind.2).context("no template")?;
                let found = annotation(stored, keys::LITERAL);
                ensure!(found == literal, "{}: {found:?}", why());
                let found = volume_policies(&stored["spec"]);
                ensure!(found == [format!("data={policy}")], "{}: {found:?}", why());
                let again = space.apply_by(by, &manifest).await?;
                ensure!(
                    again.pointer(kind.2) == Some(stored),
                    "{}: {again:#}",
                    why()
                );
            }
        }
    }
    let space = api.space("volume-pods").await?;
    let annotations = json!({ keys::LITERAL: "volume/data,volume/two" });
    let volumes = [
        image_volume("data", "IfNotPresent"),
        image_volume("two", "Never"),
    ];
    let stored = space
        .create(&pod_of("app", &annotations, &spec("Always", &volumes)))
        .await?;
    gate_for(&stored, keys::VOLUMES, "data").map(|_| ())
}

/// A policy that ran before ours has given it `Always`.
async fn that_is_overtaken(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("volume-always").await?;
    let annotations = json!({ keys::LITERAL: "volume/data" });
    let spec = spec("IfNotPresent", &[image_volume("data", "Always")]);
    let stored = space.create(&pod_of("app", &annotations, &spec)).await?;
    ensure!(gates(&stored).is_empty(), "{stored:#}");
    let label = &stored["metadata"]["labels"][keys::GATED];
    ensure!(*label == keys::GATED_OVERRULED, "the label is {label}");
    ensure!(volume_policies(&stored["spec"]) == ["data=Always"]);
    Ok(())
}
