//! What a flag's value may be.

use std::time::Duration;

use trylatest_core::config::KEEP_MAX;
use trylatest_core::outcome::FailureClass;

/// Longest duration that can be set: a longer one is a mistake.
const DURATION_MAX: Duration = Duration::from_hours(24);

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text);
    match parsed.map_err(|error| format!("{error}; write it like 5s or 1m30s"))? {
        long if long > DURATION_MAX => Err("the maximum is 24h".to_owned()),
        duration => Ok(duration),
    }
}

pub(super) fn days(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let parsed = humantime::parse_duration(text);
    match parsed.map_err(|error| format!("{error}; write it like 14d or 12h"))? {
        long if long > KEEP_MAX => Err("the maximum is 366d".to_owned()),
        duration => Ok(duration),
    }
}

pub(super) fn age(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text);
    parsed.map_err(|error| format!("{error}; write it like 24h or 7d"))
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
    match days(text)? {
        short if !short.is_zero() && short < REFRESH_MIN => {
            Err("it must be at least 10m, or 0".to_owned())
        }
        every => Ok(every),
    }
}

pub(super) fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

/// A gate that honours releases for a shorter time than the agent thinks would miss some of them, even
/// refusals.
pub(super) fn freshness(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        short if short < trylatest_core::release::FRESHNESS => {
            Err("it must be at least 2m".to_owned())
        }
        freshness => Ok(freshness),
    }
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
