//! Private images: the kubelet pulls them, with the pod's own credentials, and no copy goes to anybody else.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::registry::{Access, Fault, RequestKind, Scheme, User};
use trylatest_e2e::workload::{PodSpec, Workloads, image_id, is_running, release};

use crate::deaths::runs_after_a_reboot_without_a_registry;
use crate::{Node, SOON, Space, Tests, tests, tried};

/// How long a pod may take whose pull the kubelet tries again after its back-off of 10 s.
pub(crate) const AFTER_BACK_OFF: Duration = Duration::from_secs(10 + 45);

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            private_images_are_pulled_by_the_kubelet_basic,
            private_images_are_pulled_by_the_kubelet_bearer,
            a_private_image_starts_in_an_outage,
            a_registry_that_fails_after_its_first_word_costs_one_back_off,
            a_token_service_that_is_silent_falls_back,
            a_public_image_that_is_refused_starts_from_its_copy,
            twenty_pods_of_a_private_image_pull_it_once,
            a_deployment_of_twenty_rolls_to_what_the_tag_points_to_now,
            an_image_is_made_private_and_public_again,
            a_digest_that_nothing_has_proven_is_pulled_by_the_kubelet,
            a_strict_pod_is_refused_in_an_outage,
        ],
        alone: tests![
            private_pods_run_again_after_a_reboot_without_a_registry,
            a_layer_that_stalls_hangs_one_pod_and_no_other,
            a_registry_that_hangs_with_credentials_hangs_one_pod_and_no_other,
        ],
    }
}

pub(crate) const SECRET: &str = "registry";

pub(crate) fn alice() -> User {
    User::new("alice", "a-password")
}

/// A private repository with an image, and a pod's secret for it.
pub(crate) async fn private<'a>(
    node: &'a Node,
    name: &str,
    scheme: Scheme,
) -> anyhow::Result<Space<'a>> {
    let space = node.space(name).await?;
    make_private(&space, scheme).await?;
    Ok(space)
}

/// Pushes an image that only pods with the secret may have.
pub(crate) async fn make_private(space: &Space<'_>, scheme: Scheme) -> anyhow::Result<()> {
    space.push("one").await?;
    space.protect(Access::new(scheme, &[alice()]));
    let host = space.registry.host();
    space.work.pull_secret(SECRET, &host, &alice()).await
}

