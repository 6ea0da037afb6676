//! A tag that moves to an image of many small files, which take longer to unpack than to download.

use trylatest_e2e::testimage;

use super::pods::repository;
use super::report::{Round, Row};
use super::{Bench, LIMIT};

const FILES: usize = 60_000;

impl Bench {
    /// One pod, for which the image is pulled.
    pub(crate) async fn many_files(&self) -> anyhow::Result<Vec<Row>> {
        let pulls = |policy: &&'static str| ["Always", "TryLatest"].contains(policy);
        let policies: Vec<_> = self.policies.iter().copied().filter(pulls).collect();
        self.large_case_of(&policies, "moved-60000-files", Self::one_of_many_files)
            .await
    }

    async fn one_of_many_files(&self, case: &str, policy: &'static str) -> anyhow::Result<Round> {
        let repository = repository(case, policy);
        let image = testimage::app_of_files(&self.tools, "bench\n", FILES)?;
        let registry = self.cluster.registry();
        registry.push(&image, &repository, "latest").await?;
        self.pods(&repository, policy, 1, LIMIT).await
    }
}
