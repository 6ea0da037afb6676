//! A container runtime's version, and what follows from it.

use std::fmt;

use trylatest_core::version::Version;

/// Name and version of a container runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// E.g. `containerd`.
    pub name: String,
    /// As the runtime reports it, e.g. `v2.4.2` or `1.6.20~ds1`.
    pub version: String,
}

impl RuntimeVersion {
    /// Whether it honours pins ([`HONOURS_PINS`]). Other runtimes, and versions that cannot be read, are taken for new
    /// ones.
    ///
    /// [`HONOURS_PINS`]: trylatest_core::version::HONOURS_PINS
    pub fn honours_pins(&self) -> bool {
        self.number().is_none_or(Version::honours_pins)
    }

    /// Its number, if that can be read.
    pub(crate) fn number(&self) -> Option<Version> {
        Version::read(&self.version)
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
    fn a_version_that_cannot_be_read_is_taken_for_a_new_one() {
        for (version, honours) in [
            ("1.6.20~ds1", false),
            ("v1.7.9-k3s1", false),
            ("v1.7.10", true),
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
