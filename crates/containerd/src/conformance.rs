//! What every runtime must do, the fake one and containerd itself: one suite for both.
//!
//! A [`Harness`] brings the runtime and the registry that it pulls from; [`cases`] lists the suite.
//! Cases share a harness: each uses repositories of its own.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use trylatest_core::image::ImageName;
use trylatest_core::outcome::FailureClass;

use crate::alias;
use crate::runtime::{ImageChange, ImageRuntime, Local, Pin, RuntimeError};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many looks in a row prove that nothing moves.
const STILL_LOOKS: u32 = 10;

/// A way in which the registry fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It takes connections and resets them.
    HangsUp,
    /// It accepts connections and never answers.
    NeverAnswers,
    /// It answers everything with this status.
    Status(u16),
    /// It sends half of each layer and then nothing more.
    StalledBlob,
    /// It sends each layer little by little, over a few seconds.
    SlowBlob,
    /// It sends layers with wrong bytes in them.
    CorruptBlob,
    /// It answers everything with 200 and an HTML page, as captive portals do.
    HtmlPage,
}

/// A runtime under test, with its registry.
pub trait Harness: Send + Sync {
    /// The runtime.
    type Runtime: ImageRuntime;

    /// The runtime under test.
    fn runtime(&self) -> &Self::Runtime;

    /// The name of a repository's tag in the harness's registry. Repositories do not share faults.
    fn image(&self, repository: &str, tag: &str) -> ImageName;

    /// Makes the tag point to an image with a layer of 4 MiB or more, and returns its digest.
    ///
    /// Each repository and `version` has a layer of its own: what a node has it does not fetch
    /// again. The size is for containerd's downloads, which are seen to move in steps of 1 MiB.
    fn push(&self, image: &ImageName, version: u32) -> impl Future<Output = String> + Send;

    /// Lets the image's repository fail from now on, or work again.
    fn fault(&self, image: &ImageName, fault: Option<Fault>) -> impl Future<Output = ()> + Send;

    /// Removes the image's name from the node, and no other name.
    fn remove(&self, image: &ImageName) -> impl Future<Output = ()> + Send;

    /// Takes away the image's content and snapshots behind the runtime's back; its name stays.
    fn hollow(&self, image: &ImageName) -> impl Future<Output = ()> + Send;

    /// Stops the runtime and starts it again.
    fn restart(&self) -> impl Future<Output = ()> + Send;
}

/// How a case went: what was not as it must be.
pub type Verdict = Result<(), String>;

/// One case of the suite.
pub struct Case<H> {
    /// Its name.
    pub name: &'static str,
    /// Runs it.
    pub run: for<'a> fn(&'a H) -> BoxFuture<'a, Verdict>,
}

/// The suite. The last case restarts the runtime: run it when no other runs.
pub fn cases<H: Harness>() -> Vec<Case<H>> {
    macro_rules! cases {
        ($($name:ident),* $(,)?) => {
            vec![$(Case { name: stringify!($name), run: |harness| $name(harness).boxed() }),*]
        };
    }
    cases![
        a_pull_brings_a_usable_copy,
        a_pull_follows_a_moved_tag,
        a_failed_pull_says_why_and_leaves_the_copy,
        a_missing_tag_is_not_found,
        a_silent_registry_moves_nothing,
        a_download_moves,
        a_stalled_download_stands_still,
        another_images_download_is_not_ours,
        a_hollow_copy_is_unusable_until_pulled_again,
        an_alias_keeps_and_restores,
        an_alias_follows_a_moved_tag,
        an_alias_undoes_what_a_captive_portal_did,
        an_alias_that_cannot_be_is_refused,
        a_forgotten_alias_keeps_nothing,
        changes_of_names_are_told,
        a_restart_ends_events_and_nothing_else,
    ]
}

