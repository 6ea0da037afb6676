//! `trylatest.dev/hold`: pods that are to start at once.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::suite::Case;

use crate::space::{
    Space, annotated, annotation, container, gate_of, not_gated, pod, pod_of, policies, unheld,
};
use crate::templates::{KINDS, object, template};
use crate::{Api, SOON};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![
        Case::new("hold_none_on_a_pod", on_a_pod),
        Case::new("hold_none_on_a_template", on_a_template),
        Case::new("hold_none_on_a_namespace", on_a_namespace),
        Case::new("hold_of_an_unknown_value", of_an_unknown_value),
        Case::new("hold_none_where_nothing_is_trylatest", of_other_pods),
        Case::new("hold_none_on_a_pod_made_from_a_dump", of_a_dump),
        Case::new("hold_none_that_comes_later", that_comes_later),
    ]
}

fn hold(value: &str) -> Value {
    json!({ keys::HOLD: value })
}

async fn on_a_pod(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("hold").await?;
    for (name, value) in [("plain", "none"), ("spaces", " none ")] {
        let written = annotated(name, "TryLatest", &hold(value));
        let stored = space.create(&written).await?;
        unheld(&stored, "app").context(value)?;
        ensure!(policies(&stored["spec"]) == ["app=IfNotPresent"]);
    }
    let by_hand = json!({ keys::HOLD: "none", keys::CONTAINERS: "two, typo" });
    let spec = json!({
        "initContainers": [container("init", "TryLatest")],
        "containers": [container("app", "Always"), container("two", "Always")],
        "volumes": [{"name": "data", "image": {"reference": "registry.example/data:v1", "pullPolicy": "TryLatest"}}],
    });
    let stored = space.create(&pod_of("by-hand", &by_hand, &spec)).await?;
    unheld(&stored, "init,two,typo")?;
    let volume = &stored["spec"]["volumes"][0]["image"];
    ensure!(volume["pullPolicy"] == "IfNotPresent", "{volume:#}");
    let found = policies(&stored["spec"]).join(" ");
    ensure!(found == "init=IfNotPresent app=Always two=IfNotPresent");
    // A container may have any name then: there is no gate.
    let spec =
        json!({"containers": [container(keys::GATE, "Always"), container("app", "TryLatest")]});
    let stored = space
        .create(&pod_of("same-name", &hold("none"), &spec))
        .await?;
    unheld(&stored, "app")?;
    let windows = json!({"containers": [container("app", "TryLatest")], "os": {"name": "windows"}});
    let stored = space
        .create(&pod_of("windows", &hold("none"), &windows))
        .await?;
    not_gated(&stored)
}

/// What the template says arrives at its pods.
async fn on_a_template(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("hold-template").await?;
    let mut written = template(&[container("app", "TryLatest")]);
    written["metadata"]["annotations"] = hold("none");
    for kind in KINDS {
        let stored = space.apply(&object(kind, &written)).await?;
        let template = stored.pointer(kind.2).context("no template")?;
        ensure!(annotation(template, keys::HOLD) == Some("none"), "{kind:?}");
        ensure!(
            annotation(template, keys::LITERAL) == Some("app"),
            "{kind:?}"
        );
    }
    let scale = ["scale", "deployment/deployment", "--replicas=1"];
    space.kubectl(&scale, None).await?;
    unheld(&made_for(&space, "deployment").await?, "app")?;
    let run = ["create", "job", "once", "--from=cronjob/cronjob"];
    space.kubectl(&run, None).await?;
    unheld(&made_for(&space, "cronjob").await?, "app")
}

/// The pod that a controller has made with this label.
async fn made_for(space: &Space<'_>, app: &str) -> anyhow::Result<Value> {
    let selector = format!("app={app}");
    wait::until("the pod is there", SOON, || async {
        let args = ["get", "pods", "-l", &selector, "-o", "json"];
        let list: Value = serde_json::from_str(&space.kubectl(&args, None).await?)?;
        let pod = &list["items"][0];
        Ok((!pod.is_null()).then(|| pod.clone()))
    })
    .await
}

/// The pod's own word counts first.
async fn on_a_namespace(api: Arc<Api>) -> anyhow::Result<()> {
    let labels = [(keys::HOLD, keys::HOLD_NONE)];
    let space = Space::make(&api, "hold-namespace", &labels).await?;
    let stored = space.create(&pod("app", "TryLatest")).await?;
    unheld(&stored, "app")?;
    let own = annotated("own", "TryLatest", &hold(keys::HOLD_GATE));
    let stored = space.create(&own).await?;
    gate_of(&stored, "app")?;
    ensure!(annotation(&stored, keys::HOLD) == Some(keys::HOLD_GATE));
    not_gated(&space.create(&pod("other", "Always")).await?)
}

/// It is left for the agent to complain about, wherever it was written.
async fn of_an_unknown_value(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("hold-unknown").await?;
    for (name, value) in [("case", "None"), ("other", "off"), ("more", "none,gate")] {
        let written = annotated(name, "TryLatest", &hold(value));
        let stored = space.create(&written).await?;
        gate_of(&stored, "app").context(value)?;
        ensure!(annotation(&stored, keys::HOLD) == Some(value), "{value}");
    }
    let space = Space::make(&api, "hold-unknown", &[(keys::HOLD, "nil")]).await?;
    let stored = space.create(&pod("app", "TryLatest")).await?;
    gate_of(&stored, "app")?;
    ensure!(annotation(&stored, keys::HOLD) == Some("nil"));
    let stored = space
        .create(&annotated("own", "TryLatest", &hold("none")))
        .await?;
    unheld(&stored, "app")
}

async fn of_other_pods(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("hold-others").await?;
    for policy in ["Always", "IfNotPresent", "Never"] {
        let name = policy.to_lowercase();
        let stored = space
            .create(&annotated(&name, policy, &hold("none")))
            .await?;
        not_gated(&stored)?;
        ensure!(policies(&stored["spec"]) == [format!("app={policy}")]);
    }
    Ok(())
}

/// The gate that it brings along goes.
async fn of_a_dump(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("hold-dump").await?;
    let mut dump = space.create(&pod("app", "TryLatest")).await?;
    gate_of(&dump, "app")?;
    dump["metadata"]["annotations"][keys::HOLD] = json!("none");
    dump["metadata"]["annotations"][keys::RELEASED] = json!("{}");
    let gone = ["delete", "pod", "app", "--now"];
    space.kubectl(&gone, None).await?;
    for drop in ["resourceVersion", "uid"] {
        let metadata = dump["metadata"].as_object_mut().context("metadata")?;
        metadata.remove(drop);
    }
    let stored = space.create(&dump).await?;
    unheld(&stored, "app")?;
    ensure!(annotation(&stored, keys::RELEASED).is_none());
    ensure!(policies(&stored["spec"]) == ["app=IfNotPresent"]);
    Ok(())
}

/// A pod keeps the gate that it has.
async fn that_comes_later(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("hold-later").await?;
    space.create(&pod("app", "TryLatest")).await?;
    let word = format!("{}=none", keys::HOLD);
    space.kubectl(&["annotate", "pod/app", &word], None).await?;
    gate_of(&space.get("pod", "app").await?, "app")?;
    Ok(())
}
