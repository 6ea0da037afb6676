//! The command line.

use std::ffi::OsString;

use clap::{Parser, Subcommand, ValueEnum};
use trylatest_bootstrap::oci::Architecture;

/// Get what TryLatest's cluster needs, then run the demo, the tests or the benchmarks.
///
/// As root on a Debian-like system, this installs what is missing; elsewhere it prints the command to
/// run. What it builds stays below `target`, and it builds again only what changes.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the whole story on a real one-node cluster on this machine
    ///
    /// Needs root. The first run builds Kubernetes, etcd and containerd; later ones take about
    /// five minutes.
    #[command(after_help = "After `--`, `--help` shows the demo's own options.")]
    Demo(Rest),

    /// Run all tests: `cargo test --workspace`, with everything that they need
    ///
    /// Without root, tests that need it are skipped and say so.
    #[command(
        after_help = "Arguments go to `cargo test`: `cargo verify --package trylatest-core`."
    )]
    Verify(Rest),

    /// Compare TryLatest with the pull policies of Kubernetes
    ///
    /// Needs root. Prints a table and writes target/bench.json.
    #[command(after_help = "After `--`, `--help` shows the benchmark's own options.")]
    Bench(Rest),

    /// Let pods come and go while everything fails at random, and check that TryLatest gets over it
    ///
    /// Needs root. Ten minutes by default.
    #[command(after_help = "After `--`, `--help` shows the soak test's own options.")]
    Soak(Rest),

    /// Run many agents on simulated nodes against a real API server, and measure what they cost it
    ///
    /// Needs root. Prints a table and writes target/scale.json.
    #[command(after_help = "After `--`, `--help` shows the simulation's own options.")]
    Scale(Rest),

    /// Start a one-node cluster to play with, and keep it until Ctrl-C
    ///
    /// Needs root. TryLatest is not installed on it.
    #[command(after_help = "After `--`, `--help` shows the cluster's own options.")]
    Cluster(Rest),

    /// Build TryLatest's container image as an OCI archive, target/image/trylatest.tar
    ///
    /// For another architecture than this machine's, the file is target/image/trylatest-ARCH.tar.
    Image {
        /// The image's architecture [default: this machine's]
        #[arg(long, value_enum)]
        arch: Option<Arch>,
    },

    /// Get and build what the cluster needs, and run nothing
    Tools {
        /// Only what a build of TryLatest itself needs
        #[arg(long)]
        to_build: bool,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Arch {
    /// `x86_64`
    Amd64,
    /// aarch64
    Arm64,
}

impl From<Arch> for Architecture {
    fn from(arch: Arch) -> Self {
        match arch {
            Arch::Amd64 => Self::Amd64,
            Arch::Arm64 => Self::Arm64,
        }
    }
}

/// Arguments of the program that finally runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Rest {
    /// Arguments that are passed on unchanged
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<OsString>,
}

/// Keeps the `--` of `cargo verify -- --nocapture`, which is cargo's: clap takes one that comes
/// first for its own.
pub(crate) fn escaped(mut args: Vec<OsString>) -> Vec<OsString> {
    if args.len() > 2 && args[1] == "verify" && args[2] == "--" {
        args.insert(2, "--".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        let args = line.split(' ').map(OsString::from).collect();
        Cli::try_parse_from(escaped(args)).map(|cli| cli.command)
    }

    fn passed_on(line: &str) -> Vec<OsString> {
        match parse(line).unwrap() {
            Command::Demo(rest)
            | Command::Verify(rest)
            | Command::Bench(rest)
            | Command::Soak(rest)
            | Command::Scale(rest)
            | Command::Cluster(rest) => rest.args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_are_passed_on_as_they_are() {
        let none: [&str; 0] = [];
        assert_eq!(passed_on("b demo"), none);
        assert_eq!(
            passed_on("b demo --keep --containerd 1.6"),
            ["--keep", "--containerd", "1.6"]
        );
        assert_eq!(passed_on("b demo -- --help"), ["--help"]);
        assert_eq!(
            passed_on("b verify -p trylatest-core -- --nocapture"),
            ["-p", "trylatest-core", "--", "--nocapture"]
        );
        assert_eq!(passed_on("b verify -- --nocapture"), ["--", "--nocapture"]);
        assert_eq!(passed_on("b bench --output json"), ["--output", "json"]);
        assert_eq!(passed_on("b scale --agents 50"), ["--agents", "50"]);
        assert_eq!(passed_on("b cluster -- --help"), ["--help"]);
    }

    #[test]
    fn help_is_ours_unless_it_is_behind_the_dashes() {
        for line in ["b demo --help", "b verify -h", "b --help"] {
            assert_eq!(parse(line).unwrap_err().kind(), ErrorKind::DisplayHelp);
        }
    }

    #[test]
    fn a_wrong_use_ends_with_2() {
        for line in ["b image --arch riscv64", "b tools now", "b nothing"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
