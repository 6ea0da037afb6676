//! TryLatest on a real kubelet, installed by its own manifests: what a pod gets in each situation,
//! and that no pod waits for ever, whoever dies.

mod by_hand;
mod circuit;
mod config;
mod credentials;
mod damage;
mod deaths;
mod doctor;
mod explain;
mod gate_fails;
mod gate_image;
mod handover;
mod hold;
mod input;
mod kept;
mod monitoring;
mod node;
mod outages;
mod outcomes;
mod patience;
mod private;
mod refused;
mod same;
mod storm;
mod unusual;
mod verification;
mod volumes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures::future::BoxFuture;
use serde_json::Value;
use trylatest_e2e::cluster::{Cluster, ContainerdVersion, Namespace, Options, Tools};
use trylatest_e2e::install::{DAEMON_SET, Install, NAMESPACE};
use trylatest_e2e::registry::{Access, FaultProxy};
use trylatest_e2e::suite::{Case, OnNode, Suite, With};
use trylatest_e2e::testimage;
use trylatest_e2e::workload::{PodSpec, Workloads};

/// How long a pod may take that is not held up: a second is usual, more beside other tests.
const SOON: Duration = Duration::from_secs(45);

/// How long what follows from a stall may take: the stall deadline, and the same.
const STALLED: Duration = Duration::from_secs(5 + 45);

/// So many pods at most fall back, one after the other, before the agent knows that a registry is back.
const COMES_BACK: usize = 5;

/// A cluster with TryLatest on it.
struct Node {
    cluster: Cluster,
    install: Install,
    tools: Tools,
    containerd: ContainerdVersion,
}

impl OnNode for Node {
    async fn start(tools: Tools, containerd: ContainerdVersion) -> anyhow::Result<Self> {
        let options = Options {
            containerd,
            ..Options::default()
        };
        let cluster = Cluster::start(&tools, options).await?;
        // The registry's first host is TryLatest's own registry as well, which knows nothing until a test
        // pushes. 1.6 reads no file without a table of hosts.
        let own = format!("http://{}", cluster.registry().host());
        let own = format!("server = \"{own}\"\n[host.\"{own}\"]\n");
        cluster.containerd().write_hosts("ghcr.io", &own)?;
        let install = Install::new(&cluster, &tools, &["--log=trylatest=debug,info"]).await;
        let install = install.with_context(|| format!("logs: {}", cluster.logs().display()))?;
        Ok(Self {
            cluster,
            install,
            tools,
            containerd,
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
    /// Runs a command of the program in the agent's pod, and returns what it printed.
    async fn trylatest(&self, args: &[&str]) -> anyhow::Result<String> {
        let agent = format!("ds/{DAEMON_SET}");
        let mut exec = vec!["exec", "-n", NAMESPACE, &agent, "--", "/trylatest"];
        exec.extend(args);
        self.cluster.kubectl(&exec).await
    }

    /// A namespace and an image repository for one test, both named after it, and a registry host: what one
    /// test does to its registry, no other sees.
    async fn space(&self, name: &str) -> anyhow::Result<Space<'_>> {
        self.space_in(self.cluster.namespace(name).await?)
    }

    fn space_in(&self, namespace: Namespace) -> anyhow::Result<Space<'_>> {
        let registry = self.cluster.registry().add_host()?;
        self.cluster.containerd().add_registry(&registry.host())?;
        Ok(self.space_at(namespace, registry))
    }

    /// The same at a registry host that others may use as well.
    fn space_at(&self, namespace: Namespace, registry: Arc<FaultProxy>) -> Space<'_> {
        let repository = format!("{}/app", namespace.name());
        Space {
            node: self,
            work: Workloads::from(namespace),
            registry,
            repository,
        }
    }
}

/// What one test works with.
struct Space<'a> {
    node: &'a Node,
    work: Workloads,
    /// The host of its image names.
    registry: Arc<FaultProxy>,
    repository: String,
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        self.registry.end_faults();
    }
}

