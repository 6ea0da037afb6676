use jiff::Timestamp;
use prometheus::IntCounter;
use tokio::sync::mpsc::Receiver;
use tokio::time::sleep;
use trylatest_containerd::fake::{Answer, FakeContainerd, Lost};
use trylatest_core::digest::Digest;
use trylatest_core::keep::KeptCopy;
use trylatest_core::record::TryResult;

use super::*;
use crate::agent::offers;

const STALL: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;

const LIMITS: PullLimits = PullLimits {
    stall: STALL,
    floor: Some(Amount::Percent(15)),
    disk: || None,
    alias: alias::of,
};

fn digest(short: &str) -> Digest {
    format!("sha256:{short}").parse().unwrap()
}

fn image() -> ImageName {
    "reg.example/app:latest".parse().unwrap()
}

fn channel<T>(most: usize) -> (Offers<T>, Receiver<T>) {
    offers::channel(most, IntCounter::new("dropped", "test").unwrap())
}

/// A node that holds `one`, and a registry whose tag points to `two`.
fn moved_tag() -> FakeContainerd {
    let node = FakeContainerd::new();
    node.hold(&image(), "sha256:one", MIB);
    node.push(&image(), "sha256:two", MIB);
    node
}

async fn attempt_on(node: &FakeContainerd, image: ImageName, ask: Ask) -> TryEnded {
    let (moved, _looks) = channel(64);
    attempt(node, image, 7, ask, LIMITS, moved, CancellationToken::new()).await
}

/// The same, and what the planner hears of it until it is cut after this time.
async fn cut_after(node: &FakeContainerd, patience: Duration) -> (TryEnded, Vec<(Duration, Flow)>) {
    let (moved, mut looks) = channel(1024);
    let cut = CancellationToken::new();
    let start = Instant::now();
    let tried = attempt(node, image(), 7, Ask::Always, LIMITS, moved, cut.clone());
    let heard = async {
        let mut heard = Vec::new();
        while let Some(moved) = looks.recv().await {
            heard.push((start.elapsed(), moved.flow));
        }
        heard
    };
    let patience = async {
        sleep(patience).await;
        cut.cancel();
    };
    let (tried, heard, ()) = futures::join!(tried, heard, patience);
    (tried, heard)
}

async fn ended(node: &FakeContainerd) -> TryEnded {
    attempt_on(node, image(), Ask::Always).await
}

#[tokio::test(start_paused = true)]
async fn a_moved_tag_is_pulled_and_fresh() {
    let node = moved_tag();
    let ended = ended(&node).await;
    assert_eq!(ended.attempt, 7);
    assert_eq!(ended.evidence.result, TryResult::Fresh);
    assert_eq!(ended.evidence.copy.digest(), Some(&digest("two")));
    assert_eq!(node.kept(&alias::of(&image())), None, "the alias is gone");
}

#[tokio::test(start_paused = true)]
async fn a_failed_pull_leaves_the_copy() {
    let node = moved_tag();
    node.answer(&image(), Answer::fail(FailureClass::ServerError));
    let ended = ended(&node).await;
    let class = ended
        .evidence
        .result
        .failure()
        .cloned()
        .map(|failure| failure.class);
    assert_eq!(class, Some(FailureClass::ServerError));
    assert_eq!(ended.evidence.copy.digest(), Some(&digest("one")));
    assert_eq!(node.kept(&alias::of(&image())), None, "the alias is gone");
}

#[tokio::test(start_paused = true)]
async fn silence_is_seen_at_the_stall_deadline_and_ends_when_it_is_cut() {
    let node = moved_tag();
    node.answer(&image(), Answer::Hang);
    let (ended, heard) = cut_after(&node, Duration::from_millis(60_500)).await;
    let stalled = heard.iter().find(|(_, flow)| flow.has_stalled(STALL));
    assert_eq!(stalled.unwrap().0, STALL);
    let failure = ended.evidence.result.failure().cloned().unwrap();
    assert_eq!(failure.class, FailureClass::Timeout);
    assert_eq!(failure.message, "nothing arrived for 60s");
    assert_eq!(node.running(&image()), 0, "the pull has been stopped");
}

