//! All metrics. Labels are words from fixed lists, never names.

mod kept;

use std::time::Duration;

use jiff::Timestamp;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use trylatest_containerd::{CallObserver, RuntimeError};
use trylatest_core::gate_image::Help;
use trylatest_core::keys;
use trylatest_core::node::NodeImage;
use trylatest_core::outcome::{FailureClass, Outcome};
use trylatest_core::plan::Answer;
use trylatest_core::pod::{OtherPolicy, Overruled};
use trylatest_core::record::{Try, TryResult};
use trylatest_core::release::{ContainerRelease, Release};
use trylatest_k8s::Operation;

use self::kept::KeptSeries;

/// Seconds. An unchanged tag takes some 20 ms, a big image minutes; what hangs is cut off after five.
const TRY_BUCKETS: [f64; 13] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 300.0,
];

/// Seconds from the pod seen to its release sent.
const RELEASE_BUCKETS: [f64; 13] = [
    0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// Seconds. The kubelet notices the open gate within a second.
const AWAY_BUCKETS: [f64; 10] = [0.25, 0.5, 1.0, 1.5, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0];

/// Every series of the agent. The expected ones exist from the start, so that a rate sees the first
/// event.
pub struct Metrics {
    registry: Registry,
    tries: IntCounterVec,
    try_seconds: HistogramVec,
    releases: IntCounterVec,
    other_digests: IntCounter,
    release_seconds: Histogram,
    api_calls: IntCounterVec,
    runtime_calls: IntCounterVec,
    index_failures: IntCounter,
    index_open: IntGauge,
    config: ConfigSeries,
    gate_image: GateImageSeries,
    handover: HandoverSeries,
    pub(super) kept: KeptSeries,
    open_circuits: IntGauge,
    pods_behind: IntGauge,
    watch_failures: IntCounter,
    unanswered: IntCounter,
    unseen: IntCounterVec,
    overruled: IntCounterVec,
    overflows: IntCounterVec,
}

impl Metrics {
    /// Makes and registers all series.
    ///
    /// # Errors
    /// Two series have the same name: a defect in this module, which its test would show.
    pub fn new(version: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name, help| new_counter(&registry, name, help);
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help)?);
        let counters = |name, help, labels: &[&str]| new_counters(&registry, name, help, labels);
        register_build_info(&registry, version)?;
        let metrics = Self {
            tries: counters(
                "trylatest_tries_total",
                "Tries that ended, by result and failure class (none without a failure).",
                &["result", "class"],
            )?,
            try_seconds: register_try_seconds(&registry)?,
            releases: counters(
                "trylatest_container_releases_total",
                "Containers that were released, or that started without a gate, by outcome.",
                &["outcome"],
            )?,
            other_digests: counter(
                "trylatest_other_digests_total",
                "Containers that run a different digest from their rollout's on this node, although the pod sets same-digest.",
            )?,
            release_seconds: register_release_seconds(&registry)?,
            api_calls: counters(
                "trylatest_api_calls_total",
                "Calls to the API server, by operation and result.",
                &["operation", "result"],
            )?,
            runtime_calls: counters(
                "trylatest_runtime_calls_total",
                "Calls to containerd other than pulls, by result.",
                &["result"],
            )?,
            index_failures: counter(
                "trylatest_index_failures_total",
                "Writes to the index that failed or were left out.",
            )?,
            index_open: gauge(
                "trylatest_index_open",
                "1 if the agent keeps a history, 0 if it runs without.",
            )?,
            config: ConfigSeries::new(&registry)?,
            gate_image: GateImageSeries::new(&registry)?,
            handover: HandoverSeries::new(&registry)?,
            kept: KeptSeries::new(&registry)?,
            open_circuits: gauge(
                "trylatest_open_circuits",
                "Registries that have just failed, and are asked only by probes and by pods that may not use a copy.",
            )?,
            pods_behind: gauge(
                "trylatest_pods_behind",
                "Pods without a gate (trylatest.dev/hold) whose tag has moved since they started.",
            )?,
            watch_failures: counter(
                "trylatest_watch_failures_total",
                "How often the watch of pods was interrupted.",
            )?,
            unanswered: counter(
                "trylatest_gates_unanswered_total",
                "Gates on this node that opened by themselves because no agent answered.",
            )?,
            unseen: counters(
                "trylatest_gates_unseen_total",
                "Gates on this node that opened by themselves because no sign of the agent reached \
                 them, by what it had answered.",
                &["answer"],
            )?,
            overruled: counters(
                "trylatest_overruled_containers_total",
                "Gates and TryLatest containers whose pull policy another admission policy has changed.",
                &["container", "policy"],
            )?,
            overflows: counters(
                "trylatest_overflows_total",
                "Messages dropped because a channel between two tasks was full, by channel.",
                &["channel"],
            )?,
            registry,
        };
        metrics.make_expected_series();
        Ok(metrics)
    }

    fn make_expected_series(&self) {
        for outcome in Outcome::ALL {
            self.releases.with_label_values(&[outcome.as_str()]);
        }
        for result in TryResult::WORDS {
            self.try_seconds.with_label_values(&[result]);
        }
        make_every_end(&self.tries);
        for answer in ANSWERS {
            self.unseen.with_label_values(&[answer]);
        }
        for policy in OtherPolicy::ALL {
            for kind in CONTAINER_KINDS {
                self.overruled.with_label_values(&[kind, policy.as_str()]);
            }
        }
        for channel in Channel::ALL {
            self.overflows.with_label_values(&[channel.as_str()]);
        }
        for result in RUNTIME_RESULTS {
            self.runtime_calls.with_label_values(&[result]);
        }
        for operation in Operation::ALL {
            for result in CallResult::ALL {
                self.api_calls
                    .with_label_values(&[operation.as_str(), result.as_str()]);
            }
        }
    }

    pub(super) fn tried(&self, record: &Try) {
        let result = record.result.as_str();
        let failure = record.result.failure();
        let class = failure.map_or("none", |failure| failure.class.as_str());
        if record.pulled_for.is_some() {
            return self
                .handover
                .ended
                .with_label_values(&[result, class])
                .inc();
        }
        self.tries.with_label_values(&[result, class]).inc();
        self.try_seconds
            .with_label_values(&[result])
            .observe(record.duration.as_secs_f64());
    }

    pub(super) fn released(&self, release: &Release, after: Duration) {
        self.was_other(release, None);
        for container in release.containers.values() {
            self.releases
                .with_label_values(&[container.outcome.as_str()])
                .inc();
        }
        self.release_seconds.observe(after.as_secs_f64());
    }

    /// Counts containers that have started without a gate, once for each copy that they have started from: those of
    /// `before` are counted.
    pub(super) fn not_held(&self, told: &Release, before: Option<&Release>) {
        let started = |release: &Release, name: &str| {
            let container = release.containers.get(name)?;
            (container.outcome == Outcome::NotHeld).then(|| container.digest.clone())
        };
        for name in told.containers.keys() {
            let now = started(told, name);
            if now.is_some() && now != before.and_then(|before| started(before, name)) {
                let outcome = Outcome::NotHeld.as_str();
                self.releases.with_label_values(&[outcome]).inc();
            }
        }
    }

    pub(super) fn set_pods_behind(&self, images: &[NodeImage]) {
        let behind = images.iter().map(|image| image.pods_behind).sum::<usize>();
        self.pods_behind
            .set(i64::try_from(behind).unwrap_or(i64::MAX));
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

    pub(super) fn called(&self, operation: Operation, result: CallResult) {
        self.api_calls
            .with_label_values(&[operation.as_str(), result.as_str()])
            .inc();
    }

    /// Counts containerd's answers.
    pub(super) fn of_runtime_calls(&self) -> CallObserver {
        let calls = self.runtime_calls.clone();
        CallObserver::new(move |error| calls.with_label_values(&[runtime_result(error)]).inc())
    }

    pub(super) fn set_open_circuits(&self, count: usize) {
        self.open_circuits
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn was_unanswered(&self) {
        self.unanswered.inc();
    }

    pub(super) fn was_unseen(&self, answer: &Answer) {
        self.unseen.with_label_values(&[answered(answer)]).inc();
    }

    pub(super) fn was_overruled(&self, overruled: &[Overruled]) {
        let [gate, own] = CONTAINER_KINDS;
        for container in overruled {
            let kind = if container.name == keys::GATE {
                gate
            } else {
                own
            };
            self.overruled
                .with_label_values(&[kind, container.policy.as_str()])
                .inc();
        }
    }

    /// Counts what this channel drops.
    pub(super) fn overflows(&self, channel: Channel) -> IntCounter {
        self.overflows.with_label_values(&[channel.as_str()])
    }

    pub(super) fn index_failed(&self) {
        self.index_failures.inc();
    }

    pub(super) fn set_index_open(&self, open: bool) {
        self.index_open.set(open.into());
    }

    /// Whether the configuration file is valid, and since when it applies if it has been read anew; never, if a valid
    /// one is not there.
    pub(super) fn set_config(&self, valid: bool, loaded: Option<Timestamp>) {
        self.config.valid.set(valid.into());
        if valid {
            let seconds = loaded.map_or(0, Timestamp::as_second);
            self.config.loaded.set(seconds);
        }
    }

    pub(super) fn gate_image_was_restored(&self) {
        self.gate_image.restored.inc();
    }

    pub(super) fn gate_wanted_image(&self, help: Help) {
        self.gate_image
            .wanted
            .with_label_values(&[help.as_str()])
            .inc();
    }

    pub(super) fn watch_failed(&self) {
        self.watch_failures.inc();
    }

    /// A name that was taken away is there again after this time; or was given back to its copy.
    pub(super) fn was_away(&self, time: Duration, given_back: bool) {
        self.handover.away.observe(time.as_secs_f64());
        if given_back {
            self.handover.given_back.inc();
        }
    }

    /// Everything, in Prometheus' text format.
    ///
    /// # Errors
    /// A series cannot be written, which does not happen with ours.
    pub fn text(&self) -> prometheus::Result<String> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// A series for every way in which a try, or a pull of the kubelet, can end.
fn make_every_end(ends: &IntCounterVec) {
    let [fresh, unchanged, failed] = TryResult::WORDS;
    for result in [fresh, unchanged] {
        ends.with_label_values(&[result, "none"]);
    }
    for class in FailureClass::ALL {
        ends.with_label_values(&[failed, class.as_str()]);
    }
}

/// The series about the configuration file.
struct ConfigSeries {
    valid: IntGauge,
    loaded: IntGauge,
}

impl ConfigSeries {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let valid = IntGauge::new(
            "trylatest_config_valid",
            "0 if the configuration file is refused and the rules before it still apply, otherwise 1, also without a \
             file.",
        )?;
        let loaded = IntGauge::new(
            "trylatest_config_loaded_timestamp_seconds",
            "When the configuration that applies was read, in seconds since 1970; 0 without one.",
        )?;
        Ok(Self {
            valid: register(registry, valid)?,
            loaded: register(registry, loaded)?,
        })
    }
}

/// The series about the gate's image.
struct GateImageSeries {
    restored: IntCounter,
    wanted: IntCounterVec,
}

impl GateImageSeries {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let restored = IntCounter::new(
            "trylatest_gate_image_restored_total",
            "How often the gate's image or one of its names had to be made again.",
        )?;
        let wanted = Opts::new(
            "trylatest_gate_image_wanted_total",
            "Pods whose gate image the kubelet could not get, by what the agent did about it.",
        );
        let wanted = register(registry, IntCounterVec::new(wanted, &["result"])?)?;
        for help in Help::ALL {
            wanted.with_label_values(&[help.as_str()]);
        }
        Ok(Self {
            restored: register(registry, restored)?,
            wanted,
        })
    }
}

