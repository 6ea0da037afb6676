//! Policies of somebody else that do not like what TryLatest writes, and the exceptions that
//! `docs/troubleshooting.md` asks them to make.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use trylatest_containerd::kubelet_failure;
use trylatest_core::keys;
use trylatest_core::pod::describe_overruled;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::suite::Case;
use trylatest_k8s::gated_pod;

use crate::always::{First, Theirs, With, beside};
use crate::space::{Space, annotated, container, gate_of, gates, pod, pod_of, policies};
use crate::templates::{deployment, told};
use crate::{Api, DRY_RUN, SOON};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![
        Case::new("allowed_registries_except_the_gate", allowed_registries),
        Case::new("always_pull_demanded_except_ours", always_demanded),
        Case::exclusive("always_pull_set_except_ours", always_set_except_ours),
        Case::exclusive("always_pull_set_on_pods", always_set_on_pods),
        Case::exclusive("always_pull_set_on_the_gate", always_set_on_the_gate),
        Case::exclusive("always_pull_set_before_ours", always_set_before_ours),
    ]
}

const DOCUMENT: &str = include_str!("../../../docs/troubleshooting.md");

/// The CEL that the document gives below a heading.
fn documented(heading: &str) -> anyhow::Result<&'static str> {
    let below = DOCUMENT.split_once(&format!("\n### {heading}\n"));
    let (_, below) = below.with_context(|| format!("no heading {heading}"))?;
    let (_, code) = below.split_once("```cel\n").context("no CEL")?;
    let (code, _) = code.split_once("```").context("no end")?;
    Ok(code.trim())
}

/// A validating policy for a namespace: all containers of the object in `at` have to be `right`.
fn demand(space: &Space<'_>, resource: &str, at: &str, right: &str, message: &str) -> Value {
    let name = format!("{}-{resource}", space.name());
    let group = if resource == "pods" { "" } else { "apps" };
    let selector = json!({"matchLabels": {"kubernetes.io/metadata.name": space.name()}});
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "namespaceSelector": selector,
                "resourceRules": [{
                    "apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"],
                    "resources": [resource],
                }],
            },
            "variables": [{
                "name": "wrong",
                "expression": format!(
                    "({at}.spec.containers + {at}.spec.?initContainers.orValue([])).filter(c, !({right}))\
                     .map(c, c.name)",
                ),
            }],
            "validations": [{
                "expression": "variables.wrong.size() == 0",
                "messageExpression": format!("'{message} ' + variables.wrong.join(', ')"),
            }],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]},
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [policy, binding]})
}

/// Runs something while these policies are there.
async fn under(
    space: &Space<'_>,
    policies: &Value,
    test: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    space.kubectl(&["apply", "-f", "-"], Some(policies)).await?;
    let outcome = test().await;
    space
        .kubectl(&["delete", "-f", "-"], Some(policies))
        .await?;
    outcome
}

/// Waits until an object is refused, and returns why.
async fn refused_soon(space: &Space<'_>, object: &Value) -> anyhow::Result<String> {
    let refused = wait::until("it is refused", SOON, || async {
        Ok(space.kubectl(&DRY_RUN, Some(object)).await.err())
    });
    Ok(format!("{:#}", refused.await?))
}

async fn accepted_soon(space: &Space<'_>, object: &Value) -> anyhow::Result<Value> {
    wait::until("it is accepted", SOON, || async {
        Ok(space.create(object).await.ok())
    })
    .await
}

