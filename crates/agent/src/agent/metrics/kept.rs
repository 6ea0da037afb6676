//! The series about kept copies.

use prometheus::{IntCounterVec, IntGauge, Registry, Result};
use trylatest_core::keep::{Because, KeptCopy};

use super::make::{counters, gauge, value};

pub(in crate::agent) struct KeptSeries {
    copies: IntGauge,
    unpinned: IntGauge,
    bytes: IntGauge,
    let_go: IntCounterVec,
    pins_ignored: IntGauge,
}

impl KeptSeries {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let gauge = |name, help| gauge(registry, name, help);
        let let_go = counters(
            registry,
            "trylatest_kept_copies_let_go_total",
            "Copies that are not kept any more, by reason.",
            &["reason"],
        )?;
        for because in Because::ALL {
            let_go.with_label_values(&[because.as_str()]);
        }
        Ok(Self {
            copies: gauge(
                "trylatest_kept_copies",
                "Copies of images that are kept for the next outage, including those that pods use.",
            )?,
            unpinned: gauge(
                "trylatest_kept_copies_unpinned",
                "Of these, copies that the kubelet may collect, because they are private or the disk is nearly full.",
            )?,
            bytes: gauge(
                "trylatest_kept_bytes",
                "Total size of the kept copies. What copies share counts for each.",
            )?,
            let_go,
            pins_ignored: gauge(
                "trylatest_pins_ignored",
                "1 if containerd ignores pins, so that the kubelet's image collector may remove kept copies.",
            )?,
        })
    }

    pub(in crate::agent) fn set(&self, kept: &[KeptCopy]) {
        let unpinned = kept.iter().filter(|copy| !copy.pinned).count();
        let bytes = kept
            .iter()
            .map(|copy| copy.size_bytes)
            .fold(0, u64::saturating_add);
        self.copies.set(value(kept.len()));
        self.unpinned.set(value(unpinned));
        self.bytes.set(value(bytes));
    }

    pub(in crate::agent) fn was_let_go(&self, because: Because) {
        self.let_go.with_label_values(&[because.as_str()]).inc();
    }

    pub(in crate::agent) fn pins_are_ignored(&self) -> bool {
        self.pins_ignored.get() != 0
    }

    pub(in crate::agent) fn set_pins_ignored(&self, ignored: bool) {
        self.pins_ignored.set(ignored.into());
    }
}
