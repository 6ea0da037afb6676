//! Keeps the gate's image on the node, whatever removes it, and helps gates that cannot get it. Pods
//! must be able to start while no registry answers.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use backon::{BackoffBuilder, ExponentialBuilder};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use trylatest_containerd::{ImageEvents, ImageRuntime, Program, RuntimeError};
use trylatest_core::gate_image::Help;
use trylatest_core::image::ImageName;
use trylatest_core::pod::{GateImage, PodId};
use trylatest_k8s::{Notice, Operation};

use super::api::{Api, words};
use super::gate_image::GateImages;
use super::health::Health;
use super::metrics::Metrics;

/// Check the image at least this often: what disappears without an event is back in a second.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Between two tries to reach the API server or containerd.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest pause between two tries to reach the API server.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Changes come in bursts, our own among them.
const BURST: Duration = Duration::from_millis(20);

/// Pods whose Event is not written again. The API server accepts each only once, too.
const TOLD_MAX: usize = 64;

/// The agent's container in its pod, as the manifest calls it.
const CONTAINER: &str = "agent";

/// A gate that has not started, as the watch shows it.
pub(super) struct Waiting {
    pub(super) pod: PodId,
    pub(super) image: GateImage,
}

/// Looks after the gate's image.
pub(super) struct Keeper<R> {
    pub(super) runtime: Arc<R>,
    pub(super) api: Api,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    /// Namespace and name of the pod that the agent runs in.
    pub(super) own_pod: (String, String),
    /// The agent's own program.
    pub(super) program: PathBuf,
    pub(super) gates: mpsc::Receiver<Waiting>,
}

