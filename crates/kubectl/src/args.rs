//! Every flag and every environment variable.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use trylatest_core::duration::Range;
use trylatest_core::namespace::NamespaceName;

use crate::target::{PodName, Target};

/// Exit codes, as `--help` says them.
const EXIT_CODES: &str = "Exit codes: 0 success; 1 the question could not be answered; 2 wrong usage. \
                          `check` and `doctor` have more, see their --help.";

/// What TryLatest runs in a cluster, and what is wrong with it.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-trylatest",
    bin_name = "kubectl trylatest",
    version,
    about = "Show which pods run what their tags point to now, and what is wrong with TryLatest in a cluster",
    long_about = "Show which pods run what their tags point to now, and what is wrong with TryLatest in a cluster.\n\n\
                  It has the rights of your kubeconfig. Only `on` and `off` change anything.",
    after_help = EXIT_CODES
)]
pub struct Cli {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// Where in it, for people who write that before the command.
    #[command(flatten)]
    pub place: NamespaceArgs,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The namespace that was named, before or after the command.
    ///
    /// # Errors
    /// The command is not about one.
    pub fn namespace(&self) -> Result<Option<&NamespaceName>, clap::Error> {
        let before = self.place.namespace.as_ref();
        match (self.command.place(), before) {
            (Some(place), _) => Ok(place.namespace.as_ref().or(before)),
            (None, None) => Ok(None),
            (None, Some(_)) => {
                let words = "this command does not take --namespace";
                Err(Self::command().error(ErrorKind::ArgumentConflict, words))
            }
        }
    }
}

/// Over the flags that every command takes, or nearly every one.
const GLOBAL: &str = "Global options";

/// Which cluster, and how long to wait for it.
#[derive(Args, Clone, Debug)]
pub struct ClusterArgs {
    /// The kubeconfig file [default: $KUBECONFIG, otherwise ~/.kube/config]
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub kubeconfig: Option<PathBuf>,

    /// The kubeconfig's context to use
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub context: Option<String>,

    /// How long one request to the API server may take, as for kubectl: 5 or 5s, 1m; 0 for no limit
    #[arg(long, global = true, help_heading = GLOBAL, default_value = "30s", value_name = "DURATION")]
    pub request_timeout: RequestTimeout,
}

/// Which namespace.
#[derive(Args, Clone, Debug)]
pub struct NamespaceArgs {
    /// The namespace [default: the context's]
    #[arg(short, long)]
    pub namespace: Option<NamespaceName>,
}

/// How long one request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestTimeout {
    /// None if there is no limit.
    pub limit: Option<Duration>,
}

impl FromStr for RequestTimeout {
    type Err = String;

    /// As kubectl reads it: a number without a unit is of seconds, and 0 is no limit.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let limit = match text.parse() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => Range::AGE
                .or_zero()
                .parse(text)
                .map_err(|_| "write it like 5, 5s or 1m, or 0 for no limit")?,
        };
        Ok(Self {
            limit: Some(limit).filter(|limit| !limit.is_zero()),
        })
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show on one screen: nodes, images that run from an old copy, tags with several digests, pods that wait or were
    /// refused
    ///
    /// Of nodes and their agents, it shows all; of pods, those of all namespaces, or of the one that --namespace names.
    /// If you may not list the pods of all namespaces, it shows those of the context's namespace and says so. The agents
    /// know more: on a node, `trylatest explain IMAGE` asks its agent.
    #[command(mut_arg("namespace", |arg| arg.help("The namespace [default: all]")))]
    Status(StatusArgs),
    /// Wait for a workload's rollout, then fail if one of its pods runs an old copy
    ///
    /// For CI jobs: `kubectl rollout status` is green as soon as pods run, whatever they run.
    #[command(after_help = CHECK_CODES)]
    Check(CheckArgs),
    /// Show what happened to a pod, container by container
    ///
    /// What would happen to a pod now: `trylatest explain` in the agent's pod of its node.
    Explain(ExplainArgs),
    /// Make all containers of a workload TryLatest, or set how pods are held
    ///
    /// Sets the annotation trylatest.dev/containers: "*" on the workload's pod template. Its pods are replaced, as with
    /// any change to the template. A namespace cannot make its pods TryLatest, but with --hold it can set how its
    /// TryLatest pods are held.
    On(SwitchArgs),
    /// Switch TryLatest off for all containers and image volumes of a workload
    ///
    /// Removes the annotations trylatest.dev/containers, volumes and literal from the workload's pod template. Its pods
    /// are replaced, as with any change to the template. A manifest that says TryLatest switches it on again when it is
    /// applied.
    Off(OffArgs),
    /// Look for what keeps TryLatest from working in this cluster
    ///
    /// It only reads, and looks at the whole cluster. What it could not look at is listed, and is not a finding.
    #[command(after_help = DOCTOR_CODES)]
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    ///
    /// The script completes `kubectl-trylatest`. To complete `kubectl trylatest`, put the file
    /// kubectl_complete-trylatest into your PATH.
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
    Man {
        /// The folder
        folder: PathBuf,
    },
}

impl Command {
    /// Where it looks, if it is about a namespace.
    fn place(&self) -> Option<&NamespaceArgs> {
        match self {
            Self::Status(StatusArgs { place, .. })
            | Self::Check(CheckArgs { place, .. })
            | Self::Explain(ExplainArgs { place, .. })
            | Self::On(SwitchArgs { place, .. })
            | Self::Off(OffArgs { place, .. }) => Some(place),
            Self::Doctor(_)
            | Self::Completion { .. }
            | Self::Complete { .. }
            | Self::Man { .. } => None,
        }
    }
}

