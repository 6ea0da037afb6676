//! What must be true of every release, and what the checks remember for that.

use proptest::prelude::*;
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::outcome::Outcome;
use trylatest_core::pod::{GateState, GatedPod, PodId, Start};
use trylatest_core::release::{ContainerRelease, Release};
use trylatest_core::verdict::CachedCopy;

use super::{PODS, World};

impl World {
    pub(super) fn is_held(&self, id: &PodId) -> bool {
        let pod = self.pods.values().find(|pod| pod.id == *id);
        pod.is_none_or(|pod| pod.gate != GateState::NotWanted)
    }

    /// A pod without a gate is told what it runs.
    pub(super) fn look_at_told(&self, id: &PodId, release: &Release) -> Result<(), TestCaseError> {
        let pod = self.pods.values().find(|pod| pod.id == *id);
        let pod = pod.expect("it is not held");
        for (name, given) in &release.containers {
            prop_assert_eq!(given.outcome, Outcome::NotHeld);
            prop_assert!(given.rollout.is_none() && given.runs.is_none());
            prop_assert!(given.moved.is_none() || given.moved != given.digest);
            prop_assert!(given.moved.is_none() || given.digest.is_some());
            if let Some(Start::Started { digest, .. }) = pod.starts.get(name)
                && digest.is_some()
            {
                prop_assert_eq!(&given.digest, digest);
            }
        }
        Ok(())
    }

    /// What was decided is written again as it was, but for what it came to.
    pub(super) fn look_again(&self, id: &PodId, again: &Release) -> Result<(), TestCaseError> {
        let pod = self.pods.values().find(|pod| pod.id == *id);
        if let Some(released) = pod.and_then(|pod| pod.released.as_ref())
            && again.unseen.is_none()
        {
            prop_assert_eq!(&released.containers, &again.containers);
        }
        Ok(())
    }

    pub(super) fn look_at(&mut self, id: &PodId, release: &Release) -> Result<(), TestCaseError> {
        let tenant = self.pods.values().find(|pod| pod.id == *id);
        let tenant = tenant.map(|pod| pod.identity.namespace.clone());
        for (name, container) in &release.containers {
            let starts = matches!(
                container.outcome,
                Outcome::Fresh | Outcome::Unchanged | Outcome::Same | Outcome::Fallback
            );
            self.look_at_rollout(id, container)?;
            prop_assert!(
                !starts || container.digest.is_some(),
                "{name}: {container:?}"
            );
            if container.outcome == Outcome::HandedOver {
                let image: ImageName = container.image.parse().expect("an image's name");
                prop_assert!(
                    self.away.contains_key(&image) || !self.judged.insert(id.uid.clone()),
                    "{container:?} is there"
                );
            }
            if let Some(digest) = &container.digest {
                let image = container.image.parse().expect("an image's name");
                prop_assert!(
                    self.proven.contains(&(image, digest.clone())),
                    "{container:?} was never proven"
                );
            }
        }
        let is_new = self.judged.insert(id.uid.clone());
        // With more containers, one may have been decided before the refusal.
        if is_new && let [container] = &release.containers.values().collect::<Vec<_>>()[..] {
            let image = container.image.parse().expect("an image's name");
            let starts = matches!(
                container.outcome,
                Outcome::Fallback | Outcome::Unchanged | Outcome::Same
            );
            prop_assert!(
                !starts
                    || self.verifies
                    || !self.is_private(&image)
                    || self.was_given(&image, container.digest.as_ref(), tenant),
                "{container:?} is private"
            );
        }
        let pod = self.pods.values().find(|pod| pod.id == *id).cloned();
        for given in release.containers.values() {
            if let Some(pod) = &pod {
                self.rollout_has(pod, given.digest.as_ref());
            }
        }
        if let Some(decided) = self.decided.insert(id.uid.clone(), release.clone()) {
            prop_assert_eq!(&decided.containers, &release.containers);
        }
        Ok(())
    }

    /// Nothing counts as what a rollout has that none of its pods was given or runs; nobody else starts unasked.
    pub(super) fn look_at_rollout(
        &self,
        id: &PodId,
        given: &ContainerRelease,
    ) -> Result<(), TestCaseError> {
        if given.outcome != Outcome::Same && given.rollout.is_none() {
            return Ok(());
        }
        let pod = self.pods.values().find(|pod| pod.id == *id);
        let Some(pod) = pod else {
            return Ok(());
        };
        prop_assert!(pod.settings.same_digest, "{given:?}");
        // Of a pod with more containers, one may be decided, and its release waits for the others.
        let is_fellow = |other: &&GatedPod| other.revision == pod.revision;
        let mut fellows = self.pods.values().filter(is_fellow);
        if fellows.any(|fellow| fellow.containers.len() > 1) {
            return Ok(());
        }
        let owner = pod.revision.as_ref().map(|revision| &revision.owner);
        let has = owner.and_then(|owner| self.has.get(owner));
        let is_known = |digest: Option<&Digest>| {
            digest.is_none_or(|digest| has.is_some_and(|has| has.contains(digest)))
        };
        prop_assert!(is_known(given.rollout.as_ref()), "{given:?}: {has:?}");
        prop_assert!(
            given.outcome != Outcome::Same || is_known(given.digest.as_ref()),
            "{given:?}: {has:?}"
        );
        Ok(())
    }

    /// What a rollout's pods were ever given, or run.
    pub(super) fn rollout_has(&mut self, pod: &GatedPod, digest: Option<&Digest>) {
        if let (Some(revision), Some(digest)) = (&pod.revision, digest) {
            let has = self.has.entry(revision.owner.clone()).or_default();
            has.insert(digest.clone());
        }
    }

    /// The test does not know which tenant's pod leads.
    pub(super) fn gives_to_all(&mut self, image: &ImageName, copy: &CachedCopy) {
        let Some(digest) = copy.digest() else {
            return;
        };
        let tenants = (0..PODS).map(|pod| Some(format!("tenant{pod}")));
        let given = tenants.map(|tenant| (image.clone(), digest.clone(), tenant));
        self.given.extend(given);
    }

    pub(super) fn was_given(
        &self,
        image: &ImageName,
        digest: Option<&Digest>,
        tenant: Option<String>,
    ) -> bool {
        let Some(digest) = digest else {
            return true;
        };
        let given = |to| self.given.contains(&(image.clone(), digest.clone(), to));
        given(None) || given(tenant)
    }

    /// Whether the registry has refused the image, or has never given it and has refused another one of
    /// its repository.
    pub(super) fn is_private(&self, image: &ImageName) -> bool {
        let same = |other: &&ImageName| other.repository() == image.repository();
        let refused = |other: &ImageName| self.answers.get(other) == Some(&false);
        match self.answers.get(image) {
            Some(given) => !given,
            None => self.answers.keys().filter(same).any(refused),
        }
    }

    pub(super) fn prove(&mut self, image: &ImageName, copy: &CachedCopy) {
        if let Some(digest) = copy.digest() {
            self.proven.insert((image.clone(), digest.clone()));
        }
    }
}
