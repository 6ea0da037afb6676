use serde_json::{Value, json};
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::pod::GatedPod;

use super::*;
use crate::convert::gated_pod;

const OPENED: &str = "2026-01-01T12:00:05Z";

fn pod(inits: &Value, statuses: &Value) -> GatedPod {
    pod_of("*", inits, &json!([]), statuses)
}

/// Of its containers, these are TryLatest; none of its volumes is.
fn pod_of(ours: &str, inits: &Value, volumes: &Value, statuses: &Value) -> GatedPod {
    let mut init_containers = vec![json!({"name": "trylatest-gate", "image": "gate"})];
    init_containers.extend(inits.as_array().unwrap().iter().cloned());
    let gate = ended("trylatest-gate", "2026-01-01T12:00:00Z", OPENED);
    let of = |kind: &str| {
        let statuses = statuses[kind].as_array();
        statuses
            .into_iter()
            .flatten()
            .cloned()
            .collect::<Vec<Value>>()
    };
    let inits = [vec![gate], of("inits")].concat();
    let pod = json!({
        "metadata": {
            "namespace": "default", "name": "app", "uid": "u",
            "annotations": {"trylatest.dev/containers": ours},
        },
        "spec": {
            "initContainers": init_containers,
            "volumes": volumes,
            "containers": [
                {"name": "one", "image": "reg.example/one"},
                {"name": "two", "image": "reg.example/two"},
            ],
        },
        "status": {"initContainerStatuses": inits, "containerStatuses": of("own")},
    });
    let unknown = |message: &str| Failure::new(FailureClass::Unknown, message);
    gated_pod(&serde_json::from_value(pod).unwrap(), unknown).unwrap()
}

fn status(name: &str, state: &Value) -> Value {
    json!({
        "name": name, "state": state, "image": "", "ready": false, "restartCount": 0,
        "imageID": format!("reg.example/{name}@sha256:{}", "ab".repeat(32)),
    })
}

fn ended(name: &str, from: &str, to: &str) -> Value {
    status(
        name,
        &json!({"terminated": {"exitCode": 0, "startedAt": from, "finishedAt": to}}),
    )
}

fn running(name: &str, since: &str) -> Value {
    status(name, &json!({"running": {"startedAt": since}}))
}

fn waiting(name: &str, reason: &str) -> Value {
    status(
        name,
        &json!({"waiting": {"reason": reason, "message": "said the kubelet"}}),
    )
}

#[test]
fn the_first_that_has_not_started_is_next() {
    let waits =
        json!({"own": [waiting("one", "PodInitializing"), waiting("two", "PodInitializing")]});
    let starts = pod(&json!([]), &waits).starts;
    assert_eq!(starts.get("one"), Some(&Start::Next));
    assert_eq!(starts.get("two"), None);
    let runs = json!({"own": [running("one", OPENED), waiting("two", "ContainerCreating")]});
    let starts = pod(&json!([]), &runs).starts;
    let digest = format!("sha256:{}", "ab".repeat(32)).parse().ok();
    let since = OPENED.parse().ok();
    assert_eq!(
        starts.get("one"),
        Some(&Start::Started {
            digest,
            since,
            again: false
        })
    );
    assert_eq!(starts.get("two"), Some(&Start::Next));
}

#[test]
fn a_container_that_waits_out_its_back_off_has_started_again() {
    for (restarts, expected) in [(0, false), (1, true)] {
        let mut back_off = waiting("one", "CrashLoopBackOff");
        back_off["lastState"] =
            json!({"terminated": {"exitCode": 1, "startedAt": OPENED, "finishedAt": OPENED}});
        back_off["restartCount"] = restarts.into();
        let starts = pod(&json!([]), &json!({"own": [back_off]})).starts;
        assert!(
            matches!(starts.get("one"), Some(Start::Started { again, .. }) if *again == expected),
            "{restarts}: {starts:?}"
        );
    }
}

#[test]
fn the_kubelet_goes_on_behind_one_whose_image_it_cannot_get() {
    for reason in ["ErrImagePull", "ImagePullBackOff"] {
        let statuses =
            json!({"own": [waiting("one", reason), waiting("two", "ContainerCreating")]});
        let starts = pod(&json!([]), &statuses).starts;
        assert!(
            matches!(starts.get("one"), Some(Start::Wanting(_))),
            "{reason}"
        );
        assert_eq!(starts.get("two"), Some(&Start::Next));
    }
}

