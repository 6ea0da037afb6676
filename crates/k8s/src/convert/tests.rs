//! Pods as the API server shows them, and what is read of them.

use serde_json::{Value, json};
use trylatest_core::outcome::Outcome;
use trylatest_core::pod::{Overruled, Start, Trace};

use trylatest_core::outcome::FailureClass;

use super::*;

mod volumes;

fn pod(patch: &Value) -> GatedPod {
    let mut pod = json!({
        "metadata": {
            "namespace": "default", "name": "app", "uid": "u",
            "creationTimestamp": "2026-01-01T12:00:00Z",
            "annotations": {"trylatest.dev/containers": "main"},
        },
        "spec": {
            "initContainers": [{"name": "trylatest-gate", "image": "gate"}],
            "containers": [{"name": "main", "image": "reg.example/app"}],
        },
    });
    merge(&mut pod, patch);
    let unknown = |message: &str| Failure::new(FailureClass::Unknown, message);
    gated_pod(&serde_json::from_value(pod).unwrap(), unknown).unwrap()
}

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, patch) => into.clone_from(patch),
    }
}

fn gate(state: &Value) -> GateState {
    let statuses = json!([{
        "name": "trylatest-gate", "state": state, "image": "", "imageID": "",
        "ready": false, "restartCount": 0,
    }]);
    pod(&json!({"status": {"initContainerStatuses": statuses}})).gate
}

#[test]
fn a_plain_pod_is_read() {
    let pod = pod(&json!({}));
    assert_eq!(pod.containers.len(), 1);
    assert_eq!(pod.containers[0].written, "reg.example/app");
    assert_eq!(
        pod.containers[0].image.as_ref().unwrap().as_str(),
        "reg.example/app:latest"
    );
    assert_eq!(pod.created, "2026-01-01T12:00:00Z".parse().unwrap());
    assert_eq!(pod.gate, GateState::Pending);
    assert_eq!(pod.complaints, Vec::<String>::new());
    assert!(!pod.terminated);
}

#[test]
fn the_gate_is_open_only_after_exit_0() {
    let time = "2026-01-01T12:00:00Z";
    assert_eq!(
        gate(&json!({"terminated": {"exitCode": 0}})),
        GateState::Open
    );
    assert_eq!(
        gate(&json!({"terminated": {"exitCode": 1}})),
        GateState::Pending
    );
    assert_eq!(gate(&json!({"waiting": {}})), GateState::Pending);
    assert_eq!(
        gate(&json!({"running": {"startedAt": time}})),
        GateState::Running {
            since: time.parse().unwrap()
        }
    );
    let without = pod(&json!({"spec": {"initContainers": []}}));
    assert_eq!(without.gate, GateState::Open);
}

#[test]
fn what_a_gate_is_to_start_from_is_known_until_it_has_started() {
    let spec = |image: &str, policy: &str| json!([{"name": "trylatest-gate", "image": image, "imagePullPolicy": policy}]);
    let read = |image: &str, policy: &str, state: &Value| {
        pod(&json!({
            "spec": {"initContainers": spec(image, policy)},
            "status": {"initContainerStatuses": [{
                "name": "trylatest-gate", "state": state, "image": "", "imageID": "",
                "ready": false, "restartCount": 0,
            }]},
        }))
        .gate_image
    };
    let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
    let starts = read(
        "m.example/gate:1",
        "IfNotPresent",
        &waiting("PodInitializing"),
    );
    let expected = GateImage {
        name: "m.example/gate:1".parse().unwrap(),
        always_pulled: false,
        wanting: false,
    };
    assert_eq!(starts, Some(expected.clone()));
    for reason in ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"] {
        let waits = read("m.example/gate:1", "Always", &waiting(reason));
        let expected = GateImage {
            always_pulled: true,
            wanting: true,
            ..expected.clone()
        };
        assert_eq!(waits, Some(expected), "{reason}");
    }
    for over in [
        json!({"running": {"startedAt": "2026-01-01T12:00:00Z"}}),
        json!({"terminated": {"exitCode": 0}}),
    ] {
        assert_eq!(read("m.example/gate:1", "IfNotPresent", &over), None);
    }
    assert_eq!(
        read(
            "Not/An:Image!",
            "IfNotPresent",
            &waiting("InvalidImageName")
        ),
        None
    );
}

