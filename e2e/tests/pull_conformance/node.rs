//! A containerd alone: no kubelet, no runtime for containers, one registry it knows.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::sync::Mutex;
use trylatest_containerd::{Containerd, ContainerdOptions, ImageRuntime as _};
use trylatest_e2e::process::{self, Process, Spec};

/// Long enough for a machine that builds something else meanwhile.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// How long containerd may take to answer after its start, and to end.
const START: Duration = Duration::from_secs(30);

/// Which containerd.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Version {
    /// 2.4, built from its Go module.
    V2,
    /// Debian's 1.6.
    V1_6,
}

impl Version {
    /// As it stands in the trials' names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V2 => "containerd-2.4",
            Self::V1_6 => "containerd-1.6",
        }
    }

    /// Where the program is.
    pub(crate) fn program(self) -> PathBuf {
        match self {
            Self::V2 => built("containerd"),
            Self::V1_6 => PathBuf::from("/usr/bin/containerd"),
        }
    }
}

/// A program that the bootstrap has built.
pub(crate) fn built(name: &str) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.join("../target/cluster/bin").join(name)
}

/// A running containerd. Dropping it kills it and removes its files.
pub(crate) struct Node {
    version: Version,
    // Before the folder, so that it ends first.
    process: Mutex<Process>,
    dir: TempDir,
}

impl Node {
    /// Starts containerd with everything under a folder of its own, and waits until CRI answers.
    pub(crate) async fn start(
        version: Version,
        registry: &str,
    ) -> anyhow::Result<(Self, Containerd)> {
        let dir = tempfile::Builder::new()
            .prefix("conformance-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let hosts = dir.path().join("certs.d").join(registry);
        fs::create_dir_all(&hosts)?;
        fs::create_dir_all(dir.path().join("cni"))?;
        let server = format!("server = \"http://{registry}\"\n");
        fs::write(hosts.join("hosts.toml"), server)?;
        fs::write(dir.path().join("config.toml"), config(version, dir.path()))?;
        let process = Mutex::new(spawn(version, dir.path()).await?);
        let node = Self {
            version,
            process,
            dir,
        };
        let runtime = Containerd::new(ContainerdOptions {
            socket: node.socket(),
            snapshotter: None,
            call_timeout: CALL_TIMEOUT,
        });
        let answers = async {
            while runtime.version().await.is_err() {
                node.process.lock().await.check()?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok::<_, anyhow::Error>(())
        };
        let answered = tokio::time::timeout(START, answers).await;
        answered.with_context(|| format!("{} does not answer", version.name()))??;
        Ok((node, runtime))
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("containerd.sock")
    }

    /// What `ctr` prints in CRI's namespace.
    pub(crate) async fn ctr(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let socket = self.socket();
        let socket = socket.to_str().context("the folder's name is text")?;
        let address = ["-a", socket, "-n", "k8s.io"];
        let all = address.iter().chain(arguments).copied();
        process::run(&built("ctr"), all, None).await
    }

    /// Ends containerd and starts it again; does not wait until it answers.
    pub(crate) async fn restart(&self) -> anyhow::Result<()> {
        let mut process = self.process.lock().await;
        process.stop(START).await?;
        *process = spawn(self.version, self.dir.path()).await?;
        Ok(())
    }
}

async fn spawn(version: Version, dir: &Path) -> anyhow::Result<Process> {
    let config = dir.join("config.toml");
    Spec::new(
        version.name(),
        version.program(),
        dir.join("containerd.log"),
    )
    .arg("--config")
    .arg(config)
    .spawn()
    .await
}

/// The least configuration that pulls.
fn config(version: Version, dir: &Path) -> String {
    let dir = dir.display();
    let common = format!(
        "root = \"{dir}/root\"\nstate = \"{dir}/state\"\n\
         [grpc]\naddress = \"{dir}/containerd.sock\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{dir}/opt\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n\
         stream_server_address = \"127.0.0.1\"\nstream_server_port = \"0\"\n"
    );
    match version {
        Version::V2 => format!(
            "version = 3\n{common}\
             [plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"{dir}/certs.d\"\n\
             [plugins.\"io.containerd.cri.v1.runtime\".cni]\nconf_dir = \"{dir}/cni\"\n"
        ),
        Version::V1_6 => format!(
            "version = 2\n{common}\
             [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{dir}/certs.d\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = \"{dir}/cni\"\n"
        ),
    }
}
