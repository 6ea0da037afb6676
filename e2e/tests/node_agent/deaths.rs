//! Who may die, and when: no pod waits for ever. Every test wants the node for itself.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Event, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use trylatest_core::gate::End;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::install::running_container;
use trylatest_e2e::registry::{Fault, RequestKind};
use trylatest_e2e::workload::{GATE, annotation, is_running, release};

use crate::{Node, SOON, Space, Tests, tests, tried};

/// How long nobody may answer before the agent notices.
const NOTICED: Duration = Duration::from_secs(15);

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![],
        alone: tests![
            killed_before_it_sees_the_pod,
            killed_while_the_registry_is_asked,
            killed_while_it_downloads,
            killed_while_it_writes_the_release,
            killed_after_the_release,
            killed_at_any_moment,
            a_sigterm_ends_it_in_order,
            the_api_server_restarts,
            the_api_server_falls_silent,
            the_kubelet_is_late_with_the_release,
            containerd_dies_while_it_pulls,
            the_folder_of_containerds_socket_is_made_again,
            the_node_reboots_without_a_registry,
            without_an_agent_the_gate_opens_by_itself,
        ],
    }
}

/// Kills the agent, which runs.
pub(crate) async fn kill_agent(node: &Node) -> anyhow::Result<()> {
    let killed = node.install.kill_agent(&node.cluster).await?;
    ensure!(killed, "the agent does not run");
    Ok(())
}

/// A pod with a copy that says `one` on the node.
async fn cached<'a>(node: &'a Node, name: &str) -> anyhow::Result<Space<'a>> {
    let space = node.space(name).await?;
    space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    Ok(space)
}

/// The pod runs, from `version`, by a release and not by the gate's patience.
async fn was_released(space: &Space<'_>, name: &str, version: &str) -> anyhow::Result<()> {
    let pod = space
        .work
        .wait_pod(name, "it runs", SOON, is_running)
        .await?;
    let log = space.work.gate_log(name).await?;
    ensure!(
        !log.contains("no sign of"),
        "the gate of {name} opened by itself: {log}"
    );
    let release = release(&pod).with_context(|| format!("{name} carries no release"))?;
    let said = space.says(name, "app", version).await;
    said.with_context(|| format!("released as {release}"))
}

async fn create(space: &Space<'_>, name: &str) -> anyhow::Result<()> {
    let image = space.image();
    space.work.create(&tried(name, &image)).await.map(|_| ())
}

async fn asked(space: &Space<'_>, kind: RequestKind, before: u64) -> anyhow::Result<()> {
    let registry = &space.registry;
    let asked = registry.wait_until(|requests| requests.count(kind) > before);
    tokio::time::timeout(SOON, asked)
        .await
        .context("the registry was not asked")
}

fn count(space: &Space<'_>, kind: RequestKind) -> u64 {
    space.registry.requests().count(kind)
}

async fn end(space: Space<'_>) -> anyhow::Result<()> {
    space.node.install.wait_ready().await?;
    space.end().await
}

async fn killed_before_it_sees_the_pod(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "unseen").await?;
    kill_agent(node).await?;
    create(&space, "app").await?;
    was_released(&space, "app", "one").await?;
    end(space).await
}

async fn killed_while_the_registry_is_asked(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "asked").await?;
    space.push("two").await?;
    let late = Fault::Latency(Duration::from_secs(3));
    space.registry.fault(late).await?;
    let before = count(&space, RequestKind::HeadManifest);
    create(&space, "app").await?;
    asked(&space, RequestKind::HeadManifest, before).await?;
    kill_agent(node).await?;
    space.registry.heal().await?;
    was_released(&space, "app", "two").await?;
    end(space).await
}

async fn killed_while_it_downloads(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "download").await?;
    space.push_big("two", 8 << 20).await?;
    let slow = Fault::SlowBlob {
        bytes_per_second: 1 << 20,
    };
    space.registry.fault(slow).await?;
    let before = count(&space, RequestKind::GetBlob);
    create(&space, "app").await?;
    asked(&space, RequestKind::GetBlob, before).await?;
    kill_agent(node).await?;
    space.registry.heal().await?;
    was_released(&space, "app", "two").await?;
    end(space).await
}

