//! What many image names have in common: a registry, or a registry and the beginning of a path.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use super::parse::{self, DEFAULT_REGISTRY, OLD_DEFAULT_REGISTRY};

/// A registry's host with an optional port, and maybe the first words of a repository's path, as in
/// [`ImageName::repository`](super::ImageName::repository): `registry.example.com:5000/team`. It is a prefix at the
/// border of a word: it covers `…/team` and `…/team/app`, not `…/teams`. In lower case, as names of hosts are the same
/// in any.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImagePrefix(String);

/// Text that is not a registry, nor the beginning of a repository's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{prefix:?} is not a registry: {why}")]
pub struct InvalidImagePrefix {
    /// The text as it was written.
    pub prefix: String,
    /// What is wrong with it.
    pub why: &'static str,
    /// What may be meant.
    pub suggestion: Option<String>,
}

impl ImagePrefix {
    /// The prefix in full, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImagePrefix {
    type Err = InvalidImagePrefix;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match check(text) {
            Ok((registry, path)) => {
                let slash = if path.is_empty() { "" } else { "/" };
                let registry = registry.to_ascii_lowercase();
                Ok(Self(format!("{registry}{slash}{path}")))
            }
            Err(why) => Err(InvalidImagePrefix {
                prefix: text.to_owned(),
                why,
                suggestion: meant(text),
            }),
        }
    }
}

/// The prefix in an address.
fn meant(text: &str) -> Option<String> {
    let (_, name) = text.split_once("://")?;
    let prefix: ImagePrefix = name.parse().ok()?;
    Some(prefix.to_string())
}

fn check(text: &str) -> Result<(&str, &str), &'static str> {
    if text.contains("://") {
        return Err("write it without a scheme");
    }
    if text.contains('*') {
        return Err("there are no wildcards; a registry covers everything below it");
    }
    let (registry, path) = text.split_once('/').unwrap_or((text, ""));
    let path = path.strip_suffix('/').unwrap_or(path);
    if !parse::is_registry(registry) {
        return Err("write a host with an optional port, such as registry.example.com:5000");
    }
    let port = registry.rsplit_once(':').map(|(_, port)| port);
    let is_address = registry.ends_with(']');
    if port.is_some_and(|port| !is_address && port.parse::<u16>().is_err()) {
        return Err("its port is not a number up to 65535");
    }
    if !parse::is_taken_for_registry(registry) {
        return Err(
            "image names that begin like this are at docker.io; a registry has a dot or a port, or is localhost",
        );
    }
    if path.contains(['@', ':']) {
        return Err("write it without tag and digest");
    }
    if !path.is_empty() && !path.split('/').all(parse::is_path_component) {
        return Err("its path is not made of lowercase words with single separators");
    }
    let known = registry.eq_ignore_ascii_case(OLD_DEFAULT_REGISTRY);
    Ok((if known { DEFAULT_REGISTRY } else { registry }, path))
}

impl Borrow<str> for ImagePrefix {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImagePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_and_the_beginning_of_a_path() {
        for (text, full) in [
            ("docker.io", "docker.io"),
            ("index.docker.io/library", "docker.io/library"),
            ("localhost", "localhost"),
            ("127.0.0.1:5000/", "127.0.0.1:5000"),
            ("[2001:db8::1]", "[2001:db8::1]"),
            ("[2001:db8::1]:5000/a", "[2001:db8::1]:5000/a"),
            ("registry.example.com/team/", "registry.example.com/team"),
            ("Registry.Example.com/team", "registry.example.com/team"),
            ("Index.Docker.io", "docker.io"),
        ] {
            let prefix: ImagePrefix = text.parse().unwrap();
            assert_eq!(prefix.as_str(), full);
        }
    }

    #[test]
    fn what_covers_no_image_says_why() {
        for (text, why) in [
            ("", "a host"),
            ("/team", "a host"),
            ("https://registry.example.com", "scheme"),
            ("*.example.com", "wildcards"),
            ("registry", "at docker.io"),
            ("library/nginx", "at docker.io"),
            ("my registry.example.com", "a host"),
            ("registry_.example.com", "a host"),
            ("registry.example.com:x", "a host"),
            ("registry.example.com:70000", "65535"),
            ("registry.example.com/team:v1", "without tag"),
            ("registry.example.com/team@sha256:abc", "without tag"),
            ("registry.example.com/Team", "lowercase"),
            ("registry.example.com//team", "lowercase"),
            ("registry.example.com/team//", "lowercase"),
        ] {
            let error = text.parse::<ImagePrefix>().unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn an_address_suggests_its_registry() {
        for (text, meant) in [
            ("https://registry.example.com", Some("registry.example.com")),
            ("http://127.0.0.1:5000/", Some("127.0.0.1:5000")),
            ("oci://Reg.Example/team/", Some("reg.example/team")),
            ("https://registry", None),
            ("https://", None),
            ("*.example.com", None),
        ] {
            let error = text.parse::<ImagePrefix>().unwrap_err();
            assert_eq!(error.suggestion.as_deref(), meant, "{text}");
        }
    }
}
