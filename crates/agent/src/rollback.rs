//! `trylatest rollback`: points an image's name on this node back to the previous copy.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use trylatest_containerd::{ImageRuntime, Over, alias};
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::keep::KeptCopy;
use trylatest_core::record::RolledBack;
use trylatest_core::time::short_age;

use crate::args::RollbackArgs;
use crate::clock;
use crate::node::run_on_containerd;
use crate::turn;
use crate::undo::Undo;

/// For each call to containerd.
const DEADLINE: Duration = Duration::from_secs(5);

/// Points the name back, and says what it did. Nothing is done if that has been done before.
///
/// # Errors
/// [`NothingToRollBackTo`]; or the copy is not everybody's, the kubelet is pulling the image, another command has been
/// at work for too long, or containerd does not answer.
pub fn run(args: RollbackArgs) -> anyhow::Result<()> {
    let RollbackArgs {
        image,
        state_dir,
        containerd,
    } = args;
    run_on_containerd(containerd, DEADLINE, async |node, stop| {
        let _turn = turn::take(&state_dir, stop).await?;
        // It takes a moment, so a signal lets it finish.
        roll_back(node, &image).await
    })
}

/// This node keeps no earlier copy of the image: a rollback has an exit code for that, as it is no failure on a node
/// that never had the image, or has not pulled the broken one.
#[derive(Debug, thiserror::Error)]
#[error("nothing to roll back to: {0}")]
pub struct NothingToRollBackTo(String);

/// What came of it.
enum Done {
    /// It was done now.
    Now(KeptCopy),
    /// It had been done.
    Before(RolledBack),
}

async fn roll_back(node: &impl ImageRuntime, image: &ImageName) -> anyhow::Result<String> {
    let change = Undo::begin(node, image).await?;
    let now = change.before().cloned();
    let pointed = point_back(node, image, now.as_ref()).await;
    let (pointed, found) = change.end_after(pointed).await?;
    match pointed {
        Done::Before(back) => Ok(format!(
            "{image} is already {}; the name still points to {}",
            back.describe(clock::wall()),
            back.to.short()
        )),
        Done::Now(before) if found.as_ref() == Some(&before.digest) => {
            Ok(words(image, now.as_ref(), &before, clock::wall()))
        }
        Done::Now(before) => {
            // The name points to something else, so the mark means nothing; the agent removes it, too.
            let _ = node.forget(&alias::rolled_back(image)).await;
            let digest = before.digest.as_str();
            bail!("the previous copy of {image}, {digest}, cannot be used");
        }
    }
}

/// Points the name to the copy before this one, and leaves a mark that says so.
async fn point_back(
    node: &impl ImageRuntime,
    image: &ImageName,
    now: Option<&Digest>,
) -> anyhow::Result<Done> {
    let mut marks = node.rolled_back().await?;
    if let Some(back) = still_rolled_back(&mut marks, image, now) {
        return Ok(Done::Before(back));
    }
    let copies = node.kept_copies().await?;
    let Some(before) = copy_before(copies, image, now) else {
        let why = if now.is_none() {
            format!("this node holds no copy of {image}")
        } else {
            format!(
                "no previous copy of {image} is kept on this node: it stays only until a container has run from the newest \
                 for ten minutes"
            )
        };
        bail!(NothingToRollBackTo(why));
    };
    if !before.public {
        bail!(
            "the previous copy of {image} is private, and the kubelet may have forgotten which pods may use it"
        );
    }
    let back = RolledBack {
        time: clock::wall(),
        from: now.cloned(),
        to: before.digest.clone(),
    };
    // First: the agent is to know from the moment on at which the name has moved.
    node.mark_rolled_back(image, &back).await?;
    let alias = alias::copy(&before);
    let pointed = node.point(image, &alias, Over::Anything).await;
    pointed.with_context(|| format!("pointing {image} to {}", before.digest.as_str()))?;
    Ok(Done::Now(before))
}

/// The mark of an earlier rollback, if the name still points to what that pointed it to.
fn still_rolled_back(
    marks: &mut BTreeMap<ImageName, RolledBack>,
    image: &ImageName,
    now: Option<&Digest>,
) -> Option<RolledBack> {
    marks.remove(image).filter(|back| Some(&back.to) == now)
}

fn copy_before(copies: Vec<KeptCopy>, image: &ImageName, now: Option<&Digest>) -> Option<KeptCopy> {
    let others = copies
        .into_iter()
        .filter(|copy| copy.image == *image && Some(&copy.digest) != now);
    others.max_by_key(|copy| copy.since)
}

