//! `trylatest rollback`: points an image's name on this node back to the previous copy.

use std::time::Duration;

use anyhow::bail;
use jiff::Timestamp;
use trylatest_containerd::{ImageRuntime, Over, alias};
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::keep::KeptCopy;
use trylatest_core::time::short_age;

use crate::args::RollbackArgs;
use crate::clock;
use crate::node::run_on_containerd;
use crate::undo::Undo;

/// For each call to containerd.
const DEADLINE: Duration = Duration::from_secs(5);

/// Points the name back, and says what it did.
///
/// # Errors
/// No previous copy that is everybody's is kept, the kubelet is pulling the image, or containerd does not answer.
pub fn run(args: RollbackArgs) -> anyhow::Result<()> {
    let RollbackArgs { image, containerd } = args;
    run_on_containerd(containerd, DEADLINE, async |node| {
        roll_back(node, &image).await
    })
}

async fn roll_back(node: &impl ImageRuntime, image: &ImageName) -> anyhow::Result<String> {
    let change = Undo::begin(node, image).await?;
    let now = change.before().cloned();
    let pointed = point_back(node, image, now.as_ref()).await;
    let found = change.end().await?;
    let before = pointed?;
    if found.as_ref() != Some(&before.digest) {
        let digest = before.digest.as_str();
        bail!("the previous copy of {image}, {digest}, cannot be used");
    }
    Ok(words(image, now.as_ref(), &before, clock::wall()))
}

/// Points the name to the copy before this one.
async fn point_back(
    node: &impl ImageRuntime,
    image: &ImageName,
    now: Option<&Digest>,
) -> anyhow::Result<KeptCopy> {
    let copies = node.kept_copies().await?;
    let Some(before) = copy_before(copies, image, now) else {
        if now.is_none() {
            bail!("this node holds no copy of {image}");
        }
        bail!(
            "no previous copy of {image} is kept on this node: it stays only until a container has run from the newest \
             for ten minutes"
        );
    };
    if !before.public {
        bail!(
            "the previous copy of {image} is private, and the kubelet may have forgotten which pods may use it"
        );
    }
    node.point(image, &alias::copy(&before), Over::Anything)
        .await?;
    Ok(before)
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
        "{image} on this node: {now} -> {}, last used {} ago\n\
         Running containers keep what they run until they restart. The next TryLatest pod takes what the tag points to in \
         the registry: move it back there as well.",
        before.digest.short(),
        short_age(time, before.used),
    )
}

#[cfg(test)]
mod tests {
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

    #[tokio::test]
    async fn the_name_points_to_the_copy_before_and_back() {
        let node = FakeContainerd::new();
        hold(&node, "sha256:one", 1).await;
        let error = roll_back(&node, &image()).await.unwrap_err();
        assert!(error.to_string().contains("no previous copy"), "{error}");
        hold(&node, "sha256:two", 2).await;
        let said = roll_back(&node, &image()).await.unwrap();
        assert!(
            said.contains("sha256:two -> sha256:one, last used"),
            "{said}"
        );
        assert_eq!(node.kept(image().as_str()).as_deref(), Some("sha256:one"));
        roll_back(&node, &image()).await.unwrap();
        assert_eq!(node.kept(image().as_str()).as_deref(), Some("sha256:two"));
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
    }
}
