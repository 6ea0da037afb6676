//! Cargo, as if we were not there.

use std::process::Command;

/// A cargo that finds the environment in which its user would start it.
///
/// We are mostly started by `cargo run`, which describes *us* in the environment. Build scripts that
/// watch those variables would run again, and minutes of compiling with them, each time somebody
/// changes between `cargo verify` and cargo itself.
pub fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(describes_us) {
            cargo.env_remove(name);
        }
    }
    cargo
}

fn describes_us(name: &str) -> bool {
    name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_MANIFEST_")
        || name.starts_with("CARGO_BIN_")
        || [
            "CARGO",
            "CARGO_CRATE_NAME",
            "CARGO_PRIMARY_PACKAGE",
            "OUT_DIR",
        ]
        .contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_describes_us_goes() {
        for name in ["CARGO", "CARGO_MANIFEST_DIR", "CARGO_PKG_VERSION_MAJOR"] {
            assert!(describes_us(name), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_BUILD_JOBS", "PATH"] {
            assert!(!describes_us(name), "{name}");
        }
    }

    #[test]
    fn a_test_run_by_cargo_hides_it_from_the_next_cargo() {
        // Cargo sets it for tests too, so the list is not about names that nobody uses.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        let cargo = cargo();
        let removed = cargo
            .get_envs()
            .any(|(name, value)| name == "CARGO_MANIFEST_DIR" && value.is_none());
        assert!(removed);
    }
}
