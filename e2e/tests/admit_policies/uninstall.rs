//! What the README says to remove TryLatest, while a node is down: nothing waits for it for ever, and the agent that
//! may still run there never has more rights than before.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use trylatest_e2e::cluster::wait;
use trylatest_e2e::install::{NAMESPACE, uninstall};
use trylatest_e2e::suite::Case;

use crate::{Api, SOON};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![Case::exclusive(
        "uninstalled_while_a_node_is_down",
        uninstalled_while_a_node_is_down,
    )]
}

/// A node without a kubelet.
const DOWN: &str = "down";

async fn uninstalled_while_a_node_is_down(api: Arc<Api>) -> anyhow::Result<()> {
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": DOWN, "labels": {"kubernetes.io/os": "linux"}},
    });
    create(&api, &["create", "-f", "-"], &node).await?;
    let outcome = remove(&api).await;
    let namespace = format!("--namespace={NAMESPACE}");
    let force = ["delete", "pods", "--all", "--force", &namespace];
    for command in [&force[..], &["delete", "node", DOWN]] {
        api.plane.kubectl(command).await?;
    }
    // Nothing more is needed for it to end.
    if outcome.is_ok() {
        let get = ["get", "namespace", NAMESPACE];
        let gone = || async { Ok(api.plane.kubectl(&get).await.err()) };
        wait::until("the namespace is gone", SOON, gone).await?;
    }
    api.install().await?;
    outcome
}

async fn create(api: &Api, args: &[&str], object: &Value) -> anyhow::Result<String> {
    let object = object.to_string();
    api.plane.kubectl_with(args, Some(&object)).await
}

/// The agent's pod is on that node.
async fn run_there(api: &Api) -> anyhow::Result<()> {
    // There is no scheduler; pods of other tests are bound.
    let unbound = "--field-selector=spec.nodeName=";
    let get = [
        "get",
        "pods",
        "--namespace",
        NAMESPACE,
        unbound,
        "--output=name",
    ];
    let pod = wait::until("the agent has a pod", SOON, || async {
        let names = api.plane.kubectl(&get).await?;
        let name = names.lines().next();
        Ok(name.and_then(|name| Some(name.split_once('/')?.1.to_owned())))
    });
    let pod = pod.await?;
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod},
        "target": {"apiVersion": "v1", "kind": "Node", "name": DOWN},
    });
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}/binding");
    let args = ["create", "--raw", &path, "-f", "-"];
    create(api, &args, &binding).await.map(|_| ())
}

async fn remove(api: &Api) -> anyhow::Result<()> {
    run_there(api).await?;
    let manifests = api.manifests.display().to_string();
    let commands = uninstall(&manifests)?;
    let commands = commands.iter().map(|command| {
        let words = command.iter().map(String::as_str);
        let words = words.map(|word| match word.split_once('=') {
            Some(("--timeout", _)) => "--timeout=3s",
            _ => word,
        });
        words.collect::<Vec<&str>>()
    });
    let commands: Vec<Vec<&str>> = commands.collect();
    let [gate, agents, rest] = &commands[..] else {
        anyhow::bail!("other commands: {commands:?}");
    };
    api.plane.kubectl(gate).await?;
    api.templates_are_refused().await?;
    is_limited(api).await.context("after the first command")?;
    times_out(api, agents).await?;
    is_limited(api).await.context("after the second command")?;
    times_out(api, rest).await?;
    let left = api.plane.kubectl(&OURS).await?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

/// What an agent may do, and what limits that.
const OURS: [&str; 4] = [
    "get",
    "clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings",
    "--selector=app.kubernetes.io/name=trylatest",
    "--output=name",
];

/// An agent that still runs has its rights, and their limits.
async fn is_limited(api: &Api) -> anyhow::Result<()> {
    let left = api.plane.kubectl(&OURS).await?;
    for (kind, count) in [
        ("clusterrolebinding.", 1),
        ("validatingadmissionpolicy.", 3),
        ("validatingadmissionpolicybinding.", 3),
    ] {
        let found = left.lines().filter(|line| line.starts_with(kind)).count();
        ensure!(found == count, "{found} of {kind}: {left}");
    }
    Ok(())
}

async fn times_out(api: &Api, command: &[&str]) -> anyhow::Result<()> {
    let answer = api.plane.kubectl(command).await;
    let error = answer.err().with_context(|| format!("{command:?}"))?;
    let words = format!("{error:#}");
    ensure!(
        words.contains("timed out waiting for the condition"),
        "{words}"
    );
    Ok(())
}
