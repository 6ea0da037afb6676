//! The gate's image on this node: made from the agent's own program, under every name that gates of
//! this node use.
//!
//! Which names those are is the pods' to say, and pods are made by tenants. So a name counts only if
//! it is the agent's own image on another registry ([`ImageName::is_mirrored_by`]), only eight do,
//! and one that points to another program is left alone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};
use trylatest_containerd::{ImageRuntime, Over, Pin, Pointed, Program, RuntimeError, alias};
use trylatest_core::image::ImageName;
use trylatest_core::pod::GateImage;

/// Names beside the agent's own. A cluster has one mirror or two.
const OTHERS_MAX: usize = 8;

/// A gate that still cannot get its image this long after the name was made is kept from it by the
/// kubelet's records: the kubelet looks again after 10 s, and a failed pull shows in the status late.
const LOOKED_AGAIN: Duration = Duration::from_secs(15);

/// Between two images that are made for what the kubelet remembers of the one before. Where it lets
/// nobody use what it has not pulled (`AlwaysVerify`), no image helps.
const RENEW_EVERY: Duration = Duration::from_secs(60);

/// What was done for a gate that could not have its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Help {
    /// The image is there; the kubelet finds it when it looks again.
    Made,
    /// The name is not one of TryLatest's.
    Foreign,
    /// The name could be TryLatest's, but another image has it on this node.
    Taken,
}

impl Help {
    pub(super) const ALL: [Self; 3] = [Self::Made, Self::Foreign, Self::Taken];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Foreign => "foreign",
            Self::Taken => "taken",
        }
    }
}

/// The image, and what is done to keep it.
pub(super) struct GateImages<R> {
    runtime: Arc<R>,
    /// None: an image cannot be made of it, and the pulled one is kept instead.
    program: Option<Program>,
    own: ImageName,
    /// The last one is the last that was seen.
    others: VecDeque<ImageName>,
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
            own,
            others: VecDeque::new(),
            changed: Instant::now(),
            renewed: None,
            began: false,
        }
    }

    /// The name of the agent's own image.
    pub(super) fn own(&self) -> &ImageName {
        &self.own
    }

    /// Whether a change of this name is to be looked at.
    pub(super) fn concerns(&self, name: &str) -> bool {
        let mut names = std::iter::once(&self.own).chain(&self.others);
        name == alias::GATE || names.any(|ours| ours.as_str() == name)
    }

    /// Makes what is missing. True if something that was there before had gone.
    pub(super) async fn look(&mut self) -> Result<bool, RuntimeError> {
        let Some(program) = &self.program else {
            return self.look_at_pulled().await;
        };
        if !self.began {
            // What earlier runs have pointed to the image stays with it.
            for name in self.runtime.pointing(alias::GATE).await? {
                // A gate may have been seen before the first look.
                if name != self.own
                    && !self.others.contains(&name)
                    && self.own.is_mirrored_by(&name)
                    && self.others.len() < OTHERS_MAX
                {
                    self.others.push_back(name);
                }
            }
        }
        let start = Instant::now();
        let mut changed = self.runtime.make(program, alias::GATE).await?;
        if changed {
            let took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            info!(took_ms, "the gate's image is made from this program");
        }
        for name in std::iter::once(&self.own).chain(&self.others) {
            // The agent was started from its name a moment ago. What the name points to later may be the
            // agent of the next version.
            let over = if name == &self.own && !self.began {
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

    /// A gate of this node is to start from this image: makes its name. What was done, if the kubelet
    /// could not have the image.
    pub(super) async fn gate(&mut self, gate: &GateImage) -> Result<Option<Help>, RuntimeError> {
        if self.program.is_none() || (gate.name == self.own && !gate.wanting) {
            return Ok(None);
        }
        if !self.admit(&gate.name).await? {
            return Ok(gate.wanting.then_some(Help::Foreign));
        }
        let Some(program) = &self.program else {
            return Ok(None);
        };
        // The kubelet refuses what is there, which may be the next version's.
        let over = if gate.name == self.own && !gate.always_pulled {
            Over::Anything
        } else {
            Over::Program(program)
        };
        let pointed = self.runtime.point(&gate.name, alias::GATE, over).await?;
        if pointed == Pointed::Now {
            info!(image = %gate.name, "the gate's image has this name as well");
            self.changed = Instant::now();
        }
        // No image helps where the kubelet asks the registry each time; that is reported elsewhere.
        if !gate.wanting || gate.always_pulled {
            return Ok(None);
        }
        Ok(Some(match pointed {
            Pointed::Elsewhere => Help::Taken,
            Pointed::Now => Help::Made,
            Pointed::Already => {
                self.renew().await?;
                Help::Made
            }
        }))
    }

    /// Whether the name is one that may be made. A new one takes the place of the one that was not
    /// seen for longest.
    async fn admit(&mut self, name: &ImageName) -> Result<bool, RuntimeError> {
        if *name == self.own {
            return Ok(true);
        }
        if !self.own.is_mirrored_by(name) {
            return Ok(false);
        }
        if let Some(at) = self.others.iter().position(|known| known == name) {
            self.others.remove(at);
        } else if self.others.len() >= OTHERS_MAX
            && let Some(oldest) = self.others.pop_front()
            && self.runtime.pointing(alias::GATE).await?.contains(&oldest)
        {
            self.runtime.forget(oldest.as_str()).await?;
        }
        self.others.push_back(name.clone());
        Ok(true)
    }

    /// The kubelet does not let a pod have the image that is there: it takes another for new.
    async fn renew(&mut self) -> Result<(), RuntimeError> {
        let now = Instant::now();
        if now - self.changed < LOOKED_AGAIN
            || self.renewed.is_some_and(|at| now - at < RENEW_EVERY)
        {
            return Ok(());
        }
        warn!(image = %self.own, "the kubelet keeps the gate's image from a pod; another one is made");
        self.renewed = Some(now);
        self.runtime.forget(alias::GATE).await?;
        self.look().await.map(drop)
    }

    /// Keeps the image that was pulled.
    async fn look_at_pulled(&self) -> Result<bool, RuntimeError> {
        let restored = match self.runtime.restore(alias::GATE, &self.own).await {
            Ok(restored) => restored,
            // Without an alias this is the first look on this node.
            Err(RuntimeError::NotFound { .. }) => false,
            Err(error) => return Err(error),
        };
        let kept = self.runtime.keep(&self.own, alias::GATE, Pin::Pinned);
        kept.await.map(|()| restored)
    }
}

#[cfg(test)]
mod tests;
