//! A node that reboots while the registry is closed: a power cut, after which everything has to come back.

use std::time::Duration;

use anyhow::Context as _;
use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::registry::Fault;
use trylatest_e2e::workload::{is_running, release};

use super::pods::repository;
use super::report::{Round, Row, row};
use super::restart::{fell_back, unanswered};
use super::{Bench, LIMIT};

const CASE: &str = "reboot-20-images";

/// As many pods as images.
const PODS: usize = 20;

/// The annotation of a pod's release.
const RELEASED: &str = "trylatest.dev/released";

/// How long the pods have run when the power is cut, for all that their gates can know. A gate honours a
/// release of the last two minutes.
const AGE: Duration = Duration::from_secs(3600);

impl Bench {
    /// How long all pods take to run again, from the start of the node's kubelet.
    pub(crate) async fn reboot_node(&self) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for &policy in &self.policies {
            let own = |n| format!("{}-{n}", repository(CASE, policy));
            let repositories: Vec<String> = (0..PODS).map(own).collect();
            let names = self.new_names(policy, PODS);
            let made = names.iter().zip(&repositories);
            try_join_all(made.map(async |(name, repository)| {
                self.push(repository).await?;
                self.create_pod(name, repository, policy).await
            }))
            .await?;
            // A case that can never run is shown once.
            let count = if policy == "Always" {
                1
            } else {
                self.large_rounds()
            };
            let mut rounds = Vec::new();
            for number in 1..=count {
                eprintln!("{CASE}, {policy}: round {number} of {count}");
                rounds.push(self.reboot_once(&names).await?);
            }
            try_join_all(names.iter().map(|name| self.remove(name))).await?;
            if policy == "TryLatest" {
                self.come_back(&repositories).await?;
            }
            rows.push(row(CASE, policy, &rounds));
        }
        Ok(rows)
    }

    async fn reboot_once(&self, names: &[String]) -> anyhow::Result<Round> {
        let before = try_join_all(names.iter().map(|name| self.running(name))).await?;
        try_join_all(before.iter().map(|pod| self.date_back(pod))).await?;
        let registry = self.cluster.registry();
        let requests = registry.requests();
        registry.fault(Fault::Closed).await?;
        self.cluster.reboot().await?;
        let again = join_all(before.iter().map(|pod| self.work.runs_again(pod, LIMIT))).await;
        let took: Option<Vec<Duration>> = again.into_iter().collect();
        let requests = registry.requests().since(&requests).total();
        let pods = names
            .iter()
            .map(async |name| self.work.pods().get(name).await);
        let after = try_join_all(pods).await?;
        registry.heal().await?;
        self.install.wait_ready().await?;
        Ok(Round {
            took: took.and_then(|times| times.into_iter().max()),
            pods: names.len(),
            requests,
            fallbacks: after.iter().filter(|pod| fell_back(pod)).count(),
            unanswered: after.iter().filter(|pod| unanswered(pod)).count(),
            cost: None,
        })
    }

    async fn running(&self, name: &str) -> anyhow::Result<Pod> {
        wait::object(self.work.pods(), name, "it runs", LIMIT, is_running).await
    }

    /// Makes a pod's release, if it has one, one of [`AGE`] ago: in place of the wait for that.
    async fn date_back(&self, pod: &Pod) -> anyhow::Result<()> {
        let Some(mut release) = release(pod) else {
            return Ok(());
        };
        let time: jiff::Timestamp = release["time"].as_str().context("no time")?.parse()?;
        release["time"] = json!((time - AGE).to_string());
        let name = pod.metadata.name.as_deref().context("no name")?;
        let patch = json!({"metadata": {"annotations": {RELEASED: release.to_string()}}});
        let pods = self.work.pods();
        let patch = Patch::Merge(&patch);
        pods.patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }
}
