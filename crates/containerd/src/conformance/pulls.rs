//! Pulls: what they bring, how they fail, and what moves meanwhile.

use trylatest_core::image::ImageName;
use trylatest_core::outcome::FailureClass;

use super::{
    Fault, Harness, LOOK_EVERY, PATIENCE, Verdict, ensure, is_usable, local, pull, said, until,
};
use crate::runtime::{ImageRuntime, Local};

/// What containerd writes of a layer at a time.
const STEP_BYTES: u64 = 1 << 20;

/// How many looks in a row prove that nothing moves.
const STILL_LOOKS: u32 = 10;

pub(super) async fn a_pull_brings_a_usable_copy<H: Harness>(h: &H) -> Verdict {
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

pub(super) async fn a_pull_follows_a_moved_tag<H: Harness>(h: &H) -> Verdict {
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

pub(super) async fn a_failed_pull_says_why_and_leaves_the_copy<H: Harness>(h: &H) -> Verdict {
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

pub(super) async fn a_missing_tag_is_not_found<H: Harness>(h: &H) -> Verdict {
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

pub(super) async fn a_silent_registry_moves_nothing<H: Harness>(h: &H) -> Verdict {
    let image = h.image("silent", "latest");
    let first = h.push(&image, 1).await;
    pull(h, &image).await?;
    let second = h.push(&image, 2).await;
    h.fault(&image, Some(Fault::NeverAnswers)).await;
    during_a_pull(h, &image, stands_still(h, &image, 0)).await?;
    h.fault(&image, None).await;
    is_usable(h, &image, &first).await?;
    pull(h, &image).await?;
    is_usable(h, &image, &second).await
}

pub(super) async fn a_download_moves<H: Harness>(h: &H) -> Verdict {
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
            // Dropping a look half-way loses nothing.
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

pub(super) async fn a_stalled_download_stands_still<H: Harness>(h: &H) -> Verdict {
    let image = h.image("stalled", "latest");
    let digest = h.push(&image, 1).await;
    h.fault(&image, Some(Fault::StalledBlob)).await;
    during_a_pull(h, &image, async {
        received(h, &image).await?;
        stands_still(h, &image, 1).await
    })
    .await?;
    h.fault(&image, None).await;
    pull(h, &image).await?;
    is_usable(h, &image, &digest).await
}

pub(super) async fn what_is_left_over_does_not_flow<H: Harness>(h: &H) -> Verdict {
    let image = h.image("left-over", "latest");
    let digest = h.push(&image, 1).await;
    h.fault(&image, Some(Fault::StalledBlob)).await;
    during_a_pull(h, &image, received(h, &image)).await?;
    // containerd 1.6 writes down what it has got when the pull is dropped.
    stands_still(h, &image, 0).await?;
    h.fault(&image, Some(Fault::NeverAnswers)).await;
    during_a_pull(h, &image, async {
        for _ in 0..STILL_LOOKS {
            let seen = h.runtime().movement(&image).await.map_err(said)?;
            ensure(!seen.flows, &format!("nothing has come: {seen:?}"))?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    })
    .await?;
    h.fault(&image, None).await;
    pull(h, &image).await?;
    is_usable(h, &image, &digest).await
}

pub(super) async fn another_images_download_is_not_ours<H: Harness>(h: &H) -> Verdict {
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

pub(super) async fn a_hollow_copy_is_unusable_until_pulled_again<H: Harness>(h: &H) -> Verdict {
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

/// Watches a pull, and drops it. Its end is a failure of the case.
async fn during_a_pull<H: Harness>(
    h: &H,
    image: &ImageName,
    watch: impl Future<Output = Verdict>,
) -> Verdict {
    tokio::select! {
        // Dropping either stops it.
        ended = h.runtime().pull(image) => Err(format!("the pull ended: {ended:?}")),
        seen = watch => seen,
    }
}

/// Waits until some of a layer has come in for a running pull. A configuration is not enough: for a
/// moment while it is committed, containerd has it nowhere.
async fn received<H: Harness>(h: &H, image: &ImageName) -> Verdict {
    until("bytes come in", || async {
        let seen = h.runtime().movement(image).await.map_err(said)?;
        Ok(seen.bytes >= STEP_BYTES && seen.total_bytes.is_some())
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
