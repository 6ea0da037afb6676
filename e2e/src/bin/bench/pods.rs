//! Pods that are made at once, measured until the last one runs, and removed again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::time::Instant;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::install;
use trylatest_e2e::testimage;
use trylatest_e2e::workload::{PodSpec, is_running};

use super::report::Round;
use super::restart::{fell_back, unanswered, why_fell_back};
use super::{Bench, GONE, HOLD_NONE, NEVER, WITH_INIT, private};

/// Why pods fell back, with how many did for that.
fn say_why(pods: &[Pod]) {
    let mut whys: BTreeMap<String, usize> = BTreeMap::new();
    for why in pods.iter().filter_map(why_fell_back) {
        *whys.entry(why).or_default() += 1;
    }
    for (why, pods) in whys {
        eprintln!("{pods} of them fell back: {why}");
    }
}

impl Bench {
    /// Pods of one image; see [`Bench::pods_of`].
    pub(crate) async fn pods(
        &self,
        repository: &str,
        policy: &'static str,
        count: usize,
        limit: Duration,
    ) -> anyhow::Result<Round> {
        let repositories = vec![repository.to_owned(); count];
        self.pods_of(&repositories, policy, limit).await
    }

    /// Creates pods at once, one for each of these, waits until the last one runs, and removes them again.
    pub(crate) async fn pods_of(
        &self,
        repositories: &[String],
        policy: &'static str,
        limit: Duration,
    ) -> anyhow::Result<Round> {
        let registry = self.cluster.registry();
        let before = registry.requests();
        let names = self.new_names(policy, repositories.len());
        let processes = self.processes().await?;
        out_of_step(self.turn_of(policy)).await;
        let meter = self.meter(processes)?;
        let start = Instant::now();
        let pods = names.iter().zip(repositories);
        let runs = pods.map(|(name, repository)| async move {
            self.create_pod(name, repository, policy).await?;
            let pods = self.work.pods();
            wait::object(pods, name, "it runs", limit, is_running).await
        });
        let ran = try_join_all(runs).await;
        let took = start.elapsed();
        let cpu = meter.cpu()?;
        let requests = registry.requests().since(&before);
        let distinct: BTreeSet<&String> = repositories.iter().collect();
        let requests = distinct.iter().map(|name| requests.total_on(name)).sum();
        try_join_all(names.iter().map(|name| self.remove(name))).await?;
        let ran = match ran {
            Ok(pods) => Some(pods),
            Err(_) if limit == NEVER && policy == "Always" => None,
            Err(error) => return Err(error),
        };
        let last = ran.as_deref().unwrap_or_default();
        say_why(last);
        Ok(Round {
            took: ran.is_some().then_some(took),
            pods: names.len(),
            requests,
            fallbacks: last.iter().filter(|pod| fell_back(pod)).count(),
            unanswered: last.iter().filter(|pod| unanswered(pod)).count(),
            // Events follow the releases, and are written by now.
            cost: Some(self.cost_since(&meter, cpu)?),
        })
    }

    /// Names for pods that no pods had before.
    pub(crate) fn new_names(&self, policy: &'static str, count: usize) -> Vec<String> {
        let serial = self.serial.replace(self.serial.get() + 1);
        let name = |n| format!("{}-{serial}-{n}", policy.to_lowercase());
        (0..count).map(name).collect()
    }

    /// Creates a pod of a repository's image.
    pub(crate) async fn create_pod(
        &self,
        name: &str,
        repository: &str,
        policy: &'static str,
    ) -> anyhow::Result<()> {
        let image = self.cluster.registry().image(repository, "latest");
        let is_unheld = policy == HOLD_NONE;
        let (policy, inits) = containers(policy);
        let mut spec = PodSpec::new(name, &image, policy);
        if is_unheld {
            spec = spec.annotated("trylatest.dev/hold", "none");
        }
        spec.inits = inits;
        if private::is_private(repository) {
            spec.pull_secrets.push(private::SECRET);
        }
        self.work.create(&spec).await.map(drop)
    }

    fn turn_of(&self, policy: &'static str) -> u32 {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.entry(policy).or_default();
        *turn += 1;
        *turn
    }

    pub(crate) async fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.work.delete_pod(name).await?;
        wait::until("the pod is gone", GONE, || async {
            let pod = self.work.pods().get_opt(name).await?;
            Ok(pod.is_none().then_some(()))
        })
        .await
    }

    pub(crate) async fn push(&self, repository: &str) -> anyhow::Result<String> {
        let image = testimage::app_of_size(&self.tools, "bench\n", 64)?;
        self.cluster
            .registry()
            .push(&image, repository, "latest")
            .await
    }

    /// Pushes an image if there is none. True if there was none.
    pub(crate) async fn push_once(&self, repository: &str) -> anyhow::Result<bool> {
        let there = self
            .cluster
            .registry()
            .digest_of(repository, "latest")
            .await;
        if there.is_err() {
            self.push(repository).await?;
        }
        Ok(there.is_err())
    }
}

/// Waits for a part of a second, a different one each time, spread evenly over the second.
///
/// The kubelet looks at its containers once a second, and the removal of the previous pod ends with
/// such a look. Right after it, every pod of a policy would fall into the same part of that second,
/// and the median would show which part, not how long a pod takes.
async fn out_of_step(turn: u32) {
    // The golden ratio's multiples are spread evenly however many there are.
    let part = (f64::from(turn) * 0.618_034).fract();
    tokio::time::sleep(Duration::from_secs_f64(part)).await;
}

/// The pull policy and init containers of a pod for this case.
pub(crate) fn containers(policy: &'static str) -> (&'static str, Vec<Value>) {
    if policy == HOLD_NONE {
        return ("TryLatest", Vec::new());
    }
    if policy != WITH_INIT {
        return (policy, Vec::new());
    }
    // As admission writes the gate, without its volume.
    let init = json!({
        "name": "nothing", "image": install::IMAGE, "imagePullPolicy": "IfNotPresent", "args": ["--version"],
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
            "runAsUser": 65532, "capabilities": {"drop": ["ALL"]},
        },
    });
    ("IfNotPresent", vec![init])
}

/// Each policy has its own: what one has pulled does not help another.
pub(crate) fn repository(case: &str, policy: &str) -> String {
    format!("{case}/{}", policy.to_lowercase())
}
