//! Image volumes beside containers.

use super::*;

const OPENED: &str = "2026-01-01T12:00:05Z";

/// `main` mounts `models` and `plain`, `init` mounts `models`, and nobody mounts `idle`.
fn with_volumes(patch: &Value) -> GatedPod {
    let image =
        |name: &str| json!({"name": name, "image": {"reference": format!("reg.example/{name}")}});
    let mounts = |names: &[&str]| -> Value {
        let mounts = names
            .iter()
            .map(|name| json!({"name": name, "mountPath": format!("/{name}")}));
        mounts.collect()
    };
    let mut all = json!({
        "metadata": {"annotations": {"trylatest.dev/volumes": "*"}},
        "spec": {
            "initContainers": [
                {"name": "trylatest-gate", "image": "gate", "volumeMounts": mounts(&["trylatest-gate"])},
                {"name": "init", "image": "reg.example/init", "volumeMounts": mounts(&["models"])},
            ],
            "containers": [
                {"name": "main", "image": "reg.example/app", "volumeMounts": mounts(&["models", "plain"])},
            ],
            "volumes": [
                image("models"), {"name": "plain", "emptyDir": {}}, image("idle"),
                {"name": "trylatest-gate", "downwardAPI": {}},
            ],
        },
    });
    merge(&mut all, patch);
    pod(&all)
}

fn status(name: &str, state: &Value) -> Value {
    json!({
        "name": name, "state": state, "image": "", "ready": false, "restartCount": 0,
        "imageID": format!("reg.example/{name}@sha256:{}", "ab".repeat(32)),
    })
}

fn ended(name: &str) -> Value {
    let end = json!({"exitCode": 0, "startedAt": OPENED, "finishedAt": OPENED});
    status(name, &json!({"terminated": end}))
}

fn running(since: &str) -> Value {
    status("main", &json!({"running": {"startedAt": since}}))
}

/// Why `main` waits.
fn wanting(message: &str) -> Value {
    let waiting = json!({"reason": "ErrImagePull", "message": message});
    status("main", &json!({"waiting": waiting}))
}

/// The volume and `main`, when the kubelet says this of `init` and `main`.
fn starts(init: &Value, main: &Value) -> [Option<Start>; 2] {
    let gate = ended("trylatest-gate");
    let pod = with_volumes(&json!({"status": {
        "initContainerStatuses": [gate, init], "containerStatuses": [main],
    }}));
    ["volume/models", "main"].map(|name| pod.starts.get(name).cloned())
}

fn started(digest: Option<&str>, since: &str) -> Start {
    Start::Started {
        digest: digest.map(|digest| format!("sha256:{}", digest.repeat(32)).parse().unwrap()),
        since: since.parse().ok(),
        again: false,
    }
}

#[test]
fn those_that_are_named_and_mounted_are_looked_after() {
    let pod = with_volumes(&json!({}));
    let found: Vec<_> = pod.containers.iter().collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0].name, "main");
    assert_eq!(found[1].name, "volume/models");
    assert_eq!(found[1].written, "reg.example/models");
    assert_eq!(
        found[1].image.as_ref().unwrap().as_str(),
        "reg.example/models:latest"
    );
    assert_eq!(pod.complaints, Vec::<String>::new());
    let star = json!({"metadata": {"annotations": {
        "trylatest.dev/containers": "*", "trylatest.dev/volumes": "",
    }}});
    let pod = with_volumes(&star);
    let names: Vec<_> = pod.containers.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["init", "main"], "containers are containers");
}

#[test]
fn names_that_no_mounted_image_volume_has_are_complained_of() {
    let named = |names: &str| {
        let annotations = json!({"trylatest.dev/volumes": names});
        with_volumes(&json!({"metadata": {"annotations": annotations}}))
    };
    let pod = named("models,plain, idle");
    assert_eq!(pod.containers.len(), 2);
    assert_eq!(
        pod.complaints,
        [
            "trylatest.dev/volumes: this pod mounts no image volume named \"idle\", \"plain\" (it mounts \"models\"); \
             ignored"
        ]
    );
    let none = json!({
        "metadata": {"annotations": {"trylatest.dev/volumes": "models"}}, "spec": {"volumes": []},
    });
    assert_eq!(
        with_volumes(&none).complaints,
        [
            "trylatest.dev/volumes: this pod mounts no image volume named \"models\" (it mounts none); ignored"
        ]
    );
}

