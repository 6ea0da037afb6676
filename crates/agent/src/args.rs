//! Every flag and every environment variable.

use std::env;
use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use trylatest_core::config::{Config, KEEP_MAX};
use trylatest_core::disk::Amount;
use trylatest_core::image::ImageName;
use trylatest_core::keep::Limits;
use trylatest_core::namespace::NamespaceName;
use trylatest_core::outcome::FailureClass;
use trylatest_core::rules::{NodeRules, PullLimit};

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

/// What `trylatest agent` takes.
#[derive(Args, Debug)]
pub struct AgentArgs {
    /// The node this agent runs on
    #[arg(long, env = "NODE_NAME", value_parser = not_empty)]
    pub node_name: String,

    /// The pod this agent runs in; its image is the gate's image
    #[arg(long, env = "POD_NAME", value_parser = not_empty)]
    pub pod_name: String,

    /// The namespace of that pod
    #[arg(long, env = "POD_NAMESPACE", value_parser = not_empty)]
    pub pod_namespace: String,

    /// How to reach containerd.
    #[command(flatten)]
    pub containerd: ContainerdArgs,

    /// The folder for the cache index and the local socket
    #[arg(long, env = "TRYLATEST_STATE_DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,

    /// The address for probes and metrics
    #[arg(long, env = "TRYLATEST_ADDRESS", default_value = "127.0.0.1")]
    pub address: IpAddr,

    /// The port for probes and metrics
    #[arg(long, env = "TRYLATEST_PORT", default_value_t = 9776)]
    pub port: u16,

    /// The administrator's rules, a YAML file (docs/configuration.md). They take precedence over the flags below. The
    /// agent reads the file again when it changes, and refuses all of it if anything in it is invalid. Without a file,
    /// the flags apply
    #[arg(long, env = "TRYLATEST_CONFIG", default_value = CONFIG)]
    pub config: PathBuf,

    /// How long a pull may stand still before a pod takes the cached copy; the pull goes on for the next pod
    ///
    /// Up to twice as long while containerd itself is slow, as on a node that starts many pods at once.
    #[arg(long, env = "TRYLATEST_STALL", default_value = "5s", value_parser = positive)]
    pub stall: Duration,

    /// How long a pod waits before it takes the cached copy, even if the download still makes progress
    #[arg(long = "try", env = "TRYLATEST_TRY", default_value = "30s", value_parser = positive)]
    pub try_for: Duration,

    /// Do not ask the registry again for an image that it has confirmed within this time
    #[arg(long, env = "TRYLATEST_FRESHNESS", default_value = "0s", value_parser = duration)]
    pub freshness: Duration,

    /// Try the images of running pods again this long after their last try, give or take a quarter; at least 10m, or 0
    /// for never. Unless it is 0, an image is also tried soon after its container has restarted in place. Private
    /// images are tried only when a pod with a gate starts
    #[arg(long, env = "TRYLATEST_REFRESH_EVERY", default_value = "0s", value_parser = refresh)]
    pub refresh_every: Duration,

    /// Let pods use cached copies of images that the registry does not give without credentials, although nothing
    /// proves that these pods may have them
    #[arg(long, env = "TRYLATEST_ALLOW_UNVERIFIED_FALLBACK")]
    pub allow_unverified_fallback: bool,

    /// Whether the kubelet remembers which credentials it has pulled an image with, and asks the registry
    /// before it starts a pod with other credentials from it. Set `no` if the kubelet's feature gate
    /// KubeletEnsureSecretPulledImages is off: the agent then gives the cached copy of a private image only to
    /// pods with the same namespace, service account and pull secrets as one for which the kubelet has pulled
    /// this digest
    #[arg(long, env = "TRYLATEST_KUBELET_VERIFIES", value_enum, default_value_t)]
    pub kubelet_verifies: Verifies,

    /// How many images the kubelet pulls.
    #[command(flatten)]
    pub kubelet_pulls: PullArgs,

    /// What may stay on the node's disk.
    #[command(flatten)]
    pub disk: DiskArgs,

