//! One digest for the pods of a rollout on this node, where they ask for it (ADR 13).
//!
//! Nothing is written down for it: what a rollout has here is what its pods were released with and what they run, which
//! the watch shows after a restart of the agent, too. A pod whose rollout has what the image's name points to starts
//! from that, and the registry is not asked. If somebody else has moved the name, the pod is tried like any other, and
//! its release says that it differs: the name is everybody's, so nobody moves it back for one pod.

use std::collections::{BTreeMap, BTreeSet};

use super::Planner;
use super::event::Action;
use super::image::Image;
use super::pod::Pod;
use crate::digest::Digest;
use crate::image::ImageName;
use crate::knowledge::Knowledge;
use crate::outcome::{FailureClass, Outcome};
use crate::pod::{GatedPod, Revision, Start};
use crate::time::Now;

/// How a pod came to what it has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// The registry gave it, or nobody knows.
    Given,
    /// It fell back to it after such a failure, and the registry has not confirmed it since.
    FellBack(FailureClass),
}

/// What some rollouts have of one image on this node.
#[derive(Debug, Default)]
pub(super) struct Rollouts(BTreeMap<Revision, BTreeMap<String, Rollout>>);

impl Rollouts {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// That of this pod, if it has to start from what its rollout has.
    pub(super) fn of(&self, pod: &GatedPod) -> Option<&Rollout> {
        self.0.get(pod.rollout()?)?.get(&pod.id.namespace)
    }

    /// That which this pod belongs to, whether it has to start from that or not.
    fn mut_of(&mut self, pod: &GatedPod) -> Option<&mut Rollout> {
        let revision = pod.revision.as_ref()?;
        self.0.get_mut(revision)?.get_mut(&pod.id.namespace)
    }
}

/// What the pods of one rollout have of one image on this node.
#[derive(Debug, Default)]
pub(super) struct Rollout {
    /// What the one that was created first has.
    first: Option<Digest>,
    /// What any of them has.
    has: BTreeMap<Digest, Origin>,
}

impl Rollout {
    /// What the one that was created first has.
    pub(super) fn first(&self) -> Option<&Digest> {
        self.first.as_ref()
    }

    /// How they came to this, if one of them has it.
    pub(super) fn origin(&self, digest: &Digest) -> Option<Origin> {
        self.has.get(digest).copied()
    }
}

impl GatedPod {
    /// The rollout whose digest it is to start from, if it is to. Without a gate, nobody sees to that.
    pub(super) fn rollout(&self) -> Option<&Revision> {
        let counts = self.settings.same_digest && !self.is_unheld();
        self.revision.as_ref().filter(|_| counts)
    }
}

impl Pod {
    /// What it was released with of this image, and what it runs. The watch shows no pod that has ended.
    fn has(&self, name: &ImageName, knowledge: &Knowledge) -> Vec<(Digest, Origin)> {
        let known = knowledge.of_name(name);
        let time = self.decided;
        let time = time.or(self.released.as_ref().map(|release| release.time));
        let released = self.released_with(name).map(|(_, given)| (time, given));
        let round = self.round.iter().flat_map(|round| &round.containers);
        let decided = round.filter_map(|container| Some((None, container.decided_with(name)?)));
        let mut has = Vec::new();
        for (time, given) in released.chain(decided) {
            let Some(digest) = given.digest.as_ref().filter(|_| given.has_copy()) else {
                continue;
            };
            let is_confirmed = known
                .zip(time)
                .is_some_and(|(known, time)| known.is_confirmed_since(time, digest));
            let failure = given.failure.as_ref();
            let failure = failure.filter(|_| given.outcome == Outcome::Fallback && !is_confirmed);
            let origin = failure.map_or(Origin::Given, |failure| Origin::FellBack(failure.class));
            has.push((digest.clone(), origin));
        }
        let own = self.seen.containers.iter();
        for container in own.filter(|container| container.image.as_ref() == Ok(name)) {
            if let Some(Start::Started {
                digest: Some(digest),
                ..
            }) = self.seen.starts.get(&container.name)
            {
                has.push((digest.clone(), Origin::Given));
            }
        }
        has
    }

    /// Whether it wants nothing newer of this image: it is to run what its rollout has, and has that.
    pub(super) fn is_content_with(&self, name: &ImageName, knowledge: &Knowledge) -> bool {
        self.seen.rollout().is_some() && !self.has(name, knowledge).is_empty()
    }
}

