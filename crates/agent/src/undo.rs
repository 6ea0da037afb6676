//! What a command changes of an image's name, and undoes if that does not work out.
//!
//! An alias keeps what the name pointed to. It is the journal as well: if the command is killed half-way, the agent
//! finds it when it begins or is uninstalled ([`all`]).

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use tracing::{info, warn};
use trylatest_containerd::alias::{self, Journal};
use trylatest_containerd::{ImageRuntime, Local, Pin, RuntimeError};
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;

use crate::turn;

/// A change of an image's name that can be undone until it is done.
pub(crate) struct Undo<'a, R> {
    node: &'a R,
    image: &'a ImageName,
    alias: String,
    /// Whether there was anything that a container can start from.
    before: Option<Digest>,
}

impl<'a, R: ImageRuntime> Undo<'a, R> {
    /// Before the change. Nothing is written if the name has no copy that a container can start from.
    ///
    /// # Errors
    /// The kubelet is pulling the image, or containerd does not answer.
    pub(crate) async fn begin(node: &'a R, image: &'a ImageName) -> anyhow::Result<Self> {
        if is_away(node, image).await? {
            bail!(
                "the kubelet is pulling {image} with a pod's credentials; try again when that pull has ended"
            );
        }
        let alias = alias::undo(image);
        let left = node.journal(Journal::Undo).await?;
        if left.iter().any(|(_, name)| name == image) {
            undo(node, &alias, image).await?;
        }
        let before = digest_of(node, image).await?;
        if before.is_some() {
            node.keep(image, &alias, Pin::Unpinned).await?;
        }
        Ok(Self {
            node,
            image,
            alias,
            before,
        })
    }

    /// What the name pointed to, if a container could start from it.
    pub(crate) fn before(&self) -> Option<&Digest> {
        self.before.as_ref()
    }

