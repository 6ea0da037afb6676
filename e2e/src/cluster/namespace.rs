//! A namespace for one test.

use std::fmt::Write as _;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace as Object, Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde_json::json;

use super::wait;

/// How long the controllers may take to furnish a namespace: they begin again after each outage of the API server.
const FURNISHED: Duration = Duration::from_secs(30);

/// A namespace, mostly one that a test has for itself.
#[derive(Clone)]
pub struct Namespace {
    client: Client,
    name: String,
}

impl Namespace {
    /// Makes one in which pods can be made: what the controllers put in is waited for, or made
    /// where there are none.
    pub(super) async fn make(
        client: Client,
        prefix: &str,
        labels: &[(&str, &str)],
        controllers: bool,
    ) -> anyhow::Result<Self> {
        let labels: serde_json::Map<_, _> = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        let object: Object = serde_json::from_value(json!({
            "metadata": {"generateName": format!("{prefix}-"), "labels": labels},
        }))?;
        let made = Api::<Object>::all(client.clone())
            .create(&PostParams::default(), &object)
            .await?;
        let made = Self {
            client,
            name: made.metadata.name.unwrap_or_default(),
        };
        if controllers {
            furnished(made.client.clone(), &made.name).await?;
        } else {
            let account = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
            let accounts = made.api::<ServiceAccount>();
            accounts.create(&PostParams::default(), &account).await?;
        }
        Ok(made)
    }

    /// One that is there already.
    pub fn existing(client: Client, name: &str) -> Self {
        Self {
            client,
            name: name.to_owned(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its objects of one kind.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Its pods.
    pub fn pods(&self) -> Api<Pod> {
        self.api()
    }

    /// Watches a pod until it is as wanted, and returns it. It need not exist yet.
    ///
    /// # Errors
    /// If it is not within `limit`; the message holds all that a person would look at.
    ///
    /// # Cancel safety
    /// Dropping it ends the watch.
    pub async fn wait_pod(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Pod) -> bool,
    ) -> anyhow::Result<Pod> {
        match wait::object(self.pods(), name, what, limit, wanted).await {
            Ok(pod) => Ok(pod),
            // On the heap: it is rare, and big.
            Err(error) => Err(error.context(Box::pin(self.describe()).await)),
        }
    }

    /// What a person would look at when something is wrong: the Events, and every container's log.
    pub async fn describe(&self) -> String {
        // Writing to a String cannot fail.
        let mut told = format!("in namespace {}:\n", self.name);
        let events = self.api::<Event>().list(&ListParams::default()).await;
        for event in events.into_iter().flatten() {
            let word = |text: Option<String>| text.unwrap_or_default();
            let object = word(event.involved_object.name);
            let (reason, message) = (word(event.reason), word(event.message));
            let _ = writeln!(told, "  event {object}: {reason}: {message}");
        }
        let pods = self.pods().list(&ListParams::default()).await;
        for pod in pods.into_iter().flatten() {
            let name = pod.metadata.name.unwrap_or_default();
            let Some(spec) = pod.spec else { continue };
            let containers = spec
                .init_containers
                .into_iter()
                .flatten()
                .chain(spec.containers);
            for container in containers {
                let log = self.log(&name, &container.name).await;
                let log = log.unwrap_or_else(|error| error.to_string());
                let _ = writeln!(told, "  log {name}/{}: {}", container.name, log.trim());
            }
        }
        told
    }

    /// What a container has printed.
    ///
    /// # Errors
    /// If there is no such container, or it has not started.
    pub async fn log(&self, pod: &str, container: &str) -> anyhow::Result<String> {
        let params = LogParams {
            container: Some(container.to_owned()),
            ..LogParams::default()
        };
        Ok(self.pods().logs(pod, &params).await?)
    }

    /// Asks for its deletion, with all that is in it, and does not wait.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn delete(&self) -> anyhow::Result<()> {
        let api: Api<Object> = Api::all(self.client.clone());
        api.delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// Waits until a namespace has what pods need: the default service account and the authority's
/// certificate.
pub(super) async fn furnished(client: Client, namespace: &str) -> anyhow::Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let account = "pods have a service account";
    wait::object(accounts, "default", account, FURNISHED, |_| true).await?;
    let certificates: Api<ConfigMap> = Api::namespaced(client, namespace);
    let certificate = "pods can know the API server";
    wait::object(
        certificates,
        "kube-root-ca.crt",
        certificate,
        FURNISHED,
        |_| true,
    )
    .await?;
    Ok(())
}
