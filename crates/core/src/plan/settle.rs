//! What becomes of a pod's release: a container that was left to the kubelet starts from what that has
//! pulled, or from the copy, or not at all; one that starts again starts from what the name points to by then (`runs`).
//! What the pod's annotation says follows.

use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;

use super::backoff::Backoff;
use super::event::Action;
use super::image::Image;
use super::pod::Pod;
use super::runs;
use crate::digest::Digest;
use crate::image::ImageName;
use crate::knowledge::{Knowledge, Known};
use crate::outcome::Outcome;
use crate::pod::Start;
use crate::record::{Facts, TryResult};
use crate::release::{ContainerRelease, Release};
use crate::rules::{NodeRules, Rules};
use crate::time::Now;
use crate::verdict::{CachedCopy, Evidence, Terms, doubt};

/// After a pull of the kubelet has failed, it looks for the copy again within this time: its back-off of
/// 10 s and a little (`pkg/kubelet/kubelet.go`, `imageBackOffPeriod`).
const LOOKS_AGAIN: Duration = Duration::from_secs(20);

/// Before what has become of a release is written again.
const SETTLE_AGAIN: Backoff = Backoff {
    first: Duration::from_secs(5),
    longest: Duration::from_secs(300),
};

impl Pod {
    /// The kubelet's pull of this image has ended like this: what that means for containers that were left
    /// to it.
    pub(super) fn settle(
        &mut self,
        name: &ImageName,
        evidence: &Evidence,
        facts: &Facts,
        node: &NodeRules,
        now: Now,
    ) {
        let doubts = |class, digest: &Digest| {
            let terms = Terms {
                facts,
                rules: &Rules::of(&self.seen, Some(name), node),
                now: now.wall,
            };
            doubt(class, digest, terms)
        };
        let came_to = |given: &ContainerRelease| match (&evidence.result, evidence.copy.digest()) {
            (TryResult::Fresh, Some(digest)) => {
                given.pulled_by_kubelet(Outcome::Fresh, digest, now.wall)
            }
            (TryResult::Unchanged, Some(digest)) => {
                given.pulled_by_kubelet(Outcome::Unchanged, digest, now.wall)
            }
            (result, digest) => {
                // If it could not be looked at, it is what was there before.
                let unknown = matches!(evidence.copy, CachedCopy::Unknown { .. });
                let before = given.digest.as_ref().filter(|_| unknown);
                let (failure, digest) = (result.failure(), digest.or(before));
                let class = failure.map(|failure| failure.class);
                let doubt = class.zip(digest).and_then(|(c, d)| doubts(c, d));
                let is_same = digest == given.digest.as_ref();
                let of_this = digest.and_then(|digest| facts.confirmed_at(digest));
                let given = ContainerRelease {
                    failure: failure.cloned(),
                    digest: digest.cloned(),
                    confirmed: if is_same { given.confirmed } else { of_this },
                    rolled_back: given.rolled_back.clone().filter(|_| is_same),
                    note: doubt.map(str::to_owned),
                    ..given.clone()
                };
                let mut given = given.starts_from_its_copy();
                given.note_refusal();
                given
            }
        };
        let released = self.released_with(name);
        let released = released.filter(|(_, given)| given.outcome == Outcome::HandedOver);
        let settled: Vec<_> = released
            .map(|(container, given)| (container.name.clone(), came_to(given)))
            .collect();
        self.settled.extend(settled);
        let Some(round) = &mut self.round else {
            return;
        };
        for container in &mut round.containers {
            if container.is_handed_over(name)
                && let Some(given) = container.decided().cloned()
            {
                let known = came_to(&given);
                if round.is_sent {
                    self.settled.insert(container.name.clone(), known);
                } else {
                    container.settle(known);
                }
            }
        }
    }

    /// What has become of its release, if that is more than it says.
    pub(super) fn settle_due(
        &mut self,
        now: Now,
        images: &BTreeMap<ImageName, Image>,
        knowledge: &Knowledge,
        kubelet_verifies: bool,
    ) -> Option<Action> {
        self.settle_at.filter(|at| *at <= now.up)?;
        let released = self.released.as_ref()?;
        if self.seen.terminated || !released.opens() || self.seen.is_unheld() {
            return None;
        }
        let mut contents = mem::take(&mut self.contents);
        let mut settled = released.clone();
        let mut pulled = Vec::new();
        for container in &self.seen.containers {
            let image = container
                .image
                .as_ref()
                .ok()
                .and_then(|name| images.get(name));
            let given = settled.containers.get_mut(&container.name);
            let Some(given) = given.filter(|given| given.image == container.written) else {
                continue;
            };
            if let Some(known) = self.settled.get(&container.name)
                && given.outcome == Outcome::HandedOver
            {
                *given = known.clone();
            }
            let start = self.seen.starts.get(&container.name);
            let before = given.outcome;
            if let Some(start) = start.filter(|start| self.tells(start, before, image, now)) {
                let name = container.image.as_ref().ok();
                let known = name.and_then(|name| knowledge.of_name(name));
                if let Some(fresh) = known.and_then(|known| known.overtaken(given, start)) {
                    *given = fresh;
                    continue;
                }
                let is_own = kubelet_verifies || self.may_have_pulled(start, known);
                self.apply(&container.name, given, start, known, is_own, now);
                if let Ok(name) = &container.image {
                    runs::see(&mut contents, given, start, name, knowledge);
                    if given.runs.is_some()
                        && given.rollout.is_none()
                        && self.seen.rollout().is_some()
                    {
                        // It was the first of its rollout.
                        given.rollout.clone_from(&given.digest);
                    }
                }
                // Anybody may have written a release that the agent did not decide.
                if self.decided.is_some()
                    && before != Outcome::Fresh
                    && given.outcome == Outcome::Fresh
                    && let (Ok(name), Some(digest)) = (&container.image, &given.digest)
                {
                    pulled.push((name.clone(), digest.clone()));
                }
            }
        }
        self.contents = contents;
        if settled == *released {
            return None;
        }
        self.settle_at = None;
        self.pulled.extend(pulled);
        Some(Action::Settle(self.seen.id.clone(), settled))
    }

