use jiff::Timestamp;
use tokio::time::timeout;
use trylatest_containerd::fake::{Answer, FakeContainerd, Lost};
use trylatest_core::keep::KeptCopy;

use super::*;
use crate::undo;

fn image() -> ImageName {
    "reg.example/app:latest".parse().unwrap()
}

/// A node that holds `one`, which the tag points to, and has lost something of it.
fn node(lost: Lost) -> FakeContainerd {
    let node = FakeContainerd::new();
    node.push(&image(), "sha256:one", 1);
    node.hold(&image(), "sha256:one", 1);
    node.lose(&image(), Some(lost));
    node
}

fn of_name(node: &FakeContainerd) -> Option<String> {
    node.kept(image().as_str())
}

async fn repaired(node: &FakeContainerd, download: bool) -> Result<String, String> {
    stopped_repair(node, download, &CancellationToken::new()).await
}

/// The same, with what the registry has confirmed.
async fn confirmed_by(node: &FakeContainerd, download: bool) -> Option<(TryResult, String)> {
    let (shown, stop) = (Shown::on_stderr(), CancellationToken::new());
    let (shown, stop) = (&shown, &stop);
    let done = repair(node, &image(), download, Way { shown, stop }).await;
    let tried = done.unwrap().1?;
    assert_eq!(tried.image, image());
    Some((tried.result, tried.digest?.to_string()))
}

/// The same, which ends when the token says so.
async fn stopped_repair(
    node: &FakeContainerd,
    download: bool,
    stop: &CancellationToken,
) -> Result<String, String> {
    let shown = &Shown::on_stderr();
    let done = repair(node, &image(), download, Way { shown, stop }).await;
    let alias = alias::undo(&image());
    assert_eq!(node.kept(&alias), None, "nothing is left");
    done.map(|(said, _)| said)
        .map_err(|error| format!("{error:#}"))
}

#[track_caller]
fn says(said: &str, words: &str) {
    assert!(said.contains(words), "{said}");
}

#[tokio::test(start_paused = true)]
async fn what_is_unpacked_is_made_again() {
    let node = node(Lost::File);
    let said = repaired(&node, false).await.unwrap();
    says(
        &said,
        "1 unpacked layer thrown away; its content (1 B) matches",
    );
    assert_eq!(node.lost(&image()), None);
    assert_eq!(of_name(&node).as_deref(), Some("sha256:one"));
}

