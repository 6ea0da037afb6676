//! What this crate reads from outside, for a fuzzer.

use tonic::{Code, Status};
use trylatest_core::outcome::Failure;

use crate::classify;
use crate::manifest::{Config, Document, Platform};
use crate::snapshotter;

/// Reads a registry's documents, and containerd's own.
pub fn documents(bytes: &[u8]) {
    match serde_json::from_slice::<Document>(bytes) {
        Ok(Document::Manifest(manifest)) => {
            let _ = manifest.total_bytes();
            let _ = manifest.blobs();
        }
        Ok(Document::Index(_)) | Err(_) => {}
    }
    if let Ok(config) = serde_json::from_slice::<Config>(bytes) {
        let _ = config.chain_ids();
    }
    if let Ok(platform) = serde_json::from_slice::<Platform>(bytes) {
        let _ = Platform::of_this_node().runs(&platform);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = snapshotter::configured(text);
    }
}

/// The failures that a message stands for: of containerd, with this code, and of the kubelet.
pub fn failures(code: i32, message: &str) -> [Failure; 2] {
    let status = Status::new(Code::from(code), message);
    let kubelets = classify::kubelet_failure(message);
    [classify::pull_failure(&status), kubelets]
}
