//! One try for one image: prove, pull and say how it goes, prove again.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use trylatest_containerd::alias::{self, Journal};
use trylatest_containerd::{ImageRuntime, Local, Mended, Movement, Pin, RuntimeError};
use trylatest_core::digest::InvalidDigest;
use trylatest_core::disk::{Amount, Disk, no_room_for};
use trylatest_core::image::ImageName;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::plan::{Ask, Flow, Moved, TryEnded};
use trylatest_core::text;
use trylatest_core::verdict::{CachedCopy, Evidence};

use super::disk;
use super::offers::Offers;

/// How often a running pull is looked at. Most are over before the first look.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The same while nothing moves.
const LOOK_AT_STALLED_EVERY: Duration = Duration::from_secs(1);

/// The same while the disk is nearly full, until it is known how much is to come.
const LOOK_AT_FULL_DISK_EVERY: Duration = Duration::from_millis(50);

/// How many looks a pull weighs, while containerd is busy.
const LOOKS_OF_A_PULL: u32 = 20;

/// What bounds a pull, and what keeps the copy meanwhile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PullLimits {
    /// How long nothing may move before it has stalled.
    pub(crate) stall: Duration,
    /// What it leaves free on the disk where there is a copy; without one, the kubelet would pull all the same.
    pub(crate) floor: Option<Amount>,
    /// How full the disk is, if that can be known.
    pub(crate) disk: fn() -> Option<Disk>,
    /// The alias that keeps the copy. Two who try the same image at the same time must not share it.
    pub(crate) alias: fn(&ImageName) -> String,
}

impl PullLimits {
    /// On this node.
    pub(crate) fn of_node(stall: Duration, floor: Amount) -> Self {
        Self {
            stall,
            floor: Some(floor),
            disk: disk::of_images,
            alias: alias::of,
        }
    }

    /// Why the download must not go on, if it must not.
    fn no_room_for(&self, flow: &Flow, bytes_before: u64) -> Option<Failure> {
        no_room_for(flow, bytes_before, (self.disk)()?, self.floor?)
    }

    /// How soon to look again before it is known how much is to come, if the disk is nearly full.
    fn pause_on_full_disk(&self, flow: &Flow) -> Option<Duration> {
        let disk = (self.disk)()?;
        let floor = self.floor?.of(Some(disk))?;
        let is_tight = disk.free < floor.saturating_add(floor / 4);
        (is_tight && flow.total_bytes.is_none()).then_some(LOOK_AT_FULL_DISK_EVERY)
    }
}

/// Tries an image once; `ask` says whether to ask the registry. Ends when the pull ends, is `cut`, or finds no room,
/// and says for how long nothing has moved; after the stall deadline it looks less often. A download that waits in
/// containerd's own queue does not stand still.
///
/// containerd moves the image's name before it finds out that nothing can start from what it pulled
/// (an image for another platform, a captive portal's page), and the cached copy would be lost. So
/// an alias keeps that copy meanwhile.
///
/// containerd fetches nothing that its database lists, not even what a power cut took from the disk.
/// So if that may be the reason, this mends the database and repeats the pull once.
///
/// # Cancel safety
/// Dropping the future stops the pull; see [`ImageRuntime::pull`]. The alias stays, and the next try
/// of the image restores the copy from it if necessary.
pub(crate) async fn attempt<R: ImageRuntime>(
    runtime: &R,
    image: ImageName,
    attempt: u64,
    ask: Ask,
    limits: PullLimits,
    moved: Offers<Moved>,
    cut: CancellationToken,
) -> TryEnded {
    let alias = (limits.alias)(&image);
    // The check of the disk runs while the pull waits for the registry.
    let mut before = copy(runtime.listed(&image).await);
    if matches!(before, CachedCopy::Unusable { .. }) {
        // A try that was cut off may have left it like this.
        restore(runtime, &image, &alias, &mut before).await;
    }
    let mut kept = false;
    let once = async |floor: Option<Amount>| {
        let limits = PullLimits { floor, ..limits };
        let pull = pull(runtime, &image, attempt, &limits, &moved, &cut);
        let (pulled, _) = futures::join!(pull, runtime.local(&image));
        (pulled.err(), prove(runtime, &image).await)
    };
    let (failure, after) = match ask {
        Ask::Never(failure) => (Some(failure), prove(runtime, &image).await),
        Ask::IfAbsent => {
            let after = prove(runtime, &image).await;
            return TryEnded {
                image,
                attempt,
                evidence: Evidence::of_try(None, &before, after, None),
            };
        }
        Ask::Always => {
            kept = before.digest().is_some()
                && runtime.keep(&image, &alias, Pin::Unpinned).await.is_ok();
            once(limits.floor.filter(|_| before.digest().is_some())).await
        }
    };
    let tried = Tried {
        failure,
        after,
        healed: None,
    };
    // What has to be healed is pulled however full the disk is: there is no other copy.
    let mut tried = mended(runtime, &image, tried, async || once(None).await).await;
    if matches!(tried.after, CachedCopy::Absent) {
        found_again(runtime, &image, &mut tried).await;
    }
    if kept {
        if tried.after.digest().is_none() || tried.failure.is_some() {
            restore(runtime, &image, &alias, &mut tried.after).await;
        }
        if tried.after.digest().is_some() {
            // An alias that stays keeps some content too long; the next try removes it.
            let _ = runtime.forget(&alias).await;
        }
    }
    let Tried {
        failure,
        after,
        healed,
    } = tried;
    let mut evidence = Evidence::of_try(failure, &before, after, healed);
    if evidence.result.failure().is_none() {
        // If it is not known, nobody is told that the tag has moved.
        evidence.digests = runtime.digests(&image).await.unwrap_or_default();
    }
    TryEnded {
        image,
        attempt,
        evidence,
    }
}

