//! Private images: the kubelet pulls them, with the pod's own credentials, and the cached copy waits aside.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use trylatest_e2e::cluster::{PluginAnswer, wait};
use trylatest_e2e::registry::{Access, Fault, RequestKind, Scheme, User};
use trylatest_e2e::workload::{PodSpec, Workloads, image_id, is_running, release};

use crate::{Node, SOON, Space, Tests, tests, tried};

/// How long a pod may take whose pull the kubelet tries again after its back-off of 10 s.
const AFTER_BACK_OFF: Duration = Duration::from_secs(10 + 45);

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            private_images_are_pulled_by_the_kubelet_basic,
            private_images_are_pulled_by_the_kubelet_bearer,
            a_private_image_starts_in_an_outage,
            a_wrong_secret_starts_from_no_copy_of_another,
            a_registry_that_fails_after_its_first_word_costs_one_back_off,
            a_public_image_that_is_refused_starts_from_its_copy,
            twenty_pods_of_a_private_image_pull_it_once,
            a_pod_that_is_deleted_while_the_name_is_away_leaves_it_there,
            the_second_secret_opens_it,
            a_secret_of_the_service_account_opens_it,
            a_secret_that_is_rotated_in_an_outage_is_still_known,
            an_image_is_made_private_and_public_again,
            a_plugin_opens_it_and_breaks,
            a_digest_that_nothing_has_proven_is_pulled_by_the_kubelet,
            a_strict_pod_is_refused_in_an_outage,
        ],
        alone: tests![
            killed_while_a_name_is_away,
            killed_while_a_name_is_away_and_the_registry_goes,
            killed_at_any_moment_of_a_handover,
            stopped_while_a_name_is_away,
            containerd_dies_while_a_name_is_away,
            the_api_server_goes_while_a_name_is_away,
            the_node_reboots_while_a_name_is_away,
            private_pods_run_again_after_a_reboot_without_a_registry,
            a_layer_that_stalls_hangs_one_pod_and_no_other,
            a_kubelet_that_never_verifies_shares_every_copy,
            a_kubelet_with_an_allow_list_decides_by_it,
        ],
    }
}

const SECRET: &str = "registry";

fn alice() -> User {
    User::new("alice", "a-password")
}

/// A private repository with an image, and a pod's secret for it.
pub(crate) async fn private<'a>(
    node: &'a Node,
    name: &str,
    scheme: Scheme,
) -> anyhow::Result<Space<'a>> {
    let space = node.space(name).await?;
    space.push("one").await?;
    let registry = node.cluster.registry();
    registry.protect(&space.repository, Access::new(scheme, &[alice()]));
    let host = registry.host();
    space.work.pull_secret(SECRET, &host, &alice()).await?;
    Ok(space)
}

async fn end(space: Space<'_>) -> anyhow::Result<()> {
    let registry = space.node.cluster.registry();
    registry.protect(&space.repository, None);
    space.end().await
}

fn with_secret<'a>(name: &'a str, image: &'a str) -> PodSpec<'a> {
    tried(name, image).with_secret(SECRET)
}

/// Runs a pod with the secret, and waits until its release says this.
pub(crate) async fn becomes(
    space: &Space<'_>,
    name: &str,
    outcome: &str,
    version: &str,
) -> anyhow::Result<Value> {
    let image = space.image();
    space.work.create(&with_secret(name, &image)).await?;
    became(space, name, outcome, version).await
}

async fn became(
    space: &Space<'_>,
    name: &str,
    outcome: &str,
    version: &str,
) -> anyhow::Result<Value> {
    let wanted = |pod: &Pod| is_running(pod) && outcome_of(pod).as_deref() == Some(outcome);
    let what = format!("it runs and says {outcome}");
    space
        .work
        .wait_pod(name, &what, AFTER_BACK_OFF, wanted)
        .await?;
    space.says(name, "app", version).await?;
    space.work.released(name, "app").await
}

fn outcome_of(pod: &Pod) -> Option<String> {
    let release = release(pod)?;
    Some(release["containers"]["app"]["outcome"].as_str()?.to_owned())
}

