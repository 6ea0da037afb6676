//! Where the kubelet has its credentials from: secrets of the pod or of its service account, and plugins.

use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use trylatest_e2e::cluster::{AUDIENCE, PluginAnswer};
use trylatest_e2e::registry::{Access, Fault, Scheme, User};
use trylatest_e2e::workload::{PodSpec, Workloads, is_running, release};

use crate::outages::{images, wait_node};
use crate::private::{
    AFTER_BACK_OFF, SECRET, alice, became, becomes, make_private, nobody_else_starts, outcome_of,
    private, with_secret,
};
use crate::{Node, SOON, Space, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            a_wrong_secret_starts_from_no_copy_of_another,
            an_outage_accuses_no_secret_and_the_registrys_answer_does,
            the_second_secret_opens_it,
            a_secret_of_the_service_account_opens_it,
            a_secret_that_is_rotated_in_an_outage_is_still_known,
            a_plugin_that_wants_the_service_account_opens_it_for_that_one,
        ],
        // There is one plugin for all.
        alone: tests![
            a_plugin_opens_it_and_breaks,
            a_plugin_that_hangs_costs_its_own_pods_a_minute,
        ],
    }
}

/// The service account that may read.
const READER: &str = "reader";

async fn a_wrong_secret_starts_from_no_copy_of_another(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "wrong", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    let mallory = User::new("mallory", "guessed");
    let host = space.registry.host();
    let other = Workloads::from(node.cluster.namespace("mallory").await?);
    other.pull_secret(SECRET, &host, &mallory).await?;
    let image = space.image();
    other.create(&with_secret("thief", &image)).await?;
    other.wait_event("thief", "ErrImagePull", SOON).await?;
    // The name is given back to those who may have it.
    becomes(&space, "meanwhile", "unchanged", "one").await?;
    let pod = other.pods().get("thief").await?;
    ensure!(!is_running(&pod), "another tenant's pod runs");
    is_told_why(&other, "thief").await?;
    other.delete().await?;
    space.end().await
}

/// An outage hides whether the registry would accept the secret. Once it answers, the pod says what it answered.
async fn an_outage_accuses_no_secret_and_the_registrys_answer_does(
    node: &Node,
) -> anyhow::Result<()> {
    let space = private(node, "guessed", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    space.registry.fault(Fault::Unavailable).await?;
    let other = Workloads::from(node.cluster.namespace("guesser").await?);
    let mallory = User::new("mallory", "guessed");
    let host = space.registry.host();
    other.pull_secret(SECRET, &host, &mallory).await?;
    let image = space.image();
    other.create(&with_secret("thief", &image)).await?;
    waits(&other, "thief", "server-error").await?;
    let words =
        "to do: nothing; the pod starts by itself once the registry recovers and lets it pull";
    other.wait_event("thief", words, SOON).await?;
    wait_node(node, "the node says that a pod is without", |node| {
        // Long names are cut at the front, after the registry.
        let start = format!("UNAVAILABLE server-error  {host}/");
        images(node).lines().any(|line| line.starts_with(&start))
    })
    .await?;
    space.registry.heal().await?;
    waits(&other, "thief", "unauthorized").await?;
    let words = "to do: check the pod's imagePullSecrets: they have to name a secret";
    other.wait_event("thief", words, SOON).await?;
    other.delete().await?;
    space.end().await
}

/// The pod does not run, for this reason.
async fn waits(work: &Workloads, pod: &str, class: &str) -> anyhow::Result<()> {
    let what = format!("it waits because of {class}");
    let says = |pod: &Pod| {
        let container = release(pod).map(|mut release| release["containers"]["app"].take());
        container.is_some_and(|app| app["outcome"] == "unavailable" && app["class"] == class)
    };
    let pod = work.wait_pod(pod, &what, AFTER_BACK_OFF, says).await?;
    ensure!(!is_running(&pod), "another tenant's pod runs");
    Ok(())
}

/// The registry answers, and does not accept the pod's secret: its owner is told first that the copy may not be the
/// pod's, and then that it is not.
async fn is_told_why(work: &Workloads, pod: &str) -> anyhow::Result<()> {
    for (reason, words) in [
        (
            "Warning TryLatestFallback",
            "; the registry also refused the kubelet's pull, which used this pod's credentials; if this copy was only \
             ever pulled with other credentials, the kubelet does not start the pod from it; to do: check the pod's \
             imagePullSecrets",
        ),
        (
            "Warning TryLatestUnavailable",
            "; the kubelet did not start it from the copy on the node, because the registry does not let this pod pull \
             the image; to do: check the pod's imagePullSecrets: they have to name a secret in the pod's namespace that \
             gives access to this image",
        ),
    ] {
        let told = work.wait_event(pod, reason, AFTER_BACK_OFF).await?;
        ensure!(told.ends_with(words), "{told}");
    }
    Ok(())
}

async fn the_second_secret_opens_it(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "second", Scheme::Basic).await?;
    let host = space.registry.host();
    let mallory = User::new("mallory", "guessed");
    space.work.pull_secret("wrong", &host, &mallory).await?;
    let image = space.image();
    for (name, outcome) in [("first", "fresh"), ("next", "unchanged")] {
        let spec = tried(name, &image).with_secret("wrong").with_secret(SECRET);
        space.work.create(&spec).await?;
        became(&space, name, outcome, "one").await?;
    }
    nobody_else_starts(&space).await?;
    space.end().await
}

