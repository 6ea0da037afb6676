//! The unpacked layers of a snapshotter, and what is on top of them.

use std::collections::BTreeMap;

use containerd_client::services::v1::snapshots::{
    Kind, ListSnapshotsRequest, RemoveSnapshotRequest,
};
use tonic::Code;

use crate::containerd::Containerd;
use crate::runtime::RuntimeError;
use crate::{disk, progress};

/// A snapshot, by its key.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) key: String,
    pub(crate) is: Is,
}

/// What a snapshot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Is {
    /// An unpacked layer.
    Layer,
    /// A layer that is being unpacked, or was when that was cut off.
    Unpacking,
    /// A look of ours, perhaps one that was cut off.
    Look,
    /// What a container has on top of its image.
    Containers,
}

/// All snapshots of the snapshotter, by what they are on top of; the lowest are on top of "".
pub(crate) async fn list(
    node: &Containerd,
    snapshotter: &str,
) -> Result<BTreeMap<String, Vec<Snapshot>>, RuntimeError> {
    let mut snapshots = node.calls.snapshots();
    let request = ListSnapshotsRequest {
        snapshotter: snapshotter.to_owned(),
        filters: Vec::new(),
    };
    let list = async {
        let mut on: BTreeMap<String, Vec<Snapshot>> = BTreeMap::new();
        let mut chunks = snapshots.list(request).await?.into_inner();
        while let Some(chunk) = chunks.message().await? {
            for info in chunk.info {
                let is = match info.kind() {
                    Kind::Committed => Is::Layer,
                    _ if disk::is_look(&info.name) => Is::Look,
                    _ if progress::is_unpacking(&info.name) => Is::Unpacking,
                    _ => Is::Containers,
                };
                let snapshot = Snapshot { key: info.name, is };
                on.entry(info.parent).or_default().push(snapshot);
            }
        }
        Ok(on)
    };
    node.calls.within("listing snapshots", list).await
}

/// Removes a snapshot, if it is there. False if something is on top of it.
pub(crate) async fn remove(
    node: &Containerd,
    snapshotter: &str,
    key: &str,
) -> Result<bool, RuntimeError> {
    let mut snapshots = node.calls.snapshots();
    let request = RemoveSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
    };
    let remove = async {
        match snapshots.remove(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(true),
            Err(status) if status.code() == Code::FailedPrecondition => Ok(false),
            Err(status) => Err(status),
        }
    };
    node.calls
        .within("removing an unpacked layer", remove)
        .await
}
