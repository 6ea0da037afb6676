//! Names of namespaces, and which namespaces a section of a configuration is about.

use std::fmt;
use std::str::FromStr;

/// Longest name of a namespace.
const NAME_MAX: usize = 63;

/// The name of a namespace, as the API server accepts it (an RFC 1123 label).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceName(String);

/// A namespace, or all whose names begin alike: `team-a`, `team-*`. Of several that cover one, the name itself comes
/// first, then the longest beginning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacePattern(String);

/// Text that is neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a namespace: {why}")]
pub struct InvalidNamespace {
    /// The text as it was written.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl NamespaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NamespaceName {
    type Err = InvalidNamespace;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if begins_name(text) && text.ends_with(is_letter) {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidNamespace {
            text: text.to_owned(),
            why: "a name has at most 63 lowercase letters, digits and -, and begins and ends with a letter or digit",
        })
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl NamespacePattern {
    /// Whether it is about this namespace, and how closely: the greater, the closer.
    pub(crate) fn covers(&self, namespace: &str) -> Option<usize> {
        match self.0.strip_suffix('*') {
            Some(beginning) => namespace.starts_with(beginning).then_some(beginning.len()),
            None => (self.0 == namespace).then_some(usize::MAX),
        }
    }
}

impl FromStr for NamespacePattern {
    type Err = InvalidNamespace;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match check(text) {
            None => Ok(Self(text.to_owned())),
            Some(why) => Err(InvalidNamespace {
                text: text.to_owned(),
                why,
            }),
        }
    }
}

fn check(text: &str) -> Option<&'static str> {
    let (name, is_whole) = match text.strip_suffix('*') {
        Some("") => return Some("for all namespaces, write the rule under defaults"),
        Some(beginning) => (beginning, false),
        None => (text, true),
    };
    if name.contains('*') {
        return Some("a * belongs at the end, as in team-*");
    }
    let is_sound = begins_name(name) && (!is_whole || name.ends_with(is_letter));
    (!is_sound).then_some(
        "write a name of lowercase letters, digits and -, or its beginning with a *, as in team-*",
    )
}

/// Whether a name may begin like this.
fn begins_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len())
        && text.chars().all(|c| is_letter(c) || c == '-')
        && text.starts_with(is_letter)
}

fn is_letter(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

impl fmt::Display for NamespacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> NamespacePattern {
        text.parse().unwrap()
    }

    #[test]
    fn the_closer_a_pattern_the_greater() {
        let closeness = |text, namespace| pattern(text).covers(namespace);
        assert_eq!(closeness("team-a", "team-ab"), None);
        assert_eq!(closeness("team-*", "team"), None);
        assert!(closeness("team-*", "team-a") > closeness("te*", "team-a"));
        assert!(closeness("team-a", "team-a") > closeness("team-a*", "team-a"));
    }

    #[test]
    fn what_no_namespace_is_called_says_why() {
        for (text, why) in [
            ("", "lowercase"),
            ("*", "under defaults"),
            ("*-prod", "at the end"),
            ("a*b*", "at the end"),
            ("Team", "lowercase"),
            ("team_a", "lowercase"),
            ("team-", "lowercase"),
            ("-team*", "lowercase"),
            ("a.b", "lowercase"),
        ] {
            let error = text.parse::<NamespacePattern>().unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        assert!("a".repeat(64).parse::<NamespacePattern>().is_err());
        for text in ["team-a", "7", "team-*", "team-a*"] {
            assert_eq!(pattern(text).to_string(), text);
        }
    }

    #[test]
    fn a_name_is_an_rfc_1123_label() {
        for text in ["a", "7", "team-a", "kube-system", &"a".repeat(63)] {
            let name: NamespaceName = text.parse().unwrap();
            assert_eq!(name.as_str(), text);
        }
        for text in [
            "",
            "A B",
            "Team",
            "team_a",
            "a.b",
            "-a",
            "a-",
            "team-*",
            "a/b",
            "é",
            &"a".repeat(64),
        ] {
            let error = text.parse::<NamespaceName>().unwrap_err();
            assert!(error.to_string().contains("is not a namespace"), "{error}");
        }
    }
}
