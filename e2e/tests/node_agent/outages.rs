//! What a pod gets while the registry fails, with a cached copy and without.

use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Node as Object, NodeCondition, Pod};
use kube::Api;
use trylatest_e2e::cluster::{ContainerdVersion, wait};
use trylatest_e2e::registry::{Content, Fault, RequestKind};
use trylatest_e2e::testimage;
use trylatest_e2e::workload::is_running;

use crate::private::{AFTER_BACK_OFF, outcome_of};
use crate::{Node, SOON, STALLED, Space, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            a_closed_registry_falls_back,
            a_silent_registry_falls_back,
            server_errors_fall_back,
            a_removed_tag_falls_back,
            a_reset_falls_back,
            no_answer_falls_back_after_the_stall_deadline,
            a_stalled_blob_falls_back_after_the_stall_deadline,
            a_corrupt_blob_falls_back,
            a_captive_portal_falls_back,
            an_image_for_another_machine_starts,
            an_image_for_another_system_is_what_containerd_makes_of_it,
            an_image_with_more_than_file_systems_starts,
            a_cut_blob_is_resumed,
            without_a_copy_it_is_tried_until_it_works,
            what_somebody_brings_in_an_outage_is_not_fresh,
            what_no_registry_has_is_left_to_the_kubelet_at_once,
        ],
        alone: tests![
            the_node_says_so_and_takes_it_back,
            the_node_names_pods_that_outlive_the_outage,
        ],
    }
}

/// A pod with a copy that says `one`, on which a fault of its registry is tried.
async fn falls_back(
    node: &Node,
    name: &str,
    fault: Fault,
    class: &str,
    limit: Duration,
) -> anyhow::Result<()> {
    let space = node.space(name).await?;
    let digest = space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    space.push("two").await?;
    space.registry.fault(fault).await?;
    says_so(&space, "after", class, &digest, limit).await?;
    space.registry.heal().await?;
    space.comes_back("two").await?;
    space.end().await
}

/// Runs a pod, and looks everywhere a user would look.
async fn says_so(
    space: &Space<'_>,
    pod: &str,
    class: &str,
    digest: &str,
    limit: Duration,
) -> anyhow::Result<()> {
    let release = space.run_within(pod, limit, "fallback", "one").await?;
    ensure!(release["class"] == class, "{release}");
    ensure!(release["digest"] == digest, "{release}");
    ensure!(release["confirmed"].is_string(), "no age: {release}");
    let log = space.work.gate_log(pod).await?;
    ensure!(
        log.contains("fallback: app: using the cached copy of") && log.contains(class),
        "{log}"
    );
    let event = space
        .work
        .wait_event(pod, "Warning TryLatestFallback: app:", SOON);
    let event = event.await?;
    ensure!(event.contains(class), "{event}");
    Ok(())
}

async fn a_closed_registry_falls_back(node: &Node) -> anyhow::Result<()> {
    falls_back(node, "closed", Fault::Closed, "network", SOON).await
}

async fn a_silent_registry_falls_back(node: &Node) -> anyhow::Result<()> {
    falls_back(node, "silent", Fault::Blackhole, "timeout", STALLED).await
}

async fn server_errors_fall_back(node: &Node) -> anyhow::Result<()> {
    falls_back(node, "e500", Fault::InternalError, "server-error", SOON).await?;
    falls_back(node, "e503", Fault::Unavailable, "server-error", SOON).await
}

async fn a_removed_tag_falls_back(node: &Node) -> anyhow::Result<()> {
    falls_back(node, "e404", Fault::NotFound, "not-found", SOON).await
}

async fn a_reset_falls_back(node: &Node) -> anyhow::Result<()> {
    falls_back(node, "reset", Fault::Reset, "network", SOON).await
}

async fn no_answer_falls_back_after_the_stall_deadline(node: &Node) -> anyhow::Result<()> {
    falls_back(node, "mute", Fault::NeverAnswers, "timeout", STALLED).await
}

async fn a_stalled_blob_falls_back_after_the_stall_deadline(node: &Node) -> anyhow::Result<()> {
    let fault = Fault::StalledBlob { after_bytes: 4 };
    falls_back(node, "stalled", fault, "timeout", STALLED).await
}

async fn a_corrupt_blob_falls_back(node: &Node) -> anyhow::Result<()> {
    falls_back(node, "corrupt", Fault::CorruptBlob, "invalid", SOON).await
}

