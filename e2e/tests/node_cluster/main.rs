//! The cluster itself: that it is what it says it is, before anything is tested on it.

mod alone;
mod machine;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;
use trylatest_e2e::cluster::{Cluster, ContainerdVersion, Namespace, Options, Tools};
use trylatest_e2e::machine::check_listeners;
use trylatest_e2e::suite::{Case, OnNode, Suite, With};
use trylatest_e2e::testimage;

/// The promise for a machine of 2 cores.
const READY_LIMIT: Duration = Duration::from_secs(15);

/// How long a pod may take for what it is waited for; a second is usual.
const POD_LIMIT: Duration = Duration::from_secs(60);

/// A cluster, the time it took, and an image to run.
struct Node {
    cluster: Cluster,
    took: Duration,
    image: String,
}

impl OnNode for Node {
    async fn start(tools: Tools, containerd: ContainerdVersion) -> anyhow::Result<Self> {
        let start = Instant::now();
        let options = Options {
            containerd,
            ..Options::default()
        };
        let cluster = Cluster::start(&tools, options).await?;
        let took = start.elapsed();
        let app = testimage::app(&tools, "one\n")?;
        cluster.registry().push(&app, "node/app", "1").await?;
        let image = cluster.registry().image("node/app", "1");
        Ok(Self {
            cluster,
            took,
            image,
        })
    }

    async fn stop(&self, well: bool) -> anyhow::Result<()> {
        self.cluster.stop(well).await
    }

    fn logs(&self) -> PathBuf {
        self.cluster.logs()
    }
}

impl Node {
    async fn run(
        &self,
        namespace: &Namespace,
        name: &str,
        host_network: bool,
    ) -> anyhow::Result<Pod> {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "hostNetwork": host_network,
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "app", "image": self.image}],
            },
        }))?;
        namespace
            .pods()
            .create(&PostParams::default(), &pod)
            .await?;
        namespace
            .wait_pod(name, "the pod runs", POD_LIMIT, |pod| started(pod, 0))
            .await
    }
}

/// Whether the pod's container runs, after so many restarts.
fn started(pod: &Pod, restarts: i32) -> bool {
    let status = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref()?.first());
    status.is_some_and(|status| status.ready && status.restart_count == restarts)
}

fn address(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref()
}

fn container_id(pod: &Pod) -> Option<&str> {
    pod.status
        .as_ref()?
        .container_statuses
        .as_ref()?
        .first()?
        .container_id
        .as_deref()
}

/// The cases, on either containerd.
fn cases<const OLDEST: bool>(on: &str) -> Vec<Case<With<Node, OLDEST>>> {
    /// A case whose function takes the node by reference.
    macro_rules! case {
        ($kind:ident, $test:ident) => {
            Case::$kind(
                format!("{on}::{}", stringify!($test)),
                |node: Arc<With<Node, OLDEST>>| async move { $test(&node).await },
            )
        };
    }
    vec![
        case!(new, it_is_ready_in_time),
        case!(new, pods_run_and_their_logs_can_be_read),
        case!(new, a_pod_knows_the_api_server_and_may_do_little),
        case!(exclusive, the_node_reboots),
        case!(exclusive, parts_can_be_restarted),
        case!(exclusive, a_killed_container_is_started_again),
        case!(exclusive, nothing_listens_beyond_loopback),
        case!(exclusive, no_part_ended_by_itself),
    ]
}

#[expect(clippy::print_stdout, reason = "a measurement")]
async fn it_is_ready_in_time(node: &Node) -> anyhow::Result<()> {
    println!(
        "the cluster was Ready after {:.1} s",
        node.took.as_secs_f64()
    );
    ensure!(node.took < READY_LIMIT, "it took {:?}", node.took);
    Ok(())
}

async fn pods_run_and_their_logs_can_be_read(node: &Node) -> anyhow::Result<()> {
    let namespace = node.cluster.namespace("pods").await?;
    let plain = node.run(&namespace, "plain", false).await?;
    let host = node.run(&namespace, "host", true).await?;
    ensure!(
        address(&plain).is_some_and(|ip| ip.starts_with("10.213.")),
        "{:?}",
        address(&plain)
    );
    ensure!(
        address(&host) == Some(&node.cluster.node_name()),
        "{:?}",
        address(&host)
    );
    for name in ["plain", "host"] {
        let log = namespace.log(name, "app").await?;
        ensure!(log == "one\n", "the log of {name} is {log:?}");
    }
    let said = node
        .cluster
        .kubectl(&["-n", namespace.name(), "logs", "plain"])
        .await?;
    ensure!(said == "one\n", "kubectl logs said {said:?}");
    namespace.delete().await
}

