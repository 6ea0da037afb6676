//! Who must not use a cached copy.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use trylatest_e2e::install::IMAGE;
use trylatest_e2e::registry::{Access, Challenge, Fault, Scheme};
use trylatest_e2e::workload::{GATE, PodSpec, is_running};

use crate::private::{
    alice, became, becomes, outcome_of, private, starts_from_the_copy_had_without_credentials,
    with_secret,
};
use crate::{Node, SOON, Space, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            what_is_not_there_is_left_to_the_kubelet_at_once,
            a_refusal_that_the_gate_cannot_see_says_what_runs,
        ],
        alone: tests![
            // Every pull of the node asks the verifier.
            what_a_verifier_blocks_falls_back_only_where_the_pod_says_so,
            where_the_kubelet_keeps_no_records_the_agent_does,
        ],
    }
}

/// Kubernetes before 1.35: the kubelet lets any pod start from any copy.
async fn where_the_kubelet_keeps_no_records_the_agent_does(node: &Node) -> anyhow::Result<()> {
    let variable = "TRYLATEST_KUBELET_VERIFIES";
    node.install.set_variable(variable, Some("no")).await?;
    let result = Box::pin(without_records(node)).await;
    node.install.set_variable(variable, None).await?;
    result
}

async fn without_records(node: &Node) -> anyhow::Result<()> {
    another_tenants_copy_is_refused(node).await?;
    // It is everybody's.
    starts_from_the_copy_had_without_credentials(node, "everybodys").await?;
    what_the_kubelet_has_pulled_is_for_the_likes_of_its_pod(node).await?;
    what_it_has_pulled_late_is_too(node).await
}

/// The kubelet pulled it for a pod that may have it; TryLatest has never asked for it.
async fn another_tenants_copy_is_refused(node: &Node) -> anyhow::Result<()> {
    let space = node.space("norecords").await?;
    let digest = space.push("one").await?;
    let image = space.image();
    let theirs = PodSpec::new("theirs", &image, "IfNotPresent");
    space.work.run(&theirs, SOON).await?;
    let challenge = Challenge::Bearer { token: 200 };
    space.registry.fault(Fault::Unauthorized(challenge)).await?;
    let hurried = tried("hurry", &image).annotated("trylatest.dev/timeout", "1ms");
    refuses_pod(&space, &hurried).await?;
    refuses_pod(&space, &tried("ours", &image)).await?;
    space.registry.fault(Fault::Forbidden).await?;
    refuses_pod(&space, &tried("forbidden", &image)).await?;
    // In an outage neither, nor by another name of which the registry has said nothing.
    space.registry.fault(Fault::Unavailable).await?;
    refuses_pod(&space, &tried("outage", &image)).await?;
    let pinned = format!("{image}@{digest}");
    refuses_pod(&space, &tried("outage-by-digest", &pinned)).await?;
    // What may be pulled without credentials again is.
    space.registry.heal().await?;
    space.run("healed", "unchanged", "one").await?;
    space.end().await
}

async fn what_the_kubelet_has_pulled_is_for_the_likes_of_its_pod(
    node: &Node,
) -> anyhow::Result<()> {
    let space = private(node, "likes", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    becomes(&space, "after", "unchanged", "one").await?;
    let image = space.image();
    refuses_pod(&space, &tried("without-secret", &image)).await?;
    space.registry.fault(Fault::Unavailable).await?;
    becomes(&space, "outage", "fallback", "one").await?;
    refuses_pod(&space, &tried("outage-without-secret", &image)).await?;
    space.end().await
}

/// The image was absent, and the kubelet's first pull for its pod failed.
async fn what_it_has_pulled_late_is_too(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "late", Scheme::Bearer).await?;
    space.protect(Access::new(Scheme::Bearer, &[]));
    let image = space.image();
    space.work.create(&with_secret("first", &image)).await?;
    let says = |pod: &Pod| outcome_of(pod).as_deref() == Some("unavailable");
    let what = "it says that it is without";
    space.work.wait_pod("first", what, SOON, says).await?;
    space.protect(Access::new(Scheme::Bearer, &[alice()]));
    became(&space, "first", "fallback", "one").await?;
    becomes(&space, "after", "unchanged", "one").await?;
    refuses_pod(&space, &tried("without-secret", &image)).await?;
    space.end().await
}

/// The gate exits non-zero, the pod does not run, and the user sees why.
pub(crate) async fn refuses_pod(space: &Space<'_>, spec: &PodSpec<'_>) -> anyhow::Result<()> {
    let name = spec.name;
    space.work.create(spec).await?;
    let pod = space.work.wait_pod(name, "its gate refuses", SOON, |pod| {
        gate_exit_code(pod) == Some(1)
    });
    let pod = pod.await?;
    ensure!(!is_running(&pod), "{name} runs");
    let release = space.work.released(name, "app").await?;
    ensure!(release["outcome"] == "refused", "{release}");
    let event = "Warning TryLatestRefused: app: this pod must not use the cached copy";
    space.work.wait_event(name, event, SOON).await?;
    Ok(())
}

/// How the gate's last run ended.
fn gate_exit_code(pod: &Pod) -> Option<i32> {
    let statuses = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    let gate = statuses.iter().find(|status| status.name == GATE)?;
    let ended = [&gate.state, &gate.last_state]
        .into_iter()
        .find_map(|state| state.as_ref()?.terminated.as_ref())?;
    Some(ended.exit_code)
}