#[test]
fn a_volume_has_started_when_all_that_mount_it_have() {
    let waits = json!({"waiting": {"reason": "PodInitializing"}});
    let init = status("init", &waits);
    let [volume, main] = starts(&init, &status("main", &waits));
    assert_eq!((volume, main), (Some(Start::Next), None));
    let [volume, main] = starts(&ended("init"), &status("main", &waits));
    assert_eq!((volume, main), (Some(Start::Next), Some(Start::Next)));
    let later = "2026-01-01T12:00:09Z";
    let [volume, main] = starts(&ended("init"), &running(later));
    assert_eq!(
        volume,
        Some(started(None, later)),
        "which copy, the kubelet does not say"
    );
    assert_eq!(main, Some(started(Some("ab"), later)));
    // What does not run now has started all the same.
    let crashed = json!({"terminated": {"exitCode": 1, "startedAt": later, "finishedAt": later}});
    let [volume, _] = starts(&ended("init"), &status("main", &crashed));
    let since = None;
    assert_eq!(
        volume,
        Some(Start::Started {
            digest: None,
            since,
            again: false,
        })
    );
}

/// It gets the images of all volumes before it starts any container.
#[test]
fn a_volume_is_next_whichever_container_is() {
    let read = |state: Value| {
        let init = status("init", &state);
        let main = status("main", &json!({"waiting": {"reason": "PodInitializing"}}));
        let pod = with_volumes(&json!({
            "spec": {"initContainers": [
                {"name": "trylatest-gate", "image": "gate"}, {"name": "init", "image": "reg.example/init"},
            ]},
            "status": {"initContainerStatuses": [ended("trylatest-gate"), init], "containerStatuses": [main]},
        }));
        pod.starts.get("volume/models").cloned()
    };
    assert_eq!(
        read(json!({"waiting": {"reason": "PodInitializing"}})),
        Some(Start::Next)
    );
    assert_eq!(
        read(json!({"waiting": {"reason": "CreateContainerConfigError"}})),
        None
    );
    assert_eq!(read(json!({"running": {"startedAt": OPENED}})), None);
}

#[test]
fn what_is_mounted_is_known_where_the_kubelet_says_so() {
    let mounted = |mut status: Value, image: &str| {
        status["volumeMounts"] = json!([{
            "name": "models", "mountPath": "/models", "volumeStatus": {"image": {"imageRef": image}},
        }]);
        status
    };
    let digest = |digest: &str| format!("reg.example/models@sha256:{}", digest.repeat(32));
    let read = |init: &str, main: &str| {
        let [volume, _] = starts(
            &mounted(ended("init"), init),
            &mounted(running(OPENED), main),
        );
        volume
    };
    let (one, two) = (digest("01"), digest("02"));
    assert_eq!(read(&one, &one), Some(started(Some("01"), OPENED)));
    assert_eq!(read(&one, &two), Some(started(None, OPENED)), "they differ");
    let id = format!("sha256:{}", "01".repeat(32));
    assert_eq!(
        read(&id, &id),
        Some(started(None, OPENED)),
        "an id is another digest"
    );
}

/// The status of a container says of both images in the same way that the kubelet cannot get them.
#[test]
fn a_failed_pull_is_said_of_the_image_that_it_was_about() {
    let failure =
        |message: &str| Some(Start::Wanting(Failure::new(FailureClass::Unknown, message)));
    for message in [
        "failed to pull and unpack image \"reg.example/models:latest\": not found",
        "Back-off pulling image \"reg.example/models\": ErrImagePull: failed \"reg.example/models:latest\"",
    ] {
        let [volume, main] = starts(&ended("init"), &wanting(message));
        assert!(matches!(volume, Some(Start::Wanting(_))), "{volume:?}");
        assert_eq!(main, Some(Start::Next), "{message}");
    }
    for message in [
        "failed to pull and unpack image \"reg.example/app:latest\": not found",
        "not found",
        "",
    ] {
        let [volume, main] = starts(&ended("init"), &wanting(message));
        assert_eq!(volume, Some(Start::Next), "{message}");
        assert_eq!(main, failure(message));
    }
}

#[test]
fn a_changed_pull_policy_of_a_volume_is_seen() {
    let read = |annotations: Value, policy: &str| {
        with_volumes(&json!({
            "metadata": {"annotations": annotations},
            "spec": {"volumes": [
                {"name": "models", "image": {"reference": "reg.example/models", "pullPolicy": policy}},
            ]},
        }))
    };
    let overruled = |trace| Overruled {
        name: "volume/models".to_owned(),
        policy: OtherPolicy::Always,
        trace,
    };
    let after = read(json!({}), "Always");
    assert_eq!(after.overruled, [overruled(Trace::Policy)]);
    assert_eq!(after.containers.len(), 1, "it is left to the kubelet");
    let before =
        json!({"trylatest.dev/volumes": "", "trylatest.dev/literal": "main,volume/models"});
    assert_eq!(
        read(before, "Always").overruled,
        [overruled(Trace::Template)]
    );
    assert_eq!(read(json!({}), "IfNotPresent").overruled, []);
}
