use serde_json::{Value, json};

use super::*;
use crate::pods::tests::{digest_of, gate_status, pod, release, unanswered};

fn states(pods: &[Pod], demand: Demand) -> Vec<(State, bool)> {
    let judged = judge(pods, demand);
    judged.containers.iter().map(|c| (c.state, c.ok)).collect()
}

#[test]
fn each_outcome_is_enough_or_not() {
    use State::{Current, Moved, NotHeld, Old, Pending, Refused, Same, Unavailable};
    for (outcome, state, not_old, fresh) in [
        ("fresh", Current, true, true),
        ("unchanged", Current, true, true),
        ("same", Same, true, false),
        ("not-held", NotHeld, true, false),
        ("fallback", Old, false, false),
        ("handed-over", Pending, false, false),
        ("unavailable", Unavailable, false, false),
        ("refused", Refused, false, false),
    ] {
        let pods = [pod("1", "n", &release(outcome, "a"))];
        assert_eq!(
            states(&pods, Demand::NotOld),
            [(state, not_old)],
            "{outcome}"
        );
        assert_eq!(states(&pods, Demand::Fresh), [(state, fresh)], "{outcome}");
    }
    let mut moved = release("not-held", "a");
    moved["moved"] = json!(digest_of("b"));
    assert_eq!(
        states(&[pod("1", "n", &moved)], Demand::Fresh),
        [(Moved, false)]
    );
}

#[test]
fn the_same_as_a_current_pod_of_the_node_is_current() {
    let pods = [
        pod("1", "n", &release("fresh", "a")),
        pod("2", "n", &release("same", "a")),
        pod("3", "other", &release("same", "a")),
    ];
    let states = states(&pods, Demand::Fresh);
    assert_eq!(
        states,
        [
            (State::Current, true),
            (State::Current, true),
            (State::Same, false)
        ]
    );
}

#[test]
fn a_tag_that_moved_during_the_rollout_is_not_fresh() {
    let pods = [
        pod("1", "n", &release("fresh", "a")),
        pod("2", "m", &release("fresh", "b")),
    ];
    assert_eq!(states(&pods, Demand::NotOld), [(State::Current, true); 2]);
    assert_eq!(states(&pods, Demand::Fresh), [(State::Skewed, false); 2]);
    let words = &judge(&pods, Demand::Fresh).containers[0].words;
    let said = "run 2 digests of this image: its tag has moved during the rollout";
    assert!(words.contains(said), "{words}");
}

#[test]
fn a_copy_that_a_pod_fell_back_to_is_no_moved_tag() {
    for outcome in ["fallback", "same", "not-held"] {
        let pods = [
            pod("1", "n", &release("fresh", "a")),
            pod("2", "n", &release("unchanged", "a")),
            pod("3", "m", &release(outcome, "b")),
        ];
        let judged = judge(&pods, Demand::Fresh);
        let [first, second, other] = &judged.containers[..] else {
            panic!("{judged:?}");
        };
        for current in [first, second] {
            assert_eq!((current.state, current.ok), (State::Skewed, false));
            let said =
                "run 2 digests of this image: some run a copy that the registry did not confirm";
            assert!(current.words.contains(said), "{}", current.words);
            assert!(!current.words.contains("moved"), "{}", current.words);
        }
        assert!(!other.ok && !other.words.contains("digests"), "{other:?}");
    }
    // Where the tag has moved as well, that is said.
    let pods = [
        pod("1", "n", &release("fresh", "a")),
        pod("2", "n", &release("fresh", "b")),
        pod("3", "m", &release("fallback", "c")),
    ];
    let words = &judge(&pods, Demand::Fresh).containers[0].words;
    let said = "run 3 digests of this image: its tag has moved during the rollout";
    assert!(words.contains(said), "{words}");
}

#[test]
fn a_copy_that_a_pod_must_not_use_is_none_that_runs() {
    for outcome in ["refused", "unavailable"] {
        let pods = [
            pod("1", "n", &release("fresh", "a")),
            pod("2", "m", &release(outcome, "b")),
        ];
        assert_eq!(
            states(&pods, Demand::Fresh)[0],
            (State::Current, true),
            "{outcome}"
        );
    }
}

#[test]
fn a_copy_without_a_digest_is_unknown_to_those_who_compare() {
    let mut pulled = release("fresh", "a");
    pulled["digest"].take();
    let pods = [
        pod("1", "n", &pulled),
        pod("2", "m", &release("fresh", "b")),
    ];
    let [unknown, known] = [(State::Unseen, false), (State::Current, true)];
    assert_eq!(states(&pods, Demand::Fresh), [unknown, known]);
    let words = &judge(&pods, Demand::Fresh).containers[0].words;
    assert!(words.contains("cannot be compared"), "{words}");
    assert_eq!(states(&pods, Demand::NotOld), [known, known]);
}

