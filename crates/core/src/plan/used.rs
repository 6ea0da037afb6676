//! Which images the node's pods use or wait for, and which copies of them.

use std::collections::BTreeMap;

use super::pod::Pod;
use crate::image::ImageName;
use crate::keep::UsedImage;
use crate::knowledge::Knowledge;
use crate::pod::Start;

/// Of every pod that has not ended.
pub(super) fn images<'a>(
    knowledge: &Knowledge,
    pods: impl Iterator<Item = &'a Pod>,
) -> Vec<UsedImage> {
    let mut used: BTreeMap<&ImageName, UsedImage> = BTreeMap::new();
    for pod in pods.filter(|pod| !pod.seen.terminated) {
        for container in &pod.seen.containers {
            let Ok(image) = &container.image else {
                continue;
            };
            let used = used.entry(image).or_insert_with(|| of(knowledge, image));
            let start = pod.seen.starts.get(&container.name);
            if let Some(Start::Started {
                digest: Some(digest),
                since,
                ..
            }) = start
            {
                let longest = used.runs.entry(digest.clone()).or_default();
                *longest = [*longest, *since].into_iter().flatten().min();
            }
        }
    }
    used.into_values().collect()
}

fn of(knowledge: &Knowledge, image: &ImageName) -> UsedImage {
    let facts = knowledge.facts(image);
    let current = facts.copy.clone();
    // Only what was had without credentials is rolled back to.
    let is_everybodys =
        |digest| facts.is_everybodys(digest) || facts.rolled_back_here(digest).is_some();
    let given = |digest| facts.is_public() && is_everybodys(digest);
    UsedImage {
        image: image.clone(),
        public: current.as_ref().is_some_and(|copy| given(&copy.digest)),
        current,
        runs: BTreeMap::new(),
    }
}
