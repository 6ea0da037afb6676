//! What the agent may change: with the token of a pod on a node, as the kubelet gives it one.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api as Objects, Client};
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_core::node::NodeReport;
use trylatest_core::pod::{OtherPolicy, Overruled, PodId, Trace};
use trylatest_core::release::Release;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::suite::Case;
use trylatest_k8s::{ApiError, Notice, Writer};

use crate::space::{Space, container, pod_of};
use crate::{Api, SOON};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![
        Case::new("the_agent_annotates_its_pods", annotates_its_pods),
        Case::new("the_agent_reports_on_its_node", reports_on_its_node),
        Case::new("the_agent_sees_which_pods_are_gone", sees_what_is_gone),
        Case::new("the_agent_tells_events", tells_events),
        Case::new("the_agent_may_nothing_else", may_nothing_else),
        Case::new("a_token_without_a_node_is_worth_nothing", without_a_node),
        Case::new("another_namespace_gives_no_more", elsewhere),
        Case::new("every_status_field_is_guarded", every_status_field),
    ]
}

const NAMESPACE: &str = "trylatest-system";

/// Two nodes with an agent each, and the rights of the first.
struct Agents<'a> {
    space: Space<'a>,
    node: String,
    other: String,
    client: Client,
}

impl<'a> Agents<'a> {
    async fn make(api: &'a Api) -> anyhow::Result<Self> {
        let space = api.space("agents").await?;
        let [node, other] = ["a", "b"].map(|end| format!("{}-{end}", space.name()));
        for name in [&node, &other] {
            let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {
                "name": name, "annotations": {"example.com/own": "x"},
            }});
            space.create(&object).await?;
            let status = json!({"status": {
                "capacity": {"cpu": "1"}, "allocatable": {"cpu": "1"},
                "conditions": [
                    {"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "True"},
                ],
            }});
            let nodes: Objects<Node> = Objects::all(api.plane.client());
            nodes
                .patch_status(name, &PatchParams::default(), &Patch::Strategic(&status))
                .await?;
        }
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": node, "namespace": NAMESPACE},
            "spec": {
                "nodeName": node, "serviceAccountName": "trylatest-agent",
                "tolerations": [{"operator": "Exists"}],
                "containers": [container("agent", "Always")],
            },
        });
        let pods: Objects<Pod> = Objects::namespaced(api.plane.client(), NAMESPACE);
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
            .await?;
        let client = client(
            api,
            &[
                "--bound-object-kind=Pod",
                &format!("--bound-object-name={node}"),
            ],
        )
        .await?;
        let agents = Self {
            space,
            node,
            other,
            client,
        };
        agents.policies_work().await?;
        Ok(agents)
    }

    /// Policies work a moment after they were made: until each has refused something.
    async fn policies_work(&self) -> anyhow::Result<()> {
        let own = self.pod("probe", &self.node).await?;
        let foreign = annotations(&json!({"example.com/foreign": "x"}));
        let dry = PatchParams {
            dry_run: true,
            ..PatchParams::default()
        };
        wait::until("the policies work", SOON, || async {
            let pod = self.pods().patch(&own, &dry, &Patch::Merge(&foreign)).await;
            let node = self
                .nodes()
                .patch(&self.node, &dry, &Patch::Merge(&foreign))
                .await;
            let event = self.event("someone-else", &self.node).await;
            let all = pod.is_err() && node.is_err() && event.is_err();
            Ok(all.then_some(()))
        })
        .await
    }

    /// A pod on a node.
    async fn pod(&self, name: &str, node: &str) -> anyhow::Result<String> {
        let spec = json!({
            "nodeName": node, "tolerations": [{"operator": "Exists"}],
            "containers": [container("app", "TryLatest")],
        });
        let annotations = json!({"example.com/own": "x"});
        self.space
            .create(&pod_of(name, &annotations, &spec))
            .await?;
        Ok(name.to_owned())
    }

    fn pods(&self) -> Objects<Pod> {
        Objects::namespaced(self.client.clone(), self.space.name())
    }

    fn nodes(&self) -> Objects<Node> {
        Objects::all(self.client.clone())
    }

    async fn patch_pod(&self, name: &str, patch: &Value) -> kube::Result<Pod> {
        let params = PatchParams::default();
        self.pods().patch(name, &params, &Patch::Merge(patch)).await
    }

    async fn patch_node(&self, name: &str, patch: &Value) -> kube::Result<Node> {
        let params = PatchParams::default();
        let patch = Patch::Merge(patch);
        self.nodes().patch_status(name, &params, &patch).await
    }

    async fn patch_status(&self, name: &str, status: &Value) -> kube::Result<Node> {
        let params = PatchParams::default();
        let patch = json!({ "status": status });
        self.nodes()
            .patch_status(name, &params, &Patch::Strategic(&patch))
            .await
    }

    async fn event(&self, controller: &str, instance: &str) -> kube::Result<Event> {
        let event = json!({
            "metadata": {"generateName": "event-"},
            "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal",
            "reason": "Pulled", "action": "TryLatest", "note": "unchanged",
            "reportingController": controller, "reportingInstance": instance,
            "regarding": {"kind": "Pod", "namespace": self.space.name(), "name": "app"},
        });
        let event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
        Objects::namespaced(self.client.clone(), self.space.name())
            .create(&PostParams::default(), &event)
            .await
    }
}