#[test]
fn names_that_no_container_has_are_complained_of() {
    let names = json!({"metadata": {"annotations": {"trylatest.dev/containers": "main, typo,,trylatest-gate"}}});
    let pod = pod(&names);
    assert_eq!(pod.containers.len(), 1);
    assert_eq!(
        pod.complaints,
        [
            "trylatest.dev/containers: this pod has no container named \"trylatest-gate\", \"typo\" \
             (it has \"main\"); ignored"
        ]
    );
}

#[test]
fn a_star_means_every_container_but_the_gate() {
    let pod = pod(&json!({
        "metadata": {"annotations": {"trylatest.dev/containers": "*"}},
        "spec": {"initContainers": [
            {"name": "trylatest-gate", "image": "gate"}, {"name": "init", "image": "b"}]},
    }));
    let names: Vec<_> = pod.containers.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["init", "main"]);
    assert_eq!(pod.complaints, Vec::<String>::new());
}

#[test]
fn a_changed_pull_policy_is_seen_and_what_the_kubelet_pulls_is_left_to_it() {
    let container =
        |name: &str, policy: &str| json!({"name": name, "image": "a", "imagePullPolicy": policy});
    let pod = pod(&json!({
        "metadata": {"annotations": {"trylatest.dev/containers": "always,never,own"}},
        "spec": {
            "initContainers": [container("trylatest-gate", "Always")],
            "containers": [
                container("always", "Always"), container("never", "Never"),
                container("own", "IfNotPresent"), container("foreign", "Always"),
            ],
        },
    }));
    let overruled: Vec<_> = pod
        .overruled
        .iter()
        .map(|other| (other.name.as_str(), other.policy))
        .collect();
    assert_eq!(
        overruled,
        [
            ("trylatest-gate", OtherPolicy::Always),
            ("always", OtherPolicy::Always),
            ("never", OtherPolicy::Never),
        ]
    );
    let looked_after: Vec<_> = pod.containers.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(looked_after, ["never", "own"]);
}

#[test]
fn a_gate_that_admission_took_away_is_seen_also_where_no_container_was_changed() {
    let label = |value: &str| {
        pod(&json!({
            "metadata": {
                "annotations": {"trylatest.dev/containers": "own"},
                "labels": {"trylatest.dev/gated": value},
            },
            "spec": {
                "initContainers": [],
                "containers": [
                    {"name": "own", "image": "a", "imagePullPolicy": "IfNotPresent"},
                ],
            },
        }))
        .overruled
    };
    let gate = Overruled {
        name: keys::GATE.to_owned(),
        policy: OtherPolicy::Always,
        trace: Trace::Removed,
    };
    assert_eq!(label(keys::GATED_OVERRULED), [gate]);
    assert_eq!(label(keys::GATED_VALUE), []);
}

/// The label says it: an annotation that comes later takes no gate away, and does not explain one that is missing.
#[test]
fn a_pod_that_is_to_have_no_gate_starts_without_one() {
    let read = |label: &str, inits: Value| {
        pod(&json!({
            "metadata": {
                "annotations": {"trylatest.dev/hold": "none"},
                "labels": {"trylatest.dev/gated": label},
            },
            "spec": {"initContainers": inits},
            "status": {"containerStatuses": [{
                "name": "main", "image": "", "ready": true, "restartCount": 0,
                "imageID": format!("reg.example/app@sha256:{}", "ab".repeat(32)),
                "state": {"running": {"startedAt": "2026-01-01T12:00:03Z"}},
            }]},
        }))
    };
    let unheld = read(keys::GATED_NONE, json!([]));
    assert_eq!(unheld.gate, GateState::NotWanted);
    assert_eq!(unheld.overruled, []);
    assert_eq!(unheld.complaints, Vec::<String>::new());
    let started = Start::Started {
        digest: format!("sha256:{}", "ab".repeat(32)).parse().ok(),
        since: "2026-01-01T12:00:03Z".parse().ok(),
        again: false,
    };
    assert_eq!(unheld.starts, [("main".to_owned(), started)].into());
    let removed = read(keys::GATED_VALUE, json!([]));
    assert_eq!(removed.gate, GateState::Open);
    assert_eq!(removed.starts, BTreeMap::new());
    let gated = json!([{"name": "trylatest-gate", "image": "gate"}]);
    assert_eq!(read(keys::GATED_NONE, gated).gate, GateState::Pending);
}

