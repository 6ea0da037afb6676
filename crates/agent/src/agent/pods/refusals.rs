//! Which refusals the owners of pods have been told of: a gate that is refused asks again and again, and the same Event
//! each time would bury the others.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;
use trylatest_core::digest::Digest;
use trylatest_core::outcome::{FailureClass, Outcome};
use trylatest_core::pod::GatedPod;
use trylatest_core::release::Release;

/// When the same refusal is told again, at the earliest. The API server keeps Events for an hour by default.
const AGAIN: Duration = Duration::from_mins(30);

/// What was told of each container, by name. Messages and notes have ages and ports in them, which change all the time.
type Told = BTreeMap<String, (Outcome, Option<FailureClass>, Option<Digest>)>;

/// The last one of each pod, by uid, and when it was told.
#[derive(Debug, Default)]
pub(super) struct Refusals(HashMap<String, (Instant, Told)>);

impl Refusals {
    /// A pod gets this release: whether its owner has been told of it already.
    pub(super) fn was_told(&mut self, uid: &str, release: &Release) -> bool {
        if release.opens() {
            self.forget(uid);
            return false;
        }
        let containers = release.containers.iter().map(|(name, given)| {
            let class = given.class();
            (name.clone(), (given.outcome, class, given.digest.clone()))
        });
        let told: Told = containers.collect();
        if let Some((at, before)) = self.0.get(uid)
            && *before == told
            && at.elapsed() < AGAIN
        {
            return true;
        }
        self.0.insert(uid.to_owned(), (Instant::now(), told));
        false
    }

    /// No other pods are left.
    pub(super) fn retain(&mut self, pods: &[GatedPod]) {
        self.0
            .retain(|uid, _| pods.iter().any(|pod| pod.id.uid == *uid));
    }

    /// The pod is gone, or starts.
    pub(super) fn forget(&mut self, uid: &str) {
        self.0.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;
    use trylatest_core::outcome::Failure;
    use trylatest_core::release::ContainerRelease;

    use super::*;

    fn release(outcome: Outcome, class: FailureClass, note: &str) -> Release {
        let container = ContainerRelease {
            failure: Some(Failure::new(class, note)),
            note: Some(note.to_owned()),
            ..ContainerRelease::new("reg.example/app", outcome)
        };
        Release {
            time: "2026-01-01T12:00:00Z".parse().unwrap(),
            containers: [("app".to_owned(), container)].into(),
            unseen: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_that_lasts_is_told_every_half_hour() {
        let mut refusals = Refusals::default();
        let network = |note| release(Outcome::Refused, FailureClass::Network, note);
        assert!(!refusals.was_told("one", &network("61m ago")));
        advance(AGAIN / 2).await;
        assert!(refusals.was_told("one", &network("76m ago")));
        assert!(!refusals.was_told("two", &network("61m ago")), "another");
        advance(AGAIN / 2).await;
        assert!(!refusals.was_told("one", &network("91m ago")));
        let other = release(Outcome::Refused, FailureClass::Unauthorized, "why");
        assert!(!refusals.was_told("one", &other), "it has changed");
        assert!(refusals.was_told("one", &other));
        let opens = release(Outcome::Fallback, FailureClass::Network, "why");
        assert!(!refusals.was_told("one", &opens));
        assert!(!refusals.was_told("one", &other), "it had started");
        refusals.forget("one");
        assert!(!refusals.was_told("one", &other), "it was gone");
    }
}
