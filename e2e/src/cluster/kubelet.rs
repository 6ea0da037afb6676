//! The kubelet of the one node.
//!
//! The node is called like its address. A kubelet refuses a loopback address as `--node-ip`, but
//! takes the one that is its name; so `kubectl logs` reaches it, pods in the host's network report
//! it as theirs, and nothing needs to listen beyond loopback.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::net::sockopt::socket_peercred;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::containerd::ContainerdNode;
use super::control_plane::ControlPlane;
use super::credentials::CredentialPlugin;
use super::kubeconfig;
use super::part::Part;
use super::run::Run;
use super::wait::until;
use crate::pki::Subject;
use crate::process::Spec;
use trylatest_bootstrap::Tools;

/// How long it may take to serve; half a second is usual.
const SERVES: Duration = Duration::from_secs(60);

/// Where a kubelet waits for device plugins, whatever its folder is.
const DEVICE_PLUGINS: &str = "/var/lib/kubelet/device-plugins/kubelet.sock";

/// So often it is started again, and after this pause.
const STARTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// A running kubelet. Dropping it kills it; its pods end with the run.
#[derive(Debug)]
pub struct Kubelet {
    part: Part,
    serves: SocketAddr,
    config: PathBuf,
    plugin: CredentialPlugin,
}

impl Kubelet {
    /// Starts it, and waits until it serves.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn start(
        tools: &Tools,
        run: &Run,
        control_plane: &ControlPlane,
        containerd: &ContainerdNode,
        registry: &str,
    ) -> anyhow::Result<Self> {
        refuse_beside_another(Path::new(DEVICE_PLUGINS))?;
        let node = run.slot().address().to_string();
        let authority = control_plane.authority();
        let user = format!("system:node:{node}");
        let own = authority.issue(
            "kubelet",
            &Subject {
                name: &user,
                group: Some("system:nodes"),
                serves: &[],
            },
        )?;
        let kubeconfig = kubeconfig::write(
            &run.folder().join("kubelet.kubeconfig"),
            control_plane.server(),
            authority,
            &own,
        )?;
        let [port] = run.slot().free_ports()?;
        let serves = SocketAddr::from((run.slot().address(), port));
        let config = configuration(run, control_plane, containerd, serves)?;
        let plugin = CredentialPlugin::write(&run.sub("credential-plugin")?, registry)?;
        let spec = Spec::new("kubelet", tools.kubelet(), run.log("kubelet"))
            .args([
                format!("--config={}", config.display()),
                format!("--kubeconfig={}", kubeconfig.display()),
                format!("--hostname-override={node}"),
                format!("--root-dir={}", run.folder().join("kubelet").display()),
                format!("--cert-dir={}", run.folder().join("pki/kubelet").display()),
            ])
            .args(plugin.flags())
            .cgroup(run.cgroup().members());
        let kubelet = Self {
            part: Part::start_new(spec).await?,
            serves,
            config,
            plugin,
        };
        kubelet.up().await?;
        Ok(kubelet)
    }

    /// Its credential plugin, for the test registry's repositories that begin with `plugin`.
    pub fn credential_plugin(&self) -> &CredentialPlugin {
        &self.plugin
    }

    /// Changes top-level fields of its configuration, and starts it again. Its containers run on.
    ///
    /// # Errors
    /// If the file cannot be written, or it does not serve with the new configuration.
    pub async fn reconfigure(&self, changes: &Value) -> anyhow::Result<()> {
        let text = fs::read_to_string(&self.config)?;
        let mut config: Value = serde_json::from_str(&text).context("read the configuration")?;
        for (field, value) in changes.as_object().into_iter().flatten() {
            config[field] = value.clone();
        }
        fs::write(&self.config, config.to_string())?;
        self.kill().await?;
        self.revive().await
    }

    /// Kills it. Its containers run on.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn kill(&self) -> anyhow::Result<()> {
        self.part.kill().await
    }

    /// Stops it (SIGSTOP): it keeps its connections and does nothing.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn freeze(&self) -> anyhow::Result<()> {
        self.part.signal(Signal::STOP).await
    }

    /// Undoes [`Kubelet::freeze`].
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn thaw(&self) -> anyhow::Result<()> {
        self.part.signal(Signal::CONT).await
    }

    /// Starts it after [`Kubelet::kill`], and waits until it serves.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn revive(&self) -> anyhow::Result<()> {
        self.part.start().await?;
        self.up().await
    }

    /// A kubelet ends when containerd has not read its own state yet, and whoever runs both starts
    /// it again.
    async fn up(&self) -> anyhow::Result<()> {
        for _ in 0..STARTS {
            let serves = self.serves().await;
            if serves.is_ok() || self.part.check().await.is_ok() {
                return serves;
            }
            self.part.kill().await?;
            tokio::time::sleep(PAUSE).await;
            self.part.start().await?;
        }
        self.serves().await
    }

    async fn serves(&self) -> anyhow::Result<()> {
        until("the kubelet serves", SERVES, || async {
            self.part.check().await?;
            Ok(TcpStream::connect(self.serves).await.ok().map(drop))
        })
        .await
    }

    /// Its process id, if it runs.
    pub async fn pid(&self) -> Option<u32> {
        self.part.pid().await
    }

    /// Fails if it has ended by itself.
    ///
    /// # Errors
    /// With the last lines of its log.
    pub async fn check(&self) -> anyhow::Result<()> {
        self.part.check().await
    }
}

