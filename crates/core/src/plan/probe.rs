//! Probes: tries that find out whether a registry whose circuit is open is back.
//!
//! A probe is an ordinary try. A pod that comes has its own image tried as one, unless one runs or has just failed. It
//! waits for that no longer than for its own gate, which costs it nothing. Between pods, the planner probes with what
//! fell back, or else with what pods use.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Planner;
use super::circuit::{Heard, Open};
use super::event::{Action, Ask, Why};
use super::image::{Attempt, Image};
use super::pod::Pod;
use super::turns::TURN;
use super::wait::has_spoken;
use crate::image::ImageName;
use crate::node::OpenRegistry;
use crate::outcome::{Failure, FailureClass};
use crate::record::Try;
use crate::time::{Now, age};
use crate::verdict::{Terms, has_to_ask};

/// How long a pod waits for a probe once its gate runs.
const PROBE_FOR: Duration = Duration::from_millis(100);

/// The same before its gate runs.
const PROBE_FOR_AT_MOST: Duration = Duration::from_secs(1);

/// Until a probe without a pod has ended, or stands still, the next is not due.
const PROBED: Duration = Duration::from_secs(60);

/// So many probes of pods may wait for an answer: other images are left for probes without a pod.
const UNANSWERED: usize = 2;

/// A silent pull may yet come to an end, if it is only a mirror that is dead. It is not cut off for a probe before
/// this time.
const DEAD_MIRRORS: Duration = Duration::from_mins(2);

/// After a start, a failure that was written down this long ago opens the circuit.
const PLAUSIBLE: Duration = Duration::from_secs(60);

impl Attempt {
    /// Whether a pod does not wait for it any more, because it only probes a registry.
    pub(super) fn is_passed_over(&self, now: Now, gate_runs: bool) -> bool {
        let [most, least] = self.probe_until();
        let until = if gate_runs { least } else { most };
        self.probe.is_some() && !self.has_answer() && until <= now.up
    }

    /// Until when pods wait for a probe: before their gate runs, and then.
    fn probe_until(&self) -> [Duration; 2] {
        [PROBE_FOR_AT_MOST, PROBE_FOR].map(|wait| self.started.up + wait)
    }
}

impl Planner {
    /// The registries that are not asked for each pod now, and why.
    pub fn open_circuits(&self) -> impl Iterator<Item = (&str, &Failure)> {
        let open = self.circuits.open();
        open.map(|(registry, open)| (registry.as_str(), &open.failure))
    }

    /// The same for the node's report.
    pub fn open_registries(&self) -> Vec<OpenRegistry> {
        let open = self.circuits.open().map(|(registry, open)| {
            let (class, since) = open.opened();
            OpenRegistry {
                registry: registry.clone(),
                class,
                since,
            }
        });
        open.collect()
    }

    /// A try has failed with this, or stands still, without a word from the registry; it took so long.
    pub(super) fn registry_failed(
        &mut self,
        now: Now,
        name: &ImageName,
        took: Duration,
        failure: &Failure,
    ) {
        self.circuits.failed(now, name, took, failure, &self.node);
        // It may have opened the circuit.
        self.changed.report = true;
    }

    /// The registry has answered a try: what fell back is tried again, but for private images, of
    /// which the agent would only hear again that they are.
    pub(super) fn registry_answered(
        &mut self,
        now: Now,
        name: &ImageName,
        heard: Heard,
        plan: &mut Vec<Action>,
    ) {
        let was_open = self.circuits.of(name).is_some();
        let fell_back = self.circuits.answered(now, name, heard);
        // The way is clear, and no dead mirror in it: what hangs does so on a dead connection, or needs its time.
        let is_quick = now.up < heard.began + TURN;
        if self.circuits.of(name).is_none() {
            self.changed.report |= was_open;
            let same = |(other, _): &(&ImageName, &mut Image)| other.registry() == name.registry();
            let attempts = self.images.iter_mut().filter(same);
            for attempt in attempts.filter_map(|(_, image)| image.attempt.as_deref_mut()) {
                attempt.probe = None;
            }
        }
        for fell_back in fell_back {
            let is_private = self.knowledge.facts(&fell_back).needs_credentials;
            if fell_back != *name
                && !is_private
                && self.is_used(&fell_back)
                && let Some(image) = self.images.get_mut(&fell_back)
            {
                let hangs = image.is_stalled() && !image.has_answer();
                if image.is_asking() && !hangs {
                    continue;
                }
                image.refresh(now.up);
                // Once: it may be an image that needs more time than others.
                if hangs && is_quick && image.started_over.is_none() {
                    self.start_over_at_once(now, fell_back, plan);
                }
            }
        }
    }

