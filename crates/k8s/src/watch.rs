//! This node's gated pods, as a stream of changes.

use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use backon::ExponentialBuilder;
use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::ExponentialBackoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use trylatest_core::keys;
use trylatest_core::pod::GatedPod;

use crate::convert::{Classify, gated_pod};

/// The API server ends a watch after a time between these, and the agent begins it again at the cost
/// of one request. A dead connection shows itself long before, see [`mod@crate::client`].
const WATCH_AT_LEAST: Duration = Duration::from_secs(300);
pub(crate) const WATCH_AT_MOST: Duration = Duration::from_secs(360);

/// First and longest pause before an interrupted watch goes on; jitter adds up to as much. Longer
/// pauses, as kube-runtime's own, would let the API server come back unseen, and gates open.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(3));

/// Pods per page of a list. A pod may have more than a megabyte, and the agent has little memory.
///
/// The API server serves the first page by the index of node names, and the others from a snapshot of all pods; a
/// streaming list would never use the index, and kube's begins at any revision (`resourceVersion=0`).
const PAGE: u32 = 10;

/// What the watch has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodChange {
    /// The whole list: a pod that is not in it is gone.
    Reset(Vec<GatedPod>),
    /// A pod as it is now.
    Seen(Box<GatedPod>),
    /// The pod of this uid is gone.
    Gone(String),
}

/// The watch is interrupted; the stream goes on by itself with a growing pause.
#[derive(Debug, thiserror::Error)]
#[error("watching the pods of node {node}")]
pub struct WatchError {
    /// The node.
    pub node: String,
    /// What happened.
    pub source: watcher::Error,
}

/// Watches the gated pods of `node`; `classify` reads the kubelet's messages. The stream does not end; dropping it ends
/// the watch.
pub fn watch_pods(
    client: Client,
    node: &str,
    classify: Classify,
) -> impl Stream<Item = Result<PodChange, WatchError>> + Send + use<> {
    let config = watcher::Config::default()
        .labels(keys::GATED)
        // Nothing is left to do for pods that have ended.
        .fields(&format!(
            "spec.nodeName={node},status.phase!=Succeeded,status.phase!=Failed"
        ))
        .page_size(PAGE)
        .timeout(watch_for(node));
    let node = node.to_owned();
    let mut list = None;
    let begin = move || watcher(Api::<Pod>::all(client.clone()), config.clone()).boxed();
    // After an error, kube's watcher continues from the last revision that it saw. If etcd was restored
    // from a backup meanwhile, that revision lies in the future: the API server accepts such a watch, and
    // stays silent until it gets there. A list begins where the API server is.
    let events = stream::unfold(None, move |running| {
        let mut running = running.unwrap_or_else(&begin);
        async move {
            let event = running.next().await?;
            let goes_on = event.is_ok().then_some(running);
            Some((event, goes_on))
        }
    });
    let pauses = ExponentialBuilder::new()
        .with_min_delay(PAUSE.0)
        .with_max_delay(PAUSE.1)
        .with_jitter()
        .without_max_times();
    events
        .filter_map(move |event| {
            let change = match event {
                Ok(event) => change(event, &mut list, classify).map(Ok),
                Err(source) => Some(Err(WatchError {
                    node: node.clone(),
                    source,
                })),
            };
            std::future::ready(change)
        })
        // After the filter: a list that fails begins with a success of its own, `Init`, and each
        // success ends the growth of the pauses.
        .backoff(ExponentialBackoff::from(pauses))
}

/// How long a watch of this node lasts, in seconds: different for each node, so that watches that
/// began together do not end together.
fn watch_for(node: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    hasher.write(node.as_bytes());
    let (least, most) = (WATCH_AT_LEAST.as_secs(), WATCH_AT_MOST.as_secs());
    let seconds = least + hasher.finish() % (most - least);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Gathers a re-list into one change, so that removals are part of it.
fn change(
    event: watcher::Event<Pod>,
    list: &mut Option<Vec<GatedPod>>,
    classify: Classify,
) -> Option<PodChange> {
    match event {
        watcher::Event::Init => {
            *list = Some(Vec::new());
            None
        }
        watcher::Event::InitApply(pod) => {
            list.get_or_insert_default()
                .extend(gated_pod(&pod, classify));
            None
        }
        watcher::Event::InitDone => Some(PodChange::Reset(list.take().unwrap_or_default())),
        watcher::Event::Apply(pod) => {
            gated_pod(&pod, classify).map(|pod| PodChange::Seen(Box::new(pod)))
        }
        watcher::Event::Delete(pod) => pod.metadata.uid.map(PodChange::Gone),
    }
}

#[cfg(test)]
mod tests {
    use trylatest_core::outcome::{Failure, FailureClass};

    use super::*;

    fn unknown(message: &str) -> Failure {
        Failure::new(FailureClass::Unknown, message)
    }

    fn pod(uid: &str) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "default", "name": uid, "uid": uid},
            "spec": {"containers": [{"name": "main", "image": "app"}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_list_is_one_change() {
        let mut list = None;
        assert_eq!(change(watcher::Event::Init, &mut list, unknown), None);
        for uid in ["a", "b"] {
            assert_eq!(
                change(watcher::Event::InitApply(pod(uid)), &mut list, unknown),
                None
            );
        }
        let Some(PodChange::Reset(pods)) = change(watcher::Event::InitDone, &mut list, unknown)
        else {
            panic!("no reset");
        };
        assert_eq!(pods.len(), 2);
    }

    #[test]
    fn an_interrupted_list_starts_over() {
        let mut list = None;
        change(watcher::Event::Init, &mut list, unknown);
        change(watcher::Event::InitApply(pod("a")), &mut list, unknown);
        change(watcher::Event::Init, &mut list, unknown);
        let Some(PodChange::Reset(pods)) = change(watcher::Event::InitDone, &mut list, unknown)
        else {
            panic!("no reset");
        };
        assert_eq!(pods, []);
    }

    #[test]
    fn later_changes_come_one_by_one() {
        let mut list = None;
        let seen = change(watcher::Event::Apply(pod("a")), &mut list, unknown);
        assert!(matches!(seen, Some(PodChange::Seen(_))));
        let gone = change(watcher::Event::Delete(pod("a")), &mut list, unknown);
        assert_eq!(gone, Some(PodChange::Gone("a".into())));
    }
}
