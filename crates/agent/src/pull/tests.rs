use tokio::time::sleep;
use trylatest_containerd::Pin;
use trylatest_containerd::fake::{Answer, FakeContainerd};
use trylatest_core::record::Confirmation;

use super::*;
use crate::args::{Cli, Command};

const MIB: u64 = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(30);
const STALL: Duration = Duration::from_secs(5);

fn image() -> ImageName {
    "reg.example/app:latest".parse().unwrap()
}

/// A node that holds `one`, and a registry whose tag points to `two`.
fn moved_tag() -> FakeContainerd {
    let node = FakeContainerd::new();
    node.hold(&image(), "sha256:one", MIB);
    node.push(&image(), "sha256:two", MIB);
    node
}

fn args(more: &[&str]) -> PullOnceArgs {
    use clap::Parser;

    let args = ["trylatest", "pull", "reg.example/app"].iter().chain(more);
    match Cli::parse_from(args).command {
        Command::Pull(args) => args,
        other => panic!("{other:?}"),
    }
}

async fn pulled_with(
    node: &FakeContainerd,
    facts: &Facts,
    more: &[&str],
) -> anyhow::Result<(Try, Pulled)> {
    let limits = PullLimits {
        stall: STALL,
        floor: None,
        disk: || None,
        alias: alias::undo,
    };
    let (image, rules) = (image(), rules(&args(more)));
    let order = Order {
        image: &image,
        rules: &rules,
        facts,
    };
    let pulled = order
        .pull(
            node,
            limits,
            &mut Bar::on_stderr(),
            &CancellationToken::new(),
        )
        .await;
    for alias in [alias::undo(&image), alias::of(&image)] {
        assert_eq!(node.kept(&alias), None, "{alias} is left");
    }
    pulled
}

async fn pulled(node: &FakeContainerd, more: &[&str]) -> Pulled {
    let (_, pulled) = pulled_with(node, &Facts::default(), more).await.unwrap();
    pulled
}

fn code(pulled: &Pulled) -> String {
    format!("{:?}", pulled.exit_code())
}

fn exits_with(code: u8) -> String {
    format!("{:?}", ExitCode::from(code))
}

