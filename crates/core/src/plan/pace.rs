//! Hand-overs at a pace that the kubelet's limit of pulls allows.

use std::time::Duration;

use crate::rules::PullLimit;

/// Of the kubelet's limit, so much is left for pulls of its own, and for hand-overs that it comes to late and then all
/// at once: what exceeds it waits out a back-off of ten seconds. 20 % of it.
const LEFT: u32 = 5;

/// How soon pulls may follow each other.
#[derive(Debug)]
pub(super) struct Pace {
    every: Duration,
    at_once: u32,
    /// When all that were let through would have been, one after the other.
    paid: Duration,
}

impl Pace {
    pub(super) fn new(limit: PullLimit) -> Self {
        let most = |limit: u32| limit - limit.div_ceil(LEFT);
        let second = Duration::from_secs(1);
        let every = second.checked_div(limit.per_second);
        let every = every.map_or(Duration::ZERO, |every| every * LEFT / (LEFT - 1));
        Self {
            every,
            at_once: most(limit.at_once).max(1),
            paid: Duration::ZERO,
        }
    }

    /// Lets so many through, or says when.
    pub(super) fn take(&mut self, count: usize, now: Duration) -> Result<(), Duration> {
        let ahead = self.every.saturating_mul(self.at_once - 1);
        let free = self.paid.saturating_sub(ahead);
        if free > now {
            return Err(free);
        }
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.paid = self.paid.max(now) + self.every.saturating_mul(count);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn pace(per_second: u32, at_once: u32) -> Pace {
        Pace::new(PullLimit {
            per_second,
            at_once,
        })
    }

    #[test]
    fn the_kubelets_defaults_are_eight_at_once_then_four_a_second() {
        let mut pace = Pace::new(PullLimit::default());
        for _ in 0..8 {
            assert_eq!(pace.take(1, NOW), Ok(()));
        }
        let next = pace.take(1, NOW).expect_err("the ninth waits");
        assert_eq!(next, NOW + Duration::from_millis(250));
        assert_eq!(pace.take(1, next), Ok(()));
        assert!(pace.take(1, next).is_err());
        // More images than are let through at once are not held back for ever.
        let later = NOW + Duration::from_secs(60);
        assert_eq!(pace.take(20, later), Ok(()));
        assert!(pace.take(1, later + Duration::from_secs(2)).is_err());
    }

    #[test]
    fn a_kubelet_that_allows_less_is_asked_for_less() {
        let mut pace = pace(1, 1);
        assert_eq!(pace.take(1, NOW), Ok(()));
        let next = pace.take(1, NOW).expect_err("one at a time");
        assert_eq!(next, NOW + Duration::from_millis(1_250));
    }

    #[test]
    fn a_kubelet_without_a_limit_sets_no_pace() {
        let mut pace = pace(0, 10);
        for _ in 0..1_000 {
            assert_eq!(pace.take(3, NOW), Ok(()));
        }
    }
}
