//! `status`: one screen of what runs.
//!
//! Pods are folded into counts as their pages arrive, so that a large cluster needs little memory here.

mod fold;
mod render;

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde::Serialize;
use trylatest_core::digest::Digest;
use trylatest_core::keys;
use trylatest_core::outcome::FailureClass;

use self::fold::Fold;
use crate::args::StatusArgs;
use crate::cluster::{Cluster, Looked, Unseen, now};
use crate::nodes::{AgentState, Agents, Place, SeenNode, agents, nodes};
use crate::output;

/// What `status` answers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// When it was looked.
    time: Timestamp,
    /// The namespace whose pods were looked at; none if it was all of them.
    namespace: Option<String>,
    /// TryLatest pods that have not ended; none if they could not be looked at.
    pods: Option<usize>,
    /// Of these, pods that run a copy although their try had failed, and that nobody has confirmed since.
    pods_from_cache: usize,
    /// Of the others, pods without a gate whose tag has moved since they started.
    pods_behind: usize,
    /// Pods that are not among the troubled ones and may have started, and of which no agent has said from what.
    pods_unreported: usize,
    /// The worst first.
    nodes: Vec<NodeStatus>,
    /// Images of which pods run an old copy.
    stale: Vec<StaleImage>,
    /// Images of which pods run several digests.
    skew: Vec<SkewedImage>,
    /// Registries that nodes do not ask for each pod now, as their agents say it.
    open_circuits: Vec<OpenCircuit>,
    /// Registries that failed for these pods.
    registries: Vec<FailingRegistry>,
    /// Pods that wait, must not start, or started without an answer; the worst of them.
    troubled: Vec<TroubledPod>,
    /// How many of them there are, with those that are left out.
    troubles: BTreeMap<Trouble, usize>,
    /// What was too much to be kept: so many more images, and pods of the last list.
    left_out: LeftOut,
    /// What could not be looked at, and why.
    not_seen: Vec<String>,
}

/// What did not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LeftOut {
    images: usize,
    troubled: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    name: String,
    ready: bool,
    schedulable: bool,
    agent: AgentState,
    /// The condition `TryLatestFallback`, if the node has it.
    fallback: Option<bool>,
    summary: Option<String>,
}

/// An image of which a pod runs an old copy.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StaleImage {
    image: String,
    /// Pods that fell back to a copy.
    pods: usize,
    /// Those among them whose copy the image's name was pointed back to by hand.
    rolled_back: usize,
    /// Pods without a gate whose tag has moved since they started.
    behind: usize,
    /// Other pods of it that were refused a copy.
    refused: usize,
    /// Other pods of it that wait, because there is nothing for them to start from.
    unavailable: usize,
    nodes: usize,
    digests: Vec<Digest>,
    /// Why their tries failed.
    classes: Vec<FailureClass>,
    /// When the registry last confirmed the oldest of these copies, those that were rolled back to left out; none if one
    /// was never confirmed.
    confirmed: Option<Timestamp>,
}

/// An image of which pods run several digests.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SkewedImage {
    image: String,
    /// The one that most pods run first.
    digests: Vec<DigestUse>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct DigestUse {
    digest: Digest,
    pods: usize,
    nodes: usize,
    /// When a pod was last released with it.
    released: Timestamp,
}

/// A registry that has failed and is not asked for each pod: who has a copy takes it at once.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct OpenCircuit {
    registry: String,
    /// Nodes that do not ask it.
    nodes: usize,
    /// How it failed when they stopped.
    classes: BTreeSet<FailureClass>,
    /// When the first of them stopped.
    since: Timestamp,
}

/// A registry that failed for pods which run a copy because of that.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FailingRegistry {
    registry: String,
    pods: usize,
    nodes: usize,
    classes: Vec<FailureClass>,
    /// When it last failed for one of them.
    last: Timestamp,
}

/// What is the matter with a pod, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Trouble {
    /// It has a copy that it must not use.
    Refused,
    /// The kubelet cannot get its gate's image.
    GateImage,
    /// Neither a pull nor a copy.
    Unavailable,
    /// It waits for its agent.
    Waiting,
    /// It has started, and nobody had answered.
    Unanswered,
    /// Another policy changes its pull policies.
    Overruled,
}

impl Trouble {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::GateImage => "gate image",
            Self::Unavailable => "unavailable",
            Self::Waiting => "waiting",
            Self::Unanswered => "unanswered",
            Self::Overruled => "overruled",
        }
    }
}

/// A pod that waits, must not start, or started without an answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TroubledPod {
    trouble: Trouble,
    namespace: String,
    name: String,
    node: Option<String>,
    /// Since when.
    since: Option<Timestamp>,
    why: String,
}