async fn killed_while_it_writes_the_release(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "writing").await?;
    let late = Fault::Latency(Duration::from_secs(2));
    space.registry.fault(late).await?;
    let before = count(&space, RequestKind::HeadManifest);
    create(&space, "app").await?;
    asked(&space, RequestKind::HeadManifest, before).await?;
    let agent = node.install.container().await?;
    let series = "trylatest_api_calls_total{operation=\"release\",result=\"error\"}";
    let failures = node.install.metric(series).await?;
    node.cluster.control_plane().stop_apiserver().await?;
    // The pull ends while nobody takes the release: the agent is killed with it in hand.
    space.registry.heal().await?;
    let tried = || async {
        let now = node.install.metric(series).await?;
        Ok((now > failures).then_some(()))
    };
    let tried = wait::until("a release could not be written", SOON, tried).await;
    let killed = node.cluster.kill_container(&agent).await;
    node.cluster.control_plane().start_apiserver().await?;
    tried?;
    killed?;
    was_released(&space, "app", "one").await?;
    let agent = node
        .install
        .agent()
        .await?
        .metadata
        .name
        .unwrap_or_default();
    node.install
        .pods()
        .delete(&agent, &DeleteParams::default())
        .await?;
    end(space).await
}

async fn killed_after_the_release(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "after").await?;
    create(&space, "app").await?;
    let has_release = |pod: &Pod| annotation(pod, "trylatest.dev/released").is_some();
    space
        .work
        .wait_pod("app", "it is released", SOON, has_release)
        .await?;
    kill_agent(node).await?;
    was_released(&space, "app", "one").await?;
    end(space).await
}

/// The steps between a pod's creation and its release take some 100 ms; this goes through them.
async fn killed_at_any_moment(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "moments").await?;
    for moment in 0..8_u64 {
        node.install.wait_ready().await?;
        let agent = node.install.agent().await?;
        let id = running_container(&agent).context("the agent does not run")?;
        let name = format!("app-{moment}");
        let image = space.image();
        let spec = tried(&name, &image);
        let kill = async {
            tokio::time::sleep(Duration::from_millis(15 * moment)).await;
            node.cluster.kill_container(&id).await
        };
        let (created, killed) = tokio::join!(space.work.create(&spec), kill);
        created?;
        killed?;
        let now = DeleteParams::default().grace_period(0);
        node.install
            .pods()
            .delete(&agent.metadata.name.unwrap_or_default(), &now)
            .await?;
        was_released(&space, &name, "one")
            .await
            .with_context(|| format!("moment {moment}"))?;
    }
    end(space).await
}

async fn a_sigterm_ends_it_in_order(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "sigterm").await?;
    let late = Fault::Latency(Duration::from_secs(3));
    space.registry.fault(late).await?;
    let before = count(&space, RequestKind::HeadManifest);
    create(&space, "app").await?;
    asked(&space, RequestKind::HeadManifest, before).await?;
    let agent = node.install.agent().await?;
    let id = running_container(&agent).context("the agent does not run")?;
    let id = id.trim_start_matches("containerd://").to_owned();
    node.cluster
        .containerd()
        .ctr(&["tasks", "kill", "--signal", "SIGTERM", &id])
        .await?;
    let name = agent.metadata.name.unwrap_or_default();
    let ended = |pod: &Pod| exit_code(pod, &id).is_some();
    let agents = node.install.pods();
    let pod = wait::object(agents, &name, "the agent has ended", SOON, ended).await?;
    ensure!(
        exit_code(&pod, &id) == Some(0),
        "it ended with {:?}",
        exit_code(&pod, &id)
    );
    space.registry.heal().await?;
    was_released(&space, "app", "one").await?;
    end(space).await
}

/// How the container `id` of a pod ended, if it is the one that ended last.
fn exit_code(pod: &Pod, id: &str) -> Option<i32> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    [&status.state, &status.last_state]
        .into_iter()
        .filter_map(|state| state.as_ref()?.terminated.as_ref())
        .find(|ended| {
            ended
                .container_id
                .as_ref()
                .is_some_and(|ended| ended.ends_with(id))
        })
        .map(|ended| ended.exit_code)
}

async fn the_api_server_restarts(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "apiserver").await?;
    let late = Fault::Latency(Duration::from_secs(2));
    space.registry.fault(late).await?;
    let before = count(&space, RequestKind::HeadManifest);
    create(&space, "app").await?;
    asked(&space, RequestKind::HeadManifest, before).await?;
    node.cluster.restart_apiserver().await?;
    space.registry.heal().await?;
    was_released(&space, "app", "one").await?;
    // And the watch goes on.
    create(&space, "later").await?;
    was_released(&space, "later", "one").await?;
    end(space).await
}

