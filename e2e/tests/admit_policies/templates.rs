//! Every kind with a pod template, through its life.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::suite::Case;

use crate::space::{Apply, Space, annotation, container, gate_of, policies};
use crate::{Api, SOON};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![
        Case::new("every_kind_is_rewritten", every_kind_is_rewritten),
        Case::new("a_value_that_changes", a_value_that_changes),
        Case::new("a_value_that_is_removed", a_value_that_is_removed),
        Case::new("one_value_of_two_removed", one_value_of_two_removed),
        Case::new("other_changes_keep_it", other_changes_keep_it),
        Case::new("an_upgrade_to_server_side_apply_keeps_it", upgrade_keeps_it),
        Case::new("a_rollback_brings_it_back", a_rollback_brings_it_back),
        Case::new("names_by_hand_stay_by_hand", names_by_hand_stay_by_hand),
        Case::new("a_deployments_pods_are_gated", a_deployments_pods_are_gated),
    ]
}

/// The kinds, and where their template is.
pub(crate) const KINDS: [(&str, &str, &str); 8] = [
    ("apps/v1", "Deployment", "/spec/template"),
    ("apps/v1", "StatefulSet", "/spec/template"),
    ("apps/v1", "DaemonSet", "/spec/template"),
    ("apps/v1", "ReplicaSet", "/spec/template"),
    ("v1", "ReplicationController", "/spec/template"),
    ("batch/v1", "Job", "/spec/template"),
    ("batch/v1", "CronJob", "/spec/jobTemplate/spec/template"),
    ("v1", "PodTemplate", "/template"),
];

/// An object of a kind, called like it, that makes no pods.
pub(crate) fn object((version, kind, _): (&str, &str, &str), template: &Value) -> Value {
    let name = kind.to_lowercase();
    let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}});
    let labels = json!({"app": name});
    let mut template = template.clone();
    template["metadata"]["labels"] = labels.clone();
    match kind {
        "PodTemplate" => object["template"] = template,
        "Job" => {
            template["spec"]["restartPolicy"] = json!("Never");
            object["spec"] = json!({"suspend": true, "template": template});
        }
        "CronJob" => {
            template["spec"]["restartPolicy"] = json!("Never");
            object["spec"] = json!({
                "schedule": "0 0 1 1 *", "suspend": true,
                "jobTemplate": {"spec": {"template": template}},
            });
        }
        "ReplicationController" => {
            object["spec"] = json!({"replicas": 0, "selector": labels, "template": template});
        }
        "DaemonSet" => {
            object["spec"] = json!({"selector": {"matchLabels": labels}, "template": template});
        }
        _ => {
            object["spec"] = json!({
                "replicas": 0, "selector": {"matchLabels": labels}, "template": template,
            });
        }
    }
    object
}

pub(crate) fn template(containers: &[Value]) -> Value {
    json!({"metadata": {}, "spec": {"containers": containers}})
}

/// A Deployment of these containers.
pub(crate) fn deployment(containers: &[Value]) -> Value {
    object(KINDS[0], &template(containers))
}

/// The Deployment's template: what was literal, and its policies.
pub(crate) fn told(deployment: &Value) -> (Option<&str>, String) {
    let template = &deployment["spec"]["template"];
    (
        annotation(template, keys::LITERAL),
        policies(&template["spec"]).join(" "),
    )
}

async fn every_kind_is_rewritten(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("kinds").await?;
    let mut sidecar = container("sidecar", "TryLatest");
    sidecar["restartPolicy"] = json!("Always");
    let written = json!({"metadata": {}, "spec": {
        "initContainers": [sidecar, container("init", "Never")],
        "containers": [container("app", "TryLatest"), container("two", "Always")],
        "volumes": [{"name": "data", "image": {
            "reference": "registry.example/data:v1", "pullPolicy": "TryLatest",
        }}],
    }});
    for by in Apply::BOTH {
        for kind in KINDS {
            let manifest = object(kind, &written);
            let first = space.apply_by(by, &manifest).await?;
            let template = first.pointer(kind.2).context("no template")?;
            let literal = annotation(template, keys::LITERAL);
            let wanted = "sidecar,app,volume/data";
            ensure!(literal == Some(wanted), "{kind:?}: {literal:?}");
            let got = policies(&template["spec"]).join(" ");
            let wanted = "sidecar=IfNotPresent init=Never app=IfNotPresent two=Always";
            ensure!(got == wanted, "{kind:?}: {got}");
            let volume = &template["spec"]["volumes"][0];
            ensure!(volume["image"]["pullPolicy"] == "IfNotPresent", "{kind:?}");
            settles(&space, by, &manifest, kind.2).await?;
        }
        let kinds = KINDS.map(|(_, kind, _)| kind.to_lowercase()).join(",");
        space
            .kubectl(&["delete", &kinds, "--all", "--cascade=orphan"], None)
            .await?;
    }
    Ok(())
}

