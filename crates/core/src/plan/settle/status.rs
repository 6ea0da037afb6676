//! What the status of a container that was released says about what has become of it.

use super::super::image::Image;
use super::super::pod::Pod;
use super::super::runs::{self, Contents};
use super::{LOOKS_AGAIN, NodeNow, Unseen};
use crate::digest::Digest;
use crate::image::ImageName;
use crate::knowledge::Known;
use crate::outcome::Outcome;
use crate::pod::{Start, TryContainer};
use crate::record::Facts;
use crate::release::ContainerRelease;

/// The status of one container, and what is known of its image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Status<'a> {
    pod: &'a Pod,
    container: &'a TryContainer,
    start: &'a Start,
    image: Option<&'a Image>,
    known: Option<&'a Known>,
    node: &'a NodeNow<'a>,
}

impl<'a> Status<'a> {
    /// That of this container, if the kubelet has come to it.
    pub(super) fn of(
        pod: &'a Pod,
        container: &'a TryContainer,
        node: &'a NodeNow<'a>,
    ) -> Option<Self> {
        let name = container.image.as_ref().ok();
        Some(Self {
            pod,
            container,
            start: pod.seen.starts.get(&container.name)?,
            image: name.and_then(|name| node.images.get(name)),
            known: name.and_then(|name| node.knowledge.of_name(name)),
            node,
        })
    }

    /// Whether it says what becomes of a container that was released like this. While the name is away, or the kubelet
    /// waits out its back-off after that, a failed pull does not. Nor does a start before the end of the hand-over is
    /// seen, which says whether the kubelet has pulled: the API server may be faster than containerd.
    pub(super) fn tells(&self, given: Outcome) -> bool {
        let handover = self.image.and_then(|image| image.handover.as_deref());
        match self.start {
            Start::Next => true,
            Start::Behind(_) => false,
            Start::Started { .. } => given != Outcome::HandedOver || handover.is_none(),
            Start::Wanting(_) => {
                if let Some(handover) = handover {
                    return handover.is_for_another(&self.pod.seen.identity);
                }
                let handed_back = self.image.and_then(|image| image.handed_back);
                let since = handed_back.max(self.pod.found_released);
                since.is_none_or(|at| self.node.now.up >= at + LOOKS_AGAIN)
            }
        }
    }

    /// It runs what the pull that its pod did not wait for has brought.
    pub(super) fn overtaken(&self, given: &ContainerRelease) -> Option<ContainerRelease> {
        self.known?.overtaken(given, self.start)
    }

    /// What has become of the container, if that is more than was known when it was given this: by the first of these
    /// rules that applies.
    pub(super) fn comes_to(&self, given: &ContainerRelease) -> Option<ContainerRelease> {
        self.pulled_after_all(given)
            .or_else(|| self.came_since(given))
            .or_else(|| self.brought_by_others(given))
            .or_else(|| self.accepted_after_all(given))
            .or_else(|| given.settled(self.start, self.node.now.wall))
    }

    /// The kubelet's pull had failed, and then has ended well.
    fn pulled_after_all(&self, given: &ContainerRelease) -> Option<ContainerRelease> {
        let digest = self.starts_from_another(given)?;
        let had_failed = given.outcome == Outcome::Fallback
            && self.pod.settled.contains_key(&self.container.name);
        let applies = had_failed && self.may_be_own_pull();
        applies.then(|| given.pulled_by_kubelet(Outcome::Fresh, Some(digest), self.node.now.wall))
    }

    /// There was no copy, and it has started from what the registry has confirmed since, if it has.
    fn came_since(&self, given: &ContainerRelease) -> Option<ContainerRelease> {
        let digest = self.starts_from_another(given)?;
        let released = self.pod.released.as_ref()?.time;
        let facts = self.known.map(|known| &known.facts);
        let confirmed = facts.and_then(|facts| facts.confirmed_at(digest));
        let since = confirmed.filter(|at| *at >= released);
        given
            .is_without_copy()
            .then(|| given.came_since(Some(digest), since))
    }

