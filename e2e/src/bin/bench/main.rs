//! `just bench`: how long pods take to run with each policy, and what the agent needs for it. All
//! of one run is measured on one cluster, the policies in turn, so that ratios mean something.

mod files;
mod idle;
mod outage;
mod private;
mod report;
mod restart;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::builder::PossibleValuesParser;
use clap::{Parser, ValueEnum};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::Instant;
use trylatest_e2e::cluster::{Cluster, ContainerdVersion, Namespace, Options, Tools, wait};
use trylatest_e2e::install::{self, Install};
use trylatest_e2e::process::{Process, Spec};
use trylatest_e2e::testimage;
use trylatest_e2e::workload::{PodSpec, Workloads, is_running};

use self::report::{Agent, Report, Round, Row, middle, row, table, targets};

/// Measure how long pods take to run, with each policy, on a real one-node cluster.
#[derive(Parser)]
#[command(name = "just bench", version)]
struct Args {
    /// How many times to measure each case; medians need at least 8
    #[arg(short, long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// What to measure; everything by default
    #[arg(long, value_enum)]
    only: Option<Part>,

    /// Measure pods with this policy alone; all policies by default
    #[arg(long, value_parser = PossibleValuesParser::new(POLICIES))]
    policy: Option<String>,

    /// Which containerd version runs on the node
    #[arg(long, value_enum, default_value_t)]
    containerd: ContainerdVersion,

    /// How many extra image names to put on the node, like those of an old node
    #[arg(long, default_value_t = 0)]
    image_names: u32,

    /// How many processes to keep the machine busy with meanwhile
    #[arg(long, default_value_t = 0)]
    busy: u32,

    /// How long to look at the agent beside running pods, in seconds
    #[arg(long, default_value_t = 300)]
    idle_seconds: u64,

    /// Switch a feature gate of the kubelet on, e.g. EventedPLEG
    #[arg(long)]
    feature_gate: Vec<String>,

    /// Where to write the numbers as JSON
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
}

/// A part of the run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Pods of one image, and the agent
    Pods,
    /// Pods of private images
    Private,
    /// A pod of an image of 60,000 files
    Files,
    /// 50 pods of 50 images, with a registry and without
    Outage,
    /// 30 Deployments of 30 images
    Restart,
    /// The agent beside 109 running pods, while nothing happens
    Idle,
}

const POLICIES: [&str; 5] = ["IfNotPresent", WITH_INIT, "Always", "TryLatest", HOLD_NONE];

/// `TryLatest` without a gate. Of one image alone: elsewhere it does what `IfNotPresent` does.
const HOLD_NONE: &str = "hold-none";

/// `IfNotPresent` and an init container that ends at once: the least that any gate costs.
const WITH_INIT: &str = "IfNotPresent-init";

/// Pods of a burst.
const BURST: usize = 20;

/// A burst of `Always` took 17 s; only cases that never end take longer.
const LIMIT: Duration = Duration::from_secs(60);

/// How long to wait for a pod that cannot run: longer than the stall deadline and a start.
const NEVER: Duration = Duration::from_secs(8);

/// How long a pod may take to be gone.
const GONE: Duration = Duration::from_secs(60);

