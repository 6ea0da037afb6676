//! Probes, metrics and the node's report over TCP; the index, what would happen now, and what was pulled by hand, over a
//! socket that only this node's root can open.

use std::future::ready;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use rustix::fs::Mode;
use rustix::net::sockopt;
use serde::Serialize;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use trylatest_core::explain::Subject;
use trylatest_core::namespace::NamespaceName;
use trylatest_core::node::NodeReport;
use trylatest_core::record::Try;

use super::handover;
use super::health::Health;
use super::history::History;
use super::metrics::Metrics;
use super::questions::Questions;
use super::serve::Answer;

/// The socket's name in the state folder.
pub(crate) const SOCKET: &str = "agent.sock";

/// What a path begins with that asks about an image: its name follows as it is, for every letter of a valid one may
/// stand in a path.
pub(crate) const OF_IMAGE: &str = "/explain/image/";

/// The same about a pod: `NAMESPACE/NAME` follows.
pub(crate) const OF_POD: &str = "/explain/pod/";

/// Where a command reports a pull by hand, with POST: a [`Try`] as JSON.
pub(crate) const BY_HAND: &str = "/by-hand";

/// Where the DaemonSet's probes ask. The node's own address can change, and the agent's pod keeps the old one.
const PROBED: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Most connections that wait to be accepted, as with tokio's own listener.
const BACKLOG: u32 = 1024;

/// Longest path and query. The longest name of an image is half of it.
const PATH_MAX_BYTES: usize = 2048;

/// Longest report. Names and digests take a tenth of it.
const REPORT_MAX_BYTES: usize = 16 << 10;

/// The methods that read.
const READING: &str = "GET,HEAD";

/// Why a body cannot be read.
type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Where the agent listens.
pub(super) struct Listeners {
    /// On its own address, for everything.
    pub(super) own: TcpListener,
    /// On loopback, for probes, unless its own address is there.
    pub(super) probes: Option<TcpListener>,
}

/// Takes the port of this address and of loopback, also from an agent that is still ending.
pub(super) async fn listen(own: IpAddr, port: u16) -> anyhow::Result<Listeners> {
    let own = own.to_canonical();
    let probes = match probed_beside(own) {
        Some(address) => Some(take(SocketAddr::new(address, port)).await?),
        None => None,
    };
    let own = take(SocketAddr::new(own, port)).await?;
    Ok(Listeners { own, probes })
}

/// Where an agent with this address listens for probes as well. An unspecified address includes loopback. With an IPv4
/// loopback address the agent keeps to that one: several nodes on one machine have one each.
fn probed_beside(own: IpAddr) -> Option<IpAddr> {
    let is_enough = own.is_unspecified() || own.is_ipv4() && own.is_loopback();
    (!is_enough).then_some(PROBED)
}

