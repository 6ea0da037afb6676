//! The cluster itself: that it is what it says it is, before anything is tested on it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{ListParams, LogParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;
use trylatest_e2e::cluster::{Cluster, ContainerdVersion, Namespace, Options, Tools, wait};
use trylatest_e2e::process::kill_pid;
use trylatest_e2e::suite::{Case, Fixture, Suite};
use trylatest_e2e::testimage;

/// The promise for a machine of 2 cores.
const READY_LIMIT: Duration = Duration::from_secs(15);

/// How long a pod may take for what it is waited for; a second is usual.
const POD_LIMIT: Duration = Duration::from_secs(60);

/// A cluster, the time it took, and an image to run.
struct Node {
    cluster: Cluster,
    tools: Tools,
    took: Duration,
    image: String,
}

impl Node {
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
            tools,
            took,
            image,
        })
    }

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
        wait::object(namespace.pods(), name, "the pod runs", POD_LIMIT, |pod| {
            started(pod, 0)
        })
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

/// With containerd 2.4.
struct Newest(Node);

/// With Debian's containerd 1.6.
struct Oldest(Node);

macro_rules! fixture {
    ($name:ident, $version:ident) => {
        impl Fixture for $name {
            async fn start(tools: Tools) -> anyhow::Result<Self> {
                Node::start(tools, ContainerdVersion::$version)
                    .await
                    .map(Self)
            }

            async fn stop(&self, well: bool) -> anyhow::Result<()> {
                self.0.cluster.stop(well).await
            }

            fn logs(&self) -> PathBuf {
                self.0.cluster.logs()
            }
        }

        impl AsRef<Node> for $name {
            fn as_ref(&self) -> &Node {
                &self.0
            }
        }
    };
}

fixture!(Newest, V2);
fixture!(Oldest, V1_6);

