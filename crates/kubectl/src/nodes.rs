//! Nodes, and the agents on them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams};
use serde::Serialize;
use trylatest_core::image::ImageName;
use trylatest_core::keys;
use trylatest_core::node::{FallenBack, OpenRegistry};
use trylatest_core::text;

use crate::cluster::{Cluster, Looked};

/// How the manifests label the agent's pods.
pub(crate) const AGENT_SELECTOR: &str =
    "app.kubernetes.io/name=trylatest,app.kubernetes.io/component=agent";

/// Longest text of a node that is kept.
const TEXT_MAX: usize = 4096;

/// Most registries of a node that are told apart. An agent names fewer.
const REGISTRIES_MAX: usize = 100;

/// A node.
#[derive(Clone, Debug, Default)]
pub(crate) struct SeenNode {
    pub(crate) name: String,
    pub(crate) ready: bool,
    pub(crate) place: Place,
    pub(crate) disk_pressure: bool,
    /// The condition `TryLatestFallback`, if it has one.
    pub(crate) fallback: Option<Fallback>,
    pub(crate) summary: Option<String>,
    /// The registries that it does not ask for each pod.
    pub(crate) open: Vec<OpenRegistry>,
    pub(crate) kubelet: String,
    /// As the kubelet reports it, e.g. `containerd://2.2.7`.
    pub(crate) runtime: String,
}

/// Whether TryLatest pods come to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Place {
    /// They may.
    #[default]
    Open,
    /// No new ones: it is cordoned.
    Cordoned,
    /// No agent belongs on it: it does not run Linux, or has no real kubelet.
    Foreign,
}

/// What a node says of copies that pods fell back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fallback {
    pub(crate) on: bool,
    /// Of which images.
    pub(crate) of: FallenBack,
    /// When its agent wrote that, cut to whole seconds.
    pub(crate) written: Option<Timestamp>,
}

impl SeenNode {
    pub(crate) fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let conditions = || status.iter().flat_map(|s| s.conditions.iter().flatten());
        let condition = |type_: &str| conditions().find(|condition| condition.type_ == type_);
        let is_true = |type_: &str| condition(type_).is_some_and(|c| c.status == "True");
        let label = |key: &str| node.metadata.labels.as_ref()?.get(key).map(String::as_str);
        let info = status.and_then(|s| s.node_info.as_ref());
        let is_linux =
            info.is_none_or(|info| matches!(info.operating_system.as_str(), "" | "linux"));
        let annotation = |key: &str| node.metadata.annotations.as_ref()?.get(key);
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            ready: is_true("Ready"),
            place: match node.spec.as_ref().and_then(|spec| spec.unschedulable) {
                _ if !is_linux || label("type") == Some("virtual-kubelet") => Place::Foreign,
                Some(true) => Place::Cordoned,
                _ => Place::Open,
            },
            disk_pressure: is_true("DiskPressure"),
            fallback: condition(keys::NODE_CONDITION).map(|condition| Fallback {
                on: condition.status == "True",
                of: FallenBack::read(condition.message.as_deref().unwrap_or_default()),
                written: condition.last_heartbeat_time.as_ref().map(|time| time.0),
            }),
            summary: annotation(keys::NODE_SUMMARY).map(|summary| line(summary)),
            open: annotation(keys::NODE_IMAGES)
                .map(|lines| open(lines))
                .unwrap_or_default(),
            kubelet: info.map(|i| line(&i.kubelet_version)).unwrap_or_default(),
            runtime: info
                .map(|i| line(&i.container_runtime_version))
                .unwrap_or_default(),
        }
    }

    /// Whether a pod that was released at this time, and fell back to a copy of this image on this node, still runs an
    /// unconfirmed copy. The node takes its condition back once the registry has confirmed what its pods run; the pods'
    /// releases stay as they are. A condition that was written before the release, or in the same second, may not know
    /// of the pod: agents write it every 10 s at most. Without an image's name, it is one that no condition names.
    pub(crate) fn still_falls_back(&self, image: Option<&ImageName>, released: Timestamp) -> bool {
        let knows_it = |fallback: &&Fallback| fallback.written >= Some(released);
        let fallback = self.fallback.as_ref().filter(knows_it);
        fallback.is_none_or(|fallback| {
            fallback.on && image.is_none_or(|image| fallback.of.may_include(image))
        })
    }
}

