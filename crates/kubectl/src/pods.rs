//! What a pod says of itself, as far as TryLatest is concerned.
//!
//! Everything that others can write is cut to one line before it reaches a terminal.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Pod};
use trylatest_core::gate::End;
use trylatest_core::keys;
use trylatest_core::release::{ContainerRelease, Progress, Release};
use trylatest_core::text;

/// Longest annotation that is read. The agent's have about a kilobyte per container.
const ANNOTATION_MAX_BYTES: usize = 64 << 10;

/// Whether a pod is one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Label {
    /// It has a gate.
    Gated,
    /// It is to have none (`hold: none`).
    Unheld,
    /// Admission took the gate away, because another policy overrules it.
    Overruled,
    /// It is none of ours.
    Missing,
}

/// How far the gate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// There is none.
    Missing,
    /// It has not started: the pod is not scheduled, or the kubelet has not come to it.
    Pending,
    /// The kubelet cannot get its image; with the reason and the message.
    Wanting(String),
    /// It waits, since then.
    Waiting(Option<Timestamp>),
    /// It has let the pod start.
    Opened,
    /// It has opened by itself.
    Unanswered,
    /// It does not let the pod start; its last message.
    Refused(String),
}

/// A pod.
#[derive(Clone, Debug)]
pub(crate) struct SeenPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: Option<String>,
    pub(crate) created: Option<Timestamp>,
    /// It has ended, or is about to.
    pub(crate) over: bool,
    pub(crate) label: Label,
    pub(crate) gate: Gate,
    /// When its gate has ended, if it has.
    pub(crate) gate_ended: Option<Timestamp>,
    pub(crate) release: Option<Release>,
    pub(crate) progress: Option<Progress>,
    /// The containers that admission has named, in the pod's order, and then the image volumes.
    pub(crate) ours: Vec<OurContainer>,
}

/// A TryLatest container of a pod, or an image volume.
#[derive(Clone, Debug)]
pub(crate) struct OurContainer {
    /// As in a release: a volume's begins with [`keys::VOLUME_PREFIX`].
    pub(crate) name: String,
    pub(crate) image: String,
    /// Another policy has given it `Always`: the kubelet asks the registry itself.
    pub(crate) always: bool,
    /// Why it waits, in the kubelet's words.
    pub(crate) waiting: Option<String>,
}

impl SeenPod {
    /// `NAMESPACE/NAME`.
    pub(crate) fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// What was said of one of its containers, if that is about the image that it has now, and about its gate's last run:
    /// the image of a running pod may be changed.
    pub(crate) fn released(&self, container: &str) -> Option<&ContainerRelease> {
        let release = self.release.as_ref().filter(|_| !self.is_unanswered());
        let given = release?.containers.get(container)?;
        let now = self.ours.iter().find(|ours| ours.name == container);
        now.is_none_or(|now| now.image == given.image)
            .then_some(given)
    }

    /// Whether its gate has opened by itself, and no release says what the pod started from then. An agent that comes
    /// later writes the gate's end into a release that was meant for it; any other release is about an earlier run of
    /// the gate, before a reboot of the node, for example.
    pub(crate) fn is_unanswered(&self) -> bool {
        let release = self.release.as_ref();
        let answered = release.and_then(|release| release.unseen);
        self.gate == Gate::Unanswered && (answered.is_none() || answered != self.gate_ended)
    }

    /// Whether it may have started, and no agent has said from what. A pod without a gate is like that for a moment.
    pub(crate) fn is_unreported(&self) -> bool {
        let may_run = self.node.is_some() && matches!(self.gate, Gate::Opened | Gate::Missing);
        let mut ours = self.ours.iter();
        self.release.is_none() && may_run && ours.any(|container| container.waiting.is_none())
    }

    /// Whether one of its containers has not started.
    pub(crate) fn waits(&self, container: &str) -> bool {
        let ours = self.ours.iter().find(|ours| ours.name == container);
        ours.is_some_and(|ours| ours.waiting.is_some())
    }

