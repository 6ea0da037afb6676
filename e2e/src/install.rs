//! TryLatest on a cluster as a user installs it: the image, the manifests through an overlay, and
//! the DaemonSet run by the kubelet.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::{ListParams, LogParams, PostParams};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::cluster::{Cluster, Tools, wait};

/// The namespace of the install.
pub const NAMESPACE: &str = "trylatest-system";

/// The DaemonSet's name.
pub const DAEMON_SET: &str = "trylatest-agent";

/// The image's name in the manifests, and in the archive.
pub const IMAGE: &str = "ghcr.io/trylatest/trylatest:0.1.0";

/// Where the agent serves probes and metrics.
const PORT: u16 = 9776;

/// How long the agent may take to be ready; 3 s is usual on 2 cores.
const READY: Duration = Duration::from_secs(60);

/// How long the API server may take to know a new policy.
const POLICIES: Duration = Duration::from_secs(30);

/// How long one HTTP answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// An install on a cluster.
#[derive(Clone)]
pub struct Install {
    client: kube::Client,
    agent: SocketAddr,
    overlay: PathBuf,
    state: PathBuf,
}

impl Install {
    /// Brings the image in, applies the manifests, and waits until the agent is ready and the
    /// policies work. `args` are flags for the agent beyond the manifests' own.
    ///
    /// # Errors
    /// If the image is not built, or something does not come up; the message tells what.
    pub async fn new(cluster: &Cluster, tools: &Tools, args: &[&str]) -> anyhow::Result<Self> {
        let image = tools.image();
        if !image.exists() {
            bail!(
                "{} is missing: `cargo run -p trylatest-bootstrap -- image` builds it",
                image.display()
            );
        }
        cluster.containerd().import(&image).await?;
        let state = cluster.dir().join("trylatest");
        let overlay = write_overlay(cluster, tools, &state, args)?;
        let install = Self {
            client: cluster.client(),
            agent: SocketAddr::from((cluster.address(), PORT)),
            overlay,
            state,
        };
        install.apply(cluster).await?;
        install.wait_ready().await?;
        install.wait_policies().await?;
        Ok(install)
    }

