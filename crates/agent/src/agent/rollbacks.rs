//! Learns which names are pointed back to an earlier copy by hand, and from when on they are not any more.
//!
//! `trylatest rollback` leaves an alias that says so. It holds as long as the name points to what it says: whoever
//! moves the name, this removes the alias.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use trylatest_containerd::{ImageEvents, ImageRuntime, RuntimeError, alias};
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::record::RolledBack;
use trylatest_core::time::age;

use crate::clock;

/// How often to look although no name has changed: a try that has seen the name just before may have said otherwise.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// Between two tries to reach containerd.
const PAUSE: Duration = Duration::from_secs(1);

/// The commands write more than one name.
const BURST: Duration = Duration::from_millis(20);

/// A younger mark stays although the name does not point back: the command that has written it is about to move the
/// name. That takes it one call to containerd, of seconds at most.
const AT_WORK: Duration = Duration::from_mins(1);

/// Names that are pointed back to an earlier copy.
pub(super) type Marks = BTreeMap<ImageName, RolledBack>;

/// Looks for rollbacks.
pub(super) struct Rollbacks<R> {
    pub(super) runtime: Arc<R>,
    /// What was found, once that is known.
    pub(super) found: watch::Sender<Option<Marks>>,
}

impl<R: ImageRuntime> Rollbacks<R> {
    /// Runs until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        // Can be dropped at any point: containerd knows what there is.
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
        }
        Ok(())
    }

    async fn follow(&self) {
        let mut failed = false;
        loop {
            let follow = async {
                let mut events = self.runtime.image_events().await?;
                self.look_at(&mut events).await
            };
            let error: RuntimeError = match follow.await {
                Ok(()) => RuntimeError::EventsEnded,
                Err(error) => error,
            };
            // containerd may be away for long.
            if !std::mem::replace(&mut failed, true) {
                warn!(%error, "looking for rollbacks is interrupted; it goes on by itself");
            }
            sleep(PAUSE).await;
        }
    }

    /// Looks again after each change that may matter, until the events end. The subscription came first.
    async fn look_at(&self, events: &mut ImageEvents) -> Result<(), RuntimeError> {
        loop {
            let seen = self.look().await?;
            let until = Instant::now() + LOOK_EVERY;
            loop {
                // Cancel-safe: a stream and a timer lose nothing when they are not chosen.
                tokio::select! {
                    event = events.next() => match event {
                        Some(Ok(event)) if is_about(&event.name, &seen) => break,
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return Err(error),
                        None => return Ok(()),
                    },
                    () = sleep_until(until) => break,
                }
            }
            sleep(BURST).await;
        }
    }

    /// Says what holds, and removes what does not. Everything that is written down.
    async fn look(&self) -> Result<Marks, RuntimeError> {
        let marks = self.runtime.rolled_back().await?;
        let mut hold = marks.clone();
        if !marks.is_empty() {
            let images = marks.keys().cloned().collect();
            let names = self.runtime.pointed(&images).await?;
            hold.retain(|image, back| names.get(image) == Some(&back.to));
            let now = clock::wall();
            for (image, back) in &marks {
                if !hold.contains_key(image) && age(now, back.time) >= AT_WORK {
                    self.runtime.forget(&alias::rolled_back(image)).await?;
                }
            }
        }
        self.say(&hold);
        Ok(marks)
    }

    fn say(&self, hold: &Marks) {
        let before = self.found.borrow().clone();
        let known = before.as_ref();
        for (image, back) in hold {
            if known.is_none_or(|known| known.get(image) != Some(back)) {
                let from = back.from.as_ref().map(Digest::as_str);
                info!(%image, from, digest = back.to.as_str(), time = %back.time, "the image is rolled back by hand");
            }
        }
        for image in known.into_iter().flat_map(BTreeMap::keys) {
            if !hold.contains_key(image) {
                info!(%image, "the image is not rolled back any more");
            }
        }
        // What holds is said again: a try may have claimed otherwise.
        if known != Some(hold) || !hold.is_empty() {
            self.found.send_replace(Some(hold.clone()));
        }
    }
}

/// Whether the change of a name may be one of a rollback.
fn is_about(name: &str, marks: &Marks) -> bool {
    let of_mark = alias::rolled_back_image(name).is_some();
    of_mark || marks.keys().any(|image| image.as_str() == name)
}

#[cfg(test)]
mod tests;