async fn a_secret_of_the_service_account_opens_it(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "account", Scheme::Bearer).await?;
    let accounts = space.work.api::<ServiceAccount>();
    let patch = json!({"imagePullSecrets": [{"name": SECRET}]});
    let params = PatchParams::default();
    accounts
        .patch("default", &params, &Patch::Merge(&patch))
        .await?;
    let image = space.image();
    for (name, outcome) in [("first", "fresh"), ("next", "unchanged")] {
        space.work.create(&tried(name, &image)).await?;
        became(&space, name, outcome, "one").await?;
    }
    space.end().await
}

async fn a_secret_that_is_rotated_in_an_outage_is_still_known(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "rotated", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    space.registry.fault(Fault::Unavailable).await?;
    let rotated = User::new("alice", "another-password");
    let host = space.registry.host();
    space.work.pull_secret(SECRET, &host, &rotated).await?;
    becomes(&space, "outage", "fallback", "one").await?;
    nobody_else_starts(&space).await?;
    space.registry.heal().await?;
    space.protect(Access::new(Scheme::Basic, &[rotated]));
    becomes(&space, "healed", "unchanged", "one").await?;
    nobody_else_starts(&space).await?;
    space.end().await
}

/// A private repository that the plugins are for: their configuration, which the kubelet reads at its start, names
/// the first host alone.
async fn for_plugin<'a>(node: &'a Node, name: &str, scheme: Scheme) -> anyhow::Result<Space<'a>> {
    let namespace = node.cluster.namespace(name).await?;
    let space = node.space_at(namespace, node.cluster.registry().first_host());
    make_private(&space, scheme).await?;
    Ok(space)
}

async fn a_plugin_opens_it_and_breaks(node: &Node) -> anyhow::Result<()> {
    let space = for_plugin(node, "plugin", Scheme::Bearer).await?;
    let plugin = node.cluster.kubelet().credential_plugin();
    plugin.set(PluginAnswer::Gives(&alice()))?;
    let image = space.image();
    for (name, outcome) in [("first", "fresh"), ("next", "unchanged")] {
        space.work.create(&tried(name, &image)).await?;
        became(&space, name, outcome, "one").await?;
    }
    // Without the plugin's word the kubelet asks as anybody would, and fails.
    plugin.set(PluginAnswer::Rubbish)?;
    space.work.create(&tried("rubbish", &image)).await?;
    let wanted = |pod: &Pod| {
        let outcome = outcome_of(pod);
        outcome.as_deref() == Some("fallback") || outcome.as_deref() == Some("unavailable")
    };
    space
        .work
        .wait_pod("rubbish", "it says so", AFTER_BACK_OFF, wanted)
        .await?;
    plugin.set(PluginAnswer::Gives(&alice()))?;
    let runs = space
        .work
        .wait_pod("rubbish", "it runs", AFTER_BACK_OFF, is_running);
    runs.await?;
    plugin.set(PluginAnswer::Crashes)?;
    space.end().await
}