    /// What to log, e.g. `info` or `trylatest=debug`
    #[arg(long, env = "TRYLATEST_LOG", default_value = "info", value_parser = log_filter)]
    pub log: String,

    /// The format of log lines
    #[arg(long, env = "TRYLATEST_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

impl AgentArgs {
    /// What applies to the node's pods with this configuration, until the kubelet has been asked what it verifies.
    pub fn rules(&self, config: Config) -> NodeRules {
        NodeRules {
            try_for: self.try_for,
            stall: self.stall,
            freshness: self.freshness,
            kubelet_verifies: false,
            allow_unverified_fallback: self.allow_unverified_fallback,
            kubelet_pulls: self.kubelet_pulls.limit(),
            config,
        }
    }
}

/// The kubelet's limit of pulls, as its configuration has it.
#[derive(Args, Clone, Copy, Debug)]
pub struct PullArgs {
    /// The kubelet's `registryPullQPS`, or 0 if it has no limit. The agent leaves private images to the kubelet no
    /// faster than this, with a fifth to spare
    #[arg(long, env = "TRYLATEST_REGISTRY_PULL_QPS", default_value_t = 5)]
    pub registry_pull_qps: u32,

    /// The kubelet's `registryBurst`
    #[arg(long, env = "TRYLATEST_REGISTRY_BURST", default_value_t = 10)]
    pub registry_burst: u32,
}

impl PullArgs {
    fn limit(self) -> PullLimit {
        PullLimit {
            per_second: self.registry_pull_qps,
            at_once: self.registry_burst,
        }
    }
}

/// How much of the node's disk is used, and how much stays free.
#[derive(Args, Clone, Debug)]
pub struct DiskArgs {
    /// How long the last good copy of an image is kept after the last pod that used it has ended; 0 keeps none. `keep`
    /// in the configuration file takes precedence
    #[arg(long, env = "TRYLATEST_KEEP_FOR", default_value = "14d", value_parser = days)]
    pub keep_for: Duration,

    /// How much space copies that no pod uses may take, in bytes (20GiB) or as a percentage of the file system that
    /// holds the images; a layer that several of them share counts for each
    #[arg(long, env = "TRYLATEST_KEEP_BYTES", default_value = "10%")]
    pub keep_bytes: Amount,

    /// While less than this is free on the file system that holds the images, kept copies are not pinned, so that the
    /// kubelet can collect them. It should be more than the kubelet's eviction threshold (15% by default) and no less
    /// than what its image collector leaves free (20% by default)
    #[arg(long, env = "TRYLATEST_KEEP_FREE", default_value = "20%")]
    pub keep_free: Amount,

    /// Do not download an image that has a copy on the node if less than this would be left free on the file system
    /// that holds the images
    #[arg(long, env = "TRYLATEST_DISK_FLOOR", default_value = "15%")]
    pub disk_floor: Amount,
}

impl DiskArgs {
    /// Which copies are kept for the next outage.
    pub fn keep_limits(&self) -> Limits {
        Limits {
            time: self.keep_for,
            size: self.keep_bytes,
            free: self.keep_free,
            pins: true,
        }
    }
}

/// Whether the kubelet looks after who may use a private image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Verifies {
    /// Yes from Kubernetes 1.35 on, by the version of the node's kubelet
    #[default]
    Auto,
    /// It does
    Yes,
    /// It does not
    No,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

/// What `trylatest gate` takes.
#[derive(Args, Debug, PartialEq, Eq)]
pub struct GateArgs {
    /// The folder of the downward-API volume that holds the pod's annotations
    #[arg(long, env = "TRYLATEST_VOLUME", default_value = VOLUME)]
    pub volume: PathBuf,

    /// How long to wait without any sign of an agent before the pod starts without an answer
    #[arg(long, env = "TRYLATEST_PATIENCE", default_value = PATIENCE, value_parser = duration)]
    pub patience: Duration,

