//! How far the kubelet has come with the containers, by their statuses.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Pod, PodSpec};
use trylatest_core::digest::Digest;
use trylatest_core::keys;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::pod::Start;

use super::Classify;

/// The waiting reasons of a container whose pull has failed (pkg/kubelet/images/types.go). Others say that
/// the kubelet has not tried.
const FAILED: [&str; 4] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "RegistryUnavailable",
    "SignatureValidationFailed",
];

/// How a message begins while the kubelet waits before it pulls again. Why its last pull failed follows, if it
/// knows (pkg/kubelet/images/image_manager.go, `pullImage`).
const BACKING_OFF: &str = "Back-off pulling image \"";

/// Longest message that is read. The kubelet repeats containerd's, which has an error's body in it.
const MESSAGE_MAX_BYTES: usize = 4096;

/// Those of a container that the kubelet pulls for, or is about to (pkg/kubelet/kubelet_pods.go).
const PREPARES: [&str; 2] = ["PodInitializing", "ContainerCreating"];

/// Of each of these containers that it has come to, once the gate has opened; of a pod without one from the
/// beginning.
pub(super) fn all(
    pod: &Pod,
    spec: &PodSpec,
    ours: &[&Container],
    is_unheld: bool,
    classify: Classify,
) -> BTreeMap<String, Start> {
    let statuses = Statuses::of(pod);
    let opened = statuses.gate_opened();
    let Some(opened) = opened.or(is_unheld.then_some(Timestamp::UNIX_EPOCH)) else {
        return BTreeMap::new();
    };
    let inits: Vec<&Container> = spec.init_containers.iter().flatten().collect();
    let start = |name: &str| start(statuses.of_container(name)?, opened, classify);
    // It may wait for something else, e.g. for a ConfigMap that is missing; then it has its image.
    let may_be_pulled = |name: &str| {
        let state = statuses
            .of_container(name)
            .and_then(|status| status.state.as_ref());
        let waiting = state.and_then(|state| state.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
        reason.is_none_or(|reason| PREPARES.contains(&reason))
    };
    // The kubelet comes to one after the other, and goes on behind one whose image it cannot get.
    let mut own = spec.containers.iter();
    let next = match inits.iter().find(|init| !statuses.is_done(init, opened)) {
        Some(init) => Some(*init),
        None => own.find(|container| start(&container.name).is_none()),
    };
    let next = next.map(|container| container.name.as_str());
    let starts = ours.iter().filter_map(|container| {
        let name = container.name.as_str();
        let is_next = next == Some(name) && may_be_pulled(name);
        let start = start(name).or(is_next.then_some(Start::Next))?;
        Some((name.to_owned(), start))
    });
    starts.collect()
}

/// Of one container since the gate opened, which may have been the gate of an earlier run of the pod.
fn start(status: &ContainerStatus, opened: Timestamp, classify: Classify) -> Option<Start> {
    let state = status.state.as_ref()?;
    if let Some(waiting) = &state.waiting
        && FAILED.contains(&waiting.reason.as_deref().unwrap_or_default())
    {
        let message = waiting.message.as_deref().unwrap_or_default();
        return Some(Start::Wanting(why(message, classify)));
    }
    let runs = [Some(state), status.last_state.as_ref()];
    let since_then = runs.into_iter().flatten().filter_map(started);
    since_then.max().filter(|at| *at >= opened)?;
    let digest = status.image_id.rsplit_once('@');
    let runs = state.running.as_ref().and_then(|s| s.started_at.as_ref());
    Some(Start::Started {
        digest: digest.and_then(|(_, digest)| digest.parse::<Digest>().ok()),
        since: runs.map(|since| since.0),
    })
}

/// Why the kubelet could not get an image. That it waits before it tries again is not the reason.
fn why(message: &str, classify: Classify) -> Failure {
    let Some(error) = last_error(message) else {
        return Failure::new(
            FailureClass::Unknown,
            "the kubelet waits before it pulls the image again, and does not say why its last pull failed",
        );
    };
    let end = error.floor_char_boundary(MESSAGE_MAX_BYTES);
    classify(&error[..end])
}

/// What a message says of the last pull; none if it only says that the kubelet waits.
fn last_error(message: &str) -> Option<&str> {
    let Some(waits) = message.strip_prefix(BACKING_OFF) else {
        return Some(message);
    };
    let (_, error) = waits.split_once("\": ")?;
    let without = |reason: &&str| error.strip_prefix(*reason)?.strip_prefix(": ");
    Some(FAILED.iter().find_map(without).unwrap_or(error))
}

/// When a container started, in whole seconds, rounded down.
fn started(state: &ContainerState) -> Option<Timestamp> {
    let running = state.running.as_ref().and_then(|s| s.started_at.as_ref());
    let ended = state
        .terminated
        .as_ref()
        .and_then(|s| s.started_at.as_ref());
    Some(running.or(ended)?.0)
}

struct Statuses<'a>(Vec<&'a ContainerStatus>);

impl<'a> Statuses<'a> {
    fn of(pod: &'a Pod) -> Self {
        let status = pod.status.as_ref();
        let inits = status.and_then(|status| status.init_container_statuses.as_ref());
        let own = status.and_then(|status| status.container_statuses.as_ref());
        Self([inits, own].into_iter().flatten().flatten().collect())
    }

    fn of_container(&self, name: &str) -> Option<&'a ContainerStatus> {
        self.0.iter().copied().find(|status| status.name == name)
    }

    /// When the gate opened, in whole seconds, rounded down.
    fn gate_opened(&self) -> Option<Timestamp> {
        let state = self.of_container(keys::GATE)?.state.as_ref()?;
        let end = state.terminated.as_ref().filter(|end| end.exit_code == 0)?;
        Some(end.finished_at.as_ref()?.0)
    }

    /// Whether what comes after this init container may start.
    fn is_done(&self, init: &Container, opened: Timestamp) -> bool {
        let Some(status) = self.of_container(&init.name) else {
            return false;
        };
        let state = status.state.as_ref();
        // Of an earlier run of the pod, unless it is the gate.
        let is_old = state.and_then(started).is_none_or(|at| at < opened);
        if is_old && init.name != keys::GATE {
            return false;
        }
        if init.restart_policy.as_deref() == Some("Always") {
            return status.started == Some(true);
        }
        let end = state.and_then(|state| state.terminated.as_ref());
        end.is_some_and(|end| end.exit_code == 0)
    }
}

#[cfg(test)]
mod tests;
