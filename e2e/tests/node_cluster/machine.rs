//! What belongs to a run on this machine: processes, sockets, mounts, cgroups.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use trylatest_e2e::cluster::wait;

use crate::POD_LIMIT;

/// Looks at the sockets of every process that works for this cluster, us included.
pub(crate) fn check_listeners(folder: &Path) -> anyhow::Result<()> {
    let folder = folder.display().to_string();
    let ours = processes()?
        .into_iter()
        .filter(|process| process.args.contains(&folder));
    let pids: HashSet<u32> = ours
        .map(|process| process.pid)
        .chain([std::process::id()])
        .collect();
    let sockets: HashSet<u64> = pids.iter().flat_map(|pid| sockets_of(*pid)).collect();
    let mut listening = 0;
    for (table, loopback) in [
        ("tcp", is_loopback_v4 as fn(&str) -> bool),
        ("tcp6", is_loopback_v6),
    ] {
        for line in fs::read_to_string(format!("/proc/net/{table}"))?
            .lines()
            .skip(1)
        {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, .., inode] = fields[..10] else {
                bail!("unknown line {line}")
            };
            if state != "0A" || !sockets.contains(&inode.parse()?) {
                continue;
            }
            listening += 1;
            ensure!(
                loopback(local),
                "{table} {local} is no loopback address: {line}"
            );
        }
    }
    // etcd twice, API server, kubelet, containerd's streams, registry and proxy.
    ensure!(
        listening >= 7,
        "only {listening} sockets of {} processes were seen",
        pids.len()
    );
    Ok(())
}

fn is_loopback_v4(local: &str) -> bool {
    // Little-endian: the first byte of the address is the last pair of digits.
    local.get(6..8) == Some("7F")
}

fn is_loopback_v6(local: &str) -> bool {
    local.starts_with("00000000000000000000000001000000")
        || local.starts_with("0000000000000000FFFF0000") && local.get(30..32) == Some("7F")
}

/// A process.
pub(crate) struct Running {
    pub(crate) pid: u32,
    pub(crate) args: String,
}

/// All processes.
pub(crate) fn processes() -> anyhow::Result<Vec<Running>> {
    let entries = fs::read_dir("/proc")?.filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // One that has ended meanwhile has no arguments.
    Ok(pids
        .map(|pid| Running {
            pid,
            args: String::from_utf8_lossy(
                &fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default(),
            )
            .replace('\0', " "),
        })
        .collect())
}

/// The inodes of a process's sockets.
fn sockets_of(pid: u32) -> Vec<u64> {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets
        .filter_map(|target| {
            target
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?
                .parse()
                .ok()
        })
        .collect()
}

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
    let run = folder
        .file_name()
        .and_then(|name| name.to_str())
        .context("a run has a name")?;
    let cgroup = format!("trylatest-{run}");
    let mut found = Vec::new();
    for process in processes()? {
        let groups =
            fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
        if process.args.contains(path) || groups.contains(&cgroup) {
            found.push(format!("process {}: {}", process.pid, process.args));
        }
    }
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
    Ok(found)
}
