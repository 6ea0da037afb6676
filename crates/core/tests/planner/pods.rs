//! Pods that come, change and go, and their gates.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use trylatest_core::identity::Identity;
use trylatest_core::plan::Event as Seen;
use trylatest_core::pod::{GateState, GatedPod, PodId, Revision, Start, TryContainer};
use trylatest_core::release::FRESHNESS;
use trylatest_core::settings::Settings;

use super::{IMAGES, PODS, World, images_of};

impl World {
    /// The kubelet has come so far with the first container of this pod.
    pub(super) fn starts(&mut self, slot: usize, mut start: Start) -> Result<(), TestCaseError> {
        let wall = self.wall;
        if let Start::Started { since, .. } = &mut start {
            *since = since.map(|_| wall);
        }
        if let Some(pod) = self.pods.get_mut(&slot)
            && matches!(pod.gate, GateState::Open | GateState::NotWanted)
            && let Some(first) = pod.containers.first()
        {
            pod.starts.insert(first.name.clone(), start.clone());
            if let Start::Started { digest, .. } = start {
                // Its other containers never start here.
                let mut others = pod.containers[1..].iter();
                if others.all(|other| other.image != first.image) {
                    self.named.extend(first.image.clone());
                }
                let pod = pod.clone();
                self.rollout_has(&pod, digest.as_ref());
            }
        }
        self.show(slot)
    }

    pub(super) fn arrives(
        &mut self,
        pod: usize,
        images: &[usize],
        timeout: Option<u64>,
        strict: bool,
        held: bool,
        rollout: Option<u8>,
    ) -> Result<(), TestCaseError> {
        if self.pods.contains_key(&pod) {
            return Ok(());
        }
        self.born += 1;
        let containers = images.iter().enumerate().map(|(n, image)| TryContainer {
            name: format!("c{n}"),
            written: IMAGES[*image].to_owned(),
            image: IMAGES[*image].parse(),
        });
        let settings = Settings {
            timeout: timeout.map(Duration::from_secs),
            max_age: strict.then_some(Duration::from_secs(60)),
            fallback_on: None,
            same_digest: rollout.is_some(),
        };
        let revision = rollout.map(|n| Revision {
            owner: format!("owner{n}"),
            version: None,
        });
        let id = PodId {
            namespace: "default".into(),
            name: format!("pod{pod}"),
            uid: format!("uid{}", self.born),
        };
        let created = Timestamp::from_second(self.wall.as_second()).expect("a time");
        let new = GatedPod {
            containers: containers.collect(),
            settings,
            revision,
            gate: if held {
                GateState::Pending
            } else {
                GateState::NotWanted
            },
            identity: Identity {
                namespace: format!("tenant{pod}"),
                ..Identity::default()
            },
            ..GatedPod::new(id, created)
        };
        if held {
            self.named.extend(images_of(&new).cloned());
        }
        self.pods.insert(pod, new);
        self.show(pod)
    }

    pub(super) fn deleted(&mut self, pod: usize) -> Result<(), TestCaseError> {
        self.hidden.remove(&pod);
        let Some(pod) = self.pods.remove(&pod) else {
            return Ok(());
        };
        self.decided.remove(&pod.id.uid);
        // It may have run meanwhile.
        self.named.extend(images_of(&pod).cloned());
        self.tell(Seen::Gone(pod.id.uid))
    }

    pub(super) fn changed(&mut self, pod: usize, image: usize) -> Result<(), TestCaseError> {
        let written = IMAGES[image];
        if let Some(pod) = self.pods.get_mut(&pod)
            && let Some(container) = pod.containers.first_mut()
            && container.written != written
        {
            written.clone_into(&mut container.written);
            container.image = written.parse();
            if pod.gate != GateState::NotWanted || pod.starts.contains_key(&container.name) {
                self.named.extend(container.image.clone());
            }
            self.decided.remove(&pod.id.uid);
        }
        self.show(pod)
    }

    /// The kubelet runs the gate, for the first time or after a reboot.
    pub(super) fn gate_starts(&mut self, pod: usize) -> Result<(), TestCaseError> {
        let since = Timestamp::from_second(self.wall.as_second()).expect("a time");
        if let Some(pod) = self.pods.get_mut(&pod)
            && pod.gate != GateState::NotWanted
        {
            pod.gate = GateState::Running { since };
            self.decided.remove(&pod.id.uid);
        }
        self.gate_reads(pod);
        self.show(pod)
    }

    pub(super) fn gates_run(&mut self, pods: &BTreeSet<usize>) -> Result<(), TestCaseError> {
        let pods = pods.iter().filter_map(|pod| self.pods.get(pod));
        let run = pods.map(|pod| pod.id.uid.clone()).collect();
        self.tell(Seen::GatesRun(run))
    }

    pub(super) fn gate_gives_up(&mut self, pod: usize) -> Result<(), TestCaseError> {
        let at = self.wall;
        if let Some(pod) = self.pods.get_mut(&pod)
            && pod.gate != GateState::NotWanted
        {
            pod.gate = GateState::GaveUp { since: at, at };
            self.decided.remove(&pod.id.uid);
        }
        self.show(pod)
    }

    /// Gates look again at their release every few seconds.
    pub(super) fn gates_read(&mut self) -> Result<(), TestCaseError> {
        for pod in 0..PODS {
            let before = self.pods.get(&pod).map(|pod| pod.gate);
            self.gate_reads(pod);
            if before != self.pods.get(&pod).map(|pod| pod.gate) {
                self.show(pod)?;
            }
        }
        Ok(())
    }

    /// A gate that runs acts on a fresh release at once.
    pub(super) fn gate_reads(&mut self, pod: usize) {
        let wall = self.wall;
        if self.hidden.contains(&pod) {
            return;
        }
        let Some(pod) = self.pods.get_mut(&pod) else {
            return;
        };
        let fresh = pod
            .released
            .as_ref()
            .filter(|r| r.is_fresh(wall, FRESHNESS));
        if let (Some(release), GateState::Running { .. }) = (fresh, pod.gate) {
            pod.gate = if release.opens() {
                GateState::Open
            } else {
                GateState::Pending
            };
        }
    }
}
