//! Keeps the copies of images that pods use up to date, although no pod waits for that: the copy of the next outage is
//! then at most that old. And tries what has started without a try, for the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::Planner;
use super::backoff::Backoff;
use super::image::Image;
use crate::image::ImageName;
use crate::record::Try;
use crate::time::{Now, age};

/// Between two images: a node's refreshes are to be seen neither by its pods nor by its registries.
const PACE: Duration = Duration::from_secs(10);

/// What starts again and again, or in many pods, costs a request in this time at most. So a container that crashes in a
/// loop is not seen by its registry.
const AFTER_START: Duration = Duration::from_mins(5);

/// So many images are remembered that have started without a try. Who starts more, by pods that end at once, does not
/// have all of them tried.
const WANTED_MAX: usize = 256;

/// When images are refreshed.
#[derive(Debug, Default)]
pub(super) struct Refresh {
    /// How long after its last try; none if never.
    every: Option<Duration>,
    /// The next is due no earlier.
    paced_until: Duration,
    /// When to look again.
    next: Option<Duration>,
    /// What has started without a try, or again, and when: it is due unless it was tried since.
    wanted: BTreeMap<ImageName, Timestamp>,
}

impl Refresh {
    /// Whether images are tried from time to time.
    pub(super) fn is_on(&self) -> bool {
        self.every.is_some()
    }

    /// A container of this image has started then, and nobody has asked the registry for it.
    pub(super) fn want(&mut self, name: &ImageName, started: Timestamp) {
        let wanted = self.wanted.entry(name.clone()).or_insert(started);
        *wanted = started.max(*wanted);
        if self.wanted.len() > WANTED_MAX {
            let newest = self.wanted.iter().max_by_key(|(_, started)| **started);
            let newest = newest.map(|(name, _)| name.clone());
            newest.map(|name| self.wanted.remove(&name));
        }
    }

    pub(super) fn want_all(&mut self, started: Vec<(ImageName, Timestamp)>) {
        for (name, at) in started {
            self.want(&name, at);
        }
    }

    /// Forgets all other images.
    pub(super) fn retain(&mut self, keep: impl Fn(&ImageName) -> bool) {
        self.wanted.retain(|name, _| keep(name));
    }
}

impl Planner {
    /// Tries the images that pods use again so long after their last try, give or take a quarter, so that nodes do not
    /// do so in step; zero if never. Private images are left to their pods, and so is a registry whose circuit is open.
    pub fn refresh_every(&mut self, every: Duration) {
        self.refresh.every = Some(every).filter(|every| !every.is_zero());
    }

    /// Queues the image that is due for longest, if one is.
    pub(super) fn refresh_due(&mut self, now: Now) {
        self.refresh.next = None;
        if self.is_stopping {
            return;
        }
        self.forget_tried();
        let is_paced = now.up < self.refresh.paced_until;
        let (mut due, mut next) = (None, None);
        for (left, name) in self.refreshes(now) {
            if left.is_zero() && !is_paced {
                let turn = (self.waits_since(name), name);
                let first = due.map_or(turn, |other| turn.min(other));
                if due.replace(first).is_none() {
                    continue;
                }
            }
            // One that is due and not the first is looked at again once the pace allows it.
            next = Some(next.map_or(left, |next: Duration| next.min(left)));
        }
        if let Some(name) = due.map(|(_, name)| name.clone()) {
            self.refresh.paced_until = now.up + PACE;
            self.images.entry(name).or_default().refresh(now.up);
        }
        let paced_until = self.refresh.paced_until;
        self.refresh.next = next.map(|left| paced_until.max(now.up + left));
    }

    /// When to look again, as far as it was known after the last event.
    pub(super) fn next_refresh(&self) -> Option<Duration> {
        self.refresh.next
    }

    /// What was tried since it was wanted is not wanted any more, and what the registry gives nobody without
    /// credentials never is.
    fn forget_tried(&mut self) {
        let knowledge = &self.knowledge;
        self.refresh.wanted.retain(|name, started| {
            let last = knowledge.last_try(name);
            let is_tried = last.is_some_and(|last| last.started >= *started);
            let is_private = knowledge.needs_credentials(name);
            !is_tried && !is_private && !name.has_digest()
        });
    }

    /// How long until each image is due that can be refreshed now.
    fn refreshes(&self, now: Now) -> impl Iterator<Item = (Duration, &ImageName)> {
        let every = self.refresh.every.into_iter();
        let regularly = every.flat_map(move |every| {
            let used: BTreeSet<&ImageName> = self
                .pods
                .values()
                .filter(|pod| !pod.seen.terminated && pod.released.is_some())
                .flat_map(|pod| pod.images_to_refresh(&self.knowledge))
                .collect();
            let refreshable = used.into_iter().filter(|name| self.is_refreshable(name));
            refreshable.map(move |name| {
                let every = Backoff {
                    first: every,
                    longest: every,
                };
                let pause = every.pause(1, (name, &self.node));
                (self.left_of(now, name, pause), name)
            })
        });
        let wanted = self.refresh.wanted.keys();
        let wanted = wanted.filter(|name| self.is_refreshable(name));
        let wanted = wanted.map(move |name| (self.left_of(now, name, AFTER_START), name));
        regularly.chain(wanted)
    }

    fn is_refreshable(&self, name: &ImageName) -> bool {
        let is_busy = self.images.get(name).is_some_and(Image::is_busy);
        let is_private = self.knowledge.needs_credentials(name);
        !is_busy && !is_private && !name.has_digest() && self.circuits.of(name).is_none()
    }

    /// When it was last tried, or else since when it is wanted: whose turn it is, so that many images keep no other one
    /// waiting.
    fn waits_since(&self, name: &ImageName) -> Option<Timestamp> {
        let last = self.knowledge.last_try(name);
        last.map(Try::ended)
            .or_else(|| self.refresh.wanted.get(name).copied())
    }

    /// How much is left of a pause after the last try. Within the freshness, another one would only look.
    fn left_of(&self, now: Now, name: &ImageName, pause: Duration) -> Duration {
        let last = self.knowledge.last_try(name);
        let pause = pause.max(self.rules.freshness_of(name));
        last.map_or(Duration::ZERO, |last| {
            pause.saturating_sub(age(now.wall, last.ended()))
        })
    }
}
