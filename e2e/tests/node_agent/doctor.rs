//! Both doctors on a real node: what they see of it, and what they cannot look at.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde_json::{Value, json};
use trylatest_e2e::cluster::{Namespace, wait};
use trylatest_e2e::install::IMAGE;
use trylatest_e2e::process::{self, Ran};
use trylatest_kubectl::args::Cli;

use crate::{Node, SOON, Tests, tests};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            the_agents_own_pod_sees_nothing_of_the_node,
            a_debugging_pod_sees_the_files_of_the_node,
            a_kubelet_that_cannot_be_asked_is_named,
            who_may_not_ask_kubelets_is_told_so,
        ],
        alone: tests![],
    }
}

/// `kubectl trylatest` is this very program: its first argument says so.
const PROGRAM: &str = "kubectl-trylatest";

/// Runs it, if that is asked for.
pub(crate) fn as_program() -> Option<ExitCode> {
    let line: Vec<OsString> = std::env::args_os().skip(1).collect();
    let is_asked = line.first().is_some_and(|word| word == PROGRAM);
    is_asked.then(|| trylatest_kubectl::run(Cli::parse_from(line)))
}

/// `kubectl trylatest doctor`, by an administrator or somebody else.
async fn of_cluster(kubeconfig: &Path) -> anyhow::Result<Ran> {
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let words = [PROGRAM, &kubeconfig, "doctor", "-o", "json"];
    process::ran(&std::env::current_exe()?, words).await
}

async fn by_administrator(node: &Node) -> anyhow::Result<Ran> {
    of_cluster(node.cluster.control_plane().kubeconfig()).await
}

/// What a report says of this check, if anything.
fn found<'a>(report: &'a Value, check: &str) -> Option<&'a Value> {
    let mut findings = report["findings"].as_array()?.iter();
    findings.find(|finding| finding["check"] == check)
}

/// Why something could not be looked at, if it could not.
fn not_seen<'a>(report: &'a Value, what: &str) -> Option<&'a str> {
    let mut all = report["notSeen"].as_array()?.iter();
    let not_seen = all.find(|not_seen| not_seen["what"] == what)?;
    not_seen["why"].as_str()
}

/// The exit code that its worst finding calls for.
fn code_of(report: &Value) -> i32 {
    match report["findings"][0]["severity"].as_str() {
        Some("error") => 4,
        Some("warning") => 3,
        _ => 0,
    }
}

/// This cluster's nodes have loopback addresses, to which the API server forwards nothing (`IsProxyableIP` in
/// apimachinery/pkg/util/proxy). What the doctor makes of a kubelet's configuration, its unit tests show.
async fn a_kubelet_that_cannot_be_asked_is_named(node: &Node) -> anyhow::Result<()> {
    let ran = by_administrator(node).await?;
    let report = ran.json()?;
    let name = node.cluster.node_name();
    let why = not_seen(&report, &format!("the kubelet's configuration of {name}"));
    let why = why.with_context(|| format!("{report:#}"))?;
    ensure!(why.contains("address not allowed"), "{why}");
    ensure!(ran.code == code_of(&report), "{ran:?}");
    Ok(())
}

/// Without the right to get `nodes/proxy`, the rest is looked at all the same.
async fn who_may_not_ask_kubelets_is_told_so(node: &Node) -> anyhow::Result<()> {
    let space = node.cluster.namespace("doctor").await?;
    let name = space.name();
    let account = format!("--serviceaccount={name}:reader");
    for words in [
        &["-n", name, "create", "serviceaccount", "reader"][..],
        &[
            "create",
            "clusterrole",
            name,
            "--verb=list",
            "--resource=nodes",
        ],
        &[
            "create",
            "clusterrolebinding",
            name,
            "--clusterrole",
            name,
            &account,
        ],
    ] {
        node.cluster.kubectl(words).await?;
    }
    let token = ["-n", name, "create", "token", "reader"];
    let token = node.cluster.kubectl(&token).await?;
    let written = std::fs::read_to_string(node.cluster.control_plane().kubeconfig())?;
    let mut config: Value = serde_json::from_str(&written).context("the kubeconfig is JSON")?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    let kubeconfig = node.cluster.dir().join(format!("{name}.kubeconfig"));
    std::fs::write(&kubeconfig, config.to_string())?;
    // The API server takes a moment to know the role.
    let (ran, report) = wait::until("it may list nodes", SOON, || async {
        let ran = of_cluster(&kubeconfig).await?;
        let report = ran.json()?;
        let seen = report["seen"].as_array().context("no list")?;
        Ok(seen.contains(&json!("nodes")).then_some((ran, report)))
    })
    .await?;
    let kubelets = "the kubelets' configurations (needs the right to get nodes/proxy)";
    let why = not_seen(&report, kubelets).with_context(|| format!("{report:#}"))?;
    ensure!(why.contains("nodes/proxy"), "{why}");
    ensure!(ran.code == code_of(&report), "{ran:?}");
    for kind in ["clusterrolebinding", "clusterrole"] {
        node.cluster.kubectl(&["delete", kind, name]).await?;
    }
    space.delete().await
}

