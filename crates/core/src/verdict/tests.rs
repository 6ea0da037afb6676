//! Which copy a pod may use, by what the try has shown and what applies to the pod.

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
    NodeRules::default().by_default(None, None)
}

/// The pod's own rule.
fn own<T>(value: T) -> Rule<T> {
    let source = Source::Pod;
    Rule { value, source }
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
        Some(FailureClass::ServerError),
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
    case.rules.without_proof = true;
    assert_eq!(case.outcome(), Some(Outcome::Fallback));
}

/// To try again would only keep the pod from the kubelet, which may have the secret for it.
#[test]
fn an_absent_image_that_the_registry_does_not_give_is_left_to_the_kubelet_at_once() {
    for class in FailureClass::ALL {
        let case = Case {
            failure: Some(class),
            before: CachedCopy::Absent,
            after: CachedCopy::Absent,
            ..Case::default()
        };
        let at_once = matches!(
            class,
            FailureClass::Unauthorized | FailureClass::NotFound | FailureClass::Blocked
        );
        let expected = at_once.then_some(Outcome::Unavailable);
        assert_eq!(case.outcome(), expected, "{class}");
    }
}

#[test]
fn what_a_verifier_blocked_falls_back_where_the_pod_says_so() {
    let mut case = Case {
        failure: Some(FailureClass::Blocked),
        rules: Rules {
            fallback_on: Some(own([FailureClass::Network, FailureClass::Blocked].into())),
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
            fallback_on: Some(own([FailureClass::Network].into())),
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
                max_age: Some(own(Duration::from_secs(3600))),
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
        max_age: Some(own(Duration::from_secs(3600))),
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