/// The connection of the watch stays and nothing comes on it. The agent must find out by itself.
async fn the_api_server_falls_silent(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "silence").await?;
    let series = "trylatest_watch_failures_total";
    let before = node.install.metric(series).await?;
    node.cluster.control_plane().freeze_apiserver().await?;
    let noticed = wait::until("the agent notices", NOTICED, || async {
        let failures = node.install.metric(series).await?;
        Ok((failures > before).then_some(()))
    });
    let noticed = noticed.await;
    node.cluster.control_plane().thaw_apiserver().await?;
    noticed?;
    create(&space, "app").await?;
    was_released(&space, "app", "one").await?;
    end(space).await
}

/// What a kubelet does that misses the change: its gate runs on, and the release is written again.
async fn the_kubelet_is_late_with_the_release(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "late").await?;
    let late = Fault::Latency(Duration::from_secs(3));
    space.registry.fault(late).await?;
    create(&space, "app").await?;
    space
        .work
        .wait_pod("app", "its gate waits", SOON, gate_runs)
        .await?;
    node.cluster.kubelet().freeze().await?;
    let written = written_again(&space, "app").await;
    node.cluster.kubelet().thaw().await?;
    written?;
    was_released(&space, "app", "one").await?;
    let pod = space.work.pods().get("app").await?;
    let gate = gate_end(&pod).context("the gate has not ended")?;
    let message = gate.message.unwrap_or_default();
    let opened = End::of(&message) == Some(End::Opened);
    ensure!(opened, "its last words: {message:?}");
    let events = space.work.api::<Event>();
    let about = ListParams::default().fields("involvedObject.name=app,reason=TryLatestUnchanged");
    let events = events.list(&about).await?.items;
    let told: i32 = events.iter().map(|event| event.count.unwrap_or(1)).sum();
    ensure!(told == 1, "told {told} times: {events:?}");
    end(space).await
}

/// Waits until a release is written, and then until it is written again: at another time, with the
/// same answer.
async fn written_again(space: &Space<'_>, name: &str) -> anyhow::Result<()> {
    let released = |pod: &Pod| release(pod).is_some();
    let wait = space.work.wait_pod(name, "it is released", SOON, released);
    let first = release(&wait.await?).context("it is released")?;
    let again = |pod: &Pod| release(pod).is_some_and(|now| now["time"] != first["time"]);
    let wait = space.work.wait_pod(name, "written again", SOON, again);
    let second = release(&wait.await?).context("it is released")?;
    ensure!(
        second["containers"] == first["containers"],
        "{second}, and before {first}"
    );
    Ok(())
}

/// The kubelet shows that the gate runs.
pub(crate) fn gate_runs(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let mut inits = status
        .and_then(|status| status.init_container_statuses.as_ref())
        .into_iter()
        .flatten();
    inits.any(|init| {
        let running = init.state.as_ref().and_then(|state| state.running.as_ref());
        init.name == GATE && running.is_some()
    })
}

async fn containerd_dies_while_it_pulls(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "containerd").await?;
    let late = Fault::Latency(Duration::from_secs(3));
    space.registry.fault(late).await?;
    let before = count(&space, RequestKind::HeadManifest);
    create(&space, "app").await?;
    asked(&space, RequestKind::HeadManifest, before).await?;
    node.cluster.containerd().kill().await?;
    space.registry.heal().await?;
    node.cluster.containerd().revive().await?;
    was_released(&space, "app", "one").await?;
    create(&space, "later").await?;
    was_released(&space, "later", "one").await?;
    end(space).await
}

/// As a script does that installs containerd again: a running agent's mount shows the folder that is gone.
async fn the_folder_of_containerds_socket_is_made_again(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "folder").await?;
    let socket = node.cluster.containerd().socket();
    let starts_again = ends_with_the_folder(node, socket).await;
    let released = async {
        space.push("two").await?;
        create(&space, "app").await?;
        was_released(&space, "app", "two").await
    };
    let released = released.await;
    let folder = socket.parent().context("a socket in a folder")?;
    node.install.mount_containerd(folder).await?;
    starts_again?;
    released?;
    end(space).await
}

