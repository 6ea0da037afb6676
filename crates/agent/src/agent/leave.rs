//! What the agent has put on its node goes with it, if it does not come back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{info, warn};
use trylatest_containerd::{ImageRuntime, alias};
use trylatest_k8s::Operation;

use super::api::{Api, words};

/// How long it may take. The kubelet kills the agent 15 s after SIGTERM, and its tasks may have taken 8 s of that.
const DEADLINE: Duration = Duration::from_secs(6);

/// What is needed to leave a node.
pub(super) struct Leaver<R> {
    pub(super) runtime: Arc<R>,
    pub(super) api: Api,
    /// Namespace and name of the pod that the agent runs in.
    pub(super) own_pod: (String, String),
}

impl<R: ImageRuntime> Leaver<R> {
    /// After the last task has ended: if TryLatest is being uninstalled, removes the aliases of kept copies, and the
    /// node's annotations and condition. The gate's image stays: pods that run still need it after a reboot.
    pub(super) async fn leave(self) {
        if timeout(DEADLINE, self.leave_if_uninstalled())
            .await
            .is_err()
        {
            warn!("TryLatest could not be removed from this node in time");
        }
    }

    async fn leave_if_uninstalled(&self) {
        let (namespace, pod) = &self.own_pod;
        let leaving = self.api.writer.is_leaving(namespace, pod).await;
        match self.api.count(Operation::OwnDaemonSet, leaving) {
            Ok(false) => return,
            Ok(true) => {}
            // `kubectl delete -k` removes the rights before it removes the agents.
            Err(error) if error.is_denied() => {}
            Err(error) => {
                return warn!(error = %words(&error), "whether TryLatest is uninstalled cannot be found out");
            }
        }
        info!(
            "TryLatest is uninstalled: kept copies are let go, and the node's condition and annotations are removed"
        );
        futures::join!(self.forget_copies(), self.clear_node());
    }

    async fn forget_copies(&self) {
        let copies = match self.runtime.kept_copies().await {
            Ok(copies) => copies,
            Err(error) => return warn!(%error, "kept copies cannot be let go"),
        };
        for copy in copies {
            let alias = alias::copy(&copy.image, &copy.digest);
            if let Err(error) = self.runtime.forget(&alias).await {
                warn!(image = %copy.image, %error, "a kept copy cannot be let go");
            }
        }
    }

    async fn clear_node(&self) {
        let cleared = self.api.writer.clear_node().await;
        if let Err(error) = self.api.count(Operation::NodeCondition, cleared) {
            warn!(error = %words(&error), "the node's condition and annotations stay");
        }
    }
}
