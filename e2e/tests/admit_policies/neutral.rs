//! The gate changes nothing about a pod but that it waits: each test compares a gated pod with its
//! twin that is not.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use trylatest_e2e::cluster::wait;
use trylatest_e2e::suite::Case;

use crate::space::{Space, container, gate_of, pod, pod_of};
use crate::{Api, SOON};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![
        Case::new("the_qos_class_stays", the_qos_class_stays),
        Case::new("no_whole_cpus_for_the_gate", no_whole_cpus),
        Case::new("a_limit_range_and_whole_cpus", limit_range_and_whole_cpus),
        Case::new("a_limit_range_sees_no_gate", a_limit_range_sees_no_gate),
        Case::new("defaults_of_a_limit_range", defaults_of_a_limit_range),
        Case::new("a_quota_counts_no_gate", a_quota_counts_no_gate),
        Case::new("the_restricted_level", the_restricted_level),
        Case::new("the_gates_seccomp_profile", the_gates_seccomp_profile),
        Case::new("the_gates_apparmor_profile", the_gates_apparmor_profile),
        Case::new("the_gates_user", the_gates_user),
        Case::new("no_device_for_the_gate", no_device_for_the_gate),
        Case::new("pod_level_resources", pod_level_resources),
        Case::new("a_pod_that_is_resized_in_place", resized_in_place),
        Case::new("host_network", host_network),
    ]
}

/// A container that asks for these resources.
fn asking(name: &str, policy: &str, resources: &Value) -> Value {
    let mut container = container(name, policy);
    container["resources"] = resources.clone();
    container
}

fn same(cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}})
}

async fn the_qos_class_stays(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("qos").await?;
    let table = [
        ("Guaranteed", same("100m", "32Mi")),
        // Limits alone become requests as well.
        (
            "Guaranteed",
            json!({"limits": {"cpu": "100m", "memory": "32Mi"}}),
        ),
        ("Burstable", json!({"requests": {"cpu": "100m"}})),
        ("BestEffort", json!({})),
    ];
    for (index, (class, resources)) in table.into_iter().enumerate() {
        for policy in ["TryLatest", "IfNotPresent"] {
            let name = format!("{}-{index}", policy.to_lowercase());
            let spec = json!({"containers": [
                asking("app", policy, &resources), asking("two", "Always", &resources),
            ]});
            let stored = space.create(&pod_of(&name, &json!({}), &spec)).await?;
            ensure!(stored["status"]["qosClass"] == class, "{stored:#}");
            if policy == "TryLatest" {
                let gate = gate_of(&stored, "app")?;
                let first = &stored["spec"]["containers"][0];
                ensure!(gate["resources"] == first["resources"], "{gate:#}");
            }
        }
    }
    Ok(())
}

/// What the gate asks for where containers ask for whole CPUs: the static CPU manager gives those
/// cores of their own.
async fn no_whole_cpus(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("whole").await?;
    let request = |cpu: &str| json!({"requests": {"cpu": cpu}});
    let burst =
        |cpu: &str, limit: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": limit}});
    let table = [
        // Guaranteed stays so.
        (vec![same("1", "32Mi")], same("999m", "32Mi"), "Guaranteed"),
        (
            vec![same("4000m", "32Mi")],
            same("3999m", "32Mi"),
            "Guaranteed",
        ),
        (
            vec![same("1500m", "32Mi")],
            same("1500m", "32Mi"),
            "Guaranteed",
        ),
        // A container with part of a CPU is a better model than one with whole ones.
        (
            vec![same("2", "64Mi"), same("100m", "32Mi")],
            same("100m", "32Mi"),
            "Guaranteed",
        ),
        (
            vec![same("2", "64Mi"), same("1", "32Mi")],
            same("1999m", "64Mi"),
            "Guaranteed",
        ),
        (vec![request("1")], request("999m"), "Burstable"),
        // The limit keeps its proportion.
        (vec![burst("1", "2")], burst("999m", "1998m"), "Burstable"),
        (vec![burst("3", "4")], burst("2999m", "3998m"), "Burstable"),
        (vec![burst("0", "2")], burst("0", "2"), "Burstable"),
        (vec![request("1"), json!({})], json!({}), "Burstable"),
    ];
    for (index, (containers, wanted, class)) in table.into_iter().enumerate() {
        let numbered = containers.iter().enumerate();
        let containers: Vec<_> = numbered
            .map(|(at, resources)| asking(&format!("app-{at}"), "TryLatest", resources))
            .collect();
        let names: Vec<_> = (0..containers.len())
            .map(|at| format!("app-{at}"))
            .collect();
        let pod = pod_of(
            &format!("pod-{index}"),
            &json!({}),
            &json!({"containers": containers}),
        );
        let stored = space.create(&pod).await?;
        let gate = gate_of(&stored, &names.join(","))?;
        ensure!(gate["resources"] == wanted, "{index}: {gate:#}");
        let got = &stored["status"]["qosClass"];
        ensure!(got == class, "{index}: {got}");
    }
    Ok(())
}

