//! What an administrator does on a node by the program's commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use kube::api::DeleteParams;
use serde_json::Value;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::registry::{Fault, RequestKind};
use trylatest_e2e::{process, testimage};

use crate::damage::{COLLECTED, topmost, unused};
use crate::kept::are_kept;
use crate::{Node, SOON, STALLED, Space, Tests, tests, tried};

/// How long the agent may take to learn of a rollback, or that the name has moved on.
const SAID: Duration = Duration::from_secs(10);

/// How long a mark may stay that means nothing any more: a minute, in which it could be of a rollback that is just about
/// to move the name, and the time until the agent looks next.
const MARKED: Duration = Duration::from_secs(150);

/// Longer than a test takes; it ends when the registry is healed.
const HANGS: Duration = Duration::from_secs(300);

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            a_rollback_lasts_until_a_try_succeeds_and_is_said,
            damaged_files_are_repaired_without_a_registry,
            a_repair_downloads_only_when_it_is_told_to,
            what_was_pulled_by_hand_is_confirmed_in_the_next_outage,
        ],
        alone: tests![an_agent_that_starts_leaves_a_pull_by_hand_its_work],
    }
}

async fn a_rollback_lasts_until_a_try_succeeds_and_is_said(node: &Node) -> anyhow::Result<()> {
    let space = node.space("rollback").await?;
    let image = space.image();
    space.push("one").await?;
    space.run("first", "fresh", "one").await?;
    are_kept(&space, 1).await?;
    let said = said_no(node, &["rollback", &image]).await?;
    ensure!(said.contains("nothing to roll back to"), "{said}");
    ensure!(said.contains("exit code 3"), "{said}");
    space.push("two").await?;
    space.run("second", "fresh", "two").await?;
    are_kept(&space, 2).await?;
    space.registry.fault(Fault::Unavailable).await?;
    // Two at once do not undo each other.
    let rollback = ["rollback", image.as_str()];
    let (one, other) = tokio::try_join!(node.trylatest(&rollback), node.trylatest(&rollback))?;
    let both = format!("{one}\n{other}");
    ensure!(both.contains(" -> "), "{both}");
    ensure!(both.contains("already rolled back"), "{both}");
    rolled_back_is_said(&space, true).await?;
    space.run("third", "fallback", "one").await?;
    rolled_back_is_said(&space, true).await?;
    space.registry.heal().await?;
    // The tag still points to it.
    space.run("fourth", "fresh", "two").await?;
    rolled_back_is_said(&space, false).await?;
    nothing_is_to_be_undone(&space).await?;
    space.end().await
}

/// Until `trylatest images` says that the image is rolled back, or is not any more, and the alias that says so is there
/// or not.
async fn rolled_back_is_said(space: &Space<'_>, expected: bool) -> anyhow::Result<()> {
    let image = space.image();
    let what = format!("it is known whether {image} is rolled back: {expected}");
    wait::until(&what, SAID, || async {
        let known = known(space.node, &image).await?;
        let is_said = known.is_some_and(|known| known["rolledBack"]["to"].is_string());
        Ok((is_said == expected).then_some(()))
    })
    .await?;
    let repository = space.repository.replace('/', ",");
    let is_its =
        |name: &str| name.starts_with("TryLatest,rolled-back,") && name.contains(&repository);
    wait::until("the mark follows", MARKED, || async {
        let names = space.node.cluster.containerd();
        let names = names.ctr(&["images", "list", "-q"]).await?;
        Ok((names.lines().any(is_its) == expected).then_some(()))
    })
    .await
}

async fn damaged_files_are_repaired_without_a_registry(node: &Node) -> anyhow::Result<()> {
    let space = node.space("repair").await?;
    let digest = push_its_own(&space).await?;
    space.run("before", "fresh", "one").await?;
    space.work.delete_pod("before").await?;
    let (_, snapshot) = topmost(&space, &digest).await?;
    let folder = unused(&space, &snapshot).await?;
    fs::write(folder.join("fs/version"), "damaged\n")?;
    // Nobody can see it.
    space.run("damaged", "unchanged", "damaged").await?;
    let image = space.image();
    let said = said_no(node, &["repair", &image]).await?;
    ensure!(said.contains("nothing was thrown away"), "{said}");
    let pod = format!("{}/damaged", space.work.name());
    ensure!(said.contains(&pod), "{said}");
    space.work.delete_pod("damaged").await?;
    space.registry.fault(Fault::Unavailable).await?;
    let said = repaired(&space, &["repair", &image]).await?;
    ensure!(said.contains("matches its digests"), "{said}");
    space.run("after", "fallback", "one").await?;
    nothing_is_to_be_undone(&space).await?;
    space.end().await
}

