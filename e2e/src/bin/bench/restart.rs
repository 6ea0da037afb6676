//! Deployments of as many images, restarted at once: what a node drain, a chart's upgrade or a power
//! cut asks of a node.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::TryStreamExt as _;
use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::json;
use tokio::time::Instant;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::registry::Fault;
use trylatest_e2e::testimage;
use trylatest_e2e::workload::{GATE, annotation, image_id, is_running, release};

use super::pods::containers;
use super::report::{Round, Row, row};
use super::{Bench, GONE, LIMIT, NEVER};

/// How many Deployments, each with an image of its own.
const IMAGES: usize = 30;

const CASES: [&str; 3] = [
    "restart-30-images, unchanged",
    "restart-30-images, moved",
    "restart-30-images, silent",
];

const MARK: &str = "e2e.trylatest.dev/bench";

impl Bench {
    /// Lifts the kubelet's rate limit on pulls meanwhile: otherwise `Always` would only measure that.
    pub(crate) async fn restart_images(&self) -> anyhow::Result<Vec<Row>> {
        let kubelet = self.cluster.kubelet();
        kubelet.reconfigure(&json!({"registryPullQPS": 0})).await?;
        let mut rows: [Vec<Row>; CASES.len()] = Default::default();
        for &policy in &self.policies {
            let measured = Box::pin(self.restart_with(policy)).await?;
            for ((case, rows), rounds) in CASES.iter().zip(&mut rows).zip(measured) {
                rows.push(row(case, policy, &rounds));
            }
        }
        kubelet.reconfigure(&json!({"registryPullQPS": 5})).await?;
        Ok(rows.into_iter().flatten().collect())
    }

    /// The rounds of each case with one policy.
    async fn restart_with(&self, policy: &'static str) -> anyhow::Result<[Vec<Round>; 3]> {
        let names: Vec<String> = (0..IMAGES)
            .map(|n| format!("{}-{n}", policy.to_lowercase()))
            .collect();
        let mut digests = self.push_all(&names).await?;
        try_join_all(names.iter().map(|name| self.deploy(name, policy))).await?;
        self.settled(&names).await?;
        let mut rounds: [Vec<Round>; 3] = Default::default();
        // The first round does not count.
        for number in 0..=self.large_rounds() {
            let cases = CASES.iter().zip(&mut rounds).enumerate();
            for (index, (case, rounds)) in cases {
                // A case that can never run is shown once; it leaves the kubelet with hanging pulls.
                let hangs = index == 2 && policy == "Always";
                if hangs && number < self.large_rounds() {
                    continue;
                }
                eprintln!(
                    "{case}, {policy}: round {number} of {}",
                    self.large_rounds()
                );
                if index == 1 {
                    digests = self.push_all(&names).await?;
                }
                if index == 2 {
                    self.cluster.registry().fault(Fault::NeverAnswers).await?;
                }
                let limit = if hangs { NEVER } else { LIMIT };
                let round = self.restart_all(&names, limit).await?;
                if index == 2 {
                    let repositories: Vec<String> = names.iter().map(|n| repository(n)).collect();
                    self.come_back(&repositories).await?;
                }
                ensure!(hangs || round.took.is_some(), "{case}: not all pods run");
                if !hangs {
                    self.settled(&names).await?;
                }
                if index == 1 && ["Always", "TryLatest"].contains(&policy) {
                    self.ensure_told(&digests).await?;
                }
                if number > 0 {
                    rounds.push(round);
                }
            }
        }
        self.remove_all(&names).await?;
        Ok(rounds)
    }

    /// Pushes a new image for each Deployment: the digests by name.
    async fn push_all(&self, names: &[String]) -> anyhow::Result<HashMap<String, String>> {
        let mut digests = HashMap::new();
        for name in names {
            let image = testimage::app_of_its_own(&self.tools, "bench\n")?;
            let registry = self.cluster.registry();
            let digest = registry.push(&image, &repository(name), "latest").await?;
            digests.insert(name.clone(), digest);
        }
        Ok(digests)
    }

