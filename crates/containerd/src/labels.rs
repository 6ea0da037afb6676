//! Labels that others have set on an image's names, and that a pull removes.
//!
//! When containerd pulls an image, it writes each name again, with only its own labels; 1.6 does so for
//! the name by digest and the image's ID as well (measured). A pin that k3s or somebody else has put
//! on a name is meant for the name: it stays there even when the tag moves. If containerd has written
//! a label itself, its value counts.

use std::collections::HashMap;

use containerd_client::services::v1::{Image, UpdateImageRequest};
use prost_types::FieldMask;
use tonic::Code;
use trylatest_core::image::ImageName;

use crate::alias;
use crate::containerd::Containerd;
use crate::names::{MANAGED, done_unless, name_by_digest};

/// An alias carries the labels of its image's name under this prefix, so that they have no effect on
/// the alias, and a try that was cut off does not lose them.
const CARRIED: &str = "trylatest.dev/label.";

/// containerd's instructions to its garbage collector apply to what a name pointed to.
pub(crate) const GARBAGE: &str = "containerd.io/gc.";

/// Labels, by name.
pub(crate) type Remembered = Vec<(String, HashMap<String, String>)>;

/// The labels of the image's names, as far as containerd answers: a pull must not fail because of
/// labels.
pub(crate) async fn remember(node: &Containerd, image: &ImageName) -> Remembered {
    let alias = alias::of(image);
    let looked = futures::join!(
        node.stored(image.as_str()),
        node.stored(&alias),
        node.in_cri(image.as_str()),
    );
    let (stored, kept, id) = (
        looked.0.ok().flatten(),
        looked.1.ok().flatten(),
        looked.2.ok().flatten().map(|known| known.id),
    );
    let digest = stored.as_ref().and_then(|stored| stored.target.as_ref());
    let by_digest = digest.and_then(|target| name_by_digest(image, &target.digest));
    let others = [by_digest, id].into_iter().flatten();
    let others =
        futures::future::join_all(others.map(|name| async move { node.stored(&name).await }));
    let mut remembered = Remembered::new();
    let mut own = kept.map(|kept| carried(&kept)).unwrap_or_default();
    own.extend(stored.map(|stored| stored.labels).unwrap_or_default());
    remembered.push((image.to_string(), own));
    for other in others
        .await
        .into_iter()
        .filter_map(|found| found.ok().flatten())
    {
        remembered.push((other.name, other.labels));
    }
    remembered
}

/// Sets those that are missing. Names that are gone stay gone.
pub(crate) async fn put_back(node: &Containerd, remembered: Remembered) {
    for (name, mut labels) in remembered {
        // containerd sets its own again.
        labels.retain(|key, _| !key.starts_with(GARBAGE) && key != MANAGED.0);
        if labels.is_empty() {
            continue;
        }
        let Ok(Some(stored)) = node.stored(&name).await else {
            continue;
        };
        labels.retain(|key, _| !stored.labels.contains_key(key));
        if labels.is_empty() {
            continue;
        }
        let request = UpdateImageRequest {
            update_mask: Some(FieldMask {
                // Nothing else of the name is written: it may point elsewhere by now.
                paths: labels.keys().map(|key| format!("labels.{key}")).collect(),
            }),
            image: Some(Image {
                name: name.clone(),
                labels,
                target: stored.target,
                ..Image::default()
            }),
            source_date_epoch: None,
        };
        let mut images = node.calls.images();
        let update = async { done_unless(images.update(request).await.err(), Code::NotFound) };
        let operation = "putting an image's labels back";
        if let Err(error) = node.calls.within(operation, update).await {
            tracing::warn!(name, %error, "restoring an image's labels has failed");
        }
    }
}

/// The labels of an image's name, as its alias carries them.
pub(crate) fn carry(image: &Image) -> HashMap<String, String> {
    let own = image.labels.iter();
    own.filter(|(key, _)| !key.starts_with(GARBAGE))
        .map(|(key, value)| (format!("{CARRIED}{key}"), value.clone()))
        .collect()
}

/// The labels of an image's name that its alias carries.
pub(crate) fn carried(alias: &Image) -> HashMap<String, String> {
    let labels = alias.labels.iter();
    labels
        .filter_map(|(key, value)| Some((key.strip_prefix(CARRIED)?.to_owned(), value.clone())))
        .collect()
}

/// The labels that an alias carries, as it carries them.
pub(crate) fn only_carried(alias: &Image) -> HashMap<String, String> {
    let labels = alias.labels.clone();
    labels
        .into_iter()
        .filter(|(key, _)| key.starts_with(CARRIED))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_carries_labels_that_have_no_effect_on_it() {
        let labels = [
            ("io.cri-containerd.pinned", "pinned"),
            ("containerd.io/gc.expire", "2026-01-01T00:00:00Z"),
        ];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let image = Image {
            labels: labels.into(),
            ..Image::default()
        };
        let alias = Image {
            labels: carry(&image),
            ..Image::default()
        };
        let keys: Vec<&String> = alias.labels.keys().collect();
        assert_eq!(keys, ["trylatest.dev/label.io.cri-containerd.pinned"]);
        let expected = [("io.cri-containerd.pinned".to_owned(), "pinned".to_owned())];
        assert_eq!(carried(&alias), HashMap::from(expected));
    }
}
