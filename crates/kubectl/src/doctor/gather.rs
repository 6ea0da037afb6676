//! Everything that the rules want to know, asked once.

use std::collections::BTreeMap;

use anyhow::bail;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, ApiResource, DynamicObject, GetParams, GroupVersionKind, ListParams};
use kube::core::Request;
use serde_json::Value;
use trylatest_core::keys;
use trylatest_core::text;

use super::admission::Rule;
use crate::cluster::{Cluster, Looked, Unseen};
use crate::nodes::{Agents, Place, SeenNode, agents, nodes};

/// Kubelets that are asked at a time.
const AT_ONCE: usize = 8;

/// Most objects of a kind that are kept.
const OBJECTS_MAX: usize = 5_000;

/// Longest answer of a kubelet that is read.
const CONFIGZ_MAX: usize = 1 << 20;

/// The label of everything that the manifests make.
const OURS: &str = "app.kubernetes.io/name=trylatest";

/// What was found out, or why not.
pub(super) struct Facts {
    /// The API server's version.
    pub(super) server: Looked<String>,
    /// `MutatingAdmissionPolicy`; absent if the API server does not know the kind.
    pub(super) mutating: Looked<Vec<Policy>>,
    pub(super) mutating_bindings: Looked<Vec<Policy>>,
    pub(super) validating: Looked<Vec<Policy>>,
    pub(super) validating_bindings: Looked<Vec<Policy>>,
    pub(super) webhooks: Looked<Vec<Webhook>>,
    pub(super) daemon_sets: Looked<Vec<AgentSet>>,
    pub(super) nodes: Looked<Vec<SeenNode>>,
    pub(super) agents: Looked<Agents>,
    pub(super) leases: Looked<Vec<Renewal>>,
    /// The flags of the API servers that run as pods.
    pub(super) server_flags: Looked<Vec<String>>,
    /// Pods whose gate another policy has taken away.
    pub(super) overruled: Looked<Vec<String>>,
    /// What agents said of a refused configuration.
    pub(super) refused_config: Looked<Vec<String>>,
    pub(super) kubelets: Looked<Kubelets>,
}

/// A policy, or the binding of one.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) spec: Value,
}

/// A webhook that changes objects.
#[derive(Clone, Debug)]
pub(super) struct Webhook {
    pub(super) name: String,
    pub(super) rules: Vec<Rule>,
}

/// The agents' DaemonSet.
#[derive(Clone, Debug)]
pub(super) struct AgentSet {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) image: String,
    pub(super) pull_policy: String,
}

/// A node's last sign of life: by its clock, and by the API server's.
#[derive(Clone, Debug)]
pub(super) struct Renewal {
    pub(super) node: String,
    pub(super) renewed: Timestamp,
    pub(super) written: Timestamp,
}

/// The kubelets' configurations.
#[derive(Clone, Debug, Default)]
pub(super) struct Kubelets {
    pub(super) configs: BTreeMap<String, Value>,
    /// Nodes that there are, without those on which no agent belongs.
    pub(super) of: usize,
    /// Of a kubelet that did not answer, the words.
    pub(super) failed: BTreeMap<String, String>,
}

/// Asks everything.
///
/// # Errors
/// The API server does not answer at all.
pub(super) async fn gather(cluster: &Cluster, kubelets_max: usize) -> anyhow::Result<Facts> {
    let server = cluster.ask(
        "ask for the API server's version",
        cluster.client.apiserver_version(),
    );
    let server = server
        .await
        .map(|info| text::on_one_line(&info.git_version));
    if let Err(Unseen::Failed(why)) = &server {
        bail!("{why}");
    }
    let (mutating, mutating_bindings, validating, validating_bindings) = tokio::join!(
        policies(cluster, "MutatingAdmissionPolicy"),
        policies(cluster, "MutatingAdmissionPolicyBinding"),
        policies(cluster, "ValidatingAdmissionPolicy"),
        policies(cluster, "ValidatingAdmissionPolicyBinding"),
    );
    let (webhooks, daemon_sets, nodes, agents) = tokio::join!(
        webhooks(cluster),
        daemon_sets(cluster),
        nodes(cluster),
        agents(cluster)
    );
    let (leases, server_flags, overruled, refused_config) = tokio::join!(
        leases(cluster),
        server_flags(cluster),
        overruled(cluster),
        refused_config(cluster, &daemon_sets),
    );
    let kubelets = kubelets(cluster, &nodes, kubelets_max).await;
    Ok(Facts {
        server,
        mutating,
        mutating_bindings,
        validating,
        validating_bindings,
        webhooks,
        daemon_sets,
        nodes,
        agents,
        leases,
        server_flags,
        overruled,
        refused_config,
        kubelets,
    })
}

