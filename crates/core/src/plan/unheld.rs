//! Pods without a gate (`trylatest.dev/hold: none`): the kubelet starts them without a word of the agent's. What they
//! have started from is written to them afterwards, and so is that a tag has moved since.

use jiff::Timestamp;

use super::Planner;
use super::event::Action;
use super::pod::Pod;
use crate::digest::Digest;
use crate::image::ImageName;
use crate::keys;
use crate::knowledge::Knowledge;
use crate::outcome::Outcome;
use crate::pod::{GateState, GatedPod, Start, TryContainer};
use crate::release::{ContainerRelease, Release};
use crate::time::Now;

impl GatedPod {
    /// Whether nothing is to hold it.
    pub(super) fn is_unheld(&self) -> bool {
        self.gate == GateState::NotWanted
    }

    /// Whether it starts nothing more from this image. What a pod without a gate has not started yet, the kubelet may
    /// still have to pull; and a name that moves meanwhile would give it two versions of one image.
    pub(super) fn is_done_with(&self, name: &ImageName) -> bool {
        let has_started = |container: &TryContainer| {
            let start = self.starts.get(&container.name);
            matches!(start, Some(Start::Started { .. }))
        };
        let mut its = self.containers.iter();
        !self.is_unheld() || its.all(|c| c.image.as_ref() != Ok(name) || has_started(c))
    }

    /// Settings that only a gate can see to.
    pub(super) fn needs_gate(&self) -> Option<String> {
        let settings = &self.settings;
        let keys = [
            (keys::TIMEOUT, settings.timeout.is_some()),
            (keys::MAX_AGE, settings.max_age.is_some()),
            (keys::FALLBACK_ON, settings.fallback_on.is_some()),
            (keys::SAME_DIGEST, settings.same_digest),
        ];
        let set: Vec<&str> = keys.iter().filter(|key| key.1).map(|key| key.0).collect();
        (!set.is_empty()).then(|| {
            let (set, hold, none) = (set.join(", "), keys::HOLD, keys::HOLD_NONE);
            format!("{set}: no effect on a pod that is not held ({hold}: {none})")
        })
    }
}

impl Pod {
    /// What is tried without a pod that waits for it.
    pub(super) fn images_to_refresh(
        &self,
        knowledge: &Knowledge,
    ) -> impl Iterator<Item = &ImageName> {
        self.images()
            .filter(|name| self.seen.is_done_with(name) && !self.is_content_with(name, knowledge))
    }

    /// What its containers have started from, and what has moved since, if that is more than it says.
    fn tell_due(&mut self, now: Now, knowledge: &Knowledge) -> Option<Action> {
        self.settle_at.filter(|at| *at <= now.up)?;
        let before = self.released.as_ref();
        let mut told = before.cloned().unwrap_or_else(|| Release {
            time: now.wall,
            containers: [].into(),
            unseen: None,
        });
        for container in &self.seen.containers {
            let Some(Start::Started { digest, since, .. }) = self.seen.starts.get(&container.name)
            else {
                continue;
            };
            let known = told.containers.remove(&container.name);
            let given = given(container, digest.as_ref(), *since, known, knowledge);
            told.containers.insert(container.name.clone(), given);
        }
        if told.containers.is_empty() || before == Some(&told) {
            return None;
        }
        self.settle_at = None;
        Some(Action::Settle(self.seen.id.clone(), told))
    }
}

/// What is said of a container that has started, if this is already said of it.
fn given(
    container: &TryContainer,
    digest: Option<&Digest>,
    since: Option<Timestamp>,
    known: Option<ContainerRelease>,
    knowledge: &Knowledge,
) -> ContainerRelease {
    let image = container.image.as_ref().ok();
    let facts = image.map(|name| knowledge.facts(name)).unwrap_or_default();
    // Where the image has been changed in the pod, its container runs the previous one until it restarts.
    let is_about_it = |known: &ContainerRelease| {
        known.outcome == Outcome::NotHeld && (digest.is_none() || known.digest.as_ref() == digest)
    };
    let mut given = known
        .filter(is_about_it)
        .unwrap_or_else(|| ContainerRelease {
            digest: digest.cloned(),
            confirmed: digest.and_then(|digest| facts.confirmed_at(digest)),
            rolled_back: digest.and_then(|digest| facts.rolled_back_here(digest).cloned()),
            ..ContainerRelease::new(&container.written, Outcome::NotHeld)
        });
    // What was said before it started may have been about another copy.
    if let Some(runs) = &given.digest
        && let Some(said) = &facts.confirmed
        && since.is_some_and(|since| said.time >= since)
        && given.image == container.written
    {
        // The same content can have several digests. Where that is not known, what was said stands.
        let known = image.and_then(|name| knowledge.of_name(name)?.is_other_content(runs));
        if said.digest == *runs || known == Some(false) {
            given.moved = None;
        } else if known == Some(true) {
            given.moved = Some(said.digest.clone());
        }
    }
    given
}

impl Planner {
    /// Writes to pods that are not held what they have started from.
    pub(super) fn tell_unheld(&mut self, now: Now, plan: &mut Vec<Action>) {
        for pod in self.pods.values_mut() {
            if !pod.seen.is_unheld() || pod.seen.terminated {
                continue;
            }
            plan.extend(pod.complaints(&self.rules));
            plan.extend(pod.tell_due(now, &self.knowledge));
        }
    }
}

/// The images that a change of a pod asks a try for, although no pod waits for that, and since when: those that a pod
/// without a gate has started from, and those of containers that have restarted in place, if `restarts` count.
pub(super) fn starts(
    before: Option<&GatedPod>,
    now: &GatedPod,
    restarts: bool,
) -> Vec<(ImageName, Timestamp)> {
    let since = |start: Option<&Start>| match start {
        Some(Start::Started { since, .. }) => Some(*since),
        _ => None,
    };
    let containers = now.containers.iter().filter(|_| !now.terminated);
    let containers = containers.filter_map(|container| {
        let was = since(before.and_then(|pod| pod.starts.get(&container.name)));
        let is = since(now.starts.get(&container.name))?;
        let has_restarted = was.is_some_and(|was| is.is_some() && is != was);
        let counts = if now.is_unheld() {
            was.is_none() || has_restarted
        } else {
            restarts && has_restarted
        };
        let name = container.image.as_ref().ok().filter(|_| counts)?;
        let at = is.unwrap_or(now.created);
        now.is_done_with(name).then(|| (name.clone(), at))
    });
    containers.collect()
}