/// No name that was taken away is left away.
async fn nothing_is_aside(node: &Node) -> anyhow::Result<()> {
    let gone = || async {
        let names = node
            .cluster
            .containerd()
            .ctr(&["images", "list", "-q"])
            .await?;
        Ok((!names.contains("TryLatest/aside/")).then_some(()))
    };
    wait::until("no copy is aside", SOON, gone).await
}

async fn private_images_are_pulled_by_the_kubelet_basic(node: &Node) -> anyhow::Result<()> {
    simply_work(node, "basic", Scheme::Basic).await
}

async fn private_images_are_pulled_by_the_kubelet_bearer(node: &Node) -> anyhow::Result<()> {
    simply_work(node, "bearer", Scheme::Bearer).await
}

async fn simply_work(node: &Node, name: &str, scheme: Scheme) -> anyhow::Result<()> {
    let space = private(node, name, scheme).await?;
    becomes(&space, "first", "fresh", "one").await?;
    let release = becomes(&space, "second", "unchanged", "one").await?;
    ensure!(
        release["note"]
            .as_str()
            .is_some_and(|note| note.contains("kubelet")),
        "{release}"
    );
    let digest = space.push("two").await?;
    becomes(&space, "moved", "fresh", "two").await?;
    let pod = space.work.pods().get("moved").await?;
    ensure!(
        image_id(&pod).is_some_and(|id| id.ends_with(&digest)),
        "{digest}"
    );
    let log = space.work.gate_log("moved").await?;
    ensure!(log.contains("handed-over"), "{log}");
    let event = "Normal TryLatestFresh: app: pulled";
    space.work.wait_event("moved", event, SOON).await?;
    end(space).await
}

async fn a_private_image_starts_in_an_outage(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "privateout", Scheme::Bearer).await?;
    becomes(&space, "before", "fresh", "one").await?;
    let registry = node.cluster.registry();
    registry.fault_on(&space.repository, Fault::Unavailable)?;
    let release = becomes(&space, "after", "fallback", "one").await?;
    ensure!(release["class"] == "server-error", "{release}");
    // Another tenant has no part in it, whatever the registry does.
    let other = node.cluster.namespace("othertenant").await?;
    let other = Workloads::from(other);
    let image = space.image();
    other.create(&tried("thief", &image)).await?;
    let event = other.wait_event("thief", "ErrImagePull", SOON).await;
    event?;
    let says = |pod: &Pod| outcome_of(pod).as_deref() == Some("unavailable");
    let pod = other
        .wait_pod("thief", "it says so", AFTER_BACK_OFF, says)
        .await?;
    ensure!(!is_running(&pod), "another tenant's pod runs");
    other
        .wait_event("thief", "Warning TryLatestUnavailable", SOON)
        .await?;
    other.delete().await?;
    end(space).await
}

async fn a_wrong_secret_starts_from_no_copy_of_another(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "wrong", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    let mallory = User::new("mallory", "guessed");
    let host = node.cluster.registry().host();
    let other = Workloads::from(node.cluster.namespace("mallory").await?);
    other.pull_secret(SECRET, &host, &mallory).await?;
    let image = space.image();
    other.create(&with_secret("thief", &image)).await?;
    other.wait_event("thief", "ErrImagePull", SOON).await?;
    // The name is given back to those who may have it.
    becomes(&space, "meanwhile", "unchanged", "one").await?;
    let pod = other.pods().get("thief").await?;
    ensure!(!is_running(&pod), "another tenant's pod runs");
    other.delete().await?;
    end(space).await
}

