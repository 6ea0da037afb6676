//! Every flag and every environment variable.

mod agent;
mod gate;
mod values;

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use trylatest_core::disk::Amount;
use trylatest_core::image::ImageName;
use trylatest_core::namespace::NamespaceName;
use trylatest_core::outcome::FailureClass;

pub use self::agent::{AgentArgs, DiskArgs, LogFormat, PullArgs, Verifies};
pub use self::gate::GateArgs;
use self::values::{age, class, not_empty, positive};
use crate::explain::Named;

/// Start pods with what their tag points to now, or with the node's cached copy if the registry
/// cannot deliver it in time.
#[derive(Debug, Parser)]
#[command(name = "trylatest", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done; 1 failed, or the gate refuses to let the pod start; 2 invalid argument, flag \
                  or environment variable. `pull`, `rollback` and `doctor` have more, see their --help."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the command line and the environment. Help and invalid values end the process.
    pub fn read() -> Self {
        let variables = env::vars_os().map(|(name, _)| name);
        match GateArgs::bare(env::args_os(), variables) {
            Some(args) => Self {
                command: Command::Gate(args),
            },
            None => Self::parse(),
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Try images for this node's TryLatest pods and release the pods (the DaemonSet)
    Agent(Box<AgentArgs>),
    /// Hold a pod until the agent releases it (the init container)
    Gate(GateArgs),
    /// Show what the agent remembers about this node's TryLatest images
    Images(ImagesArgs),
    /// Say what would happen to an image or a pod on this node now, and why; changes nothing
    ///
    /// The agent that runs on the node answers: which copy there is and when the registry last confirmed it, the last
    /// tries, the rules in force and where each comes from, whether the registry is asked, who may use the copy, which
    /// pods use it or wait for it, and what a pod would get after each kind of failure.
    ///
    /// What happened to a pod, on any node: kubectl trylatest explain POD.
    #[command(
        after_help = "Exit codes:\n  0  the answer is printed\n  1  there is none: no agent runs, or it knows neither a \
                      pod nor an image of this name\n  2  invalid argument or flag"
    )]
    Explain(ExplainArgs),
    /// Pull what an image's tag points to now, or fall back to this node's copy, once and by hand
    ///
    /// This is the same try as for a pod, through containerd, with the same decision at its end; it needs neither
    /// Kubernetes nor an agent. If nothing arrives for as long as --stall, or --timeout passes, the pull ends, provided
    /// that the node has a copy that may be used. Without one, it goes on as long as bytes arrive.
    ///
    /// The pull has no credentials. If what it brings cannot be used, the image's name points to the earlier copy
    /// again. Where an agent runs, a pull that has ended well is reported to it, and counts like a try of its own. Where
    /// none runs, the try is remembered in the state folder, so that a later --max-age, or the next agent, knows how old
    /// the copy is. If neither works, a line on stderr says so; the exit code does not change.
    #[command(
        after_help = "Prints one line on stdout that begins with the outcome, and progress on stderr.\n\nExit codes:\n  \
                      0  fresh (new content was pulled) or unchanged (the tag still points to the copy)\n  1  it could \
                      not be tried\n  2  invalid argument or flag\n  3  fallback (the pull failed, and the cached copy \
                      may be used)\n  4  unavailable (the pull failed, and there is no usable copy)\n  5  refused (the \
                      pull failed, and --max-age or --fallback-on forbids the copy)"
    )]
    Pull(PullOnceArgs),
    /// Point an image's name on this node back to the previous copy
    ///
    /// The previous copy is kept until a container has run from the newest one for ten minutes. The name stays where it
    /// is until the next successful try moves it on, so move the tag back in the registry as well. A second rollback
    /// changes nothing.
    #[command(
        after_help = "Exit codes:\n  0  the name points to the previous copy, now or already\n  1  failed\n  2  invalid \
                      argument or flag\n  3  this node keeps no previous copy"
    )]
    Rollback(RollbackArgs),
    /// Unpack an image's copy on this node again, and pull what its tag points to now
    ///
    /// For a copy that is damaged where the agent cannot see it: files that are wrong inside an unpacked layer.
    ///
    /// The layers are compared with their digests first. If they match, what was unpacked is thrown away, and they are
    /// unpacked again. The copy stays usable under its name all the time, whether or not the registry answers and
    /// wants credentials. If they do not match, or containerd has not kept them (discard_unpacked_layers), nothing is
    /// changed unless --download is given.
    ///
    /// Nor is anything changed while the kubelet pulls the image with a pod's credentials, or while a container, even
    /// one that has exited, uses the copy. Lower layers that other images use stay as they are, and the command says
    /// how many.
    ///
    /// What the registry answers is reported to the running agent, as by `pull`.
    Repair(RepairArgs),
    /// Check a configuration file before the agents get it
    Config(ConfigArgs),
    /// Look for what keeps TryLatest from working on this node, in what only the node itself can see
    ///
    /// It reads files of the node, which the agent's own pod does not see, and it has to be root to read them all.
    /// docs/kubectl.md shows how to run it where you cannot log in. For all nodes and the cluster: kubectl trylatest
    /// doctor.
    #[command(
        after_help = "Exit codes:\n  0  nothing is wrong, as far as it could look\n  1  failed, or could look at \
                      nothing\n  2  invalid flag\n  3  the worst finding is a warning\n  4  the worst finding is an error"
    )]
    Doctor(DoctorArgs),
}

