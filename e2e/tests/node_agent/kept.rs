//! Copies that are kept for the next outage, and the disk that they are on.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::Api;
use trylatest_core::keys;
use trylatest_e2e::cluster::{ContainerdVersion, wait};
use trylatest_e2e::install::DISK_FLOOR;
use trylatest_e2e::registry::{Fault, Scheme};

use crate::private::{becomes, nobody_else_starts, outcome_of, private, with_secret};
use crate::{Node, SOON, Space, Tests, tests};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            a_name_that_was_removed_comes_back_in_an_outage,
            a_private_name_that_was_removed_stays_away_in_an_outage,
        ],
        alone: tests![
            a_collector_spares_what_is_kept,
            a_full_disk_leaves_the_copy,
            an_uninstall_leaves_nothing_behind,
        ],
    }
}

/// Larger than what comes in the time between two looks at the download.
const BIG: usize = 8 << 20;

const IGNORED: &str = "trylatest_pins_ignored";

/// How often the agent looks at its copies, and others' tests beside.
const LOOKED: Duration = Duration::from_secs(10 + 45);

/// Waits until so many copies of the image are kept.
pub(crate) async fn are_kept(space: &Space<'_>, count: usize) -> anyhow::Result<()> {
    let name = space.image().replace(':', "+").replace('/', ",");
    let what = format!("{count} copies of {name} are kept");
    wait::until(&what, LOOKED, || async {
        let copies = copies(space.node).await?;
        let found = copies.iter().filter(|alias| alias.ends_with(&name)).count();
        Ok((found == count).then_some(()))
    })
    .await
}

async fn copies(node: &Node) -> anyhow::Result<Vec<String>> {
    let names = node.cluster.containerd().ctr(&["images", "list", "-q"]);
    let names = names.await?;
    let copies = names
        .lines()
        .filter(|name| name.starts_with("TryLatest,copy,"));
    Ok(copies.map(str::to_owned).collect())
}

/// Removes the image's names, and no alias.
async fn remove_names(space: &Space<'_>, digest: &str) -> anyhow::Result<()> {
    let image = space.image();
    let by_digest = format!("{}@{digest}", image.trim_end_matches(":latest"));
    let remove = ["images", "remove", "--sync", &image, &by_digest];
    space.node.cluster.containerd().ctr(&remove).await?;
    Ok(())
}

async fn a_name_that_was_removed_comes_back_in_an_outage(node: &Node) -> anyhow::Result<()> {
    let space = node.space("kept").await?;
    let digest = space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    are_kept(&space, 1).await?;
    space.work.delete_pod("before").await?;
    remove_names(&space, &digest).await?;
    space.registry.fault(Fault::Unavailable).await?;
    space.run("outage", "fallback", "one").await?;
    are_kept(&space, 1).await?;
    space.end().await
}

/// The kubelet's record of it may have gone with the name: nobody knows any more whose it is.
async fn a_private_name_that_was_removed_stays_away_in_an_outage(
    node: &Node,
) -> anyhow::Result<()> {
    let space = private(node, "keptprivate", Scheme::Basic).await?;
    let release = becomes(&space, "before", "fresh", "one").await?;
    are_kept(&space, 1).await?;
    space.work.delete_pod("before").await?;
    let digest = release["digest"].as_str().context("a digest")?;
    remove_names(&space, digest).await?;
    space.registry.fault(Fault::Unavailable).await?;
    let image = space.image();
    space.work.create(&with_secret("outage", &image)).await?;
    let says = |pod: &_| outcome_of(pod).as_deref() == Some("unavailable");
    space
        .work
        .wait_pod("outage", "there is no copy", SOON, says)
        .await?;
    nobody_else_starts(&space).await?;
    space.end().await
}

/// What the kubelet does when the disk is nearly full, and `crictl rmi --prune` at any time.
async fn a_collector_spares_what_is_kept(node: &Node) -> anyhow::Result<()> {
    let space = node.space("collected").await?;
    space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    are_kept(&space, 1).await?;
    space.work.delete_pod("before").await?;
    let honours_pins = node.containerd != ContainerdVersion::V1_6;
    wait::until("it is known whether pins are honoured", LOOKED, || async {
        let ignored = node.install.metric(IGNORED).await? > 0.0;
        Ok((ignored != honours_pins).then_some(()))
    })
    .await?;
    space.registry.fault(Fault::Unavailable).await?;
    if honours_pins {
        node.cluster.containerd().remove_unpinned_images().await?;
        space.run("outage", "fallback", "one").await?;
    }
    space.end().await
}

async fn a_full_disk_leaves_the_copy(node: &Node) -> anyhow::Result<()> {
    let space = node.space("full").await?;
    space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    space.push_big("two", BIG).await?;
    let slow = Fault::SlowBlob {
        bytes_per_second: 1 << 20,
    };
    space.registry.fault(slow).await?;
    // All of the disk is to stay free.
    node.install.set_variable(DISK_FLOOR, Some("100%")).await?;
    let full = space.run("full", "fallback", "one").await;
    node.install.set_variable(DISK_FLOOR, Some("0")).await?;
    let release = full?;
    ensure!(release["class"] == "local", "{release}");
    let why = release["message"].as_str().unwrap_or_default();
    ensure!(why.contains("not enough room"), "{release}");
    space.registry.heal().await?;
    space.run("after", "fresh", "two").await?;
    space.end().await
}

async fn an_uninstall_leaves_nothing_behind(node: &Node) -> anyhow::Result<()> {
    let space = node.space("leaves").await?;
    space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    are_kept(&space, 1).await?;
    let removed = node.install.remove(&node.cluster).await;
    let left = nothing_is_left(node).await;
    let set_up = node.install.set_up(&node.cluster).await;
    removed?;
    left?;
    set_up?;
    // A new agent keeps what the running pods use.
    are_kept(&space, 1).await?;
    space.end().await
}

async fn nothing_is_left(node: &Node) -> anyhow::Result<()> {
    let copies = copies(node).await?;
    ensure!(copies.is_empty(), "{copies:?} are left");
    let nodes: Api<NodeObject> = Api::all(node.cluster.client());
    let object = nodes.get(&node.cluster.node_name()).await?;
    let annotations = object.metadata.annotations.unwrap_or_default();
    for key in [keys::NODE_SUMMARY, keys::NODE_IMAGES] {
        ensure!(!annotations.contains_key(key), "{key} is left");
    }
    let status = object.status.unwrap_or_default();
    let mut conditions = status.conditions.into_iter().flatten();
    let ours = conditions.find(|condition| condition.type_ == keys::NODE_CONDITION);
    ensure!(ours.is_none(), "{ours:?} is left");
    Ok(())
}
