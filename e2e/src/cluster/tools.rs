//! Where the programs are.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Which containerd runs a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContainerdVersion {
    /// 2.4, built from its Go module.
    #[default]
    V2,
    /// Debian's 1.6.20.
    V1_6,
}

/// The programs of which a cluster is made.
#[derive(Clone, Debug)]
pub struct Tools {
    root: PathBuf,
}

impl Tools {
    /// The tools of the repository in which this program was built.
    ///
    /// # Errors
    /// If one is missing; the message says which.
    pub fn locate_here() -> anyhow::Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self::locate(
            package
                .parent()
                .context("the package is in the repository")?,
        )
    }

    /// The tools of the repository at `root`.
    ///
    /// # Errors
    /// If one is missing; the message says which.
    pub fn locate(root: &Path) -> anyhow::Result<Self> {
        let tools = Self {
            root: root.canonicalize()?,
        };
        for tool in [
            tools.etcd(),
            tools.kube_apiserver(),
            tools.kubelet(),
            tools.containerd(ContainerdVersion::V2),
        ] {
            if !tool.exists() {
                bail!(
                    "{} is missing: `cargo run -p trylatest-bootstrap -- tools` builds it",
                    tool.display()
                );
            }
        }
        Ok(tools)
    }

    /// The repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where built things are kept.
    pub fn cache(&self) -> PathBuf {
        self.root.join("target/cluster")
    }

    /// The archive of TryLatest's own image, which may not be built yet.
    pub fn image(&self) -> PathBuf {
        self.root.join("target/image/trylatest.tar")
    }

    fn built(&self, name: &str) -> PathBuf {
        self.cache().join("bin").join(name)
    }

    fn debian(&self, package: &str, path: &str) -> PathBuf {
        let unpacked = self.cache().join("debian").join(package).join(path);
        if unpacked.exists() {
            unpacked
        } else {
            Path::new("/").join(path)
        }
    }

    /// etcd.
    pub fn etcd(&self) -> PathBuf {
        self.built("etcd")
    }

    /// kube-apiserver.
    pub fn kube_apiserver(&self) -> PathBuf {
        self.built("kube-apiserver")
    }

    /// kube-controller-manager.
    pub fn kube_controller_manager(&self) -> PathBuf {
        self.built("kube-controller-manager")
    }

    /// kube-scheduler.
    pub fn kube_scheduler(&self) -> PathBuf {
        self.built("kube-scheduler")
    }

    /// kubelet.
    pub fn kubelet(&self) -> PathBuf {
        self.built("kubelet")
    }

    /// kubectl.
    pub fn kubectl(&self) -> PathBuf {
        self.built("kubectl")
    }

    /// containerd; its shim is beside it.
    pub fn containerd(&self, version: ContainerdVersion) -> PathBuf {
        match version {
            ContainerdVersion::V2 => self.built("containerd"),
            ContainerdVersion::V1_6 => self.debian("containerd", "usr/bin/containerd"),
        }
    }

    /// The ctr that belongs to a containerd.
    pub fn ctr(&self, version: ContainerdVersion) -> PathBuf {
        self.containerd(version).with_file_name("ctr")
    }

    /// docker-registry.
    pub fn docker_registry(&self) -> PathBuf {
        self.debian("docker-registry", "usr/bin/docker-registry")
    }

    /// runc.
    pub fn runc(&self) -> PathBuf {
        PathBuf::from("/usr/sbin/runc")
    }

    /// The folder of the CNI plugins.
    pub fn cni(&self) -> PathBuf {
        PathBuf::from("/usr/lib/cni")
    }
}
