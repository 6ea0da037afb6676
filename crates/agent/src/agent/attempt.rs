//! One try for one image: prove, pull under the stall deadline, prove again.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use trylatest_containerd::{ImageRuntime, Local, Movement};
use trylatest_core::image::ImageName;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::plan::Ended;
use trylatest_core::verdict::Copy;

/// How often a running pull is looked at. Most are over before the first look.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What a running try has received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) image: ImageName,
    pub(super) attempt: u64,
    pub(super) movement: Movement,
}

/// Tries an image once. Ends when the pull ends, or when nothing has moved for `stall`.
///
/// # Cancel safety
/// Dropping the future stops the pull; see [`ImageRuntime::pull`].
pub(super) async fn attempt<R: ImageRuntime>(
    runtime: &R,
    image: ImageName,
    attempt: u64,
    stall: Duration,
    moved: mpsc::Sender<Moved>,
) -> Ended {
    let before = prove(runtime, &image).await;
    // A digest cannot move: what is here is what the registry would say.
    let failure = if image.has_digest() && before.digest().is_some() {
        None
    } else {
        pull(runtime, &image, attempt, stall, moved).await.err()
    };
    let after = prove(runtime, &image).await;
    Ended {
        image,
        attempt,
        failure,
        before,
        after,
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
        // The pull goes on in containerd while it is looked at. No answer is no movement.
        if let Ok(movement) = runtime.movement(image).await {
            if movement.mark != last.mark {
                deadline = Instant::now() + stall;
            }
            last = movement;
            // A full channel only means that the planner has not read the last numbers yet.
            let _ = moved.try_send(Moved {
                image: image.clone(),
                attempt,
                movement,
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
