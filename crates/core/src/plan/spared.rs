//! Pods that are spared a pull of the kubelet, because it has just failed for their like.

use std::collections::BTreeMap;
use std::time::Duration;

use super::backoff::Backoff;
use crate::identity::Identity;
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass};
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
    /// Registries with which they hung: whoever has credentials waits there, whatever the image.
    hung: BTreeMap<String, Failed>,
}

#[derive(Debug)]
struct Failed {
    in_a_row: u32,
    until: Duration,
    failure: Failure,
}

impl Failed {
    fn after(before: Option<&Self>, now: Now, seed: &str, failure: Failure) -> Self {
        let in_a_row = before.map_or(0, |failed| failed.in_a_row).saturating_add(1);
        Self {
            in_a_row,
            until: now.up + SPARED.pause(in_a_row, seed),
            failure,
        }
    }
}

/// Remembers it, within bounds.
fn insert<K: Ord>(all: &mut BTreeMap<K, Failed>, key: K, failed: Failed) {
    if all.len() >= SPARED_MAX && !all.contains_key(&key) {
        all.pop_first();
    }
    all.insert(key, failed);
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
        let failed = Failed::after(self.failed.get(&key), now, name.as_str(), failure.clone());
        insert(&mut self.failed, key, failed);
    }

    /// One of this image has hung.
    pub(super) fn hangs(&mut self, now: Now, name: &ImageName) {
        let registry = name.registry();
        let words = "the kubelet was not asked to pull: a pull from this registry made no progress a short while ago";
        let failure = Failure::new(FailureClass::Timeout, words);
        let failed = Failed::after(self.hung.get(registry), now, registry, failure);
        insert(&mut self.hung, registry.to_owned(), failed);
    }

    /// Why no pod is to wait for the kubelet's pull from this image's registry now.
    pub(super) fn hung(&self, now: Now, name: &ImageName) -> Option<Failure> {
        let hung = self.hung.get(name.registry())?;
        (now.up < hung.until).then(|| hung.failure.clone())
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

    /// The kubelet has pulled it, which the registry has not let hang.
    pub(super) fn pulled(&mut self, name: &ImageName) {
        self.forget(name);
        self.hung.remove(name.registry());
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&ImageName) -> bool) {
        self.failed.retain(|(name, _), _| keep(name));
    }
}