/// A client with a token of the agent's service account, asked for with these flags.
async fn client(api: &Api, flags: &[&str]) -> anyhow::Result<Client> {
    client_of(api, NAMESPACE, flags).await
}

async fn client_of(api: &Api, namespace: &str, flags: &[&str]) -> anyhow::Result<Client> {
    let create = ["-n", namespace, "create", "token", "trylatest-agent"];
    let token = api.plane.kubectl(&[&create[..], flags].concat()).await?;
    let kubeconfig = Kubeconfig::read_from(api.plane.kubeconfig())?;
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    config.auth_info = kube::config::AuthInfo {
        token: Some(token.trim().to_owned().into()),
        ..kube::config::AuthInfo::default()
    };
    Ok(Client::try_from(config)?)
}

fn annotations(annotations: &Value) -> Value {
    json!({"metadata": {"annotations": annotations}})
}

/// Fails unless the API server has refused, by a rule with these words.
fn refused<T>(answer: kube::Result<T>, what: &str, words: &str) -> anyhow::Result<()> {
    match answer {
        Ok(_) => bail!("it may: {what}"),
        Err(kube::Error::Api(status)) if status.message.contains(words) => Ok(()),
        Err(error) => bail!("{what}: refused for another reason: {error}"),
    }
}

/// What RBAC says.
const NO_RIGHT: &str = "is forbidden: User";

async fn annotates_its_pods(api: Arc<Api>) -> anyhow::Result<()> {
    let agents = Agents::make(&api).await?;
    let own = agents.pod("own", &agents.node).await?;
    let other = agents.pod("other", &agents.other).await?;
    for value in [
        json!({ keys::RELEASED: "{}", keys::PROGRESS: "{}" }),
        json!({ keys::RELEASED: "{}", keys::PROGRESS: null }),
    ] {
        agents.patch_pod(&own, &annotations(&value)).await?;
    }
    refused(
        agents
            .patch_pod(&other, &annotations(&json!({ keys::RELEASED: "{}" })))
            .await,
        "a pod of another node",
        "this token belongs to node",
    )?;
    for (what, change) in [
        ("a new annotation", json!({"example.com/new": "x"})),
        ("another's annotation", json!({"example.com/own": "y"})),
        (
            "another's annotation removed",
            json!({"example.com/own": null}),
        ),
        ("a setting", json!({ keys::TIMEOUT: "5s" })),
        ("template's word", json!({ keys::LITERAL: "app" })),
    ] {
        let answer = agents.patch_pod(&own, &annotations(&change)).await;
        refused(answer, what, "may change only the annotations")?;
    }
    for (what, change) in [
        ("a label", json!({"metadata": {"labels": {"a": "b"}}})),
        (
            "the gated label",
            json!({"metadata": {"labels": { keys::GATED: null }}}),
        ),
        (
            "a finalizer",
            json!({"metadata": {"finalizers": ["example.com/f"]}}),
        ),
        (
            "an owner",
            json!({"metadata": {"ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"},
            ]}}),
        ),
        ("a deadline", json!({"spec": {"activeDeadlineSeconds": 1}})),
    ] {
        let answer = agents.patch_pod(&own, &change).await;
        refused(answer, what, "may change only annotations of a pod")?;
    }
    let image = json!({"spec": {"containers": [{"name": "app", "image": "evil"}]}});
    let params = PatchParams::default();
    let answer = agents
        .pods()
        .patch(&own, &params, &Patch::Strategic(&image))
        .await;
    refused(answer, "an image", "may change only annotations of a pod")
}

