//! Nodes and the agents on them.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use trylatest_core::version::{HONOURS_PINS, KUBELET_VERIFIES, Version};

use super::gather::{Facts, Renewal};
use super::{Report, Severity, seen};
use crate::nodes::{AgentState, Place, SeenNode};

/// A clock that is off by so much is reported. The API server notes whole seconds, and is itself not exact.
const SKEW: SignedDuration = SignedDuration::from_secs(10);

/// A lease is renewed every 10 s. One that is older says nothing of its node's clock.
const LEASE: SignedDuration = SignedDuration::from_secs(40);

pub(super) fn examine(facts: &Facts, now: Timestamp, report: &mut Report) {
    if let Some(nodes) = seen(report, "nodes", &facts.nodes) {
        for node in nodes.iter().filter(|node| node.place != Place::Foreign) {
            examine_node(node, report);
        }
        agents(facts, nodes, report);
    }
    if let Some(leases) = seen(report, "the nodes' clocks", &facts.leases) {
        clocks(leases, now, report);
    }
    if let Some(events) = seen(report, "the agents' Events", &facts.refused_config) {
        for message in events {
            report.add(
                Severity::Warning,
                "config-refused",
                &format!("an agent has refused its configuration within the last hour: {message}"),
                "Check the ConfigMap trylatest-config with `trylatest config check`. If it has been corrected since, this Event goes \
                 by itself.",
            );
        }
    }
}

fn examine_node(node: &SeenNode, report: &mut Report) {
    let about = || [node.name.clone()];
    let [old, new] = HONOURS_PINS;
    match runtime(&node.runtime) {
        ("containerd", Some(version)) if !version.honours_pins() => report.add_about(
            Severity::Warning,
            "containerd-pins",
            about(),
            &format!("{} ignores pins, or does not let go of them", node.runtime),
            &format!("The kubelet may collect the last good copy before an outage. Update containerd to {old}, {new} or later."),
        ),
        ("containerd", _) | ("", None) => {}
        (other, _) => report.add_about(
            Severity::Error,
            "runtime-unsupported",
            about(),
            &format!("the container runtime is {other}"),
            "TryLatest works with containerd only: pods there start as with IfNotPresent after 20 s. Keep TryLatest pods away \
             from these nodes.",
        ),
    }
    if Version::read(&node.kubelet).is_some_and(|version| version < KUBELET_VERIFIES) {
        report.add_about(
            Severity::Info,
            "kubelet-keeps-no-records",
            about(),
            &format!("the kubelet is {}, which does not record who may use a private image's copy", node.kubelet),
            "The agent keeps a record of its own there, which is stricter (docs/limits.md). Kubernetes 1.35 and later do it \
             themselves.",
        );
    }
    if node.disk_pressure {
        report.add_about(
            Severity::Warning,
            "disk-pressure",
            about(),
            "nodes are under disk pressure",
            "Kept copies give way there, and new images may not be downloaded. Free some disk.",
        );
    }
}

/// The runtime's name and version, from `containerd://1.7.10`.
fn runtime(text: &str) -> (&str, Option<Version>) {
    match text.split_once("://") {
        Some((name, rest)) => (name, Version::read(rest)),
        None => (text, None),
    }
}

fn agents(facts: &Facts, nodes: &[SeenNode], report: &mut Report) {
    let Some(agents) = seen(report, "the agents' pods", &facts.agents) else {
        return;
    };
    let installed = facts
        .daemon_sets
        .as_ref()
        .is_ok_and(|sets| !sets.is_empty());
    for node in nodes.iter().filter(|node| node.place == Place::Open) {
        let (severity, check, what) = match AgentState::of(node, Some(agents)) {
            AgentState::Missing if installed => {
                (Severity::Error, "agent-missing", "nodes have no agent")
            }
            AgentState::NotReady => (
                Severity::Error,
                "agent-not-ready",
                "nodes have an agent that is not ready",
            ),
            _ => continue,
        };
        report.add_about(
            severity,
            check,
            [node.name.clone()],
            what,
            "Gates there open after 20 s without an answer, and pods start as with IfNotPresent. Look at the agents' pods: \
             kubectl -n trylatest-system get pods -o wide; kubectl -n trylatest-system describe pods, or describe daemonset \
             trylatest-agent where there is none.",
        );
    }
    let mut images: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for agent in agents.values() {
        images.entry(&agent.image).or_default().push(&agent.node);
    }
    if images.len() > 1 {
        let counts: Vec<_> = images
            .iter()
            .map(|(image, nodes)| {
                format!(
                    "{image} on {}",
                    trylatest_core::text::count(nodes.len(), "node")
                )
            })
            .collect();
        report.add(
            Severity::Warning,
            "agent-version-skew",
            &format!("agents run different images: {}", counts.join(", ")),
            "That is normal while an upgrade rolls out. If it does not end: kubectl -n trylatest-system rollout status \
             daemonset/trylatest-agent.",
        );
    }
}

/// The kubelet renews its node's lease with its own time, and the API server notes when.
fn clocks(leases: &[Renewal], now: Timestamp, report: &mut Report) {
    for Renewal {
        node,
        renewed,
        written,
    } in leases
    {
        let skew = renewed.duration_since(*written);
        let since_written = now.duration_since(*written);
        if skew.abs() < SKEW || since_written.abs() > LEASE {
            continue;
        }
        let direction = if skew.is_negative() {
            "behind"
        } else {
            "ahead of"
        };
        report.add_about(
            Severity::Warning,
            "clock-skew",
            [node.clone()],
            &format!("clocks of nodes are {direction} the API server's by 10 s or more"),
            "Ages of copies are wrong there, and a check that began before a pod was created may count for it. Set the clocks \
             by NTP.",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_has_a_name_and_a_version() {
        let known = Some(Version(2, 2, 7));
        assert_eq!(runtime("containerd://2.2.7"), ("containerd", known));
        assert_eq!(runtime("cri-o://1.34.1").0, "cri-o");
        assert_eq!(runtime("containerd"), ("containerd", None));
    }
}
