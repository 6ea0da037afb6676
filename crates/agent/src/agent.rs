//! The DaemonSet's process: wires the tasks together and owns every one of them.
//!
//! | task | in | out |
//! |---|---|---|
//! | [`pods`] | the watch of this node's gated pods | tries, releases, Events; the node's report |
//! | [`keeper`] | containerd's image events; gates that wait for their image | the gate's image; Events |
//! | [`config`] | the administrator's configuration file | the rules, and how long copies are kept; Events |
//! | [`folder`] | the folder of containerd's socket | ends the agent if that was removed on the node |
//! | [`node`] | the node's report | the node's annotations and condition |
//! | [`rollbacks`] | containerd's image events | names that are pointed back to an earlier copy by hand |
//! | [`shelf`] | the images that pods use; the disk | aliases of copies that are kept |
//! | [`http::serve`] | requests over TCP | probes, metrics, the report |
//! | [`http::serve_probes`] | requests on loopback | probes |
//! | [`http::serve_socket`] | requests over a Unix socket | the index; questions and reports to the planner ([`questions`]) |
//!
//! A task that ends before SIGTERM takes the process down with exit code 1, and the kubelet starts
//! it again. After SIGTERM the agent is unready at once, takes no new pod, writes the releases that
//! are decided and exits 0; a second signal ends it at once.

mod api;
mod aside;
mod attempt;
mod by_hand;
mod config;
#[cfg(test)]
mod day;
pub(crate) mod disk;
mod folder;
mod gate_image;
mod gates;
mod handover;
mod health;
mod history;
mod http;
mod keeper;
mod kubelet;
mod leave;
mod metrics;
mod node;
pub(crate) mod offers;
mod pods;
mod questions;
mod rollbacks;
mod serve;
mod shelf;
#[cfg(feature = "simulation")]
pub mod simulation;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use trylatest_containerd::{Containerd, ContainerdOptions, ImageRuntime, kubelet_failure};
use trylatest_core::config::Config;
use trylatest_core::keep::{Limits, UsedImage};
use trylatest_core::node::NodeReport;
use trylatest_core::plan::Planner;
use trylatest_k8s::{Client, Writer, connect, watch_pods};

use self::api::Api;
pub(crate) use self::attempt::{PullLimits, attempt};
use self::config::ConfigFile;
use self::health::Health;
use self::history::History;
use self::http::Shown;
pub(crate) use self::http::{BY_HAND, OF_IMAGE, OF_POD, SOCKET};
use self::keeper::{Keeper, Waiting};
use self::leave::Leaver;
use self::metrics::Channel;
pub use self::metrics::Metrics;
use self::node::NodeWriter;
use self::pods::Pods;
use self::questions::Questions;
use self::rollbacks::Rollbacks;
use self::shelf::Shelf;
use crate::args::{AgentArgs, LogFormat};
use crate::clock::Clock;

/// For every call to the API server but lists and watches. Its own request timeout is a minute; a
/// release that takes this long is better sent again.
const API_DEADLINE: Duration = Duration::from_secs(5);

/// For every call to containerd but a pull.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(5);

/// How long the tasks may take to end after SIGTERM; the main task's own drain is shorter.
const STOP_DEADLINE: Duration = Duration::from_secs(8);

/// Gates that wait to be looked at. More are left out until their state changes.
const GATES_MAX: usize = 64;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The running program, even if its file has another name or none.
const PROGRAM: &str = "/proc/self/exe";

/// The index file's name in the state folder.
pub(crate) const INDEX: &str = "index.redb";

type Tasks = JoinSet<(&'static str, anyhow::Result<()>)>;

/// Runs the agent until SIGTERM.
///
/// # Errors
/// What keeps it from starting, or the task that ended by itself.
pub fn run(args: AgentArgs) -> anyhow::Result<()> {
    start_logging(&args)?;
    // One thread: the agent waits, it does not compute, and a second arena costs memory.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    let served = runtime.block_on(serve(args));
    // A write to a disk that hangs must not keep the process from ending.
    runtime.shutdown_background();
    served
}

fn start_logging(args: &AgentArgs) -> anyhow::Result<()> {
    let filter: Targets = args.log.parse().context("--log")?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => registry.with(layer.with_ansi(false)).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    }
    .context("starting the log")
}

async fn serve(args: AgentArgs) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let health = Arc::new(Health::new());
    let mut signals = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let (mut tasks, leaver) = tokio::select! {
        started = Box::pin(start(args, &health, &stop)) => started?,
        // Nothing has begun: there is nothing to end in order.
        _ = signals.0.recv() => return Ok(()),
        _ = signals.1.recv() => return Ok(()),
    };
    supervise(&mut tasks, &health, &stop, signals).await?;
    leaver.leave().await;
    Ok(())
}

