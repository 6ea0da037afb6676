//! Probes, metrics and the node's report over TCP; the index, what would happen now, and what was pulled by hand, over a
//! socket that only this node's root can open.

use std::future::ready;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use rustix::fs::Mode;
use serde::Serialize;
use tokio::net::{TcpListener, UnixListener};
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

/// Longest path and query. The longest name of an image is half of it.
const PATH_MAX_BYTES: usize = 2048;

/// Longest report. Names and digests take a tenth of it.
const REPORT_MAX_BYTES: usize = 16 << 10;

/// The methods that read.
const READING: &str = "GET,HEAD";

/// Why a body cannot be read.
type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Takes the port, also from an agent that is still ending.
pub(super) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bind = || std::net::TcpListener::bind(address);
    let held = |error: &std::io::Error| error.kind() == ErrorKind::AddrInUse;
    let taken = handover::take("the port", bind, held).await;
    taken
        .and_then(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        })
        .with_context(|| format!("listening on {address}; choose another with --port"))
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
mod tests {
    use hyper::body::Bytes;
    use trylatest_core::explain::Explanation;
    use trylatest_core::node::NodeImage;
    use trylatest_core::outcome::Outcome;

    use super::super::by_hand::NotBelieved;
    use super::super::questions::{self, Call};
    use super::*;

    fn request(method: &Method, path: &str) -> Request<Full<Bytes>> {
        request_with(method, path, String::new())
    }

    fn request_with(method: &Method, path: &str, body: String) -> Request<Full<Bytes>> {
        let request = Request::builder().method(method).uri(path);
        request.body(body.into()).unwrap()
    }

    /// Status, content type and text of an answer.
    async fn read(answer: Answer) -> (u16, String, String) {
        let content_type = answer.headers().get(CONTENT_TYPE);
        let content_type = content_type.map_or("", |value| value.to_str().unwrap());
        let (status, content_type) = (answer.status().as_u16(), content_type.to_owned());
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        (
            status,
            content_type,
            String::from_utf8(text.into()).unwrap(),
        )
    }

    fn shown() -> (Shown, watch::Sender<Option<NodeReport>>) {
        let (sender, report) = watch::channel(None);
        let shown = Shown {
            health: Arc::new(Health::new()),
            metrics: Arc::new(Metrics::new("1.2.3").unwrap()),
            report,
        };
        (shown, sender)
    }

    /// Pods reach the port.
    #[tokio::test]
    async fn images_are_named_to_their_node_alone() {
        let (shown, sender) = shown();
        let image = serde_json::json!({
            "image": "reg.example/app:latest", "outcome": "fresh", "tried": "2026-01-01T12:00:00Z", "pods": 1,
            "podsRefused": 0, "podsFromCache": 0, "podsBehind": 0,
        });
        let app = NodeImage {
            image: "reg.example/app".parse().unwrap(),
            outcome: Outcome::Fresh,
            class: None,
            digest: None,
            tried: "2026-01-01T12:00:00Z".parse().unwrap(),
            rolled_back: None,
            confirmed: None,
            pods: 1,
            pods_refused: 0,
            pods_from_cache: 0,
            pods_behind: 0,
        };
        sender.send_replace(Some(NodeReport::new(vec![app], false)));
        let report = request(&Method::GET, "/report");
        let own = SocketAddr::new("10.0.0.1".parse().unwrap(), 9776);
        for (peer, status) in [
            ("127.0.0.1", 200),
            ("127.0.0.9", 200),
            ("::1", 200),
            ("::ffff:127.0.0.1", 200),
            ("10.0.0.1", 200),
            ("::ffff:10.0.0.1", 200),
            ("10.0.0.2", 403),
            ("192.168.1.7", 403),
            ("fe80::1", 403),
        ] {
            let peer = SocketAddr::new(peer.parse().unwrap(), 40000);
            let is_of_this_node = is_of_this_node(peer, own);
            let answer = read(shown.page(&report, is_of_this_node)).await;
            assert_eq!(answer.0, status, "{peer}");
            assert_eq!(answer.2.contains("reg.example"), status == 200, "{peer}");
        }
        let (_, kind, text) = read(shown.page(&report, true)).await;
        assert_eq!(kind, JSON);
        let served: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(served, serde_json::json!([image]));
    }

    #[tokio::test]
    async fn probes_and_metrics_have_their_paths() {
        let (shown, _report) = shown();
        for (method, path, status, content_type, text) in [
            (Method::GET, "/livez", 200, TEXT, "ok\n"),
            (Method::HEAD, "/livez?verbose", 200, TEXT, "ok\n"),
            (Method::GET, "/readyz", 503, TEXT, "not listed yet\n"),
            (Method::GET, "/metrics", 200, prometheus::TEXT_FORMAT, ""),
            (Method::POST, "/metrics", 405, "", ""),
            (Method::GET, "/", 404, "", ""),
            (Method::GET, "/livez/", 404, "", ""),
            (Method::GET, "/report", 503, TEXT, "not listed yet\n"),
            (Method::POST, "/report", 405, "", ""),
        ] {
            let answer = shown.page(&request(&method, path), true);
            let allowed = (status == 405).then_some(HeaderValue::from_static("GET,HEAD"));
            assert_eq!(answer.headers().get(ALLOW), allowed.as_ref(), "{path}");
            let answer = read(answer).await;
            assert_eq!(
                (answer.0, answer.1.as_str()),
                (status, content_type),
                "{method} {path}"
            );
            assert!(answer.2.ends_with(text), "{method} {path}: {}", answer.2);
        }
    }

