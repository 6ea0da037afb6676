//! The brake: while a pull of the kubelet hangs, no pod that has a copy is left to it.
//!
//! Unless told otherwise, the kubelet pulls one image after the other (`serializeImagePulls`), so that whoever comes
//! next would wait behind the pull that hangs, and then, maybe, hang as well.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Planner;
use super::pod::Pod;
use crate::identity::Identity;
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass};
use crate::pod::Start;
use crate::time::Now;

/// A pod may show nothing for other reasons than a pull. No pull was seen to hang for longer.
const HANGS_FOR_AT_MOST: Duration = Duration::from_mins(10);

/// A pull of the kubelet that has stood still for too long.
#[derive(Debug)]
pub(super) struct Hang {
    since: Duration,
    /// The pods that wait for it, by uid: the kubelet shows when it has ended.
    pods: BTreeSet<String>,
}

impl Planner {
    /// A hand-over of this image has ended because nothing moved.
    pub(super) fn put_on_brake(&mut self, now: Now, image: &ImageName, identity: &Identity) {
        let pods = self.pods.iter();
        let own = pods.filter(|(_, pod)| pod.seen.identity == *identity && pod.is_next(image));
        let hang = Hang {
            since: now.up,
            pods: own.map(|(uid, _)| uid.clone()).collect(),
        };
        self.hangs.insert(image.clone(), hang);
    }

    /// The kubelet has pulled something.
    pub(super) fn release_brake(&mut self) {
        self.hangs.clear();
    }

    /// Why nothing is to be left to the kubelet, if a pull of it hangs. One that has ended as it hung spares the other
    /// pods of its registry the same for a while.
    pub(super) fn brake(&mut self, now: Now) -> Option<Failure> {
        let (pods, spared) = (&self.pods, &mut self.spared);
        self.hangs.retain(|image, hang| {
            let known = || hang.pods.iter().filter_map(|uid| pods.get(uid));
            let hangs = known().any(|pod| pod.is_next(image));
            if !hangs && known().any(|pod| pod.has_timed_out(image)) {
                spared.hangs(now, image);
            }
            hangs && now.up < hang.since + HANGS_FOR_AT_MOST
        });
        let words = "the kubelet was not asked to pull: another of its pulls makes no progress, and it may pull only one \
                     image at a time";
        (!self.hangs.is_empty()).then(|| Failure::new(FailureClass::Timeout, words))
    }
}

impl Pod {
    /// Whether the kubelet has come to a container of this image, which was released, and says no more of it.
    fn is_next(&self, name: &ImageName) -> bool {
        self.shows(name, |start| *start == Start::Next)
    }

    /// Whether its pull of this image has ended because nothing came.
    fn has_timed_out(&self, name: &ImageName) -> bool {
        self.shows(
            name,
            |start| matches!(start, Start::Wanting(why) | Start::Behind(why) if why.class == FailureClass::Timeout),
        )
    }

    fn shows(&self, name: &ImageName, what: impl Fn(&Start) -> bool) -> bool {
        let starts = self.released_with(name);
        let mut starts = starts.filter_map(|(container, _)| self.seen.starts.get(&container.name));
        !self.seen.terminated && starts.any(what)
    }
}
