//! What a release says, to the gate and to people.

use super::*;

fn release() -> Release {
    let container = ContainerRelease {
        failure: Some(Failure::new(FailureClass::Network, "connection refused")),
        digest: format!("sha256:{}", "ab".repeat(32)).parse().ok(),
        confirmed: Some("2026-01-01T11:57:00Z".parse().unwrap()),
        ..ContainerRelease::new("127.0.0.1:5000/my/app:latest", Outcome::Fallback)
    };
    Release {
        time: "2026-01-01T12:00:00Z".parse().unwrap(),
        containers: [("app".to_owned(), container)].into(),
        unseen: None,
    }
}

#[test]
fn the_json_is_flat_and_survives_a_round_trip() {
    let release = release();
    let json = serde_json::to_value(&release).unwrap();
    assert_eq!(json["containers"]["app"]["class"], "network");
    assert_eq!(json["containers"]["app"]["message"], "connection refused");
    assert_eq!(serde_json::from_value::<Release>(json).unwrap(), release);
}

#[test]
fn without_a_failure_there_is_none_after_a_round_trip() {
    let mut release = release();
    let app = release.containers.get_mut("app").unwrap();
    app.failure = None;
    app.outcome = Outcome::Fresh;
    let json = serde_json::to_string(&release).unwrap();
    assert_eq!(serde_json::from_str::<Release>(&json).unwrap(), release);
}

#[test]
fn fields_of_a_later_version_are_ignored() {
    let json = r#"{"time":"2026-01-01T12:00:00Z","later":1,
        "containers":{"app":{"image":"a","outcome":"fresh","more":{}}}}"#;
    assert!(serde_json::from_str::<Release>(json).unwrap().opens());
}

/// A gate may be older than the agent that answers it.
#[test]
fn a_failure_class_of_a_later_version_costs_the_reason_and_not_the_release() {
    let json = r#"{"time":"2026-01-01T12:00:00Z","containers":{"app":{"image":"a",
        "outcome":"refused","class":"of-tomorrow","message":"m"}}}"#;
    let release = serde_json::from_str::<Release>(json).unwrap();
    assert_eq!(release.containers["app"].failure, None);
    assert!(!release.opens());
}

#[test]
fn a_release_is_fresh_within_two_minutes_either_way() {
    let release = release();
    for (now, fresh) in [
        ("2026-01-01T11:57:59Z", false),
        ("2026-01-01T11:58:00Z", true),
        ("2026-01-01T12:02:00Z", true),
        ("2026-01-01T12:02:01Z", false),
    ] {
        assert_eq!(
            release.is_fresh(now.parse().unwrap(), FRESHNESS),
            fresh,
            "{now}"
        );
    }
}

#[test]
fn a_fallback_tells_what_why_and_how_old() {
    let release = release();
    assert_eq!(
        release.containers["app"].describe(release.time),
        "using the cached copy of 127.0.0.1:5000/my/app:latest: sha256:abababababab, \
         confirmed 3m ago; network: connection refused"
    );
}

/// A healthy start of a private image shows nothing that looks like an error.
#[test]
fn a_hand_over_says_that_it_is_the_ordinary_way() {
    let mut app = release().containers["app"].clone();
    app.outcome = Outcome::HandedOver;
    let mut said = |class: FailureClass| {
        app.failure = Some(Failure::new(class, "401 Unauthorized"));
        app.describe("2026-01-01T12:00:00Z".parse().unwrap())
    };
    assert_eq!(
        said(FailureClass::Unauthorized),
        "the registry wants credentials; the kubelet pulls 127.0.0.1:5000/my/app:latest with those it has \
         for this pod; the cached copy sha256:abababababab, confirmed 3m ago, stays on the node, to be used \
         if that pull fails"
    );
    let hidden = said(FailureClass::NotFound);
    let words = "the registry does not find 127.0.0.1:5000/my/app:latest without credentials; the kubelet tries";
    assert!(hidden.starts_with(words), "{hidden}");
    assert!(!hidden.contains("401"), "{hidden}");
    // Not the ordinary way: another pod's hand-over is in this one's way.
    assert!(said(FailureClass::Network).contains("own try failed (network: 401"));
    app.digest = None;
    app.failure = None;
    assert_eq!(
        app.describe("2026-01-01T12:00:00Z".parse().unwrap()),
        "the kubelet pulls 127.0.0.1:5000/my/app:latest with the credentials it has for this pod"
    );
}

