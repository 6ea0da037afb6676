//! Throws away what is unpacked of an image, so that it is unpacked again: what a proof cannot see as damaged.
//!
//! Layers are named by their digests, so their bytes can be checked, however large they are. What they were unpacked to
//! cannot. But it can be made again from them: a copy whose content matches its digests loses nothing if what is
//! unpacked of it is removed, because containerd unpacks it when it makes the next container (`WithNewSnapshot` in
//! internal/cri/opts/container.go), or at the next pull, whichever comes first.

use std::collections::{BTreeMap, BTreeSet};

use containerd_client::services::v1::ReadContentRequest;
use tonic::Code;
use trylatest_core::image::ImageName;

use crate::containerd::Containerd;
use crate::containers;
use crate::content::{self, Hash, NoDocument};
use crate::manifest::{Config, Descriptor, Manifest};
use crate::mend::collect_garbage;
use crate::proof;
use crate::runtime::{Discarded, RuntimeError, Seen, Spoiled, Users, Verified};
use crate::snapshots::{self, Is, Snapshot};

/// See [`crate::ImageRuntime::verify`].
pub(crate) async fn verify(
    node: &Containerd,
    image: &ImageName,
    seen: &Seen<'_>,
) -> Result<Verified, RuntimeError> {
    let (manifest, config) = match Box::pin(parts(node, image)).await {
        Ok(parts) => parts,
        Err(NoDocument::Unusable(why) | NoDocument::Corrupt(why)) => {
            let spoiled = vec![Spoiled { digest: None, why }];
            return Ok(Verified { bytes: 0, spoiled });
        }
        Err(NoDocument::Runtime(error)) => return Err(error),
    };
    // The registry has written them.
    let sizes = manifest.layers.iter().map(|layer| layer.size);
    let bytes = sizes.fold(0, u64::saturating_add);
    let mut spoiled = Vec::new();
    match proof::may_be_unpacked(node, &config).await {
        Ok(()) => {}
        Err(NoDocument::Unusable(why) | NoDocument::Corrupt(why)) => {
            spoiled.push(Spoiled { digest: None, why });
        }
        Err(NoDocument::Runtime(error)) => return Err(error),
    }
    let mut done = 0;
    for layer in &manifest.layers {
        seen(done, bytes);
        if let Some(why) = wrong_with(node, layer, &mut |read| seen(done + read, bytes)).await? {
            spoiled.push(Spoiled {
                digest: Some(layer.digest.clone()),
                why: format!("layer {} {why}", layer.digest),
            });
        }
        done += layer.size;
    }
    Ok(Verified { bytes, spoiled })
}

/// The manifest and the configuration that CRI has chosen for this node.
async fn parts(node: &Containerd, image: &ImageName) -> Result<(Manifest, Config), NoDocument> {
    let absent = || NoDocument::Unusable("there is no such image".to_owned());
    let (in_cri, stored) =
        futures::try_join!(node.in_cri(image.as_str()), node.stored(image.as_str()))?;
    let id = in_cri.ok_or_else(absent)?.id;
    let target = stored.and_then(|stored| stored.target).ok_or_else(absent)?;
    let root = Descriptor::stored(target.digest, target.size);
    proof::chosen(node, root, &id).await
}

/// What is wrong with a layer's file, if anything is. Reads all of it.
async fn wrong_with(
    node: &Containerd,
    layer: &Descriptor,
    seen: &mut (dyn FnMut(u64) + Send),
) -> Result<Option<&'static str>, RuntimeError> {
    let operation = "reading a layer";
    let Some(mut hash) = Hash::of(&layer.digest) else {
        return Ok(Some("has a digest of an unknown kind"));
    };
    let mut content = node.calls.content();
    let request = ReadContentRequest {
        digest: layer.digest.clone(),
        offset: 0,
        size: 0,
    };
    let call = content.read(request);
    let mut chunks = match node.calls.find(operation, call).await {
        Ok(Some(chunks)) => chunks,
        Ok(None) => return Ok(Some("is missing")),
        Err(error) => return unreadable(error),
    };
    let mut read = 0;
    loop {
        // Each chunk has the deadline of a call: all of them may take minutes.
        match node.calls.within(operation, chunks.message()).await {
            Ok(Some(chunk)) => {
                hash.update(&chunk.data);
                read += chunk.data.len() as u64;
                seen(read);
            }
            Ok(None) => break,
            Err(RuntimeError::Answered {
                code: Code::NotFound,
                ..
            }) => return Ok(Some("is missing")),
            Err(error) => return unreadable(error),
        }
    }
    Ok((!hash.is(&layer.digest)).then_some("does not match its digest"))
}

/// What containerd answers is about this file; anything else is about containerd.
fn unreadable(error: RuntimeError) -> Result<Option<&'static str>, RuntimeError> {
    if error.is_an_answer() {
        Ok(Some("cannot be read"))
    } else {
        Err(error)
    }
}

