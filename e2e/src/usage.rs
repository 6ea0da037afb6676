//! What a process and the machine use, as the kernel counts it.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

/// The step in which the kernel shows processor time: `USER_HZ` is 100 on every architecture that Kubernetes knows.
const TICK_MS: u64 = 10;

/// Memory and processor time of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// What is in memory now, pages of its program file among it.
    pub resident_bytes: u64,
    /// The part of it that belongs to no file.
    pub anonymous_bytes: u64,
    /// Of all its threads since its start, those that have ended among them, in steps of 10 ms.
    pub cpu: Duration,
}

impl Usage {
    /// The usage of a process.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let read = |file: &str| {
            fs::read_to_string(format!("/proc/{pid}/{file}"))
                .with_context(|| format!("no process {pid}"))
        };
        let status = read("status")?;
        let kib = |key: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let word = line.and_then(|line| line.split_whitespace().next());
            Ok(word.with_context(|| format!("no {key}"))?.parse::<u64>()?)
        };
        Ok(Self {
            resident_bytes: kib("VmRSS:")? << 10,
            anonymous_bytes: kib("RssAnon:")? << 10,
            cpu: cpu_of(&read("stat")?)?,
        })
    }
}

/// The processor time that this machine has used since its start, for whatever.
///
/// # Errors
/// `/proc` cannot be read.
pub fn machine_cpu() -> anyhow::Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    machine_cpu_of(&text)
}

/// User and system time, from the text of `/proc/PID/stat`.
fn cpu_of(stat: &str) -> anyhow::Result<Duration> {
    // The program's name comes before, and may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("not a process")?;
    let times = fields.split_whitespace().skip(11).take(2);
    ticks(times)
}

/// All but idle time, from the text of `/proc/stat`.
fn machine_cpu_of(stat: &str) -> anyhow::Result<Duration> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let fields = line.context("no processors")?.split_whitespace();
    // user, nice, system, idle, iowait, irq, softirq; then what other machines have taken, and what is in user already.
    let times = fields.enumerate().take(7);
    ticks(
        times
            .filter(|(n, _)| ![3, 4].contains(n))
            .map(|(_, time)| time),
    )
}

fn ticks<'a>(times: impl Iterator<Item = &'a str>) -> anyhow::Result<Duration> {
    let mut sum = 0;
    for time in times {
        sum += time.parse::<u64>().context("not a time")?;
    }
    Ok(Duration::from_millis(TICK_MS * sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let usage = || Usage::of(std::process::id()).unwrap();
        assert!(usage().resident_bytes > usage().anonymous_bytes);
        assert!(usage().anonymous_bytes > 0);
        // To look takes time as well.
        while usage().cpu == Duration::ZERO {}
        assert!(machine_cpu().unwrap() >= usage().cpu);
    }

    #[test]
    fn times_are_where_the_kernel_has_them() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 146 0 0 0 25 17 9 9 20 0 1 0 8 2600 215";
        assert_eq!(cpu_of(stat).unwrap(), Duration::from_millis(420));
        let stat = "cpu  100 1 30 9999 50 2 7 3 4 5\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(machine_cpu_of(stat).unwrap(), Duration::from_millis(1400));
        assert!(cpu_of("").is_err() && machine_cpu_of("").is_err());
    }
}