/// Applied again, neither the generation nor the template changes.
async fn settles(space: &Space<'_>, by: Apply, manifest: &Value, at: &str) -> anyhow::Result<()> {
    let kind = manifest["kind"].as_str().context("no kind")?;
    let name = manifest["metadata"]["name"].as_str().context("no name")?;
    let before = space.get(kind, name).await?;
    let after = space.apply_by(by, manifest).await?;
    let generation = |object: &Value| object["metadata"]["generation"].clone();
    ensure!(
        generation(&before) == generation(&after),
        "{kind} {by:?}: {before:#} {after:#}"
    );
    ensure!(before.pointer(at) == after.pointer(at), "{kind} {by:?}");
    Ok(())
}

async fn a_value_that_changes(api: Arc<Api>) -> anyhow::Result<()> {
    for by in Apply::BOTH {
        let space = api.space("changes").await?;
        for (value, literal, policy) in [
            ("TryLatest", Some("app"), "IfNotPresent"),
            ("Always", None, "Always"),
            ("TryLatest", Some("app"), "IfNotPresent"),
            ("Never", None, "Never"),
            ("TryLatest", Some("app"), "IfNotPresent"),
            // A change that the stored value does not show.
            ("IfNotPresent", None, "IfNotPresent"),
        ] {
            let manifest = deployment(&[container("app", value)]);
            let stored = space.apply_by(by, &manifest).await?;
            let got = told(&stored);
            ensure!(
                got == (literal, format!("app={policy}")),
                "{by:?} {value}: {got:?}"
            );
        }
    }
    Ok(())
}

/// With a tag other than `latest` the API server's default is what TryLatest became.
async fn a_value_that_is_removed(api: Arc<Api>) -> anyhow::Result<()> {
    for by in Apply::BOTH {
        for kind in KINDS {
            // A Job's template cannot change.
            if kind.1 == "Job" {
                continue;
            }
            let space = api.space("removed").await?;
            let with = object(kind, &template(&[container("app", "TryLatest")]));
            let without = object(kind, &template(&[container("app", "")]));
            for (manifest, wanted) in [(&with, Some("app")), (&without, None), (&with, Some("app"))]
            {
                let stored = space.apply_by(by, manifest).await?;
                let template = stored.pointer(kind.2).context("no template")?;
                let literal = annotation(template, keys::LITERAL);
                ensure!(literal == wanted, "{by:?} {}: {literal:?}", kind.1);
            }
        }
    }
    Ok(())
}

async fn one_value_of_two_removed(api: Arc<Api>) -> anyhow::Result<()> {
    for by in Apply::BOTH {
        let space = api.space("one-of-two").await?;
        let of = |one: &str, two: &str| deployment(&[container("one", one), container("two", two)]);
        for (manifest, wanted) in [
            (of("TryLatest", "TryLatest"), "one,two"),
            (of("TryLatest", ""), "one"),
            (of("", "TryLatest"), "two"),
        ] {
            let stored = space.apply_by(by, &manifest).await?;
            let (literal, _) = told(&stored);
            ensure!(literal == Some(wanted), "{by:?}: {literal:?}");
        }
    }
    Ok(())
}

async fn other_changes_keep_it(api: Arc<Api>) -> anyhow::Result<()> {
    for by in Apply::BOTH {
        let space = api.space("keep").await?;
        let mut manifest = deployment(&[container("app", "TryLatest")]);
        space.apply_by(by, &manifest).await?;
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {"own": "x"}}}}});
        let patch = patch.to_string();
        for change in [
            vec!["scale", "deployment/deployment", "--replicas=1"],
            vec![
                "set",
                "image",
                "deployment/deployment",
                "app=registry.example/app:v2",
            ],
            vec!["rollout", "restart", "deployment/deployment"],
            vec!["patch", "deployment/deployment", "-p", &patch],
        ] {
            space.kubectl(&change, None).await?;
            let stored = space.get("deployment", "deployment").await?;
            ensure!(
                told(&stored) == (Some("app"), "app=IfNotPresent".to_owned()),
                "{by:?} {change:?}: {stored:#}"
            );
        }
        manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(1);
        manifest["spec"]["template"]["spec"]["containers"][0]["image"] =
            json!("registry.example/app:v3");
        // Another manager owns the image by now.
        let stored = match by {
            Apply::Client => space.apply(&manifest).await?,
            Apply::Server => {
                let args = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
                space.kubectl(&args, Some(&manifest)).await?;
                space.get("deployment", "deployment").await?
            }
        };
        let got = told(&stored);
        ensure!(
            got == (Some("app"), "app=IfNotPresent".to_owned()),
            "{by:?}: {got:?}"
        );
    }
    Ok(())
}