#[test]
fn what_has_moved_is_news_and_what_has_moved_back_is_not() {
    let mut app = release().containers["app"].clone();
    app.outcome = Outcome::NotHeld;
    let moved = ContainerRelease {
        moved: format!("sha256:{}", "cd".repeat(32)).parse().ok(),
        ..app.clone()
    };
    let again = ContainerRelease {
        digest: moved.moved.clone(),
        ..app.clone()
    };
    let newer = ContainerRelease {
        runs: moved.moved.clone(),
        ..app.clone()
    };
    let other = ContainerRelease {
        rollout: app.digest.clone(),
        ..newer.clone()
    };
    let of_rollout = ContainerRelease {
        runs: None,
        ..other.clone()
    };
    for (before, now, news) in [
        (None, &app, true),
        (Some(&app), &app, false),
        (Some(&app), &moved, true),
        (Some(&moved), &app, false),
        (Some(&moved), &again, true),
        (Some(&app), &newer, false),
        (Some(&newer), &app, false),
        (Some(&of_rollout), &other, true),
        (Some(&other), &of_rollout, false),
    ] {
        assert_eq!(now.is_news_after(before), news, "{before:?} {now:?}");
    }
    app.outcome = Outcome::HandedOver;
    assert!(!app.is_news_after(None));
}

#[test]
fn a_refusal_that_no_gate_saw_says_what_runs_and_what_was_answered() {
    let mut release = release();
    let app = release.containers.get_mut("app").unwrap();
    app.outcome = Outcome::Refused;
    app.note = Some("the pod's max-age is 1m".into());
    let given = release.clone();
    let unseen = release.unseen_at("2026-01-01T12:00:20Z".parse().unwrap());
    let json = serde_json::to_value(&unseen).unwrap();
    assert_eq!(json["unseen"], "2026-01-01T12:00:20Z");
    assert_eq!(json["containers"]["app"]["outcome"], "fallback");
    assert_eq!(json["containers"]["app"]["answered"], "refused");
    assert_eq!(
        unseen.containers["app"].describe(unseen.time),
        "using the cached copy of 127.0.0.1:5000/my/app:latest: sha256:abababababab, \
         confirmed 3m ago; network: connection refused; the pod's max-age is 1m; the agent had \
         answered \"refused\", but the gate could not see it"
    );
    assert!(given.is_fresh(given.time, FRESHNESS) && !unseen.is_fresh(given.time, FRESHNESS));
    let mut bare = given;
    bare.containers.get_mut("app").unwrap().digest = None;
    let bare = bare.unseen_at(unseen.time);
    assert_eq!(bare.containers["app"].outcome, Outcome::Unavailable);
}

#[test]
fn progress_tells_bytes_and_tries() {
    let progress = ContainerProgress {
        image: "app".into(),
        attempt: 2,
        bytes: 1024,
        total_bytes: Some(2048),
        by_kubelet: false,
        failure: Some(Failure::new(FailureClass::ServerError, "503")),
    };
    assert_eq!(
        progress.describe(),
        "pulling app, 1.0 KiB of 2.0 KiB, try 2; previous try: server-error: 503"
    );
}

#[test]
fn a_container_that_starts_from_its_copy_after_all_is_told_nothing_else() {
    let fallback = release().containers["app"].clone();
    let copy = fallback.digest.clone();
    let starts = |given: &ContainerRelease| {
        let start = Start::Started {
            digest: copy.clone(),
            since: None,
            again: false,
        };
        given.settled(&start, release().time).unwrap()
    };
    let why = Failure::new(FailureClass::ServerError, "said the kubelet");
    let wanting = fallback.settled(&Start::Wanting(why.clone()), release().time);
    let unavailable = wanting.unwrap();
    assert_eq!(unavailable.outcome, Outcome::Unavailable);
    assert!(unavailable.note.is_some());
    let given = starts(&unavailable);
    assert_eq!(
        (given.outcome, given.failure, given.note),
        (Outcome::Fallback, Some(why), None)
    );
    // That the agent was refused says nothing of the kubelet's pull, which nobody has seen.
    let mut left = fallback;
    left.outcome = Outcome::HandedOver;
    let given = starts(&left);
    let note = Some(NOT_SEEN.to_owned());
    assert_eq!(
        (given.outcome, given.failure, given.note),
        (Outcome::Fallback, None, note)
    );
}

