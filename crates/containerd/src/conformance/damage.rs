//! What the disk has lost and containerd still lists: it is noticed, and mended.

use super::{Harness, Loss, Verdict, ensure, is_usable, local, pull, said};
use crate::runtime::{ImageRuntime, Local, Mended};

pub(super) async fn what_is_whole_is_left_alone<H: Harness>(h: &H) -> Verdict {
    let image = h.image("whole", "latest");
    let digest = h.push_sharing(&image, 1).await;
    let nothing = h.runtime().mend(&image).await.map_err(said)?;
    ensure(nothing == Mended::default(), &format!("{nothing:?}"))?;
    pull(h, &image).await?;
    let nothing = h.runtime().mend(&image).await.map_err(said)?;
    ensure(nothing == Mended::default(), &format!("{nothing:?}"))?;
    is_usable(h, &image, &digest).await
}

pub(super) async fn a_lost_unpacked_layer_is_mended<H: Harness>(h: &H) -> Verdict {
    let image = h.image("lost-unpacked", "latest");
    let digest = h.push_sharing(&image, 1).await;
    pull(h, &image).await?;
    // Nothing has looked at it before: a look counts for a second.
    h.lose(&image, Loss::Unpacked).await;
    // containerd fetches nothing that it lists.
    pull(h, &image).await?;
    let listed = h.runtime().listed(&image).await.map_err(said)?;
    ensure(matches!(listed, Local::Usable(_)), "the database lists it")?;
    is_unusable(h, &image).await?;
    let mended = h.runtime().mend(&image).await.map_err(said)?;
    ensure(mended.removed.len() == 1, &format!("{mended:?}"))?;
    ensure(mended.kept.is_empty(), &format!("{mended:?}"))?;
    // Its layers are here.
    is_usable(h, &image, &digest).await?;
    pull(h, &image).await?;
    is_usable(h, &image, &digest).await
}

pub(super) async fn what_was_cut_off_keeps_nothing<H: Harness>(h: &H) -> Verdict {
    for (repository, loss) in [
        ("lost-under-look", Loss::UnpackedUnderLook),
        ("lost-under-unpacking", Loss::UnpackedUnderUnpacking),
    ] {
        let image = h.image(repository, "latest");
        h.push_sharing(&image, 1).await;
        pull(h, &image).await?;
        h.lose(&image, loss).await;
        let mended = h.runtime().mend(&image).await.map_err(said)?;
        ensure(mended.removed.len() == 1, &format!("{mended:?}"))?;
        ensure(mended.kept.is_empty(), &format!("{mended:?}"))?;
    }
    Ok(())
}

pub(super) async fn a_lost_layer_in_use_is_kept<H: Harness>(h: &H) -> Verdict {
    let image = h.image("lost-in-use", "latest");
    h.push_sharing(&image, 1).await;
    pull(h, &image).await?;
    h.lose(&image, Loss::UnpackedInUse).await;
    let mended = h.runtime().mend(&image).await.map_err(said)?;
    ensure(mended.removed.is_empty(), &format!("{mended:?}"))?;
    ensure(mended.kept.len() == 1, &format!("{mended:?}"))?;
    is_unusable(h, &image).await
}

pub(super) async fn a_lost_shared_layer_is_mended<H: Harness>(h: &H) -> Verdict {
    shared(h, "lost-shared", Loss::SharedLayer).await
}

pub(super) async fn a_shared_layer_without_bytes_is_mended<H: Harness>(h: &H) -> Verdict {
    shared(h, "emptied-shared", Loss::SharedLayersBytes).await
}

async fn shared<H: Harness>(h: &H, repository: &str, loss: Loss) -> Verdict {
    let image = h.image(repository, "latest");
    let first = h.push_sharing(&image, 1).await;
    pull(h, &image).await?;
    h.lose(&image, loss).await;
    let second = h.push_sharing(&image, 2).await;
    let failed = pull(h, &image).await;
    ensure(failed.is_err(), "a pull without the layer went well")?;
    is_usable(h, &image, &first).await?;
    let mended = h.runtime().mend(&image).await.map_err(said)?;
    ensure(mended.removed.len() == 1, &format!("{mended:?}"))?;
    pull(h, &image).await?;
    is_usable(h, &image, &second).await
}

async fn is_unusable<H: Harness>(h: &H, image: &trylatest_core::image::ImageName) -> Verdict {
    match local(h, image).await? {
        Local::Unusable { why } => ensure(!why.is_empty(), "it says why"),
        other => Err(format!("{other:?} after the disk has lost some of it")),
    }
}
