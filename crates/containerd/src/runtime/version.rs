//! A container runtime's version, and what follows from it.

use std::fmt;

/// Name and version of a container runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// E.g. `containerd`.
    pub name: String,
    /// As the runtime reports it, e.g. `v2.4.2` or `1.6.20~ds1`.
    pub version: String,
}

impl RuntimeVersion {
    /// Whether the pin of any name counts for its image, and a pin that is taken away does not: so from containerd
    /// 1.6.25, 1.7.10 and 2.0 on. Before 1.6.22 and 1.7.3 pins have no effect; in between, only that of the name that
    /// CRI saw first, and for ever (internal/store/image/image.go). Other runtimes, and versions that cannot be read,
    /// are taken for new ones.
    pub fn honours_pins(&self) -> bool {
        match self.numbers() {
            [Some(1), Some(7), patch] => patch.unwrap_or(0) >= 10,
            [Some(1), Some(6), patch] => patch.unwrap_or(0) >= 25,
            [Some(1), Some(..6), _] => false,
            _ => true,
        }
    }

    /// Major, minor and patch number, as far as they can be read.
    pub(crate) fn numbers(&self) -> [Option<u32>; 3] {
        let version = self.version.trim_start_matches('v');
        let mut parts = version.splitn(3, '.').map(|part| {
            let digits = part.find(|c: char| !c.is_ascii_digit());
            part.get(..digits.unwrap_or(part.len()))?.parse().ok()
        });
        std::array::from_fn(|_| parts.next().flatten())
    }
}

impl fmt::Display for RuntimeVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_count_from_some_versions_on() {
        for (version, honours) in [
            ("1.5.18", false),
            ("1.6.20~ds1", false),
            ("v1.6.24", false),
            ("v1.6.25", true),
            ("1.6.36~ds1", true),
            ("v1.7.9-k3s1", false),
            ("v1.7.10", true),
            ("1.7.27-0ubuntu1~24.04.1", true),
            ("v2.0.0", true),
            ("v2.4.2", true),
            ("unknown", true),
            ("", true),
        ] {
            let version = RuntimeVersion {
                name: "containerd".to_owned(),
                version: version.to_owned(),
            };
            assert_eq!(version.honours_pins(), honours, "{version}");
        }
    }
}