/// The largest that is allowed, and the widest proportion; the smallest only in company.
async fn limit_range_and_whole_cpus(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("whole-bounds").await?;
    let bounds = json!([
        {"type": "Container", "min": {"cpu": "500m"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "2"}},
        {"type": "Pod", "max": {"cpu": "2"}},
    ]);
    space.create(&limit_range(&bounds)).await?;
    let of = |name: &str, resources: &[Value]| {
        let containers = resources.iter().enumerate();
        let containers: Vec<_> = containers
            .map(|(at, resources)| asking(&format!("app-{at}"), "TryLatest", resources))
            .collect();
        pod_of(name, &json!({}), &json!({"containers": containers}))
    };
    refused_soon(&space, &of("small", &[same("100m", "32Mi")])).await?;
    let ratio = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}});
    for (name, resources) in [
        ("most", vec![same("2", "32Mi")]),
        ("widest", vec![ratio]),
        ("least", vec![same("1", "32Mi"), same("500m", "32Mi")]),
    ] {
        let stored = space.create(&of(name, &resources)).await?;
        ensure!(stored["spec"]["initContainers"].is_array(), "{stored:#}");
    }
    Ok(())
}

fn limit_range(limits: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "limits"},
        "spec": {"limits": limits},
    })
}

/// Creates a pod as soon as it is accepted: what was made a moment ago may not count yet.
async fn create_soon(space: &Space<'_>, pod: &Value) -> anyhow::Result<Value> {
    wait::until("the pod is accepted", SOON, || async {
        Ok(space.create(pod).await.ok())
    })
    .await
}

/// Waits until a pod is refused, and returns why.
async fn refused_soon(space: &Space<'_>, pod: &Value) -> anyhow::Result<String> {
    let args = ["create", "--dry-run=server", "-f", "-"];
    let error = wait::until("the pod is refused", SOON, || async {
        Ok(space.kubectl(&args, Some(pod)).await.err())
    })
    .await?;
    Ok(format!("{error:#}"))
}

async fn a_limit_range_sees_no_gate(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("limit-range").await?;
    let bounds = json!([
        {"type": "Container", "min": {"cpu": "100m", "memory": "32Mi"}, "max": {"cpu": "200m", "memory": "64Mi"}},
        {"type": "Pod", "max": {"cpu": "200m", "memory": "64Mi"}},
    ]);
    space.create(&limit_range(&bounds)).await?;
    let of = |resources: &Value| json!({"containers": [asking("app", "TryLatest", resources)]});
    let small = pod_of("small", &json!({}), &of(&same("50m", "32Mi")));
    let why = refused_soon(&space, &small).await?;
    ensure!(why.contains("minimum cpu usage"), "{why}");
    // The smallest, and the biggest of which there is room for one.
    for (name, resources) in [
        ("least", same("100m", "32Mi")),
        ("most", same("200m", "64Mi")),
    ] {
        let stored = space
            .create(&pod_of(name, &json!({}), &of(&resources)))
            .await?;
        gate_of(&stored, "app")?;
    }
    Ok(())
}

async fn defaults_of_a_limit_range(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("defaults").await?;
    let bounds = json!([{
        "type": "Container",
        "default": {"cpu": "200m", "memory": "64Mi"}, "defaultRequest": {"cpu": "100m", "memory": "32Mi"},
    }]);
    space.create(&limit_range(&bounds)).await?;
    let stored = wait::until("defaults are set", SOON, || async {
        let args = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
        let printed = space.kubectl(&args, Some(&pod("app", "TryLatest"))).await?;
        let stored: Value = serde_json::from_str(&printed)?;
        let set = !stored["spec"]["containers"][0]["resources"]["limits"].is_null();
        Ok(set.then_some(stored))
    })
    .await?;
    let gate = gate_of(&stored, "app")?;
    let first = &stored["spec"]["containers"][0]["resources"];
    ensure!(gate["resources"] == *first, "{gate:#}");
    Ok(())
}

