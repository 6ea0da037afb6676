//! `just bench`: how long pods take to run with each policy, and what the agent needs for it. All
//! of one run is measured on one cluster, the policies in turn, so that ratios mean something.

mod cost;
mod files;
mod idle;
mod outage;
mod pods;
mod private;
mod reboot;
mod report;
mod restart;
mod single;
mod targets;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::builder::PossibleValuesParser;
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use tokio::time::Instant;
use trylatest_e2e::cluster::{Cluster, ContainerdVersion, Namespace, Options, Tools};
use trylatest_e2e::install::Install;
use trylatest_e2e::process::{Process, Spec};
use trylatest_e2e::testimage;
use trylatest_e2e::workload::Workloads;

use self::report::{Report, Round, Row, costs, row, table};
use self::targets::targets;

/// Measure how long pods take to run, with each policy, on a real one-node cluster.
#[derive(Parser)]
#[command(name = "just bench", version)]
struct Args {
    /// How many times to measure each case, large ones half as often; medians need at least 8
    #[arg(short, long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// What to measure, e.g. pods,many; everything by default
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Pods of one image, and the agent
    Pods,
    /// The same with 100 ms between the node and the registry
    Latency,
    /// 50 pods of one image
    Many,
    /// Pods of private images
    Private,
    /// A pod of an image of 60,000 files
    Files,
    /// 50 pods of 50 images, with a registry and without
    Outage,
    /// 30 Deployments of 30 images
    Restart,
    /// 20 pods of 20 images on a node that reboots while the registry is closed
    Reboot,
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
        let report = bench
            .measure(&only, Duration::from_secs(idle_seconds))
            .await;
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
    println!("{}\n", table(&report));
    println!("{}\n", costs(&report));
    println!("{}", targets(&report));
    println!("written to {}", json.display());
    Ok(())
}

impl Bench {
    async fn measure(&self, only: &[Part], idle_for: Duration) -> anyhow::Result<Report> {
        let mut report = Report::default();
        for part in Part::value_variants() {
            if !only.is_empty() && !only.contains(part) {
                continue;
            }
            let start = Instant::now();
            self.measure_part(*part, idle_for, &mut report).await?;
            eprintln!("{part:?}: {} s", start.elapsed().as_secs());
        }
        Ok(report)
    }

    async fn measure_part(
        &self,
        part: Part,
        idle_for: Duration,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let rows = match part {
            Part::Pods => {
                report.agent = Box::pin(self.single_image(&mut report.pods)).await?;
                Vec::new()
            }
            Part::Latency => Box::pin(self.far_registry()).await?,
            Part::Many => Box::pin(self.large_burst()).await?,
            Part::Private => Box::pin(self.private_images()).await?,
            Part::Files => Box::pin(self.many_files()).await?,
            Part::Outage => Box::pin(self.many_in_outage()).await?,
            Part::Restart => Box::pin(self.restart_images()).await?,
            Part::Reboot => Box::pin(self.reboot_node()).await?,
            Part::Idle => {
                report.idle = Some(Box::pin(self.idle(idle_for)).await?);
                Vec::new()
            }
        };
        report.pods.extend(rows);
        Ok(())
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

    /// Measures each of these policies in turn, as often as asked for, after one round that does not count.
    async fn case_of(
        &self,
        policies: &[&'static str],
        case: &'static str,
        round: impl AsyncFn(&Self, &str, &'static str) -> anyhow::Result<Round>,
    ) -> anyhow::Result<Vec<Row>> {
        self.rounds_of(self.rounds, policies, case, round).await
    }

    /// The same of a case of which each round takes long.
    async fn large_case_of(
        &self,
        policies: &[&'static str],
        case: &'static str,
        round: impl AsyncFn(&Self, &str, &'static str) -> anyhow::Result<Round>,
    ) -> anyhow::Result<Vec<Row>> {
        self.rounds_of(self.large_rounds(), policies, case, round)
            .await
    }

    /// How often to measure what takes long.
    fn large_rounds(&self) -> u32 {
        self.rounds.div_ceil(2)
    }

    async fn rounds_of(
        &self,
        rounds: u32,
        policies: &[&'static str],
        case: &'static str,
        round: impl AsyncFn(&Self, &str, &'static str) -> anyhow::Result<Round>,
    ) -> anyhow::Result<Vec<Row>> {
        let mut measured = vec![Vec::new(); policies.len()];
        for number in 0..=rounds {
            eprintln!("{case}: round {number} of {rounds}");
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
}