/// A release meant for a pod of which only the name is left must not reach the one that has it now.
async fn sees_what_is_gone(api: Arc<Api>) -> anyhow::Result<()> {
    let agents = Agents::make(&api).await?;
    let name = agents.pod("own", &agents.node).await?;
    let writer = Writer::new(agents.client.clone(), &agents.node, SOON);
    let release = Release {
        time: Timestamp::UNIX_EPOCH,
        containers: [].into(),
        unseen: None,
    };
    let uid = agents.pods().get(&name).await?.metadata.uid;
    let here = PodId {
        namespace: agents.space.name().to_owned(),
        name,
        uid: uid.context("a uid")?,
    };
    writer.release(&here, &release).await?;
    let another = PodId {
        uid: "00000000-0000-0000-0000-000000000000".to_owned(),
        ..here.clone()
    };
    let never = PodId {
        name: "never".to_owned(),
        ..here.clone()
    };
    for gone in [another, never] {
        match writer.release(&gone, &release).await {
            Err(ApiError::Gone { .. }) => {}
            other => bail!("{gone:?}: {other:?}"),
        }
    }
    Ok(())
}

/// Annotations and condition in one patch, and both gone with another.
async fn writes_and_clears(agents: &Agents<'_>) -> anyhow::Result<()> {
    let writer = Writer::new(agents.client.clone(), &agents.node, SOON);
    let report = NodeReport::new(Vec::new(), false);
    let now = Timestamp::from_second(1_800_000_000)?;
    for clear in [false, true] {
        if clear {
            writer.clear_node().await?;
        } else {
            writer.report_node(&report, now, now).await?;
        }
        let node = agents.nodes().get(&agents.node).await?;
        let annotations = node.metadata.annotations.unwrap_or_default();
        let summary = annotations.get(keys::NODE_SUMMARY);
        let conditions = node.status.and_then(|status| status.conditions);
        let mut conditions = conditions.into_iter().flatten();
        let is_there = conditions.any(|condition| condition.type_ == keys::NODE_CONDITION);
        let written = (!clear).then_some(&report.summary);
        ensure!(
            summary == written && is_there != clear,
            "{summary:?}, {is_there}"
        );
    }
    Ok(())
}