fn open(lines: &str) -> Vec<OpenRegistry> {
    let open = OpenRegistry::read(lines).take(REGISTRIES_MAX);
    let clean = |open: OpenRegistry| OpenRegistry {
        registry: line(&open.registry),
        ..open
    };
    open.map(clean).collect()
}

fn line(words: &str) -> String {
    text::on_one_line(&words[..words.floor_char_boundary(TEXT_MAX)])
}

/// An agent's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenAgent {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) ready: bool,
    pub(crate) image: String,
    pub(crate) pull_policy: String,
    pub(crate) created: Option<Timestamp>,
}

impl SeenAgent {
    /// Reads an agent's pod. Anybody may give a pod the agent's labels: it is none unless a DaemonSet has made it, and it
    /// has a folder of its node, for containerd's socket.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref()?;
        let mut volumes = spec.volumes.iter().flatten();
        if !is_of_daemon_set(meta) || !volumes.any(|volume| volume.host_path.is_some()) {
            return None;
        }
        let agent = spec.containers.iter().find(|c| c.name == "agent");
        let agent = agent.or_else(|| spec.containers.first())?;
        let status = pod.status.as_ref();
        let mut conditions = status.iter().flat_map(|s| s.conditions.iter().flatten());
        if meta.deletion_timestamp.is_some() {
            return None;
        }
        Some(Self {
            namespace: meta.namespace.clone()?,
            name: meta.name.clone()?,
            node: spec.node_name.clone()?,
            ready: conditions.any(|c| c.type_ == "Ready" && c.status == "True"),
            image: line(agent.image.as_deref().unwrap_or_default()),
            pull_policy: agent.image_pull_policy.clone().unwrap_or_default(),
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
        })
    }
}

fn is_of_daemon_set(meta: &ObjectMeta) -> bool {
    let mut owners = meta.owner_references.iter().flatten();
    owners.any(|owner| {
        let is_apps = owner.api_version.starts_with("apps/");
        owner.controller == Some(true) && owner.kind == "DaemonSet" && is_apps
    })
}

/// How the agent of a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AgentState {
    /// There is none, and pods can be sent to the node.
    Missing,
    /// It does not answer its probe.
    NotReady,
    /// Nobody could look.
    Unknown,
    /// It works.
    Ready,
    /// None belongs there, or the node is away.
    NotWanted,
}

impl AgentState {
    /// Of this node, whose agents are these; none if they could not be looked at.
    pub(crate) fn of(node: &SeenNode, agents: Option<&Agents>) -> Self {
        let Some(agents) = agents else {
            return Self::Unknown;
        };
        match agents.get(&node.name) {
            Some(agent) if agent.ready => Self::Ready,
            _ if node.place == Place::Foreign || !node.ready => Self::NotWanted,
            Some(_) => Self::NotReady,
            None => Self::Missing,
        }
    }

    /// The word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::NotReady => "not ready",
            Self::Unknown => "unknown",
            Self::Ready => "ready",
            Self::NotWanted => "-",
        }
    }
}

/// The agents by the name of their node.
pub(crate) type Agents = BTreeMap<String, SeenAgent>;

/// All nodes.
pub(crate) async fn nodes(cluster: &Cluster) -> Looked<Vec<SeenNode>> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    let params = ListParams::default();
    cluster
        .each("list nodes", &api, &params, Vec::new, |all, node| {
            all.push(SeenNode::of(&node));
        })
        .await
}

