//! What is really on the disk, where containerd's database says that it is.
//!
//! containerd's Info of a blob and Stat of a snapshot answer from its database alone, and a power cut
//! can take files that the database still lists. So a blob is opened and its last byte read, and a
//! snapshot is asked for mounts on top of it, for which overlayfs has to find its folder
//! (`plugins/snapshots/overlay/overlay.go`, `createSnapshot`). This does not show what is inside that
//! folder.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd_client::services::v1::snapshots::{
    Kind, RemoveSnapshotRequest, StatSnapshotRequest, ViewSnapshotRequest,
};
use containerd_client::services::v1::{InfoRequest, ReadContentRequest};
use tokio::time::Instant;
use tonic::Code;

use crate::containerd::{Containerd, locked};
use crate::runtime::RuntimeError;

/// How long a look at a snapshot counts. A look writes to containerd's database, so the checks before
/// and after an unchanged pull share one.
const LOOK_LASTS: Duration = Duration::from_secs(1);

/// Snapshots that are remembered as seen.
const REMEMBERED: usize = 4096;

/// How often a look is repeated because the garbage collection was faster.
const AGAIN_MAX: usize = 8;

/// What the keys of our looks at snapshots begin with.
const LOOK: &str = "trylatest-look-";

/// Whether a snapshot of this key is only a look. One that was cut off stays until containerd's next
/// garbage collection.
pub(crate) fn is_look(key: &str) -> bool {
    key.starts_with(LOOK)
}

/// The state of a part of an image on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDisk {
    /// It is there.
    Whole,
    /// containerd does not list it.
    Unlisted,
    /// containerd lists it, but its file or folder is gone.
    Gone,
    /// containerd lists it, but its file is shorter than listed.
    Short,
}

impl OnDisk {
    /// Whether containerd thinks that it is present although it is not.
    pub(crate) fn is_damaged(self) -> bool {
        matches!(self, Self::Gone | Self::Short)
    }
}

/// Which snapshots were seen on the disk.
#[derive(Debug)]
pub(crate) struct Looks {
    seen: Mutex<Seen>,
    /// Distinguishes the keys of this process's looks from another agent's.
    salt: u64,
    count: AtomicU64,
}

#[derive(Debug, Default)]
struct Seen {
    /// The snapshots here were seen over this connection, which a power cut ends.
    connection: u64,
    ever: HashSet<String>,
    lately: HashMap<String, Instant>,
}

impl Default for Looks {
    fn default() -> Self {
        Self {
            seen: Mutex::default(),
            salt: RandomState::new().build_hasher().finish(),
            count: AtomicU64::new(0),
        }
    }
}

impl Looks {
    pub(crate) fn key(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        format!("{LOOK}{:016x}-{count}", self.salt)
    }

    /// Whether this snapshot needs no look now. The topmost gets a look each time, those below it one per
    /// connection.
    fn spares(&self, connection: u64, snapshot: &str, is_top: bool) -> bool {
        let mut seen = locked(&self.seen);
        if seen.connection != connection {
            *seen = Seen {
                connection,
                ..Seen::default()
            };
        }
        let lately = seen.lately.get(snapshot);
        lately.is_some_and(|then| then.elapsed() < LOOK_LASTS)
            || !is_top && seen.ever.contains(snapshot)
    }

    fn saw(&self, snapshot: &str) {
        let mut seen = locked(&self.seen);
        if seen.ever.len() >= REMEMBERED {
            seen.ever.clear();
        }
        seen.ever.insert(snapshot.to_owned());
        seen.lately.retain(|_, then| then.elapsed() < LOOK_LASTS);
        seen.lately.insert(snapshot.to_owned(), Instant::now());
    }

    /// Forgets what was seen.
    pub(crate) fn forget(&self) {
        *locked(&self.seen) = Seen::default();
    }
}

/// A blob of the content store.
pub(crate) async fn blob(node: &Containerd, digest: &str) -> Result<OnDisk, RuntimeError> {
    let Some(size) = listed_size(node, digest).await? else {
        return Ok(OnDisk::Unlisted);
    };
    match last_byte(node, digest, size).await? {
        Some(true) => Ok(OnDisk::Whole),
        Some(false) => Ok(OnDisk::Short),
        // It may have been removed in the meantime.
        None if listed_size(node, digest).await?.is_some() => Ok(OnDisk::Gone),
        None => Ok(OnDisk::Unlisted),
    }
}

/// The blob's size in bytes as containerd lists it; none if it does not.
pub(crate) async fn listed_size(
    node: &Containerd,
    digest: &str,
) -> Result<Option<i64>, RuntimeError> {
    let mut content = node.calls.content();
    let request = InfoRequest {
        digest: digest.to_owned(),
    };
    let call = content.info(request);
    let found = node.calls.find("looking up content", call).await?;
    Ok(found
        .and_then(|response| response.info)
        .map(|info| info.size))
}

