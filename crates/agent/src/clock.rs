//! The one place that reads the time.

use jiff::Timestamp;
use tokio::time::Instant;
use trylatest_core::time::Now;

/// Both clocks, from one start. `up` follows tokio's clock, which tests pause.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    pub(crate) fn now(self) -> Now {
        Now {
            wall: wall(),
            up: self.start.elapsed(),
        }
    }
}

/// The wall clock.
#[cfg(not(test))]
pub(crate) fn wall() -> Timestamp {
    read()
}

/// The same for tests, where it follows tokio's clock as well.
#[cfg(test)]
pub(crate) fn wall() -> Timestamp {
    use std::sync::LazyLock;

    static START: LazyLock<(Timestamp, Instant)> = LazyLock::new(|| (read(), Instant::now()));
    let (wall, up) = *START;
    wall + up.elapsed()
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the module that reads the clock"
)]
fn read() -> Timestamp {
    Timestamp::now()
}
