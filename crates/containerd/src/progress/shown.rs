//! One look at all that containerd downloads and unpacks, for every pull that runs.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::snapshots::ListSnapshotsRequest;
use containerd_client::services::v1::{Info, ListContentRequest, ListStatusesRequest};
use tokio::time::Instant;
use tonic::Status;

use crate::containerd::Containerd;
use crate::runtime::RuntimeError;

/// How many downloads containerd serves at once: `max_concurrent_downloads`. Since 2.3 it counts per
/// node, before per image. On a node that allows more, some downloads look queued that are not.
const SERVED_AT_ONCE: usize = 3;

/// A download that moved within this time is being served. A slow one moves rarely, in steps of 1 MiB.
const SERVED_FOR: Duration = Duration::from_secs(5);

/// One look at everything that containerd does.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) at: Instant,
    /// What stands for the state of the images' file system, if it has changed since the look before.
    pub(super) written: Option<u64>,
    /// The same, whether or not it has changed.
    state: Option<u64>,
    /// Running downloads, by digest.
    pub(super) downloads: HashMap<String, Download>,
    /// Every image manifest.
    pub(super) manifests: Vec<Info>,
    /// Keys of the snapshots that layers are being unpacked into.
    pub(super) unpacking: Vec<String>,
}

/// A running download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Download {
    pub(super) bytes: u64,
    /// Of a manifest or an index of manifests.
    is_manifest: bool,
    /// When it was last seen to move, or first seen.
    moved_at: Instant,
    /// Whether it was ever seen to move.
    moves: bool,
}

impl Download {
    /// Compares with the same download at an earlier look, to see whether it has moved.
    fn after(self, earlier: Option<&Self>) -> Self {
        match earlier {
            Some(earlier) if earlier.bytes == self.bytes => Self {
                moved_at: earlier.moved_at,
                moves: earlier.moves,
                ..self
            },
            Some(_) => Self {
                moves: true,
                ..self
            },
            None => self,
        }
    }
}

impl Shown {
    /// Takes a look; the look before shows what has moved since.
    pub(super) async fn look(
        node: &Containerd,
        now: Instant,
        state: Option<u64>,
        last: Option<&Self>,
    ) -> Result<Self, RuntimeError> {
        let before = last.and_then(|last| last.state);
        let (downloads, manifests, unpacking) =
            futures::try_join!(downloads(node, now), manifests(node), unpacking(node))?;
        // An older look may contain a left-over download that another pull continues.
        let last = last.filter(|last| now < last.at + SERVED_FOR);
        let after = |(digest, download): (String, Download)| {
            let earlier = last.and_then(|last| last.downloads.get(&digest));
            let download = download.after(earlier);
            (digest, download)
        };
        Ok(Self {
            at: now,
            written: state.filter(|_| state != before),
            state,
            downloads: downloads.into_iter().map(after).collect(),
            manifests,
            unpacking,
        })
    }

    /// Whether a pull may be waiting for a place among containerd's downloads. `mine` are its manifest's blobs, or
    /// none until the manifest has arrived: until then, any manifest that waits may be its own.
    ///
    /// containerd opens a download before it asks for a place, so one that has not moved yet may be waiting,
    /// and one that has moved is not.
    pub(super) fn place(&self, mine: Option<&[&str]>) -> Place {
        let is_mine = |digest: &str, download: &Download| match mine {
            Some(mine) => mine.contains(&digest),
            None => download.is_manifest,
        };
        let (own, others): (Vec<_>, Vec<_>) = self
            .downloads
            .iter()
            .partition(|(digest, download)| is_mine(digest, download));
        let waits = own.iter().any(|(_, download)| !download.moves);
        let is_served = mine.is_some() && own.iter().any(|(_, download)| download.moves);
        if !waits || is_served || others.len() < SERVED_AT_ONCE {
            return Place::Served;
        }
        let served = others
            .iter()
            .filter(|(_, download)| download.moves && download.moved_at + SERVED_FOR > self.at);
        if served.count() >= SERVED_AT_ONCE {
            Place::Queued
        } else {
            Place::Behind
        }
    }
}

/// A pull's place among containerd's downloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It has one, or does not need one.
    Served,
    /// It may wait for one: all are taken by downloads that move.
    Queued,
    /// It may wait for one: all may be taken, and not all that take them move.
    Behind,
}

