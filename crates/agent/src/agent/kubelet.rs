//! What the node's kubelet does by itself, as far as its version tells.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::sleep;
use tracing::{info, warn};
use trylatest_core::version::{KUBELET_VERIFIES, Version};
use trylatest_k8s::Operation;

use super::api::{Api, words};
use super::health::Health;
use crate::args::Verifies;

/// Between two tries to learn the kubelet's version: the first, and the longest; jitter adds up to as much. All agents of
/// a cluster may wait for the same API server, and no pod of theirs is released before it answers.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3));

/// Whether the kubelet looks after who may use a private image. Waits for the API server if it has to be
/// asked: no pod comes before that answers.
pub(super) async fn verifies(choice: Verifies, api: &Api, health: &Health) -> bool {
    let verifies = match choice {
        Verifies::Yes => true,
        Verifies::No => false,
        Verifies::Auto => version_verifies(&version(api, health).await),
    };
    info!(
        verifies,
        "whether the kubelet looks after who may use a private image"
    );
    verifies
}

/// Asks until it is known.
async fn version(api: &Api, health: &Health) -> String {
    let mut pauses = pauses();
    loop {
        health.beat();
        let version = api.writer.kubelet_version().await;
        match api.count(Operation::Kubelet, version) {
            Ok(version) => return version,
            Err(error) => {
                warn!(error = %words(&error), "the version of this node's kubelet could not be read; retrying");
            }
        }
        sleep(pauses.next().unwrap_or(PAUSE.1)).await;
    }
}

fn pauses() -> impl Iterator<Item = Duration> {
    let pauses = ExponentialBuilder::new()
        .with_min_delay(PAUSE.0)
        .with_max_delay(PAUSE.1)
        .with_jitter()
        .without_max_times();
    pauses.build()
}

/// Whether a kubelet of this version looks after who may use a private image. One whose version cannot be
/// read does not.
fn version_verifies(version: &str) -> bool {
    Version::read(version) >= Some(KUBELET_VERIFIES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_that_wait_for_one_api_server_do_not_ask_it_together() {
        let agents = || (0..50).map(|_| pauses().take(6).sum::<Duration>());
        assert!(agents().all(|waited| waited <= 2 * 6 * PAUSE.1));
        let different: std::collections::BTreeSet<_> = agents().collect();
        assert!(different.len() > 25, "{different:?}");
    }

    #[test]
    fn the_version_tells() {
        for yes in [
            "v1.35.0",
            "v1.37.2",
            "1.35.0-alpha.1",
            "v1.36.1+k3s1",
            "v1.35+",
            "v2.0.0",
        ] {
            assert!(version_verifies(yes), "{yes}");
        }
        for no in ["v1.34.9", "v1.9.0", "", "v1", "unknown", "v1.x.3"] {
            assert!(!version_verifies(no), "{no}");
        }
    }
}
