//! Pods in an outage: the registry accepts and never answers.

use trylatest_e2e::registry::Fault;

use super::pods::repository;
use super::report::{Round, Row, row};
use super::{Bench, LIMIT, NEVER, WITH_INIT};

/// As many images as pods.
const MANY: usize = 50;

const UNCHANGED: &str = "unchanged-50-images";
const OUTAGE: &str = "outage-50-images";

impl Bench {
    /// One pod, the first in an outage: what an earlier round has taught the agent is over.
    ///
    /// The kubelet pulls one image after the other, even for pods that are gone: after each round, this
    /// cuts off pulls that still hang.
    pub(crate) async fn never_answers(&self) -> anyhow::Result<Vec<Row>> {
        let case = "never-answers";
        let mut rows = Vec::new();
        let waits = |policy: &&&'static str| **policy != WITH_INIT;
        for &policy in self.policies.iter().filter(waits) {
            let repository = repository(case, policy);
            self.push(&repository).await?;
            self.pods(&repository, policy, 1, LIMIT).await?;
            let mut rounds = Vec::new();
            for number in 1..=self.rounds {
                eprintln!("{case}, {policy}: round {number} of {}", self.rounds);
                self.fall_silent(&repository)?;
                rounds.push(self.pods(&repository, policy, 1, NEVER).await?);
                self.come_back(std::slice::from_ref(&repository)).await?;
            }
            rows.push(row(case, policy, &rounds));
        }
        Ok(rows)
    }

    /// One pod after the other in one outage, after the first, which finds out.
    pub(crate) async fn outage_later(&self) -> anyhow::Result<Vec<Row>> {
        let case = "outage-later";
        let policies = self.that_start();
        let rows = self.case_of(&policies, case, Self::one_in_outage).await?;
        let all: Vec<String> = policies
            .iter()
            .map(|policy| repository(case, policy))
            .collect();
        self.come_back(&all).await?;
        Ok(rows)
    }

    async fn one_in_outage(&self, case: &str, policy: &'static str) -> anyhow::Result<Round> {
        let repository = repository(case, policy);
        if self.push_once(&repository).await? {
            self.pods(&repository, policy, 1, LIMIT).await?;
        }
        self.fall_silent(&repository)?;
        self.pods(&repository, policy, 1, LIMIT).await
    }

    /// 50 pods of 50 images at once, first with a registry, then in an outage that is known from the round that does
    /// not count.
    pub(crate) async fn many_in_outage(&self) -> anyhow::Result<Vec<Row>> {
        let policies = self.that_start();
        for policy in &policies {
            for repository in many(policy) {
                self.push(&repository).await?;
            }
        }
        let each = Self::one_of_each;
        let mut rows = self.large_case_of(&policies, UNCHANGED, each).await?;
        for policy in &policies {
            for repository in many(policy) {
                self.fall_silent(&repository)?;
            }
        }
        rows.extend(self.large_case_of(&policies, OUTAGE, each).await?);
        let all: Vec<String> = policies.iter().flat_map(|policy| many(policy)).collect();
        self.come_back(&all).await?;
        Ok(rows)
    }

    async fn one_of_each(&self, _case: &str, policy: &'static str) -> anyhow::Result<Round> {
        self.pods_of(&many(policy), policy, LIMIT).await
    }

    /// Those whose pods start without a registry.
    fn that_start(&self) -> Vec<&'static str> {
        let policies = self.policies.iter().copied();
        policies.filter(|policy| *policy != "Always").collect()
    }

    fn fall_silent(&self, repository: &str) -> anyhow::Result<()> {
        let registry = self.cluster.registry();
        registry.fault_on(repository, Fault::NeverAnswers)
    }

    /// Ends the outage, and makes pods until the agent knows.
    pub(crate) async fn come_back(&self, repositories: &[String]) -> anyhow::Result<()> {
        let registry = self.cluster.registry();
        registry.hang_up().await?;
        for repository in repositories {
            registry.heal_on(repository);
        }
        registry.heal().await?;
        let circuits = "trylatest_open_circuits";
        for repository in repositories.iter().cycle() {
            if self.install.sum(circuits, &[]).await? == 0.0 {
                break;
            }
            self.pods(repository, "TryLatest", 1, LIMIT).await?;
        }
        Ok(())
    }
}

fn many(policy: &str) -> Vec<String> {
    let one = |n| format!("{}-{n}", repository("many", policy));
    (0..MANY).map(one).collect()
}
