//! Proves that a container could start from the copy of an image on this node.
//!
//! A name in CRI's list proves little: CRI answers from memory, and content or snapshots may have
//! been removed behind its back. So this goes the way that a container's start takes: name → index →
//! manifest → configuration → unpacked layers, or the layers to unpack. It reads and verifies every
//! document each time, which takes a few milliseconds, and looks for everything else on the disk
//! (`disk`).

use futures::future::try_join_all;
use trylatest_core::image::ImageName;
use trylatest_core::version::Version;

use crate::containerd::Containerd;
use crate::content::{NoDocument, read_json};
use crate::disk::{self, OnDisk};
use crate::manifest::{Config, Descriptor, Document, Manifest};
use crate::runtime::{ImageRuntime, Local, LocalImage, RuntimeError, RuntimeVersion};

/// An index may name other indexes; containerd's own images nest once at most.
const MAX_INDEX_DEPTH: u8 = 3;

/// Most manifests that are checked for one image. Real indexes contain at most a dozen for this
/// platform's family.
const MAX_MANIFESTS: usize = 32;

/// From this release on, containerd unpacks no image for a container if the image's configuration names
/// another platform (`internal/cri/opts/container.go`, `unpackImage`). Earlier ones go by the index
/// alone.
///
/// All of them start what a pull has unpacked. What a pull unpacks depends on how they pull: through
/// the client (1.6 to 2.0, and where it is configured so) anything; through the transfer service, 2.1
/// and 2.2 what is for this platform, 2.3 and later what is for this operating system
/// (`plugins/transfer/plugin.go`).
const CHECKS_CONFIGURATION: Version = Version(2, 2, 2);

/// What a proof relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// What the database lists.
    Database,
    /// What is on the disk.
    Disk,
}

/// See [`ImageRuntime::local`] and [`ImageRuntime::listed`].
pub(crate) async fn local(
    node: &Containerd,
    image: &ImageName,
    depth: Depth,
) -> Result<Local, RuntimeError> {
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
    let root = Descriptor::stored(target.digest.clone(), target.size);
    match startable(node, root, &known.id, depth).await {
        Ok(()) => Ok(Local::Usable(LocalImage {
            image: image.clone(),
            digest: target.digest,
            size_bytes: known.size,
        })),
        Err(NoDocument::Unusable(why) | NoDocument::Corrupt(why)) => Ok(Local::Unusable { why }),
        Err(NoDocument::Runtime(error)) => Err(error),
    }
}

fn unusable(why: &str) -> Local {
    Local::Unusable {
        why: why.to_owned(),
    }
}

/// The name as people write it, for images of Docker's registry; none if it is the same.
fn short_name(full: &str) -> Option<&str> {
    let path = full.strip_prefix("docker.io/")?;
    Some(path.strip_prefix("library/").unwrap_or(path))
}

/// Goes from the image's target to what a container starts from.
async fn startable(
    node: &Containerd,
    root: Descriptor,
    image_id: &str,
    depth: Depth,
) -> Result<(), NoDocument> {
    let (manifest, config) = chosen(node, root, image_id).await?;
    let chain = config.chain_ids();
    // Nothing is unpacked for an empty root file system, as images of WebAssembly have one.
    let Some(top) = chain.last() else {
        return Ok(());
    };
    let (lost, unpacked) = match depth {
        Depth::Disk => disk::unpacked(node, &chain).await?,
        Depth::Database if disk::is_committed(node, top).await? => (top.as_str(), OnDisk::Whole),
        Depth::Database => (top.as_str(), OnDisk::Unlisted),
    };
    match unpacked {
        OnDisk::Whole => return Ok(()),
        OnDisk::Unlisted => {}
        OnDisk::Gone | OnDisk::Short => {
            return Err(NoDocument::Unusable(format!(
                "the folder of its unpacked layer {lost} is gone from the disk"
            )));
        }
    }
    may_be_unpacked(node, &config).await?;
    let layers: Vec<&Descriptor> = manifest.layers_of_root().collect();
    let states = try_join_all(layers.iter().map(|layer| blob(node, layer, depth)));
    for (layer, state) in layers.iter().zip(states.await?) {
        let what = match state {
            OnDisk::Whole => continue,
            OnDisk::Unlisted => "missing or incomplete",
            OnDisk::Gone => "gone from the disk",
            OnDisk::Short => "cut short on the disk",
        };
        return Err(NoDocument::Unusable(format!(
            "it is not unpacked and its layer {} is {what}",
            layer.digest
        )));
    }
    Ok(())
}

