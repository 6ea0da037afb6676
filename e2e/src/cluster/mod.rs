//! The parts of a cluster, each usable alone, and all of them together.
//!
//! Everything is shared by reference: tests that run at the same time use one cluster.

mod cgroup;
mod containerd;
mod control_plane;
mod credentials;
mod cri;
mod kubeconfig;
mod kubelet;
mod namespace;
mod part;
mod run;
mod slot;
pub mod wait;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use rustix::process::{Signal, geteuid};

pub use containerd::{ContainerdNode, OTHER_RUNTIME};
pub use control_plane::{ControlPlane, ControlPlaneOptions};
pub use credentials::{AUDIENCE, CredentialPlugin, PluginAnswer};
pub use kubelet::Kubelet;
pub use namespace::Namespace;
pub use part::Part;
pub use run::Run;
pub use slot::Slot;
pub use trylatest_bootstrap::{ContainerdVersion, Tools};

use crate::process::kill_pid;
use crate::registry::Registry;

/// How long the node may take to be Ready; 6 s is usual on 2 cores, more when several start.
const NODE_READY: Duration = Duration::from_secs(90);

/// What is asked of a cluster.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which containerd runs the node.
    pub containerd: ContainerdVersion,
    /// The registry's port on 127.0.0.1; 0 is a free one.
    pub registry_port: u16,
    /// The control plane; the controllers and the scheduler run by default.
    pub control_plane: ControlPlaneOptions,
}

/// A running one-node cluster with a registry. Dropping it ends it and keeps its logs.
pub struct Cluster {
    // Dropped from first to last: what needs another part goes before it.
    kubelet: Kubelet,
    containerd: ContainerdNode,
    control_plane: ControlPlane,
    registry: Registry,
    run: Run,
}

impl Cluster {
    /// Starts it, and waits until the node is Ready.
    ///
    /// # Errors
    /// If a part does not come up; the message holds the last lines of its log and says where the
    /// logs are.
    pub async fn start(tools: &Tools, options: Options) -> anyhow::Result<Self> {
        ensure!(geteuid().is_root(), "only root can run containers");
        let run = Run::start(tools.root()).await?;
        // On the heap: it holds the starts of all parts at once.
        let start = Box::pin(Self::start_in(run, tools, options));
        start.await.context("start a cluster")
    }

    async fn start_in(run: Run, tools: &Tools, options: Options) -> anyhow::Result<Self> {
        let Options {
            containerd: version,
            registry_port,
            control_plane,
        } = options;
        let registry_program = tools.docker_registry();
        let (registry_folder, registry_log) = (run.folder().join("registry"), run.log("registry"));
        let registry = async {
            let started = Registry::start(
                &registry_program,
                &registry_folder,
                &registry_log,
                registry_port,
            );
            let what = "start the registry (--registry-port picks its port)";
            started.await.context(what)
        };
        let (control_plane, containerd, registry) = tokio::try_join!(
            ControlPlane::start(tools, &run, control_plane),
            ContainerdNode::start(tools, &run, version),
            registry,
        )?;
        containerd.add_registry(&registry.host())?;
        let kubelet =
            Kubelet::start(tools, &run, &control_plane, &containerd, &registry.host()).await?;
        let cluster = Self {
            kubelet,
            containerd,
            control_plane,
            registry,
            run,
        };
        let furnished = namespace::furnished(cluster.client(), "default");
        // Both can be dropped at any point: they only look.
        tokio::try_join!(cluster.node_ready(), furnished)?;
        Ok(cluster)
    }

    /// A client with an administrator's rights.
    pub fn client(&self) -> Client {
        self.control_plane.client()
    }