async fn a_pull_brings_a_usable_copy<H: Harness>(h: &H) -> Verdict {
    let image = h.image("usable", "latest");
    let digest = h.push(&image, 1).await;
    ensure(local(h, &image).await? == Local::Absent, "absent at first")?;
    pull(h, &image).await?;
    is_usable(h, &image, &digest).await?;
    let listed = h.runtime().images().await.map_err(said)?;
    let found = listed.iter().find(|listed| listed.image == image);
    let found = found.ok_or("it is not listed")?;
    ensure(found.digest == digest, "it is listed with its digest")?;
    ensure(found.size_bytes > 0, "it has a size")?;
    let version = h.runtime().version().await.map_err(said)?;
    ensure(!version.name.is_empty(), "the runtime has a name")
}

async fn a_pull_follows_a_moved_tag<H: Harness>(h: &H) -> Verdict {
    let image = h.image("moved", "latest");
    let first = h.push(&image, 1).await;
    pull(h, &image).await?;
    pull(h, &image).await?;
    is_usable(h, &image, &first).await?;
    let second = h.push(&image, 2).await;
    ensure(first != second, "the harness pushes different images")?;
    is_usable(h, &image, &first).await?;
    pull(h, &image).await?;
    is_usable(h, &image, &second).await
}

async fn a_failed_pull_says_why_and_leaves_the_copy<H: Harness>(h: &H) -> Verdict {
    for (repository, fault, expected) in [
        ("hangs-up", Fault::HangsUp, FailureClass::Network),
        ("status-500", Fault::Status(500), FailureClass::ServerError),
        ("status-503", Fault::Status(503), FailureClass::ServerError),
        ("status-429", Fault::Status(429), FailureClass::RateLimited),
        ("status-401", Fault::Status(401), FailureClass::Unauthorized),
        ("status-403", Fault::Status(403), FailureClass::Unauthorized),
        ("status-404", Fault::Status(404), FailureClass::NotFound),
        ("corrupt", Fault::CorruptBlob, FailureClass::Invalid),
    ] {
        let image = h.image(repository, "latest");
        let digest = h.push(&image, 1).await;
        pull(h, &image).await?;
        h.push(&image, 2).await;
        h.fault(&image, Some(fault)).await;
        let failed = h.runtime().pull(&image).await;
        h.fault(&image, None).await;
        let failure = match failed {
            Ok(()) => return Err(format!("{fault:?}: the pull went well")),
            Err(error) => error.failure(),
        };
        let class = failure.class;
        ensure(
            class == expected,
            &format!("{fault:?} is {expected}, not {class}: {}", failure.message),
        )?;
        is_usable(h, &image, &digest).await?;
    }
    Ok(())
}

async fn a_missing_tag_is_not_found<H: Harness>(h: &H) -> Verdict {
    let pushed = h.image("missing", "latest");
    h.push(&pushed, 1).await;
    let image = h.image("missing", "never-pushed");
    match h.runtime().pull(&image).await {
        Ok(()) => Err("a tag that is not there was pulled".to_owned()),
        Err(error) => {
            let class = error.failure().class;
            ensure(class == FailureClass::NotFound, &format!("{error}"))?;
            ensure(local(h, &image).await? == Local::Absent, "still absent")
        }
    }
}

async fn a_silent_registry_moves_nothing<H: Harness>(h: &H) -> Verdict {
    let image = h.image("silent", "latest");
    let first = h.push(&image, 1).await;
    pull(h, &image).await?;
    let second = h.push(&image, 2).await;
    h.fault(&image, Some(Fault::NeverAnswers)).await;
    {
        let pull = h.runtime().pull(&image);
        tokio::pin!(pull);
        let watch = stands_still(h, &image, 0);
        tokio::select! {
            // Dropping either stops it; the pull's end here is a failure of the case.
            ended = &mut pull => return Err(format!("the pull ended: {ended:?}")),
            still = watch => still?,
        }
    }
    h.fault(&image, None).await;
    is_usable(h, &image, &first).await?;
    pull(h, &image).await?;
    is_usable(h, &image, &second).await
}

