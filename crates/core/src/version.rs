//! Versions as Kubernetes and containerd write them, and what follows from them.

use std::fmt;

/// A version, without what follows its three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64, pub u64, pub u64);

/// The first containerd of the 1.6 and of the 1.7 series in which a pin on any name protects its image, and removing the
/// pin ends that. All later series do the same. Before 1.6.22 and 1.7.3 pins have no effect; in between, only that
/// of the name that CRI saw first, and for ever (internal/store/image/image.go).
pub const HONOURS_PINS: [Version; 2] = [Version(1, 6, 25), Version(1, 7, 10)];

/// From this version on, the kubelet remembers by default with which credentials it has pulled an image, and starts no
/// other pod from it without asking the registry (KEP-2535, `KubeletEnsureSecretPulledImages`).
pub const KUBELET_VERIFIES: Version = Version(1, 35, 0);

impl Version {
    /// Reads `v1.37.2`, `1.7.10-k3s1`, `v1.36.0+rke2r1` or `1.6.20~ds1`; none if it does not begin like a version.
    pub fn read(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches('v');
        let mut parts = text.split('.').map(|part| {
            let end = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            part[..end].parse().ok()
        });
        let major = parts.next()??;
        let minor = parts.next()??;
        let patch = parts.next().flatten().unwrap_or(0);
        Some(Self(major, minor, patch))
    }

    /// Whether a containerd of this version honours pins; see [`HONOURS_PINS`].
    pub fn honours_pins(self) -> bool {
        let [old, new] = HONOURS_PINS;
        let Version(major, minor, _) = new;
        self >= new || self >= old && self < Version(major, minor, 0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(major, minor, patch) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_what_distributions_append() {
        for (text, version) in [
            ("v1.37.2", Version(1, 37, 2)),
            ("1.7.10-k3s1", Version(1, 7, 10)),
            ("1.6.20~ds1", Version(1, 6, 20)),
            ("v1.36.0+rke2r1", Version(1, 36, 0)),
            ("2.0-rc", Version(2, 0, 0)),
            ("v1.32+", Version(1, 32, 0)),
        ] {
            assert_eq!(Version::read(text), Some(version), "{text}");
        }
        for none in ["", "v", "unknown", "1", "v1.x.3"] {
            assert_eq!(Version::read(none), None, "{none}");
        }
        assert_eq!(Version(1, 6, 25).to_string(), "1.6.25");
    }

    #[test]
    fn pins_are_honoured_from_some_versions_on() {
        for (version, honours) in [
            (Version(1, 5, 18), false),
            (Version(1, 6, 24), false),
            (Version(1, 6, 25), true),
            (Version(1, 6, 36), true),
            (Version(1, 7, 0), false),
            (Version(1, 7, 9), false),
            (Version(1, 7, 10), true),
            (Version(2, 0, 0), true),
        ] {
            assert_eq!(version.honours_pins(), honours, "{version}");
        }
    }
}