/// The series about hand-overs to the kubelet.
struct HandoverSeries {
    ended: IntCounterVec,
    away: Histogram,
    given_back: IntCounter,
}

impl HandoverSeries {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let ended = Opts::new(
            "trylatest_handovers_total",
            "Hand-overs to the kubelet that have ended, by result and failure class (none if it did not \
             fail). Those that nobody needed any more are not counted.",
        );
        let ended = register(registry, IntCounterVec::new(ended, &["result", "class"])?)?;
        make_every_end(&ended);
        let away = HistogramOpts::new(
            "trylatest_name_away_seconds",
            "From when an image's name was taken away for the kubelet to pull until it was there again, once per \
             hand-over of an image with a copy on the node.",
        );
        let away = Histogram::with_opts(away.buckets(AWAY_BUCKETS.to_vec()))?;
        let given_back = IntCounter::new(
            "trylatest_names_given_back_total",
            "Names given back to the cached copy because the kubelet's pull failed, made no progress or was no \
             longer needed, or the agent stopped.",
        )?;
        Ok(Self {
            ended,
            away: register(registry, away)?,
            given_back: register(registry, given_back)?,
        })
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum CallResult {
    Success,
    Gone,
    Timeout,
    Error,
}

impl CallResult {
    const ALL: [Self; 4] = [Self::Success, Self::Gone, Self::Timeout, Self::Error];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Gone => "gone",
            Self::Timeout => "timeout",
            Self::Error => "error",
        }
    }
}

