//! Everything of TryLatest that speaks to containerd.
//!
//! Pulls go through CRI, so that they take the same mirrors, trust roots and snapshotter as the
//! kubelet's own; the native API serves what CRI cannot: proof of a usable copy, progress of a
//! running pull, names that keep an image, events. Both share one connection over the Unix socket.
//!
//! This crate must not speak to a registry, decide anything (that is `trylatest-core`) or know more of
//! a pod than its uid. It owns no tasks: what it does ends when the caller drops the future or stream.
//!
//! ```text
//!   ImageName ──► ImageRuntime ──► CRI ImageService   pull, status, list
//!                    │     └─────► native, k8s.io     images, content, snapshots, events
//!                    └─ Local, Movement, ImageEvent, PullError ──► Failure (classify)
//! ```
//!
//! Start with [`runtime::ImageRuntime`], the seam that the agent is written against. Features: `fake`
//! is that seam in memory, for tests; `conformance` the suite that both sides of it pass; `fuzz` what a fuzzer calls.

pub mod alias;
mod calls;
mod classify;
#[cfg(feature = "conformance")]
pub mod conformance;
mod containerd;
mod containers;
mod content;
mod disk;
mod events;
#[cfg(feature = "fake")]
pub mod fake;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod kept;
mod labels;
mod made;
mod manifest;
mod mend;
mod names;
mod program;
mod progress;
mod proof;
mod renew;
mod rolled_back;
pub mod runtime;
mod snapshots;
mod snapshotter;

pub use calls::{CallObserver, PullEnd};
pub use classify::kubelet_failure;
pub use containerd::{Containerd, ContainerdOptions};
pub use program::{Program, ProgramError};
pub use runtime::{
    Discarded, ImageChange, ImageEvent, ImageEvents, ImageRuntime, Local, LocalImage, Mended,
    Movement, Over, Pin, PodEvent, PodEvents, Pointed, PullError, RuntimeError, RuntimeVersion,
    Seen, Spoiled, Users, Verified,
};