impl Space<'_> {
    /// Lets the tag point to an image that says `version`; its digest.
    async fn push(&self, version: &str) -> anyhow::Result<String> {
        self.push_to(&self.repository, version).await
    }

    async fn push_to(&self, repository: &str, version: &str) -> anyhow::Result<String> {
        self.push_sized(repository, version, 16).await
    }

    /// The same with a layer of `bytes` random bytes.
    async fn push_big(&self, version: &str, bytes: usize) -> anyhow::Result<String> {
        self.push_sized(&self.repository, version, bytes).await
    }

    /// No two images have all their layers in common: each is really downloaded.
    async fn push_sized(
        &self,
        repository: &str,
        version: &str,
        bytes: usize,
    ) -> anyhow::Result<String> {
        let app = testimage::app_of_size(&self.node.tools, &format!("{version}\n"), bytes)?;
        let registry = self.node.cluster.registry();
        registry.push(&app, repository, "latest").await
    }

    fn image(&self) -> String {
        self.registry.image(&self.repository, "latest")
    }

    /// Gives its images only to these users from now on; to everybody if there are none.
    fn protect(&self, access: impl Into<Option<Access>>) {
        self.registry.protect(&self.repository, access);
    }

    /// Runs a TryLatest pod and checks the answer that it got. Returns the release of its container.
    async fn run(&self, name: &str, outcome: &str, version: &str) -> anyhow::Result<Value> {
        self.run_within(name, SOON, outcome, version).await
    }

    async fn run_within(
        &self,
        name: &str,
        limit: Duration,
        outcome: &str,
        version: &str,
    ) -> anyhow::Result<Value> {
        let image = self.image();
        self.run_spec(&tried(name, &image), limit, outcome, version)
            .await
    }

    async fn run_spec(
        &self,
        spec: &PodSpec<'_>,
        limit: Duration,
        outcome: &str,
        version: &str,
    ) -> anyhow::Result<Value> {
        let name = spec.name;
        self.work.run(spec, limit).await?;
        let release = self.work.released(name, "app").await?;
        ensure!(
            release["outcome"] == outcome,
            "{name}: released as {release}"
        );
        self.says(name, "app", version).await?;
        Ok(release)
    }

    /// The registry is back: the first pods may still fall back before that is known.
    async fn comes_back(&self, version: &str) -> anyhow::Result<()> {
        self.comes_back_with(&self.repository, version).await
    }

    async fn comes_back_with(&self, repository: &str, version: &str) -> anyhow::Result<()> {
        for n in 0..COMES_BACK {
            let name = format!("healed-{n}");
            let image = self.registry.image(repository, "latest");
            self.work.run(&tried(&name, &image), STALLED).await?;
            let release = self.work.released(&name, "app").await?;
            if release["outcome"] == "fallback" {
                continue;
            }
            ensure!(
                release["outcome"] == "fresh" || release["outcome"] == "unchanged",
                "{name}: released as {release}"
            );
            return self.says(&name, "app", version).await;
        }
        bail!("{COMES_BACK} pods fell back after the registry was back")
    }

    async fn says(&self, pod: &str, container: &str, version: &str) -> anyhow::Result<()> {
        let said = self.work.wait_log(pod, container, SOON).await?;
        ensure!(
            said.trim() == version,
            "{container} of {pod} says {said:?}, not {version}"
        );
        Ok(())
    }

    async fn end(self) -> anyhow::Result<()> {
        self.registry.heal().await?;
        self.work.delete().await
    }
}

/// A TryLatest pod.
fn tried<'a>(name: &'a str, image: &'a str) -> PodSpec<'a> {
    PodSpec::new(name, image, "TryLatest")
}

type Test = for<'a> fn(&'a Node) -> BoxFuture<'a, anyhow::Result<()>>;

/// Some tests with their names: those that run beside others, and those that want the node alone.
struct Tests {
    beside: Vec<(&'static str, Test)>,
    alone: Vec<(&'static str, Test)>,
}

/// Pairs of a name and the test function of that name.
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        vec![$((stringify!($test), (|node| Box::pin($test(node))) as crate::Test)),*]
    };
}
pub(crate) use tests;

/// Of these, the oldest containerd can tell nothing new: they are about the kubelet, the API server, the planner and
/// what it counts, reports and explains.
const NEWEST_ONLY: [&str; 15] = [
    "circuit",
    "explain",
    "node",
    "gate_fails",
    "unusual",
    "credentials",
    "verification",
    "input",
    "storm",
    "config",
    "hold",
    "same",
    "monitoring",
    "doctor",
    // 1.6 mounts no image.
    "volumes",
];

fn cases<const OLDEST: bool>(on: &str) -> Vec<Case<With<Node, OLDEST>>> {
    let modules = [
        // The slowest of these waits for five minutes, beside the others.
        ("hold", hold::tests()),
        ("volumes", volumes::tests()),
        ("outcomes", outcomes::tests()),
        ("outages", outages::tests()),
        ("unusual", unusual::tests()),
        ("circuit", circuit::tests()),
        ("patience", patience::tests()),
        ("config", config::tests()),
        ("damage", damage::tests()),
        ("private", private::tests()),
        ("credentials", credentials::tests()),
        ("handover", handover::tests()),
        ("gate_fails", gate_fails::tests()),
        ("verification", verification::tests()),
        ("refused", refused::tests()),
        ("same", same::tests()),
        ("storm", storm::tests()),
        ("input", input::tests()),
        ("kept", kept::tests()),
        ("by_hand", by_hand::tests()),
        ("explain", explain::tests()),
        ("doctor", doctor::tests()),
        ("deaths", deaths::tests()),
        ("gate_image", gate_image::tests()),
        ("node", node::tests()),
        ("monitoring", monitoring::tests()),
    ];
    // Those that want the node alone come last: each waits until all others have ended.
    let (mut beside, mut alone) = (Vec::new(), Vec::new());
    let is_told = |module: &str| !OLDEST || !NEWEST_ONLY.contains(&module);
    for (module, tests) in modules.into_iter().filter(|(module, _)| is_told(module)) {
        for (name, test) in tests.beside {
            let run = move |node: Arc<With<Node, OLDEST>>| async move { test(&node).await };
            beside.push(Case::new(format!("{on}::{module}::{name}"), run));
        }
        for (name, test) in tests.alone {
            let run = move |node: Arc<With<Node, OLDEST>>| async move { test(&node).await };
            alone.push(Case::exclusive(format!("{on}::{module}::{name}"), run));
        }
    }
    beside.extend(alone);
    beside
}

fn main() -> ExitCode {
    if let Some(code) = doctor::as_program() {
        return code;
    }
    let mut suite = Suite::new();
    suite.run(cases::<false>("containerd_2_4"));
    suite.run(cases::<true>("containerd_1_6"));
    suite.end()
}
