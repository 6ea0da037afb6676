//! The way to the API server: the user's kubeconfig, a deadline for each request, lists in pages.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use jiff::Timestamp;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use trylatest_core::namespace::NamespaceName;

use crate::args::ClusterArgs;
use crate::kubeconfig;
use crate::target::{PodName, Target};

/// Objects in a page of a list: the API server makes no more at once, and we hold no more at once.
const PAGE: u32 = 500;

/// A list that changes under our hands is begun again so many times.
const RESTARTS: usize = 2;

/// A cluster, and where in it.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// The API server's address, for messages.
    server: String,
    /// The one that was asked for.
    named: Option<String>,
    /// The context's.
    default: String,
    timeout: Option<Duration>,
}

/// Why something could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unseen {
    /// The user may not.
    Forbidden(String),
    /// There is no such thing, or the API server does not know the kind.
    Absent(String),
    /// No answer, or one that cannot be used.
    Failed(String),
}

impl Unseen {
    /// The words.
    pub(crate) fn why(&self) -> &str {
        match self {
            Self::Forbidden(why) | Self::Absent(why) | Self::Failed(why) => why,
        }
    }
}

/// What was looked at, or why it could not be.
pub(crate) type Looked<T> = Result<T, Unseen>;

impl Cluster {
    /// Reads the kubeconfig; within a cluster and without one, the pod's service account. The API server is not asked
    /// yet. Dropping the future leaves a login behind that is under way.
    pub(crate) async fn connect(
        args: &ClusterArgs,
        namespace: Option<&NamespaceName>,
    ) -> anyhow::Result<Self> {
        let config = kubeconfig::config(args).await?;
        let default = config.default_namespace.clone();
        let server = config.cluster_url.to_string();
        // A program that the kubeconfig names is run in here, and may wait for the user to log in.
        let client = tokio::task::spawn_blocking(move || Client::try_from(config));
        let client = client.await?.context("use the kubeconfig")?;
        Ok(Self {
            client,
            server,
            named: namespace.map(NamespaceName::to_string),
            default,
            timeout: args.request_timeout.limit,
        })
    }

    /// The API server's address.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// The namespace that a command about one object is about.
    pub(crate) fn namespace(&self) -> &str {
        self.named.as_deref().unwrap_or(&self.default)
    }

    /// The namespace that the user has named, if any.
    pub(crate) fn named_namespace(&self) -> Option<&str> {
        self.named.as_deref()
    }

    /// The one of a pod that may have been named with its namespace.
    ///
    /// # Errors
    /// The user has named two.
    pub(crate) fn namespace_of<'a>(&'a self, pod: &'a PodName) -> anyhow::Result<&'a str> {
        let own = pod.namespace.as_ref().map(NamespaceName::as_str);
        match (own, self.named_namespace()) {
            (Some(own), Some(named)) if own != named => {
                bail!("the pod is in the namespace {own} or in {named}: name one of them")
            }
            (own, _) => Ok(own.unwrap_or_else(|| self.namespace())),
        }
    }

    /// Objects of this kind in one namespace, or in all.
    pub(crate) fn api<K>(&self, namespace: Option<&str>) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType: Default>,
    {
        match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// The objects of the target's kind, where it is.
    pub(crate) fn objects(&self, target: &Target) -> Api<DynamicObject> {
        let resource = target.kind.resource();
        match target.kind {
            crate::target::Kind::Namespace => Api::all_with(self.client.clone(), &resource),
            _ => Api::namespaced_with(self.client.clone(), self.namespace(), &resource),
        }
    }

    /// The answer to one request within its deadline, unless the user wants none. Dropping the future gives the request
    /// up.
    pub(crate) async fn ask<T>(
        &self,
        what: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Looked<T> {
        let Some(limit) = self.timeout else {
            return request
                .await
                .map_err(|error| unseen(what, &self.server, &error));
        };
        let Ok(answer) = tokio::time::timeout(limit, request).await else {
            let limit = humantime::format_duration(limit);
            let server = &self.server;
            return Err(Unseen::Failed(format!(
                "{what}: no answer from {server} within {limit} (--request-timeout)"
            )));
        };
        answer.map_err(|error| unseen(what, &self.server, &error))
    }

    /// The same for a command that cannot go on without.
    ///
    /// # Errors
    /// In the words of [`Unseen`].
    pub(crate) async fn need<T>(
        &self,
        what: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> anyhow::Result<T> {
        let answer = self.ask(what, request).await;
        answer.map_err(|unseen| anyhow!("{}", unseen.why()))
    }

    /// Every object of a list, a page at a time. `begin` is called before the first object, and again if the API
    /// server no longer knows the rest of a list that took too long.
    pub(crate) async fn each<K, S>(
        &self,
        what: &str,
        api: &Api<K>,
        params: &ListParams,
        begin: impl Fn() -> S,
        mut fold: impl FnMut(&mut S, K),
    ) -> Looked<S>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let mut restarts = 0;
        let mut seen = begin();
        let mut params = params.clone().limit(PAGE);
        loop {
            let page = match self.ask(what, api.list(&params)).await {
                Err(_) if params.continue_token.is_some() && restarts < RESTARTS => {
                    restarts += 1;
                    seen = begin();
                    params.continue_token = None;
                    continue;
                }
                page => page?,
            };
            for object in page.items {
                fold(&mut seen, object);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(seen),
            }
        }
    }
}

/// The API server's own words, and what they are about.
fn unseen(what: &str, server: &str, error: &kube::Error) -> Unseen {
    match error {
        kube::Error::Api(status) => {
            let words = match status.message.as_str() {
                // The API server says no more than this word.
                _ if status.code == 401 => format!(
                    "{what}: {server} does not accept the kubeconfig's credentials (Unauthorized)"
                ),
                "" => format!("{what}: {}", status.reason),
                message => format!("{what}: {message}"),
            };
            match status.code {
                403 => Unseen::Forbidden(words),
                404 => Unseen::Absent(words),
                _ => Unseen::Failed(words),
            }
        }
        // Its own words begin with the name of a type.
        kube::Error::Service(error) => Unseen::Failed(format!(
            "{what}: no answer from {server}: {}",
            chain(error.as_ref())
        )),
        error => Unseen::Failed(format!("{what}: {}", chain(error))),
    }
}

/// An error and its causes, each said once: kube's errors repeat their sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !words.contains(&more) {
            words.push_str(": ");
            words.push_str(&more);
        }
        source = cause.source();
    }
    words
}

/// The only place that reads the clock.
#[expect(clippy::disallowed_methods, reason = "the edge where `now` comes from")]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_answer_is_named() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = kube::Error::Service(Box::new(refused));
        assert_eq!(
            unseen("list nodes", "https://127.0.0.1:9/", &error).why(),
            "list nodes: no answer from https://127.0.0.1:9/: connection refused"
        );
    }

    #[test]
    fn credentials_that_have_expired_are_named() {
        let status = kube::core::Status::failure("Unauthorized", "Unauthorized").with_code(401);
        assert_eq!(
            unseen(
                "list nodes",
                "https://127.0.0.1:9/",
                &kube::Error::Api(status.boxed())
            )
            .why(),
            "list nodes: https://127.0.0.1:9/ does not accept the kubeconfig's credentials (Unauthorized)"
        );
    }
}
