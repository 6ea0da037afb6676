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

pub(super) async fn damaged_files_are_unpacked_again<H: Harness>(h: &H) -> Verdict {
    let image = h.image("damaged-files", "latest");
    let digest = h.push_sharing(&image, 1).await;
    pull(h, &image).await?;
    ensure(h.is_intact(&image).await, "it was just unpacked")?;
    h.lose(&image, Loss::Files).await;
    ensure(!h.is_intact(&image).await, "its files are damaged")?;
    // Neither a pull nor a proof can see it.
    pull(h, &image).await?;
    is_usable(h, &image, &digest).await?;
    let verified = h.runtime().verify(&image, &|_, _| {}).await.map_err(said)?;
    ensure(verified.spoiled.is_empty(), &format!("{verified:?}"))?;
    ensure(verified.bytes > 0, "its layers have a size")?;
    let users = h.runtime().users(&image).await.map_err(said)?;
    ensure(users.is_none(), &format!("{users:?} use it"))?;
    let discarded = h.runtime().discard(&image, &[]).await.map_err(said)?;
    ensure(discarded.removed > 0, &format!("{discarded:?}"))?;
    ensure(discarded.kept == 0, &format!("{discarded:?}"))?;
    // It can be unpacked from its layers, whether or not there is a registry.
    is_usable(h, &image, &digest).await?;
    pull(h, &image).await?;
    is_usable(h, &image, &digest).await?;
    ensure(h.is_intact(&image).await, "its files are as they were")
}

pub(super) async fn damaged_files_in_use_are_left_alone<H: Harness>(h: &H) -> Verdict {
    let image = h.image("damaged-in-use", "latest");
    let digest = h.push_sharing(&image, 1).await;
    pull(h, &image).await?;
    h.lose(&image, Loss::FilesInUse).await;
    let users = h.runtime().users(&image).await.map_err(said)?;
    let named = users.as_ref().map_or(0, |users| users.names.len());
    ensure(named == 1, &format!("{users:?} use it"))?;
    let discarded = h.runtime().discard(&image, &[]).await.map_err(said)?;
    ensure(discarded.is_in_use(), &format!("{discarded:?}"))?;
    ensure(discarded.users.names.len() == 1, &format!("{discarded:?}"))?;
    is_usable(h, &image, &digest).await
}

pub(super) async fn a_spoiled_layer_is_noticed_and_fetched_again<H: Harness>(h: &H) -> Verdict {
    for (repository, loss) in [
        ("verified-lost", Loss::SharedLayer),
        ("verified-emptied", Loss::SharedLayersBytes),
    ] {
        let image = h.image(repository, "latest");
        let digest = h.push_sharing(&image, 1).await;
        pull(h, &image).await?;
        h.lose(&image, loss).await;
        is_usable(h, &image, &digest).await?;
        let verified = h.runtime().verify(&image, &|_, _| {}).await.map_err(said)?;
        let spoiled = verified.spoiled;
        ensure(spoiled.len() == 1, &format!("{spoiled:?}"))?;
        ensure(spoiled[0].digest.is_some(), &format!("{spoiled:?}"))?;
        let discarded = h.runtime().discard(&image, &spoiled).await.map_err(said)?;
        ensure(discarded.removed > 0, &format!("{discarded:?}"))?;
        is_unusable(h, &image).await?;
        pull(h, &image).await?;
        is_usable(h, &image, &digest).await?;
        let verified = h.runtime().verify(&image, &|_, _| {}).await.map_err(said)?;
        ensure(verified.spoiled.is_empty(), &format!("{verified:?}"))?;
    }
    Ok(())
}

async fn is_unusable<H: Harness>(h: &H, image: &trylatest_core::image::ImageName) -> Verdict {
    match local(h, image).await? {
        Local::Unusable { why } => ensure(!why.is_empty(), "it says why"),
        other => Err(format!("{other:?} after the disk has lost some of it")),
    }
}
