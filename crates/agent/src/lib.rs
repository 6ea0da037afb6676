//! The program `trylatest`: the node agent, the gate that holds a pod, and commands for people.
//!
//! Everything here acts; what is to be done is decided in `trylatest-core`.
//!
//! - [`args`]: every flag and environment variable; nothing else reads them.
//! - [`gate`]: the init container. No runtime, no network: it reads a file and waits.
//! - [`agent`]: the DaemonSet. [`agent::run`] wires the tasks together and owns them all.
//! - [`images`]: the index as a table or as JSON.
//! - [`explain`]: what would happen now, and why.
//! - [`pull`]: one try by hand.
//! - [`rollback`]: an image's name points to the previous copy again.
//! - [`repair`]: an image's copy is unpacked again.
//! - [`config`]: what is wrong with a configuration file.
//! - [`doctor`]: what is wrong on the node, as far as its files say it.
//!
//! Feature: `simulation`, many agents in one process on nodes that are made up (`agent::simulation`); the program is
//! built without.

pub mod agent;
pub mod args;
mod clock;
pub mod config;
pub mod doctor;
pub mod explain;
pub mod gate;
pub mod images;
mod node;
pub mod pull;
mod remember;
pub mod repair;
pub mod rollback;
mod shown;
mod socket;
mod turn;
mod undo;

use std::io::{self, Write};
use std::process::ExitCode;

use crate::args::{Cli, Command};

/// What a rollback ends with on a node that has no previous copy: as `args` says.
const NOTHING_TO_ROLL_BACK_TO: u8 = 3;

/// Runs a command to its end. The exit code is 0 if the command succeeded, and 1 if it could not do what it is for.
pub fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Gate(args) => return gate::run(&args),
        Command::Agent(args) => agent::run(*args),
        Command::Pull(args) => return ended(pull::run(args)),
        Command::Images(args) => images::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Rollback(args) => rollback::run(args),
        Command::Repair(args) => repair::run(args),
        Command::Config(args) => config::run(&args),
        Command::Doctor(args) => return ended(doctor::run(&args)),
    };
    ended(done.map(|()| ExitCode::SUCCESS))
}

fn ended(done: anyhow::Result<ExitCode>) -> ExitCode {
    done.unwrap_or_else(|error| {
        eprintln!("trylatest: {error:#}");
        if error.is::<rollback::NothingToRollBackTo>() {
            ExitCode::from(NOTHING_TO_ROLL_BACK_TO)
        } else {
            ExitCode::FAILURE
        }
    })
}

/// Prints to stdout. A reader that stops early, such as `head`, is not an error.
pub(crate) fn printed(text: &[u8]) -> anyhow::Result<()> {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