/// Whether containerd unpacks the image when it starts a container. What it has unpacked, it starts.
pub(crate) async fn may_be_unpacked(node: &Containerd, config: &Config) -> Result<(), NoDocument> {
    if node.platform.runs(&config.platform)
        || !checks_configuration(&ImageRuntime::version(node).await?)
    {
        return Ok(());
    }
    Err(NoDocument::Unusable(format!(
        "it is for {}, but this node is {}",
        config.platform, node.platform
    )))
}

/// A version that does not begin like one counts as new.
fn checks_configuration(version: &RuntimeVersion) -> bool {
    let number = version.number();
    number.is_none_or(|number| number >= CHECKS_CONFIGURATION)
}

async fn blob(node: &Containerd, layer: &Descriptor, depth: Depth) -> Result<OnDisk, RuntimeError> {
    Ok(match depth {
        Depth::Database if is_listed(node, layer).await? => OnDisk::Whole,
        Depth::Disk if is_listed(node, layer).await? => disk::blob(node, &layer.digest).await?,
        Depth::Database | Depth::Disk => OnDisk::Unlisted,
    })
}

/// Whether the database lists all of a layer.
async fn is_listed(node: &Containerd, layer: &Descriptor) -> Result<bool, RuntimeError> {
    let size = disk::listed_size(node, &layer.digest).await?;
    Ok(size.and_then(|size| u64::try_from(size).ok()) == Some(layer.size))
}

/// The manifest that CRI chose for this node, and its configuration.
pub(crate) async fn chosen(
    node: &Containerd,
    root: Descriptor,
    image_id: &str,
) -> Result<(Manifest, Config), NoDocument> {
    let manifest = manifest_of(node, root, image_id).await?;
    let config: Config = read_json(&node.calls, &manifest.config, "configuration").await?;
    if config.layers() != manifest.layers_of_root().count() {
        return Err(NoDocument::Unusable(
            "its configuration and manifest name different numbers of layers".to_owned(),
        ));
    }
    Ok((manifest, config))
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
            // containerd never downloads manifests of other platforms; ours may be among the rest.
            Err(NoDocument::Unusable(why) | NoDocument::Corrupt(why)) => {
                missing.get_or_insert(why);
            }
            Err(error @ NoDocument::Runtime(_)) => return Err(error),
        }
    }
    Err(NoDocument::Unusable(missing.unwrap_or_else(|| {
        format!("it has no manifest for {}", node.platform)
    })))
}

/// For each layer, whether containerd lists all of it.
pub(crate) async fn present(
    node: &Containerd,
    manifest: &Manifest,
) -> Result<Vec<bool>, RuntimeError> {
    try_join_all(manifest.layers.iter().map(|layer| is_listed(node, layer))).await
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

    #[test]
    fn releases_from_2_2_2_on_check_the_configuration() {
        for (version, checks) in [
            ("1.6.20~ds1", false),
            ("v1.7.28", false),
            ("v2.1.9", false),
            ("v2.2.1", false),
            ("v2.2.2", true),
            ("2.2.7-0ubuntu1", true),
            ("v2.3.0-beta.1", true),
            ("v2.4.2", true),
            ("v3.0", true),
            ("2", true),
            ("unknown", true),
        ] {
            let version = RuntimeVersion {
                name: "containerd".into(),
                version: version.into(),
            };
            assert_eq!(checks_configuration(&version), checks, "{version}");
        }
    }
}
