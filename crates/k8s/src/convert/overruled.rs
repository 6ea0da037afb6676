//! Pull policies other than those that our admission wrote: somebody else's admission ran before or
//! after it.

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use trylatest_core::keys;
use trylatest_core::pod::{OtherPolicy, Overruled, Trace};

use super::item::{Item, containers, volumes};
use super::{ITEMS_MAX, gate};

/// What the pod's owner should know about; `ours` is what admission has named.
pub(super) fn all(pod: &Pod, spec: &PodSpec, ours: &[Item<'_>]) -> Vec<Overruled> {
    let annotations = pod.metadata.annotations.as_ref();
    let literal = annotations.and_then(|annotations| annotations.get(keys::LITERAL));
    let overtaken = overtaken(spec, literal.map_or("", String::as_str), ours);
    let gate = gate(spec).map(Item::of_container);
    let held = gate.iter().chain(ours);
    let held = held.filter_map(|item| changed(item, Trace::Policy));
    let overtaken = overtaken.iter();
    let overtaken = overtaken.filter_map(|item| changed(item, Trace::Template));
    removed_gate(pod, spec)
        .into_iter()
        .chain(held)
        .chain(overtaken)
        .collect()
}

fn changed(item: &Item<'_>, trace: Trace) -> Option<Overruled> {
    Some(Overruled {
        name: item.name.clone(),
        policy: item.other_policy()?,
        trace,
    })
}

/// The gate that admission removed again. Only the label is left of it, and the names of what it was
/// for: the other policy need not have changed any of that.
fn removed_gate(pod: &Pod, spec: &PodSpec) -> Option<Overruled> {
    let label = pod.metadata.labels.as_ref()?.get(keys::GATED)?;
    let annotations = pod.metadata.annotations.as_ref()?;
    let mut names = [keys::CONTAINERS, keys::VOLUMES].into_iter();
    let had_one = label == keys::GATED_OVERRULED && names.any(|key| annotations.contains_key(key));
    (had_one && gate(spec).is_none()).then(|| Overruled {
        name: keys::GATE.to_owned(),
        policy: OtherPolicy::Always,
        trace: Trace::Removed,
    })
}

/// What said TryLatest in the pod's template and was given `Always` before our admission saw the pod: it
/// has not named that.
fn overtaken<'a>(spec: &'a PodSpec, literal: &str, ours: &[Item<'_>]) -> Vec<Item<'a>> {
    let all = containers(spec)
        .map(Item::of_container)
        .chain(volumes(spec));
    all.filter(|item| item.other_policy() == Some(OtherPolicy::Always))
        .filter(|item| literal.split(',').any(|name| name == item.name))
        .filter(|item| !ours.iter().any(|our| our.name == item.name))
        .take(ITEMS_MAX)
        .collect()
}
