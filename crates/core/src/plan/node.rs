//! What the planner says of the images to their node.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::image::Image;
use super::round::Pod;
use crate::image::ImageName;
use crate::node::NodeImage;
use crate::outcome::Outcome;
use crate::record::Try;
use crate::release::ContainerRelease;

/// When and how a pod was released with an image.
pub(super) type Given<'a> = (Timestamp, &'a ContainerRelease);

/// Every image that was tried, or that a pod was released with.
pub(super) fn node_images<'a>(
    images: &BTreeMap<ImageName, Image>,
    pods: impl Iterator<Item = &'a Pod>,
) -> Vec<NodeImage> {
    let mut users: BTreeMap<&ImageName, Vec<Given<'a>>> = BTreeMap::new();
    for (name, given) in pods.flat_map(Pod::released_images) {
        users.entry(name).or_default().push(given);
    }
    images
        .iter()
        .filter_map(|(name, image)| {
            let users = users.get(name).map_or(&[][..], Vec::as_slice);
            node_image(name, image, users)
        })
        .collect()
}

fn node_image(name: &ImageName, image: &Image, users: &[Given<'_>]) -> Option<NodeImage> {
    let mut said = match &image.last_try {
        Some(tried) => of_try(tried, image),
        // The index is lost or not used: the pods still say how they were released.
        None => of_release(name, *users.iter().max_by_key(|(time, _)| *time)?),
    };
    said.pods = users.len();
    said.pods_from_cache = users
        .iter()
        .filter(|given| given.1.outcome == Outcome::Fallback && !stands(**given, image))
        .count();
    Some(said)
}

/// Whether the registry has said since that the tag points to the copy of this release.
fn stands((time, release): Given<'_>, image: &Image) -> bool {
    let digest = release.digest.as_deref();
    digest.is_some_and(|digest| image.is_confirmed_since(time, digest))
}

fn of_try(tried: &Try, image: &Image) -> NodeImage {
    NodeImage {
        image: tried.image.clone(),
        outcome: tried.outcome,
        class: tried.failure.as_ref().map(|failure| failure.class),
        digest: tried.digest.clone(),
        tried: tried.started,
        confirmed: tried
            .digest
            .as_ref()
            .and_then(|digest| image.known.confirmed_at(digest)),
        pods: 0,
        pods_from_cache: 0,
    }
}

/// The pod's owner may have written this: no free text of it is taken over.
fn of_release(name: &ImageName, (time, release): Given<'_>) -> NodeImage {
    NodeImage {
        image: name.clone(),
        outcome: release.outcome,
        class: release.failure.as_ref().map(|failure| failure.class),
        digest: None,
        tried: time,
        confirmed: None,
        pods: 0,
        pods_from_cache: 0,
    }
}
