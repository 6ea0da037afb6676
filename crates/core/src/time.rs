//! Time as an argument.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// One reading of both clocks.
///
/// Deadlines run on `up`, which never jumps; what is written down, and compared with what others
/// wrote down, uses `wall`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The node's wall clock; it may be set at any moment, most likely right after a boot.
    pub wall: Timestamp,
    /// Time since this process started, on the monotonic clock.
    pub up: Duration,
}

/// How long ago `then` was; zero if it lies in the future.
pub fn age(now: Timestamp, then: Timestamp) -> Duration {
    now.duration_since(then)
        .try_into()
        .unwrap_or(Duration::ZERO)
}

/// Whether two readings of the wall clock lie at most `within` apart, in either direction.
pub fn near(a: Timestamp, b: Timestamp, within: Duration) -> bool {
    let apart = a.duration_since(b).abs();
    SignedDuration::try_from(within).is_ok_and(|within| apart <= within)
}

/// How long ago `then` was, in the largest unit that fits: `42s`, `7m`, `3h`, `12d`.
pub fn short_age(now: Timestamp, then: Timestamp) -> String {
    crate::text::short_duration(age(now, then))
}

/// A setting as people write it, in days where it is a day or more: `30d`, `1m 30s`. Humantime's months and years are not
/// whole days, so that it shows `60d` as `1month 29days 13h 26m 24s`.
pub(crate) fn written(setting: Duration) -> String {
    const DAY: u64 = 24 * 3600;
    let (days, rest) = (setting.as_secs() / DAY, setting.as_secs() % DAY);
    let rest = Duration::new(rest, setting.subsec_nanos());
    match (days, rest) {
        (0, _) => humantime::format_duration(setting).to_string(),
        (_, Duration::ZERO) => format!("{days}d"),
        _ => format!("{days}d {}", humantime::format_duration(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_shown_as_it_is_written() {
        for text in [
            "0s", "1m 30s", "23h", "1d", "60d", "366d", "1d 12h", "500ms",
        ] {
            let setting = humantime::parse_duration(text).unwrap();
            assert_eq!(written(setting), text);
        }
    }
}
