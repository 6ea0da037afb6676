//! Pulls that go on when nobody waits for them any more: the next pod gets what they bring.
//!
//! A pod takes its copy when nothing has moved for the stall deadline, but a proxy that fetches a whole layer
//! before it sends the first byte, a slow link or a dead mirror in front of a healthy registry only needs more
//! time. What really hangs is cut off, because others may have to wait for it: since 2.3, containerd downloads
//! three layers of a node at a time.

use std::time::Duration;

use super::Planner;
use super::event::{Action, Why};
use super::image::{Attempt, Image};
use super::wait::Waiting;
use crate::image::ImageName;
use crate::outcome::Failure;
use crate::time::Now;

/// After it has stalled, a pull may stand still for this long. Each host that takes no connection costs
/// containerd 30 s with each request, of which two or three come before anything can be seen to move.
const STANDS_STILL: Duration = Duration::from_mins(5);

/// The same if nobody waits for it, and the manifest is here: it may hold places among containerd's downloads.
const HOLDS_PLACES: Duration = Duration::from_secs(30);

/// A pull that waits for a place gets one after this time: one that hangs is cut off for it. Before the next is,
/// it has as long to move.
const WAITS: Duration = Duration::from_millis(1500);

impl Attempt {
    /// Why the pods that wait for it take their copy, if nothing moves, or if it only probes the registry.
    pub(super) fn why_passed_over(&self) -> Option<Failure> {
        let stalled = self.stalled.map(|_| self.flow.stood_still());
        stalled.or_else(|| self.probe.clone().filter(|_| !self.has_answer()))
    }

    /// When it has stood still for too long.
    fn cut_at(&self, is_needed: bool) -> Option<Duration> {
        let most = if !is_needed && self.has_answer() {
            HOLDS_PLACES
        } else {
            STANDS_STILL
        };
        Some(self.stalled? + most)
    }
}

impl Planner {
    /// Cuts off pulls that have hung for too long, or that are in the way of others.
    pub(super) fn cut_what_hangs(&mut self, now: Now, plan: &mut Vec<Action>) {
        let mut cut = Vec::new();
        let mut in_the_way: Option<(Duration, ImageName)> = None;
        for (name, attempt) in self.hanging() {
            let is_needed = self.is_needed(name);
            if attempt.cut_at(is_needed).is_some_and(|due| due <= now.up) {
                cut.push((name.clone(), Why::Hangs));
            } else if !is_needed && self.waits_for_kubelet(name) {
                cut.push((name.clone(), Why::HandOver));
            } else if !is_needed && attempt.has_answer() {
                let oldest = (attempt.started.up, name.clone());
                in_the_way = Some(in_the_way.map_or(oldest.clone(), |other| other.min(oldest)));
            }
        }
        let gave_way = self.gave_way.is_some_and(|at| now.up < at + WAITS);
        if let Some((_, name)) = in_the_way
            && !gave_way
            && self.another_waits()
        {
            self.gave_way = Some(now.up);
            cut.push((name, Why::InTheWay));
        }
        for (name, why) in cut {
            self.cut(name, why, plan);
        }
    }

    /// A pod has come, and may be luckier than those for whom this image's pull stands still: it is cut off for a
    /// new one, but not again for the next pod.
    pub(super) fn start_over(&mut self, now: Now, name: &ImageName, plan: &mut Vec<Action>) {
        if !self.starts_over(now, name) {
            return;
        }
        if let Some(image) = self.images.get_mut(name) {
            image.is_patient = true;
            self.cut(name.clone(), Why::Newcomer, plan);
        }
    }

    /// Whether that would be done for a pod that comes now.
    pub(super) fn starts_over(&self, now: Now, name: &ImageName) -> bool {
        let is_open = self.circuits.of(name).is_some();
        let image = self.images.get(name);
        (!is_open || self.may_probe(now, name))
            && image.is_some_and(|image| image.is_stalled() && !image.is_patient)
            && !self.is_needed(name)
    }

    pub(super) fn cut(&mut self, name: ImageName, why: Why, plan: &mut Vec<Action>) {
        let attempt = self
            .images
            .get_mut(&name)
            .and_then(|i| i.attempt.as_deref_mut());
        if let Some(attempt) = attempt {
            attempt.is_cut = true;
            plan.push(Action::Cut {
                image: name,
                attempt: attempt.id,
                why,
            });
        }
    }

    /// When a pull has stood still for too long.
    pub(super) fn cuts_due(&self) -> impl Iterator<Item = Duration> {
        self.hanging()
            .filter_map(|(name, attempt)| attempt.cut_at(self.is_needed(name)))
    }

    /// The pulls of which nothing moves.
    fn hanging(&self) -> impl Iterator<Item = (&ImageName, &Attempt)> {
        let stalled = self.images.iter().filter(|(_, image)| image.is_stalled());
        stalled.filter_map(|(name, image)| Some((name, image.attempt.as_deref()?)))
    }

    /// Whether a pull that a pod waits for may be waiting for a place among containerd's downloads.
    fn another_waits(&self) -> bool {
        let waits = |image: &Image| {
            let flow = image.attempt.as_deref().map(|attempt| attempt.flow);
            flow.is_some_and(|flow| flow.behind && flow.still >= WAITS)
        };
        let waiting = self.images.iter().filter(|(_, image)| waits(image));
        let mut waiting = waiting.flat_map(|(name, _)| self.waiting_for(name));
        waiting.any(|container| !container.waits_for_kubelet())
    }

    /// Whether a container waits for the try of this image that runs.
    pub(super) fn is_needed(&self, name: &ImageName) -> bool {
        self.waiting_for(name).any(Waiting::needs_its_try)
    }

    pub(super) fn waits_for_kubelet(&self, name: &ImageName) -> bool {
        self.waiting_for(name).any(Waiting::waits_for_kubelet)
    }

    fn waiting_for<'a>(&'a self, name: &'a ImageName) -> impl Iterator<Item = &'a Waiting> {
        let rounds = self.pods.values().filter_map(|pod| pod.round.as_ref());
        let containers = rounds.flat_map(|round| &round.containers);
        containers.filter(move |container| container.image() == Some(name))
    }
}
