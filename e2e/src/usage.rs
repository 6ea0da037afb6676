//! What a process uses, as the kernel counts it.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

/// Memory and processor time of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// What is in memory now, pages of its program file among it.
    pub resident_bytes: u64,
    /// The part of it that belongs to no file.
    pub anonymous_bytes: u64,
    /// Since its start.
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
        let schedstat = read("schedstat")?;
        let nanoseconds = schedstat.split_whitespace().next().context("no time")?;
        Ok(Self {
            resident_bytes: kib("VmRSS:")? << 10,
            anonymous_bytes: kib("RssAnon:")? << 10,
            cpu: Duration::from_nanos(nanoseconds.parse()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.resident_bytes > usage.anonymous_bytes);
        assert!(usage.anonymous_bytes > 0 && usage.cpu > Duration::ZERO);
    }
}
