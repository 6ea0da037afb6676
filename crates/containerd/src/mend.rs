//! Removes from containerd's database what the disk has lost, so that a pull fetches it again.
//!
//! containerd fetches nothing that its database lists. A pull whose image needs such a blob therefore
//! fails for ever, and one whose unpacked layer is gone succeeds but cannot start. This removes only what
//! is known to be damaged: nothing can have used it.

use std::collections::{BTreeMap, BTreeSet};

use containerd_client::services::v1::{CreateRequest, DeleteRequest};
use trylatest_core::image::ImageName;
use trylatest_core::text;

use crate::containerd::Containerd;
use crate::content::{self, NoDocument, read_json};
use crate::disk::{self, OnDisk};
use crate::manifest::{Config, Descriptor, Document, Manifest};
use crate::progress;
use crate::runtime::{Mended, RuntimeError};
use crate::snapshots::{self, Is, Snapshot};

/// Most documents that are checked for one image.
const MAX_DOCUMENTS: usize = 64;

/// See [`crate::ImageRuntime::mend`].
pub(crate) async fn mend(node: &Containerd, image: &ImageName) -> Result<Mended, RuntimeError> {
    // One at a time: an older look must not judge what another try has just fetched again.
    let _alone = node.mending.lock().await;
    node.looks.forget();
    let mut mended = Mended::default();
    let all = Box::pin(remove_damaged(node, image, &mut mended));
    match node.calls.together("removing lost content", all).await {
        // What was removed has to be fetched again, whatever failed after it.
        Err(error) if mended.removed.is_empty() => Err(error),
        Err(error) => {
            tracing::warn!(%image, %error, "the search for lost content has failed half-way");
            Ok(mended)
        }
        Ok(()) => Ok(mended),
    }
}

/// Records in `mended` what it has removed, even if it fails later or is dropped.
async fn remove_damaged(
    node: &Containerd,
    image: &ImageName,
    mended: &mut Mended,
) -> Result<(), RuntimeError> {
    let found = damage(node, image).await?;
    for (digest, lost) in &found.blobs {
        if remove_blob(node, digest, lost).await? {
            mended.removed.push(format!("{} {digest}", lost.what));
        }
    }
    for snapshot in &found.snapshots {
        remove_snapshots(node, snapshot, mended).await?;
    }
    if !mended.removed.is_empty() {
        // containerd would take a file that is left for the fetched one.
        collect_garbage(node).await?;
    }
    Ok(())
}

/// The damaged parts of an image.
#[derive(Debug, Default)]
struct Damage {
    /// By digest.
    blobs: BTreeMap<String, Lost>,
    /// The lowest damaged layer of each chain.
    snapshots: BTreeSet<String>,
}

impl Damage {
    fn add(&mut self, descriptor: &Descriptor, what: &'static str, corrupt: bool) {
        let size = descriptor.size;
        let lost = Lost {
            what,
            size,
            corrupt,
        };
        self.blobs.insert(descriptor.digest.clone(), lost);
    }
}

/// A blob that is damaged.
#[derive(Debug)]
struct Lost {
    what: &'static str,
    /// In bytes.
    size: u64,
    /// It is there, but does not match its digest.
    corrupt: bool,
}

/// Walks what the name points to, and what was recently pulled from its repository: a failed pull has
/// left its manifest there, but no name.
async fn damage(node: &Containerd, image: &ImageName) -> Result<Damage, RuntimeError> {
    let mut damage = Damage::default();
    let target = node.stored(image.as_str()).await?.and_then(|i| i.target);
    let mut queue: Vec<Descriptor> = progress::newest_manifests(node, image)
        .await?
        .into_iter()
        .map(|info| Descriptor::stored(info.digest, info.size))
        .chain(target.map(|target| Descriptor::stored(target.digest, target.size)))
        .collect();
    let (mut seen, mut folders) = (BTreeSet::new(), BTreeSet::new());
    while let Some(next) = queue.pop() {
        if seen.len() >= MAX_DOCUMENTS || !seen.insert(next.digest.clone()) {
            continue;
        }
        if disk::blob(node, &next.digest).await?.is_damaged() {
            damage.add(&next, "manifest", false);
            continue;
        }
        match read_json(&node.calls, &next, "manifest").await {
            Ok(Document::Index(children)) => queue.extend(children),
            Ok(Document::Manifest(manifest)) => {
                look(node, &manifest, &mut folders, &mut damage).await?;
            }
            Err(NoDocument::Corrupt(_)) => damage.add(&next, "manifest", true),
            Err(NoDocument::Unusable(_)) => {}
            Err(NoDocument::Runtime(error)) => return Err(error),
        }
    }
    Ok(damage)
}

/// Looks at one image's parts.
async fn look(
    node: &Containerd,
    manifest: &Manifest,
    folders: &mut BTreeSet<String>,
    damage: &mut Damage,
) -> Result<(), RuntimeError> {
    for layer in &manifest.layers {
        if disk::blob(node, &layer.digest).await?.is_damaged() {
            damage.add(layer, "layer", false);
        }
    }
    let config = &manifest.config;
    if disk::blob(node, &config.digest).await?.is_damaged() {
        damage.add(config, "configuration", false);
        return Ok(());
    }
    let read: Config = match read_json(&node.calls, config, "configuration").await {
        Ok(read) => read,
        Err(NoDocument::Corrupt(_)) => {
            damage.add(config, "configuration", true);
            return Ok(());
        }
        Err(NoDocument::Unusable(_)) => return Ok(()),
        Err(NoDocument::Runtime(error)) => return Err(error),
    };
    // Even if the image is not completely unpacked: its pull would continue from there.
    for snapshot in read.chain_ids() {
        if !disk::is_committed(node, &snapshot).await? {
            break;
        }
        if !folders.contains(&snapshot) && disk::folder(node, &snapshot).await? == OnDisk::Gone {
            damage.snapshots.insert(snapshot);
            break;
        }
        folders.insert(snapshot);
    }
    Ok(())
}

