//! How long a release waits for its try to be on disk, and how large the file becomes.
//!
//! `cargo run --release --package trylatest-index --example latency [FOLDER]`

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::record::{Try, TryResult};
use trylatest_index::{Index, Opened};

const IMAGES: usize = 100;
const ROUNDS: usize = 20;

#[expect(
    clippy::disallowed_methods,
    reason = "this measures, and nothing decides on it"
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parent = std::env::args_os()
        .nth(1)
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    let dir = tempfile::tempdir_in(parent)?;
    let path = dir.path().join("index.redb");
    let start = Timestamp::UNIX_EPOCH;
    let Opened { index, .. } = Index::open(&path, start)?;
    let mut took = Vec::with_capacity(IMAGES * ROUNDS);
    for round in 0..ROUNDS {
        for image in 0..IMAGES {
            let tried = Try {
                image: format!("registry.example/team/app-{image}:latest").parse()?,
                started: start + Duration::from_secs(3600 * round as u64),
                duration: Duration::from_millis(25),
                result: TryResult::Failed(Failure::new(
                    FailureClass::Network,
                    "dial tcp: connection refused",
                )),
                digest: format!("sha256:{}", "ab".repeat(32)).parse().ok(),
                size_bytes: Some(12_345_678),
                copy_unknown: false,
                pulled_for: None,
                refused: false,
                by_hand: false,
            };
            let begin = Instant::now();
            index.record(&tried)?;
            took.push(begin.elapsed());
        }
    }
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!(
        "{} tries of {IMAGES} images: p50 {:?}, p99 {:?}, max {:?}",
        took.len(),
        at(50),
        at(99),
        at(100)
    );
    let begin = Instant::now();
    let all = index.all(start)?.len();
    println!("{all} images read in {:?}", begin.elapsed());
    drop(index);
    println!("{} KiB on disk", std::fs::metadata(&path)?.len() / 1024);
    Ok(())
}
