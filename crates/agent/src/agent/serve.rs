//! A small HTTP server that nobody can hold up: a bounded number of connections, each of which asks
//! once and has little time.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::net::Listener;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Most connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 128;

/// From a connection's first byte to its last. Probes ask for an answer within a second or so.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(5);

/// Most bytes of a request's head that are read. Who reads a body bounds it.
const HEAD_MAX_BYTES: usize = 16 << 10;

/// How long answers under way may take after `stop`.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// After a connection that could not be accepted, as when no file descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What a request is answered with.
pub(super) type Answer = Response<Full<Bytes>>;

/// Answers until `stop`, also by who asks, and returns soon after it whatever the clients do.
pub(super) async fn serve<L, A>(
    listener: L,
    answer: impl Fn(Request<Incoming>, &L::Addr) -> A + Clone + Send + 'static,
    stop: CancellationToken,
) where
    L: Listener<Io: Unpin + Send + 'static, Addr: Send + 'static>,
    A: Future<Output = Answer> + Send + 'static,
{
    serve_within(listener, answer, stop, CONNECTION_DEADLINE).await;
}

async fn serve_within<L, A>(
    mut listener: L,
    answer: impl Fn(Request<Incoming>, &L::Addr) -> A + Clone + Send + 'static,
    stop: CancellationToken,
    deadline: Duration,
) where
    L: Listener<Io: Unpin + Send + 'static, Addr: Send + 'static>,
    A: Future<Output = Answer> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let (io, peer) = tokio::select! {
            // All can be dropped: a connection is accepted or still waits, a task joined or not.
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&mut listener), if connections.len() < CONNECTIONS_MAX => accepted,
        };
        let answer = answer.clone();
        let service = service_fn(move |request| {
            let answer = answer(request, &peer);
            async { Ok::<_, Infallible>(answer.await) }
        });
        let serving = http1::Builder::new()
            .keep_alive(false)
            .max_buf_size(HEAD_MAX_BYTES)
            .serve_connection(TokioIo::new(io), service);
        connections.spawn(async move {
            match timeout(deadline, serving).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "a client's request has failed"),
                Err(_) => debug!("a client was too slow"),
            }
        });
    }
    drop(listener);
    let answered = async { while connections.join_next().await.is_some() {} };
    // What is not answered by then is cut off with the set.
    let _ = timeout(LAST_ANSWERS, answered).await;
}

/// Accepts the next connection.
async fn accept<L: Listener>(listener: &mut L) -> (L::Io, L::Addr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // The client has gone already.
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => {
                warn!(%error, "no connection can be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    use super::*;

    async fn server(deadline: Duration) -> (std::net::SocketAddr, CancellationToken, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = |_request, _: &std::net::SocketAddr| ready(Response::new(Full::from("ok")));
        let stop = CancellationToken::new();
        let mut serving = JoinSet::new();
        serving.spawn(serve_within(listener, answer, stop.clone(), deadline));
        (address, stop, serving)
    }

    async fn ask(stream: TcpStream) -> String {
        ask_with("GET", stream).await
    }

    async fn ask_with(method: &str, mut stream: TcpStream) -> String {
        let request = format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn head_is_answered_without_the_body() {
        let (address, _stop, _serving) = server(Duration::from_secs(600)).await;
        let answer = ask_with("HEAD", TcpStream::connect(address).await.unwrap()).await;
        assert!(answer.contains("content-length: 2\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn clients_that_never_finish_asking_make_room_for_others() {
        let (address, _stop, _serving) = server(Duration::from_millis(200)).await;
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HT").await.unwrap();
            idle.push(stream);
        }
        let answer = ask(TcpStream::connect(address).await.unwrap()).await;
        assert!(answer.ends_with("ok"), "{answer}");
        let mut rest = Vec::new();
        assert_eq!(idle[0].read_to_end(&mut rest).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_client_that_never_finishes_asking_does_not_hold_up_the_end() {
        let (address, stop, serving) = server(Duration::from_secs(600)).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"GET / HT").await.unwrap();
        // The one before it is accepted by then.
        ask(TcpStream::connect(address).await.unwrap()).await;
        let stopped = Instant::now();
        stop.cancel();
        serving.join_all().await;
        assert!(stopped.elapsed() < Duration::from_secs(60));
        assert!(TcpStream::connect(address).await.is_err());
    }
}
