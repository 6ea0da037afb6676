//! Pods, as they are when they have been created.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::suite::Case;

use crate::space::{
    Apply, annotated, annotation, container, gate_of, gates, not_gated, pod, pod_of, policies,
};
use crate::{Api, SOON};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![
        Case::new("a_literal_pod_is_gated", a_literal_pod_is_gated),
        Case::new("the_gate_is_as_designed", the_gate_is_as_designed),
        Case::new("names_by_hand_are_resolved", names_by_hand_are_resolved),
        Case::new("any_policy_gives_way_to_a_name", any_policy_gives_way),
        Case::new("all_kinds_of_containers", all_kinds_of_containers),
        Case::new("windows_pods_are_not_gated", windows_pods_are_not_gated),
        Case::new("pods_for_virtual_kubelets", pods_for_virtual_kubelets),
        Case::new("a_pod_made_from_a_dump", a_pod_made_from_a_dump),
        Case::new("a_dump_of_an_overruled_pod", a_dump_of_an_overruled_pod),
        Case::new("a_copy_that_kubectl_debug_makes", a_copy_to_debug),
        Case::new("a_gate_of_someone_else", a_gate_of_someone_else),
        Case::new("a_container_called_like_the_gate", called_like_the_gate),
        Case::new("a_forged_release_is_taken_away", a_forged_release),
        Case::new("mirror_pods_are_left_alone", mirror_pods_are_left_alone),
        Case::new("other_pods_are_left_alone", other_pods_are_left_alone),
        Case::new("a_pod_with_many_containers", a_pod_with_many_containers),
        Case::exclusive("pods_without_the_policies", pods_without_the_policies),
    ]
}

async fn a_literal_pod_is_gated(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("literal").await?;
    let stored = space.create(&pod("app", "TryLatest")).await?;
    gate_of(&stored, "app")?;
    ensure!(policies(&stored["spec"]) == ["app=IfNotPresent"]);
    Ok(())
}

async fn the_gate_is_as_designed(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("gate").await?;
    let stored = space.create(&pod("app", "TryLatest")).await?;
    let gate = gate_of(&stored, "app")?;
    ensure!(gate["args"] == json!(["gate"]), "{gate:#}");
    ensure!(gate["imagePullPolicy"] == "IfNotPresent");
    // The service account's token is in the pod's own container and not in the gate.
    let mounts = json!([{"name": keys::GATE, "mountPath": "/run/trylatest", "readOnly": true}]);
    ensure!(gate["volumeMounts"] == mounts, "{gate:#}");
    ensure!(!stored["spec"]["containers"][0]["volumeMounts"].is_null());
    ensure!(gate["terminationMessagePolicy"] == "FallbackToLogsOnError");
    let volume = volume_of(&stored).context("no volume")?;
    let item = &volume["downwardAPI"]["items"][0];
    ensure!(item["path"] == "annotations", "{volume:#}");
    ensure!(item["fieldRef"]["fieldPath"] == "metadata.annotations");
    Ok(())
}

fn volume_of(pod: &Value) -> Option<&Value> {
    let mut volumes = pod["spec"]["volumes"].as_array()?.iter();
    volumes.find(|volume| volume["name"] == keys::GATE)
}

/// `app` and `two` of a pod whose annotation names them so.
async fn names_by_hand_are_resolved(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("by-hand").await?;
    let spec = json!({
        "initContainers": [container("init", "Always")],
        "containers": [container("app", "Always"), container("two", "Always")],
    });
    let table = [
        ("app", "app", "init=Always app=IfNotPresent two=Always"),
        // In the pod's order, not in that of the annotation.
        (
            "two,app",
            "app,two",
            "init=Always app=IfNotPresent two=IfNotPresent",
        ),
        (
            " two , ,, two,",
            "two",
            "init=Always app=Always two=IfNotPresent",
        ),
        (
            "*",
            "init,app,two",
            "init=IfNotPresent app=IfNotPresent two=IfNotPresent",
        ),
        // What matches nothing is kept for the agent to complain about.
        (
            "typo,app,typo",
            "app,typo",
            "init=Always app=IfNotPresent two=Always",
        ),
        ("typo", "typo", "init=Always app=Always two=Always"),
        (
            "typo,*",
            "init,app,two,typo",
            "init=IfNotPresent app=IfNotPresent two=IfNotPresent",
        ),
        (
            "trylatest-gate",
            "trylatest-gate",
            "init=Always app=Always two=Always",
        ),
    ];
    for (index, (written, names, wanted)) in table.into_iter().enumerate() {
        let annotations = json!({ keys::CONTAINERS: written });
        let pod = pod_of(&format!("pod-{index}"), &annotations, &spec);
        let stored = space.create(&pod).await?;
        gate_of(&stored, names).with_context(|| format!("written as {written:?}"))?;
        let policies = policies(&stored["spec"]).join(" ");
        ensure!(policies == wanted, "{written:?}: {policies}");
    }
    for (index, written) in ["", " , ,"].into_iter().enumerate() {
        let annotations = json!({ keys::CONTAINERS: written });
        let pod = pod_of(&format!("none-{index}"), &annotations, &spec);
        not_gated(&space.create(&pod).await?)?;
    }
    Ok(())
}