    /// How much a release's time may differ from the current time; the agent relies on at least 2m
    #[arg(long, env = "TRYLATEST_FRESHNESS", default_value = FRESHNESS, value_parser = freshness)]
    pub freshness: Duration,
}

const VOLUME: &str = "/run/trylatest";
const PATIENCE: &str = "20s";
const FRESHNESS: &str = "2m";

impl GateArgs {
    /// The gate as the admission policy starts it: the only argument is the word `gate`. It waits in
    /// every gated pod, and clap's pages would be a third of its memory.
    fn bare(
        args: impl Iterator<Item = OsString>,
        mut variables: impl Iterator<Item = OsString>,
    ) -> Option<Self> {
        let ours = |name: OsString| name.as_encoded_bytes().starts_with(b"TRYLATEST_");
        if !args.skip(1).eq([OsStr::new("gate")]) || variables.any(ours) {
            return None;
        }
        Some(Self {
            volume: VOLUME.into(),
            patience: duration(PATIENCE).ok()?,
            freshness: freshness(FRESHNESS).ok()?,
        })
    }
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
    #[arg(long, default_value = "30s", value_parser = positive)]
    pub timeout: Duration,

    /// How long the pull may stand still before the cached copy is used; up to twice as long while containerd is slow
    #[arg(long, env = "TRYLATEST_STALL", default_value = "5s", value_parser = positive)]
    pub stall: Duration,

    /// Refuse a cached copy whose tag was last confirmed longer ago, or never
    #[arg(long, value_parser = age)]
    pub max_age: Option<Duration>,

    /// The failures after which the cached copy may be used
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "CLASSES",
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
    pub output: CheckOutput,
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

/// Where the DaemonSet mounts it.
const CONFIG: &str = "/etc/trylatest/config.yaml";

/// Longest duration that can be set: a longer one is a mistake.
const DURATION_MAX: Duration = Duration::from_hours(24);

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text);
    match parsed.map_err(|error| format!("{error}; write it like 5s or 1m30s"))? {
        long if long > DURATION_MAX => Err("the maximum is 24h".to_owned()),
        duration => Ok(duration),
    }
}

fn days(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let parsed = humantime::parse_duration(text);
    match parsed.map_err(|error| format!("{error}; write it like 14d or 12h"))? {
        long if long > KEEP_MAX => Err("the maximum is 366d".to_owned()),
        duration => Ok(duration),
    }
}

fn age(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text);
    parsed.map_err(|error| format!("{error}; write it like 24h or 7d"))
}

/// More often than this, it would be the registry that notices.
const REFRESH_MIN: Duration = Duration::from_mins(10);

fn refresh(text: &str) -> Result<Duration, String> {
    match days(text)? {
        short if !short.is_zero() && short < REFRESH_MIN => {
            Err("it must be at least 10m, or 0".to_owned())
        }
        every => Ok(every),
    }
}

fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

/// A gate that honours releases for a shorter time than the agent thinks would miss some of them, even
/// refusals.
fn freshness(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        short if short < trylatest_core::release::FRESHNESS => {
            Err("it must be at least 2m".to_owned())
        }
        freshness => Ok(freshness),
    }
}