/// Takes the port of one address, even if no interface has the address now: no pod should wait for that.
async fn take(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let held = |error: &io::Error| error.kind() == ErrorKind::AddrInUse;
    let taken = match handover::take("the port", || bind_tcp(address), held).await {
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            warn!(%address, "no interface has this address; nobody reaches the agent there until one has");
            handover::take("the port", || bind_absent(address), held).await
        }
        taken => taken,
    };
    taken.with_context(|| format!("listening on {address}; choose another with --port"))
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Listens at an address that no interface has. Connections arrive as soon as one has it.
fn bind_absent(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        let socket = TcpSocket::new_v4()?;
        sockopt::set_ip_freebind(&socket, true)?;
        socket
    } else {
        let socket = TcpSocket::new_v6()?;
        sockopt::set_ipv6_freebind(&socket, true)?;
        socket
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What the agent shows over TCP.
#[derive(Clone)]
pub(super) struct Shown {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    report: watch::Receiver<Option<NodeReport>>,
}

/// Serves `/livez`, `/readyz`, `/metrics` and, to this node alone, `/report` until `stop`.
pub(super) async fn serve(
    listener: TcpListener,
    shown: Shown,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let own = listener
        .local_addr()
        .context("asking for the port's address")?;
    let answer =
        move |request, peer: &SocketAddr| ready(shown.page(&request, is_of_this_node(*peer, own)));
    super::serve::serve(listener, answer, stop).await;
    Ok(())
}

/// Serves `/livez` and `/readyz` alone until `stop`.
pub(super) async fn serve_probes(
    listener: TcpListener,
    shown: Shown,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let answer = move |request, _: &_| ready(shown.probe(&request));
    super::serve::serve(listener, answer, stop).await;
    Ok(())
}

/// Serves `/images`, `/explain` and `/by-hand` on the socket until `stop`. Pods come first: an agent that cannot make its
/// socket (the disk is full, or became read-only) says so and runs without.
pub(super) async fn serve_socket(
    state_dir: PathBuf,
    history: History,
    questions: Questions,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let path = state_dir.join(SOCKET);
    let listener = match bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(path = %path.display(), error = format!("{error:#}"), "`trylatest images` and `trylatest explain` cannot ask this agent, and `pull` and `repair` cannot report to it");
            stop.cancelled().await;
            return Ok(());
        }
    };
    let asked = history.clone();
    let answer = move |request, _: &_| {
        let (history, questions) = (asked.clone(), questions.clone());
        async move { socket_page(request, &history, &questions).await }
    };
    super::serve::serve(listener, answer, stop).await;
    let removed = remove(&path).with_context(|| format!("removing {}", path.display()));
    // As long as the index is ours, so is the socket: the next agent waits for both.
    drop(history);
    removed
}

fn bind(path: &PathBuf) -> anyhow::Result<UnixListener> {
    // A killed agent leaves its socket behind.
    remove(path)?;
    let listener = UnixListener::bind(path)?;
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
    Ok(listener)
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether somebody asks from the network of this node: over loopback, or from the address that the agent listens on.
/// A pod with a network of its own has another address.
fn is_of_this_node(peer: SocketAddr, own: SocketAddr) -> bool {
    let [peer, own] = [peer, own].map(|address| address.ip().to_canonical());
    peer.is_loopback() || peer == own
}

impl Shown {
    pub(super) fn new(
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        report: watch::Receiver<Option<NodeReport>>,
    ) -> Self {
        Self {
            health,
            metrics,
            report,
        }
    }

    fn page<B>(&self, request: &Request<B>, is_of_this_node: bool) -> Answer {
        match request.uri().path() {
            "/livez" | "/readyz" | "/metrics" | "/report" if !reads(request) => {
                not_allowed(READING)
            }
            "/livez" => probe(self.health.dead()),
            "/readyz" => probe(self.health.unready()),
            "/metrics" => metrics_text(&self.metrics),
            // It names the images of every tenant.
            "/report" if !is_of_this_node => failed(
                StatusCode::FORBIDDEN,
                "only the node itself gets this\n".to_owned(),
            ),
            "/report" => self.report(),
            _ => empty(StatusCode::NOT_FOUND),
        }
    }

    /// On loopback. The rest would be in reach of every web page in a browser on the node (DNS rebinding), and of
    /// everybody who may forward a port of the agent's pod.
    fn probe<B>(&self, request: &Request<B>) -> Answer {
        match request.uri().path() {
            "/livez" | "/readyz" => self.page(request, false),
            _ => empty(StatusCode::NOT_FOUND),
        }
    }

    fn report(&self) -> Answer {
        match &*self.report.borrow() {
            Some(report) => json(&report.images),
            None => failed(
                StatusCode::SERVICE_UNAVAILABLE,
                "not listed yet\n".to_owned(),
            ),
        }
    }
}

async fn socket_page<B>(request: Request<B>, history: &History, questions: &Questions) -> Answer
where
    B: Body<Error: Into<BodyError>>,
{
    let (path, query) = (request.uri().path(), request.uri().query());
    if path.len() + query.map_or(0, str::len) > PATH_MAX_BYTES {
        return failed(
            StatusCode::URI_TOO_LONG,
            format!("the path has more than {PATH_MAX_BYTES} bytes"),
        );
    }
    let is_question = path.starts_with(OF_IMAGE) || path.starts_with(OF_POD);
    match path {
        BY_HAND if *request.method() != Method::POST => not_allowed("POST"),
        BY_HAND => pulled_by_hand(request.into_body(), questions).await,
        _ if path != "/images" && !is_question => empty(StatusCode::NOT_FOUND),
        _ if !reads(&request) => not_allowed(READING),
        "/images" => images(history).await,
        _ => match subject(path, query) {
            Ok(subject) => explained(questions, subject).await,
            Err(why) => failed(StatusCode::BAD_REQUEST, why),
        },
    }
}

/// What a path asks about.
fn subject(path: &str, query: Option<&str>) -> Result<Subject, String> {
    let namespace = match query {
        None => None,
        Some(query) => {
            let name = query.strip_prefix("namespace=");
            let name = name.and_then(|name| name.parse::<NamespaceName>().ok());
            let name = name.ok_or("the query may say ?namespace=NAME and nothing else")?;
            Some(name.as_str().to_owned())
        }
    };
    if let Some(image) = path.strip_prefix(OF_IMAGE) {
        let image = image.parse().map_err(|error| format!("{error}"))?;
        return Ok(Subject::Image { image, namespace });
    }
    let pod = path.strip_prefix(OF_POD).unwrap_or_default();
    match pod.split_once('/') {
        Some((namespace, name)) if query.is_none() && !namespace.is_empty() && !name.is_empty() => {
            Ok(Subject::Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            })
        }
        _ => Err(format!("{pod:?} is not the name of a pod: NAMESPACE/NAME")),
    }
}

