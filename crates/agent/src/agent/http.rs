//! Probes and metrics over TCP, and the index over a socket that only this node's root can open.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rustix::fs::Mode;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::handover;
use super::health::Health;
use super::history::History;
use super::metrics::Metrics;

/// The socket's name in the state folder.
pub(crate) const SOCKET: &str = "agent.sock";

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

/// Serves `/livez`, `/readyz` and `/metrics` until `stop`.
pub(super) async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let live = Arc::clone(&health);
    let app = Router::new()
        .route("/livez", get(async move || probe(live.dead())))
        .route("/readyz", get(async move || probe(health.unready())))
        .route("/metrics", get(async move || metrics_text(&metrics)));
    super::serve::serve(listener, app, stop).await;
    Ok(())
}

/// Serves `/images` on the socket until `stop`. Pods come first: an agent that cannot make its socket
/// (the disk is full, or became read-only) says so and runs without.
pub(super) async fn serve_images(
    state_dir: &Path,
    history: History,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let path = state_dir.join(SOCKET);
    let listener = match bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(path = %path.display(), error = format!("{error:#}"), "`trylatest images` cannot ask this agent");
            stop.cancelled().await;
            return Ok(());
        }
    };
    let app = Router::new()
        .route("/images", get(images))
        .with_state(history.clone());
    super::serve::serve(listener, app, stop).await;
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

fn probe(problem: Option<impl ToString>) -> Response {
    match problem {
        None => "ok\n".into_response(),
        Some(why) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{}\n", why.to_string()),
        )
            .into_response(),
    }
}

fn metrics_text(metrics: &Metrics) -> Response {
    match metrics.text() {
        Ok(text) => ([("content-type", prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn images(State(history): State<History>) -> Response {
    match history.all().await {
        Ok(records) => match serde_json::to_string(&records) {
            Ok(json) => ([("content-type", "application/json")], json).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        },
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    }
}
