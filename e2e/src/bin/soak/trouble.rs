//! What may happen at any time.

use std::time::Duration;

use anyhow::Context as _;
use rand::RngExt as _;
use rand::seq::IndexedRandom as _;
use trylatest_e2e::registry::{Access, Challenge, Fault, Scheme};

use super::world::World;

#[derive(Clone, Copy, Debug)]
enum Trouble {
    PodComes,
    UnheldPodComes,
    PodGoes,
    TagMoves,
    RegistryFails,
    ImageFails,
    /// The registry takes no credentials any more.
    NobodyIsKnown,
    RegistryHeals,
    AgentDies,
    ContainerdDies,
    KubeletDies,
    ApiServerDies,
    NodeReboots,
}

/// How often each happens, relative to the others.
const TROUBLES: [(Trouble, u32); 13] = [
    (Trouble::PodComes, 30),
    (Trouble::UnheldPodComes, 5),
    (Trouble::PodGoes, 8),
    (Trouble::TagMoves, 10),
    (Trouble::RegistryFails, 8),
    (Trouble::ImageFails, 6),
    (Trouble::NobodyIsKnown, 3),
    (Trouble::RegistryHeals, 10),
    (Trouble::AgentDies, 5),
    (Trouble::ContainerdDies, 2),
    (Trouble::KubeletDies, 2),
    (Trouble::ApiServerDies, 1),
    (Trouble::NodeReboots, 1),
];

/// The longest pause between two of them, in milliseconds.
const PAUSE_MS: u64 = 2_500;

/// No answer comes, and what waits is answered when the fault ends.
const SILENCE: Duration = Duration::from_secs(600);

impl World<'_> {
    /// One of them, and a pause.
    pub(crate) async fn trouble(&mut self) -> anyhow::Result<()> {
        let (trouble, _) = *TROUBLES
            .choose_weighted(&mut self.order, |(_, weight)| *weight)
            .context("no trouble")?;
        let what = format!("{trouble:?}");
        let detail = Box::pin(self.happen(trouble))
            .await
            .with_context(|| what.clone())?;
        self.count(&what);
        self.since
            .push(format!("{what} {detail}").trim_end().to_owned());
        let pause = self.order.random_range(0..PAUSE_MS);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        Ok(())
    }

    async fn happen(&mut self, trouble: Trouble) -> anyhow::Result<String> {
        let registry = self.cluster.registry();
        match trouble {
            Trouble::PodComes | Trouble::UnheldPodComes => {
                let n = self.any_image();
                let held = matches!(trouble, Trouble::PodComes);
                let name = self.create(n, held).await?;
                return Ok(format!("{name} of {}", self.images[n].repository));
            }
            Trouble::PodGoes if self.pods.is_empty() => {}
            Trouble::PodGoes => {
                let which = self.order.random_range(0..self.pods.len());
                self.delete(which).await?;
            }
            Trouble::TagMoves => {
                let n = self.any_image();
                self.push(n).await?;
                return Ok(self.images[n].repository.clone());
            }
            Trouble::RegistryFails => {
                let fault = self.any_fault();
                registry.fault(fault.clone()).await?;
                return Ok(format!("{fault:?}"));
            }
            Trouble::ImageFails => {
                let n = self.any_image();
                let fault = self.any_faults_of_one();
                registry.fault_on(&self.images[n].repository, fault.clone())?;
                return Ok(format!("{} {fault:?}", self.images[n].repository));
            }
            Trouble::NobodyIsKnown => {
                for image in self.images.iter().filter(|image| image.is_private) {
                    let access = Access::new(Scheme::Basic, &[]);
                    registry.protect(&image.repository, access);
                }
            }
            Trouble::RegistryHeals => self.heal().await?,
            Trouble::AgentDies => {
                // It may be gone already.
                self.install.kill_agent(self.cluster).await?;
            }
            Trouble::ContainerdDies => {
                self.cluster.containerd().kill().await?;
                self.cluster.containerd().revive().await?;
            }
            Trouble::KubeletDies => self.cluster.restart_kubelet().await?,
            Trouble::ApiServerDies => self.cluster.restart_apiserver().await?,
            Trouble::NodeReboots => self.cluster.reboot().await?,
        }
        Ok(String::new())
    }

    pub(crate) async fn heal(&self) -> anyhow::Result<()> {
        let registry = self.cluster.registry();
        registry.heal().await?;
        for image in &self.images {
            registry.heal_on(&image.repository);
        }
        self.protect();
        Ok(())
    }

    /// Of the whole registry. What rations requests is left out: nobody would come back within minutes.
    fn any_fault(&mut self) -> Fault {
        let faults = [
            Fault::Closed,
            Fault::Blackhole,
            Fault::NeverAnswers,
            Fault::Latency(SILENCE),
            Fault::Unavailable,
            Fault::Reset,
            Fault::HtmlPage,
            Fault::SlowBlob {
                bytes_per_second: 20_000,
            },
        ];
        faults
            .choose(&mut self.order)
            .cloned()
            .unwrap_or(Fault::Closed)
    }

    /// Of one image.
    fn any_faults_of_one(&mut self) -> Fault {
        let faults = [
            Fault::NotFound,
            Fault::Forbidden,
            Fault::Unauthorized(Challenge::Basic),
            Fault::InternalError,
            Fault::CorruptManifest,
            Fault::StalledBlob { after_bytes: 1_000 },
            Fault::CutBlob,
            Fault::CorruptBlob,
        ];
        faults
            .choose(&mut self.order)
            .cloned()
            .unwrap_or(Fault::NotFound)
    }
}
