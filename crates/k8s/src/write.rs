//! Everything that is written: annotations, Events, the node's condition.
//!
//! Merge patches under a field manager of our own, each with a deadline. The
//! `ValidatingAdmissionPolicies` of the install allow exactly these.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_core::node::NodeReport;
use trylatest_core::plan::{Answer, Silence};
use trylatest_core::pod::{Overruled, PodId, describe_overruled};
use trylatest_core::release::{Progress, Release};
use trylatest_core::told::Told;

use crate::error::{ApiError, Operation};

/// Longest note of an Event in bytes (`pkg/apis/core/validation/events.go`, `NoteLengthLimit`).
const NOTE_MAX_BYTES: usize = 1024;

/// The longest name of who reports an Event (`pkg/apis/core/validation/events.go`).
const INSTANCE_MAX_BYTES: usize = 128;

/// Writes in the name of the agent on one node.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    node: String,
    deadline: Duration,
}

/// An Event to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// One word, upper camel case.
    pub reason: &'static str,
    /// Whether a person may have to look.
    pub warning: bool,
    /// The text; cut to the length that an Event may have.
    pub note: String,
    /// The Event's name, if a restarted agent must not write the Event again.
    pub once: Option<String>,
}

impl Notice {
    /// What the owner is told of a release.
    pub fn of_release(told: Told) -> Self {
        let Told { reason, note } = told;
        Self {
            reason: reason.as_str(),
            warning: reason.is_warning(),
            note,
            once: None,
        }
    }

    /// An invalid setting.
    pub fn bad_setting(note: String) -> Self {
        Self {
            reason: "TryLatestBadSetting",
            warning: true,
            note,
            once: None,
        }
    }

    /// What has become of the agent's configuration; about its own pod, and once for each content of the file.
    pub fn config(pod: &PodId, note: String, refused: bool, fingerprint: u64) -> Self {
        let word = if refused { "refused" } else { "valid" };
        Self {
            reason: "TryLatestConfig",
            warning: refused,
            note,
            once: Some(format!(
                "trylatest-config-{word}-{}-{fingerprint:016x}",
                pod.uid
            )),
        }
    }

    /// Another admission policy has changed pull policies of the pod.
    pub fn overruled(pod: &PodId, overruled: &[Overruled]) -> Self {
        Self {
            reason: "TryLatestOverruled",
            warning: true,
            note: describe_overruled(overruled),
            once: Some(format!("trylatest-overruled-{}", pod.uid)),
        }
    }

    /// The kubelet could not get the gate's image, and what the agent did about it; once per pod.
    pub fn gate_image(pod: &PodId, note: String) -> Self {
        Self {
            reason: "TryLatestGateImage",
            warning: true,
            note,
            once: Some(format!("trylatest-gate-image-{}", pod.uid)),
        }
    }

    /// The gate has opened by itself at this time.
    pub fn unanswered(pod: &PodId, at: Timestamp, silence: Silence) -> Self {
        let why = match silence {
            Silence::NoAgent => "no agent on this node answered in time",
            Silence::Unwritten => {
                "this node's agent had an answer, but the API server did not accept it, perhaps because \
                 of a webhook or a policy for pod updates (the agent's log has the error)"
            }
        };
        Self {
            reason: "TryLatestUnanswered",
            warning: true,
            note: format!(
                "{why}: the kubelet starts the pod as with IfNotPresent, and TryLatest does not know whether its \
                 images are current"
            ),
            once: Some(format!(
                "trylatest-unanswered-{}-{}",
                pod.uid,
                at.as_second()
            )),
        }
    }

    /// The gate has opened by itself at this time, because no sign of its agent reached it.
    pub fn unseen(pod: &PodId, at: Timestamp, answer: &Answer) -> Self {
        let note = match answer {
            Answer::AtWork => "this node's agent was at work, but no sign of it reached the gate, \
                which opened by itself: the kubelet starts the pod as with IfNotPresent, and TryLatest does \
                not know whether its images are current"
                .to_owned(),
            Answer::Released(release) => {
                let containers = release.containers.iter().map(|(name, container)| {
                    let line = container.describe(release.time);
                    format!("; {name}: {}: {line}", container.outcome)
                });
                let containers: String = containers.collect();
                format!(
                    "this node's agent answered in time, but its answer did not reach the gate, \
                     which opened by itself: the kubelet starts the pod as with IfNotPresent{containers}"
                )
            }
        };
        Self {
            reason: "TryLatestUnseen",
            warning: true,
            note,
            once: Some(format!("trylatest-unseen-{}-{}", pod.uid, at.as_second())),
        }
    }
}

impl Writer {
    /// Writes for `node`; each call gives up after `deadline`.
    pub fn new(client: Client, node: &str, deadline: Duration) -> Self {
        Self {
            client,
            node: node.to_owned(),
            deadline,
        }
    }

