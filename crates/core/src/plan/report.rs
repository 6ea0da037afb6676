//! What the planner says of the images to their node.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::pod::{Pod, ReleasedWith};
use crate::image::ImageName;
use crate::knowledge::{Knowledge, Known};
use crate::node::NodeImage;
use crate::outcome::{FailureClass, Outcome};
use crate::record::{Facts, Try, TryResult};
use crate::release::ContainerRelease;
use crate::rules::NodeRules;
use crate::verdict::may_use_by_default;

/// The pods of one image, by how they were released.
#[derive(Default)]
struct Users<'a> {
    started: Vec<ReleasedWith<'a>>,
    refused: Vec<ReleasedWith<'a>>,
    /// How many of the former have nothing to start from.
    unavailable: usize,
}

impl Users<'_> {
    fn is_empty(&self) -> bool {
        self.started.is_empty() && self.refused.is_empty()
    }
}

/// Every image that was tried, but for those that were only pulled by hand, or that a pod was released with or refused.
pub(super) fn node_images<'a>(
    knowledge: &Knowledge,
    pods: impl Iterator<Item = &'a Pod>,
    rules: &NodeRules,
    now: Timestamp,
) -> Vec<NodeImage> {
    let nothing = Known::default();
    let mut all: BTreeMap<&ImageName, (&Known, Users<'a>)> = knowledge
        .iter()
        .map(|(name, known)| (name, (known, Users::default())))
        .collect();
    let unknown = || (&nothing, Users::default());
    for pod in pods {
        let may_start = pod.may_start();
        for (name, given) in pod.given_images() {
            let is_refused = given.1.outcome == Outcome::Refused;
            if !may_start && !is_refused {
                // Another container keeps its pod from starting.
                continue;
            }
            let (_, users) = all.entry(name).or_insert_with(unknown);
            users.unavailable += usize::from(may_start && pod.has_nothing_for(name));
            let users = if is_refused {
                &mut users.refused
            } else {
                &mut users.started
            };
            users.push(given);
        }
    }
    all.into_iter()
        .filter_map(|(name, (known, users))| {
            let latest = latest(known, &users, now)?;
            if matches!(latest, Latest::Try(tried) if tried.by_hand) && users.is_empty() {
                // It may be anybody's.
                return None;
            }
            let Users {
                started,
                refused,
                unavailable,
            } = users;
            let (outcome, class) = match latest {
                Latest::Try(tried) => of_try(tried, &knowledge.facts(name), rules),
                Latest::Release(_, release) => of_release(release),
            };
            let copy = known.facts.copy.as_ref().map(|copy| &copy.digest);
            Some(NodeImage {
                image: name.clone(),
                outcome,
                class,
                digest: copy.cloned(),
                tried: latest.time(known),
                confirmed: copy.and_then(|digest| known.facts.confirmed_at(digest)),
                rolled_back: known.facts.rolled_back.clone(),
                pods: started.len(),
                pods_refused: refused.len(),
                pods_unavailable: unavailable,
                pods_from_cache: started.iter().filter(|user| runs_old(user, known)).count(),
                pods_behind: started
                    .iter()
                    .filter(|(_, given)| given.moved.is_some())
                    .count(),
            })
        })
        .collect()
}

/// What says most about an image now.
#[derive(Clone, Copy)]
enum Latest<'a> {
    Try(&'a Try),
    /// A release, given at this time.
    Release(Timestamp, &'a ContainerRelease),
}

impl Latest<'_> {
    /// When the image was last tried, as far as is known.
    fn time(self, known: &Known) -> Timestamp {
        match self {
            Self::Try(tried) => tried.started,
            Self::Release(time, _) => known
                .last_try
                .as_deref()
                .map_or(time, |tried| tried.started),
        }
    }
}

/// The last try. A pod that has fallen back since did not wait for the end of the next one. The pod's
/// owner may have written its release: it counts no further than that.
fn latest<'a>(known: &'a Known, users: &Users<'a>, now: Timestamp) -> Option<Latest<'a>> {
    let since = known.last_try.as_deref().map(Try::ended);
    // If the index is lost or not used, the pods still say how they were released; one that was not held, or that has
    // started from what its rollout has, knows of no try.
    let counts = |(time, release): &&ReleasedWith<'a>| {
        !matches!(release.outcome, Outcome::NotHeld | Outcome::Same)
            && since.is_none_or(|since| {
                release.outcome == Outcome::Fallback && since < *time && *time <= now
            })
    };
    let newest = |given: &mut dyn Iterator<Item = &ReleasedWith<'a>>| {
        let newest = given.max_by_key(|(time, _)| *time);
        newest.map(|(time, release)| Latest::Release(*time, release))
    };
    newest(&mut users.started.iter().filter(counts))
        .or(known.last_try.as_deref().map(Latest::Try))
        .or_else(|| newest(&mut users.refused.iter()))
}

/// Whether the pod runs a copy that it fell back to, and the registry has not said since that the tag points to that.
pub(super) fn runs_old((time, release): &ReleasedWith<'_>, known: &Known) -> bool {
    let stands =
        (release.what_runs()).is_some_and(|digest| known.is_confirmed_since(*time, digest));
    release.runs_fallback() && !stands
}

/// What a pod that sets nothing gets after it.
fn of_try(tried: &Try, facts: &Facts, rules: &NodeRules) -> (Outcome, Option<FailureClass>) {
    match &tried.result {
        TryResult::Fresh => (Outcome::Fresh, None),
        TryResult::Unchanged => (Outcome::Unchanged, None),
        TryResult::Failed(failure) => {
            let outcome = if tried.copy_unknown || facts.copy.is_none() {
                Outcome::Unavailable
            } else if may_use_by_default(failure.class, tried, facts, rules) {
                Outcome::Fallback
            } else {
                Outcome::Refused
            };
            (outcome, Some(failure.class))
        }
    }
}

/// No free text of it is taken over.
fn of_release(release: &ContainerRelease) -> (Outcome, Option<FailureClass>) {
    let class = release.class();
    (release.outcome, class)
}