    /// Whether the status of a container that was released like this says what becomes of it. While the name is away,
    /// or the kubelet waits out its back-off after that, a failed pull does not. Nor does a start before the end of the
    /// hand-over is seen, which says whether the kubelet has pulled: the API server may be faster than containerd.
    fn tells(&self, start: &Start, given: Outcome, image: Option<&Image>, now: Now) -> bool {
        let handover = image.and_then(|image| image.handover.as_deref());
        match start {
            Start::Next => true,
            Start::Behind(_) => false,
            Start::Started { .. } => given != Outcome::HandedOver || handover.is_none(),
            Start::Wanting(_) => {
                if let Some(handover) = handover {
                    return handover.is_for_another(&self.seen.identity);
                }
                let handed_back = image.and_then(|image| image.handed_back);
                let since = handed_back.max(self.found_released);
                since.is_none_or(|at| now.up >= at + LOOKS_AGAIN)
            }
        }
    }

    /// Whether what a container has started from may be what the kubelet has pulled for this pod, where nobody but the
    /// agent remembers that: it starts containers from whatever the name points to. What it has restarted from, others
    /// may have brought; and what it was seen to pull for others alone, they have.
    fn may_have_pulled(&self, start: &Start, known: Option<&Known>) -> bool {
        let Start::Started {
            digest: Some(digest),
            again: false,
            ..
        } = start
        else {
            return false;
        };
        let facts = known.map(|known| &known.facts);
        let is_others = |facts: &Facts| {
            facts.confirmed_at(digest).is_some() && !facts.may_have(digest, &self.seen.identity)
        };
        !facts.is_some_and(is_others)
    }

    /// Takes over what a container's status says; `is_own` says whether it may be a pull for this pod.
    fn apply(
        &self,
        name: &str,
        given: &mut ContainerRelease,
        start: &Start,
        known: Option<&Known>,
        is_own: bool,
        now: Now,
    ) {
        let was_left = self.settled.contains_key(name);
        let other = match start {
            Start::Started { digest, .. } => {
                digest.as_ref().filter(|d| given.digest.as_ref() != Some(d))
            }
            _ => None,
        };
        if let Some(digest) = other.filter(|_| is_own)
            && given.outcome == Outcome::Fallback
            && was_left
        {
            // The kubelet's pull has ended well after all.
            *given = given.pulled_by_kubelet(Outcome::Fresh, digest, now.wall);
        } else if let Some(digest) = other.filter(|_| !is_own)
            && (given.outcome == Outcome::HandedOver || given.is_not_accepted())
        {
            let confirmed = known.and_then(|known| known.facts.confirmed_at(digest));
            *given = given.starts_unseen_from(digest, confirmed);
        } else if let Some(before) = self.accepted.get(name)
            && given.outcome == Outcome::Unavailable
            && matches!(start, Start::Started { digest, .. } if *digest == before.digest)
        {
            *given = before.clone();
            if given.outcome == Outcome::Fallback {
                // The kubelet has accepted it after all.
                given.note = None;
            }
        } else if let Some(settled) = given.settled(start, now.wall) {
            *given = settled;
        }
    }

    /// What became of its release was written.
    pub(super) fn release_settled(&mut self, release: Release) {
        self.settle_at = Some(Duration::ZERO);
        self.settle_failures = 0;
        let Some(ours) = &self.released else {
            // The first of a pod that is not held.
            self.released = Some(release);
            return;
        };
        if ours.time > release.time {
            // The gate has run again meanwhile.
            return;
        }
        for (name, given) in &release.containers {
            let before = ours.containers.get(name);
            if let Some(before) = before.filter(|before| before.outcome != Outcome::HandedOver)
                && given.outcome == Outcome::Unavailable
            {
                self.accepted
                    .entry(name.clone())
                    .or_insert_with(|| before.clone());
            }
        }
        self.settled_from = self.released.replace(release);
    }

    /// That could not be written.
    pub(super) fn settle_failed(&mut self, now: Now) {
        self.settle_failures = self.settle_failures.saturating_add(1);
        let pause = SETTLE_AGAIN.pause(self.settle_failures, &self.seen.id.uid);
        self.settle_at = Some(now.up + pause);
    }

    /// When more may have become of its release.
    pub(super) fn settle_timers(
        &self,
        now: Now,
        images: &BTreeMap<ImageName, Image>,
    ) -> impl Iterator<Item = Duration> {
        let names = self.images().filter(|_| self.released.is_some());
        let looks = names.filter_map(|name| Some(images.get(name)?.handed_back? + LOOKS_AGAIN));
        let found = self.found_released.map(|at| at + LOOKS_AGAIN);
        let timers = looks.chain(self.settle_at).chain(found);
        timers
            .filter(move |at| *at > now.up)
            .collect::<Vec<_>>()
            .into_iter()
    }
}
