//! A registry that has just failed is not asked for each pod: whoever has a copy takes it at once, and a
//! probe (`probe`) finds out from time to time whether the registry is back.
//!
//! ```text
//!   closed ── silence, or 429, or failures at once of two repositories ──► open
//!   open ──── an answer to a try ──► closed, and what fell back meanwhile is tried again
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::backoff::Backoff;
use super::turns::TURN;
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass};
use crate::text;
use crate::time::{Now, age};

/// Between probes without a pod.
const PROBE: Backoff = Backoff {
    first: Duration::from_secs(5),
    longest: Duration::from_secs(30),
};

/// The same after 429, where the registry has not said when to come back, also for the probes of pods: containerd
/// repeats such a request up to five times.
const AFTER_429: Backoff = Backoff {
    first: Duration::from_secs(80),
    longest: Duration::from_mins(10),
};

/// How long after a failed try pods that come are not used as probes.
const JUST_FAILED: Duration = Duration::from_secs(1);

/// The longest pause that a registry can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);

/// Failures of two repositories are one outage if no more time lies between them.
const IN_A_ROW: Duration = Duration::from_secs(60);

/// By registry.
#[derive(Debug, Default)]
pub(super) struct Circuits(BTreeMap<String, Circuit>);

#[derive(Debug, Default)]
struct Circuit {
    /// When a try was last answered.
    answered: Option<Duration>,
    /// Images of which a try failed at once since then, and when.
    failing: BTreeMap<ImageName, Duration>,
    open: Option<Open>,
}

/// A circuit that is open.
#[derive(Debug)]
pub(super) struct Open {
    /// The last failure, and when it came; an earlier run of the agent may have seen it.
    pub(super) failure: Failure,
    at: Duration,
    written: Timestamp,
    /// What opened it, and when.
    opened: (FailureClass, Timestamp),
    failures: u32,
    /// When the next probe is due.
    pub(super) probe_at: Duration,
    /// From when a pod's image may serve as the probe.
    pods_from: Duration,
    /// What was not asked for, or in vain.
    pub(super) fell_back: BTreeSet<ImageName>,
}

/// An answer of a registry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    /// When the try began.
    pub(super) began: Duration,
    /// It was 401, 403 or 404, or what nothing can start from.
    pub(super) is_refusal: bool,
}

impl Open {
    fn new(now: Now, failure: &Failure) -> Self {
        Self {
            failure: failure.clone(),
            at: now.up,
            written: now.wall,
            opened: (failure.class, now.wall),
            failures: 0,
            probe_at: now.up,
            pods_from: now.up,
            fell_back: BTreeSet::new(),
        }
    }

    /// What a pod is told for which the registry is not asked. It may be another tenant's image that has failed.
    pub(super) fn not_asked(&self, now: Now) -> Failure {
        let ago = self.failed_ago(now);
        let words = format!("the registry was not asked, because it failed {ago} ago");
        Failure::new(self.failure.class, words)
    }

    /// What a pod is told that does not wait for its probe any longer.
    pub(super) fn not_yet_answered(&self, now: Now) -> Failure {
        let ago = self.failed_ago(now);
        let words = format!("the registry, which failed {ago} ago, has not answered yet");
        Failure::new(self.failure.class, words)
    }

    /// What opened it, and when.
    pub(super) fn opened(&self) -> (FailureClass, Timestamp) {
        self.opened
    }

    /// When it last failed.
    pub(super) fn failed_at(&self) -> Timestamp {
        self.written
    }

    fn failed_ago(&self, now: Now) -> String {
        text::short_duration(age(now.wall, self.written))
    }

