//! What every program of Prometheus' world says of its process, under their usual names. Read when asked for.

use procfs::process::{LimitValue, Process};
use procfs::{ProcResult, boot_time_secs, page_size, ticks_per_second};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, IntGauge, Registry, Result};

use super::make::value;

/// The series; one that cannot be read keeps its value.
struct ProcessSeries {
    cpu: Counter,
    max_fds: IntGauge,
    open_fds: IntGauge,
    resident: IntGauge,
    started: IntGauge,
    threads: IntGauge,
    virtual_memory: IntGauge,
}

pub(super) fn register(registry: &Registry) -> Result<()> {
    let series = ProcessSeries {
        cpu: Counter::new(
            "process_cpu_seconds_total",
            "CPU time that the agent has used, in user and system mode.",
        )?,
        max_fds: IntGauge::new("process_max_fds", "How many files the agent may have open.")?,
        open_fds: IntGauge::new("process_open_fds", "Files that the agent has open.")?,
        resident: IntGauge::new(
            "process_resident_memory_bytes",
            "Memory of the agent that is resident.",
        )?,
        started: IntGauge::new(
            "process_start_time_seconds",
            "When the agent started, in seconds since 1970.",
        )?,
        threads: IntGauge::new("process_threads", "Threads of the agent.")?,
        virtual_memory: IntGauge::new(
            "process_virtual_memory_bytes",
            "Virtual memory of the agent.",
        )?,
    };
    registry.register(Box::new(series))
}

impl ProcessSeries {
    fn read(&self) -> ProcResult<()> {
        let process = Process::myself()?;
        self.open_fds.set(value(process.fd_count()?));
        if let LimitValue::Value(most) = process.limits()?.max_open_files.soft_limit {
            self.max_fds.set(value(most));
        }
        let stat = process.stat()?;
        let ticks = ticks_per_second();
        let used = stat.utime.saturating_add(stat.stime);
        #[expect(clippy::cast_precision_loss, reason = "ticks of years are exact")]
        let seconds = used as f64 / ticks as f64;
        // Two readers may overtake each other, and a counter does not go back.
        self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        self.resident
            .set(value(stat.rss.saturating_mul(page_size())));
        self.threads.set(stat.num_threads);
        self.virtual_memory.set(value(stat.vsize));
        let started = boot_time_secs()?.saturating_add(stat.starttime / ticks);
        self.started.set(value(started));
        Ok(())
    }

    fn all(&self) -> [&dyn Collector; 7] {
        [
            &self.cpu,
            &self.max_fds,
            &self.open_fds,
            &self.resident,
            &self.started,
            &self.threads,
            &self.virtual_memory,
        ]
    }
}

impl Collector for ProcessSeries {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Without /proc there is nothing to say.
        if self.read().is_err() {
            return Vec::new();
        }
        let all = self.all().into_iter();
        all.flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_itself() {
        let registry = Registry::new();
        register(&registry).unwrap();
        let families = registry.gather();
        assert_eq!(families.len(), 7);
        for family in families {
            let metric = &family.get_metric()[0];
            let value = metric.get_gauge().get_value() + metric.get_counter().get_value();
            assert!(
                value > 0.0 || family.name().contains("cpu"),
                "{}",
                family.name()
            );
        }
    }
}
