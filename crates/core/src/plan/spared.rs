//! Pods that are spared a pull of the kubelet, because it has just failed for their like.

use std::collections::BTreeMap;
use std::time::Duration;

use super::backoff::Backoff;
use crate::identity::Identity;
use crate::image::ImageName;
use crate::outcome::Failure;
use crate::time::Now;

/// How long the next pods of an identity are spared a pull of the kubelet that has just failed: each
/// failure costs a pod the kubelet's back-off.
const SPARED: Backoff = Backoff {
    first: Duration::from_secs(60),
    longest: Duration::from_secs(15 * 60),
};

/// Most failures that are remembered.
const SPARED_MAX: usize = 1024;

/// Pulls of the kubelet that failed, by image and identity.
#[derive(Debug, Default)]
pub(super) struct Spared {
    failed: BTreeMap<(ImageName, Identity), Failed>,
}

#[derive(Debug)]
struct Failed {
    in_a_row: u32,
    until: Duration,
    failure: Failure,
}

impl Spared {
    pub(super) fn add(
        &mut self,
        now: Now,
        name: &ImageName,
        identity: &Identity,
        failure: &Failure,
    ) {
        let key = (name.clone(), identity.clone());
        if self.failed.len() >= SPARED_MAX && !self.failed.contains_key(&key) {
            self.failed.pop_first();
        }
        let before = self.failed.get(&key).map_or(0, |failed| failed.in_a_row);
        let failed = Failed {
            in_a_row: before.saturating_add(1),
            until: now.up + SPARED.pause(before.saturating_add(1), name),
            failure: failure.clone(),
        };
        self.failed.insert(key, failed);
    }

    /// Why a pod of this identity is not to wait for the kubelet's pull now.
    pub(super) fn failure(
        &self,
        now: Now,
        name: &ImageName,
        identity: &Identity,
    ) -> Option<&Failure> {
        let failed = self.failed.get(&(name.clone(), identity.clone()))?;
        (now.up < failed.until).then_some(&failed.failure)
    }

    /// The failure of any pod that has neither pull secrets nor a service account of its own: nothing but the
    /// node's credentials can make a difference.
    pub(super) fn failure_of_anybody(&self, now: Now, name: &ImageName) -> Option<&Failure> {
        let least = (name.clone(), Identity::default());
        let of_image = self.failed.range(least..);
        let mut of_image = of_image.take_while(|((other, _), _)| other == name);
        let (_, failed) =
            of_image.find(|((_, who), failed)| who.is_anybody() && now.up < failed.until)?;
        Some(&failed.failure)
    }

    /// The registry has given the image to somebody.
    pub(super) fn forget(&mut self, name: &ImageName) {
        self.failed.retain(|(other, _), _| other != name);
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&ImageName) -> bool) {
        self.failed.retain(|(name, _), _| keep(name));
    }
}
