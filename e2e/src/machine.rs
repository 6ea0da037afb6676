//! What runs and listens on this machine for a run.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};

/// Fails if a process that works for the run in `folder`, its containers and ourselves included,
/// listens beyond loopback, or if fewer than `least` sockets are found that are not our own.
///
/// # Errors
/// It does; or `/proc` cannot be read.
pub fn check_listeners(folder: &Path, least: usize) -> anyhow::Result<()> {
    let processes = processes_of(folder)?;
    let pids = processes.iter().map(|process| process.pid);
    let theirs: HashSet<u64> = pids.flat_map(sockets_of).collect();
    let ours = sockets_of(std::process::id());
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
            let inode = inode.parse()?;
            let is_theirs = theirs.contains(&inode);
            if state != "0A" || !(is_theirs || ours.contains(&inode)) {
                continue;
            }
            listening += usize::from(is_theirs);
            ensure!(
                loopback(local),
                "{table} {local} is no loopback address: {line}"
            );
        }
    }
    ensure!(
        listening >= least,
        "only {listening} sockets of {} processes were seen",
        processes.len()
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
pub struct Running {
    /// Its id.
    pub pid: u32,
    /// Its arguments, with spaces in between.
    pub args: String,
}

/// The processes that belong to the run in `folder`: by their arguments, or by their cgroup, in which
/// its containers are too.
///
/// # Errors
/// `/proc` cannot be read.
pub fn processes_of(folder: &Path) -> anyhow::Result<Vec<Running>> {
    let path = folder.to_str().context("a path that is no text")?;
    let cgroup = cgroup_of(folder);
    let mut ours = processes()?;
    ours.retain(|process| {
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", process.pid));
        process.args.contains(path) || groups.is_ok_and(|groups| groups.contains(&cgroup))
    });
    Ok(ours)
}

/// The name of a run's cgroup, which is the run's alone.
pub fn cgroup_of(folder: &Path) -> String {
    let id = folder.file_name().unwrap_or_default().to_string_lossy();
    format!("trylatest-{id}")
}

/// All processes.
///
/// # Errors
/// `/proc` cannot be read.
pub fn processes() -> anyhow::Result<Vec<Running>> {
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
