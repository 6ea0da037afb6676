//! Pods become counts.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::outcome::{FailureClass, Outcome};
use trylatest_core::release::ContainerRelease;
use trylatest_core::text;

use super::{
    DigestUse, FailingRegistry, LeftOut, SkewedImage, StaleImage, Status, Trouble, TroubledPod,
};
use crate::nodes::SeenNode;
use crate::pods::{Gate, Label, SeenPod, is_old};

/// Most images that are told apart.
const IMAGES_MAX: usize = 20_000;

/// Most digests of one image that are told apart.
const DIGESTS_MAX: usize = 64;

/// Most troubled pods that are named: the worst.
const TROUBLED_MAX: usize = 1_000;

/// A node's place in the list.
type NodeIndex = usize;

/// What the pods so far add up to.
pub(crate) struct Fold {
    nodes: BTreeMap<String, (NodeIndex, SeenNode)>,
    /// The namespace that they are of; none if it is not one.
    namespace: Option<String>,
    pods: usize,
    pods_from_cache: usize,
    pods_behind: usize,
    pods_unreported: usize,
    images: BTreeMap<String, ImageUse>,
    registries: BTreeMap<String, RegistryUse>,
    troubled: BTreeMap<Rank, TroubledPod>,
    troubles: BTreeMap<Trouble, usize>,
    left_out: LeftOut,
    not_seen: Vec<String>,
}

/// The worst pods come first, and then those that have been in trouble the longest; with their namespaces and names.
type Rank = (Trouble, Option<Timestamp>, String, String);

#[derive(Default)]
struct ImageUse {
    digests: BTreeMap<Digest, Use>,
    old: Old,
}

struct Use {
    pods: usize,
    nodes: BTreeSet<NodeIndex>,
    released: Timestamp,
}

#[derive(Default)]
struct Old {
    pods: usize,
    rolled_back: usize,
    behind: usize,
    refused: usize,
    unavailable: usize,
    nodes: BTreeSet<NodeIndex>,
    digests: BTreeSet<Digest>,
    classes: BTreeSet<FailureClass>,
    confirmed: BTreeSet<Option<Timestamp>>,
}

struct RegistryUse {
    pods: usize,
    nodes: BTreeSet<NodeIndex>,
    classes: BTreeSet<FailureClass>,
    last: Timestamp,
}

impl Fold {
    /// No pod yet.
    pub(crate) fn new(nodes: &[SeenNode], namespace: Option<&str>) -> Self {
        let nodes = nodes.iter().enumerate();
        Self {
            nodes: nodes
                .map(|(index, node)| (node.name.clone(), (index, node.clone())))
                .collect(),
            namespace: namespace.map(str::to_owned),
            pods: 0,
            pods_from_cache: 0,
            pods_behind: 0,
            pods_unreported: 0,
            images: BTreeMap::new(),
            registries: BTreeMap::new(),
            troubled: BTreeMap::new(),
            troubles: BTreeMap::new(),
            left_out: LeftOut::default(),
            not_seen: Vec::new(),
        }
    }

    /// Something could not be looked at.
    pub(crate) fn not_seen(&mut self, why: String) {
        self.not_seen.push(why);
    }

    /// One more.
    pub(crate) fn pod(&mut self, pod: &Pod) {
        let pod = SeenPod::of(pod);
        if pod.over {
            return;
        }
        self.pods += 1;
        match troubled(&pod) {
            Some(troubled) => self.troubled(troubled),
            None => self.pods_unreported += usize::from(pod.is_unreported()),
        }
        let Some(release) = &pod.release else { return };
        let mut is_from_cache = false;
        for (name, container) in &release.containers {
            is_from_cache |= self.container(&pod, name, container, release.time);
        }
        let mut containers = release.containers.values();
        let is_behind = !is_from_cache && containers.any(|container| container.moved.is_some());
        self.pods_from_cache += usize::from(is_from_cache);
        self.pods_behind += usize::from(is_behind);
    }

    /// Counts it, and keeps it unless there are enough that are worse.
    fn troubled(&mut self, pod: TroubledPod) {
        *self.troubles.entry(pod.trouble).or_default() += 1;
        let rank = (
            pod.trouble,
            pod.since,
            pod.namespace.clone(),
            pod.name.clone(),
        );
        self.troubled.insert(rank, pod);
        if self.troubled.len() > TROUBLED_MAX {
            self.troubled.pop_last();
            self.left_out.troubled += 1;
        }
    }

