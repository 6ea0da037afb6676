//! Keeps the copies of images that pods use up to date, although no pod waits for that: the copy of the next outage is
//! then at most that old.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Planner;
use super::backoff::Backoff;
use super::image::Image;
use super::pod::Pod;
use crate::image::ImageName;
use crate::time::{Now, age};

/// Between two images: a node's refreshes are to be seen neither by its pods nor by its registries.
const PACE: Duration = Duration::from_secs(10);

/// When images are refreshed.
#[derive(Debug, Default)]
pub(super) struct Refresh {
    /// How long after its last try; none if never.
    every: Option<Duration>,
    /// The next is due no earlier.
    paced_until: Duration,
}

impl Planner {
    /// Tries the images that pods use again so long after their last try, give or take a quarter, so that nodes do not
    /// do so in step; zero if never. Private images are left to their pods, and so is a registry whose circuit is open.
    pub fn refresh_every(&mut self, every: Duration) {
        self.refresh.every = Some(every).filter(|every| !every.is_zero());
    }

    /// Queues the image that is due for longest, if one is.
    pub(super) fn refresh_due(&mut self, now: Now) {
        if self.is_stopping || now.up < self.refresh.paced_until {
            return;
        }
        let due = self.refreshes(now).min();
        let Some((_, name)) = due.filter(|(left, _)| left.is_zero()) else {
            return;
        };
        self.refresh.paced_until = now.up + PACE;
        self.images.entry(name).or_default().refresh(now.up);
    }

    /// When to look again.
    pub(super) fn next_refresh(&self, now: Now) -> Option<Duration> {
        let paced = self.refresh.paced_until.saturating_sub(now.up);
        let left = self.refreshes(now).map(|(left, _)| left).min()?;
        Some(left.max(paced))
    }

    /// How long until each image is due that can be refreshed now.
    fn refreshes(&self, now: Now) -> impl Iterator<Item = (Duration, ImageName)> {
        let every = self.refresh.every.into_iter();
        every.flat_map(move |every| {
            let used: BTreeSet<&ImageName> = self
                .pods
                .values()
                .filter(|pod| !pod.seen.terminated && pod.released.is_some())
                .flat_map(Pod::images)
                .collect();
            let refreshable = used.into_iter().filter(|name| self.is_refreshable(name));
            refreshable.map(move |name| (self.until_due(now, name, every), name.clone()))
        })
    }

    fn is_refreshable(&self, name: &ImageName) -> bool {
        let is_busy = self.images.get(name).is_some_and(Image::is_busy);
        let is_private = self.knowledge.facts(name).needs_credentials;
        !is_busy && !is_private && !name.has_digest() && self.circuits.of(name).is_none()
    }

    fn until_due(&self, now: Now, name: &ImageName, every: Duration) -> Duration {
        let known = self.knowledge.of_name(name);
        let Some(last) = known.and_then(|known| known.last_try.as_ref()) else {
            return Duration::ZERO;
        };
        let pause = Backoff {
            first: every,
            longest: every,
        };
        let pause = pause.pause(1, (name, &self.node));
        pause.saturating_sub(age(now.wall, last.ended()))
    }
}
