//! Pods and Deployments as a user makes them, and what a user then sees: states, gate logs, Events.

use std::ops::Deref;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Pod, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};

use crate::cluster::{Namespace, wait};
use crate::registry::{User, base64};

/// The gate's container name, as users see it.
pub const GATE: &str = "trylatest-gate";

/// What is asked of a pod.
#[derive(Clone, Debug)]
pub struct PodSpec<'a> {
    /// The pod's name.
    pub name: &'a str,
    /// The image of its one container, `app`.
    pub image: &'a str,
    /// `TryLatest`, `Always`, `IfNotPresent`.
    pub policy: &'a str,
    /// Annotations.
    pub annotations: Value,
    /// Init containers.
    pub inits: Vec<Value>,
    /// Names of pull secrets.
    pub pull_secrets: Vec<&'a str>,
    /// The service account, if not the namespace's own.
    pub account: Option<&'a str>,
}

impl<'a> PodSpec<'a> {
    /// A pod without annotations.
    pub fn new(name: &'a str, image: &'a str, policy: &'a str) -> Self {
        Self {
            name,
            image,
            policy,
            annotations: json!({}),
            inits: Vec::new(),
            pull_secrets: Vec::new(),
            account: None,
        }
    }

    /// The same with an annotation.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.annotations[key] = json!(value);
        self
    }

    /// The same with a pull secret.
    #[must_use]
    pub fn with_secret(mut self, name: &'a str) -> Self {
        self.pull_secrets.push(name);
        self
    }

    /// The object.
    ///
    /// # Errors
    /// The annotations are not a map of strings.
    pub fn object(&self) -> anyhow::Result<Pod> {
        let secrets = self.pull_secrets.iter();
        let secrets: Vec<Value> = secrets.map(|name| json!({"name": name})).collect();
        Ok(serde_json::from_value(json!({
            "metadata": {"name": self.name, "annotations": self.annotations},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "initContainers": self.inits,
                "imagePullSecrets": secrets,
                "serviceAccountName": self.account,
                "containers": [{
                    "name": "app", "image": self.image, "imagePullPolicy": self.policy,
                }],
            },
        }))?)
    }
}

/// The workloads of one namespace.
#[derive(Clone)]
pub struct Workloads {
    namespace: Namespace,
}

impl From<Namespace> for Workloads {
    fn from(namespace: Namespace) -> Self {
        Self { namespace }
    }
}

impl Deref for Workloads {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Workloads {
    /// Creates a pod.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn create(&self, spec: &PodSpec<'_>) -> anyhow::Result<Pod> {
        let pod = spec.object()?;
        let created = self.pods().create(&PostParams::default(), &pod).await;
        created.with_context(|| format!("create pod {}", spec.name))
    }

    /// Creates a pod and waits until it runs: how long that took.
    ///
    /// # Errors
    /// It does not run within `limit`; the message contains the pod's state, Events and gate log.
    pub async fn run(&self, spec: &PodSpec<'_>, limit: Duration) -> anyhow::Result<Duration> {
        let start = now();
        self.create(spec).await?;
        self.wait_pod(spec.name, "it runs", limit, is_running)
            .await?;
        Ok(start.elapsed())
    }

    /// Waits for an Event of a pod whose line, `TYPE REASON: MESSAGE`, contains `text`.
    ///
    /// # Errors
    /// There is none within `limit`.
    pub async fn wait_event(
        &self,
        pod: &str,
        text: &str,
        limit: Duration,
    ) -> anyhow::Result<String> {
        let config = watcher::Config::default().fields(&format!("involvedObject.name={pod}"));
        let stream = watcher(self.api::<Event>(), config)
            .default_backoff()
            .applied_objects();
        let lines = stream.filter_map(async |event| event.ok().map(line));
        let found = lines.filter(|line| std::future::ready(line.contains(text)));
        let mut found = std::pin::pin!(found);
        match tokio::time::timeout(limit, found.next()).await {
            Ok(Some(line)) => Ok(line),
            _ => Err(anyhow::anyhow!(
                "pod {pod} has no Event with {text:?} within {limit:?}"
            ))
            .context(Box::pin(self.describe()).await),
        }
    }