    /// Reads a pod.
    pub(crate) fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            over: meta.deletion_timestamp.is_some()
                || matches!(phase, Some("Succeeded" | "Failed")),
            label: label(pod),
            gate: gate(pod),
            gate_ended: gate_ended(pod),
            release: annotation(pod, keys::RELEASED)
                .and_then(|json| serde_json::from_str(json).ok())
                .map(clean),
            progress: annotation(pod, keys::PROGRESS)
                .and_then(|json| serde_json::from_str(json).ok()),
            ours: ours(pod),
        }
    }
}

/// Whether a container runs a copy although its try had failed.
pub(crate) fn is_old(release: &ContainerRelease) -> bool {
    release.runs_fallback()
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    let value = pod.metadata.annotations.as_ref()?.get(key)?;
    (value.len() <= ANNOTATION_MAX_BYTES).then_some(value)
}

/// Anybody who may write a pod may write a release: no control character of it reaches a terminal.
fn clean(mut release: Release) -> Release {
    let line = |words: &mut String| *words = text::on_one_line(words);
    release.containers = std::mem::take(&mut release.containers)
        .into_iter()
        .map(|(name, mut container)| {
            line(&mut container.image);
            container.note.iter_mut().for_each(line);
            if let Some(failure) = &mut container.failure {
                line(&mut failure.message);
            }
            (text::on_one_line(&name), container)
        })
        .collect();
    release
}

fn label(pod: &Pod) -> Label {
    let labels = pod.metadata.labels.as_ref();
    match labels
        .and_then(|labels| labels.get(keys::GATED))
        .map(String::as_str)
    {
        Some(keys::GATED_NONE) => Label::Unheld,
        Some(keys::GATED_OVERRULED) => Label::Overruled,
        Some(_) => Label::Gated,
        None => Label::Missing,
    }
}

fn gate(pod: &Pod) -> Gate {
    let inits = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    let mut gates = inits.filter(|container| container.name == keys::GATE);
    if gates.next().is_none() {
        return Gate::Missing;
    }
    let state = status(pod, keys::GATE).and_then(|status| status.state.as_ref());
    match state {
        Some(ContainerState {
            terminated: Some(end),
            ..
        }) => {
            let message = end.message.as_deref().unwrap_or_default();
            match (end.exit_code, End::of(message)) {
                (0, Some(End::Unanswered)) => Gate::Unanswered,
                (0, _) => Gate::Opened,
                (_, Some(End::Refused)) => Gate::Refused(lines(message)),
                // A gate that was killed, e.g. by a reboot: the kubelet runs it again.
                _ => Gate::Pending,
            }
        }
        Some(ContainerState {
            running: Some(running),
            ..
        }) => Gate::Waiting(running.started_at.as_ref().map(|time| time.0)),
        // The gate that has refused waits to be run again.
        Some(ContainerState {
            waiting: Some(waiting),
            ..
        }) => match (refused_before(pod), waiting.reason.as_deref()) {
            (Some(message), _) => Gate::Refused(message),
            (None, Some(reason)) if is_wanting(reason) => {
                let message = waiting.message.as_deref().unwrap_or_default();
                Gate::Wanting(text::on_one_line(&format!("{reason}: {message}")))
            }
            _ => Gate::Pending,
        },
        _ => Gate::Pending,
    }
}

fn gate_ended(pod: &Pod) -> Option<Timestamp> {
    let state = status(pod, keys::GATE)?.state.as_ref()?;
    let end = state.terminated.as_ref()?.finished_at.as_ref()?;
    Some(end.0)
}

/// The message of the gate's last run, if that was a refusal.
fn refused_before(pod: &Pod) -> Option<String> {
    let last = status(pod, keys::GATE)?.last_state.as_ref()?;
    let message = last.terminated.as_ref()?.message.as_deref()?;
    (End::of(message) == Some(End::Refused)).then(|| lines(message))
}

/// What a gate said, as one line.
fn lines(message: &str) -> String {
    text::on_one_line(&message.trim_end().replace('\n', "; "))
}

fn status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let inits = status.init_container_statuses.iter().flatten();
    let mut all = inits.chain(status.container_statuses.iter().flatten());
    all.find(|status| status.name == name)
}

/// The kubelet's words for an image that it cannot get begin or end with these (`pkg/kubelet/images/types.go`).
fn is_wanting(reason: &str) -> bool {
    reason.contains("Image")
        || matches!(reason, "RegistryUnavailable" | "SignatureValidationFailed")
}