/// The token service ends, or the registry refuses what it has accepted: the kubelet finds out.
async fn a_registry_that_fails_after_its_first_word_costs_one_back_off(
    node: &Node,
) -> anyhow::Result<()> {
    let space = private(node, "token", Scheme::Bearer).await?;
    becomes(&space, "before", "fresh", "one").await?;
    let registry = node.cluster.registry();
    // Without credentials it still says 401, and with them the token service fails.
    registry.protect(&space.repository, Access::new(Scheme::Bearer, &[]));
    let release = becomes(&space, "after", "fallback", "one").await?;
    ensure!(release["digest"].is_string(), "{release}");
    space
        .work
        .wait_event("after", "Warning TryLatestFallback", SOON)
        .await?;
    // The next one does not pay for it again.
    let image = space.image();
    let took = space.work.run(&with_secret("next", &image), SOON).await?;
    ensure!(took < Duration::from_secs(8), "{took:?}");
    became(&space, "next", "fallback", "one").await?;
    end(space).await
}

/// A blocked address range, a quota, an organisation that was suspended.
async fn a_public_image_that_is_refused_starts_from_its_copy(node: &Node) -> anyhow::Result<()> {
    starts_from_the_copy_had_without_credentials(node, "blocked").await
}

pub(crate) async fn starts_from_the_copy_had_without_credentials(
    node: &Node,
    name: &str,
) -> anyhow::Result<()> {
    let space = node.space(name).await?;
    space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    let registry = node.cluster.registry();
    registry.fault_on(&space.repository, Fault::Forbidden)?;
    let release = space.run("after", "fallback", "one").await?;
    ensure!(release["class"] == "unauthorized", "{release}");
    space.end().await
}

async fn twenty_pods_of_a_private_image_pull_it_once(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "twenty", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    let before = node.cluster.registry().requests();
    let image = space.image();
    let names: Vec<String> = (0..20).map(|n| format!("app-{n}")).collect();
    let creates = names.iter().map(|name| async {
        let spec = with_secret(name, &image);
        space.work.create(&spec).await
    });
    try_join_all(creates).await?;
    for name in &names {
        became(&space, name, "unchanged", "one").await?;
    }
    let asked = node.cluster.registry().requests().since(&before);
    let asked = asked.count_on(&space.repository, RequestKind::HeadManifest);
    // Some for the agent's tries, which are refused, and at most three pulls of the kubelet.
    ensure!(asked <= 16, "{asked} requests for the manifest");
    end(space).await
}

async fn a_pod_that_is_deleted_while_the_name_is_away_leaves_it_there(
    node: &Node,
) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "deleted").await?;
    space.work.delete_pod("app").await?;
    is_there_again(&space).await?;
    node.cluster.registry().heal_on(&space.repository);
    becomes(&space, "next", "unchanged", "one").await?;
    end(space).await
}

/// A private image that is on the node, and the pod `app` that waits for the kubelet's pull of it.
async fn with_its_name_away<'a>(node: &'a Node, name: &str) -> anyhow::Result<Space<'a>> {
    let space = private(node, name, Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    away(&space, "app").await?;
    Ok(space)
}

/// A pod whose image's name is away for some seconds, while the kubelet waits for the registry.
async fn away(space: &Space<'_>, name: &str) -> anyhow::Result<()> {
    let late = Fault::Latency(Duration::from_secs(2));
    let registry = space.node.cluster.registry();
    registry.fault_on(&space.repository, late)?;
    let image = space.image();
    space.work.create(&with_secret(name, &image)).await?;
    let handed_over = |pod: &Pod| outcome_of(pod).as_deref() == Some("handed-over");
    let wait = space
        .work
        .wait_pod(name, "it is handed over", SOON, handed_over);
    wait.await?;
    Ok(())
}

async fn is_there_again(space: &Space<'_>) -> anyhow::Result<()> {
    let image = space.image();
    let there = || async {
        let names = space
            .node
            .cluster
            .containerd()
            .ctr(&["images", "list", "-q"])
            .await?;
        Ok(names.lines().any(|name| name == image).then_some(()))
    };
    wait::until("the name is there again", SOON, there).await
}

async fn killed_while_a_name_is_away(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "killedaway").await?;
    crate::deaths::kill_agent(node).await?;
    is_there_again(&space).await?;
    node.cluster.registry().heal_on(&space.repository);
    let runs = space
        .work
        .wait_pod("app", "it runs", AFTER_BACK_OFF, is_running);
    runs.await.context("after the agent was killed")?;
    nothing_is_aside(node).await?;
    node.install.wait_ready().await?;
    end(space).await
}

