//! The kubelet's pull of an image has ended: what that means for containers that were left to it.

use super::super::pod::Pod;
use crate::digest::Digest;
use crate::image::ImageName;
use crate::outcome::Outcome;
use crate::pod::GatedPod;
use crate::record::{Facts, TryResult};
use crate::release::ContainerRelease;
use crate::rules::{NodeRules, Rules};
use crate::time::Now;
use crate::verdict::{CachedCopy, Evidence, Terms, doubt};

/// A pull of the kubelet that has ended, and what counts for those that were left to it.
#[derive(Clone, Copy, Debug)]
pub(in crate::plan) struct EndedPull<'a> {
    pub(in crate::plan) now: Now,
    pub(in crate::plan) name: &'a ImageName,
    /// How it has ended, and what is there now.
    pub(in crate::plan) evidence: &'a Evidence,
    /// What is known of the image.
    pub(in crate::plan) facts: &'a Facts,
    pub(in crate::plan) node: &'a NodeRules,
}

impl EndedPull<'_> {
    /// What has become of a container of this pod that was left to it.
    fn came_to(&self, pod: &GatedPod, given: &ContainerRelease) -> ContainerRelease {
        let pulled = match &self.evidence.result {
            TryResult::Fresh => Some(Outcome::Fresh),
            TryResult::Unchanged => Some(Outcome::Unchanged),
            TryResult::Failed(_) => None,
        };
        match (pulled, &self.evidence.copy) {
            (Some(outcome), CachedCopy::Usable { digest, .. }) => {
                given.pulled_by_kubelet(outcome, Some(digest), self.now.wall)
            }
            // The container's status is to say what was pulled.
            (Some(_), CachedCopy::Unknown { .. }) => given.clone(),
            _ => self.left_with_copy(pod, given),
        }
    }

    /// The pull has brought nothing that is there now: the container starts from the copy, if there is one.
    fn left_with_copy(&self, pod: &GatedPod, given: &ContainerRelease) -> ContainerRelease {
        let digest = self.copy(given);
        let is_same = digest == given.digest.as_ref();
        let of_this = digest.and_then(|digest| self.facts.confirmed_at(digest));
        let left = ContainerRelease {
            failure: self.evidence.result.failure().cloned(),
            digest: digest.cloned(),
            confirmed: if is_same { given.confirmed } else { of_this },
            rolled_back: given.rolled_back.clone().filter(|_| is_same),
            note: self.doubt(pod, digest).map(str::to_owned),
            unproven: digest.is_none() && self.evidence.copy.is_unproven(),
            ..given.clone()
        };
        let mut left = left.starts_from_its_copy();
        left.failed_for_kubelet();
        left
    }

    /// The copy that is there. If it could not be looked at, it is what was there before.
    fn copy<'c>(&'c self, given: &'c ContainerRelease) -> Option<&'c Digest> {
        let unknown = matches!(self.evidence.copy, CachedCopy::Unknown { .. });
        let before = given.digest.as_ref().filter(|_| unknown);
        self.evidence.copy.digest().or(before)
    }

    /// What the pod's owner has to know of that copy.
    fn doubt(&self, pod: &GatedPod, digest: Option<&Digest>) -> Option<&'static str> {
        let (failure, digest) = self.evidence.result.failure().zip(digest)?;
        let terms = Terms {
            facts: self.facts,
            rules: &Rules::of(pod, Some(self.name), self.node),
            now: self.now.wall,
        };
        doubt(failure.class, digest, terms)
    }
}

impl Pod {
    /// Takes over how a pull ended. A release that is not sent yet is changed before it is sent; one that is sent is
    /// corrected when it is next written.
    pub(in crate::plan) fn settle(&mut self, pull: &EndedPull<'_>) {
        let released = self.released_with(pull.name);
        let released = released.filter(|(_, given)| given.outcome == Outcome::HandedOver);
        let settled: Vec<_> = released
            .map(|(container, given)| (container.name.clone(), pull.came_to(&self.seen, given)))
            .collect();
        self.settled.extend(settled);
        let Some(round) = &mut self.round else {
            return;
        };
        for container in &mut round.containers {
            if container.is_handed_over(pull.name)
                && let Some(given) = container.decided()
            {
                let came_to = pull.came_to(&self.seen, given);
                if round.is_sent {
                    self.settled.insert(container.name.clone(), came_to);
                } else {
                    container.settle(came_to);
                }
            }
        }
    }
}