async fn allowed_registries(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("registries").await?;
    let rule = "c.image.startsWith('registry.example/')";
    let demand = |right: &str| {
        demand(
            &space,
            "pods",
            "object",
            right,
            "image not allowed in container",
        )
    };
    under(&space, &demand(rule), async || {
        let why = refused_soon(&space, &pod("app", "TryLatest")).await?;
        let wanted = "denied request: image not allowed in container trylatest-gate";
        ensure!(why.contains(wanted), "{why}");
        let excepted = format!("{rule} || {}", documented("Allowed registries")?);
        let excepted = demand(&excepted);
        space
            .kubectl(&["apply", "-f", "-"], Some(&excepted))
            .await?;
        let stored = accepted_soon(&space, &pod("app", "TryLatest")).await?;
        gate_of(&stored, "app")?;
        // Not for another image of the gate's name.
        let mut forged = container(keys::GATE, "Always");
        forged["image"] = json!("elsewhere.example/evil:v1");
        let spec = json!({"initContainers": [forged], "containers": [container("app", "Always")]});
        refused_soon(&space, &pod_of("forged", &json!({}), &spec)).await?;
        Ok(())
    })
    .await
}

async fn always_demanded(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("demanded").await?;
    let rule = "c.?imagePullPolicy.orValue('') == 'Always'";
    let exception = documented("\"Always pull\"")?;
    for (resource, at) in [("pods", "object"), ("deployments", "object.spec.template")] {
        let demand = |right: &str| demand(&space, resource, at, right, "no Always in");
        let of = |name: &str, policy: &str| {
            if resource == "pods" {
                return pod(name, policy);
            }
            let mut deployment = deployment(&[container("app", policy)]);
            deployment["metadata"]["name"] = json!(name);
            deployment
        };
        let of = |policy: &str| of(&policy.to_lowercase(), policy);
        under(&space, &demand(rule), async || {
            let why = refused_soon(&space, &of("TryLatest")).await?;
            ensure!(why.contains("no Always in"), "{why}");
            let excepted = exception.replace("object", at);
            let excepted = demand(&format!("{rule} || {excepted}"));
            space
                .kubectl(&["apply", "-f", "-"], Some(&excepted))
                .await?;
            accepted_soon(&space, &of("TryLatest")).await?;
            accepted_soon(&space, &of("Always")).await?;
            refused_soon(&space, &of("IfNotPresent")).await?;
            Ok(())
        })
        .await?;
    }
    let by_hand = annotated("by-hand", "Always", &json!({ keys::CONTAINERS: "*" }));
    let right = format!("{rule} || {exception}");
    let demand = demand(&space, "pods", "object", &right, "no Always in");
    under(&space, &demand, async || {
        refused_soon(&space, &pod("other", "IfNotPresent")).await?;
        gate_of(&space.create(&by_hand).await?, "app")?;
        Ok(())
    })
    .await
}

/// The pods that the document describes: the word, and a name by hand.
fn both() -> [Value; 2] {
    let by_hand = json!({ keys::CONTAINERS: "app" });
    [
        pod("word", "TryLatest"),
        annotated("by-hand", "Always", &by_hand),
    ]
}

/// With the exception, a policy that sets `Always` is in nobody's way.
async fn always_set_except_ours(api: Arc<Api>) -> anyhow::Result<()> {
    for first in First::BOTH {
        for reinvocation in Theirs::REINVOCATIONS {
            let space = api.space("excepted").await?;
            let theirs = Theirs {
                reinvocation,
                with: With::Templates,
                exception: documented("\"Always pull\"")?,
            };
            beside(&space, first, theirs, async || {
                for pod in both() {
                    let stored = space.create(&pod).await?;
                    let gate = gate_of(&stored, "app")?;
                    ensure!(gate["imagePullPolicy"] == "IfNotPresent", "{stored:#}");
                    ensure!(policies(&stored["spec"]) == ["app=IfNotPresent"]);
                }
                let containers = [container("app", "TryLatest"), container("two", "Never")];
                let stored = space.apply(&deployment(&containers)).await?;
                let wanted = "app=IfNotPresent two=Always".to_owned();
                ensure!(told(&stored) == (Some("app"), wanted), "{stored:#}");
                Ok(())
            })
            .await?;
        }
    }
    Ok(())
}

