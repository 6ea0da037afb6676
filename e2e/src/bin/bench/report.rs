//! The measurements as rows of tables.

use std::time::Duration;

use comfy_table::Table;
use serde::Serialize;

use super::cost::{Cost, Cpu};

/// Times of one case with one policy.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) case: &'static str,
    pub(crate) policy: &'static str,
    /// How many pods a round has.
    pub(crate) pods: usize,
    /// How many rounds ran.
    pub(crate) n: usize,
    /// Null if none did.
    pub(crate) p50_ms: Option<u64>,
    pub(crate) min_ms: Option<u64>,
    pub(crate) max_ms: Option<u64>,
    /// The median of a round.
    pub(crate) registry_requests: u64,
    /// Pods of all rounds that took the cached copy because their try failed.
    pub(crate) fallbacks: usize,
    /// Pods of all rounds whose gate opened without having seen an answer.
    pub(crate) unanswered: usize,
    /// Null if it was not counted.
    pub(crate) cost: Option<Costs>,
}

/// The medians of what rounds cost.
#[derive(Serialize)]
pub(crate) struct Costs {
    /// The agent's writes about pods to the API server.
    pub(crate) agent_writes: u64,
    /// The kubelet's.
    pub(crate) kubelet_writes: u64,
    pub(crate) agent_cpu_ms: u64,
    pub(crate) containerd_cpu_ms: u64,
    pub(crate) kubelet_cpu_ms: u64,
    /// Of everything on this machine.
    pub(crate) machine_cpu_ms: u64,
}

#[derive(Serialize)]
pub(crate) struct Agent {
    pub(crate) own_part_p50_ms: u64,
    pub(crate) rss_idle_bytes: u64,
    pub(crate) rss_after_burst_bytes: u64,
    pub(crate) image_bytes: u64,
    /// The most writes to the node in any ten seconds.
    pub(crate) node_writes_in_10_s: u64,
}

/// What the agent used beside running pods.
#[derive(Serialize)]
pub(crate) struct Idle {
    pub(crate) pods: usize,
    pub(crate) seconds: u64,
    pub(crate) cpu_ms: u64,
    pub(crate) rss_bytes: u64,
}

#[derive(Default, Serialize)]
pub(crate) struct Report {
    pub(crate) pods: Vec<Row>,
    /// Null if the cases that show it were left out.
    pub(crate) agent: Option<Agent>,
    /// Likewise.
    pub(crate) idle: Option<Idle>,
}

impl Report {
    pub(crate) fn row(&self, case: &str, policy: &str) -> Option<&Row> {
        let mut rows = self.pods.iter();
        rows.find(|row| row.case == case && row.policy == policy)
    }

    pub(crate) fn p50(&self, case: &str, policy: &str) -> Option<u64> {
        self.row(case, policy)?.p50_ms
    }
}

/// One measured round.
#[derive(Clone, Copy, Default)]
pub(crate) struct Round {
    /// None if not all ran.
    pub(crate) took: Option<Duration>,
    pub(crate) pods: usize,
    pub(crate) requests: u64,
    pub(crate) fallbacks: usize,
    pub(crate) unanswered: usize,
    /// None if it was not counted.
    pub(crate) cost: Option<Cost>,
}

pub(crate) fn row(case: &'static str, policy: &'static str, rounds: &[Round]) -> Row {
    let mut times: Vec<u64> = rounds
        .iter()
        .filter_map(|round| Some(ms(round.took?)))
        .collect();
    times.sort_unstable();
    Row {
        case,
        policy,
        pods: rounds.first().map_or(0, |round| round.pods),
        n: times.len(),
        p50_ms: middle(&times),
        min_ms: times.first().copied(),
        max_ms: times.last().copied(),
        registry_requests: median(rounds.iter().map(|round| round.requests)),
        fallbacks: rounds.iter().map(|round| round.fallbacks).sum(),
        unanswered: rounds.iter().map(|round| round.unanswered).sum(),
        cost: medians(rounds),
    }
}

