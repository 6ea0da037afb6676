//! Proves that a container could start from the copy of an image on this node.
//!
//! A name in CRI's list proves little: CRI answers from memory, and content or snapshots may have
//! been removed behind its back. So the way that a container's start takes is walked: name → index →
//! manifest → configuration → unpacked layers, or the layers to unpack. Nothing is cached: every
//! document is read and verified each time, which takes a few milliseconds.

use containerd_client::services::v1::InfoRequest;
use containerd_client::services::v1::snapshots::{Kind, StatSnapshotRequest};
use futures::future::try_join_all;
use trylatest_core::image::ImageName;

use crate::containerd::Containerd;
use crate::content::{NoDocument, read_json};
use crate::manifest::{Config, Descriptor, Document, Manifest};
use crate::runtime::{Local, LocalImage, RuntimeError};

/// An index may name other indexes; containerd's own images nest once at most.
const MAX_INDEX_DEPTH: u8 = 3;

/// Manifests that are looked at for one image. Real indexes hold a dozen for this platform's
/// family at most.
const MAX_MANIFESTS: usize = 32;

/// See [`crate::ImageRuntime::local`].
pub(crate) async fn local(node: &Containerd, image: &ImageName) -> Result<Local, RuntimeError> {
    let full = image.as_str();
    let short = short_name(full);
    let (in_cri, in_cri_short, stored) = futures::try_join!(
        node.in_cri(full),
        async {
            match short {
                Some(short) => node.in_cri(short).await,
                None => Ok(None),
            }
        },
        node.stored(full),
    )?;
    let Some(known) = in_cri else {
        return Ok(Local::Absent);
    };
    if short.is_some() && in_cri_short.map(|other| other.id).as_ref() != Some(&known.id) {
        return Ok(unusable("CRI does not know it under the name in the pod"));
    }
    let Some(target) = stored.and_then(|image| image.target) else {
        return Ok(unusable("CRI knows the name, containerd's store does not"));
    };
    let root = Descriptor {
        digest: target.digest.clone(),
        size: u64::try_from(target.size).unwrap_or(0),
        platform: None,
    };
    match startable(node, root, &known.id).await {
        Ok(()) => Ok(Local::Usable(LocalImage {
            image: image.clone(),
            digest: target.digest,
            size_bytes: known.size,
        })),
        Err(NoDocument::Unusable(why)) => Ok(Local::Unusable { why }),
        Err(NoDocument::Runtime(error)) => Err(error),
    }
}

fn unusable(why: &str) -> Local {
    Local::Unusable {
        why: why.to_owned(),
    }
}

/// The name as people write it, for images of Docker's registry; none where it is the same.
fn short_name(full: &str) -> Option<&str> {
    let path = full.strip_prefix("docker.io/")?;
    Some(path.strip_prefix("library/").unwrap_or(path))
}

/// Walks from the image's target to what a container starts from.
async fn startable(node: &Containerd, root: Descriptor, image_id: &str) -> Result<(), NoDocument> {
    let manifest = manifest_of(node, root, image_id).await?;
    let config: Config = read_json(&node.calls, &manifest.config, "configuration").await?;
    if !node.platform.runs(&config.platform) {
        return Err(NoDocument::Unusable(format!(
            "it is for {}, this node is {}",
            config.platform, node.platform
        )));
    }
    let chain = config.chain_ids();
    if chain.len() != manifest.layers.len() {
        return Err(NoDocument::Unusable(
            "its configuration and manifest name different numbers of layers".to_owned(),
        ));
    }
    let Some(top) = chain.last() else {
        return Ok(());
    };
    if unpacked(node, top).await? {
        return Ok(());
    }
    for (layer, present) in manifest.layers.iter().zip(present(node, &manifest).await?) {
        if !present {
            return Err(NoDocument::Unusable(format!(
                "it is not unpacked and its layer {} is missing or incomplete",
                layer.digest
            )));
        }
    }
    Ok(())
}

/// The manifest that CRI chose for this node: the one whose configuration is the image's ID.
async fn manifest_of(
    node: &Containerd,
    root: Descriptor,
    image_id: &str,
) -> Result<Manifest, NoDocument> {
    let mut missing = None;
    let mut seen = 0;
    let mut queue = vec![(0, root)];
    while let Some((depth, descriptor)) = queue.pop() {
        seen += 1;
        if seen > MAX_MANIFESTS {
            break;
        }
        match read_json(&node.calls, &descriptor, "manifest").await {
            Ok(Document::Manifest(manifest)) if manifest.config.digest == image_id => {
                return Ok(manifest);
            }
            Ok(Document::Index(children)) if depth < MAX_INDEX_DEPTH => {
                let mine = children.into_iter().rev().filter(|child| {
                    let platform = child.platform.as_ref();
                    platform.is_none_or(|platform| node.platform.runs(platform))
                });
                queue.extend(mine.map(|child| (depth + 1, child)));
            }
            Ok(_) => {}
            // Manifests of other platforms are never downloaded; ours may be among the rest.
            Err(NoDocument::Unusable(why)) => {
                missing.get_or_insert(why);
            }
            Err(error @ NoDocument::Runtime(_)) => return Err(error),
        }
    }
    Err(NoDocument::Unusable(missing.unwrap_or_else(|| {
        format!("it has no manifest for {}", node.platform)
    })))
}

/// Whether the snapshot of the image's topmost layer is there; those below it then are, too.
async fn unpacked(node: &Containerd, chain_id: &str) -> Result<bool, RuntimeError> {
    let mut snapshots = node.calls.snapshots();
    let request = StatSnapshotRequest {
        snapshotter: node.snapshotter.name(&node.calls).await?,
        key: chain_id.to_owned(),
    };
    let call = snapshots.stat(request);
    let found = node.calls.find("looking a snapshot up", call).await?;
    let info = found.and_then(|response| response.info);
    Ok(info.is_some_and(|info| info.kind() == Kind::Committed))
}

/// For each layer, whether all of it is in the content store.
pub(crate) async fn present(
    node: &Containerd,
    manifest: &Manifest,
) -> Result<Vec<bool>, RuntimeError> {
    try_join_all(manifest.layers.iter().map(async |layer| {
        let mut content = node.calls.content();
        let request = InfoRequest {
            digest: layer.digest.clone(),
        };
        let call = content.info(request);
        let found = node.calls.find("looking a layer up", call).await?;
        let size = found
            .and_then(|response| response.info)
            .map(|info| info.size);
        Ok(size.and_then(|size| u64::try_from(size).ok()) == Some(layer.size))
    }))
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_of_the_default_registry_have_a_short_name() {
        assert_eq!(short_name("docker.io/library/nginx:1"), Some("nginx:1"));
        assert_eq!(short_name("docker.io/my/app:1"), Some("my/app:1"));
        assert_eq!(short_name("ghcr.io/my/app:1"), None);
    }
}
