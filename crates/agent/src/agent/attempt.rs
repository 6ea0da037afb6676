//! One try for one image: prove, pull under the stall deadline, prove again.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::warn;
use trylatest_containerd::{ImageRuntime, Local, Movement, Pin, RuntimeError, alias};
use trylatest_core::image::ImageName;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::plan::{Ask, Ended, Flow, Moved};
use trylatest_core::verdict::Copy;

/// How often a running pull is looked at. Most are over before the first look.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Tries an image once, as far as the registry is to be asked. Ends when the pull ends, or when
/// nothing has moved for `stall`. What waits in containerd's own queue has not stalled.
///
/// containerd moves the image's name before it finds out that nothing can start from what it pulled
/// (an image for another platform, a captive portal's page), and the cached copy would be lost. So
/// an alias keeps that copy meanwhile.
///
/// # Cancel safety
/// Dropping the future stops the pull; see [`ImageRuntime::pull`]. The alias stays, and the next try
/// of the image restores from it what has to be restored.
pub(super) async fn attempt<R: ImageRuntime>(
    runtime: &R,
    image: ImageName,
    attempt: u64,
    ask: Ask,
    stall: Duration,
    moved: mpsc::Sender<Moved>,
) -> Ended {
    let alias = alias::of(&image);
    let mut before = prove(runtime, &image).await;
    if matches!(before, Copy::Unusable { .. }) {
        // A try that was cut off may have left it so.
        restore(runtime, &image, &alias, &mut before).await;
    }
    let (failure, after) = match ask {
        Ask::Never(failure) => (Some(failure), before.clone()),
        Ask::IfAbsent if before.digest().is_some() => (None, before.clone()),
        Ask::IfAbsent | Ask::Always => {
            let kept = before.digest().is_some()
                && runtime.keep(&image, &alias, Pin::Unpinned).await.is_ok();
            let pulled = pull(runtime, &image, attempt, stall, moved).await;
            let mut after = prove(runtime, &image).await;
            let mut failure = pulled.err();
            if let (None, Copy::Unusable { why }) = (&failure, &after) {
                failure = Some(Failure::new(FailureClass::Invalid, why.clone()));
            }
            if kept {
                if after.digest().is_none() {
                    restore(runtime, &image, &alias, &mut after).await;
                }
                if after.digest().is_some() {
                    // One that stays keeps some content too long, and the next try removes it.
                    let _ = runtime.forget(&alias).await;
                }
            }
            (failure, after)
        }
    };
    Ended {
        image,
        attempt,
        failure,
        before,
        after,
    }
}

/// Gives the name back what the alias keeps, and proves it. Without an alias nothing changes.
async fn restore<R: ImageRuntime>(runtime: &R, image: &ImageName, alias: &str, copy: &mut Copy) {
    match runtime.restore(alias, image).await {
        Ok(true) => {
            *copy = prove(runtime, image).await;
            warn!(%image, "what was pulled cannot be started; the cached copy has its name again");
        }
        Ok(false) | Err(RuntimeError::NotFound { .. }) => {}
        Err(error) => warn!(%image, %error, "the cached copy could not be given its name again"),
    }
}

/// Proves the copy that the node holds now.
pub(super) async fn prove<R: ImageRuntime>(runtime: &R, image: &ImageName) -> Copy {
    match runtime.local(image).await {
        Ok(Local::Usable(local)) => Copy::Usable {
            digest: local.digest,
            size_bytes: local.size_bytes,
        },
        Ok(Local::Absent) => Copy::Absent,
        Ok(Local::Unusable { why }) => Copy::Unusable { why },
        Err(error) => Copy::Unknown {
            why: error.to_string(),
        },
    }
}

async fn pull<R: ImageRuntime>(
    runtime: &R,
    image: &ImageName,
    attempt: u64,
    stall: Duration,
    moved: mpsc::Sender<Moved>,
) -> Result<(), Failure> {
    let mut pull = std::pin::pin!(runtime.pull(image));
    let mut last = Movement::default();
    let mut deadline = Instant::now() + stall;
    loop {
        let look = deadline.min(Instant::now() + LOOK_EVERY);
        if let Ok(ended) = timeout_at(look, &mut pull).await {
            return ended.map_err(|error| error.failure());
        }
        // No answer is no movement, and no answer by the deadline is none.
        let looked = timeout_at(deadline, runtime.movement(image));
        let looked = tokio::select! {
            // The pull is only borrowed; the look may be lost, the next one repeats it.
            ended = &mut pull => return ended.map_err(|error| error.failure()),
            looked = looked => looked,
        };
        if let Ok(Ok(movement)) = looked {
            if movement.mark != last.mark || movement.queued {
                deadline = Instant::now() + stall;
            }
            last = movement;
            // A full channel only means that the planner has not read the last numbers yet.
            let _ = moved.try_send(Moved {
                image: image.clone(),
                attempt,
                flow: Flow {
                    bytes: movement.bytes,
                    total_bytes: movement.total_bytes,
                    flows: movement.flows,
                },
            });
        }
        if Instant::now() >= deadline {
            return Err(stalled(stall, last));
        }
    }
}

fn stalled(stall: Duration, last: Movement) -> Failure {
    let stall = humantime::format_duration(stall);
    let words = match (last.bytes, last.total_bytes) {
        (0, _) => format!("nothing came for {stall}"),
        (bytes, Some(total)) => format!("nothing moved for {stall} after {bytes} of {total} bytes"),
        (bytes, None) => format!("nothing moved for {stall} after {bytes} bytes"),
    };
    Failure::new(FailureClass::Timeout, words)
}

#[cfg(test)]
mod tests;
