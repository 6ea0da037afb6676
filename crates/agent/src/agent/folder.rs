//! Ends an agent that can never reach containerd again.
//!
//! The agent sees containerd's socket through a mount of its folder. If that folder is removed on the node, the mount
//! goes on showing the removed one, in which no socket can be made any more, whatever takes its place on the node:
//! every gate would wait in vain, for ever. A container that starts gets the folder that is there then. So the agent
//! ends, says why, and the kubelet starts it again.
//!
//! A failing liveness probe would not do: if containerd has lost its containers with the folder, nobody kills this one,
//! and it keeps the port that the next agent waits for. Nor is a containerd that is merely down a reason to end: the
//! agent finds its next socket by itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use trylatest_containerd::{ImageRuntime, RuntimeError};

/// How often to look. There is nothing to wait for once the folder is gone; a gate waits for 20 s.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Runs until `stop`.
///
/// # Errors
/// No containerd answers, and none ever can at this socket.
pub(super) async fn watch<R: ImageRuntime>(
    runtime: Arc<R>,
    socket: PathBuf,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    // Can be dropped at any point: it only looks.
    let lost = stop.run_until_cancelled(until_lost(&*runtime, &socket));
    if lost.await.is_some() {
        bail!(
            "the folder of containerd's socket {} was removed on the node; the agent sees the one that is there now \
             when it starts again",
            socket.display()
        );
    }
    Ok(())
}

async fn until_lost(runtime: &impl ImageRuntime, socket: &Path) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A connection from before outlives the folder.
        if is_in_removed_folder(socket)
            && let Err(RuntimeError::Unreachable { .. }) = runtime.version().await
        {
            return;
        }
    }
}

/// Whether a folder on the way to the socket was removed: nothing links to it any more, and only a mount keeps it. These
/// looks do not block: such folders are in memory, or the kernel has just used them.
fn is_in_removed_folder(socket: &Path) -> bool {
    let is_removed = |folder| rustix::fs::stat(folder).is_ok_and(|stat| stat.st_nlink == 0);
    socket.ancestors().skip(1).any(is_removed)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd as _;

    use tempfile::TempDir;
    use tokio::time::timeout;
    use trylatest_containerd::fake::FakeContainerd;

    use super::*;

    /// A folder that somebody has opened, as a mount does, and the way to a socket in it.
    fn opened() -> (TempDir, File, PathBuf) {
        let dir = TempDir::new().unwrap();
        let handle = File::open(dir.path()).unwrap();
        let folder = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
        (dir, handle, folder.join("containerd.sock"))
    }

    /// Why the agent ends within a minute, if it does.
    async fn ends(node: &FakeContainerd, socket: &Path) -> Option<String> {
        let watch = watch(
            Arc::new(node.clone()),
            socket.to_owned(),
            CancellationToken::new(),
        );
        let ended = timeout(Duration::from_mins(1), watch).await.ok()?;
        Some(ended.unwrap_err().to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_if_nothing_answers_and_the_folder_was_removed() {
        let node = FakeContainerd::new();
        let (dir, _handle, socket) = opened();
        node.set_down(true);
        assert_eq!(ends(&node, &socket).await, None, "containerd is only down");
        dir.close().unwrap();
        let why = ends(&node, &socket).await.unwrap();
        assert!(why.contains("was removed on the node"), "{why}");
        node.set_down(false);
        assert_eq!(ends(&node, &socket).await, None, "it answers all the same");
    }

    #[test]
    fn a_folder_above_counts_and_one_that_is_not_there_does_not() {
        let (dir, _handle, socket) = opened();
        let below = socket.with_file_name("run/containerd.sock");
        assert!(!is_in_removed_folder(&below));
        dir.close().unwrap();
        assert!(is_in_removed_folder(&below));
        assert!(!is_in_removed_folder(Path::new("nowhere/containerd.sock")));
    }
}
