//! `trylatest repair`: unpacks an image's copy again, for damage that a proof cannot see.
//!
//! What keeps this from making a node worse: layers are named by their digests, so it can be known whether what is
//! unpacked can be made again from what the node holds. If it can, it is removed, and the copy stays usable under its
//! name all the time: containerd unpacks it in the pull that follows, or, if that fails, when the next container
//! starts. If it cannot, nothing is touched, unless the user accepts that the copy may be lost and the registry has
//! just answered.

use std::time::Duration;

use anyhow::bail;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use trylatest_containerd::{
    Discarded, ImageRuntime, Local, Movement, Spoiled, Users, Verified, alias,
};
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::record::{Try, TryResult};
use trylatest_core::text::{self, bytes};

use crate::args::RepairArgs;
use crate::clock::Clock;
use crate::node::run_on_containerd;
use crate::remember::remember;
use crate::shown::Shown;
use crate::turn;
use crate::undo::{Undo, digest_of};

/// For each call to containerd. A collection of garbage, which removes what was unpacked, takes a while on a large
/// node.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long nothing may move before a pull is given up. containerd 2.x waits no longer for an answer.
const STALL: Duration = Duration::from_secs(30);

/// How often a pull is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often a download is tried that the copy depends on.
const TRIES: u32 = 3;

/// Between two of those.
const PAUSE: Duration = Duration::from_secs(2);

/// Digests and pods that are named at most.
const NAMED_AT_MOST: usize = 3;

/// Unpacks the copy again, and says what it did.
///
/// # Errors
/// Why the copy was not repaired; the message says whether anything has changed.
pub fn run(args: RepairArgs) -> anyhow::Result<()> {
    let RepairArgs {
        image,
        download,
        state_dir,
        containerd,
    } = args;
    run_on_containerd(containerd, DEADLINE, async |node, stop| {
        let _turn = turn::take(&state_dir, stop).await?;
        let way = Way {
            shown: &Shown::on_stderr(),
            stop,
        };
        let (said, confirmed) = Box::pin(repair(node, &image, download, way)).await?;
        if let Some(tried) = confirmed {
            remember(&state_dir, tried).await;
        }
        Ok(said)
    })
}

/// How far it is, and whether it is to stop. Nothing is begun after that; what has been thrown away by then stays so,
/// and what is said is as after a pull that has failed.
#[derive(Clone, Copy)]
struct Way<'a> {
    shown: &'a Shown,
    stop: &'a CancellationToken,
}

/// Why nothing more was done.
const STOPPED: &str = "stopped by a signal";

/// What was done.
struct Done {
    /// The size of the layers, in bytes.
    bytes: u64,
    discarded: Discarded,
    /// Whether layers had to be downloaded.
    downloaded: bool,
    /// The last pull.
    pulled: Pulled,
}

/// How a pull went.
struct Pulled {
    began: Timestamp,
    took: Duration,
    /// What the name pointed to after it, if a container can start from that.
    digest: Option<Digest>,
    /// Why it has failed.
    failure: Option<Failure>,
}

/// What it did, and what the registry has confirmed meanwhile.
async fn repair(
    node: &impl ImageRuntime,
    image: &ImageName,
    download: bool,
    way: Way<'_>,
) -> anyhow::Result<(String, Option<Try>)> {
    let change = Undo::begin(node, image).await?;
    let before = change.before().cloned();
    let done = renew(node, image, download, way).await;
    let (done, found) = change.end_after(done).await?;
    let why = done.pulled.failure.as_ref().map(Failure::to_string);
    let Some(now) = found else {
        let why = why.unwrap_or_else(|| "what was pulled cannot be used".to_owned());
        if node.local(image).await? == Local::Absent {
            bail!(
                "the name {image} was taken away meanwhile, for the kubelet or by somebody else ({why})"
            );
        }
        withdraw(node, image).await?;
        bail!(
            "{image} has no copy on this node any more, and its name was taken away: the kubelet pulls it for the next pod ({why})"
        );
    };
    if let (true, Some(why)) = (done.downloaded, why) {
        let now = now.as_str();
        bail!("{image} points to {now}, but the last pull has failed; repeat this command ({why})");
    }
    let said = words(image, before.as_ref(), &now, &done);
    Ok((said, confirmed(image, before.as_ref(), &now, &done)))
}