async fn stopped_while_a_name_is_away(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "stopaway").await?;
    node.install.away().await?;
    let there = is_there_again(&space).await;
    node.install.back().await?;
    there?;
    node.cluster.registry().heal_on(&space.repository);
    let runs = space
        .work
        .wait_pod("app", "it runs", AFTER_BACK_OFF, is_running);
    runs.await.context("after the agent was stopped")?;
    nothing_is_aside(node).await?;
    end(space).await
}

async fn killed_while_a_name_is_away_and_the_registry_goes(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "killedgone").await?;
    let registry = node.cluster.registry();
    registry.fault_on(&space.repository, Fault::Unavailable)?;
    crate::deaths::kill_agent(node).await?;
    is_there_again(&space).await?;
    became(&space, "app", "fallback", "one").await?;
    nothing_is_aside(node).await?;
    node.install.wait_ready().await?;
    end(space).await
}

/// The steps from the try's end to the kubelet's pull take a second or two; this goes through them.
async fn killed_at_any_moment_of_a_handover(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "anymoment", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    let image = space.image();
    for moment in 0..6_u64 {
        node.install.wait_ready().await?;
        let name = format!("app-{moment}");
        let spec = with_secret(&name, &image);
        let kill = async {
            tokio::time::sleep(Duration::from_millis(250 * moment)).await;
            crate::deaths::kill_agent(node).await
        };
        let (created, killed) = tokio::join!(space.work.create(&spec), kill);
        created?;
        killed?;
        let runs = space
            .work
            .wait_pod(&name, "it runs", AFTER_BACK_OFF, is_running);
        runs.await.with_context(|| format!("moment {moment}"))?;
        space.says(&name, "app", "one").await?;
    }
    nothing_is_aside(node).await?;
    node.install.wait_ready().await?;
    end(space).await
}

async fn containerd_dies_while_a_name_is_away(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "containerdaway").await?;
    node.cluster.containerd().kill().await?;
    node.cluster.registry().heal_on(&space.repository);
    node.cluster.containerd().revive().await?;
    is_there_again(&space).await?;
    let runs = space
        .work
        .wait_pod("app", "it runs", AFTER_BACK_OFF, is_running);
    runs.await?;
    nothing_is_aside(node).await?;
    end(space).await
}

/// The agent cannot see what the kubelet does, and the registry fails.
async fn the_api_server_goes_while_a_name_is_away(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "apiaway").await?;
    node.cluster.control_plane().stop_apiserver().await?;
    let registry = node.cluster.registry();
    let failing = registry.fault_on(&space.repository, Fault::Unavailable);
    let there = is_there_again(&space).await;
    node.cluster.control_plane().start_apiserver().await?;
    failing?;
    there?;
    became(&space, "app", "fallback", "one").await?;
    nothing_is_aside(node).await?;
    end(space).await
}

async fn the_node_reboots_while_a_name_is_away(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "rebootaway").await?;
    let registry = node.cluster.registry();
    registry.fault_on(&space.repository, Fault::Unavailable)?;
    node.cluster.reboot().await?;
    is_there_again(&space).await?;
    let runs = space
        .work
        .wait_pod("app", "it runs", AFTER_BACK_OFF, is_running);
    runs.await?;
    nothing_is_aside(node).await?;
    node.install.wait_ready().await?;
    end(space).await
}

async fn private_pods_run_again_after_a_reboot_without_a_registry(
    node: &Node,
) -> anyhow::Result<()> {
    let space = private(node, "privatereboot", Scheme::Bearer).await?;
    for name in ["one", "two", "three"] {
        let image = space.image();
        space.work.run(&with_secret(name, &image), SOON).await?;
    }
    let before = space.work.pods().get("three").await?;
    node.cluster.registry().fault(Fault::Closed).await?;
    let rebooted = node.cluster.reboot().await;
    let again = space.work.runs_again(&before, SOON).await;
    node.cluster.registry().heal().await?;
    rebooted?;
    ensure!(again.is_some(), "{}", space.work.describe().await);
    node.install.wait_ready().await?;
    end(space).await
}