    #[tokio::test]
    async fn the_index_is_served_as_json() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new("test").unwrap());
        let (history, _) = History::open(&dir.path().join("index"), metrics).await;
        let (questions, _asked) = questions::channel();
        let ask = async |method, path: &str| {
            let request = request(&method, path);
            socket_page(request, &history, &questions).await
        };
        let answer = ask(Method::GET, "/images").await;
        let json = (200, "application/json".to_owned(), "[]".to_owned());
        assert_eq!(read(answer).await, json);
        let long = format!("{OF_IMAGE}{}", "a".repeat(PATH_MAX_BYTES));
        let digest = "/explain/image/app@sha256:12";
        for (method, path, status) in [
            (Method::DELETE, "/images", 405),
            (Method::POST, "/explain/image/app", 405),
            (Method::GET, BY_HAND, 405),
            (Method::POST, "/by-hand/", 404),
            (Method::GET, "/metrics", 404),
            (Method::GET, "/explain", 404),
            (Method::GET, "/explain/node/a", 404),
            (Method::GET, "/explain/image/", 400),
            (Method::GET, "/explain/image/Not%20A%20Name", 400),
            (Method::GET, "/explain/image/app?namespace=", 400),
            (Method::GET, "/explain/image/app?namespace=a&b=c", 400),
            (Method::GET, "/explain/image/app?all", 400),
            (Method::GET, digest, 400),
            (Method::GET, "/explain/pod/", 400),
            (Method::GET, "/explain/pod/team", 400),
            (Method::GET, "/explain/pod/team/?namespace=a", 400),
            (Method::GET, &long, 414),
        ] {
            let answer = ask(method.clone(), path).await;
            assert_eq!(answer.status().as_u16(), status, "{method} {path}");
        }
    }

    #[tokio::test]
    async fn a_question_reaches_the_planner_and_its_answer_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new("test").unwrap());
        let (history, _) = History::open(&dir.path().join("index"), metrics).await;
        let (questions, mut asked) = questions::channel();
        let image = |name: &str, namespace: Option<&str>| Subject::Image {
            image: name.parse().unwrap(),
            namespace: namespace.map(str::to_owned),
        };
        let pod = Subject::Pod {
            namespace: "team-a".to_owned(),
            name: "web-1.2".to_owned(),
        };
        for (path, subject) in [
            ("/explain/image/app", image("app", None)),
            (
                "/explain/image/[::1]:5000/team/app:v1?namespace=team-a",
                image("[::1]:5000/team/app:v1", Some("team-a")),
            ),
            ("/explain/pod/team-a/web-1.2", pod),
        ] {
            let request = request(&Method::GET, path);
            let answer = socket_page(request, &history, &questions);
            let planner = async {
                let Some(Call::Explain(question)) = asked.recv().await else {
                    panic!("no question");
                };
                let explanation = Explanation {
                    time: "2026-01-01T12:00:00Z".parse().unwrap(),
                    node: "here".to_owned(),
                    pod: None,
                    images: Vec::new(),
                };
                let known = question.subject != image("app", None);
                question.answer.send(known.then_some(explanation)).unwrap();
                question.subject
            };
            let (answer, heard) = futures::join!(answer, planner);
            assert_eq!(heard, subject, "{path}");
            let is_known = subject != image("app", None);
            let (status, _, text) = read(answer).await;
            assert_eq!(status, if is_known { 200 } else { 404 });
            assert_eq!(text.contains(r#""node":"here""#), is_known, "{text}");
        }
    }

    #[tokio::test]
    async fn a_pull_by_hand_reaches_the_planner_and_what_is_no_report_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new("test").unwrap());
        let (history, _) = History::open(&dir.path().join("index"), metrics).await;
        let (questions, mut called) = questions::channel();
        let tried = |image: &str| {
            serde_json::json!({
                "image": image, "started": "2026-01-01T12:00:00Z", "durationMillis": 70,
                "result": "fresh", "digest": "sha256:12", "unknown": 1,
            })
        };
        let report = async |body: String| {
            let request = request_with(&Method::POST, BY_HAND, body);
            socket_page(request, &history, &questions).await
        };
        let long = tried(&"a".repeat(REPORT_MAX_BYTES));
        for (bad, status) in [
            (String::new(), 400),
            ("[]".to_owned(), 400),
            (tried("Not A Name").to_string(), 400),
            (tried("app@sha256:12").to_string(), 400),
            (long.to_string(), 413),
        ] {
            let answer = report(bad).await;
            assert_eq!(answer.status().as_u16(), status);
        }
        assert!(called.try_recv().is_err(), "nobody hears of those");
        for (believed, status, words) in [
            (Ok(()), 204, ""),
            (Err(NotBelieved::Ahead), 409, "in the future"),
        ] {
            let planner = async {
                let Some(Call::Learn(report)) = called.recv().await else {
                    panic!("no report");
                };
                report.answer.send(believed).unwrap();
                report.tried.image
            };
            let (answer, heard) = futures::join!(report(tried("app").to_string()), planner);
            assert_eq!(heard, "app".parse().unwrap());
            let (answered, _, text) = read(answer).await;
            assert_eq!(answered, status);
            assert!(text.contains(words), "{text}");
        }
        drop(called);
        let answer = report(tried("app").to_string()).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
