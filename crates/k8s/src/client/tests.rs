//! A watch over this client, against an API server that is played by a closure. That a real one is
//! noticed when it hangs is tested in `e2e/tests/admit_policies/watch.rs`.

use std::sync::{Arc, Mutex};

use futures::stream::{self, BoxStream, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::time::{Instant, timeout};
use tower::service_fn;

use super::*;
use trylatest_core::outcome::{Failure, FailureClass};

use crate::watch::{PodChange, WatchError, watch_pods};

const LIST: &str =
    r#"{"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []}"#;
type Answer = Result<Response<UnsyncBoxBody<Bytes, BoxError>>, BoxError>;
type Changes = BoxStream<'static, Result<PodChange, WatchError>>;

/// What was asked: path and query.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    fn watches(&self) -> Vec<String> {
        let asked = self.0.lock().unwrap();
        let watches = asked.iter().filter(|uri| uri.contains("watch=true"));
        watches.cloned().collect()
    }
}

/// A watch of an API server that answers like this.
fn unknown(message: &str) -> Failure {
    Failure::new(FailureClass::Unknown, message)
}

fn changes<R>(answer: impl Fn(&str) -> R + Clone + Send + 'static) -> (Changes, Asked)
where
    R: Future<Output = Answer> + Send + 'static,
{
    let asked = Asked::default();
    let log = asked.clone();
    let service = service_fn(move |request: Request<Body>| {
        let uri = request.uri().to_string();
        log.0.lock().unwrap().push(uri.clone());
        answer(&uri)
    });
    let config = Config::new(Uri::from_static("http://api.example"));
    let client = client_over(service, &config).unwrap();
    (watch_pods(client, "node-1", unknown).boxed(), asked)
}

fn whole(text: &'static str) -> UnsyncBoxBody<Bytes, BoxError> {
    Full::from(text).map_err(BoxError::from).boxed_unsync()
}

/// The same, where a list begins and does not end.
fn broken_off() -> (Changes, Asked) {
    changes(|_| async {
        let begin = stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from(&LIST[..9])))]);
        let body = StreamBody::new(begin.chain(stream::pending()));
        Ok(Response::new(body.boxed_unsync()))
    })
}

/// The same, where a list is answered and a watch stays silent.
fn quiet() -> (Changes, Asked) {
    changes(|uri| {
        let is_watch = uri.contains("watch=true");
        async move {
            let silence = StreamBody::new(stream::pending::<Result<_, BoxError>>());
            Ok(Response::new(if is_watch {
                silence.boxed_unsync()
            } else {
                whole(LIST)
            }))
        }
    })
}

async fn next(changes: &mut Changes) -> Result<PodChange, WatchError> {
    let next = timeout(Duration::from_secs(3600), changes.next()).await;
    next.expect("it hangs").expect("it has ended")
}

#[tokio::test(start_paused = true)]
async fn a_healthy_watch_is_asked_for_once_in_five_minutes() {
    let (mut changes, asked) = quiet();
    let first = next(&mut changes).await.unwrap();
    assert_eq!(first, PodChange::Reset(Vec::new()));
    let five_minutes = Duration::from_secs(300);
    let next = timeout(five_minutes, changes.next()).await;
    assert!(next.is_err(), "{next:?}");
    let watches = asked.watches();
    let [watch] = watches.as_slice() else {
        panic!("{watches:?}");
    };
    let (_, seconds) = watch.split_once("timeoutSeconds=").unwrap();
    let seconds: u64 = seconds.split('&').next().unwrap().parse().unwrap();
    assert!(
        (300..360).contains(&seconds),
        "the API server ends it after {seconds} s"
    );
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_in_silence_is_asked_for_again() {
    let (mut changes, asked) = broken_off();
    let begun = Instant::now();
    next(&mut changes).await.unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), SILENCE.as_secs());
    next(&mut changes).await.unwrap_err();
    assert_eq!(asked.0.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_list_without_an_answer_is_asked_for_again() {
    let (mut changes, asked) = changes(|_| std::future::pending());
    let begun = Instant::now();
    next(&mut changes).await.unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), ANSWER.as_secs());
    next(&mut changes).await.unwrap_err();
    assert_eq!(asked.0.lock().unwrap().len(), 2);
}

/// etcd restored from a backup begins again below the revision that was seen last, and a watch from
/// there stays silent.
#[tokio::test(start_paused = true)]
async fn after_an_error_the_pods_are_listed_again() {
    let watches = Arc::new(Mutex::new(0));
    let (mut changes, asked) = changes(move |uri| {
        let is_first = uri.contains("watch=true") && {
            let mut watches = watches.lock().unwrap();
            *watches += 1;
            *watches == 1
        };
        let is_watch = uri.contains("watch=true");
        async move {
            let broken = stream::iter([Err::<Frame<Bytes>, _>(BoxError::from("reset"))]);
            let silence = StreamBody::new(stream::pending::<Result<_, BoxError>>());
            Ok(Response::new(match (is_watch, is_first) {
                (false, _) => whole(LIST),
                (true, true) => StreamBody::new(broken).boxed_unsync(),
                (true, false) => silence.boxed_unsync(),
            }))
        }
    });
    let listed = PodChange::Reset(Vec::new());
    assert_eq!(next(&mut changes).await.unwrap(), listed);
    next(&mut changes).await.unwrap_err();
    assert_eq!(next(&mut changes).await.unwrap(), listed);
    let asked = asked.0.lock().unwrap();
    let lists = asked.iter().filter(|uri| !uri.contains("watch=true"));
    assert_eq!(lists.count(), 2, "{asked:?}");
}

/// Thousands of agents ask an API server that comes up: the pauses grow, and no two are the same.
#[tokio::test(start_paused = true)]
async fn the_pauses_between_lists_that_fail_grow() {
    let failing = || {
        let (changes, _) = changes(|_| async {
            let failure = whole(r#"{"kind": "Status", "status": "Failure", "code": 500}"#);
            Ok(Response::builder().status(500).body(failure)?)
        });
        changes
    };
    let mut all = Vec::new();
    for _ in 0..2 {
        let mut changes = failing();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let begun = Instant::now();
            next(&mut changes).await.unwrap_err();
            pauses.push(begun.elapsed());
        }
        assert!(pauses[1] <= Duration::from_millis(500), "{pauses:?}");
        let last = pauses[7].as_secs_f32();
        assert!((3.0..=6.1).contains(&last), "{pauses:?}");
        all.push(pauses);
    }
    assert_ne!(all[0], all[1]);
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    let mut config = Config::new(Uri::from_static("https://api.example"));
    config.proxy_url = Some(Uri::from_static("http://proxy.example"));
    let error = client(config).err().unwrap();
    assert!(matches!(error, ConnectError::Proxy(_)), "{error}");
}
