//! Which copy a container may use once a try has ended: the one place that says so.

use std::time::Duration;

use jiff::Timestamp;

use crate::digest::Digest;
use crate::knowledge::Facts;
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::record::TryResult;
use crate::rules::{NodeRules, Rules};
use crate::text;
use crate::time::{age, near};

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

    /// Why no container can start from what a successful pull has left.
    fn unusable(&self) -> Option<Failure> {
        match self {
            Self::Usable { .. } => None,
            Self::Absent => Some(Failure::new(FailureClass::Local, "the image is gone again")),
            Self::Unusable { why } => Some(Failure::new(
                FailureClass::Invalid,
                format!("no container can start from what was pulled: {why}"),
            )),
            Self::Unknown { why } => Some(Failure::new(
                FailureClass::Local,
                format!("the copy could not be looked at: {why}"),
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
            copy: after,
            healed,
        }
    }

    /// Of a look, because nothing came in time.
    pub fn of_look(failure: Failure, copy: CachedCopy) -> Self {
        Self {
            result: TryResult::Failed(failure),
            copy,
            healed: None,
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
                    note,
                },
            })
        }
        (TryResult::Failed(failure), CachedCopy::Absent)
            if failure.class == FailureClass::Unauthorized =>
        {
            Some(Decision::because(
                Outcome::Unavailable,
                "private images are pulled by the kubelet, with the pod's own secrets",
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
            return Decision::because(Outcome::Unavailable, "no copy is on this node");
        }
        CachedCopy::Unusable { why } => format!("the copy on this node cannot be used: {why}"),
        CachedCopy::Unknown { why } => {
            format!("the copy on this node could not be looked at: {why}")
        }
    };
    match refusal(class, None, terms) {
        Some(why) => Decision::because(Outcome::Refused, format!("{why}; {what}")),
        None => Decision::because(Outcome::Unavailable, what),
    }
}

/// Why this pod may not use the cached copy, if so; without a digest, a copy of which nothing is
/// known.
fn refusal(class: FailureClass, digest: Option<&Digest>, terms: Terms<'_>) -> Option<String> {
    let Terms { facts, rules, now } = terms;
    let private = class == FailureClass::Unauthorized || facts.needs_credentials;
    if private && !rules.allow_unverified_fallback {
        return Some(
            "the registry wants credentials, and nothing proves that this pod has them".into(),
        );
    }
    if !rules.allow_fallback_on(class) {
        return Some(match rules.fallback_on {
            Some(_) => format!("the pod's fallback-on does not list {class}"),
            None => format!(
                "after {class}, the cached copy is used only if the pod's trylatest.dev/fallback-on lists {class}"
            ),
        });
    }
    let max_age = rules.max_age?;
    let confirmed = digest.and_then(|digest| facts.confirmed_at(digest));
    // A time that lies ahead was written by a clock that was set back since: it tells no age.
    let confirmed = confirmed.filter(|&then| then <= now || near(then, now, CLOCK_STEP));
    match confirmed.map(|then| age(now, then)) {
        Some(age) if age <= max_age => None,
        Some(age) => Some(older_than(max_age, &text::short_duration(age))),
        None => Some(older_than(max_age, "an unknown time")),
    }
}

/// Whether a pod that sets nothing may use the cached copy after such a failure.
pub(crate) fn may_use_by_default(class: FailureClass, facts: &Facts, node: &NodeRules) -> bool {
    let terms = Terms {
        facts,
        rules: &node.by_default(),
        // No age counts for it.
        now: Timestamp::UNIX_EPOCH,
    };
    refusal(class, None, terms).is_none()
}

/// Clocks are set by less than this while they are kept in time.
const CLOCK_STEP: Duration = Duration::from_secs(60);