async fn a_repair_downloads_only_when_it_is_told_to(node: &Node) -> anyhow::Result<()> {
    let space = node.space("download").await?;
    let digest = push_its_own(&space).await?;
    space.run("before", "fresh", "one").await?;
    space.work.delete_pod("before").await?;
    let (layer, snapshot) = topmost(&space, &digest).await?;
    let folder = unused(&space, &snapshot).await?;
    fs::write(folder.join("fs/version"), "damaged\n")?;
    // As with discard_unpacked_layers.
    let remove = ["content", "rm", &layer];
    node.cluster.containerd().ctr(&remove).await?;
    let image = space.image();
    let said = said_no(node, &["repair", &image]).await?;
    ensure!(
        said.contains(&layer) && said.contains("--download"),
        "{said}"
    );
    space.registry.fault(Fault::Unavailable).await?;
    let download = ["repair", "--download", &image];
    let said = said_no(node, &download).await?;
    ensure!(said.contains("nothing was thrown away"), "{said}");
    space.registry.heal().await?;
    let said = repaired(&space, &download).await?;
    ensure!(said.contains("downloaded again"), "{said}");
    space.run("after", "unchanged", "one").await?;
    nothing_is_to_be_undone(&space).await?;
    space.end().await
}

async fn what_was_pulled_by_hand_is_confirmed_in_the_next_outage(
    node: &Node,
) -> anyhow::Result<()> {
    let space = node.space("confirmed").await?;
    space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    let two = space.push("two").await?;
    let image = space.image();
    let pull = ["pull", "--output=json", "--disk-floor=0", &image];
    let pulled = node.trylatest(&pull).await?;
    let pulled: Value = serde_json::from_str(&pulled)?;
    ensure!(
        pulled["outcome"] == "fresh" && pulled["digest"] == two.as_str(),
        "{pulled}"
    );
    // At once: the command ends when the agent has written it down.
    let known = known(node, &image).await?.unwrap_or_default();
    ensure!(
        known["confirmed"]["digest"] == two.as_str() && known["tries"][0]["byHand"] == true,
        "{known}"
    );
    space.registry.fault(Fault::NeverAnswers).await?;
    let strict = tried("strict", &image).annotated("trylatest.dev/max-age", "1h");
    let release = space.run_spec(&strict, STALLED, "fallback", "two").await?;
    ensure!(
        release["confirmed"] == known["confirmed"]["time"],
        "{release}: {known}"
    );
    space.end().await
}

/// What the agent remembers of an image.
async fn known(node: &Node, image: &str) -> anyhow::Result<Option<Value>> {
    let images = node.trylatest(&["images", "-o", "json"]).await?;
    let images: Vec<Value> = serde_json::from_str(&images)?;
    Ok(images.into_iter().find(|known| known["image"] == image))
}

/// The command runs on the node, and not in the agent's pod, which goes.
async fn an_agent_that_starts_leaves_a_pull_by_hand_its_work(node: &Node) -> anyhow::Result<()> {
    let space = node.space("pullbyhand").await?;
    space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    let two = space.push("two").await?;
    let hangs = Fault::Latency(HANGS).only(RequestKind::GetBlob);
    space.registry.fault(hangs).await?;
    let before = space.registry.requests().count(RequestKind::GetBlob);
    let program = own_program(node).await?;
    let restarted = async {
        let at_work = is_at_work_while_the_agent_starts(&space, before).await;
        // What waits is answered, whatever came of it.
        space.registry.heal().await?;
        at_work
    };
    let image = space.image();
    let pulled = pull_on_node(node, &program, &image);
    let (pulled, restarted) = tokio::join!(pulled, restarted);
    restarted?;
    let said: Value = serde_json::from_str(&pulled?)?;
    ensure!(
        said["outcome"] == "fresh" && said["digest"] == two.as_str(),
        "{said}"
    );
    nothing_is_to_be_undone(&space).await?;
    node.install.nothing_is_aside(&node.cluster).await?;
    space.run("after", "unchanged", "two").await?;
    space.end().await
}

