//! Tries run in turns.
//!
//! containerd has one lock for all that it writes down, and a pull takes it a dozen times. Thirty
//! pulls at once, beside as many starting pods, each wait for thirty others at every step: for five
//! seconds no single one gets anywhere, and every one of them looks stalled (measured). A few at a
//! time are as fast together, and each one's clock then measures the registry and not the others.
//!
//! A turn ends with its try, when bytes flow (containerd rations downloads itself), and after
//! [`TURN`] at the latest: a registry that answers slowly holds nobody up for long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Planner;
use super::event::{Action, Ask};
use super::image::{Attempt, Image};
use super::wait::may_yet_be_refused;
use crate::image::ImageName;
use crate::time::Now;

/// Turns at once.
const TURNS: usize = 6;

/// Of these, turns of one registry: one that is silent leaves some to the others.
const TURNS_OF_REGISTRY: usize = 4;

/// The longest turn. An ordinary one takes a fraction of a second.
pub(super) const TURN: Duration = Duration::from_secs(2);

impl Attempt {
    /// When its turn is over, if it still has one.
    fn turn_until(&self, now: Now) -> Option<Duration> {
        let until = self.started.up + TURN;
        (self.asks() && !self.flow.flows && now.up < until).then_some(until)
    }
}

impl Image {
    /// Whether the try that runs is in its turn.
    pub(super) fn has_turn(&self, now: Now) -> bool {
        let attempt = self.attempt.as_ref();
        attempt.is_some_and(|attempt| attempt.turn_until(now).is_some())
    }
}

impl Planner {
    /// When a turn is over, if somebody waits for one.
    pub(super) fn next_turn(&self, now: Now) -> Option<Duration> {
        if !self.images.values().any(Image::waits_for_turn) {
            return None;
        }
        let attempts = self.images.values().filter_map(|i| i.attempt.as_deref());
        attempts.filter_map(|attempt| attempt.turn_until(now)).min()
    }

    /// Begins the tries that are due, as far as there are turns: first for the registry that has the
    /// fewest, then for those who have waited longest. A look at a copy takes no turn.
    pub(super) fn start_tries(&mut self, now: Now, plan: &mut Vec<Action>) {
        let (looks, mut waiting) = self.due(now);
        for name in looks {
            self.start_try(now, name, Ask::IfAbsent, plan);
        }
        waiting = self.leave_to_probes(now, waiting, plan);
        if waiting.is_empty() {
            return;
        }
        let mut turns = self.turns(now);
        while turns.values().sum::<usize>() < TURNS {
            let of = |name: &ImageName| turns.get(name.registry()).copied().unwrap_or(0);
            let next = waiting
                .iter()
                .enumerate()
                .filter(|(_, (_, name))| of(name) < TURNS_OF_REGISTRY)
                .min_by_key(|(_, (since, name))| (of(name), *since));
            let Some((index, _)) = next else {
                break;
            };
            let (_, name) = waiting.swap_remove(index);
            *turns.entry(name.registry().to_owned()).or_default() += 1;
            self.start_try(now, name, Ask::Always, plan);
        }
        for (_, name) in waiting {
            if let Some(image) = self.images.get_mut(&name) {
                image.wait_for_turn();
            }
        }
    }

    /// Begins those that are not to ask the registry, because its circuit is open: they take no turn, either.
    fn leave_to_probes(
        &mut self,
        now: Now,
        mut due: Vec<(Duration, ImageName)>,
        plan: &mut Vec<Action>,
    ) -> Vec<(Duration, ImageName)> {
        due.sort();
        let mut probed = BTreeSet::new();
        let mut waiting = Vec::new();
        for (since, name) in due {
            match self.why_not_asked(now, &name, &mut probed) {
                Some(failure) => self.start_try(now, name, Ask::Never(failure), plan),
                None => waiting.push((since, name)),
            }
        }
        waiting
    }

    pub(super) fn start_try(
        &mut self,
        now: Now,
        name: ImageName,
        ask: Ask,
        plan: &mut Vec<Action>,
    ) {
        let open = self.circuits.of(&name).filter(|_| ask == Ask::Always);
        let probe = open.map(|open| open.not_yet_answered(now));
        let Some(image) = self.images.get_mut(&name) else {
            return;
        };
        self.attempts += 1;
        let stall = self.rules.stall_of(&name);
        image.start(now, self.attempts, ask.clone(), probe, stall);
        plan.push(Action::Try {
            image: name,
            attempt: self.attempts,
            ask,
            stall,
        });
    }

    /// Images whose try is due: those that have only to be looked at, and the others with the time since
    /// when. Those that nobody waits for any more leave.
    fn due(&mut self, now: Now) -> (Vec<ImageName>, Vec<(Duration, ImageName)>) {
        let (mut looks, mut pulls, mut unwanted) = (Vec::new(), Vec::new(), Vec::new());
        for (name, image) in &self.images {
            let Some(due) = image.due().filter(|due| *due <= now.up) else {
                continue;
            };
            if !self.is_wanted(name, image) {
                unwanted.push(name.clone());
            } else if !image.is_missing() && (self.gives_digest(name) || self.is_young(now, name)) {
                looks.push(name.clone());
            } else {
                pulls.push((due, name.clone()));
            }
        }
        for name in unwanted {
            if let Some(image) = self.images.get_mut(&name) {
                image.leave();
            }
        }
        (looks, pulls)
    }

    pub(super) fn gives_digest(&self, name: &ImageName) -> bool {
        self.knowledge
            .gives_digest(name, self.rules.kubelet_verifies)
    }

    /// Whether the registry has told everybody a moment ago where the name points.
    pub(super) fn is_young(&self, now: Now, name: &ImageName) -> bool {
        let facts = self.knowledge.facts(name);
        let confirmed = facts.confirmed.as_ref().filter(|_| facts.is_public());
        let age = confirmed.map(|confirmed| now.wall.duration_since(confirmed.time));
        // A time that lies ahead was written by a clock that was set back since.
        let age = age.and_then(|age| Duration::try_from(age).ok());
        age.is_some_and(|age| age < self.rules.freshness_of(name))
    }

    /// Whether a container waits for a try of this image to begin, or it is tried without one.
    fn is_wanted(&self, name: &ImageName, image: &Image) -> bool {
        if image.is_refreshed {
            return true;
        }
        let refusable = may_yet_be_refused(name, image, &self.knowledge);
        let rounds = self.pods.values().filter_map(|pod| pod.round.as_ref());
        let mut containers = rounds.flat_map(|round| &round.containers);
        containers.any(|c| c.image() == Some(name) && c.asks_for_try(refusable))
    }

    /// How many turns each registry has.
    fn turns(&self, now: Now) -> BTreeMap<String, usize> {
        let mut turns = BTreeMap::new();
        for (name, image) in &self.images {
            let running = image.attempt.as_deref();
            if running.is_some_and(|attempt| attempt.turn_until(now).is_some()) {
                *turns.entry(name.registry().to_owned()).or_default() += 1;
            }
        }
        turns
    }
}
