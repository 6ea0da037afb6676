//! Where the programs are.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use crate::debian;

/// Which containerd runs a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ContainerdVersion {
    /// Built from its Go module
    #[default]
    #[value(name = "2.4")]
    V2,
    /// Debian's, 1.6.20
    #[value(name = "1.6")]
    V1_6,
}

/// The programs of which a cluster is made.
#[derive(Clone, Debug)]
pub struct Tools {
    root: PathBuf,
}

impl Tools {
    /// Where the tools of the repository in which this program was built will be, there or not.
    ///
    /// # Errors
    /// If the repository has moved since.
    pub fn here() -> anyhow::Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = package.ancestors().nth(2);
        Self::at(root.context("the package is in the repository")?)
    }

    /// The tools of the repository in which this program was built.
    ///
    /// # Errors
    /// If one is missing; the message says which.
    pub fn locate_here() -> anyhow::Result<Self> {
        let tools = Self::here()?;
        tools.check()?;
        Ok(tools)
    }

    fn at(root: &Path) -> anyhow::Result<Self> {
        let root = root
            .canonicalize()
            .with_context(|| format!("look for the repository at {}", root.display()))?;
        Ok(Self { root })
    }

    /// Why nothing can run on this containerd, if it is not there: not every Debian has 1.6.
    pub fn missing(&self, version: ContainerdVersion) -> Option<String> {
        let program = self.containerd(version);
        let of_another_version =
            version == ContainerdVersion::V1_6 && !debian::has_containerd(self);
        (of_another_version || !program.exists()).then(|| match version {
            ContainerdVersion::V2 => format!("{} is missing", program.display()),
            ContainerdVersion::V1_6 => "this machine has no containerd 1.6".to_owned(),
        })
    }

    /// Every program but containerd 1.6, which not every Debian has.
    fn check(&self) -> anyhow::Result<()> {
        let needed = [
            self.etcd(),
            self.kube_apiserver(),
            self.kube_controller_manager(),
            self.kube_scheduler(),
            self.kubelet(),
            self.kubectl(),
            self.containerd(ContainerdVersion::V2),
            self.ctr(ContainerdVersion::V2),
            self.docker_registry(),
            self.runc(),
            self.cni(),
        ];
        match needed.iter().find(|tool| !tool.exists()) {
            Some(missing) => bail!(
                "{} is missing: get it with `cargo run -p trylatest-bootstrap -- tools`",
                missing.display()
            ),
            None => Ok(()),
        }
    }

    /// The repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where built things are kept.
    pub fn cache(&self) -> PathBuf {
        self.root.join("target/cluster")
    }

    /// The archive of TryLatest's own image for this machine, which may not be built yet.
    pub fn image(&self) -> PathBuf {
        self.root.join("target/image/trylatest.tar")
    }

    pub(crate) fn built(&self, name: &str) -> PathBuf {
        self.cache().join("bin").join(name)
    }

    /// Where a Debian package is unpacked that nobody wants installed.
    pub(crate) fn unpacked(&self, package: &str) -> PathBuf {
        self.cache().join("debian").join(package)
    }

    fn debian(&self, package: &str, path: &str) -> PathBuf {
        let unpacked = self.unpacked(package).join(path);
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

    /// prometheus, which not every machine has.
    pub fn prometheus(&self) -> PathBuf {
        self.debian("prometheus", "usr/bin/prometheus")
    }

    /// promtool, which comes with it.
    pub fn promtool(&self) -> PathBuf {
        self.prometheus().with_file_name("promtool")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_two_folders_up() {
        assert!(Tools::here().unwrap().root().join("Cargo.lock").exists());
    }

    #[test]
    fn an_unpacked_package_goes_before_the_systems() {
        let root = tempfile::tempdir().unwrap();
        let tools = Tools::at(root.path()).unwrap();
        assert_eq!(
            tools.docker_registry(),
            Path::new("/usr/bin/docker-registry")
        );
        let unpacked = tools.unpacked("docker-registry").join("usr/bin");
        std::fs::create_dir_all(&unpacked).unwrap();
        std::fs::write(unpacked.join("docker-registry"), "").unwrap();
        assert_eq!(tools.docker_registry(), unpacked.join("docker-registry"));
    }

    #[test]
    fn what_is_missing_is_named_with_the_remedy() {
        let root = tempfile::tempdir().unwrap();
        let tools = Tools::at(root.path()).unwrap();
        let error = tools.check().unwrap_err().to_string();
        assert!(
            error.contains("target/cluster/bin/etcd is missing"),
            "{error}"
        );
        assert!(error.contains("-- tools"), "{error}");
    }
}
