//! A command on the node has had an image pulled, beside the agent.
//!
//! What the registry has said to it is as good as what it says to a try of the agent, which pulls in the same way. Pods
//! that wait for a try go on waiting for it.

use std::collections::BTreeSet;

use super::Planner;
use super::circuit::Heard;
use super::event::Action;
use crate::digest::Digest;
use crate::record::Try;
use crate::time::{Now, age};

impl Planner {
    /// A pull by hand has ended well, and the name still points to what it brought, which this node knows by these
    /// digests.
    pub(super) fn tried_by_hand(
        &mut self,
        now: Now,
        tried: Try,
        digests: &BTreeSet<Digest>,
        plan: &mut Vec<Action>,
    ) {
        let Some(confirmed) = tried.confirmation() else {
            return;
        };
        let (name, ended) = (tried.image.clone(), tried.ended());
        let known = self.knowledge.facts(&name).confirmed;
        // One of a clock that was ahead is no newer.
        let is_newer = |time| confirmed.time <= time && time <= now.wall;
        if !known.is_some_and(|known| is_newer(known.time)) {
            self.add_try(tried, plan);
            self.knowledge.has_digests(&name, digests);
        }
        // What has failed since says more.
        let mut open = self.circuits.of(&name).into_iter();
        if open.any(|open| open.failed_at() > ended) {
            return;
        }
        let heard = Heard {
            began: now.up.saturating_sub(age(now.wall, confirmed.time)),
            is_refusal: false,
        };
        self.registry_answered(now, &name, heard, plan);
    }
}