#[tokio::test(start_paused = true)]
async fn no_registry_is_needed_for_that() {
    for answer in [
        Answer::fail(FailureClass::Network),
        Answer::fail(FailureClass::Unauthorized),
        Answer::Hang,
    ] {
        let node = node(Lost::File);
        node.answer(&image(), answer);
        let said = repaired(&node, false).await.unwrap();
        says(&said, "the next container that starts from it unpacks it");
        assert_eq!(node.lost(&image()), None);
        assert_eq!(of_name(&node).as_deref(), Some("sha256:one"));
        assert_eq!(node.running(&image()), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_moved_tag_is_followed() {
    let node = node(Lost::File);
    node.push(&image(), "sha256:two", 1);
    let said = repaired(&node, false).await.unwrap();
    says(&said, "the tag has moved: sha256:one -> sha256:two");
    assert_eq!(of_name(&node).as_deref(), Some("sha256:two"));
}

#[tokio::test(start_paused = true)]
async fn what_the_registry_has_confirmed_is_reported_and_nothing_else() {
    let one = |result| Some((result, "sha256:one".to_owned()));
    let same = node(Lost::File);
    assert_eq!(confirmed_by(&same, false).await, one(TryResult::Unchanged));
    let moved = node(Lost::File);
    moved.push(&image(), "sha256:two", 1);
    let two = Some((TryResult::Fresh, "sha256:two".to_owned()));
    assert_eq!(confirmed_by(&moved, false).await, two);
    let downloaded = node(Lost::FileAndLayers);
    downloaded.answer_once(&image(), Answer::Succeed);
    assert_eq!(confirmed_by(&downloaded, true).await, one(TryResult::Fresh));
    let silent = node(Lost::File);
    silent.answer(&image(), Answer::fail(FailureClass::Network));
    assert_eq!(confirmed_by(&silent, false).await, None);
    // The name is given back to the copy, of which the registry has said nothing.
    let unusable = node(Lost::File);
    unusable.push(&image(), "sha256:two", 1);
    unusable.spoil_tag(&image(), "for another platform");
    assert_eq!(confirmed_by(&unusable, false).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_moved_tag_that_cannot_start_is_not_followed() {
    let node = node(Lost::File);
    node.push(&image(), "sha256:two", 1);
    node.spoil_tag(&image(), "for another platform");
    repaired(&node, false).await.unwrap();
    assert_eq!(of_name(&node).as_deref(), Some("sha256:one"));
    assert_eq!(node.lost(&image()), None);
}

#[tokio::test(start_paused = true)]
async fn what_containers_use_stays() {
    let node = node(Lost::FileInUse);
    let said = repaired(&node, false).await.unwrap_err();
    says(&said, "nothing was thrown away: pods");
    says(&said, "(default/pod)");
    assert_eq!(node.lost(&image()), Some(Lost::FileInUse));
    assert_eq!(node.pulls(&image()), 0);
}

#[tokio::test(start_paused = true)]
async fn what_would_have_to_be_downloaded_stays() {
    let node = node(Lost::FileAndLayers);
    let said = repaired(&node, false).await.unwrap_err();
    says(&said, "layer sha256:layer is missing. Nothing was changed");
    assert_eq!(node.lost(&image()), Some(Lost::FileAndLayers));
    assert_eq!(node.pulls(&image()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_download_wants_a_registry_that_answers_first() {
    for (answer, advice) in [
        (Answer::fail(FailureClass::Network), "network"),
        (Answer::fail(FailureClass::Unauthorized), "crictl rmi"),
        (Answer::Hang, "nothing has moved for 30s"),
    ] {
        let node = node(Lost::FileAndLayers);
        node.answer(&image(), answer);
        let said = repaired(&node, true).await.unwrap_err();
        says(&said, "nothing was thrown away");
        says(&said, advice);
        assert_eq!(node.lost(&image()), Some(Lost::FileAndLayers));
        assert_eq!(of_name(&node).as_deref(), Some("sha256:one"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_download_brings_the_layers() {
    let node = node(Lost::FileAndLayers);
    node.answer_once(&image(), Answer::Succeed);
    node.answer_once(&image(), Answer::fail(FailureClass::Network));
    let said = repaired(&node, true).await.unwrap();
    says(&said, "downloaded again");
    assert_eq!(node.lost(&image()), None);
    let found = digest_of(&node, &image()).await.unwrap();
    assert_eq!(found.unwrap().as_str(), "sha256:one");
    assert_eq!(node.pulls(&image()), 3, "the one that failed was repeated");
}

#[tokio::test(start_paused = true)]
async fn a_download_that_fails_half_way_leaves_the_kubelet_to_pull() {
    let node = node(Lost::FileAndLayers);
    let kept = KeptCopy {
        image: image(),
        digest: "sha256:one".parse().unwrap(),
        size_bytes: 1,
        since: Timestamp::UNIX_EPOCH,
        used: Timestamp::UNIX_EPOCH,
        proven: true,
        public: true,
        pinned: true,
    };
    node.keep_copy(&kept).await.unwrap();
    node.answer_once(&image(), Answer::Succeed);
    node.answer(&image(), Answer::fail(FailureClass::ServerError));
    let said = repaired(&node, true).await.unwrap_err();
    says(&said, "the kubelet pulls it for the next pod (server-error");
    assert_eq!(of_name(&node), None);
    assert_eq!(node.images().await, Ok(Vec::new()), "no name is left");
    assert_eq!(
        node.kept_copies().await,
        Ok(Vec::new()),
        "the agent does not give the name back to it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_seen_to_be_damaged_is_mended() {
    let node = node(Lost::Unpacked);
    repaired(&node, false).await.unwrap();
    let found = digest_of(&node, &image()).await.unwrap();
    assert_eq!(found.unwrap().as_str(), "sha256:one");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_by_downloading_what_cannot_start() {
    let node = node(Lost::File);
    node.spoil(&image(), "its configuration is corrupt");
    repaired(&node, false).await.unwrap();
    let found = digest_of(&node, &image()).await.unwrap();
    assert_eq!(found.unwrap().as_str(), "sha256:one");
}

#[tokio::test(start_paused = true)]
async fn there_must_be_a_copy_that_the_kubelet_does_not_pull() {
    let node = node(Lost::File);
    let aside = alias::aside(&image());
    node.set_aside(&image(), &aside).await.unwrap();
    let said = repaired(&node, true).await.unwrap_err();
    says(&said, "try again when that pull has ended");
    node.forget(&aside).await.unwrap();
    let said = repaired(&node, true).await.unwrap_err();
    says(&said, "holds no copy");
    assert_eq!(node.pulls(&image()), 0);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_killed_half_way_leaves_a_copy() {
    let node = node(Lost::File);
    node.answer(&image(), Answer::Hang);
    let (shown, image) = (Shown::on_stderr(), image());
    let stop = CancellationToken::new();
    let way = Way {
        shown: &shown,
        stop: &stop,
    };
    let repair = repair(&node, &image, false, way);
    let killed = timeout(Duration::from_secs(1), repair).await;
    assert!(killed.is_err());
    let found = digest_of(&node, &image).await.unwrap();
    assert_eq!(found.unwrap().as_str(), "sha256:one");
    let state_dir = tempfile::tempdir().unwrap();
    let turn = turn::take(state_dir.path(), &stop).await.unwrap();
    undo::all(&node, state_dir.path()).await;
    let left = node.kept(&alias::undo(&image));
    assert!(left.is_some(), "a command is at work");
    drop(turn);
    undo::all(&node, state_dir.path()).await;
    assert_eq!(node.kept(&alias::undo(&image)), None, "nothing is left");
}

/// Stops a repair whose last pull hangs, or the one before anything goes.
async fn stopped(node: &FakeContainerd, download: bool) -> Result<String, String> {
    let stop = CancellationToken::new();
    let after = async {
        sleep(LOOK_EVERY).await;
        stop.cancel();
    };
    let (done, ()) = futures::join!(stopped_repair(node, download, &stop), after);
    assert_eq!(node.running(&image()), 0);
    done
}

#[tokio::test(start_paused = true)]
async fn one_that_is_stopped_says_what_it_has_done() {
    let node = node(Lost::File);
    node.answer(&image(), Answer::Hang);
    let said = stopped(&node, false).await.unwrap();
    says(&said, "1 unpacked layer thrown away");
    says(&said, "not known: unknown: stopped by a signal");
    assert_eq!(of_name(&node).as_deref(), Some("sha256:one"));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_stopped_before_anything_goes_changes_nothing() {
    let node = node(Lost::FileAndLayers);
    node.answer(&image(), Answer::Hang);
    let said = stopped(&node, true).await.unwrap_err();
    says(
        &said,
        "nothing was thrown away: unknown: stopped by a signal",
    );
    assert_eq!(node.lost(&image()), Some(Lost::FileAndLayers));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_stopped_during_the_download_leaves_the_kubelet_to_pull() {
    let node = node(Lost::FileAndLayers);
    node.answer_once(&image(), Answer::Succeed);
    node.answer(&image(), Answer::Hang);
    let said = stopped(&node, true).await.unwrap_err();
    says(&said, "stopped by a signal");
    says(&said, "the kubelet pulls it for the next pod");
    assert_eq!(of_name(&node), None);
    assert_eq!(node.pulls(&image()), 2, "it was not tried again");
}