    /// The node in whose name is written.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Writes a release to its pod, and removes the signs of life before it.
    ///
    /// # Errors
    /// [`ApiError::Gone`] if the pod is gone, even if another pod has its name.
    pub async fn release(&self, pod: &PodId, release: &Release) -> Result<(), ApiError> {
        let annotations = json!({ keys::RELEASED: to_json(release), keys::PROGRESS: null });
        self.annotate_pod(Operation::Release, pod, &annotations)
            .await
    }

    /// Writes a sign of life to a pod.
    ///
    /// # Errors
    /// As [`Writer::release`].
    pub async fn progress(&self, pod: &PodId, progress: &Progress) -> Result<(), ApiError> {
        let annotations = json!({ keys::PROGRESS: to_json(progress) });
        self.annotate_pod(Operation::Progress, pod, &annotations)
            .await
    }

    async fn annotate_pod(
        &self,
        operation: Operation,
        pod: &PodId,
        annotations: &Value,
    ) -> Result<(), ApiError> {
        // The uid is a precondition: the API server refuses this for a later pod of the same name.
        let patch = json!({ "metadata": { "uid": pod.uid, "annotations": annotations } });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let call = async {
            api.patch_metadata(&pod.name, &params(), &Patch::Merge(&patch))
                .await
        };
        self.call(
            operation,
            format!("pod {}/{}", pod.namespace, pod.name),
            call,
        )
        .await
    }

    /// Writes an Event about a pod.
    ///
    /// # Errors
    /// [`ApiError::Gone`] if the namespace is gone. Other errors only need to be counted.
    pub async fn notify(
        &self,
        pod: &PodId,
        notice: &Notice,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        let event = Event {
            metadata: ObjectMeta {
                namespace: Some(pod.namespace.clone()),
                name: notice.once.clone(),
                // A pod's name is valid here; with the usual dot after it, it would not be.
                generate_name: notice.once.is_none().then(|| format!("{}-", pod.name)),
                ..ObjectMeta::default()
            },
            action: Some("TryLatest".to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(cut(&notice.note, NOTE_MAX_BYTES)),
            reason: Some(notice.reason.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(pod.namespace.clone()),
                name: Some(pod.name.clone()),
                uid: Some(pod.uid.clone()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(keys::FIELD_MANAGER.to_owned()),
            reporting_instance: Some(cut(&self.node, INSTANCE_MAX_BYTES)),
            type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), &pod.namespace);
        let params = PostParams {
            field_manager: Some(keys::FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let call = async {
            match api.create(&params, &event).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(event),
                created => created,
            }
        };
        self.call(
            Operation::Event,
            format!("pod {}/{}", pod.namespace, pod.name),
            call,
        )
        .await
    }

    /// Writes the node's annotations and its condition at once, as kubelets do (`PatchNodeStatus` in
    /// component-helpers/node/util/status.go): everyone who watches nodes gets one update. `changed` is when the
    /// condition last became what it is.
    ///
    /// # Errors
    /// [`ApiError`]; worth a retry unless the node is gone. If the annotations do not fit, because others have filled the
    /// 256 KiB that a node has for all of them, the condition is written nevertheless: alerts depend on it.
    pub async fn report_node(
        &self,
        report: &NodeReport,
        changed: Timestamp,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        // Conditions merge by type under a strategic patch: the kubelet's own stay as they are.
        let condition = json!({
            "type": keys::NODE_CONDITION,
            "status": if report.fallback { "True" } else { "False" },
            "reason": report.reason,
            "message": report.message,
            "lastHeartbeatTime": whole_seconds(now),
            "lastTransitionTime": whole_seconds(changed),
        });
        let annotations =
            json!({ keys::NODE_SUMMARY: report.summary, keys::NODE_IMAGES: report.lines });
        let patch = json!({"metadata": {"annotations": annotations}, "status": {"conditions": [condition]}});
        let written = self.patch_node(&patch).await;
        if written.as_ref().is_err_and(ApiError::is_invalid) {
            let patch = json!({"status": {"conditions": [condition]}});
            self.patch_node(&patch).await?;
        }
        written
    }

    /// Reads the node's condition: whether it is `True`, and since when; none if it was never
    /// written.
    ///
    /// # Errors
    /// As [`Writer::report_node`].
    pub async fn condition(&self) -> Result<Option<(bool, Timestamp)>, ApiError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let call = async { api.get(&self.node).await };
        let object = format!("node {}", self.node);
        let node = self.fetch(Operation::NodeCondition, object, call).await?;
        let conditions = node.status.and_then(|status| status.conditions);
        let ours = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition.type_ == keys::NODE_CONDITION);
        Ok(ours.and_then(|ours| Some((ours.status == "True", ours.last_transition_time?.0))))
    }

    /// The version of the node's kubelet, as it says it, e.g. `v1.37.2`.
    ///
    /// # Errors
    /// [`ApiError`]; worth a retry.
    pub async fn kubelet_version(&self) -> Result<String, ApiError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let call = async { api.get(&self.node).await };
        let object = format!("node {}", self.node);
        let node = self.fetch(Operation::Kubelet, object, call).await?;
        let info = node.status.and_then(|status| status.node_info);
        Ok(info.map(|info| info.kubelet_version).unwrap_or_default())
    }