/// An empty variable is most often a mistake in a manifest.
fn not_empty(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        Err("it must not be empty".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    match text.parse::<tracing_subscriber::filter::Targets>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    const AGENT: [&str; 9] = [
        "trylatest",
        "agent",
        "--node-name=n",
        "--pod-name=p",
        "--pod-namespace=s",
        "--try=10s",
        "--stall=1m30s",
        "--freshness=10s",
        "--allow-unverified-fallback",
    ];

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_are_read() {
        let Command::Agent(args) = Cli::parse_from(AGENT).command else {
            panic!("not the agent");
        };
        assert_eq!(args.try_for, Duration::from_secs(10));
        assert_eq!(args.stall, Duration::from_secs(90));
        assert_eq!(args.freshness, Duration::from_secs(10));
        assert!(args.allow_unverified_fallback);
        assert_eq!(args.port, 9776);
    }

    #[test]
    fn a_pull_falls_back_after_what_a_pod_falls_back_after() {
        let parsed = |more: &[&str]| {
            let args = ["trylatest", "pull", "reg.example/app"].iter().chain(more);
            match Cli::try_parse_from(args).map(|cli| cli.command) {
                Ok(Command::Pull(args)) => Ok(args),
                Ok(_) => panic!("not a pull"),
                Err(error) => Err(error),
            }
        };
        let default = parsed(&[]).unwrap().fallback_on;
        for class in FailureClass::ALL {
            assert_eq!(
                default.contains(&class),
                class.falls_back_by_default(),
                "{class}"
            );
        }
        let args = parsed(&["--fallback-on=network,blocked", "--max-age=7d"]).unwrap();
        assert_eq!(
            args.fallback_on,
            [FailureClass::Network, FailureClass::Blocked]
        );
        assert_eq!(args.max_age, Some(Duration::from_hours(7 * 24)));
        for bad in [
            "--fallback-on=dns",
            "--max-age=old",
            "--timeout=0s",
            "--stall=fast",
        ] {
            assert_eq!(parsed(&[bad]).unwrap_err().exit_code(), 2, "{bad}");
        }
    }

    fn bare(args: &[&str], variables: &[&str]) -> Option<GateArgs> {
        let owned = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        GateArgs::bare(owned(args).into_iter(), owned(variables).into_iter())
    }

    #[test]
    fn a_bare_gate_is_what_clap_would_make_of_it() {
        let Command::Gate(args) = Cli::parse_from(["trylatest", "gate"]).command else {
            panic!("not the gate");
        };
        assert_eq!(bare(&["trylatest", "gate"], &["PATH"]), Some(args));
    }

    #[test]
    fn a_gate_with_settings_is_read_by_clap() {
        let set = ["PATH", "TRYLATEST_PATIENCE"];
        assert_eq!(bare(&["trylatest", "gate"], &set), None);
        for args in [
            &["trylatest", "gate", "--help"],
            &["trylatest", "agent", "gate"],
        ] {
            assert_eq!(bare(args, &[]), None);
        }
        assert_eq!(bare(&["trylatest"], &[]), None);
    }

    #[test]
    fn what_cannot_be_used_is_named_and_exits_2() {
        for bad in [
            "--stall=5",
            "--stall=0s",
            "--stall=25h",
            "--freshness=often",
            "--refresh-every=sometimes",
            "--refresh-every=1m",
            "--keep-for=400d",
            "--keep-bytes=many",
            "--disk-floor=101%",
            "--try=soon",
            "--address=here",
            "--port=70000",
            "--node-name=",
            "--log=a=b=c",
            "--log-format=xml",
        ] {
            let args = AGENT
                .iter()
                .copied()
                .filter(|a| a.split('=').next() != bad.split('=').next());
            let error = Cli::try_parse_from(args.chain([bad])).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad}");
            let option = bad.split('=').next().unwrap();
            assert!(error.to_string().contains(option), "{bad}: {error}");
        }
    }

    #[test]
    fn what_no_pod_or_image_can_have_is_named_and_exits_2() {
        let check = ["config", "check", "f.yaml"];
        let namespaces = ["A B", "Team", "team_a", "-a", ""].map(|name| ("--namespace", name));
        let images = ["A B", "app:", ""].map(|name| ("--image", name));
        let explains = [("explain", "A B"), ("explain", "pod/"), ("explain", "")];
        let checks = namespaces.into_iter().chain(images);
        let lines = checks.map(|(flag, value)| [&check[..], &[flag, value]].concat());
        let lines = lines.chain(explains.map(|(command, name)| vec![command, name]));
        for line in lines.chain([vec!["explain", "app", "-n", "A B"]]) {
            let words = ["trylatest"].iter().chain(&line);
            let error = Cli::try_parse_from(words).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line:?}: {error}");
        }
        let line = "trylatest config check f.yaml --namespace team-a --image app";
        assert!(Cli::try_parse_from(line.split(' ')).is_ok());
    }

    #[test]
    fn every_option_can_be_set_by_the_environment() {
        for command in ["agent", "gate"] {
            let cli = Cli::command();
            let command = cli.find_subcommand(command).unwrap();
            for arg in command.get_arguments().filter(|arg| arg.get_id() != "help") {
                assert!(arg.get_env().is_some(), "{}", arg.get_id());
            }
        }
    }
}
