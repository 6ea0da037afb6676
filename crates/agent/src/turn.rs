//! Commands that change names on this node, one at a time: two that do not know of each other would each undo the
//! other's change.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// The lock's name in the agent's state folder. The kernel lets go of it when the command ends, however that is.
const LOCK: &str = "by-hand.lock";

/// How long another command is waited for. A rollback takes a moment, a repair of a large image may take minutes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks at the lock.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// As long as this is there, no other command changes names on this node.
pub(crate) struct Turn {
    _locked: File,
}

/// Waits for this command's turn.
///
/// # Errors
/// Another command is at work for too long, this one is to `stop`, or the folder cannot be written to.
pub(crate) async fn take(state_dir: &Path, stop: &CancellationToken) -> anyhow::Result<Turn> {
    let lock = || locking(state_dir);
    let file = open(state_dir).with_context(lock)?;
    let until = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Turn { _locked: file }),
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                let waited = stop.run_until_cancelled(sleep(LOOK_EVERY)).await;
                waited.context("stopped by a signal; nothing was changed")?;
            }
            Err(TryLockError::WouldBlock) => bail!(
                "another rollback, repair or pull is at work on this node; nothing was changed, repeat this when it has ended"
            ),
            Err(TryLockError::Error(error)) => return Err(error).with_context(lock),
        }
    }
}

/// Takes the turn if no command is at work; none if one is.
///
/// # Errors
/// The folder cannot be written to.
pub(crate) fn take_if_free(state_dir: &Path) -> anyhow::Result<Option<Turn>> {
    let lock = || locking(state_dir);
    let file = open(state_dir).with_context(lock)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Turn { _locked: file })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(lock),
    }
}

fn open(state_dir: &Path) -> io::Result<File> {
    fs::create_dir_all(state_dir)?;
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(state_dir.join(LOCK))
}

fn locking(state_dir: &Path) -> String {
    format!("locking {}", state_dir.join(LOCK).display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_comes_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("new");
        let stop = CancellationToken::new();
        let turn = take(&state_dir, &stop).await.unwrap();
        let error = take(&state_dir, &stop).await.err().unwrap();
        assert!(error.to_string().contains("another rollback"), "{error}");
        stop.cancel();
        let error = take(&state_dir, &stop).await.err().unwrap();
        assert!(error.to_string().contains("stopped"), "{error}");
        drop(turn);
        assert!(take(&state_dir, &stop).await.is_ok());
    }
}
