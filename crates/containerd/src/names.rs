//! Names in containerd's image store: aliases that keep an image, and names made again from them.

use std::collections::HashMap;

use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, Image, UpdateImageRequest,
};
use containerd_client::types::Descriptor;
use prost_types::FieldMask;
use tonic::{Code, Status};
use trylatest_core::image::ImageName;

use crate::alias;
use crate::containerd::Containerd;
use crate::runtime::{ImageRuntime, Local, Pin, RuntimeError};

/// Says that CRI may list the image; it sets it on all that it pulls.
const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");

/// Keeps the kubelet's image collector away. Containerd 1.6 before 1.6.36 does not know it.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// Create and update are two calls, and others write names too: a few turns settle any race.
const MAX_TURNS: usize = 4;

/// See [`crate::ImageRuntime::keep`].
pub(crate) async fn keep(
    node: &Containerd,
    image: &ImageName,
    alias: &str,
    pin: Pin,
) -> Result<(), RuntimeError> {
    alias::check(alias)?;
    let operation = "keeping an image";
    let stored = node.stored(image.as_str()).await?;
    let target = stored.and_then(|stored| stored.target);
    let target = target.ok_or_else(|| RuntimeError::NotFound {
        operation,
        name: image.to_string(),
    })?;
    // CRI then removes the alias as well when it is asked to remove the image.
    let labels = match pin {
        Pin::Pinned => &[MANAGED, PINNED][..],
        Pin::Unpinned => &[MANAGED][..],
    };
    point(node, operation, alias, &target, labels).await
}

/// See [`crate::ImageRuntime::forget`].
pub(crate) async fn forget(node: &Containerd, alias: &str) -> Result<(), RuntimeError> {
    let request = DeleteImageRequest {
        name: alias.to_owned(),
        ..DeleteImageRequest::default()
    };
    let mut images = node.calls.images();
    let remove = async { done_unless(images.delete(request).await.err(), Code::NotFound) };
    let gone = node.calls.within("removing an alias", remove).await;
    gone.map(|_was_there| ())
}

/// See [`crate::ImageRuntime::restore`].
pub(crate) async fn restore(
    node: &Containerd,
    alias: &str,
    image: &ImageName,
) -> Result<bool, RuntimeError> {
    let operation = "restoring an image's name";
    let name = image.as_str();
    let there = node.stored(name).await?;
    if there.is_some() && matches!(node.local(image).await?, Local::Usable(_)) {
        return Ok(false);
    }
    let kept = node.stored(alias).await?.and_then(|kept| kept.target);
    let target = kept.ok_or_else(|| RuntimeError::NotFound {
        operation,
        name: alias.to_owned(),
    })?;
    let made = match there {
        None => create(node, operation, name, &target, &[MANAGED]).await?,
        Some(there) if is_as_wanted(&there, &target, &[]) => return Ok(false),
        Some(_) => update(node, operation, name, &target, &[MANAGED]).await?,
    };
    if let Some(by_digest) = name_by_digest(image, &target.digest) {
        // The kubelet shows it as the container's imageID.
        create(node, operation, &by_digest, &target, &[MANAGED]).await?;
    }
    Ok(made)
}

/// `repository@digest`, which CRI makes beside each tag that it pulls.
fn name_by_digest(image: &ImageName, digest: &str) -> Option<String> {
    (!image.has_digest()).then(|| format!("{}@{digest}", image.repository()))
}

/// Makes the name point to the target with these labels, whatever was there before.
async fn point(
    node: &Containerd,
    operation: &'static str,
    name: &str,
    target: &Descriptor,
    labels: &[(&str, &str)],
) -> Result<(), RuntimeError> {
    for _ in 0..MAX_TURNS {
        let done = match node.stored(name).await? {
            None => create(node, operation, name, target, labels).await?,
            // Every write is an event that all who follow would look at.
            Some(stored) if is_as_wanted(&stored, target, labels) => true,
            Some(_) => update(node, operation, name, target, labels).await?,
        };
        if done {
            return Ok(());
        }
    }
    Err(RuntimeError::Answered {
        operation,
        code: Code::Aborted,
        message: format!("others keep changing {name}"),
    })
}

fn is_as_wanted(stored: &Image, target: &Descriptor, labels: &[(&str, &str)]) -> bool {
    let points = stored.target.as_ref().map(|target| &target.digest) == Some(&target.digest);
    points
        && labels
            .iter()
            .all(|(key, value)| stored.labels.get(*key).map(String::as_str) == Some(*value))
}

/// Creates the name; false if it exists already.
async fn create(
    node: &Containerd,
    operation: &'static str,
    name: &str,
    target: &Descriptor,
    labels: &[(&str, &str)],
) -> Result<bool, RuntimeError> {
    let request = CreateImageRequest {
        image: Some(entry(name, target, labels)),
        source_date_epoch: None,
    };
    let mut images = node.calls.images();
    let write = async { done_unless(images.create(request).await.err(), Code::AlreadyExists) };
    node.calls.within(operation, write).await
}

/// Changes the name; false if it is gone.
async fn update(
    node: &Containerd,
    operation: &'static str,
    name: &str,
    target: &Descriptor,
    labels: &[(&str, &str)],
) -> Result<bool, RuntimeError> {
    let request = UpdateImageRequest {
        image: Some(entry(name, target, labels)),
        update_mask: Some(FieldMask {
            paths: vec!["target".to_owned(), "labels".to_owned()],
        }),
        source_date_epoch: None,
    };
    let mut images = node.calls.images();
    let write = async { done_unless(images.update(request).await.err(), Code::NotFound) };
    node.calls.within(operation, write).await
}

fn done_unless(error: Option<Status>, lost_race: Code) -> Result<bool, Status> {
    match error {
        None => Ok(true),
        Some(status) if status.code() == lost_race => Ok(false),
        Some(status) => Err(status),
    }
}

fn entry(name: &str, target: &Descriptor, labels: &[(&str, &str)]) -> Image {
    let labels = labels
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Image {
        name: name.to_owned(),
        labels: labels.collect::<HashMap<_, _>>(),
        target: Some(target.clone()),
        ..Image::default()
    }
}