    /// Runs kubectl as the administrator and returns what it printed.
    ///
    /// # Errors
    /// If it exits non-zero; the message holds its stderr.
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.control_plane.kubectl(args).await
    }

    /// The API server and what belongs to it.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The node's containerd.
    pub fn containerd(&self) -> &ContainerdNode {
        &self.containerd
    }

    /// The node's kubelet.
    pub fn kubelet(&self) -> &Kubelet {
        &self.kubelet
    }

    /// The registry, and the faults that can be put before it.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The node's name, which is its address.
    pub fn node_name(&self) -> String {
        self.address().to_string()
    }

    /// The loopback address at which the API server, the kubelet and etcd listen.
    pub fn address(&self) -> Ipv4Addr {
        self.run.slot().address()
    }

    /// The run's folder.
    pub fn dir(&self) -> &Path {
        self.run.folder()
    }

    /// Where the logs of all parts are.
    pub fn logs(&self) -> PathBuf {
        self.run.logs()
    }

    /// Makes a namespace whose name starts with `prefix`, ready for pods.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn namespace(&self, prefix: &str) -> anyhow::Result<Namespace> {
        self.namespace_with(prefix, &[]).await
    }

    /// The same with labels.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn namespace_with(
        &self,
        prefix: &str,
        labels: &[(&str, &str)],
    ) -> anyhow::Result<Namespace> {
        self.control_plane.namespace(prefix, labels).await
    }

    /// Kills the kubelet, containerd, the shims and all containers, takes away what is in memory
    /// on a real node, and starts the node again. Returns when containerd answers and the kubelet
    /// is started: the API server still thinks that all pods run.
    ///
    /// # Errors
    /// If a part does not come up again.
    pub async fn reboot(&self) -> anyhow::Result<()> {
        self.kubelet.kill().await?;
        self.containerd.kill().await?;
        self.run.cut_power().await?;
        self.containerd.revive().await?;
        self.kubelet.revive().await
    }

    /// Kills the kubelet and starts it again. Containers run on.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn restart_kubelet(&self) -> anyhow::Result<()> {
        self.kubelet.kill().await?;
        self.kubelet.revive().await
    }

    /// Kills the API server, starts it again, and waits until it is ready.
    ///
    /// # Errors
    /// If it is not ready in a minute.
    pub async fn restart_apiserver(&self) -> anyhow::Result<()> {
        self.control_plane.stop_apiserver().await?;
        self.control_plane.start_apiserver().await
    }

    /// Kills the first process of a container with SIGKILL; `id` is as in a pod's status, with or
    /// without `containerd://`.
    ///
    /// # Errors
    /// If there is no such container, or it does not run.
    pub async fn kill_container(&self, id: &str) -> anyhow::Result<()> {
        let id = id.strip_prefix("containerd://").unwrap_or(id);
        kill_pid(self.containerd.pid_of(id).await?, Signal::KILL)
    }

    /// Waits until the node's condition `kind` is there and as wanted.
    ///
    /// # Errors
    /// If it is not within `limit`; the message shows the node.
    pub async fn wait_node_condition(
        &self,
        kind: &str,
        wanted: bool,
        limit: Duration,
    ) -> anyhow::Result<Node> {
        let api: Api<Node> = Api::all(self.client());
        let status = if wanted { "True" } else { "False" };
        let what = format!("the node's condition {kind} is {status}");
        wait::object(api, &self.node_name(), &what, limit, |node| {
            condition(node, kind) == Some(status)
        })
        .await
    }

    /// Fails if a part has ended by itself.
    ///
    /// # Errors
    /// With the last lines of the part's log.
    pub async fn check(&self) -> anyhow::Result<()> {
        self.control_plane.check().await?;
        self.containerd.check().await?;
        self.kubelet.check().await
    }

    /// Prints how to use the cluster, and waits for Ctrl-C or SIGTERM.
    ///
    /// # Errors
    /// If signals cannot be waited for.
    pub async fn keep_until_interrupted(&self) -> anyhow::Result<()> {
        println!("{}", self.guide());
        interrupted().await
    }

    /// How to use the cluster from a shell.
    pub fn guide(&self) -> String {
        format!(
            "export PATH={}:{}:$PATH\nexport KUBECONFIG={}\nexport CONTAINERD_ADDRESS={}\nexport CONTAINERD_NAMESPACE=k8s.io\n\
             # node {}, registry {}, logs {}\n# Ctrl-C stops it",
            self.containerd.programs().display(),
            self.control_plane.programs().display(),
            self.control_plane.kubeconfig().display(),
            self.containerd.socket().display(),
            self.node_name(),
            self.registry.host(),
            self.logs().display(),
        )
    }

    /// Ends everything. The folder is removed if all went `well`; otherwise the logs stay.
    ///
    /// # Errors
    /// If something does not end.
    pub async fn stop(&self, well: bool) -> anyhow::Result<()> {
        self.kubelet.kill().await?;
        self.containerd.kill().await?;
        self.control_plane.stop().await?;
        self.run.end(!well).await
    }

    async fn node_ready(&self) -> anyhow::Result<()> {
        let ready = self.wait_node_condition("Ready", true, NODE_READY);
        tokio::select! {
            // Both can be dropped at any point: they only look.
            node = ready => node.map(drop),
            ended = self.until_a_part_ends() => ended.context("wait for the node"),
        }
    }

    async fn until_a_part_ends(&self) -> anyhow::Result<()> {
        wait::until("a part ends", NODE_READY, || async {
            self.check().await?;
            Ok(None)
        })
        .await
    }
}

/// Waits for Ctrl-C or SIGTERM.
///
/// # Errors
/// If signals cannot be waited for.
pub async fn interrupted() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        // Both can be dropped at any point: a signal that came is seen by neither again.
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminated.recv() => {}
    }
    Ok(())
}

/// The status of a node's condition.
fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == kind)
        .map(|condition| condition.status.as_str())
}
