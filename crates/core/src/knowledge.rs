//! What the planner knows about images from this node's tries, which [`Facts::add`] folds for it and
//! for the index.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::digest::Digest;
use crate::image::ImageName;
use crate::pod::Start;
use crate::record::{Facts, ImageRecord, RolledBack, Try};
use crate::release::ContainerRelease;

/// What is known about one image name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) facts: Facts,
    /// The last try, if it is remembered. Boxed: the map's nodes have room for twice as many as they hold.
    pub(crate) last_try: Option<Box<Try>>,
    /// When the first of the tries began that have confirmed the digest of [`Facts::confirmed`] since the registry last
    /// named another, as far as they are remembered.
    confirmed_from: Option<Timestamp>,
    /// When the try ended that brought [`Facts::confirmed`].
    confirmed_until: Option<Timestamp>,
    /// Every digest under which this node has the content that [`Facts::confirmed`] names; empty if that is not known.
    digests: BTreeSet<Digest>,
}

impl Known {
    fn add(&mut self, tried: &Try) {
        if let Some(confirmed) = tried.confirmation() {
            let is_known = self.facts.confirmed_at(&confirmed.digest).is_some();
            let from = self.confirmed_from.filter(|_| is_known);
            self.confirmed_from = Some(from.unwrap_or(confirmed.time));
            self.confirmed_until = Some(tried.ended());
            self.digests.clear();
        }
        self.facts.add(tried);
        self.last_try = Some(Box::new(tried.clone()));
    }

    /// Whether what the tag was last found to point to is other content than this digest's, if that is known.
    pub(crate) fn is_other_content(&self, digest: &Digest) -> Option<bool> {
        let is_known = !self.digests.is_empty();
        is_known.then(|| !self.digests.contains(digest))
    }

    /// Whether the registry had said by the second of this time, and has not named another since, that the tag points to
    /// this digest.
    pub(crate) fn is_confirmed_by(&self, time: Timestamp, digest: &Digest) -> bool {
        let newest = self.facts.confirmed_at(digest);
        let from = newest.map(|newest| self.confirmed_from.unwrap_or(newest));
        from.is_some_and(|from| from.as_second() <= time.as_second())
    }

    /// What became of a container that was released like this, if the registry has confirmed before its start that the
    /// tag points to what it has started from.
    pub(crate) fn overtaken(
        &self,
        given: &ContainerRelease,
        start: &Start,
    ) -> Option<ContainerRelease> {
        let confirmed = self.facts.confirmed.as_ref()?;
        match start {
            Start::Started {
                since: Some(since), ..
            } if !self.is_confirmed_by(*since, &confirmed.digest) => None,
            _ => given.overtaken(start, confirmed),
        }
    }

    /// Whether the registry has said, at this time or later, that the tag points to this digest.
    pub(crate) fn is_confirmed_since(&self, time: Timestamp, digest: &Digest) -> bool {
        self.facts.confirmed_at(digest).is_some()
            && self.confirmed_until.is_some_and(|until| until >= time)
    }
}

/// Everything that is known: by repository, which is what a registry gives or refuses, and in it by
/// name.
#[derive(Debug, Default)]
pub(crate) struct Knowledge {
    repositories: BTreeMap<String, BTreeMap<ImageName, Known>>,
}

impl Knowledge {
    /// Takes over what earlier runs of the agent have written down.
    pub(crate) fn learn(&mut self, records: &[ImageRecord]) {
        for record in records {
            *self.entry(&record.image) = Known {
                facts: record.facts.clone(),
                last_try: record.tries.first().cloned().map(Box::new),
                confirmed_from: record.confirmed_from(),
                confirmed_until: record.facts.confirmed.as_ref().map(|c| c.time),
                digests: BTreeSet::new(),
            };
        }
    }

    /// Adds what a try has shown.
    pub(crate) fn add(&mut self, tried: &Try) {
        self.entry(&tried.image).add(tried);
    }

    /// Under which digests this node has what the last try has confirmed.
    pub(crate) fn has_digests(&mut self, name: &ImageName, digests: &BTreeSet<Digest>) {
        self.entry(name).digests.clone_from(digests);
    }

    /// Takes over which names are pointed back to an earlier copy: these and no others. True if that changes anything.
    pub(crate) fn rolled_back(&mut self, back: &BTreeMap<ImageName, RolledBack>) -> bool {
        let mut changed = false;
        let mut set = |known: &mut Known, back: Option<&RolledBack>| {
            let before = known.facts.rolled_back.clone();
            known.facts.set_rolled_back(back);
            changed |= before != known.facts.rolled_back;
        };
        for (name, known) in self.repositories.values_mut().flatten() {
            set(known, back.get(name));
        }
        for (name, back) in back {
            set(self.entry(name), Some(back));
        }
        changed
    }

    fn entry(&mut self, name: &ImageName) -> &mut Known {
        let names = self.repositories.entry(name.repository().to_owned());
        names.or_default().entry(name.clone()).or_default()
    }

    /// What is known about this very name.
    pub(crate) fn of_name(&self, name: &ImageName) -> Option<&Known> {
        self.repositories.get(name.repository())?.get(name)
    }

