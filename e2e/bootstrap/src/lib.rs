//! What has to be there before the cluster can start: programs, and images made on this machine.
//!
//! The program of this package is behind `cargo demo`, `cargo verify` and `just`: it brings in what
//! is missing and then hands over to cargo. So it must itself build with nothing but Rust: no
//! protoc, no async runtime, nothing of the workspace.
//!
//! ```text
//!   Debian's archive ─► debian ─┐
//!   e2e/go modules ───► golang ─┼─► target/cluster  ─► Tools ─► e2e
//!   crates/agent ─────► image ──┴─► target/image ─────┘
//! ```
//!
//! In: the repository, package lists, Go modules. Out: files below `target`, packages on a
//! Debian-like system when root. It starts no cluster and changes nothing else.

mod cargo;
pub mod debian;
pub mod golang;
pub mod image;
pub mod oci;
mod progress;
mod tools;

pub use cargo::cargo;
pub use progress::say;
pub use tools::{ContainerdVersion, Tools};

use std::fs::{self, File, TryLockError};
use std::path::Path;

use anyhow::Context as _;

/// Holds off other runs that would build the same things. Released when dropped.
///
/// # Errors
/// If the lock's file below `target` cannot be made.
pub fn lock(root: &Path) -> anyhow::Result<File> {
    let folder = root.join("target");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join("bootstrap.lock");
    let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => say("Waiting for another run that builds the same things"),
        Err(TryLockError::Error(error)) => return Err(error).context("lock"),
    }
    file.lock().context("lock")?;
    Ok(file)
}
