//! Everything of TryLatest that speaks to the API server.
//!
//! It turns objects into the core's words and the core's words into patches, and decides nothing.
//! No task is spawned here but those that hyper gives its connections; every call has a deadline,
//! and so has the silence of a watch. Feature: `fake`, an API server for the tests of other crates.
//!
//! ```text
//!   pods of this node ─► watch ─► convert ─► core::pod::GatedPod
//!   core::release::{Release, Progress} ─► write ─► pod annotations, Events
//!   core::node::NodeReport ─────────────► write ─► node annotations and condition
//! ```

mod client;
mod convert;
mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod watch;
mod write;

pub use client::{ConnectError, client, connect};
pub use convert::{Classify, gated_pod};
pub use error::{ApiError, Operation};
pub use kube::Client;
pub use watch::{PodChange, WatchError, watch_pods};
pub use write::{Notice, Writer};
