//! The flags of the agent.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use trylatest_core::config::Config;
use trylatest_core::disk::Amount;
use trylatest_core::keep::Limits;
use trylatest_core::rules::{NodeRules, PullLimit};

use super::values::{duration, kept, log_filter, not_empty, positive, refresh};
use super::{ContainerdArgs, STATE_DIR};

/// Where the DaemonSet mounts it.
const CONFIG: &str = "/etc/trylatest/config.yaml";

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

    /// The address for probes and metrics. If no interface has it yet, the agent answers there once one does. Unless it
    /// is an IPv4 loopback address, 127.0.0.1 answers probes as well
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
    #[arg(long, env = "TRYLATEST_KEEP_FOR", default_value = "14d", value_parser = kept)]
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
