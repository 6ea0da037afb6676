//! Which known word an unknown one may stand for, in the configuration and in the annotations of pods
//! (`crate::settings`).

use super::{KEEP, TRY};

/// Words that people write for a rule because it is called so elsewhere.
const OTHER_WORDS: [(&str, &str); 6] = [
    ("timeout", TRY),
    ("keep-for", KEEP),
    ("default", "defaults"),
    ("registry", "registries"),
    ("namespace", "namespaces"),
    ("limits", "ceilings"),
];

/// Longer words are like none of ours.
const WORD_MAX: usize = 64;

/// Which known word may be meant.
pub(crate) fn meant(word: &str, known: &[&'static str]) -> Option<&'static str> {
    let called = OTHER_WORDS.iter().find(|(other, _)| *other == word);
    let called = called
        .map(|(_, meant)| *meant)
        .filter(|meant| known.contains(meant));
    let near = known
        .iter()
        .map(|known| (distance(word, known), *known))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, known)| *distance <= known.len().min(word.len()).div_ceil(3).max(1));
    called.or(near.map(|(_, known)| known))
}

/// How many letters have to be inserted, removed or replaced to get from one word to the other. Case and how words
/// are joined do not count: `maxAge` is `max-age`.
fn distance(one: &str, other: &str) -> usize {
    let plain = |word: &str| -> Vec<char> {
        let letters = word.chars().filter(|c| !matches!(c, '-' | '_'));
        letters
            .take(WORD_MAX)
            .flat_map(char::to_lowercase)
            .collect()
    };
    let (one, other) = (plain(one), plain(other));
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}
