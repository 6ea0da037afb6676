//! All metrics; docs/metrics.md lists them. Labels are words from fixed lists, and the names of a few registries.
//!
//! | module | series about |
//! |---|---|
//! | [`pods`] | pods that wait, releases |
//! | [`copies`] | copies that pods fell back to |
//! | [`registries`] | tries, fallbacks and circuits, by registry |
//! | [`pulls`] | pulls, and hand-overs to the kubelet |
//! | [`kept`] | kept copies |
//! | [`own`] | the agent's calls and files |
//! | [`process`] | the agent's process |

mod copies;
mod kept;
mod make;
mod own;
mod pods;
mod process;
mod pulls;
mod registries;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::{Encoder, Registry, TextEncoder};
use trylatest_containerd::CallObserver;
use trylatest_core::node::NodeImage;
use trylatest_core::outcome::Outcome;
use trylatest_core::plan::Figures;
use trylatest_core::record::Try;
use trylatest_core::release::{ContainerRelease, Release};

use self::copies::CopySeries;
use self::kept::KeptSeries;
pub(super) use self::own::{CallResult, Channel};
use self::own::{CallSeries, ConfigSeries, GateImageSeries, IndexSeries};
use self::pods::PodSeries;
use self::pulls::{HandoverSeries, PullSeries};
use self::registries::RegistrySeries;
use crate::clock::Clock;

/// Every series of the agent. The expected ones exist from the start, so that a rate sees the first
/// event.
pub struct Metrics {
    registry: Registry,
    /// What the planner has last shown.
    figures: Mutex<Option<(Figures, Clock)>>,
    copies: CopySeries,
    pulls: PullSeries,
    pub(super) pods: PodSeries,
    pub(super) registries: RegistrySeries,
    pub(super) handovers: HandoverSeries,
    pub(super) kept: KeptSeries,
    pub(super) calls: CallSeries,
    pub(super) index: IndexSeries,
    pub(super) config: ConfigSeries,
    pub(super) gate_image: GateImageSeries,
}

impl Metrics {
    /// Makes and registers all series.
    ///
    /// # Errors
    /// Two series have the same name: a defect in this module, which its test would show.
    pub fn new(version: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        own::register_build_info(&registry, version)?;
        process::register(&registry)?;
        Ok(Self {
            figures: Mutex::default(),
            copies: CopySeries::new(&registry)?,
            pulls: PullSeries::new(&registry)?,
            pods: PodSeries::new(&registry)?,
            registries: RegistrySeries::new(&registry)?,
            handovers: HandoverSeries::new(&registry)?,
            kept: KeptSeries::new(&registry)?,
            calls: CallSeries::new(&registry)?,
            index: IndexSeries::new(&registry)?,
            config: ConfigSeries::new(&registry)?,
            gate_image: GateImageSeries::new(&registry)?,
            registry,
        })
    }

    /// A try of the agent, or a pull of the kubelet, has ended. One by hand is neither.
    pub(super) fn tried(&self, tried: &Try) {
        if tried.pulled_for.is_some() {
            self.handovers.ended(tried);
        } else if !tried.by_hand {
            self.registries.tried(tried);
        }
    }

    /// A pod was released that has waited for that so long.
    pub(super) fn released(&self, release: &Release, after: Duration) {
        self.pods.held(after);
        self.became(release, None);
    }

    /// What has become of a release: what `before` said is counted already.
    pub(super) fn became(&self, release: &Release, before: Option<&Release>) {
        self.pods.was_other(release, before);
        for (name, container) in &release.containers {
            let known = before.and_then(|before| before.containers.get(name));
            if known.is_some_and(|known| is_counted_with(container, known)) {
                continue;
            }
            self.pods.released(container.outcome);
            if container.outcome == Outcome::Fallback {
                self.registries.fell_back(container);
            }
        }
    }

    /// What the node's images are now.
    pub(super) fn set_images(&self, images: &[NodeImage]) {
        self.pods.set_behind(images);
        self.copies.set_digests(images);
    }

    /// How things stand now, until this is said again.
    pub(super) fn set_figures(&self, figures: Figures, clock: Clock) {
        let mut known = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((figures, clock));
    }

    /// Hears of containerd's answers, and of the ends of pulls.
    pub(super) fn of_runtime(&self) -> CallObserver {
        let pulls = self.pulls.seconds.clone();
        let calls = self.calls.of_runtime();
        calls.and_of_pulls(move |end, took| {
            let pulls = pulls.with_label_values(&[pulls::word(end)]);
            pulls.observe(took.as_secs_f64());
        })
    }

    /// Everything, in Prometheus' text format.
    ///
    /// # Errors
    /// A series cannot be written, which does not happen with ours.
    pub fn text(&self) -> prometheus::Result<String> {
        self.show_figures();
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Ages grow while nothing happens, so they are taken when they are asked for.
    fn show_figures(&self) {
        let known = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((figures, clock)) = known.as_ref() else {
            return;
        };
        let now = clock.now();
        self.pods.show(figures, now);
        self.copies.show(figures, now);
        self.pulls.show(figures);
        self.handovers.show(figures, now);
        self.index.show(figures);
    }
}

/// Whether a container counts no more than before: one without a gate counts for each copy that it starts from.
fn is_counted_with(container: &ContainerRelease, known: &ContainerRelease) -> bool {
    let is_same = container.outcome != Outcome::NotHeld || container.digest == known.digest;
    container.outcome == known.outcome && is_same
}

#[cfg(test)]
mod tests;
