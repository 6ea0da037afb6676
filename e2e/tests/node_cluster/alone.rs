//! Clusters of which only one test knows, and parts without the rest.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use rustix::process::Signal;
use serde_json::json;
use trylatest_e2e::cluster::{
    ContainerdNode, ContainerdVersion, ControlPlane, ControlPlaneOptions, Run, Tools, wait,
};
use trylatest_e2e::machine::processes;
use trylatest_e2e::process::kill_pid;
use trylatest_e2e::suite::{Case, Fixture, OnNode as _};
use trylatest_e2e::testimage;

use crate::machine::{left, wait_until_nothing_is_left};
use crate::{Node, POD_LIMIT, container_id, started};

/// Nothing is shared but the programs.
pub(crate) struct Alone(Tools);

impl Fixture for Alone {
    async fn start(tools: Tools) -> anyhow::Result<Self> {
        Ok(Self(tools))
    }

    async fn stop(&self, _well: bool) -> anyhow::Result<()> {
        Ok(())
    }

    fn logs(&self) -> PathBuf {
        self.0.root().join("target/e2e")
    }
}

/// One at a time: each is as big as a cluster.
pub(crate) fn cases() -> Vec<Case<Alone>> {
    vec![
        Case::exclusive("a_control_plane_works_alone", a_control_plane_works_alone),
        Case::exclusive(
            "a_lone_containerd_leaves_no_container",
            a_lone_containerd_leaves_no_container,
        ),
        Case::exclusive("clusters_run_side_by_side", clusters_run_side_by_side),
        Case::exclusive(
            "an_ordered_end_leaves_nothing",
            an_ordered_end_leaves_nothing,
        ),
        Case::exclusive(
            "a_killed_owner_leaves_nothing_but_logs",
            a_killed_owner_leaves_nothing_but_logs,
        ),
        Case::exclusive(
            "the_next_run_sweeps_when_the_guard_was_killed_too",
            the_next_run_sweeps_when_the_guard_was_killed_too,
        ),
    ]
}

/// For tests of admission: pods can be made, and what changed them can be seen.
async fn a_control_plane_works_alone(alone: Arc<Alone>) -> anyhow::Result<()> {
    let run = Run::start(alone.0.root()).await?;
    let options = ControlPlaneOptions {
        controllers: false,
        scheduler: false,
    };
    let control_plane = ControlPlane::start(&alone.0, &run, options).await?;
    let namespace = control_plane
        .namespace("alone", &[("kind", "test")])
        .await?;
    let pod = |policy: &str| -> anyhow::Result<Pod> {
        Ok(serde_json::from_value(json!({
            "metadata": {"name": "app"},
            "spec": {"containers": [{"name": "app", "image": "app", "imagePullPolicy": policy}]},
        }))?)
    };
    let params = PostParams::default();
    match namespace.pods().create(&params, &pod("TryLatest")?).await {
        Err(kube::Error::Api(status)) if status.message.contains("supported values") => {}
        other => bail!("a policy that Kubernetes does not know: {other:?}"),
    }
    namespace.pods().create(&params, &pod("Never")?).await?;
    control_plane.stop_apiserver().await?;
    control_plane.start_apiserver().await?;
    namespace.pods().get("app").await?;
    let made = control_plane.audit()?.into_iter().any(|event| {
        event["verb"] == "create"
            && event["user"]["username"] == "admin"
            && event["objectRef"]["resource"] == "pods"
            && event["objectRef"]["namespace"] == namespace.name()
            && event["responseStatus"]["code"] == 201
    });
    ensure!(made, "the audit log does not say who made the pod");
    control_plane.stop().await?;
    run.end(false).await?;
    ensure!(
        !run.folder().exists(),
        "{} is still there",
        run.folder().display()
    );
    Ok(())
}

/// A container that no kubelet put into the run's cgroup.
async fn a_lone_containerd_leaves_no_container(alone: Arc<Alone>) -> anyhow::Result<()> {
    let run = Run::start(alone.0.root()).await?;
    let node = ContainerdNode::start(&alone.0, &run, ContainerdVersion::V2).await?;
    let runc = node.root().with_file_name("state").join("runc");
    let root = format!("--runc-root={}", runc.display());
    node.ctr(&["run", "--detach", &root, testimage::PAUSE, "lone"])
        .await?;
    let pid = node.pid_of("lone").await?;
    let lives = || {
        processes().map(|all| {
            all.iter()
                .any(|process| process.pid == pid && process.args.starts_with("/testapp"))
        })
    };
    ensure!(lives()?, "the container does not run");
    node.kill().await?;
    ensure!(lives()?, "the container ended with containerd");
    run.end(false).await?;
    ensure!(!lives()?, "the container outlived the run");
    wait_until_nothing_is_left(run.folder()).await
}