/// Gives the agent a folder of the socket alone, because nobody can remove containerd's, in which containers are
/// mounted. Makes that folder again, and waits until the agent has ended for it and is ready again.
async fn ends_with_the_folder(node: &Node, socket: &Path) -> anyhow::Result<()> {
    let containerd = node.cluster.containerd();
    let folder = node.cluster.dir().join("socket");
    let link = || fs::hard_link(socket, folder.join("containerd.sock"));
    fs::create_dir(&folder)?;
    link()?;
    node.install.mount_containerd(&folder).await?;
    let agent = node.install.agent().await?.metadata.name;
    containerd.kill().await?;
    fs::remove_dir_all(&folder)?;
    fs::create_dir(&folder)?;
    containerd.revive().await?;
    link()?;
    let says_why = |pod: &Pod| {
        let removed = |why: &str| why.contains("was removed on the node");
        running_container(pod).is_some() && last_words(pod).is_some_and(removed)
    };
    let (pods, agent) = (node.install.pods(), agent.unwrap_or_default());
    wait::object(pods, &agent, "it starts again", SOON, says_why).await?;
    node.install.wait_ready().await
}

/// What a pod's first container has said at its end, if it was started again.
fn last_words(pod: &Pod) -> Option<&str> {
    let container = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    let ended = container.last_state.as_ref()?.terminated.as_ref()?;
    ended.message.as_deref()
}

async fn the_node_reboots_without_a_registry(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "reboot").await?;
    create(&space, "app").await?;
    was_released(&space, "app", "one").await?;
    let before = space.work.pods().get("app").await?;
    make_stale(&space, &before).await?;
    runs_after_a_reboot_without_a_registry(&space, &before).await?;
    let release = space.work.released("app", "app").await?;
    ensure!(release["outcome"] == "fallback", "{release}");
    ensure!(release["class"] == "network", "{release}");
    let log = space.work.gate_log("app").await?;
    ensure!(
        log.contains("fallback: app: using the cached copy of"),
        "{log}"
    );
    end(space).await
}

/// Reboots the node while neither the pod's registry nor TryLatest's own can be reached, and waits until the pod runs
/// again that was as `before`.
pub(crate) async fn runs_after_a_reboot_without_a_registry(
    space: &Space<'_>,
    before: &Pod,
) -> anyhow::Result<()> {
    let cluster = &space.node.cluster;
    let registries = [&*space.registry, &**cluster.registry()];
    for registry in registries {
        registry.fault(Fault::Closed).await?;
    }
    let rebooted = cluster.reboot().await;
    let again = space.work.runs_again(before, SOON).await;
    for registry in registries {
        registry.heal().await?;
    }
    rebooted?;
    ensure!(again.is_some(), "{}", space.work.describe().await);
    Ok(())
}

/// Makes a release look as if it had been given long before the reboot.
async fn make_stale(space: &Space<'_>, pod: &Pod) -> anyhow::Result<()> {
    let mut release = release(pod).context("no release")?;
    release["time"] = json!("2026-01-01T00:00:00Z");
    let patch =
        json!({"metadata": {"annotations": {"trylatest.dev/released": release.to_string()}}});
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let pods = space.work.pods();
    pods.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}

async fn without_an_agent_the_gate_opens_by_itself(node: &Node) -> anyhow::Result<()> {
    let space = cached(node, "agentless").await?;
    node.install.away().await?;
    let image = space.image();
    let ran = space.work.run(&tried("app", &image), SOON).await;
    let log = space.work.gate_log("app").await;
    node.install.back().await?;
    let took = ran?;
    ensure!(took >= Duration::from_secs(20), "it opened after {took:?}");
    let log = log?;
    let words = "no sign of a TryLatest agent for 20s";
    ensure!(log.contains(words), "{log}");
    let pod = space.work.pods().get("app").await?;
    let gate = gate_end(&pod).context("the gate has not ended")?;
    let message = gate.message.unwrap_or_default();
    ensure!(
        message.starts_with("unanswered after 20.") && message.contains(words),
        "its last words: {message:?}"
    );
    // Reported by the agent when it is back, and counted.
    let event = "Warning TryLatestUnanswered";
    space.work.wait_event("app", event, SOON).await?;
    let unanswered = "trylatest_gates_unanswered_total";
    ensure!(
        node.install.metric(unanswered).await? >= 1.0,
        "{unanswered}"
    );
    end(space).await
}

/// How the gate's last run ended.
fn gate_end(pod: &Pod) -> Option<ContainerStateTerminated> {
    let mut statuses = pod
        .status
        .as_ref()?
        .init_container_statuses
        .iter()
        .flatten();
    let gate = statuses.find(|status| status.name == GATE)?;
    gate.state.as_ref()?.terminated.clone()
}
