//! The end: everything is answered, and no gate waits.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use trylatest_core::plan::{Event as Seen, Written};
use trylatest_core::pod::{GateState, GatedPod};

use super::{AWAY, Answer, GRACE, TRY, World, digest};

impl World {
    /// From here on everything is answered soon, for better or worse; no gate may wait at the end.
    pub(super) fn calms_down(
        &mut self,
        answers: &[Answer],
        kubelet_works: bool,
    ) -> Result<(), TestCaseError> {
        self.tell(Seen::GatesRun(BTreeSet::new()))?;
        let mut answers = answers.iter().cycle();
        let patience = self.pods.values().map(|pod| pod.settings.timeout);
        let patience = patience.map(|own| own.unwrap_or(TRY)).max();
        let grace = if kubelet_works { GRACE } else { GRACE + AWAY };
        let end = self.up + patience.unwrap_or_default() + grace;
        while self.up < end {
            while !self.under_way.is_empty() {
                let action = self.under_way.remove(0);
                let mut answer = answers.next().expect("at least one").clone();
                answer.sent = Written::Done;
                self.answered(action, answer)?;
            }
            // A hand-over begins when its gate runs.
            let waits = |pod: &GatedPod| pod.gate == GateState::Pending && !is_released(pod);
            let waiting = self.pods.iter().find(|(_, pod)| waits(pod));
            if let Some(slot) = waiting.map(|(slot, _)| *slot) {
                self.gate_starts(slot)?;
                continue;
            }
            if kubelet_works && !self.away.is_empty() {
                self.pulled(0, digest(1))?;
                continue;
            }
            let Some(next) = self.planner.next_wakeup(self.now()) else {
                break;
            };
            self.time(
                next.max(Duration::from_millis(10))
                    .min(end.saturating_sub(self.up)),
            )?;
        }
        for pod in self.pods.values() {
            let answered = match pod.gate {
                GateState::Open | GateState::NotWanted | GateState::GaveUp { .. } => true,
                GateState::Running { .. } => false,
                GateState::Pending => is_released(pod),
            };
            prop_assert!(answered, "a gate waits for ever: {pod:?}");
        }
        prop_assert!(self.away.is_empty(), "away: {:?}", self.away);
        prop_assert!(!self.planner.is_handing_over());
        Ok(())
    }
}

/// Whether it has a release that is about its images, or that its gate takes for a refusal until it is
/// stale.
fn is_released(pod: &GatedPod) -> bool {
    pod.released.as_ref().is_some_and(|release| {
        !release.opens()
            || pod.containers.iter().all(|container| {
                let given = release.containers.get(&container.name);
                given.is_some_and(|given| given.image == container.written)
            })
    })
}
