//! A namespace, used through kubectl as people do, and short ways to say what pods are.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_e2e::cluster::Namespace;

use crate::Api;

/// A namespace of one test.
pub(crate) struct Space<'a> {
    api: &'a Api,
    namespace: Namespace,
}

impl<'a> Space<'a> {
    pub(crate) async fn make(
        api: &'a Api,
        prefix: &str,
        labels: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let namespace = api.plane.namespace(prefix, labels).await?;
        Ok(Self { api, namespace })
    }

    pub(crate) fn name(&self) -> &str {
        self.namespace.name()
    }

    /// kubectl in this namespace.
    pub(crate) async fn kubectl(
        &self,
        args: &[&str],
        input: Option<&Value>,
    ) -> anyhow::Result<String> {
        let args: Vec<_> = ["-n", self.name()].iter().chain(args).copied().collect();
        let input = input.map(Value::to_string);
        self.api.plane.kubectl_with(&args, input.as_deref()).await
    }

    /// The object that kubectl answers with.
    async fn object(&self, args: &[&str], input: Option<&Value>) -> anyhow::Result<Value> {
        let args: Vec<_> = args.iter().chain(&["-o", "json"]).copied().collect();
        let printed = self.kubectl(&args, input).await?;
        serde_json::from_str(&printed).with_context(|| format!("no object: {printed}"))
    }

    pub(crate) async fn create(&self, object: &Value) -> anyhow::Result<Value> {
        self.object(&["create", "-f", "-"], Some(object)).await
    }

    pub(crate) async fn apply(&self, object: &Value) -> anyhow::Result<Value> {
        self.apply_by(Apply::Client, object).await
    }

    pub(crate) async fn apply_by(&self, by: Apply, object: &Value) -> anyhow::Result<Value> {
        match by {
            Apply::Client => self.object(&["apply", "-f", "-"], Some(object)).await,
            Apply::Server => {
                self.object(&["apply", "--server-side", "-f", "-"], Some(object))
                    .await
            }
        }
    }

    pub(crate) async fn get(&self, kind: &str, name: &str) -> anyhow::Result<Value> {
        self.object(&["get", kind, name], None).await
    }

    /// Creates it and expects a refusal, whose words are returned.
    pub(crate) async fn refuses(&self, object: &Value) -> anyhow::Result<String> {
        let answer = self.create(object).await;
        ensure!(answer.is_err(), "it was accepted: {answer:?}");
        Ok(format!("{:#}", answer.err().context("refused")?))
    }
}

/// The two ways to apply.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Apply {
    Client,
    Server,
}

impl Apply {
    pub(crate) const BOTH: [Self; 2] = [Self::Client, Self::Server];
}

/// A container; no policy where it is empty. Its tag is not `latest`, so that a missing policy
/// becomes `IfNotPresent`, which is the harder case.
pub(crate) fn container(name: &str, policy: &str) -> Value {
    let mut container = json!({"name": name, "image": "registry.example/app:v1"});
    if !policy.is_empty() {
        container["imagePullPolicy"] = json!(policy);
    }
    container
}

/// A pod with the container `app`.
pub(crate) fn pod(name: &str, policy: &str) -> Value {
    pod_of(
        name,
        &json!({}),
        &json!({"containers": [container("app", policy)]}),
    )
}

/// A pod with the container `app` and annotations.
pub(crate) fn annotated(name: &str, policy: &str, annotations: &Value) -> Value {
    pod_of(
        name,
        annotations,
        &json!({"containers": [container("app", policy)]}),
    )
}

pub(crate) fn pod_of(name: &str, annotations: &Value, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": spec,
    })
}

/// An annotation of an object.
pub(crate) fn annotation<'v>(object: &'v Value, key: &str) -> Option<&'v str> {
    object["metadata"]["annotations"][key].as_str()
}

/// The pull policies of all containers but the gate, as `name=policy`.
pub(crate) fn policies(pod_spec: &Value) -> Vec<String> {
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(|list| pod_spec[list].as_array().into_iter().flatten())
        .filter(|container| container["name"] != keys::GATE)
        .map(|container| {
            let text = |field: &str| container[field].as_str().unwrap_or("?").to_owned();
            format!("{}={}", text("name"), text("imagePullPolicy"))
        })
        .collect()
}

/// The image volumes of a pod spec, as `name=policy`.
pub(crate) fn volume_policies(pod_spec: &Value) -> Vec<String> {
    let volumes = pod_spec["volumes"].as_array().into_iter().flatten();
    volumes
        .filter(|volume| volume["image"].is_object())
        .map(|volume| {
            let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
            let policy = text(&volume["image"]["pullPolicy"]);
            format!("{}={policy}", text(&volume["name"]))
        })
        .collect()
}

/// An image volume; no policy where it is empty.
pub(crate) fn image_volume(name: &str, policy: &str) -> Value {
    let mut image = json!({"reference": "registry.example/data:v1"});
    if !policy.is_empty() {
        image["pullPolicy"] = json!(policy);
    }
    json!({"name": name, "image": image})
}

/// The gates of a pod, with their place among the init containers.
pub(crate) fn gates(pod: &Value) -> Vec<(usize, &Value)> {
    pod["spec"]["initContainers"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
        .filter(|(_, container)| container["name"] == keys::GATE)
        .collect()
}

/// The gate of a pod that is held as it should be, with these names of containers.
pub(crate) fn gate_of<'v>(pod: &'v Value, names: &str) -> anyhow::Result<&'v Value> {
    gate_for(pod, keys::CONTAINERS, names)
}

/// The same with names of one kind, under its annotation.
pub(crate) fn gate_for<'v>(pod: &'v Value, key: &str, names: &str) -> anyhow::Result<&'v Value> {
    let gates = gates(pod);
    ensure!(
        matches!(gates[..], [(0, _)]),
        "not one gate in front: {pod:#}"
    );
    ensure!(
        pod["metadata"]["labels"][keys::GATED] == keys::GATED_VALUE,
        "no label: {pod:#}"
    );
    let written = annotation(pod, key);
    ensure!(
        written == Some(names),
        "the names in {key} are {written:?}, not {names:?}"
    );
    Ok(gates[0].1)
}

/// Fails unless the pod is known to the agent with these names, and nothing holds it.
pub(crate) fn unheld(pod: &Value, names: &str) -> anyhow::Result<()> {
    ensure!(gates(pod).is_empty(), "gated: {pod:#}");
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let mut gates = volumes.filter(|volume| volume["name"] == keys::GATE);
    ensure!(gates.next().is_none(), "a volume: {pod:#}");
    let label = &pod["metadata"]["labels"][keys::GATED];
    ensure!(*label == keys::GATED_NONE, "the label is {label}");
    let hold = annotation(pod, keys::HOLD).map(str::trim);
    ensure!(hold == Some(keys::HOLD_NONE), "it says {hold:?}");
    let written = annotation(pod, keys::CONTAINERS);
    ensure!(
        written == Some(names),
        "the names are {written:?}, not {names:?}"
    );
    Ok(())
}

/// Fails if anything holds the pod.
pub(crate) fn not_gated(pod: &Value) -> anyhow::Result<()> {
    ensure!(gates(pod).is_empty(), "gated: {pod:#}");
    ensure!(
        pod["metadata"]["labels"][keys::GATED].is_null(),
        "labelled: {pod:#}"
    );
    Ok(())
}