#[test]
fn bad_images_and_bad_settings_do_not_lose_the_pod() {
    let pod = pod(&json!({
        "metadata": {"annotations": {"trylatest.dev/timeout": "soon", "trylatest.dev/released": "{"}},
        "spec": {"containers": [{"name": "main", "image": "Not An Image"}]},
    }));
    assert!(pod.containers[0].image.is_err());
    assert_eq!(pod.complaints.len(), 1);
    assert_eq!(pod.released, None);
}

fn owned(api_version: &str, kind: &str, patch: &Value) -> GatedPod {
    let mut metadata = json!({"metadata": {
        "annotations": {"trylatest.dev/same-digest": "true"},
        "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "other"},
            {"apiVersion": api_version, "kind": kind, "name": "o", "uid": "owner", "controller": true},
        ],
    }});
    merge(&mut metadata, patch);
    pod(&metadata)
}

#[test]
fn the_rollout_is_the_owner_and_the_version_of_its_template() {
    let labelled = json!({"metadata": {"labels": {"controller-revision-hash": "app-7f"}}});
    for (api_version, kind, patch, version) in [
        ("apps/v1", "ReplicaSet", json!({}), None),
        ("batch/v1", "Job", json!({}), None),
        ("apps/v1", "StatefulSet", labelled.clone(), Some("app-7f")),
        ("apps/v1", "DaemonSet", labelled.clone(), Some("app-7f")),
        ("apps.kruise.io/v1", "CloneSet", labelled, Some("app-7f")),
    ] {
        let pod = owned(api_version, kind, &patch);
        let revision = Revision {
            owner: "owner".to_owned(),
            version: version.map(str::to_owned),
        };
        assert_eq!(pod.revision, Some(revision), "{kind}");
        assert!(pod.settings.same_digest);
        assert_eq!(pod.complaints, Vec::<String>::new());
    }
}

#[test]
fn a_pod_whose_rollout_cannot_be_told_is_complained_of() {
    let long = json!({"metadata": {"labels": {"controller-revision-hash": "a".repeat(10_000)}}});
    let bare = json!({"metadata": {"ownerReferences": []}});
    for (api_version, kind, patch) in [
        ("v1", "ReplicationController", json!({})),
        ("batch.example/v1", "Job", json!({})),
        ("apps/v1", "StatefulSet", json!({})),
        ("apps/v1", "StatefulSet", long),
        ("apps/v1", "ReplicaSet", bare),
    ] {
        let pod = owned(api_version, kind, &patch);
        assert_eq!(pod.revision, None, "{kind}");
        let [complaint] = pod.complaints.as_slice() else {
            panic!("{kind}: {:?}", pod.complaints);
        };
        assert!(
            complaint.starts_with("trylatest.dev/same-digest: "),
            "{complaint}"
        );
    }
    // Who does not ask for it has nothing to complain of.
    let quiet = json!({"metadata": {"annotations": {"trylatest.dev/same-digest": "false"}}});
    assert_eq!(
        owned("v1", "ReplicationController", &quiet).complaints,
        Vec::<String>::new()
    );
}

