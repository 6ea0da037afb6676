//! `cargo demo`, `cargo verify`, `just bench`, `just soak`, `just scale`: brings in what is missing, then hands over to
//! cargo.

mod args;

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use trylatest_bootstrap::debian::{self, Need};
use trylatest_bootstrap::oci::Architecture;
use trylatest_bootstrap::{Tools, cargo, golang, image, lock};

use args::{Cli, Command, Rest};

fn main() -> ExitCode {
    let cli = Cli::parse_from(args::escaped(std::env::args_os().collect()));
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let tools = Tools::here()?;
    match command {
        Command::Tools { to_build: true } => {
            let _lock = lock(tools.root())?;
            debian::bring_in(&tools, Need::Image)
        }
        Command::Tools { to_build: false } => bring_in_tools(&tools),
        Command::Image { arch } => make_image(&tools, arch.map_or(Architecture::HOST, Into::into)),
        Command::Demo(Rest { args }) => with_image(&tools, "demo", &args),
        Command::Bench(Rest { args }) => with_image(&tools, "bench", &args),
        Command::Soak(Rest { args }) => with_image(&tools, "soak", &args),
        Command::Scale(Rest { args }) => {
            check_root()?;
            bring_in_tools(&tools)?;
            let of = ["--profile", "simulation", "--package", "trylatest-scale"];
            become_cargo(&tools, &[&["run"], &of[..], &["--"]].concat(), &args)
        }
        Command::Cluster(Rest { args }) => {
            check_root()?;
            bring_in_tools(&tools)?;
            become_program(&tools, "cluster", &args)
        }
        Command::Verify(Rest { args }) => {
            bring_in_tools(&tools)?;
            make_image(&tools, Architecture::HOST)?;
            become_cargo(&tools, &["test", "--workspace"], &args)
        }
    }
}

/// Runs a program that installs TryLatest on a cluster.
fn with_image(tools: &Tools, program: &str, args: &[OsString]) -> anyhow::Result<()> {
    check_root()?;
    bring_in_tools(tools)?;
    make_image(tools, Architecture::HOST)?;
    become_program(tools, program, args)
}

/// Early, before minutes go by.
fn check_root() -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "only root can run containers: run the same command as root"
    );
    Ok(())
}

fn bring_in_tools(tools: &Tools) -> anyhow::Result<()> {
    let _lock = lock(tools.root())?;
    debian::bring_in(tools, Need::Cluster)?;
    golang::build(tools)
}

fn make_image(tools: &Tools, architecture: Architecture) -> anyhow::Result<()> {
    let _lock = lock(tools.root())?;
    debian::bring_in(tools, Need::Image)?;
    image::build(tools, architecture)
}

/// A program of the package that has the cluster.
fn become_program(tools: &Tools, name: &str, args: &[OsString]) -> anyhow::Result<()> {
    let run = ["run", "--package", "trylatest-e2e", "--bin", name, "--"];
    become_cargo(tools, &run, args)
}

/// Puts cargo into this process's place, so that its exit code and the signals are its own.
/// Returns only if that fails.
fn become_cargo(tools: &Tools, ours: &[&str], args: &[OsString]) -> anyhow::Result<()> {
    let mut cargo = cargo();
    cargo.args(ours).args(args).current_dir(tools.root());
    Err(cargo.exec()).context("run cargo")
}