/// Starts every task. What there is to do after their end comes back as well.
async fn start(
    args: AgentArgs,
    health: &Arc<Health>,
    stop: &CancellationToken,
) -> anyhow::Result<(Tasks, Leaver<Containerd>)> {
    let metrics = Arc::new(Metrics::new(VERSION)?);
    let config = ConfigFile::open(args.config.clone(), Arc::clone(&metrics)).await;
    info!(version = VERSION, node = args.node_name, "TryLatest agent");
    let state_dir = made(args.state_dir.clone())?;
    let runtime = Arc::new(containerd(&args, &metrics));
    is_the_kubelets(&runtime, &args).await?;
    let socket = args.containerd.containerd_socket.clone();
    let listeners = http::listen(args.address, args.port).await?;
    let client = connect().await;
    let node = Node {
        client: client.context("making a client of the API server")?,
        runtime: Arc::clone(&runtime),
        metrics: Arc::clone(&metrics),
        health: Arc::clone(health),
        program: PROGRAM.into(),
    };
    let started = Box::pin(node.start(args, config, stop)).await;
    let Started {
        mut tasks,
        leaver,
        reported,
        questions,
    } = started;
    let folder = folder::watch(runtime, socket, stop.clone());
    own(&mut tasks, "containerd's folder", folder);
    let shown = Shown::new(Arc::clone(health), metrics, reported);
    if let Some(probes) = listeners.probes {
        let probes = http::serve_probes(probes, shown.clone(), stop.clone());
        own(&mut tasks, "probes", probes);
    }
    let http = http::serve(listeners.own, shown, stop.clone());
    own(&mut tasks, "http", http);
    let history = leaver.history.clone();
    let socket = http::serve_socket(state_dir, history, questions, stop.clone());
    own(&mut tasks, "index socket", socket);
    Ok((tasks, leaver))
}

/// What an agent works on: a node as it is, or a simulated one.
struct Node<R> {
    client: Client,
    runtime: Arc<R>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// What the gate's image is made from.
    program: PathBuf,
}

/// An agent at work, and what those have to do with it who ask it something, or end it.
struct Started<R> {
    tasks: Tasks,
    leaver: Leaver<R>,
    reported: watch::Receiver<Option<NodeReport>>,
    questions: Questions,
}

impl<R: ImageRuntime> Node<R> {
    /// Starts every task that has to do with the API server or the runtime.
    async fn start(
        self,
        args: AgentArgs,
        config: ConfigFile,
        stop: &CancellationToken,
    ) -> Started<R> {
        let (history, planner) = self.remember(&args, config.config()).await;
        let api = Api {
            writer: Writer::new(self.client.clone(), &args.node_name, API_DEADLINE),
            metrics: Arc::clone(&self.metrics),
        };
        let (report, reported) = watch::channel(None);
        let (use_of, used) = watch::channel(None);
        let (found, rolled_back) = watch::channel(None);
        let (config, configured) = config.follow();
        let (questions, asked) = questions::channel();
        let overflows = self.metrics.calls.overflows(Channel::Gates);
        let (gates, waiting) = offers::channel(GATES_MAX, overflows);
        let pods = Pods {
            runtime: Arc::clone(&self.runtime),
            api: api.clone(),
            history: history.clone(),
            metrics: Arc::clone(&self.metrics),
            health: Arc::clone(&self.health),
            planner,
            clock: Clock::start(),
            config: configured.clone(),
            disk_floor: args.disk.disk_floor,
            rolled_back,
            keep_for: args.disk.keep_for,
            kubelet_verifies: args.kubelet_verifies,
            report,
            used: use_of,
            gates,
            questions: asked,
        };
        let kept = self.kept_copies(args.disk.keep_limits(), configured, used);
        let rollbacks = Rollbacks {
            runtime: Arc::clone(&self.runtime),
            found,
        };
        let node = NodeWriter {
            api: api.clone(),
            report: reported.clone(),
        };
        let own_pod = (args.pod_namespace, args.pod_name);
        let changes = watch_pods(self.client.clone(), &args.node_name, kubelet_failure);
        let (keeper, leaver) = self.for_own_pod(&api, &own_pod, waiting, history);
        let mut tasks = JoinSet::new();
        own(&mut tasks, "pods", pods.run(changes, stop.clone()));
        own(&mut tasks, "gate image", keeper.run(stop.clone()));
        own(&mut tasks, "node report", node.run(stop.clone()));
        own(&mut tasks, "kept copies", kept.run(stop.clone()));
        own(&mut tasks, "rollbacks", rollbacks.run(stop.clone()));
        let config = config.run(api, own_pod, stop.clone());
        own(&mut tasks, "configuration", config);
        Started {
            tasks,
            leaver,
            reported,
            questions,
        }
    }

