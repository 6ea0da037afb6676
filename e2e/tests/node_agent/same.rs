//! Pods that are to run what their rollout has on the node.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use trylatest_core::keys::SAME_DIGEST;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::workload::{image_id, is_running};

use crate::{Node, SOON, Space, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            a_rollout_keeps_its_digest_and_the_next_one_gets_the_new_one,
            a_name_that_another_workload_has_moved_is_not_hidden,
            a_pod_without_a_rollout_is_told,
        ],
        alone: tests![],
    }
}

/// A Deployment of one pod.
async fn deploy(space: &Space<'_>) -> anyhow::Result<()> {
    let labels = json!({"app": "app"});
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "app"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": {SAME_DIGEST: "true"}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [
                        {"name": "app", "image": space.image(), "imagePullPolicy": "TryLatest"},
                    ],
                },
            },
        },
    }))?;
    let deployments = space.work.api::<Deployment>();
    deployments
        .create(&PostParams::default(), &deployment)
        .await?;
    Ok(())
}

async fn scale(space: &Space<'_>, replicas: usize) -> anyhow::Result<()> {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    let deployments = space.work.api::<Deployment>();
    deployments
        .patch("app", &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

/// Waits until so many pods of the Deployment run that are not `known`, and no others are left: each with its release.
async fn newcomers(
    space: &Space<'_>,
    count: usize,
    known: &BTreeSet<String>,
) -> anyhow::Result<Vec<(String, Value)>> {
    let of_app = ListParams::default().labels("app=app");
    let list = async || space.work.pods().list(&of_app).await;
    let run = async || {
        let pods = list().await?;
        let (new, old): (Vec<Pod>, Vec<Pod>) = pods
            .into_iter()
            .partition(|pod| !known.contains(&name_of(pod)));
        let all_run = new.len() == count && new.iter().all(is_running);
        let only_known = old
            .iter()
            .all(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok((all_run && only_known).then_some(new))
    };
    let found = wait::until("the pods run", SOON * 2, run).await;
    let found = found.context(Box::pin(space.work.describe()).await)?;
    let mut all = Vec::new();
    for pod in &found {
        let name = name_of(pod);
        let release = space.work.released(&name, "app").await?;
        let runs = image_id(pod).unwrap_or_default();
        let digest = release["digest"].as_str().unwrap_or("none");
        ensure!(runs.ends_with(digest), "{name} runs {runs}: {release}");
        all.push((name, release));
    }
    Ok(all)
}

fn name_of(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

fn names(pods: &[(String, Value)]) -> BTreeSet<String> {
    pods.iter().map(|(name, _)| name.clone()).collect()
}

async fn a_rollout_keeps_its_digest_and_the_next_one_gets_the_new_one(
    node: &Node,
) -> anyhow::Result<()> {
    let space = node.space("same").await?;
    let one = space.push("one").await?;
    deploy(&space).await?;
    let first = newcomers(&space, 1, &BTreeSet::new()).await?;
    ensure!(first[0].1["outcome"] == "fresh", "{first:?}");
    let two = space.push("two").await?;
    let before = space.registry.requests();
    scale(&space, 2).await?;
    let second = newcomers(&space, 1, &names(&first)).await?;
    let asked = space.registry.requests().since(&before);
    ensure!(asked.total() == 0, "{asked}");
    let (name, release) = &second[0];
    ensure!(
        release["outcome"] == "same" && release["digest"] == one && release["rollout"] == one,
        "{release}"
    );
    space.says(name, "app", "one").await?;
    let event = "Normal TryLatestSame: app: starting";
    space.work.wait_event(name, event, SOON).await?;
    space.work.restart("app", SOON).await?;
    let known = &names(&first) | &names(&second);
    let old_are_gone = async || {
        let pods = space.work.pods().list(&ListParams::default()).await?;
        let mut pods = pods.iter();
        Ok((!pods.any(|pod| known.contains(&name_of(pod)))).then_some(()))
    };
    wait::until("the old rollout is gone", SOON, old_are_gone).await?;
    for (name, release) in newcomers(&space, 2, &known).await? {
        ensure!(release["digest"] == two, "{name}: {release}");
        space.says(&name, "app", "two").await?;
    }
    space.end().await
}

async fn a_name_that_another_workload_has_moved_is_not_hidden(node: &Node) -> anyhow::Result<()> {
    let space = node.space("mixed").await?;
    let one = space.push("one").await?;
    deploy(&space).await?;
    let first = newcomers(&space, 1, &BTreeSet::new()).await?;
    let two = space.push("two").await?;
    // Nobody holds another workload up, or gives it what the tag pointed to before.
    space.run("stranger", "fresh", "two").await?;
    scale(&space, 2).await?;
    let second = newcomers(&space, 1, &names(&first)).await?;
    let (name, release) = &second[0];
    ensure!(
        release["outcome"] == "unchanged" && release["digest"] == two && release["rollout"] == one,
        "{release}"
    );
    let event = space
        .work
        .wait_event(name, "Warning TryLatestOtherDigest: app:", SOON)
        .await?;
    ensure!(event.contains("got another digest"), "{event}");
    // The rollout has both by now.
    let before = space.registry.requests();
    scale(&space, 3).await?;
    let known = &names(&first) | &names(&second);
    let third = newcomers(&space, 1, &known).await?;
    let asked = space.registry.requests().since(&before);
    ensure!(asked.total() == 0, "{asked}");
    let (name, release) = &third[0];
    ensure!(release["outcome"] == "same", "{release}");
    space.says(name, "app", "two").await?;
    space.end().await
}

async fn a_pod_without_a_rollout_is_told(node: &Node) -> anyhow::Result<()> {
    let space = node.space("bare").await?;
    space.push("one").await?;
    let image = space.image();
    let bare = tried("bare", &image).annotated(SAME_DIGEST, "true");
    space.run_spec(&bare, SOON, "fresh", "one").await?;
    let words =
        format!("Warning TryLatestBadSetting: {SAME_DIGEST}: TryLatest cannot tell which rollout");
    space.work.wait_event("bare", &words, SOON).await?;
    space.push("two").await?;
    let again = tried("again", &image).annotated(SAME_DIGEST, "true");
    space.run_spec(&again, SOON, "fresh", "two").await?;
    space.end().await
}
