//! How far the kubelet has come with the containers, by their statuses.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateWaiting, ContainerStatus, Pod, PodSpec,
};
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::keys;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::pod::Start;

use super::Classify;
use super::item::{Item, containers, volumes};

/// The waiting reasons of a container whose pull has failed (pkg/kubelet/images/types.go). Others say that
/// the kubelet has not tried.
const FAILED: [&str; 4] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "RegistryUnavailable",
    "SignatureValidationFailed",
];

/// The waiting reason of one that is not to be pulled, and whose image is not there. Of a TryLatest container, another
/// policy has been made of it, and it says so.
const NEVER: &str = "ErrImageNeverPull";

/// How a message begins while the kubelet waits before it pulls again. Why its last pull failed follows, if it
/// knows (pkg/kubelet/images/image_manager.go, `pullImage`).
const BACKING_OFF: &str = "Back-off pulling image \"";

/// Longest message that is read. The kubelet repeats containerd's, which has an error's body in it.
const MESSAGE_MAX_BYTES: usize = 4096;

/// Those of a container that the kubelet pulls for, or is about to (pkg/kubelet/kubelet_pods.go).
const PREPARES: [&str; 2] = ["PodInitializing", "ContainerCreating"];

/// Of each of these that it has come to, once the gate has opened; of a pod without one from the beginning.
pub(super) fn all(
    pod: &Pod,
    spec: &PodSpec,
    ours: &[Item<'_>],
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
        let reason = statuses.waits_for(name);
        reason.is_none_or(|reason| PREPARES.contains(&reason))
    };
    // The kubelet comes to one after the other, and goes on behind one whose image it cannot get.
    let mut own = spec.containers.iter();
    let next = match inits.iter().find(|init| !statuses.is_done(init, opened)) {
        Some(init) => Some(*init),
        None => own.find(|container| start(&container.name).is_none()),
    };
    let next = next.map(|container| container.name.as_str());
    let next = next.filter(|name| start(name).is_none() && may_be_pulled(name));
    let volumes = volumes(spec);
    let of_user = |item: &Item<'_>, name: &str| {
        let is_next = next == Some(name);
        let start = start(name).or(is_next.then_some(Start::Next))?;
        let is_wanting = matches!(start, Start::Wanting(_));
        let is_others = is_wanting && !is_wanted(item, statuses.message(name), name, &volumes);
        Some(if is_others { Start::Next } else { start })
    };
    // The kubelet may come to the image for something else first, which holds up all that comes after.
    let of_others = |item: &Item<'_>| {
        let waits = containers(spec).map(|other| other.name.as_str());
        let mut wanting = waits.filter(|name| names(statuses.message(name), item.image));
        let wanting = wanting.find_map(|name| match start(name) {
            Some(Start::Wanting(why)) => Some(Start::Behind(why)),
            _ if statuses.waits_for(name) == Some(NEVER) => {
                Some(Start::Behind(why(statuses.message(name), classify)))
            }
            _ => None,
        });
        let has_it = |next: &str| {
            let mut own = containers(spec).filter(|other| other.name == next);
            let mut volumes = volumes.iter();
            own.any(|own| is_same(own.image.as_deref().unwrap_or_default(), item.image))
                || volumes.any(|volume| is_same(volume.image, item.image))
        };
        wanting.or(next.filter(|next| has_it(next)).map(|_| Start::Next))
    };
    let starts = ours.iter().filter_map(|item| {
        let users = item.users.iter().map(|name| of_user(item, name));
        let start = match item.volume() {
            None => users.flatten().next().or_else(|| of_others(item))?,
            Some(volume) => {
                // Whichever container is next, the kubelet gets the images of all volumes first.
                let users = users.map(|user| user.or(next.map(|_| Start::Next)));
                of_volume(&users.collect::<Vec<_>>(), statuses.mounted(volume))?
            }
        };
        Some((item.name.clone(), start))
    });
    starts.collect()
}

