//! The series about the agent itself: its calls, its files, the gate's image.

use jiff::Timestamp;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry, Result};
use trylatest_containerd::{CallObserver, RuntimeError};
use trylatest_core::gate_image::Help;
use trylatest_core::plan::Figures;
use trylatest_k8s::Operation;

use super::make::{counter, counters, gauge, gauges, value};

/// Calls to others, and messages between tasks.
pub(in crate::agent) struct CallSeries {
    api: IntCounterVec,
    runtime: IntCounterVec,
    watch_failures: IntCounter,
    overflows: IntCounterVec,
}

impl CallSeries {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let counters = |name, help, labels: &[&str]| counters(registry, name, help, labels);
        let series = Self {
            api: counters(
                "trylatest_api_calls_total",
                "Calls to the API server, by operation and result.",
                &["operation", "result"],
            )?,
            runtime: counters(
                "trylatest_runtime_calls_total",
                "Calls to containerd other than pulls, by result.",
                &["result"],
            )?,
            watch_failures: counter(
                registry,
                "trylatest_watch_failures_total",
                "How often the watch of pods was interrupted.",
            )?,
            overflows: counters(
                "trylatest_overflows_total",
                "Messages dropped because a channel between two tasks was full, by channel.",
                &["channel"],
            )?,
        };
        for channel in Channel::ALL {
            series.overflows.with_label_values(&[channel.as_str()]);
        }
        for result in RUNTIME_RESULTS {
            series.runtime.with_label_values(&[result]);
        }
        for operation in Operation::ALL {
            for result in CallResult::ALL {
                let labels = [operation.as_str(), result.as_str()];
                series.api.with_label_values(&labels);
            }
        }
        Ok(series)
    }

    pub(in crate::agent) fn called(&self, operation: Operation, result: CallResult) {
        let labels = [operation.as_str(), result.as_str()];
        self.api.with_label_values(&labels).inc();
    }

    /// Counts containerd's answers.
    pub(super) fn of_runtime(&self) -> CallObserver {
        let calls = self.runtime.clone();
        CallObserver::new(move |error| calls.with_label_values(&[runtime_result(error)]).inc())
    }

    pub(in crate::agent) fn watch_failed(&self) {
        self.watch_failures.inc();
    }

    /// Counts what this channel drops.
    pub(in crate::agent) fn overflows(&self, channel: Channel) -> IntCounter {
        self.overflows.with_label_values(&[channel.as_str()])
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug)]
pub(in crate::agent) enum CallResult {
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
pub(in crate::agent) enum Channel {
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

const RUNTIME_RESULTS: [&str; 4] = ["success", "timeout", "unreachable", "error"];

fn runtime_result(error: Option<&RuntimeError>) -> &'static str {
    let [success, timeout, unreachable, other] = RUNTIME_RESULTS;
    match error {
        None => success,
        Some(RuntimeError::Timeout { .. }) => timeout,
        Some(RuntimeError::Unreachable { .. }) => unreachable,
        Some(_) => other,
    }
}

/// What is remembered, in memory and on disk.
pub(in crate::agent) struct IndexSeries {
    open: IntGauge,
    images: IntGauge,
    bytes: IntGauge,
    failures: IntCounter,
}

impl IndexSeries {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let gauge = |name, help| gauge(registry, name, help);
        Ok(Self {
            open: gauge(
                "trylatest_index_open",
                "1 if the agent keeps a history, 0 if it runs without.",
            )?,
            images: gauge("trylatest_index_images", "Images that the agent remembers.")?,
            bytes: gauge(
                "trylatest_index_bytes",
                "Size of the index on disk after its last write; 0 without one.",
            )?,
            failures: counter(
                registry,
                "trylatest_index_failures_total",
                "Writes to the index that failed or were left out.",
            )?,
        })
    }

    pub(super) fn show(&self, figures: &Figures) {
        self.images.set(value(figures.images));
    }

    pub(in crate::agent) fn failed(&self) {
        self.failures.inc();
    }

    pub(in crate::agent) fn set_open(&self, open: bool) {
        self.open.set(open.into());
    }

    pub(in crate::agent) fn set_bytes(&self, bytes: u64) {
        self.bytes.set(value(bytes));
    }
}

/// The configuration file.
pub(in crate::agent) struct ConfigSeries {
    valid: IntGauge,
    loaded: IntGauge,
}

impl ConfigSeries {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        Ok(Self {
            valid: gauge(
                registry,
                "trylatest_config_valid",
                "0 if the configuration file is refused and the rules before it still apply, otherwise 1, also without \
                 a file.",
            )?,
            loaded: gauge(
                registry,
                "trylatest_config_loaded_timestamp_seconds",
                "When the configuration that applies was read, in seconds since 1970; 0 without one.",
            )?,
        })
    }

    /// Whether the file is valid, and since when it applies if it has been read again; never, if a valid one is not
    /// there.
    pub(in crate::agent) fn set(&self, valid: bool, loaded: Option<Timestamp>) {
        self.valid.set(valid.into());
        if valid {
            let seconds = loaded.map_or(0, Timestamp::as_second);
            self.loaded.set(seconds);
        }
    }
}

/// The gate's image.
pub(in crate::agent) struct GateImageSeries {
    restored: IntCounter,
    wanted: IntCounterVec,
}

impl GateImageSeries {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let series = Self {
            restored: counter(
                registry,
                "trylatest_gate_image_restored_total",
                "How often the gate's image or one of its names had to be made again.",
            )?,
            wanted: counters(
                registry,
                "trylatest_gate_image_wanted_total",
                "Pods whose gate image the kubelet could not get, by what the agent did about it.",
                &["result"],
            )?,
        };
        for help in Help::ALL {
            series.wanted.with_label_values(&[help.as_str()]);
        }
        Ok(series)
    }

    pub(in crate::agent) fn was_restored(&self) {
        self.restored.inc();
    }

    pub(in crate::agent) fn was_wanted(&self, help: Help) {
        self.wanted.with_label_values(&[help.as_str()]).inc();
    }
}

/// Which version runs.
pub(super) fn register_build_info(registry: &Registry, version: &str) -> Result<()> {
    let name = "trylatest_build_info";
    let build = gauges(
        registry,
        name,
        "Always 1; the version is the label.",
        &["version"],
    )?;
    build.with_label_values(&[version]).set(1);
    Ok(())
}