fn medians(rounds: &[Round]) -> Option<Costs> {
    let counted: Vec<Cost> = rounds.iter().filter_map(|round| round.cost).collect();
    if counted.is_empty() {
        return None;
    }
    let of = |number: fn(&Cost) -> u64| median(counted.iter().map(number));
    let cpu = |part: fn(&Cpu) -> Duration| median(counted.iter().map(|cost| ms(part(&cost.cpu))));
    Some(Costs {
        agent_writes: of(|cost| cost.agent_writes),
        kubelet_writes: of(|cost| cost.kubelet_writes),
        agent_cpu_ms: cpu(|cpu| cpu.agent),
        containerd_cpu_ms: cpu(|cpu| cpu.containerd),
        kubelet_cpu_ms: cpu(|cpu| cpu.kubelet),
        machine_cpu_ms: cpu(|cpu| cpu.machine),
    })
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The median; 0 of nothing.
fn median(numbers: impl Iterator<Item = u64>) -> u64 {
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    middle(&numbers).unwrap_or_default()
}

/// The median of sorted numbers.
pub(crate) fn middle(sorted: &[u64]) -> Option<u64> {
    let half = sorted.len() / 2;
    let upper = *sorted.get(half)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(u64::midpoint(upper, sorted[half - 1]))
}

pub(crate) fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([
        "case",
        "policy",
        "n",
        "p50 ms",
        "min",
        "max",
        "registry requests",
        "fallbacks",
        "unanswered",
    ]);
    let ms = |ms: Option<u64>| ms.map_or("never".to_owned(), |ms| ms.to_string());
    for row in &report.pods {
        table.add_row([
            row.case.to_owned(),
            row.policy.to_owned(),
            row.n.to_string(),
            ms(row.p50_ms),
            ms(row.min_ms),
            ms(row.max_ms),
            row.registry_requests.to_string(),
            row.fallbacks.to_string(),
            row.unanswered.to_string(),
        ]);
    }
    table.trim_fmt()
}

/// What the rounds cost; each number is of a whole round.
pub(crate) fn costs(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([
        "case",
        "policy",
        "pods",
        "API writes: agent",
        "kubelet",
        "CPU ms: agent",
        "containerd",
        "kubelet",
        "machine",
    ]);
    for row in &report.pods {
        let Some(cost) = &row.cost else { continue };
        let numbers = [
            cost.agent_writes,
            cost.kubelet_writes,
            cost.agent_cpu_ms,
            cost.containerd_cpu_ms,
            cost.kubelet_cpu_ms,
            cost.machine_cpu_ms,
        ];
        let words = [row.case, row.policy].map(str::to_owned);
        let counts = numbers.map(|number| number.to_string());
        let cells = words.into_iter().chain([row.pods.to_string()]);
        table.add_row(cells.chain(counts));
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(middle(&[]), None);
        assert_eq!(middle(&[3]), Some(3));
        assert_eq!(middle(&[1, 4]), Some(2));
        assert_eq!(middle(&[1, 2, 9]), Some(2));
    }

    #[test]
    fn what_never_ran_has_no_median() {
        let never = Round {
            requests: 3,
            fallbacks: 1,
            ..Round::default()
        };
        let row = row("case", "Always", &[never, never]);
        assert_eq!((row.n, row.p50_ms), (0, None));
        assert_eq!((row.registry_requests, row.fallbacks), (3, 2));
    }

    #[test]
    fn costs_are_medians_of_what_was_counted() {
        let of = |writes, agent| {
            let agent = Duration::from_millis(agent);
            Round {
                pods: 20,
                cost: Some(Cost {
                    agent_writes: writes,
                    cpu: Cpu {
                        agent,
                        ..Cpu::default()
                    },
                    ..Cost::default()
                }),
                ..Round::default()
            }
        };
        let row = row("case", "Always", &[of(40, 90), of(41, 30), of(60, 50)]);
        let cost = row.cost.unwrap();
        assert_eq!(
            (row.pods, cost.agent_writes, cost.agent_cpu_ms),
            (20, 41, 50)
        );
        let nothing = super::row("case", "Always", &[Round::default()]);
        assert!(nothing.cost.is_none());
    }
}
