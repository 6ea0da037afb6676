//! Hand-overs at a pace that the kubelet's limit of pulls allows.

use std::time::Duration;

/// The kubelet allows 5 pulls a second, and 10 at once (`registryPullQPS`, `registryBurst`), and has
/// pulls of its own: this leaves it some.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When all that were let through would have been, one after the other.
    paid: Duration,
}

impl Pace {
    const EVERY: Duration = Duration::from_millis(250);
    const AT_ONCE: u32 = 8;

    /// Lets so many through, or says when.
    pub(super) fn take(&mut self, count: usize, now: Duration) -> Result<(), Duration> {
        let free = self.paid.saturating_sub(Self::EVERY * (Self::AT_ONCE - 1));
        if free > now {
            return Err(free);
        }
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.paid = self.paid.max(now) + Self::EVERY.saturating_mul(count);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_at_once_then_four_a_second() {
        let mut pace = Pace::default();
        let now = Duration::from_secs(100);
        for _ in 0..8 {
            assert_eq!(pace.take(1, now), Ok(()));
        }
        let next = pace.take(1, now).expect_err("the ninth waits");
        assert_eq!(next, now + Pace::EVERY);
        assert_eq!(pace.take(1, next), Ok(()));
        assert!(pace.take(1, next).is_err());
        // More images than are let through at once are not held back for ever.
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.take(20, later), Ok(()));
        assert!(pace.take(1, later + Duration::from_secs(2)).is_err());
    }
}
