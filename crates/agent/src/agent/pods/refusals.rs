//! Which refusals the owners of pods have been told of: a gate that is refused asks again and again, and the same Event
//! each time would bury the others.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use trylatest_core::pod::GatedPod;
use trylatest_core::release::Release;

/// When the same refusal is told again, at the earliest. The API server keeps Events for an hour by default.
const AGAIN: Duration = Duration::from_mins(30);

/// The last one of each pod, by uid, and when it was told.
#[derive(Debug, Default)]
pub(super) struct Refusals(HashMap<String, (Instant, Release)>);

impl Refusals {
    /// A pod gets this release: what its owner has been told already.
    pub(super) fn told_before(&mut self, uid: &str, release: &Release) -> Option<Release> {
        if release.opens() {
            self.forget(uid);
            return None;
        }
        if let Some((at, before)) = self.0.get(uid)
            && before.containers == release.containers
            && at.elapsed() < AGAIN
        {
            return Some(before.clone());
        }
        let told = (Instant::now(), release.clone());
        self.0.insert(uid.to_owned(), told);
        None
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
    use trylatest_core::outcome::{Failure, FailureClass, Outcome};
    use trylatest_core::release::ContainerRelease;

    use super::*;

    fn release(outcome: Outcome, class: FailureClass) -> Release {
        let container = ContainerRelease {
            failure: Some(Failure::new(class, "why")),
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
        let network = release(Outcome::Refused, FailureClass::Network);
        assert_eq!(refusals.told_before("one", &network), None);
        advance(AGAIN / 2).await;
        assert_eq!(refusals.told_before("one", &network), Some(network.clone()));
        assert_eq!(refusals.told_before("two", &network), None, "another pod");
        advance(AGAIN / 2).await;
        assert_eq!(refusals.told_before("one", &network), None);
        let other = release(Outcome::Refused, FailureClass::Unauthorized);
        assert_eq!(refusals.told_before("one", &other), None, "it has changed");
        assert!(refusals.told_before("one", &other).is_some());
        let opens = release(Outcome::Fallback, FailureClass::Network);
        assert_eq!(refusals.told_before("one", &opens), None);
        assert_eq!(refusals.told_before("one", &other), None, "it had started");
        refusals.forget("one");
        assert_eq!(refusals.told_before("one", &other), None, "it was gone");
    }
}
