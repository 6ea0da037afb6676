//! What a pod may set by annotation, and the complaints about invalid values.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::meant;
use crate::duration::Range;
use crate::keys;
use crate::outcome::{FailureClass, UnknownClass};
use crate::text::{quoted, some_of};

/// A pod's own settings. What is missing or invalid is `None`: the node's default applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How long to try before falling back.
    pub timeout: Option<Duration>,
    /// Refuse a cached copy whose tag was last confirmed longer ago.
    pub max_age: Option<Duration>,
    /// The failure classes that allow the cached copy, instead of the default ones
    /// ([`FailureClass::falls_back_by_default`]). `unauthorized` needs proof as well.
    pub fallback_on: Option<BTreeSet<FailureClass>>,
    /// Start from the digest that the pod's rollout has on the node already.
    pub same_digest: bool,
}

/// The annotations of pods that people write.
const BY_PEOPLE: [&str; 7] = [
    keys::CONTAINERS,
    keys::VOLUMES,
    keys::TIMEOUT,
    keys::MAX_AGE,
    keys::FALLBACK_ON,
    keys::SAME_DIGEST,
    keys::HOLD,
];

/// Those that admission and the agent write.
const BY_US: [&str; 3] = [keys::LITERAL, keys::RELEASED, keys::PROGRESS];

/// Most unknown annotations that are named.
const UNKNOWN_SHOWN: usize = 3;

/// Longest `timeout`: a pod that should wait longer needs `Always`.
const TIMEOUT_MAX: Duration = Duration::from_hours(1);

impl Settings {
    /// Reads the annotations. An invalid value keeps its default and yields one complaint: what is
    /// wrong, and what applies instead.
    pub fn parse(annotations: &BTreeMap<String, String>) -> (Self, Vec<String>) {
        let mut complaints = Vec::new();
        let mut duration = |key: &str, range: Range| {
            let text = annotations.get(key)?.trim();
            let parsed = range.parse(text).map_err(|why| {
                complaints.push(format!(
                    "{key}: invalid duration {}: {why}; the default applies",
                    quoted(text)
                ));
            });
            parsed.ok()
        };
        let timeout = duration(keys::TIMEOUT, Range::wait(TIMEOUT_MAX));
        let max_age = duration(keys::MAX_AGE, Range::AGE);
        let fallback_on = annotations
            .get(keys::FALLBACK_ON)
            .and_then(|text| parse_classes(text, &mut complaints));
        complaints.extend(unknown(annotations));
        complaints.extend(annotations.get(keys::HOLD).and_then(|text| bad_hold(text)));
        let same_digest = annotations.get(keys::SAME_DIGEST);
        let same_digest = same_digest.is_some_and(|text| {
            text.trim().parse().unwrap_or_else(|_| {
                complaints.push(format!(
                    "{}: invalid value {}; write \"true\" or \"false\"; the default, false, applies",
                    keys::SAME_DIGEST,
                    quoted(text)
                ));
                false
            })
        });
        let settings = Self {
            timeout,
            max_age,
            fallback_on,
            same_digest,
        };
        (settings, complaints)
    }
}

/// Annotations of ours that mean nothing to this version. Another version may know them: nothing else follows.
fn unknown(annotations: &BTreeMap<String, String>) -> Option<String> {
    let unknown = annotations.keys().filter_map(|key| {
        let word = key.strip_prefix(keys::PREFIX)?;
        let is_known = BY_PEOPLE.contains(&key.as_str()) || BY_US.contains(&key.as_str());
        (!is_known).then_some(word)
    });
    let unknown: Vec<&str> = unknown.collect();
    let words = BY_PEOPLE.map(|key| key.trim_start_matches(keys::PREFIX));
    let named = unknown.iter().map(|word| {
        let meant =
            meant(word, &words).map(|meant| format!(" (did you mean {}{meant}?)", keys::PREFIX));
        format!("{}{word}{}", keys::PREFIX, meant.unwrap_or_default())
    });
    let plural = if unknown.len() == 1 { "" } else { "s" };
    (!unknown.is_empty()).then(|| {
        let list = some_of(named, UNKNOWN_SHOWN);
        format!("unknown annotation{plural}: {list}; ignored")
    })
}

/// Admission has read it, and gives a gate to a pod that says anything else. It also copies the namespace's label: who
/// reads this may not find it in the pod's template.
fn bad_hold(text: &str) -> Option<String> {
    let known = ["", keys::HOLD_NONE, keys::HOLD_GATE];
    let text = text.trim();
    (!known.contains(&text)).then(|| {
        format!(
            "{}: unknown value {} (known: {}, {}); the pod has a gate; if the pod's template does not set it, the label \
             of its namespace does",
            keys::HOLD,
            quoted(text),
            keys::HOLD_NONE,
            keys::HOLD_GATE
        )
    })
}

