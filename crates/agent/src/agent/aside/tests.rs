use prometheus::IntCounter;
use trylatest_containerd::fake::FakeContainerd;

use super::*;
use crate::agent::offers;

const MIB: u64 = 1 << 20;

fn digest(short: &str) -> Digest {
    format!("sha256:{short}").parse().unwrap()
}

fn app() -> ImageName {
    "reg.example/app:latest".parse().unwrap()
}

/// A node that holds `one`.
fn node() -> FakeContainerd {
    let node = FakeContainerd::new();
    node.hold(&app(), "sha256:one", MIB);
    node
}

fn kept(node: &FakeContainerd) -> Option<String> {
    node.kept(&alias::aside(&app()))
}

#[tokio::test(start_paused = true)]
async fn the_copy_is_kept_while_its_name_is_away() {
    let node = node();
    assert_eq!(take(&node, &app()).await, Ok(Some(digest("one"))));
    assert_eq!(prove(&node, &app()).await, CachedCopy::Absent);
    assert_eq!(kept(&node).as_deref(), Some("sha256:one"));
    let (copy, was_there) = give_back(&node, &app()).await;
    assert_eq!(copy.digest(), Some(&digest("one")));
    assert!(!was_there);
    assert_eq!(kept(&node), None);
}

#[tokio::test(start_paused = true)]
async fn the_kubelets_pull_is_seen_and_stays() {
    let node = node();
    take(&node, &app()).await.unwrap();
    let (moved, _seen) = offers::channel(8, IntCounter::new("dropped", "test").unwrap());
    let image = app();
    let pulled = async {
        sleep(Duration::from_secs(3)).await;
        node.hold(&image, "sha256:two", MIB);
    };
    let (copy, ()) = tokio::join!(follow(&node, &image, 7, &moved), pulled);
    assert_eq!(copy.digest(), Some(&digest("two")));
    assert_eq!(kept(&node), None, "the alias is gone");
    let (copy, was_there) = give_back(&node, &app()).await;
    assert_eq!(
        copy.digest(),
        Some(&digest("two")),
        "nothing is overwritten"
    );
    assert!(was_there);
}

#[tokio::test(start_paused = true)]
async fn where_there_is_no_copy_nothing_is_kept() {
    let node = FakeContainerd::new();
    assert_eq!(take(&node, &app()).await, Ok(None));
    assert_eq!(give_back(&node, &app()).await, (CachedCopy::Absent, false));
}

#[tokio::test(start_paused = true)]
async fn a_name_is_given_back_when_containerd_is_back() {
    let node = node();
    take(&node, &app()).await.unwrap();
    node.set_down(true);
    let back = async {
        sleep(Duration::from_secs(30)).await;
        node.set_down(false);
    };
    let image = app();
    let ((copy, was_there), ()) = tokio::join!(give_back(&node, &image), back);
    assert_eq!(copy.digest(), Some(&digest("one")));
    assert!(!was_there, "nobody knows better");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_begins_gives_back_what_it_finds_aside() {
    let node = node();
    let other: ImageName = "reg.example/other:1".parse().unwrap();
    node.hold(&other, "sha256:other", MIB);
    for image in [&app(), &other] {
        take(&node, image).await.unwrap();
    }
    // One has been pulled since.
    node.hold(&other, "sha256:newer", MIB);
    let state_dir = tempfile::tempdir().unwrap();
    give_back_all(&node, state_dir.path()).await;
    assert_eq!(prove(&node, &app()).await.digest(), Some(&digest("one")));
    assert_eq!(prove(&node, &other).await.digest(), Some(&digest("newer")));
    assert_eq!(node.journal(Journal::Aside).await, Ok(Vec::new()));
}
