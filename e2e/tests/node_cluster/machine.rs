//! What belongs to a run on this machine: processes, sockets, mounts, cgroups.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::machine::{cgroup_of, processes_of};

use crate::POD_LIMIT;

/// Waits until nothing on this machine belongs to the run in `folder`, its files aside.
pub(crate) async fn wait_until_nothing_is_left(folder: &Path) -> anyhow::Result<()> {
    let mut last = Vec::new();
    let gone = wait::until("nothing is left", POD_LIMIT, || {
        last = left(folder).unwrap_or_else(|error| vec![error.to_string()]);
        std::future::ready(Ok(last.is_empty().then_some(())))
    })
    .await;
    gone.with_context(|| format!("left over: {last:#?}"))
}

/// Everything on this machine that belongs to the run in `folder`.
pub(crate) fn left(folder: &Path) -> anyhow::Result<Vec<String>> {
    let path = folder.to_str().context("a path that is no text")?;
    let cgroup = cgroup_of(folder);
    let mut found: Vec<_> = processes_of(folder)?
        .into_iter()
        .map(|process| format!("process {}: {}", process.pid, process.args))
        .collect();
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(path))
            .map(|line| format!("mount {line}")),
    );
    for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
        let folder = hierarchy?.path().join(&cgroup);
        if folder.exists() {
            found.push(folder.display().to_string());
        }
    }
    for link in fs::read_dir("/var/log/containers").into_iter().flatten() {
        let link = link?.path();
        if fs::read_link(&link).is_ok_and(|target| target.starts_with(folder)) {
            found.push(link.display().to_string());
        }
    }
    // Another run's kubelet may listen there.
    let plugins = "/var/lib/kubelet/device-plugins/kubelet.sock";
    if Path::new(plugins).exists() && !fs::read_to_string("/proc/net/unix")?.contains(plugins) {
        found.push(plugins.to_owned());
    }
    Ok(found)
}
