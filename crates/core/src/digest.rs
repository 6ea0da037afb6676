//! Digests: what names point to.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The digest of a manifest, or of an index of manifests: `sha256:…`.
///
/// It reads like one (algorithm, colon, letters and digits, by the OCI image specification's
/// grammar), so it is safe to print. Whether any content has it is not known. Clones share the text: much of what is
/// remembered of an image names the same digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Arc<str>);

/// Something that is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a valid digest")]
pub struct InvalidDigest(pub String);

impl Digest {
    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `sha256:0123456789ab…` as `sha256:0123456789ab`: enough to compare by eye.
    pub fn short(&self) -> &str {
        const HEX: usize = 12;
        let start = self.0.find(':').map_or(0, |colon| colon + 1);
        self.0.get(..start + HEX).unwrap_or(&self.0)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidDigest(text.to_owned());
        let (algorithm, encoded) = text.split_once(':').ok_or_else(invalid)?;
        let all = |part: &str, others: &str| {
            let valid = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
            !part.is_empty() && part.chars().all(valid)
        };
        if all(algorithm, "+._-") && all(encoded, "=_-") {
            Ok(Self(text.into()))
        } else {
            Err(invalid())
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
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
    fn what_reads_like_a_digest_is_one() {
        for good in ["sha256:0123456789abcdef", "sha256+b64:aGk=", "x:y"] {
            let digest: Digest = good.parse().unwrap();
            assert_eq!(digest.as_str(), good);
            let json = serde_json::to_string(&digest).unwrap();
            assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        }
        for bad in [
            "",
            "sha256",
            "sha256:",
            ":00",
            "sha256:a b",
            "sha256:a\n",
            "sha256:ä",
        ] {
            let error = bad.parse::<Digest>().unwrap_err();
            assert!(error.to_string().contains("not a valid digest"), "{error}");
        }
    }

    #[test]
    fn it_is_shortened_for_people() {
        let short = |text: &str| text.parse::<Digest>().unwrap().short().to_owned();
        assert_eq!(short("sha256:0123456789abcdef"), "sha256:0123456789ab");
        assert_eq!(short("sha256:0123"), "sha256:0123");
    }
}
