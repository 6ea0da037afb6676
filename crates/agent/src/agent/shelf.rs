//! Keeps the copies that the next outage will need. [`trylatest_core::keep`] decides which; this carries it out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use trylatest_containerd::{ImageRuntime, RuntimeError, alias};
use trylatest_core::config::Config;
use trylatest_core::disk::Disk;
use trylatest_core::keep::{
    Because, KeptCopy, Limits, Running, Shelf as Decided, UsedImage, shelve,
};
use trylatest_core::version::HONOURS_PINS;

use super::metrics::Metrics;
use crate::clock::Clock;

/// How often the disk is looked at. The kubelet looks every 10 s whether it has to evict pods.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often it is decided again although neither pods nor the disk have changed: copies get old.
const DECIDE_EVERY: Duration = Duration::from_mins(1);

/// How often containerd is asked what is kept: somebody may have removed it.
const LIST_EVERY: Duration = Duration::from_mins(10);

/// Pods come and go in bursts.
const BURST: Duration = Duration::from_secs(1);

/// Between two tries to reach containerd.
const PAUSE: Duration = Duration::from_secs(1);

/// Looks after the kept copies.
pub(super) struct Shelf<R> {
    pub(super) runtime: Arc<R>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
    pub(super) limits: Limits,
    /// The administrator's configuration, whenever it changes.
    pub(super) config: watch::Receiver<Config>,
    /// How full the disk is, if that can be known.
    pub(super) disk: fn() -> Option<Disk>,
    /// What pods use, once they are known.
    pub(super) used: watch::Receiver<Option<Vec<UsedImage>>>,
}

/// What the task knows between two looks.
#[derive(Default)]
struct Kept {
    copies: Vec<KeptCopy>,
    /// Aliases of copies that are not there.
    absent: BTreeSet<String>,
    /// Aliases that containerd has refused to change the last time.
    refused: BTreeSet<String>,
    /// Whether containerd honours pins.
    honours_pins: bool,
    /// Whether the disk is nearly full.
    is_tight: bool,
    running: Running,
}

