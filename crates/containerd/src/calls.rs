//! The connection to containerd: one channel for CRI and the native API, a deadline for each call.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};
use tower::service_fn;

use crate::classify;
use crate::runtime::RuntimeError;

/// The containerd namespace of everything that CRI does.
const NAMESPACE: &str = "k8s.io";

/// Largest answer that is accepted. containerd itself sends no larger ones; tonic's default of 4 MiB is too
/// little for the list of images of a node that holds thousands.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// All calls of one piece of work together may take as long as this many calls.
const CALLS_TOGETHER: u32 = 2;

/// A native client that speaks in CRI's namespace.
pub(crate) type Native = InterceptedService<Channel, InNamespace>;

/// Adds the namespace to native calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InNamespace;

impl Interceptor for InNamespace {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(
            "containerd-namespace",
            MetadataValue::from_static(NAMESPACE),
        );
        Ok(request)
    }
}

/// Learns how each call ended, and how long pulls took. By default nobody listens.
#[derive(Clone)]
pub struct CallObserver {
    calls: Arc<HearCall>,
    pulls: Arc<HearPull>,
}

type HearCall = dyn Fn(Option<&RuntimeError>) + Send + Sync;
type HearPull = dyn Fn(PullEnd, Duration) + Send + Sync;

/// How a pull ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullEnd {
    /// containerd has the image.
    Success,
    /// containerd has given up.
    Failed,
    /// The caller has dropped it.
    Cut,
}

impl CallObserver {
    /// Hears of each call except pulls: `None` for an answer. Runs in the caller's task: it should only count, not
    /// wait.
    pub fn new(hear: impl Fn(Option<&RuntimeError>) + Send + Sync + 'static) -> Self {
        Self {
            calls: Arc::new(hear),
            pulls: Arc::new(|_, _| {}),
        }
    }

    /// Also hears of pulls, and how long they took.
    #[must_use]
    pub fn and_of_pulls(self, hear: impl Fn(PullEnd, Duration) + Send + Sync + 'static) -> Self {
        Self {
            pulls: Arc::new(hear),
            ..self
        }
    }
}

impl Default for CallObserver {
    fn default() -> Self {
        Self::new(|_| {})
    }
}

impl fmt::Debug for CallObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallObserver")
    }
}

/// A pull that runs; its end is observed, also if it is dropped.
pub(crate) struct RunningPull {
    observer: CallObserver,
    started: Instant,
    end: PullEnd,
}

impl RunningPull {
    /// It begins.
    pub(crate) fn begin(observer: &CallObserver) -> Self {
        Self {
            observer: observer.clone(),
            started: Instant::now(),
            end: PullEnd::Cut,
        }
    }

    /// containerd has answered.
    pub(crate) fn ended<T, E>(mut self, answer: &Result<T, E>) {
        self.end = match answer {
            Ok(_) => PullEnd::Success,
            Err(_) => PullEnd::Failed,
        };
    }
}

impl Drop for RunningPull {
    fn drop(&mut self) {
        (self.observer.pulls)(self.end, self.started.elapsed());
    }
}

/// Makes clients and calls.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    channel: Channel,
    timeout: Duration,
    connections: Arc<AtomicU64>,
    observer: CallObserver,
}

