//! Which copy a container may use once a try has ended: the one place that says so.

use std::time::Duration;

use jiff::Timestamp;

use crate::outcome::{Failure, FailureClass, Outcome};
use crate::record::Confirmation;
use crate::settings::Settings;
use crate::text;
use crate::time::{age, near};

/// What the node holds under an image's name, as proven at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copy {
    /// A container can start from it.
    Usable {
        /// What the name points to.
        digest: String,
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

impl Copy {
    /// The digest of a usable copy.
    pub fn digest(&self) -> Option<&str> {
        match self {
            Self::Usable { digest, .. } => Some(digest),
            Self::Absent | Self::Unusable { .. } | Self::Unknown { .. } => None,
        }
    }
}

/// What is remembered of an image from earlier tries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The registry's last word on where the tag points.
    pub confirmed: Option<Confirmation>,
    /// Whether the registry's last word was 401 or 403.
    pub needs_credentials: bool,
}

impl Known {
    /// Whether the registry has given the image to somebody without credentials, and has not said
    /// otherwise since.
    pub fn is_public(&self) -> bool {
        self.confirmed.is_some() && !self.needs_credentials
    }

    /// When the registry last said that the tag points to this digest.
    pub fn confirmed_at(&self, digest: &str) -> Option<Timestamp> {
        let confirmed = self.confirmed.as_ref().filter(|c| c.digest == digest)?;
        Some(confirmed.time)
    }
}

/// How a try ended, or how things stand when a pod's time is up.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Why the pull failed; none if it succeeded.
    pub failure: Option<&'a Failure>,
    /// The copy proven before the pull.
    pub before: &'a Copy,
    /// The copy proven after it.
    pub after: &'a Copy,
    /// What the node's disk had lost and was fetched again, or can be.
    pub healed: Option<&'a str>,
}

/// What a cached copy is measured against.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// What is remembered of the image.
    pub known: &'a Known,
    /// What the pod has set.
    pub settings: &'a Settings,
    /// Hand out cached copies of private images without proof.
    pub allow_unverified_fallback: bool,
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
pub fn judge(evidence: Evidence<'_>, terms: Terms<'_>) -> Option<Decision> {
    match (evidence.failure, evidence.after) {
        (None, Copy::Usable { digest, .. }) => Some(match evidence.healed {
            Some(healed) => Decision::because(Outcome::Fresh, healed),
            None if evidence.before.digest() == Some(digest) => Decision::plain(Outcome::Unchanged),
            None => Decision::plain(Outcome::Fresh),
        }),
        (Some(failure), Copy::Usable { digest, .. }) => {
            Some(match refusal(failure.class, Some(digest), terms) {
                Some(why) => Decision::because(Outcome::Refused, why),
                None => Decision {
                    outcome: Outcome::Fallback,
                    note: evidence.healed.map(str::to_owned),
                },
            })
        }
        (Some(failure), Copy::Absent) if failure.class == FailureClass::Unauthorized => {
            Some(Decision::because(
                Outcome::Unavailable,
                "private images are pulled by the kubelet, with the pod's own secrets",
            ))
        }
        // A verifier has judged. Whether it is asked again is for the kubelet to say, as ever.
        (Some(failure), Copy::Absent) if failure.class == FailureClass::Blocked => {
            Some(Decision::because(
                Outcome::Unavailable,
                "the kubelet pulls it once the image verifier allows it",
            ))
        }
        (_, Copy::Absent | Copy::Unusable { .. } | Copy::Unknown { .. }) => None,
    }
}

/// Decides without a proven copy, because nothing more is tried.
///
/// An open gate lets the kubelet start from whatever it finds under the image's name. So where the
/// copy is not known to be absent, what would refuse a proven copy refuses this one, too.
pub fn give_up(class: FailureClass, copy: &Copy, terms: Terms<'_>) -> Decision {
    let what = match copy {
        Copy::Usable { .. } | Copy::Absent => {
            return Decision::because(Outcome::Unavailable, "no copy is on this node");
        }
        Copy::Unusable { why } => format!("the copy on this node cannot be used: {why}"),
        Copy::Unknown { why } => format!("the copy on this node could not be looked at: {why}"),
    };
    match refusal(class, None, terms) {
        Some(why) => Decision::because(Outcome::Refused, format!("{why}; {what}")),
        None => Decision::because(Outcome::Unavailable, what),
    }
}

