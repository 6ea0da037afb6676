//! An image that is made on this node, from a program, and needs no registry.
//!
//! The kubelet's records of its pulls (KEP-2535) go by the digest of an image's configuration. So the
//! configuration contains a random number: no registry has ever given this image to anybody, nobody
//! can guess it and make the kubelet pull it, and every pod may start from it.
//!
//! If its snapshot is missing, containerd unpacks it when it makes the first container
//! (`WithNewSnapshot` in internal/cri/opts/container.go).

mod blob;
mod image;

use k8s_cri::v1::ImageStatusRequest;
use serde_json::Value;
use trylatest_core::image::ImageName;

use self::blob::{lease, leased, write_layer};
use self::image::{Found, look, write_all};
use crate::containerd::{Containerd, spec};
use crate::program::Program;
use crate::runtime::{Over, Pointed, RuntimeError};
use crate::{alias, labels, names};

const OPERATION: &str = "making an image";

/// See [`crate::ImageRuntime::make`].
pub(crate) async fn make(
    node: &Containerd,
    program: &Program,
    alias: &str,
) -> Result<bool, RuntimeError> {
    alias::check(alias)?;
    let lease = lease(alias)?;
    // The pin keeps the kubelet's image collector away.
    let labels = names::managed_and_pinned();
    let target = match look(node, program, alias).await? {
        Found::Whole(stored) if names::is_labelled(&stored, &labels) => return Ok(false),
        Found::Whole(stored) => stored.target,
        Found::WithoutLayer(stored) => {
            leased(node, alias, Box::pin(write_layer(node, program, &lease))).await?;
            stored.target
        }
        Found::Nothing => {
            let work = Box::pin(async {
                let target = write_all(node, program, &lease).await?;
                names::point(node, OPERATION, alias, &target, &labels).await
            });
            return leased(node, alias, work).await.map(|()| true);
        }
    };
    if let Some(target) = target {
        names::point(node, OPERATION, alias, &target, &labels).await?;
    }
    Ok(true)
}

/// See [`crate::ImageRuntime::point`].
pub(crate) async fn point(
    node: &Containerd,
    image: &ImageName,
    alias: &str,
    over: Over<'_>,
) -> Result<Pointed, RuntimeError> {
    let name = image.as_str();
    let kept = node.stored(alias).await?.and_then(|kept| kept.target);
    let target = kept.ok_or_else(|| RuntimeError::NotFound {
        operation: OPERATION,
        name: alias.to_owned(),
    })?;
    let mut wanted = names::managed();
    if let Some(there) = node.stored(name).await? {
        if names::is_as_wanted(&there, &target, &wanted) {
            return Ok(Pointed::Already);
        }
        if let Over::Program(program) = over
            && !holds(node, name, program).await?
        {
            return Ok(Pointed::Elsewhere);
        }
        // Labels that others have set on the name are meant for the name.
        let theirs = there.labels.into_iter();
        wanted.extend(theirs.filter(|(key, _)| !key.starts_with(labels::GARBAGE)));
    }
    names::point(node, OPERATION, name, &target, &wanted).await?;
    Ok(Pointed::Now)
}

/// See [`crate::ImageRuntime::pointing`].
pub(crate) async fn pointing(
    node: &Containerd,
    alias: &str,
) -> Result<Vec<ImageName>, RuntimeError> {
    let Some(target) = node.stored(alias).await?.and_then(|kept| kept.target) else {
        return Ok(Vec::new());
    };
    let names = node.names_of(&target.digest).await?;
    // As CRI does, which ignores names without a tag or digest, such as the alias.
    let images = names.iter().filter(|name| name.contains([':', '@']));
    Ok(images.filter_map(|name| name.parse().ok()).collect())
}

/// Whether what CRI has under the name is an image of this program alone, wherever it came from: it
/// has the same single layer.
async fn holds(node: &Containerd, name: &str, program: &Program) -> Result<bool, RuntimeError> {
    let mut cri = node.calls.cri_images();
    let request = ImageStatusRequest {
        image: Some(spec(name)),
        verbose: true,
    };
    let call = cri.image_status(request);
    let status = node.calls.call("asking CRI for an image", call).await?;
    let info = status.info.get("info");
    let info: Value = info
        .and_then(|info| serde_json::from_str(info).ok())
        .unwrap_or_default();
    Ok(info["chainID"] == program.layer())
}