/// Without it, what the document's table says.
async fn always_set_on_pods(api: Arc<Api>) -> anyhow::Result<()> {
    for (first, reinvocation, word, by_hand) in [
        (
            First::Theirs,
            "Never",
            "no gate, Always",
            "IfNotPresent, IfNotPresent",
        ),
        (
            First::Theirs,
            "IfNeeded",
            "no gate, Always",
            "no gate, Always",
        ),
        (First::Ours, "Never", "no gate, Always", "no gate, Always"),
        (
            First::Ours,
            "IfNeeded",
            "no gate, Always",
            "no gate, Always",
        ),
    ] {
        let space = api.space("pods").await?;
        let theirs = Theirs {
            reinvocation,
            with: With::Pods,
            exception: Theirs::NO_EXCEPTION,
        };
        beside(&space, first, theirs, async || {
            for (pod, wanted) in both().iter().zip([word, by_hand]) {
                let stored = space.create(pod).await?;
                let of_gate = gates(&stored);
                let of_gate = of_gate.first().map_or("no gate", |(_, gate)| {
                    gate["imagePullPolicy"].as_str().unwrap_or("?")
                });
                let of_app = &stored["spec"]["containers"][0]["imagePullPolicy"];
                let got = format!("{of_gate}, {}", of_app.as_str().unwrap_or("?"));
                ensure!(got == wanted, "{first:?} {reinvocation}: {got}");
                // The agent sees it, and reports what became of it.
                let label = stored["metadata"]["labels"][keys::GATED].as_str();
                let by_hand = pod["metadata"]["name"] == "by-hand";
                let wanted = match (first, of_gate) {
                    (_, "IfNotPresent") => Some(keys::GATED_VALUE),
                    // Theirs has left no word for ours to see.
                    (First::Theirs, _) if !by_hand => None,
                    _ => Some(keys::GATED_OVERRULED),
                };
                ensure!(label == wanted, "{first:?} {reinvocation}: {label:?}");
                let volumes = stored["spec"]["volumes"].to_string();
                ensure!(
                    of_gate != "no gate" || !volumes.contains(keys::GATE),
                    "{volumes}"
                );
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// With half of the exception the containers stay as ours has left them, and only the label shows that
/// there was a gate.
async fn always_set_on_the_gate(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("gate").await?;
    let theirs = Theirs {
        reinvocation: "Never",
        with: With::Pods,
        exception: "c.name == 'app'",
    };
    beside(&space, First::Ours, theirs, async || {
        for pod in both() {
            let stored = space.create(&pod).await?;
            ensure!(gates(&stored).is_empty(), "{stored:#}");
            ensure!(policies(&stored["spec"]) == ["app=IfNotPresent"]);
            let seen =
                gated_pod(&serde_json::from_value(stored)?, kubelet_failure).context("a pod")?;
            let reported = describe_overruled(&seen.overruled);
            ensure!(
                reported.contains("Always on trylatest-gate (removed from the pod"),
                "{reported}"
            );
        }
        Ok(())
    })
    .await
}

/// What a template has said stays to be seen, and is reported.
async fn always_set_before_ours(api: Arc<Api>) -> anyhow::Result<()> {
    let literal = json!({ keys::LITERAL: "app" });
    let made = annotated("made", "IfNotPresent", &literal);
    for reinvocation in Theirs::REINVOCATIONS {
        let space = api.space("before").await?;
        let theirs = Theirs {
            reinvocation,
            with: With::Pods,
            exception: Theirs::NO_EXCEPTION,
        };
        beside(&space, First::Theirs, theirs, async || {
            let stored = space.create(&made).await?;
            ensure!(gates(&stored).is_empty(), "{stored:#}");
            ensure!(policies(&stored["spec"]) == ["app=Always"], "{stored:#}");
            let label = stored["metadata"]["labels"][keys::GATED].as_str();
            ensure!(label == Some(keys::GATED_OVERRULED), "{stored:#}");
            let seen =
                gated_pod(&serde_json::from_value(stored)?, kubelet_failure).context("a pod")?;
            let reported = describe_overruled(&seen.overruled);
            ensure!(reported.contains("Always on app ("), "{reported}");
            ensure!(!reported.contains(keys::GATE), "{reported}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
