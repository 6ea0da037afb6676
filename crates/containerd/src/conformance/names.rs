//! Names of images: aliases that keep and restore them, and events about their changes.

use futures::StreamExt;
use trylatest_core::image::ImageName;
use trylatest_core::outcome::FailureClass;

use super::{Fault, Harness, PATIENCE, Verdict, ensure, is_usable, local, pull, said, until};
use crate::alias::{self, Journal};
use crate::runtime::{ImageChange, ImageRuntime, Local, Pin, RuntimeError};

/// Set by k3s on the images that it brings along, and by anybody else.
const FOREIGN: [(&str, &str); 2] = [
    ("io.cri-containerd.pinned", "pinned"),
    ("example.com/mine", "1"),
];

pub(super) async fn a_pull_leaves_labels<H: Harness>(h: &H) -> Verdict {
    let image = h.image("labels", "latest");
    let digest = h.push(&image, 1).await;
    pull(h, &image).await?;
    let by_digest = format!("{}@{digest}", image.repository());
    let names = [image.as_str(), by_digest.as_str()];
    for name in names {
        for (key, value) in FOREIGN {
            h.label(name, key, value).await;
        }
    }
    pull(h, &image).await?;
    for name in names {
        has_labels(h, name).await?;
    }
    // The pin was put on the name, not on what it pointed to.
    h.push(&image, 2).await;
    pull(h, &image).await?;
    has_labels(h, image.as_str()).await
}

pub(super) async fn a_try_that_was_cut_off_loses_no_label<H: Harness>(h: &H) -> Verdict {
    let image = h.image("labels-cut-off", "latest");
    let alias = alias::of(&image);
    let digest = h.push(&image, 1).await;
    pull(h, &image).await?;
    for (key, value) in FOREIGN {
        h.label(image.as_str(), key, value).await;
    }
    let keep = || h.runtime().keep(&image, &alias, Pin::Unpinned);
    keep().await.map_err(said)?;
    // The name, with its labels, is lost; what another pull brings has none.
    h.remove(&image).await;
    restore(h, &alias, &image).await?;
    has_labels(h, image.as_str()).await?;
    h.remove(&image).await;
    pull(h, &image).await?;
    has_labels(h, image.as_str()).await?;
    keep().await.map_err(said)?;
    // A pull that was dropped when it had moved the name.
    for (key, _) in FOREIGN {
        h.unlabel(image.as_str(), key).await;
        let left = h.labelled(image.as_str(), key).await;
        ensure(left.is_none(), &format!("{key}={left:?} is still there"))?;
    }
    let renamed = restore(h, &alias, &image).await?;
    ensure(!renamed, "the name was there")?;
    has_labels(h, image.as_str()).await?;
    h.runtime().forget(&alias).await.map_err(said)?;
    is_usable(h, &image, &digest).await
}

async fn has_labels<H: Harness>(h: &H, name: &str) -> Verdict {
    for (key, value) in FOREIGN {
        let found = h.labelled(name, key).await;
        ensure(
            found.as_deref() == Some(value),
            &format!("{name} has {key}={found:?}"),
        )?;
    }
    Ok(())
}

