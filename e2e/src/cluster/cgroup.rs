//! The cgroup that holds a node: the kubelet, containerd, its shims, and every pod.
//!
//! One per run, so that kubelets side by side do not take each other's pods for orphans, and so
//! that everything that belongs to a node can be found and ended.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup of one name in every hierarchy. [`super::run::Run`]'s sweep removes it.
#[derive(Debug, Clone)]
pub struct Cgroup {
    name: String,
}

impl Cgroup {
    /// Names the cgroup without making it.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
        }
    }

    /// Its name, without slashes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes it, and in it the part for the processes of the node itself.
    ///
    /// # Errors
    /// If the kernel refuses, e.g. without root or in a container with a read-only hierarchy.
    pub fn make(&self) -> anyhow::Result<()> {
        let root = Path::new(ROOT);
        if is_unified(root) {
            // Whether a controller can be passed on depends on the machine; the kubelet says which
            // it misses.
            let _ = pass_on_controllers(root);
            make(&root.join(&self.name))?;
            let _ = pass_on_controllers(&root.join(&self.name));
        } else {
            for hierarchy in hierarchies(root)? {
                make(&hierarchy.join(&self.name))?;
            }
        }
        make(&self.members())
    }

    /// The folder that a process of the node joins.
    pub fn members(&self) -> PathBuf {
        let root = Path::new(ROOT);
        let hierarchy = if is_unified(root) {
            root.to_owned()
        } else {
            // One is enough to find them by. This one needs nothing to be set up first.
            root.join("pids")
        };
        hierarchy.join(&self.name).join("node")
    }
}

/// Whether the machine has cgroup v2 alone.
fn is_unified(root: &Path) -> bool {
    root.join("cgroup.controllers").exists()
}

/// The mounted hierarchies of cgroup v1, and the v2 one beside them if there is one.
fn hierarchies(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(root).with_context(|| format!("list {}", root.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // Links are second names (cpu for cpu,cpuacct).
        if !path.is_symlink() && path.join("cgroup.procs").exists() {
            found.push(path);
        }
    }
    Ok(found)
}

fn make(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make the cgroup {}", folder.display()))
}

fn pass_on_controllers(folder: &Path) -> anyhow::Result<()> {
    let controllers = fs::read_to_string(folder.join("cgroup.controllers"))?;
    for controller in controllers.split_whitespace() {
        let _ = fs::write(
            folder.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
    Ok(())
}
