//! One image's entry, as it is on disk.
//!
//! JSON: a field can be added without a new schema, an older version ignores it, and a person can
//! read it. An entry takes some kilobytes and is written once per try.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use trylatest_core::image::ImageName;
use trylatest_core::record::{Facts, ImageRecord, LocalCopy, RolledBack, Try, Week};

use crate::TRIES_MAX;

/// Counts are kept per six hours: a week is 28 of them, give or take six hours.
const SLOT_SECONDS: i64 = 6 * 3600;
const SLOTS_A_WEEK: i64 = 28;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    #[serde(flatten)]
    facts: Facts,
    seen: Timestamp,
    #[serde(default, deserialize_with = "readable")]
    tries: Vec<Try>,
    /// By slot since 1970.
    #[serde(default)]
    slots: BTreeMap<i64, Week>,
}

impl Stored {
    pub(crate) fn new(now: Timestamp, copy: Option<LocalCopy>) -> Self {
        Self {
            facts: Facts {
                copy,
                ..Facts::default()
            },
            seen: now,
            tries: Vec::new(),
            slots: BTreeMap::new(),
        }
    }

    pub(crate) fn seen(&self) -> Timestamp {
        self.seen
    }

    pub(crate) fn saw(&mut self, now: Timestamp) {
        self.seen = self.seen.max(now);
    }

    pub(crate) fn add(&mut self, tried: &Try) {
        self.facts.add(tried);
        self.saw(tried.started);
        self.tries.insert(0, tried.clone());
        self.tries.truncate(TRIES_MAX);
        let slot = slot(tried.started);
        let count = self.slots.entry(slot).or_default();
        count.tries = count.tries.saturating_add(1);
        if tried.result.failure().is_some() {
            count.failures = count.failures.saturating_add(1);
        }
        // A clock that was set back leaves slots in the future: they are bounded, too.
        self.slots
            .retain(|&other, _| other.abs_diff(slot) <= SLOTS_A_WEEK.unsigned_abs());
    }

    /// True if that changes anything.
    pub(crate) fn set_rolled_back(&mut self, back: Option<&RolledBack>) -> bool {
        let before = self.facts.rolled_back.clone();
        self.facts.set_rolled_back(back);
        before != self.facts.rolled_back
    }

    pub(crate) fn into_record(self, image: ImageName, now: Timestamp) -> ImageRecord {
        let newest = slot(now);
        let week = self.slots.range(newest - SLOTS_A_WEEK..=newest).fold(
            Week::default(),
            |sum, (_, count)| Week {
                tries: sum.tries.saturating_add(count.tries),
                failures: sum.failures.saturating_add(count.failures),
            },
        );
        ImageRecord {
            image,
            facts: self.facts,
            seen: self.seen,
            tries: self.tries,
            week,
        }
    }

    /// Maps with integer keys and no floats always serialize.
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// None for an entry that no version has written: the entry is lost, the index is not.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// The tries that this version can read. A later version may know more outcomes and failure classes;
/// leaving out such a try is better than losing the entry.
fn readable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Try>, D::Error> {
    let tries = Vec::<serde_json::Value>::deserialize(deserializer)?;
    let tries = tries.into_iter().map(serde_json::from_value);
    Ok(tries.filter_map(Result::ok).collect())
}

fn slot(time: Timestamp) -> i64 {
    time.as_second().div_euclid(SLOT_SECONDS)
}
