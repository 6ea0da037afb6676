//! Copies that are kept for the next outage.

use jiff::Timestamp;
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::keep::KeptCopy;
use trylatest_core::record::RolledBack;

use super::{Harness, Verdict, ensure, is_usable, local, pull, said, until};
use crate::alias;
use crate::runtime::{ImageRuntime, Local, Over, RuntimeError};

pub(super) async fn a_copy_is_kept_and_says_what_is_known<H: Harness>(h: &H) -> Verdict {
    let image = h.image("kept-copy", "latest");
    let digest = h.push(&image, 1).await;
    let mut copy = copy(&image, &digest, 1)?;
    let kept = h.runtime().keep_copy(&copy).await;
    ensure(
        matches!(kept, Err(RuntimeError::NotFound { .. })),
        &format!("there is nothing to keep: {kept:?}"),
    )?;
    pull(h, &image).await?;
    keep(h, &copy).await?;
    is_kept(h, &image, &[&copy]).await?;
    (copy.pinned, copy.proven, copy.public) = (false, true, false);
    copy.used = Timestamp::from_second(2_000).map_err(said)?;
    keep(h, &copy).await?;
    is_kept(h, &image, &[&copy]).await?;
    copy.pinned = true;
    keep(h, &copy).await?;
    is_kept(h, &image, &[&copy]).await?;
    forget(h, &copy).await?;
    is_kept(h, &image, &[]).await?;
    is_usable(h, &image, &digest).await
}

pub(super) async fn a_kept_copy_survives_its_names<H: Harness>(h: &H) -> Verdict {
    let image = h.image("kept-names", "latest");
    let one = h.push(&image, 1).await;
    pull(h, &image).await?;
    let before = copy(&image, &one, 1)?;
    keep(h, &before).await?;
    let two = h.push(&image, 2).await;
    pull(h, &image).await?;
    let newest = copy(&image, &two, 2)?;
    keep(h, &newest).await?;
    is_kept(h, &image, &[&before, &newest]).await?;
    let restored = || async { h.runtime().restore_kept(&image).await.map_err(said) };
    ensure(!restored().await?, "the name is there")?;
    remove_all_names(h, &image, &[&one, &two]).await?;
    ensure(restored().await?, "the name was gone")?;
    is_usable(h, &image, &two).await?;
    forget(h, &newest).await?;
    // The copy before it is written again from its alias alone.
    keep(h, &before).await?;
    remove_all_names(h, &image, &[&two]).await?;
    ensure(restored().await?, "the name was gone again")?;
    is_usable(h, &image, &one).await?;
    forget(h, &before).await
}

pub(super) async fn a_private_copy_gets_no_name_back<H: Harness>(h: &H) -> Verdict {
    let image = h.image("kept-private", "latest");
    let digest = h.push(&image, 1).await;
    pull(h, &image).await?;
    let private = KeptCopy {
        public: false,
        ..copy(&image, &digest, 1)?
    };
    keep(h, &private).await?;
    remove_all_names(h, &image, &[&digest]).await?;
    let restored = h.runtime().restore_kept(&image).await.map_err(said)?;
    ensure(!restored, "nobody knows whose it is")?;
    ensure(local(h, &image).await? == Local::Absent, "it stays away")?;
    forget(h, &private).await
}