async fn a_download_moves<H: Harness>(h: &H) -> Verdict {
    let image = h.image("slow", "latest");
    let digest = h.push(&image, 1).await;
    h.fault(&image, Some(Fault::SlowBlob)).await;
    let mut marks = Vec::new();
    let mut most = 0;
    let mut total = None;
    let mut flows = false;
    let pull = h.runtime().pull(&image);
    tokio::pin!(pull);
    loop {
        tokio::select! {
            // A look that is dropped half-way is no loss.
            ended = &mut pull => break ended.map_err(said)?,
            seen = async {
                tokio::time::sleep(LOOK_EVERY).await;
                h.runtime().movement(&image).await
            } => {
                let seen = seen.map_err(said)?;
                marks.push(seen.mark);
                most = most.max(seen.bytes);
                flows |= seen.flows;
                total = seen.total_bytes.or(total);
            }
        }
    }
    h.fault(&image, None).await;
    marks.dedup();
    ensure(
        marks.len() >= 4,
        &format!("it moved more than {} times", marks.len()),
    )?;
    ensure(most > 0, "bytes were counted")?;
    ensure(flows, "they came during this pull")?;
    ensure(
        total.is_some_and(|total| most <= total),
        "their sum was known",
    )?;
    is_usable(h, &image, &digest).await
}

async fn a_stalled_download_stands_still<H: Harness>(h: &H) -> Verdict {
    let image = h.image("stalled", "latest");
    let digest = h.push(&image, 1).await;
    h.fault(&image, Some(Fault::StalledBlob)).await;
    {
        let pull = h.runtime().pull(&image);
        tokio::pin!(pull);
        let watch = async {
            received(h, &image).await?;
            stands_still(h, &image, 1).await
        };
        tokio::select! {
            // Dropping either stops it; the pull's end here is a failure of the case.
            ended = &mut pull => return Err(format!("the pull ended: {ended:?}")),
            still = watch => still?,
        }
    }
    h.fault(&image, None).await;
    pull(h, &image).await?;
    is_usable(h, &image, &digest).await
}

async fn another_images_download_is_not_ours<H: Harness>(h: &H) -> Verdict {
    let (ours, other) = (h.image("ours", "latest"), h.image("other", "latest"));
    h.push(&ours, 1).await;
    h.push(&other, 1).await;
    h.fault(&ours, Some(Fault::StalledBlob)).await;
    h.fault(&other, Some(Fault::SlowBlob)).await;
    {
        let pulls = futures::future::join(h.runtime().pull(&ours), async {
            // Kept going for as long as the case looks: one download may end too soon.
            let pulled = h.runtime().pull(&other).await;
            std::future::pending::<()>().await;
            pulled
        });
        tokio::pin!(pulls);
        let watch = async {
            received(h, &ours).await?;
            received(h, &other).await?;
            stands_still(h, &ours, 1).await
        };
        tokio::select! {
            // Dropping either stops it; the pulls never end together.
            ended = &mut pulls => return Err(format!("the pulls ended: {ended:?}")),
            still = watch => still?,
        }
    }
    h.fault(&ours, None).await;
    h.fault(&other, None).await;
    Ok(())
}

async fn a_hollow_copy_is_unusable_until_pulled_again<H: Harness>(h: &H) -> Verdict {
    let image = h.image("hollow", "latest");
    let digest = h.push(&image, 1).await;
    pull(h, &image).await?;
    h.hollow(&image).await;
    match local(h, &image).await? {
        Local::Unusable { why } => ensure(!why.is_empty(), "it says why")?,
        other => return Err(format!("{other:?} after its content is gone")),
    }
    pull(h, &image).await?;
    is_usable(h, &image, &digest).await
}

async fn an_alias_keeps_and_restores<H: Harness>(h: &H) -> Verdict {
    let alias = "TryLatest/keep/conformance-restore";
    let image = h.image("kept", "latest");
    let digest = h.push(&image, 1).await;
    pull(h, &image).await?;
    h.runtime()
        .keep(&image, alias, Pin::Pinned)
        .await
        .map_err(said)?;
    h.runtime()
        .keep(&image, alias, Pin::Pinned)
        .await
        .map_err(said)?;
    ensure(!restore(h, alias, &image).await?, "nothing to restore yet")?;
    h.remove(&image).await;
    until("the name is gone", || async {
        Ok(local(h, &image).await? == Local::Absent)
    })
    .await?;
    ensure(
        restore(h, alias, &image).await?,
        "the name had to be restored",
    )?;
    is_usable(h, &image, &digest).await?;
    ensure(!restore(h, alias, &image).await?, "restored once")?;
    let listed = h.runtime().images().await.map_err(said)?;
    let leaks = listed
        .iter()
        .any(|listed| listed.image.as_str().contains("keep/conformance"));
    ensure(!leaks, "the alias is not listed")
}

