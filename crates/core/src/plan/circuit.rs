//! A registry that has just failed is not asked again for each pod: whoever has a copy takes it at once, and a
//! probe from time to time finds out when the registry is back.
//!
//! ```text
//!   closed ── silence, or 429, or failures at once of two repositories ──► open
//!   open ──── any answer to a try ──► closed, and what fell back meanwhile is tried again
//! ```
//!
//! A probe is an ordinary try. A pod that comes while the circuit is open has its own image tried as one, unless one
//! runs or has just failed. It does not wait for that longer than for its gate, which costs it nothing. Between pods,
//! the planner probes with what fell back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::SignedDuration;

use super::Planner;
use super::backoff::Backoff;
use super::event::{Action, Ask, Why};
use super::image::{Attempt, Image};
use super::turns::TURN;
use super::wait::may_yet_be_refused;
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass};
use crate::record::Try;
use crate::text;
use crate::time::{Now, age};

/// Between probes without a pod.
const PROBE: Backoff = Backoff {
    first: Duration::from_secs(5),
    longest: Duration::from_secs(60),
};

/// The same after 429, where the registry has not said when to come back, also for the probes of pods: since 2.3,
/// containerd repeats a request up to five times.
const AFTER_429: Backoff = Backoff {
    first: Duration::from_secs(40),
    longest: Duration::from_mins(10),
};

/// After a probe has failed, pods that come do without one for so long.
const JUST_FAILED: Duration = Duration::from_secs(1);

/// The longest pause that a registry can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);

/// A pod waits so long for a probe once its gate runs.
const PROBE_FOR: Duration = Duration::from_millis(100);

/// The same before.
const PROBE_FOR_AT_MOST: Duration = Duration::from_secs(1);

/// A silent pull may yet come to an end, if it is only a mirror that is dead. It is not cut off for a probe before
/// this time.
const DEAD_MIRRORS: Duration = Duration::from_mins(2);

/// After a start, a failure that was written down this long ago opens the circuit.
const PLAUSIBLE: Duration = Duration::from_secs(60);

/// By registry.
#[derive(Debug, Default)]
pub(super) struct Circuits(BTreeMap<String, Circuit>);

#[derive(Debug, Default)]
struct Circuit {
    /// When a try was last answered.
    answered: Option<Duration>,
    /// Repositories of which a try failed at once, since then.
    failing: BTreeSet<String>,
    open: Option<Open>,
}

/// A circuit that is open.
#[derive(Debug)]
pub(super) struct Open {
    /// The last failure, and when it came.
    failure: Failure,
    at: Duration,
    failures: u32,
    /// When the next probe is due.
    probe_at: Duration,
    /// From when on a pod's image may be tried as one.
    pods_from: Duration,
    /// What was not asked for, or in vain.
    fell_back: BTreeSet<ImageName>,
}

impl Open {
    /// Why the registry is not asked.
    fn failure(&self, now: Now) -> Failure {
        let ago = text::short_duration(now.up.saturating_sub(self.at));
        let message = &self.failure.message;
        let words = format!(
            "the registry was not asked again: its last failure, {ago} ago, was: {message}"
        );
        Failure::new(self.failure.class, words)
    }

    fn failed(&mut self, now: Now, failure: Failure, who: (&str, &str)) {
        self.failures = self.failures.saturating_add(1);
        self.at = now.up;
        self.probe_at = now.up + PROBE.pause(self.failures, who);
        self.pods_from = now.up + JUST_FAILED;
        if failure.class == FailureClass::RateLimited {
            let asked = retry_after(&failure.message);
            let pause = asked.unwrap_or_else(|| AFTER_429.pause(self.failures, who));
            self.probe_at = now.up + pause;
            self.pods_from = self.probe_at;
        }
        self.failure = failure;
    }
}