/// With a copy that the kubelet does not accept, and without one.
#[test]
fn the_registrys_answer_to_the_kubelet_replaces_what_was_known() {
    let now = release().time;
    let wanting = |class| Start::Wanting(Failure::new(class, "said the kubelet"));
    for class in FailureClass::ALL {
        for digest in [None, release().containers["app"].digest.clone()] {
            let has_copy = digest.is_some();
            let before = ContainerRelease {
                failure: Some(Failure::new(class, "before")),
                digest,
                ..ContainerRelease::new("app", Outcome::Unavailable)
            };
            assert_eq!(before.settled(&wanting(FailureClass::Network), now), None);
            let answered = before.settled(&wanting(FailureClass::Unauthorized), now);
            assert_eq!(
                answered.is_some(),
                class != FailureClass::Unauthorized,
                "{class}"
            );
            let Some(answered) = answered else {
                continue;
            };
            assert_eq!(answered.outcome, Outcome::Unavailable);
            let told = answered.class();
            assert_eq!(told, Some(FailureClass::Unauthorized));
            assert_eq!(answered.note.is_some(), has_copy);
            let again = answered.settled(&wanting(FailureClass::Timeout), now);
            assert_eq!(again, None, "an outage undoes no answer");
        }
    }
}

/// A copy that the kubelet was left with, and what the container has started from, if the kubelet says that.
#[test]
fn what_was_left_to_the_kubelet_has_become_what_it_starts_from() {
    let copy = |name: &str| format!("sha256:{name}").parse::<Digest>().ok();
    for (outcome, kept, unproven, runs, expected) in [
        (Outcome::HandedOver, "", false, "2", Some(Outcome::Fresh)),
        (Outcome::HandedOver, "", false, "", Some(Outcome::Fresh)),
        (Outcome::HandedOver, "1", false, "2", Some(Outcome::Fresh)),
        (
            Outcome::HandedOver,
            "1",
            false,
            "1",
            Some(Outcome::Fallback),
        ),
        (Outcome::HandedOver, "1", false, "", Some(Outcome::Fallback)),
        (
            Outcome::Unavailable,
            "",
            false,
            "2",
            Some(Outcome::Fallback),
        ),
        (Outcome::Unavailable, "", false, "", Some(Outcome::Fallback)),
        (Outcome::Unavailable, "", true, "2", None),
        (Outcome::Unavailable, "", true, "", None),
        (Outcome::Unavailable, "1", false, "2", Some(Outcome::Fresh)),
        // What had come since was not there when it restarted.
        (Outcome::Unavailable, "1", true, "2", Some(Outcome::Fresh)),
        (
            Outcome::Unavailable,
            "1",
            false,
            "1",
            Some(Outcome::Fallback),
        ),
        (
            Outcome::Unavailable,
            "1",
            false,
            "",
            Some(Outcome::Fallback),
        ),
    ] {
        let given = ContainerRelease {
            digest: copy(kept),
            unproven,
            ..ContainerRelease::new("app", outcome)
        };
        let start = Start::Started {
            digest: copy(runs),
            since: None,
            again: false,
        };
        let settled = given.settled(&start, release().time);
        let case = format!("{outcome} {kept:?} {unproven} {runs:?}");
        assert_eq!(settled.as_ref().map(|to| to.outcome), expected, "{case}");
        let Some(settled) = settled else {
            continue;
        };
        assert_eq!(settled.digest, copy(runs), "{case}");
        // An alarm says that there was an older copy.
        let is_old = outcome == Outcome::HandedOver || !kept.is_empty();
        let is_old = is_old && expected == Some(Outcome::Fallback) && !runs.is_empty();
        assert_eq!(settled.runs_fallback(), is_old, "{case}");
        let words = settled.describe(release().time);
        let is_named = !words.contains("; the kubelet does not say which copy");
        assert_eq!(is_named, settled.digest.is_some(), "{case}: {words}");
    }
}