async fn an_alias_follows_a_moved_tag<H: Harness>(h: &H) -> Verdict {
    let alias = "TryLatest/keep/conformance-move";
    let image = h.image("kept-moved", "latest");
    h.push(&image, 1).await;
    pull(h, &image).await?;
    h.runtime()
        .keep(&image, alias, Pin::Pinned)
        .await
        .map_err(said)?;
    let second = h.push(&image, 2).await;
    pull(h, &image).await?;
    h.runtime()
        .keep(&image, alias, Pin::Pinned)
        .await
        .map_err(said)?;
    h.remove(&image).await;
    until("the name is gone", || async {
        Ok(local(h, &image).await? == Local::Absent)
    })
    .await?;
    restore(h, alias, &image).await?;
    is_usable(h, &image, &second).await
}

async fn an_alias_undoes_what_a_captive_portal_did<H: Harness>(h: &H) -> Verdict {
    let alias = "TryLatest/keep/conformance-portal";
    let image = h.image("portal", "latest");
    let digest = h.push(&image, 1).await;
    pull(h, &image).await?;
    h.runtime()
        .keep(&image, alias, Pin::Pinned)
        .await
        .map_err(said)?;
    h.fault(&image, Some(Fault::HtmlPage)).await;
    let failed = h.runtime().pull(&image).await;
    h.fault(&image, None).await;
    match failed {
        Ok(()) => return Err("a page was pulled".to_owned()),
        Err(error) => ensure(error.failure().class == FailureClass::Invalid, &said(error))?,
    }
    // The name may point to the page now.
    restore(h, alias, &image).await?;
    is_usable(h, &image, &digest).await?;
    pull(h, &image).await?;
    is_usable(h, &image, &digest).await
}

async fn a_forgotten_alias_keeps_nothing<H: Harness>(h: &H) -> Verdict {
    let image = h.image("forgotten", "latest");
    let alias = alias::of(&image);
    let digest = h.push(&image, 1).await;
    pull(h, &image).await?;
    h.runtime().forget(&alias).await.map_err(said)?;
    let kept = h.runtime().keep(&image, &alias, Pin::Unpinned).await;
    kept.map_err(said)?;
    h.runtime().forget(&alias).await.map_err(said)?;
    is_usable(h, &image, &digest).await?;
    h.remove(&image).await;
    let restored = h.runtime().restore(&alias, &image).await;
    ensure(is_not_found(&restored), &format!("restored: {restored:?}"))
}

async fn an_alias_that_cannot_be_is_refused<H: Harness>(h: &H) -> Verdict {
    let image = h.image("bad-alias", "latest");
    h.push(&image, 1).await;
    let absent = h
        .runtime()
        .keep(&image, "TryLatest/keep/nothing", Pin::Pinned)
        .await;
    ensure(
        is_not_found(&absent),
        &format!("an absent image: {absent:?}"),
    )?;
    pull(h, &image).await?;
    let leaky = h.runtime().keep(&image, "keep/leaky", Pin::Pinned).await;
    ensure(
        matches!(leaky, Err(RuntimeError::BadAlias { .. })),
        &format!("an alias that is an image's name: {leaky:?}"),
    )?;
    h.remove(&image).await;
    let nowhere = h.runtime().restore("TryLatest/keep/nothing", &image).await;
    ensure(
        is_not_found(&nowhere),
        &format!("an absent alias: {nowhere:?}"),
    )
}

