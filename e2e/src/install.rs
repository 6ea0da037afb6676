//! TryLatest on a cluster as a user installs it: the image, the manifests through an overlay, and
//! the DaemonSet run by the kubelet.

mod overlay;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::cluster::{Cluster, Tools, wait};

pub use self::overlay::{DISK_FLOOR, uninstall};

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

/// How long a name may be away that was taken away for the kubelet.
const AWAY: Duration = Duration::from_secs(60);

/// Begins the aliases that keep the copies of such names.
const ASIDE: &str = "TryLatest,aside,";

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
    /// If the image is not built, or something does not come up; the message says what.
    pub async fn new(cluster: &Cluster, tools: &Tools, args: &[&str]) -> anyhow::Result<Self> {
        let image = tools.image();
        if !image.exists() {
            bail!(
                "{} is missing: build it with `cargo run -p trylatest-bootstrap -- image`",
                image.display()
            );
        }
        cluster.containerd().import(&image).await?;
        let state = cluster.dir().join("trylatest");
        let overlay = overlay::write(cluster, tools, &state, args)?;
        let install = Self {
            client: cluster.client(),
            agent: SocketAddr::from((cluster.address(), PORT)),
            overlay,
            state,
        };
        install.set_up(cluster).await?;
        Ok(install)
    }

    /// Applies the manifests and waits until the agent is ready and the policies work.
    ///
    /// # Errors
    /// Something does not come up; the message says what.
    pub async fn set_up(&self, cluster: &Cluster) -> anyhow::Result<()> {
        self.apply(cluster).await?;
        self.wait_ready().await?;
        self.wait_policies().await
    }

    /// Removes everything that the manifests have made, as the README says.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn remove(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let overlay = self.overlay.to_str().context("a path that is no text")?;
        for command in uninstall(overlay)? {
            let args: Vec<&str> = command.iter().map(String::as_str).collect();
            cluster.kubectl(&args).await?;
        }
        Ok(())
    }

    /// Applies the manifests, again if need be.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn apply(&self, cluster: &Cluster) -> anyhow::Result<String> {
        let overlay = self.overlay.to_str().context("a path that is no text")?;
        cluster.kubectl(&["apply", "-k", overlay]).await
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

    /// The sum of the values of a metric's series that have these labels, written as in `/metrics`: `class="network"`.
    ///
    /// # Errors
    /// There is no such series.
    pub async fn sum(&self, metric: &str, labels: &[&str]) -> anyhow::Result<f64> {
        let (_, text) = self.get("/metrics").await?;
        let series = text.lines().filter_map(|line| {
            let (own, value) = line
                .strip_prefix(metric)?
                .strip_prefix('{')?
                .split_once("} ")?;
            let own: Vec<&str> = own.split(',').collect();
            let has = |label: &&str| own.contains(label);
            labels.iter().all(has).then_some(value)
        });
        let values = series.map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        ensure!(!values.is_empty(), "no series {metric} with {labels:?}");
        Ok(values.iter().sum())
    }

    /// Kills the agent with SIGKILL, and its pod too: the kubelet would start it again after a growing
    /// pause, as it does with all that die often. A new pod comes at once. Whether there was anything to kill: after a
    /// reboot, the API server still thinks that the agent runs.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn kill_agent(&self, cluster: &Cluster) -> anyhow::Result<bool> {
        let Ok(agent) = self.agent().await else {
            return Ok(false);
        };
        let killed = match running_container(&agent) {
            Some(id) => cluster.kill_container(&id).await.is_ok(),
            None => false,
        };
        let name = agent.metadata.name.unwrap_or_default();
        let now = DeleteParams::default().grace_period(0);
        self.pods().delete(&name, &now).await?;
        Ok(killed)
    }

    /// Waits until no name that was taken away is left away.
    ///
    /// # Errors
    /// One still is, after a minute.
    pub async fn nothing_is_aside(&self, cluster: &Cluster) -> anyhow::Result<()> {
        wait::until("no copy is aside", AWAY, || async {
            let names = cluster.containerd().ctr(&["images", "list", "--quiet"]);
            let names = names.await?;
            let is_aside = |name: &str| name.starts_with(ASIDE);
            Ok((!names.lines().any(is_aside)).then_some(()))
        })
        .await
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

    /// Sets a variable of the agent, or takes it back if there is no value, and waits for the agent that
    /// has it so.
    ///
    /// # Errors
    /// What the API server says, or the agent does not come back.
    pub async fn set_variable(&self, name: &str, value: Option<&str>) -> anyhow::Result<()> {
        let variable = match value {
            Some(value) => json!({"name": name, "value": value}),
            None => json!({"name": name, "$patch": "delete"}),
        };
        let agent = json!({"name": "agent", "env": [variable]});
        self.patch(&json!({"containers": [agent]})).await?;
        self.wait_ready().await
    }

    /// Gives the agent this address, lets the kubelet probe it at another, and waits for the agent that has it so.
    ///
    /// # Errors
    /// What the API server says, or the agent does not come back.
    pub async fn set_address(&self, address: Ipv4Addr, probed: Ipv4Addr) -> anyhow::Result<()> {
        let probe = json!({"httpGet": {"host": probed}});
        let variable = json!({"name": "TRYLATEST_ADDRESS", "value": address});
        let agent = json!({
            "name": "agent", "env": [variable], "livenessProbe": probe, "readinessProbe": probe,
        });
        self.patch(&json!({"containers": [agent]})).await?;
        self.wait_ready().await
    }

    /// Mounts this folder of the node as the one of containerd's socket, and waits for the agent that has it so.
    ///
    /// # Errors
    /// What the API server says, or the agent does not come back.
    pub async fn mount_containerd(&self, folder: &Path) -> anyhow::Result<()> {
        let volumes = json!([{"name": "containerd", "hostPath": {"path": folder}}]);
        self.patch(&json!({"volumes": volumes})).await?;
        self.wait_ready().await
    }

    async fn select(&self, extra: Value) -> anyhow::Result<()> {
        let key = json!({"trylatest.dev/test": extra["trylatest.dev/test"]});
        self.patch(&json!({"nodeSelector": key})).await
    }

    /// Merges this into the spec of the agent's pod template.
    async fn patch(&self, spec: &Value) -> anyhow::Result<()> {
        let patch = json!({"spec": {"template": {"spec": spec}}});
        let patch = kube::api::Patch::Strategic(patch);
        let params = kube::api::PatchParams::default();
        self.daemon_set().patch(DAEMON_SET, &params, &patch).await?;
        Ok(())
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

/// What this address answers to a path: the status and the body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
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
