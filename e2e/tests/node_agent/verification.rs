//! What the kubelet verifies before it lets a pod start from a copy (KEP-2535), and how it is told.

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use trylatest_e2e::registry::{Fault, Scheme};
use trylatest_e2e::testimage;
use trylatest_e2e::workload::{PodSpec, Workloads, is_running};

use crate::private::{AFTER_BACK_OFF, becomes, nobody_else_starts, outcome_of, private};
use crate::{Node, SOON, Space, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![content_with_two_names_is_known_by_both_after_one_more_start],
        alone: tests![
            a_kubelet_that_always_verifies_starts_what_it_knows,
            a_kubelet_that_never_verifies_shares_every_copy,
            a_kubelet_with_an_allow_list_decides_by_it,
        ],
    }
}

/// The kubelet remembers by which repository's name it has pulled something. Content that it has pulled by another name
/// than the agent it starts by the agent's only after a pull of its own: in an outage not at all, otherwise at once.
async fn content_with_two_names_is_known_by_both_after_one_more_start(
    node: &Node,
) -> anyhow::Result<()> {
    let space = node.space("twonames").await?;
    let promoted = format!("{}/promoted", space.work.name());
    let app = testimage::app_of_size(&node.tools, "one\n", 16)?;
    let registry = node.cluster.registry();
    for repository in [&space.repository, &promoted] {
        registry.push(&app, repository, "latest").await?;
    }
    space.run("before", "fresh", "one").await?;
    let promoted = space.registry.image(&promoted, "latest");
    let plain = PodSpec::new("promoted", &promoted, "IfNotPresent");
    space.work.run(&plain, SOON).await?;
    space.registry.fault(Fault::Unavailable).await?;
    let image = space.image();
    space.work.create(&tried("outage", &image)).await?;
    let says = |pod: &Pod| outcome_of(pod).as_deref() == Some("unavailable");
    let refused = (space.work).wait_pod("outage", "it says so", AFTER_BACK_OFF, says);
    ensure!(!is_running(&refused.await?), "the kubelet has started it");
    // It would be the one that has the kubelet pull.
    space.work.delete_pod("outage").await?;
    space.registry.heal().await?;
    space.comes_back("one").await?;
    space.registry.fault(Fault::Unavailable).await?;
    space.run("after", "fallback", "one").await?;
    space.end().await
}

/// It starts nothing that it has not pulled itself: it asks for what the agent has pulled, and then knows it.
async fn a_kubelet_that_always_verifies_starts_what_it_knows(node: &Node) -> anyhow::Result<()> {
    crate::gate_image::push_own(node).await?;
    let verify = json!({"imagePullCredentialsVerificationPolicy": "AlwaysVerify"});
    node.cluster.kubelet().reconfigure(&verify).await?;
    let started = Box::pin(starts_what_it_knows(node)).await;
    let usual = json!({"imagePullCredentialsVerificationPolicy": "NeverVerifyPreloadedImages"});
    node.cluster.kubelet().reconfigure(&usual).await?;
    started
}

async fn starts_what_it_knows(node: &Node) -> anyhow::Result<()> {
    let public = node.space("alwayspublic").await?;
    public.push("one").await?;
    public.run("before", "fresh", "one").await?;
    public.registry.fault(Fault::Unavailable).await?;
    public.run("after", "fallback", "one").await?;
    public.end().await?;
    let space = private(node, "always", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    becomes(&space, "again", "unchanged", "one").await?;
    space.registry.fault(Fault::Unavailable).await?;
    becomes(&space, "after", "fallback", "one").await?;
    nobody_else_starts(&space).await?;
    space.end().await
}

/// As with `IfNotPresent`: whoever sets this lets any pod start from any copy.
async fn a_kubelet_that_never_verifies_shares_every_copy(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "never", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    space.registry.fault(Fault::Unavailable).await?;
    let image = space.image();
    let other = Workloads::from(node.cluster.namespace("neverother").await?);
    let verify = json!({"imagePullCredentialsVerificationPolicy": "NeverVerify"});
    node.cluster.kubelet().reconfigure(&verify).await?;
    let ran = other.run(&tried("app", &image), SOON).await;
    let usual = json!({"imagePullCredentialsVerificationPolicy": "NeverVerifyPreloadedImages"});
    node.cluster.kubelet().reconfigure(&usual).await?;
    ran?;
    other.delete().await?;
    space.end().await
}

/// What the agent has pulled counts as preloaded.
async fn a_kubelet_with_an_allow_list_decides_by_it(node: &Node) -> anyhow::Result<()> {
    let space = node.space("allowlist").await?;
    let listed = format!("{}/listed", space.work.name());
    for repository in [&space.repository, &listed] {
        space.push_to(repository, "one").await?;
    }
    let images = [&space.repository, &listed].map(|name| space.registry.image(name, "latest"));
    for (name, image) in ["before-0", "before-1"].iter().zip(&images) {
        space.work.run(&tried(name, image), SOON).await?;
    }
    space.registry.fault(Fault::Unavailable).await?;
    let host = space.registry.host();
    let policy = json!({
        "imagePullCredentialsVerificationPolicy": "NeverVerifyAllowlistedImages",
        "preloadedImagesVerificationAllowlist": [
            "ghcr.io/trylatest/trylatest",
            format!("{host}/{listed}"),
        ],
    });
    node.cluster.kubelet().reconfigure(&policy).await?;
    let decided = decides_by_the_list(&space, &images).await;
    let usual = json!({
        "imagePullCredentialsVerificationPolicy": "NeverVerifyPreloadedImages",
        "preloadedImagesVerificationAllowlist": [],
    });
    node.cluster.kubelet().reconfigure(&usual).await?;
    decided?;
    space.end().await
}

async fn decides_by_the_list(space: &Space<'_>, images: &[String; 2]) -> anyhow::Result<()> {
    let [unlisted, listed] = images;
    space.work.run(&tried("listed", listed), SOON).await?;
    space.work.create(&tried("unlisted", unlisted)).await?;
    let says = |pod: &Pod| outcome_of(pod).as_deref() == Some("unavailable");
    let wait = space
        .work
        .wait_pod("unlisted", "it says so", AFTER_BACK_OFF, says);
    let pod = wait.await?;
    ensure!(!is_running(&pod), "the kubelet has started it");
    Ok(())
}