/// kubectl's own steps, one by one: a template that is without the word for a moment rolls out pods
/// that are not gated.
async fn upgrade_keeps_it(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("upgrade").await?;
    let manifest = deployment(&[container("app", "TryLatest")]);
    space.apply(&manifest).await?;
    let shown = [
        "get",
        "deployment/deployment",
        "--show-managed-fields",
        "-o",
        "json",
    ];
    let stored: Value = serde_json::from_str(&space.kubectl(&shown, None).await?)?;
    let mut managers = stored["metadata"]["managedFields"].clone();
    let managers = managers.as_array_mut().context("managers")?;
    let client = managers
        .iter_mut()
        .find(|manager| manager["manager"] == "kubectl-client-side-apply");
    let client = client.context("kubectl's client side")?;
    client["manager"] = json!("kubectl");
    client["operation"] = json!("Apply");
    let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": managers}]);
    let patch = patch.to_string();
    let upgrade = [
        "patch",
        "deployment/deployment",
        "--type=json",
        "--field-manager=kubectl",
        "-p",
        &patch,
    ];
    space.kubectl(&upgrade, None).await?;
    let kept = (Some("app"), "app=IfNotPresent".to_owned());
    let stored = space.get("deployment", "deployment").await?;
    ensure!(told(&stored) == kept, "{stored:#}");
    let stored = space.apply_by(Apply::Server, &manifest).await?;
    ensure!(told(&stored) == kept, "{stored:#}");
    // From then on, server-side apply is what says so.
    let changed = deployment(&[container("app", "IfNotPresent")]);
    let stored = space.apply_by(Apply::Server, &changed).await?;
    let got = told(&stored);
    ensure!(got == (None, "app=IfNotPresent".to_owned()), "{got:?}");
    Ok(())
}

async fn a_rollback_brings_it_back(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("rollback").await?;
    for (policy, revision) in [("TryLatest", "1"), ("Always", "2")] {
        space
            .apply(&deployment(&[container("app", policy)]))
            .await?;
        wait::until("the controller has seen it", SOON, || async {
            let stored = space.get("deployment", "deployment").await?;
            let seen = annotation(&stored, "deployment.kubernetes.io/revision");
            Ok((seen == Some(revision)).then_some(()))
        })
        .await?;
    }
    space
        .kubectl(&["rollout", "undo", "deployment/deployment"], None)
        .await?;
    let stored = space.get("deployment", "deployment").await?;
    let got = told(&stored);
    ensure!(
        got == (Some("app"), "app=IfNotPresent".to_owned()),
        "{got:?}"
    );
    Ok(())
}

/// The GitOps-safe spelling: the template stays as it was written.
async fn names_by_hand_stay_by_hand(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("by-hand").await?;
    let mut manifest = deployment(&[container("app", "Always")]);
    manifest["spec"]["template"]["metadata"]["annotations"] = json!({ keys::CONTAINERS: "*" });
    let stored = space.apply(&manifest).await?;
    ensure!(told(&stored) == (None, "app=Always".to_owned()));
    let written = annotation(&stored["spec"]["template"], keys::CONTAINERS);
    ensure!(written == Some("*"), "{written:?}");
    let pod = first_pod(&space).await?;
    gate_of(&pod, "app")?;
    ensure!(policies(&pod["spec"]) == ["app=IfNotPresent"]);
    Ok(())
}

/// Scales the Deployment to one pod, and returns the pod.
async fn first_pod(space: &Space<'_>) -> anyhow::Result<Value> {
    space
        .kubectl(&["scale", "deployment/deployment", "--replicas=1"], None)
        .await?;
    wait::until("the controllers have made a pod", SOON, || async {
        let printed = space.kubectl(&["get", "pods", "-o", "json"], None).await?;
        let pods: Value = serde_json::from_str(&printed)?;
        Ok(pods["items"].get(0).cloned())
    })
    .await
}

async fn a_deployments_pods_are_gated(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("deployment").await?;
    let mut manifest = deployment(&[container("app", "TryLatest"), container("two", "Always")]);
    // Copied from a pod into a template, for example: it must not open the gates of all its pods.
    manifest["spec"]["template"]["metadata"]["annotations"] = json!({ keys::RELEASED: "{}" });
    space.apply(&manifest).await?;
    let pod = first_pod(&space).await?;
    gate_of(&pod, "app")?;
    ensure!(policies(&pod["spec"]) == ["app=IfNotPresent", "two=Always"]);
    ensure!(annotation(&pod, keys::RELEASED).is_none());
    Ok(())
}