async fn a_pod_knows_the_api_server_and_may_do_little(node: &Node) -> anyhow::Result<()> {
    let namespace = node.cluster.namespace("token").await?;
    node.run(&namespace, "app", true).await?;
    let cat = async |path: &str| {
        let name = namespace.name();
        let args = ["-n", name, "exec", "app", "--", "/testapp", "cat", path];
        node.cluster.kubectl(&args).await
    };
    let inside = async |file: &str| {
        let path = format!("/var/run/secrets/kubernetes.io/serviceaccount/{file}");
        cat(&path).await
    };
    let environment = cat("/proc/1/environ").await?;
    let server = format!("{}:443", node.cluster.address());
    ensure!(
        environment.contains(&format!(
            "KUBERNETES_SERVICE_HOST={}",
            node.cluster.address()
        )),
        "{environment}"
    );
    let authority = node.cluster.dir().join("of-the-pod.pem");
    fs::write(&authority, inside("ca.crt").await?)?;
    let config: Kubeconfig = serde_json::from_value(json!({
        "clusters": [{"name": "c", "cluster": {"server": format!("https://{server}"), "certificate-authority": authority}}],
        "users": [{"name": "u", "user": {"token": inside("token").await?}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }))?;
    let config =
        kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let who = Api::<SelfSubjectReview>::all(client.clone())
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await?;
    let user = who
        .status
        .and_then(|status| status.user_info)
        .context("an answer has a user")?;
    let account = format!("system:serviceaccount:{}:default", namespace.name());
    ensure!(
        user.username == Some(account),
        "the pod is {:?}",
        user.username
    );
    let at = user
        .extra
        .unwrap_or_default()
        .remove("authentication.kubernetes.io/node-name");
    ensure!(
        at == Some(vec![node.cluster.node_name()]),
        "its token is of node {at:?}"
    );
    let secrets = Api::<Secret>::namespaced(client, namespace.name())
        .list(&ListParams::default())
        .await;
    match secrets {
        Err(kube::Error::Api(status)) if status.code == 403 => namespace.delete().await,
        other => bail!("a pod without rights may list secrets: {other:?}"),
    }
}

async fn the_node_reboots(node: &Node) -> anyhow::Result<()> {
    let namespace = node.cluster.namespace("reboot").await?;
    let before = node.run(&namespace, "app", false).await?;
    let start = Instant::now();
    node.cluster.reboot().await?;
    let after = namespace
        .wait_pod("app", "the pod runs again", POD_LIMIT, |pod| {
            started(pod, 1)
        })
        .await?;
    eprintln!(
        "the pod ran again {:.1} s after the reboot began",
        start.elapsed().as_secs_f64()
    );
    ensure!(
        before.metadata.uid == after.metadata.uid,
        "it is another pod"
    );
    ensure!(
        container_id(&before) != container_id(&after),
        "it is the same container"
    );
    namespace.delete().await
}

async fn parts_can_be_restarted(node: &Node) -> anyhow::Result<()> {
    let namespace = node.cluster.namespace("parts").await?;
    let before = node.run(&namespace, "app", false).await?;
    node.cluster.restart_apiserver().await?;
    node.cluster.containerd().restart().await?;
    node.cluster.containerd().kill().await?;
    node.cluster.containerd().revive().await?;
    node.cluster.restart_kubelet().await?;
    // What runs afterwards shows that all parts work, and that the kubelet has seen every pod.
    node.run(&namespace, "later", false).await?;
    let after = namespace.pods().get("app").await?;
    ensure!(
        container_id(&before) == container_id(&after),
        "the container did not run on: {after:?}"
    );
    namespace.delete().await
}

async fn a_killed_container_is_started_again(node: &Node) -> anyhow::Result<()> {
    let namespace = node.cluster.namespace("killed").await?;
    let before = node.run(&namespace, "app", false).await?;
    let id = container_id(&before).context("a running pod has a container")?;
    node.cluster.kill_container(id).await?;
    namespace
        .wait_pod("app", "the container runs again", POD_LIMIT, |pod| {
            started(pod, 1)
        })
        .await?;
    namespace.delete().await
}

async fn nothing_listens_beyond_loopback(node: &Node) -> anyhow::Result<()> {
    // etcd twice, API server, kubelet, containerd's streams and registry.
    check_listeners(node.cluster.dir(), 6)
}

async fn no_part_ended_by_itself(node: &Node) -> anyhow::Result<()> {
    node.cluster.check().await
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.run(cases::<false>("containerd_2_4"));
    suite.run(cases::<true>("containerd_1_6"));
    suite.run(alone::cases());
    suite.end()
}
