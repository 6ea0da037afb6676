//! What every runtime must do, the fake one and containerd itself: one suite for both.
//!
//! A [`Harness`] brings the runtime and the registry that it pulls from; [`cases`] lists the suite.
//! Cases share a harness: each uses repositories of its own.

mod damage;
mod kept;
mod made;
mod names;
mod pulls;

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use trylatest_core::image::ImageName;

use crate::runtime::{ImageRuntime, Local};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(30);

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

/// What the disk loses of an image, while containerd's database goes on listing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The folder of its topmost unpacked layer.
    Unpacked,
    /// The same, while a container has something on top of it.
    UnpackedInUse,
    /// The same, while a look of ours at it was cut off.
    UnpackedUnderLook,
    /// The same, while the unpacking of another layer on top of it was cut off.
    UnpackedUnderUnpacking,
    /// The file of the layer that the repository's images share.
    SharedLayer,
    /// What is in that file.
    SharedLayersBytes,
    /// What is in the files of its topmost unpacked layer.
    Files,
    /// The same, while a container has something on top of it.
    FilesInUse,
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

    /// The same with a second layer on top, which all versions of the repository share.
    fn push_sharing(&self, image: &ImageName, version: u32) -> impl Future<Output = String> + Send;

    /// Takes something of the image on the node from the disk, behind containerd's back.
    fn lose(&self, image: &ImageName, loss: Loss) -> impl Future<Output = ()> + Send;

    /// Whether the files of the image's topmost unpacked layer are as the image has them; it must be unpacked.
    fn is_intact(&self, image: &ImageName) -> impl Future<Output = bool> + Send;

    /// Sets a label on a name of the image store.
    fn label(&self, name: &str, key: &str, value: &str) -> impl Future<Output = ()> + Send;

    /// Takes a label from a name of the image store.
    fn unlabel(&self, name: &str, key: &str) -> impl Future<Output = ()> + Send;

    /// A label of a name of the image store.
    fn labelled(&self, name: &str, key: &str) -> impl Future<Output = Option<String>> + Send;

    /// Lets the image's repository fail from now on, or work again.
    fn fault(&self, image: &ImageName, fault: Option<Fault>) -> impl Future<Output = ()> + Send;

    /// Removes the image's name from the node, and no other name.
    fn remove(&self, image: &ImageName) -> impl Future<Output = ()> + Send;

    /// Removes the image that the name points to, by its ID: its aliases and other names as well.
    fn remove_by_id(&self, image: &ImageName) -> impl Future<Output = ()> + Send;

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
        ($($module:ident: $($name:ident),*;)*) => {
            vec![$($(Case {
                name: stringify!($name),
                run: |harness| $module::$name(harness).boxed(),
            }),*),*]
        };
    }
    cases![
        pulls:
            a_pull_brings_a_usable_copy,
            a_pull_follows_a_moved_tag,
            a_failed_pull_says_why_and_leaves_the_copy,
            a_missing_tag_is_not_found,
            a_silent_registry_moves_nothing,
            a_download_moves,
            a_stalled_download_stands_still,
            what_is_left_over_does_not_flow,
            another_images_download_is_not_ours,
            a_hollow_copy_is_unusable_until_pulled_again;
        damage:
            what_is_whole_is_left_alone,
            a_lost_unpacked_layer_is_mended,
            what_was_cut_off_keeps_nothing,
            a_lost_layer_in_use_is_kept,
            a_lost_shared_layer_is_mended,
            a_shared_layer_without_bytes_is_mended,
            damaged_files_are_unpacked_again,
            damaged_files_in_use_are_left_alone,
            a_spoiled_layer_is_noticed_and_fetched_again;
        made:
            a_program_becomes_an_image,
            no_two_made_images_are_alike,
            another_program_is_another_image,
            a_cleaner_removes_it_and_it_is_made_again,
            lost_content_is_written_again,
            a_name_of_something_else_stays;
        kept:
            a_copy_is_kept_and_says_what_is_known,
            a_kept_copy_survives_its_names,
            a_private_copy_gets_no_name_back,
            a_rollback_is_written_down;
        names:
            a_pull_leaves_labels,
            a_try_that_was_cut_off_loses_no_label,
            an_alias_keeps_and_restores,
            an_alias_follows_a_moved_tag,
            an_alias_undoes_what_a_captive_portal_did,
            a_name_that_is_set_aside_is_restored,
            a_name_that_was_set_aside_and_pulled_stays,
            an_alias_that_cannot_be_is_refused,
            a_forgotten_alias_keeps_nothing,
            changes_of_names_are_told,
            a_restart_ends_events_and_nothing_else;
    ]
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

async fn is_usable<H: Harness>(h: &H, image: &ImageName, digest: &str) -> Verdict {
    match local(h, image).await? {
        Local::Usable(found) if found.digest == digest && found.image == *image => Ok(()),
        other => Err(format!("{image} should be usable as {digest}: {other:?}")),
    }
}

fn ensure(holds: bool, what: &str) -> Verdict {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests;
