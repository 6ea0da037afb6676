//! Names that were pointed back to an earlier copy by hand, and when: aliases, as of the copies that are kept.
//!
//! An alias points to that copy, so it can be seen whether the name still does. What else is to be known is in its
//! labels.

use std::collections::BTreeMap;

use containerd_client::services::v1::{Image, ListImagesRequest};
use jiff::Timestamp;
use trylatest_core::image::ImageName;
use trylatest_core::record::RolledBack;

use crate::alias;
use crate::containerd::Containerd;
use crate::names::{self, Labels};
use crate::runtime::RuntimeError;

const TIME: &str = "trylatest.dev/rolled-back";
const FROM: &str = "trylatest.dev/rolled-back-from";

/// See [`crate::ImageRuntime::mark_rolled_back`].
pub(crate) async fn mark(
    node: &Containerd,
    image: &ImageName,
    back: &RolledBack,
) -> Result<(), RuntimeError> {
    let operation = "writing down a rollback";
    let copy = alias::copy_at(image, &back.to);
    let kept = node.stored(&copy).await?.and_then(|kept| kept.target);
    let target = kept.ok_or(RuntimeError::NotFound {
        operation,
        name: copy,
    })?;
    let alias = alias::rolled_back(image);
    // One that was left may say something else.
    names::forget(node, &alias).await?;
    names::point(node, operation, &alias, &target, &labels_of(back)).await
}

/// See [`crate::ImageRuntime::rolled_back`].
pub(crate) async fn list(
    node: &Containerd,
) -> Result<BTreeMap<ImageName, RolledBack>, RuntimeError> {
    let request = ListImagesRequest {
        filters: vec![format!("name~=\"^{}\"", alias::ROLLED_BACK)],
    };
    let mut images = node.calls.images();
    let call = images.list(request);
    let listed = node.calls.call("listing rollbacks", call).await?;
    Ok(listed.images.iter().filter_map(read).collect())
}

fn labels_of(back: &RolledBack) -> Labels {
    let mut labels = names::managed();
    labels.insert(TIME.to_owned(), back.time.to_string());
    if let Some(from) = &back.from {
        labels.insert(FROM.to_owned(), from.as_str().to_owned());
    }
    labels
}

/// What an alias says. If somebody has spoiled its labels, it was long ago.
fn read(stored: &Image) -> Option<(ImageName, RolledBack)> {
    let image = alias::rolled_back_image(&stored.name)?;
    let label = |key: &str| stored.labels.get(key);
    let time = label(TIME).and_then(|time| time.parse().ok());
    let back = RolledBack {
        time: time.unwrap_or(Timestamp::UNIX_EPOCH),
        from: label(FROM).and_then(|from| from.parse().ok()),
        to: stored.target.as_ref()?.digest.parse().ok()?,
    };
    Some((image, back))
}
