//! From a Kubernetes Pod to what the core needs to know of it.

mod item;
mod overruled;
mod starts;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, Pod, PodSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use trylatest_core::gate::End;
use trylatest_core::identity::Identity;
use trylatest_core::keys;
use trylatest_core::outcome::Failure;
use trylatest_core::pod::{GateImage, GateState, GatedPod, OtherPolicy, PodId, Revision};
use trylatest_core::settings::Settings;

use self::item::Item;

// Anybody may label a pod and write a megabyte into it, so the agent keeps a bounded part of each pod.

/// Longest complaint: as long as an Event's text may be.
const COMPLAINT_MAX_BYTES: usize = 1024;

/// Most containers and image volumes of one pod that are looked after: half of the tries that run at once.
const ITEMS_MAX: usize = 32;

/// Longest release that is read. Ours have about a kilobyte per container.
const RELEASE_MAX_BYTES: usize = 64 << 10;

/// Longest image name that is kept: no valid one has more than 800 bytes, so a name that is cut here
/// does not become valid.
const IMAGE_MAX_BYTES: usize = 1024;

/// Says why the kubelet could not get an image, from its message.
pub type Classify = fn(&str) -> Failure;

/// Reads a pod with the gated label; none if it lacks what every stored pod has.
pub fn gated_pod(pod: &Pod, classify: Classify) -> Option<GatedPod> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref()?;
    let none = BTreeMap::new();
    let annotations = meta.annotations.as_ref().unwrap_or(&none);
    let (settings, mut complaints) = Settings::parse(annotations);
    let ours = item::all(spec, annotations, &mut complaints);
    let revision = revision(meta);
    if settings.same_digest && revision.is_none() {
        complaints.push(format!("{}: {UNKNOWN_ROLLOUT}; ignored", keys::SAME_DIGEST));
    }
    for complaint in &mut complaints {
        complaint.truncate(complaint.floor_char_boundary(COMPLAINT_MAX_BYTES));
    }
    let gate = gate_state(pod, spec);
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
        has_image_volumes: !item::volumes(spec).is_empty(),
        overruled: overruled::all(pod, spec, &ours),
        identity: identity(meta.namespace.as_ref(), spec),
        starts: starts::all(pod, spec, &ours, gate == GateState::NotWanted, classify),
        containers: ours
            .into_iter()
            .filter(|item| item.other_policy() != Some(OtherPolicy::Always))
            .map(Item::into_container)
            .collect(),
        settings,
        revision,
        active_deadline: spec
            .active_deadline_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(Duration::from_secs),
        complaints,
        gate,
        gate_image: gate_image(pod, spec),
        // An unreadable release counts as none: the gate does not honour it either.
        released: annotations
            .get(keys::RELEASED)
            .filter(|json| json.len() <= RELEASE_MAX_BYTES)
            .and_then(|json| serde_json::from_str(json).ok()),
        terminated: meta.deletion_timestamp.is_some()
            || matches!(phase, Some("Succeeded" | "Failed")),
    })
}

/// The label by which StatefulSets, DaemonSets and their like say which version of their template a pod was made from.
const REVISION: &str = "controller-revision-hash";

/// Of these, each version of a template has an object of its own, or there is only one.
const OF_ONE_TEMPLATE: [(&str, &str); 2] = [("apps", "ReplicaSet"), ("batch", "Job")];

const UNKNOWN_ROLLOUT: &str = "TryLatest cannot tell which rollout this pod belongs to, because neither a ReplicaSet nor a \
                               Job has made it, nor does it have the label controller-revision-hash";

/// Longer than any uid or label that the API server or a controller writes.
const REVISION_MAX_BYTES: usize = 128;

/// The rollout that the pod belongs to. Of other owners it is not known when their template has changed.
fn revision(meta: &ObjectMeta) -> Option<Revision> {
    let mut owners = meta.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    let version = meta.labels.as_ref().and_then(|labels| labels.get(REVISION));
    let group = owner.api_version.split_once('/').map(|(group, _)| group);
    let kind = Some(owner.kind.as_str());
    let has_one = OF_ONE_TEMPLATE.map(|(group, kind)| (Some(group), Some(kind)));
    let is_bounded = |text: &String| text.len() <= REVISION_MAX_BYTES;
    let is_known = version.is_some() || has_one.contains(&(group, kind));
    let is_known = is_known && is_bounded(&owner.uid) && version.is_none_or(is_bounded);
    is_known.then(|| Revision {
        owner: owner.uid.clone(),
        version: version.cloned(),
    })
}

/// Anybody may write many names, and long ones.
const SECRETS_MAX: usize = 32;

fn identity(namespace: Option<&String>, spec: &PodSpec) -> Identity {
    let secrets = spec.image_pull_secrets.iter().flatten();
    let secrets = secrets.filter(|secret| !secret.name.is_empty());
    let mut pull_secrets: Vec<String> = secrets.map(|secret| secret.name.clone()).collect();
    pull_secrets.sort();
    pull_secrets.dedup();
    pull_secrets.truncate(SECRETS_MAX);
    Identity {
        namespace: namespace.cloned().unwrap_or_default(),
        service_account: spec.service_account_name.clone().unwrap_or_default(),
        pull_secrets,
    }
}

fn gate(spec: &PodSpec) -> Option<&Container> {
    let mut inits = spec.init_containers.iter().flatten();
    inits.find(|container| container.name == keys::GATE)
}

fn gate_state(pod: &Pod, spec: &PodSpec) -> GateState {
    if gate(spec).is_none() {
        return if is_unheld(pod) {
            GateState::NotWanted
        } else {
            GateState::Open
        };
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

/// Whether admission has left the gate out. The annotation may have been changed since.
fn is_unheld(pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let label = labels.and_then(|labels| labels.get(keys::GATED));
    label.is_some_and(|label| label == keys::GATED_NONE)
}

fn gate_status(pod: &Pod) -> Option<&ContainerState> {
    let statuses = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    let gate = statuses.iter().find(|status| status.name == keys::GATE)?;
    gate.state.as_ref()
}

/// The waiting reasons of a container whose image the kubelet could not get
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

/// The last message of an open gate says whether anybody has answered it.
fn opened(end: &ContainerStateTerminated) -> GateState {
    let message = end.message.as_deref().unwrap_or_default();
    match &end.finished_at {
        Some(at) if End::of(message) == Some(End::Unanswered) => GateState::GaveUp {
            since: end.started_at.as_ref().unwrap_or(at).0,
            at: at.0,
        },
        _ => GateState::Open,
    }
}

#[cfg(test)]
mod tests;
