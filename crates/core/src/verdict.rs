//! Which copy a container may use once a try has ended: the one place that says so.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use crate::digest::Digest;
use crate::identity::Identity;
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::record::{Facts, Try, TryResult};
use crate::rules::{NodeRules, Rule, Rules, Source};
use crate::time::{Now, age, near, written};

/// The kubelet starts a pod only from a copy that was pulled with the pod's credentials, or that it has not pulled
/// itself (KEP-2535).
const MAYBE_NOT_THEIRS: &str = "if this copy was only ever pulled with other credentials, the kubelet does not start \
                                the pod from it";

/// What the node holds under an image's name, as proven at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CachedCopy {
    /// A container can start from it.
    Usable {
        /// What the name points to.
        digest: Digest,
        /// Its size in bytes, as CRI reports it.
        size_bytes: u64,
    },
    /// The name is not known.
    Absent,
    /// The name is known, but no container can start from it.
    Unusable {
        /// What is missing or wrong.
        why: String,
    },
    /// It could not be found out.
    Unknown {
        /// Why not.
        why: String,
    },
}

impl CachedCopy {
    /// The digest of a usable copy.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Usable { digest, .. } => Some(digest),
            Self::Absent | Self::Unusable { .. } | Self::Unknown { .. } => None,
        }
    }

    /// Whether there may be one, and it is not known to be usable.
    pub fn is_unproven(&self) -> bool {
        match self {
            Self::Unusable { .. } | Self::Unknown { .. } => true,
            Self::Usable { .. } | Self::Absent => false,
        }
    }

    /// Why no container can start from what a successful pull has left.
    fn unusable(&self) -> Option<Failure> {
        match self {
            Self::Usable { .. } => None,
            Self::Absent => Some(Failure::new(
                FailureClass::Local,
                "the image was removed right after the pull",
            )),
            Self::Unusable { why } => Some(Failure::new(
                FailureClass::Invalid,
                format!("no container can start from what was pulled: {why}"),
            )),
            Self::Unknown { why } => Some(Failure::new(
                FailureClass::Local,
                format!("the copy could not be checked: {why}"),
            )),
        }
    }
}

/// What a try, or a look when a pod's time is up, has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// How the try ended.
    pub result: TryResult,
    /// The copy proven after it.
    pub copy: CachedCopy,
    /// What the node's disk had lost and was fetched again, or can be.
    pub healed: Option<String>,
    /// Every digest under which the node has the content of that copy: an index that was pushed again names the same
    /// manifest. Empty if that is not known.
    pub digests: BTreeSet<Digest>,
}

impl Evidence {
    /// Of a try that ended with this, with what was proven before and after.
    pub fn of_try(
        failure: Option<Failure>,
        before: &CachedCopy,
        after: CachedCopy,
        healed: Option<String>,
    ) -> Self {
        let result = match failure.or_else(|| after.unusable()) {
            Some(failure) => TryResult::Failed(failure),
            None if healed.is_none() && before.digest() == after.digest() => TryResult::Unchanged,
            None => TryResult::Fresh,
        };
        Self {
            result,
            digests: after.digest().cloned().into_iter().collect(),
            copy: after,
            healed,
        }
    }

    /// What is remembered of it, of a try that began then; and for whom the kubelet has pulled, if it was the
    /// kubelet.
    pub fn to_try(
        &self,
        image: &ImageName,
        began: Now,
        now: Now,
        pulled_for: Option<Identity>,
    ) -> Try {
        let size_bytes = match &self.copy {
            CachedCopy::Usable { size_bytes, .. } => Some(*size_bytes),
            CachedCopy::Absent | CachedCopy::Unusable { .. } | CachedCopy::Unknown { .. } => None,
        };
        Try {
            image: image.clone(),
            started: began.wall,
            duration: now.up.saturating_sub(began.up),
            result: self.result.clone(),
            digest: self.copy.digest().cloned(),
            size_bytes,
            copy_unknown: matches!(self.copy, CachedCopy::Unknown { .. }),
            pulled_for: pulled_for.map(Box::new),
            refused: false,
            by_hand: false,
        }
    }

    /// Of a look, because nothing came in time.
    pub fn of_look(failure: Failure, copy: CachedCopy) -> Self {
        Self {
            result: TryResult::Failed(failure),
            copy,
            healed: None,
            digests: BTreeSet::new(),
        }
    }
}

/// What a cached copy is measured against.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// What is known about the image.
    pub facts: &'a Facts,
    /// What applies to the pod.
    pub rules: &'a Rules,
    /// The time of the decision.
    pub now: Timestamp,
}

/// What a container gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// How its image's try ended for it.
    pub outcome: Outcome,
    /// A refusal's reason, what was left to whom, or what was healed.
    pub note: Option<String>,
}

impl Decision {
    /// Without a note.
    pub(crate) fn plain(outcome: Outcome) -> Self {
        let note = None;
        Self { outcome, note }
    }