/// Each pod survives the other cluster's start, pods, reboot and end.
async fn clusters_run_side_by_side(alone: Arc<Alone>) -> anyhow::Result<()> {
    let one = Node::start(alone.0.clone(), ContainerdVersion::V2).await?;
    let namespace = one.cluster.namespace("side").await?;
    let before = one.run(&namespace, "app", false).await?;
    let other = Node::start(alone.0.clone(), ContainerdVersion::V2).await?;
    let elsewhere = other.cluster.namespace("side").await?;
    other.run(&elsewhere, "app", false).await?;
    other.cluster.reboot().await?;
    let again = |pod: &Pod| started(pod, 1);
    elsewhere
        .wait_pod("app", "the pod runs again", POD_LIMIT, again)
        .await?;
    other.cluster.stop(true).await?;
    // That the kubelet runs another pod shows that it has looked at all of them since.
    one.run(&namespace, "later", false).await?;
    let after = namespace.pods().get("app").await?;
    ensure!(
        container_id(&before) == container_id(&after),
        "the pod did not run on: {after:?}"
    );
    one.cluster.stop(true).await
}

async fn an_ordered_end_leaves_nothing(alone: Arc<Alone>) -> anyhow::Result<()> {
    let node = Node::start(alone.0.clone(), ContainerdVersion::V2).await?;
    let namespace = node.cluster.namespace("end").await?;
    node.run(&namespace, "app", false).await?;
    let folder = node.cluster.dir().to_owned();
    ensure!(
        !left(&folder)?.is_empty(),
        "what is looked for is seen nowhere"
    );
    node.cluster.stop(true).await?;
    drop(node);
    wait_until_nothing_is_left(&folder).await?;
    ensure!(!folder.exists(), "{} is still there", folder.display());
    Ok(())
}

/// Nobody is left to clean up but the run's own guard.
async fn a_killed_owner_leaves_nothing_but_logs(alone: Arc<Alone>) -> anyhow::Result<()> {
    let mut owner = Owner::start(&alone.0)?;
    owner.kill()?;
    owner.wait_until_nothing_but_logs_is_left().await
}

/// Not even the guard is left, as when a machine's out-of-memory killer strikes at random.
async fn the_next_run_sweeps_when_the_guard_was_killed_too(
    alone: Arc<Alone>,
) -> anyhow::Result<()> {
    let mut owner = Owner::start(&alone.0)?;
    let folder = owner.folder.display().to_string();
    let guards = processes()?
        .into_iter()
        .filter(|process| process.args.contains(&folder) && process.args.ends_with(" wait "));
    for guard in guards {
        kill_pid(guard.pid, Signal::KILL)?;
    }
    owner.kill()?;
    ensure!(!left(&owner.folder)?.is_empty(), "somebody else cleaned up");
    let next = Run::start(alone.0.root()).await?;
    owner.wait_until_nothing_but_logs_is_left().await?;
    next.end(false).await
}

/// Another process that owns a cluster, in which a pod runs.
struct Owner {
    process: Child,
    folder: PathBuf,
}

impl Owner {
    fn start(tools: &Tools) -> anyhow::Result<Self> {
        let process = Command::new(env!("CARGO_BIN_EXE_cluster"))
            .args(["--registry-port", "0"])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut owner = Self {
            process,
            folder: PathBuf::new(),
        };
        let output = owner.process.stdout.take();
        let said = BufReader::new(output.context("its output is a pipe")?);
        let mut guide = said.lines().map_while(Result::ok);
        let config =
            guide.find_map(|line| line.strip_prefix("export KUBECONFIG=").map(PathBuf::from));
        let config = config.context("it ended without a word")?;
        config
            .parent()
            .context("it says where it is")?
            .clone_into(&mut owner.folder);
        let kubectl = |args: &[&str]| owner.kubectl(tools, args);
        kubectl(&["run", "app", &format!("--image={}", testimage::PAUSE)])?;
        kubectl(&["wait", "--for=condition=Ready", "pod/app", "--timeout=60s"])?;
        Ok(owner)
    }

    fn kubectl(&self, tools: &Tools, args: &[&str]) -> anyhow::Result<()> {
        let config = self.folder.join("kubeconfig");
        let mut command = Command::new(tools.kubectl());
        let made = command
            .arg("--kubeconfig")
            .arg(config)
            .args(args)
            .output()?;
        ensure!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        Ok(())
    }

    /// It ends nothing itself: that is for its guard, or for the next run.
    fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    async fn wait_until_nothing_but_logs_is_left(&self) -> anyhow::Result<()> {
        wait_until_nothing_is_left(&self.folder).await?;
        wait::until("nothing but logs is kept", POD_LIMIT, async || {
            Ok((names_in(&self.folder)? == ["logs"]).then_some(()))
        })
        .await
    }
}

/// Also where a test fails: its cluster must not outlive it.
impl Drop for Owner {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.kill();
    }
}

fn names_in(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(folder)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}