#[tokio::test(start_paused = true)]
async fn a_download_that_stops_tells_how_far_it_came() {
    let node = moved_tag();
    let part = Answer::Receive(1000, Box::new(Answer::Hang));
    let later = Answer::Wait(Duration::from_secs(3), Box::new(part));
    node.answer(&image(), later);
    let (ended, heard) = cut_after(&node, Duration::from_millis(20_500)).await;
    let (at, _) = heard
        .iter()
        .find(|(_, flow)| flow.has_stalled(STALL))
        .unwrap();
    // Movement is seen at the next look.
    assert!(*at >= Duration::from_secs(3) + STALL);
    assert!(*at <= Duration::from_secs(3) + STALL + LOOK_EVERY);
    let failure = ended.evidence.result.failure().cloned().unwrap();
    let words = "nothing moved for 17s after 1000 B of 1.0 MiB";
    assert_eq!(failure.message, words);
}

#[tokio::test(start_paused = true)]
async fn a_slow_download_that_moves_is_no_stall_and_tells_its_bytes() {
    let node = moved_tag();
    let slow = Answer::download(10, MIB / 10, Duration::from_secs(4));
    node.answer(&image(), slow);
    let (sender, mut looks) = channel(1024);
    let ended = attempt(
        &node,
        image(),
        1,
        Ask::Always,
        LIMITS,
        sender,
        CancellationToken::new(),
    )
    .await;
    assert_eq!(ended.evidence.result.failure().cloned(), None);
    assert_eq!(ended.evidence.copy.digest(), Some(&digest("two")));
    let mut bytes = Vec::new();
    while let Some(moved) = looks.recv().await {
        bytes.push(moved.flow.bytes);
    }
    bytes.dedup();
    assert!(bytes.len() >= 9 && bytes.is_sorted(), "{bytes:?}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_start_gives_its_name_back() {
    let node = moved_tag();
    node.spoil_tag(&image(), "it is for windows/amd64");
    let ended = ended(&node).await;
    let failure = ended.evidence.result.failure().cloned().unwrap();
    assert_eq!(failure.class, FailureClass::Invalid);
    assert_eq!(failure.message, "it is for windows/amd64");
    assert_eq!(ended.evidence.copy.digest(), Some(&digest("one")));
    assert_eq!(node.kept(&alias::of(&image())), None, "the alias is gone");
}

#[tokio::test(start_paused = true)]
async fn a_try_that_was_cut_off_is_made_good_by_the_next() {
    let node = moved_tag();
    let alias = alias::of(&image());
    // The agent was killed after containerd had moved the name to something unusable.
    node.keep(&image(), &alias, Pin::Unpinned).await.unwrap();
    node.spoil(&image(), "half an image");
    node.answer(&image(), Answer::fail(FailureClass::Network));
    let ended = ended(&node).await;
    assert_eq!(ended.evidence.copy.digest(), Some(&digest("one")));
    assert_eq!(node.kept(&alias), None, "the alias is gone");
}

#[tokio::test(start_paused = true)]
async fn a_settled_digest_is_not_asked_for_again() {
    let node = FakeContainerd::new();
    let digest = "a".repeat(64);
    let image: ImageName = format!("reg.example/app@sha256:{digest}").parse().unwrap();
    node.hold(&image, &format!("sha256:{digest}"), MIB);
    node.answer(&image, Answer::Hang);
    let ended = attempt_on(&node, image.clone(), Ask::IfAbsent).await;
    assert_eq!(
        (ended.evidence.result.failure().cloned(), node.pulls(&image)),
        (None, 0)
    );
    // Nobody has said that anybody may have it: the registry is asked.
    node.answer(&image, Answer::fail(FailureClass::Unauthorized));
    let ended = attempt_on(&node, image.clone(), Ask::Always).await;
    assert_eq!(node.pulls(&image), 1);
    assert_eq!(
        ended.evidence.result.failure().cloned().unwrap().class,
        FailureClass::Unauthorized
    );
}

#[tokio::test(start_paused = true)]
async fn a_dead_containerd_is_no_absent_image() {
    let node = moved_tag();
    node.set_down(true);
    let ended = ended(&node).await;
    assert!(matches!(ended.evidence.copy, CachedCopy::Unknown { .. }));
    assert_eq!(
        ended.evidence.result.failure().cloned().unwrap().class,
        FailureClass::Local
    );
}

#[tokio::test(start_paused = true)]
async fn a_try_that_has_failed_already_asks_nobody_and_tells_the_copy() {
    let node = moved_tag();
    let silence = Failure::new(FailureClass::Timeout, "nothing arrived for 5s");
    let ended = attempt_on(&node, image(), Ask::Never(silence.clone())).await;
    assert_eq!(
        (
            ended.evidence.result.failure().cloned(),
            node.pulls(&image())
        ),
        (Some(silence), 0)
    );
    assert_eq!(ended.evidence.copy.digest(), Some(&digest("one")));
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_containerds_queue_has_not_stalled() {
    let node = FakeContainerd::serving(1);
    node.hold(&image(), "sha256:one", MIB);
    node.push(&image(), "sha256:two", MIB);
    let other: ImageName = "reg.example/other:latest".parse().unwrap();
    node.push(&other, "sha256:other", MIB);
    for image in [&other, &image()] {
        node.answer(image, Answer::download(3, MIB / 3, Duration::from_secs(4)));
    }
    let first = attempt_on(&node, other, Ask::Always);
    let (first, second) = tokio::join!(biased; first, ended(&node));
    let results = [first, second].map(|ended| ended.evidence.result);
    assert!(
        results.iter().all(|result| result.failure().is_none()),
        "{results:?}"
    );
}

/// A node whose copy is the tag's, and has lost something.
fn lost(lost: Lost) -> FakeContainerd {
    let node = FakeContainerd::new();
    node.hold(&image(), "sha256:one", MIB);
    node.push(&image(), "sha256:one", MIB);
    node.lose(&image(), Some(lost));
    node
}

#[tokio::test(start_paused = true)]
async fn an_unpacked_layer_that_is_gone_is_mended_and_pulled_again() {
    let node = lost(Lost::Unpacked);
    let ended = ended(&node).await;
    assert_eq!(
        (
            ended.evidence.result.failure().cloned(),
            node.pulls(&image())
        ),
        (None, 2)
    );
    assert_eq!(ended.evidence.copy.digest(), Some(&digest("one")));
    let healed = ended.evidence.healed.unwrap();
    assert_eq!(healed, "healed: this node's disk had lost a layer");
}

#[tokio::test(start_paused = true)]
async fn a_settled_copy_that_is_damaged_is_left_to_a_try_that_asks() {
    let node = lost(Lost::Unpacked);
    let ended = attempt_on(&node, image(), Ask::IfAbsent).await;
    assert_eq!(
        (ended.evidence.copy.digest(), node.pulls(&image())),
        (None, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_it_is_mended_and_the_registry_not_asked_again() {
    let node = lost(Lost::Unpacked);
    node.answer(&image(), Answer::fail(FailureClass::Network));
    let ended = ended(&node).await;
    assert_eq!(
        ended.evidence.result.failure().cloned().unwrap().class,
        FailureClass::Network
    );
    assert_eq!(node.pulls(&image()), 1);
    // The layers are here, and containerd unpacks them again.
    assert_eq!(ended.evidence.copy.digest(), Some(&digest("one")));
    assert!(ended.evidence.healed.is_some());
}

#[tokio::test(start_paused = true)]
async fn what_is_in_use_is_no_copy_and_says_so() {
    let node = lost(Lost::UnpackedInUse);
    let ended = ended(&node).await;
    let failure = ended.evidence.result.failure().cloned().unwrap();
    assert_eq!(failure.class, FailureClass::Local);
    assert_eq!(failure.message, "an unpacked layer is in use");
    assert_eq!(
        (ended.evidence.copy.digest(), ended.evidence.healed),
        (None, None)
    );
}

#[tokio::test(start_paused = true)]
async fn a_shared_layer_that_is_gone_does_not_stop_a_moved_tag() {
    let node = moved_tag();
    node.lose(&image(), Some(Lost::SharedLayer));
    let ended = ended(&node).await;
    assert_eq!(
        (
            ended.evidence.result.failure().cloned(),
            node.pulls(&image())
        ),
        (None, 2)
    );
    assert_eq!(ended.evidence.copy.digest(), Some(&digest("two")));
    assert!(ended.evidence.healed.is_some());
}

/// A pull may stand still for so much longer, and no longer than twice the deadline.
#[tokio::test(start_paused = true)]
async fn a_busy_containerd_is_given_more_time() {
    for (look, more) in [(5, 100), (100, 2000), (2000, 5000), (6000, 5000)] {
        let node = moved_tag();
        node.look_takes(Duration::from_millis(look));
        node.answer(&image(), Answer::Hang);
        let (_, heard) = cut_after(&node, Duration::from_secs(30)).await;
        let stalled = heard.iter().find(|(_, flow)| flow.has_stalled(STALL));
        let late = stalled.unwrap().0.checked_sub(STALL).unwrap();
        let more = Duration::from_millis(more);
        assert!(late >= more, "{look}: {late:?}");
        assert!(late <= more + LOOK_AT_STALLED_EVERY, "{look}: {late:?}");
    }
}

#[test]
fn looks_that_take_long_are_rarer_and_in_time() {
    for (took, pause) in [
        (0, 250),
        (20, 250),
        (100, 400),
        (500, 2000),
        (2000, 1500),
        (6000, 250),
    ] {
        let after = pause_after(Duration::from_millis(took), STALL);
        assert_eq!(after, Duration::from_millis(pause), "{took}");
    }
}

/// A node whose images' file system has 16 of 100 GiB left.
const NEARLY_FULL: PullLimits = PullLimits {
    disk: || {
        Some(Disk {
            total: 100 << 30,
            free: 16 << 30,
            lacks_inodes: false,
        })
    },
    ..LIMITS
};

async fn attempt_on_full_disk(node: &FakeContainerd) -> TryEnded {
    let (moved, _looks) = channel(64);
    let cut = CancellationToken::new();
    attempt(node, image(), 7, Ask::Always, NEARLY_FULL, moved, cut).await
}

#[tokio::test(start_paused = true)]
async fn a_download_that_does_not_fit_is_stopped_where_there_is_a_copy() {
    let node = moved_tag();
    node.push(&image(), "sha256:two", 2 << 30);
    let download = Answer::download(20, 100 * MIB, Duration::from_millis(100));
    node.answer(&image(), download.clone());
    let ended = attempt_on_full_disk(&node).await;
    let TryResult::Failed(failure) = ended.evidence.result else {
        panic!("{ended:?}");
    };
    assert_eq!(failure.class, FailureClass::Local);
    assert!(
        failure
            .to_string()
            .contains("not enough room on this node's disk"),
        "{failure}"
    );
    assert_eq!(ended.evidence.copy.digest(), Some(&digest("one")));
    assert_eq!(node.running(&image()), 0, "the pull has ended");
    // Without a copy the kubelet would pull as well.
    let node = FakeContainerd::new();
    node.push(&image(), "sha256:two", 2 << 30);
    node.answer(&image(), download);
    let ended = attempt_on_full_disk(&node).await;
    assert_eq!(ended.evidence.result, TryResult::Fresh);
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_tag_needs_no_room() {
    let node = FakeContainerd::new();
    node.hold(&image(), "sha256:one", 2 << 30);
    node.push(&image(), "sha256:one", 2 << 30);
    let ended = attempt_on_full_disk(&node).await;
    assert_eq!(ended.evidence.result, TryResult::Unchanged);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_removed_is_given_back_to_the_kept_copy() {
    let node = moved_tag();
    let copy = KeptCopy {
        image: image(),
        digest: digest("one"),
        size_bytes: MIB,
        since: Timestamp::UNIX_EPOCH,
        used: Timestamp::UNIX_EPOCH,
        proven: true,
        public: true,
        pinned: true,
    };
    node.keep_copy(&copy).await.unwrap();
    node.remove(image().as_str());
    node.answer(&image(), Answer::fail(FailureClass::Network));
    let ended_now = ended(&node).await;
    assert_eq!(ended_now.evidence.copy.digest(), Some(&digest("one")));
    // Nobody knows who may have this one.
    let private = KeptCopy {
        public: false,
        ..copy
    };
    node.keep_copy(&private).await.unwrap();
    node.remove(image().as_str());
    let ended_now = ended(&node).await;
    assert_eq!(ended_now.evidence.copy, CachedCopy::Absent);
}

/// The agent ends while a registry hangs, or is killed.
#[tokio::test(start_paused = true)]
async fn what_a_try_that_was_cut_off_has_left_goes_when_the_agent_ends_or_begins() {
    let alias = alias::of(&image());
    for is_spoiled in [false, true] {
        let node = moved_tag();
        node.answer(&image(), Answer::Hang);
        let cut_off = tokio::time::timeout(Duration::from_secs(1), ended(&node)).await;
        assert!(cut_off.is_err());
        assert!(node.kept(&alias).is_some());
        if is_spoiled {
            node.hold(&image(), "sha256:three", MIB);
            node.spoil(&image(), "nothing can start from it");
        }
        end_all(&node).await;
        assert_eq!(node.kept(&alias), None, "{is_spoiled}");
        let copy = prove(&node, &image()).await;
        assert_eq!(copy.digest(), Some(&digest("one")), "{is_spoiled}");
    }
}
