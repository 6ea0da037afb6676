//! `just soak`: pods come and go for as long as is asked for, while the registry fails in many ways and everything on
//! the node is killed at random. From time to time all is healed, and then nothing may be stuck, lost, left behind or
//! untrue.
//!
//! The order of events comes from a seed. What happens at the same moment differs from run to run all the same: a seed
//! repeats a run's kind of trouble, not its last millisecond.

mod calm;
mod trouble;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;
use trylatest_e2e::cluster::{Cluster, ContainerdVersion, Options, Tools};
use trylatest_e2e::install::Install;

use self::world::World;

/// Let pods come and go on a real one-node cluster while everything fails at random, and check that TryLatest gets over
/// it.
#[derive(Parser)]
#[command(name = "just soak", version)]
struct Args {
    /// For how long, in minutes; what is under way then is brought to its end
    #[arg(short, long, default_value_t = 10)]
    minutes: u64,

    /// The order of events; a new one by default
    #[arg(long)]
    seed: Option<u64>,

    /// Which containerd version runs on the node
    #[arg(long, value_enum, default_value_t)]
    containerd: ContainerdVersion,
}

/// How much happens between two looks at the whole.
const TROUBLES: usize = 25;

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new().context("starting the async runtime");
    match runtime.and_then(|runtime| runtime.block_on(run(args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("seed {seed}; repeat with --seed {seed}");
    let tools = Tools::locate_here()?;
    let options = Options {
        containerd: args.containerd,
        ..Options::default()
    };
    let cluster = Cluster::start(&tools, options).await?;
    let install = Install::new(&cluster, &tools, &["--refresh-every=10m"]).await?;
    let mut world = World::new(&cluster, &install, &tools, StdRng::seed_from_u64(seed)).await?;
    let soaked = Box::pin(soak(&mut world, Duration::from_secs(args.minutes * 60))).await;
    let soaked = soaked.with_context(|| world.story()).with_context(|| {
        format!(
            "seed {seed}; the parts' logs are in {}",
            cluster.logs().display()
        )
    });
    cluster.stop(soaked.is_ok()).await?;
    println!("{}", soaked?);
    Ok(())
}

/// Trouble and calm in turn.
async fn soak(world: &mut World<'_>, time: Duration) -> anyhow::Result<String> {
    let start = Instant::now();
    while start.elapsed() < time {
        for _ in 0..TROUBLES {
            world.trouble().await?;
        }
        world.calm().await?;
        println!("{:>5} s  {}", start.elapsed().as_secs(), world.tally());
    }
    Ok(format!(
        "nothing was stuck, lost or untrue: {}",
        world.tally()
    ))
}