async fn changes_of_names_are_told<H: Harness>(h: &H) -> Verdict {
    let image = h.image("told", "latest");
    h.push(&image, 1).await;
    let mut events = h.runtime().image_events().await.map_err(said)?;
    pull(h, &image).await?;
    h.remove(&image).await;
    let mut seen = Vec::new();
    let follow = async {
        while seen.last() != Some(&ImageChange::Deleted) {
            let event = events
                .next()
                .await
                .ok_or("the stream just ended")?
                .map_err(said)?;
            if event.name == image.as_str() {
                seen.push(event.change);
            }
        }
        Ok::<_, String>(())
    };
    let told = tokio::time::timeout(PATIENCE, follow).await;
    told.map_err(|_| "the removal was not told".to_owned())??;
    ensure(
        seen.first() == Some(&ImageChange::Created),
        &format!("told were {seen:?}"),
    )
}

async fn a_restart_ends_events_and_nothing_else<H: Harness>(h: &H) -> Verdict {
    let image = h.image("restarted", "latest");
    let digest = h.push(&image, 1).await;
    pull(h, &image).await?;
    let mut events = h.runtime().image_events().await.map_err(said)?;
    h.restart().await;
    let end = async {
        loop {
            match events.next().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => break Ok(()),
                None => break Err("the stream ended without an error".to_owned()),
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, end).await;
    ended.map_err(|_| "the stream did not end".to_owned())??;
    until("the runtime answers again", || async {
        match h.runtime().local(&image).await {
            Ok(Local::Usable(found)) => Ok(found.digest == digest),
            Ok(_) | Err(_) => Ok(false),
        }
    })
    .await?;
    pull(h, &image).await?;
    let again = h.runtime().image_events().await;
    ensure(again.is_ok(), "subscribing again works")
}

/// Waits until bytes have come in for a running pull.
async fn received<H: Harness>(h: &H, image: &ImageName) -> Verdict {
    until("bytes come in", || async {
        let seen = h.runtime().movement(image).await.map_err(said)?;
        Ok(seen.bytes > 0 && seen.total_bytes.is_some())
    })
    .await
}

/// Waits until the pull has stood still for a number of looks, with at least so many bytes.
async fn stands_still<H: Harness>(h: &H, image: &ImageName, least: u64) -> Verdict {
    let mut before = None;
    let mut looks = 0;
    let still = async {
        while looks < STILL_LOOKS {
            tokio::time::sleep(LOOK_EVERY).await;
            let seen = h.runtime().movement(image).await.map_err(said)?;
            ensure(seen.bytes >= least, "bytes are still counted")?;
            looks = if before == Some(seen.mark) {
                looks + 1
            } else {
                0
            };
            before = Some(seen.mark);
        }
        Ok(())
    };
    let waited = tokio::time::timeout(PATIENCE, still).await;
    waited.map_err(|_| "it never stood still".to_owned())?
}

async fn until<F>(what: &str, condition: impl Fn() -> F) -> Verdict
where
    F: Future<Output = Result<bool, String>>,
{
    let wait = async {
        while !condition().await? {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.map_err(|_| format!("not in time: {what}"))?
}

async fn pull<H: Harness>(h: &H, image: &ImageName) -> Verdict {
    let pulled = tokio::time::timeout(PATIENCE, h.runtime().pull(image)).await;
    pulled
        .map_err(|_| format!("the pull of {image} did not end"))?
        .map_err(said)
}

async fn local<H: Harness>(h: &H, image: &ImageName) -> Result<Local, String> {
    h.runtime().local(image).await.map_err(said)
}

async fn restore<H: Harness>(h: &H, alias: &str, image: &ImageName) -> Result<bool, String> {
    h.runtime().restore(alias, image).await.map_err(said)
}

async fn is_usable<H: Harness>(h: &H, image: &ImageName, digest: &str) -> Verdict {
    match local(h, image).await? {
        Local::Usable(found) if found.digest == digest && found.image == *image => Ok(()),
        other => Err(format!("{image} should be usable as {digest}: {other:?}")),
    }
}

fn is_not_found<T>(result: &Result<T, RuntimeError>) -> bool {
    matches!(result, Err(RuntimeError::NotFound { .. }))
}

fn ensure(holds: bool, what: &str) -> Verdict {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests;
