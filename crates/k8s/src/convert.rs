//! From a Kubernetes Pod to what the core needs to know of it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, Pod, PodSpec,
};
use trylatest_core::gate::UNANSWERED;
use trylatest_core::keys;
use trylatest_core::pod::{
    GateImage, GateState, GatedPod, OtherPolicy, Overruled, PodId, TryContainer,
};
use trylatest_core::settings::Settings;

// Anybody may label a pod and write a megabyte into it. What is kept of each pod is bounded.

/// Longest complaint: what an Event takes.
const COMPLAINT_MAX_BYTES: usize = 1024;

/// Most containers of one pod that are looked after: half of the tries that run at once.
const CONTAINERS_MAX: usize = 32;

/// Most names that one complaint lists.
const NAMES_MAX: usize = 5;

/// Longest release that is read. Ours have about a kilobyte a container.
const RELEASE_MAX_BYTES: usize = 64 << 10;

/// Longest image name that is kept: no valid one has more than 800 bytes, and none of what is cut
/// off here becomes valid by it.
const IMAGE_MAX_BYTES: usize = 1024;

/// Reads a pod that carries the gated label; none if it lacks what every stored pod has.
pub fn gated_pod(pod: &Pod) -> Option<GatedPod> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref()?;
    let none = BTreeMap::new();
    let annotations = meta.annotations.as_ref().unwrap_or(&none);
    let (settings, mut complaints) = Settings::parse(annotations);
    let ours = try_containers(spec, annotations, &mut complaints);
    let held = gate(spec).into_iter().chain(ours.iter().copied());
    for complaint in &mut complaints {
        complaint.truncate(complaint.floor_char_boundary(COMPLAINT_MAX_BYTES));
    }
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    Some(GatedPod {
        id: PodId {
            namespace: meta.namespace.clone()?,
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
        },
        created: meta
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        overruled: removed_gate(pod, spec)
            .into_iter()
            .chain(held.filter_map(overruled))
            .collect(),
        containers: ours
            .into_iter()
            .filter(|container| other_policy(container) != Some(OtherPolicy::Always))
            .map(try_container)
            .collect(),
        settings,
        complaints,
        gate: gate_state(pod, spec),
        gate_image: gate_image(pod, spec),
        // A release that cannot be read is as good as none: the gate does not honour it either.
        released: annotations
            .get(keys::RELEASED)
            .filter(|json| json.len() <= RELEASE_MAX_BYTES)
            .and_then(|json| serde_json::from_str(json).ok()),
        ended: meta.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed")),
    })
}

/// The containers that admission has named, in the pod's order.
fn try_containers<'a>(
    spec: &'a PodSpec,
    annotations: &BTreeMap<String, String>,
    complaints: &mut Vec<String>,
) -> Vec<&'a Container> {
    let named: BTreeSet<&str> = annotations
        .get(keys::CONTAINERS)
        .map(|names| names.split(',').map(str::trim).collect())
        .unwrap_or_default();
    let all = named.contains("*");
    let inits = spec.init_containers.iter().flatten();
    let own = inits
        .chain(&spec.containers)
        .filter(|container| container.name != keys::GATE);
    let known: BTreeSet<&str> = own.clone().map(|own| own.name.as_str()).collect();
    let unknown: Vec<&str> = named
        .iter()
        .copied()
        .filter(|name| !matches!(*name, "" | "*") && !known.contains(name))
        .collect();
    if !unknown.is_empty() {
        complaints.push(format!(
            "{}: no container is called {} (this pod has: {}); it is left out",
            keys::CONTAINERS,
            some_of(unknown.into_iter()),
            some_of(known.into_iter())
        ));
    }
    let mut ours: Vec<_> = own
        .filter(|container| all || named.contains(&container.name.as_str()))
        .collect();
    if ours.len() > CONTAINERS_MAX {
        complaints.push(format!(
            "{} TryLatest containers, and {CONTAINERS_MAX} are looked after; the others are left to the \
             kubelet",
            ours.len()
        ));
        ours.truncate(CONTAINERS_MAX);
    }
    ours
}

/// The first of these names, and how many more there are.
fn some_of<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    let mut some: Vec<String> = names.take(NAMES_MAX).map(shown).collect();
    if more > 0 {
        some.push(format!("and {more} more"));
    }
    some.join(", ")
}

/// A name in quotes, no longer than a container's can be.
fn shown(name: &str) -> String {
    const NAME_MAX: usize = 63;
    format!("{:?}", &name[..name.floor_char_boundary(NAME_MAX)])
}

fn try_container(container: &Container) -> TryContainer {
    let image = container.image.as_deref().unwrap_or_default();
    let written = image[..image.floor_char_boundary(IMAGE_MAX_BYTES)].to_owned();
    TryContainer {
        name: container.name.clone(),
        image: written.parse(),
        written,
    }
}

