//! What a container runs, if that is not what it was released with: the image's name had been moved when it started, or
//! started again. The same content can have several digests, so one that differs says nothing yet: the container
//! runtime knows by which it has what runs.

use std::collections::{BTreeMap, BTreeSet};

use super::Planner;
use super::event::Action;
use crate::digest::Digest;
use crate::image::ImageName;
use crate::knowledge::Knowledge;
use crate::pod::{GatedPod, Start};
use crate::release::ContainerRelease;

/// What is known of content that runs.
#[derive(Debug)]
pub(super) enum Content {
    /// The runtime is to be asked about it, as of this image's repository.
    Wanted(ImageName),
    /// It was asked.
    Asked,
    /// It did not answer, and is asked again when the pod changes.
    Unknown,
    /// It has the content by these digests; by none if it does not know it.
    Has(BTreeSet<Digest>),
}

/// By the digest that a container's status shows.
pub(super) type Contents = BTreeMap<Digest, Content>;

/// Takes over what a container that was released like this runs.
pub(super) fn see(
    contents: &mut Contents,
    given: &mut ContainerRelease,
    start: &Start,
    name: &ImageName,
    knowledge: &Knowledge,
) {
    let Start::Started {
        digest: Some(digest),
        since: Some(since),
        ..
    } = start
    else {
        return;
    };
    if !given.has_copy() || given.runs.as_ref() == Some(digest) {
        return;
    }
    let Some(copy) = given.digest.as_ref().filter(|copy| *copy != digest) else {
        given.runs = None;
        given.runs_unproven = false;
        return;
    };
    let known = knowledge.of_name(name);
    let was_confirmed =
        |digest: &Digest| known.is_some_and(|known| known.is_confirmed_by(*since, digest));
    let content = contents
        .entry(digest.clone())
        .or_insert_with(|| Content::Wanted(name.clone()));
    let (is_other, is_proven) = match content {
        Content::Wanted(_) | Content::Asked => return,
        Content::Has(digests) if !digests.is_empty() => {
            (!digests.contains(copy), digests.iter().any(was_confirmed))
        }
        // Then it counts what the registry has said before the start.
        Content::Unknown | Content::Has(_) => (was_confirmed(digest), true),
    };
    given.runs = is_other.then(|| digest.clone());
    given.runs_unproven = is_other && !is_proven;
}

/// The pod has changed to this: forgets what is of no use any more.
pub(super) fn forget(contents: &mut Contents, pod: &GatedPod) {
    contents.retain(|runs, content| pod.runs(runs) && !matches!(content, Content::Unknown));
}

impl GatedPod {
    /// Whether one of its containers was started from this.
    fn runs(&self, runs: &Digest) -> bool {
        let mut starts = self.starts.values();
        starts.any(
            |start| matches!(start, Start::Started { digest, .. } if digest.as_ref() == Some(runs)),
        )
    }
}

impl Planner {
    /// Asks the container runtime about what runs, once for all pods that run it.
    pub(super) fn compare(&mut self, plan: &mut Vec<Action>) {
        let contents = self.pods.values_mut().flat_map(|pod| &mut pod.contents);
        for (digest, content) in contents {
            if let Content::Wanted(name) = content {
                let compare = Action::Compare(name.clone(), digest.clone());
                if !plan.contains(&compare) {
                    plan.push(compare);
                }
                *content = Content::Asked;
            }
        }
    }

    /// The runtime has said by which digests it has the content that has this one, or has not answered.
    pub(super) fn compared(&mut self, digest: &Digest, digests: Option<&BTreeSet<Digest>>) {
        for pod in self.pods.values_mut() {
            if let Some(content) = pod.contents.get_mut(digest) {
                *content = digests.map_or(Content::Unknown, |has| Content::Has(has.clone()));
            }
        }
    }
}
