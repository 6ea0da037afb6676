//! What the agent leaves behind when it ends: nothing, if it does not come back.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::timeout;
use tracing::{info, warn};
use trylatest_containerd::{ImageRuntime, RuntimeError, alias};
use trylatest_core::keep::KeptCopy;
use trylatest_k8s::Operation;

use super::api::{Api, words};
use super::attempt;
use super::history::History;
use crate::undo;

/// How long it may take. The kubelet kills the agent 30 s after SIGTERM, and its tasks may have taken 8 s of that.
const DEADLINE: Duration = Duration::from_secs(15);

/// Writes to containerd at the same time.
const AT_ONCE: usize = 8;

/// What is needed to leave a node.
pub(super) struct Leaver<R> {
    pub(super) runtime: Arc<R>,
    pub(super) api: Api,
    /// Namespace and name of the pod that the agent runs in.
    pub(super) own_pod: (String, String),
    /// As long as this is open, no other agent begins.
    pub(super) history: History,
}

impl<R: ImageRuntime> Leaver<R> {
    /// After the last task has ended: nothing is pinned any more, because nobody would give way when the disk is full;
    /// the next agent pins it again. If TryLatest is being uninstalled, the aliases of kept copies go, and the node's
    /// annotations and condition. The gate's image stays: running pods still need it after a reboot.
    pub(super) async fn leave(self) {
        let leave = async {
            attempt::end_all(&*self.runtime).await;
            if self.is_uninstalled().await {
                info!("TryLatest is being uninstalled: what it has put on this node is removed");
                futures::join!(self.forget_aliases(), self.clear_node());
            } else {
                self.unpin_copies().await;
            }
        };
        if timeout(DEADLINE, leave).await.is_err() {
            warn!("what the agent keeps could not be let go in time");
        }
        drop(self.history);
    }

    /// Without an answer, the next agent is expected to come.
    async fn is_uninstalled(&self) -> bool {
        let (namespace, pod) = &self.own_pod;
        let leaving = self.api.writer.is_leaving(namespace, pod).await;
        match self.api.count(Operation::OwnDaemonSet, leaving) {
            Ok(leaving) => leaving,
            Err(error) => {
                warn!(error = %words(&error), "cannot find out whether TryLatest is being uninstalled");
                false
            }
        }
    }

    /// Removes the aliases of kept copies, those that say what was rolled back, and those that killed commands have
    /// left.
    async fn forget_aliases(&self) {
        undo::all(&*self.runtime, self.history.folder()).await;
        match self.runtime.rolled_back().await {
            Ok(marks) => {
                for image in marks.keys() {
                    if let Err(error) = self.runtime.forget(&alias::rolled_back(image)).await {
                        warn!(%image, %error, "that it was rolled back stays written down");
                    }
                }
            }
            Err(error) => warn!(%error, "what was rolled back stays written down"),
        }
        self.for_each_copy(async |copy| self.runtime.forget(&alias::copy(&copy)).await)
            .await;
    }

    /// Takes the pins of kept copies away.
    async fn unpin_copies(&self) {
        self.for_each_copy(async |copy| {
            if !copy.pinned {
                return Ok(());
            }
            let unpinned = KeptCopy {
                pinned: false,
                ..copy
            };
            self.runtime.keep_copy(&unpinned).await
        })
        .await;
    }

    /// Lets each kept copy go in the same way, some at the same time.
    async fn for_each_copy(&self, let_go: impl AsyncFn(KeptCopy) -> Result<(), RuntimeError>) {
        let copies = match self.runtime.kept_copies().await {
            Ok(copies) => copies,
            Err(error) => return warn!(%error, "kept copies cannot be let go"),
        };
        let all = futures::stream::iter(copies).for_each_concurrent(AT_ONCE, |copy| async {
            let image = copy.image.clone();
            if let Err(error) = let_go(copy).await {
                warn!(%image, %error, "a kept copy cannot be let go");
            }
        });
        all.await;
    }

    async fn clear_node(&self) {
        let cleared = self.api.writer.clear_node().await;
        if let Err(error) = self.api.count(Operation::NodeReport, cleared) {
            warn!(error = %words(&error), "the node's condition and annotations stay");
        }
    }
}
