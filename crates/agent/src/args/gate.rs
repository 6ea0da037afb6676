//! The flags of the gate.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::values::{duration, freshness};

/// What `trylatest gate` takes.
#[derive(Args, Debug, PartialEq, Eq)]
pub struct GateArgs {
    /// The folder of the downward-API volume that holds the pod's annotations
    #[arg(long, env = "TRYLATEST_VOLUME", default_value = VOLUME)]
    pub volume: PathBuf,

    /// How long to wait without any sign of an agent before the pod starts without an answer
    #[arg(long, env = "TRYLATEST_PATIENCE", default_value = PATIENCE, value_parser = duration)]
    pub patience: Duration,

    /// How much a release's time may differ from the current time; the agent relies on at least 2m
    #[arg(long, env = "TRYLATEST_FRESHNESS", default_value = FRESHNESS, value_parser = freshness)]
    pub freshness: Duration,
}

const VOLUME: &str = "/run/trylatest";
const PATIENCE: &str = "20s";
const FRESHNESS: &str = "2m";

impl GateArgs {
    /// The gate as the admission policy starts it: the only argument is the word `gate`. It waits in
    /// every gated pod, and clap's pages would be a third of its memory.
    pub(super) fn bare(
        args: impl Iterator<Item = OsString>,
        mut variables: impl Iterator<Item = OsString>,
    ) -> Option<Self> {
        let ours = |name: OsString| name.as_encoded_bytes().starts_with(b"TRYLATEST_");
        if !args.skip(1).eq([OsStr::new("gate")]) || variables.any(ours) {
            return None;
        }
        Some(Self {
            volume: VOLUME.into(),
            patience: duration(PATIENCE).ok()?,
            freshness: freshness(FRESHNESS).ok()?,
        })
    }
}