/// A kubelet removes every socket where device plugins meet it, and that place is fixed
/// (`pkg/kubelet/cm/devicemanager`): the machine's own kubelet would lose its plugins. Ours have none.
fn refuse_beside_another(plugins: &Path) -> anyhow::Result<()> {
    let Ok(socket) = UnixStream::connect(plugins) else {
        return Ok(());
    };
    let pid = socket_peercred(&socket)?.pid.as_raw_nonzero();
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    ensure!(
        program
            .to_string_lossy()
            .contains("target/cluster/bin/kubelet"),
        "this machine runs a kubelet of its own ({}, pid {pid}), which a second one would disturb",
        program.display()
    );
    Ok(())
}

fn configuration(
    run: &Run,
    control_plane: &ControlPlane,
    containerd: &ContainerdNode,
    serves: SocketAddr,
) -> anyhow::Result<PathBuf> {
    let address = serves.ip().to_string();
    let authority = control_plane.authority();
    let serving = authority.issue(
        "kubelet-serving",
        &Subject {
            name: "kubelet",
            group: None,
            serves: std::slice::from_ref(&address),
        },
    )?;
    let socket = format!("unix://{}", containerd.socket().display());
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "port": serves.port(),
        "readOnlyPort": 0,
        "healthzPort": 0,
        "tlsCertFile": serving.cert,
        "tlsPrivateKeyFile": serving.key,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": authority.cert()},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": socket,
        "imageServiceEndpoint": socket,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", run.cgroup().name()),
        "enforceNodeAllocatable": ["none"],
        "failCgroupV1": false,
        "failSwapOn": false,
        // Lowering it needs a capability that root in a container or VM may lack.
        "oomScoreAdj": 0,
        "podLogsDir": run.sub("logs/pods")?,
        "volumePluginDir": run.sub("kubelet/volume-plugins")?,
        "makeIPTablesUtilChains": false,
        // Nobody answers there; without an address every pod gets a warning Event.
        "clusterDNS": [run.slot().dns().to_string()],
        "clusterDomain": "cluster.local",
        // The node is a guest here: how full this machine's disk is must not matter.
        "evictionHard": {"nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "logging": {"verbosity": 2},
    });
    let file = run.folder().join("kubelet.yaml");
    fs::write(&file, config.to_string()).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_foreign_kubelet_is_refused_and_what_it_left_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let plugins = folder.path().join("kubelet.sock");
        refuse_beside_another(&plugins).unwrap();
        let listener = UnixListener::bind(&plugins).unwrap();
        let error = refuse_beside_another(&plugins).unwrap_err().to_string();
        let us = format!("pid {}", std::process::id());
        assert!(
            error.contains("a kubelet of its own") && error.contains(&us),
            "{error}"
        );
        drop(listener);
        refuse_beside_another(&plugins).unwrap();
    }
}
