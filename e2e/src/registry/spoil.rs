//! Bodies that stall, crawl, break off or lie.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use super::fault::{Fault, Met};
use super::upstream::Relayed;

/// The body of every answer of the proxy.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// How often a slow body moves on.
const TICKS_PER_SECOND: u64 = 20;
const TICK: Duration = Duration::from_millis(1000 / TICKS_PER_SECOND);

/// The body as the registry sends it.
pub(super) fn intact(body: Relayed) -> Body {
    body.map_err(io::Error::other).boxed_unsync()
}

/// The body of `length` bytes with what the fault does to it.
pub(super) fn spoiled(body: Relayed, met: Met, length: u64) -> Body {
    match met.fault {
        Fault::CorruptBlob | Fault::CorruptManifest => body
            .map_frame(|frame| frame.map_data(|data| data.iter().map(|byte| !byte).collect()))
            .map_err(io::Error::other)
            .boxed_unsync(),
        Fault::StalledBlob { after_bytes } => paced(body, Pace::until(after_bytes, End::Stall)),
        Fault::CutBlob => paced(body, Pace::until(length / 2, End::Cut)),
        Fault::SlowBlob { bytes_per_second } => {
            let per_tick = (bytes_per_second / TICKS_PER_SECOND).max(1);
            paced(body, Pace::Slow { per_tick, met })
        }
        _ => intact(body),
    }
}

/// How the bytes of a body are let through.
enum Pace {
    /// Some at once, then the end.
    Until { left: u64, end: End },
    /// A few at a time, until the fault is ended.
    Slow { per_tick: u64, met: Met },
}

/// What comes after the last byte that is let through.
#[derive(Clone, Copy)]
enum End {
    Stall,
    Cut,
}

impl Pace {
    fn until(left: u64, end: End) -> Self {
        Self::Until { left, end }
    }

    /// Waits until some of `available` bytes may pass, and says how many.
    async fn allow(&mut self, available: u64) -> io::Result<u64> {
        match self {
            Self::Until {
                left: 0,
                end: End::Stall,
            } => std::future::pending().await,
            Self::Until {
                left: 0,
                end: End::Cut,
            } => {
                // Lets what came before go out first.
                tokio::task::yield_now().await;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Self::Until { left, .. } => {
                let allowed = available.min(*left);
                *left -= allowed;
                Ok(allowed)
            }
            Self::Slow { per_tick, met } => {
                let waited = tokio::time::timeout(TICK, met.ended.cancelled()).await;
                Ok(if waited.is_ok() {
                    available
                } else {
                    available.min(*per_tick)
                })
            }
        }
    }
}

/// A body on its way.
struct Flow {
    body: Relayed,
    /// What has come from the registry and was not let through yet.
    held: Bytes,
    pace: Pace,
}

fn paced(body: Relayed, pace: Pace) -> Body {
    let flow = Flow {
        body,
        held: Bytes::new(),
        pace,
    };
    let frames = stream::unfold(Some(flow), async |flow| {
        let mut flow = flow?;
        match flow.next().await {
            Ok(Some(data)) => Some((Ok(Frame::data(data)), Some(flow))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    BodyExt::boxed_unsync(StreamBody::new(frames))
}

impl Flow {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while self.held.is_empty() {
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    let frame = frame.map_err(io::Error::other)?;
                    self.held = frame.into_data().unwrap_or_default();
                }
            }
        }
        let allowed = self.pace.allow(self.held.len() as u64).await?;
        let allowed = usize::try_from(allowed).map_or(self.held.len(), |n| n.min(self.held.len()));
        Ok(Some(self.held.split_to(allowed)))
    }
}