impl Planner {
    /// What the rollouts of the pods that wait for this image have of it. A pod whose gate runs again knows it from
    /// itself.
    pub(super) fn rollouts(&self, name: &ImageName) -> Rollouts {
        let mut rollouts = Rollouts::default();
        for pod in self.pods.values() {
            let mut containers = pod.round.iter().flat_map(|round| &round.containers);
            if let Some(revision) = pod.seen.rollout()
                && containers.any(|container| container.image() == Some(name))
            {
                let namespaces = rollouts.0.entry(revision.clone()).or_default();
                namespaces.entry(pod.seen.id.namespace.clone()).or_default();
            }
        }
        self.fill(name, &mut rollouts);
        rollouts
    }

    /// What this pod's rollout has of this image, the pod itself included; none if it does not have to start from that.
    pub(super) fn rollout_of(&self, pod: &Pod, name: &ImageName) -> Option<Rollout> {
        let revision = pod.seen.rollout()?;
        let namespace = &pod.seen.id.namespace;
        let empty = BTreeMap::from([(namespace.clone(), Rollout::default())]);
        let mut rollouts = Rollouts(BTreeMap::from([(revision.clone(), empty)]));
        self.fill(name, &mut rollouts);
        rollouts.0.remove(revision)?.remove(namespace)
    }

    fn fill(&self, name: &ImageName, rollouts: &mut Rollouts) {
        if rollouts.is_empty() {
            return;
        }
        let mut pods: Vec<&Pod> = self.pods.values().collect();
        pods.sort_by_key(|pod| (pod.seen.created, &pod.seen.id.name));
        for pod in pods {
            let Some(rollout) = rollouts.mut_of(&pod.seen) else {
                continue;
            };
            for (digest, origin) in pod.has(name, &self.knowledge) {
                rollout.first.get_or_insert_with(|| digest.clone());
                rollout.has.entry(digest).or_insert(origin);
            }
        }
    }

    /// The images of this pod of which its rollout has something.
    fn images_of_rollout(&self, uid: &str) -> BTreeSet<ImageName> {
        let pod = self.pods.get(uid);
        let Some((pod, revision)) = pod.and_then(|pod| Some((pod, pod.seen.rollout()?))) else {
            return BTreeSet::new();
        };
        let is_fellow = |other: &&Pod| {
            other.seen.revision.as_ref() == Some(revision)
                && other.seen.id.namespace == pod.seen.id.namespace
        };
        let has = |name: &&ImageName| {
            let mut fellows = self.pods.values().filter(is_fellow);
            fellows.any(|fellow| !fellow.has(name, &self.knowledge).is_empty())
        };
        pod.images().filter(has).cloned().collect()
    }

    /// Whether the image's name may point elsewhere in a moment: what is here now says little. A try that goes on in
    /// the background may take minutes, or never end.
    pub(super) fn is_moving(&self, now: Now, name: &ImageName) -> bool {
        let rounds = self.pods.values().filter_map(|pod| pod.round.as_ref());
        let mut waiting = rounds.flat_map(|round| &round.containers);
        let is_for_others =
            waiting.any(|other| other.image() == Some(name) && !other.looks_first());
        let is_tried = |image: &Image| image.handover.is_some() || image.has_turn(now);
        is_for_others || self.images.get(name).is_some_and(is_tried)
    }

    /// A pod's round has begun: where its rollout has something of an image, it looks at the copy, and otherwise waits
    /// for a try. The images that it waits for.
    pub(super) fn queue_or_look(
        &mut self,
        now: Now,
        uid: &str,
        plan: &mut Vec<Action>,
    ) -> Vec<ImageName> {
        let known = self.images_of_rollout(uid);
        let round = self.pods.get_mut(uid).and_then(|pod| pod.round.as_mut());
        let mut tried = Vec::new();
        for container in round.into_iter().flat_map(|round| &mut round.containers) {
            let Some(name) = container.image().cloned() else {
                continue;
            };
            let image = self.images.entry(name.clone()).or_default();
            if known.contains(&name) {
                container.look_first();
                let inspect = Action::Inspect(name);
                if !plan.contains(&inspect) {
                    plan.push(inspect);
                }
            } else {
                image.queue(now.up);
                tried.push(name);
            }
        }
        tried
    }
}