pub(super) async fn a_rollback_is_written_down<H: Harness>(h: &H) -> Verdict {
    let image = h.image("rolled-back", "latest");
    let one = h.push(&image, 1).await;
    pull(h, &image).await?;
    let before = copy(&image, &one, 1)?;
    keep(h, &before).await?;
    let two = h.push(&image, 2).await;
    pull(h, &image).await?;
    points_to(h, &image, Some(&two)).await?;
    let mut back = RolledBack {
        time: Timestamp::from_second(3_000).map_err(said)?,
        from: two.parse().ok(),
        to: two.parse().map_err(said)?,
    };
    let mark = async |back: &RolledBack| h.runtime().mark_rolled_back(&image, back).await;
    let unknown = mark(&back).await;
    ensure(
        matches!(unknown, Err(RuntimeError::NotFound { .. })),
        &format!("that copy is not kept: {unknown:?}"),
    )?;
    back.to = one.parse().map_err(said)?;
    mark(&back).await.map_err(said)?;
    is_marked(h, &image, Some(&back)).await?;
    points_to(h, &image, Some(&two)).await?;
    let alias = alias::copy(&before);
    let pointed = h.runtime().point(&image, &alias, Over::Anything).await;
    pointed.map_err(said)?;
    points_to(h, &image, Some(&one)).await?;
    // Of another rollback, nothing stays.
    let again = RolledBack {
        time: Timestamp::from_second(4_000).map_err(said)?,
        from: None,
        ..back
    };
    mark(&again).await.map_err(said)?;
    is_marked(h, &image, Some(&again)).await?;
    h.remove(&image).await;
    points_to(h, &image, None).await?;
    let forgotten = h.runtime().forget(&alias::rolled_back(&image)).await;
    forgotten.map_err(said)?;
    is_marked(h, &image, None).await?;
    forget(h, &before).await
}

async fn is_marked<H: Harness>(h: &H, image: &ImageName, expected: Option<&RolledBack>) -> Verdict {
    let marked = h.runtime().rolled_back().await.map_err(said)?;
    let found = marked.get(image);
    ensure(
        found == expected,
        &format!("{found:?} is written down, not {expected:?}"),
    )
}

async fn points_to<H: Harness>(h: &H, image: &ImageName, expected: Option<&str>) -> Verdict {
    let other = h.image("rolled-back-absent", "latest");
    let asked = [image.clone(), other].into();
    let pointed = h.runtime().pointed(&asked).await.map_err(said)?;
    let found = pointed.get(image).map(Digest::as_str);
    let digests = h.runtime().digests(image).await.map_err(said)?;
    let digests: Vec<&str> = digests.iter().map(Digest::as_str).collect();
    ensure(
        found.is_none() || digests.contains(&found.unwrap_or_default()),
        &format!("{image} has the digests {digests:?}"),
    )?;
    let others = pointed.len() - usize::from(found.is_some());
    ensure(others == 0, &format!("{pointed:?} is more than was asked"))?;
    ensure(
        found == expected,
        &format!("{image} points to {found:?}, not {expected:?}"),
    )
}

fn copy(image: &ImageName, digest: &str, since: i64) -> Result<KeptCopy, String> {
    let time = |second| Timestamp::from_second(second).map_err(said);
    Ok(KeptCopy {
        image: image.clone(),
        digest: digest.parse().map_err(said)?,
        size_bytes: 5 << 20,
        since: time(since)?,
        used: time(1_000)?,
        proven: false,
        public: true,
        pinned: true,
    })
}

async fn keep<H: Harness>(h: &H, copy: &KeptCopy) -> Verdict {
    h.runtime().keep_copy(copy).await.map_err(said)
}

async fn forget<H: Harness>(h: &H, copy: &KeptCopy) -> Verdict {
    let alias = alias::copy(copy);
    h.runtime().forget(&alias).await.map_err(said)
}

/// Whether these copies of the image are kept, and no others.
async fn is_kept<H: Harness>(h: &H, image: &ImageName, expected: &[&KeptCopy]) -> Verdict {
    let mut kept = h.runtime().kept_copies().await.map_err(said)?;
    kept.retain(|copy| copy.image == *image);
    kept.sort_by_key(|copy| copy.since);
    let same = kept.iter().eq(expected.iter().copied());
    ensure(same, &format!("{kept:?} are kept, not {expected:?}"))?;
    let listed = h.runtime().images().await.map_err(said)?;
    let leaks = listed
        .iter()
        .any(|listed| listed.image.as_str().contains("copy/"));
    ensure(!leaks, "the alias is not listed")
}

async fn remove_all_names<H: Harness>(h: &H, image: &ImageName, digests: &[&str]) -> Verdict {
    h.remove(image).await;
    for digest in digests {
        let by_digest = format!("{}@{digest}", image.repository());
        h.remove(&by_digest.parse().map_err(said)?).await;
    }
    until("the name is gone", || async {
        Ok(local(h, image).await? == Local::Absent)
    })
    .await
}
