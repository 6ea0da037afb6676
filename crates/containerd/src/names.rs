//! Names in containerd's image store: aliases that keep an image, and names restored from them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, Image, ListImagesRequest, UpdateImageRequest,
};
use containerd_client::types::Descriptor;
use prost_types::FieldMask;
use tokio::time::Instant;
use tonic::{Code, Status};
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;

use crate::alias::{self, Journal};
use crate::containerd::Containerd;
use crate::labels;
use crate::runtime::{ImageRuntime, Local, Pin, RuntimeError};

/// Lets CRI list the image; CRI sets it on everything that it pulls.
pub(crate) const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");

/// Keeps the kubelet's image collector away; see [`crate::RuntimeVersion::honours_pins`].
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

pub(crate) type Labels = HashMap<String, String>;

fn labels_of<const N: usize>(labels: [(&str, &str); N]) -> Labels {
    labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

pub(crate) fn managed() -> Labels {
    labels_of([MANAGED])
}

/// CRI then also removes such a name when it is asked to remove the image.
pub(crate) fn managed_and_pinned() -> Labels {
    labels_of([MANAGED, PINNED])
}

/// Whether CRI would pin a name with these labels.
pub(crate) fn is_pinned(labels: &Labels) -> bool {
    labels.get(PINNED.0).is_some_and(|value| value == PINNED.1)
}

/// Create and update are two calls, and others write names, too: a few turns settle any race.
const MAX_TURNS: usize = 4;

/// How long CRI may take to learn of a name.
const CRI_LEARNS: Duration = Duration::from_secs(1);

/// Between two looks of whether CRI has learnt something.
const CRI_LOOKS_AGAIN: Duration = Duration::from_millis(5);

/// See [`crate::ImageRuntime::keep`].
pub(crate) async fn keep(
    node: &Containerd,
    image: &ImageName,
    alias: &str,
    pin: Pin,
) -> Result<(), RuntimeError> {
    alias::check(alias)?;
    let operation = "keeping an image";
    let (stored, before) = futures::try_join!(node.stored(image.as_str()), node.stored(alias))?;
    let absent = || RuntimeError::NotFound {
        operation,
        name: image.to_string(),
    };
    let stored = stored.ok_or_else(absent)?;
    let target = stored.target.as_ref().ok_or_else(absent)?;
    // A try that was cut off has left labels here that the name has lost since.
    let mut labels = before.map_or_else(Labels::new, |alias| labels::only_carried(&alias));
    labels.extend(labels::carry(&stored));
    labels.extend(match pin {
        Pin::Pinned => managed_and_pinned(),
        Pin::Unpinned => managed(),
    });
    point(node, operation, alias, target, &labels).await
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
    if there.is_some() && is_usable(node, image).await? {
        if let Some(kept) = node.stored(alias).await? {
            let carried = (name.to_owned(), labels::carried(&kept));
            labels::put_back(node, vec![carried]).await;
        }
        return Ok(false);
    }
    let absent = || RuntimeError::NotFound {
        operation,
        name: alias.to_owned(),
    };
    let kept = node.stored(alias).await?.ok_or_else(absent)?;
    let target = kept.target.clone().ok_or_else(absent)?;
    let mut labels = labels::carried(&kept);
    let made = match there {
        None => {
            labels.extend(managed());
            create(node, operation, name, &target, &labels).await?
        }
        Some(there) if is_as_wanted(&there, &target, &Labels::new()) => return Ok(false),
        Some(there) => {
            labels.extend(there.labels);
            labels.extend(managed());
            update(node, operation, name, &target, &labels).await?
        }
    };
    if let Some(by_digest) = name_by_digest(image, &target.digest) {
        // The kubelet shows it as the container's imageID.
        create(node, operation, &by_digest, &target, &managed()).await?;
    }
    Ok(made)
}

/// See [`crate::ImageRuntime::set_aside`].
pub(crate) async fn set_aside(
    node: &Containerd,
    image: &ImageName,
    alias: &str,
) -> Result<Option<String>, RuntimeError> {
    let operation = "taking an image's name away";
    for _ in 0..MAX_TURNS {
        // Not pinned: a collection that has to spare a copy makes the kubelet forget whose it is.
        match keep(node, image, alias, Pin::Unpinned).await {
            Ok(()) => {}
            Err(RuntimeError::NotFound { .. }) => {
                forget(node, alias).await?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let target = node.stored(alias).await?.and_then(|kept| kept.target);
        let Some(target) = target else { continue };
        // containerd 2.x removes the name only if nobody has moved it since.
        let request = DeleteImageRequest {
            name: image.to_string(),
            target: Some(target.clone()),
            ..DeleteImageRequest::default()
        };
        let mut images = node.calls.images();
        let remove = async { done_unless(images.delete(request).await.err(), Code::NotFound) };
        node.calls.within(operation, remove).await?;
        if node.stored(image.as_str()).await?.is_none() {
            Box::pin(is_gone_in_cri(node, image)).await?;
            return Ok(Some(target.digest));
        }
    }
    Err(RuntimeError::Answered {
        operation,
        code: Code::Aborted,
        message: format!("other clients keep changing {image}"),
    })
}

/// CRI learns of it by an event.
async fn is_gone_in_cri(node: &Containerd, image: &ImageName) -> Result<(), RuntimeError> {
    let gone = async {
        while node.in_cri(image.as_str()).await?.is_some() {
            tokio::time::sleep(CRI_LOOKS_AGAIN).await;
        }
        Ok(())
    };
    let operation = "waiting until CRI does not find an image";
    node.calls.together(operation, Box::pin(gone)).await
}

/// See [`crate::ImageRuntime::journal`].
pub(crate) async fn journal(
    node: &Containerd,
    of: Journal,
) -> Result<Vec<(String, ImageName)>, RuntimeError> {
    let request = ListImagesRequest {
        filters: vec![format!("name~=\"^{}\"", of.prefix())],
    };
    let mut images = node.calls.images();
    let call = images.list(request);
    let listed = node.calls.call("listing images", call).await?;
    let names = listed.images.into_iter().map(|image| image.name);
    Ok(names
        .filter_map(|alias| {
            let image = of.image_of(&alias)?;
            Some((alias, image))
        })
        .collect())
}

/// Most names that are asked for at once: a filter each.
const ASKED_AT_ONCE: usize = 100;

/// See [`crate::ImageRuntime::pointed`].
pub(crate) async fn pointed(
    node: &Containerd,
    images: &BTreeSet<ImageName>,
) -> Result<BTreeMap<ImageName, Digest>, RuntimeError> {
    let mut all = BTreeMap::new();
    let asked: Vec<&ImageName> = images.iter().collect();
    for some in asked.chunks(ASKED_AT_ONCE) {
        let request = ListImagesRequest {
            filters: some
                .iter()
                .map(|name| format!("name==\"{name}\""))
                .collect(),
        };
        let mut images = node.calls.images();
        let call = images.list(request);
        let listed = node.calls.call("looking images up", call).await?;
        all.extend(listed.images.into_iter().filter_map(|image| {
            let digest = image.target?.digest.parse().ok()?;
            Some((image.name.parse().ok()?, digest))
        }));
    }
    Ok(all)
}

/// Whether a container can start from the copy. CRI learns of a name that was just pulled by an event.
async fn is_usable(node: &Containerd, image: &ImageName) -> Result<bool, RuntimeError> {
    let until = Instant::now() + CRI_LEARNS;
    loop {
        match node.local(image).await? {
            Local::Usable(_) => return Ok(true),
            Local::Absent if Instant::now() < until => tokio::time::sleep(CRI_LOOKS_AGAIN).await,
            Local::Absent | Local::Unusable { .. } => return Ok(false),
        }
    }
}

/// `repository@digest`, which CRI makes beside each tag that it pulls.
pub(crate) fn name_by_digest(image: &ImageName, digest: &str) -> Option<String> {
    (!image.has_digest()).then(|| format!("{}@{digest}", image.repository()))
}

/// Makes the name point to the target with these labels, whatever was there before.
pub(crate) async fn point(
    node: &Containerd,
    operation: &'static str,
    name: &str,
    target: &Descriptor,
    labels: &Labels,
) -> Result<(), RuntimeError> {
    for _ in 0..MAX_TURNS {
        let done = match node.stored(name).await? {
            None => create(node, operation, name, target, labels).await?,
            // Every write is an event that every follower would look at.
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
        message: format!("other clients keep changing {name}"),
    })
}

pub(crate) fn is_as_wanted(stored: &Image, target: &Descriptor, labels: &Labels) -> bool {
    let points = stored.target.as_ref().map(|target| &target.digest) == Some(&target.digest);
    points && is_labelled(stored, labels)
}

/// Whether the name has these labels, among others.
pub(crate) fn is_labelled(stored: &Image, labels: &Labels) -> bool {
    labels
        .iter()
        .all(|(key, value)| stored.labels.get(key) == Some(value))
}

/// Creates the name; false if it exists already.
async fn create(
    node: &Containerd,
    operation: &'static str,
    name: &str,
    target: &Descriptor,
    labels: &Labels,
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
pub(crate) async fn update(
    node: &Containerd,
    operation: &'static str,
    name: &str,
    target: &Descriptor,
    labels: &Labels,
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

pub(crate) fn done_unless(error: Option<Status>, lost_race: Code) -> Result<bool, Status> {
    match error {
        None => Ok(true),
        Some(status) if status.code() == lost_race => Ok(false),
        Some(status) => Err(status),
    }
}

fn entry(name: &str, target: &Descriptor, labels: &Labels) -> Image {
    Image {
        name: name.to_owned(),
        labels: labels.clone(),
        target: Some(target.clone()),
        ..Image::default()
    }
}