const CHECK_CODES: &str = "Exit codes:\n  0  every pod runs what was asked for\n  1  the question could not be answered, or \
                           the workload has no TryLatest pod\n  2  wrong usage\n  3  a pod runs an old copy, or nobody can say \
                           what it runs\n  4  the rollout failed, or did not end in time";

const DOCTOR_CODES: &str = "Exit codes:\n  0  nothing is wrong, as far as it could look\n  1  the API server does not \
                            answer, or you may look at nothing\n  2  wrong usage\n  3  the worst finding is a \
                            warning\n  4  the worst finding is an error";

/// What `status` takes.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// List everything and not only the worst of each kind
    #[arg(long)]
    pub all: bool,

    /// Look at the pods of all namespaces, whatever --namespace says
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,

    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,

    /// Where.
    #[command(flatten)]
    pub place: NamespaceArgs,
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

    /// How long to wait for the rollout, for pods whose images the kubelet still pulls or whose agent has not reported yet,
    /// and for the API server
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub timeout: Duration,

    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,

    /// Where.
    #[command(flatten)]
    pub place: NamespaceArgs,
}

/// What `explain` takes.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// The pod, as NAME or pod/NAME, or as NAMESPACE/NAME
    pub pod: PodName,

    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,

    /// Where.
    #[command(flatten)]
    pub place: NamespaceArgs,
}

/// What `on` takes.
#[derive(Args, Debug)]
pub struct SwitchArgs {
    /// The workload, or namespace/NAME together with --hold
    #[arg(value_name = "KIND/NAME")]
    pub target: Target,

    /// How pods are held
    #[arg(long, value_enum)]
    pub hold: Option<Hold>,

    /// How it is done.
    #[command(flatten)]
    pub how: HowArgs,

    /// Where.
    #[command(flatten)]
    pub place: NamespaceArgs,
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

    /// Where.
    #[command(flatten)]
    pub place: NamespaceArgs,
}

/// What `on` and `off` both take.
#[derive(Args, Clone, Copy, Debug)]
pub struct HowArgs {
    /// Show what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// How pods are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hold {
    /// By a gate, until a try has ended (the default)
    Gate,
    /// Not at all: they start at once, and their tags are checked afterwards
    None,
    /// As the namespace says; for a namespace, as by default
    Inherit,
}

/// What `doctor` takes.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Look at the kubelet's configuration on this many nodes at most, which needs the right to get nodes/proxy
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
    let range = Range {
        examples: ["30s", "5m"],
        ..Range::wait(DURATION_MAX)
    };
    range.parse(text)
}

#[cfg(test)]
mod tests {
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
    }

    #[test]
    fn a_namespace_is_named_before_or_after_a_command_that_is_about_one() {
        let named = |line: &str| {
            let words = ["kubectl-trylatest"].into_iter().chain(line.split(' '));
            let cli = Cli::try_parse_from(words)?;
            cli.namespace().map(|name| name.map(ToString::to_string))
        };
        for line in [
            "check deploy/app -n shop",
            "-n shop check deploy/app",
            "-n other check deploy/app --namespace shop",
            "--namespace=shop status",
            "explain app -n shop",
            "on deploy/app -n shop",
            "off -n shop deploy/app",
        ] {
            assert_eq!(named(line).unwrap().as_deref(), Some("shop"), "{line}");
        }
        for line in ["status", "doctor", "completion bash"] {
            assert_eq!(named(line).unwrap(), None, "{line}");
        }
        for line in [
            "doctor -n shop",
            "-n shop doctor",
            "-n shop completion bash",
        ] {
            assert_eq!(named(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_request_timeout_is_read_as_kubectl_reads_it() {
        for (text, seconds) in [
            ("5", Some(5.0)),
            ("5s", Some(5.0)),
            ("1m", Some(60.0)),
            ("1m30s", Some(90.0)),
            ("500ms", Some(0.5)),
            ("1.5s", Some(1.5)),
            ("48h", Some(172_800.0)),
            ("0", None),
            ("0s", None),
        ] {
            let words = ["kubectl-trylatest", "status", "--request-timeout", text];
            let timeout = Cli::parse_from(words).cluster.request_timeout;
            assert_eq!(
                timeout.limit.map(|limit| limit.as_secs_f64()),
                seconds,
                "{text}"
            );
        }
        let default = Cli::parse_from(["kubectl-trylatest", "status"]);
        let limit = default.cluster.request_timeout.limit;
        assert_eq!(limit, Some(Duration::from_secs(30)));
    }

    #[test]
    fn an_invalid_duration_is_answered_with_one_that_is_valid() {
        for (line, words) in [
            (
                "check deploy/app --timeout 5",
                "the unit is missing; write 5s or 5m",
            ),
            (
                "check deploy/app --timeout 2d",
                "it must be more than 0 and at most 24h; write it like 30s or 5m",
            ),
            (
                "status --request-timeout soon",
                ": write it like 5, 5s or 1m, or 0 for no limit",
            ),
        ] {
            let line = ["kubectl-trylatest"].into_iter().chain(line.split(' '));
            let error = Cli::try_parse_from(line).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
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
            "explain shop/",
            "on deploy/app -A",
            "status -o wide",
            "status -n Shop",
            "status --namespace=",
            "status --request-timeout -5",
            "status --request-timeout soon",
            "doctor --kubelets few",
        ] {
            let words = ["kubectl-trylatest"].into_iter().chain(bad.split(' '));
            let error = Cli::try_parse_from(words).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad}: {error}");
        }
    }
}
