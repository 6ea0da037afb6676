//! What admission has named in a pod: containers, and image volumes.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, PodSpec};
use trylatest_core::keys;
use trylatest_core::pod::{OtherPolicy, TryContainer};
use trylatest_core::text::{quoted, some_of};

use super::{IMAGE_MAX_BYTES, ITEMS_MAX};

/// Most names that one complaint lists.
const NAMES_MAX: usize = 5;

/// A container or an image volume.
pub(super) struct Item<'a> {
    /// As in a release: a volume's has a prefix.
    pub(super) name: String,
    /// The image as the pod names it.
    pub(super) image: &'a str,
    policy: Option<&'a str>,
    /// The containers that start with its image: itself, or those that mount it.
    pub(super) users: Vec<&'a str>,
}

/// A kind of item, in words of a complaint.
struct Kind {
    key: &'static str,
    has: &'static str,
    what: &'static str,
}

const CONTAINERS: Kind = Kind {
    key: keys::CONTAINERS,
    has: "has",
    what: "container",
};

const VOLUMES: Kind = Kind {
    key: keys::VOLUMES,
    has: "mounts",
    what: "image volume",
};

impl<'a> Item<'a> {
    pub(super) fn of_container(container: &'a Container) -> Self {
        Self {
            name: container.name.clone(),
            image: container.image.as_deref().unwrap_or_default(),
            policy: container.image_pull_policy.as_deref(),
            users: vec![&container.name],
        }
    }

    /// What it has instead of the `IfNotPresent` that admission gave it.
    pub(super) fn other_policy(&self) -> Option<OtherPolicy> {
        let mut all = OtherPolicy::ALL.into_iter();
        all.find(|policy| Some(policy.as_str()) == self.policy)
    }

    /// Its volume's name, if it is one.
    pub(super) fn volume(&self) -> Option<&str> {
        self.name.strip_prefix(keys::VOLUME_PREFIX)
    }

    pub(super) fn into_container(self) -> TryContainer {
        let written = self.image[..self.image.floor_char_boundary(IMAGE_MAX_BYTES)].to_owned();
        TryContainer {
            name: self.name,
            image: written.parse(),
            written,
        }
    }
}

/// Init containers first, in the pod's order.
pub(super) fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let inits = spec.init_containers.iter().flatten();
    inits.chain(&spec.containers)
}

/// The image volumes, whoever mounts them.
pub(super) fn volumes(spec: &PodSpec) -> Vec<Item<'_>> {
    let mut users: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for container in containers(spec) {
        for mount in container.volume_mounts.iter().flatten() {
            users.entry(&mount.name).or_default().push(&container.name);
        }
    }
    let volumes = spec.volumes.iter().flatten();
    let volumes = volumes.filter_map(|volume| {
        let source = volume.image.as_ref()?;
        Some(Item {
            name: format!("{}{}", keys::VOLUME_PREFIX, volume.name),
            image: source.reference.as_deref().unwrap_or_default(),
            policy: source.pull_policy.as_deref(),
            users: users.remove(volume.name.as_str()).unwrap_or_default(),
        })
    });
    volumes.collect()
}

/// What admission has named, in the pod's order. A volume that no container mounts holds nothing up.
pub(super) fn all<'a>(
    spec: &'a PodSpec,
    annotations: &BTreeMap<String, String>,
    complaints: &mut Vec<String>,
) -> Vec<Item<'a>> {
    let own = containers(spec).filter(|container| container.name != keys::GATE);
    let own = own.map(Item::of_container).collect();
    let mounted = volumes(spec).into_iter();
    let mounted = mounted.filter(|volume| !volume.users.is_empty());
    let mut ours = named(&CONTAINERS, own, annotations, complaints);
    ours.extend(named(&VOLUMES, mounted.collect(), annotations, complaints));
    if ours.len() > ITEMS_MAX {
        let all = ours.len();
        let left = ours.split_off(ITEMS_MAX);
        let left = left.iter().map(|item| quoted(&item.name));
        complaints.push(format!(
            "this pod has {all} TryLatest containers and image volumes; the agent handles {ITEMS_MAX} of them and leaves \
             {} to the kubelet",
            some_of(left, NAMES_MAX)
        ));
    }
    ours
}

/// Those of a kind that its annotation names.
fn named<'a>(
    kind: &Kind,
    own: Vec<Item<'a>>,
    annotations: &BTreeMap<String, String>,
    complaints: &mut Vec<String>,
) -> Vec<Item<'a>> {
    let Kind { key, has, what } = kind;
    let named: BTreeSet<&str> = annotations
        .get(*key)
        .map(|names| names.split(',').map(str::trim).collect())
        .unwrap_or_default();
    let all = named.contains("*");
    let name = |item: &Item<'_>| item.volume().unwrap_or(&item.name).to_owned();
    let known: BTreeSet<String> = own.iter().map(name).collect();
    let unknown: Vec<&str> = named
        .iter()
        .copied()
        .filter(|name| !matches!(*name, "" | "*") && !known.contains(*name))
        .collect();
    if !unknown.is_empty() {
        let list = some_of(known.iter().map(|name| quoted(name)), NAMES_MAX);
        let list = if list.is_empty() { "none" } else { &list };
        complaints.push(format!(
            "{key}: this pod {has} no {what} named {} (it {has} {list}); ignored",
            some_of(unknown.into_iter().map(quoted), NAMES_MAX),
        ));
    }
    let ours = own.into_iter();
    ours.filter(|item| all || named.contains(name(item).as_str()))
        .collect()
}
