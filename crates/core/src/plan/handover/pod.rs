//! A pod's part in a hand-over: which of its containers wait for the kubelet's pull, and how far the kubelet has come
//! with those that were left to it.

use std::collections::BTreeMap;

use super::super::event::Action;
use super::super::pod::Pod;
use crate::image::ImageName;
use crate::outcome::Outcome;
use crate::pod::Start;
use crate::release::{ContainerProgress, Progress, Release};
use crate::time::Now;

impl Pod {
    /// The images of its containers that wait for the kubelet's pull and for nothing else.
    pub(in crate::plan) fn waits_for_kubelet(&self) -> Vec<ImageName> {
        let round = self.round.iter();
        let containers = round.flat_map(|round| &round.containers);
        let waiting = containers.filter(|c| c.waits_for_kubelet());
        waiting.filter_map(|c| c.image().cloned()).collect()
    }

    /// How far the kubelet has come with each container that was left to it with this image's name away,
    /// and that has not started.
    pub(in crate::plan) fn handed_over(&self, name: &ImageName) -> Vec<Option<&Start>> {
        if self.seen.terminated {
            return Vec::new();
        }
        let round = self.round.iter().flat_map(|round| &round.containers);
        let decided = round.filter(|c| c.is_handed_over(name)).map(|_| None);
        let opens = |release: &&Release| release.opens() && release.unseen.is_none();
        let release = self.released.as_ref().filter(opens);
        let released = release.into_iter().flat_map(|_| self.released_with(name));
        let released = released.filter(|(container, given)| {
            given.outcome == Outcome::HandedOver && !self.settled.contains_key(&container.name)
        });
        let released = released.map(|(container, _)| self.seen.starts.get(&container.name));
        let waits = |start: Option<&Start>| !matches!(start, Some(Start::Started { .. }));
        decided
            .chain(released.filter(|start| waits(*start)))
            .collect()
    }

    /// A change of the pod that makes the kubelet look at it, if a container of this image is next: a sign of life,
    /// which goes when the release is next written.
    pub(in crate::plan) fn nudge(&self, name: &ImageName, now: Now) -> Option<Action> {
        let is_next = |container: &str| self.seen.starts.get(container) == Some(&Start::Next);
        let next = self.released_with(name).filter(|(c, _)| is_next(&c.name));
        let containers: BTreeMap<_, _> = next
            .map(|(container, _)| {
                let progress = ContainerProgress::by_kubelet(&container.written);
                (container.name.clone(), progress)
            })
            .collect();
        let progress = Progress {
            time: now.wall,
            containers,
        };
        let id = self.seen.id.clone();
        (!progress.containers.is_empty()).then_some(Action::Progress(id, progress))
    }
}
