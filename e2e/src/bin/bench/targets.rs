//! The targets that TryLatest sets itself.

use comfy_table::Table;

use super::report::{Report, Row};

const MIB: u64 = 1 << 20;

/// A burst may take this much of what it takes with `Always`, in percent.
const BURST_PERCENT: u64 = 35;

/// Writes of the agent to the API server for each pod.
const WRITES_A_POD: u64 = 2;

/// Gates of restarted pods that nothing reached; none if such pods were not measured.
fn unanswered(report: &Report) -> Option<u64> {
    let mut rows = report
        .pods
        .iter()
        .filter(|row| row.policy == "TryLatest" && row.case.starts_with("restart-"))
        .peekable();
    rows.peek()?;
    u64::try_from(rows.map(|row| row.unanswered).sum::<usize>()).ok()
}

/// A target: what, how much was measured, and the most that it may be.
type Line = (&'static str, Option<u64>, Option<u64>);

/// The targets of private images.
fn private(report: &Report) -> [Line; 4] {
    let p50 = |case: &str, policy: &str| report.p50(case, policy);
    let public = p50("public-unchanged", "TryLatest").map(|public| public + 150);
    let at_once = |what, case| {
        let always = p50(case, "Always").map(|always| always * 12 / 10);
        (what, p50(case, "TryLatest"), always)
    };
    [
        (
            "private, unchanged, ms",
            p50("private-unchanged", "TryLatest"),
            public,
        ),
        (
            "private, in an outage, ms",
            p50("private-outage", "TryLatest"),
            p50("public-outage", "TryLatest").map(|public| public + 50),
        ),
        at_once("20 private images at once, ms", "private-20-images"),
        at_once(
            "20 private images, 100 ms away, ms",
            "private-20-images-100ms",
        ),
    ]
}

/// The targets of a registry that accepts and never answers.
fn outage(report: &Report) -> [Line; 3] {
    let p50 = |case: &str| report.p50(case, "TryLatest");
    [
        (
            "never answers, ms",
            p50("never-answers"),
            Some(STALL_MS + 1500),
        ),
        (
            "later in the outage, ms",
            p50("outage-later"),
            p50("one-unchanged").map(|healthy| healthy + 200),
        ),
        (
            "50 images in the outage, ms",
            p50("outage-50-images"),
            p50("unchanged-50-images"),
        ),
    ]
}

/// The targets of the agent's writes about pods.
fn writes(report: &Report) -> [Line; 3] {
    let line = |what, case| {
        let row = report.row(case, "TryLatest");
        let writes = row.and_then(|row: &Row| Some(row.cost.as_ref()?.agent_writes));
        let most = row.and_then(|row| u64::try_from(row.pods).ok());
        (what, writes, most.map(|pods| pods * WRITES_A_POD))
    };
    [
        line("one pod, API writes", "one-moved"),
        line("20 at once, API writes", "burst-20"),
        line("50 at once, API writes", "burst-50"),
    ]
}

/// The agent's own targets.
fn agent(report: &Report) -> [Line; 5] {
    let agent = report.agent.as_ref();
    let rss = agent.map(|agent| agent.rss_idle_bytes.max(agent.rss_after_burst_bytes));
    let idle = report.idle.as_ref();
    [
        (
            "the agent's own part, ms",
            agent.map(|agent| agent.own_part_p50_ms),
            Some(60),
        ),
        (
            "the agent's memory, KiB",
            rss.map(|rss| rss / 1024),
            Some(15 * MIB / 1024),
        ),
        (
            "the image's size, KiB",
            agent.map(|agent| agent.image_bytes / 1024),
            Some(10 * MIB / 1024),
        ),
        (
            "writes to the node in 10 s",
            agent.map(|agent| agent.node_writes_in_10_s),
            Some(1),
        ),
        (
            "the agent beside 109 pods, µs of CPU a second",
            idle.map(|idle| idle.cpu_ms * 1000 / idle.seconds.max(1)),
            Some(2000),
        ),
    ]
}

/// The targets, and whether TryLatest meets them. Targets without a measurement are left out.
pub(crate) fn targets(report: &Report) -> String {
    let p50 = |case, policy| report.p50(case, policy);
    let ours = |case: &str| report.row(case, "TryLatest");
    let thirds = |ms: Option<u64>| ms.map(|ms| ms * 13 / 10);
    let against_always = |case| (p50(case, "TryLatest"), thirds(p50(case, "Always")));
    let fallbacks = |case| ours(case).map(|row| u64::try_from(row.fallbacks).unwrap_or(u64::MAX));
    let unchanged = "restart-30-images, unchanged";
    let moved = "restart-30-images, moved";
    let silent = "restart-30-images, silent";
    let one = p50("one-unchanged", "TryLatest").zip(p50("one-unchanged", "IfNotPresent"));
    let (unchanged_ms, unchanged_most) = against_always(unchanged);
    let (moved_ms, moved_most) = against_always(moved);
    let silent_most = thirds(p50(unchanged, "TryLatest")).map(|ms| ms + STALL_MS);
    let lines: [Line; 9] = [
        (
            "one pod, beyond IfNotPresent, ms",
            one.map(|(ours, plain)| ours.saturating_sub(plain)),
            Some(650),
        ),
        (
            "20 at once, against Always, ms",
            p50("burst-20", "TryLatest"),
            p50("burst-20", "Always").map(|always| always * BURST_PERCENT / 100),
        ),
        (
            "20 at once, registry requests",
            ours("burst-20").map(|row| row.registry_requests),
            Some(2),
        ),
        ("30 images, unchanged, ms", unchanged_ms, unchanged_most),
        (
            "30 images, unchanged, fallbacks",
            fallbacks(unchanged),
            Some(0),
        ),
        ("30 images, moved, ms", moved_ms, moved_most),
        ("30 images, moved, fallbacks", fallbacks(moved), Some(0)),
        (
            "30 images, silent, ms",
            p50(silent, "TryLatest"),
            silent_most,
        ),
        ("30 images, unanswered gates", unanswered(report), Some(0)),
    ];
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["target", "measured", "at most", ""]);
    for (what, measured, most) in lines
        .into_iter()
        .chain(writes(report))
        .chain(agent(report))
        .chain(private(report))
        .chain(outage(report))
    {
        if let (Some(measured), Some(most)) = (measured, most) {
            let met = if measured <= most { "met" } else { "MISSED" };
            table.add_row([what, &measured.to_string(), &most.to_string(), met]);
        }
    }
    table.trim_fmt()
}

/// The agent's stall deadline.
const STALL_MS: u64 = 5000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::report::{Round, row};
    use super::*;

    #[test]
    fn what_was_not_measured_is_no_target() {
        let fell_back = Round {
            took: Some(Duration::from_secs(1)),
            fallbacks: 1,
            ..Round::default()
        };
        let report = Report {
            pods: vec![row("restart-30-images, moved", "TryLatest", &[fell_back])],
            agent: None,
            idle: None,
        };
        let lines = targets(&report);
        assert_eq!(lines.lines().count(), 3, "{lines}");
        assert!(lines.contains("MISSED"), "{lines}");
    }
}
