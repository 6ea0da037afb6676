//! What is remembered of a try, on disk and in reports.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::identity::Identity;
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass};
use crate::text;
use crate::time::age;

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
    pub pulled_for: Option<Box<Identity>>,
    /// The registry had refused the agent's own try with 401 or 403 before: that and the kubelet's pull are
    /// one try.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// A command on the node pulled, and not the agent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_hand: bool,
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

    /// Its kind, if it failed.
    pub fn class(&self) -> Option<FailureClass> {
        self.failure().map(|failure| failure.class)
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

/// What the tries of one image name have shown. What few images have is boxed: each image that is remembered has these.
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
    /// That the name was pointed back to an earlier copy by hand, until the next successful try says where the tag
    /// points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<Box<RolledBack>>,
}

impl Facts {
    /// Adds what a later try has shown.
    pub fn add(&mut self, tried: &Try) {
        if let Some(confirmed) = tried.confirmation() {
            self.confirm(confirmed, tried.pulled_for.as_deref());
        }
        let class = tried.result.class();
        let by_kubelet = tried.pulled_for.is_some() && class.is_none();
        if class == Some(FailureClass::Unauthorized) || by_kubelet || tried.refused {
            self.needs_credentials = true;
        }
        // What was there before the name was pointed back.
        let is_older = |back: &RolledBack| tried.ended() <= back.time;
        if self.rolled_back.as_deref().is_some_and(is_older) {
            return;
        }
        if !tried.copy_unknown {
            self.copy = tried.copy();
        }
        let points_to = tried.digest.as_ref();
        if class.is_none() || points_to.is_some() && points_to != self.rolled_back_to() {
            self.rolled_back = None;
        }
    }

    /// Takes over whether the name is pointed back to an earlier copy, as the node says now.
    pub fn set_rolled_back(&mut self, back: Option<&RolledBack>) {
        // A try that has ended well since knows better, whatever it has found: the mark may have been read before it.
        let confirmed = |back: &&RolledBack| {
            let of_newest = self.confirmed.as_ref().map(|confirmed| confirmed.time);
            let at = self.confirmed_at(&back.to).max(of_newest);
            at.is_some_and(|at| at >= back.time)
        };
        let Some(back) = back.filter(|back| !confirmed(back)) else {
            self.rolled_back = None;
            return;
        };
        self.rolled_back = Some(Box::new(back.clone()));
        if self.copy.as_ref().map(|copy| &copy.digest) != Some(&back.to) {
            self.copy = Some(LocalCopy {
                digest: back.to.clone(),
                size_bytes: None,
            });
        }
    }

    /// Where the name was pointed back to, if it was.
    pub fn rolled_back_to(&self) -> Option<&Digest> {
        self.rolled_back.as_ref().map(|back| &back.to)
    }

    /// That the name was pointed back to this digest, if it was.
    pub fn rolled_back_here(&self, digest: &Digest) -> Option<&RolledBack> {
        self.rolled_back
            .as_deref()
            .filter(|back| back.to == *digest)
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
    /// When the registry first said that the tag points to what it last pointed to, as far as the tries reach.
    pub(crate) fn confirmed_from(&self) -> Option<Timestamp> {
        let last = self.facts.confirmed.as_ref()?;
        let confirmed = self.tries.iter().filter_map(Try::confirmation);
        let same = confirmed.take_while(|confirmed| confirmed.digest == last.digest);
        Some(same.last().map_or(last.time, |first| first.time))
    }

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

/// A name that was pointed back to an earlier copy, by `trylatest rollback`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// When.
    pub time: Timestamp,
    /// What it pointed to before, if a container could start from that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Digest>,
    /// What it points to since.
    pub to: Digest,
}

impl RolledBack {
    /// In a sentence about the copy that it points to.
    pub fn describe(&self, now: Timestamp) -> String {
        let ago = text::short_duration(age(now, self.time));
        let from = self.from.as_ref().map(Digest::short);
        let from = from.map_or(String::new(), |from| format!(" from {from}"));
        format!("rolled back{from} {ago} ago")
    }
}

/// When the registry last confirmed a copy, in a sentence about it. Of one that the name was pointed back to, that is
/// forgotten: only the newest confirmation is remembered.
pub fn last_confirmed(
    confirmed: Option<Timestamp>,
    rolled_back: Option<&RolledBack>,
    now: Timestamp,
) -> String {
    match (rolled_back, confirmed) {
        (Some(back), _) => back.describe(now),
        (None, Some(then)) => format!("confirmed {} ago", text::short_duration(age(now, then))),
        (None, None) => "never confirmed by TryLatest".to_owned(),
    }
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

    const D2: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

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
            by_hand: false,
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

    /// At second 20, from `D2` to `D1`.
    fn rolled_back() -> RolledBack {
        RolledBack {
            time: Timestamp::from_second(20).unwrap(),
            from: D2.parse().ok(),
            to: D1.parse().unwrap(),
        }
    }

    #[test]
    fn a_rollback_lasts_until_the_registry_has_spoken() {
        let mut facts = Facts::default();
        facts.add(&tried("app", 7, TryResult::Fresh, Some(D2)));
        let back = rolled_back();
        facts.set_rolled_back(Some(&back));
        assert_eq!(facts.copy.as_ref().map(|copy| &copy.digest), Some(&back.to));
        // A try that had ended before: what it saw is not there any more.
        facts.add(&tried("app", 15, TryResult::Unchanged, Some(D2)));
        assert_eq!(facts.rolled_back_to(), Some(&back.to));
        assert_eq!(facts.copy.as_ref().map(|copy| &copy.digest), Some(&back.to));
        let failed = || failed(FailureClass::Network);
        facts.add(&tried("app", 30, failed(), Some(D1)));
        facts.add(&tried("app", 31, failed(), None));
        assert_eq!(
            facts.rolled_back.as_deref(),
            Some(&back),
            "nobody has spoken"
        );
        for (result, digest) in [
            (TryResult::Fresh, D2),
            (TryResult::Unchanged, D1),
            // Somebody else has moved it.
            (failed(), D2),
        ] {
            let mut facts = facts.clone();
            facts.add(&tried("app", 40, result, Some(digest)));
            assert_eq!(facts.rolled_back, None, "{digest}");
        }
    }

    #[test]
    fn what_the_registry_has_confirmed_since_is_not_rolled_back() {
        let mut facts = Facts::default();
        let back = rolled_back();
        facts.add(&tried("app", 30, TryResult::Unchanged, Some(D1)));
        facts.set_rolled_back(Some(&back));
        assert_eq!(facts.rolled_back, None);
        let again = RolledBack {
            time: Timestamp::from_second(40).unwrap(),
            ..back
        };
        facts.set_rolled_back(Some(&again));
        assert!(facts.rolled_back.is_some());
        facts.set_rolled_back(None);
        assert_eq!(facts.rolled_back, None);
    }
}