/// Why this pod may not use the cached copy, if so; without a digest, a copy of which nothing is
/// known.
fn refusal(class: FailureClass, digest: Option<&str>, terms: Terms<'_>) -> Option<String> {
    let Terms {
        known,
        settings,
        allow_unverified_fallback,
        now,
    } = terms;
    let private = class == FailureClass::Unauthorized || known.needs_credentials;
    if private && !allow_unverified_fallback {
        return Some(
            "the registry wants credentials, and nothing proves that this pod has them".into(),
        );
    }
    if !settings.allow_fallback_on(class) {
        return Some(match settings.fallback_on {
            Some(_) => format!("the pod's fallback-on does not list {class}"),
            None => format!(
                "after {class}, the cached copy is used only if the pod's trylatest.dev/fallback-on lists {class}"
            ),
        });
    }
    let max_age = settings.max_age?;
    let confirmed = digest.and_then(|digest| known.confirmed_at(digest));
    // A time that lies ahead was written by a clock that was set back since: it tells no age.
    let confirmed = confirmed.filter(|&then| then <= now || near(then, now, CLOCK_STEP));
    match confirmed.map(|then| age(now, then)) {
        Some(age) if age <= max_age => None,
        Some(age) => Some(older_than(max_age, &text::short_duration(age))),
        None => Some(older_than(max_age, "an unknown time")),
    }
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

    const NOW: &str = "2026-01-01T12:00:00Z";

    fn usable(digest: &str) -> Copy {
        Copy::Usable {
            digest: digest.into(),
            size_bytes: 1,
        }
    }

    struct Case {
        failure: Option<FailureClass>,
        before: Copy,
        after: Copy,
        known: Known,
        settings: Settings,
        allow: bool,
    }

    impl Default for Case {
        fn default() -> Self {
            Self {
                failure: None,
                before: usable("a"),
                after: usable("a"),
                known: Known::default(),
                settings: Settings::default(),
                allow: false,
            }
        }
    }

    impl Case {
        fn outcome(&self) -> Option<Outcome> {
            let failure = self.failure.map(|class| Failure::new(class, "why"));
            let evidence = Evidence {
                failure: failure.as_ref(),
                before: &self.before,
                after: &self.after,
                healed: None,
            };
            let Decision { outcome, note } = judge(evidence, self.terms())?;
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
                known: &self.known,
                settings: &self.settings,
                allow_unverified_fallback: self.allow,
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
            Copy::Absent,
            Copy::Unusable { why: "x".into() },
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
        let (before, after) = (usable("a"), usable("a"));
        let case = Case::default();
        let evidence = Evidence {
            failure: None,
            before: &before,
            after: &after,
            healed: Some("the disk had lost a layer"),
        };
        let decision = judge(evidence, case.terms()).unwrap();
        assert_eq!(decision.outcome, Outcome::Fresh);
        assert_eq!(decision.note.as_deref(), evidence.healed);
        let failure = Failure::new(FailureClass::Network, "down");
        let evidence = Evidence {
            failure: Some(&failure),
            ..evidence
        };
        let decision = judge(evidence, case.terms()).unwrap();
        assert_eq!(decision.outcome, Outcome::Fallback);
        assert_eq!(decision.note.as_deref(), evidence.healed);
    }

    #[test]
    fn what_is_not_proven_usable_is_never_handed_out() {
        for failure in [
            None,
            Some(FailureClass::Network),
            Some(FailureClass::NotFound),
        ] {
            for after in [
                Copy::Absent,
                Copy::Unusable { why: "x".into() },
                Copy::Unknown { why: "x".into() },
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
            known: Known {
                needs_credentials: true,
                confirmed: None,
            },
            ..Case::default()
        };
        assert_eq!(case.outcome(), Some(Outcome::Refused));
        case.allow = true;
        assert_eq!(case.outcome(), Some(Outcome::Fallback));
    }

    #[test]
    fn a_private_image_that_is_absent_is_left_to_the_kubelet() {
        let case = Case {
            failure: Some(FailureClass::Unauthorized),
            before: Copy::Absent,
            after: Copy::Absent,
            ..Case::default()
        };
        assert_eq!(case.outcome(), Some(Outcome::Unavailable));
    }

    #[test]
    fn what_a_verifier_blocked_falls_back_where_the_pod_says_so() {
        let mut case = Case {
            failure: Some(FailureClass::Blocked),
            settings: Settings {
                fallback_on: Some([FailureClass::Network, FailureClass::Blocked].into()),
                ..Settings::default()
            },
            ..Case::default()
        };
        assert_eq!(case.outcome(), Some(Outcome::Fallback));
        case.settings = Settings::default();
        assert_eq!(case.outcome(), Some(Outcome::Refused));
        (case.before, case.after) = (Copy::Absent, Copy::Absent);
        assert_eq!(case.outcome(), Some(Outcome::Unavailable));
    }

    #[test]
    fn fallback_on_refuses_what_it_does_not_list() {
        let mut case = Case {
            failure: Some(FailureClass::NotFound),
            settings: Settings {
                fallback_on: Some([FailureClass::Network].into()),
                ..Settings::default()
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
                known: Known {
                    confirmed: confirmed.map(|(time, digest)| Confirmation {
                        time: time.parse().unwrap(),
                        digest: digest.into(),
                    }),
                    needs_credentials: false,
                },
                settings: Settings {
                    max_age: Some(Duration::from_secs(3600)),
                    ..Settings::default()
                },
                ..Case::default()
            };
            assert_eq!(case.outcome(), Some(expected), "{confirmed:?}");
        }
    }

    /// The kubelet starts from what it finds, proven or not.
    #[test]
    fn a_copy_that_is_not_known_to_be_absent_is_refused_as_a_proven_one_would_be() {
        let unknown = || Copy::Unknown { why: "x".into() };
        let unusable = || Copy::Unusable { why: "x".into() };
        let private = || Known {
            needs_credentials: true,
            confirmed: None,
        };
        let strict = || Settings {
            max_age: Some(Duration::from_secs(3600)),
            ..Settings::default()
        };
        for (after, known, settings, expected) in [
            (unknown(), private(), Settings::default(), Outcome::Refused),
            (unusable(), private(), Settings::default(), Outcome::Refused),
            (unknown(), Known::default(), strict(), Outcome::Refused),
            (
                unknown(),
                Known::default(),
                Settings::default(),
                Outcome::Unavailable,
            ),
            (Copy::Absent, private(), strict(), Outcome::Unavailable),
        ] {
            let case = Case {
                failure: Some(FailureClass::Local),
                after,
                known,
                settings,
                ..Case::default()
            };
            assert_eq!(case.last_outcome(), expected, "{:?}", case.after);
        }
    }
}
