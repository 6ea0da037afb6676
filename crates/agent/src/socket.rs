//! Asks the node's running agent, and reports to it, over the Unix socket that only root can open.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::agent::SOCKET;

/// For the whole answer: it comes from this node.
const DEADLINE: Duration = Duration::from_secs(5);

/// The index is bounded; a larger answer does not come from an agent.
const ANSWER_MAX_BYTES: usize = 64 << 20;

/// What came of a question.
#[derive(Debug)]
pub(crate) enum Asked {
    /// An answer.
    Answered(StatusCode, Bytes),
    /// No agent runs, or not with this state folder.
    NoAgent,
}

impl Asked {
    /// The answer's text, as a person may read it.
    pub(crate) fn text(body: &Bytes) -> String {
        String::from_utf8_lossy(body).trim().to_owned()
    }
}

/// Asks for this path.
///
/// # Errors
/// The socket cannot be opened, or the agent does not answer in time. That no agent runs is none.
pub(crate) async fn ask(state_dir: &Path, path: &str) -> anyhow::Result<Asked> {
    match connect(state_dir).await? {
        Some(agent) => {
            let (status, body) = agent.request(Method::GET, path, Bytes::new()).await?;
            Ok(Asked::Answered(status, body))
        }
        None => Ok(Asked::NoAgent),
    }
}

/// A connection to the agent that runs, for one request.
pub(crate) struct Agent(UnixStream);

/// Connects to the agent; none if no agent runs, or not with this state folder.
///
/// # Errors
/// The socket cannot be opened.
pub(crate) async fn connect(state_dir: &Path) -> anyhow::Result<Option<Agent>> {
    let socket = state_dir.join(SOCKET);
    match UnixStream::connect(&socket).await {
        Ok(stream) => Ok(Some(Agent(stream))),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("connecting to {}", socket.display())),
    }
}

impl Agent {
    /// Sends this, and returns what it is answered with.
    ///
    /// # Errors
    /// The agent does not answer in time.
    pub(crate) async fn request(
        self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::builder().method(method).uri(path);
        let request = request.header(HOST, "localhost").body(Full::new(body))?;
        tokio::time::timeout(DEADLINE, exchange(self.0, request))
            .await
            .with_context(|| format!("the agent did not answer within {DEADLINE:?}"))?
            .context("asking the agent")
    }
}

async fn exchange(
    stream: UnixStream,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // The sender is dropped when it is done, which ends the connection.
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES);
        let body = body.collect().await.map_err(anyhow::Error::from_boxed)?;
        anyhow::Ok((status, body.to_bytes()))
    };
    let (answer, _) = tokio::join!(answer, connection);
    answer
}
