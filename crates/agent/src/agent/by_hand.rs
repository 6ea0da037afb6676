//! Pulls by hand, as commands on this node report them: believed as far as the node shows that they are true.
//!
//! What the registry has said, the agent cannot see; whoever may open the socket is root, and could as well write to
//! the index. That the image's name points to what was pulled it looks up: no report makes it lie about a copy.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::timeout;
use trylatest_containerd::ImageRuntime;
use trylatest_core::plan::Event;
use trylatest_core::record::Try;
use trylatest_core::verdict::CachedCopy;

use super::attempt::copy;

/// For the look at the copy.
const LOOK: Duration = Duration::from_secs(2);

/// A pull by hand, and where it goes what becomes of the report.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) tried: Try,
    pub(super) answer: oneshot::Sender<Result<(), NotBelieved>>,
}

/// Why a report changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotBelieved {
    /// A pull that has failed says nothing that the agent's own tries do not find out, under its own rules.
    #[error("only a pull that succeeded without credentials counts")]
    NoConfirmation,
    /// As if a clock had been set back since.
    #[error("by this node's clock, the pull ends in the future")]
    Ahead,
    /// Somebody has moved the name since, or taken it away.
    #[error("the image's name does not point to what was pulled, but to {now}")]
    Moved {
        /// The digest, or that there is none.
        now: String,
    },
    /// containerd does not say so.
    #[error("it is not known what the image's name points to: {why}")]
    Unknown {
        /// Why not.
        why: String,
    },
}

/// What the planner is to hear of it.
///
/// # Errors
/// It is not, and why.
pub(super) async fn check<R: ImageRuntime>(
    runtime: &R,
    reported: Try,
    now: Timestamp,
) -> Result<Event, NotBelieved> {
    let confirmed = reported.confirmation().map(|confirmed| confirmed.digest);
    let is_anonymous = reported.pulled_for.is_none() && !reported.refused;
    let Some(confirmed) = confirmed.filter(|_| is_anonymous) else {
        return Err(NotBelieved::NoConfirmation);
    };
    if reported.ended() > now {
        return Err(NotBelieved::Ahead);
    }
    let image = &reported.image;
    let look = async { futures::join!(runtime.listed(image), runtime.digests(image)) };
    let Ok((listed, digests)) = timeout(LOOK, look).await else {
        let why = format!("containerd did not answer within {LOOK:?}");
        return Err(NotBelieved::Unknown { why });
    };
    let moved = |now: &str| NotBelieved::Moved {
        now: now.to_owned(),
    };
    let size_bytes = match copy(listed) {
        CachedCopy::Usable { digest, size_bytes } if digest == confirmed => size_bytes,
        CachedCopy::Usable { digest, .. } => return Err(moved(digest.as_str())),
        CachedCopy::Absent => return Err(moved("nothing")),
        CachedCopy::Unusable { .. } => return Err(moved("what no container can start from")),
        CachedCopy::Unknown { why } => return Err(NotBelieved::Unknown { why }),
    };
    let tried = Try {
        size_bytes: Some(size_bytes),
        copy_unknown: false,
        by_hand: true,
        ..reported
    };
    Ok(Event::TriedByHand {
        tried: Box::new(tried),
        // As after a try of the agent.
        digests: digests.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;
