//! containerd, of either version, with runc: everything of it in one folder, and CNI networks that
//! stay on this machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::json;

use super::cri;
use super::part::Part;
use super::run::Run;
use super::wait::until;
use crate::process::{self, Spec};
use crate::testimage;
use trylatest_bootstrap::{ContainerdVersion, Tools};

/// A handler of containerd 2.4 that runs containers as runc does, from another snapshotter.
pub const OTHER_RUNTIME: &str = "native";

/// How long containerd may take to answer; 0.3 s is usual.
const READY: Duration = Duration::from_secs(30);

/// A running containerd. Dropping it kills it; its containers end with the run.
#[derive(Debug)]
pub struct ContainerdNode {
    part: Part,
    folder: PathBuf,
    socket: PathBuf,
    ctr: PathBuf,
    programs: PathBuf,
    version: ContainerdVersion,
}

impl ContainerdNode {
    /// Starts it in a run, and waits until it answers. The image of pod sandboxes is there already.
    ///
    /// # Errors
    /// If it does not answer; the message holds the last lines that it printed.
    pub async fn start(
        tools: &Tools,
        run: &Run,
        version: ContainerdVersion,
    ) -> anyhow::Result<Self> {
        if let Some(missing) = tools.missing(version) {
            bail!("{missing}");
        }
        run.cgroup().make()?;
        let folder = run.sub("containerd")?;
        let certs = run.sub("containerd/certs.d")?;
        let networks = network(run)?;
        let paths = Paths {
            folder: &folder,
            certs: &certs,
            networks: &networks,
            plugins: &tools.cni(),
        };
        let config = folder.join("config.toml");
        fs::write(&config, paths.config(version))
            .with_context(|| format!("write {}", config.display()))?;
        let program = tools.containerd(version);
        let spec = Spec::new("containerd", &program, run.log("containerd"))
            .args(["--config".into(), config.into_os_string()])
            .env("PATH", search_path(&program)?)
            .cgroup(run.cgroup().members());
        let (ctr, programs) = (tools.ctr(version), run.sub("containerd/bin")?);
        symlink(&ctr, programs.join("ctr")).context("link ctr")?;
        let node = Self {
            part: Part::start_new(spec).await?,
            socket: paths.socket(),
            ctr,
            programs,
            folder,
            version,
        };
        node.ready().await?;
        let pause = testimage::pause_archive(tools)?;
        node.import(&pause).await?;
        Ok(node)
    }

    /// Its socket, for CRI and for containerd's own API.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A folder with its own ctr and nothing else: the folder of the built programs has another version's.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// Its folder for content, snapshots and metadata, which a reboot keeps.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// The folder of its image verifiers, which is not there at first; none if it knows none.
    pub fn image_verifiers(&self) -> Option<PathBuf> {
        match self.version {
            ContainerdVersion::V2 => Some(image_verifiers(&self.folder)),
            ContainerdVersion::V1_6 => None,
        }
    }

    /// Lets images of the registry `host` (`127.0.0.1:5000`) be pulled over plain HTTP.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn add_registry(&self, host: &str) -> anyhow::Result<()> {
        self.write_hosts(host, &format!("server = \"http://{host}\"\n"))
    }

    /// Writes the `hosts.toml` of a registry: mirrors, trust, whatever containerd knows.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn write_hosts(&self, host: &str, text: &str) -> anyhow::Result<()> {
        let folder = self.folder.join("certs.d").join(host);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        fs::write(folder.join("hosts.toml"), text)?;
        Ok(())
    }

    /// Runs ctr in the namespace of Kubernetes and returns what it printed.
    ///
    /// # Errors
    /// If it exits non-zero; the message holds its stderr.
    pub async fn ctr(&self, args: &[&str]) -> anyhow::Result<String> {
        let socket = format!("--address={}", self.socket.display());
        let always = [socket.as_str(), "--namespace=k8s.io"];
        process::run(
            &self.ctr,
            always.into_iter().chain(args.iter().copied()),
            None,
        )
        .await
    }

    /// Puts a snapshot with this key on top of an unpacked layer, which shows the layer's folder.
    /// Without a label that keeps the snapshot, containerd's next garbage collection removes it.
    ///
    /// # Errors
    /// What ctr says, or if its mounts name no folder below.
    pub async fn put_on_top(&self, layer: &str, key: &str) -> anyhow::Result<PathBuf> {
        let prepare = ["snapshots", "prepare", "--target", "/nowhere", key, layer];
        let mounts = self.ctr(&prepare).await?;
        let lower = mounts.split("lowerdir=").nth(1).context(mounts.clone())?;
        let folder = lower.split([':', ',', '\n']).next().unwrap_or_default();
        let folder = Path::new(folder.trim_end());
        Ok(folder.parent().context("no snapshot's folder")?.to_owned())
    }

    /// Brings an OCI archive in.
    ///
    /// # Errors
    /// If it is none.
    pub async fn import(&self, archive: &Path) -> anyhow::Result<()> {
        let path = archive.to_str().context("a path that is no text")?;
        self.ctr(&["images", "import", path]).await.map(drop)
    }

    /// Removes an image by its ID, or by one of its names and with it all others, as `crictl rmi`
    /// and image cleaners do.
    ///
    /// # Errors
    /// What CRI says.
    pub async fn remove_image(&self, image: &str) -> anyhow::Result<()> {
        cri::remove_image(&self.socket, image).await
    }

    /// Removes every image that no container uses and that is not pinned, as `crictl rmi --prune` does, and
    /// the kubelet when the disk is full.
    ///
    /// # Errors
    /// What CRI says.
    pub async fn remove_unpinned_images(&self) -> anyhow::Result<()> {
        cri::remove_unpinned_images(&self.socket).await
    }

    /// Kills containerd, not its containers.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn kill(&self) -> anyhow::Result<()> {
        self.part.kill().await
    }

    /// Starts containerd after [`ContainerdNode::kill`], and waits until it answers.
    ///
    /// # Errors
    /// If it does not.
    pub async fn revive(&self) -> anyhow::Result<()> {
        self.part.start().await?;
        self.ready().await
    }

    /// Ends containerd in order and starts it again. Containers run on.
    ///
    /// # Errors
    /// If it does not answer again.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.part.stop().await?;
        self.revive().await
    }

    /// Its process id, if it runs.
    pub async fn pid(&self) -> Option<u32> {
        self.part.pid().await
    }

    /// The process id of a container's first process.
    ///
    /// # Errors
    /// If there is no such container.
    pub async fn pid_of(&self, container: &str) -> anyhow::Result<u32> {
        let tasks = self.ctr(&["tasks", "list"]).await?;
        let line = tasks.lines().find(|line| line.starts_with(container));
        let pid = line.and_then(|line| line.split_whitespace().nth(1));
        pid.with_context(|| format!("no task of container {container}"))?
            .parse()
            .context("read a pid")
    }

    /// Fails if containerd has ended by itself.
    ///
    /// # Errors
    /// With the last lines of its log.
    pub async fn check(&self) -> anyhow::Result<()> {
        self.part.check().await
    }

    async fn ready(&self) -> anyhow::Result<()> {
        until("containerd answers", READY, || async {
            self.part.check().await?;
            // Its socket is there before its services are.
            Ok(self.ctr(&["version"]).await.is_ok().then_some(()))
        })
        .await
    }
}