#[test]
fn what_one_pod_writes_is_bounded() {
    let names = (0..50_000).map(|n| format!("c{n}")).collect::<Vec<_>>();
    let image = format!("reg.example/{}", "a/".repeat(100_000));
    let release = format!(
        r#"{{"time":"2026-01-01T12:00:00Z","containers":{{"a":{{"image":"{}","outcome":"fresh"}}}}}}"#,
        "a".repeat(100_000)
    );
    let pod = pod(&json!({
        "metadata": {"annotations": {
            "trylatest.dev/containers": format!("main,{}", names.join(",")),
            "trylatest.dev/timeout": "x".repeat(100_000),
            "trylatest.dev/released": release,
        }},
        "spec": {"containers": [{"name": "main", "image": image}]},
    }));
    assert_eq!(pod.complaints.len(), 2);
    assert!(
        pod.complaints[1].contains("and 49995 more"),
        "{:?}",
        pod.complaints[1]
    );
    assert!(format!("{pod:?}").len() < 8192);
}

#[test]
fn of_very_many_containers_some_are_left_to_the_kubelet() {
    let many: Vec<_> = (0..500)
        .map(|n| json!({"name": format!("c{n}"), "image": format!("reg.example/a{n}")}))
        .collect();
    let pod = pod(&json!({
        "metadata": {"annotations": {"trylatest.dev/containers": "*"}},
        "spec": {"containers": many},
    }));
    assert_eq!(pod.containers.len(), ITEMS_MAX);
    assert_eq!(
        pod.complaints,
        [
            "this pod has 500 TryLatest containers and image volumes; the agent handles 32 of them and leaves \"c32\", \
          \"c33\", \"c34\", \"c35\", \"c36\" and 463 more to the kubelet"
        ]
    );
}

#[test]
fn a_gate_that_opened_by_itself_says_so() {
    let gate = |message: &str| {
        pod(&json!({"status": {"initContainerStatuses": [{
            "name": "trylatest-gate", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"terminated": {
                "exitCode": 0, "message": message,
                "startedAt": "2026-01-01T11:59:40Z", "finishedAt": "2026-01-01T12:00:00Z",
            }},
        }]}}))
        .gate
    };
    let since = "2026-01-01T11:59:40Z".parse().unwrap();
    let at = "2026-01-01T12:00:00Z".parse().unwrap();
    let words = "unanswered after 20.00s: no sign of a TryLatest agent for 20s";
    assert_eq!(gate(words), GateState::GaveUp { since, at });
    assert_eq!(
        gate("unanswered after: fallback: app\nopened after 1.00s"),
        GateState::Open
    );
}

#[test]
fn a_release_is_read_back() {
    let release = r#"{"time":"2026-01-01T12:00:00Z","containers":{"main":{"image":"a","outcome":"refused"}}}"#;
    let pod = pod(&json!({"metadata": {"annotations": {"trylatest.dev/released": release}}}));
    let release = pod.released.unwrap();
    assert_eq!(release.containers["main"].outcome, Outcome::Refused);
}

#[test]
fn ended_and_deleted_pods_are_ended() {
    for patch in [
        json!({"status": {"phase": "Succeeded"}}),
        json!({"status": {"phase": "Failed"}}),
        json!({"metadata": {"deletionTimestamp": "2026-01-01T12:00:00Z"}}),
    ] {
        assert!(pod(&patch).terminated, "{patch}");
    }
    assert!(!pod(&json!({"status": {"phase": "Running"}})).terminated);
}

#[test]
fn what_was_always_before_our_admission_saw_it_is_seen() {
    let container =
        |name: &str, policy: &str| json!({"name": name, "image": "a", "imagePullPolicy": policy});
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {
            "namespace": "default", "name": "app", "uid": "u",
            "annotations": {"trylatest.dev/literal": "app,other"},
            "labels": {"trylatest.dev/gated": "overruled"},
        },
        "spec": {"containers": [
            container("app", "Always"), container("other", "IfNotPresent"), container("own", "Always"),
        ]},
    }))
    .unwrap();
    let unknown = |message: &str| Failure::new(FailureClass::Unknown, message);
    let pod = gated_pod(&pod, unknown).unwrap();
    let always = Overruled {
        name: "app".to_owned(),
        policy: OtherPolicy::Always,
        trace: Trace::Template,
    };
    assert_eq!(pod.overruled, [always], "there was no gate");
    assert!(pod.containers.is_empty());
}