/// A push that is bounded.
fn keep<T>(all: &mut Vec<T>, one: T) {
    if all.len() < OBJECTS_MAX {
        all.push(one);
    }
}

fn admission(cluster: &Cluster, kind: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
    let plural = match kind.strip_suffix("Policy") {
        Some(start) => format!("{start}policies"),
        None => format!("{kind}s"),
    };
    let resource = ApiResource::from_gvk_with_plural(&gvk, &plural.to_lowercase());
    Api::all_with(cluster.client.clone(), &resource)
}

async fn policies(cluster: &Cluster, kind: &str) -> Looked<Vec<Policy>> {
    let api = admission(cluster, kind);
    let what = format!("list {kind}");
    let fold = |all: &mut Vec<Policy>, object: DynamicObject| {
        let policy = Policy {
            name: object.metadata.name.clone().unwrap_or_default(),
            spec: object.data["spec"].clone(),
        };
        keep(all, policy);
    };
    let params = ListParams::default();
    cluster.each(&what, &api, &params, Vec::new, fold).await
}

async fn webhooks(cluster: &Cluster) -> Looked<Vec<Webhook>> {
    let kind = "MutatingWebhookConfiguration";
    let api = admission(cluster, kind);
    let fold = |all: &mut Vec<Webhook>, object: DynamicObject| {
        let configuration = object.metadata.name.clone().unwrap_or_default();
        let webhooks = object.data["webhooks"].as_array().cloned();
        for webhook in webhooks.unwrap_or_default() {
            let name = webhook["name"].as_str().unwrap_or_default();
            let webhook = Webhook {
                name: format!("{configuration}/{name}"),
                rules: Rule::all(&webhook["rules"]),
            };
            keep(all, webhook);
        }
    };
    let what = format!("list {kind}");
    let params = ListParams::default();
    cluster.each(&what, &api, &params, Vec::new, fold).await
}

async fn daemon_sets(cluster: &Cluster) -> Looked<Vec<AgentSet>> {
    let api = cluster.api::<DaemonSet>(None);
    let fold = |all: &mut Vec<AgentSet>, set: DaemonSet| {
        let containers = set
            .spec
            .and_then(|spec| spec.template.spec)
            .map(|spec| spec.containers);
        let containers = containers.unwrap_or_default();
        let agent = containers
            .iter()
            .find(|container| container.name == "agent");
        if let Some(agent) = agent.or_else(|| containers.first()) {
            let set = AgentSet {
                namespace: set.metadata.namespace.clone().unwrap_or_default(),
                name: set.metadata.name.clone().unwrap_or_default(),
                image: text::on_one_line(agent.image.as_deref().unwrap_or_default()),
                pull_policy: agent.image_pull_policy.clone().unwrap_or_default(),
            };
            keep(all, set);
        }
    };
    let params = ListParams::default().labels(OURS);
    let what = "list the agents' DaemonSet";
    cluster.each(what, &api, &params, Vec::new, fold).await
}

async fn leases(cluster: &Cluster) -> Looked<Vec<Renewal>> {
    let api = cluster.api::<Lease>(Some("kube-node-lease"));
    let fold = |all: &mut Vec<Renewal>, lease: Lease| all.extend(renewal(&lease));
    let params = ListParams::default();
    cluster
        .each("list the nodes' leases", &api, &params, Vec::new, fold)
        .await
}

/// The API server notes when it has written somebody's field.
fn renewal(lease: &Lease) -> Option<Renewal> {
    let renewed = lease.spec.as_ref()?.renew_time.as_ref()?.0;
    let managers = lease.metadata.managed_fields.iter().flatten();
    let written = managers
        .filter_map(|manager| manager.time.as_ref())
        .map(|time| time.0);
    Some(Renewal {
        node: lease.metadata.name.clone()?,
        renewed,
        written: written.max()?,
    })
}