    /// What has to know the pod that the agent runs in.
    fn for_own_pod(
        self,
        api: &Api,
        own_pod: &(String, String),
        gates: mpsc::Receiver<Waiting>,
        history: History,
    ) -> (Keeper<R>, Leaver<R>) {
        let leaver = Leaver {
            runtime: Arc::clone(&self.runtime),
            api: api.clone(),
            own_pod: own_pod.clone(),
            history,
        };
        let keeper = Keeper {
            runtime: self.runtime,
            api: api.clone(),
            metrics: self.metrics,
            health: self.health,
            own_pod: own_pod.clone(),
            program: self.program,
            gates,
        };
        (keeper, leaver)
    }

    /// What looks after the kept copies.
    fn kept_copies(
        &self,
        limits: Limits,
        config: watch::Receiver<Config>,
        used: watch::Receiver<Option<Vec<UsedImage>>>,
    ) -> Shelf<R> {
        Shelf {
            runtime: Arc::clone(&self.runtime),
            metrics: Arc::clone(&self.metrics),
            clock: Clock::start(),
            limits,
            config,
            disk: disk::of_images,
            used,
        }
    }

    /// Opens what earlier runs have written down, and starts the planner from it.
    async fn remember(&self, args: &AgentArgs, config: &Config) -> (History, Planner) {
        let index = args.state_dir.join(INDEX);
        let (history, lost) = History::open(&index, Arc::clone(&self.metrics)).await;
        if lost {
            history.rebuild(&*self.runtime).await;
        }
        let records = history.all().await.unwrap_or_else(|error| {
            warn!(error, "starting without what earlier runs have remembered");
            Vec::new()
        });
        let rules = args.rules(config.clone());
        let mut planner = Planner::new(&args.node_name, rules, &records);
        planner.refresh_every(args.refresh_every);
        self.metrics.registries.retain(&planner.registries());
        (history, planner)
    }
}

/// The state folder, which is there now.
fn made(state_dir: PathBuf) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(&state_dir)
        .with_context(|| format!("making the state folder {}", state_dir.display()))?;
    Ok(state_dir)
}

fn containerd(args: &AgentArgs, metrics: &Metrics) -> Containerd {
    Containerd::new(ContainerdOptions {
        socket: args.containerd.containerd_socket.clone(),
        snapshotter: args.containerd.snapshotter.clone(),
        call_timeout: RUNTIME_DEADLINE,
        observer: metrics.of_runtime(),
        written: disk::written,
    })
}

/// Fails on a node with two containerds, if this is not the one that the kubelet uses: every image would come to a place
/// where no pod starts from it, and every release would be a lie. One that does not answer may be starting.
async fn is_the_kubelets(runtime: &Containerd, args: &AgentArgs) -> anyhow::Result<()> {
    let (namespace, pod) = (&args.pod_namespace, &args.pod_name);
    if let Ok(false) = runtime.knows_pod(namespace, pod).await {
        let socket = args.containerd.containerd_socket.display();
        anyhow::bail!(
            "the containerd at {socket} does not run this agent's pod {namespace}/{pod}, so the kubelet uses another \
             one; mount the folder of that one's socket instead (for k3s and RKE2 /run/k3s/containerd, see \
             manifests/overlays/example-node)"
        );
    }
    Ok(())
}

fn own(
    tasks: &mut Tasks,
    name: &'static str,
    work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) {
    tasks.spawn(async move { (name, work.await) });
}

/// Waits for SIGTERM, or for the first task that ends without it.
async fn supervise(
    tasks: &mut Tasks,
    health: &Health,
    stop: &CancellationToken,
    (mut terminate, mut interrupt): (Signal, Signal),
) -> anyhow::Result<()> {
    // All can be dropped: the set keeps its tasks, and a signal that came is not waited for again.
    tokio::select! {
        ended = tasks.join_next() => {
            health.set_stopping();
            stop.cancel();
            return Err(early_end(ended));
        }
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping");
    health.set_stopping();
    stop.cancel();
    let all = async {
        let mut result = Ok(());
        while let Some(ended) = tasks.join_next().await {
            if let Ok((_, Ok(()))) = ended {
                continue;
            }
            result = Err(early_end(Some(ended)));
        }
        result
    };
    tokio::select! {
        result = tokio::time::timeout(STOP_DEADLINE, all) => match result {
            Ok(result) => result,
            Err(_) => bail!("the tasks did not end within {STOP_DEADLINE:?}"),
        },
        _ = terminate.recv() => bail!("stopped at once by a second signal"),
        _ = interrupt.recv() => bail!("stopped at once by a second signal"),
    }
}

type JoinedTask = Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>;

fn early_end(ended: Option<JoinedTask>) -> anyhow::Error {
    let error = match ended {
        Some(Ok((name, Ok(())))) => anyhow::anyhow!("the task {name:?} has ended by itself"),
        Some(Ok((name, Err(error)))) => error.context(format!("the task {name:?} has failed")),
        Some(Err(error)) => anyhow::Error::new(error).context("a task has panicked"),
        None => anyhow::anyhow!("there are no tasks"),
    };
    error!(error = format!("{error:#}"), "the agent ends");
    error
}
