//! What is remembered of a try, on disk and in reports.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::identity::Identity;
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass};

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
    /// For whom the kubelet pulled, if it was the kubelet; otherwise the agent pulled, without
    /// credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulled_for: Option<Identity>,
    /// The registry had refused the agent's own try with 401 or 403 before: that and the kubelet's pull are
    /// one try.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
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
        let end = self.started.checked_add(self.duration);
        end.unwrap_or(Timestamp::MAX)
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

/// Most identities that are remembered for one image.
const IDENTITIES_MAX: usize = 32;

/// What the tries of one image name have shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// What the registry last said about where the tag points; none if it never said so while
    /// TryLatest watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Confirmation>,
    /// Whether the registry's last answer was 401 or 403: no cached copy of such an image is handed
    /// out on trust. A later anonymous success clears it.
    #[serde(default, alias = "needs_credentials")]
    pub needs_credentials: bool,
    /// Who has had the digest that [`Facts::confirmed`] names: those for whom the kubelet has pulled it,
    /// newest last; none if the agent has had it without credentials, and so may everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_to: Option<Vec<Identity>>,
    /// The copy that the node held when containerd last said so, after a try or when the index was
    /// rebuilt; none if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<LocalCopy>,
}

impl Facts {
    /// Adds what a later try has shown.
    pub fn add(&mut self, tried: &Try) {
        if let Some(confirmed) = tried.confirmation() {
            self.confirm(confirmed, tried.pulled_for.as_ref());
        }
        let class = tried.result.failure().map(|failure| failure.class);
        let by_kubelet = tried.pulled_for.is_some() && class.is_none();
        if class == Some(FailureClass::Unauthorized) || by_kubelet || tried.refused {
            self.needs_credentials = true;
        }
        if !tried.copy_unknown {
            self.copy = tried.copy();
        }
    }

    fn confirm(&mut self, confirmed: Confirmation, pulled_for: Option<&Identity>) {
        let known = self.confirmed.replace(confirmed);
        let same =
            known.map(|known| known.digest) == self.confirmed.as_ref().map(|c| c.digest.clone());
        match pulled_for {
            None => {
                self.needs_credentials = false;
                self.private_to = None;
            }
            // What was had without credentials once is no secret.
            Some(_) if same && self.private_to.is_none() => {}
            Some(identity) => {
                let known = self.private_to.take().filter(|_| same).unwrap_or_default();
                let others = known.into_iter().filter(|other| other != identity);
                let mut all: Vec<Identity> = others.chain([identity.clone()]).collect();
                all.drain(..all.len().saturating_sub(IDENTITIES_MAX));
                self.private_to = Some(all);
            }
        }
    }

    /// Whether the registry has given the image to somebody without credentials, and has not said
    /// otherwise since.
    pub fn is_public(&self) -> bool {
        self.confirmed.is_some() && !self.needs_credentials
    }

    /// Whether the registry has given this digest to everybody.
    pub fn is_everybodys(&self, digest: &Digest) -> bool {
        self.confirmed_at(digest).is_some() && self.private_to.is_none()
    }

    /// Whether the registry has given this digest to everybody, or to the kubelet for this identity.
    pub fn may_have(&self, digest: &Digest, identity: &Identity) -> bool {
        let given_to = self.private_to.as_ref();
        self.confirmed_at(digest).is_some() && given_to.is_none_or(|to| to.contains(identity))
    }

    /// When the registry last said that the tag points to this digest.
    pub fn confirmed_at(&self, digest: &Digest) -> Option<Timestamp> {
        let confirmed = self.confirmed.as_ref().filter(|c| c.digest == *digest)?;
        Some(confirmed.time)
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
#[serde(default, rename_all = "camelCase")]
pub struct Week {
    /// All tries.
    pub tries: u32,
    /// Tries that failed.
    pub failures: u32,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const D1: &str =
        "sha256:1111111111111111111111111111111111111111111111111111111111111111";

    pub(crate) fn tried(image: &str, second: i64, result: TryResult, digest: Option<&str>) -> Try {
        Try {
            image: image.parse().unwrap(),
            started: Timestamp::from_second(second).unwrap(),
            duration: Duration::from_secs(2),
            result,
            digest: digest.map(|digest| digest.parse().unwrap()),
            size_bytes: None,
            copy_unknown: false,
            pulled_for: None,
            refused: false,
        }
    }

    pub(crate) fn failed(class: FailureClass) -> TryResult {
        TryResult::Failed(Failure::new(class, "why"))
    }

    #[test]
    fn the_last_answer_about_credentials_counts() {
        let mut facts = Facts::default();
        for (result, needs) in [
            (failed(FailureClass::Unauthorized), true),
            (failed(FailureClass::Network), true),
            (TryResult::Unchanged, false),
            (failed(FailureClass::Timeout), false),
        ] {
            facts.add(&tried("app", 0, result, Some(D1)));
            assert_eq!(facts.needs_credentials, needs);
        }
    }

    #[test]
    fn a_confirmation_lasts_and_a_copy_is_what_was_seen_last() {
        let mut facts = Facts::default();
        facts.add(&tried("app", 7, TryResult::Fresh, Some(D1)));
        facts.add(&tried("app", 9, failed(FailureClass::Local), None));
        assert_eq!(facts.copy, None);
        assert_eq!(
            facts.confirmed_at(&D1.parse().unwrap()),
            Timestamp::from_second(7).ok()
        );
        let mut unknown = tried("app", 11, failed(FailureClass::Local), None);
        unknown.copy_unknown = true;
        facts.add(&tried("app", 10, TryResult::Unchanged, Some(D1)));
        facts.add(&unknown);
        assert!(facts.copy.is_some(), "a silent containerd says nothing");
    }
}
