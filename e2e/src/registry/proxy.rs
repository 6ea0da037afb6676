//! The fault proxy: stands before the registry and does to each request what the test says.

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, ensure};
use hyper::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::access::{Access, Doors, Gatekeeper};
use super::answer::{ResetConnection, answer};
use super::fault::{Fault, Met, Rule, Rules};
use super::port::{Mode, Port};
use super::requests::{Asked, Requests};

/// What the tests and the connections share.
pub(super) struct Shared {
    upstream: SocketAddr,
    rules: Mutex<Rules>,
    doors: Mutex<Doors>,
    requests: watch::Sender<Requests>,
}

impl Shared {
    pub(super) fn upstream(&self) -> SocketAddr {
        self.upstream
    }

    pub(super) fn record(&self, asked: &Asked) {
        self.requests.send_modify(|requests| requests.record(asked));
    }

    pub(super) fn take(&self, asked: &Asked, meets: impl Fn(&Fault) -> bool) -> Option<Met> {
        self.rules().take(asked, meets)
    }

    pub(super) fn meet(&self, asked: &Asked, headers: &HeaderMap) -> Gatekeeper {
        self.doors().meet(asked, headers)
    }

    fn doors(&self) -> MutexGuard<'_, Doors> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        // The lock is held for plain assignments only, which cannot leave half a change.
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A proxy with faults. Dropping it closes the port and every connection.
///
/// A fault meets every request from the moment its call returns, also on connections that were
/// open before. What met a fault earlier: an unanswered request and a stalled download stay so
/// until the client gives up or the port is closed; a slow download and a delayed answer go on at
/// full speed when their fault ends.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    switches: mpsc::Sender<Switch>,
    /// The one task, which owns the tasks of all connections.
    _task: JoinSet<()>,
}

