//! What a round costs beside its time: processor time, and writes to the API server.

use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::Value;
use trylatest_e2e::usage::{Usage, machine_cpu};

use super::Bench;

/// The user that agents are to the API server.
const AGENT: &str = "system:serviceaccount:trylatest-system:trylatest-agent";

/// What kubelets' users begin with.
const KUBELETS: &str = "system:node:";

/// Node writes are counted in any such time.
const WINDOW: Duration = Duration::from_secs(10);

/// Processor time, in user and system mode.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cpu {
    pub(crate) agent: Duration,
    pub(crate) containerd: Duration,
    pub(crate) kubelet: Duration,
    /// Everything on this machine: these, containers and their shims, the control plane, this program.
    pub(crate) machine: Duration,
}

/// What one round cost.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) cpu: Cpu,
    /// The agent's writes about pods: releases, signs of life, Events.
    pub(crate) agent_writes: u64,
    /// The kubelet's: statuses, Events, deletions.
    pub(crate) kubelet_writes: u64,
}

/// The processes that are looked at.
pub(crate) struct Processes {
    agent: u32,
    containerd: u32,
    kubelet: u32,
}

/// What was counted when a round began.
pub(crate) struct Meter {
    processes: Processes,
    cpu: Cpu,
    audit: u64,
}

impl Bench {
    pub(crate) async fn processes(&self) -> anyhow::Result<Processes> {
        let (containerd, kubelet) = (self.cluster.containerd(), self.cluster.kubelet());
        Ok(Processes {
            agent: self.agent_pid().await?,
            containerd: containerd.pid().await.context("no containerd")?,
            kubelet: kubelet.pid().await.context("no kubelet")?,
        })
    }

    async fn agent_pid(&self) -> anyhow::Result<u32> {
        let id = self.install.container().await?;
        let id = id.trim_start_matches("containerd://");
        self.cluster.containerd().pid_of(id).await
    }

    pub(crate) async fn agent_usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.agent_pid().await?)
    }

    /// Begins to count.
    pub(crate) fn meter(&self, processes: Processes) -> anyhow::Result<Meter> {
        Ok(Meter {
            cpu: Cpu::of(&processes)?,
            audit: self.cluster.control_plane().audit_end()?,
            processes,
        })
    }

    /// The writes since then.
    pub(crate) fn cost_since(&self, meter: &Meter, cpu: Cpu) -> anyhow::Result<Cost> {
        let events = self.cluster.control_plane().audit_since(meter.audit)?;
        let writes = |name| events.iter().filter(move |event| is_about_pod(event, name));
        Ok(Cost {
            cpu,
            agent_writes: u64::try_from(writes(AGENT).count())?,
            kubelet_writes: u64::try_from(writes(KUBELETS).count())?,
        })
    }

    /// The most writes of the agent to its node in any ten seconds since the audit log ended here.
    pub(crate) fn node_writes_since(&self, audit: u64) -> anyhow::Result<u64> {
        let events = self.cluster.control_plane().audit_since(audit)?;
        let writes = events.iter().filter(|event| {
            user(event).starts_with(AGENT) && event["objectRef"]["resource"] == "nodes"
        });
        let times = writes.map(|event| {
            let time = event["requestReceivedTimestamp"].as_str();
            time.context("no time")?.parse().context("not a time")
        });
        most_within(times.collect::<anyhow::Result<_>>()?)
    }
}

impl Cpu {
    fn of(processes: &Processes) -> anyhow::Result<Self> {
        Ok(Self {
            agent: Usage::of(processes.agent)?.cpu,
            containerd: Usage::of(processes.containerd)?.cpu,
            kubelet: Usage::of(processes.kubelet)?.cpu,
            machine: machine_cpu()?,
        })
    }
}

impl Meter {
    /// The processor time since then.
    pub(crate) fn cpu(&self) -> anyhow::Result<Cpu> {
        let now = Cpu::of(&self.processes)?;
        Ok(Cpu {
            agent: now.agent.saturating_sub(self.cpu.agent),
            containerd: now.containerd.saturating_sub(self.cpu.containerd),
            kubelet: now.kubelet.saturating_sub(self.cpu.kubelet),
            machine: now.machine.saturating_sub(self.cpu.machine),
        })
    }
}

/// Whether a user whose name begins like this wrote a pod or an Event.
fn is_about_pod(event: &Value, name: &str) -> bool {
    let resource = &event["objectRef"]["resource"];
    user(event).starts_with(name) && (resource == "pods" || resource == "events")
}

fn user(event: &Value) -> &str {
    event["user"]["username"].as_str().unwrap_or_default()
}

/// The most of these times within [`WINDOW`].
fn most_within(mut times: Vec<Timestamp>) -> anyhow::Result<u64> {
    times.sort_unstable();
    let within = |(n, first): (usize, &Timestamp)| {
        let later = times[n..].iter();
        let near = later.take_while(|time| time.duration_since(*first).unsigned_abs() < WINDOW);
        near.count()
    };
    let most = times.iter().enumerate().map(within).max();
    Ok(u64::try_from(most.unwrap_or_default())?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_fullest_ten_seconds_count() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(most_within(Vec::new()).unwrap(), 0);
        let times = [0, 30, 5, 9, 10, 19].map(at).to_vec();
        assert_eq!(most_within(times).unwrap(), 3);
    }

    #[test]
    fn writes_have_an_author() {
        let event = |user: &str, resource: &str| json!({"user": {"username": user}, "objectRef": {"resource": resource}});
        assert!(is_about_pod(&event(AGENT, "events"), AGENT));
        assert!(is_about_pod(&event("system:node:a", "pods"), KUBELETS));
        assert!(!is_about_pod(&event("system:node:a", "leases"), KUBELETS));
        assert!(!is_about_pod(&event("admin", "pods"), AGENT));
    }
}
