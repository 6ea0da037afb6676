//! What the node's kubelet does by itself, as far as its version tells.

use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};
use trylatest_k8s::Operation;

use super::api::{Api, words};
use super::health::Health;
use crate::args::Verifies;

/// Between two tries to learn the kubelet's version.
const PAUSE: Duration = Duration::from_secs(1);

/// From this version on it remembers by default with which credentials it has pulled an image, and starts
/// no other pod from it without asking the registry (KEP-2535, `KubeletEnsureSecretPulledImages`).
const VERIFIES_SINCE: (u32, u32) = (1, 35);

/// Whether the kubelet looks after who may use a private image. Waits for the API server if it has to be
/// asked: no pod comes before that answers.
pub(super) async fn verifies(choice: Verifies, api: &Api, health: &Health) -> bool {
    let verifies = match choice {
        Verifies::Yes => true,
        Verifies::No => false,
        Verifies::Auto => loop {
            health.beat();
            let version = api.writer.kubelet_version().await;
            match api.count(Operation::Kubelet, version) {
                Ok(version) => break version_verifies(&version),
                Err(error) => {
                    warn!(error = %words(&error), "the version of this node's kubelet could not be read; retrying");
                    sleep(PAUSE).await;
                }
            }
        },
    };
    info!(
        verifies,
        "whether the kubelet looks after who may use a private image"
    );
    verifies
}

/// Whether a kubelet of this version looks after who may use a private image. One whose version cannot be
/// read does not.
fn version_verifies(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split('.');
    let mut next = || numbers.next()?.parse::<u32>().ok();
    next().zip(next()) >= Some(VERIFIES_SINCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_tells() {
        for yes in [
            "v1.35.0",
            "v1.37.2",
            "1.35.0-alpha.1",
            "v1.36.1+k3s1",
            "v2.0.0",
        ] {
            assert!(version_verifies(yes), "{yes}");
        }
        for no in ["v1.34.9", "v1.9.0", "", "v1", "unknown", "v1.x.3"] {
            assert!(!version_verifies(no), "{no}");
        }
    }
}