    /// It was left to the kubelet, or the kubelet did not accept its copy, and it has started from what the kubelet has
    /// not pulled for it.
    fn brought_by_others(&self, given: &ContainerRelease) -> Option<ContainerRelease> {
        let digest = self.starts_from_another(given)?;
        let was_waiting = given.outcome == Outcome::HandedOver || given.is_not_accepted();
        let applies = was_waiting && !self.may_be_own_pull();
        let facts = self.known.map(|known| &known.facts);
        let confirmed = facts.and_then(|facts| facts.confirmed_at(digest));
        applies.then(|| given.starts_unseen_from(Some(digest), confirmed))
    }

    /// The kubelet did not accept its copy for a time, and then has started it from that.
    fn accepted_after_all(&self, given: &ContainerRelease) -> Option<ContainerRelease> {
        let before = self.pod.accepted.get(&self.container.name)?;
        let has_started =
            matches!(self.start, Start::Started { digest, .. } if *digest == before.digest);
        let applies = given.outcome == Outcome::Unavailable && has_started;
        applies.then(|| {
            let mut accepted = before.clone();
            if accepted.outcome == Outcome::Fallback {
                // It doubted whether the kubelet would.
                accepted.note = None;
                accepted.kubelet_refused = false;
            }
            accepted
        })
    }

    /// What it has started from, if that is not what it was given.
    fn starts_from_another(&self, given: &ContainerRelease) -> Option<&'a Digest> {
        match self.start {
            Start::Started { digest, .. } => {
                let digest = digest.as_ref();
                digest.filter(|digest| given.digest.as_ref() != Some(digest))
            }
            Start::Next | Start::Behind(_) | Start::Wanting(_) => None,
        }
    }

    /// Whether what it has started from may be what the kubelet has pulled for this pod. Where nobody but the agent
    /// remembers that, the kubelet starts containers from whatever the name points to. What it has restarted from,
    /// others may have brought; and what it was seen to pull for others alone, they have.
    fn may_be_own_pull(&self) -> bool {
        if self.node.kubelet_verifies {
            return true;
        }
        let Start::Started {
            digest: Some(digest),
            again: false,
            ..
        } = self.start
        else {
            return false;
        };
        let is_others = |facts: &Facts| {
            facts.confirmed_at(digest).is_some() && !facts.may_have(digest, &self.pod.seen.identity)
        };
        !self.known.is_some_and(|known| is_others(&known.facts))
    }

    /// Takes over what it runs, if that is not what it was released with.
    pub(super) fn see_runs(&self, given: &mut ContainerRelease, contents: &mut Contents) {
        let Ok(name) = &self.container.image else {
            return;
        };
        runs::see(contents, given, self.start, name, self.node.knowledge);
        if given.runs.is_some() && given.rollout.is_none() && self.pod.seen.rollout().is_some() {
            // It was the first of its rollout.
            given.rollout.clone_from(&given.digest);
        }
    }

    /// What it has started from without a word of the agent's, if that is news after this.
    pub(super) fn unseen(
        &self,
        before: &ContainerRelease,
        given: &ContainerRelease,
    ) -> Option<Unseen> {
        let is_pull = before.outcome != Outcome::Fresh && given.outcome == Outcome::Fresh;
        let has_come = before.is_without_copy() && given.outcome == Outcome::Fallback;
        // Anybody may have written a release that the agent did not decide.
        self.pod.decided.filter(|_| is_pull || has_come)?;
        let name = self.container.image.as_ref().ok()?;
        Some(Unseen {
            name: name.clone(),
            digest: given.digest.clone()?,
            is_own_pull: if before.is_without_copy() {
                self.is_private_and_own(name)
            } else {
                is_pull
            },
        })
    }

    /// Of what has come since, only where nobody else remembers who may have it, and if it is known to be private: it
    /// would be taken for that.
    fn is_private_and_own(&self, name: &ImageName) -> bool {
        let is_private = self.node.knowledge.needs_credentials(name);
        is_private && !self.node.kubelet_verifies && self.may_be_own_pull()
    }
}