    async fn deploy(&self, name: &str, policy: &'static str) -> anyhow::Result<()> {
        let (policy, inits) = containers(policy);
        let labels = json!({"app": name, "bench": "restart"});
        let image = self.cluster.registry().image(&repository(name), "latest");
        let object: Deployment = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "terminationGracePeriodSeconds": 0,
                        "initContainers": inits,
                        "containers": [
                            {"name": "app", "image": image, "imagePullPolicy": policy},
                        ],
                    },
                },
            },
        }))?;
        let deployments = self.work.api::<Deployment>();
        let created = deployments.create(&PostParams::default(), &object).await;
        created.with_context(|| format!("create Deployment {name}"))?;
        Ok(())
    }

    /// Restarts them as `kubectl rollout restart` does, all at once, and waits until the last new pod
    /// runs.
    async fn restart_all(&self, names: &[String], limit: Duration) -> anyhow::Result<Round> {
        let serial = self.serial.replace(self.serial.get() + 1);
        let mark = format!("round-{serial}");
        let before = self.cluster.registry().requests();
        let meter = self.meter(self.processes().await?)?;
        let start = Instant::now();
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {MARK: mark}}}}});
        let deployments = self.work.api::<Deployment>();
        try_join_all(names.iter().map(async |name| {
            let patch = Patch::Strategic(&patch);
            deployments
                .patch(name, &PatchParams::default(), &patch)
                .await
        }))
        .await?;
        let mut last: HashMap<String, Pod> = HashMap::new();
        let all_run = async {
            let config = watcher::Config::default().labels("bench=restart");
            let pods = watcher(self.work.pods(), config).default_backoff();
            let mut pods = std::pin::pin!(pods.applied_objects());
            while last.len() < names.len() {
                let Some(pod) = pods.try_next().await? else {
                    break;
                };
                if annotation(&pod, MARK) == Some(&mark) && is_running(&pod) {
                    last.insert(app(&pod).to_owned(), pod);
                }
            }
            anyhow::Ok(start.elapsed())
        };
        let took = tokio::time::timeout(limit, all_run).await;
        let fallbacks = last.values().filter(|pod| fell_back(pod)).count();
        let unanswered = last.values().filter(|pod| unanswered(pod)).count();
        let cost = self.cost_since(&meter, meter.cpu()?)?;
        Ok(Round {
            took: took.ok().transpose()?,
            pods: names.len(),
            requests: self.cluster.registry().requests().since(&before).total(),
            fallbacks,
            unanswered,
            cost: Some(cost),
        })
    }

    /// Waits until each Deployment has one pod, which runs.
    async fn settled(&self, names: &[String]) -> anyhow::Result<()> {
        wait::until("each Deployment has one pod", GONE, || async {
            let pods = self.restarted().await?;
            let settled = pods.len() == names.len()
                && pods
                    .iter()
                    .all(|pod| pod.metadata.deletion_timestamp.is_none() && is_running(pod));
            Ok(settled.then_some(()))
        })
        .await
    }

    async fn restarted(&self) -> anyhow::Result<Vec<Pod>> {
        let params = ListParams::default().labels("bench=restart");
        Ok(self.work.pods().list(&params).await?.items)
    }

    /// If a pod runs an old copy, its release has to say so: it must not miss the new one silently.
    async fn ensure_told(&self, digests: &HashMap<String, String>) -> anyhow::Result<()> {
        for pod in self.restarted().await? {
            let name = app(&pod);
            let digest = digests.get(name).context("an unknown pod")?;
            let runs = image_id(&pod).unwrap_or_default();
            ensure!(
                runs.ends_with(digest) || fell_back(&pod),
                "{name} runs {runs}, its tag points to {digest}, and nothing says so"
            );
        }
        Ok(())
    }

    async fn remove_all(&self, names: &[String]) -> anyhow::Result<()> {
        let deployments = self.work.api::<Deployment>();
        let params = DeleteParams::foreground();
        try_join_all(names.iter().map(|name| deployments.delete(name, &params))).await?;
        wait::until("the pods are gone", GONE, || async {
            Ok(self.restarted().await?.is_empty().then_some(()))
        })
        .await
    }
}

fn repository(name: &str) -> String {
    format!("restart/{name}")
}

/// The Deployment that a pod belongs to.
fn app(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get("app"))
        .map_or("", String::as_str)
}

/// Whether the pod's gate opened because nothing reached it in time.
pub(crate) fn unanswered(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let inits = status.and_then(|status| status.init_container_statuses.as_ref());
    inits.into_iter().flatten().any(|init| {
        let ended = init.state.as_ref();
        let ended = ended.and_then(|state| state.terminated.as_ref()?.message.as_deref());
        init.name == GATE && ended.is_some_and(|said| last_line(said).starts_with("unanswered"))
    })
}

fn last_line(text: &str) -> &str {
    text.lines().next_back().unwrap_or_default()
}

/// Whether the pod runs the copy that it fell back to.
pub(crate) fn fell_back(pod: &Pod) -> bool {
    why_fell_back(pod).is_some()
}

/// The class of the failure and its message.
pub(crate) fn why_fell_back(pod: &Pod) -> Option<String> {
    let release = release(pod)?;
    let app = &release["containers"]["app"];
    let word = |key: &str| app[key].as_str().unwrap_or_default().to_owned();
    (app["outcome"] == "fallback").then(|| format!("{}: {}", word("class"), word("message")))
}
