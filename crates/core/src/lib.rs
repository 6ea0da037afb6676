//! What TryLatest decides, and the words it decides in.
//!
//! This crate does no I/O, reads no clock and knows neither Kubernetes' client nor containerd's:
//! `now` and everything seen outside are arguments, and what is to be done comes back as data.
//!
//! ```text
//!   watch ─► pod::GatedPod ─┐                   ┌─► Action::Try ──────► containerd ─┐
//!                           ├─► plan::Planner ──┼─► Action::Record ───► index       │
//!   ┌─ plan::Event ◄────────┘                   └─► Action::Release ──► API server ─┤
//!   └───────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Read [`pod`] (what is known about a pod), [`plan`] (what is done when), [`record`] (what tries
//! have shown), [`rules`] (what applies to a container) and [`config`] (what the administrator says of that),
//! [`verdict`] (which copy a container may use), [`release`] (what is said), [`told`] (what a pod's owner is told of
//! it), [`gate`] (what the held pod does with it), in this order. [`gate_image`] (what the gate starts from), [`keep`]
//! (which copies stay for the next outage) and [`disk`] (whether there is room) stand alone, and [`explain`] says all
//! of it for one image. [`keys`] owns every name on an object, [`outcome`] the outcomes and failure classes,
//! [`namespace`] names of namespaces, [`duration`] how people write durations, [`version`] what follows from a
//! version, [`doctor`] what the programs' doctors have in common.

pub mod config;
pub mod digest;
pub mod disk;
pub mod doctor;
pub mod duration;
pub mod explain;
pub mod gate;
pub mod gate_image;
pub mod identity;
pub mod image;
pub mod keep;
pub mod keys;
mod knowledge;
pub mod namespace;
pub mod node;
pub mod outcome;
pub mod plan;
pub mod pod;
pub mod record;
pub mod release;
pub mod rules;
pub mod settings;
pub mod text;
pub mod time;
pub mod told;
pub mod verdict;
pub mod version;
