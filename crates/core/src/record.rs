//! What is remembered of a try, on disk and in reports.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass, Outcome};

/// One finished try for one image, on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Try {
    /// The image, in full.
    pub image: ImageName,
    /// When the try began.
    pub started: Timestamp,
    /// How long it took.
    #[serde(with = "millis", rename = "durationMillis")]
    pub duration: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it failed; none for `fresh` and `unchanged`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The digest that the name points to on this node after the try (`sha256:…`, of the manifest
    /// or of the index of manifests); none without a usable local copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The size of that copy in bytes, as CRI reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// containerd could not say which copy there is: no digest then means nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copy_unknown: bool,
}

impl Try {
    /// The registry's word on where the tag points, if this try brought one.
    pub fn confirmation(&self) -> Option<Confirmation> {
        matches!(self.outcome, Outcome::Fresh | Outcome::Unchanged).then_some(())?;
        Some(Confirmation {
            time: self.started,
            digest: self.digest.clone()?,
        })
    }

    /// The copy that was there after the try.
    pub fn copy(&self) -> Option<LocalCopy> {
        Some(LocalCopy {
            digest: self.digest.clone()?,
            size_bytes: self.size_bytes,
        })
    }

    /// What the registry said of credentials, if it said anything: its last word counts.
    pub fn needs_credentials(&self) -> Option<bool> {
        if self.confirmation().is_some() {
            Some(false)
        } else {
            let class = self.failure.as_ref().map(|failure| failure.class);
            (class == Some(FailureClass::Unauthorized)).then_some(true)
        }
    }
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_millis)
    }
}

/// What the index remembers of one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRecord {
    /// The image, in full.
    pub image: ImageName,
    /// The registry's last word on where the tag points; none if it never said so while TryLatest
    /// watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Confirmation>,
    /// Whether the registry's last word was 401 or 403: nothing cached of such an image is handed
    /// out on trust. A later anonymous success clears it.
    #[serde(default)]
    pub needs_credentials: bool,
    /// The copy that the node held when containerd last said so, after a try or when the index was
    /// rebuilt; none if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<LocalCopy>,
    /// When the image was last tried or seen on the node; what ages an entry out.
    pub seen: Timestamp,
    /// The last tries, newest first, bounded.
    pub tries: Vec<Try>,
    /// Tries of the last seven days, counted when the record was read.
    pub week: Week,
}

impl ImageRecord {
    /// When the registry last said that the tag points to the copy that is here.
    pub fn copy_confirmed(&self) -> Option<Timestamp> {
        let (copy, confirmed) = (self.copy.as_ref()?, self.confirmed.as_ref()?);
        (copy.digest == confirmed.digest).then_some(confirmed.time)
    }
}

/// A registry's word on where a tag points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// When the try began that brought it.
    pub time: Timestamp,
    /// What the tag pointed to: the age of another copy under the same name is unknown.
    pub digest: String,
}

/// A copy on the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalCopy {
    /// What the name points to (`sha256:…`, of the manifest or of the index of manifests).
    pub digest: String,
    /// Its size in bytes, as CRI reports it; none if it was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
}

/// How the tries of an image went in the last seven days.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Week {
    /// All tries.
    pub tries: u32,
    /// Tries that ended as `fallback`.
    pub fallbacks: u32,
}