/// Whether the blob's last byte can be read; none if there is no such file. containerd opens an empty
/// file, and then refuses to read from it.
async fn last_byte(
    node: &Containerd,
    digest: &str,
    size: i64,
) -> Result<Option<bool>, RuntimeError> {
    let mut content = node.calls.content();
    let request = ReadContentRequest {
        digest: digest.to_owned(),
        offset: (size - 1).max(0),
        size: 1,
    };
    let read = async move {
        let outcome = async {
            let mut chunks = content.read(request).await?.into_inner();
            let mut bytes = 0;
            while let Some(chunk) = chunks.message().await? {
                bytes += chunk.data.len();
            }
            Ok::<_, tonic::Status>(bytes)
        };
        match outcome.await {
            Ok(bytes) => Ok(Some(bytes > 0)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) if size == 0 && status.code() == Code::OutOfRange => Ok(Some(true)),
            Err(status) => Err(status),
        }
    };
    node.calls.within("looking at a blob", read).await
}

/// Checks the unpacked layers of this chain, lowest first. Returns the first damaged one, or the state
/// of the topmost.
pub(crate) async fn unpacked<'a>(
    node: &Containerd,
    chain: &'a [String],
) -> Result<(&'a str, OnDisk), RuntimeError> {
    let Some(top) = chain.last() else {
        return Ok(("", OnDisk::Whole));
    };
    if !is_committed(node, top).await? {
        return Ok((top, OnDisk::Unlisted));
    }
    for snapshot in chain {
        let connection = node.calls.connections();
        if node.looks.spares(connection, snapshot, snapshot == top) {
            continue;
        }
        match folder(node, snapshot).await? {
            OnDisk::Whole => node.looks.saw(snapshot),
            other => return Ok((snapshot, other)),
        }
    }
    Ok((top, OnDisk::Whole))
}

/// Whether the database lists the snapshot of an unpacked layer; it then lists those below it, too.
pub(crate) async fn is_committed(node: &Containerd, snapshot: &str) -> Result<bool, RuntimeError> {
    let mut snapshots = node.calls.snapshots();
    let request = StatSnapshotRequest {
        snapshotter: node.snapshotter.name(&node.calls).await?,
        key: snapshot.to_owned(),
    };
    let call = snapshots.stat(request);
    let found = node.calls.find("looking up a snapshot", call).await?;
    let info = found.and_then(|response| response.info);
    Ok(info.is_some_and(|info| info.kind() == Kind::Committed))
}

/// Looks for the folder of an unpacked layer. It counts as gone only if that is certain.
///
/// # Cancel safety
/// A view that stays behind belongs to nobody, and containerd's next garbage collection removes it. The layer below it
/// can then not be removed any more, except by that collection.
pub(crate) async fn folder(node: &Containerd, snapshot: &str) -> Result<OnDisk, RuntimeError> {
    let snapshotter = node.snapshotter.name(&node.calls).await?;
    // Other snapshotters keep no folders, and to make a view of theirs can mean to make a device.
    if !matches!(snapshotter.as_str(), "overlayfs" | "fuse-overlayfs") {
        return Ok(OnDisk::Whole);
    }
    let key = node.looks.key();
    let mut found = look(node, &snapshotter, &key, snapshot).await?;
    // A view that the garbage collection has removed stays in the list of what is on top of the layer
    // (core/metadata/gc.go, `remove`), which could then never be removed: it is put there again.
    for _ in 0..AGAIN_MAX {
        if found != OnDisk::Whole || remove(node, &snapshotter, &key).await? {
            break;
        }
        found = look(node, &snapshotter, &key, snapshot).await?;
    }
    Ok(found)
}

/// Makes a view of an unpacked layer, which needs its folder. If that is not whole, there is no view.
async fn look(
    node: &Containerd,
    snapshotter: &str,
    key: &str,
    snapshot: &str,
) -> Result<OnDisk, RuntimeError> {
    let mut snapshots = node.calls.snapshots();
    let request = ViewSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        parent: snapshot.to_owned(),
        labels: HashMap::new(),
    };
    let call = snapshots.view(request);
    match node.calls.find("looking at a snapshot", call).await {
        Ok(Some(_)) => Ok(OnDisk::Whole),
        Ok(None) => Ok(OnDisk::Unlisted),
        Err(RuntimeError::Answered { message, .. })
            if message.contains("no such file or directory")
                || message.contains("not a directory") =>
        {
            Ok(OnDisk::Gone)
        }
        Err(error @ RuntimeError::Answered { .. }) => {
            tracing::debug!(snapshot, %error, "checking an unpacked layer has failed");
            Ok(OnDisk::Whole)
        }
        Err(error) => Err(error),
    }
}

/// Removes a view. False if it was not there, which [`crate::snapshots::remove`] takes for done.
async fn remove(node: &Containerd, snapshotter: &str, key: &str) -> Result<bool, RuntimeError> {
    let mut snapshots = node.calls.snapshots();
    let request = RemoveSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
    };
    let call = snapshots.remove(request);
    let removed = node.calls.find("removing a snapshot view", call).await;
    removed.map(|was_there| was_there.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_topmost_layer_is_looked_at_again_and_all_after_a_new_connection() {
        let looks = Looks::default();
        assert!(!looks.spares(1, "a", true));
        looks.saw("a");
        assert!(looks.spares(1, "a", true), "seen just now");
        tokio::time::advance(LOOK_LASTS).await;
        assert!(!looks.spares(1, "a", true));
        assert!(looks.spares(1, "a", false), "seen over this connection");
        assert!(!looks.spares(2, "a", false), "containerd was restarted");
        assert_ne!(looks.key(), looks.key());
        assert_ne!(Looks::default().key(), looks.key());
    }
}