pub(crate) fn with_secret<'a>(name: &'a str, image: &'a str) -> PodSpec<'a> {
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

pub(crate) async fn became(
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

pub(crate) fn outcome_of(pod: &Pod) -> Option<String> {
    let release = release(pod)?;
    Some(release["containers"]["app"]["outcome"].as_str()?.to_owned())
}

/// Another tenant's pod does not run, whatever the registry does, and its owner is told.
pub(crate) async fn nobody_else_starts(space: &Space<'_>) -> anyhow::Result<()> {
    let other = Workloads::from(space.node.cluster.namespace("othertenant").await?);
    let image = space.image();
    other.create(&tried("thief", &image)).await?;
    other.wait_event("thief", "ErrImagePull", SOON).await?;
    let says = |pod: &Pod| outcome_of(pod).as_deref() == Some("unavailable");
    let pod = other
        .wait_pod("thief", "it says so", AFTER_BACK_OFF, says)
        .await?;
    ensure!(!is_running(&pod), "another tenant's pod runs");
    let event = "Warning TryLatestUnavailable";
    let told = other.wait_event("thief", event, SOON).await?;
    // Of a copy that is not there, nobody has to be told whose it is; and an outage accuses nobody.
    let released = other.released("thief", "app").await?;
    let has_copy = released["digest"].is_string();
    let words = if released["class"] == "server-error" {
        "; to do: nothing; the pod starts by itself once the registry recovers and lets it pull"
    } else {
        "; to do: check the pod's imagePullSecrets"
    };
    ensure!(!has_copy || told.contains(words), "{told}");
    other.delete().await
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
    nobody_else_starts(&space).await?;
    space.end().await
}

async fn a_private_image_starts_in_an_outage(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "privateout", Scheme::Bearer).await?;
    becomes(&space, "before", "fresh", "one").await?;
    space.registry.fault(Fault::Unavailable).await?;
    let release = becomes(&space, "after", "fallback", "one").await?;
    ensure!(release["class"] == "server-error", "{release}");
    nobody_else_starts(&space).await?;
    space.end().await
}

/// The token service ends, or the registry refuses what it has accepted: the kubelet finds out.
async fn a_registry_that_fails_after_its_first_word_costs_one_back_off(
    node: &Node,
) -> anyhow::Result<()> {
    let space = private(node, "token", Scheme::Bearer).await?;
    becomes(&space, "before", "fresh", "one").await?;
    // Without credentials it still says 401, and with them the token service fails.
    space.protect(Access::new(Scheme::Bearer, &[]));
    let release = becomes(&space, "after", "fallback", "one").await?;
    ensure!(release["digest"].is_string(), "{release}");
    // The kubelet was made to say so: otherwise it would look as if it hung.
    ensure!(release["class"] == "unauthorized", "{release}");
    space
        .work
        .wait_event("after", "Warning TryLatestFallback", SOON)
        .await?;
    // The next one does not pay for it again.
    becomes(&space, "next", "fallback", "one").await?;
    ensure!(kubelet_failed(&space, "after").await?, "no failed pull");
    ensure!(!kubelet_failed(&space, "next").await?, "it paid again");
    nobody_else_starts(&space).await?;
    space.end().await
}

/// Whether the kubelet has tried to pull for a pod, and failed.
async fn kubelet_failed(space: &Space<'_>, pod: &str) -> anyhow::Result<bool> {
    let events = space.work.events(pod).await?;
    let failed = |event: &String| event.starts_with("Warning Failed: Failed to pull image");
    Ok(events.iter().any(failed))
}

/// The registry answers, its token service does not: it cannot say, and nothing is handed over.
async fn a_token_service_that_is_silent_falls_back(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "silenttoken", Scheme::Bearer).await?;
    becomes(&space, "before", "fresh", "one").await?;
    let silent = Fault::NeverAnswers.only(RequestKind::Token);
    space.registry.fault(silent).await?;
    becomes(&space, "after", "fallback", "one").await?;
    ensure!(
        !kubelet_failed(&space, "after").await?,
        "it was handed over"
    );
    space.end().await
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
    space.registry.fault(Fault::Forbidden).await?;
    let release = space.run("after", "fallback", "one").await?;
    ensure!(release["class"] == "unauthorized", "{release}");
    space.end().await
}

async fn twenty_pods_of_a_private_image_pull_it_once(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "twenty", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    let before = space.registry.requests();
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
    let asked = space.registry.requests().since(&before);
    let asked = asked.count(RequestKind::HeadManifest);
    // Some for the agent's tries, which are refused, and at most three pulls of the kubelet.
    ensure!(asked <= 16, "{asked} requests for the manifest");
    nobody_else_starts(&space).await?;
    space.end().await
}

async fn a_deployment_of_twenty_rolls_to_what_the_tag_points_to_now(
    node: &Node,
) -> anyhow::Result<()> {
    let space = private(node, "rollout", Scheme::Basic).await?;
    let labels = json!({"app": "app"});
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "app"},
        "spec": {
            "replicas": 20,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "terminationGracePeriodSeconds": 0,
                "imagePullSecrets": [{"name": SECRET}],
                "containers": [
                    {"name": "app", "image": space.image(), "imagePullPolicy": "TryLatest"},
                ],
            }},
        },
    }))?;
    let deployments = space.work.api::<Deployment>();
    let params = PostParams::default();
    deployments.create(&params, &deployment).await?;
    let rolled_out = || async {
        let namespace = format!("--namespace={}", space.work.name());
        let limit = "--timeout=120s";
        let args = ["rollout", "status", "deployment/app", &namespace, limit];
        let said = node.cluster.kubectl(&args).await;
        said.context(Box::pin(space.work.describe()).await)
    };
    rolled_out().await?;
    space.push("two").await?;
    space.work.restart("app", AFTER_BACK_OFF).await?;
    rolled_out().await?;
    let pods = space.work.pods().list(&ListParams::default()).await?;
    let current = pods
        .items
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let mut count = 0;
    for pod in current {
        count += 1;
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        space.says(name, "app", "two").await?;
        ensure!(!kubelet_failed(&space, name).await?, "{name} backed off");
    }
    ensure!(count == 20, "{count} pods");
    nobody_else_starts(&space).await?;
    space.end().await
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
    runs_after_a_reboot_without_a_registry(&space, &before).await?;
    node.install.wait_ready().await?;
    nobody_else_starts(&space).await?;
    space.end().await
}

