//! The series about pods: what they wait for, and what they start from.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry, Result};
use trylatest_core::keys;
use trylatest_core::node::NodeImage;
use trylatest_core::outcome::Outcome;
use trylatest_core::plan::{Answer, Figures};
use trylatest_core::pod::{OtherPolicy, Overruled};
use trylatest_core::release::{ContainerRelease, Release};
use trylatest_core::time::Now;

use super::make::{counter, counters, gauge, histogram, value};

/// Seconds. The agent's own part is some 40 ms, a try's deadline 30 s unless somebody sets more.
const HOLD_BUCKETS: [f64; 14] = [
    0.02, 0.04, 0.06, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];

const ANSWERS: [&str; 3] = ["open", "refuse", "none"];

/// The gate, and the containers of its pod.
const CONTAINER_KINDS: [&str; 2] = ["gate", "own"];

pub(in crate::agent) struct PodSeries {
    pods: IntGauge,
    waiting: IntGauge,
    oldest_waiting: IntGauge,
    hold_seconds: Histogram,
    releases: IntCounterVec,
    behind: IntGauge,
    other_digests: IntCounter,
    unanswered: IntCounter,
    unseen: IntCounterVec,
    overruled: IntCounterVec,
}

impl PodSeries {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let gauge = |name, help| gauge(registry, name, help);
        let counter = |name, help| counter(registry, name, help);
        let counters = |name, help, labels: &[&str]| counters(registry, name, help, labels);
        let series = Self {
            pods: gauge(
                "trylatest_pods",
                "TryLatest pods of this node that have not ended, with and without a gate.",
            )?,
            waiting: gauge(
                "trylatest_waiting_pods",
                "Of these, pods whose release is not written yet.",
            )?,
            oldest_waiting: gauge(
                "trylatest_oldest_waiting_pod_age_seconds",
                "How long the pod that has waited longest for its release has waited since this agent first saw it \
                 wait; 0 if none waits.",
            )?,
            hold_seconds: histogram(
                registry,
                "trylatest_hold_duration_seconds",
                "How long pods waited for the agent: from a pod seen to its release written.",
                &HOLD_BUCKETS,
            )?,
            releases: counters(
                "trylatest_container_releases_total",
                "Containers that were released, or that started without a gate, by outcome. What has become of one \
                 later counts as well.",
                &["outcome"],
            )?,
            behind: gauge(
                "trylatest_pods_behind",
                "Pods without a gate (trylatest.dev/hold) whose tag has moved since they started.",
            )?,
            other_digests: counter(
                "trylatest_other_digests_total",
                "Containers that run a different digest from their rollout's on this node, although the pod sets \
                 same-digest.",
            )?,
            unanswered: counter(
                "trylatest_gates_unanswered_total",
                "Gates on this node that opened by themselves because no agent answered.",
            )?,
            unseen: counters(
                "trylatest_gates_unseen_total",
                "Gates on this node that opened by themselves because no sign of the agent reached them, by what it \
                 had answered.",
                &["answer"],
            )?,
            overruled: counters(
                "trylatest_overruled_containers_total",
                "Gates and TryLatest containers whose pull policy another admission policy has changed.",
                &["container", "policy"],
            )?,
        };
        series.make_expected();
        Ok(series)
    }

    fn make_expected(&self) {
        for outcome in Outcome::ALL {
            self.releases.with_label_values(&[outcome.as_str()]);
        }
        for answer in ANSWERS {
            self.unseen.with_label_values(&[answer]);
        }
        for policy in OtherPolicy::ALL {
            for kind in CONTAINER_KINDS {
                self.overruled.with_label_values(&[kind, policy.as_str()]);
            }
        }
    }

    pub(super) fn show(&self, figures: &Figures, now: Now) {
        self.pods.set(value(figures.pods));
        self.waiting.set(value(figures.waiting.count));
        let age = figures.waiting.age(now).as_secs();
        self.oldest_waiting.set(value(age));
    }

    pub(super) fn released(&self, outcome: Outcome) {
        self.releases.with_label_values(&[outcome.as_str()]).inc();
    }

    pub(super) fn held(&self, time: Duration) {
        self.hold_seconds.observe(time.as_secs_f64());
    }

    pub(super) fn set_behind(&self, images: &[NodeImage]) {
        let behind = images.iter().map(|image| image.pods_behind).sum::<usize>();
        self.behind.set(value(behind));
    }

    /// Counts the containers that are not to run what they run, where that is news.
    pub(super) fn was_other(&self, release: &Release, before: Option<&Release>) {
        let was = |name: &String| before.and_then(|before| before.containers.get(name));
        let others = release.containers.iter().filter(|(name, container)| {
            container.is_other() && !was(name).is_some_and(ContainerRelease::is_other)
        });
        self.other_digests
            .inc_by(others.count().try_into().unwrap_or(u64::MAX));
    }

    pub(in crate::agent) fn was_unanswered(&self) {
        self.unanswered.inc();
    }

    pub(in crate::agent) fn was_unseen(&self, answer: &Answer) {
        self.unseen.with_label_values(&[answered(answer)]).inc();
    }

    pub(in crate::agent) fn was_overruled(&self, overruled: &[Overruled]) {
        let [gate, own] = CONTAINER_KINDS;
        for container in overruled {
            let is_gate = container.name == keys::GATE;
            let kind = if is_gate { gate } else { own };
            self.overruled
                .with_label_values(&[kind, container.policy.as_str()])
                .inc();
        }
    }
}

fn answered(answer: &Answer) -> &'static str {
    let [open, refuse, none] = ANSWERS;
    match answer {
        Answer::AtWork => none,
        Answer::Released(release) if release.refused() => refuse,
        Answer::Released(_) => open,
    }
}
