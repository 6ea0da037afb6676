//! Parses the command line and hands over.

use std::process::ExitCode;

use trylatest::args::Cli;

fn main() -> ExitCode {
    trylatest::run(Cli::read())
}