/// Of an image volume, from those of the containers that mount it: the kubelet looks for its image each time that it
/// starts one of them. It has started if all of them have.
fn of_volume(users: &[Option<Start>], mounted: Option<Digest>) -> Option<Start> {
    let known = || users.iter().flatten();
    let wanting = known().find(|start| matches!(start, Start::Wanting(_)));
    let next = known().find(|start| matches!(start, Start::Next));
    if let Some(start) = wanting.or(next) {
        return Some(start.clone());
    }
    let since = known().filter_map(|start| match start {
        Start::Started { since, .. } => *since,
        Start::Next | Start::Wanting(_) | Start::Behind(_) => None,
    });
    let started = Start::Started {
        digest: mounted,
        since: since.max(),
        again: known().any(|start| matches!(start, Start::Started { again: true, .. })),
    };
    (!users.contains(&None)).then_some(started)
}

/// Whether a message about a container that cannot have its images is about this item's: it names that, or no volume's
/// that the container mounts. The status says it of its own image and of theirs in the same way.
fn is_wanted(item: &Item<'_>, message: &str, container: &str, volumes: &[Item<'_>]) -> bool {
    let mounts = |volume: &&Item<'_>| volume.users.contains(&container);
    let mut mounted = volumes.iter().filter(mounts);
    let is_theirs = mounted.any(|volume| names(message, volume.image));
    names(message, item.image) || item.volume().is_none() && !is_theirs
}

/// Whether a message of the kubelet or of containerd has this image's name in it: as it is written, or in full.
fn names(message: &str, image: &str) -> bool {
    let quoted = |name: &str| message.contains(&format!("\"{name}\""));
    let full = image.parse::<ImageName>().ok();
    quoted(image) || full.is_some_and(|full| quoted(full.as_str()))
}

/// Whether these are names of one image.
fn is_same(one: &str, other: &str) -> bool {
    let full = |name: &str| name.parse::<ImageName>().ok();
    one == other || full(one).is_some_and(|one| full(other) == Some(one))
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
    let of_this_gate = |state: &ContainerState| started(state).filter(|at| *at >= opened);
    let now = of_this_gate(state);
    let before = status.last_state.as_ref().and_then(of_this_gate);
    now.or(before)?;
    let runs = state.running.as_ref().and_then(|s| s.started_at.as_ref());
    Some(Start::Started {
        digest: digest(&status.image_id),
        since: runs.map(|since| since.0),
        // In its back-off, the last start is the one before.
        again: before.is_some() && (now.is_some() || status.restart_count > 0),
    })
}

/// The digest of an image as the kubelet reports it. An id without a repository is not one of a manifest.
fn digest(reported: &str) -> Option<Digest> {
    reported.rsplit_once('@')?.1.parse().ok()
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

    fn waiting(&self, name: &str) -> Option<&'a ContainerStateWaiting> {
        let state = self.of_container(name)?.state.as_ref()?;
        state.waiting.as_ref()
    }

    /// For what a container waits, in a word.
    fn waits_for(&self, name: &str) -> Option<&'a str> {
        self.waiting(name)?.reason.as_deref()
    }

    /// Why a container waits.
    fn message(&self, name: &str) -> &'a str {
        let waiting = self.waiting(name);
        let message = waiting.and_then(|waiting| waiting.message.as_deref());
        let message = message.unwrap_or_default();
        &message[..message.floor_char_boundary(MESSAGE_MAX_BYTES)]
    }

    /// What the containers have mounted as this image volume: none if that is not the same, or the kubelet does not
    /// say so (feature gate `ImageVolumeWithDigest`).
    fn mounted(&self, volume: &str) -> Option<Digest> {
        let mounts = self.0.iter().flat_map(|s| s.volume_mounts.iter().flatten());
        let mounts = mounts.filter(|mount| mount.name == volume);
        let mut digests = mounts.map(|mount| {
            let image = mount.volume_status.as_ref()?.image.as_ref()?;
            digest(&image.image_ref)
        });
        let first = digests.next()??;
        digests
            .all(|other| other.as_ref() == Some(&first))
            .then_some(first)
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