/// containerd takes the page for a manifest, and lets the image's name point to it.
async fn a_captive_portal_falls_back(node: &Node) -> anyhow::Result<()> {
    falls_back(node, "portal", Fault::HtmlPage, "invalid", SOON).await
}

/// An image whose configuration names another machine: both releases of containerd unpack and start it.
async fn an_image_for_another_machine_starts(node: &Node) -> anyhow::Result<()> {
    let foreign = testimage::app_for_another_machine(&node.tools, "two\n")?;
    starts(node, "machine", &foreign).await
}

/// containerd unpacks the layers of its root file system and no more.
async fn an_image_with_more_than_file_systems_starts(node: &Node) -> anyhow::Result<()> {
    let more = testimage::app_with_a_module(&node.tools, "two\n")?;
    starts(node, "module", &more).await
}

/// A tag moves to this image, which says `two`.
async fn starts(node: &Node, name: &str, image: &Content) -> anyhow::Result<()> {
    let space = node.space(name).await?;
    space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    let registry = node.cluster.registry();
    registry.push(image, &space.repository, "latest").await?;
    space.run("after", "fresh", "two").await?;
    space.run("again", "unchanged", "two").await?;
    space.end().await
}

/// One that names another operating system: 1.6 starts it. A newer one pulls it and lets the name
/// move, and starts nothing from it.
async fn an_image_for_another_system_is_what_containerd_makes_of_it(
    node: &Node,
) -> anyhow::Result<()> {
    let space = node.space("system").await?;
    let digest = space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    // What another image has unpacked of the same layers, containerd starts.
    let foreign = testimage::app_for_another_system(&node.tools, "elsewhere\n")?;
    let registry = node.cluster.registry();
    registry.push(&foreign, &space.repository, "latest").await?;
    if node.containerd == ContainerdVersion::V1_6 {
        space.run("after", "fresh", "elsewhere").await?;
        space.run("again", "unchanged", "elsewhere").await?;
    } else {
        says_so(&space, "after", "invalid", &digest, SOON).await?;
        says_so(&space, "again", "invalid", &digest, SOON).await?;
    }
    space.push("three").await?;
    space.run("healed", "fresh", "three").await?;
    space.end().await
}

async fn a_cut_blob_is_resumed(node: &Node) -> anyhow::Result<()> {
    let space = node.space("cut").await?;
    space.push_big("one", 2 << 20).await?;
    let cut = Fault::CutBlob.times(2);
    space.registry.fault(cut).await?;
    space.run("app", "fresh", "one").await?;
    space.end().await
}

async fn without_a_copy_it_is_tried_until_it_works(node: &Node) -> anyhow::Result<()> {
    let space = node.space("healing").await?;
    space.push("one").await?;
    space.registry.fault(Fault::Unavailable).await?;
    let image = space.image();
    space.work.create(&tried("app", &image)).await?;
    // Two tries at least have failed when the registry comes back.
    let registry = &space.registry;
    let tried_again =
        registry.wait_until(|requests| requests.count(RequestKind::HeadManifest) >= 2);
    tokio::time::timeout(SOON, tried_again).await?;
    let pod = space.work.pods().get("app").await?;
    ensure!(!is_running(&pod), "it runs without an image");
    space.registry.heal().await?;
    space
        .work
        .wait_pod("app", "it runs", SOON, is_running)
        .await?;
    let release = space.work.released("app", "app").await?;
    ensure!(release["outcome"] == "fresh", "{release}");
    space.end().await
}

/// Nobody has pulled it, and no registry has confirmed it.
async fn what_somebody_brings_in_an_outage_is_not_fresh(node: &Node) -> anyhow::Result<()> {
    let space = node.space("brought").await?;
    space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    let image = space.image();
    let other = format!("{}-other", space.repository);
    let brought = space.registry.image(&other, "latest");
    space.registry.fault(Fault::Unavailable).await?;
    let spec = tried("app", &brought).annotated("trylatest.dev/timeout", "1s");
    space.work.create(&spec).await?;
    let is = |outcome: &'static str| move |pod: &Pod| outcome_of(pod).as_deref() == Some(outcome);
    let work = &space.work;
    let without = is("unavailable");
    work.wait_pod("app", "it is without a copy", SOON, without)
        .await?;
    let containerd = node.cluster.containerd();
    containerd.ctr(&["images", "tag", &image, &brought]).await?;
    work.wait_pod("app", "it says from what", AFTER_BACK_OFF, is("fallback"))
        .await?;
    space.says("app", "app", "one").await?;
    let release = work.released("app", "app").await?;
    ensure!(release["unproven"] == true, "{release}");
    ensure!(release["confirmed"].is_null(), "{release}");
    work.delete_pod("app").await?;
    containerd.ctr(&["images", "remove", &brought]).await?;
    space.end().await
}