/// The kubelet waits a minute for it, then asks as anybody would.
async fn a_plugin_that_hangs_costs_its_own_pods_a_minute(node: &Node) -> anyhow::Result<()> {
    let space = for_plugin(node, "plugin", Scheme::Basic).await?;
    let plugin = node.cluster.kubelet().credential_plugin();
    plugin.set(PluginAnswer::Gives(&alice()))?;
    let image = space.image();
    space.work.create(&tried("first", &image)).await?;
    became(&space, "first", "fresh", "one").await?;
    plugin.set(PluginAnswer::Hangs)?;
    space.work.create(&tried("hangs", &image)).await?;
    let given_back = |pod: &Pod| outcome_of(pod).as_deref() == Some("fallback");
    space
        .work
        .wait_pod("hangs", "the name is given back", SOON, given_back)
        .await?;
    // Others do not wait for it.
    let beside = node.space("besideplugin").await?;
    beside.push("two").await?;
    beside.run("app", "fresh", "two").await?;
    beside.end().await?;
    plugin.set(PluginAnswer::Gives(&alice()))?;
    let limit = Duration::from_secs(60) + AFTER_BACK_OFF;
    let runs = space.work.wait_pod("hangs", "it runs", limit, is_running);
    runs.await?;
    plugin.set(PluginAnswer::Crashes)?;
    space.end().await
}

/// KEP-4412: the plugin is given a token of the pod's service account, and no pull secret is.
async fn a_plugin_that_wants_the_service_account_opens_it_for_that_one(
    node: &Node,
) -> anyhow::Result<()> {
    let space = for_plugin(node, "account-plugin", Scheme::Bearer).await?;
    allow_audience(node).await?;
    let plugin = node.cluster.kubelet().credential_plugin();
    plugin.set_for_account(READER, &alice())?;
    let reader: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": READER}}))?;
    let accounts = space.work.api::<ServiceAccount>();
    accounts.create(&PostParams::default(), &reader).await?;
    let image = space.image();
    let as_reader = |name| PodSpec {
        account: Some(READER),
        ..tried(name, &image)
    };
    for (name, outcome) in [("first", "fresh"), ("next", "unchanged")] {
        space.work.create(&as_reader(name)).await?;
        became(&space, name, outcome, "one").await?;
    }
    nobody_else_starts(&space).await?;
    space.registry.fault(Fault::Unavailable).await?;
    space.work.create(&as_reader("outage")).await?;
    became(&space, "outage", "fallback", "one").await?;
    nobody_else_starts(&space).await?;
    space.end().await
}

/// A kubelet may ask for a token for somebody else only where a role says so.
async fn allow_audience(node: &Node) -> anyhow::Result<()> {
    let role: ClusterRole = serde_json::from_value(json!({
        "metadata": {"name": AUDIENCE},
        "rules": [{
            "apiGroups": [""],
            "resources": [AUDIENCE],
            "verbs": ["request-serviceaccounts-token-audience"],
        }],
    }))?;
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": AUDIENCE},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": AUDIENCE,
        },
        "subjects": [{
            "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes",
        }],
    }))?;
    let params = PatchParams::apply("trylatest-e2e");
    let client = node.cluster.client();
    let roles: Api<ClusterRole> = Api::all(client.clone());
    roles.patch(AUDIENCE, &params, &Patch::Apply(&role)).await?;
    let bindings: Api<ClusterRoleBinding> = Api::all(client);
    let binding = Patch::Apply(&binding);
    bindings.patch(AUDIENCE, &params, &binding).await?;
    Ok(())
}
