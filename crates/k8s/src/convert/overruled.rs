//! Pull policies other than those that our admission wrote: somebody else's admission ran before or
//! after it.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use trylatest_core::keys;
use trylatest_core::pod::{OtherPolicy, Overruled, Trace};

use super::{CONTAINERS_MAX, gate};

/// What the pod's owner should know about; `ours` are the containers that admission has named.
pub(super) fn all(pod: &Pod, spec: &PodSpec, ours: &[&Container]) -> Vec<Overruled> {
    let annotations = pod.metadata.annotations.as_ref();
    let literal = annotations.and_then(|annotations| annotations.get(keys::LITERAL));
    let overtaken = overtaken(spec, literal.map_or("", String::as_str), ours);
    let held = gate(spec).into_iter().chain(ours.iter().copied());
    let held = held.filter_map(|container| changed(container, Trace::Policy));
    let overtaken = overtaken.into_iter();
    let overtaken = overtaken.filter_map(|container| changed(container, Trace::Template));
    removed_gate(pod, spec)
        .into_iter()
        .chain(held)
        .chain(overtaken)
        .collect()
}

fn changed(container: &Container, trace: Trace) -> Option<Overruled> {
    Some(Overruled {
        name: container.name.clone(),
        policy: other_policy(container)?,
        trace,
    })
}

/// What a container has instead of the `IfNotPresent` that admission gave it.
pub(super) fn other_policy(container: &Container) -> Option<OtherPolicy> {
    let written = container.image_pull_policy.as_deref();
    OtherPolicy::ALL
        .into_iter()
        .find(|policy| Some(policy.as_str()) == written)
}

/// The gate that admission removed again. Only the label is left of it, and the names of the
/// containers that it was for: the other policy need not have changed any of them.
fn removed_gate(pod: &Pod, spec: &PodSpec) -> Option<Overruled> {
    let label = pod.metadata.labels.as_ref()?.get(keys::GATED)?;
    let annotations = pod.metadata.annotations.as_ref()?;
    let had_one = label == keys::GATED_OVERRULED && annotations.contains_key(keys::CONTAINERS);
    (had_one && gate(spec).is_none()).then(|| Overruled {
        name: keys::GATE.to_owned(),
        policy: OtherPolicy::Always,
        trace: Trace::Removed,
    })
}

/// The containers that said TryLatest in the pod's template and were given `Always` before our
/// admission saw the pod: it has not named them.
fn overtaken<'a>(spec: &'a PodSpec, literal: &str, ours: &[&'a Container]) -> Vec<&'a Container> {
    let all = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    all.filter(|container| other_policy(container) == Some(OtherPolicy::Always))
        .filter(|container| literal.split(',').any(|name| name == container.name))
        .filter(|container| !ours.iter().any(|our| our.name == container.name))
        .take(CONTAINERS_MAX)
        .collect()
}
