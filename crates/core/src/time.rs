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