async fn reports_on_its_node(api: Arc<Api>) -> anyhow::Result<()> {
    let agents = Agents::make(&api).await?;
    let (own, other) = (agents.node.as_str(), agents.other.as_str());
    let report = annotations(&json!({ keys::NODE_SUMMARY: "ok", keys::NODE_IMAGES: "[]" }));
    agents.patch_node(own, &report).await?;
    let ours = |status: &str| {
        json!({"conditions": [{
            "type": keys::NODE_CONDITION, "status": status, "reason": "R", "message": "m",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]})
    };
    for status in ["True", "False"] {
        let node = agents.patch_status(own, &ours(status)).await?;
        let conditions = node.status.and_then(|status| status.conditions);
        let count = conditions.map(|all| all.len());
        ensure!(count == Some(3), "{count:?}");
    }
    writes_and_clears(&agents).await?;
    for answer in [
        agents.patch_node(other, &report).await,
        agents.patch_status(other, &ours("True")).await,
    ] {
        refused(answer, "another node", "this token belongs to node")?;
    }
    for (what, change) in [
        ("new", json!({"example.com/new": "x"})),
        ("changed", json!({"example.com/own": "y"})),
        ("removed", json!({"example.com/own": null})),
    ] {
        let answer = agents.patch_node(own, &annotations(&change)).await;
        refused(answer, what, "may change only the annotations")?;
    }
    for (what, change) in [
        ("a label", json!({"metadata": {"labels": {"a": "b"}}})),
        (
            "a finalizer",
            json!({"metadata": {"finalizers": ["example.com/f"]}}),
        ),
    ] {
        let answer = agents.patch_node(own, &change).await;
        refused(answer, what, "may change only annotations and one")?;
    }
    for (what, change) in [
        ("an annotation of the node itself", report),
        ("a cordon", json!({"spec": {"unschedulable": true}})),
        (
            "a taint",
            json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}}),
        ),
    ] {
        let (params, change) = (PatchParams::default(), Patch::Merge(&change));
        let answer = agents.nodes().patch(own, &params, &change).await;
        refused(answer, what, NO_RIGHT)?;
    }
    leaves_the_status_alone(&agents).await
}