/// See [`crate::ImageRuntime::users`].
pub(crate) async fn users(
    node: &Containerd,
    image: &ImageName,
) -> Result<Option<Users>, RuntimeError> {
    let chain = match Box::pin(parts(node, image)).await {
        Ok((_, config)) => config.chain_ids(),
        // What is unpacked of it is not known.
        Err(NoDocument::Unusable(_) | NoDocument::Corrupt(_)) => return Ok(None),
        Err(NoDocument::Runtime(error)) => return Err(error),
    };
    let snapshotter = node.snapshotter.name(&node.calls).await?;
    let mut on = snapshots::list(node, &snapshotter).await?;
    let unpacked = layers(&on);
    let topmost = chain.iter().rev().find(|layer| unpacked.contains(*layer));
    let mut above = topmost
        .and_then(|layer| on.remove(layer))
        .unwrap_or_default();
    above.retain(|one| one.is != Is::Look);
    if above.is_empty() {
        return Ok(None);
    }
    users_among(node, above).await.map(Some)
}

/// The layers that are unpacked.
fn layers(on: &BTreeMap<String, Vec<Snapshot>>) -> BTreeSet<String> {
    let layers = on.values().flatten().filter(|one| one.is == Is::Layer);
    layers.map(|layer| layer.key.clone()).collect()
}

/// Whose snapshots these are.
async fn users_among(node: &Containerd, above: Vec<Snapshot>) -> Result<Users, RuntimeError> {
    let of_containers = above.into_iter().filter(|one| one.is == Is::Containers);
    // CRI names a container's snapshot after it.
    let ids: Vec<String> = of_containers.map(|one| one.key).collect();
    if ids.is_empty() {
        return Ok(Users::default());
    }
    let pods = containers::pods(&node.calls).await?;
    let names = ids.into_iter().map(|id| {
        pods.get(&id)
            .cloned()
            .unwrap_or_else(|| without_container(id))
    });
    let names: BTreeSet<String> = names.collect();
    Ok(Users {
        names: names.into_iter().collect(),
    })
}

/// What to call a snapshot that belongs to no container. CRI names that of an image volume after its folder.
fn without_container(key: String) -> String {
    if key.starts_with('/') {
        "an image volume of a pod".to_owned()
    } else {
        key
    }
}

/// See [`crate::ImageRuntime::discard`].
pub(crate) async fn discard(
    node: &Containerd,
    image: &ImageName,
    spoiled: &[Spoiled],
) -> Result<Discarded, RuntimeError> {
    let _alone = node.mending.lock().await;
    node.looks.forget();
    let chain = match Box::pin(parts(node, image)).await {
        Ok((_, config)) => config.chain_ids(),
        // What is unpacked of it is not known; what is spoiled is.
        Err(NoDocument::Unusable(_) | NoDocument::Corrupt(_)) => Vec::new(),
        Err(NoDocument::Runtime(error)) => return Err(error),
    };
    let discarded = discard_unpacked(node, &chain).await?;
    if discarded.is_in_use() {
        return Ok(discarded);
    }
    let digests = spoiled.iter().filter_map(|part| part.digest.as_ref());
    for digest in digests {
        content::remove(&node.calls, "removing spoiled content", digest).await?;
    }
    match collect_garbage(node).await {
        // containerd would take a file that is left for the fetched one.
        Err(error) if !spoiled.is_empty() => Err(error),
        // What was unpacked takes room for a while longer.
        Ok(()) | Err(_) => Ok(discarded),
    }
}

/// Removes what is unpacked, topmost first, down to what others have something on top of. Nothing is removed while a
/// container, or another image, has something on top of the topmost.
async fn discard_unpacked(node: &Containerd, chain: &[String]) -> Result<Discarded, RuntimeError> {
    let snapshotter = node.snapshotter.name(&node.calls).await?;
    let mut on = snapshots::list(node, &snapshotter).await?;
    let unpacked = layers(&on);
    let order = chain.iter().rev().filter(|layer| unpacked.contains(*layer));
    let mut left = order.clone().count();
    let mut discarded = Discarded::default();
    let mut removed = None;
    for layer in order {
        let mut above = on.remove(layer).unwrap_or_default();
        above.retain(|one| Some(&one.key) != removed);
        for look in above.extract_if(.., |one| one.is == Is::Look) {
            snapshots::remove(node, &snapshotter, &look.key).await?;
        }
        // Somebody may have come since.
        if !above.is_empty() || !snapshots::remove(node, &snapshotter, layer).await? {
            discarded.kept = left;
            discarded.users = users_among(node, above).await?;
            break;
        }
        left -= 1;
        discarded.removed += 1;
        removed = Some(layer);
    }
    Ok(discarded)
}