/// How a try went.
struct Tried {
    failure: Option<Failure>,
    after: CachedCopy,
    healed: Option<String>,
}

/// Mends what the disk may have lost, and tries again if that can help.
async fn mended<R: ImageRuntime>(
    runtime: &R,
    image: &ImageName,
    mut tried: Tried,
    again: impl AsyncFnOnce() -> (Option<Failure>, CachedCopy),
) -> Tried {
    if may_be_lost(tried.failure.as_ref(), &tried.after) {
        let Mended { removed, kept } = mend(runtime, image).await;
        if !removed.is_empty() {
            tried.healed = Some(words_of(&removed));
            let failure = tried.failure.as_ref();
            if failure.is_none_or(|failure| failure.class.may_come_from_the_disk()) {
                (tried.failure, tried.after) = again().await;
            } else {
                tried.after = prove(runtime, image).await;
            }
        }
        if let (CachedCopy::Unusable { why }, false) = (&mut tried.after, kept.is_empty()) {
            *why = kept.join("; ");
            let lost = || Failure::new(FailureClass::Local, why.clone());
            tried.failure.get_or_insert_with(lost);
        }
    }
    if let (None, CachedCopy::Unusable { why }) = (&tried.failure, &tried.after) {
        tried.failure = Some(Failure::new(FailureClass::Invalid, why.clone()));
    }
    tried
}

/// Whether a pull may have failed, or its result be unusable, because the disk has lost something that
/// containerd lists.
fn may_be_lost(failure: Option<&Failure>, after: &CachedCopy) -> bool {
    matches!(after, CachedCopy::Unusable { .. })
        || failure.is_some_and(|failure| failure.class.may_come_from_the_disk())
}

async fn mend<R: ImageRuntime>(runtime: &R, image: &ImageName) -> Mended {
    match runtime.mend(image).await {
        Ok(mended) => {
            if mended != Mended::default() {
                warn!(%image, removed = ?mended.removed, kept = ?mended.kept, "the disk has lost content that containerd lists");
            }
            mended
        }
        Err(error) => {
            warn!(%image, %error, "checking the disk for lost content has failed");
            Mended::default()
        }
    }
}

/// Digests are long, and a note is short.
const NAMED_AT_MOST: usize = 3;

fn words_of(removed: &[String]) -> String {
    format!(
        "healed: this node's disk had lost {}",
        text::some_of(removed, NAMED_AT_MOST)
    )
}

/// Lets the name point to what the alias keeps, and proves it. Without an alias nothing changes.
async fn restore<R: ImageRuntime>(
    runtime: &R,
    image: &ImageName,
    alias: &str,
    copy: &mut CachedCopy,
) {
    match runtime.restore(alias, image).await {
        Ok(true) => {
            *copy = prove(runtime, image).await;
            warn!(%image, "the pulled image cannot start; its name points to the cached copy again");
        }
        Ok(false) | Err(RuntimeError::NotFound { .. }) => {}
        Err(error) => warn!(%image, %error, "giving the name back to the cached copy has failed"),
    }
}

/// Ends what tries have left that were cut off, when no try runs: nothing but the image's next try would remove the alias.
pub(super) async fn end_all<R: ImageRuntime>(runtime: &R) {
    let left = match runtime.journal(Journal::Try).await {
        Ok(left) => left,
        Err(error) => return warn!(%error, "what tries have left half done stays"),
    };
    for (alias, image) in left {
        let mut now = copy(runtime.listed(&image).await);
        if matches!(now, CachedCopy::Unusable { .. }) {
            restore(runtime, &image, &alias, &mut now).await;
        }
        // Otherwise the next try decides.
        if matches!(now, CachedCopy::Usable { .. } | CachedCopy::Absent)
            && let Err(error) = runtime.forget(&alias).await
        {
            warn!(%alias, %error, "an alias that is not needed any more cannot be removed");
        }
    }
}

