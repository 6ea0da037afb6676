//! Which gates run, from the container runtime: the kubelet shows a start up to a second later, and a pod whose image
//! the kubelet is to pull would miss its next look for that.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use tokio::time::sleep;
use tracing::debug;
use trylatest_containerd::{ImageRuntime, RunningPods};
use trylatest_core::keys;

/// Between two subscriptions.
const PAUSE: Duration = Duration::from_secs(1);

/// The pods, by uid, whose gates run, whenever they change; none while that is not known. It never ends.
pub(super) fn running<R: ImageRuntime>(runtime: Arc<R>) -> impl Stream<Item = BTreeSet<String>> {
    stream::unfold((runtime, None), |(runtime, following)| async {
        let mut following: RunningPods = match following {
            Some(following) => following,
            None => subscribe(&*runtime).await,
        };
        match following.next().await {
            Some(Ok(pods)) => Some((pods, (runtime, Some(following)))),
            ended => {
                debug!(error = ?ended, "the runtime does not say which gates run");
                sleep(PAUSE).await;
                Some((BTreeSet::new(), (runtime, None)))
            }
        }
    })
}

async fn subscribe(runtime: &impl ImageRuntime) -> RunningPods {
    loop {
        match runtime.pods_running(keys::GATE).await {
            Ok(following) => return following,
            Err(error) => debug!(%error, "the runtime does not say which gates run"),
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use trylatest_containerd::fake::FakeContainerd;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_follows_and_subscribes_again() {
        let node = FakeContainerd::new();
        node.set_down(true);
        let gates = running(Arc::new(node.clone()));
        let mut gates = std::pin::pin!(gates);
        let nowhere = BTreeSet::new();
        let pods = BTreeSet::from(["uid".to_owned()]);
        let starts = async {
            sleep(PAUSE / 2).await;
            node.set_down(false);
        };
        let (now, ()) = tokio::join!(gates.next(), starts);
        assert_eq!(now.as_ref(), Some(&nowhere));
        node.run_in(pods.clone());
        assert_eq!(gates.next().await.as_ref(), Some(&pods));
        node.set_down(true);
        assert_eq!(gates.next().await, Some(nowhere));
        node.set_down(false);
        node.run_in(pods.clone());
        assert_eq!(gates.next().await, Some(pods));
    }
}