/// The agents of all nodes, in whatever namespace they are.
pub(crate) async fn agents(cluster: &Cluster) -> Looked<Agents> {
    let api: Api<Pod> = cluster.api(None);
    let params = ListParams::default().labels(AGENT_SELECTOR);
    let what = "list the agents' pods";
    cluster
        .each(what, &api, &params, Agents::new, |all, pod| {
            keep(all, SeenAgent::of(&pod));
        })
        .await
}

/// Of two agents on one node, the one that is ready counts.
fn keep(all: &mut Agents, agent: Option<SeenAgent>) {
    if let Some(agent) = agent {
        let known = all.get(&agent.node);
        if known.is_none_or(|known| !known.ready) {
            all.insert(agent.node.clone(), agent);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// When nodes of tests have written their conditions, after any release.
    const WRITTEN: &str = "2026-01-01T12:04:00Z";

    /// A node that is well, with this condition.
    pub(crate) fn node(name: &str, fallback: Option<(bool, &str)>) -> SeenNode {
        SeenNode {
            name: name.to_owned(),
            ready: true,
            fallback: fallback.map(|(on, message)| Fallback {
                on,
                of: FallenBack::read(message),
                written: WRITTEN.parse().ok(),
            }),
            kubelet: "v1.37.2".to_owned(),
            runtime: "containerd://2.4.2".to_owned(),
            ..SeenNode::default()
        }
    }

    /// An agent on that node.
    pub(crate) fn agent(node: &str, ready: bool) -> SeenAgent {
        SeenAgent {
            namespace: "trylatest-system".into(),
            name: format!("trylatest-agent-{node}"),
            node: node.to_owned(),
            ready,
            image: "ghcr.io/trylatest/trylatest:0.1.0".into(),
            pull_policy: "IfNotPresent".into(),
            created: None,
        }
    }

    /// The agents of these nodes, by whether they are ready.
    pub(crate) fn agents_of(all: &[(&str, bool)]) -> Agents {
        let agents = all.iter().map(|(name, ready)| agent(name, *ready));
        agents.map(|agent| (agent.node.clone(), agent)).collect()
    }

    #[test]
    fn an_agent_is_missed_only_where_one_belongs() {
        let agents = agents_of(&[("ready", true), ("starts", false)]);
        let state = |node: &SeenNode| AgentState::of(node, Some(&agents));
        assert_eq!(state(&node("ready", None)), AgentState::Ready);
        assert_eq!(state(&node("starts", None)), AgentState::NotReady);
        assert_eq!(state(&node("none", None)), AgentState::Missing);
        let mut windows = node("none", None);
        windows.place = Place::Foreign;
        assert_eq!(state(&windows), AgentState::NotWanted);
        let mut away = node("starts", None);
        away.ready = false;
        assert_eq!(state(&away), AgentState::NotWanted);
        assert_eq!(AgentState::of(&away, None), AgentState::Unknown);
    }

    /// The pod of an agent.
    fn agent_pod(namespace: &str, node: &str, ready: bool) -> Value {
        json!({
            "metadata": {
                "namespace": namespace, "name": format!("agent-{node}"),
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "1", "controller": true,
                }],
            },
            "spec": {
                "nodeName": node,
                "containers": [{"name": "agent", "image": "trylatest"}],
                "volumes": [{"name": "containerd", "hostPath": {"path": "/run/containerd"}}],
            },
            "status": {"conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }},
            ]},
        })
    }

    /// The agents that these pods are.
    fn agents_among(pods: &[Value]) -> Agents {
        let mut all = Agents::new();
        for pod in pods {
            let pod = serde_json::from_value(pod.clone()).unwrap();
            keep(&mut all, SeenAgent::of(&pod));
        }
        all
    }

    #[test]
    fn a_pod_that_only_has_the_labels_is_no_agent() {
        let own = agent_pod("system", "n", false);
        for (part, change) in [
            ("/metadata/ownerReferences", json!([])),
            ("/metadata/ownerReferences/0/kind", json!("ReplicaSet")),
            ("/metadata/ownerReferences/0/controller", json!(false)),
            (
                "/metadata/ownerReferences/0/apiVersion",
                json!("shop.example/v1"),
            ),
            ("/spec/volumes", json!([])),
        ] {
            let mut other = agent_pod("system", "n", true);
            *other.pointer_mut(part).unwrap() = change;
            let agents = agents_among(&[own.clone(), other]);
            assert!(!agents["n"].ready, "{part}");
        }
        // An agent that is being replaced by the next one.
        let next = agent_pod("system", "n", true);
        assert!(agents_among(&[next, own])["n"].ready);
    }

    #[test]
    fn a_node_that_took_its_condition_back_has_no_old_copy() {
        let image = "reg.example/app:1".parse().unwrap();
        let released = "2026-01-01T12:00:00.7Z".parse().unwrap();
        let others = "reg.example/other:1 (sha256:a): network; ".repeat(200);
        let long = |last: &str| format!("{others}{last} (sha256:a): network");
        let (named, unnamed) = (long("reg.example/app:1"), long("reg.example/app:10"));
        for (fallback, still) in [
            (None, true),
            (Some((false, "no pod runs one")), false),
            (Some((true, "reg.example/app:1 (sha256:a): network")), true),
            (
                Some((true, "reg.example/other:1 (sha256:a): network")),
                false,
            ),
            // Of another tag, whose name begins with this one.
            (
                Some((true, "reg.example/app:10 (sha256:a): network")),
                false,
            ),
            (Some((true, named.as_str())), true),
            (Some((true, unnamed.as_str())), false),
            (
                Some((true, "reg.example/other:1: network; and 3 more")),
                true,
            ),
        ] {
            assert_eq!(
                node("n", fallback).still_falls_back(Some(&image), released),
                still,
                "{fallback:?}"
            );
        }
    }

    /// Its agent may be dead, or writes a little later.
    #[test]
    fn a_condition_is_not_believed_of_a_pod_that_was_released_later() {
        let image = "reg.example/app:1".parse().unwrap();
        let released = "2026-01-01T12:00:00.7Z".parse().unwrap();
        for message in [
            (false, "no pod runs one"),
            (true, "reg.example/other:1: network"),
        ] {
            let mut node = node("n", Some(message));
            for (written, still) in [
                (None, true),
                (Some("2026-01-01T11:59:59Z"), true),
                // Before or after it in the same second.
                (Some("2026-01-01T12:00:00Z"), true),
                (Some("2026-01-01T12:00:01Z"), false),
            ] {
                let fallback = node.fallback.as_mut().unwrap();
                fallback.written = written.map(|time| time.parse().unwrap());
                let falls_back = node.still_falls_back(Some(&image), released);
                assert_eq!(falls_back, still, "{message:?}, {written:?}");
            }
        }
        // No condition names what is not an image's name.
        for on in [true, false] {
            let node = node("n", Some((on, "reg.example/app:1: network")));
            assert_eq!(node.still_falls_back(None, released), on);
        }
    }

    #[test]
    fn a_node_is_read() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n", "annotations": {
                keys::NODE_SUMMARY: "2 images\n",
                keys::NODE_IMAGES: "none\nNOT-ASKED network  reg.\u{1b}example  since 2026-01-01T12:03Z",
            }},
            "spec": {"unschedulable": true},
            "status": {"conditions": [
                {"type": "Ready", "status": "True"},
                {
                    "type": keys::NODE_CONDITION, "status": "True", "message": "app",
                    "lastHeartbeatTime": WRITTEN,
                },
            ]},
        }))
        .unwrap();
        let seen = SeenNode::of(&node);
        assert!(seen.ready && !seen.disk_pressure);
        assert_eq!(seen.place, Place::Cordoned);
        assert_eq!(seen.summary.as_deref(), Some("2 images "));
        assert_eq!(seen.open[0].registry, "reg. example");
        let fallback = seen.fallback.unwrap();
        assert!(fallback.on);
        assert_eq!(fallback.written, WRITTEN.parse().ok());
    }
}