    fn start_over_at_once(&mut self, now: Now, name: ImageName, plan: &mut Vec<Action>) {
        if self.is_needed(&name) {
            return;
        }
        if let Some(image) = self.images.get_mut(&name) {
            image.started_over = Some(now.up);
        }
        self.cut(name, Why::RegistryIsBack, plan);
    }

    /// Why a try that is due is not to ask the registry: that is left to a probe. `probed` are the registries that have
    /// one anyway.
    pub(super) fn why_not_asked(
        &mut self,
        now: Now,
        name: &ImageName,
        probed: &mut BTreeSet<String>,
    ) -> Option<Failure> {
        let failure = self.circuits.of(name)?.not_asked(now);
        let registry = name.registry();
        let has_to_ask = self.has_to_ask(now, name, failure.class);
        let may_probe = !probed.contains(registry) && self.may_probe(now, name);
        self.circuits
            .of_mut(registry)?
            .fell_back
            .insert(name.clone());
        if has_to_ask || may_probe {
            probed.insert(registry.to_owned());
            return None;
        }
        Some(failure)
    }

    /// Whether a pod's own image may serve as the probe of its registry. A probe that pods do not wait for any more may
    /// be an image's own trouble.
    pub(super) fn may_probe(&self, now: Now, name: &ImageName) -> bool {
        let open = self.circuits.of(name);
        let own = self.images.get(name).and_then(|i| i.attempt.as_deref());
        let is_other = |attempt: &&Attempt| own.is_none_or(|own| own.id != attempt.id);
        let (mut runs, mut unanswered) = (false, 0);
        for attempt in self.asking(name.registry()).filter(is_other) {
            runs |= attempt.is_cut || attempt.started.up + PROBE_FOR_AT_MOST > now.up;
            unanswered += usize::from(attempt.probe.is_some() && !attempt.has_answer());
        }
        !runs && unanswered < UNANSWERED && open.is_none_or(|open| open.takes_probes_of_pods(now))
    }

    /// Whether somebody who waits for this image may not take its copy after such a failure, or there is none.
    fn has_to_ask(&self, now: Now, name: &ImageName, class: FailureClass) -> bool {
        let facts = self.knowledge.facts(name);
        let spoken = has_spoken(name, &self.knowledge);
        let rounds = self.pods.values().filter_map(|pod| pod.round.as_ref());
        let mut waiting = rounds.filter_map(|round| round.rules_for(name));
        let must = |rules| {
            let now = now.wall;
            let facts = &facts;
            has_to_ask(class, Terms { facts, rules, now }, spoken)
        };
        self.images.get(name).is_some_and(Image::is_missing) || waiting.any(must)
    }

    /// Tries of this registry that ask it.
    fn asking(&self, registry: &str) -> impl Iterator<Item = &Attempt> {
        let images = self.images.iter();
        let same = images.filter(move |(name, _)| name.registry() == registry);
        let attempts = same.filter_map(|(_, image)| image.attempt.as_deref());
        attempts.filter(|attempt| attempt.asks())
    }

    /// Begins the probes that are due without a pod.
    pub(super) fn probe(&mut self, now: Now, plan: &mut Vec<Action>) {
        let is_due = |(_, open): &(&String, &Open)| open.probe_at <= now.up;
        let due = self.circuits.open().filter(is_due);
        let due: Vec<String> = due.map(|(registry, _)| registry.clone()).collect();
        for registry in due {
            if self.is_probed(&registry) {
                continue;
            }
            let candidates = self.candidates(&registry);
            if let Some(name) = self.idle_among(&candidates) {
                self.next_probe_at(&registry, now.up + PROBED);
                self.start_try(now, name, Ask::Always, plan);
            } else if let Some(name) = self.hanging_among(&candidates) {
                // Its end is the turn of the next one.
                self.cut(name, Why::Newcomer, plan);
            } else {
                self.next_probe_at(&registry, now.up + PROBED);
            }
        }
    }

    fn next_probe_at(&mut self, registry: &str, at: Duration) {
        if let Some(open) = self.circuits.of_mut(registry) {
            open.probe_at = at;
        }
    }