/// Throws away what is unpacked, and what is spoiled of the layers, and pulls. An error means that nothing was thrown
/// away, or that containerd does not answer.
async fn renew(
    node: &impl ImageRuntime,
    image: &ImageName,
    download: bool,
    way: Way<'_>,
) -> anyhow::Result<Done> {
    let is_usable = match node.local(image).await? {
        Local::Absent => {
            bail!("this node holds no copy of {image}; the kubelet pulls it for the next pod")
        }
        Local::Usable(_) => true,
        Local::Unusable { .. } => {
            // What the agent does when it sees such a copy.
            node.mend(image).await?;
            digest_of(node, image).await?.is_some()
        }
    };
    // First: reading all layers of a large image takes long.
    if let Some(users) = node.users(image).await? {
        bail!(in_use(image, &users));
    }
    let mut verified = verify(node, image, way).await?;
    let downloaded = !is_usable || !verified.spoiled.is_empty();
    if downloaded {
        if is_usable && !download {
            bail!(needs_download(image, &verified.spoiled));
        }
        // Before anything goes, the registry has to answer.
        if let Err(failure) = pull(node, image, way).await {
            bail!(not_downloaded(image, &failure));
        }
        // The tag may have moved, or the pull may have brought what was missing.
        verified = verify(node, image, way).await?;
    }
    let discarded = node.discard(image, &verified.spoiled).await?;
    if discarded.is_in_use() {
        bail!(in_use(image, &discarded.users));
    }
    let tries = if verified.spoiled.is_empty() {
        1
    } else {
        TRIES
    };
    Ok(Done {
        bytes: verified.bytes,
        discarded,
        downloaded,
        pulled: pull_again(node, image, tries, way).await,
    })
}

/// Pulls until that works, so many times at most.
async fn pull_again(
    node: &impl ImageRuntime,
    image: &ImageName,
    tries: u32,
    way: Way<'_>,
) -> Pulled {
    let clock = Clock::start();
    let mut began = clock.now();
    let mut failure = pull(node, image, way).await.err();
    for _ in 1..tries {
        let is_over = failure.is_none();
        if is_over || way.stop.run_until_cancelled(sleep(PAUSE)).await.is_none() {
            break;
        }
        began = clock.now();
        failure = pull(node, image, way).await.err();
    }
    Pulled {
        began: began.wall,
        took: clock.now().up.saturating_sub(began.up),
        digest: digest_of(node, image).await.ok().flatten(),
        failure,
    }
}

/// The last pull, if the registry has said in it that the tag points to what the name points to now.
fn confirmed(image: &ImageName, before: Option<&Digest>, now: &Digest, done: &Done) -> Option<Try> {
    let Pulled {
        began,
        took,
        digest,
        failure,
    } = &done.pulled;
    let is_confirmed = failure.is_none() && digest.as_ref() == Some(now);
    is_confirmed.then(|| Try {
        image: image.clone(),
        started: *began,
        duration: *took,
        result: if done.downloaded || before != Some(now) {
            TryResult::Fresh
        } else {
            TryResult::Unchanged
        },
        digest: Some(now.clone()),
        size_bytes: None,
        copy_unknown: false,
        pulled_for: None,
        refused: false,
        by_hand: true,
    })
}

async fn verify(
    node: &impl ImageRuntime,
    image: &ImageName,
    way: Way<'_>,
) -> anyhow::Result<Verified> {
    let Way { shown, stop } = way;
    let step = "comparing the layers with their digests";
    shown.step(step);
    let seen = |done, of| shown.is_at(step, done, of);
    match stop.run_until_cancelled(node.verify(image, &seen)).await {
        Some(verified) => Ok(verified?),
        None => bail!("{STOPPED}; nothing was thrown away, and {image} is as it was"),
    }
}