struct Bench {
    cluster: Cluster,
    install: Install,
    tools: Tools,
    work: Workloads,
    rounds: u32,
    policies: Vec<&'static str>,
    /// Measured beside them with one image.
    unheld: Vec<&'static str>,
    serial: std::cell::Cell<u32>,
    /// How often each policy was measured.
    turns: std::cell::RefCell<HashMap<&'static str, u32>>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new().context("starting the async runtime");
    match runtime.and_then(|runtime| runtime.block_on(run(args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        rounds,
        only,
        policy,
        containerd,
        image_names,
        busy,
        idle_seconds,
        feature_gate,
        json,
    } = args;
    let measured = |name: &&str| policy.as_deref().is_none_or(|policy| policy == *name);
    let tools = Tools::locate_here()?;
    eprintln!("starting a cluster and installing TryLatest");
    let options = Options {
        containerd,
        ..Options::default()
    };
    let cluster = Cluster::start(&tools, options).await?;
    if !feature_gate.is_empty() {
        let gates: Value = feature_gate
            .iter()
            .map(|gate| (gate.clone(), true))
            .collect();
        let change = json!({"featureGates": gates});
        cluster.kubelet().reconfigure(&change).await?;
    }
    let install = Install::new(&cluster, &tools, &["--log-format=json"]).await?;
    let work = Workloads::from(Namespace::existing(cluster.client(), "default"));
    let bench = Bench {
        cluster,
        install,
        tools,
        work,
        rounds,
        policies: POLICIES[..4].iter().copied().filter(measured).collect(),
        unheld: [HOLD_NONE].into_iter().filter(measured).collect(),
        serial: std::cell::Cell::new(0),
        turns: std::cell::RefCell::default(),
    };
    let report = Box::pin(async {
        bench.name_images(image_names).await?;
        let load = bench.keep_busy(busy).await?;
        let report = bench.measure(only, Duration::from_secs(idle_seconds)).await;
        drop(load);
        report
    });
    let report = report.await;
    bench.cluster.stop(report.is_ok()).await?;
    let report = report?;
    fs::write(
        &json,
        format!("{}\n", serde_json::to_string_pretty(&report)?),
    )
    .with_context(|| format!("writing {}", json.display()))?;
    println!("{}", table(&report));
    println!("{}", targets(&report));
    println!("written to {}", json.display());
    Ok(())
}

impl Bench {
    async fn measure(&self, only: Option<Part>, idle_for: Duration) -> anyhow::Result<Report> {
        let measures = |part| only.is_none_or(|only| only == part);
        let (mut pods, mut agent) = (Vec::new(), None);
        if measures(Part::Pods) {
            agent = Box::pin(self.single_image(&mut pods)).await?;
        }
        if measures(Part::Private) {
            pods.extend(Box::pin(self.private_images()).await?);
        }
        if measures(Part::Files) {
            pods.extend(Box::pin(self.many_files()).await?);
        }
        if measures(Part::Outage) {
            pods.extend(Box::pin(self.many_in_outage()).await?);
        }
        if measures(Part::Restart) {
            pods.extend(Box::pin(self.restart_images()).await?);
        }
        let mut idle = None;
        if measures(Part::Idle) {
            idle = Some(Box::pin(self.idle(idle_for)).await?);
        }
        Ok(Report { pods, agent, idle })
    }

    /// The cases of one image, and what they cost the agent if it had any.
    async fn single_image(&self, pods: &mut Vec<Row>) -> anyhow::Result<Option<Agent>> {
        let rss_idle_bytes = self.agent_rss().await?;
        let all = [&self.policies[..], &self.unheld].concat();
        let unchanged = self.case_of(&all, "one-unchanged", Self::one_unchanged);
        pods.extend(unchanged.await?);
        let own_part = self.own_part().await?;
        pods.extend(self.case_of(&all, "one-moved", Self::one_moved).await?);
        pods.extend(self.case_of(&all, "burst-20", Self::burst).await?);
        let rss_after_burst_bytes = self.agent_rss().await?;
        pods.extend(self.never_answers().await?);
        pods.extend(self.outage_later().await?);
        let image_bytes = fs::metadata(self.tools.image())?.len();
        Ok(own_part.map(|own_part_p50_ms| Agent {
            own_part_p50_ms,
            rss_idle_bytes,
            rss_after_burst_bytes,
            image_bytes,
        }))
    }

    /// Starts processes that only use the CPU, until they are dropped.
    async fn keep_busy(&self, count: u32) -> anyhow::Result<Vec<Process>> {
        let log = self.cluster.dir().join("busy.log");
        let mut load = Vec::new();
        for _ in 0..count {
            let spins = Spec::new("busy", "/bin/sh", &log).args(["-c", "while :; do :; done"]);
            load.push(spins.spawn().await?);
        }
        Ok(load)
    }

    /// Gives one image this many extra names.
    async fn name_images(&self, count: u32) -> anyhow::Result<()> {
        for n in 0..count {
            let name = format!("{}/old/image-{n}:1", self.cluster.registry().host());
            let tag = ["images", "tag", testimage::PAUSE, name.as_str()];
            self.cluster.containerd().ctr(&tag).await?;
        }
        Ok(())
    }

    /// Measures each policy in turn, as often as asked for, after one round that does not count.
    async fn case<F>(&self, case: &'static str, round: F) -> anyhow::Result<Vec<Row>>
    where
        F: AsyncFn(&Self, &str, &'static str) -> anyhow::Result<Round>,
    {
        self.case_of(&self.policies, case, round).await
    }

    /// The same of some policies.
    async fn case_of<F>(
        &self,
        policies: &[&'static str],
        case: &'static str,
        round: F,
    ) -> anyhow::Result<Vec<Row>>
    where
        F: AsyncFn(&Self, &str, &'static str) -> anyhow::Result<Round>,
    {
        let mut measured = vec![Vec::new(); policies.len()];
        for number in 0..=self.rounds {
            eprintln!("{case}: round {number} of {}", self.rounds);
            for (policy, measured) in policies.iter().zip(&mut measured) {
                let one = round(self, case, policy).await?;
                if number > 0 {
                    measured.push(one);
                }
            }
        }
        let rows = policies.iter().zip(measured);
        Ok(rows
            .map(|(policy, rounds)| row(case, policy, &rounds))
            .collect())
    }

    async fn one_unchanged(&self, case: &str, policy: &'static str) -> anyhow::Result<Round> {
        let repository = repository(case, policy);
        self.push_once(&repository).await?;
        self.pods(&repository, policy, 1, LIMIT).await
    }

    async fn one_moved(&self, case: &str, policy: &'static str) -> anyhow::Result<Round> {
        let repository = repository(case, policy);
        self.push(&repository).await?;
        self.pods(&repository, policy, 1, LIMIT).await
    }

    async fn burst(&self, case: &str, policy: &'static str) -> anyhow::Result<Round> {
        let repository = repository(case, policy);
        if self.push_once(&repository).await? {
            self.pods(&repository, policy, 1, LIMIT).await?;
        }
        self.pods(&repository, policy, BURST, LIMIT).await
    }

    /// Pods of one image; see [`Bench::pods_of`].
    async fn pods(
        &self,
        repository: &str,
        policy: &'static str,
        count: usize,
        limit: Duration,
    ) -> anyhow::Result<Round> {
        let repositories = vec![repository.to_owned(); count];
        self.pods_of(&repositories, policy, limit).await
    }

    /// Creates pods at once, one for each of these, waits until the last one runs, and removes them again.
    async fn pods_of(
        &self,
        repositories: &[String],
        policy: &'static str,
        limit: Duration,
    ) -> anyhow::Result<Round> {
        let registry = self.cluster.registry();
        let before = registry.requests();
        let serial = self.serial.replace(self.serial.get() + 1);
        out_of_step(self.turn_of(policy)).await;
        let names: Vec<_> = (0..repositories.len())
            .map(|n| format!("{}-{serial}-{n}", policy.to_lowercase()))
            .collect();
        let start = Instant::now();
        let pods = names.iter().zip(repositories);
        let runs = pods.map(|(name, repository)| async move {
            let image = registry.image(repository, "latest");
            let is_unheld = policy == HOLD_NONE;
            let (policy, inits) = containers(policy);
            let mut spec = PodSpec::new(name, &image, policy);
            if is_unheld {
                spec = spec.annotated("trylatest.dev/hold", "none");
            }
            spec.inits = inits;
            if private::is_private(repository) {
                spec.pull_secrets.push(private::SECRET);
            }
            self.work.create(&spec).await?;
            let pods = self.work.pods();
            wait::object(pods, name, "it runs", limit, is_running).await
        });
        let ran = try_join_all(runs).await;
        let took = start.elapsed();
        let requests = registry.requests().since(&before);
        let distinct: BTreeSet<&String> = repositories.iter().collect();
        let requests = distinct.iter().map(|name| requests.total_on(name)).sum();
        try_join_all(names.iter().map(|name| self.remove(name))).await?;
        let took = match ran {
            Ok(_) => Some(took),
            Err(_) if limit == NEVER && policy == "Always" => None,
            Err(error) => return Err(error),
        };
        Ok(Round {
            took,
            requests,
            ..Round::default()
        })
    }

    fn turn_of(&self, policy: &'static str) -> u32 {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.entry(policy).or_default();
        *turn += 1;
        *turn
    }

    async fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.work.delete_pod(name).await?;
        wait::until("the pod is gone", GONE, || async {
            let pod = self.work.pods().get_opt(name).await?;
            Ok(pod.is_none().then_some(()))
        })
        .await
    }

    async fn push(&self, repository: &str) -> anyhow::Result<String> {
        let image = testimage::app_of_size(&self.tools, "bench\n", 64)?;
        self.cluster
            .registry()
            .push(&image, repository, "latest")
            .await
    }

    /// Pushes an image if there is none. True if there was none.
    async fn push_once(&self, repository: &str) -> anyhow::Result<bool> {
        let there = self
            .cluster
            .registry()
            .digest_of(repository, "latest")
            .await;
        if there.is_err() {
            self.push(repository).await?;
        }
        Ok(there.is_err())
    }

    async fn agent_rss(&self) -> anyhow::Result<u64> {
        Ok(self.agent_usage().await?.resident_bytes)
    }

    /// The time from seeing a pod to writing its release, from the agent's log of unchanged tags; none if
    /// it released no pod.
    async fn own_part(&self) -> anyhow::Result<Option<u64>> {
        let log = self.install.log(false).await?;
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut took: Vec<u64> = lines
            .filter(|line| line["message"] == "released" && line["outcome"] == "unchanged")
            .filter_map(|line| line["took_ms"].as_u64())
            .collect();
        took.sort_unstable();
        Ok(middle(&took))
    }
}

/// Waits for a part of a second, a different one each time, spread evenly over the second.
///
/// The kubelet looks at its containers once a second, and the removal of the previous pod ends with
/// such a look. Right after it, every pod of a policy would fall into the same part of that second,
/// and the median would show which part, not how long a pod takes.
async fn out_of_step(turn: u32) {
    // The golden ratio's multiples are spread evenly however many there are.
    let part = (f64::from(turn) * 0.618_034).fract();
    tokio::time::sleep(Duration::from_secs_f64(part)).await;
}

/// The pull policy and init containers of a pod for this case.
fn containers(policy: &'static str) -> (&'static str, Vec<Value>) {
    if policy == HOLD_NONE {
        return ("TryLatest", Vec::new());
    }
    if policy != WITH_INIT {
        return (policy, Vec::new());
    }
    // As admission writes the gate, without its volume.
    let init = json!({
        "name": "nothing", "image": install::IMAGE, "imagePullPolicy": "IfNotPresent", "args": ["--version"],
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
            "runAsUser": 65532, "capabilities": {"drop": ["ALL"]},
        },
    });
    ("IfNotPresent", vec![init])
}

/// Each policy has its own: what one has pulled does not help another.
fn repository(case: &str, policy: &str) -> String {
    format!("{case}/{}", policy.to_lowercase())
}
