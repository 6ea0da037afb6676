//! A small HTTP server that nobody can hold up: a bounded number of connections, each of which asks
//! once and has little time.

use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Most connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 128;

/// From a connection's first byte to its last. Probes ask for an answer within a second or so.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(5);

/// How long answers under way may take after `stop`.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Answers until `stop`, and returns soon after it whatever the clients do.
pub(super) async fn serve(
    listener: impl Listener<Io: 'static>,
    app: Router,
    stop: CancellationToken,
) {
    serve_within(listener, app, stop, CONNECTION_DEADLINE).await;
}

async fn serve_within(
    mut listener: impl Listener<Io: 'static>,
    app: Router,
    stop: CancellationToken,
    deadline: Duration,
) {
    let mut connections = JoinSet::new();
    loop {
        let io = tokio::select! {
            // All can be dropped: a connection is accepted or still waits, a task joined or not.
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            (io, _) = listener.accept(), if connections.len() < CONNECTIONS_MAX => io,
        };
        let service = TowerToHyperService::new(app.clone());
        let serving = http1::Builder::new()
            .keep_alive(false)
            .serve_connection(TokioIo::new(io), service);
        connections.spawn(async move {
            match timeout(deadline, serving).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "a client went wrong"),
                Err(_) => debug!("a client was too slow"),
            }
        });
    }
    drop(listener);
    let answered = async { while connections.join_next().await.is_some() {} };
    // What is not answered by then is cut off with the set.
    let _ = timeout(LAST_ANSWERS, answered).await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    use super::*;

    async fn server(deadline: Duration) -> (std::net::SocketAddr, CancellationToken, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/", get(async || "ok"));
        let stop = CancellationToken::new();
        let mut serving = JoinSet::new();
        serving.spawn(serve_within(listener, app, stop.clone(), deadline));
        (address, stop, serving)
    }

    async fn ask(mut stream: TcpStream) -> String {
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
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