async fn explained(questions: &Questions, subject: Subject) -> Answer {
    match questions.ask(subject).await {
        Ok(Some(explanation)) => json(&explanation),
        Ok(None) => failed(
            StatusCode::NOT_FOUND,
            "this node has no such TryLatest pod".to_owned(),
        ),
        Err(error) => failed(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

/// The answer is empty if the planner has heard it, and it is written down.
async fn pulled_by_hand<B>(body: B, questions: &Questions) -> Answer
where
    B: Body<Error: Into<BodyError>>,
{
    let report = Limited::new(body, REPORT_MAX_BYTES).collect().await;
    let tried = report.and_then(|report| Ok(serde_json::from_slice::<Try>(&report.to_bytes())?));
    let tried = match tried {
        Ok(tried) => tried,
        Err(error) => {
            let status = if error.is::<LengthLimitError>() {
                StatusCode::PAYLOAD_TOO_LARGE
            } else {
                StatusCode::BAD_REQUEST
            };
            return failed(status, error.to_string());
        }
    };
    match questions.report(tried).await {
        Ok(Ok(())) => empty(StatusCode::NO_CONTENT),
        Ok(Err(why)) => failed(StatusCode::CONFLICT, why.to_string()),
        Err(error) => failed(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

/// hyper leaves out the body where the method is HEAD.
fn reads<B>(request: &Request<B>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut answer = empty(StatusCode::METHOD_NOT_ALLOWED);
    let allowed = HeaderValue::from_static(allowed);
    answer.headers_mut().insert(ALLOW, allowed);
    answer
}

fn probe(problem: Option<impl ToString>) -> Answer {
    match problem {
        None => page(TEXT, "ok\n".to_owned()),
        Some(why) => failed(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{}\n", why.to_string()),
        ),
    }
}

fn metrics_text(metrics: &Metrics) -> Answer {
    match metrics.text() {
        Ok(text) => page(prometheus::TEXT_FORMAT, text),
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn images(history: &History) -> Answer {
    match history.all().await {
        Ok(records) => json(&records),
        Err(why) => failed(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

fn json<T: Serialize + ?Sized>(answer: &T) -> Answer {
    match serde_json::to_string(answer) {
        Ok(json) => page(JSON, json),
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

const JSON: &str = "application/json";

const TEXT: &str = "text/plain; charset=utf-8";

fn page(content_type: &'static str, text: String) -> Answer {
    let mut answer = Answer::new(Full::from(text));
    let content_type = HeaderValue::from_static(content_type);
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}

fn failed(status: StatusCode, why: String) -> Answer {
    let mut answer = page(TEXT, why);
    *answer.status_mut() = status;
    answer
}

fn empty(status: StatusCode) -> Answer {
    let mut answer = Answer::default();
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
mod tests;