    /// Applies the manifests, again if need be.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn apply(&self, cluster: &Cluster) -> anyhow::Result<String> {
        let overlay = self.overlay.to_str().context("a path that is no text")?;
        cluster.kubectl(&["apply", "-k", overlay]).await
    }

    /// The folder that `kubectl apply -k` takes.
    pub fn overlay(&self) -> &Path {
        &self.overlay
    }

    /// The agent's state folder on the node.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// The DaemonSet.
    pub fn daemon_set(&self) -> Api<DaemonSet> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// The pods of the install's namespace.
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Waits until the DaemonSet's current template runs and is ready.
    ///
    /// # Errors
    /// If it is not within a minute; the message holds the agent's log.
    pub async fn wait_ready(&self) -> anyhow::Result<()> {
        let ready = |set: &DaemonSet| {
            let wanted = set.metadata.generation;
            set.status.as_ref().is_some_and(|status| {
                status.observed_generation == wanted
                    && status.updated_number_scheduled == Some(status.desired_number_scheduled)
                    && status.number_ready == status.desired_number_scheduled
                    && status.number_ready > 0
            })
        };
        let set = wait::object(
            self.daemon_set(),
            DAEMON_SET,
            "the agent is ready",
            READY,
            ready,
        );
        let ready = async {
            set.await?;
            // The DaemonSet's status lags behind a pod that was deleted a moment ago.
            let runs = || async { Ok(self.agent().await.ok().filter(is_ready)) };
            wait::until("the agent's pod is ready", READY, runs).await
        };
        match ready.await {
            Ok(_) => Ok(()),
            Err(error) => {
                let log = self
                    .log(false)
                    .await
                    .unwrap_or_else(|error| error.to_string());
                Err(error.context(format!("the agent's log:\n{log}")))
            }
        }
    }

    /// The API server takes a moment to know new policies; until then it refuses `TryLatest`.
    async fn wait_policies(&self) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"generateName": "probe-"},
            "spec": {"containers": [
                {"name": "app", "image": "example.com/app", "imagePullPolicy": "TryLatest"},
            ]},
        }))?;
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        wait::until("the policies work", POLICIES, || async {
            Ok(pods.create(&dry, &pod).await.ok())
        })
        .await?;
        Ok(())
    }

    /// The agent's pod that is not on its way out.
    ///
    /// # Errors
    /// There is none.
    pub async fn agent(&self) -> anyhow::Result<Pod> {
        let pods = self.pods().list(&ListParams::default()).await?.items;
        pods.into_iter()
            .find(|pod| pod.metadata.deletion_timestamp.is_none())
            .context("no agent pod")
    }

    /// What the agent has logged, or its `previous` run.
    ///
    /// # Errors
    /// There is no such log.
    pub async fn log(&self, previous: bool) -> anyhow::Result<String> {
        let name = self.agent().await?.metadata.name.unwrap_or_default();
        let params = LogParams {
            previous,
            ..LogParams::default()
        };
        Ok(self.pods().logs(&name, &params).await?)
    }

    /// The container id of the running agent.
    ///
    /// # Errors
    /// It does not run.
    pub async fn container(&self) -> anyhow::Result<String> {
        let agent = self.agent().await?;
        running_container(&agent).context("the agent does not run")
    }

    /// Asks the agent over HTTP: the status and the body.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        tokio::time::timeout(ANSWER, get(self.agent, path))
            .await
            .with_context(|| format!("no answer to {path} within {ANSWER:?}"))?
            .with_context(|| format!("ask the agent for {path}"))
    }

    /// The value of one of the agent's series, written as in `/metrics`.
    ///
    /// # Errors
    /// There is no such series.
    pub async fn metric(&self, series: &str) -> anyhow::Result<f64> {
        let (_, text) = self.get("/metrics").await?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = line.with_context(|| format!("no series {series}"))?;
        Ok(value.trim().parse()?)
    }

    /// Removes the namespace's DaemonSet pods and waits until they are gone, and puts a node
    /// selector in place that no node has: a node without an agent.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn away(&self) -> anyhow::Result<()> {
        self.select(json!({"trylatest.dev/test": "nowhere"}))
            .await?;
        wait::until("the agent is gone", READY, || async {
            let pods = self.pods().list(&ListParams::default()).await?.items;
            Ok(pods.is_empty().then_some(()))
        })
        .await
    }

    /// Undoes [`Install::away`].
    ///
    /// # Errors
    /// The agent does not come back.
    pub async fn back(&self) -> anyhow::Result<()> {
        self.select(Value::Null).await?;
        self.wait_ready().await
    }

    async fn select(&self, extra: Value) -> anyhow::Result<()> {
        let key = json!({"trylatest.dev/test": extra["trylatest.dev/test"]});
        let patch = json!({"spec": {"template": {"spec": {"nodeSelector": key}}}});
        let patch = kube::api::Patch::Strategic(patch);
        let params = kube::api::PatchParams::default();
        self.daemon_set().patch(DAEMON_SET, &params, &patch).await?;
        Ok(())
    }

    /// Whether the install's namespace is there.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn is_there(&self) -> anyhow::Result<bool> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        Ok(namespaces.get_opt(NAMESPACE).await?.is_some())
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The id of a pod's first container, if it runs.
pub fn running_container(pod: &Pod) -> Option<String> {
    let container = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    container.state.as_ref()?.running.as_ref()?;
    container.container_id.clone()
}

/// What is different about this node: containerd's folder, the state's folder, no shared mounts.
fn write_overlay(
    cluster: &Cluster,
    tools: &Tools,
    state: &Path,
    args: &[&str],
) -> anyhow::Result<PathBuf> {
    let folder = cluster.dir().join("install");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let socket = cluster.containerd().socket();
    let containerd = socket.parent().context("a socket is in a folder")?;
    let args: Vec<&str> = std::iter::once("agent")
        .chain(args.iter().copied())
        .collect();
    let agent = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": DAEMON_SET, "namespace": NAMESPACE},
        "spec": {"template": {"spec": {
            "containers": [{
                "name": "agent",
                "args": args,
                // Mounts need not be shared on the machines that tests run on.
                "volumeMounts": [{"mountPath": "/run/containerd", "mountPropagation": "None"}],
            }],
            "volumes": [
                {"name": "containerd", "hostPath": {"path": containerd}},
                {"name": "state", "hostPath": {"path": state}},
            ],
        }}},
    });
    fs::write(folder.join("agent.yaml"), format!("{agent:#}\n"))?;
    // kustomize takes no absolute paths.
    let depth = folder
        .strip_prefix(tools.root())
        .context("a run is in the repository")?;
    let up = depth
        .components()
        .map(|_| "..")
        .collect::<Vec<_>>()
        .join("/");
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [format!("{up}/manifests")],
        "patches": [{"path": "agent.yaml"}],
    });
    fs::write(
        folder.join("kustomization.yaml"),
        format!("{kustomization:#}\n"),
    )?;
    Ok(folder)
}

async fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header("host", address.to_string())
        .header("connection", "close")
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    let (answer, _) = tokio::join!(answer, connection);
    answer
}
