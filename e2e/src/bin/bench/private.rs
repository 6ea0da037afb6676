//! Pods of private images, which the kubelet pulls with their secret.

use serde_json::json;
use trylatest_e2e::registry::{Access, Fault, Scheme, User};

use super::pods::repository;
use super::report::{Round, Row};
use super::single::LATENCY;
use super::{BURST, Bench, LIMIT, NEVER, WITH_INIT};

/// The pods' secret.
pub(crate) const SECRET: &str = "bench";

const CASES: [&str; 4] = [
    "private-unchanged",
    "private-moved",
    "private-outage",
    "private-burst-20",
];

/// The same with images that everybody may have, to compare with.
const PUBLIC_UNCHANGED: &str = "public-unchanged";
const PUBLIC_OUTAGE: &str = "public-outage";

/// What the agent is told of the kubelet's limit.
const PULL_LIMIT: &str = "TRYLATEST_REGISTRY_PULL_QPS";

/// As many images as pods; from a registry that is far away, too.
const EACH_ITS_OWN: &str = "private-20-images";
const EACH_FROM_AFAR: &str = "private-20-images-100ms";

pub(crate) fn is_private(repository: &str) -> bool {
    repository.starts_with("private-")
}

impl Bench {
    pub(crate) async fn private_images(&self) -> anyhow::Result<Vec<Row>> {
        let user = User::new("alice", "a-password");
        let registry = self.cluster.registry();
        let host = registry.host();
        self.work.pull_secret(SECRET, &host, &user).await?;
        // What an init container costs one pod, public images show.
        let policies = self.policies.iter().copied();
        let policies: Vec<_> = policies.filter(|policy| *policy != WITH_INIT).collect();
        let access = || Access::new(Scheme::Bearer, std::slice::from_ref(&user));
        for policy in &self.policies {
            let of_case = CASES.map(|case| repository(case, policy));
            let own = own_repositories(EACH_ITS_OWN, policy);
            let afar = own_repositories(EACH_FROM_AFAR, policy);
            for repository in of_case.into_iter().chain(own).chain(afar) {
                registry.protect(&repository, access());
            }
        }
        let [unchanged, moved, outage, burst] = CASES;
        let mut rows = self
            .case_of(&policies, PUBLIC_UNCHANGED, Self::one_unchanged)
            .await?;
        rows.extend(
            self.case_of(&policies, unchanged, Self::one_unchanged)
                .await?,
        );
        rows.extend(self.case_of(&policies, moved, Self::one_moved).await?);
        rows.extend(
            self.case_of(&policies, PUBLIC_OUTAGE, Self::one_refused)
                .await?,
        );
        rows.extend(self.case_of(&policies, outage, Self::one_refused).await?);
        rows.extend(self.large_case_of(&policies, burst, Self::burst).await?);
        // The kubelet's own limit would be all that `Always` measures.
        let kubelet = self.cluster.kubelet();
        kubelet.reconfigure(&json!({"registryPullQPS": 0})).await?;
        self.install.set_variable(PULL_LIMIT, Some("0")).await?;
        rows.extend(
            self.large_case_of(&self.policies, EACH_ITS_OWN, Self::each_its_own)
                .await?,
        );
        registry.fault(Fault::Latency(LATENCY)).await?;
        rows.extend(
            self.large_case_of(&self.policies, EACH_FROM_AFAR, Self::each_its_own)
                .await?,
        );
        registry.heal().await?;
        self.install.set_variable(PULL_LIMIT, None).await?;
        kubelet.reconfigure(&json!({"registryPullQPS": 5})).await?;
        Ok(rows)
    }

    /// One pod, while the registry answers 503.
    async fn one_refused(&self, case: &str, policy: &'static str) -> anyhow::Result<Round> {
        let repository = repository(case, policy);
        if self.push_once(&repository).await? {
            self.pods(&repository, policy, 1, LIMIT).await?;
        }
        let registry = self.cluster.registry();
        registry.fault_on(&repository, Fault::Unavailable)?;
        let limit = if policy == "Always" { NEVER } else { LIMIT };
        let round = self.pods(&repository, policy, 1, limit).await;
        registry.heal_on(&repository);
        round
    }

    /// 20 pods at once, each with an image of its own that is present and unchanged.
    async fn each_its_own(&self, case: &str, policy: &'static str) -> anyhow::Result<Round> {
        let repositories: Vec<String> = own_repositories(case, policy).collect();
        for repository in &repositories {
            if self.push_once(repository).await? {
                self.pods(repository, policy, 1, LIMIT).await?;
            }
        }
        self.pods_of(&repositories, policy, LIMIT).await
    }
}

fn own_repositories(case: &str, policy: &str) -> impl Iterator<Item = String> {
    let repository = repository(case, policy);
    (0..BURST).map(move |n| format!("{repository}-{n}"))
}