/// A list with an unknown class is not used at all: ignoring only that word would refuse a fallback
/// that the user may have meant to allow, and hold the pod.
fn parse_classes(text: &str, complaints: &mut Vec<String>) -> Option<BTreeSet<FailureClass>> {
    let words = text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty());
    let why = match words.map(str::parse).collect::<Result<BTreeSet<_>, _>>() {
        // Most often a value that a template has left empty; who never wants to fall back uses `Always`.
        Ok(classes) if classes.is_empty() => "no failure class given".to_owned(),
        Ok(classes) => return Some(classes),
        Err(UnknownClass(word)) => format!("unknown failure class {}", quoted(&word)),
    };
    let known = FailureClass::ALL.map(FailureClass::as_str).join(", ");
    complaints.push(format!(
        "{}: {why} (known classes: {known}); the default applies",
        keys::FALLBACK_ON
    ));
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> (Settings, Vec<String>) {
        Settings::parse(
            &pairs
                .iter()
                .map(|&(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
        )
    }

    #[test]
    fn good_values_are_read() {
        let (settings, complaints) = parse(&[
            (keys::TIMEOUT, " 5s "),
            (keys::MAX_AGE, "7d"),
            (keys::FALLBACK_ON, "network, timeout,"),
            (keys::HOLD, " none "),
            (keys::SAME_DIGEST, "true "),
        ]);
        assert_eq!(complaints, Vec::<String>::new());
        assert_eq!(settings.timeout, Some(Duration::from_secs(5)));
        assert_eq!(settings.max_age, Some(Duration::from_secs(7 * 86_400)));
        let classes = [FailureClass::Network, FailureClass::Timeout];
        assert_eq!(settings.fallback_on, Some(classes.into()));
        assert!(settings.same_digest);
        assert_eq!(parse(&[(keys::SAME_DIGEST, "false")]), parse(&[]));
    }

    /// What others write to the pod is known, and what is none of ours is nobody's business here.
    #[test]
    fn unknown_annotations_are_named_with_what_may_be_meant() {
        let known = [&BY_PEOPLE[..], &BY_US].concat();
        let known: Vec<_> = known.into_iter().map(|key| (key, "5s")).collect();
        let (_, complaints) = parse(&known);
        let is_unknown = |words: &String| words.starts_with("unknown annotation");
        assert!(!complaints.iter().any(is_unknown), "{complaints:?}");
        let unknown = [
            ("e2e.trylatest.dev/timout", "1"),
            ("trylatest.dev/container", "app"),
            ("trylatest.dev/maxAge", "1h"),
            ("trylatest.dev/timout", "5s"),
            ("trylatest.dev/zone", "a"),
        ];
        let (settings, complaints) = parse(&unknown);
        assert_eq!(settings, Settings::default());
        assert_eq!(
            complaints,
            [
                "unknown annotations: trylatest.dev/container (did you mean trylatest.dev/containers?), \
                 trylatest.dev/maxAge (did you mean trylatest.dev/max-age?), trylatest.dev/timout (did you mean \
                 trylatest.dev/timeout?) and 1 more; ignored"
            ]
        );
        assert_eq!(
            parse(&[("trylatest.dev/zone", "a")]).1,
            ["unknown annotation: trylatest.dev/zone; ignored"]
        );
    }

    #[test]
    fn an_unknown_hold_names_both_places_that_it_may_come_from() {
        assert_eq!(
            parse(&[(keys::HOLD, "None")]).1,
            [
                "trylatest.dev/hold: unknown value \"None\" (known: none, gate); the pod has a gate; if the pod's template \
                 does not set it, the label of its namespace does"
            ]
        );
    }

    #[test]
    fn an_invalid_duration_is_answered_with_one_that_is_valid() {
        for (key, text, words) in [
            (
                keys::TIMEOUT,
                "90m",
                "it must be more than 0 and at most 1h; write it like 5s or 1m30s",
            ),
            (
                keys::TIMEOUT,
                "soon",
                "it must be more than 0 and at most 1h; write it like 5s or 1m30s",
            ),
            (keys::TIMEOUT, "90", "the unit is missing; write 90s"),
            (
                keys::MAX_AGE,
                "0s",
                "it must be more than 0; write it like 24h or 7d",
            ),
        ] {
            let complaint =
                format!("{key}: invalid duration {text:?}: {words}; the default applies");
            assert_eq!(parse(&[(key, text)]).1, [complaint]);
        }
    }

    /// What to write comes after it, and an Event's note is short.
    #[test]
    fn a_long_value_is_cut() {
        let long = "x".repeat(2_000);
        for key in BY_PEOPLE {
            for complaint in parse(&[(key, &long)]).1 {
                assert!(complaint.len() < 300, "{complaint}");
                assert!(complaint.contains("x\"…"), "{complaint}");
            }
        }
    }

    #[test]
    fn bad_values_keep_the_default_and_are_named() {
        for (key, value) in [
            (keys::TIMEOUT, "5"),
            (keys::TIMEOUT, "-5s"),
            (keys::TIMEOUT, "0s"),
            (keys::TIMEOUT, "2h"),
            (keys::TIMEOUT, ""),
            (keys::TIMEOUT, "99999999999999999999999s"),
            (keys::MAX_AGE, "soon"),
            (keys::MAX_AGE, "0"),
            (keys::MAX_AGE, "0s"),
            (keys::HOLD, "None"),
            (keys::HOLD, "off"),
            (keys::FALLBACK_ON, "network,dns"),
            (keys::FALLBACK_ON, ""),
            (keys::FALLBACK_ON, " , "),
            (keys::SAME_DIGEST, "yes"),
            (keys::SAME_DIGEST, "True"),
            (keys::SAME_DIGEST, ""),
        ] {
            let (settings, complaints) = parse(&[(key, value)]);
            assert_eq!(settings, Settings::default(), "{key}={value}");
            assert_eq!(complaints.len(), 1, "{key}={value}");
            assert!(complaints[0].starts_with(key), "{}", complaints[0]);
        }
    }
}