/// What `trylatest images` takes.
#[derive(Args, Debug)]
pub struct ImagesArgs {
    /// The agent's state folder
    #[arg(long, env = "TRYLATEST_STATE_DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,

    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// What `trylatest explain` takes.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// An image, as pods name it, or a TryLatest pod of this node, as NAMESPACE/POD or as pod/NAME with --namespace. A
    /// name that can be either means the pod if this node has such a pod; to mean the image, write it in full:
    /// docker.io/team/app
    #[arg(value_name = "IMAGE|NAMESPACE/POD")]
    pub name: Named,

    /// Of pod/NAME: the pod's namespace [default: default]. Of an image: explain it for pods of this namespace
    #[arg(short, long)]
    pub namespace: Option<NamespaceName>,

    /// The agent's state folder
    #[arg(long, env = "TRYLATEST_STATE_DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,

    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: TextOrJson,
}

/// What `trylatest pull` takes.
#[derive(Args, Debug)]
pub struct PullOnceArgs {
    /// The image, as pods name it
    pub image: ImageName,

    /// How long to wait before taking the cached copy, even if the download still makes progress
    #[arg(long, default_value = "30s", value_parser = positive, allow_hyphen_values = true)]
    pub timeout: Duration,

    /// How long the pull may stand still before the cached copy is used; up to twice as long while containerd is slow
    #[arg(
        long,
        env = "TRYLATEST_STALL",
        default_value = "5s",
        value_parser = positive,
        allow_hyphen_values = true
    )]
    pub stall: Duration,

    /// Refuse a cached copy whose tag was last confirmed longer ago, or never
    #[arg(long, value_parser = age, allow_hyphen_values = true)]
    pub max_age: Option<Duration>,

    /// The failures after which the cached copy may be used
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "CLASSES",
        value_parser = class,
        default_value = "network,timeout,server-error,rate-limited,not-found,unauthorized,invalid,local,unknown"
    )]
    pub fallback_on: Vec<FailureClass>,

    /// If the node has a copy, do not download what would leave less than this free on the file system that holds the
    /// images, where that can be seen
    #[arg(long, env = "TRYLATEST_DISK_FLOOR", default_value = "15%")]
    pub disk_floor: Amount,

    /// How to reach containerd.
    #[command(flatten)]
    pub containerd: ContainerdArgs,

    /// The folder in which the agent, or this command if no agent runs, remembers what tries have shown
    #[arg(long, env = "TRYLATEST_STATE_DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,

    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: TextOrJson,
}

/// How a command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TextOrJson {
    /// For people
    #[default]
    Text,
    /// A JSON object
    Json,
}

/// What `trylatest rollback` takes.
#[derive(Args, Debug)]
pub struct RollbackArgs {
    /// The image, as pods name it
    pub image: ImageName,

    /// The agent's state folder: only one command at a time changes names on a node
    #[arg(long, env = "TRYLATEST_STATE_DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,

    /// How to reach containerd.
    #[command(flatten)]
    pub containerd: ContainerdArgs,
}

/// What `trylatest repair` takes.
#[derive(Args, Debug)]
pub struct RepairArgs {
    /// The image, as pods name it
    pub image: ImageName,

    /// Download again what the node cannot unpack. Nothing is changed unless the registry answers without credentials.
    /// If the download then fails halfway, this node has no copy until the registry answers again: the image's name is
    /// taken away, so that the kubelet pulls it for the next pod
    #[arg(long)]
    pub download: bool,

    /// The agent's state folder: only one command at a time changes names on a node, and what it has pulled is
    /// remembered there
    #[arg(long, env = "TRYLATEST_STATE_DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,

    /// How to reach containerd.
    #[command(flatten)]
    pub containerd: ContainerdArgs,
}

/// How to reach containerd, and what it unpacks images with.
#[derive(Args, Clone, Debug)]
pub struct ContainerdArgs {
    /// containerd's socket
    #[arg(
        long,
        env = "TRYLATEST_CONTAINERD_SOCKET",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub containerd_socket: PathBuf,

    /// The snapshotter that unpacks images [default: the one that containerd reports]
    #[arg(long, env = "TRYLATEST_SNAPSHOTTER", value_parser = not_empty)]
    pub snapshotter: Option<String>,
}

/// How `trylatest images` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One line per image
    #[default]
    Table,
    /// A JSON array
    Json,
}

/// What `trylatest doctor` takes.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// The folder where the node's root is mounted
    #[arg(long, default_value = "/")]
    pub root: PathBuf,

    /// The folder of registry mirrors, containerd's config_path
    #[arg(long, default_value = "/etc/containerd/certs.d")]
    pub certs_dir: PathBuf,

    /// The kubelet's folder
    #[arg(long, default_value = "/var/lib/kubelet")]
    pub kubelet_dir: PathBuf,

    /// containerd's folder, to see how full its disk is
    #[arg(long, default_value = "/var/lib/containerd")]
    pub containerd_dir: PathBuf,

    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: TextOrJson,
}

/// What `trylatest config` takes.
#[derive(Args, Debug)]
pub struct ConfigArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// The commands about a configuration file.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print what a file says and exit with 0, or everything that is wrong with it and exit with 1
    Check(CheckArgs),
}

/// What `trylatest config check` takes.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The file, or - for stdin
    pub file: PathBuf,

    /// Also show what applies to this image, and which part of the file says so
    #[arg(long)]
    pub image: Option<ImageName>,

    /// Also show what applies to pods of this namespace
    #[arg(long)]
    pub namespace: Option<NamespaceName>,

    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: CheckOutput,
}

/// How `trylatest config check` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CheckOutput {
    /// For people and editors
    #[default]
    Text,
    /// A JSON object
    Json,
}

const STATE_DIR: &str = "/var/lib/trylatest";

#[cfg(test)]
mod tests;
