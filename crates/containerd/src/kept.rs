//! Copies that aliases keep for the next outage.
//!
//! The aliases are the only record of them: what is to be known of a copy is in its alias's labels. So nothing can
//! disagree with what containerd holds, and whoever removes the aliases has removed everything.

use containerd_client::services::v1::{Image, ListImagesRequest};
use containerd_client::types::Descriptor;
use jiff::Timestamp;
use tonic::Code;
use trylatest_core::image::ImageName;
use trylatest_core::keep::KeptCopy;

use crate::alias;
use crate::containerd::Containerd;
use crate::names::{self, Labels};
use crate::runtime::RuntimeError;

const SIZE: &str = "trylatest.dev/size";
const SINCE: &str = "trylatest.dev/since";
const USED: &str = "trylatest.dev/used";
const PROVEN: &str = "trylatest.dev/proven";
const PUBLIC: &str = "trylatest.dev/public";

const TRUE: &str = "true";

/// See [`crate::ImageRuntime::keep_copy`].
pub(crate) async fn keep_copy(node: &Containerd, copy: &KeptCopy) -> Result<(), RuntimeError> {
    let operation = "keeping a copy";
    let alias = alias::copy(copy);
    let there = node.stored(&alias).await?;
    let target = match there.as_ref().and_then(|there| there.target.clone()) {
        Some(target) => target,
        None => named(node, copy)
            .await?
            .ok_or_else(|| RuntimeError::NotFound {
                operation,
                name: format!("{} as {}", copy.image, copy.digest),
            })?,
    };
    let labels = labels_of(copy);
    if there.is_none() {
        return names::point(node, operation, &alias, &target, &labels).await;
    }
    // A pin that is not wanted any more has to go, so all labels are written.
    let is_there = names::update(node, operation, &alias, &target, &labels).await?;
    is_there.then_some(()).ok_or(RuntimeError::Answered {
        operation,
        code: Code::Aborted,
        message: "another client has just removed the alias".to_owned(),
    })
}

/// What one of the image's names points to, if it is this copy.
async fn named(node: &Containerd, copy: &KeptCopy) -> Result<Option<Descriptor>, RuntimeError> {
    let digest = copy.digest.as_str();
    let by_digest = names::name_by_digest(&copy.image, digest);
    let of_name = node.stored(copy.image.as_str()).await?;
    let mut found = of_name.and_then(|image| image.target);
    if found.as_ref().is_none_or(|target| target.digest != digest)
        && let Some(by_digest) = by_digest
    {
        let of_digest = node.stored(&by_digest).await?;
        found = of_digest.and_then(|image| image.target);
    }
    Ok(found.filter(|target| target.digest == digest))
}

/// See [`crate::ImageRuntime::kept_copies`].
pub(crate) async fn kept_copies(node: &Containerd) -> Result<Vec<KeptCopy>, RuntimeError> {
    let request = ListImagesRequest {
        filters: vec![format!("name~=\"^{}\"", alias::COPIES)],
    };
    let mut images = node.calls.images();
    let call = images.list(request);
    let listed = node.calls.call("listing kept copies", call).await?;
    Ok(listed.images.iter().filter_map(copy_of).collect())
}

/// See [`crate::ImageRuntime::restore_kept`].
pub(crate) async fn restore_kept(
    node: &Containerd,
    image: &ImageName,
) -> Result<bool, RuntimeError> {
    let mut copies = kept_copies(node).await?;
    copies.retain(|copy| copy.image == *image);
    let newest = copies.into_iter().max_by_key(|copy| copy.since);
    let Some(newest) = newest.filter(|newest| newest.public) else {
        return Ok(false);
    };
    let alias = alias::copy(&newest);
    names::restore(node, &alias, image).await
}

fn labels_of(copy: &KeptCopy) -> Labels {
    let mut labels = if copy.pinned {
        names::managed_and_pinned()
    } else {
        names::managed()
    };
    labels.insert(SIZE.to_owned(), copy.size_bytes.to_string());
    labels.insert(SINCE.to_owned(), copy.since.to_string());
    labels.insert(USED.to_owned(), copy.used.to_string());
    for (key, holds) in [(PROVEN, copy.proven), (PUBLIC, copy.public)] {
        if holds {
            labels.insert(key.to_owned(), TRUE.to_owned());
        }
    }
    labels
}

/// What an alias says. One whose labels somebody has spoiled was used long ago, and is nobody's.
fn copy_of(stored: &Image) -> Option<KeptCopy> {
    let (image, digest) = alias::copy_of(&stored.name)?;
    let label = |key: &str| stored.labels.get(key).map(String::as_str);
    let time = |key| label(key).and_then(|text| text.parse::<Timestamp>().ok());
    Some(KeptCopy {
        image,
        digest,
        size_bytes: label(SIZE).and_then(|size| size.parse().ok()).unwrap_or(0),
        since: time(SINCE).unwrap_or(Timestamp::UNIX_EPOCH),
        used: time(USED).unwrap_or(Timestamp::UNIX_EPOCH),
        proven: label(PROVEN) == Some(TRUE),
        public: label(PUBLIC) == Some(TRUE),
        pinned: names::is_pinned(&stored.labels),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(copy: &KeptCopy) -> Image {
        Image {
            name: alias::copy(copy),
            labels: labels_of(copy),
            ..Image::default()
        }
    }

    #[test]
    fn an_alias_says_all_of_its_copy() {
        let mut copy = KeptCopy {
            image: "reg.example:5000/app@sha256:1111111111111111111111111111111111111111111111111111111111111111".parse().unwrap(),
            digest: format!("sha256:{}", "1".repeat(64)).parse().unwrap(),
            size_bytes: 7,
            since: Timestamp::from_second(1_000).unwrap(),
            used: "2026-01-01T12:00:00.123456789Z".parse().unwrap(),
            proven: true,
            public: false,
            pinned: true,
        };
        assert_eq!(copy_of(&stored(&copy)), Some(copy.clone()));
        (copy.proven, copy.public, copy.pinned) = (false, true, false);
        assert_eq!(copy_of(&stored(&copy)), Some(copy));
    }

    #[test]
    fn spoiled_labels_give_nothing_to_anybody() {
        let copy = KeptCopy {
            image: "app".parse().unwrap(),
            digest: format!("sha256:{}", "1".repeat(64)).parse().unwrap(),
            size_bytes: 7,
            since: Timestamp::from_second(1_000).unwrap(),
            used: Timestamp::from_second(2_000).unwrap(),
            proven: true,
            public: true,
            pinned: true,
        };
        let mut image = stored(&copy);
        for value in image.labels.values_mut() {
            "nonsense".clone_into(value);
        }
        let read = copy_of(&image).unwrap();
        assert_eq!(read.used, Timestamp::UNIX_EPOCH);
        assert!(!read.public && !read.proven && !read.pinned);
    }
}