/// A channel between two tasks whose sender does not wait.
#[derive(Clone, Copy, Debug)]
pub(super) enum Channel {
    /// Gates that have not started.
    Gates,
    /// What running pulls have received.
    Moved,
}

impl Channel {
    const ALL: [Self; 2] = [Self::Gates, Self::Moved];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Gates => "gates",
            Self::Moved => "moved",
        }
    }
}

const ANSWERS: [&str; 3] = ["open", "refuse", "none"];

fn answered(answer: &Answer) -> &'static str {
    match answer {
        Answer::AtWork => "none",
        Answer::Released(release) if release.refused() => "refuse",
        Answer::Released(_) => "open",
    }
}

/// The gate, and the containers of its pod.
const CONTAINER_KINDS: [&str; 2] = ["gate", "own"];

const RUNTIME_RESULTS: [&str; 4] = ["success", "timeout", "unreachable", "error"];

fn runtime_result(error: Option<&RuntimeError>) -> &'static str {
    match error {
        None => "success",
        Some(RuntimeError::Timeout { .. }) => "timeout",
        Some(RuntimeError::Unreachable { .. }) => "unreachable",
        Some(_) => "error",
    }
}

fn new_counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    register(registry, IntCounter::new(name, help)?)
}

fn new_counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn register_try_seconds(registry: &Registry) -> prometheus::Result<HistogramVec> {
    let options = HistogramOpts::new("trylatest_try_duration_seconds", "How long tries took.");
    let options = options.buckets(TRY_BUCKETS.to_vec());
    register(registry, HistogramVec::new(options, &["result"])?)
}

