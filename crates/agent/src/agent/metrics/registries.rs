//! The series by registry. Whoever may create pods chooses the registries' names, so there is room for a few of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec, Registry, Result};
use trylatest_core::image::ImageName;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::record::{Try, TryResult};
use trylatest_core::release::ContainerRelease;

use super::make::{counters, gauges, histograms, value};

/// Registries that have a label of their own.
const NAMES_MAX: usize = 16;

/// The label of all others.
const OTHER: &str = "other";

/// The class of what did not fail.
const NONE: &str = "none";

/// Seconds. An unchanged tag takes some 20 ms, a big image minutes; what hangs may take longer.
const TRY_BUCKETS: [f64; 14] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 300.0, 1200.0,
];

pub(in crate::agent) struct RegistrySeries {
    names: Mutex<BTreeSet<String>>,
    tries: IntCounterVec,
    try_seconds: HistogramVec,
    fallbacks: IntCounterVec,
    open_circuits: IntGaugeVec,
    openings: IntCounterVec,
}

impl RegistrySeries {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let counters = |name, help, labels: &[&str]| counters(registry, name, help, labels);
        let series = Self {
            names: Mutex::default(),
            tries: counters(
                "trylatest_tries_total",
                "Tries of the agent that ended, by registry, result and failure class (none if it did not fail).",
                &["registry", "result", "class"],
            )?,
            try_seconds: histograms(
                registry,
                "trylatest_try_duration_seconds",
                "How long these tries took, with the proofs of the copy before and after the pull.",
                &TRY_BUCKETS,
                &["result"],
            )?,
            fallbacks: counters(
                "trylatest_fallbacks_total",
                "Of these, containers that start from the node's copy because the pull failed, by registry and by why \
                 it failed.",
                &["registry", "class"],
            )?,
            open_circuits: gauges(
                registry,
                "trylatest_open_circuits",
                "Registries that have just failed, and are asked only by probes and by pods that may not use a copy.",
                &["registry"],
            )?,
            openings: counters(
                "trylatest_circuit_openings_total",
                "How often a registry's circuit has opened, by the failure that opened it.",
                &["registry", "class"],
            )?,
        };
        for result in TryResult::WORDS {
            series.try_seconds.with_label_values(&[result]);
        }
        series.make_expected(OTHER);
        Ok(series)
    }

    fn make_expected(&self, registry: &str) {
        for [result, class] in ends() {
            self.tries.with_label_values(&[registry, result, class]);
        }
        for class in FailureClass::ALL.map(FailureClass::as_str) {
            self.fallbacks.with_label_values(&[registry, class]);
        }
        for class in outages() {
            self.openings.with_label_values(&[registry, class]);
        }
        self.open_circuits.with_label_values(&[registry]);
    }

    /// None of these is an error: what is not there need not be removed.
    fn remove(&self, registry: &str) {
        for [result, class] in ends() {
            let _ = self.tries.remove_label_values(&[registry, result, class]);
        }
        for class in FailureClass::ALL.map(FailureClass::as_str) {
            let _ = self.fallbacks.remove_label_values(&[registry, class]);
        }
        for class in outages() {
            let _ = self.openings.remove_label_values(&[registry, class]);
        }
        let _ = self.open_circuits.remove_label_values(&[registry]);
    }

    /// A registry that the agent knows: it has a label of its own from now on, if there is room.
    pub(in crate::agent) fn know(&self, registry: &str) {
        let mut names = self.names();
        if names.len() < NAMES_MAX && registry != OTHER && names.insert(registry.to_owned()) {
            self.make_expected(registry);
        }
    }

    /// These are the registries that the agent knows; the series of others go.
    pub(in crate::agent) fn retain(&self, registries: &[&str]) {
        let is_known = |name: &String| registries.contains(&name.as_str());
        let mut names = self.names();
        let gone: Vec<String> = names.iter().filter(|n| !is_known(n)).cloned().collect();
        for name in gone {
            names.remove(&name);
            self.remove(&name);
        }
        drop(names);
        for registry in registries {
            self.know(registry);
        }
    }

    pub(super) fn tried(&self, tried: &Try) {
        let [result, class] = end_of(tried);
        let registry = tried.image.registry();
        self.know(registry);
        self.tries
            .with_label_values(&[&*self.label(registry), result, class])
            .inc();
        self.try_seconds
            .with_label_values(&[result])
            .observe(tried.duration.as_secs_f64());
    }

    pub(super) fn fell_back(&self, container: &ContainerRelease) {
        let image = container.image.parse::<ImageName>();
        let registry = image.as_ref().map_or(OTHER, ImageName::registry);
        let class = container.class();
        let class = class.unwrap_or(FailureClass::Unknown).as_str();
        self.fallbacks
            .with_label_values(&[&*self.label(registry), class])
            .inc();
    }

    pub(in crate::agent) fn circuit_opened(&self, registry: &str, failure: &Failure) {
        self.know(registry);
        self.openings
            .with_label_values(&[&*self.label(registry), failure.class.as_str()])
            .inc();
    }

    pub(in crate::agent) fn set_open_circuits<'a>(&self, open: impl Iterator<Item = &'a String>) {
        let names = self.names().clone();
        let names = names.iter().map(String::as_str).chain([OTHER]);
        let mut counts: BTreeMap<String, usize> = names.map(|n| (n.to_owned(), 0)).collect();
        for registry in open {
            *counts.entry(self.label(registry)).or_default() += 1;
        }
        for (registry, count) in counts {
            self.open_circuits
                .with_label_values(&[&registry])
                .set(value(count));
        }
    }

    fn label(&self, registry: &str) -> String {
        let is_known = self.names().contains(registry);
        if is_known { registry } else { OTHER }.to_owned()
    }

    fn names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every way in which a try, or a pull of the kubelet, can end: its result, and its class.
pub(super) fn ends() -> impl Iterator<Item = [&'static str; 2]> {
    let [fresh, unchanged, failed] = TryResult::WORDS;
    let failures = FailureClass::ALL.map(|class| [failed, class.as_str()]);
    [[fresh, NONE], [unchanged, NONE]]
        .into_iter()
        .chain(failures)
}

/// How this one has ended.
pub(super) fn end_of(tried: &Try) -> [&'static str; 2] {
    let failure = tried.result.failure();
    let class = failure.map_or(NONE, |failure| failure.class.as_str());
    [tried.result.as_str(), class]
}

fn outages() -> impl Iterator<Item = &'static str> {
    let classes = FailureClass::ALL.into_iter();
    classes
        .filter(|class| class.is_outage())
        .map(FailureClass::as_str)
}