    /// What fell back and pods use; if there is none, what else they use of the registry: nobody should be told for long
    /// that it fails because nobody asks. The image of a pod that is not held may not be there yet. An agent that has
    /// just begun knows images by their pods, and has tried none.
    fn candidates(&mut self, registry: &str) -> Vec<ImageName> {
        let open = self.circuits.at(registry);
        let fell_back = open.into_iter().flat_map(|open| &open.fell_back);
        let used = fell_back.filter(|name| self.is_used(name));
        let mut used: BTreeSet<ImageName> = used.cloned().collect();
        if used.is_empty() {
            let held = self.pods.values().filter(|pod| !pod.seen.is_unheld());
            let names = held.flat_map(Pod::images);
            let names = names.filter(|name| name.registry() == registry && self.is_used(name));
            used = names.cloned().collect();
        }
        for name in &used {
            self.images.entry(name.clone()).or_default();
        }
        used.into_iter().collect()
    }

    /// Whether a try runs that may end the circuit of this registry.
    fn is_probed(&self, registry: &str) -> bool {
        let open = self.circuits.at(registry);
        let may_end_it = |attempt: &Attempt| {
            let heard = Heard {
                began: attempt.started.up,
                is_refusal: false,
            };
            open.is_some_and(|open| open.ends_with(heard))
        };
        // One that is cut off begins again.
        let runs = |attempt: &Attempt| attempt.stalled.is_none() || attempt.is_cut;
        self.asking(registry)
            .any(|attempt| runs(attempt) && may_end_it(attempt))
    }

    /// Whether a pod names this image, and does not want to run what its rollout has of it.
    fn is_used(&self, name: &ImageName) -> bool {
        let mut pods = self.pods.values().filter(|pod| !pod.seen.terminated);
        pods.any(|pod| {
            pod.images().any(|used| used == name) && !pod.is_content_with(name, &self.knowledge)
        })
    }

    /// The one that was not tried for longest and that nothing else is done with, public ones first.
    fn idle_among(&self, candidates: &[ImageName]) -> Option<ImageName> {
        let idle = candidates.iter().filter_map(|name| {
            let image = self.images.get(name)?;
            let is_idle = !image.is_busy() && !self.waits_for_kubelet(name);
            let is_private = self.knowledge.facts(name).needs_credentials;
            is_idle.then(|| ((is_private, image.last_start()), name))
        });
        let (_, oldest) = idle.min_by_key(|(order, _)| *order)?;
        Some(oldest.clone())
    }

    /// One whose pull hangs, which has to end first.
    fn hanging_among(&self, candidates: &[ImageName]) -> Option<ImageName> {
        let hangs = |name: &ImageName| {
            let image = self.images.get(name).filter(|image| image.is_stalled());
            let attempt = image.and_then(|image| image.attempt.as_deref());
            attempt.is_some_and(|attempt| attempt.flow.still >= DEAD_MIRRORS)
        };
        let mut candidates = candidates.iter();
        let name = candidates.find(|name| hangs(name) && !self.is_needed(name))?;
        Some(name.clone())
    }

    /// When a probe is due, or a pod does not wait for one any more.
    pub(super) fn probes_due(&self, now: Now) -> impl Iterator<Item = Duration> {
        let attempts = self
            .images
            .values()
            .filter_map(|image| image.attempt.as_deref());
        let probes = attempts.filter(|attempt| attempt.probe.is_some());
        let waits = probes.flat_map(Attempt::probe_until);
        let due = self.circuits.open().map(|(_, open)| open.probe_at);
        due.chain(waits).filter(move |at| *at > now.up)
    }

    /// Opens the circuits of registries that had just failed when the agent last wrote something down.
    pub(super) fn recall(&mut self, now: Now) {
        let mut tries: Vec<Try> = self
            .knowledge
            .iter()
            .filter_map(|(_, known)| known.last_try.as_deref().cloned())
            .filter(|tried| tried.ended() <= now.wall && age(now.wall, tried.ended()) <= PLAUSIBLE)
            .collect();
        tries.sort_by_key(Try::ended);
        for tried in tries {
            let registry = tried.image.registry();
            match tried.result.failure() {
                Some(failure) if failure.class.is_outage() => {
                    if tried.pulled_for.is_some() {
                        continue;
                    }
                    if failure.class == FailureClass::RateLimited || tried.duration >= TURN {
                        // It opens the circuit by itself, and says what is true now.
                        self.circuits.forget(registry);
                    }
                    let then = Now {
                        wall: tried.ended(),
                        ..now
                    };
                    self.registry_failed(then, &tried.image, tried.duration, failure);
                }
                Some(failure) if !failure.class.is_answer() => {}
                _ => self.circuits.forget(registry),
            }
        }
    }
}
