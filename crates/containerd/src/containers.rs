//! Sandboxes and containers that start, from containerd's events: the kubelet looks at its containers once a second,
//! and shows only then that one has started.

use std::collections::{BTreeSet, HashMap};

use containerd_client::events::{TaskExit, TaskStart};
use containerd_client::services::v1::GetContainerRequest;
use containerd_client::types::Envelope;
use futures::{StreamExt, TryStreamExt, future, stream};
use k8s_cri::v1::{ContainerFilter, ContainerState, ContainerStateValue, ListContainersRequest};
use prost::Message;
use tonic::{Code, Streaming};

use crate::calls::{Calls, error};
use crate::events;
use crate::runtime::{PodEvent, PodEvents, RuntimeError};

const FOLLOWING: &str = "following containers";
const LISTING: &str = "listing containers";
const LOOKING: &str = "looking at a container";

/// What the kubelet says of a container with its labels (`pkg/kubelet/types/labels.go`).
const CONTAINER_NAME: &str = "io.kubernetes.container.name";
const POD_UID: &str = "io.kubernetes.pod.uid";

/// What CRI says of it: a pod's sandbox is a container, too (`internal/cri/labels/labels.go`).
const KIND: (&str, &str) = ("io.cri-containerd.kind", "sandbox");

const STARTED: &str = "/tasks/start";
const ENDED: &str = "/tasks/exit";

const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_NAME: &str = "io.kubernetes.pod.name";

/// The pods, as `namespace/name`, of all containers that CRI knows, also those that have exited, by the containers'
/// IDs.
pub(crate) async fn pods(calls: &Calls) -> Result<HashMap<String, String>, RuntimeError> {
    let mut cri = calls.cri_runtime();
    let call = cri.list_containers(ListContainersRequest::default());
    let listed = calls.call(LISTING, call).await?;
    let named = listed.containers.into_iter().filter_map(|container| {
        let label = |key| container.labels.get(key);
        let pod = format!("{}/{}", label(POD_NAMESPACE)?, label(POD_NAME)?);
        Some((container.id, pod))
    });
    Ok(named.collect())
}

/// Whether CRI knows a container of this pod. A containerd without CRI is not the kubelet's, and knows none.
pub(crate) async fn knows(calls: &Calls, namespace: &str, pod: &str) -> Result<bool, RuntimeError> {
    let labels = [(POD_NAMESPACE, namespace), (POD_NAME, pod)];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let filter = ContainerFilter {
        label_selector: labels.into(),
        ..ContainerFilter::default()
    };
    let mut cri = calls.cri_runtime();
    let call = cri.list_containers(ListContainersRequest {
        filter: Some(filter),
    });
    match calls.call(LISTING, call).await {
        Ok(listed) => Ok(!listed.containers.is_empty()),
        Err(RuntimeError::Answered {
            code: Code::Unimplemented,
            ..
        }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// See [`crate::ImageRuntime::pod_events`].
pub(crate) async fn pod_events(calls: &Calls, name: &str) -> Result<PodEvents, RuntimeError> {
    let topics = [STARTED, ENDED].map(|topic| format!("namespace==k8s.io,topic==\"{topic}\""));
    let events = events::subscribe(calls, FOLLOWING, topics).await?;
    let mut running = Running {
        calls: calls.clone(),
        name: name.to_owned(),
        pods: HashMap::new(),
    };
    running.list().await?;
    let now = running.event();
    let later = stream::try_unfold((events, running), |(mut events, mut running)| async {
        let next = running.next(&mut events).await?;
        Ok(Some((next, (events, running))))
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
    async fn next(&mut self, events: &mut Streaming<Envelope>) -> Result<PodEvent, RuntimeError> {
        loop {
            let event = events.try_next().await;
            let event = event.map_err(|status| error(FOLLOWING, &status))?;
            let event = event.ok_or(RuntimeError::EventsEnded)?;
            if let Some(event) = self.apply(&event).await? {
                return Ok(event);
            }
        }
    }

    async fn apply(&mut self, event: &Envelope) -> Result<Option<PodEvent>, RuntimeError> {
        let value = event.event.as_ref();
        let value = value.map_or(&[][..], |event| event.value.as_slice());
        match event.topic.as_str() {
            STARTED => match TaskStart::decode(value) {
                Ok(started) => self.started(started.container_id).await,
                Err(_) => Ok(None),
            },
            ENDED => {
                // A process that was started in it later has another ID.
                let ended = TaskExit::decode(value).ok();
                let ended = ended.filter(|ended| ended.id == ended.container_id);
                let was_there = ended.and_then(|ended| self.pods.remove(&ended.container_id));
                Ok(was_there.map(|_| self.event()))
            }
            _ => Ok(None),
        }
    }

    /// CRI does not know a sandbox yet when it starts; containerd does.
    async fn started(&mut self, id: String) -> Result<Option<PodEvent>, RuntimeError> {
        let request = GetContainerRequest { id };
        let mut containers = self.calls.containers();
        let found = self.calls.find(LOOKING, containers.get(request)).await?;
        let Some(container) = found.and_then(|found| found.container) else {
            return Ok(None);
        };
        let label = |key: &str| container.labels.get(key).map(String::as_str);
        let Some(uid) = label(POD_UID) else {
            return Ok(None);
        };
        if label(KIND.0) == Some(KIND.1) {
            return Ok(Some(PodEvent::SandboxStarted(uid.to_owned())));
        }
        let is_new = label(CONTAINER_NAME) == Some(&self.name) && {
            let uid = uid.to_owned();
            self.add(container.id, uid)
        };
        Ok(is_new.then(|| self.event()))
    }

    fn add(&mut self, id: String, uid: String) -> bool {
        // It runs once in a pod: the end of an earlier one may have come before anybody followed.
        self.pods.retain(|other, pod| *other == id || *pod != uid);
        self.pods.insert(id, uid).is_none()
    }

    fn event(&self) -> PodEvent {
        let pods: BTreeSet<String> = self.pods.values().cloned().collect();
        PodEvent::Running(pods)
    }

    /// Those that run already.
    async fn list(&mut self) -> Result<(), RuntimeError> {
        let state = ContainerState::ContainerRunning.into();
        let filter = ContainerFilter {
            state: Some(ContainerStateValue { state }),
            label_selector: [(CONTAINER_NAME.to_owned(), self.name.clone())].into(),
            ..ContainerFilter::default()
        };
        let request = ListContainersRequest {
            filter: Some(filter),
        };
        let mut cri = self.calls.cri_runtime();
        let answer = self
            .calls
            .call(LISTING, cri.list_containers(request))
            .await?;
        for mut container in answer.containers {
            if let Some(uid) = container.labels.remove(POD_UID) {
                self.add(container.id, uid);
            }
        }
        Ok(())
    }
}
