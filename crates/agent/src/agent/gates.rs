//! Which gates run or are about to, from the container runtime: the kubelet shows a start up to a second later, and a
//! pod whose image the kubelet is to pull would miss its next look for that.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use tokio::time::sleep;
use tracing::debug;
use trylatest_containerd::{ImageRuntime, PodEvent, PodEvents};
use trylatest_core::keys;

/// Between two subscriptions.
const PAUSE: Duration = Duration::from_secs(1);

/// What the runtime says of gates and of their pods' sandboxes; nothing if that is not known any more. It never ends.
pub(super) fn follow<R: ImageRuntime>(runtime: Arc<R>) -> impl Stream<Item = Option<PodEvent>> {
    stream::unfold((runtime, None), |(runtime, following)| async {
        let mut following: PodEvents = match following {
            Some(following) => following,
            None => subscribe(&*runtime).await,
        };
        match following.next().await {
            Some(Ok(event)) => Some((Some(event), (runtime, Some(following)))),
            ended => {
                debug!(error = ?ended, "the runtime does not say which gates run");
                sleep(PAUSE).await;
                Some((None, (runtime, None)))
            }
        }
    })
}

async fn subscribe(runtime: &impl ImageRuntime) -> PodEvents {
    loop {
        match runtime.pod_events(keys::GATE).await {
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
        let gates = follow(Arc::new(node.clone()));
        let mut gates = std::pin::pin!(gates);
        let nowhere = PodEvent::Running([].into());
        let runs = PodEvent::Running(["uid".to_owned()].into());
        let starts = async {
            sleep(PAUSE / 2).await;
            node.set_down(false);
        };
        let (now, ()) = tokio::join!(gates.next(), starts);
        assert_eq!(now, Some(Some(nowhere)));
        for event in [PodEvent::SandboxStarted("uid".to_owned()), runs.clone()] {
            node.tell(event.clone());
            assert_eq!(gates.next().await, Some(Some(event)));
        }
        node.set_down(true);
        assert_eq!(gates.next().await, Some(None));
        node.set_down(false);
        node.tell(runs.clone());
        assert_eq!(gates.next().await, Some(Some(runs)));
    }
}
