//! What a controller made from a template: it compares what it finds with what it made.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::suite::Case;

use crate::space::{Space, annotation, container, policies};
use crate::templates::{KINDS, deployment, object, template, told};
use crate::{Api, SOON};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![
        Case::new("what_controllers_made", what_controllers_made),
        Case::new("a_deployment_finds_its_orphans", finds_its_orphans),
        Case::exclusive("a_change_while_the_policies_were_away", changed_while_away),
        Case::exclusive("an_upgrade_ends_a_loop", an_upgrade_ends_a_loop),
    ]
}

/// A reference to a controller.
pub(crate) fn owner(version: &str, kind: &str) -> Value {
    json!({
        "apiVersion": version, "kind": kind, "name": "owner", "controller": true,
        "uid": "11111111-2222-3333-4444-555555555555",
    })
}

/// The names of the ReplicaSets.
pub(crate) async fn replica_sets(space: &Space<'_>) -> anyhow::Result<Vec<String>> {
    let printed = space
        .kubectl(
            &["get", "replicasets", "-o", "name", "-l", "app=deployment"],
            None,
        )
        .await?;
    Ok(printed.lines().map(str::to_owned).collect())
}

/// The Deployment, when its controller has done what is to be done. It handles one Deployment after
/// the other with few workers: one that is made now, and seen, comes after many rounds of a loop.
pub(crate) async fn settled(space: &Space<'_>) -> anyhow::Result<Value> {
    let stored = observed(space, "deployment").await?;
    let mut marker = deployment(&[container("app", "IfNotPresent")]);
    marker["metadata"]["name"] = json!("marker");
    let labels = json!({"app": "marker"});
    marker["spec"]["selector"]["matchLabels"] = labels.clone();
    marker["spec"]["template"]["metadata"]["labels"] = labels;
    space.create(&marker).await?;
    observed(space, "marker").await?;
    space
        .kubectl(&["delete", "deployment", "marker"], None)
        .await?;
    space
        .get(
            "deployment",
            stored["metadata"]["name"].as_str().context("name")?,
        )
        .await
}

async fn observed(space: &Space<'_>, name: &str) -> anyhow::Result<Value> {
    wait::until("the controller has seen the Deployment", SOON, || async {
        let stored = space.get("deployment", name).await?;
        let seen = stored["status"]["observedGeneration"] == stored["metadata"]["generation"];
        let found = annotation(&stored, "deployment.kubernetes.io/revision").is_some();
        Ok((seen && found).then_some(stored))
    })
    .await
}

/// An object of a kind as a controller makes it, as it would be stored.
async fn made(
    space: &Space<'_>,
    kind: (&str, &str, &str),
    policy: &str,
    (version, owns): (&str, &str),
) -> anyhow::Result<Value> {
    let mut made = template(&[container("app", policy)]);
    if policy != "TryLatest" {
        made["metadata"]["annotations"] = json!({ keys::LITERAL: "app" });
    }
    let mut object = object(kind, &made);
    object["metadata"]["ownerReferences"] = json!([owner(version, owns)]);
    let args = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
    let stored: Value = serde_json::from_str(&space.kubectl(&args, Some(&object)).await?)?;
    stored.pointer(kind.2).cloned().context("no template")
}

async fn what_controllers_made(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("made").await?;
    let (replica_set, job) = (KINDS[3], KINDS[5]);
    let kubernetes = [
        (replica_set, ("apps/v1", "Deployment")),
        (job, ("batch/v1", "CronJob")),
    ];
    // Those that find what they made by its name or labels, and whose own templates nobody rewrites.
    let others = [
        (replica_set, ("argoproj.io/v1alpha1", "Rollout")),
        (job, ("keda.sh/v1alpha1", "ScaledJob")),
        (job, ("jobset.x-k8s.io/v1alpha2", "JobSet")),
        // An operator's Deployment that owns all that the operator makes.
        (KINDS[1], ("apps/v1", "Deployment")),
    ];
    for (kind, by) in kubernetes.into_iter().chain(others) {
        for policy in ["Always", "Never", "IfNotPresent"] {
            let stored = made(&space, kind, policy, by).await?;
            let literal = annotation(&stored, keys::LITERAL);
            ensure!(literal == Some("app"), "{by:?} {policy}: {literal:?}");
            ensure!(
                policies(&stored["spec"]) == [format!("app={policy}")],
                "{by:?}"
            );
        }
    }
    for (kind, by) in kubernetes {
        let refused = made(&space, kind, "TryLatest", by).await;
        let why = format!("{:#}", refused.err().context("it was rewritten")?);
        ensure!(why.contains("Unsupported value"), "{by:?}: {why}");
    }
    for (kind, by) in others {
        let stored = made(&space, kind, "TryLatest", by).await?;
        ensure!(annotation(&stored, keys::LITERAL) == Some("app"), "{by:?}");
        ensure!(policies(&stored["spec"]) == ["app=IfNotPresent"], "{by:?}");
    }
    Ok(())
}

