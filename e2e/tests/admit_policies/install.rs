//! The manifests as such: what they are made of, and that an overlay can change them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use trylatest_core::config::Config;
use trylatest_core::keys;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::suite::Case;

use crate::{Api, SOON};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![
        Case::new("the_keys_are_those_of_the_core", the_keys_are_those),
        Case::new("the_gate_runs_from_the_agents_image", the_image_is_one),
        Case::new("an_overlay_changes_the_install", an_overlay_changes),
        Case::new("the_policies_have_no_warnings", no_warnings),
        Case::new("the_agents_pod_is_confined", the_agents_pod_is_confined),
    ]
}

/// Every file below a folder.
fn text_of(folder: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        text += &if path.is_dir() {
            text_of(&path)?
        } else {
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?
        };
    }
    Ok(text)
}

/// YAML cannot import a constant: a key that is misspelled in one place only is found here.
async fn the_keys_are_those(api: Arc<Api>) -> anyhow::Result<()> {
    let text = text_of(&api.manifests.join("policy"))?;
    let known = [
        keys::CONTAINERS,
        keys::VOLUMES,
        keys::LITERAL,
        keys::HOLD,
        keys::GATED,
        keys::RELEASED,
        keys::PROGRESS,
        keys::NODE_SUMMARY,
        keys::NODE_IMAGES,
    ];
    let word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let spelled: BTreeSet<String> = text
        .split("trylatest.dev/")
        .skip(1)
        .map(|rest| rest.split(|c| !word(c)).next().unwrap_or_default())
        // The prefix alone, as in startsWith.
        .filter(|name| !name.is_empty())
        .map(|name| format!("trylatest.dev/{name}"))
        .collect();
    let known: BTreeSet<String> = known.map(str::to_owned).into();
    ensure!(spelled == known, "{spelled:?} are not {known:?}");
    for name in [
        keys::GATE,
        keys::FIELD_MANAGER,
        keys::NODE_CONDITION,
        keys::VOLUME_PREFIX,
        "TryLatest",
    ] {
        ensure!(text.contains(&format!("'{name}'")), "no {name}");
    }
    Ok(())
}

/// The objects that a folder is built to.
async fn built(api: &Api, folder: &str) -> anyhow::Result<Vec<Value>> {
    let folder = api.manifests.join(folder).display().to_string();
    let args = ["create", "--dry-run=client", "-o", "json", "-k", &folder];
    let printed = api.plane.kubectl(&args).await?;
    // One document after the other.
    let objects = serde_json::Deserializer::from_str(&printed).into_iter();
    objects.collect::<Result<_, _>>().context("no objects")
}

fn find<'v>(objects: &'v [Value], kind: &str, name: &str) -> anyhow::Result<&'v Value> {
    let mut objects = objects.iter();
    objects
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .with_context(|| format!("no {kind} {name}"))
}

/// The agent's pod template, and the expression of a variable of the policy for pods.
fn agent_and(objects: &[Value], variable: &str) -> anyhow::Result<(Value, String)> {
    let agent = find(objects, "DaemonSet", "trylatest-agent")?;
    let policy = find(objects, "MutatingAdmissionPolicy", "trylatest-pods")?;
    let mut variables = policy["spec"]["variables"].as_array().into_iter().flatten();
    let variable = variables
        .find(|one| one["name"] == variable)
        .with_context(|| format!("no variable {variable}"))?;
    let expression = variable["expression"].as_str().unwrap_or_default();
    Ok((
        agent["spec"]["template"]["spec"].clone(),
        expression.to_owned(),
    ))
}

async fn the_image_is_one(api: Arc<Api>) -> anyhow::Result<()> {
    let objects = built(&api, ".").await?;
    let (agent, gate) = agent_and(&objects, "gateImage")?;
    let image = agent["containers"][0]["image"].as_str().context("image")?;
    ensure!(gate == format!("'{image}'"), "{gate}");
    Ok(())
}

