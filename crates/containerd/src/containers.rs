//! Containers that run, from containerd's events: the kubelet looks at its containers once a second, and shows only
//! then that one has started.

use std::collections::{BTreeSet, HashMap};

use containerd_client::events::{TaskExit, TaskStart};
use containerd_client::types::Envelope;
use futures::{StreamExt, TryStreamExt, future, stream};
use k8s_cri::v1::{
    Container, ContainerFilter, ContainerState, ContainerStateValue, ListContainersRequest,
};
use prost::Message;
use tonic::Streaming;

use crate::calls::{Calls, error};
use crate::events;
use crate::runtime::{RunningPods, RuntimeError};

const FOLLOWING: &str = "following containers";
const LISTING: &str = "listing containers";

/// What the kubelet says of a container with its labels (`pkg/kubelet/types/labels.go`).
const CONTAINER_NAME: &str = "io.kubernetes.container.name";
const POD_UID: &str = "io.kubernetes.pod.uid";

const STARTED: &str = "/tasks/start";
const ENDED: &str = "/tasks/exit";

/// See [`crate::ImageRuntime::pods_running`].
pub(crate) async fn running(calls: &Calls, name: &str) -> Result<RunningPods, RuntimeError> {
    let topics = [STARTED, ENDED].map(|topic| format!("namespace==k8s.io,topic==\"{topic}\""));
    let events = events::subscribe(calls, FOLLOWING, topics).await?;
    let mut running = Running {
        calls: calls.clone(),
        name: name.to_owned(),
        pods: HashMap::new(),
    };
    let state = ContainerStateValue {
        state: ContainerState::ContainerRunning.into(),
    };
    let filter = ContainerFilter {
        state: Some(state),
        ..ContainerFilter::default()
    };
    for container in running.list(filter).await? {
        running.add(container);
    }
    let now = running.pods();
    let later = stream::try_unfold((events, running), |(mut events, mut running)| async {
        let now = running.next(&mut events).await?;
        Ok(Some((now, (events, running))))
    });
    let now = stream::once(future::ready(Ok(now)));
    Ok(now.chain(later).boxed())
}

/// The containers of one name that run.
struct Running {
    calls: Calls,
    name: String,
    /// The pods' uids by the containers' IDs.
    pods: HashMap<String, String>,
}

impl Running {
    /// The pods once they have changed.
    async fn next(
        &mut self,
        events: &mut Streaming<Envelope>,
    ) -> Result<BTreeSet<String>, RuntimeError> {
        loop {
            let event = events.try_next().await;
            let event = event.map_err(|status| error(FOLLOWING, &status))?;
            let event = event.ok_or(RuntimeError::EventsEnded)?;
            if self.apply(&event).await? {
                return Ok(self.pods());
            }
        }
    }

    /// Whether that changes anything.
    async fn apply(&mut self, event: &Envelope) -> Result<bool, RuntimeError> {
        let value = event.event.as_ref();
        let value = value.map_or(&[][..], |event| event.value.as_slice());
        match event.topic.as_str() {
            STARTED => {
                let Ok(started) = TaskStart::decode(value) else {
                    return Ok(false);
                };
                // CRI may not call it running yet, nor any more.
                let filter = ContainerFilter {
                    id: started.container_id,
                    ..ContainerFilter::default()
                };
                let found = self.list(filter).await?;
                Ok(found.into_iter().any(|container| self.add(container)))
            }
            ENDED => {
                // A process that was started in it later has another ID.
                let ended = TaskExit::decode(value).ok();
                let ended = ended.filter(|ended| ended.id == ended.container_id);
                Ok(ended.is_some_and(|ended| self.pods.remove(&ended.container_id).is_some()))
            }
            _ => Ok(false),
        }
    }

    fn add(&mut self, container: Container) -> bool {
        let Some(uid) = container.labels.get(POD_UID).cloned() else {
            return false;
        };
        // It runs once in a pod: the end of an earlier one may have come before anybody followed.
        self.pods
            .retain(|id, other| *id == container.id || *other != uid);
        self.pods.insert(container.id, uid).is_none()
    }

    fn pods(&self) -> BTreeSet<String> {
        self.pods.values().cloned().collect()
    }

    async fn list(&self, filter: ContainerFilter) -> Result<Vec<Container>, RuntimeError> {
        let name = (CONTAINER_NAME.to_owned(), self.name.clone());
        let filter = ContainerFilter {
            label_selector: [name].into(),
            ..filter
        };
        let request = ListContainersRequest {
            filter: Some(filter),
        };
        let mut cri = self.calls.cri_runtime();
        let call = cri.list_containers(request);
        Ok(self.calls.call(LISTING, call).await?.containers)
    }
}
