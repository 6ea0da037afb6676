//! Pods of one image: one at a time and in bursts, from a registry that is near and from one that is far.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use trylatest_e2e::registry::Fault;

use super::pods::repository;
use super::report::{Agent, Round, Row, middle, row};
use super::{BURST, Bench, LIMIT};

/// By which every answer of a registry that is far away comes later.
pub(crate) const LATENCY: Duration = Duration::from_millis(100);

/// Pods of a large burst. The kubelet runs 110 by default.
const MANY: usize = 50;

/// In a large burst the kubelet refuses most pulls of `Always` five times, and doubles its pause each time: 150 s.
const MANY_LIMIT: Duration = Duration::from_secs(400);

impl Bench {
    /// The cases of one image, and what they cost the agent if it had any.
    pub(crate) async fn single_image(&self, pods: &mut Vec<Row>) -> anyhow::Result<Option<Agent>> {
        let rss_idle_bytes = self.agent_rss().await?;
        let audit = self.cluster.control_plane().audit_end()?;
        let all = [&self.policies[..], &self.unheld].concat();
        let unchanged = self.case_of(&all, "one-unchanged", Self::one_unchanged);
        pods.extend(unchanged.await?);
        let own_part = self.own_part().await?;
        pods.extend(self.case_of(&all, "one-moved", Self::one_moved).await?);
        pods.extend(self.case_of(&all, "burst-20", Self::burst).await?);
        let rss_after_burst_bytes = self.agent_rss().await?;
        pods.extend(self.never_answers().await?);
        pods.extend(self.outage_later().await?);
        let image_bytes = fs::metadata(self.tools.image())?.len();
        let node_writes_in_10_s = self.node_writes_since(audit)?;
        Ok(own_part.map(|own_part_p50_ms| Agent {
            own_part_p50_ms,
            rss_idle_bytes,
            rss_after_burst_bytes,
            image_bytes,
            node_writes_in_10_s,
        }))
    }

    /// The same with a registry that is far away.
    pub(crate) async fn far_registry(&self) -> anyhow::Result<Vec<Row>> {
        let registry = self.cluster.registry();
        registry.fault(Fault::Latency(LATENCY)).await?;
        let all = &self.policies;
        let unchanged = self.case_of(all, "one-unchanged-100ms", Self::one_unchanged);
        let mut rows = unchanged.await?;
        rows.extend((self.case_of(all, "one-moved-100ms", Self::one_moved)).await?);
        rows.extend((self.large_case_of(all, "burst-20-100ms", Self::burst)).await?);
        registry.heal().await?;
        Ok(rows)
    }

    /// A large burst; with `Always`, which takes minutes, only once.
    pub(crate) async fn large_burst(&self) -> anyhow::Result<Vec<Row>> {
        let case = "burst-50";
        let (always, others): (Vec<_>, Vec<_>) =
            (self.policies.iter().copied()).partition(|policy| *policy == "Always");
        let mut rows = (self.large_case_of(&others, case, Self::burst_of_many)).await?;
        for policy in always {
            eprintln!("{case}, {policy}: once");
            let round = self.burst_of_many(case, policy).await?;
            rows.push(row(case, policy, &[round]));
        }
        Ok(rows)
    }

    pub(crate) async fn one_unchanged(
        &self,
        case: &str,
        policy: &'static str,
    ) -> anyhow::Result<Round> {
        let repository = repository(case, policy);
        self.push_once(&repository).await?;
        self.pods(&repository, policy, 1, LIMIT).await
    }

    pub(crate) async fn one_moved(
        &self,
        case: &str,
        policy: &'static str,
    ) -> anyhow::Result<Round> {
        let repository = repository(case, policy);
        self.push(&repository).await?;
        self.pods(&repository, policy, 1, LIMIT).await
    }

    pub(crate) async fn burst(&self, case: &str, policy: &'static str) -> anyhow::Result<Round> {
        self.burst_of(case, policy, BURST, LIMIT).await
    }

    async fn burst_of_many(&self, case: &str, policy: &'static str) -> anyhow::Result<Round> {
        self.burst_of(case, policy, MANY, MANY_LIMIT).await
    }

    async fn burst_of(
        &self,
        case: &str,
        policy: &'static str,
        count: usize,
        limit: Duration,
    ) -> anyhow::Result<Round> {
        let repository = repository(case, policy);
        if self.push_once(&repository).await? {
            self.pods(&repository, policy, 1, LIMIT).await?;
        }
        self.pods(&repository, policy, count, limit).await
    }

    async fn agent_rss(&self) -> anyhow::Result<u64> {
        Ok(self.agent_usage().await?.resident_bytes)
    }

    /// The time from seeing a pod to writing its release, from the agent's log of unchanged tags; none if
    /// it released no pod.
    async fn own_part(&self) -> anyhow::Result<Option<u64>> {
        let log = self.install.log(false).await?;
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut took: Vec<u64> = lines
            .filter(|line| line["message"] == "released" && line["outcome"] == "unchanged")
            .filter_map(|line| line["took_ms"].as_u64())
            .collect();
        took.sort_unstable();
        Ok(middle(&took))
    }
}