/// Prints what runs.
///
/// # Errors
/// Neither nodes nor pods can be looked at, or stdout cannot be written.
pub(crate) async fn run(cluster: &Cluster, args: &StatusArgs) -> anyhow::Result<()> {
    let StatusArgs {
        all,
        all_namespaces,
        output,
        place: _,
    } = *args;
    let scope = match cluster.named_namespace() {
        _ if all_namespaces => Scope::All,
        Some(namespace) => Scope::One(namespace),
        None => Scope::AllOrOwn,
    };
    let (nodes, agents) = tokio::join!(nodes(cluster), agents(cluster));
    let pods = pods(cluster, nodes.as_deref().unwrap_or_default(), scope).await;
    if let (Err(nodes), Err(pods)) = (&nodes, &pods) {
        anyhow::bail!("{}; {}", nodes.why(), pods.why());
    }
    let status = Status::new(now(), nodes, agents.as_ref(), pods);
    output::print(output, &status, |status| {
        render::text(status, all, std::io::stdout().is_terminal())
    })
}

/// Whose pods are looked at.
#[derive(Clone, Copy, Debug)]
enum Scope<'a> {
    /// Those of all namespaces.
    All,
    /// The same; if the user may not list them, those of the context's namespace.
    AllOrOwn,
    /// Those of this one.
    One(&'a str),
}

async fn pods(cluster: &Cluster, nodes: &[SeenNode], scope: Scope<'_>) -> Looked<Fold> {
    let params = ListParams::default().labels(keys::GATED);
    let list = async |namespace: Option<&str>| {
        let api = cluster.api::<Pod>(namespace);
        let begin = || Fold::new(nodes, namespace);
        cluster
            .each("list pods", &api, &params, begin, |fold, pod| {
                fold.pod(&pod);
            })
            .await
    };
    match (scope, list(scope.namespace()).await) {
        // Not every user may look into every namespace.
        (Scope::AllOrOwn, Err(Unseen::Forbidden(why))) => {
            let mut own = list(Some(cluster.namespace())).await?;
            own.not_seen(format!(
                "{why}; only the namespace {} was looked at",
                cluster.namespace()
            ));
            Ok(own)
        }
        (_, pods) => pods,
    }
}

impl<'a> Scope<'a> {
    /// The namespace to list, if it is one.
    fn namespace(self) -> Option<&'a str> {
        match self {
            Self::All | Self::AllOrOwn => None,
            Self::One(namespace) => Some(namespace),
        }
    }
}

impl Status {
    fn new(
        time: Timestamp,
        nodes: Looked<Vec<SeenNode>>,
        agents: Result<&Agents, &Unseen>,
        pods: Looked<Fold>,
    ) -> Self {
        let mut not_seen: Vec<String> = Vec::new();
        not_seen.extend(nodes.as_ref().err().map(|unseen| unseen.why().to_owned()));
        not_seen.extend(agents.err().map(|unseen| unseen.why().to_owned()));
        let mut status = match pods {
            Ok(fold) => fold.finish(time),
            Err(unseen) => {
                not_seen.push(unseen.why().to_owned());
                Self {
                    pods: None,
                    ..Fold::new(&[], None).finish(time)
                }
            }
        };
        status.not_seen.splice(0..0, not_seen);
        let state = |node: &SeenNode| AgentState::of(node, agents.ok());
        let nodes = nodes.unwrap_or_default();
        // What an agent that is away has written last may be long over.
        let current = nodes
            .iter()
            .filter(|node| matches!(state(node), AgentState::Ready | AgentState::Unknown));
        status.open_circuits = open_circuits(current);
        status.nodes = nodes
            .into_iter()
            .map(|node| NodeStatus {
                agent: state(&node),
                name: node.name,
                ready: node.ready,
                schedulable: node.place == Place::Open,
                fallback: node.fallback.map(|fallback| fallback.on),
                summary: node.summary,
            })
            .collect();
        let rank = |node: &NodeStatus| (node.agent, node.fallback != Some(true));
        status
            .nodes
            .sort_by(|a, b| (rank(a), &a.name).cmp(&(rank(b), &b.name)));
        status
    }
}

/// The registry that most nodes do not ask comes first.
fn open_circuits<'a>(nodes: impl Iterator<Item = &'a SeenNode>) -> Vec<OpenCircuit> {
    let mut all: BTreeMap<&str, OpenCircuit> = BTreeMap::new();
    for open in nodes.flat_map(|node| &node.open) {
        let circuit = all.entry(&open.registry).or_insert_with(|| OpenCircuit {
            registry: open.registry.clone(),
            nodes: 0,
            classes: BTreeSet::new(),
            since: open.since,
        });
        circuit.nodes += 1;
        circuit.classes.insert(open.class);
        circuit.since = circuit.since.min(open.since);
    }
    let mut all: Vec<_> = all.into_values().collect();
    all.sort_by_key(|circuit| std::cmp::Reverse(circuit.nodes));
    all
}

#[cfg(test)]
mod tests;
