//! What all kubelets of the nodes do: pods come and go, their gates wait for a release and open, their containers run.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PartialObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use trylatest_core::keys;
use trylatest_core::release::Release;

use crate::fleet;
use crate::images;

/// Requests of the kubelets at once.
const AT_ONCE: usize = 24;

/// How often they ask for something that does not come, and how long they wait in between.
const TRIES: u32 = 20;
const AGAIN: Duration = Duration::from_secs(1);

/// How long nothing may happen while pods wait for their releases.
const STALLED: Duration = Duration::from_secs(120);

type Metas = Api<PartialObjectMeta<Pod>>;

/// Their pods.
pub(crate) struct Kubelets {
    pods: Api<Pod>,
    /// The same, of which the API server sends the metadata only.
    metas: Metas,
    /// Of each node.
    per_node: usize,
    seen: Arc<Seen>,
    /// Pods whose gates are to open.
    open: mpsc::UnboundedSender<String>,
    tasks: JoinSet<anyhow::Result<()>>,
}

/// What was seen of releases.
struct Seen {
    released: Mutex<HashSet<String>>,
    /// Pods that were released or whose gates run, and not yet both.
    half: Mutex<HashSet<String>>,
    outcomes: Mutex<BTreeMap<String, usize>>,
    running: watch::Sender<usize>,
}

impl Kubelets {
    /// Without pods.
    pub(crate) fn start(client: Client, namespace: &str, per_node: usize) -> Self {
        let seen = Arc::new(Seen {
            released: Mutex::default(),
            half: Mutex::default(),
            outcomes: Mutex::default(),
            running: watch::Sender::new(0),
        });
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let metas: Metas = Api::namespaced(client, namespace);
        let (open, opening) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(metas.clone(), Arc::clone(&seen), open.clone()));
        tasks.spawn(run(metas.clone(), Arc::clone(&seen), opening));
        Self {
            pods,
            metas,
            per_node,
            seen,
            open,
            tasks,
        }
    }

    /// Makes the pods of all nodes, node by node, and waits until they run.
    pub(crate) async fn fill(&mut self, nodes: usize) -> anyhow::Result<()> {
        let per_node = self.per_node;
        let all = (0..nodes).flat_map(|node| (0..per_node).map(move |pod| (node, pod)));
        let created = stream::iter(all)
            .map(|(node, pod)| self.create(node, pod, "a"))
            .buffer_unordered(AT_ONCE)
            .try_for_each(async |()| Ok(()));
        created.await.context("make pods")?;
        self.all_run(nodes * per_node).await
    }

    /// Replaces so many pods of each node, evenly over the time, one of each node before the next of any, and waits
    /// until the new ones run.
    pub(crate) async fn replace(
        &mut self,
        nodes: usize,
        pods: usize,
        over: Duration,
    ) -> anyhow::Result<()> {
        let before = *self.seen.running.borrow();
        let begin = Instant::now();
        let all = (0..pods).flat_map(|pod| (0..nodes).map(move |node| (node, pod)));
        let count = u32::try_from(nodes * pods)?.max(1);
        let replaced = stream::iter(all.zip(0_u32..))
            .map(async |((node, pod), turn)| {
                sleep_until(begin + over * turn / count).await;
                let at_once = DeleteParams::default().grace_period(0);
                let gone = pod_name(node, pod, "a");
                patiently(|| async { self.pods.delete(&gone, &at_once).await.map(drop) }).await?;
                self.create(node, pod, "b").await
            })
            .buffer_unordered(AT_ONCE)
            .try_for_each(async |()| Ok(()));
        replaced.await.context("replace pods")?;
        self.all_run(before + nodes * pods).await
    }

    /// A pod that is bound to its node, whose gate runs.
    async fn create(&self, node: usize, pod: usize, version: &str) -> anyhow::Result<()> {
        let name = pod_name(node, pod, version);
        let object = json!({
            "metadata": {"name": name, "labels": {"app": format!("app-{pod}")}},
            "spec": {
                "nodeName": fleet::node(node), "automountServiceAccountToken": false,
                "containers": [{
                    "name": "app", "image": images::name(pod), "imagePullPolicy": "TryLatest",
                }],
            },
        });
        let object = serde_json::from_value(object)?;
        let params = PostParams::default();
        patiently(|| async { self.pods.create(&params, &object).await.map(drop) }).await?;
        let state = json!({"running": {"startedAt": now()}});
        let status = json!({
            "phase": "Pending",
            "initContainerStatuses": [status(keys::GATE, images::AGENT, "", &state)],
        });
        patch_status(&self.metas, &name, status).await?;
        if self.seen.is_second(&name) {
            self.open.send(name)?;
        }
        Ok(())
    }

    async fn all_run(&mut self, pods: usize) -> anyhow::Result<()> {
        let mut running = self.seen.running.subscribe();
        while *running.borrow_and_update() < pods {
            tokio::select! {
                changed = timeout(STALLED, running.changed()) => {
                    let count = *running.borrow();
                    changed.with_context(|| format!("{count} of {pods} pods run"))??;
                }
                Some(ended) = self.tasks.join_next() => ended?.context("the kubelets")?,
            }
        }
        Ok(())
    }

    /// How often each outcome was written since the last call.
    pub(crate) fn outcomes(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut *locked(&self.seen.outcomes))
    }
}

