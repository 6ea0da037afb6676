//! The brake: while a pull of the kubelet hangs, no pod that has a copy is left to it.
//!
//! Unless told otherwise, the kubelet pulls one image after the other (`serializeImagePulls`), so that whoever comes
//! next would wait behind the pull that hangs, and then, maybe, hang as well.

use std::collections::BTreeSet;

use super::Planner;
use super::pod::Pod;
use crate::identity::Identity;
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass};
use crate::pod::Start;

/// A pull of the kubelet that has stood still for too long.
#[derive(Debug)]
pub(super) struct Hang {
    image: ImageName,
    /// The pods that wait for it, by uid: the kubelet shows when it has ended.
    pods: BTreeSet<String>,
}

impl Planner {
    /// A hand-over has ended because nothing moved.
    pub(super) fn hangs(&mut self, image: &ImageName, identity: &Identity) {
        let pods = self.pods.iter();
        let own = pods.filter(|(_, pod)| pod.seen.identity == *identity && pod.is_next(image));
        self.hang = Some(Hang {
            image: image.clone(),
            pods: own.map(|(uid, _)| uid.clone()).collect(),
        });
    }

    /// Why nothing is to be left to the kubelet, if a pull of it hangs.
    pub(super) fn is_braked(&mut self) -> Option<Failure> {
        let hang = self.hang.as_ref()?;
        let mut pods = hang.pods.iter().filter_map(|uid| self.pods.get(uid));
        if !pods.any(|pod| pod.is_next(&hang.image)) {
            self.hang = None;
            return None;
        }
        let words = "the kubelet was not asked: one of its pulls hangs, and it pulls one image after the other";
        Some(Failure::new(FailureClass::Timeout, words))
    }
}

impl Pod {
    /// Whether the kubelet has come to a container of this image, which was released, and says no more of it.
    pub(super) fn is_next(&self, name: &ImageName) -> bool {
        let mut containers = self.released_with(name);
        let is_next = |container: &str| self.seen.starts.get(container) == Some(&Start::Next);
        !self.seen.terminated && containers.any(|(container, _)| is_next(&container.name))
    }
}