async fn an_overlay_changes(api: Arc<Api>) -> anyhow::Result<()> {
    let objects = built(&api, "overlays/example-node").await?;
    let (agent, image) = agent_and(&objects, "gateImage")?;
    let container = &agent["containers"][0];
    let wanted = "registry.example/mirror/trylatest:0.1.0";
    ensure!(container["image"] == wanted, "{container:#}");
    ensure!(image == format!("'{wanted}'"), "{image}");
    let (_, args) = agent_and(&objects, "gateArgs")?;
    ensure!(args == "['gate', '--patience=30s']", "{args}");
    ensure!(container["args"] == json!(["agent", "--stall=5s", "--try=30s"]));
    let host = |probe: &str| container[probe]["httpGet"].clone();
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        let wanted = json!({"host": "127.0.0.1", "path": path, "port": "http"});
        ensure!(host(probe) == wanted, "{:#}", host(probe));
    }
    let mut env = container["env"].as_array().into_iter().flatten();
    let address = env.find(|one| one["name"] == "TRYLATEST_ADDRESS");
    let wanted = json!({"name": "TRYLATEST_ADDRESS", "value": "127.0.0.1"});
    ensure!(address == Some(&wanted), "{address:?}");
    let volumes = agent["volumes"].as_array().context("volumes")?;
    ensure!(volumes.len() == 3, "{volumes:?}");
    let paths = volumes.iter().map(|volume| &volume["hostPath"]["path"]);
    let paths: BTreeSet<_> = paths.filter_map(Value::as_str).collect();
    ensure!(paths == BTreeSet::from(["/run/k3s/containerd", "/var/lib/trylatest"]));
    // The agents follow it under this very name.
    let map = find(&objects, "ConfigMap", "trylatest-config")?;
    let config = map["data"]["config.yaml"].as_str().context("no file")?;
    Config::parse(config)?;
    // And the API server takes all of it.
    let folder = api.manifests.join("overlays/example-node");
    let folder = folder.display().to_string();
    let taken = ["apply", "--dry-run=server", "-k", &folder];
    api.plane.kubectl(&taken).await.map(|_| ())
}

/// The controllers check the validating policies' types against the API's.
async fn no_warnings(api: Arc<Api>) -> anyhow::Result<()> {
    for name in ["pods", "nodes", "events"] {
        let name = format!("trylatest-agent-{name}");
        let status = wait::until("the policy is checked", SOON, || async {
            let args = ["get", "validatingadmissionpolicy", &name, "-o", "json"];
            let policy: Value = serde_json::from_str(&api.plane.kubectl(&args).await?)?;
            let checked = policy["status"]["typeChecking"].is_object();
            Ok(checked.then(|| policy["status"].clone()))
        })
        .await?;
        let warnings = &status["typeChecking"]["expressionWarnings"];
        ensure!(warnings.is_null(), "{name}: {warnings:#}");
    }
    Ok(())
}

async fn the_agents_pod_is_confined(api: Arc<Api>) -> anyhow::Result<()> {
    let objects = built(&api, ".").await?;
    let (agent, _) = agent_and(&objects, "gateImage")?;
    let context = &agent["containers"][0]["securityContext"];
    ensure!(context["readOnlyRootFilesystem"] == true);
    ensure!(context["allowPrivilegeEscalation"] == false);
    ensure!(context["capabilities"] == json!({"drop": ["ALL"]}));
    ensure!(agent["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault");
    ensure!(agent["tolerations"] == json!([{"operator": "Exists"}]));
    let class = agent["priorityClassName"].as_str().context("no class")?;
    find(&objects, "PriorityClass", class)?;
    let paths: Vec<_> = agent["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|volume| volume["hostPath"]["path"].as_str())
        .collect();
    ensure!(
        paths == ["/run/containerd", "/var/lib/trylatest"],
        "{paths:?}"
    );
    let mut volumes = agent["volumes"].as_array().into_iter().flatten();
    let config = volumes.find(|volume| volume["name"] == "config");
    let wanted = json!({"name": "trylatest-config", "optional": true});
    ensure!(config.is_some_and(|config| config["configMap"] == wanted));
    Ok(())
}