#[tokio::test(start_paused = true)]
async fn a_moved_tag_is_fresh_and_then_unchanged() {
    let node = moved_tag();
    let fresh = pulled(&node, &[]).await;
    assert_eq!(
        fresh.words(),
        "fresh: reg.example/app:latest is now sha256:two"
    );
    let unchanged = pulled(&node, &[]).await;
    assert_eq!(unchanged.outcome, Outcome::Unchanged);
    assert_eq!(
        unchanged.confirmed.map(|then| then <= unchanged.time),
        Some(true)
    );
    assert_eq!(
        [code(&fresh), code(&unchanged)],
        [exits_with(0), exits_with(0)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_pull_falls_back_or_is_refused_or_finds_nothing() {
    let node = moved_tag();
    node.answer(&image(), Answer::fail(FailureClass::ServerError));
    let facts = Facts {
        confirmed: Some(Confirmation {
            time: clock::wall() - Duration::from_hours(3),
            digest: "sha256:one".parse().unwrap(),
        }),
        ..Facts::default()
    };
    let (tried, fallback) = pulled_with(&node, &facts, &["--max-age=4h"]).await.unwrap();
    assert_eq!(
        fallback.words(),
        "fallback: reg.example/app:latest is the cached copy sha256:one, confirmed 3h ago; server-error: scripted: \
         server-error"
    );
    assert_eq!(
        tried.result.failure().unwrap().class,
        FailureClass::ServerError
    );
    let back = RolledBack {
        time: clock::wall() - Duration::from_mins(5),
        from: "sha256:two".parse().ok(),
        to: "sha256:one".parse().unwrap(),
    };
    let after = Facts {
        rolled_back: Some(Box::new(back)),
        ..Facts::default()
    };
    let (_, back) = pulled_with(&node, &after, &[]).await.unwrap();
    let words = "is the cached copy sha256:one, rolled back from sha256:two 5m ago; server-error";
    assert!(back.words().contains(words), "{}", back.words());
    let (_, old) = pulled_with(&node, &facts, &["--max-age=2h"]).await.unwrap();
    assert!(
        old.words().contains("the command's max-age of 2h"),
        "{}",
        old.words()
    );
    let unknown = pulled(&node, &["--max-age=2h"]).await;
    assert!(
        unknown.words().contains("does not know how old it is"),
        "{}",
        unknown.words()
    );
    let strict = pulled(&node, &["--fallback-on=network"]).await;
    let words = strict.words();
    assert!(
        words.contains("the command's fallback-on does not list server-error"),
        "{words}"
    );
    node.answer(&image(), Answer::fail(FailureClass::Blocked));
    let blocked = pulled(&node, &[]).await;
    let nothing = FakeContainerd::new();
    nothing.answer(&image(), Answer::fail(FailureClass::Unauthorized));
    let private = pulled(&nothing, &[]).await;
    assert_eq!(
        private.words(),
        "unavailable: this node has no usable copy of reg.example/app:latest; unauthorized: scripted: unauthorized; this \
         command has no credentials"
    );
    for (pulled, exit_code) in [
        (fallback, FELL_BACK),
        (old, REFUSED),
        (unknown, REFUSED),
        (strict, REFUSED),
        (blocked, REFUSED),
        (private, UNAVAILABLE),
    ] {
        assert_eq!(code(&pulled), exits_with(exit_code), "{pulled:?}");
    }
}

/// Like a private image's copy that somebody has imported: root may use it all the same.
#[tokio::test(start_paused = true)]
async fn whose_credentials_a_copy_was_pulled_with_does_not_matter_by_hand() {
    let node = moved_tag();
    node.answer(&image(), Answer::fail(FailureClass::Unauthorized));
    let facts = Facts {
        needs_credentials: true,
        ..Facts::default()
    };
    let (_, fallback) = pulled_with(&node, &facts, &[]).await.unwrap();
    assert_eq!(fallback.outcome, Outcome::Fallback);
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_stands_still_ends_at_the_stall_deadline_where_there_is_a_copy() {
    let node = moved_tag();
    node.answer(&image(), Answer::Hang);
    let start = Instant::now();
    let fallback = pulled(&node, &[]).await;
    assert_eq!(start.elapsed(), STALL);
    assert_eq!(node.running(&image()), 0, "the pull goes on");
    let failure = fallback.failure.unwrap();
    assert_eq!(failure.message, "nothing arrived for 5s");
    // One that must not be used is no reason to end earlier.
    let start = Instant::now();
    let refused = pulled(&node, &["--max-age=1h"]).await;
    assert_eq!(refused.outcome, Outcome::Refused);
    assert!(start.elapsed() >= TIMEOUT, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_timeout_ends_a_download_that_moves_where_there_is_a_copy_and_says_so() {
    let slow = Answer::download(100, MIB / 100, Duration::from_secs(1));
    let node = moved_tag();
    node.answer(&image(), slow.clone());
    let fallback = pulled(&node, &[]).await;
    let message = fallback.failure.unwrap().message;
    assert!(
        message.starts_with("the timeout of 30s has passed after "),
        "{message}"
    );
    // Without a copy, nothing is gained by that.
    let node = FakeContainerd::new();
    node.push(&image(), "sha256:two", MIB);
    node.answer(&image(), slow);
    assert_eq!(pulled(&node, &[]).await.outcome, Outcome::Fresh);
    // But not for a registry that is silent.
    node.forget_pulls(&image());
    let node = FakeContainerd::new();
    node.answer(&image(), Answer::Hang);
    let start = Instant::now();
    assert_eq!(pulled(&node, &[]).await.outcome, Outcome::Unavailable);
    assert!((TIMEOUT..TIMEOUT * 2).contains(&start.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_tried_is_an_error_and_changes_nothing() {
    let node = moved_tag();
    node.set_aside(&image(), &alias::aside(&image()))
        .await
        .unwrap();
    let error = pulled_with(&node, &Facts::default(), &[])
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("the kubelet is pulling"),
        "{error}"
    );
    assert_eq!(node.pulls(&image()), 0);
    let node = moved_tag();
    node.set_down(true);
    assert!(pulled_with(&node, &Facts::default(), &[]).await.is_err());
}

/// The agent tries the same image at the same time, and its alias is its own.
#[tokio::test(start_paused = true)]
async fn the_alias_of_the_agents_try_stays() {
    let node = moved_tag();
    node.keep(&image(), &alias::of(&image()), Pin::Unpinned)
        .await
        .unwrap();
    node.answer(&image(), Answer::Wait(STALL / 2, Box::new(Answer::Succeed)));
    let limits = PullLimits {
        stall: STALL,
        floor: None,
        disk: || None,
        alias: alias::undo,
    };
    let (image, rules) = (image(), rules(&args(&[])));
    let order = Order {
        image: &image,
        rules: &rules,
        facts: &Facts::default(),
    };
    let mut bar = Bar::on_stderr();
    let stop = CancellationToken::new();
    let meanwhile = async {
        sleep(STALL / 4).await;
        assert!(
            node.kept(&alias::undo(&image)).is_some(),
            "nothing keeps the copy"
        );
    };
    let (pulled, ()) = futures::join!(order.pull(&node, limits, &mut bar, &stop), meanwhile);
    assert_eq!(pulled.unwrap().1.outcome, Outcome::Fresh);
    assert!(node.kept(&alias::of(&image)).is_some());
}

#[tokio::test]
async fn without_an_agent_the_next_pull_knows_of_this_one() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("new");
    let memory = Memory::of(&state_dir, &image()).await;
    assert!(memory.unknown.is_some());
    let node = moved_tag();
    let (tried, _) = pulled_with(&node, &memory.facts, &[]).await.unwrap();
    let started = tried.started;
    remember(&state_dir, tried).await;
    let memory = Memory::of(&state_dir, &image()).await;
    assert_eq!(memory.unknown, None);
    let two = "sha256:two".parse().unwrap();
    assert_eq!(memory.facts.confirmed_at(&two), Some(started));
}

#[tokio::test(start_paused = true)]
async fn programs_get_the_same_as_json() {
    let node = moved_tag();
    node.answer(&image(), Answer::fail(FailureClass::Network));
    let mut pulled = pulled(&node, &[]).await;
    (pulled.took_millis, pulled.time) = (7, "2026-01-01T12:00:00Z".parse().unwrap());
    assert_eq!(
        serde_json::to_value(&pulled).unwrap(),
        serde_json::json!({
            "image": "reg.example/app:latest",
            "outcome": "fallback",
            "class": "network",
            "message": "scripted: network",
            "digest": "sha256:one",
            "sizeBytes": MIB,
            "tookMillis": 7,
            "time": "2026-01-01T12:00:00Z",
        })
    );
}
