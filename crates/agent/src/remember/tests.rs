use std::fs;
use std::time::Duration;

use hyper::body::Bytes;
use tempfile::TempDir;
use tokio::net::UnixListener;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::record::TryResult;

use super::*;
use crate::clock;

fn tried(result: TryResult) -> Try {
    Try {
        image: "reg.example/app:latest".parse().unwrap(),
        started: clock::wall(),
        duration: Duration::ZERO,
        result,
        digest: "sha256:one".parse().ok(),
        size_bytes: None,
        copy_unknown: false,
        pulled_for: None,
        refused: false,
        by_hand: true,
    }
}

/// What is said of a pull that has ended well.
async fn said(dir: &TempDir) -> String {
    let reported = report(dir.path(), &tried(TryResult::Unchanged)).await;
    format!("{:#}", reported.unwrap_err())
}

#[tokio::test]
async fn an_index_that_cannot_be_read_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join(INDEX);
    fs::write(&index, "this is no index").unwrap();
    let said = said(&dir).await;
    assert!(said.contains("this pull is not remembered"), "{said}");
    assert_eq!(fs::read_to_string(index).unwrap(), "this is no index");
}

#[tokio::test]
async fn beside_an_agent_that_had_no_index_none_is_made() {
    let dir = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(dir.path().join(SOCKET)).unwrap());
    let said = said(&dir).await;
    assert!(said.contains("without an index"), "{said}");
    assert!(!dir.path().join(INDEX).exists());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_answer_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
    let said = said(&dir).await;
    assert!(said.contains("may not know of this pull"), "{said}");
    assert!(said.contains("did not answer within 5s"), "{said}");
    // Nor is it told what its own tries find out.
    let failure = Failure::new(FailureClass::Network, "why");
    let failed = tried(TryResult::Failed(failure));
    report(dir.path(), &failed).await.unwrap();
    assert!(!dir.path().join(INDEX).exists(), "the index is the agent's");
}

#[test]
fn an_agent_that_does_not_take_it_is_quoted() {
    let answer = |status, text: &'static str| heard((status, Bytes::from_static(text.as_bytes())));
    answer(StatusCode::NO_CONTENT, "").unwrap();
    let moved = answer(StatusCode::CONFLICT, "it has moved\n").unwrap_err();
    assert_eq!(moved.to_string(), "it has moved");
    let old = answer(StatusCode::NOT_FOUND, "").unwrap_err();
    assert!(old.to_string().contains("older"), "{old}");
}
