//! The numbers as a table, and what must be true of them.

use comfy_table::Table;

use crate::measure::{Measured, Phase};

/// The most that an idle agent may ask in a minute beyond its watch.
const IDLE_MAX: f64 = 1.0;

/// How much more each agent of the largest fleet may ask than one of the smallest.
const GROWTH_MAX: f64 = 1.5;

/// The part of a phase's requests that may come in one second, where there are enough to tell.
const SECOND_MAX: f64 = 0.1;
const ENOUGH: u64 = 500;

/// Nothing is said of a shorter time by the agent that asks the most: it writes again what it has reported only every
/// few minutes.
const MINUTES_MIN: f64 = 5.0;

/// For people.
pub(crate) fn table(all: &[Measured]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "agents",
        "pods",
        "phase",
        "seconds",
        "requests/s",
        "busiest second",
        "per agent-minute",
        "busiest agent",
        "writes/pod",
        "watches",
        "API server CPU",
        "MiB",
        "p99 ms",
        "429",
    ]);
    for fleet in all {
        for (name, phase) in phases(fleet) {
            let asked = &phase.asked;
            let cost = &phase.cost;
            let known = |number: Option<String>| number.unwrap_or_else(|| "–".to_owned());
            table.add_row([
                fleet.agents.to_string(),
                fleet.pods.to_string(),
                name.to_owned(),
                format!("{:.0}", asked.seconds),
                format!("{:.1}", asked.per_second()),
                asked.busiest_second.to_string(),
                format!("{:.2}", asked.per_agent_minute(fleet.agents)),
                asked.busiest_agent.counts.beyond_watch().to_string(),
                known(phase.writes_per_pod().map(|writes| format!("{writes:.1}"))),
                cost.watches.to_string(),
                format!("{:.2}", cost.cpu),
                cost.rss_mib.to_string(),
                known(cost.p99_ms.map(|p99| p99.to_string())),
                cost.refused.to_string(),
            ]);
        }
    }
    table
}

fn phases(fleet: &Measured) -> [(&'static str, &Phase); 4] {
    [
        ("start", &fleet.start),
        ("idle", &fleet.idle),
        ("outage", &fleet.outage),
        ("end", &fleet.end),
    ]
}

/// What is not as it should be.
pub(crate) fn missed(all: &[Measured]) -> Vec<String> {
    let mut missed: Vec<String> = all.iter().flat_map(missed_by).collect();
    let (Some(least), Some(most)) = (
        all.iter().min_by_key(|fleet| fleet.agents),
        all.iter().max_by_key(|fleet| fleet.agents),
    ) else {
        return missed;
    };
    let mut grown = |what: &str, few: f64, many: f64| {
        // A request more or less in ten minutes is chance.
        if many > few * GROWTH_MAX + 0.1 {
            let (least, most) = (least.agents, most.agents);
            missed.push(format!(
                "{what}: {few:.2} with {least} agents, {many:.2} with {most}"
            ));
        }
    };
    let idle = |fleet: &Measured| fleet.idle.asked.per_agent_minute(fleet.agents);
    grown(
        "idle requests per agent and minute",
        idle(least),
        idle(most),
    );
    let writes = |fleet: &Measured| fleet.outage.writes_per_pod().unwrap_or_default();
    grown("writes per pod in the outage", writes(least), writes(most));
    missed
}

fn missed_by(fleet: &Measured) -> Vec<String> {
    let mut missed = Vec::new();
    let agents = fleet.agents;
    let idle = &fleet.idle.asked;
    let mean = idle.per_agent_minute(agents);
    if mean > IDLE_MAX {
        missed.push(format!(
            "{agents} agents: an idle one asks {mean:.2} times a minute"
        ));
    }
    let minutes = idle.seconds / 60.0;
    let busiest = idle.busiest_agent;
    let most = busiest.counts.beyond_watch();
    if minutes >= MINUTES_MIN && crate::traffic::float(most) > minutes.ceil() * IDLE_MAX {
        let node = crate::fleet::node(busiest.agent);
        missed.push(format!(
            "{agents} agents: idle, {node} asked {most} times in {minutes:.1} minutes: {:?}",
            busiest.counts
        ));
    }
    let replaced: usize = fleet.outage.outcomes.values().sum();
    let fell_back = fleet.outage.outcomes.get("fallback").copied().unwrap_or(0);
    if fell_back == 0 || fell_back < replaced {
        missed.push(format!(
            "{agents} agents: {fell_back} of {replaced} pods fell back in the outage"
        ));
    }
    for (name, phase) in phases(fleet) {
        let all = phase.asked.counts.beyond_watch();
        let share =
            crate::traffic::float(phase.asked.busiest_second) / crate::traffic::float(all.max(1));
        if all >= ENOUGH && share > SECOND_MAX {
            missed.push(format!(
                "{agents} agents, {name}: {:.0} % of all requests in one second",
                share * 100.0
            ));
        }
    }
    missed
}
