//! Pauses that grow, with jitter that needs no randomness: the same for the same cause, and different
//! between nodes, images and pods, which must not come back in step.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// A pause before something is done again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    /// The first pause.
    pub(super) first: Duration,
    /// The longest.
    pub(super) longest: Duration,
}

impl Backoff {
    /// The pause after so many failures in a row, from 1: it doubles from the first to the longest, with
    /// a quarter of jitter either way, by who waits.
    pub(super) fn pause(self, failures: u32, who: impl Hash) -> Duration {
        let doublings = failures.saturating_sub(1).min(10);
        let pause = self.first.saturating_mul(1 << doublings).min(self.longest);
        let mut hasher = DefaultHasher::new();
        (who, failures).hash(&mut hasher);
        let percent = u32::try_from(hasher.finish() % 51).unwrap_or(0) + 75;
        pause * percent / 100
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(10),
    };

    #[test]
    fn pauses_grow_to_the_longest_and_differ_between_those_who_wait() {
        for who in 0..20 {
            for failures in 0..40 {
                let pause = BACKOFF.pause(failures, who);
                assert!(pause >= BACKOFF.first * 3 / 4 && pause <= BACKOFF.longest * 5 / 4);
            }
            assert!(BACKOFF.pause(1, who) < Duration::from_millis(1251));
            assert!(BACKOFF.pause(8, who) > Duration::from_secs(7));
        }
        let different: BTreeSet<_> = (0..20).map(|who| BACKOFF.pause(3, who)).collect();
        assert!(different.len() > 5);
    }
}
