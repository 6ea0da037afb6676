//! Names that are taken away so that the kubelet pulls, and given back: containerd's part of a hand-over.
//!
//! The alias is the journal. Whatever happens to the agent, containerd or the node between two steps, the
//! alias says which name is away, and what it pointed to; [`give_back_all`] reads it when the agent begins.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use trylatest_containerd::alias::Journal;
use trylatest_containerd::{ImageEvents, ImageRuntime, Movement, Pin, RuntimeError, alias};
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::plan::{Flow, Moved};
use trylatest_core::verdict::CachedCopy;

use super::attempt::{copy, prove};
use super::offers::Offers;
use crate::undo;

/// How often the kubelet's pull is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Between two tries to reach containerd.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a copy is looked at that could not be proven.
const PROOFS: usize = 5;

/// How long CRI may take to learn that a name is there again; a containerd that has just started reads all names first.
const LEARNS: Duration = Duration::from_secs(5);

/// How long containerd may take to remove an alias: it may have to start again first.
const FORGETS: Duration = Duration::from_secs(60);

/// Names that are given back at the same time.
const AT_ONCE: usize = 8;

/// How often to look whether it has.
const LOOKS_AGAIN: Duration = Duration::from_millis(5);

/// Takes the name away. What it pointed to, if there was a copy.
///
/// # Errors
/// Why it could not be taken, in words; it may be away.
pub(super) async fn take<R: ImageRuntime>(
    runtime: &R,
    image: &ImageName,
) -> Result<Option<Digest>, String> {
    let digest = match runtime.set_aside(image, &alias::aside(image)).await {
        Ok(digest) => digest,
        Err(error) => {
            settle(runtime, image).await;
            return Err(error.to_string());
        }
    };
    let parsed = digest.map(|digest| digest.parse::<Digest>()).transpose();
    parsed.map_err(|error| error.to_string())
}

/// After a call to take a name away was not answered: containerd may still carry it out. Its writes come one
/// after the other, so once this one is done, that one is.
async fn settle<R: ImageRuntime>(runtime: &R, image: &ImageName) {
    let alias = alias::of(image);
    loop {
        // Whatever the alias pointed to before, this writes.
        let forgotten = runtime.forget(&alias).await;
        match (forgotten, runtime.keep(image, &alias, Pin::Unpinned).await) {
            (Ok(()), Ok(()) | Err(RuntimeError::NotFound { .. })) => break,
            _ => sleep(PAUSE).await,
        }
    }
    let _ = runtime.forget(&alias).await;
}

/// Waits until the name is there again, and says meanwhile what moves; then the alias is not needed any
/// more.
///
/// # Cancel safety
/// Dropping the future loses nothing but the answer.
pub(super) async fn follow<R: ImageRuntime>(
    runtime: &R,
    image: &ImageName,
    id: u64,
    moved: &Offers<Moved>,
) -> CachedCopy {
    loop {
        if let Ok(mut events) = runtime.image_events().await
            && is_there_again(runtime, image, id, moved, &mut events).await
        {
            break;
        }
        sleep(PAUSE).await;
    }
    let alias = alias::aside(image);
    // The kubelet's pull has removed labels of others, which the alias carries.
    if let Err(error) = runtime.restore(&alias, image).await
        && !matches!(error, RuntimeError::NotFound { .. })
    {
        warn!(%image, %error, "restoring an image's labels has failed");
    }
    forget(runtime, &alias).await;
    for _ in 0..PROOFS {
        let copy = prove(runtime, image).await;
        if !matches!(copy, CachedCopy::Unknown { .. }) {
            return copy;
        }
        sleep(PAUSE).await;
    }
    prove(runtime, image).await
}

/// Whether the name is there again; not so if the events end.
async fn is_there_again<R: ImageRuntime>(
    runtime: &R,
    image: &ImageName,
    id: u64,
    moved: &Offers<Moved>,
    events: &mut ImageEvents,
) -> bool {
    let mut last = None;
    loop {
        // The subscription came first: nothing is missed in between.
        if matches!(copy(runtime.listed(image).await), CachedCopy::Usable { .. }) {
            return true;
        }
        let changed = async {
            while let Some(Ok(event)) = events.next().await {
                if event.name == image.as_str() {
                    return true;
                }
            }
            false
        };
        // Cancel-safe: a stream and a timer lose nothing when they are not chosen.
        tokio::select! {
            changed = changed => {
                if !changed {
                    return false;
                }
            }
            () = sleep(LOOK_EVERY) => {
                let Ok(movement) = runtime.movement(image).await else {
                    continue;
                };
                let Movement { bytes, total_bytes, mark, queued, .. } = movement;
                // Whatever moves of this image now is the kubelet's.
                let flows = last.replace(mark).is_some_and(|last| last != mark) || queued;
                if flows {
                    let flow = Flow { bytes, total_bytes, flows, ..Flow::default() };
                    moved.offer(Moved { image: image.clone(), attempt: id, flow });
                }
            }
        }
    }
}

/// Removes an alias that is not needed any more, until that has worked: the agent's next start would give the name
/// back to what it keeps, even if somebody has removed the name since.
async fn forget<R: ImageRuntime>(runtime: &R, alias: &str) {
    let until = Instant::now() + FORGETS;
    while let Err(error) = runtime.forget(alias).await {
        if Instant::now() >= until {
            return warn!(alias, %error, "an alias that is not needed any more cannot be removed");
        }
        sleep(PAUSE).await;
    }
}

/// Gives the name back to the copy, until that has worked. The copy, and whether the name was there
/// already.
pub(super) async fn give_back<R: ImageRuntime>(
    runtime: &R,
    image: &ImageName,
) -> (CachedCopy, bool) {
    let alias = alias::aside(image);
    let mut unsure = false;
    let given_back = loop {
        match runtime.restore(&alias, image).await {
            // An answer that was lost may have been that it was given back.
            Ok(given_back) => break given_back || unsure,
            Err(RuntimeError::NotFound { .. }) => break false,
            Err(error) => {
                unsure = true;
                warn!(%image, %error, "giving an image's name back has failed; trying again");
                sleep(PAUSE).await;
            }
        }
    };
    forget(runtime, &alias).await;
    let until = Instant::now() + LEARNS;
    let mut found = prove(runtime, image).await;
    while given_back && found == CachedCopy::Absent && Instant::now() < until {
        sleep(LOOKS_AGAIN).await;
        found = prove(runtime, image).await;
    }
    let was_there = !given_back && found.digest().is_some();
    (found, was_there)
}

/// Gives back every name that an earlier run of the agent has left away, and then undoes what killed commands have left
/// half done.
pub(super) async fn give_back_all<R: ImageRuntime>(runtime: &R, state_dir: &Path) {
    let aside = loop {
        match runtime.journal(Journal::Aside).await {
            Ok(aside) => break aside,
            Err(_) => sleep(PAUSE).await,
        }
    };
    // One that cannot be given back must not be in the way of the others.
    let back = futures::stream::iter(aside).for_each_concurrent(AT_ONCE, |(_, image)| async move {
        let (_, was_there) = give_back(runtime, &image).await;
        info!(%image, was_there, "an earlier agent had taken this image's name away; it is there again");
    });
    back.await;
    undo::all(runtime, state_dir).await;
}

#[cfg(test)]
mod tests;