impl Circuits {
    /// A try has failed with this, or has brought nothing so far; it took so long, maybe longer than the agent runs.
    fn failed(
        &mut self,
        now: Now,
        name: &ImageName,
        took: Duration,
        failure: &Failure,
        node: &str,
    ) {
        let registry = name.registry();
        let circuit = self.0.entry(registry.to_owned()).or_default();
        let is_silent = took >= TURN;
        let began = now.up.saturating_sub(took);
        match failure.class {
            FailureClass::RateLimited => {}
            // Others were answered meanwhile: it is this image's.
            FailureClass::Timeout | FailureClass::Network if is_silent => {
                if circuit.answered.is_some_and(|at| at >= began) {
                    return;
                }
            }
            FailureClass::Timeout | FailureClass::Network | FailureClass::ServerError => {
                if circuit.open.is_none() {
                    circuit.failing.insert(name.repository().to_owned());
                    if circuit.failing.len() < 2 {
                        return;
                    }
                }
            }
            FailureClass::NotFound
            | FailureClass::Unauthorized
            | FailureClass::Invalid
            | FailureClass::Blocked
            | FailureClass::Local
            | FailureClass::Unknown => return,
        }
        let open = circuit.open.get_or_insert_with(|| Open {
            failure: failure.clone(),
            at: now.up,
            failures: 0,
            probe_at: now.up,
            pods_from: now.up,
            fell_back: BTreeSet::new(),
        });
        open.failed(now, failure.clone(), (registry, node));
        open.fell_back.insert(name.clone());
    }

    /// A try was answered. What is to be tried again.
    fn answered(&mut self, now: Now, name: &ImageName) -> BTreeSet<ImageName> {
        let circuit = self.0.entry(name.registry().to_owned()).or_default();
        circuit.answered = Some(now.up);
        circuit.failing.clear();
        circuit
            .open
            .take()
            .map(|open| open.fell_back)
            .unwrap_or_default()
    }

    /// Why this image's registry is not asked, if its circuit is open.
    pub(super) fn failure(&self, name: &ImageName, now: Now) -> Option<Failure> {
        let open = self.0.get(name.registry())?.open.as_ref()?;
        Some(open.failure(now))
    }

    pub(super) fn is_open(&self, name: &ImageName) -> bool {
        let circuit = self.0.get(name.registry());
        circuit.is_some_and(|circuit| circuit.open.is_some())
    }

    fn open_mut(&mut self, name: &ImageName) -> Option<&mut Open> {
        self.0.get_mut(name.registry())?.open.as_mut()
    }

    fn open(&self) -> impl Iterator<Item = (&String, &Open)> {
        let circuits = self.0.iter();
        circuits.filter_map(|(registry, circuit)| Some((registry, circuit.open.as_ref()?)))
    }

    /// Forgets registries of which nothing is known any more.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|registry, _| keep(registry));
    }
}

