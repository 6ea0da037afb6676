//! Every flag and every environment variable.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::target::Target;

/// Exit codes, as `--help` says them.
const EXIT_CODES: &str = "Exit codes: 0 success; 1 the question could not be answered; 2 wrong usage. \
                          `check` and `doctor` have more, see their --help.";

/// What TryLatest runs in a cluster, and what is wrong with it.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-trylatest",
    bin_name = "kubectl trylatest",
    version,
    about = "Which pods run what their tags point to now, and what is wrong with TryLatest in a cluster",
    long_about = "Which pods run what their tags point to now, and what is wrong with TryLatest in a cluster.\n\n\
                  Reads with the rights of your kubeconfig. Only `on` and `off` change something.",
    after_help = EXIT_CODES
)]
pub struct Cli {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, and how long to wait for it.
#[derive(Args, Clone, Debug)]
pub struct ClusterArgs {
    /// The kubeconfig file [default: $KUBECONFIG, otherwise ~/.kube/config]
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,

    /// The kubeconfig's context to use
    #[arg(long, global = true)]
    pub context: Option<String>,

    /// The namespace [default: the context's]
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,

    /// How long one request to the API server may take
    #[arg(long, global = true, default_value = "30s", value_parser = duration)]
    pub request_timeout: Duration,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// One screen: nodes, images that run from an old copy, tags with several digests, pods that wait or are refused
    ///
    /// Looks at all namespaces, unless --namespace names one. Some of it is only known to the agents: on a node,
    /// `trylatest explain IMAGE` says more.
    Status(StatusArgs),
    /// Wait for a workload's rollout, then fail if one of its pods runs an old copy
    ///
    /// For CI jobs: `kubectl rollout status` is green as soon as pods run, whatever they run.
    #[command(after_help = CHECK_CODES)]
    Check(CheckArgs),
    /// What happened to a pod, container by container
    Explain(ExplainArgs),
    /// Make all containers of a workload TryLatest, or set how pods are held
    ///
    /// Sets the annotation trylatest.dev/containers: "*" on the workload's pod template. Its pods are replaced, as with
    /// any change of the template. Nothing in a namespace makes its pods TryLatest; with --hold, a namespace can set
    /// how they are held.
    On(SwitchArgs),
    /// Make no container and no image volume of a workload TryLatest
    ///
    /// Removes the annotations trylatest.dev/containers, volumes and literal from the workload's pod template. Its pods
    /// are replaced, as with any change of the template. A manifest that says TryLatest switches it on again when it is
    /// applied.
    Off(OffArgs),
    /// Look for what keeps TryLatest from working in this cluster
    ///
    /// Reads only. What could not be looked at is said, and is no finding.
    #[command(after_help = DOCTOR_CODES)]
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    ///
    /// For `kubectl trylatest` itself, put the script kubectl_complete-trylatest into your PATH.
    Completion {
        /// The shell
        shell: Shell,
    },
    /// What kubectl asks for completion
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete {
        /// The words so far; the last one is to be completed
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Write the man pages to a folder
    #[command(hide = true)]
    Man {
        /// The folder
        folder: PathBuf,
    },
}

const CHECK_CODES: &str = "Exit codes:\n  0  every pod runs what was asked for\n  1  the question could not be answered, or \
                           the workload has no TryLatest pod\n  2  wrong usage\n  3  a pod runs an old copy, or nobody can say \
                           what it runs\n  4  the rollout failed, or did not end in time";

const DOCTOR_CODES: &str = "Exit codes:\n  0  nothing is wrong, as far as could be looked at\n  1  the cluster could not be \
                            asked\n  2  wrong usage\n  3  the worst finding is a warning\n  4  the worst finding is an error";

/// What `status` takes.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// List everything instead of the worst of each kind
    #[arg(short, long)]
    pub all: bool,

    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// What `check` takes.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The workload
    #[arg(value_name = "KIND/NAME")]
    pub target: Target,

    /// Also fail unless the registry has confirmed every copy at its pod's start (fresh or unchanged), and if pods run
    /// different digests of an image
    #[arg(long)]
    pub fresh: bool,

    /// How long to wait for the rollout, and for pods whose images the kubelet still pulls
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub timeout: Duration,

    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// What `explain` takes.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// The pod's name, also as pod/NAME
    #[arg(value_parser = pod_name)]
    pub pod: String,

    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// What `on` takes.
#[derive(Args, Debug)]
pub struct SwitchArgs {
    /// The workload, or namespace/NAME together with --hold
    #[arg(value_name = "KIND/NAME")]
    pub target: Target,

    /// How pods are held: gate (wait for a try, the default), none (start at once, check the tag afterwards), or
    /// inherit (what the namespace says; for a namespace: the default)
    #[arg(long, value_enum)]
    pub hold: Option<Hold>,

    /// How it is done.
    #[command(flatten)]
    pub how: HowArgs,
}

/// What `off` takes.
#[derive(Args, Debug)]
pub struct OffArgs {
    /// The workload
    #[arg(value_name = "KIND/NAME")]
    pub target: Target,

    /// How it is done.
    #[command(flatten)]
    pub how: HowArgs,
}

/// What `on` and `off` both take.
#[derive(Args, Clone, Copy, Debug)]
pub struct HowArgs {
    /// Say what would be changed, and change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// How pods are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hold {
    /// By a gate
    Gate,
    /// Not at all
    None,
    /// As somebody else says
    Inherit,
}

/// What `doctor` takes.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Look at the kubelet's configuration of so many nodes at most; needs the right to get nodes/proxy
    #[arg(long, default_value_t = 50, value_name = "NODES")]
    pub kubelets: usize,

    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// How a command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Text,
    /// A JSON object
    Json,
    /// A YAML document
    Yaml,
}

/// Longest time that can be waited for.
const DURATION_MAX: Duration = Duration::from_hours(24);

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text);
    match parsed.map_err(|error| format!("{error}; write it like 30s or 5m"))? {
        Duration::ZERO => Err("it must be more than 0".to_owned()),
        long if long > DURATION_MAX => Err("the maximum is 24h".to_owned()),
        duration => Ok(duration),
    }
}

fn pod_name(text: &str) -> Result<String, String> {
    let name = ["pod/", "pods/", "po/"]
        .iter()
        .find_map(|kind| text.strip_prefix(kind))
        .unwrap_or(text);
    if name.is_empty() || name.contains('/') {
        return Err("write the name of a pod, e.g. my-app-7d4f9c or pod/my-app-7d4f9c".to_owned());
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_check_is_read() {
        let words = "kubectl-trylatest check deploy/app --fresh --timeout 90s -n shop";
        let cli = Cli::parse_from(words.split(' '));
        let Command::Check(args) = cli.command else {
            panic!("not a check");
        };
        assert!(args.fresh);
        assert_eq!(args.timeout, Duration::from_secs(90));
        assert_eq!(args.target.to_string(), "deployment/app");
        assert_eq!(cli.cluster.namespace.as_deref(), Some("shop"));
    }

    #[test]
    fn what_cannot_be_used_exits_2() {
        for bad in [
            "check app",
            "check deployment/",
            "check cronjobs.v2/app",
            "check deploy/app --timeout 5",
            "check deploy/app --timeout 0s",
            "explain deployment/app",
            "on",
            "status -o wide",
            "doctor --kubelets few",
        ] {
            let words = ["kubectl-trylatest"].into_iter().chain(bad.split(' '));
            let error = Cli::try_parse_from(words).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad}: {error}");
        }
    }
}