/// What the task has said.
#[derive(Default)]
struct Said {
    complaint: Option<String>,
    /// Pods by their uids.
    told: VecDeque<String>,
    /// Events under way.
    telling: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl<R: ImageRuntime> Keeper<R> {
    /// Runs until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            // First: the task that offers gates may have ended for the same reason.
            biased;
            () = stop.cancelled() => Ok(()),
            result = self.keep() => result,
        }
    }

    async fn keep(mut self) -> anyhow::Result<()> {
        let program = program(std::mem::take(&mut self.program)).await;
        let own = self.own_image().await?;
        info!(image = %own, "looking after the gate's image");
        let mut images = GateImages::new(Arc::clone(&self.runtime), program, own);
        let mut said = Said::default();
        loop {
            match self.runtime.image_events().await {
                Ok(events) => {
                    self.tell_version().await;
                    self.follow(events, &mut images, &mut said).await;
                }
                Err(error) => {
                    self.heard(&mut said, &images, Err(error));
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Checks the image after every change, until the stream of changes ends. The subscription came
    /// first, so nothing is missed in between.
    async fn follow(
        &mut self,
        mut events: ImageEvents,
        images: &mut GateImages<R>,
        said: &mut Said,
    ) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Cancel-safe: streams, channels and timers lose nothing when they are not chosen.
            let looked = tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) if images.concerns(&event.name) => {
                        sleep(BURST).await;
                        images.look().await
                    }
                    Some(Ok(_)) => continue,
                    Some(Err(_)) | None => return,
                },
                Some(waiting) = self.gates.recv() => {
                    match images.gate(&waiting.image).await {
                        Ok(None) => continue,
                        Ok(Some(help)) => {
                            self.tell(said, images, waiting, help);
                            continue;
                        }
                        Err(error) => Err(error),
                    }
                }
                Some(()) = said.telling.next() => continue,
                _ = ticks.tick() => images.look().await,
            };
            self.heard(said, images, looked);
        }
    }

    /// Handles the result of a check.
    fn heard(&self, said: &mut Said, images: &GateImages<R>, looked: Result<bool, RuntimeError>) {
        self.health.set_runtime(!matches!(
            looked,
            Err(RuntimeError::Timeout { .. } | RuntimeError::Unreachable { .. })
        ));
        let image = images.own();
        if let Ok(true) = looked {
            self.metrics.gate_image.was_restored();
            info!(%image, "the gate's image was gone, and the agent has made it again");
        }
        let failed = looked.err().map(|error| error.to_string());
        if let Some(error) = &failed
            && said.complaint != failed
        {
            warn!(%image, error, "checking or restoring the gate's image has failed");
        }
        said.complaint = failed;
    }

    /// Counts a gate whose image the kubelet could not get, and writes an Event, once per pod.
    fn tell(&self, said: &mut Said, images: &GateImages<R>, waiting: Waiting, help: Help) {
        let Waiting { pod, image } = waiting;
        if said.told.contains(&pod.uid) {
            return;
        }
        if said.told.len() >= TOLD_MAX {
            said.told.pop_front();
        }
        said.told.push_back(pod.uid.clone());
        self.metrics.gate_image.was_wanted(help);
        warn!(
            namespace = pod.namespace,
            pod = pod.name,
            image = %image.name,
            result = help.as_str(),
            "the kubelet could not get a gate's image"
        );
        let notice = Notice::gate_image(&pod, note(&image.name, images.own(), help));
        let api = self.api.clone();
        let telling = async move {
            let _ = api.notify(&pod, &notice).await;
        };
        said.telling.push(Box::pin(telling));
    }

    /// At the start and after every interruption: the version may have changed.
    async fn tell_version(&self) {
        if let Ok(version) = self.runtime.version().await {
            info!(runtime = %version, "the container runtime answers");
        }
    }

    /// The image of the agent's own pod, whose name the gates have, too.
    async fn own_image(&self) -> anyhow::Result<ImageName> {
        let (namespace, name) = &self.own_pod;
        // All agents of a cluster may wait for the same API server.
        let mut pauses = ExponentialBuilder::new()
            .with_min_delay(PAUSE)
            .with_max_delay(PAUSE_MAX)
            .with_jitter()
            .without_max_times()
            .build();
        loop {
            let read = self.api.writer.image_of(namespace, name, CONTAINER).await;
            match self.api.count(Operation::OwnPod, read) {
                Ok(Some(image)) => {
                    return image
                        .parse()
                        .context("the agent's own image cannot be the gate's");
                }
                Ok(None) => {
                    bail!("the pod {namespace}/{name} has no container {CONTAINER:?}")
                }
                Err(error) => {
                    warn!(error = %words(&error), "the agent's own pod could not be read; retrying");
                }
            }
            sleep(pauses.next().unwrap_or(PAUSE_MAX)).await;
        }
    }
}

/// The agent's own program, if it can be made into an image.
async fn program(path: PathBuf) -> Option<Program> {
    let open = tokio::task::spawn_blocking(move || Program::open(&path)).await;
    match open {
        Ok(Ok(program)) => Some(program),
        Ok(Err(error)) => {
            warn!(error = %words(&error), "this program cannot be made into an image; the agent keeps the pulled image for the gates");
            None
        }
        Err(error) => {
            warn!(%error, "reading this program has failed; the agent keeps the pulled image for the gates");
            None
        }
    }
}

fn note(image: &ImageName, own: &ImageName, help: Help) -> String {
    match help {
        Help::Made => format!(
            "the kubelet could not get the gate's image {image}; the agent has made it on this node, and \
             the pod starts when the kubelet looks again"
        ),
        Help::Foreign => format!(
            "the kubelet could not get the gate's image {image}, and the agent does not make it: it \
             makes only {own} and the same name and version on other registries. Either another admission \
             policy has changed the image (exempt the init container trylatest-gate from it), or the \
             admission policies and this agent are of different versions (docs/troubleshooting.md)"
        ),
        Help::Taken => format!(
            "the kubelet could not get the gate's image {image}, and the agent does not make it: another \
             image has that name on this node. Remove it from the node, or exempt the init container \
             trylatest-gate from the policy that has changed its image (docs/troubleshooting.md)"
        ),
    }
}
