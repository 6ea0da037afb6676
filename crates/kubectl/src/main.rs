//! Parses the command line and hands over.

use std::process::ExitCode;

use clap::Parser as _;
use trylatest_kubectl::args::Cli;

fn main() -> ExitCode {
    trylatest_kubectl::run(Cli::parse())
}
