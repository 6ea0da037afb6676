//! TryLatest on a cluster as a user installs it: the image, the manifests through an overlay, and
//! the DaemonSet run by the kubelet.

use std::fs;
use std::net::SocketAddr;
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

const IMAGE_NAME: &str = "ghcr.io/trylatest/trylatest";

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
        let overlay = write_overlay(cluster, tools, &state, args)?;
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
        let containers = json!([{"name": "agent", "env": [variable]}]);
        let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}});
        let patch = kube::api::Patch::Strategic(patch);
        let params = kube::api::PatchParams::default();
        self.daemon_set().patch(DAEMON_SET, &params, &patch).await?;
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
}

/// What the README says to remove TryLatest, for the manifests in this folder: the arguments of kubectl, in order.
///
/// # Errors
/// The README does not say it any more.
pub fn uninstall(manifests: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let readme = include_str!("../../README.md");
    let (_, below) = readme
        .split_once("\nTo remove it,")
        .context("no such part")?;
    let (_, code) = below.split_once("```sh\n").context("no commands")?;
    let (code, _) = code.split_once("```").context("no end")?;
    let commands = code.lines().map(|line| {
        let mut words = line.split(' ');
        ensure!(words.next() == Some("kubectl"), "{line}");
        let word = |word| if word == "manifests" { manifests } else { word };
        Ok(words.map(|own| word(own).to_owned()).collect())
    });
    commands.collect()
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

/// The overlay that users copy, filled in for this node as they would, with one more patch that none
/// of them needs: a state folder that goes with the run.
fn write_overlay(
    cluster: &Cluster,
    tools: &Tools,
    state: &Path,
    args: &[&str],
) -> anyhow::Result<PathBuf> {
    let folder = cluster.dir().join("install");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let containerd = cluster.containerd().socket();
    let containerd = containerd.parent().and_then(Path::to_str);
    let api = cluster.control_plane().server();
    // kustomize takes no absolute paths.
    let depth = folder.strip_prefix(tools.root());
    let depth = depth.context("a run is in the repository")?.components();
    let manifests = depth.map(|_| "../").collect::<String>() + "manifests";
    let patch = "  - path: agent.yaml\n";
    let last_flag = "            - --try=30s\n";
    let flags = args.iter().map(|flag| format!("            - {flag}\n"));
    let fills: [(&str, Changes<'_>); 2] = [
        (
            "kustomization.yaml",
            &[
                ("../..", &manifests, 2),
                ("registry.example/mirror/trylatest", IMAGE_NAME, 1),
                // What most users have: the gate's own flags, which it reads with less memory.
                (GATE_PATCH, "", 1),
                // The tests have rules of their own.
                (CONFIG_MAP, "", 1),
                (patch, &format!("{patch}  - path: state.yaml\n"), 1),
            ],
        ),
        (
            "agent.yaml",
            &[
                ("127.0.0.1", &api.ip().to_string(), 4),
                ("6443", &api.port().to_string(), 1),
                ("/run/k3s/containerd", containerd.context("no path")?, 1),
                (
                    last_flag,
                    &(last_flag.to_owned() + &flags.collect::<String>()),
                    1,
                ),
            ],
        ),
    ];
    let example = tools.root().join("manifests/overlays/example-node");
    for (file, changes) in fills {
        let from = example.join(file);
        let text = fs::read_to_string(&from).with_context(|| format!("read {}", from.display()))?;
        let filled = filled(&text, changes).with_context(|| from.display().to_string())?;
        fs::write(folder.join(file), filled)?;
    }
    let state = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": DAEMON_SET, "namespace": NAMESPACE},
        "spec": {"template": {"spec": {
            "volumes": [{"name": "state", "hostPath": {"path": state}}],
            // However full this machine's disk is.
            "containers": [{"name": "agent", "env": [
                {"name": DISK_FLOOR, "value": "0"}, {"name": "TRYLATEST_KEEP_FREE", "value": "0"},
            ]}],
        }}},
    });
    fs::write(folder.join("state.yaml"), format!("{state:#}\n"))?;
    Ok(folder)
}

/// What stays free on the disk; nothing has to, unless a test says otherwise.
pub const DISK_FLOOR: &str = "TRYLATEST_DISK_FLOOR";

/// The example's patch of the gate's flags.
const GATE_PATCH: &str = "  - path: gate.yaml
    target:
      kind: MutatingAdmissionPolicy
      name: trylatest-pods
";

/// The example's rules for registries.
const CONFIG_MAP: &str = "configMapGenerator:
  - name: trylatest-config
    namespace: trylatest-system
    files: [config.yaml]
    options:
      disableNameSuffixHash: true
      labels:
        app.kubernetes.io/name: trylatest
";

/// What is replaced by what, and how often it is there.
type Changes<'a> = &'a [(&'a str, &'a str, usize)];

/// The text with these changes; each place is there as often as is said.
fn filled(text: &str, changes: Changes<'_>) -> anyhow::Result<String> {
    let mut filled = text.to_owned();
    for (from, to, times) in changes {
        let found = filled.matches(from).count();
        ensure!(
            found == *times,
            "{from:?} is there {found} times, not {times}"
        );
        filled = filled.replace(from, to);
    }
    Ok(filled)
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