fn overruled(container: &Container) -> Option<Overruled> {
    Some(Overruled {
        name: container.name.clone(),
        policy: other_policy(container)?,
        removed: false,
    })
}

/// The gate that admission took away again. Only the label is left of it: the other policy need not
/// have changed any container besides.
fn removed_gate(pod: &Pod, spec: &PodSpec) -> Option<Overruled> {
    let label = pod.metadata.labels.as_ref()?.get(keys::GATED)?;
    (label == keys::GATED_OVERRULED && gate(spec).is_none()).then(|| Overruled {
        name: keys::GATE.to_owned(),
        policy: OtherPolicy::Always,
        removed: true,
    })
}

/// What a container has instead of the `IfNotPresent` that admission gave it.
fn other_policy(container: &Container) -> Option<OtherPolicy> {
    let written = container.image_pull_policy.as_deref();
    OtherPolicy::ALL
        .into_iter()
        .find(|policy| Some(policy.as_str()) == written)
}

fn gate(spec: &PodSpec) -> Option<&Container> {
    let mut inits = spec.init_containers.iter().flatten();
    inits.find(|container| container.name == keys::GATE)
}

fn gate_state(pod: &Pod, spec: &PodSpec) -> GateState {
    if gate(spec).is_none() {
        return GateState::Open;
    }
    match gate_status(pod) {
        Some(ContainerState {
            terminated: Some(end),
            ..
        }) if end.exit_code == 0 => opened(end),
        Some(ContainerState {
            running: Some(running),
            ..
        }) => match &running.started_at {
            Some(since) => GateState::Running { since: since.0 },
            None => GateState::Pending,
        },
        _ => GateState::Pending,
    }
}

fn gate_status(pod: &Pod) -> Option<&ContainerState> {
    let statuses = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    let gate = statuses.iter().find(|status| status.name == keys::GATE)?;
    gate.state.as_ref()
}

/// The waiting reasons of a container whose image the kubelet could not have
/// (pkg/kubelet/images/types.go).
const WANTING: [&str; 6] = [
    "ErrImagePull",
    "ErrImageNeverPull",
    "ImageInspectError",
    "ImagePullBackOff",
    "RegistryUnavailable",
    "SignatureValidationFailed",
];

fn gate_image(pod: &Pod, spec: &PodSpec) -> Option<GateImage> {
    let gate = gate(spec)?;
    let state = gate_status(pod);
    if state.is_some_and(|state| state.running.is_some() || state.terminated.is_some()) {
        return None;
    }
    let image = gate.image.as_deref().unwrap_or_default();
    let reason = state.and_then(|state| state.waiting.as_ref()?.reason.as_deref());
    Some(GateImage {
        name: image[..image.floor_char_boundary(IMAGE_MAX_BYTES)]
            .parse()
            .ok()?,
        always_pulled: gate.image_pull_policy.as_deref() == Some("Always"),
        wanting: reason.is_some_and(|reason| WANTING.contains(&reason)),
    })
}

/// An open gate says by its last message whether anybody has answered it.
fn opened(end: &ContainerStateTerminated) -> GateState {
    let message = end.message.as_deref().unwrap_or_default();
    match &end.finished_at {
        Some(at) if message.starts_with(UNANSWERED) => GateState::GaveUp {
            since: end.started_at.as_ref().unwrap_or(at).0,
            at: at.0,
        },
        _ => GateState::Open,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use trylatest_core::outcome::Outcome;

    use super::*;

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
        gated_pod(&serde_json::from_value(pod).unwrap()).unwrap()
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
        assert!(!pod.ended);
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
                "trylatest.dev/containers: no container is called \"trylatest-gate\", \"typo\" \
                 (this pod has: \"main\"); it is left out"
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
        let container = |name: &str, policy: &str| json!({"name": name, "image": "a", "imagePullPolicy": policy});
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
            removed: true,
        };
        assert_eq!(label(keys::GATED_OVERRULED), [gate]);
        assert_eq!(label(keys::GATED_VALUE), []);
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
        assert_eq!(pod.containers.len(), CONTAINERS_MAX);
        assert!(
            pod.complaints[0].starts_with("500 TryLatest containers"),
            "{:?}",
            pod.complaints
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
        let words = "no sign of a TryLatest agent for 20s: opened after 20.00s";
        assert_eq!(gate(words), GateState::GaveUp { since, at });
        assert_eq!(
            gate("fallback: app: no sign of a TryLatest agent"),
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
            assert!(pod(&patch).ended, "{patch}");
        }
        assert!(!pod(&json!({"status": {"phase": "Running"}})).ended);
    }
}
