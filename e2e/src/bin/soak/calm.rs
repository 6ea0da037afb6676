//! What has to be true once everything works again.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use tokio::time::Instant;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::usage::Usage;
use trylatest_e2e::workload::{image_id, is_running, release};

use super::world::{RUNS, World};

/// How long something may still be under way.
const SOON: Duration = Duration::from_secs(60);

/// Pods that run on into the next trouble.
const KEPT: usize = 6;

/// An agent that has just begun takes less; one that leaks takes more sooner or later.
const RSS_MOST: u64 = 32 << 20;

/// How many copies of an image may be kept that no pod runs: the newest, and the one before.
const COPIES: usize = 2;

impl World<'_> {
    /// Heals everything and looks at the whole.
    ///
    /// # Errors
    /// Something is stuck, lost, left behind or untrue.
    pub(crate) async fn calm(&mut self) -> anyhow::Result<()> {
        self.heal().await?;
        self.install.wait_ready().await?;
        for (name, _) in self.pods.clone() {
            self.runs_what_it_says(&name).await?;
        }
        for n in 0..self.images.len() {
            self.is_up_to_date(n).await?;
        }
        self.names_are_there().await?;
        let id = self.install.container().await?;
        let pid = self
            .cluster
            .containerd()
            .pid_of(id.trim_start_matches("containerd://"));
        let rss = Usage::of(pid.await?)?.resident_bytes;
        ensure!(rss < RSS_MOST, "the agent takes {rss} bytes");
        self.most_rss_bytes = self.most_rss_bytes.max(rss);
        while self.pods.len() > KEPT {
            self.delete(0).await?;
        }
        self.since.clear();
        Ok(())
    }

    /// It runs, and what is written about it is true.
    async fn runs_what_it_says(&mut self, name: &str) -> anyhow::Result<()> {
        let pods = self.work.pods();
        let runs = wait::object(pods.clone(), name, "it runs", RUNS, is_running).await;
        runs.with_context(|| format!("{name} is stuck"))?;
        let says = |pod: &Pod| is_running(pod) && is_true(pod);
        let pod = wait::object(pods, name, "its release is true", SOON, says).await?;
        let outcome = outcome(&pod).unwrap_or("without a release".to_owned());
        self.count(&outcome);
        Ok(())
    }

    /// A new pod gets what the tag points to now: at the latest when the circuit has closed again.
    async fn is_up_to_date(&mut self, n: usize) -> anyhow::Result<()> {
        let until = Instant::now() + RUNS;
        let newest = self.images[n].version.to_string();
        loop {
            let name = self.create(n, true).await?;
            self.runs_what_it_says(&name).await?;
            let says = self.work.wait_log(&name, "app", SOON).await?;
            if says.trim() == newest {
                return Ok(());
            }
            if Instant::now() > until {
                let image = self.name_of(n);
                bail!(
                    "{name} runs {} of {image}, whose newest is {newest}",
                    says.trim()
                );
            }
        }
    }

    /// What pods run, as aliases spell it: as long as they do, it is kept.
    async fn running_digests(&self) -> anyhow::Result<Vec<String>> {
        let pods = self.work.pods().list(&ListParams::default()).await?.items;
        let ids = pods.iter().filter_map(image_id);
        let digests = ids.filter_map(|id| Some(id.rsplit_once('@')?.1.replace(':', "+")));
        Ok(digests.collect())
    }

    /// No name is lost, and no alias is left behind.
    async fn names_are_there(&self) -> anyhow::Result<()> {
        self.install.nothing_is_aside(self.cluster).await?;
        let containerd = self.cluster.containerd();
        let wanted: Vec<String> = (0..self.images.len()).map(|n| self.name_of(n)).collect();
        wait::until(
            "names are there, and no more copies than there may be",
            SOON,
            || async {
                let runs = self.running_digests().await?;
                let names = containerd.ctr(&["images", "list", "--quiet"]).await?;
                let has = |name: &String| names.lines().any(|line| line == name);
                let is_copy = |line: &&str| line.starts_with("TryLatest,copy,");
                let is_spare = |line: &&str| !runs.iter().any(|digest| line.contains(digest));
                let copies = names.lines().filter(is_copy).filter(is_spare).count();
                let is_well = wanted.iter().all(has) && copies <= COPIES * wanted.len();
                Ok(is_well.then_some(()))
            },
        )
        .await
    }
}

/// Whether the container runs the digest that its release names, if it names one.
fn is_true(pod: &Pod) -> bool {
    let Some(release) = release(pod) else {
        // A gate without an answer.
        return true;
    };
    let app = &release["containers"]["app"];
    let (given, runs) = (app["digest"].as_str(), app["runs"].as_str());
    let image = image_id(pod).unwrap_or_default();
    // What becomes of a hand-over is written yet.
    let is_decided = app["outcome"] != "handed-over";
    is_decided && runs.or(given).is_none_or(|digest| image.ends_with(digest))
}

fn outcome(pod: &Pod) -> Option<String> {
    let release = release(pod)?;
    let outcome = release["containers"]["app"]["outcome"].as_str()?;
    Some(outcome.to_owned())
}