/// In an outage, gives a name that somebody has removed back to a kept copy that is everybody's.
async fn found_again<R: ImageRuntime>(runtime: &R, image: &ImageName, tried: &mut Tried) {
    let failure = tried.failure.as_ref();
    if !failure.is_some_and(|failure| failure.class.is_outage()) {
        return;
    }
    match runtime.restore_kept(image).await {
        Ok(true) => {
            tried.after = prove(runtime, image).await;
            warn!(%image, "the image's name was gone; it points to the kept copy again");
        }
        Ok(false) => {}
        Err(error) => warn!(%image, %error, "looking for a kept copy has failed"),
    }
}

/// Proves the copy that the node holds now.
pub(super) async fn prove<R: ImageRuntime>(runtime: &R, image: &ImageName) -> CachedCopy {
    copy(runtime.local(image).await)
}

pub(super) fn copy(found: Result<Local, RuntimeError>) -> CachedCopy {
    match found {
        Ok(Local::Usable(local)) => match local.digest.parse() {
            Ok(digest) => CachedCopy::Usable {
                digest,
                size_bytes: local.size_bytes,
            },
            Err(error) => CachedCopy::Unusable {
                why: InvalidDigest::to_string(&error),
            },
        },
        Ok(Local::Absent) => CachedCopy::Absent,
        Ok(Local::Unusable { why }) => CachedCopy::Unusable { why },
        Err(error) => CachedCopy::Unknown {
            why: error.to_string(),
        },
    }
}

/// Where the file system of the images cannot be seen, a look has containerd walk through all files of a layer that is
/// being unpacked: it must not cost more than a fifth of the time, but the next one has to be answered before the pull
/// counts as stalled.
fn pause_after(took: Duration, stall: Duration) -> Duration {
    let unhurried = took * 4;
    let in_time = stall.saturating_sub(took) / 2;
    LOOK_EVERY.max(unhurried.min(in_time))
}

/// How much longer a pull may stand still while looks at containerd take so long: then the node is busy, and a registry
/// that has answered may look silent. A pull costs containerd much more than a look. Looks of 0.1 s instead of a few
/// milliseconds come with pulls of an unchanged image that take 5 s instead of 0.1 s (50 pods started at once on 2
/// cores).
fn busy(slowest_look: Duration, stall: Duration) -> Duration {
    (slowest_look * LOOKS_OF_A_PULL).min(stall)
}

async fn pull<R: ImageRuntime>(
    runtime: &R,
    image: &ImageName,
    attempt: u64,
    limits: &PullLimits,
    moved: &Offers<Moved>,
    cut: &CancellationToken,
) -> Result<(), Failure> {
    let stall = limits.stall;
    let mut pull = std::pin::pin!(runtime.pull(image));
    let mut mark = Movement::default().mark;
    let mut flow = Flow::default();
    let mut moved_at = Instant::now();
    let mut took = Duration::ZERO;
    // Since something has moved.
    let mut slowest_look = Duration::ZERO;
    let mut bytes_before = None;
    loop {
        let due = moved_at + stall + busy(slowest_look, stall);
        let is_stalled = Instant::now() >= due;
        let look = if is_stalled {
            Instant::now() + LOOK_AT_STALLED_EVERY
        } else {
            let pause = limits.pause_on_full_disk(&flow);
            due.min(Instant::now() + pause.unwrap_or(pause_after(took, stall)))
        };
        // Both can be dropped: the pull is only borrowed.
        tokio::select! {
            ended = &mut pull => return ended.map_err(|error| error.failure()),
            () = cut.cancelled() => return Err(flow.stood_still()),
            () = sleep_until(look) => {}
        }
        // A look that fails, or is not answered by the deadline, counts as "nothing moved".
        let answer_by = if is_stalled { look + stall } else { due };
        let asked = Instant::now();
        let looked = timeout_at(answer_by, runtime.movement(image));
        let looked = tokio::select! {
            // The pull is only borrowed; if the look is lost, the next one repeats it.
            ended = &mut pull => return ended.map_err(|error| error.failure()),
            () = cut.cancelled() => return Err(flow.stood_still()),
            looked = looked => looked,
        };
        slowest_look = slowest_look.max(asked.elapsed());
        if let Ok(Ok(movement)) = looked {
            took = asked.elapsed();
            if movement.mark != mark || movement.queued {
                moved_at = Instant::now();
                slowest_look = Duration::ZERO;
            }
            mark = movement.mark;
            flow = Flow {
                bytes: movement.bytes,
                total_bytes: movement.total_bytes,
                flows: movement.flows,
                behind: movement.behind,
                ..Flow::default()
            };
        }
        flow.still = moved_at.elapsed();
        flow.grace = busy(slowest_look, stall);
        if flow.total_bytes.is_some() {
            let before = *bytes_before.get_or_insert(flow.bytes);
            if let Some(failure) = limits.no_room_for(&flow, before) {
                return Err(failure);
            }
        }
        // A full channel only means that the planner has not read the last numbers yet.
        moved.offer(Moved {
            image: image.clone(),
            attempt,
            flow,
        });
    }
}

#[cfg(test)]
mod tests;