pub(super) async fn an_alias_keeps_and_restores<H: Harness>(h: &H) -> Verdict {
    let alias = "TryLatest,keep,conformance-restore";
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

pub(super) async fn a_name_that_is_set_aside_is_restored<H: Harness>(h: &H) -> Verdict {
    let image = h.image("aside", "latest");
    let alias = alias::aside(&image);
    let none = h.runtime().set_aside(&image, &alias).await.map_err(said)?;
    ensure(none.is_none(), "there was no such name")?;
    let digest = h.push(&image, 1).await;
    pull(h, &image).await?;
    for (key, value) in FOREIGN {
        h.label(image.as_str(), key, value).await;
    }
    set_aside(h, &image, &digest).await?;
    ensure(local(h, &image).await? == Local::Absent, "the name is away")?;
    let listed = aside(h, &image).await?;
    ensure(listed, "it is listed")?;
    its_digest_stays(h, &image).await?;
    ensure(restore(h, &alias, &image).await?, "the name was away")?;
    is_usable(h, &image, &digest).await?;
    has_labels(h, image.as_str()).await?;
    h.runtime().forget(&alias).await.map_err(said)?;
    ensure(!aside(h, &image).await?, "it is there")
}

/// The name by digest is another name.
async fn its_digest_stays<H: Harness>(h: &H, image: &ImageName) -> Verdict {
    let images = h.runtime().images().await.map_err(said)?;
    let others = images
        .iter()
        .filter(|other| other.image.repository() == image.repository() && other.image.has_digest());
    ensure(others.count() == 1, "its name by digest stays")
}

pub(super) async fn a_name_that_was_set_aside_and_pulled_stays<H: Harness>(h: &H) -> Verdict {
    let image = h.image("aside-pulled", "latest");
    let alias = alias::aside(&image);
    let one = h.push(&image, 1).await;
    pull(h, &image).await?;
    set_aside(h, &image, &one).await?;
    let two = h.push(&image, 2).await;
    pull(h, &image).await?;
    ensure(!restore(h, &alias, &image).await?, "somebody has pulled")?;
    h.runtime().forget(&alias).await.map_err(said)?;
    is_usable(h, &image, &two).await?;
    // And by its digest.
    let pinned: ImageName = format!("{}@{two}", image.repository())
        .parse()
        .map_err(said)?;
    let alias = alias::aside(&pinned);
    set_aside(h, &pinned, &two).await?;
    ensure(
        local(h, &pinned).await? == Local::Absent,
        "the digest is away",
    )?;
    is_usable(h, &image, &two).await?;
    ensure(restore(h, &alias, &pinned).await?, "the digest was away")?;
    h.runtime().forget(&alias).await.map_err(said)?;
    is_usable(h, &pinned, &two).await
}

async fn set_aside<H: Harness>(h: &H, image: &ImageName, digest: &str) -> Verdict {
    let alias = alias::aside(image);
    let taken = h.runtime().set_aside(image, &alias).await.map_err(said)?;
    let expected = Some(digest);
    ensure(
        taken.as_deref() == expected,
        &format!("{taken:?} was there"),
    )
}

async fn aside<H: Harness>(h: &H, image: &ImageName) -> Result<bool, String> {
    let all = h.runtime().journal(Journal::Aside).await.map_err(said)?;
    Ok(all.iter().any(|(_, other)| other == image))
}

pub(super) async fn an_alias_follows_a_moved_tag<H: Harness>(h: &H) -> Verdict {
    let alias = "TryLatest,keep,conformance-move";
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

pub(super) async fn an_alias_undoes_what_a_captive_portal_did<H: Harness>(h: &H) -> Verdict {
    let alias = "TryLatest,keep,conformance-portal";
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

pub(super) async fn a_forgotten_alias_keeps_nothing<H: Harness>(h: &H) -> Verdict {
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

pub(super) async fn an_alias_that_cannot_be_is_refused<H: Harness>(h: &H) -> Verdict {
    let image = h.image("bad-alias", "latest");
    h.push(&image, 1).await;
    let absent = h
        .runtime()
        .keep(&image, "TryLatest,keep,nothing", Pin::Pinned)
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
    let nowhere = h.runtime().restore("TryLatest,keep,nothing", &image).await;
    ensure(
        is_not_found(&nowhere),
        &format!("an absent alias: {nowhere:?}"),
    )
}

pub(super) async fn changes_of_names_are_told<H: Harness>(h: &H) -> Verdict {
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

pub(super) async fn a_restart_ends_events_and_nothing_else<H: Harness>(h: &H) -> Verdict {
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

async fn restore<H: Harness>(h: &H, alias: &str, image: &ImageName) -> Result<bool, String> {
    h.runtime().restore(alias, image).await.map_err(said)
}

fn is_not_found<T>(result: &Result<T, RuntimeError>) -> bool {
    matches!(result, Err(RuntimeError::NotFound { .. }))
}