    /// The Events of a pod so far, each as `TYPE REASON: MESSAGE`.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn events(&self, pod: &str) -> anyhow::Result<Vec<String>> {
        let params = ListParams::default().fields(&format!("involvedObject.name={pod}"));
        let events = self.api::<Event>().list(&params).await?;
        Ok(events.into_iter().map(line).collect())
    }

    /// Writes a pull secret for a registry, in place of one of this name.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn pull_secret(&self, name: &str, host: &str, user: &User) -> anyhow::Result<()> {
        let User {
            name: user,
            password,
        } = user;
        let auth = base64(&format!("{user}:{password}"));
        let config =
            json!({"auths": {host: {"username": user, "password": password, "auth": auth}}});
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": name},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": config.to_string()},
        }))?;
        let secrets = self.api::<Secret>();
        let params = PatchParams::apply("trylatest-e2e").force();
        secrets.patch(name, &params, &Patch::Apply(&secret)).await?;
        Ok(())
    }

    /// What the gate printed in its last run.
    ///
    /// # Errors
    /// The kubelet has no such log.
    pub async fn gate_log(&self, pod: &str) -> anyhow::Result<String> {
        self.log(pod, GATE).await
    }

    /// What a container has printed, once it has: it runs a moment before it says anything.
    ///
    /// # Errors
    /// It says nothing within `limit`.
    pub async fn wait_log(
        &self,
        pod: &str,
        container: &str,
        limit: Duration,
    ) -> anyhow::Result<String> {
        wait::until("the container says something", limit, || async {
            let said = self.log(pod, container).await.unwrap_or_default();
            Ok((!said.is_empty()).then_some(said))
        })
        .await
    }

    /// What the release annotation of a pod says of a container.
    ///
    /// # Errors
    /// There is none, or it is not JSON.
    pub async fn released(&self, pod: &str, container: &str) -> anyhow::Result<Value> {
        let pod = self.pods().get(pod).await?;
        let release = release(&pod).context("the pod carries no release")?;
        Ok(release["containers"][container].clone())
    }

    /// Deletes a pod at once.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn delete_pod(&self, pod: &str) -> anyhow::Result<()> {
        let params = DeleteParams::default().grace_period(0);
        self.pods().delete(pod, &params).await?;
        Ok(())
    }

    /// Restarts a Deployment as `kubectl rollout restart` does, and waits until a pod of the new
    /// template runs: that pod's name and how long it took. None if it does not within `limit`.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn restart(
        &self,
        deployment: &str,
        limit: Duration,
    ) -> anyhow::Result<(String, Option<Duration>)> {
        let start = now();
        let mark = mark();
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {
            "kubectl.kubernetes.io/restartedAt": mark,
        }}}}});
        self.api::<Deployment>()
            .patch(
                deployment,
                &PatchParams::default(),
                &Patch::Strategic(&patch),
            )
            .await?;
        let config = watcher::Config::default().labels(&format!("app={deployment}"));
        let stream = watcher(self.pods(), config)
            .default_backoff()
            .applied_objects();
        let mut name = String::new();
        let wait = async {
            let mut stream = std::pin::pin!(stream.filter(|pod| std::future::ready(pod.is_ok())));
            while let Ok(Some(pod)) = stream.try_next().await {
                if annotation(&pod, "kubectl.kubernetes.io/restartedAt") != Some(&mark) {
                    continue;
                }
                name = pod.metadata.name.clone().unwrap_or_default();
                if is_running(&pod) {
                    return true;
                }
            }
            false
        };
        let runs = tokio::time::timeout(limit, wait).await == Ok(true);
        Ok((name, runs.then(|| start.elapsed())))
    }

    /// The newest pod of a Deployment.
    ///
    /// # Errors
    /// There is none.
    pub async fn current(&self, deployment: &str) -> anyhow::Result<Pod> {
        let params = ListParams::default().labels(&format!("app={deployment}"));
        let pods = self.pods().list(&params).await?.items;
        pods.into_iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .max_by_key(|pod| pod.metadata.creation_timestamp.clone().map(|time| time.0))
            .with_context(|| format!("Deployment {deployment} has no pod"))
    }

    /// Waits, after a reboot of the node, until the containers of a pod run again that was as
    /// `before`: how long that took from now. None if they do not within `limit`.
    pub async fn runs_again(&self, before: &Pod, limit: Duration) -> Option<Duration> {
        let start = now();
        let name = before.metadata.name.as_deref().unwrap_or_default();
        let again = |pod: &Pod| is_running(pod) && restarts(pod) > restarts(before);
        let found = self.wait_pod(name, "it runs again", limit, again).await;
        found.ok().map(|_| start.elapsed())
    }
}

fn line(event: Event) -> String {
    format!(
        "{} {}: {}",
        event.type_.unwrap_or_default(),
        event.reason.unwrap_or_default(),
        event.message.unwrap_or_default()
    )
}

/// A pod's annotation.
pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a String> {
    pod.metadata.annotations.as_ref()?.get(key)
}

/// What the agent has written on a pod, if it has.
pub fn release(pod: &Pod) -> Option<Value> {
    serde_json::from_str(annotation(pod, "trylatest.dev/released")?).ok()
}

/// How often the pod's first container was started again.
pub fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.container_statuses.as_ref()?.first())
        .map_or(0, |container| container.restart_count)
}

/// Whether every container of the pod runs.
pub fn is_running(pod: &Pod) -> bool {
    let Some(status) = &pod.status else {
        return false;
    };
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    status.phase.as_deref() == Some("Running")
        && !containers.is_empty()
        && containers.iter().all(|container| container.ready)
}

/// The digest that the pod's first container runs from, as the kubelet reports it.
pub fn image_id(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    Some(
        status
            .container_statuses
            .as_ref()?
            .first()?
            .image_id
            .clone(),
    )
}

#[expect(clippy::disallowed_methods, reason = "the tests measure real time")]
fn now() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a mark that differs between restarts"
)]
fn mark() -> String {
    jiff::Timestamp::now().to_string()
}