async fn a_layer_that_stalls_hangs_one_pod_and_no_other(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "stalls", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    space.push_big("two", 8 << 20).await?;
    let registry = node.cluster.registry();
    let stalls = Fault::StalledBlob {
        after_bytes: 1 << 20,
    };
    registry.fault_on(&space.repository, stalls)?;
    let image = space.image();
    space.work.create(&with_secret("hangs", &image)).await?;
    let gives_up = |pod: &Pod| outcome_of(pod).as_deref() == Some("fallback");
    space
        .work
        .wait_pod("hangs", "the name is given back", SOON, gives_up)
        .await?;
    becomes(&space, "next", "fallback", "one").await?;
    registry.heal_on(&space.repository);
    registry.hang_up().await?;
    registry.heal().await?;
    let runs = space
        .work
        .wait_pod("hangs", "it runs", AFTER_BACK_OFF, is_running);
    runs.await?;
    end(space).await
}

async fn the_second_secret_opens_it(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "second", Scheme::Basic).await?;
    let host = node.cluster.registry().host();
    let mallory = User::new("mallory", "guessed");
    space.work.pull_secret("wrong", &host, &mallory).await?;
    let image = space.image();
    for (name, outcome) in [("first", "fresh"), ("next", "unchanged")] {
        let spec = tried(name, &image).with_secret("wrong").with_secret(SECRET);
        space.work.create(&spec).await?;
        became(&space, name, outcome, "one").await?;
    }
    end(space).await
}

async fn a_secret_of_the_service_account_opens_it(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "account", Scheme::Bearer).await?;
    let accounts = space.work.api::<ServiceAccount>();
    let patch = json!({"imagePullSecrets": [{"name": SECRET}]});
    let params = PatchParams::default();
    accounts
        .patch("default", &params, &Patch::Merge(&patch))
        .await?;
    let image = space.image();
    for (name, outcome) in [("first", "fresh"), ("next", "unchanged")] {
        space.work.create(&tried(name, &image)).await?;
        became(&space, name, outcome, "one").await?;
    }
    end(space).await
}

async fn a_secret_that_is_rotated_in_an_outage_is_still_known(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "rotated", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    let registry = node.cluster.registry();
    registry.fault_on(&space.repository, Fault::Unavailable)?;
    let rotated = User::new("alice", "another-password");
    let host = registry.host();
    space.work.pull_secret(SECRET, &host, &rotated).await?;
    becomes(&space, "outage", "fallback", "one").await?;
    registry.heal_on(&space.repository);
    registry.protect(&space.repository, Access::new(Scheme::Basic, &[rotated]));
    becomes(&space, "healed", "unchanged", "one").await?;
    end(space).await
}

async fn an_image_is_made_private_and_public_again(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "publicagain", Scheme::Basic).await?;
    let registry = node.cluster.registry();
    registry.protect(&space.repository, None);
    space.run("public", "fresh", "one").await?;
    registry.protect(&space.repository, Access::new(Scheme::Basic, &[alice()]));
    space.push("two").await?;
    becomes(&space, "private", "fresh", "two").await?;
    registry.protect(&space.repository, None);
    space.run("public-again", "unchanged", "two").await?;
    space.push("three").await?;
    space.run("moved", "fresh", "three").await?;
    end(space).await
}