/// The names that an annotation of the pod lists.
fn named<'a>(pod: &'a Pod, key: &str) -> BTreeSet<&'a str> {
    annotation(pod, key)
        .map(|names| names.split(',').map(str::trim).collect())
        .unwrap_or_default()
}

fn ours(pod: &Pod) -> Vec<OurContainer> {
    let names = named(pod, keys::CONTAINERS);
    let is_ours = |container: &&Container| {
        container.name != keys::GATE
            && (names.contains("*") || names.contains(container.name.as_str()))
    };
    let containers = containers(pod)
        .filter(is_ours)
        .map(|container| OurContainer {
            name: container.name.clone(),
            image: text::on_one_line(container.image.as_deref().unwrap_or_default()),
            always: container.image_pull_policy.as_deref() == Some("Always"),
            waiting: waiting(pod, &container.name),
        });
    containers.chain(our_volumes(pod)).collect()
}

/// Init containers first, in the pod's order.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    let inits = spec
        .clone()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    inits.chain(spec.flat_map(|spec| &spec.containers))
}

/// The image volumes that admission has named. The agent leaves one that no container mounts to the kubelet.
fn our_volumes(pod: &Pod) -> impl Iterator<Item = OurContainer> {
    let names = named(pod, keys::VOLUMES);
    let mounted: BTreeSet<&str> = containers(pod)
        .flat_map(|container| container.volume_mounts.iter().flatten())
        .map(|mount| mount.name.as_str())
        .collect();
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(move |volume| {
        let source = volume.image.as_ref()?;
        let name = volume.name.as_str();
        let is_ours = mounted.contains(name) && (names.contains("*") || names.contains(name));
        is_ours.then(|| OurContainer {
            name: format!("{}{name}", keys::VOLUME_PREFIX),
            image: text::on_one_line(source.reference.as_deref().unwrap_or_default()),
            always: source.pull_policy.as_deref() == Some("Always"),
            // The containers that mount it say why they wait.
            waiting: None,
        })
    })
}