impl Calls {
    /// Connects at the first call, and again after the connection has broken.
    pub(crate) fn new(socket: &Path, timeout: Duration, observer: CallObserver) -> Self {
        let socket = PathBuf::from(socket);
        let connections = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&connections);
        // HTTP/2 needs an address; only the connector decides where to connect.
        let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(
            service_fn(move |_: Uri| {
                let socket = socket.clone();
                count.fetch_add(1, Ordering::Relaxed);
                async move {
                    let stream = UnixStream::connect(&socket).await;
                    // The system's own words do not say which socket.
                    let named = |error: io::Error| {
                        io::Error::new(error.kind(), format!("{}: {error}", socket.display()))
                    };
                    stream.map(TokioIo::new).map_err(named)
                }
            }),
        );
        Self {
            channel,
            timeout,
            connections,
            observer,
        }
    }

    /// How many connections were attempted: what was learned over an earlier one may have changed.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// A pull begins.
    pub(crate) fn begin_pull(&self) -> RunningPull {
        RunningPull::begin(&self.observer)
    }

    pub(crate) fn cri_images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn cri_runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn images(&self) -> ImagesClient<Native> {
        ImagesClient::with_interceptor(self.channel.clone(), InNamespace)
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn containers(&self) -> ContainersClient<Native> {
        ContainersClient::with_interceptor(self.channel.clone(), InNamespace)
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn content(&self) -> ContentClient<Native> {
        ContentClient::with_interceptor(self.channel.clone(), InNamespace)
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn snapshots(&self) -> SnapshotsClient<Native> {
        SnapshotsClient::with_interceptor(self.channel.clone(), InNamespace)
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn leases(&self) -> LeasesClient<Native> {
        LeasesClient::with_interceptor(self.channel.clone(), InNamespace)
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn events(&self) -> EventsClient<Native> {
        EventsClient::with_interceptor(self.channel.clone(), InNamespace)
    }

    /// Waits for an answer, no longer than the deadline.
    pub(crate) async fn call<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RuntimeError> {
        self.within(operation, async { call.await.map(Response::into_inner) })
            .await
    }

    /// Like [`Calls::call`], where "not found" is an answer too.
    pub(crate) async fn find<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Option<T>, RuntimeError> {
        self.within(operation, async {
            match call.await {
                Ok(response) => Ok(Some(response.into_inner())),
                Err(status) if status.code() == Code::NotFound => Ok(None),
                Err(status) => Err(status),
            }
        })
        .await
    }

    /// Waits for anything that ends in a status, no longer than the deadline.
    pub(crate) fn within<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, Status>>,
    ) -> impl Future<Output = Result<T, RuntimeError>> {
        // Not async itself: a future in a future would need its memory twice.
        self.within_time(self.timeout, operation, work)
    }

    /// Like [`Calls::within`], with a deadline of its own.
    pub(crate) async fn within_time<T>(
        &self,
        timeout: Duration,
        operation: &'static str,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, RuntimeError> {
        let result = match tokio::time::timeout(timeout, work).await {
            Ok(result) => result.map_err(|status| error(operation, &status)),
            Err(_) => Err(RuntimeError::Timeout { operation, timeout }),
        };
        (self.observer.calls)(result.as_ref().err());
        result
    }

    /// Waits for work of several calls, each with a deadline of its own: a containerd that is just fast
    /// enough for each of them would take a minute for all.
    pub(crate) async fn together<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, RuntimeError>>,
    ) -> Result<T, RuntimeError> {
        let timeout = CALLS_TOGETHER * self.timeout;
        let waited = tokio::time::timeout(timeout, work).await;
        waited.unwrap_or(Err(RuntimeError::Timeout { operation, timeout }))
    }
}

/// What went wrong on the way to containerd; none if containerd itself answered.
///
/// A status that came over the wire has no source; one that tonic made up for a broken connection has.
/// The code alone does not distinguish them.
pub(crate) fn broken_connection(status: &Status) -> Option<String> {
    let mut source = std::error::Error::source(status)?;
    while let Some(deeper) = source.source() {
        source = deeper;
    }
    Some(source.to_string())
}

pub(crate) fn error(operation: &'static str, status: &Status) -> RuntimeError {
    match broken_connection(status) {
        Some(why) => RuntimeError::Unreachable { operation, why },
        None => RuntimeError::Answered {
            operation,
            code: status.code(),
            message: classify::readable(status.message()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_socket_is_unreachable_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let calls = Calls::new(
            &dir.path().join("none.sock"),
            Duration::from_secs(5),
            CallObserver::default(),
        );
        let mut cri = calls.cri_runtime();
        let version = cri.version(k8s_cri::v1::VersionRequest::default());
        let error = calls.call("asking for the version", version).await;
        let error = error.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::Unreachable { why, .. } if why.contains("none.sock: No such file")),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_silent_containerd_is_given_up_after_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("silent.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let timeout = Duration::from_millis(50);
        let seen = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&seen);
        let observer = CallObserver::new(move |error| {
            assert!(matches!(error, Some(RuntimeError::Timeout { .. })));
            count.fetch_add(1, Ordering::Relaxed);
        });
        let calls = Calls::new(&socket, timeout, observer);
        let mut cri = calls.cri_runtime();
        let call = cri.version(k8s_cri::v1::VersionRequest::default());
        let error = calls.call("asking for the version", call).await;
        assert_eq!(
            error.unwrap_err(),
            RuntimeError::Timeout {
                operation: "asking for the version",
                timeout
            }
        );
        assert_eq!(seen.load(Ordering::Relaxed), 1);
        drop(listener);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_each_pull_is_observed() {
        let ends = Arc::new(std::sync::Mutex::new(Vec::new()));
        let heard = Arc::clone(&ends);
        let observer = CallObserver::default()
            .and_of_pulls(move |end, took| heard.lock().unwrap().push((end, took.as_secs())));
        let begin = || RunningPull::begin(&observer);
        begin().ended(&Ok::<_, ()>(()));
        let (failed, cut) = (begin(), begin());
        tokio::time::advance(Duration::from_secs(3)).await;
        failed.ended(&Err::<(), _>(()));
        drop(cut);
        let expected = [
            (PullEnd::Success, 0),
            (PullEnd::Failed, 3),
            (PullEnd::Cut, 3),
        ];
        assert_eq!(*ends.lock().unwrap(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_calls_have_a_deadline_together() {
        let timeout = Duration::from_secs(5);
        let calls = Calls::new(Path::new("none.sock"), timeout, CallObserver::default());
        let work = async {
            loop {
                calls
                    .within("a slow call", async {
                        tokio::time::sleep(Duration::from_secs(4)).await;
                        Ok(())
                    })
                    .await?;
            }
        };
        let ended: Result<(), _> = calls.together("proving", work).await;
        let expected = RuntimeError::Timeout {
            operation: "proving",
            timeout: Duration::from_secs(10),
        };
        assert_eq!(ended, Err(expected));
    }

    #[test]
    fn an_answer_from_containerd_keeps_its_code() {
        let error = error("looking", &Status::new(Code::Internal, "bolt: closed"));
        assert_eq!(
            error.to_string(),
            "looking: containerd answered Internal: bolt: closed"
        );
    }
}
