//! Image names, read the way the kubelet and containerd read them.

mod parse;
mod prefix;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use self::parse::{Version, parse};
pub use self::prefix::{ImagePrefix, InvalidImagePrefix};
use crate::digest::Digest;

/// An image name in full: `nginx` is `docker.io/library/nginx:latest`.
///
/// Two spellings of one image compare equal, which is what merges their pulls. Clones share the text: a name is the key
/// of most of what is remembered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    full: Arc<str>,
    registry_len: usize,
}

/// A name that is not valid; containerd would refuse it, too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid image name {name:?}: {why}")]
pub struct InvalidImageName {
    /// The name as it was written.
    pub name: String,
    /// What is wrong with it.
    pub why: String,
}

impl ImageName {
    /// The name in full, as containerd stores it.
    pub fn as_str(&self) -> &str {
        &self.full
    }

    /// The registry's host and port, e.g. `docker.io` or `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.full[..self.registry_len]
    }

    /// The name without tag and digest, e.g. `docker.io/library/nginx`.
    pub fn repository(&self) -> &str {
        let version = self.full[self.registry_len..].find(['@', ':']);
        &self.full[..version.map_or(self.full.len(), |at| self.registry_len + at)]
    }

    /// Whether the two names differ only in where the image is stored, as those of a mirror and of the
    /// original do: the last part of the path is the same, with its tag or digest.
    pub fn is_mirrored_by(&self, other: &Self) -> bool {
        let last = |name: &str| name.rfind('/').map_or(0, |slash| slash + 1);
        self.full[last(&self.full)..] == other.full[last(&other.full)..]
    }

    /// The digest that the name carries, if it does: such an image cannot move.
    pub fn digest(&self) -> Option<Digest> {
        self.full.split_once('@')?.1.parse().ok()
    }

    /// Whether the name carries a digest.
    pub fn has_digest(&self) -> bool {
        self.full.contains('@')
    }
}

impl FromStr for ImageName {
    type Err = InvalidImageName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let invalid = |why: String| InvalidImageName {
            name: name.to_owned(),
            why,
        };
        let parts = parse(name).map_err(|why| invalid(why.to_owned()))?;
        let mut full = parts.registry.to_owned();
        for part in parts.prefix.into_iter().chain([parts.path]) {
            full.push('/');
            full.push_str(part);
        }
        let (separator, version) = match parts.version {
            Version::Tag(tag) => (':', tag),
            Version::Digest(digest) => ('@', digest),
        };
        full.push(separator);
        full.push_str(version);
        Ok(Self {
            full: full.into(),
            registry_len: parts.registry.len(),
        })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.full)
    }
}

impl Serialize for ImageName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.full)
    }
}

impl<'de> Deserialize<'de> for ImageName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_containerd_reads_them() {
        for (written, full, registry) in [
            ("nginx", "docker.io/library/nginx:latest", "docker.io"),
            ("my/app:v1", "docker.io/my/app:v1", "docker.io"),
            (
                "127.0.0.1:5000/my/app",
                "127.0.0.1:5000/my/app:latest",
                "127.0.0.1:5000",
            ),
            ("localhost/app", "localhost/app:latest", "localhost"),
        ] {
            let name: ImageName = written.parse().unwrap();
            assert_eq!(name.as_str(), full);
            assert_eq!(name.registry(), registry);
            assert_eq!(name.repository(), full.rsplit_once(':').unwrap().0);
            assert_eq!(name.digest(), None);
        }
    }

    #[test]
    fn a_digest_stays_without_a_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let name: ImageName = format!("reg.example/app@{digest}").parse().unwrap();
        assert_eq!(name.as_str(), format!("reg.example/app@{digest}"));
        assert_eq!(name.repository(), "reg.example/app");
        assert_eq!(name.digest().unwrap().as_str(), digest);
        assert!(name.has_digest());
    }

    #[test]
    fn a_mirror_keeps_the_last_part() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let name = |text: &str| text.parse::<ImageName>().unwrap();
        for (one, other, same) in [
            (
                "ghcr.io/t/app:1",
                "mirror.example:5000/ghcr.io/t/app:1",
                true,
            ),
            ("ghcr.io/t/app:1", "app:1", true),
            ("ghcr.io/t/app:1", "ghcr.io/t/app:2", false),
            ("ghcr.io/t/app:1", "ghcr.io/t/app", false),
            ("ghcr.io/t/app:1", "ghcr.io/t/my-app:1", false),
            ("ghcr.io/t/app:1", "nginx:1", false),
            (
                &format!("ghcr.io/t/app@{digest}"),
                &format!("m.example/app@{digest}"),
                true,
            ),
            (
                "ghcr.io/t/app:1",
                &format!("m.example/app:1@{digest}"),
                false,
            ),
        ] {
            assert_eq!(name(one).is_mirrored_by(&name(other)), same, "{other}");
        }
    }

    #[test]
    fn bad_names_say_what_is_wrong() {
        for bad in [
            "",
            "upper/Case",
            "a b",
            "reg.example/app:",
            "http://x/y",
            "-",
        ] {
            let error = bad.parse::<ImageName>().unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }
}