fn words(image: &ImageName, now: Option<&Digest>, before: &KeptCopy, time: Timestamp) -> String {
    let now = now.map_or("no usable copy", Digest::short);
    format!(
        "{image} on this node: {now} -> {}, last used at most {} ago\n\
         Running containers keep what they run until they restart. The next successful try pulls what the tag points to in \
         the registry: move it back there as well.",
        before.digest.short(),
        short_age(time, before.used),
    )
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;
    use trylatest_containerd::Pin;
    use trylatest_containerd::fake::FakeContainerd;

    use super::*;

    fn image() -> ImageName {
        "reg.example/app:latest".parse().unwrap()
    }

    async fn hold(node: &FakeContainerd, digest: &str, second: i64) {
        node.hold(&image(), digest, 1);
        let copy = KeptCopy {
            image: image(),
            digest: digest.parse().unwrap(),
            size_bytes: 1,
            since: Timestamp::from_second(second).unwrap(),
            used: Timestamp::from_second(second).unwrap(),
            proven: false,
            public: true,
            pinned: true,
        };
        node.keep_copy(&copy).await.unwrap();
    }

    fn mark(node: &FakeContainerd) -> Option<String> {
        node.kept(&alias::rolled_back(&image()))
    }

    #[tokio::test]
    async fn the_name_points_to_the_copy_before_and_stays_there() {
        let node = FakeContainerd::new();
        hold(&node, "sha256:one", 1).await;
        let error = roll_back(&node, &image()).await.unwrap_err();
        assert!(error.to_string().contains("no previous copy"), "{error}");
        assert!(error.is::<NothingToRollBackTo>());
        assert_eq!(mark(&node), None);
        hold(&node, "sha256:two", 2).await;
        let said = roll_back(&node, &image()).await.unwrap();
        assert!(
            said.contains("sha256:two -> sha256:one, last used at most "),
            "{said}"
        );
        assert_eq!(node.kept(image().as_str()).as_deref(), Some("sha256:one"));
        let back = node.rolled_back().await.unwrap().remove(&image()).unwrap();
        assert_eq!(back.from.unwrap().as_str(), "sha256:two");
        assert_eq!(back.to.as_str(), "sha256:one");
        let said = roll_back(&node, &image()).await.unwrap();
        let already = "is already rolled back from sha256:two";
        assert!(said.contains(already), "{said}");
        assert_eq!(node.kept(image().as_str()).as_deref(), Some("sha256:one"));
        // The next try moves it on; then it may be needed again.
        node.hold(&image(), "sha256:two", 1);
        let said = roll_back(&node, &image()).await.unwrap();
        assert!(said.contains("sha256:two -> sha256:one"), "{said}");
    }

    #[tokio::test]
    async fn two_at_the_same_time_do_not_undo_each_other() {
        let (node, dir) = (FakeContainerd::new(), tempfile::tempdir().unwrap());
        hold(&node, "sha256:one", 1).await;
        hold(&node, "sha256:two", 2).await;
        let image = image();
        let one_of_them = async || {
            let _turn = turn::take(dir.path(), &CancellationToken::new())
                .await
                .unwrap();
            roll_back(&node, &image).await.unwrap()
        };
        let (one, other) = futures::join!(one_of_them(), one_of_them());
        assert!(
            one.contains(" -> ") != other.contains(" -> "),
            "{one} {other}"
        );
        assert_eq!(node.kept(image.as_str()).as_deref(), Some("sha256:one"));
    }

    #[tokio::test]
    async fn a_private_copy_is_nobodys_to_roll_back_to() {
        let node = FakeContainerd::new();
        hold(&node, "sha256:one", 1).await;
        let mut private = node.kept_copies().await.unwrap().remove(0);
        private.public = false;
        node.keep_copy(&private).await.unwrap();
        hold(&node, "sha256:two", 2).await;
        let error = roll_back(&node, &image()).await.unwrap_err();
        assert!(error.to_string().contains("is private"), "{error}");
        assert_eq!(node.kept(image().as_str()).as_deref(), Some("sha256:two"));
    }

    #[tokio::test]
    async fn a_name_that_the_kubelet_needs_is_left_alone() {
        let node = FakeContainerd::new();
        hold(&node, "sha256:one", 1).await;
        hold(&node, "sha256:two", 2).await;
        let aside = alias::aside(&image());
        node.set_aside(&image(), &aside).await.unwrap();
        let error = roll_back(&node, &image()).await.unwrap_err();
        assert!(error.to_string().contains("try again"), "{error}");
        assert_eq!(node.kept(image().as_str()), None);
    }

    #[tokio::test]
    async fn a_try_of_the_agent_keeps_its_own_alias() {
        let node = FakeContainerd::new();
        hold(&node, "sha256:one", 1).await;
        hold(&node, "sha256:two", 2).await;
        let of_try = alias::of(&image());
        node.keep(&image(), &of_try, Pin::Unpinned).await.unwrap();
        roll_back(&node, &image()).await.unwrap();
        assert_eq!(node.kept(&of_try).as_deref(), Some("sha256:two"));
        assert_eq!(node.kept(&alias::undo(&image())), None, "nothing is left");
    }

    #[tokio::test]
    async fn an_earlier_copy_that_cannot_be_used_leaves_the_name() {
        let node = FakeContainerd::new();
        hold(&node, "sha256:one", 1).await;
        node.spoil(&image(), "its layers are gone");
        hold(&node, "sha256:one", 1).await;
        node.hollow(&image());
        hold(&node, "sha256:two", 2).await;
        let error = roll_back(&node, &image()).await.unwrap_err();
        assert!(error.to_string().contains("cannot be used"), "{error}");
        assert_eq!(node.kept(image().as_str()).as_deref(), Some("sha256:two"));
        assert_eq!(mark(&node), None);
    }
}
