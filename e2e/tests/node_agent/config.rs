//! The administrator's rules, as a ConfigMap brings them to the agent that runs.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use trylatest_e2e::cluster::wait;
use trylatest_e2e::install::NAMESPACE;
use trylatest_e2e::registry::Fault;

use crate::{Node, STALLED, Space, Tests, tests, tried};

/// How long a changed ConfigMap may take to the agent. The kubelet looks at each pod once in a minute and a half at the
/// latest, and at once where the pod has changed.
pub(crate) const ARRIVES: Duration = Duration::from_secs(150);

const MAP: &str = "trylatest-config";

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![],
        // Ceilings are for every pod.
        alone: tests![a_config_map_is_followed_and_a_bad_one_changes_nothing],
    }
}

/// Writes the ConfigMap, and has the kubelet look at the agent's pod.
pub(crate) async fn configure(node: &Node, text: Option<&str>) -> anyhow::Result<()> {
    configure_key(node, "config.yaml", text).await
}

/// The same with a ConfigMap that has this key and no other.
async fn configure_key(node: &Node, key: &str, text: Option<&str>) -> anyhow::Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(node.cluster.client(), NAMESPACE);
    match text {
        Some(text) => {
            let map = json!({"metadata": {"name": MAP}, "data": {key: text}});
            let map: ConfigMap = serde_json::from_value(map)?;
            if maps.get_opt(MAP).await?.is_some() {
                maps.replace(MAP, &PostParams::default(), &map).await?;
            } else {
                maps.create(&PostParams::default(), &map).await?;
            }
        }
        None => drop(maps.delete(MAP, &DeleteParams::default()).await?),
    }
    let name = agent(node).await?;
    let nudge = json!({"metadata": {"annotations": {"trylatest.test/config": text}}});
    let (pods, nudge) = (node.install.pods(), Patch::Merge(&nudge));
    pods.patch(&name, &PatchParams::default(), &nudge).await?;
    Ok(())
}

async fn agent(node: &Node) -> anyhow::Result<String> {
    let agent: Pod = node.install.agent().await?;
    agent.metadata.name.context("the agent's pod has no name")
}

/// Waits until one of the agent's series has such a value.
async fn shows(node: &Node, series: &str, is: impl Fn(f64) -> bool) -> anyhow::Result<()> {
    let shown = || async { Ok(is(node.install.metric(series).await?).then_some(())) };
    wait::until(&format!("{series} is as wanted"), ARRIVES, shown).await
}

/// The first Event about the configuration of this type.
async fn event(node: &Node, kind: &str) -> anyhow::Result<String> {
    let events: Api<Event> = Api::namespaced(node.cluster.client(), NAMESPACE);
    let name = agent(node).await?;
    let fields = format!("involvedObject.name={name},reason=TryLatestConfig,type={kind}");
    let params = ListParams::default().fields(&fields);
    let found = || async {
        let found = events.list(&params).await?.items;
        Ok(found.into_iter().find_map(|event| event.message))
    };
    wait::until(&format!("a {kind} Event says so"), ARRIVES, found).await
}

/// A pod falls back because its time is up; without the rules for its registry it would be because nothing moves.
async fn waits_as_configured(space: &Space<'_>, pod: &str, image: &str) -> anyhow::Result<Value> {
    space.registry.fault(Fault::NeverAnswers).await?;
    // Longer than the ceiling.
    let spec = tried(pod, image).annotated("trylatest.dev/timeout", "30m");
    let release = space.run_spec(&spec, STALLED, "fallback", "one").await?;
    let why = release["message"].as_str().unwrap_or_default();
    ensure!(why.contains("the pod's timeout has passed"), "{release}");
    space.registry.heal().await?;
    Ok(release)
}

async fn a_config_map_is_followed_and_a_bad_one_changes_nothing(node: &Node) -> anyhow::Result<()> {
    let space = node.space("config").await?;
    let other = format!("{}-other", space.repository);
    let image = space.registry.image(&other, "latest");
    space.push("one").await?;
    space.push_to(&other, "one").await?;
    space.run("before", "fresh", "one").await?;
    let spec = tried("before-other", &image);
    space.run_spec(&spec, STALLED, "fresh", "one").await?;

    let host = space.registry.host();
    let rules = format!("registries:\n  {host}: {{stall: 10m}}\nceilings:\n  try: 8s\n");
    configure(node, Some(&rules)).await?;
    let loaded = "trylatest_config_loaded_timestamp_seconds";
    shows(node, loaded, |seconds| seconds > 0.0).await?;
    waits_as_configured(&space, "follows", &space.image()).await?;
    let words = "Warning TryLatestBadSetting: trylatest.dev/timeout";
    let told = space.work.wait_event("follows", words, STALLED).await?;
    ensure!(
        told.contains("the administrator's ceiling applies"),
        "{told}"
    );
    space.comes_back("one").await?;

    configure(node, Some("ceilings:\n  tri: 8s\n")).await?;
    shows(node, "trylatest_config_valid", |valid| valid < 1.0).await?;
    let refused = event(node, "Warning").await?;
    ensure!(
        refused.contains("line 2, column 3: ceilings.tri: unknown key; did you mean \"try\"?"),
        "{refused}"
    );
    waits_as_configured(&space, "still", &image).await?;

    configure(node, Some(&rules)).await?;
    shows(node, "trylatest_config_valid", |valid| valid > 0.0).await?;
    configure_key(node, "config.yml", Some(&rules)).await?;
    shows(node, "trylatest_config_valid", |valid| valid < 1.0).await?;
    waits_as_configured(&space, "without-key", &image).await?;

    configure(node, None).await?;
    shows(node, "trylatest_config_valid", |valid| valid > 0.0).await?;
    shows(node, loaded, |seconds| seconds < 1.0).await?;
    event(node, "Normal").await?;
    space.end().await
}