fn waiting(pod: &Pod, name: &str) -> Option<String> {
    let waiting = status(pod, name)?.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().unwrap_or("waiting");
    Some(match waiting.message.as_deref() {
        Some(message) => text::on_one_line(&format!("{reason}: {message}")),
        None => text::on_one_line(reason),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A running pod of ours whose one container `app` has this release.
    pub(crate) fn pod(name: &str, node: &str, release: &Value) -> Pod {
        let released = json!({"time": "2026-01-01T12:00:00Z", "containers": {"app": release}});
        serde_json::from_value(json!({
            "metadata": {
                "namespace": "shop", "name": name, "uid": name,
                "creationTimestamp": "2026-01-01T11:59:58Z",
                "labels": {keys::GATED: keys::GATED_VALUE},
                "annotations": {keys::CONTAINERS: "app", keys::RELEASED: released.to_string()},
            },
            "spec": {
                "nodeName": node,
                "initContainers": [{"name": keys::GATE, "image": "gate"}],
                "containers": [{"name": "app", "image": "reg.example/app:1", "imagePullPolicy": "IfNotPresent"}],
            },
            "status": {"phase": "Running", "initContainerStatuses": [gate_status(&json!({
                "terminated": {"exitCode": 0, "message": "opened after 0.1s"},
            }))]},
        }))
        .unwrap()
    }

    /// A release with this outcome.
    pub(crate) fn release(outcome: &str, digest: &str) -> Value {
        json!({
            "image": "reg.example/app:1", "outcome": outcome, "digest": digest_of(digest),
            "confirmed": "2026-01-01T10:00:00Z",
        })
    }

    /// A digest that begins with these letters.
    pub(crate) fn digest_of(start: &str) -> String {
        format!("sha256:{start:0<64}")
    }

    /// The same pod, whose gate has opened by itself at this time; its release says so of another time, or of none.
    pub(crate) fn unanswered(pod: &Pod, ended: &str, unseen: Option<&str>) -> Pod {
        let mut object = serde_json::to_value(pod).unwrap();
        let end = json!({"exitCode": 0, "message": "unanswered after 20s", "finishedAt": ended});
        object["status"]["initContainerStatuses"] =
            json!([gate_status(&json!({ "terminated": end }))]);
        let released = &mut object["metadata"]["annotations"][keys::RELEASED];
        let mut release: Value = serde_json::from_str(released.as_str().unwrap()).unwrap();
        if let Some(unseen) = unseen {
            release["unseen"] = json!(unseen);
        }
        *released = json!(release.to_string());
        serde_json::from_value(object).unwrap()
    }

    /// The gate's status with this state.
    pub(crate) fn gate_status(state: &Value) -> Value {
        json!({"name": keys::GATE, "state": state, "image": "", "imageID": "", "ready": false, "restartCount": 0})
    }

    fn with_gate(status: &Value) -> Gate {
        let mut pod = serde_json::to_value(pod("a", "n", &release("fresh", "a"))).unwrap();
        pod["status"]["initContainerStatuses"] = json!([status]);
        SeenPod::of(&serde_json::from_value(pod).unwrap()).gate
    }

    #[test]
    fn a_gate_is_where_its_status_says() {
        let ended = |code: i32, message: &str| {
            with_gate(&gate_status(
                &json!({"terminated": {"exitCode": code, "message": message}}),
            ))
        };
        assert_eq!(ended(0, "fresh: app\nopened after 0.1s"), Gate::Opened);
        assert_eq!(ended(0, "unanswered after 20s"), Gate::Unanswered);
        assert!(matches!(
            ended(1, "refused: app\nrefused after 0.10s"),
            Gate::Refused(_)
        ));
        assert_eq!(ended(137, ""), Gate::Pending);
        let since = json!({"running": {"startedAt": "2026-01-01T12:00:00Z"}});
        assert!(matches!(
            with_gate(&gate_status(&since)),
            Gate::Waiting(Some(_))
        ));
        let wanting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "x"}});
        assert_eq!(
            with_gate(&gate_status(&wanting)),
            Gate::Wanting("ImagePullBackOff: x".into())
        );
        let mut again = gate_status(&json!({"waiting": {"reason": "CrashLoopBackOff"}}));
        again["lastState"] =
            json!({"terminated": {"exitCode": 1, "message": "refused: app\nrefused after 0.10s"}});
        assert_eq!(
            with_gate(&again),
            Gate::Refused("refused: app; refused after 0.10s".into())
        );
    }

    #[test]
    fn a_release_answers_the_run_of_the_gate_that_it_names() {
        let released = pod("a", "n", &release("fresh", "a"));
        assert!(!SeenPod::of(&released).is_unanswered());
        let (end, before) = ("2026-01-02T12:00:20Z", "2026-01-01T12:00:20Z");
        for (unseen, is_unanswered) in [(None, true), (Some(before), true), (Some(end), false)] {
            let seen = SeenPod::of(&unanswered(&released, end, unseen));
            assert_eq!(seen.is_unanswered(), is_unanswered, "{unseen:?}");
        }
    }

    #[test]
    fn what_others_wrote_stays_on_one_line() {
        let mut hostile = release("fallback", "a");
        hostile["image"] = json!("a\u{1b}[31m\nb");
        hostile["class"] = json!("network");
        hostile["message"] = json!("x\ry");
        hostile["note"] = json!("\u{202e}note");
        let mut seen = SeenPod::of(&pod("a", "n", &hostile));
        assert_eq!(seen.released("app"), None, "it is of another image");
        seen.ours.clear();
        let app = seen.released("app").unwrap();
        assert_eq!(app.image, "a [31m b");
        assert_eq!(app.failure.as_ref().unwrap().message, "x y");
        assert_eq!(app.note.as_deref(), Some(" note"));
        assert!(is_old(app));
    }

    #[test]
    fn a_release_that_cannot_be_read_is_none() {
        let mut bad = pod("a", "n", &json!({"outcome": "later"}));
        assert!(SeenPod::of(&bad).release.is_none());
        let huge = format!("{{\"time\":{}", " ".repeat(ANNOTATION_MAX_BYTES));
        let annotations = bad.metadata.annotations.as_mut().unwrap();
        annotations.insert(keys::RELEASED.into(), huge);
        assert!(SeenPod::of(&bad).release.is_none());
    }
}