/// Pulls, until nothing moves any more.
async fn pull(node: &impl ImageRuntime, image: &ImageName, way: Way<'_>) -> Result<(), Failure> {
    let Way { shown, stop } = way;
    let step = format!("pulling {image}");
    shown.step(&step);
    let mut pull = std::pin::pin!(node.pull(image));
    let mut mark = Movement::default().mark;
    let mut moved_at = Instant::now();
    loop {
        // The pull is only borrowed.
        tokio::select! {
            ended = &mut pull => return ended.map_err(|error| error.failure()),
            () = stop.cancelled() => return Err(Failure::new(FailureClass::Unknown, STOPPED)),
            () = sleep(LOOK_EVERY) => {}
        }
        // An unanswered look counts as no movement.
        if let Ok(movement) = node.movement(image).await {
            if movement.mark != mark || movement.queued {
                moved_at = Instant::now();
            }
            mark = movement.mark;
            if let Some(of) = movement.total_bytes {
                shown.is_at(&step, movement.bytes, of);
            }
        }
        if moved_at.elapsed() >= STALL {
            let why = format!("nothing has moved for {STALL:?}");
            return Err(Failure::new(FailureClass::Timeout, why));
        }
    }
}

/// Takes away all names of a copy that nothing can start from, and the alias that keeps it: with its name there, the
/// kubelet would not pull, and the agent would give the name back in an outage.
async fn withdraw(node: &impl ImageRuntime, image: &ImageName) -> anyhow::Result<()> {
    for copy in node.kept_copies().await? {
        let alias = alias::copy(&copy);
        if node.pointing(&alias).await?.contains(image) {
            node.forget(&alias).await?;
        }
    }
    let names = node.pointing(image.as_str()).await?;
    for name in names.iter().filter(|name| *name != image) {
        node.forget(name.as_str()).await?;
    }
    // The last one: if this was cut off, it can be repeated.
    node.forget(image.as_str()).await?;
    Ok(())
}

fn needs_download(image: &ImageName, spoiled: &[Spoiled]) -> String {
    let what = text::some_of(spoiled.iter().map(|part| part.why.as_str()), NAMED_AT_MOST);
    format!(
        "{image} cannot be unpacked again from what this node holds: {what}. Nothing was changed. With --download it is \
         downloaded again, and if that fails half-way, this node has no copy until the registry answers"
    )
}

fn not_downloaded(image: &ImageName, failure: &Failure) -> String {
    let advice = if failure.class == FailureClass::Unauthorized {
        ". This command has no credentials: while the registry answers, remove the image from the node (crictl rmi), and the \
         kubelet pulls it with those of the next pod"
    } else {
        ""
    };
    format!("{image} cannot be downloaded again; nothing was thrown away: {failure}{advice}")
}

fn in_use(image: &ImageName, users: &Users) -> String {
    let by = if users.names.is_empty() {
        "other images were unpacked on top of it: remove those first".to_owned()
    } else {
        let names = text::some_of(&users.names, NAMED_AT_MOST);
        format!(
            "pods, perhaps with exited containers only, run from it ({names}): cordon the node, delete them, and repeat"
        )
    };
    format!("{image} is in use, and nothing was thrown away: {by}")
}

fn words(image: &ImageName, before: Option<&Digest>, now: &Digest, done: &Done) -> String {
    let Done {
        bytes: size,
        discarded: Discarded { removed, kept, .. },
        downloaded,
        pulled: Pulled { failure, .. },
    } = done;
    let matches = format!("its content ({}) matches its digests", bytes(*size));
    let how = match (failure, before) {
        (Some(failure), _) => format!(
            "{matches}, and the next container that starts from it unpacks it again. What the tag points to now is not known: \
             {failure}"
        ),
        (None, Some(before)) if before != now => {
            format!("the tag has moved: {} -> {}", before.short(), now.short())
        }
        (None, _) if *downloaded => "what was missing was downloaded again".to_owned(),
        (None, _) => format!("{matches}, and it was unpacked again"),
    };
    let rest = match kept {
        0 => String::new(),
        kept => format!(
            "\nLeft as they were, because other images or containers use them: {}. If containers still do not \
             find what they need, delete those and repeat.",
            layers(*kept, "lower")
        ),
    };
    let removed = layers(*removed, "unpacked");
    format!("{image} on this node: {removed} thrown away; {how}.{rest}")
}

fn layers(count: usize, kind: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {kind} layer{s}")
}

#[cfg(test)]
mod tests;