async fn a_quota_counts_no_gate(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("quota").await?;
    // Just enough for one pod of two containers; each container has to say what it needs.
    let hard = json!({
        "pods": "1", "requests.cpu": "300m", "requests.memory": "96Mi",
        "limits.cpu": "300m", "limits.memory": "96Mi",
    });
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "quota"},
        "spec": {"hard": hard},
    });
    space.create(&quota).await?;
    wait::until("the quota counts", SOON, || async {
        let quota = space.get("resourcequota", "quota").await?;
        Ok((quota["status"]["hard"] == hard).then_some(()))
    })
    .await?;
    let spec = json!({"containers": [
        asking("app", "TryLatest", &same("100m", "32Mi")),
        asking("two", "TryLatest", &same("200m", "64Mi")),
    ]});
    let stored = create_soon(&space, &pod_of("app", &json!({}), &spec)).await?;
    gate_of(&stored, "app,two")?;
    let quota = space.get("resourcequota", "quota").await?;
    ensure!(quota["status"]["used"] == hard, "{quota:#}");
    let why = space.refuses(&pod_of("more", &json!({}), &spec)).await?;
    ensure!(why.contains("exceeded quota"), "{why}");
    Ok(())
}

/// A security context that the restricted level takes, with more in it.
fn restricted(policy: &str, pod_context: &Value) -> Value {
    let mut app = container("app", policy);
    app["securityContext"] = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
    });
    json!({"securityContext": pod_context, "containers": [app]})
}

async fn the_restricted_level(api: Arc<Api>) -> anyhow::Result<()> {
    let level = [("pod-security.kubernetes.io/enforce", "restricted")];
    let space = Space::make(&api, "restricted", &level).await?;
    let seccomp = json!({"type": "RuntimeDefault"});
    let why = space
        .refuses(&pod_of(
            "root",
            &json!({}),
            &restricted("TryLatest", &json!({"seccompProfile": seccomp})),
        ))
        .await?;
    // The pod's own fault: the gate is not in the list of offenders.
    ensure!(why.contains("violates PodSecurity"), "{why}");
    ensure!(!why.contains("trylatest-gate"), "{why}");
    for (name, context) in [
        (
            "plain",
            json!({"runAsNonRoot": true, "seccompProfile": seccomp}),
        ),
        (
            "own-user",
            json!({
                "runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000,
                "supplementalGroups": [7], "seccompProfile": seccomp,
                "seLinuxOptions": {"level": "s0:c1,c2"},
            }),
        ),
    ] {
        let spec = restricted("TryLatest", &context);
        let stored = space.create(&pod_of(name, &json!({}), &spec)).await?;
        let gate = gate_of(&stored, "app")?;
        let own = &gate["securityContext"];
        ensure!(own["runAsNonRoot"] == true && own["readOnlyRootFilesystem"] == true);
    }
    Ok(())
}

/// The gate's security context in a pod with these.
async fn gates_context(
    space: &Space<'_>,
    name: &str,
    of_pod: &Value,
    of_container: &Value,
) -> anyhow::Result<Value> {
    let mut app = container("app", "TryLatest");
    app["securityContext"] = of_container.clone();
    let spec = json!({"securityContext": of_pod, "containers": [app]});
    let stored = space.create(&pod_of(name, &json!({}), &spec)).await?;
    Ok(gate_of(&stored, "app")?["securityContext"].clone())
}

/// Only where the pod asks for one: it costs time at each start.
async fn the_gates_seccomp_profile(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("seccomp").await?;
    let profile = |kind: &str| json!({"seccompProfile": {"type": kind}});
    let local = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "app.json"}});
    let table = [
        (json!({}), json!({}), Value::Null),
        (json!({}), profile("Unconfined"), Value::Null),
        (
            profile("RuntimeDefault"),
            json!({}),
            json!("RuntimeDefault"),
        ),
        (
            json!({}),
            profile("RuntimeDefault"),
            json!("RuntimeDefault"),
        ),
        // Made for the app, and nobody knows whether the gate could run with it.
        (local, json!({}), json!("RuntimeDefault")),
    ];
    for (index, (of_pod, of_container, wanted)) in table.into_iter().enumerate() {
        let name = format!("pod-{index}");
        let gate = gates_context(&space, &name, &of_pod, &of_container).await?;
        let got = &gate["seccompProfile"]["type"];
        ensure!(*got == wanted, "{name}: {got}");
    }
    Ok(())
}

/// A profile that was made for the app is not the gate's.
async fn the_gates_apparmor_profile(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("apparmor").await?;
    for (name, profile, wanted) in [
        ("none", json!(null), Value::Null),
        ("default", json!({"type": "RuntimeDefault"}), Value::Null),
        (
            "own",
            json!({"type": "Localhost", "localhostProfile": "app"}),
            json!("RuntimeDefault"),
        ),
    ] {
        let of_pod = json!({"appArmorProfile": profile});
        let gate = gates_context(&space, name, &of_pod, &json!({})).await?;
        let got = &gate["appArmorProfile"]["type"];
        ensure!(*got == wanted, "{name}: {got}");
    }
    Ok(())
}