    /// A try that began at `began` has failed. Those of one burst fail together, and count once.
    /// Nor does another failure shorten the pause after a 429.
    fn failed(&mut self, now: Now, began: Duration, failure: &Failure, who: (&str, &str)) {
        let is_limited = self.failure.class == FailureClass::RateLimited;
        let is_in_pause = is_limited && !self.takes_probes_of_pods(now);
        let is_milder = is_in_pause && failure.class != FailureClass::RateLimited;
        if self.failures > 0 && (began <= self.at || is_milder) {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        self.at = now.up;
        self.written = now.wall;
        self.probe_at = now.up + PROBE.pause(self.failures, who);
        self.pods_from = now.up + JUST_FAILED;
        if failure.class == FailureClass::RateLimited {
            if let Some(pause) = retry_after(&failure.message) {
                // On top of a probe's usual pause: other nodes were told the same, and it may be next to nothing.
                self.probe_at += pause;
                self.pods_from = now.up + pause;
            } else {
                self.probe_at = now.up + AFTER_429.pause(self.failures, who);
                self.pods_from = self.probe_at;
            }
        }
        self.failure = failure.clone();
    }

    pub(super) fn takes_probes_of_pods(&self, now: Now) -> bool {
        self.pods_from <= now.up
    }

    /// Whether an answer ends it. A try that had begun before the registry refused others may go on all the time, and
    /// a registry that rations may refuse what it need not look up.
    pub(super) fn ends_with(&self, heard: Heard) -> bool {
        match self.failure.class {
            FailureClass::RateLimited if heard.is_refusal => heard.began >= self.pods_from,
            FailureClass::RateLimited | FailureClass::ServerError => heard.began > self.at,
            _ => true,
        }
    }
}

impl Circuits {
    /// A try has failed with this, or has brought nothing so far; it took so long, maybe longer than the agent runs.
    pub(super) fn failed(
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
                if circuit.open.is_none() && !circuit.fails_in_a_row(now, name) {
                    return;
                }
            }
            FailureClass::NotFound
            | FailureClass::Unauthorized
            | FailureClass::Invalid
            | FailureClass::Blocked
            | FailureClass::Local
            | FailureClass::Unknown => return,
        }
        let failing = std::mem::take(&mut circuit.failing);
        let open = circuit.open.get_or_insert_with(|| Open::new(now, failure));
        open.failed(now, began, failure, (registry, node));
        open.fell_back.insert(name.clone());
        open.fell_back.extend(failing.into_keys());
    }

    /// A try was answered. What is to be tried again, if that closes the circuit.
    pub(super) fn answered(
        &mut self,
        now: Now,
        name: &ImageName,
        heard: Heard,
    ) -> BTreeSet<ImageName> {
        let circuit = self.0.entry(name.registry().to_owned()).or_default();
        circuit.answered = Some(now.up);
        circuit.failing.retain(|_, at| *at > heard.began);
        let open = circuit.open.take_if(|open| open.ends_with(heard));
        open.map(|open| open.fell_back).unwrap_or_default()
    }

    /// Takes back what is known of a registry.
    pub(super) fn forget(&mut self, registry: &str) {
        self.0.remove(registry);
    }

    /// The circuit of this image's registry, if it is open.
    pub(super) fn of(&self, name: &ImageName) -> Option<&Open> {
        self.at(name.registry())
    }

    /// That of this registry.
    pub(super) fn at(&self, registry: &str) -> Option<&Open> {
        self.0.get(registry)?.open.as_ref()
    }

    pub(super) fn of_mut(&mut self, registry: &str) -> Option<&mut Open> {
        self.0.get_mut(registry)?.open.as_mut()
    }

    /// Those that are open.
    pub(super) fn open(&self) -> impl Iterator<Item = (&String, &Open)> {
        let circuits = self.0.iter();
        circuits.filter_map(|(registry, circuit)| Some((registry, circuit.open.as_ref()?)))
    }

    /// Forgets all other images, and registries of which no image is known any more.
    pub(super) fn retain(
        &mut self,
        is_kept: impl Fn(&ImageName) -> bool,
        registries: &BTreeSet<&str>,
    ) {
        self.0.retain(|registry, circuit| {
            circuit.failing.retain(|name, _| is_kept(name));
            if let Some(open) = &mut circuit.open {
                open.fell_back.retain(&is_kept);
            }
            registries.contains(registry.as_str())
        });
    }
}

impl Circuit {
    /// A try of this image has failed at once. Whether that goes for two repositories.
    fn fails_in_a_row(&mut self, now: Now, name: &ImageName) -> bool {
        self.failing.retain(|_, at| now.up <= *at + IN_A_ROW);
        self.failing.insert(name.clone(), now.up);
        let mut others = self.failing.keys();
        others.any(|other| other.repository() != name.repository())
    }
}

/// When a registry wants to be asked again, if its message says so: `retry-after: 1m3.5s` (GitHub's), or in seconds.
/// The message quotes the address as well, which anybody can choose: a colon ends neither a tag nor a repository.
fn retry_after(message: &str) -> Option<Duration> {
    let message = message.to_ascii_lowercase();
    let (before, rest) = message.split_once("retry-after:")?;
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '/' | '-' | '.' | '_');
    if before.ends_with(is_word) {
        return None;
    }
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != 'µ');
    let written = &rest[..end.unwrap_or(rest.len())];
    let pause = match written.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => written.parse::<SignedDuration>().ok()?.try_into().ok()?,
    };
    Some(pause.clamp(JUST_FAILED, RETRY_AFTER_MAX))
}
