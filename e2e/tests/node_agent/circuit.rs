//! A registry that fails is not asked for each pod, and is found when it is back.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::Api;
use serde_json::Value;
use tokio::time::timeout;
use trylatest_core::image::ImageName;
use trylatest_core::keys;
use trylatest_core::node::OpenRegistry;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::registry::{Fault, RequestKind};

use crate::deaths::kill_agent;
use crate::{Node, SOON, STALLED, Space, Tests, tests, tried};

/// Images of one registry.
const IMAGES: usize = 5;

/// The longest pause before the second probe without a pod.
const PROBED: Duration = Duration::from_secs(60);

/// The longest pause before the first one after 429.
const PROBED_AFTER_429: Duration = Duration::from_secs(110);

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            in_an_outage_one_pod_waits_and_what_fell_back_is_tried_again,
            after_429_the_registry_is_left_alone,
            one_image_that_fails_leaves_the_others_alone,
        ],
        alone: tests![a_new_agent_remembers_the_outage],
    }
}

fn repository(space: &Space<'_>, n: usize) -> String {
    format!("{}-{n}", space.repository)
}

/// Runs a pod of one of these images.
async fn run(space: &Space<'_>, pod: &str, n: usize, outcome: &str) -> anyhow::Result<Value> {
    let image = space.registry.image(&repository(space, n), "latest");
    space
        .run_spec(&tried(pod, &image), STALLED, outcome, "one")
        .await
}

/// Images that are on the node.
async fn cached<'a>(node: &'a Node, name: &str) -> anyhow::Result<Space<'a>> {
    let space = node.space(name).await?;
    for n in 0..IMAGES {
        space.push_to(&repository(&space, n), "one").await?;
        run(&space, &format!("before-{n}"), n, "fresh").await?;
    }
    Ok(space)
}

fn was_asked(release: &Value) -> bool {
    let message = release["message"].as_str().unwrap_or_default();
    let left_alone = ["the registry was not asked", "has not answered yet"];
    !left_alone.iter().any(|words| message.contains(words))
}

/// Waits until the node says that it does not ask the registry for each pod, or does no longer say so.
async fn is_reported(space: &Space<'_>, open: bool) -> anyhow::Result<()> {
    let nodes: Api<NodeObject> = Api::all(space.node.cluster.client());
    let name = space.node.cluster.node_name();
    let image: ImageName = space.image().parse()?;
    let what = format!("the node says whether it asks the registry: open: {open}");
    let says = |node: &NodeObject| {
        let annotations = node.metadata.annotations.as_ref();
        let lines = annotations.and_then(|all| all.get(keys::NODE_IMAGES));
        let lines = lines.map_or("", String::as_str);
        let is_named = OpenRegistry::read(lines).any(|named| named.registry == image.registry());
        // Those of other tests may leave no room for it.
        let has_more = lines.contains("\nnot asked either: ");
        is_named == open || (open && has_more)
    };
    wait::object(nodes, &name, &what, SOON, says).await?;
    Ok(())
}

async fn in_an_outage_one_pod_waits_and_what_fell_back_is_tried_again(
    node: &Node,
) -> anyhow::Result<()> {
    let space = cached(node, "outage").await?;
    space.registry.fault(Fault::NeverAnswers).await?;
    let release = run(&space, "first", 0, "fallback").await?;
    ensure!(was_asked(&release), "{release}");
    for n in 0..IMAGES {
        let release = run(&space, &format!("later-{n}"), n, "fallback").await?;
        ensure!(release["class"] == "timeout", "{release}");
        // The first pod's own pull still hangs: a pod of the same image may be told for how long.
        ensure!(n == 0 || !was_asked(&release), "{release}");
    }
    ensure!(node.install.sum("trylatest_open_circuits", &[]).await? > 0.0);
    is_reported(&space, true).await?;
    let before = space.registry.requests();
    space.registry.heal().await?;
    let kind = RequestKind::HeadManifest;
    let asked = |n: usize| before.count_on(&repository(&space, n), kind);
    let all = space.registry.wait_until(|requests| {
        (0..IMAGES).all(|n| requests.count_on(&repository(&space, n), kind) > asked(n))
    });
    let all = timeout(PROBED, all).await;
    all.context("what fell back is not tried again")?;
    is_reported(&space, false).await?;
    space.comes_back_with(&repository(&space, 0), "one").await?;
    space.end().await
}

async fn after_429_the_registry_is_left_alone(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "limited").await?;
    let limited = Fault::RateLimited {
        retry_after: Duration::from_secs(30),
    };
    space.registry.fault(limited).await?;
    let before = space.registry.requests();
    let release = run(&space, "first", 0, "fallback").await?;
    ensure!(release["class"] == "rate-limited", "{release}");
    let first = space.registry.requests().since(&before).total();
    // containerd repeats what is answered 429.
    ensure!((1..=6).contains(&first), "{first} requests for one pod");
    for n in 0..IMAGES {
        let release = run(&space, &format!("later-{n}"), n, "fallback").await?;
        ensure!(release["class"] == "rate-limited", "{release}");
        ensure!(!was_asked(&release), "{release}");
    }
    let asked = space.registry.requests().since(&before);
    ensure!(asked.total() == first, "{asked}");
    space.registry.heal().await?;
    let healed = space.registry.requests().total();
    let probed = space
        .registry
        .wait_until(|requests| requests.total() > healed);
    let probed = timeout(PROBED_AFTER_429, probed).await;
    probed.context("it is not asked again")?;
    space.comes_back_with(&repository(&space, 1), "one").await?;
    space.end().await
}

async fn one_image_that_fails_leaves_the_others_alone(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "oneimage").await?;
    let faults = [Fault::Unavailable, Fault::NotFound, Fault::InternalError];
    for (n, fault) in faults.into_iter().enumerate() {
        space.registry.fault_on(&repository(&space, 0), fault)?;
        let release = run(&space, &format!("fails-{n}"), 0, "fallback").await?;
        ensure!(was_asked(&release), "{release}");
        run(&space, &format!("healthy-{n}"), 1, "unchanged").await?;
    }
    space.end().await
}

async fn a_new_agent_remembers_the_outage(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "remembered").await?;
    space.registry.fault(Fault::NeverAnswers).await?;
    run(&space, "first", 0, "fallback").await?;
    kill_agent(node).await?;
    node.install.wait_ready().await?;
    let release = run(&space, "later", 1, "fallback").await?;
    ensure!(!was_asked(&release), "{release}");
    space.registry.heal().await?;
    let before = space.registry.requests();
    let asked = space
        .registry
        .wait_until(|requests| requests.since(&before).total() > 0);
    timeout(SOON, asked)
        .await
        .context("it is not asked again")?;
    space.end().await
}