fn register_release_seconds(registry: &Registry) -> prometheus::Result<Histogram> {
    let help = "From a pod seen to its release written.";
    let options = HistogramOpts::new("trylatest_release_seconds", help);
    let options = options.buckets(RELEASE_BUCKETS.to_vec());
    register(registry, Histogram::with_opts(options)?)
}

fn register_build_info(registry: &Registry, version: &str) -> prometheus::Result<()> {
    let help = "Always 1; the version is the label.";
    let build = IntGaugeVec::new(Opts::new("trylatest_build_info", help), &["version"])?;
    register(registry, build)?
        .with_label_values(&[version])
        .set(1);
    Ok(())
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_series_are_there_before_the_first_event() {
        let text = Metrics::new("1.2.3").unwrap().text().unwrap();
        for line in [
            "trylatest_build_info{version=\"1.2.3\"} 1",
            "trylatest_tries_total{class=\"network\",result=\"failed\"} 0",
            "trylatest_container_releases_total{outcome=\"refused\"} 0",
            "trylatest_api_calls_total{operation=\"release\",result=\"timeout\"} 0",
            "trylatest_runtime_calls_total{result=\"unreachable\"} 0",
            "trylatest_gates_unseen_total{answer=\"refuse\"} 0",
            "trylatest_overruled_containers_total{container=\"gate\",policy=\"Always\"} 0",
            "trylatest_overflows_total{channel=\"gates\"} 0",
            "trylatest_overflows_total{channel=\"moved\"} 0",
            "trylatest_gate_image_wanted_total{result=\"made\"} 0",
            "trylatest_kept_copies_let_go_total{reason=\"age\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_start_without_a_gate_counts_once() {
        let metrics = Metrics::new("1.2.3").unwrap();
        let told = |digest: &str, moved: Option<&str>| {
            let json = serde_json::json!({
                "time": "2026-01-01T12:00:00Z",
                "containers": {"app": {
                    "image": "a", "outcome": "not-held", "digest": digest, "moved": moved,
                }},
            });
            serde_json::from_value::<Release>(json).unwrap()
        };
        let (one, two) = ("sha256:1", "sha256:2");
        metrics.not_held(&told(one, None), None);
        metrics.not_held(&told(one, Some(two)), Some(&told(one, None)));
        metrics.not_held(&told(two, None), Some(&told(one, Some(two))));
        let text = metrics.text().unwrap();
        let line = "trylatest_container_releases_total{outcome=\"not-held\"} 2";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn a_container_that_is_not_as_its_rollout_counts_once() {
        let metrics = Metrics::new("1.2.3").unwrap();
        let release = |rollout: &str, runs: &str| {
            let digest = |n: &str| format!("sha256:{}", n.repeat(64));
            let runs = (!runs.is_empty()).then(|| digest(runs));
            let app = serde_json::json!({
                "image": "app", "outcome": "same", "digest": digest("1"), "rollout": digest(rollout), "runs": runs,
            });
            let release =
                serde_json::json!({"time": "2026-01-01T12:00:00Z", "containers": {"app": app}});
            serde_json::from_value::<Release>(release).unwrap()
        };
        let (same, moved, mixed) = (release("1", ""), release("1", "2"), release("2", "2"));
        let took = Duration::ZERO;
        for (count, released) in [(0, &same), (1, &mixed)] {
            metrics.released(released, took);
            assert_eq!(metrics.other_digests.get(), count);
        }
        for (count, release, before) in [(2, &moved, &same), (2, &mixed, &moved)] {
            metrics.was_other(release, Some(before));
            assert_eq!(metrics.other_digests.get(), count);
        }
    }
}
