//! The rules that apply to one pod: its own settings before the node's. They are resolved once, when
//! its round begins.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::identity::Identity;
use crate::outcome::FailureClass;
use crate::pod::GatedPod;

/// Of a pod's `activeDeadlineSeconds`, the part that may be spent on a try where a copy is here.
const DEADLINES_SHARE: u32 = 4;

/// The node's settings.
#[derive(Clone, Copy, Debug)]
pub struct NodeRules {
    /// How long a pod waits before it takes the cached copy, where it does not say so itself.
    pub try_for: Duration,
    /// How long nothing may move before a pull has stalled.
    pub stall: Duration,
    /// A registry's answer that is no older serves later pods; zero if each pod has one of its own.
    pub freshness: Duration,
    /// The kubelet remembers which credentials it has pulled an image with, and starts no other pod from
    /// it (KEP-2535).
    pub kubelet_verifies: bool,
    /// Hand out cached copies of private images without proof.
    pub allow_unverified_fallback: bool,
}

/// What applies to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How long it waits before it takes the cached copy.
    pub try_for: Duration,
    /// It refuses a cached copy whose tag was last confirmed longer ago.
    pub max_age: Option<Duration>,
    /// The failure classes that allow the cached copy, instead of the default ones.
    pub fallback_on: Option<BTreeSet<FailureClass>>,
    /// Somebody else looks after who may have a private image's copy, or nobody has to: it is given to
    /// this pod without proof.
    pub without_proof: bool,
    /// Whose credentials the kubelet has for it.
    pub identity: Identity,
}

impl Rules {
    /// The pod's settings, and the node's where it has none.
    pub fn of(pod: &GatedPod, node: &NodeRules) -> Self {
        let NodeRules {
            try_for,
            stall: _,
            freshness: _,
            kubelet_verifies,
            allow_unverified_fallback,
        } = *node;
        // A pod with a short deadline needs that time for its work.
        let short = pod.active_deadline.map(|whole| whole / DEADLINES_SHARE);
        let default = short.map_or(try_for, |short| try_for.min(short));
        Self {
            try_for: pod.settings.timeout.unwrap_or(default),
            max_age: pod.settings.max_age,
            fallback_on: pod.settings.fallback_on.clone(),
            without_proof: kubelet_verifies || allow_unverified_fallback,
            identity: pod.identity.clone(),
        }
    }

    /// Whether it may not take every copy.
    pub fn is_strict(&self) -> bool {
        self.max_age.is_some() || self.fallback_on.is_some()
    }

    /// Whether the registry has to be asked before a copy is used, whatever it has answered others: the pod may not take
    /// every copy, or nobody but the registry knows whether it may, and that has not `spoken` yet.
    pub(crate) fn has_to_ask(&self, spoken: bool) -> bool {
        self.is_strict() || !spoken && !self.without_proof
    }

    /// Whether a cached copy may be used after a failure of this class.
    pub fn allow_fallback_on(&self, class: FailureClass) -> bool {
        match &self.fallback_on {
            Some(classes) => classes.contains(&class),
            None => class.falls_back_by_default(),
        }
    }
}

impl NodeRules {
    /// What applies to a pod that sets nothing.
    pub fn by_default(&self) -> Rules {
        Rules {
            try_for: self.try_for,
            max_age: None,
            fallback_on: None,
            without_proof: self.kubelet_verifies || self.allow_unverified_fallback,
            identity: Identity::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeRules = NodeRules {
        try_for: Duration::from_secs(30),
        stall: Duration::from_secs(5),
        freshness: Duration::ZERO,
        kubelet_verifies: false,
        allow_unverified_fallback: false,
    };

    #[test]
    fn all_classes_but_one_allow_the_copy_by_default() {
        let rules = NODE.by_default();
        for class in FailureClass::ALL {
            let allows = rules.allow_fallback_on(class);
            assert_eq!(allows, class != FailureClass::Blocked, "{class}");
        }
        let network = Rules {
            fallback_on: Some([FailureClass::Network].into()),
            ..rules
        };
        assert!(network.allow_fallback_on(FailureClass::Network));
        assert!(!network.allow_fallback_on(FailureClass::NotFound));
    }
}
