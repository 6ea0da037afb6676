//! What is remembered of a try, on disk and in reports.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::image::ImageName;
use crate::knowledge::Facts;
use crate::outcome::Failure;

/// One finished try for one image, on this node: what happened, whatever it meant for a pod.
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
    #[serde(flatten)]
    pub result: TryResult,
    /// The digest that the name points to on this node after the try (`sha256:…`, of the manifest
    /// or of the index of manifests); none without a usable local copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The size of that copy in bytes, as CRI reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// containerd could not say which copy there is: no digest then means nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copy_unknown: bool,
}

/// How a try ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum TryResult {
    /// New content was pulled, or the node's copy was healed.
    Fresh,
    /// The registry says that the name still points to the copy that the node holds.
    Unchanged,
    /// The pull failed, or nothing can start from what it brought.
    Failed(Failure),
}

impl TryResult {
    /// The words of every end, for metrics.
    pub const WORDS: [&str; 3] = ["fresh", "unchanged", "failed"];

    /// The word in JSON, metrics and messages.
    pub const fn as_str(&self) -> &'static str {
        let [fresh, unchanged, failed] = Self::WORDS;
        match self {
            Self::Fresh => fresh,
            Self::Unchanged => unchanged,
            Self::Failed(_) => failed,
        }
    }

    /// Why it failed, if it did.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::Fresh | Self::Unchanged => None,
        }
    }
}

impl Try {
    /// When it ended, by the clock at its beginning.
    pub fn ended(&self) -> Timestamp {
        self.started + self.duration
    }

    /// What the registry said about where the tag points, if this try brought an answer.
    pub fn confirmation(&self) -> Option<Confirmation> {
        self.result.failure().is_none().then_some(())?;
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
    /// What its tries have shown.
    #[serde(flatten)]
    pub facts: Facts,
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
        self.facts.confirmed_at(&self.facts.copy.as_ref()?.digest)
    }
}

/// What a registry said about where a tag points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// When the try began that brought it.
    pub time: Timestamp,
    /// What the tag pointed to: the age of another copy under the same name is unknown.
    pub digest: Digest,
}

/// A copy on the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalCopy {
    /// What the name points to (`sha256:…`, of the manifest or of the index of manifests).
    pub digest: Digest,
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
    /// Tries that failed.
    pub failures: u32,
}
