//! Everything of TryLatest that speaks to the API server.
//!
//! It turns objects into the core's words and the core's words into patches, and decides nothing.
//! No task is spawned here; every call but the watch has a deadline.
//!
//! ```text
//!   pods of this node ─► watch ─► convert ─► core::pod::GatedPod
//!   core::release::{Release, Progress} ─► write ─► pod annotations, Events
//!   core::node::NodeReport ─────────────► write ─► node annotations and condition
//! ```

mod convert;
mod error;
mod watch;
mod write;

pub use convert::gated_pod;
pub use error::{ApiError, Operation};
pub use watch::{PodChange, WATCH_ENDS_AFTER, WatchError, watch_pods};
pub use write::{Notice, Writer};