/// Running downloads, by digest.
async fn downloads(
    node: &Containerd,
    now: Instant,
) -> Result<HashMap<String, Download>, RuntimeError> {
    let mut content = node.calls.content();
    let request = ListStatusesRequest::default();
    let call = content.list_statuses(request);
    let listed = node.calls.call("listing downloads", call).await?;
    let ingests = listed.statuses.into_iter().filter_map(|status| {
        // `layer-sha256:…`, or `layer-NAME@sha256:…` where the manifest gives the layer a name.
        let reference = &status.r#ref;
        let digest = reference
            .rfind("sha256:")
            .or_else(|| reference.rfind("sha512:"))?;
        let download = Download {
            bytes: u64::try_from(status.offset).unwrap_or(0),
            is_manifest: reference.starts_with("manifest-") || reference.starts_with("index-"),
            moved_at: now,
            moves: false,
        };
        Some((reference[digest..].to_owned(), download))
    });
    Ok(ingests.collect())
}

/// Every manifest that containerd holds. A manifest, unlike an index or a layer, refers to a
/// configuration.
pub(super) async fn manifests(node: &Containerd) -> Result<Vec<Info>, RuntimeError> {
    let mut content = node.calls.content();
    let request = ListContentRequest {
        filters: vec!["labels.\"containerd.io/gc.ref.content.config\"".to_owned()],
    };
    node.calls
        .within("listing manifests", async move {
            let mut infos = Vec::new();
            let mut chunks = content.list(request).await?.into_inner();
            while let Some(chunk) = chunks.message().await? {
                infos.extend(chunk.info);
            }
            Ok::<_, Status>(infos)
        })
        .await
}

/// Whether a snapshot of this key is one that a layer is being unpacked into
/// (`pkg/rootfs/apply.go`, `core/unpack/unpacker.go`).
pub(crate) fn is_unpacking(key: &str) -> bool {
    key.starts_with("extract-")
}

/// The keys of the snapshots that layers are being unpacked into.
async fn unpacking(node: &Containerd) -> Result<Vec<String>, RuntimeError> {
    let mut snapshots = node.calls.snapshots();
    let request = ListSnapshotsRequest {
        snapshotter: node.snapshotter.name(&node.calls).await?,
        filters: vec!["kind==active".to_owned()],
    };
    node.calls
        .within("listing snapshots", async {
            let mut keys = Vec::new();
            let mut chunks = snapshots.list(request).await?.into_inner();
            while let Some(chunk) = chunks.message().await? {
                let names = chunk.info.into_iter().map(|info| info.name);
                keys.extend(names.filter(|name| is_unpacking(name)));
            }
            Ok::<_, Status>(keys)
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many downloads of others that move, one of the pull's own, and what it is of.
    fn shown(others: usize, own: Option<bool>, is_manifest: bool) -> Shown {
        let at = Instant::now();
        let download = |moves, is_manifest| Download {
            bytes: 0,
            is_manifest,
            moved_at: at,
            moves,
        };
        let others = (0..others).map(|n| (format!("sha256:{n}"), download(true, false)));
        let own = own.map(|moves| ("sha256:own".to_owned(), download(moves, is_manifest)));
        Shown {
            at,
            written: None,
            state: None,
            downloads: others.chain(own).collect(),
            manifests: Vec::new(),
            unpacking: Vec::new(),
        }
    }

    #[test]
    fn only_what_has_not_moved_behind_a_full_house_waits_in_the_queue() {
        let mine: Option<&[&str]> = Some(&["sha256:own"]);
        for (shown, mine, expected) in [
            (shown(3, Some(false), false), mine, Place::Queued),
            (shown(2, Some(false), false), mine, Place::Served),
            (shown(3, Some(true), false), mine, Place::Served),
            (shown(3, None, false), mine, Place::Served),
            // The manifest has not arrived, or was never requested.
            (shown(3, Some(false), true), None, Place::Queued),
            (shown(2, Some(false), true), None, Place::Served),
            (shown(3, None, false), None, Place::Served),
        ] {
            assert_eq!(shown.place(mine), expected, "{shown:?} {mine:?}");
        }
        let mut slow = shown(3, Some(false), false);
        slow.at += SERVED_FOR;
        assert_eq!(slow.place(mine), Place::Behind, "nobody moves any more");
    }

    #[test]
    fn a_download_moves_when_its_bytes_change() {
        let at = Instant::now();
        let seen = |bytes, after| Download {
            bytes,
            is_manifest: false,
            moved_at: at + Duration::from_secs(after),
            moves: false,
        };
        let first = seen(7, 0).after(None);
        let same = seen(7, 1).after(Some(&first));
        assert_eq!((same.moves, same.moved_at), (false, at));
        let more = seen(8, 2).after(Some(&same));
        assert_eq!(
            (more.moves, more.moved_at),
            (true, at + Duration::from_secs(2))
        );
        let stuck = seen(8, 9).after(Some(&more));
        assert_eq!((stuck.moves, stuck.moved_at), (true, more.moved_at));
    }
}