async fn a_plugin_opens_it_and_breaks(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "plugin", Scheme::Bearer).await?;
    let plugin = node.cluster.kubelet().credential_plugin();
    plugin.set(PluginAnswer::Gives(&alice()))?;
    let image = space.image();
    for (name, outcome) in [("first", "fresh"), ("next", "unchanged")] {
        space.work.create(&tried(name, &image)).await?;
        became(&space, name, outcome, "one").await?;
    }
    // Without the plugin's word the kubelet asks as anybody would, and fails.
    plugin.set(PluginAnswer::Rubbish)?;
    space.work.create(&tried("rubbish", &image)).await?;
    let wanted = |pod: &Pod| {
        let outcome = outcome_of(pod);
        outcome.as_deref() == Some("fallback") || outcome.as_deref() == Some("unavailable")
    };
    space
        .work
        .wait_pod("rubbish", "it says so", AFTER_BACK_OFF, wanted)
        .await?;
    plugin.set(PluginAnswer::Gives(&alice()))?;
    let runs = space
        .work
        .wait_pod("rubbish", "it runs", AFTER_BACK_OFF, is_running);
    runs.await?;
    plugin.set(PluginAnswer::Crashes)?;
    end(space).await
}

async fn a_digest_that_nothing_has_proven_is_pulled_by_the_kubelet(
    node: &Node,
) -> anyhow::Result<()> {
    let space = private(node, "pinned", Scheme::Basic).await?;
    let image = space.image();
    let theirs = PodSpec::new("theirs", &image, "IfNotPresent").with_secret(SECRET);
    space.work.run(&theirs, SOON).await?;
    let registry = node.cluster.registry();
    let digest = registry.digest_of(&space.repository, "latest").await?;
    let pinned = format!("{image}@{digest}");
    space.work.create(&with_secret("pinned", &pinned)).await?;
    let release = became(&space, "pinned", "unchanged", "one").await?;
    ensure!(
        release["note"]
            .as_str()
            .is_some_and(|note| note.contains("kubelet")),
        "{release}"
    );
    // From then on nobody has to be asked.
    registry.fault_on(&space.repository, Fault::Unavailable)?;
    space.work.create(&with_secret("again", &pinned)).await?;
    became(&space, "again", "unchanged", "one").await?;
    end(space).await
}

async fn a_strict_pod_is_refused_in_an_outage(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "strict", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    let registry = node.cluster.registry();
    registry.fault_on(&space.repository, Fault::Unavailable)?;
    let image = space.image();
    let young = with_secret("young", &image).annotated("trylatest.dev/max-age", "1h");
    space.work.create(&young).await?;
    became(&space, "young", "fallback", "one").await?;
    let strict = with_secret("strict", &image).annotated("trylatest.dev/max-age", "1ms");
    space.work.create(&strict).await?;
    let refused = |pod: &Pod| outcome_of(pod).as_deref() == Some("refused");
    space
        .work
        .wait_pod("strict", "it is refused", SOON, refused)
        .await?;
    end(space).await
}

/// As with `IfNotPresent`: whoever sets this lets any pod start from any copy.
async fn a_kubelet_that_never_verifies_shares_every_copy(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "never", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    let registry = node.cluster.registry();
    registry.fault_on(&space.repository, Fault::Unavailable)?;
    let image = space.image();
    let other = Workloads::from(node.cluster.namespace("neverother").await?);
    let verify = json!({"imagePullCredentialsVerificationPolicy": "NeverVerify"});
    node.cluster.kubelet().reconfigure(&verify).await?;
    let ran = other.run(&tried("app", &image), SOON).await;
    let usual = json!({"imagePullCredentialsVerificationPolicy": "NeverVerifyPreloadedImages"});
    node.cluster.kubelet().reconfigure(&usual).await?;
    ran?;
    other.delete().await?;
    end(space).await
}

/// What the agent has pulled counts as preloaded.
async fn a_kubelet_with_an_allow_list_decides_by_it(node: &Node) -> anyhow::Result<()> {
    let space = node.space("allowlist").await?;
    let listed = format!("{}/listed", space.work.name());
    let registry = node.cluster.registry();
    for repository in [&space.repository, &listed] {
        space.push_to(repository, "one").await?;
    }
    let images = [&space.repository, &listed].map(|name| registry.image(name, "latest"));
    for (name, image) in ["before-0", "before-1"].iter().zip(&images) {
        space.work.run(&tried(name, image), SOON).await?;
    }
    for repository in [&space.repository, &listed] {
        registry.fault_on(repository, Fault::Unavailable)?;
    }
    let host = registry.host();
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
    registry.heal_on(&listed);
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