impl FaultProxy {
    /// Listens on `port` of 127.0.0.1 (0: a free one) for what listens at `upstream`.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(port: u16, upstream: SocketAddr) -> anyhow::Result<Self> {
        let port = Port::open(port).with_context(|| format!("listen on 127.0.0.1:{port}"))?;
        let address = port.address();
        let shared = Arc::new(Shared {
            upstream,
            rules: Mutex::default(),
            doors: Mutex::default(),
            requests: watch::Sender::default(),
        });
        let (switches, inbox) = mpsc::channel(1);
        let mut task = JoinSet::new();
        task.spawn(serve(port, inbox, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            switches,
            _task: task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The first part of image names, `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The name that an image has here.
    pub fn image(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.host())
    }

    /// Lets the whole registry fail, in place of an earlier fault of the whole registry. Faults of
    /// single repositories stay, and go before this one unless this one is the port's.
    ///
    /// # Errors
    /// The port cannot be closed, silenced or opened again; or the fault is the
    /// port's and for some requests only.
    pub async fn fault(&self, rule: impl Into<Rule>) -> anyhow::Result<()> {
        let rule = rule.into();
        let mode = match &rule.fault {
            Fault::Closed => Mode::Closed,
            Fault::Blackhole => Mode::Silent,
            _ => Mode::Open,
        };
        ensure!(
            !(rule.fault.is_of_port() && rule.is_picky()),
            "\"{}\" meets no requests that could be told apart",
            rule.fault
        );
        let what = rule.fault.to_string();
        self.shared.rules().set(Some(rule));
        self.switch(mode).await.context(what)
    }

    /// Cuts every connection: whoever still waits for an answer gets none. The fault of the whole
    /// registry is over, and nothing can connect until [`FaultProxy::heal`].
    ///
    /// # Errors
    /// The port cannot be closed.
    pub async fn hang_up(&self) -> anyhow::Result<()> {
        self.fault(Fault::Closed).await
    }

    /// Ends the fault of the whole registry: the next request gets through. Faults of single
    /// repositories stay.
    ///
    /// # Errors
    /// The port cannot be opened again.
    pub async fn heal(&self) -> anyhow::Result<()> {
        self.shared.rules().set(None);
        self.switch(Mode::Open).await.context("heal")
    }

    /// Ends every fault but the port's: of a test that failed, the kubelet may go on asking for images.
    pub fn end_faults(&self) {
        self.shared.rules().clear();
    }

    /// Lets one repository fail, in place of an earlier fault of it.
    ///
    /// # Errors
    /// The fault is the port's, which has no repositories.
    pub fn fault_on(&self, repository: &str, rule: impl Into<Rule>) -> anyhow::Result<()> {
        let rule = rule.into();
        ensure!(
            !rule.fault.is_of_port(),
            "\"{}\" is for the whole registry, not for {repository} alone",
            rule.fault
        );
        self.shared.rules().set_on(repository, Some(rule));
        Ok(())
    }

    /// Ends the fault of one repository; one of the whole registry then meets it again.
    pub fn heal_on(&self, repository: &str) {
        self.shared.rules().set_on(repository, None);
    }

    /// Gives a repository's images only to these users from now on; to everybody if there are none. Faults
    /// go before it.
    pub fn protect(&self, repository: &str, access: impl Into<Option<Access>>) {
        self.shared.doors().set(repository, access.into());
    }

    /// The requests since the start, those that met a fault among them. Compare two with
    /// [`Requests::since`].
    pub fn requests(&self) -> Requests {
        self.shared.requests.borrow().clone()
    }

    /// Waits until the counts are as wanted, without a deadline. Cancel-safe.
    pub async fn wait_until(&self, wanted: impl FnMut(&Requests) -> bool) {
        let mut requests = self.shared.requests.subscribe();
        // Fails only when the sender is gone, and `self` holds it.
        let _ = requests.wait_for(wanted).await;
    }

    async fn switch(&self, mode: Mode) -> anyhow::Result<()> {
        const ENDED: &str = "the proxy's task has ended";
        let (done, outcome) = oneshot::channel();
        self.switches
            .send(Switch { mode, done })
            .await
            .context(ENDED)?;
        Ok(outcome.await.context(ENDED)??)
    }
}

/// An order to the port, and where its outcome is awaited.
struct Switch {
    mode: Mode,
    done: oneshot::Sender<io::Result<()>>,
}

/// Accepts, and switches the port, until the proxy is dropped.
async fn serve(mut port: Port, mut inbox: mpsc::Receiver<Switch>, shared: Arc<Shared>) {
    let frozen = watch::Sender::new(false);
    let mut connections = JoinSet::new();
    loop {
        // All three are cancel-safe.
        tokio::select! {
            switch = inbox.recv() => {
                let Some(Switch { mode, done }) = switch else { return };
                frozen.send_replace(mode == Mode::Silent);
                if mode == Mode::Closed {
                    connections.shutdown().await;
                }
                let outcome = port.switch(mode).await;
                // Who asked may have given up; the switch is made all the same.
                let _ = done.send(outcome);
            }
            Some(_) = connections.join_next() => {}
            stream = port.accept() => {
                connections.spawn(connection(stream, Arc::clone(&shared), frozen.subscribe()));
            }
        }
    }
}

/// Serves one connection to its end. While frozen it is held and nothing moves on it.
async fn connection(stream: TcpStream, shared: Arc<Shared>, mut frozen: watch::Receiver<bool>) {
    let service = service_fn(|request| Box::pin(answer(Arc::clone(&shared), request)));
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let served = loop {
        // Cancel-safe: polling the connection again goes on where it was.
        tokio::select! {
            biased;
            Ok(_) = frozen.wait_for(|frozen| *frozen) => {}
            served = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break served,
        }
        if frozen.wait_for(|frozen| !frozen).await.is_err() {
            return;
        }
    };
    let stream = connection.into_parts().io.into_inner();
    let cause = served.as_ref().err().and_then(hyper::Error::source);
    if cause.is_some_and(<dyn Error>::is::<ResetConnection>) {
        // Without lingering, close(2) sends RST. If it cannot be set, the client sees a close.
        let _ = stream.set_zero_linger();
    }
}