async fn server_flags(cluster: &Cluster) -> Looked<Vec<String>> {
    let api = cluster.api::<Pod>(Some("kube-system"));
    let fold = |all: &mut Vec<String>, pod: Pod| {
        let containers = pod.spec.map(|spec| spec.containers).unwrap_or_default();
        for container in containers {
            let words = container
                .command
                .into_iter()
                .chain(container.args)
                .flatten();
            words.for_each(|word| keep(all, word));
        }
    };
    let params = ListParams::default().labels("component=kube-apiserver");
    let what = "look for the API server's flags";
    cluster.each(what, &api, &params, Vec::new, fold).await
}

async fn overruled(cluster: &Cluster) -> Looked<Vec<String>> {
    let api = cluster.api::<Pod>(None);
    let label = format!("{}={}", keys::GATED, keys::GATED_OVERRULED);
    let params = ListParams::default().labels(&label);
    let fold = |all: &mut Vec<String>, pod: Pod| {
        let namespace = pod.metadata.namespace.unwrap_or_default();
        let name = pod.metadata.name.unwrap_or_default();
        keep(all, format!("{namespace}/{name}"));
    };
    let what = "list pods that are overruled";
    cluster.each(what, &api, &params, Vec::new, fold).await
}

async fn refused_config(cluster: &Cluster, sets: &Looked<Vec<AgentSet>>) -> Looked<Vec<String>> {
    let sets = match sets {
        Ok(sets) => sets,
        Err(unseen) => return Err(unseen.clone()),
    };
    let mut all = Vec::new();
    for set in sets {
        let api = cluster.api::<Event>(Some(&set.namespace));
        let params = ListParams::default().fields("reason=TryLatestConfig,type=Warning");
        let fold = |all: &mut Vec<String>, event: Event| {
            keep(
                all,
                text::on_one_line(event.message.as_deref().unwrap_or_default()),
            );
        };
        let what = "list the agents' Events";
        all.extend(cluster.each(what, &api, &params, Vec::new, fold).await?);
    }
    Ok(all)
}

async fn kubelets(
    cluster: &Cluster,
    nodes: &Looked<Vec<SeenNode>>,
    most: usize,
) -> Looked<Kubelets> {
    let nodes = match nodes {
        Ok(nodes) => nodes,
        Err(unseen) => return Err(unseen.clone()),
    };
    let own = nodes.iter().filter(|node| node.place != Place::Foreign);
    let asked = own.clone().filter(|node| node.ready).take(most);
    let names: Vec<_> = asked.map(|node| node.name.clone()).collect();
    let mut answers = futures::stream::iter(names)
        .map(async |name| {
            let answer = configz(cluster, &name).await;
            (name, answer)
        })
        .buffer_unordered(AT_ONCE);
    let mut kubelets = Kubelets {
        of: own.count(),
        ..Kubelets::default()
    };
    while let Some((node, answer)) = answers.next().await {
        match answer {
            Ok(config) => {
                kubelets.configs.insert(node, config);
            }
            // The right is the same for all nodes.
            Err(Unseen::Forbidden(why)) => return Err(Unseen::Forbidden(why)),
            Err(unseen) => {
                // The report says what could not be looked at itself.
                let attempted = format!("{}: ", get_configz(&node));
                let why = unseen.why();
                let why = why.strip_prefix(&attempted).unwrap_or(why).to_owned();
                kubelets.failed.insert(node, why);
            }
        }
    }
    Ok(kubelets)
}

fn get_configz(node: &str) -> String {
    format!("get the kubelet's configuration of {node}")
}

/// What the kubelet says of its configuration, through the API server.
async fn configz(cluster: &Cluster, node: &str) -> Looked<Value> {
    let what = get_configz(node);
    let request = Request::new(format!("/api/v1/nodes/{node}/proxy"));
    let failed = |why: String| Unseen::Failed(format!("{what}: {why}"));
    let request = request.get("configz", &GetParams::default());
    let request = request.map_err(|error| failed(error.to_string()))?;
    let answer = cluster
        .ask(&what, cluster.client.request_text(request))
        .await?;
    if answer.len() > CONFIGZ_MAX {
        return Err(failed("the answer is too long".to_owned()));
    }
    let mut answer: Value =
        serde_json::from_str(&answer).map_err(|error| failed(error.to_string()))?;
    Ok(answer["kubeletconfig"].take())
}