fn image_verifiers(folder: &Path) -> PathBuf {
    folder.join("image-verifiers")
}

/// Where containerd finds its shim and runc.
fn search_path(program: &Path) -> anyhow::Result<String> {
    let folder = program.parent().context("a program is in a folder")?;
    Ok(format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        folder.display()
    ))
}

/// Writes the CNI configuration: each pod on a link of its own with this machine, no further.
///
/// The plugin turns on IPv4 forwarding for this machine, as container runtimes do, and nothing
/// turns it off again.
fn network(run: &Run) -> anyhow::Result<PathBuf> {
    let folder = run.sub("cni/net.d")?;
    let leases = run.folder().join("cni/leases");
    let name = run.cgroup().name();
    let list = json!({
        "cniVersion": "1.0.0",
        "name": name,
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": run.slot().pods()}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": leases,
            },
        }],
    });
    fs::write(folder.join("10-e2e.conflist"), list.to_string())?;
    Ok(folder)
}

struct Paths<'a> {
    folder: &'a Path,
    certs: &'a Path,
    networks: &'a Path,
    plugins: &'a Path,
}

impl Paths<'_> {
    fn socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// The configuration file, TOML. Paths are written as JSON strings, which are TOML's too.
    fn config(&self, version: ContainerdVersion) -> String {
        match version {
            ContainerdVersion::V2 => format!("version = 3\n{}{}", self.common(), self.v2()),
            ContainerdVersion::V1_6 => format!("version = 2\n{}{}", self.common(), self.v1_6()),
        }
    }

    fn common(&self) -> String {
        format!(
            r#"root = {root}
state = {state}
[grpc]
  address = {socket}
[debug]
  level = "debug"
[plugins."io.containerd.internal.v1.opt"]
  path = {opt}
"#,
            root = json!(self.folder.join("root")),
            state = json!(self.folder.join("state")),
            socket = json!(self.socket()),
            opt = json!(self.folder.join("opt")),
        )
    }

    fn v2(&self) -> String {
        format!(
            r#"[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = {certs}
[plugins."io.containerd.image-verifier.v1.bindir"]
  bin_dir = {verifiers}
[plugins."io.containerd.cri.v1.runtime"]
{runtime}  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
      Root = {runc}
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{OTHER_RUNTIME}]
    runtime_type = "io.containerd.runc.v2"
    snapshotter = "native"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{OTHER_RUNTIME}.options]
      SystemdCgroup = false
      Root = {runc}
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [{plugins}]
    conf_dir = {networks}
[plugins."io.containerd.grpc.v1.cri"]
{stream}"#,
            pause = testimage::PAUSE,
            certs = json!(self.certs),
            verifiers = json!(image_verifiers(self.folder)),
            runtime = Self::runtime(),
            runc = json!(self.runc()),
            plugins = json!(self.plugins),
            networks = json!(self.networks),
            stream = Self::stream(),
        )
    }

    fn v1_6(&self) -> String {
        format!(
            r#"[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
{stream}{runtime}  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {certs}
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
      Root = {runc}
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {plugins}
    conf_dir = {networks}
"#,
            pause = testimage::PAUSE,
            stream = Self::stream(),
            runtime = Self::runtime(),
            certs = json!(self.certs),
            runc = json!(self.runc()),
            plugins = json!(self.plugins),
            networks = json!(self.networks),
        )
    }

    /// Without the first, nothing starts where lowering the OOM score is not allowed; the second
    /// keeps network namespaces in the run's folder, where the sweep finds them.
    fn runtime() -> &'static str {
        "  restrict_oom_score_adj = true\n  netns_mounts_under_state_dir = true\n"
    }

    fn stream() -> &'static str {
        "  stream_server_address = \"127.0.0.1\"\n  stream_server_port = \"0\"\n"
    }

    /// runc's state, of which a reboot leaves nothing.
    fn runc(&self) -> PathBuf {
        self.folder.join("state/runc")
    }
}
