//! Keeps the copies that the next outage will need. [`trylatest_core::keep`] decides which; this carries it out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use trylatest_containerd::{ImageRuntime, RuntimeError, alias};
use trylatest_core::disk::Disk;
use trylatest_core::keep::{KeptCopy, Limits, Shelf as Decided, UsedImage, shelve};

use super::metrics::Metrics;
use crate::clock;

/// How often the disk is looked at. The kubelet looks every 10 s whether it has to evict pods.
const LOOK_EVERY: Duration = Duration::from_secs(10);

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
    pub(super) limits: Limits,
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
    /// Whether containerd was found to honour pins.
    honours_pins: Option<bool>,
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
                "the file system that holds the images cannot be seen: percentages of it cannot be kept to, and copies \
                 are kept only while pods use them; see --keep-bytes"
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
            match self.runtime.kept_copies().await {
                Ok(copies) => kept.copies = copies,
                Err(error) => {
                    warn!(%error, "what is kept cannot be read; trying again");
                    sleep(PAUSE).await;
                    continue;
                }
            }
            kept.absent.clear();
            kept.honours_pins = None;
            self.keep_for_a_while(&mut kept).await;
        }
    }

    async fn keep_for_a_while(&mut self, kept: &mut Kept) {
        let until = Instant::now() + LIST_EVERY;
        while Instant::now() < until {
            let used = self.used.borrow_and_update().clone().unwrap_or_default();
            self.look(kept, &used).await;
            let next = until.min(Instant::now() + LOOK_EVERY);
            // A watch and a timer lose nothing when they are not chosen.
            tokio::select! {
                changed = self.used.changed() => {
                    if changed.is_err() {
                        // The pods' task has ended, and with it the process.
                        std::future::pending::<()>().await;
                    }
                    kept.absent.clear();
                    sleep(BURST).await;
                }
                () = sleep_until(next) => {}
            }
        }
    }

    /// Decides, and carries it out.
    async fn look(&self, kept: &mut Kept, used: &[UsedImage]) {
        let now = clock::wall();
        let disk = (self.disk)();
        self.check_pins(kept, used).await;
        let Decided { write, forget } = shelve(&kept.copies, used, &self.limits, disk, now);
        for (copy, because) in forget {
            let alias = alias::copy(&copy.image, &copy.digest);
            if let Err(error) = self.runtime.forget(&alias).await {
                // The next look tries again.
                warn!(image = %copy.image, %error, "a copy that is not kept any more still has its alias");
                continue;
            }
            self.metrics.kept.was_let_go(because);
            info!(image = %copy.image, digest = %copy.digest.as_str(), because = because.as_str(), "a copy is not kept any more");
            kept.put(&copy, None);
        }
        for copy in write {
            self.write(kept, copy).await;
        }
        self.metrics.kept.set(&kept.copies);
    }

    async fn write(&self, kept: &mut Kept, copy: KeptCopy) {
        let alias = alias::copy(&copy.image, &copy.digest);
        if kept.absent.contains(&alias) {
            return;
        }
        match self.runtime.keep_copy(&copy).await {
            Ok(()) => {
                debug!(image = %copy.image, digest = %copy.digest.as_str(), pinned = copy.pinned, "a copy is kept");
                kept.put(&copy.clone(), Some(copy));
            }
            // Somebody has removed it, or the kubelet pulls it just now.
            Err(RuntimeError::NotFound { .. }) => {
                kept.absent.insert(alias);
                kept.put(&copy, None);
            }
            Err(error) => warn!(image = %copy.image, %error, "a copy cannot be kept now"),
        }
    }

    /// Finds out, once in a while, whether containerd honours pins.
    async fn check_pins(&self, kept: &mut Kept, used: &[UsedImage]) {
        let current = |image: &UsedImage, copy: &KeptCopy| {
            let current = image.current.as_ref();
            image.image == copy.image && current.is_some_and(|now| now.digest == copy.digest)
        };
        let is_current = |copy: &&KeptCopy| used.iter().any(|image| current(image, copy));
        let mut pinned = kept.copies.iter().filter(|copy| copy.pinned);
        if kept.honours_pins.is_some() {
            return;
        }
        let Some(copy) = pinned.find(is_current) else {
            return;
        };
        let Ok(Some(honours)) = self.runtime.is_pinned(&copy.image).await else {
            return;
        };
        if !honours {
            warn!(
                image = %copy.image,
                "this containerd ignores pins: the kubelet's image collector may remove kept copies; 1.6.36, 1.7.3 and \
                 later honour them"
            );
        }
        self.metrics.kept.set_pins_ignored(!honours);
        kept.honours_pins = Some(honours);
    }
}

impl Kept {
    /// Puts a copy in the place of one that was known, or takes it away.
    fn put(&mut self, old: &KeptCopy, new: Option<KeptCopy>) {
        let is_it = |copy: &KeptCopy| copy.image == old.image && copy.digest == old.digest;
        self.copies.retain(|copy| !is_it(copy));
        self.copies.extend(new);
    }
}

#[cfg(test)]
mod tests;