async fn any_policy_gives_way(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("any-policy").await?;
    for policy in ["", "Always", "Never", "IfNotPresent"] {
        let name = format!("pod{}", policy.to_lowercase());
        let annotations = json!({ keys::CONTAINERS: "app" });
        let stored = space
            .create(&annotated(&name, policy, &annotations))
            .await?;
        gate_of(&stored, "app")?;
        ensure!(
            policies(&stored["spec"]) == ["app=IfNotPresent"],
            "{policy:?}"
        );
    }
    Ok(())
}

async fn all_kinds_of_containers(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("kinds").await?;
    let mut sidecar = container("sidecar", "TryLatest");
    sidecar["restartPolicy"] = json!("Always");
    let spec = json!({
        "initContainers": [container("init", "TryLatest"), sidecar, container("other", "Never")],
        "containers": [container("app", "TryLatest"), container("two", "Always")],
    });
    let stored = space.create(&pod_of("app", &json!({}), &spec)).await?;
    gate_of(&stored, "init,sidecar,app")?;
    let wanted = "init=IfNotPresent sidecar=IfNotPresent other=Never app=IfNotPresent two=Always";
    ensure!(
        policies(&stored["spec"]).join(" ") == wanted,
        "{:?}",
        policies(&stored["spec"])
    );
    Ok(())
}

async fn windows_pods_are_not_gated(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("windows").await?;
    let containers = json!([container("app", "TryLatest")]);
    for (name, spec) in [
        (
            "os",
            json!({"containers": containers, "os": {"name": "windows"}}),
        ),
        (
            "selector",
            json!({"containers": containers, "nodeSelector": {"kubernetes.io/os": "windows"}}),
        ),
        (
            "affinity",
            json!({"containers": containers, "affinity": on_os("In", "windows")}),
        ),
        (
            "not-linux",
            json!({"containers": containers, "affinity": on_os("NotIn", "linux")}),
        ),
    ] {
        let stored = space.create(&pod_of(name, &json!({}), &spec)).await?;
        not_gated(&stored)?;
        ensure!(policies(&stored["spec"]) == ["app=IfNotPresent"], "{name}");
    }
    let linux = json!({
        "containers": containers, "os": {"name": "linux"}, "nodeSelector": {"kubernetes.io/os": "linux"},
        "affinity": on_os("In", "linux"),
    });
    gate_of(
        &space.create(&pod_of("linux", &json!({}), &linux)).await?,
        "app",
    )?;
    Ok(())
}

fn on_os(operator: &str, os: &str) -> Value {
    on("kubernetes.io/os", operator, os)
}

fn on(key: &str, operator: &str, value: &str) -> Value {
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": key, "operator": operator, "values": [value]}]},
    ]}}})
}

/// They mount no volume with the pod's annotations: a gate would not even start.
async fn pods_for_virtual_kubelets(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("virtual").await?;
    let containers = json!([container("app", "TryLatest")]);
    let taint = "virtual-kubelet.io/provider";
    for (name, there, spec) in [
        (
            "selector",
            true,
            json!({"nodeSelector": {"type": "virtual-kubelet"}}),
        ),
        (
            "toleration",
            true,
            json!({"tolerations": [{"key": taint, "operator": "Exists"}]}),
        ),
        (
            "provider",
            true,
            json!({"tolerations": [{"key": "other"}, {"key": taint, "value": "azure", "effect": "NoSchedule"}]}),
        ),
        (
            "affinity",
            true,
            json!({"affinity": on("type", "In", "virtual-kubelet")}),
        ),
        // A system DaemonSet, for example.
        (
            "everything",
            false,
            json!({"tolerations": [{"operator": "Exists"}]}),
        ),
        (
            "other",
            false,
            json!({"nodeSelector": {"type": "large"}, "tolerations": [{"key": "virtual", "operator": "Exists"}]}),
        ),
        (
            "elsewhere",
            false,
            json!({"affinity": on("type", "NotIn", "virtual-kubelet")}),
        ),
    ] {
        let mut spec = spec;
        spec["containers"] = containers.clone();
        let stored = space.create(&pod_of(name, &json!({}), &spec)).await?;
        if there {
            not_gated(&stored).context(name)?;
        } else {
            gate_of(&stored, "app").context(name)?;
        }
        ensure!(policies(&stored["spec"]) == ["app=IfNotPresent"], "{name}");
    }
    Ok(())
}