    /// Returns whether it runs from the cache.
    fn container(
        &mut self,
        pod: &SeenPod,
        of: &str,
        container: &ContainerRelease,
        time: Timestamp,
    ) -> bool {
        let name = container.image.parse::<ImageName>();
        let image = match &name {
            Ok(name) => name.as_str().to_owned(),
            Err(_) => container.image.clone(),
        };
        let node = pod.node.as_ref().and_then(|node| self.nodes.get(node));
        let still = |node: &SeenNode| node.still_falls_back(name.as_ref().ok(), time);
        let is_old = is_old(container) && node.is_none_or(|(_, node)| still(node));
        let node = node.map_or(NodeIndex::MAX, |(index, _)| *index);
        if !self.images.contains_key(&image) && self.images.len() >= IMAGES_MAX {
            self.left_out.images += 1;
            return is_old;
        }
        let used = self.images.entry(image).or_default();
        let is_known = has_started(container) && !pod.is_unanswered();
        if let Some(digest) = container.what_runs().filter(|_| is_known) {
            used.count(digest, node, time);
        }
        if is_old || container.moved.is_some() {
            used.old.count(container, node, is_old);
        }
        used.old.refused += usize::from(container.outcome == Outcome::Refused);
        let is_unavailable = container.outcome == Outcome::Unavailable && pod.waits(of);
        used.old.unavailable += usize::from(is_unavailable);
        if let (true, Ok(name), Some(failure)) = (is_old, &name, &container.failure)
            && failure.class.is_outage()
        {
            let registry = self.registries.entry(name.registry().to_owned());
            let registry = registry.or_insert_with(|| RegistryUse {
                pods: 0,
                nodes: BTreeSet::new(),
                classes: BTreeSet::new(),
                last: time,
            });
            registry.pods += 1;
            registry.nodes.insert(node);
            registry.classes.insert(failure.class);
            registry.last = registry.last.max(time);
        }
        is_old
    }

    /// All of it.
    pub(crate) fn finish(self, time: Timestamp) -> Status {
        let mut stale: Vec<_> = self
            .images
            .iter()
            .filter_map(|(i, used)| used.stale(i))
            .collect();
        stale.sort_by_key(|image| std::cmp::Reverse((image.pods, image.behind)));
        let mut skew: Vec<_> = self.images.into_iter().filter_map(skewed).collect();
        skew.sort_by_key(|image| std::cmp::Reverse(image.digests.len()));
        let registries = self.registries.into_iter();
        let mut registries: Vec<_> = registries
            .map(|(registry, used)| FailingRegistry {
                registry,
                pods: used.pods,
                nodes: used.nodes.len(),
                classes: used.classes.into_iter().collect(),
                last: used.last,
            })
            .collect();
        registries.sort_by_key(|registry| std::cmp::Reverse(registry.pods));
        Status {
            time,
            namespace: self.namespace,
            pods: Some(self.pods),
            pods_from_cache: self.pods_from_cache,
            pods_behind: self.pods_behind,
            pods_unreported: self.pods_unreported,
            nodes: Vec::new(),
            stale,
            skew,
            open_circuits: Vec::new(),
            registries,
            troubled: self.troubled.into_values().collect(),
            troubles: self.troubles,
            left_out: self.left_out,
            not_seen: self.not_seen,
        }
    }
}

impl ImageUse {
    fn count(&mut self, digest: &Digest, node: NodeIndex, time: Timestamp) {
        if !self.digests.contains_key(digest) && self.digests.len() >= DIGESTS_MAX {
            return;
        }
        let used = self.digests.entry(digest.clone()).or_insert_with(|| Use {
            pods: 0,
            nodes: BTreeSet::new(),
            released: time,
        });
        used.pods += 1;
        used.nodes.insert(node);
        used.released = used.released.max(time);
    }

