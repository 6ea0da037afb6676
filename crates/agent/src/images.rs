//! `trylatest images`: the index, from the running agent or, if none runs, from its file.

use std::path::Path;

use anyhow::{Context, bail};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use hyper::StatusCode;
use jiff::Timestamp;
use trylatest_core::digest::Digest;
use trylatest_core::record::{Facts, ImageRecord, Try};
use trylatest_core::time::short_age;
use trylatest_index::Index;

use crate::agent::{INDEX, SOCKET};
use crate::args::{ImagesArgs, Output};
use crate::clock;
use crate::socket::{Asked, ask};

/// Prints what the agent remembers.
///
/// # Errors
/// There is no index, or it cannot be read.
pub fn run(args: &ImagesArgs) -> anyhow::Result<()> {
    let ImagesArgs { state_dir, output } = args;
    let records = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(remembered(state_dir))?;
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&records)?,
        Output::Table => table(&records, clock::wall()),
    };
    crate::printed(format!("{text}\n").as_bytes())
}

/// What the agent remembers, or an earlier one has left.
///
/// # Errors
/// There is no index, or it cannot be read.
pub(crate) async fn remembered(state_dir: &Path) -> anyhow::Result<Vec<ImageRecord>> {
    match ask(state_dir, "/images").await? {
        Asked::Answered(StatusCode::OK, body) => Ok(serde_json::from_slice(&body)?),
        Asked::Answered(_, body) => bail!("{}", Asked::text(&body)),
        Asked::NoAgent => {
            let path = state_dir.join(INDEX);
            let index = Index::open_read_only(&path).with_context(|| {
                let socket = state_dir.join(SOCKET);
                // The index names its own path.
                format!("no agent answers at {}", socket.display())
            })?;
            Ok(index.all(clock::wall())?)
        }
    }
}

fn table(records: &[ImageRecord], now: Timestamp) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "IMAGE",
        "LAST TRY",
        "BY",
        "CLASS",
        "DIGEST",
        "BEGAN",
        "CONFIRMED",
        "TRIES/7D",
        "FAILED/7D",
        "ROLLED BACK",
    ]);
    for record in records {
        let last = record.tries.first();
        let ago = |then: Option<Timestamp>| {
            then.map_or_else(
                || "never".to_owned(),
                |then| format!("{} ago", short_age(now, then)),
            )
        };
        let copy = record.facts.copy.as_ref();
        let digest = copy.map_or("-", |copy| copy.digest.short());
        let is_rolled_back =
            copy.is_some_and(|copy| record.facts.rolled_back_here(&copy.digest).is_some());
        let confirmed = match record.copy_confirmed() {
            // It may well have been, once: only the newest confirmation is remembered.
            None if is_rolled_back => "-".to_owned(),
            confirmed => ago(confirmed),
        };
        table.add_row([
            record.image.to_string(),
            last.map_or("-", |last| last.result.as_str()).to_owned(),
            last.map_or("-", by).to_owned(),
            last.and_then(|last| last.result.failure())
                .map_or("-", |failure| failure.class.as_str())
                .to_owned(),
            digest.to_owned(),
            ago(last.map(|last| last.started)),
            confirmed,
            record.week.tries.to_string(),
            record.week.failures.to_string(),
            rolled_back(&record.facts, now),
        ]);
    }
    table.trim_fmt()
}

/// When, and from what, the name was pointed back by hand.
fn rolled_back(facts: &Facts, now: Timestamp) -> String {
    facts.rolled_back.as_ref().map_or("-".to_owned(), |back| {
        let from = back.from.as_ref().map_or("-", Digest::short);
        format!("{} ago from {from}", short_age(now, back.time))
    })
}

/// Who pulled.
fn by(tried: &Try) -> &'static str {
    match tried.pulled_for {
        Some(_) => "kubelet",
        None if tried.by_hand => "hand",
        None => "agent",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use trylatest_core::outcome::{Failure, FailureClass};
    use trylatest_core::record::{LocalCopy, RolledBack, TryResult, Week};

    use super::*;

    #[test]
    fn the_table_has_a_line_an_image() {
        let started: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let record = ImageRecord {
            image: "reg.example/app".parse().unwrap(),
            facts: Facts {
                copy: Some(LocalCopy {
                    digest: format!("sha256:{}", "ab".repeat(32)).parse().unwrap(),
                    size_bytes: None,
                }),
                rolled_back: Some(Box::new(RolledBack {
                    time: started + Duration::from_secs(40),
                    from: format!("sha256:{}", "cd".repeat(32)).parse().ok(),
                    to: format!("sha256:{}", "ab".repeat(32)).parse().unwrap(),
                })),
                ..Facts::default()
            },
            seen: started,
            tries: vec![Try {
                image: "reg.example/app".parse().unwrap(),
                started,
                duration: Duration::from_millis(12),
                result: TryResult::Failed(Failure::new(FailureClass::Network, "refused")),
                digest: format!("sha256:{}", "ab".repeat(32)).parse().ok(),
                size_bytes: None,
                copy_unknown: false,
                pulled_for: None,
                refused: false,
                by_hand: false,
            }],
            week: Week {
                tries: 3,
                failures: 1,
            },
        };
        let text = table(&[record], started + Duration::from_secs(60));
        let mut lines = text.lines();
        assert!(lines.next().unwrap().contains("ROLLED BACK"));
        let words: Vec<_> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(
            words,
            [
                "reg.example/app:latest",
                "failed",
                "agent",
                "network",
                "sha256:abababababab",
                "60s",
                "ago",
                "-",
                "3",
                "1",
                "20s",
                "ago",
                "from",
                "sha256:cdcdcdcdcdcd"
            ]
        );
    }
}
