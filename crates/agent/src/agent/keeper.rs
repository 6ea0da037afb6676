//! Keeps the gate's image on the node: under the name that the pods' gates have, and so that the
//! kubelet's image collector leaves it alone. Pods must be able to start while no registry answers.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use backon::{BackoffBuilder, ExponentialBuilder};
use futures::StreamExt;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use trylatest_containerd::{ImageRuntime, Pin, RuntimeError, alias};
use trylatest_core::image::ImageName;
use trylatest_k8s::Operation;

use super::api::{Api, words};
use super::health::Health;
use super::metrics::Metrics;

/// Look after the image at least this often: events may be lost while containerd restarts.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Between two tries to reach the API server or containerd.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest pause between two tries to reach the API server.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The agent's container in its pod, as the manifest calls it.
const CONTAINER: &str = "agent";

/// Looks after the gate's image.
pub(super) struct Keeper<R> {
    pub(super) runtime: Arc<R>,
    pub(super) api: Api,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    /// Namespace and name of the pod that the agent runs in.
    pub(super) own_pod: (String, String),
}

impl<R: ImageRuntime> Keeper<R> {
    /// Runs until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            result = self.keep() => result,
        }
    }

    async fn keep(&self) -> anyhow::Result<()> {
        let image = self.gate_image().await?;
        info!(%image, "looking after the gate's image");
        let mut complaint = None;
        let mut answered = false;
        loop {
            // Subscribe first, look afterwards: nothing is missed in between.
            let events = self.runtime.image_events().await;
            if events.is_ok() && !answered {
                self.tell_version().await;
            }
            answered = events.is_ok();
            let result = match &events {
                Ok(_) => self.look(&image).await,
                Err(error) => Err(error.clone()),
            };
            self.health.set_runtime(!matches!(
                result,
                Err(RuntimeError::Timeout { .. } | RuntimeError::Unreachable { .. })
            ));
            let failed = result.err().map(|error| error.to_string());
            if let Some(error) = &failed
                && complaint != failed
            {
                warn!(%image, error, "the gate's image cannot be looked after");
            }
            complaint = failed;
            match events {
                Ok(mut events) => {
                    let changed = async {
                        while let Some(Ok(event)) = events.next().await {
                            if event.name == image.as_str() || event.name == alias::GATE {
                                return;
                            }
                        }
                    };
                    let _ = timeout(LOOK_EVERY, changed).await;
                    // Our own writes are events as well; they come in a burst.
                    sleep(Duration::from_millis(20)).await;
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// At the start and after every silence: it may be another version by then.
    async fn tell_version(&self) {
        if let Ok(version) = self.runtime.version().await {
            info!(runtime = %version, "the container runtime answers");
        }
    }

    /// The gate runs from the agent's own image.
    async fn gate_image(&self) -> anyhow::Result<ImageName> {
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
                    warn!(error = %words(&error), "the agent's own pod cannot be read; it is tried again");
                }
            }
            sleep(pauses.next().unwrap_or(PAUSE_MAX)).await;
        }
    }

    /// Makes what is missing.
    async fn look(&self, image: &ImageName) -> Result<(), RuntimeError> {
        match self.runtime.restore(alias::GATE, image).await {
            Ok(true) => {
                self.metrics.gate_image_was_restored();
                info!(%image, "the gate's image was gone; its name is made again");
            }
            // Without an alias this is the first look on this node.
            Ok(false) | Err(RuntimeError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        self.runtime.keep(image, alias::GATE, Pin::Pinned).await
    }
}