async fn the_agents_own_pod_sees_nothing_of_the_node(node: &Node) -> anyhow::Result<()> {
    let said = node.trylatest(&["doctor"]).await;
    let why = said.err().context("it says that all is well")?.to_string();
    for words in ["exit code 1", "could not look at anything", "--root"] {
        ensure!(why.contains(words), "{why}");
    }
    Ok(())
}

/// By the command of docs/kubectl.md, but for the folders, which are this run's own.
async fn a_debugging_pod_sees_the_files_of_the_node(node: &Node) -> anyhow::Result<()> {
    let space = node.cluster.namespace("debug").await?;
    let mirror = "[host.\"http://127.0.0.1:9\"]\n";
    let containerd = node.cluster.containerd();
    containerd.write_hosts("doctor.example", mirror)?;
    let (code, report) = debugged(node, &space).await?;
    ensure!(report["notSeen"] == json!([]), "{report:#}");
    let seen = report["seen"].as_array().map(Vec::len);
    ensure!(seen == Some(3), "{report:#}");
    let mirror = found(&report, "mirror-without-dial-timeout").context("no finding")?;
    ensure!(mirror.to_string().contains("doctor.example"), "{mirror}");
    // This kubelet does.
    let records = found(&report, "kubelet-keeps-no-records");
    ensure!(records.is_none(), "{report:#}");
    ensure!(code == code_of(&report) && code >= 3, "{code}: {report:#}");
    space.delete().await
}

/// The exit code, and what is reported.
async fn debugged(node: &Node, space: &Namespace) -> anyhow::Result<(i32, Value)> {
    let run = node.cluster.dir();
    let as_root = run.join("as-root.json");
    std::fs::write(
        &as_root,
        json!({"securityContext": {"runAsUser": 0}}).to_string(),
    )?;
    let of_node = |flag: &str, folder: &Path| format!("--{flag}={}", folder.display());
    let words = [
        "debug".to_owned(),
        format!("node/{}", node.cluster.node_name()),
        format!("--namespace={}", space.name()),
        "--profile=sysadmin".to_owned(),
        of_node("custom", &as_root),
        format!("--image={IMAGE}"),
        "--".to_owned(),
        "/trylatest".to_owned(),
        "doctor".to_owned(),
        "--root=/host".to_owned(),
        of_node("certs-dir", &run.join("containerd/certs.d")),
        of_node("kubelet-dir", &run.join("kubelet")),
        of_node("containerd-dir", &node.cluster.containerd().root()),
        "--output=json".to_owned(),
    ];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    node.cluster.kubectl(&words).await?;
    let pods = space.pods();
    let params = ListParams::default().labels("app.kubernetes.io/managed-by=kubectl-debug");
    let pod = pods.list(&params).await?.items.pop();
    let pod = pod.and_then(|pod| pod.metadata.name).context("no pod")?;
    let ended = space.wait_pod(&pod, "it has ended", SOON, |pod| exit_code(pod).is_some());
    let code = exit_code(&ended.await?).context("it has ended")?;
    let said = space.log(&pod, "debugger").await?;
    let report = serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))?;
    Ok((code, report))
}

fn exit_code(pod: &Pod) -> Option<i32> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    Some(status.state.as_ref()?.terminated.as_ref()?.exit_code)
}
