use std::iter;

use hyper::body::Bytes;
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
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
        "podsRefused": 0, "podsUnavailable": 0, "podsFromCache": 0, "podsBehind": 0,
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
        pods_unavailable: 0,
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

#[test]
fn probes_find_the_agent_on_loopback() {
    for (own, beside) in [
        ("10.0.0.1", Some(PROBED)),
        ("2001:db8::1", Some(PROBED)),
        ("::1", Some(PROBED)),
        ("127.0.0.1", None),
        ("127.96.0.1", None),
        ("0.0.0.0", None),
        ("::", None),
    ] {
        assert_eq!(probed_beside(own.parse().unwrap()), beside, "{own}");
    }
}

/// Both addresses are reserved for documentation. A kernel may have no IPv6 (`ipv6.disable=1`).
#[tokio::test]
async fn an_address_that_no_interface_has_leaves_the_probes_alone() {
    let absent_v6 = has_ipv6().then_some("2001:db8::1");
    for absent in iter::once("192.0.2.1").chain(absent_v6) {
        let absent = absent.parse().unwrap();
        let Listeners { own, probes } = listen(absent, 0).await.unwrap();
        assert_eq!(own.local_addr().unwrap().ip(), absent);
        let probes = probes.unwrap();
        let address = probes.local_addr().unwrap();
        assert_eq!(address.ip(), PROBED);
        let (shown, _report) = shown();
        let mut serving = JoinSet::new();
        serving.spawn(serve_probes(probes, shown, CancellationToken::new()));
        for (path, status) in [
            ("/livez", 200),
            ("/readyz", 503),
            ("/metrics", 404),
            ("/report", 404),
        ] {
            let answer = ask(address, path).await;
            let wanted = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&wanted), "{path}: {answer}");
        }
    }
}

/// Whether the kernel knows IPv6, even if no interface has an address.
fn has_ipv6() -> bool {
    match TcpSocket::new_v6() {
        Ok(_) => true,
        Err(error) if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => false,
        Err(error) => panic!("{error}"),
    }
}

async fn ask(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
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