    /// The image of a container of a pod, as its manifest names it; none if there is no such
    /// container.
    ///
    /// # Errors
    /// [`ApiError`]; worth a retry.
    pub async fn image_of(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<Option<String>, ApiError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let object = format!("pod {namespace}/{pod}");
        let pod = self.fetch(Operation::OwnPod, object, api.get(pod)).await?;
        let containers = pod.spec.into_iter().flat_map(|spec| spec.containers);
        let mut named = containers.filter(|found| found.name == container);
        Ok(named.next().and_then(|found| found.image))
    }

    /// Whether the DaemonSet of this pod is gone or going, so that no other pod of it will follow. False if a pod has
    /// none.
    ///
    /// # Errors
    /// [`ApiError`]; worth a retry.
    pub async fn is_leaving(&self, namespace: &str, pod: &str) -> Result<bool, ApiError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let object = format!("pod {namespace}/{pod}");
        let pod = self.fetch(Operation::OwnPod, object, api.get(pod)).await?;
        let owners = pod.metadata.owner_references.into_iter().flatten();
        let mut sets = owners.filter(|owner| owner.kind == "DaemonSet");
        let Some(owner) = sets.next() else {
            return Ok(false);
        };
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), namespace);
        let object = format!("daemonset {namespace}/{}", owner.name);
        let found = self.fetch(
            Operation::OwnDaemonSet,
            object,
            api.get_metadata(&owner.name),
        );
        match found.await {
            // Another one of that name has been made to replace it.
            Ok(set) => Ok(set.metadata.deletion_timestamp.is_some()),
            Err(ApiError::Gone { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Removes the node's annotations and condition.
    ///
    /// # Errors
    /// As [`Writer::report_node`].
    pub async fn clear_node(&self) -> Result<(), ApiError> {
        let annotations = json!({ keys::NODE_SUMMARY: null, keys::NODE_IMAGES: null });
        let condition = json!({"type": keys::NODE_CONDITION, "$patch": "delete"});
        let patch = json!({"metadata": {"annotations": annotations}, "status": {"conditions": [condition]}});
        self.patch_node(&patch).await
    }

    async fn patch_node(&self, patch: &Value) -> Result<(), ApiError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let (params, patch) = (params(), Patch::Strategic(patch));
        let call = async { api.patch_status(&self.node, &params, &patch).await };
        let object = format!("node {}", self.node);
        self.call(Operation::NodeReport, object, call).await
    }

    /// A pod's uid.
    ///
    /// # Errors
    /// [`ApiError`]; worth a retry.
    pub async fn uid_of(&self, namespace: &str, pod: &str) -> Result<String, ApiError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let object = format!("pod {namespace}/{pod}");
        let pod = self.fetch(Operation::OwnPod, object, api.get(pod)).await?;
        Ok(pod.metadata.uid.unwrap_or_default())
    }

    async fn call<T>(
        &self,
        operation: Operation,
        object: String,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<(), ApiError> {
        self.fetch(operation, object, call).await.map(|_| ())
    }

    async fn fetch<T>(
        &self,
        operation: Operation,
        object: String,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        match tokio::time::timeout(self.deadline, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if is_gone(&status) => {
                Err(ApiError::Gone { operation, object })
            }
            Ok(Err(source)) => Err(ApiError::Call {
                operation,
                object,
                source: Box::new(source),
            }),
            Err(_) => Err(ApiError::Timeout {
                operation,
                object,
                deadline: self.deadline,
            }),
        }
    }
}

/// The object is gone, or another one has its name: every patch names the uid that it means, and uids
/// are immutable (`ValidateObjectMetaAccessorUpdate` in apimachinery/pkg/api/validation/objectmeta.go).
fn is_gone(status: &kube::core::Status) -> bool {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    status.is_not_found()
        || (status.is_invalid() && causes.any(|cause| cause.field == "metadata.uid"))
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(keys::FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

/// Maps with string keys and values without floats always serialize.
fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Conditions carry whole seconds.
fn whole_seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second())
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_string()
}

fn cut(text: &str, max_bytes: usize) -> String {
    let end = text.floor_char_boundary(max_bytes);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests;
