//! What a fleet of agents costs the API server: real agents on nodes that are made up, all in this process, against a
//! real etcd and kube-apiserver with TryLatest's manifests.
//!
//! Each agent is what runs on a node (`trylatest::agent::simulation`): its watch, its writes, its planner, its index.
//! It has a node object, a pod of its own, a token that is bound to that pod, and its own connection. Made up are
//! containerd and its registry ([`images`]) and what the kubelets do to the pods ([`kubelets`]).

mod apiserver;
mod fleet;
mod images;
mod kubelets;
mod measure;
mod plane;
mod report;
mod traffic;

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use trylatest_e2e::cluster::Tools;

use self::measure::Measured;

/// Run fleets of real agents on simulated nodes, one after the other, against a real API server, and measure what they
/// cost it while idle, in an outage of their registry, and at its end.
#[derive(Parser)]
#[command(
    name = "just scale",
    version,
    after_help = "Prints a table; writes target/scale.json, and the agents' warnings to target/scale.log. Exit codes: 0 as \
                  it should be; 1 an idle agent asks more than once a minute beyond its watch, agents come in step, the \
                  cost of each grows with their number, or it could not be measured; 2 wrong usage."
)]
pub(crate) struct Args {
    /// The sizes of the fleets
    #[arg(long, value_delimiter = ',', default_values_t = [50, 500, 5000])]
    agents: Vec<usize>,

    /// How many pods each node has
    #[arg(long, default_value_t = 30)]
    pods: usize,

    /// How long nothing happens
    #[arg(long, default_value = "6m", value_parser = humantime::parse_duration)]
    idle: Duration,

    /// How many pods of each node are replaced in the outage
    #[arg(long, default_value_t = 3)]
    replace: usize,

    /// How long it takes to replace them
    #[arg(long, default_value = "1m", value_parser = humantime::parse_duration)]
    over: Duration,
}

impl Args {
    fn replaced(&self) -> usize {
        self.replace.min(self.pods)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new().context("starting the async runtime");
    match runtime.and_then(|runtime| runtime.block_on(run(&args))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("scale: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the agents' warnings there.
fn log_to(file: &Path) -> anyhow::Result<()> {
    let log = File::create(file).with_context(|| format!("write {}", file.display()))?;
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_ansi(false)
        .with_writer(Mutex::new(log))
        .init();
    Ok(())
}

async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let tools = Tools::locate_here()?;
    log_to(&tools.root().join("target/scale.log"))?;
    let mut all: Vec<Measured> = Vec::new();
    for agents in &args.agents {
        let measured = measure::fleet(&tools, args, *agents).await;
        all.push(measured.with_context(|| format!("{agents} agents"))?);
    }
    let file = tools.root().join("target/scale.json");
    let json = serde_json::to_string_pretty(&all)?;
    std::fs::write(&file, json + "\n").with_context(|| format!("write {}", file.display()))?;
    println!("{}", report::table(&all));
    let missed = report::missed(&all);
    for line in &missed {
        println!("missed: {line}");
    }
    Ok(if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