/// `kubectl get -o yaml`, deleted, and created again from what was printed.
async fn a_pod_made_from_a_dump(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("dump").await?;
    let first = space.create(&pod("app", "TryLatest")).await?;
    let mut dump = first.clone();
    dump["metadata"]["annotations"][keys::RELEASED] = json!("{}");
    dump["metadata"]["annotations"][keys::PROGRESS] = json!("{}");
    space
        .kubectl(&["delete", "pod", "app", "--now"], None)
        .await?;
    for drop in ["resourceVersion", "uid"] {
        dump["metadata"]
            .as_object_mut()
            .context("metadata")?
            .remove(drop);
    }
    let second = space.create(&dump).await?;
    ensure!(gate_of(&second, "app")? == gate_of(&first, "app")?);
    ensure!(volume_of(&second) == volume_of(&first), "{second:#}");
    let left = [keys::RELEASED, keys::PROGRESS].map(|key| annotation(&second, key));
    ensure!(left == [None, None], "{left:?}");
    Ok(())
}

/// A pod whose gate admission once removed, created again where nobody interferes.
async fn a_dump_of_an_overruled_pod(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("overruled").await?;
    let overruled = |name: &str, spec: &Value| {
        let mut dump = pod_of(name, &json!({ keys::CONTAINERS: "app" }), spec);
        dump["metadata"]["labels"] = json!({ keys::GATED: keys::GATED_OVERRULED, "app": "mine" });
        dump
    };
    let held = json!({"containers": [container("app", "IfNotPresent")]});
    gate_of(&space.create(&overruled("created", &held)).await?, "app")?;
    for by in Apply::BOTH {
        let name = format!("applied-{by:?}").to_lowercase();
        let stored = space.apply_by(by, &overruled(&name, &held)).await?;
        gate_of(&stored, "app")?;
        // Again: it is a pod that exists.
        let again = space.apply_by(by, &overruled(&name, &held)).await?;
        ensure!(again["spec"] == stored["spec"], "{again:#}");
        gate_of(&again, "app")?;
    }
    // What is not held has no label that would make the agent blame somebody.
    let mut windows = held.clone();
    windows["nodeSelector"] = json!({"kubernetes.io/os": "windows"});
    let stored = space.create(&overruled("windows", &windows)).await?;
    not_gated(&stored)?;
    ensure!(stored["metadata"]["labels"]["app"] == "mine", "{stored:#}");
    Ok(())
}

/// The copy has the gate, but neither its label nor the names: no agent would look for it.
async fn a_copy_to_debug(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("debug").await?;
    space.create(&pod("app", "TryLatest")).await?;
    let copy = ["debug", "app", "--copy-to=copy", "--attach=false"];
    let with = [
        "--profile=general",
        "--image=registry.example/debug:v1",
        "--",
        "true",
    ];
    space.kubectl(&[&copy[..], &with].concat(), None).await?;
    let copy = space.get("pod", "copy").await?;
    not_gated(&copy)?;
    ensure!(volume_of(&copy).is_none(), "{copy:#}");
    let copied = policies(&copy["spec"]);
    ensure!(copied.contains(&"app=IfNotPresent".to_owned()), "{copy:#}");
    // The label alone would make the agent wait for a gate.
    let labelled = ["debug", "app", "--copy-to=labelled", "--attach=false"];
    let keep = ["--keep-labels"];
    space
        .kubectl(&[&labelled[..], &keep, &with].concat(), None)
        .await?;
    not_gated(&space.get("pod", "labelled").await?)?;
    // With the annotations it is held again.
    let whole = ["debug", "app", "--copy-to=whole", "--attach=false"];
    let keep = ["--keep-annotations"];
    space
        .kubectl(&[&whole[..], &keep, &with].concat(), None)
        .await?;
    gate_of(&space.get("pod", "whole").await?, "app")?;
    Ok(())
}

/// Whatever is called like the gate among the init containers becomes the gate, in front.
async fn a_gate_of_someone_else(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("forged-gate").await?;
    let spec = json!({
        "initContainers": [container("early", "Always"), container(keys::GATE, "Always")],
        "containers": [container("app", "TryLatest")],
        "volumes": [{"name": keys::GATE, "emptyDir": {}}],
    });
    let stored = space.create(&pod_of("app", &json!({}), &spec)).await?;
    let gate = gate_of(&stored, "app")?;
    ensure!(gate["args"] == json!(["gate"]), "{gate:#}");
    ensure!(gate["image"] != "registry.example/app:v1", "{gate:#}");
    let volume = volume_of(&stored).context("no volume")?;
    ensure!(!volume["downwardAPI"].is_null(), "{volume:#}");
    ensure!(policies(&stored["spec"]) == ["early=Always", "app=IfNotPresent"]);
    Ok(())
}