fn older_than(max_age: Duration, age: &str) -> String {
    format!(
        "its tag was last confirmed {age} ago, the pod's max-age is {}",
        text::short_duration(max_age)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Confirmation;

    const NOW: &str = "2026-01-01T12:00:00Z";

    fn of(short: &str) -> Digest {
        format!("sha256:{short}").parse().unwrap()
    }

    fn usable(digest: &str) -> CachedCopy {
        CachedCopy::Usable {
            digest: of(digest),
            size_bytes: 1,
        }
    }

    struct Case {
        failure: Option<FailureClass>,
        before: CachedCopy,
        after: CachedCopy,
        facts: Facts,
        rules: Rules,
    }

    impl Default for Case {
        fn default() -> Self {
            Self {
                failure: None,
                before: usable("a"),
                after: usable("a"),
                facts: Facts::default(),
                rules: rules(),
            }
        }
    }

    fn rules() -> Rules {
        let node = NodeRules {
            try_for: Duration::from_secs(30),
            allow_unverified_fallback: false,
        };
        node.by_default()
    }

    fn private() -> Facts {
        Facts {
            needs_credentials: true,
            ..Facts::default()
        }
    }

    impl Case {
        fn evidence(&self) -> Evidence {
            let failure = self.failure.map(|class| Failure::new(class, "why"));
            Evidence::of_try(failure, &self.before, self.after.clone(), None)
        }

        fn outcome(&self) -> Option<Outcome> {
            let Decision { outcome, note } = judge(&self.evidence(), self.terms())?;
            assert_eq!(
                outcome == Outcome::Refused,
                note.is_some() && outcome != Outcome::Unavailable
            );
            Some(outcome)
        }

        /// Nothing more is tried.
        fn last_outcome(&self) -> Outcome {
            let class = self.failure.unwrap();
            give_up(class, &self.after, self.terms()).outcome
        }

        fn terms(&self) -> Terms<'_> {
            Terms {
                facts: &self.facts,
                rules: &self.rules,
                now: NOW.parse().unwrap(),
            }
        }
    }

    #[test]
    fn a_pull_that_worked_is_fresh_or_unchanged() {
        let unchanged = Case::default();
        assert_eq!(unchanged.outcome(), Some(Outcome::Unchanged));
        for before in [
            usable("b"),
            CachedCopy::Absent,
            CachedCopy::Unusable { why: "x".into() },
        ] {
            let fresh = Case {
                before,
                ..Case::default()
            };
            assert_eq!(fresh.outcome(), Some(Outcome::Fresh));
        }
    }

    /// containerd listed the copy, and the disk had lost it: nothing of it could have started.
    #[test]
    fn a_copy_that_was_healed_is_fresh_and_says_so() {
        let case = Case::default();
        let words = || Some("the disk had lost a layer".to_owned());
        for (failure, outcome) in [
            (None, Outcome::Fresh),
            (
                Some(Failure::new(FailureClass::Network, "down")),
                Outcome::Fallback,
            ),
        ] {
            let evidence = Evidence::of_try(failure, &usable("a"), usable("a"), words());
            let decision = judge(&evidence, case.terms()).unwrap();
            assert_eq!(decision.outcome, outcome);
            assert_eq!(decision.note, words());
        }
    }

    #[test]
    fn what_is_not_proven_usable_is_never_handed_out() {
        for failure in [
            None,
            Some(FailureClass::Network),
            Some(FailureClass::NotFound),
        ] {
            for after in [
                CachedCopy::Absent,
                CachedCopy::Unusable { why: "x".into() },
                CachedCopy::Unknown { why: "x".into() },
            ] {
                let case = Case {
                    failure,
                    after,
                    ..Case::default()
                };
                assert_eq!(case.outcome(), None);
            }
        }
    }

    #[test]
    fn every_failure_but_a_refusal_falls_back() {
        for class in FailureClass::ALL {
            let case = Case {
                failure: Some(class),
                ..Case::default()
            };
            let expected = match class {
                FailureClass::Unauthorized | FailureClass::Blocked => Outcome::Refused,
                _ => Outcome::Fallback,
            };
            assert_eq!(case.outcome(), Some(expected), "{class}");
        }
    }

    #[test]
    fn a_private_image_is_refused_in_an_outage_too_unless_allowed() {
        let mut case = Case {
            failure: Some(FailureClass::Network),
            facts: private(),
            ..Case::default()
        };
        assert_eq!(case.outcome(), Some(Outcome::Refused));
        case.rules.allow_unverified_fallback = true;
        assert_eq!(case.outcome(), Some(Outcome::Fallback));
    }

    #[test]
    fn a_private_image_that_is_absent_is_left_to_the_kubelet() {
        let case = Case {
            failure: Some(FailureClass::Unauthorized),
            before: CachedCopy::Absent,
            after: CachedCopy::Absent,
            ..Case::default()
        };
        assert_eq!(case.outcome(), Some(Outcome::Unavailable));
    }

    #[test]
    fn what_a_verifier_blocked_falls_back_where_the_pod_says_so() {
        let mut case = Case {
            failure: Some(FailureClass::Blocked),
            rules: Rules {
                fallback_on: Some([FailureClass::Network, FailureClass::Blocked].into()),
                ..rules()
            },
            ..Case::default()
        };
        assert_eq!(case.outcome(), Some(Outcome::Fallback));
        case.rules = rules();
        assert_eq!(case.outcome(), Some(Outcome::Refused));
        (case.before, case.after) = (CachedCopy::Absent, CachedCopy::Absent);
        assert_eq!(case.outcome(), Some(Outcome::Unavailable));
    }

    #[test]
    fn fallback_on_refuses_what_it_does_not_list() {
        let mut case = Case {
            failure: Some(FailureClass::NotFound),
            rules: Rules {
                fallback_on: Some([FailureClass::Network].into()),
                ..rules()
            },
            ..Case::default()
        };
        assert_eq!(case.outcome(), Some(Outcome::Refused));
        case.failure = Some(FailureClass::Network);
        assert_eq!(case.outcome(), Some(Outcome::Fallback));
    }

    #[test]
    fn max_age_refuses_an_older_copy_and_one_of_unknown_age() {
        for (confirmed, expected) in [
            (Some(("2026-01-01T11:00:00Z", "a")), Outcome::Fallback),
            (Some(("2026-01-01T10:59:59Z", "a")), Outcome::Refused),
            // The clock was set by a little, and by much.
            (Some(("2026-01-01T12:00:30Z", "a")), Outcome::Fallback),
            (Some(("2026-02-01T12:00:00Z", "a")), Outcome::Refused),
            // The tag was seen a moment ago, but it pointed elsewhere.
            (Some(("2026-01-01T11:59:59Z", "b")), Outcome::Refused),
            (None, Outcome::Refused),
        ] {
            let case = Case {
                failure: Some(FailureClass::Network),
                facts: Facts {
                    confirmed: confirmed.map(|(time, digest)| Confirmation {
                        time: time.parse().unwrap(),
                        digest: of(digest),
                    }),
                    ..Facts::default()
                },
                rules: Rules {
                    max_age: Some(Duration::from_secs(3600)),
                    ..rules()
                },
                ..Case::default()
            };
            assert_eq!(case.outcome(), Some(expected), "{confirmed:?}");
        }
    }

    /// The kubelet starts from what it finds, proven or not.
    #[test]
    fn a_copy_that_is_not_known_to_be_absent_is_refused_as_a_proven_one_would_be() {
        let unknown = || CachedCopy::Unknown { why: "x".into() };
        let unusable = || CachedCopy::Unusable { why: "x".into() };
        let strict = || Rules {
            max_age: Some(Duration::from_secs(3600)),
            ..rules()
        };
        for (after, facts, rules, expected) in [
            (unknown(), private(), rules(), Outcome::Refused),
            (unusable(), private(), rules(), Outcome::Refused),
            (unknown(), Facts::default(), strict(), Outcome::Refused),
            (unknown(), Facts::default(), rules(), Outcome::Unavailable),
            (
                CachedCopy::Absent,
                private(),
                strict(),
                Outcome::Unavailable,
            ),
        ] {
            let case = Case {
                failure: Some(FailureClass::Local),
                after,
                facts,
                rules,
                ..Case::default()
            };
            assert_eq!(case.last_outcome(), expected, "{:?}", case.after);
        }
    }
}
