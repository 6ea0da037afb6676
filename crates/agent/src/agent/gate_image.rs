//! The gate's image on this node: made from the agent's own program, under every name that gates of
//! this node use. Which names those may be is decided in [`trylatest_core::gate_image`].

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{info, warn};
use trylatest_containerd::{ImageRuntime, Over, Pin, Pointed, Program, RuntimeError, alias};
use trylatest_core::gate_image::{Due, GateNames, Help, renews};
use trylatest_core::image::ImageName;
use trylatest_core::pod::GateImage;

/// The image, and what is done to keep it.
pub(super) struct GateImages<R> {
    runtime: Arc<R>,
    /// None if it cannot be made into an image: the agent then keeps the pulled one.
    program: Option<Program>,
    names: GateNames,
    /// When the image or one of its names was last made.
    changed: Instant,
    renewed: Option<Instant>,
    began: bool,
}

impl<R: ImageRuntime> GateImages<R> {
    pub(super) fn new(runtime: Arc<R>, program: Option<Program>, own: ImageName) -> Self {
        Self {
            runtime,
            program,
            names: GateNames::new(own),
            changed: Instant::now(),
            renewed: None,
            began: false,
        }
    }

    /// The name of the agent's own image.
    pub(super) fn own(&self) -> &ImageName {
        self.names.own()
    }

    /// Whether a change of this name matters.
    pub(super) fn concerns(&self, name: &str) -> bool {
        name == alias::GATE || self.names.iter().any(|ours| ours.as_str() == name)
    }

    /// Makes what is missing. True if something had disappeared that was there before.
    pub(super) async fn look(&mut self) -> Result<bool, RuntimeError> {
        let Some(program) = &self.program else {
            return self.look_at_pulled().await;
        };
        if !self.began {
            // Names that earlier runs have pointed to the image keep pointing to it.
            for name in self.runtime.pointing(alias::GATE).await? {
                self.names.take_over(name);
            }
        }
        let start = Instant::now();
        let mut changed = self.runtime.make(program, alias::GATE).await?;
        if changed {
            let took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            info!(
                took_ms,
                "the agent has made the gate's image from its own program"
            );
        }
        for name in self.names.iter() {
            // The agent was started from its own name a moment ago. Later the name may point to the next
            // version of the agent.
            let over = if name == self.names.own() && !self.began {
                Over::Anything
            } else {
                Over::Program(program)
            };
            let pointed = self.runtime.point(name, alias::GATE, over).await?;
            changed |= pointed == Pointed::Now;
        }
        let again = changed && self.began;
        if changed {
            self.changed = Instant::now();
        }
        self.began = true;
        Ok(again)
    }

    /// Makes the name of the image that a gate of this node will start from. Returns what was done if
    /// the kubelet could not get the image.
    pub(super) async fn gate(&mut self, gate: &GateImage) -> Result<Option<Help>, RuntimeError> {
        let Some(program) = &self.program else {
            return Ok(None);
        };
        let (over_anything, instead_of) = match self.names.gate(gate) {
            Due::Nothing => return Ok(None),
            Due::Report => return Ok(Some(Help::Foreign)),
            Due::Name {
                over_anything,
                instead_of,
            } => (over_anything, instead_of),
        };
        if let Some(oldest) = instead_of
            && self.runtime.pointing(alias::GATE).await?.contains(&oldest)
        {
            self.runtime.forget(oldest.as_str()).await?;
        }
        let over = if over_anything {
            Over::Anything
        } else {
            Over::Program(program)
        };
        let pointed = self.runtime.point(&gate.name, alias::GATE, over).await?;
        if pointed == Pointed::Now {
            info!(image = %gate.name, "the gate's image has this name as well");
            self.changed = Instant::now();
        }
        let help = Help::after(gate, pointed != Pointed::Elsewhere);
        if pointed == Pointed::Already && help == Some(Help::Made) {
            self.renew().await?;
        }
        Ok(help)
    }

    /// The kubelet does not let a pod use the image that is there. It treats another one as new.
    async fn renew(&mut self) -> Result<(), RuntimeError> {
        let now = Instant::now();
        if !renews(now - self.changed, self.renewed.map(|at| now - at)) {
            return Ok(());
        }
        warn!(image = %self.own(), "the kubelet does not let a pod use the gate's image; making another one");
        self.renewed = Some(now);
        self.runtime.forget(alias::GATE).await?;
        self.look().await.map(drop)
    }

    /// Keeps the image that was pulled.
    async fn look_at_pulled(&self) -> Result<bool, RuntimeError> {
        let restored = match self.runtime.restore(alias::GATE, self.own()).await {
            Ok(restored) => restored,
            // If there is no alias, this is the first look on this node.
            Err(RuntimeError::NotFound { .. }) => false,
            Err(error) => return Err(error),
        };
        let kept = self.runtime.keep(self.own(), alias::GATE, Pin::Pinned);
        kept.await.map(|()| restored)
    }
}

#[cfg(test)]
mod tests;