    fn because(outcome: Outcome, note: impl Into<String>) -> Self {
        let note = Some(note.into());
        Self { outcome, note }
    }
}

/// Judges one ended try. None if there is nothing to start from, and another try may change that.
///
/// A copy that is not proven usable *after* the pull is never handed out.
pub fn judge(evidence: &Evidence, terms: Terms<'_>) -> Option<Decision> {
    let Evidence {
        result,
        copy,
        healed,
        digests: _,
    } = evidence;
    let note = healed.clone();
    match (result, copy) {
        (TryResult::Fresh, CachedCopy::Usable { .. }) => {
            let outcome = Outcome::Fresh;
            Some(Decision { outcome, note })
        }
        (TryResult::Unchanged, CachedCopy::Usable { .. }) => {
            Some(Decision::plain(Outcome::Unchanged))
        }
        (TryResult::Failed(failure), CachedCopy::Usable { digest, .. }) => {
            Some(match refusal(failure.class, Some(digest), terms) {
                Some(why) => Decision::because(Outcome::Refused, why),
                None => Decision {
                    outcome: Outcome::Fallback,
                    note: note.or_else(|| Some(doubt(failure.class, digest, terms)?.to_owned())),
                },
            })
        }
        (TryResult::Failed(failure), CachedCopy::Absent)
            if failure.class == FailureClass::Unauthorized =>
        {
            Some(Decision::because(
                Outcome::Unavailable,
                "the kubelet pulls private images, with the pod's own secrets",
            ))
        }
        // A verifier has judged. Whether it is asked again is for the kubelet to say, as ever.
        (TryResult::Failed(failure), CachedCopy::Absent)
            if failure.class == FailureClass::Blocked =>
        {
            Some(Decision::because(
                Outcome::Unavailable,
                "the kubelet pulls it once the image verifier allows it",
            ))
        }
        // The kubelet may know a secret that opens it, and reports what is wrong a second later if not.
        (TryResult::Failed(failure), CachedCopy::Absent)
            if failure.class == FailureClass::NotFound =>
        {
            Some(Decision::because(
                Outcome::Unavailable,
                "there is no copy on this node; the kubelet tries to pull it, with the pod's own secrets",
            ))
        }
        (_, CachedCopy::Absent | CachedCopy::Unusable { .. } | CachedCopy::Unknown { .. }) => None,
    }
}

/// Decides without a proven copy, because nothing more is tried.
///
/// An open gate lets the kubelet start from whatever it finds under the image's name. So where the
/// copy is not known to be absent, what would refuse a proven copy refuses this one, too.
pub fn give_up(class: FailureClass, copy: &CachedCopy, terms: Terms<'_>) -> Decision {
    let what = match copy {
        CachedCopy::Usable { .. } | CachedCopy::Absent => {
            return Decision::because(Outcome::Unavailable, "there is no copy on this node");
        }
        CachedCopy::Unusable { why } => format!("the copy on this node cannot be used: {why}"),
        CachedCopy::Unknown { why } => {
            format!("the copy on this node could not be checked: {why}")
        }
    };
    match refusal(class, None, terms) {
        Some(why) => Decision::because(Outcome::Refused, format!("{why}; {what}")),
        None => Decision::because(Outcome::Unavailable, what),
    }
}

/// The decision when nothing more is tried: [`judge`], or without anything to start from [`give_up`].
pub fn settle(evidence: &Evidence, terms: Terms<'_>) -> Decision {
    let class = evidence.result.class();
    let class = class.unwrap_or(FailureClass::Unknown);
    judge(evidence, terms).unwrap_or_else(|| give_up(class, &evidence.copy, terms))
}

/// What a pod gets if its try fails like this, with this copy here.
pub(crate) fn foresee(failure: Failure, copy: &CachedCopy, terms: Terms<'_>) -> Decision {
    let evidence = Evidence::of_look(failure, copy.clone());
    if is_for_kubelet(&evidence, terms) {
        return Decision::plain(Outcome::HandedOver);
    }
    settle(&evidence, terms)
}

/// Why this pod may not use the cached copy, if so; without a digest, a copy of which nothing is
/// known.
fn refusal(class: FailureClass, digest: Option<&Digest>, terms: Terms<'_>) -> Option<String> {
    let Terms { facts, rules, .. } = terms;
    let private = class == FailureClass::Unauthorized || facts.needs_credentials;
    let may_have = |digest| facts.may_have(digest, &rules.identity);
    if private && !rules.without_proof && !digest.is_some_and(may_have) {
        return Some(
            "the registry wants credentials, and nothing proves that this pod has them".into(),
        );
    }
    forbidden(class, digest, terms)
}

/// What the owner of a pod that is to start from this copy after such a failure has to know, if the kubelet may have
/// pulled it for others alone.
pub(crate) fn doubt(
    class: FailureClass,
    digest: &Digest,
    terms: Terms<'_>,
) -> Option<&'static str> {
    let Terms { facts, rules, .. } = terms;
    let is_private = class == FailureClass::Unauthorized || facts.needs_credentials;
    let is_open = rules.kubelet_decides && is_private && !facts.may_have(digest, &rules.identity);
    is_open.then_some(MAYBE_NOT_THEIRS)
}