#[test]
fn the_reason_is_what_failed_and_not_that_the_kubelet_waits() {
    let waits = "the kubelet waits before it pulls the image again, and does not say why its last pull failed";
    for (message, expected) in [
        ("dial tcp: refused", "dial tcp: refused"),
        (
            "Back-off pulling image \"reg.example:5000/one\": ErrImagePull: dial tcp: refused",
            "dial tcp: refused",
        ),
        (
            "Back-off pulling image \"reg.example/one\": dial tcp: refused",
            "dial tcp: refused",
        ),
        ("Back-off pulling image \"reg.example:5000/one\"", waits),
    ] {
        let state = json!({"waiting": {"reason": "ImagePullBackOff", "message": message}});
        let starts = pod(&json!([]), &json!({"own": [status("one", &state)]})).starts;
        let failure = Failure::new(FailureClass::Unknown, expected);
        assert_eq!(
            starts.get("one"),
            Some(&Start::Wanting(failure)),
            "{message}"
        );
    }
}

#[test]
fn containers_wait_for_the_pods_own_init_containers() {
    let init = json!([{"name": "init", "image": "reg.example/init"}]);
    let waits = json!({"inits": [waiting("init", "PodInitializing")]});
    let starts = pod(&init, &waits).starts;
    assert_eq!(starts.keys().collect::<Vec<_>>(), ["init"]);
    let done = json!({"inits": [ended("init", OPENED, "2026-01-01T12:00:09Z")]});
    let starts = pod(&init, &done).starts;
    assert_eq!(starts.get("one"), Some(&Start::Next));
    // Of the run before the node rebooted.
    let old = json!({"inits": [ended("init", "2026-01-01T11:00:00Z", "2026-01-01T11:00:09Z")]});
    let starts = pod(&init, &old).starts;
    assert_eq!(starts.get("one"), None);
    assert_eq!(starts.get("init"), Some(&Start::Next));
}

#[test]
fn what_started_before_the_gate_opened_is_of_another_run() {
    let old = json!({"own": [running("one", "2026-01-01T11:00:00Z")]});
    let starts = pod(&json!([]), &old).starts;
    assert_eq!(starts.get("one"), Some(&Start::Next));
}

fn wanting(name: &str, image: &str) -> Value {
    let message = format!("failed to pull image \"{image}\": refused");
    let reason = "ErrImagePull";
    status(
        name,
        &json!({"waiting": {"reason": reason, "message": message}}),
    )
}

#[test]
fn another_container_may_need_the_same_image_first() {
    let none = json!([]);
    let init = json!([{"name": "init", "image": "reg.example/one:latest"}]);
    let starts = |status: Value| pod_of("one", &init, &none, &json!({"inits": [status]})).starts;
    let next = starts(waiting("init", "PodInitializing"));
    assert_eq!(next.get("one"), Some(&Start::Next));
    let fails = starts(wanting("init", "reg.example/one:latest"));
    assert!(matches!(fails.get("one"), Some(Start::Behind(_))));
    // It is not to be pulled, and the name is away.
    let message =
        "Container image \"reg.example/one:latest\" is not present with pull policy of Never";
    let never = json!({"waiting": {"reason": "ErrImageNeverPull", "message": message}});
    let never = starts(status("init", &never));
    assert!(matches!(never.get("one"), Some(Start::Behind(_))));
    // It has its image, and takes its time.
    assert_eq!(starts(running("init", OPENED)).get("one"), None);
    let init = json!([{"name": "init", "image": "reg.example/init"}]);
    for status in [
        waiting("init", "PodInitializing"),
        wanting("init", "reg.example/init"),
    ] {
        let starts = pod_of("one", &init, &none, &json!({"inits": [status]})).starts;
        assert_eq!(starts.get("one"), None);
    }
}

#[test]
fn the_images_of_all_volumes_come_first() {
    let mounts = json!([{"name": "models", "mountPath": "/models"}]);
    let init = json!([{"name": "init", "image": "reg.example/init", "volumeMounts": mounts}]);
    let starts = |volume: &str, status: Value| {
        let volumes = json!([{"name": "models", "image": {"reference": volume}}]);
        pod_of("one", &init, &volumes, &json!({"inits": [status]})).starts
    };
    let waits = || waiting("init", "PodInitializing");
    let next = starts("reg.example/one", waits());
    assert_eq!(next.get("one"), Some(&Start::Next));
    assert_eq!(starts("reg.example/other", waits()).get("one"), None);
    let fails = starts("reg.example/one", wanting("init", "reg.example/one:latest"));
    assert!(matches!(fails.get("one"), Some(Start::Behind(_))));
    // What it wants is its own.
    let own = starts("reg.example/one", wanting("init", "reg.example/init"));
    assert_eq!(own.get("one"), None);
}
