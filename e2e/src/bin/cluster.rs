//! A cluster to work with: starts it, prints how to use it, stops it on Ctrl-C.

use clap::Parser;
use trylatest_e2e::cluster::{Cluster, ContainerdVersion, Options, Tools};

/// Start a real one-node cluster on this machine and keep it until Ctrl-C.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Which containerd version runs on the node
    #[arg(long, value_enum, default_value_t)]
    containerd: ContainerdVersion,

    /// The registry's port on 127.0.0.1; 0 picks a free one
    #[arg(long, default_value_t = 5000)]
    registry_port: u16,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Args {
        containerd,
        registry_port,
    } = Args::parse();
    let options = Options {
        containerd,
        registry_port,
        ..Options::default()
    };
    let start = tokio::time::Instant::now();
    let cluster = Cluster::start(&Tools::locate_here()?, options).await?;
    println!("# Ready after {:.1} s", start.elapsed().as_secs_f64());
    println!(
        "# TryLatest is not installed on it: `cargo demo --keep` leaves one where it is. The manifests as they are do not \
         fit this node: fill in a copy of manifests/overlays/example-node"
    );
    cluster.keep_until_interrupted().await?;
    cluster.stop(true).await
}