    fn stale(&self, image: &str) -> Option<StaleImage> {
        let old = &self.old;
        (old.pods + old.behind > 0).then(|| StaleImage {
            image: image.to_owned(),
            pods: old.pods,
            rolled_back: old.rolled_back,
            behind: old.behind,
            refused: old.refused,
            unavailable: old.unavailable,
            nodes: old.nodes.len(),
            digests: old.digests.iter().cloned().collect(),
            classes: old.classes.iter().copied().collect(),
            // None comes first: never is older than any time.
            confirmed: old.confirmed.first().copied().flatten(),
        })
    }
}

impl Old {
    fn count(&mut self, container: &ContainerRelease, node: NodeIndex, is_old: bool) {
        if is_old {
            self.pods += 1;
        } else {
            self.behind += 1;
        }
        self.nodes.insert(node);
        if self.digests.len() < DIGESTS_MAX {
            self.digests.extend(container.what_runs().cloned());
        }
        self.classes.extend(container.class());
        if container.rolled_back.is_some() {
            self.rolled_back += usize::from(is_old);
            return;
        }
        self.confirmed.insert(container.confirmed);
        // The oldest one is all that is told.
        if self.confirmed.len() > 1 {
            self.confirmed.pop_last();
        }
    }
}

fn skewed((image, used): (String, ImageUse)) -> Option<SkewedImage> {
    let mut digests: Vec<_> = used
        .digests
        .into_iter()
        .map(|(digest, used)| DigestUse {
            digest,
            pods: used.pods,
            nodes: used.nodes.len(),
            released: used.released,
        })
        .collect();
    digests.sort_by_key(|used| std::cmp::Reverse((used.pods, used.released)));
    (digests.len() > 1).then_some(SkewedImage { image, digests })
}

/// Whether a container starts from the copy that is named.
fn has_started(container: &ContainerRelease) -> bool {
    match container.outcome {
        Outcome::Fresh
        | Outcome::Unchanged
        | Outcome::Same
        | Outcome::Fallback
        | Outcome::NotHeld => true,
        Outcome::HandedOver | Outcome::Unavailable | Outcome::Refused => false,
    }
}

/// The pod, if something is the matter with it.
fn troubled(pod: &SeenPod) -> Option<TroubledPod> {
    let (trouble, since, why) = trouble(pod)?;
    Some(TroubledPod {
        trouble,
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        node: pod.node.clone(),
        since,
        why,
    })
}

/// What is the matter with it, since when, and why.
fn trouble(pod: &SeenPod) -> Option<(Trouble, Option<Timestamp>, String)> {
    let released = pod.release.as_ref().map(|release| release.time);
    let with = |outcome: Outcome| {
        let mut all = pod.release.iter().flat_map(|release| &release.containers);
        let (name, container) = all.find(|(_, container)| container.outcome == outcome)?;
        let why = container.note.clone();
        let why = why.or_else(|| container.failure.as_ref().map(ToString::to_string));
        Some(format!(
            "{name}: {}",
            why.unwrap_or_else(|| container.image.clone())
        ))
    };
    match (&pod.gate, pod.label) {
        (Gate::Refused(message), _) => {
            let why = with(Outcome::Refused).unwrap_or_else(|| message.clone());
            return Some((Trouble::Refused, released, why));
        }
        (Gate::Wanting(why), _) => {
            return Some((Trouble::GateImage, pod.created, why.clone()));
        }
        (Gate::Waiting(since), _) => {
            return Some((Trouble::Waiting, *since, progress(pod)));
        }
        (Gate::Unanswered, _) if pod.is_unanswered() => {
            let why = "no agent had answered when it started".to_owned();
            return Some((Trouble::Unanswered, pod.gate_ended.or(pod.created), why));
        }
        (_, Label::Overruled) => {
            let why = "another policy or webhook changes its pull policies".to_owned();
            return Some((Trouble::Overruled, pod.created, why));
        }
        _ => {}
    }
    let is_waiting = pod.ours.iter().any(|container| container.waiting.is_some());
    let why = with(Outcome::Unavailable).filter(|_| is_waiting)?;
    Some((Trouble::Unavailable, released, why))
}

/// What the agent says it does meanwhile.
fn progress(pod: &SeenPod) -> String {
    let mut all = pod
        .progress
        .iter()
        .flat_map(|progress| &progress.containers);
    match all.next() {
        Some((name, progress)) => text::on_one_line(&format!("{name}: {}", progress.describe())),
        None => "its agent has not answered yet".to_owned(),
    }
}
