//! What becomes of a pod's release: a container that was left to the kubelet starts from what that has
//! pulled, or from the copy, or not at all (`pull`); one that starts again starts from what the name points to by then
//! (`runs`). Some of that shows only in the container's status (`status`). What the pod's annotation says follows.

mod pull;
mod status;

use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;

pub(super) use self::pull::EndedPull;
use self::status::Status;
use super::backoff::Backoff;
use super::event::Action;
use super::image::Image;
use super::pod::Pod;
use crate::digest::Digest;
use crate::image::ImageName;
use crate::knowledge::Knowledge;
use crate::outcome::Outcome;
use crate::release::{ContainerRelease, Release};
use crate::time::Now;

/// After a pull of the kubelet has failed, it looks for the copy again within this time: its back-off of
/// 10 s and a little (`pkg/kubelet/kubelet.go`, `imageBackOffPeriod`).
const LOOKS_AGAIN: Duration = Duration::from_secs(20);

/// Before what has become of a release is written again.
const SETTLE_AGAIN: Backoff = Backoff {
    first: Duration::from_secs(5),
    longest: Duration::from_secs(300),
};

/// The node at this time, as far as what becomes of a release depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeNow<'a> {
    pub(super) now: Now,
    pub(super) images: &'a BTreeMap<ImageName, Image>,
    pub(super) knowledge: &'a Knowledge,
    pub(super) kubelet_verifies: bool,
}

/// What a container has started from while only its status says so.
#[derive(Debug)]
pub(super) struct Unseen {
    pub(super) name: ImageName,
    pub(super) digest: Digest,
    /// The kubelet has pulled it for this pod.
    pub(super) is_own_pull: bool,
}

impl Pod {
    /// What has become of its release, if that is more than it says.
    pub(super) fn settle_due(&mut self, node: &NodeNow<'_>) -> Option<Action> {
        self.settle_at.filter(|at| *at <= node.now.up)?;
        let released = self.released.as_ref()?;
        if self.seen.terminated || !released.opens() || self.seen.is_unheld() {
            return None;
        }
        let mut settled = released.clone();
        let mut contents = mem::take(&mut self.contents);
        let mut unseen = Vec::new();
        for container in &self.seen.containers {
            let given = settled.containers.get_mut(&container.name);
            let Some(given) = given.filter(|given| given.image == container.written) else {
                continue;
            };
            if let Some(pulled) = self.settled.get(&container.name)
                && given.outcome == Outcome::HandedOver
            {
                *given = pulled.clone();
            }
            let status = Status::of(self, container, node);
            let Some(status) = status.filter(|status| status.tells(given.outcome)) else {
                continue;
            };
            if let Some(fresh) = status.overtaken(given) {
                *given = fresh;
                continue;
            }
            if let Some(settled) = status.comes_to(given) {
                unseen.extend(status.unseen(given, &settled));
                *given = settled;
            }
            status.see_runs(given, &mut contents);
        }
        self.contents = contents;
        if settled == *released {
            return None;
        }
        self.settle_at = None;
        self.settling = Some(settled.clone());
        self.unseen.extend(unseen);
        Some(Action::Settle(self.seen.id.clone(), settled))
    }

    /// What became of its release was written.
    pub(super) fn release_settled(&mut self, release: Release) {
        self.settle_at = Some(Duration::ZERO);
        self.settle_failures = 0;
        self.settling = None;
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
            let was_accepted = |before: &&ContainerRelease| {
                !matches!(before.outcome, Outcome::HandedOver | Outcome::Unavailable)
            };
            if let Some(before) = before.filter(was_accepted)
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