/// Why the rules do not let a pod use the cached copy after such a failure, whoever it is, if they do not.
fn forbidden(class: FailureClass, digest: Option<&Digest>, terms: Terms<'_>) -> Option<String> {
    if let Err(source) = terms.rules.allow_fallback_on(class) {
        return Some(match source {
            Some(source) => format!("{} fallback-on does not list {class}", whose(source)),
            None => format!(
                "the cached copy is used after {class} only if the pod's trylatest.dev/fallback-on lists it"
            ),
        });
    }
    too_old(digest, terms)
}

/// Why a copy is older than the rules allow, if it is, or may be.
fn too_old(digest: Option<&Digest>, terms: Terms<'_>) -> Option<String> {
    let Terms { facts, rules, now } = terms;
    let Rule { value, source } = rules.max_age.as_ref()?;
    let (max_age, whose) = (*value, whose(*source));
    let confirmed = digest.and_then(|digest| facts.confirmed_at(digest));
    // A time that lies ahead was written by a clock that was set back since: it tells no age.
    let confirmed = confirmed.filter(|&then| then <= now || near(then, now, CLOCK_STEP));
    let limit = written(max_age);
    match confirmed.map(|then| age(now, then)) {
        Some(age) if age <= max_age => None,
        // Its age is said beside it, and grows.
        Some(_) => Some(format!("it is older than {whose} max-age of {limit}")),
        None => Some(format!(
            "TryLatest does not know how old it is, and {whose} max-age is {limit}"
        )),
    }
}

fn whose(source: Source) -> &'static str {
    match source {
        Source::Pod => "the pod's",
        Source::Administrator => "the administrator's",
        Source::Command => "the command's",
    }
}

/// Whether the registry has to be asked before the copy that is known is used, although it has just failed like this:
/// the pod itself does not take every copy, or nobody but the registry knows whether it may, and that has not
/// `spoken` yet, or an administrator's rule would refuse what is here.
pub(crate) fn has_to_ask(class: FailureClass, terms: Terms<'_>, spoken: bool) -> bool {
    let Terms { facts, rules, .. } = terms;
    rules.is_strict()
        || !spoken && !rules.without_proof
        || is_forbidden(class, facts.copy.as_ref().map(|copy| &copy.digest), terms)
}

/// Whether a pod may start from this copy although the registry answers, for all that is known, and is not asked.
/// Where nobody else looks after who may have it, the registry has to have `spoken`.
pub(crate) fn may_start_unasked(digest: &Digest, terms: Terms<'_>, spoken: bool) -> bool {
    let Terms { facts, rules, .. } = terms;
    let is_private = facts.needs_credentials || !spoken;
    let may_have =
        rules.without_proof || !is_private || spoken && facts.may_have(digest, &rules.identity);
    may_have && too_old(Some(digest), terms).is_none()
}

/// Whether the rules keep any pod from this copy after such a failure.
pub(crate) fn is_forbidden(class: FailureClass, copy: Option<&Digest>, terms: Terms<'_>) -> bool {
    forbidden(class, copy, terms).is_some()
}

/// Whether a pod that sets nothing may use the cached copy after this try, which has failed like this.
pub(crate) fn may_use_by_default(
    class: FailureClass,
    tried: &Try,
    facts: &Facts,
    node: &NodeRules,
) -> bool {
    let terms = Terms {
        facts,
        rules: &node.by_default(None, Some(&tried.image)),
        now: tried.ended(),
    };
    let copy = facts.copy.as_ref().map(|copy| &copy.digest);
    refusal(class, copy, terms).is_none()
}

/// Whether the kubelet is to ask the registry next, which wants credentials, or may want some.
///
/// The kubelet is not asked in vain: without pull secrets, what was had without credentials is had no
/// other way. Nor is it to find out for a pod, where it keeps no records, who may have a copy.
pub(crate) fn is_for_kubelet(evidence: &Evidence, terms: Terms<'_>) -> bool {
    let Terms { facts, rules, .. } = terms;
    let secrets = rules.identity.has_pull_secrets();
    let wants_credentials = match evidence.result.class() {
        Some(FailureClass::Unauthorized) => true,
        // Some registries hide what is private, and from nobody what they have given to everybody.
        Some(FailureClass::NotFound) => secrets && !facts.is_public(),
        _ => false,
    };
    let may = match &evidence.copy {
        CachedCopy::Usable { digest, .. } if facts.is_everybodys(digest) && !secrets => false,
        CachedCopy::Usable { digest, .. } => {
            rules.without_proof || facts.may_have(digest, &rules.identity)
        }
        CachedCopy::Absent => true,
        CachedCopy::Unusable { .. } | CachedCopy::Unknown { .. } => false,
    };
    wants_credentials && may
}

/// Clocks are set by less than this while they are kept in time.
const CLOCK_STEP: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