#[test]
fn an_image_volume_is_judged_like_a_container() {
    let mut object = serde_json::to_value(pod("1", "n", &json!(null))).unwrap();
    let mut data = release("fallback", "a");
    data["image"] = json!("reg.example/data:1");
    let released = json!({"time": "2026-01-01T12:00:00Z", "containers": {"volume/data": data}});
    object["metadata"]["annotations"] = json!({
        "trylatest.dev/volumes": "data,unmounted", "trylatest.dev/released": released.to_string(),
    });
    object["spec"]["volumes"] = json!([
        {"name": "data", "image": {"reference": "reg.example/data:1", "pullPolicy": "IfNotPresent"}},
        {"name": "unmounted", "image": {"reference": "reg.example/data:1", "pullPolicy": "IfNotPresent"}},
    ]);
    object["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "data", "mountPath": "/data"}]);
    let pods = [serde_json::from_value(object).unwrap()];
    assert_eq!(states(&pods, Demand::NotOld), [(State::Old, false)]);
}

fn without_release(gate: &Value) -> Pod {
    let mut object = serde_json::to_value(pod("1", "n", &json!(null))).unwrap();
    object["metadata"]["annotations"] = json!({"trylatest.dev/containers": "app"});
    object["status"]["initContainerStatuses"] = json!([gate_status(gate)]);
    serde_json::from_value(object).unwrap()
}

#[test]
fn a_pod_that_nobody_answered_is_not_vouched_for() {
    let alone = without_release(&json!({"terminated": {"exitCode": 0, "message": "unanswered"}}));
    assert_eq!(
        states(&[alone], Demand::NotOld),
        [(State::Unanswered, false)]
    );
    let waits = without_release(&json!({"running": {}}));
    let judged = judge(&[waits], Demand::NotOld);
    assert!(judged.containers[0].waits);
}

#[test]
fn a_pod_without_a_gate_is_waited_for_until_its_agent_reports() {
    let mut unheld = without_release(&json!({}));
    let labels = unheld.metadata.labels.as_mut().unwrap();
    labels.insert("trylatest.dev/gated".into(), "none".into());
    unheld.spec.as_mut().unwrap().init_containers = None;
    let judged = judge(&[unheld.clone()], Demand::NotOld);
    let [container] = &judged.containers[..] else {
        panic!("{judged:?}");
    };
    assert_eq!((container.state, container.ok), (State::Pending, false));
    assert!(container.waits);
    // It has ended before its agent saw what it ran.
    unheld.status.as_mut().unwrap().phase = Some("Succeeded".into());
    let judged = states(&[unheld], Demand::NotOld);
    assert_eq!(judged, [(State::Unanswered, false)]);
}

/// Its node has rebooted, and its agent was not there when the gate ran again.
#[test]
fn a_release_of_an_earlier_start_vouches_for_nothing() {
    let released = pod("1", "n", &release("fresh", "a"));
    let (end, before) = ("2026-01-02T12:00:20Z", "2026-01-01T12:00:20Z");
    for unseen in [None, Some(before)] {
        let pods = [unanswered(&released, end, unseen)];
        for demand in [Demand::NotOld, Demand::Fresh] {
            assert_eq!(states(&pods, demand), [(State::Unanswered, false)]);
        }
        let judged = judge(&pods, Demand::NotOld);
        assert_eq!(judged.containers[0].digest, None);
        let words = &judged.containers[0].words;
        assert!(words.contains("was not for that start"), "{words}");
    }
    // The agent has written what it started from then.
    let pods = [unanswered(&released, end, Some(end))];
    assert_eq!(states(&pods, Demand::NotOld), [(State::Current, true)]);
}

#[test]
fn pods_without_trylatest_are_no_success() {
    let mut plain = pod("1", "n", &release("fresh", "a"));
    plain.metadata.labels = None;
    let ours = pod("2", "n", &release("fresh", "a"));
    assert!(
        judge(&[plain.clone()], Demand::NotOld)
            .containers
            .is_empty()
    );
    let mixed = states(&[plain, ours], Demand::NotOld);
    assert_eq!(
        mixed,
        [(State::NotTryLatest, false), (State::Current, true)]
    );
}

#[test]
fn a_container_that_another_policy_has_made_always_asks_the_registry() {
    let mut always = pod("1", "n", &json!(null));
    let spec = always.spec.as_mut().unwrap();
    spec.containers[0].image_pull_policy = Some("Always".into());
    assert_eq!(states(&[always], Demand::Fresh), [(State::Always, true)]);
}
