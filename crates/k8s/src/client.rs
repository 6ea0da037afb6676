//! The connection to the API server, and how its death is noticed.
//!
//! A watch is silent for as long as nothing happens; in a quiet cluster the API server does not even
//! send bookmarks. So silence means nothing, and this is how an API server that is gone shows itself:
//!
//! | what | notices | after |
//! |---|---|---|
//! | HTTP/2 pings, which the API server's process answers | a server that hangs, a connection that leads nowhere | [`PING_EVERY`] + [`PING_ANSWER`] |
//! | TCP keep-alive and `TCP_USER_TIMEOUT`, if something in between speaks HTTP/1.1 only | a connection that leads nowhere | the same |
//! | [`ANSWER`] for the head of an answer, [`SILENCE`] between the pieces of its body | a server that hangs behind a proxy that is alive, at the next request | [`ANSWER`] |
//!
//! A ping costs the API server no request. client-go has them too, at a slower pace
//! (`HTTP2_READ_IDLE_TIMEOUT_SECONDS`); the gates that wait for this agent have less time.

use std::time::Duration;

use hyper::body::{Body as HttpBody, Bytes};
use hyper::{Request, Response, Uri};
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use tower::retry::RetryLayer;
use tower::timeout::TimeoutLayer;
use tower::{BoxError, Service, ServiceBuilder};
use tower_http::timeout::ResponseBodyTimeoutLayer;

use crate::watch::WATCH_AT_MOST;

/// The agent pings a connection that has been silent for this long.
const PING_EVERY: Duration = Duration::from_secs(5);

/// How long the answer may take. A gate waits for 20 s: after [`PING_EVERY`] and this, time is left
/// for a new connection, a list and a release. An API server that is too busy to answer in time
/// loses one connection, nothing else.
const PING_ANSWER: Duration = Duration::from_secs(7);

/// How long the API server may take to begin an answer, all tries of a request together.
const ANSWER: Duration = Duration::from_secs(10);

/// How long an answer that has begun may be silent: longer than a healthy watch, which may be silent
/// all its life.
const SILENCE: Duration = Duration::from_secs(WATCH_AT_MOST.as_secs() + 10);

/// Retries after 429, 503 and 504: the shortest and the longest pause, and how many. A `Retry-After`
/// of the API server is honoured.
const RETRY: (Duration, Duration, u32) = (Duration::from_millis(250), Duration::from_secs(2), 3);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a service account nor a kubeconfig.
    #[error("finding the API server's address and credentials")]
    Config(#[source] kube::config::InferConfigError),
    /// Credentials or certificates that cannot be used.
    #[error("using the credentials for the API server")]
    Credentials(#[source] kube::Error),
    /// A kubeconfig with a `tls-server-name` that is not a name.
    #[error("invalid tls-server-name {0:?}")]
    ServerName(String),
    /// A kubeconfig with a proxy.
    #[error("the API server cannot be reached through the proxy {0}: proxies are not supported")]
    Proxy(Uri),
}

/// A client for the API server that this process is meant to use: its pod's, or its kubeconfig's.
/// Nothing is sent yet.
///
/// # Errors
/// [`ConnectError`]; trying again does not help.
pub async fn connect() -> Result<Client, ConnectError> {
    client(Config::infer().await.map_err(ConnectError::Config)?)
}

/// A client that notices within 15 s when nobody answers on its connection.
///
/// # Errors
/// [`ConnectError`]; trying again does not help.
pub fn client(config: Config) -> Result<Client, ConnectError> {
    if let Some(proxy) = config.proxy_url {
        return Err(ConnectError::Proxy(proxy));
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(PING_EVERY));
    tcp.set_keepalive_interval(Some(PING_EVERY));
    tcp.set_tcp_user_timeout(Some(PING_EVERY + PING_ANSWER));
    let tls = config
        .rustls_client_config()
        .map_err(ConnectError::Credentials)?;
    let mut https = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name
            .clone()
            .try_into()
            .map_err(|_| ConnectError::ServerName(name.clone()))?;
        https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let http = HttpClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_ANSWER)
        // Otherwise a connection that died between two watches would take the next one down.
        .http2_keep_alive_while_idle(true)
        .build(https.enable_all_versions().wrap_connector(tcp));
    client_over(http, &config)
}

/// The layers between kube and HTTP.
fn client_over<S, B>(http: S, config: &Config) -> Result<Client, ConnectError>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (first, last, times) = RETRY;
    let retries = RetryPolicy::new(first, last, times, true)
        .expect("the first pause is shorter than the last");
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(ANSWER))
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(retries))
        .option_layer(config.auth_layer().map_err(ConnectError::Credentials)?)
        .layer(
            config
                .extra_headers_layer()
                .map_err(ConnectError::Credentials)?,
        )
        .layer(ResponseBodyTimeoutLayer::new(SILENCE))
        .map_err(Into::<BoxError>::into)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

#[cfg(test)]
mod tests;
