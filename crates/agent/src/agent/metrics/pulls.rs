//! The series about pulls: the agent's, and those that it hands over to the kubelet.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, Result,
};
use trylatest_containerd::PullEnd;
use trylatest_core::plan::Figures;
use trylatest_core::record::Try;
use trylatest_core::time::Now;

use super::make::{counter, counters, gauge, gauges, histogram, histograms, value};
use super::registries::{end_of, ends};

/// Seconds. An unchanged tag takes some 20 ms, a big image minutes; what hangs may take longer.
const PULL_BUCKETS: [f64; 14] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 300.0, 1200.0,
];

/// Seconds. The kubelet notices the open gate within a second.
const AWAY_BUCKETS: [f64; 10] = [0.25, 0.5, 1.0, 1.5, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0];

const STATES: [&str; 2] = ["moving", "stalled"];

pub(in crate::agent) struct PullSeries {
    pub(super) seconds: HistogramVec,
    running: IntGaugeVec,
    received: IntGauge,
    expected: IntGauge,
}

impl PullSeries {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let gauge = |name, help| gauge(registry, name, help);
        let series = Self {
            seconds: histograms(
                registry,
                "trylatest_pull_duration_seconds",
                "How long containerd took for a pull of the agent.",
                &PULL_BUCKETS,
                &["result"],
            )?,
            running: gauges(
                registry,
                "trylatest_running_pulls",
                "Pulls of the agent that run now, by whether anything has moved within the stall deadline.",
                &["state"],
            )?,
            received: gauge(
                "trylatest_running_pulls_received_bytes",
                "Bytes of these images that are here.",
            )?,
            expected: gauge(
                "trylatest_running_pulls_expected_bytes",
                "Bytes that these images will have, as far as that is known yet.",
            )?,
        };
        for end in [PullEnd::Success, PullEnd::Failed, PullEnd::Cut] {
            series.seconds.with_label_values(&[word(end)]);
        }
        for state in STATES {
            series.running.with_label_values(&[state]);
        }
        Ok(series)
    }

    pub(super) fn show(&self, figures: &Figures) {
        let pulls = figures.pulls;
        for (state, count) in STATES.into_iter().zip([pulls.moving, pulls.stalled]) {
            self.running.with_label_values(&[state]).set(value(count));
        }
        self.received.set(value(pulls.received_bytes));
        self.expected.set(value(pulls.expected_bytes));
    }
}

pub(super) fn word(end: PullEnd) -> &'static str {
    match end {
        PullEnd::Success => "success",
        PullEnd::Failed => "failed",
        PullEnd::Cut => "cut",
    }
}

/// The series about hand-overs to the kubelet.
pub(in crate::agent) struct HandoverSeries {
    ended: IntCounterVec,
    away_seconds: Histogram,
    away: IntGauge,
    oldest_away: IntGauge,
    given_back: IntCounter,
}

impl HandoverSeries {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let series = Self {
            ended: counters(
                registry,
                "trylatest_handovers_total",
                "Hand-overs to the kubelet that have ended, by result and failure class (none if it did not fail). \
                 Those that nobody needed any more are not counted.",
                &["result", "class"],
            )?,
            away_seconds: histogram(
                registry,
                "trylatest_name_away_seconds",
                "From when an image's name was taken away for the kubelet to pull until it was there again, once per \
                 hand-over of an image with a copy on the node.",
                &AWAY_BUCKETS,
            )?,
            away: gauge(
                registry,
                "trylatest_names_away",
                "Names of images that are away now, with a copy kept aside.",
            )?,
            oldest_away: gauge(
                registry,
                "trylatest_oldest_name_away_age_seconds",
                "How long the name that has been away longest has been away; 0 if none is.",
            )?,
            given_back: counter(
                registry,
                "trylatest_names_given_back_total",
                "Names given back to the cached copy because the kubelet's pull failed, made no progress or was no \
                 longer needed, or the agent stopped.",
            )?,
        };
        for end in ends() {
            series.ended.with_label_values(&end);
        }
        Ok(series)
    }

    pub(super) fn show(&self, figures: &Figures, now: Now) {
        self.away.set(value(figures.away.count));
        let age = figures.away.age(now).as_secs();
        self.oldest_away.set(value(age));
    }

    pub(super) fn ended(&self, tried: &Try) {
        self.ended.with_label_values(&end_of(tried)).inc();
    }

    /// A name that was taken away is there again after this time; or was given back to its copy.
    pub(in crate::agent) fn was_away(&self, time: Duration, given_back: bool) {
        self.away_seconds.observe(time.as_secs_f64());
        if given_back {
            self.given_back.inc();
        }
    }
}