    /// The same as [`Undo::end`], after what came of the change.
    ///
    /// # Errors
    /// Those of the change; those of the end; or both, if the end has failed as well.
    pub(crate) async fn end_after<T>(
        self,
        done: anyhow::Result<T>,
    ) -> anyhow::Result<(T, Option<Digest>)> {
        match (done, self.end().await) {
            (Ok(done), Ok(found)) => Ok((done, found)),
            (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
            (Err(first), Err(then)) => Err(anyhow!("{first:#}; and after that: {then:#}")),
        }
    }

    /// After the change: if no container can start from what the name points to now, it points to what it did before.
    /// What it points to, if a container can start from that.
    ///
    /// # Errors
    /// containerd does not answer. The agent then ends this when it begins.
    async fn end(self) -> anyhow::Result<Option<Digest>> {
        if self.before.is_some() {
            let undone = undo(self.node, &self.alias, self.image).await;
            undone.with_context(|| {
                format!(
                    "it is not known whether {} points to a usable copy; the agent gives the name back when it starts",
                    self.image
                )
            })?;
        }
        digest_of(self.node, self.image).await
    }
}

/// Ends what killed commands have left half done: a name that is gone, or that no container can start from, points to
/// what it did before. What cannot be undone stays for the next time.
///
/// Nothing is done while a command is at work: it ends what it has begun.
pub(crate) async fn all<R: ImageRuntime>(node: &R, state_dir: &Path) {
    let _turn = match turn::take_if_free(state_dir) {
        Ok(Some(turn)) => Some(turn),
        Ok(None) => return info!("a rollback, repair or pull by hand is at work"),
        Err(error) => {
            warn!(%error, "it is not known whether a command is at work");
            None
        }
    };
    let left = match node.journal(Journal::Undo).await {
        Ok(left) => left,
        Err(error) => {
            return warn!(%error, "it is not known whether a command was killed half-way");
        }
    };
    for (alias, image) in left {
        match undo(node, &alias, &image).await {
            Ok(restored) => {
                info!(%image, restored, "a command was killed while it changed this image's name");
            }
            Err(error) => warn!(%image, %error, "what a killed command has left cannot be undone"),
        }
    }
}

/// Gives the name back if it is gone or cannot be used, and removes the alias. True if it had to.
async fn undo<R: ImageRuntime>(
    node: &R,
    alias: &str,
    image: &ImageName,
) -> Result<bool, RuntimeError> {
    // The kubelet would take a name that comes back for an answer of the registry.
    let restored = if is_away(node, image).await? {
        false
    } else {
        match node.restore(alias, image).await {
            // Somebody else has ended it.
            Err(RuntimeError::NotFound { .. }) => false,
            restored => restored?,
        }
    };
    node.forget(alias).await?;
    Ok(restored)
}

/// Whether the name is away, so that the kubelet pulls it.
async fn is_away<R: ImageRuntime>(node: &R, image: &ImageName) -> Result<bool, RuntimeError> {
    let away = node.journal(Journal::Aside).await?;
    Ok(away.iter().any(|(_, name)| name == image))
}

/// What the name points to, if a container can start from it.
pub(crate) async fn digest_of<R: ImageRuntime>(
    node: &R,
    image: &ImageName,
) -> anyhow::Result<Option<Digest>> {
    match node.local(image).await? {
        Local::Usable(found) => Ok(Some(found.digest.parse()?)),
        Local::Absent | Local::Unusable { .. } => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use trylatest_containerd::fake::FakeContainerd;

    use super::*;

    async fn end_all(node: &FakeContainerd) {
        let state_dir = tempfile::tempdir().unwrap();
        all(node, state_dir.path()).await;
    }

    fn image() -> ImageName {
        "reg.example/app:latest".parse().unwrap()
    }

    /// A node that holds `one`, where a command has been killed after it has begun.
    async fn killed() -> FakeContainerd {
        let node = FakeContainerd::new();
        node.hold(&image(), "sha256:one", 1);
        let image = image();
        let undo = Undo::begin(&node, &image).await.unwrap();
        drop(undo);
        node
    }

    fn of_name(node: &FakeContainerd) -> Option<String> {
        node.kept(image().as_str())
    }

    #[tokio::test]
    async fn what_a_killed_command_has_left_is_undone() {
        let node = killed().await;
        node.hold(&image(), "sha256:two", 1);
        node.spoil(&image(), "its layers are gone");
        end_all(&node).await;
        assert_eq!(of_name(&node).as_deref(), Some("sha256:one"));
        assert_eq!(node.kept(&alias::undo(&image())), None, "nothing is left");
    }

    #[tokio::test]
    async fn what_it_has_done_stays() {
        let node = killed().await;
        node.hold(&image(), "sha256:two", 1);
        end_all(&node).await;
        assert_eq!(of_name(&node).as_deref(), Some("sha256:two"));
        assert_eq!(node.kept(&alias::undo(&image())), None, "nothing is left");
    }

    #[tokio::test]
    async fn the_next_command_ends_it_as_well() {
        let node = killed().await;
        node.hold(&image(), "sha256:two", 1);
        node.spoil(&image(), "its layers are gone");
        let image = image();
        let undo = Undo::begin(&node, &image).await.unwrap();
        assert_eq!(undo.before().unwrap().as_str(), "sha256:one");
        assert_eq!(undo.end().await.unwrap().unwrap().as_str(), "sha256:one");
    }

    #[tokio::test]
    async fn a_name_that_the_kubelet_needs_by_now_stays_away() {
        let node = FakeContainerd::new();
        node.hold(&image(), "sha256:one", 1);
        let image = image();
        let undo = Undo::begin(&node, &image).await.unwrap();
        let aside = alias::aside(&image);
        node.set_aside(&image, &aside).await.unwrap();
        assert_eq!(undo.end().await.unwrap(), None);
        assert_eq!(of_name(&node), None);
        assert_eq!(node.kept(&aside).as_deref(), Some("sha256:one"));
        assert_eq!(node.kept(&alias::undo(&image)), None, "nothing is left");
    }

    #[tokio::test]
    async fn what_failed_first_is_said_even_if_the_end_fails_too() {
        let node = FakeContainerd::new();
        node.hold(&image(), "sha256:one", 1);
        let image = image();
        let undo = Undo::begin(&node, &image).await.unwrap();
        node.set_down(true);
        let done: anyhow::Result<()> = Err(anyhow!("the disk is full").context("writing a name"));
        let error = undo.end_after(done).await.unwrap_err().to_string();
        for words in [
            "writing a name: the disk is full",
            "it is not known whether",
        ] {
            assert!(error.contains(words), "{error}");
        }
    }

    #[tokio::test]
    async fn a_containerd_that_is_away_leaves_it_for_later() {
        let node = killed().await;
        node.remove(image().as_str());
        node.set_down(true);
        end_all(&node).await;
        node.set_down(false);
        assert_eq!(of_name(&node), None);
        end_all(&node).await;
        assert_eq!(of_name(&node).as_deref(), Some("sha256:one"));
    }
}
