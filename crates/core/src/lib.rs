//! What TryLatest decides, and the words it decides in.
//!
//! This crate does no I/O, reads no clock and knows neither Kubernetes' client nor containerd's:
//! `now` and everything seen outside are arguments, and what is to be done comes back as data.
//!
//! ```text
//!   watch ─► pod::GatedPod ─┐                       ┌─► plan::Action::Pull ────► containerd
//!                           ├─► plan::Planner ──────┼─► plan::Action::Release ─► API server
//!   pull outcome ───────────┘   (now is an argument)└─► plan::Action::Progress ► API server
//! ```
//!
//! [`keys`] owns every annotation, label and condition name, [`outcome`] the outcomes and failure
//! classes, [`gate`] what the init container does with what it reads.

pub mod image;
pub mod keys;
pub mod outcome;
pub mod record;
