//! A pod waits for as long as it has patience; the pull takes as long as it needs.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use trylatest_e2e::cluster::wait;
use trylatest_e2e::registry::{Fault, RequestKind, SilentPort};
use trylatest_e2e::workload::is_running;

use crate::{Node, SOON, STALLED, Space, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![],
        // Pulls that stand still give way to others.
        alone: tests![
            a_proxy_that_is_silent_before_a_layer_delivers_to_the_next_pod,
            a_dead_mirror_only_takes_its_time,
            downloads_that_hang_give_way_to_others,
        ],
    }
}

/// Longer than the stall deadline, as a proxy that fetches a whole layer before it sends the first byte.
const FETCHES: Duration = Duration::from_secs(12);

/// containerd waits 30 s for a connection before it asks the next host (`core/remotes/docker/config/hosts.go`): for
/// the tag, for the manifest, and for what that names.
const DIALS: Duration = Duration::from_secs(3 * 30);

/// A pull that waits for one that hangs waits for seconds, not for that one's end.
const GIVES_WAY: Duration = Duration::from_secs(20);

async fn a_proxy_that_is_silent_before_a_layer_delivers_to_the_next_pod(
    node: &Node,
) -> anyhow::Result<()> {
    let space = node.space("proxy").await?;
    space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    let digest = space.push_big("two", 1 << 20).await?;
    let slow = Fault::Latency(FETCHES).only(RequestKind::GetBlob);
    space.registry.fault(slow).await?;
    let release = space
        .run_within("impatient", STALLED, "fallback", "one")
        .await?;
    ensure!(release["class"] == "timeout", "{release}");
    arrives(&space, &space.image(), &digest).await?;
    space.run("next", "unchanged", "two").await?;
    space.end().await
}

/// The background pull has brought this digest.
async fn arrives(space: &Space<'_>, image: &str, digest: &str) -> anyhow::Result<()> {
    let filter = format!("name=={image}");
    let there = || async {
        let listed = space.node.cluster.containerd();
        let listed = listed.ctr(&["images", "list", &filter]).await?;
        Ok(listed.contains(digest).then_some(()))
    };
    let limit = DIALS + SOON;
    wait::until("the pull brings the new image", limit, there).await
}

/// A name whose images come from the space's registry, behind this mirror if there is one.
fn mirrored(space: &Space<'_>, mirror: Option<&SilentPort>) -> anyhow::Result<String> {
    let name = format!("{}.test", space.work.name());
    let host = space.registry.host();
    let mirror = mirror.map(|dead| format!("[host.\"http://{}\"]\n", dead.address()));
    let mirror = mirror.unwrap_or_default();
    let hosts = format!("server = \"http://{host}\"\n{mirror}[host.\"http://{host}\"]\n");
    space.node.cluster.containerd().write_hosts(&name, &hosts)?;
    Ok(format!("{name}/{}:latest", space.repository))
}

/// A pod without a copy waits as it would for the kubelet, and one with a copy does not, but the next one gets
/// what it did not wait for.
async fn a_dead_mirror_only_takes_its_time(node: &Node) -> anyhow::Result<()> {
    let (new, old) = (node.space("nocopy").await?, node.space("oldcopy").await?);
    for space in [&new, &old] {
        space.push("one").await?;
    }
    let image = mirrored(&old, None)?;
    let before = tried("before", &image);
    old.run_spec(&before, SOON, "fresh", "one").await?;
    let digest = old.push("two").await?;
    let dead = SilentPort::new().await?;
    mirrored(&old, Some(&dead))?;
    let without = mirrored(&new, Some(&dead))?;
    let patient = tried("patient", &without);
    new.work.create(&patient).await?;
    let impatient = tried("impatient", &image);
    old.run_spec(&impatient, STALLED, "fallback", "one").await?;
    arrives(&old, &image, &digest).await?;
    let runs = new
        .work
        .wait_pod("patient", "it runs", DIALS + SOON, is_running);
    runs.await?;
    let release = new.work.released("patient", "app").await?;
    ensure!(release["outcome"] == "fresh", "{release}");
    new.end().await?;
    old.end().await
}

/// Since 2.3, containerd downloads three layers at a time on a node.
async fn downloads_that_hang_give_way_to_others(node: &Node) -> anyhow::Result<()> {
    let mut hanging = Vec::new();
    for n in 0..3 {
        let space = node.space(&format!("hangs-{n}")).await?;
        space.push("one").await?;
        space.run("before", "fresh", "one").await?;
        space.push_big("two", 4 << 20).await?;
        let stalls = Fault::StalledBlob {
            after_bytes: 1 << 20,
        };
        space.registry.fault(stalls).await?;
        space
            .run_within("impatient", STALLED, "fallback", "one")
            .await?;
        hanging.push(space);
    }
    let healthy = node.space("healthy").await?;
    healthy.push_big("three", 4 << 20).await?;
    let run = healthy.run_within("app", GIVES_WAY, "fresh", "three").await;
    run.with_context(|| format!("on {:?}", node.containerd))?;
    for space in hanging {
        space.end().await?;
    }
    healthy.end().await
}