/// A command downloads, of which the registry had sent so many blobs before; a new agent finds it at work.
async fn is_at_work_while_the_agent_starts(space: &Space<'_>, before: u64) -> anyhow::Result<()> {
    let registry = &space.registry;
    let asked = registry.wait_until(|asked| asked.count(RequestKind::GetBlob) > before);
    let asked = tokio::time::timeout(SOON, asked).await;
    asked.context("the command does not download")?;
    restart_agent(space.node).await?;
    // It has looked for what commands have left half done, and leaves this one alone.
    let log = space.node.install.log(false).await?;
    ensure!(log.contains("pull by hand is at work"), "{log}");
    let alias = to_be_undone(space).await?;
    ensure!(alias.is_some(), "the command's alias is gone");
    Ok(())
}

/// The agent's program, in a file of the node.
async fn own_program(node: &Node) -> anyhow::Result<PathBuf> {
    let id = node.install.container().await?;
    let id = id.trim_start_matches("containerd://");
    let pid = node.cluster.containerd().pid_of(id).await?;
    let program = node.cluster.dir().join("trylatest-by-hand");
    fs::copy(format!("/proc/{pid}/exe"), &program)?;
    Ok(program)
}

/// What `pull` prints; it waits for as long as it takes.
async fn pull_on_node(node: &Node, program: &Path, image: &str) -> anyhow::Result<String> {
    let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
    let limit = HANGS.as_secs();
    let args = [
        "pull".to_owned(),
        "--output=json".to_owned(),
        format!("--timeout={limit}s"),
        format!("--stall={limit}s"),
        "--disk-floor=0".to_owned(),
        flag("containerd-socket", node.cluster.containerd().socket()),
        flag("state-dir", node.install.state_dir()),
        image.to_owned(),
    ];
    process::run(program, args, None).await
}

/// Ends the agent's pod in order, and waits for the next one.
async fn restart_agent(node: &Node) -> anyhow::Result<()> {
    let before = node.install.agent().await?.metadata.name;
    let name = before.clone().unwrap_or_default();
    node.install
        .pods()
        .delete(&name, &DeleteParams::default())
        .await?;
    node.install.wait_ready().await?;
    let now = node.install.agent().await?.metadata.name;
    ensure!(now != before, "{name} has not gone");
    Ok(())
}

/// An image that shares no layer with another: to damage it must damage nothing else.
async fn push_its_own(space: &Space<'_>) -> anyhow::Result<String> {
    let app = testimage::app_of_its_own(&space.node.tools, "one\n")?;
    let registry = space.node.cluster.registry();
    registry.push(&app, &space.repository, "latest").await
}

/// What a command says that fails.
async fn said_no(node: &Node, args: &[&str]) -> anyhow::Result<String> {
    match node.trylatest(args).await {
        Ok(said) => bail!("{args:?} went well: {said}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// What `repair` says, once the kubelet has removed the containers of deleted pods.
async fn repaired(space: &Space<'_>, args: &[&str]) -> anyhow::Result<String> {
    wait::until("the copy is not in use", COLLECTED, || async {
        match space.node.trylatest(args).await {
            Ok(said) => Ok(Some(said)),
            Err(error) if format!("{error:#}").contains("is in use") => Ok(None),
            Err(error) => Err(error),
        }
    })
    .await
}

/// No alias of a command is left of this image.
async fn nothing_is_to_be_undone(space: &Space<'_>) -> anyhow::Result<()> {
    let left = to_be_undone(space).await?;
    ensure!(left.is_none(), "{left:?} is left");
    Ok(())
}

/// The alias of a command that changes what this image's name points to.
async fn to_be_undone(space: &Space<'_>) -> anyhow::Result<Option<String>> {
    let names = space.node.cluster.containerd();
    let names = names.ctr(&["images", "list", "-q"]).await?;
    let repository = space.repository.replace('/', ",");
    let left = names
        .lines()
        .find(|name| name.starts_with("TryLatest,undo,") && name.contains(&repository));
    Ok(left.map(str::to_owned))
}