async fn called_like_the_gate(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("gate-container").await?;
    let spec =
        json!({"containers": [container("app", "TryLatest"), container(keys::GATE, "Always")]});
    let stored = space.create(&pod_of("app", &json!({}), &spec)).await?;
    not_gated(&stored)?;
    ensure!(policies(&stored["spec"]) == ["app=IfNotPresent"]);
    Ok(())
}

async fn a_forged_release(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("forged").await?;
    let forged = json!({ keys::RELEASED: "{}", keys::PROGRESS: "{}", "example.com/own": "stays" });
    for (name, policy) in [("try", "TryLatest"), ("other", "Always")] {
        let stored = space.create(&annotated(name, policy, &forged)).await?;
        let left = [keys::RELEASED, keys::PROGRESS].map(|key| annotation(&stored, key));
        ensure!(left == [None, None], "{name}: {left:?}");
        ensure!(annotation(&stored, "example.com/own") == Some("stays"));
    }
    Ok(())
}

async fn mirror_pods_are_left_alone(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("mirror").await?;
    let annotations = json!({
        "kubernetes.io/config.mirror": "hash", keys::CONTAINERS: "*", keys::RELEASED: "{}",
    });
    let spec = json!({"nodeName": "node", "containers": [container("app", "Always")]});
    let stored = space.create(&pod_of("app", &annotations, &spec)).await?;
    not_gated(&stored)?;
    ensure!(policies(&stored["spec"]) == ["app=Always"]);
    ensure!(annotation(&stored, keys::CONTAINERS) == Some("*"));
    ensure!(annotation(&stored, keys::RELEASED) == Some("{}"));
    Ok(())
}

async fn other_pods_are_left_alone(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("others").await?;
    for policy in ["Always", "IfNotPresent", "Never"] {
        let name = policy.to_lowercase();
        // The template said TryLatest once, and says something else now.
        let literal = json!({ keys::LITERAL: "other", keys::TIMEOUT: "5s" });
        let stored = space.create(&annotated(&name, policy, &literal)).await?;
        not_gated(&stored)?;
        ensure!(policies(&stored["spec"]) == [format!("app={policy}")]);
    }
    Ok(())
}

/// CEL has a budget. Nothing that a person writes should come near it.
async fn a_pod_with_many_containers(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("many").await?;
    let many = |prefix: &str| -> Vec<Value> {
        let name = |index| container(&format!("{prefix}-{index}"), "TryLatest");
        (0..100).map(name).collect()
    };
    let inits = many("init");
    let spec = json!({"initContainers": inits, "containers": many("app")});
    let typos: Vec<_> = (0..100).map(|index| format!("typo-{index}")).collect();
    let annotations = json!({ keys::CONTAINERS: format!("*,{}", typos.join(",")) });
    let stored = space.create(&pod_of("app", &annotations, &spec)).await?;
    ensure!(gates(&stored).len() == 1);
    let names = annotation(&stored, keys::CONTAINERS).context("no names")?;
    ensure!(names.split(',').count() == 300, "{names}");
    let policies = policies(&stored["spec"]);
    ensure!(
        policies
            .iter()
            .all(|policy| policy.ends_with("=IfNotPresent"))
    );
    Ok(())
}

/// Templates were rewritten when they were written: their pods go on without the policies, as plain
/// `IfNotPresent`.
async fn pods_without_the_policies(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("without").await?;
    api.without_policies(async || without(&space).await).await
}

async fn without(space: &crate::space::Space<'_>) -> anyhow::Result<()> {
    // The literal value is the API server's to refuse then: it is the policies that bring it in.
    let literal = pod("literal", "TryLatest").to_string();
    let args = ["create", "--dry-run=server", "-f", "-"];
    wait::until("the policies are gone", SOON, || async {
        let literal = serde_json::from_str(&literal)?;
        Ok(space.kubectl(&args, Some(&literal)).await.err())
    })
    .await?;
    let rewritten = annotated("app", "IfNotPresent", &json!({ keys::LITERAL: "app" }));
    let stored = space.create(&rewritten).await?;
    not_gated(&stored)?;
    ensure!(policies(&stored["spec"]) == ["app=IfNotPresent"]);
    Ok(())
}
