//! A request to the registry itself, over a connection of its own.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The connection's own work, none once it is done. Polled along with what waits for it, so no
/// task is needed; its error also reaches who waits.
struct Work(Option<BoxFuture<'static, ()>>);

impl Work {
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(work) = &mut self.0
            && work.poll_unpin(cx).is_ready()
        {
            self.0 = None;
        }
    }
}

/// A body together with the connection from which it comes.
pub(super) struct Relayed {
    work: Work,
    body: Incoming,
}

impl Body for Relayed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.work.poll(cx);
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Sends a request and waits for the head of the answer.
pub(super) async fn send<B>(
    address: SocketAddr,
    request: Request<B>,
) -> anyhow::Result<Response<Relayed>>
where
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let stream = TcpStream::connect(address)
        .await
        .context("connect to the registry")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut work = Work(Some(connection.map(drop).boxed()));
    let mut answer = Box::pin(sender.send_request(request));
    let answer = poll_fn(|cx| {
        work.poll(cx);
        answer.poll_unpin(cx)
    });
    let answer = answer.await.context("ask the registry")?;
    Ok(answer.map(|body| Relayed { work, body }))
}
