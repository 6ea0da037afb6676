//! Which copy a container may use once a try has ended: the one place that says so.

use std::time::Duration;

use jiff::Timestamp;

use crate::outcome::{Failure, FailureClass, Outcome};
use crate::record::Confirmation;
use crate::settings::Settings;
use crate::text;
use crate::time::age;

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

/// What a container's try came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is decided.
    Decided {
        /// How.
        outcome: Outcome,
        /// A refusal's reason, or what was left to whom.
        note: Option<String>,
    },
    /// There is nothing to start from, and another try may change that.
    TryAgain,
}

impl Verdict {
    fn plain(outcome: Outcome) -> Self {
        let note = None;
        Self::Decided { outcome, note }
    }

    fn because(outcome: Outcome, note: impl Into<String>) -> Self {
        let note = Some(note.into());
        Self::Decided { outcome, note }
    }
}

/// Judges one ended try.
///
/// `before` and `after` are the copies proven around the pull; without `failure` the pull itself
/// succeeded. A copy that is not proven usable *after* the pull is never handed out.
pub fn judge(
    failure: Option<&Failure>,
    before: &Copy,
    after: &Copy,
    known: &Known,
    settings: &Settings,
    allow_unverified_fallback: bool,
    now: Timestamp,
) -> Verdict {
    match (failure, after) {
        (None, Copy::Usable { digest, .. }) => {
            if before.digest() == Some(digest) {
                Verdict::plain(Outcome::Unchanged)
            } else {
                Verdict::plain(Outcome::Fresh)
            }
        }
        (Some(failure), Copy::Usable { digest, .. }) => {
            match refusal(
                failure.class,
                digest,
                known,
                settings,
                allow_unverified_fallback,
                now,
            ) {
                Some(why) => Verdict::because(Outcome::Refused, why),
                None => Verdict::plain(Outcome::Fallback),
            }
        }
        (Some(failure), Copy::Absent) if failure.class == FailureClass::Unauthorized => {
            Verdict::because(
                Outcome::Unavailable,
                "private images are pulled by the kubelet, with the pod's own secrets",
            )
        }
        (_, Copy::Absent | Copy::Unusable { .. } | Copy::Unknown { .. }) => Verdict::TryAgain,
    }
}

/// Why this pod may not use the cached copy, if so.
fn refusal(
    class: FailureClass,
    digest: &str,
    known: &Known,
    settings: &Settings,
    allow_unverified_fallback: bool,
    now: Timestamp,
) -> Option<String> {
    let private = class == FailureClass::Unauthorized || known.needs_credentials;
    if private && !allow_unverified_fallback {
        return Some(
            "the registry wants credentials, and nothing proves that this pod has them".into(),
        );
    }
    if !settings.allow_fallback_on(class) {
        return Some(format!("the pod's fallback-on does not list {class}"));
    }
    let max_age = settings.max_age?;
    match known.confirmed_at(digest).map(|then| age(now, then)) {
        Some(age) if age <= max_age => None,
        Some(age) => Some(older_than(max_age, &text::short_duration(age))),
        None => Some(older_than(max_age, "an unknown time")),
    }
}

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
            let verdict = judge(
                failure.as_ref(),
                &self.before,
                &self.after,
                &self.known,
                &self.settings,
                self.allow,
                NOW.parse().unwrap(),
            );
            match verdict {
                Verdict::Decided { outcome, note } => {
                    assert_eq!(
                        outcome == Outcome::Refused,
                        note.is_some() && outcome != Outcome::Unavailable
                    );
                    Some(outcome)
                }
                Verdict::TryAgain => None,
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
    fn every_failure_but_unauthorized_falls_back() {
        for class in FailureClass::ALL {
            let case = Case {
                failure: Some(class),
                ..Case::default()
            };
            let expected = if class == FailureClass::Unauthorized {
                Outcome::Refused
            } else {
                Outcome::Fallback
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
}