async fn leaves_the_status_alone(agents: &Agents<'_>) -> anyhow::Result<()> {
    for (what, change) in [
        (
            "Ready",
            json!({"conditions": [{"type": "Ready", "status": "False"}]}),
        ),
        (
            "a condition",
            json!({"conditions": [{"type": "Own", "status": "True"}]}),
        ),
        (
            "no Ready",
            json!({"conditions": [{"type": "Ready", "$patch": "delete"}]}),
        ),
        ("capacity", json!({"capacity": {"cpu": "2"}})),
        ("allocatable", json!({"allocatable": {"cpu": "2"}})),
        (
            "addresses",
            json!({"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}),
        ),
        ("images", json!({"images": [{"names": ["evil"]}]})),
        ("an attachment", json!({"volumesInUse": ["v"]})),
    ] {
        let answer = agents.patch_status(&agents.node, &change).await;
        refused(
            answer,
            what,
            "may change only the condition TryLatestFallback",
        )?;
    }
    Ok(())
}

async fn tells_events(api: Arc<Api>) -> anyhow::Result<()> {
    let agents = Agents::make(&api).await?;
    agents.event(keys::FIELD_MANAGER, &agents.node).await?;
    let words = "may only create Events about pods";
    for (what, controller, instance) in [
        ("as the kubelet", "kubelet", &agents.node),
        (
            "as another node's agent",
            keys::FIELD_MANAGER,
            &agents.other,
        ),
    ] {
        refused(agents.event(controller, instance).await, what, words)?;
    }
    // An Event that is written once has a name of its own; the second time is not a failure.
    let name = agents.pod("told", &agents.node).await?;
    let uid = agents.pods().get(&name).await?.metadata.uid;
    let pod = PodId {
        namespace: agents.space.name().to_owned(),
        name,
        uid: uid.context("a uid")?,
    };
    let writer = Writer::new(agents.client.clone(), &agents.node, SOON);
    let overruled = [Overruled {
        name: keys::GATE.to_owned(),
        policy: OtherPolicy::Always,
        trace: Trace::Policy,
    }];
    let notice = Notice::overruled(&pod, &overruled);
    for _ in 0..2 {
        writer.notify(&pod, &notice, Timestamp::UNIX_EPOCH).await?;
    }
    let events: Objects<Event> = Objects::namespaced(api.plane.client(), agents.space.name());
    let told = events.list(&ListParams::default()).await?;
    let told = told.items.into_iter().filter_map(|event| event.note);
    let told: Vec<_> = told.filter(|note| *note == notice.note).collect();
    ensure!(told.len() == 1, "{told:?}");
    Ok(())
}

async fn may_nothing_else(api: Arc<Api>) -> anyhow::Result<()> {
    let agents = Agents::make(&api).await?;
    let own = agents.pod("own", &agents.node).await?;
    let (pods, nodes) = (agents.pods(), agents.nodes());
    let post = PostParams::default();
    refused(
        pods.delete(&own, &DeleteParams::default()).await,
        "delete a pod",
        NO_RIGHT,
    )?;
    let pod: Pod = serde_json::from_value(pod_of(
        "new",
        &json!({}),
        &json!({"containers": [container("app", "Always")]}),
    ))?;
    refused(pods.create(&post, &pod).await, "create a pod", NO_RIGHT)?;
    let status = json!({"status": {"phase": "Failed"}});
    let params = PatchParams::default();
    let answer = pods
        .patch_status(&own, &params, &Patch::Merge(&status))
        .await;
    refused(answer, "a pod's status", NO_RIGHT)?;
    refused(
        nodes.delete(&agents.other, &DeleteParams::default()).await,
        "delete a node",
        NO_RIGHT,
    )?;
    refused(
        nodes.list(&ListParams::default()).await,
        "list nodes",
        NO_RIGHT,
    )?;
    let secrets: Objects<Secret> = Objects::namespaced(agents.client.clone(), agents.space.name());
    refused(
        secrets.list(&ListParams::default()).await,
        "list secrets",
        NO_RIGHT,
    )?;
    refused(secrets.get("any").await, "get a secret", NO_RIGHT)
}

/// Whoever takes the account's token by another way than from the agent's pod.
async fn without_a_node(api: Arc<Api>) -> anyhow::Result<()> {
    let mut agents = Agents::make(&api).await?;
    let own = agents.pod("own", &agents.node).await?;
    agents.client = client(&api, &[]).await?;
    let release = annotations(&json!({ keys::RELEASED: "{}" }));
    let words = "this token belongs to node ?";
    refused(agents.patch_pod(&own, &release).await, "a pod", words)?;
    let report = annotations(&json!({ keys::NODE_SUMMARY: "ok" }));
    refused(
        agents.patch_node(&agents.node, &report).await,
        "a node",
        words,
    )?;
    let event = agents.event(keys::FIELD_MANAGER, &agents.node).await;
    refused(event, "an Event", "may only create Events about pods")
}

/// An install that was moved to another namespace, with all that RBAC gives.
async fn elsewhere(api: Arc<Api>) -> anyhow::Result<()> {
    let mut agents = Agents::make(&api).await?;
    let own = agents.pod("own", &agents.node).await?;
    let namespace = agents.space.name().to_owned();
    let account = format!("{namespace}:trylatest-agent");
    for args in [
        vec![
            "-n",
            &namespace,
            "create",
            "serviceaccount",
            "trylatest-agent",
        ],
        vec![
            "-n",
            &namespace,
            "create",
            "rolebinding",
            "agent",
            "--clusterrole=trylatest-agent",
            "--serviceaccount",
            &account,
        ],
    ] {
        api.plane.kubectl(&args).await?;
    }
    agents.client = client_of(&api, &namespace, &[]).await?;
    let foreign = annotations(&json!({"example.com/foreign": "x"}));
    let words = "this token belongs to node ?";
    refused(agents.patch_pod(&own, &foreign).await, "a pod", words)
}

/// A field that a later Kubernetes brings must not be free to the agent.
async fn every_status_field(api: Arc<Api>) -> anyhow::Result<()> {
    let schema = api
        .plane
        .kubectl(&["get", "--raw", "/openapi/v3/api/v1"])
        .await?;
    let schema: Value = serde_json::from_str(&schema)?;
    let fields = &schema["components"]["schemas"]["io.k8s.api.core.v1.NodeStatus"]["properties"];
    let fields = fields.as_object().context("no fields")?;
    ensure!(fields.contains_key("conditions"), "{fields:?}");
    let policy = std::fs::read_to_string(api.manifests.join("policy/agent-rights.yaml"))?;
    for field in fields.keys().filter(|field| *field != "conditions") {
        ensure!(policy.contains(&format!("'{field}'")), "{field} is free");
    }
    Ok(())
}
