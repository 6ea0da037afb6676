//! The program `kubectl-trylatest`: what runs in a cluster, and what is wrong with it, for people and for CI jobs.
//!
//! It reads what the agents have written into pods, nodes and Events, with the rights of the user's kubeconfig, and
//! asks no agent. Only [`on` and `off`](args::Command::On) change something. It must not decide what a release means:
//! the words are those of `trylatest-core`.
//!
//! ```text
//!   args ─► cluster (deadlines, pages) ─► pods, nodes ─► status | check | explain | doctor ─► output
//! ```
//!
//! Every command gathers first, then judges by functions of what was gathered, then prints.

pub mod args;
mod check;
mod cluster;
mod completion;
mod doctor;
mod explain;
mod kubeconfig;
mod nodes;
mod output;
mod pods;
mod status;
mod switch;
pub mod target;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::args::{Cli, Command};
use crate::cluster::Cluster;

/// Runs a command to its end. What the exit code means is said by `--help`.
pub fn run(cli: Cli) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(done(cli));
            // A login that takes longer than anybody has waited for it.
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(error.into()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("kubectl trylatest: {}", cluster::chain(error.as_ref()));
        ExitCode::FAILURE
    })
}

async fn done(cli: Cli) -> anyhow::Result<ExitCode> {
    let namespace = cli.namespace().unwrap_or_else(|error| error.exit());
    let namespace = namespace.cloned();
    let Cli {
        cluster,
        place: _,
        command,
    } = cli;
    let connected = async || Cluster::connect(&cluster, namespace.as_ref()).await;
    match command {
        Command::Status(args) => status::run(&connected().await?, &args).await?,
        Command::Check(args) => return check::run(connected, &args).await,
        Command::Explain(args) => explain::run(&connected().await?, &args).await?,
        Command::On(args) => switch::on(&connected().await?, &args).await?,
        Command::Off(args) => switch::off(&connected().await?, &args).await?,
        Command::Doctor(args) => return doctor::run(&connected().await?, &args).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            let name = "kubectl-trylatest";
            clap_complete::generate(shell, &mut Cli::command(), name, &mut script);
            output::printed(&String::from_utf8(script)?)?;
        }
        Command::Complete { words } => output::printed(&completion::offers(&words).await)?,
        Command::Man { folder } => man(&folder)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A page for the program, and one for each of its commands.
fn man(folder: &Path) -> anyhow::Result<()> {
    let write = || {
        fs::create_dir_all(folder)?;
        clap_mangen::generate_to(Cli::command(), folder)
    };
    write().with_context(|| format!("write to {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn krew_gets_this_version() {
        let manifest = include_str!("../../../manifests/krew/trylatest.yaml");
        let manifest: serde_json::Value = serde_saphyr::from_str(manifest).unwrap();
        let version = format!("v{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(manifest["spec"]["version"], version);
        for platform in manifest["spec"]["platforms"].as_array().unwrap() {
            assert_eq!(platform["bin"], "kubectl-trylatest");
            assert_eq!(platform["files"][1]["from"], "kubectl_complete-trylatest");
            let address = platform["uri"].as_str().unwrap();
            assert!(address.contains(&format!("/{version}/")), "{address}");
        }
    }

    #[test]
    fn every_command_has_a_man_page() {
        let folder = std::env::temp_dir().join(format!("trylatest-man-{}", std::process::id()));
        man(&folder).unwrap();
        for command in Cli::command()
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
        {
            let page = folder.join(format!("kubectl-trylatest-{}.1", command.get_name()));
            assert!(page.exists(), "{}", page.display());
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