/// Removes a blob from the database, if it is still damaged. True if it was.
async fn remove_blob(node: &Containerd, digest: &str, lost: &Lost) -> Result<bool, RuntimeError> {
    let still = match disk::blob(node, digest).await? {
        OnDisk::Gone | OnDisk::Short => true,
        OnDisk::Whole => lost.corrupt && is_corrupt(node, digest, lost.size).await?,
        OnDisk::Unlisted => false,
    };
    if !still {
        return Ok(false);
    }
    content::remove(&node.calls, "removing lost content", digest).await
}

/// Whether a document does not match its digest.
async fn is_corrupt(node: &Containerd, digest: &str, size: u64) -> Result<bool, RuntimeError> {
    let document = Descriptor {
        digest: digest.to_owned(),
        size,
        media_type: String::new(),
        platform: None,
    };
    let read = read_json::<serde::de::IgnoredAny>(&node.calls, &document, "document").await;
    match read {
        Err(NoDocument::Corrupt(_)) => Ok(true),
        Err(NoDocument::Runtime(error)) => Err(error),
        Ok(_) | Err(NoDocument::Unusable(_)) => Ok(false),
    }
}

/// Removes an unpacked layer whose folder is gone, and everything that was unpacked on top of it: none
/// of that can be mounted. What a container has on top of it stays.
async fn remove_snapshots(
    node: &Containerd,
    lost: &str,
    mended: &mut Mended,
) -> Result<(), RuntimeError> {
    let snapshotter = node.snapshotter.name(&node.calls).await?;
    let Above { order, containers } = above(node, &snapshotter, lost).await?;
    if containers.is_empty() && remove_all(node, &snapshotter, &order).await? {
        mended.removed.push(format!("unpacked layer {lost}"));
    } else {
        mended.kept.push(format!(
            "the folder of unpacked layer {lost} is gone, and containers built on it, perhaps exited \
             ones{}, keep containerd from replacing it: delete their pods",
            some_of(&containers)
        ));
    }
    Ok(())
}

/// Removes these snapshots, the last and topmost first. False if the first could not be removed,
/// because a container is on top of it.
async fn remove_all(
    node: &Containerd,
    snapshotter: &str,
    order: &[String],
) -> Result<bool, RuntimeError> {
    let mut removed = false;
    for key in order.iter().rev() {
        // False because of a container that was created since.
        removed = snapshots::remove(node, snapshotter, key).await?;
    }
    Ok(removed)
}

/// Some of these containers, as crictl shows them.
fn some_of(containers: &[String]) -> String {
    const SOME: usize = 3;
    const SHOWN: usize = 13;
    if containers.is_empty() {
        return String::new();
    }
    let ids = containers.iter().map(|id| id.get(..SHOWN).unwrap_or(id));
    format!(" ({})", text::some_of(ids, SOME))
}

/// What is on top of an unpacked layer.
#[derive(Debug)]
struct Above {
    /// The layer itself, and what was unpacked on top of it, lower ones first.
    order: Vec<String>,
    /// What containers have on top of those, by their IDs.
    containers: Vec<String>,
}

async fn above(node: &Containerd, snapshotter: &str, layer: &str) -> Result<Above, RuntimeError> {
    let mut on = snapshots::list(node, snapshotter).await?;
    let mut above = Above {
        order: vec![layer.to_owned()],
        containers: Vec::new(),
    };
    let mut next = 0;
    while let Some(parent) = above.order.get(next) {
        for Snapshot { key, is } in on.remove(parent).unwrap_or_default() {
            // Two things must not keep what is lost: a look of ours that was cut off, and an unpacking on top of it,
            // whose lease can outlive a power cut by a day.
            let list = match is {
                Is::Layer | Is::Look | Is::Unpacking => &mut above.order,
                Is::Containers => &mut above.containers,
            };
            list.push(key);
        }
        next += 1;
    }
    Ok(above)
}

/// Makes containerd remove what nothing refers to, and waits for it: the end of a lease does that.
pub(crate) async fn collect_garbage(node: &Containerd) -> Result<(), RuntimeError> {
    let operation = "collecting garbage";
    let id = node.looks.key();
    let mut leases = node.calls.leases();
    let create = leases.create(CreateRequest {
        id: id.clone(),
        ..CreateRequest::default()
    });
    node.calls.call(operation, create).await?;
    let end = leases.delete(DeleteRequest { id, sync: true });
    node.calls.find(operation, end).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_named_as_crictl_shows_them_and_not_all_of_many() {
        let named = |count: usize| {
            let ids: Vec<String> = (0..count).map(|n| format!("{n:064}")).collect();
            some_of(&ids)
        };
        assert_eq!(named(0), "");
        assert_eq!(named(1), " (0000000000000)");
        assert_eq!(
            some_of(&["short".to_owned(), "other".to_owned()]),
            " (short, other)"
        );
        assert!(named(5).ends_with(" and 2 more)"), "{}", named(5));
    }
}
