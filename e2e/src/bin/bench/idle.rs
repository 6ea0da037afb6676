//! What the agent uses on a node that is full of running pods, when nothing happens.

use std::time::Duration;

use kube::api::ListParams;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::workload::{PodSpec, is_running};

use super::pods::repository;
use super::report::Idle;
use super::{Bench, GONE};

/// The kubelet runs 110 pods by default; one of them is the agent.
const PODS: usize = 109;

const IMAGES: usize = 20;

/// As many pods start at once: all of them would only measure how busy the machine is.
const AT_ONCE: usize = 10;

const STARTED: Duration = Duration::from_secs(120);

/// Starting pods is over, and what it has caused.
const SETTLED: Duration = Duration::from_secs(30);

const POLICY: &str = "TryLatest";

impl Bench {
    /// The agent's processor time and memory over `time`, beside a node's worth of pods.
    pub(crate) async fn idle(&self, time: Duration) -> anyhow::Result<Idle> {
        self.install
            .set_variable("TRYLATEST_REFRESH_EVERY", Some("10m"))
            .await?;
        for n in 0..IMAGES {
            self.push_once(&repository_of(n)).await?;
        }
        let names: Vec<String> = (0..PODS).map(|n| format!("idle-{n}")).collect();
        for (done, names) in names.chunks(AT_ONCE).enumerate() {
            eprintln!("idle: {} of {PODS} pods run", done * AT_ONCE);
            self.start(names).await?;
        }
        eprintln!("idle: measuring for {} s", time.as_secs());
        tokio::time::sleep(SETTLED).await;
        let before = self.agent_usage().await?;
        tokio::time::sleep(time).await;
        let after = self.agent_usage().await?;
        for name in &names {
            self.work.delete_pod(name).await?;
        }
        wait::until("the pods are gone", GONE * 2, || async {
            let pods = self.work.pods().list(&ListParams::default()).await?;
            Ok(pods.items.is_empty().then_some(()))
        })
        .await?;
        self.install
            .set_variable("TRYLATEST_REFRESH_EVERY", None)
            .await?;
        let cpu = after.cpu.saturating_sub(before.cpu);
        Ok(Idle {
            pods: PODS,
            seconds: time.as_secs(),
            cpu_ms: u64::try_from(cpu.as_millis())?,
            rss_bytes: after.resident_bytes,
        })
    }

    async fn start(&self, names: &[String]) -> anyhow::Result<()> {
        let registry = self.cluster.registry();
        for (n, name) in names.iter().enumerate() {
            let image = registry.image(&repository_of(n % IMAGES), "latest");
            self.work
                .create(&PodSpec::new(name, &image, POLICY))
                .await?;
        }
        for name in names {
            wait::object(self.work.pods(), name, "it runs", STARTED, is_running).await?;
        }
        Ok(())
    }
}

fn repository_of(n: usize) -> String {
    format!("{}-{n}", repository("idle", POLICY))
}
