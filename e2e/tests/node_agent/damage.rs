//! What a pod gets from a copy that the node's disk has lost in part, as after a power cut.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::registry::Fault;

use crate::{Node, SOON, Space, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            a_lost_unpacked_layer_is_healed,
            without_a_registry_it_is_healed_from_the_layers_or_says_so,
        ],
        alone: tests![],
    }
}

/// A document of the image on the node.
async fn document(space: &Space<'_>, digest: &str) -> anyhow::Result<Value> {
    let containerd = space.node.cluster.containerd();
    let printed = containerd.ctr(&["content", "get", digest]).await?;
    serde_json::from_str(&printed).context(printed)
}

fn blob(space: &Space<'_>, digest: &str) -> PathBuf {
    let root = space.node.cluster.containerd().root();
    let blobs = root.join("io.containerd.content.v1.content/blobs");
    blobs.join(digest.replace(':', "/"))
}

/// The digest of the image's topmost layer, and the name of what it is unpacked to.
pub(crate) async fn topmost(space: &Space<'_>, digest: &str) -> anyhow::Result<(String, String)> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    let manifest = document(space, digest).await?;
    let layer = manifest["layers"].as_array().and_then(|all| all.last());
    let layer = text(&layer.context("no layers")?["digest"])?;
    let config = document(space, &text(&manifest["config"]["digest"])?).await?;
    let mut chain = String::new();
    for diff in config["rootfs"]["diff_ids"]
        .as_array()
        .context("no layers")?
    {
        let diff = text(diff)?;
        chain = if chain.is_empty() {
            diff
        } else {
            trylatest_bootstrap::oci::digest(format!("{chain} {diff}").as_bytes())
        };
    }
    Ok((layer, chain))
}

/// How long the kubelet may keep a deleted pod's container: it collects them once a minute.
pub(crate) const COLLECTED: Duration = Duration::from_secs(90);

/// Removes the folder of an unpacked layer, once no container is on top of it.
async fn lose(space: &Space<'_>, snapshot: &str) -> anyhow::Result<()> {
    fs::remove_dir_all(unused(space, snapshot).await?)?;
    Ok(())
}

/// The folder of an unpacked layer, once no container is on top of it.
pub(crate) async fn unused(space: &Space<'_>, snapshot: &str) -> anyhow::Result<PathBuf> {
    let containerd = space.node.cluster.containerd();
    let key = format!("look-{}", space.work.name());
    // If the garbage collection is faster, the layer never gets rid of it, though nothing lists it (containerd's
    // core/metadata/gc.go, `remove`): then it is put there again.
    let mut folder = containerd.put_on_top(snapshot, &key).await?;
    while containerd.ctr(&["snapshots", "rm", &key]).await.is_err() {
        folder = containerd.put_on_top(snapshot, &key).await?;
    }
    wait::until("nothing is on the layer", COLLECTED, || async {
        let listed = containerd.ctr(&["snapshots", "ls"]).await?;
        let mut parents = listed.lines().filter_map(|l| l.split_whitespace().nth(1));
        Ok((!parents.any(|parent| parent == snapshot)).then_some(()))
    })
    .await?;
    Ok(folder)
}

async fn a_lost_unpacked_layer_is_healed(node: &Node) -> anyhow::Result<()> {
    let space = node.space("unpacked").await?;
    let digest = space.push("one").await?;
    space.run("first", "fresh", "one").await?;
    space.work.delete_pod("first").await?;
    let (_, snapshot) = topmost(&space, &digest).await?;
    lose(&space, &snapshot).await?;
    let release = space.run("second", "fresh", "one").await?;
    let said = release["note"].as_str().unwrap_or_default();
    ensure!(
        said.starts_with("healed: ") && said.contains(&snapshot),
        "{release}"
    );
    space.run("third", "unchanged", "one").await?;
    space.end().await
}

async fn without_a_registry_it_is_healed_from_the_layers_or_says_so(
    node: &Node,
) -> anyhow::Result<()> {
    let space = node.space("lost").await?;
    let digest = space.push("one").await?;
    space.run("first", "fresh", "one").await?;
    space.work.delete_pod("first").await?;
    let (layer, snapshot) = topmost(&space, &digest).await?;
    space.registry.fault(Fault::Unavailable).await?;
    lose(&space, &snapshot).await?;
    let release = space.run("second", "fallback", "one").await?;
    let said = release["note"].as_str().unwrap_or_default();
    ensure!(said.starts_with("healed: "), "{release}");
    space.work.delete_pod("second").await?;
    lose(&space, &snapshot).await?;
    fs::remove_file(blob(&space, &layer))?;
    let image = space.image();
    let spec = tried("third", &image).annotated("trylatest.dev/timeout", "3s");
    space.work.create(&spec).await?;
    let event = "Warning TryLatestUnavailable: app:";
    let event = space.work.wait_event("third", event, SOON).await?;
    ensure!(
        event.contains("cannot be used") && (event.contains(&layer) || event.contains(&snapshot)),
        "{event}"
    );
    space.end().await
}
