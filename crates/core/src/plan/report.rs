//! What the planner says of the images to their node.

use std::collections::BTreeMap;

use super::pod::{Given, Pod};
use crate::image::ImageName;
use crate::knowledge::{Knowledge, Known};
use crate::node::NodeImage;
use crate::outcome::{FailureClass, Outcome};
use crate::record::{Try, TryResult};
use crate::release::ContainerRelease;
use crate::rules::NodeRules;
use crate::verdict::may_use_by_default;

/// Every image that was tried, or that a pod was released with.
pub(super) fn node_images<'a>(
    knowledge: &Knowledge,
    pods: impl Iterator<Item = &'a Pod>,
    rules: &NodeRules,
) -> Vec<NodeImage> {
    let nothing = Known::default();
    let mut all: BTreeMap<&ImageName, (&Known, Vec<Given<'a>>)> = knowledge
        .iter()
        .map(|(name, known)| (name, (known, Vec::new())))
        .collect();
    for (name, given) in pods.flat_map(Pod::released_images) {
        let (_, users) = all.entry(name).or_insert((&nothing, Vec::new()));
        users.push(given);
    }
    all.into_iter()
        .filter_map(|(name, (known, users))| node_image(name, known, &users, rules))
        .collect()
}

/// The newest word on an image: what its last try came to, or what a pod was released with since,
/// because nothing came in time.
fn node_image(
    name: &ImageName,
    known: &Known,
    users: &[Given<'_>],
    rules: &NodeRules,
) -> Option<NodeImage> {
    let newest = users.iter().max_by_key(|(time, _)| *time);
    let (tried, (outcome, class)) = match (&known.last_try, newest) {
        (Some(tried), Some((time, release))) if tried.ended() < *time => {
            (tried.started, of_release(release))
        }
        (Some(tried), _) => (tried.started, of_try(tried, known, rules)),
        // The index is lost or not used: the pods still say how they were released.
        (None, Some((time, release))) => (*time, of_release(release)),
        (None, None) => return None,
    };
    let copy = known.facts.copy.as_ref().map(|copy| &copy.digest);
    Some(NodeImage {
        image: name.clone(),
        outcome,
        class,
        digest: copy.cloned(),
        tried,
        confirmed: copy.and_then(|digest| known.facts.confirmed_at(digest)),
        pods: users.len(),
        pods_from_cache: users
            .iter()
            .filter(|given| given.1.outcome == Outcome::Fallback && !stands(**given, known))
            .count(),
    })
}

/// Whether the registry has said since that the tag points to the copy of this release.
fn stands((time, release): Given<'_>, known: &Known) -> bool {
    let digest = release.digest.as_ref();
    digest.is_some_and(|digest| known.is_confirmed_since(time, digest))
}

/// What a pod that sets nothing gets from it.
fn of_try(tried: &Try, known: &Known, rules: &NodeRules) -> (Outcome, Option<FailureClass>) {
    match &tried.result {
        TryResult::Fresh => (Outcome::Fresh, None),
        TryResult::Unchanged => (Outcome::Unchanged, None),
        TryResult::Failed(failure) => {
            let outcome = if known.facts.copy.is_none() {
                Outcome::Unavailable
            } else if may_use_by_default(failure.class, &known.facts, rules) {
                Outcome::Fallback
            } else {
                Outcome::Refused
            };
            (outcome, Some(failure.class))
        }
    }
}

/// The pod's owner may have written this: no free text of it is taken over.
fn of_release(release: &ContainerRelease) -> (Outcome, Option<FailureClass>) {
    let class = release.failure.as_ref().map(|failure| failure.class);
    (release.outcome, class)
}
