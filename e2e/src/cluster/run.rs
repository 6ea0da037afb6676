//! One run: its folder, its addresses, its cgroup, and the certain end of all of it.
//!
//! The end is one script, `sweep.sh`. It is started with the run and waits on a pipe: when
//! [`Run::end`] writes a word, or when the pipe closes because this process is dead, it ends what
//! is left and cleans up. A run whose sweep was killed too is swept by the next one that starts.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::cgroup::Cgroup;
use super::slot::Slot;
use crate::machine::cgroup_of;

const SWEEP: &str = include_str!("sweep.sh");

/// How long the end may take: 30 containers on 2 cores take 3 s.
const SWEEP_LIMIT: Duration = Duration::from_secs(60);

/// So many folders of failed or killed runs are kept, the newest.
const KEPT: usize = 10;

/// The longest path of a unix socket that the kernel takes.
const SOCKET_PATH_MAX: usize = 107;

/// The longest path below the folder at which something listens.
const LONGEST_SOCKET: &str = "kubelet/pod-resources/kubelet.sock";

/// A run in progress. Dropping it ends it, without waiting, and keeps its logs.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
    slot: Slot,
    cgroup: Cgroup,
    sweeper: Mutex<Option<Child>>,
    /// Held while the run goes; what is not locked is left over.
    _lock: File,
}

impl Run {
    /// Starts a run with a folder in `target/e2e` below `root`, the repository.
    ///
    /// # Errors
    /// If the folder cannot be made, or its path is too long for sockets.
    pub async fn start(root: &Path) -> anyhow::Result<Self> {
        let runs = root.join("target/e2e");
        fs::create_dir_all(&runs).with_context(|| format!("make {}", runs.display()))?;
        let runs = runs.canonicalize()?;
        check_path(&runs)?;
        sweep_left_over(&runs).await?;
        let (folder, lock) = make_folder(&runs)?;
        let length = folder.join(LONGEST_SOCKET).as_os_str().len();
        if length > SOCKET_PATH_MAX {
            bail!(
                "the path of this repository is {} characters too long for unix sockets in {}",
                length - SOCKET_PATH_MAX,
                folder.display()
            );
        }
        let cgroup = Cgroup::new(&cgroup_of(&folder));
        let sweeper = sweep(&folder, "wait")?.spawn().context("start the sweep")?;
        Ok(Self {
            slot: Slot::claim()?,
            cgroup,
            sweeper: Mutex::new(Some(sweeper)),
            folder,
            _lock: lock,
        })
    }

    /// Everything of this run is below.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A folder of the run, made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn sub(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(folder)
    }

    /// Where every part's output goes.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// The log of one part.
    pub fn log(&self, part: &str) -> PathBuf {
        self.logs().join(format!("{part}.log"))
    }

    /// The run's addresses.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// The cgroup of the run's node.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Does to the node what a power cut does: see `sweep.sh`. The kubelet and containerd must have
    /// been ended by their owners.
    ///
    /// # Errors
    /// If the sweep fails or takes too long.
    pub async fn cut_power(&self) -> anyhow::Result<()> {
        finish(sweep(&self.folder, "reboot")?.spawn()?).await?;
        self.cgroup.make()
    }

    /// Ends what still runs and removes the folder; with `keep_logs` all of it but the logs. The
    /// second call does nothing.
    ///
    /// # Errors
    /// If the sweep fails or takes too long.
    pub async fn end(&self, keep_logs: bool) -> anyhow::Result<()> {
        let Some(mut sweeper) = self.sweeper.lock().await.take() else {
            return Ok(());
        };
        let word: &[u8] = if keep_logs { b"keep\n" } else { b"remove\n" };
        let mut pipe = sweeper.stdin.take().context("the sweep has a pipe")?;
        pipe.write_all(word).await?;
        drop(pipe);
        finish(sweeper).await
    }
}

/// Whoever drops a run without ending it wants to know why.
impl Drop for Run {
    fn drop(&mut self) {
        if self.sweeper.get_mut().is_some() {
            eprintln!("the logs are kept in {}", self.logs().display());
        }
    }
}

/// The kernel escapes some characters where it lists mounts, and a sweep would not find its own.
fn check_path(runs: &Path) -> anyhow::Result<()> {
    let path = runs.to_str().context("a path that is no text")?;
    ensure!(
        !path.contains([' ', '\t', '\n', '\\']),
        "the path of this repository must be without spaces and backslashes: {path}"
    );
    Ok(())
}

/// The sweep of one run. It must survive us: no death signal, no kill on drop, a group of its own.
fn sweep(folder: &Path, mode: &str) -> anyhow::Result<Command> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("logs/sweep.log"))?;
    let mut command = Command::new("sh");
    command
        .args(["-c", SWEEP, "sweep"])
        .arg(folder)
        .args([&cgroup_of(folder), mode])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    Ok(command)
}

async fn finish(mut sweep: Child) -> anyhow::Result<()> {
    match tokio::time::timeout(SWEEP_LIMIT, sweep.wait()).await {
        Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
        Ok(status) => bail!("the sweep ended with {status:?}"),
        Err(_) => bail!("the sweep has not ended within {SWEEP_LIMIT:?}"),
    }
}

fn make_folder(runs: &Path) -> anyhow::Result<(PathBuf, File)> {
    let pid = std::process::id();
    for number in 0.. {
        let folder = runs.join(format!("{pid}-{number}"));
        if fs::create_dir(&folder).is_ok() {
            fs::create_dir(folder.join("logs"))?;
            let lock = File::create(folder.join("lock"))?;
            lock.lock()?;
            return Ok((folder, lock));
        }
    }
    bail!("no folder could be made in {}", runs.display())
}

/// Cleans up after runs that ended without, and forgets the oldest logs.
async fn sweep_left_over(runs: &Path) -> anyhow::Result<()> {
    let mut over = Vec::new();
    for entry in fs::read_dir(runs)? {
        let folder = entry?.path();
        match File::open(folder.join("lock")).map(|lock| lock.try_lock()) {
            Ok(Err(TryLockError::WouldBlock)) => continue,
            // There was an owner, and nobody has cleaned up.
            Ok(_) => finish(sweep(&folder, "keep")?.spawn()?).await?,
            Err(_) => {}
        }
        let time = fs::metadata(&folder).and_then(|meta| meta.modified());
        if let Ok(time) = time {
            over.push((time, folder));
        }
    }
    over.sort_unstable_by(|one, other| other.cmp(one));
    for (_, folder) in over.into_iter().skip(KEPT) {
        // Another run may be removing it too.
        let _ = fs::remove_dir_all(folder);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_the_kernel_would_escape_is_refused() {
        check_path(Path::new("/src/try-latest_1.0/target/e2e")).unwrap();
        for path in ["/my src/e2e", "/tab\t/e2e", "/back\\slash/e2e"] {
            let error = check_path(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains("must be without spaces"), "{error}");
        }
    }
}
