//! What dashboards and alerts show of the planner, counted from what it knows: nothing has to be kept up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::Planner;
use super::image::{Attempt, Image};
use super::pod::Pod;
use super::report::runs_old;
use crate::knowledge::Known;
use crate::time::Now;

/// How things stand now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Pods that have not ended, with and without a gate.
    pub pods: usize,
    /// Those of them whose release is not written yet.
    pub waiting: Standing,
    /// Pulls of the agent.
    pub pulls: Pulls,
    /// Names that a hand-over has taken away from a copy.
    pub away: Standing,
    /// What runs from copies that pods fell back to.
    pub fallback: Fallback,
    /// Images that are known.
    pub images: usize,
}

/// How many there are, and since when, on [`Now::up`], the oldest of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How many.
    pub count: usize,
    /// Since when; none if there are none.
    pub since: Option<Duration>,
}

/// Pulls of the agent that run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulls {
    /// Those in which something has moved within the stall deadline.
    pub moving: usize,
    /// The others.
    pub stalled: usize,
    /// Bytes of their images that are here.
    pub received_bytes: u64,
    /// Bytes that these will have, as far as that is known.
    pub expected_bytes: u64,
}

/// Pods that run the copy that they fell back to, as far as the registry has not said since that the tag points there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fallback {
    /// These pods.
    pub pods: usize,
    /// Their images.
    pub images: usize,
    /// Those of the images with such a copy of which no registry has ever said that the tag points there.
    pub unconfirmed: usize,
    /// When the registry last said so of the oldest of these copies.
    pub oldest: Option<Timestamp>,
}

impl Standing {
    /// How old the oldest is; zero if there are none.
    pub fn age(self, now: Now) -> Duration {
        let age = |since| now.up.saturating_sub(since);
        self.since.map_or(Duration::ZERO, age)
    }
}

impl FromIterator<Duration> for Standing {
    fn from_iter<I: IntoIterator<Item = Duration>>(since: I) -> Self {
        since.into_iter().fold(Self::default(), |all, since| Self {
            count: all.count + 1,
            since: Some(all.since.map_or(since, |oldest| oldest.min(since))),
        })
    }
}

impl<'a> FromIterator<&'a Attempt> for Pulls {
    fn from_iter<I: IntoIterator<Item = &'a Attempt>>(attempts: I) -> Self {
        let mut pulls = Self::default();
        for attempt in attempts {
            match attempt.stalled {
                Some(_) => pulls.stalled += 1,
                None => pulls.moving += 1,
            }
            let sum = |sum: &mut u64, bytes: u64| *sum = sum.saturating_add(bytes);
            sum(&mut pulls.received_bytes, attempt.flow.bytes);
            sum(
                &mut pulls.expected_bytes,
                attempt.flow.total_bytes.unwrap_or(0),
            );
        }
        pulls
    }
}

impl Planner {
    /// How things stand now. Its cost grows with the pods and with the images that are tried.
    pub fn figures(&self) -> Figures {
        let pods = || self.pods.values();
        let began = |pod: &Pod| pod.round.as_ref().map(|round| round.began);
        let attempts = self.images.values().filter_map(|i| i.attempt.as_deref());
        let away = |image: &Image| image.handover.as_deref()?.away_since();
        Figures {
            pods: pods().filter(|pod| !pod.seen.terminated).count(),
            waiting: pods().filter_map(began).collect(),
            pulls: attempts.filter(|attempt| attempt.asks()).collect(),
            away: self.images.values().filter_map(away).collect(),
            fallback: self.fallback(),
            images: self.known_images(),
        }
    }

    /// The registries of the images that are known: first those that have given one.
    pub fn registries(&self) -> Vec<&str> {
        let mut given = BTreeMap::new();
        for (name, known) in self.knowledge.iter() {
            *given.entry(name.registry()).or_default() |= known.facts.confirmed.is_some();
        }
        for name in self.images.keys() {
            given.entry(name.registry()).or_default();
        }
        let (first, others): (Vec<_>, Vec<_>) = given.into_iter().partition(|(_, given)| *given);
        let all = first.into_iter().chain(others);
        all.map(|(registry, _)| registry).collect()
    }

    fn fallback(&self) -> Fallback {
        let nothing = Known::default();
        let (mut pods, mut images, mut unconfirmed) = (0, BTreeSet::new(), BTreeSet::new());
        let mut oldest: Option<Timestamp> = None;
        for pod in self.pods.values().filter(|pod| pod.may_start()) {
            let mut is_one = false;
            for (name, (time, given)) in pod.given_images() {
                let known = self.knowledge.of_name(name).unwrap_or(&nothing);
                if !runs_old(&(time, given), known) {
                    continue;
                }
                is_one = true;
                images.insert(name);
                let ours = given
                    .digest
                    .as_ref()
                    .and_then(|d| known.facts.confirmed_at(d));
                match ours.or(given.confirmed) {
                    Some(then) => oldest = Some(oldest.map_or(then, |oldest| oldest.min(then))),
                    None => {
                        unconfirmed.insert(name);
                    }
                }
            }
            pods += usize::from(is_one);
        }
        Fallback {
            pods,
            images: images.len(),
            unconfirmed: unconfirmed.len(),
            oldest,
        }
    }
}