/// Watches for releases.
async fn follow(
    pods: Metas,
    seen: Arc<Seen>,
    open: mpsc::UnboundedSender<String>,
) -> anyhow::Result<()> {
    let config = watcher::Config::default().labels(keys::GATED);
    let pods = watcher(pods, config).default_backoff().applied_objects();
    let mut pods = std::pin::pin!(pods);
    while let Some(pod) = pods.next().await {
        // An error: the stream goes on by itself.
        if let Ok(pod) = pod
            && let Some(name) = seen.newly_released(&pod)
            && seen.is_second(&name)
        {
            open.send(name)?;
        }
    }
    anyhow::bail!("the watch of pods has ended")
}

impl Seen {
    fn newly_released(&self, pod: &PartialObjectMeta<Pod>) -> Option<String> {
        let release: Release = serde_json::from_str(pod.annotations().get(keys::RELEASED)?).ok()?;
        let name = pod.name_any();
        if !release.opens() || !locked(&self.released).insert(name.clone()) {
            return None;
        }
        for container in release.containers.values() {
            let outcome = container.outcome.as_str().to_owned();
            *locked(&self.outcomes).entry(outcome).or_default() += 1;
        }
        Some(name)
    }

    /// A pod was released, or its gate runs: whether the other has happened before. An agent may be faster than the
    /// status that says that the gate runs.
    fn is_second(&self, name: &str) -> bool {
        let mut half = locked(&self.half);
        let is_second = half.remove(name);
        if !is_second {
            half.insert(name.to_owned());
        }
        is_second
    }
}

/// Opens the gates of released pods and starts their containers.
async fn run(
    pods: Metas,
    seen: Arc<Seen>,
    opening: mpsc::UnboundedReceiver<String>,
) -> anyhow::Result<()> {
    let opening = stream::unfold(opening, async |mut opening| {
        Some((opening.recv().await?, opening))
    });
    let run = opening
        .map(anyhow::Ok)
        .try_for_each_concurrent(AT_ONCE, async |name| {
            let pod = number_of(&name).context("a pod of somebody else")?;
            let (now, image) = (now(), images::name(pod));
            let id = format!(
                "{}@{}",
                image.split(':').next().unwrap_or(&image),
                images::digest(pod)
            );
            let gate = json!({"terminated": {"exitCode": 0, "startedAt": now, "finishedAt": now}});
            let app = json!({"running": {"startedAt": now}});
            let status = json!({
                "phase": "Running",
                "initContainerStatuses": [status(keys::GATE, images::AGENT, "", &gate)],
                "containerStatuses": [status("app", &image, &id, &app)],
            });
            patch_status(&pods, &name, status).await?;
            seen.running.send_modify(|running| *running += 1);
            Ok(())
        });
    run.await
}

/// Asks again if the API server does not answer in time, as kubelets and controllers do.
async fn patiently<F>(ask: impl Fn() -> F) -> anyhow::Result<()>
where
    F: Future<Output = kube::Result<()>>,
{
    let mut tries = 0;
    loop {
        tries += 1;
        match ask().await {
            Ok(()) => return Ok(()),
            // The answer to an earlier try was lost.
            Err(kube::Error::Api(status)) if tries > 1 && matches!(status.code, 404 | 409) => {
                return Ok(());
            }
            Err(kube::Error::Api(status)) if status.code < 429 => {
                return Err(kube::Error::Api(status).into());
            }
            Err(error) if tries == TRIES => return Err(error.into()),
            Err(_) => sleep(AGAIN).await,
        }
    }
}

async fn patch_status(pods: &Metas, name: &str, status: Value) -> anyhow::Result<()> {
    let patch = Patch::Merge(json!({ "status": status }));
    let params = PatchParams::default();
    let patched =
        patiently(|| async { pods.patch_status(name, &params, &patch).await.map(drop) }).await;
    patched.with_context(|| format!("the status of {name}"))
}

fn status(name: &str, image: &str, id: &str, state: &Value) -> Value {
    json!({
        "name": name, "image": image, "imageID": id, "restartCount": 0,
        "ready": state.get("running").is_some() && name != keys::GATE, "state": state,
    })
}

#[expect(clippy::disallowed_methods, reason = "the kubelets run in real time")]
fn now() -> String {
    jiff::Timestamp::now().to_string()
}

fn pod_name(node: usize, pod: usize, version: &str) -> String {
    format!("{}-{version}-{pod}", fleet::node(node))
}

/// The number of a pod on its node, by its name.
fn number_of(name: &str) -> Option<usize> {
    name.rsplit_once('-')?.1.parse().ok()
}

fn locked<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