    /// The last try of this very name.
    pub(crate) fn last_try(&self, name: &ImageName) -> Option<&Try> {
        self.of_name(name)?.last_try.as_deref()
    }

    /// The facts that count for this name. Who may have it is the registry's word on the repository: a
    /// name that it has never given to anybody is as private as the others.
    pub(crate) fn facts(&self, name: &ImageName) -> Facts {
        let mut facts = self
            .of_name(name)
            .map(|known| known.facts.clone())
            .unwrap_or_default();
        facts.needs_credentials = self.needs_credentials(name);
        facts
    }

    /// The same of these facts alone: whether a registry that answers gives the name nobody without credentials.
    pub(crate) fn needs_credentials(&self, name: &ImageName) -> bool {
        let own = self.of_name(name).map(|known| &known.facts);
        let needs = |facts: &Facts| facts.needs_credentials;
        if own.is_some_and(|facts| facts.confirmed.is_some()) {
            return own.is_some_and(needs);
        }
        self.siblings(name).any(|known| needs(&known.facts))
    }

    /// The registry has refused this name, and nothing else is remembered of that yet.
    pub(crate) fn refused(&mut self, name: &ImageName) {
        self.entry(name).facts.needs_credentials = true;
    }

    /// Whether the registry has given what this name says by digest to anybody, under whatever name:
    /// also to the kubelet alone, where that looks after who else may have it.
    pub(crate) fn gives_digest(&self, name: &ImageName, kubelet_verifies: bool) -> bool {
        let Some(digest) = name.digest() else {
            return false;
        };
        let given = |known: &Known| known.facts.confirmed_at(&digest).is_some();
        if kubelet_verifies && self.siblings(name).any(given) {
            return true;
        }
        if self.facts(name).needs_credentials {
            return false;
        }
        self.siblings(name)
            .any(|known| known.facts.is_public() && known.facts.confirmed_at(&digest).is_some())
    }

    /// Whether a copy is what the name says: a tag may have been moved on the node since the registry said
    /// where it points.
    pub(crate) fn vouches_for(&self, name: &ImageName, copy: Option<&Digest>) -> bool {
        let is_it = |copy| name.has_digest() || self.facts(name).confirmed_at(copy).is_some();
        copy.is_some_and(is_it)
    }

    /// Every name of the same repository, itself too.
    fn siblings(&self, name: &ImageName) -> impl Iterator<Item = &Known> {
        let names = self.repositories.get(name.repository());
        names.into_iter().flat_map(BTreeMap::values)
    }

    /// Every name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ImageName, &Known)> {
        self.repositories.values().flatten()
    }

    /// How many names are known.
    pub(crate) fn len(&self) -> usize {
        self.repositories.values().map(BTreeMap::len).sum()
    }

    /// Forgets all other names.
    pub(crate) fn retain(&mut self, keep: impl Fn(&ImageName) -> bool) {
        self.repositories.retain(|_, names| {
            names.retain(|name, _| keep(name));
            !names.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::FailureClass;
    use crate::record::TryResult;
    use crate::record::tests::{D1, failed, tried};

    #[test]
    fn a_name_without_an_answer_is_as_private_as_its_repository() {
        let mut knowledge = Knowledge::default();
        let unauthorized = failed(FailureClass::Unauthorized);
        knowledge.add(&tried("r.example/app:1", 0, unauthorized, None));
        let name = |text: &str| text.parse::<ImageName>().unwrap();
        assert!(knowledge.facts(&name("r.example/app:2")).needs_credentials);
        assert!(!knowledge.facts(&name("r.example/other")).needs_credentials);
        knowledge.add(&tried("r.example/app:2", 0, TryResult::Fresh, Some(D1)));
        assert!(!knowledge.facts(&name("r.example/app:2")).needs_credentials);
        assert!(knowledge.facts(&name("r.example/app:3")).needs_credentials);
    }

    #[test]
    fn a_digest_that_was_given_under_a_tag_was_given() {
        let mut knowledge = Knowledge::default();
        let pinned: ImageName = format!("r.example/app@{D1}").parse().unwrap();
        assert!(!knowledge.gives_digest(&pinned, false));
        knowledge.add(&tried("r.example/app:1", 0, TryResult::Fresh, Some(D1)));
        assert!(knowledge.gives_digest(&pinned, false));
        let elsewhere: ImageName = format!("r.example/other@{D1}").parse().unwrap();
        assert!(!knowledge.gives_digest(&elsewhere, false));
        // It has since refused another name of the repository, and has never given this one itself.
        let unauthorized = failed(FailureClass::Unauthorized);
        knowledge.add(&tried("r.example/app:2", 1, unauthorized, None));
        assert!(!knowledge.gives_digest(&pinned, false));
        knowledge.add(&tried(pinned.as_str(), 2, TryResult::Fresh, Some(D1)));
        assert!(knowledge.gives_digest(&pinned, false));
        knowledge.retain(|_| false);
        assert_eq!(knowledge.len(), 0);
    }
}