async fn what_no_registry_has_is_left_to_the_kubelet_at_once(node: &Node) -> anyhow::Result<()> {
    let space = node.space("nothing").await?;
    let image = space.image();
    space.work.create(&tried("app", &image)).await?;
    let event = "Warning TryLatestUnavailable: app:";
    let event = space.work.wait_event("app", event, SOON).await?;
    ensure!(
        event.contains("not-found") && event.contains("left to the kubelet"),
        "{event}"
    );
    space
        .work
        .wait_event("app", "Warning Failed: Error: ErrImagePull", SOON)
        .await?;
    let log = space.work.gate_log("app").await?;
    ensure!(!log.contains("trying"), "it was tried again: {log}");
    space.end().await
}

async fn the_node_says_so_and_takes_it_back(node: &Node) -> anyhow::Result<()> {
    let space = node.space("condition").await?;
    space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    space.registry.fault(Fault::Unavailable).await?;
    let tries = async || {
        let labels = ["class=\"server-error\"", "result=\"failed\""];
        node.install.sum("trylatest_tries_total", &labels).await
    };
    let before = tries().await?;
    space.run("after", "fallback", "one").await?;
    let image = space.image();
    wait_node(node, "the node names the image", |node| {
        condition(node) == Some("True") && images(node).contains(&image)
    })
    .await?;
    let after = tries().await?;
    ensure!(after > before, "failed tries stay {before}");
    space.registry.heal().await?;
    space.run("healed", "unchanged", "one").await?;
    takes_it_back(node, &image).await?;
    space.end().await
}

/// A pod that fell back goes on running its old copy when the registry is back and the tag moved.
async fn the_node_names_pods_that_outlive_the_outage(node: &Node) -> anyhow::Result<()> {
    let space = node.space("outlive").await?;
    space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    space.registry.fault(Fault::Unavailable).await?;
    space.run("stale", "fallback", "one").await?;
    space.registry.heal().await?;
    space.push("two").await?;
    space.run("healed", "fresh", "two").await?;
    let image = space.image();
    wait_node(node, "the node still names the image", |node| {
        let message = message(node).unwrap_or_default();
        condition(node) == Some("True")
            && message.contains(&format!(
                "{image}: fresh now, but 1 pod that started earlier"
            ))
    })
    .await?;
    space.work.delete_pod("stale").await?;
    takes_it_back(node, &image).await?;
    space.end().await
}

/// Pods of another test that failed may keep the condition true.
async fn takes_it_back(node: &Node, image: &str) -> anyhow::Result<()> {
    wait_node(node, "the node takes it back", |node| {
        let message = message(node).unwrap_or_default();
        condition(node) == Some("False") || !message.is_empty() && !message.contains(image)
    })
    .await
}

pub(crate) async fn wait_node(
    node: &Node,
    what: &str,
    wanted: impl Fn(&Object) -> bool,
) -> anyhow::Result<()> {
    let nodes: Api<Object> = Api::all(node.cluster.client());
    wait::object(nodes, &node.cluster.node_name(), what, SOON, wanted).await?;
    Ok(())
}

pub(crate) fn images(node: &Object) -> &str {
    let annotations = node.metadata.annotations.as_ref();
    annotations
        .and_then(|annotations| annotations.get("trylatest.dev/images"))
        .map_or("", String::as_str)
}

fn condition(node: &Object) -> Option<&str> {
    our_condition(node).map(|condition| condition.status.as_str())
}

fn message(node: &Object) -> Option<&str> {
    our_condition(node)?.message.as_deref()
}

fn our_condition(node: &Object) -> Option<&NodeCondition> {
    let mut conditions = node.status.as_ref()?.conditions.as_ref()?.iter();
    conditions.find(|condition| condition.type_ == "TryLatestFallback")
}
