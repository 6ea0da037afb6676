//! A namespace for one test.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace as Object, Pod, ServiceAccount};
use kube::api::{DeleteParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde_json::json;

use super::wait;

/// How long the controllers may take to furnish a namespace.
const FURNISHED: Duration = Duration::from_secs(30);

/// A namespace that the test has for itself.
#[derive(Clone)]
pub struct Namespace {
    client: Client,
    name: String,
}

impl Namespace {
    /// Makes one, with what pods need: the default service account and the authority's certificate.
    pub(super) async fn make(
        client: Client,
        prefix: &str,
        labels: &[(&str, &str)],
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
        furnished(made.client.clone(), &made.name).await?;
        Ok(made)
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