/// Never root, and the pod's own user where it has one.
async fn the_gates_user(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("user").await?;
    let table = [
        (json!({}), json!({}), 65532),
        (json!({"runAsUser": 0}), json!({}), 65532),
        (json!({"runAsUser": 1000}), json!({}), 1000),
        (json!({"runAsUser": 1000}), json!({"runAsUser": 2000}), 2000),
        (json!({"runAsUser": 1000}), json!({"runAsUser": 0}), 1000),
    ];
    for (index, (of_pod, of_container, user)) in table.into_iter().enumerate() {
        let name = format!("pod-{index}");
        let gate = gates_context(&space, &name, &of_pod, &of_container).await?;
        let got = &gate["runAsUser"];
        ensure!(*got == user, "{name}: {got}");
    }
    Ok(())
}

async fn no_device_for_the_gate(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("devices").await?;
    let amounts = json!({"cpu": "100m", "memory": "32Mi", "ephemeral-storage": "1Gi", "example.com/gpu": "1"});
    let mut app = asking(
        "app",
        "TryLatest",
        &json!({"requests": amounts, "limits": amounts}),
    );
    app["resources"]["claims"] = json!([{"name": "gpu"}]);
    let spec = json!({
        "resourceClaims": [{"name": "gpu", "resourceClaimName": "gpu"}],
        "containers": [app],
    });
    let stored = space.create(&pod_of("app", &json!({}), &spec)).await?;
    let gate = gate_of(&stored, "app")?;
    let wanted = json!({"cpu": "100m", "memory": "32Mi", "ephemeral-storage": "1Gi"});
    ensure!(
        gate["resources"] == json!({"requests": wanted, "limits": wanted}),
        "{gate:#}"
    );
    ensure!(stored["status"]["qosClass"] == "Guaranteed");
    Ok(())
}

/// A pod can be made larger and smaller in place, with a gate as without one. What the pod as a whole asks for cannot
/// become less than what the gate does.
async fn resized_in_place(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("resized").await?;
    let mut app = container("app", "TryLatest");
    app["resources"] = same("500m", "64Mi");
    let spec = json!({"containers": [app]});
    let pod = space.create(&pod_of("app", &json!({}), &spec)).await?;
    gate_of(&pod, "app")?;
    let to = |cpu: &str| json!([{"name": "app", "resources": same(cpu, "64Mi")}]);
    for cpu in ["800m", "200m"] {
        let smaller = json!({"containers": to(cpu)});
        resize(&space, "app", &smaller).await?;
    }
    let spec = json!({"resources": same("1", "128Mi"), "containers": spec["containers"]});
    space.create(&pod_of("whole", &json!({}), &spec)).await?;
    let whole = |cpu: &str| json!({"resources": same(cpu, "128Mi"), "containers": to("200m")});
    resize(&space, "whole", &whole("500m")).await?;
    let refused = resize(&space, "whole", &whole("400m")).await;
    let why = format!("{:#}", refused.err().context("it was accepted")?);
    let wanted = "must be greater than or equal to aggregate container requests of 500m";
    ensure!(why.contains(wanted), "{why}");
    Ok(())
}

async fn resize(space: &Space<'_>, pod: &str, spec: &Value) -> anyhow::Result<()> {
    let patch = json!({"spec": spec}).to_string();
    let resize = [
        "patch",
        "pod",
        pod,
        "--subresource=resize",
        "--patch",
        &patch,
    ];
    space.kubectl(&resize, None).await.map(drop)
}

async fn pod_level_resources(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("pod-level").await?;
    let spec = json!({
        "resources": same("1", "1Gi"),
        "containers": [container("app", "TryLatest")],
    });
    let stored = space.create(&pod_of("app", &json!({}), &spec)).await?;
    gate_of(&stored, "app")?;
    ensure!(stored["status"]["qosClass"] == "Guaranteed", "{stored:#}");
    Ok(())
}

async fn host_network(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("host").await?;
    let mut app = container("app", "TryLatest");
    app["ports"] = json!([{"containerPort": 80}]);
    let spec = json!({"hostNetwork": true, "hostPID": true, "containers": [app]});
    let stored = space.create(&pod_of("app", &json!({}), &spec)).await?;
    let gate = gate_of(&stored, "app")?;
    ensure!(gate.get("ports").is_none(), "{gate:#}");
    let first = stored["spec"]["containers"]
        .get(0)
        .context("no container")?;
    ensure!(first["ports"][0]["hostPort"] == 80);
    Ok(())
}