impl Attempt {
    /// Whether a pod does not wait for it any more, because it only probes a registry.
    pub(super) fn is_passed_over(&self, now: Now, gate_runs: bool) -> bool {
        let [most, least] = self.probe_until();
        let until = if gate_runs { least } else { most };
        self.probe.is_some() && until <= now.up
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

    /// A try has failed with this, or stands still, without a word from the registry; it took so long.
    pub(super) fn registry_failed(
        &mut self,
        now: Now,
        name: &ImageName,
        took: Duration,
        failure: &Failure,
    ) {
        self.circuits.failed(now, name, took, failure, &self.node);
    }

    /// The registry has answered: what fell back is tried again.
    pub(super) fn registry_answered(&mut self, now: Now, name: &ImageName) {
        for fell_back in self.circuits.answered(now, name) {
            if self.is_used(&fell_back)
                && fell_back != *name
                && let Some(image) = self.images.get_mut(&fell_back)
            {
                image.refresh(now.up);
            }
        }
    }

    /// Why a try that is due is not to ask the registry: it is left to a probe. `probed` are the registries that have
    /// one anyway.
    pub(super) fn passed_over(
        &mut self,
        now: Now,
        name: &ImageName,
        probed: &mut BTreeSet<String>,
    ) -> Option<Failure> {
        let failure = self.circuits.failure(name, now)?;
        let has_to_ask = self.has_to_ask(name);
        let has_probe = probed.contains(name.registry()) || self.is_probed(name.registry());
        let open = self.circuits.open_mut(name)?;
        open.fell_back.insert(name.clone());
        if has_to_ask || !has_probe && open.pods_from <= now.up {
            probed.insert(name.registry().to_owned());
            return None;
        }
        Some(failure)
    }

    /// Whether somebody who waits for this image may not take its copy, or there is none.
    fn has_to_ask(&self, name: &ImageName) -> bool {
        let Some(image) = self.images.get(name) else {
            return false;
        };
        let refusable = may_yet_be_refused(name, image, &self.knowledge);
        let rounds = self.pods.values().filter_map(|pod| pod.round.as_ref());
        let mut waiting = rounds.filter(|round| round.images().any(|waits| waits == name));
        image.is_missing()
            || waiting.any(|round| {
                let rules = &round.rules;
                let is_strict = rules.max_age.is_some() || rules.fallback_on.is_some();
                is_strict || refusable && !rules.without_proof
            })
    }

    /// Whether a try of this registry runs that may find it back.
    pub(super) fn is_probed(&self, registry: &str) -> bool {
        let of_registry = self
            .images
            .iter()
            .filter(|(name, _)| name.registry() == registry);
        let mut attempts = of_registry.filter_map(|(_, image)| image.attempt.as_ref());
        // One that is cut off begins again.
        attempts.any(|attempt| attempt.asks() && (attempt.stalled.is_none() || attempt.is_cut))
    }

    /// Begins the probes that are due without a pod.
    pub(super) fn probe(&mut self, now: Now, plan: &mut Vec<Action>) {
        let due = self
            .circuits
            .open()
            .filter(|(_, open)| open.probe_at <= now.up);
        let due: Vec<String> = due.map(|(registry, _)| registry.clone()).collect();
        for registry in due {
            if self.is_probed(&registry) {
                continue;
            }
            let chosen = self.to_probe_with(&registry);
            if let Some(open) = self
                .circuits
                .0
                .get_mut(&registry)
                .and_then(|c| c.open.as_mut())
            {
                // Its end says when the next is due.
                open.probe_at = now.up + PROBE.longest;
            }
            match chosen {
                Some((name, true)) => self.start_try(now, name, Ask::Always, plan),
                Some((name, false)) => self.cut_for_probe(now, name, plan),
                None => {}
            }
        }
    }

    /// Whether a pod names this image.
    fn is_used(&self, name: &ImageName) -> bool {
        let mut pods = self.pods.values().filter(|pod| !pod.seen.terminated);
        pods.any(|pod| pod.images().any(|used| used == name))
    }

    /// An image that pods use, and that nothing else is done with; or one whose pull hangs, which has to end
    /// first.
    fn to_probe_with(&self, registry: &str) -> Option<(ImageName, bool)> {
        let of_registry =
            |(name, _): &(&ImageName, &Image)| name.registry() == registry && self.is_used(name);
        let mut images = self.images.iter().filter(of_registry);
        let idle = images.find(|(name, image)| !image.is_busy() && !self.waits_for_kubelet(name));
        if let Some((name, _)) = idle {
            return Some((name.clone(), true));
        }
        let hangs = |image: &Image| {
            let attempt = image.attempt.as_ref().filter(|_| image.is_stalled());
            attempt.is_some_and(|attempt| attempt.flow.still >= DEAD_MIRRORS)
        };
        let mut images = self.images.iter().filter(of_registry);
        let (name, _) = images.find(|(name, image)| hangs(image) && !self.is_needed(name))?;
        Some((name.clone(), false))
    }

    fn cut_for_probe(&mut self, now: Now, name: ImageName, plan: &mut Vec<Action>) {
        if let Some(image) = self.images.get_mut(&name) {
            image.refresh(now.up);
        }
        self.cut(name, Why::Newcomer, plan);
    }

    /// When a probe is due, or a pod does not wait for one any more.
    pub(super) fn circuits_due(&self, now: Now) -> impl Iterator<Item = Duration> {
        let attempts = self
            .images
            .values()
            .filter_map(|image| image.attempt.as_ref());
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
            .filter_map(|(_, known)| known.last_try.clone())
            .filter(|tried| tried.pulled_for.is_none() && tried.ended() <= now.wall)
            .collect();
        tries.sort_by_key(Try::ended);
        for tried in tries {
            if age(now.wall, tried.ended()) > PLAUSIBLE {
                continue;
            }
            match tried.result.failure() {
                Some(failure) => self.registry_failed(now, &tried.image, tried.duration, failure),
                None => self
                    .circuits
                    .0
                    .retain(|registry, _| registry != tried.image.registry()),
            }
        }
    }
}

/// When a registry wants to be asked again, if its message says so: `retry-after: 1m3.5s` (GitHub's), or in seconds.
fn retry_after(message: &str) -> Option<Duration> {
    let message = message.to_ascii_lowercase();
    let (_, rest) = message.split_once("retry-after")?;
    let rest = rest.trim_start_matches([':', ' ']);
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != 'µ');
    let written = &rest[..end.unwrap_or(rest.len())];
    let pause = match written.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => written.parse::<SignedDuration>().ok()?.try_into().ok()?,
    };
    Some(pause.clamp(JUST_FAILED, RETRY_AFTER_MAX))
}
