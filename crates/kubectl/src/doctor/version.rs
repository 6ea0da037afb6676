//! Versions as Kubernetes and containerd write them.

/// `major.minor.patch`, without what follows.
pub(super) type Version = (u64, u64, u64);

/// Reads `v1.37.2`, `1.7.10-k3s1`, `v1.36.0+rke2r1`; none if it does not begin like a version.
pub(super) fn version(text: &str) -> Option<Version> {
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
    Some((major, minor, patch))
}

/// The runtime's name and version, from `containerd://1.7.10`.
pub(super) fn runtime(text: &str) -> (&str, Option<Version>) {
    match text.split_once("://") {
        Some((name, rest)) => (name, version(rest)),
        None => (text, None),
    }
}

/// Whether this containerd ignores pins, or does not let go of them (docs/limits.md).
pub(super) fn ignores_pins(containerd: Version) -> bool {
    containerd < (1, 6, 25) || ((1, 7, 0)..(1, 7, 10)).contains(&containerd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_what_distributions_append() {
        assert_eq!(version("v1.37.2"), Some((1, 37, 2)));
        assert_eq!(version("1.7.10-k3s1"), Some((1, 7, 10)));
        assert_eq!(version("v1.36.0+rke2r1"), Some((1, 36, 0)));
        assert_eq!(version("2.0-rc"), Some((2, 0, 0)));
        assert_eq!(version("v1.32+"), Some((1, 32, 0)));
        for none in ["", "v", "unknown", "1"] {
            assert_eq!(version(none), None, "{none}");
        }
        assert_eq!(
            runtime("containerd://2.2.7"),
            ("containerd", Some((2, 2, 7)))
        );
        assert_eq!(runtime("cri-o://1.34.1").0, "cri-o");
    }

    #[test]
    fn pins_are_ignored_by_some_versions_between_others() {
        for (version, ignores) in [
            ((1, 6, 24), true),
            ((1, 6, 25), false),
            ((1, 7, 9), true),
            ((1, 7, 10), false),
            ((2, 0, 0), false),
        ] {
            assert_eq!(ignores_pins(version), ignores, "{version:?}");
        }
    }
}
