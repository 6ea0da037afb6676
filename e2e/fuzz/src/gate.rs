//! The file in which the kubelet shows a pod's annotations to its gate, and what a gate has left behind.

use std::time::Duration;

use jiff::Timestamp;
use trylatest_core::gate::{End, Gate, PATIENCE, Reading, annotation};
use trylatest_core::keys;
use trylatest_core::release::FRESHNESS;
use trylatest_core::time::Now;

pub(crate) fn read(text: &str) {
    let read = |key| annotation(text, key);
    let reading = Reading {
        released: read(keys::RELEASED).and_then(|json| serde_json::from_str(&json).ok()),
        progress: read(keys::PROGRESS).and_then(|json| serde_json::from_str(&json).ok()),
    };
    let at = |seconds| Now {
        wall: Timestamp::UNIX_EPOCH,
        up: Duration::from_secs(seconds),
    };
    let mut gate = Gate::new(at(0), PATIENCE, FRESHNESS);
    for seconds in [0, 1, 30, 3_600] {
        let (lines, _) = gate.observe(at(seconds), &reading);
        assert!(lines.iter().all(|line| !line.contains('\n')));
    }
    let _ = End::of(text);
}