impl<R: ImageRuntime> Shelf<R> {
    /// Runs until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        self.say_what_is_known();
        // Can be dropped at any point: what is kept is read again by the next agent.
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep() => {}
        }
        Ok(())
    }

    fn say_what_is_known(&self) {
        if (self.disk)().is_none() {
            warn!(
                "cannot see how full the images' file system is, so percentages have no effect and copies are kept only \
                 while pods use them; set --keep-bytes in bytes"
            );
        }
    }

    async fn keep(&mut self) {
        let mut kept = Kept::default();
        // Before the pods are known, everything would look unused.
        while self.used.borrow_and_update().is_none() {
            if self.used.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        loop {
            if let Err(error) = self.list(&mut kept).await {
                warn!(%error, "listing the kept copies has failed; trying again");
                sleep(PAUSE).await;
                continue;
            }
            self.keep_for_a_while(&mut kept).await;
        }
    }

    /// Reads what is kept. containerd may have been replaced since the last time.
    async fn list(&self, kept: &mut Kept) -> Result<(), RuntimeError> {
        let version = self.runtime.version().await?;
        let honours_pins = version.honours_pins();
        if !honours_pins && !self.metrics.kept.pins_are_ignored() {
            let honoured_since = HONOURS_PINS.map(|version| version.to_string()).join(", ");
            warn!(
                runtime = %version,
                honoured_since,
                "this containerd ignores pins, so the kubelet's image collector may remove kept copies"
            );
        }
        self.metrics.kept.set_pins_ignored(!honours_pins);
        *kept = Kept {
            copies: self.runtime.kept_copies().await?,
            absent: BTreeSet::new(),
            refused: std::mem::take(&mut kept.refused),
            honours_pins,
            is_tight: kept.is_tight,
            running: std::mem::take(&mut kept.running),
        };
        Ok(())
    }

    async fn keep_for_a_while(&mut self, kept: &mut Kept) {
        let until = Instant::now() + LIST_EVERY;
        while Instant::now() < until {
            let mut used = self.used.borrow_and_update().clone().unwrap_or_default();
            kept.running.measure(&mut used, self.clock.now());
            let config = self.config.borrow_and_update().clone();
            if let Err(error) = self.decide(kept, &used, &config).await {
                warn!(%error, "what is kept could not be changed; trying again");
                sleep(PAUSE).await;
                // What containerd holds now is not known.
                return;
            }
            let next = until.min(Instant::now() + DECIDE_EVERY);
            // Cancel-safe: watches and timers lose nothing when they are not chosen.
            tokio::select! {
                changed = self.used.changed() => {
                    if changed.is_err() {
                        // The pods' task has ended, and with it the process.
                        std::future::pending::<()>().await;
                    }
                    kept.absent.clear();
                    sleep(BURST).await;
                }
                Ok(()) = self.config.changed() => {}
                () = changes(self.disk, self.limits, kept.is_tight) => {}
                () = sleep_until(next) => {}
            }
        }
    }

    /// Decides, and carries it out. What containerd refuses of one copy is passed over until it is decided again.
    async fn decide(
        &self,
        kept: &mut Kept,
        used: &[UsedImage],
        config: &Config,
    ) -> Result<(), RuntimeError> {
        let (now, disk) = (self.clock.now().wall, (self.disk)());
        kept.is_tight = self.limits.is_tight(disk, kept.is_tight);
        let limits = Limits {
            pins: kept.honours_pins && !kept.is_tight,
            ..self.limits
        };
        let images = kept.copies.iter().map(|copy| &copy.image);
        let images = images.chain(used.iter().map(|used| &used.image));
        let names = self.runtime.pointed(&images.cloned().collect()).await?;
        let Decided { write, forget } =
            shelve(&kept.copies, used, &names, &limits, config, disk, now);
        let mut refused = BTreeSet::new();
        for copy in write {
            let written = self.write(kept, copy.clone()).await;
            pass_over(written, &copy, kept, &mut refused)?;
        }
        for (copy, because) in forget {
            let forgotten = self.forget(kept, &copy, because).await;
            pass_over(forgotten, &copy, kept, &mut refused)?;
        }
        kept.refused = refused;
        self.metrics.kept.set(&kept.copies);
        Ok(())
    }

    async fn forget(
        &self,
        kept: &mut Kept,
        copy: &KeptCopy,
        because: Because,
    ) -> Result<(), RuntimeError> {
        let alias = alias::copy(copy);
        self.runtime.forget(&alias).await?;
        self.metrics.kept.was_let_go(because);
        info!(image = %copy.image, digest = %copy.digest.as_str(), because = because.as_str(), "a copy is not kept any more");
        kept.put(copy, None);
        Ok(())
    }

    async fn write(&self, kept: &mut Kept, copy: KeptCopy) -> Result<(), RuntimeError> {
        let alias = alias::copy(&copy);
        if kept.absent.contains(&alias) {
            return Ok(());
        }
        match self.runtime.keep_copy(&copy).await {
            Ok(()) => {
                debug!(image = %copy.image, digest = %copy.digest.as_str(), pinned = copy.pinned, "a copy is kept");
                kept.put(&copy.clone(), Some(copy));
            }
            // Somebody has removed it, or the kubelet is pulling it.
            Err(RuntimeError::NotFound { .. }) => {
                kept.absent.insert(alias);
                kept.put(&copy, None);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// What containerd answers may be about this copy alone, and for good: the others are not to suffer for it. Says so
/// once.
fn pass_over(
    result: Result<(), RuntimeError>,
    copy: &KeptCopy,
    kept: &Kept,
    refused: &mut BTreeSet<String>,
) -> Result<(), RuntimeError> {
    let Err(error) = result else { return Ok(()) };
    if !error.is_an_answer() {
        return Err(error);
    }
    let alias = alias::copy(copy);
    if !kept.refused.contains(&alias) {
        warn!(image = %copy.image, digest = %copy.digest.as_str(), %error, "containerd refuses to change what is kept of an image; it is passed over");
    }
    refused.insert(alias);
    Ok(())
}

/// Waits until the disk has become nearly full, or is not any more.
async fn changes(disk: fn() -> Option<Disk>, limits: Limits, is_tight: bool) {
    while limits.is_tight(disk(), is_tight) == is_tight {
        sleep(LOOK_EVERY).await;
    }
}

impl Kept {
    /// Puts a copy in the place of one that was known, or takes it away.
    fn put(&mut self, old: &KeptCopy, new: Option<KeptCopy>) {
        self.copies.retain(|copy| copy.id() != old.id());
        self.copies.extend(new);
    }
}

#[cfg(test)]
mod tests;