/// The cases, on either containerd.
fn cases<F: Fixture + AsRef<Node>>(on: &str) -> Vec<Case<F>> {
    /// A case whose function takes the node by reference.
    macro_rules! case {
        ($kind:ident, $test:ident) => {
            Case::$kind(
                format!("{on}::{}", stringify!($test)),
                |fixture: Arc<F>| async move { $test((*fixture).as_ref()).await },
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
        let log = namespace.pods().logs(name, &LogParams::default()).await?;
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
    let inside = async |file: &str| {
        let path = format!("/var/run/secrets/kubernetes.io/serviceaccount/{file}");
        let args = [
            "-n",
            namespace.name(),
            "exec",
            "app",
            "--",
            "/testapp",
            "cat",
            &path,
        ];
        node.cluster.kubectl(&args).await
    };
    let environment = node
        .cluster
        .kubectl(&[
            "-n",
            namespace.name(),
            "exec",
            "app",
            "--",
            "/testapp",
            "cat",
            "/proc/1/environ",
        ])
        .await?;
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
    let after = wait::object(
        namespace.pods(),
        "app",
        "the pod runs again",
        POD_LIMIT,
        |pod| started(pod, 1),
    )
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
    wait::object(
        namespace.pods(),
        "app",
        "the container runs again",
        POD_LIMIT,
        |pod| started(pod, 1),
    )
    .await?;
    namespace.delete().await
}

/// Looks at the sockets of every process that works for this cluster, us included.
async fn nothing_listens_beyond_loopback(node: &Node) -> anyhow::Result<()> {
    let folder = node.cluster.dir().display().to_string();
    let ours = processes()?
        .into_iter()
        .filter(|process| process.args.contains(&folder));
    let pids: HashSet<u32> = ours
        .map(|process| process.pid)
        .chain([std::process::id()])
        .collect();
    let sockets: HashSet<u64> = pids.iter().flat_map(|pid| sockets_of(*pid)).collect();
    let mut listening = 0;
    for (table, loopback) in [
        ("tcp", is_loopback_v4 as fn(&str) -> bool),
        ("tcp6", is_loopback_v6),
    ] {
        for line in fs::read_to_string(format!("/proc/net/{table}"))?
            .lines()
            .skip(1)
        {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, .., inode] = fields[..10] else {
                bail!("unknown line {line}")
            };
            if state != "0A" || !sockets.contains(&inode.parse()?) {
                continue;
            }
            listening += 1;
            ensure!(
                loopback(local),
                "{table} {local} is no loopback address: {line}"
            );
        }
    }
    // etcd twice, API server, kubelet, containerd's streams, registry and proxy.
    ensure!(
        listening >= 7,
        "only {listening} sockets of {} processes were seen",
        pids.len()
    );
    Ok(())
}

async fn no_part_ended_by_itself(node: &Node) -> anyhow::Result<()> {
    node.cluster.check().await
}

fn is_loopback_v4(local: &str) -> bool {
    // Little-endian: the first byte of the address is the last pair of digits.
    local.get(6..8) == Some("7F")
}

fn is_loopback_v6(local: &str) -> bool {
    local.starts_with("00000000000000000000000001000000")
        || local.starts_with("0000000000000000FFFF0000") && local.get(30..32) == Some("7F")
}

struct Running {
    pid: u32,
    args: String,
}

fn processes() -> anyhow::Result<Vec<Running>> {
    let entries = fs::read_dir("/proc")?.filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // One that has ended meanwhile has no arguments.
    Ok(pids
        .map(|pid| Running {
            pid,
            args: String::from_utf8_lossy(
                &fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default(),
            )
            .replace('\0', " "),
        })
        .collect())
}

/// The inodes of a process's sockets.
fn sockets_of(pid: u32) -> Vec<u64> {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets
        .filter_map(|target| {
            target
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?
                .parse()
                .ok()
        })
        .collect()
}

/// The tests that start clusters of their own.
struct Alone(Tools);

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

/// Each pod survives the other cluster's start, pods, and end.
async fn clusters_run_side_by_side(alone: Arc<Alone>) -> anyhow::Result<()> {
    let one = Node::start(alone.0.clone(), ContainerdVersion::V2).await?;
    let namespace = one.cluster.namespace("side").await?;
    let before = one.run(&namespace, "app", false).await?;
    let other = Node::start(one.tools.clone(), ContainerdVersion::V2).await?;
    let elsewhere = other.cluster.namespace("side").await?;
    other.run(&elsewhere, "app", false).await?;
    other.cluster.reboot().await?;
    wait::object(
        elsewhere.pods(),
        "app",
        "the pod runs again",
        POD_LIMIT,
        |pod| started(pod, 1),
    )
    .await?;
    other.cluster.stop(true).await?;
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

/// The owner of a cluster is killed: nobody is left to clean up but the cluster's own guard.
async fn a_killed_owner_leaves_nothing_but_logs(alone: Arc<Alone>) -> anyhow::Result<()> {
    use std::io::{BufRead as _, BufReader};

    let mut owner = Command::new(env!("CARGO_BIN_EXE_cluster"))
        .args(["--registry-port", "0"])
        .stdout(Stdio::piped())
        .spawn()?;
    let said = BufReader::new(owner.stdout.take().context("its output is a pipe")?);
    let mut guide = said
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.starts_with("# Ctrl-C"));
    let config = guide.find_map(|line| line.strip_prefix("export KUBECONFIG=").map(PathBuf::from));
    let folder = config
        .as_deref()
        .and_then(Path::parent)
        .context("it says where it is")?
        .to_owned();
    guide.for_each(drop);
    let kubectl = |args: &[&str]| {
        let made = Command::new(alone.0.kubectl())
            .arg("--kubeconfig")
            .arg(folder.join("kubeconfig"))
            .args(args)
            .output()?;
        ensure!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        Ok(())
    };
    kubectl(&["run", "app", &format!("--image={}", testimage::PAUSE)])?;
    kubectl(&["wait", "--for=condition=Ready", "pod/app", "--timeout=60s"])?;
    kill_pid(owner.id(), Signal::KILL)?;
    owner.wait()?;
    wait_until_nothing_is_left(&folder).await?;
    let kept = || -> anyhow::Result<Vec<_>> {
        Ok(fs::read_dir(&folder)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<std::io::Result<_>>()?)
    };
    wait::until("nothing but logs is kept", POD_LIMIT, async || {
        Ok((kept()? == ["logs"]).then_some(()))
    })
    .await
}

async fn wait_until_nothing_is_left(folder: &Path) -> anyhow::Result<()> {
    let mut last = Vec::new();
    let gone = wait::until("nothing is left", POD_LIMIT, || {
        last = left(folder).unwrap_or_else(|error| vec![error.to_string()]);
        std::future::ready(Ok(last.is_empty().then_some(())))
    })
    .await;
    gone.with_context(|| format!("left over: {last:#?}"))
}

/// Everything on this machine that belongs to the run in `folder`.
fn left(folder: &Path) -> anyhow::Result<Vec<String>> {
    let path = folder.to_str().context("a path that is no text")?;
    let run = folder
        .file_name()
        .and_then(|name| name.to_str())
        .context("a run has a name")?;
    let cgroup = format!("trylatest-{run}");
    let mut found = Vec::new();
    for process in processes()? {
        let groups =
            fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
        if process.args.contains(path) || groups.contains(&cgroup) {
            found.push(format!("process {}: {}", process.pid, process.args));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(path))
            .map(|line| format!("mount {line}")),
    );
    for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
        let folder = hierarchy?.path().join(&cgroup);
        if folder.exists() {
            found.push(folder.display().to_string());
        }
    }
    for link in fs::read_dir("/var/log/containers").into_iter().flatten() {
        let link = link?.path();
        if fs::read_link(&link).is_ok_and(|target| target.starts_with(folder)) {
            found.push(link.display().to_string());
        }
    }
    Ok(found)
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.run(cases::<Newest>("containerd_2_4"));
    suite.run(cases::<Oldest>("containerd_1_6"));
    suite.run(vec![
        Case::exclusive("clusters_run_side_by_side", clusters_run_side_by_side),
        Case::exclusive(
            "an_ordered_end_leaves_nothing",
            an_ordered_end_leaves_nothing,
        ),
        Case::exclusive(
            "a_killed_owner_leaves_nothing_but_logs",
            a_killed_owner_leaves_nothing_but_logs,
        ),
    ]);
    suite.exit_code()
}