async fn what_is_not_there_is_left_to_the_kubelet_at_once(node: &Node) -> anyhow::Result<()> {
    let space = node.space("private").await?;
    space.push("one").await?;
    let unauthorized = Fault::Unauthorized(Challenge::Basic);
    space.registry.fault(unauthorized).await?;
    let image = space.image();
    space.work.create(&tried("app", &image)).await?;
    let opened = |pod: &Pod| gate_exit_code(pod) == Some(0);
    space
        .work
        .wait_pod("app", "its gate opens", SOON, opened)
        .await?;
    let log = space.work.gate_log("app").await?;
    let ordinary = "handed-over: app: the registry wants credentials; the kubelet pulls";
    ensure!(
        log.contains(ordinary) && !log.contains("unauthorized"),
        "{log}"
    );
    ensure!(!log.contains("trying"), "it was tried again: {log}");
    let event = "Warning TryLatestUnavailable: app:";
    space.work.wait_event("app", event, SOON).await?;
    space.end().await
}

async fn what_a_verifier_blocks_falls_back_only_where_the_pod_says_so(
    node: &Node,
) -> anyhow::Result<()> {
    let Some(verifiers) = node.cluster.containerd().image_verifiers() else {
        return Ok(());
    };
    let space = node.space("blocked").await?;
    space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    space.push("two").await?;
    let policy = block(&verifiers, &space.repository)?;
    let image = space.image();
    refuses_pod(&space, &tried("after", &image)).await?;
    let release = space.work.released("after", "app").await?;
    let why = release["message"].as_str().unwrap_or_default();
    ensure!(
        release["class"] == "blocked" && why.contains("no signature"),
        "{release}"
    );
    let allowed = tried("allowed", &image).annotated("trylatest.dev/fallback-on", "blocked");
    space.run_spec(&allowed, SOON, "fallback", "one").await?;
    fs::remove_file(policy)?;
    space.run("healed", "fresh", "two").await?;
    space.end().await
}

/// An image verifier that says no to one repository; its file.
fn block(verifiers: &Path, repository: &str) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(verifiers)?;
    let script =
        format!("#!/bin/sh\ncase \"$*\" in *{repository}*) echo no signature; exit 1 ;; esac\n");
    // Made elsewhere: containerd runs whatever is in the folder, half a file too.
    let made = verifiers.with_extension("new");
    fs::write(&made, script)?;
    fs::set_permissions(&made, fs::Permissions::from_mode(0o755))?;
    let policy = verifiers.join("policy");
    fs::rename(&made, &policy)?;
    Ok(policy)
}

/// Kata without a shared file system: the annotations in the gate's volume never change. Here they
/// are not there at all.
async fn a_refusal_that_the_gate_cannot_see_says_what_runs(node: &Node) -> anyhow::Result<()> {
    let space = node.space("unseen").await?;
    let digest = space.push("one").await?;
    space.run("before", "fresh", "one").await?;
    space.registry.fault(Fault::Unavailable).await?;
    let series = "trylatest_gates_unseen_total{answer=\"refuse\"}";
    let before = node.install.metric(series).await?;
    gated_by_hand(&space, "app").await?;
    // The pod starts, as with IfNotPresent.
    let started = space.work.wait_pod("app", "it runs", SOON, is_running);
    started.await?;
    let words = "Warning TryLatestUnseen: this node's agent answered in time";
    let event = space.work.wait_event("app", words, SOON).await?;
    for part in [
        "app: fallback: using the cached copy",
        "max-age",
        "had answered \"refused\"",
    ] {
        ensure!(event.contains(part), "{part}: {event}");
    }
    let amended = |pod: &Pod| {
        let annotations = pod.metadata.annotations.as_ref();
        let released = annotations.and_then(|all| all.get("trylatest.dev/released"));
        released.is_some_and(|json| json.contains("\"unseen\""))
    };
    space
        .work
        .wait_pod("app", "its release says what it runs", SOON, amended)
        .await?;
    let release = space.work.released("app", "app").await?;
    ensure!(
        release["outcome"] == "fallback"
            && release["answered"] == "refused"
            && release["digest"] == digest,
        "{release}"
    );
    ensure!(node.install.metric(series).await? > before, "{series}");
    space.end().await
}

/// A gated pod that refuses every cached copy, and whose gate looks into an empty folder. It is
/// labelled after its creation: admission would give it a gate that can see.
async fn gated_by_hand(space: &Space<'_>, name: &str) -> anyhow::Result<()> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "schedulingGates": [{"name": "trylatest.example/not-yet"}],
            "initContainers": [{
                "name": GATE, "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "args": ["gate", "--patience=8s"],
                "volumeMounts": [{"name": GATE, "mountPath": "/run/trylatest"}],
            }],
            "containers": [{
                "name": "app", "image": space.image(), "imagePullPolicy": "IfNotPresent",
            }],
            "volumes": [{"name": GATE, "emptyDir": {}}],
        },
    }))?;
    let pods = space.work.pods();
    pods.create(&PostParams::default(), &pod).await?;
    let ready = json!({
        "metadata": {
            "labels": {"trylatest.dev/gated": "true"},
            "annotations": {"trylatest.dev/containers": "app", "trylatest.dev/max-age": "1ms"},
        },
        "spec": {"schedulingGates": null},
    });
    let patch = Patch::Merge(&ready);
    pods.patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}
