//! What a flag's value may be.

use std::time::Duration;

use trylatest_core::config::KEPT;
use trylatest_core::duration::Range;
use trylatest_core::outcome::FailureClass;
use trylatest_core::release::FRESHNESS;

/// Longest duration that can be set: a longer one is a mistake.
const DURATION_MAX: Duration = Duration::from_hours(24);

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    Range::wait(DURATION_MAX).or_zero().parse(text)
}

pub(super) fn kept(text: &str) -> Result<Duration, String> {
    KEPT.parse(text)
}

pub(super) fn age(text: &str) -> Result<Duration, String> {
    Range::AGE.parse(text)
}

/// A failure class, or which ones there are.
pub(super) fn class(text: &str) -> Result<FailureClass, String> {
    text.parse().map_err(|error| {
        let all = FailureClass::ALL.map(FailureClass::as_str);
        format!("{error}; there are {}", all.join(", "))
    })
}

/// More often than this, it would be the registry that notices.
const REFRESH_MIN: Duration = Duration::from_mins(10);

pub(super) fn refresh(text: &str) -> Result<Duration, String> {
    let range = Range {
        least: REFRESH_MIN,
        examples: ["6h", "1d"],
        ..KEPT
    };
    range.parse(text)
}

pub(super) fn positive(text: &str) -> Result<Duration, String> {
    Range::wait(DURATION_MAX).parse(text)
}

/// A gate that honours releases for a shorter time than the agent thinks would miss some of them, even
/// refusals.
pub(super) fn freshness(text: &str) -> Result<Duration, String> {
    let range = Range {
        least: FRESHNESS,
        examples: ["2m", "5m"],
        ..Range::wait(DURATION_MAX)
    };
    range.parse(text)
}

/// An empty variable is most often a mistake in a manifest.
pub(super) fn not_empty(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        Err("it must not be empty".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    match text.parse::<tracing_subscriber::filter::Targets>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