async fn a_layer_that_stalls_hangs_one_pod_and_no_other(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "stalls", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    space.push_big("two", 8 << 20).await?;
    let stalls = Fault::StalledBlob {
        after_bytes: 1 << 20,
    };
    space.registry.fault(stalls).await?;
    let image = space.image();
    space.work.create(&with_secret("hangs", &image)).await?;
    let gives_up = |pod: &Pod| outcome_of(pod).as_deref() == Some("fallback");
    space
        .work
        .wait_pod("hangs", "the name is given back", SOON, gives_up)
        .await?;
    becomes(&space, "next", "fallback", "one").await?;
    space.registry.hang_up().await?;
    space.registry.heal().await?;
    let runs = space
        .work
        .wait_pod("hangs", "it runs", AFTER_BACK_OFF, is_running);
    runs.await?;
    space.end().await
}

/// Anonymous requests get their 401, those with credentials no answer: the kubelet's pull hangs, and it pulls one
/// image after the other.
async fn a_registry_that_hangs_with_credentials_hangs_one_pod_and_no_other(
    node: &Node,
) -> anyhow::Result<()> {
    let space = private(node, "hangsauth", Scheme::Basic).await?;
    let other = private(node, "hangsother", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    becomes(&other, "before", "fresh", "one").await?;
    let hangs = Fault::Latency(Duration::from_secs(300)).with_credentials();
    space.registry.fault(hangs).await?;
    let image = space.image();
    space.work.create(&with_secret("hangs", &image)).await?;
    let gives_up = |pod: &Pod| outcome_of(pod).as_deref() == Some("fallback");
    let waits = space
        .work
        .wait_pod("hangs", "the name is given back", SOON, gives_up);
    waits.await?;
    becomes(&space, "next", "fallback", "one").await?;
    let release = becomes(&other, "braked", "fallback", "one").await?;
    ensure!(release["class"] == "timeout", "{release}");
    space.registry.heal().await?;
    let runs = space
        .work
        .wait_pod("hangs", "it runs", AFTER_BACK_OFF, is_running);
    runs.await?;
    // The brake is off.
    becomes(&other, "after", "unchanged", "one").await?;
    other.end().await?;
    space.end().await
}

async fn an_image_is_made_private_and_public_again(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "publicagain", Scheme::Basic).await?;
    space.protect(None);
    space.run("public", "fresh", "one").await?;
    space.protect(Access::new(Scheme::Basic, &[alice()]));
    space.push("two").await?;
    becomes(&space, "private", "fresh", "two").await?;
    space.protect(None);
    space.run("public-again", "unchanged", "two").await?;
    space.push("three").await?;
    space.run("moved", "fresh", "three").await?;
    space.end().await
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
    space.registry.fault(Fault::Unavailable).await?;
    space.work.create(&with_secret("again", &pinned)).await?;
    became(&space, "again", "unchanged", "one").await?;
    nobody_else_starts(&space).await?;
    space.end().await
}

async fn a_strict_pod_is_refused_in_an_outage(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "strict", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    space.registry.fault(Fault::Unavailable).await?;
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
    // The node says both.
    let both = |line: &str| {
        line.starts_with("REFUSED server-error  ")
            && line.ends_with("  1 of 3 pods refused, 1 from cache")
    };
    let says = |node: &NodeObject| {
        let annotations = node.metadata.annotations.as_ref();
        let lines = annotations.and_then(|all| all.get(keys::NODE_IMAGES));
        lines.is_some_and(|lines| lines.lines().any(both))
    };
    let nodes: Api<NodeObject> = Api::all(node.cluster.client());
    let name = node.cluster.node_name();
    wait::object(nodes, &name, "the node says both", SOON, says).await?;
    space.end().await
}