async fn finds_its_orphans(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("orphans").await?;
    let manifest = deployment(&[container("app", "TryLatest")]);
    space.apply(&manifest).await?;
    settled(&space).await?;
    let before = replica_sets(&space).await?;
    let delete = ["delete", "deployment", "deployment", "--cascade=orphan"];
    space.kubectl(&delete, None).await?;
    let set = before.first().context("no ReplicaSet")?;
    space.kubectl(&["label", set, "own=x"], None).await?;
    space.apply(&manifest).await?;
    settled(&space).await?;
    let after = replica_sets(&space).await?;
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

/// Changes the Deployment to `Always` while the policies are away; the template keeps the word.
async fn change(space: &Space<'_>) -> anyhow::Result<()> {
    let always =
        json!({"spec": {"template": {"spec": {"containers": [container("app", "Always")]}}}});
    let always = always.to_string();
    let patch = ["patch", "deployment", "deployment", "-p", &always];
    space.kubectl(&patch, None).await?;
    let stored = settled(space).await?;
    ensure!(
        told(&stored) == (Some("app"), "app=Always".to_owned()),
        "{stored:#}"
    );
    Ok(())
}

async fn changed_while_away(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("away").await?;
    space
        .apply(&deployment(&[container("app", "TryLatest")]))
        .await?;
    settled(&space).await?;
    api.without_policies(async || change(&space).await).await?;
    let scale = ["scale", "deployment", "deployment", "--replicas=2"];
    space.kubectl(&scale, None).await?;
    let stored = settled(&space).await?;
    let count = replica_sets(&space).await?.len();
    ensure!(count == 2, "{count} ReplicaSets");
    ensure!(stored["status"]["collisionCount"].is_null(), "{stored:#}");
    Ok(())
}

/// The policy as it was first written, which changed what controllers had made.
const EARLIER: &str = include_str!("earlier-templates.yaml");

async fn an_upgrade_ends_a_loop(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("upgrade").await?;
    let label = async |name: &str, value: &str| {
        let args = ["label", "deployment", name, "--overwrite", value];
        space.kubectl(&args, None).await
    };
    api.without_policies(async || {
        api.plane
            .kubectl_with(&["apply", "-f", "-"], Some(EARLIER))
            .await?;
        api.templates_are_rewritten().await?;
        let mut healthy = deployment(&[container("app", "TryLatest")]);
        space.apply(&healthy).await?;
        settled(&space).await?;
        healthy["metadata"]["name"] = json!("healthy");
        let labels = json!({"app": "healthy"});
        healthy["spec"]["selector"]["matchLabels"] = labels.clone();
        healthy["spec"]["template"]["metadata"]["labels"] = labels;
        space.apply(&healthy).await?;
        observed(&space, "healthy").await?;
        let delete = "delete mutatingadmissionpolicybinding trylatest-templates";
        let delete: Vec<_> = delete.split(' ').collect();
        api.plane.kubectl(&delete).await?;
        api.templates_are_refused().await?;
        change(&space).await?;
        api.plane
            .kubectl_with(&["apply", "-f", "-"], Some(EARLIER))
            .await?;
        api.templates_are_rewritten().await?;
        let scale = ["scale", "deployment", "deployment", "--replicas=2"];
        space.kubectl(&scale, None).await?;
        wait::until("it loops", SOON, || async {
            Ok((replica_sets(&space).await?.len() > 5).then_some(()))
        })
        .await
    })
    .await?;
    // One more may be needed that nobody has changed.
    wait::until("the loop has ended", SOON, || async {
        let before = replica_sets(&space).await?;
        settled(&space).await?;
        Ok((before == replica_sets(&space).await?).then_some(()))
    })
    .await?;
    let before = replica_sets(&space).await?;
    for name in ["deployment", "healthy"] {
        label(name, "own=x").await?;
        let scale = ["scale", "deployment", name, "--replicas=3"];
        space.kubectl(&scale, None).await?;
        observed(&space, name).await?;
    }
    let healthy = space.get("deployment", "healthy").await?;
    ensure!(healthy["metadata"]["generation"] == 2, "{healthy:#}");
    ensure!(told(&healthy).0 == Some("app"), "{healthy:#}");
    settled(&space).await?;
    ensure!(before == replica_sets(&space).await?, "it goes on");
    Ok(())
}
