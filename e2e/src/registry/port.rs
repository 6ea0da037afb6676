//! One loopback port that can be open, closed, or silent.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

/// More than any test opens at once.
const BACKLOG: u32 = 512;

/// How long a connection to a silent port is waited for before it counts as unanswered. Loopback
/// answers within microseconds.
const UNANSWERED: Duration = Duration::from_millis(100);

/// How long a port may be taken by the start of a program, and how often that is looked at.
const TAKEN: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Connections that fill a backlog of 0. The kernel takes one; more would mean that it counts
/// otherwise than thought.
const FILLERS_MAX: usize = 8;

/// What a port does with a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Answers.
    Open,
    /// Refuses.
    Closed,
    /// Does not answer.
    Silent,
}

/// The port, in one of its modes.
#[derive(Debug)]
pub(super) struct Port {
    address: SocketAddr,
    state: State,
}

#[derive(Debug)]
enum State {
    Open(TcpListener),
    /// Bound but not listening: the kernel refuses, and nobody else can take the port meanwhile.
    /// None if it could not be bound, then the next switch tries again.
    Closed(Option<TcpSocket>),
    /// A listener with a full backlog, that nobody accepts from, and the connections that fill it.
    Silent(TcpListener, Vec<TcpStream>),
}

impl Port {
    /// Opens a port of 127.0.0.1; 0 is a free one.
    pub(super) fn open(port: u16) -> io::Result<Self> {
        let socket = if port == 0 { bind_free()? } else { bind(port)? };
        let address = socket.local_addr()?;
        let state = State::Open(socket.listen(BACKLOG)?);
        Ok(Self { address, state })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection; never, unless the port is open. Cancel-safe.
    pub(super) async fn accept(&self) -> TcpStream {
        loop {
            let State::Open(listener) = &self.state else {
                return std::future::pending().await;
            };
            match listener.accept().await {
                Ok((stream, _)) => return stream,
                // The client is gone already, or file descriptors ran out: another will come.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    /// Changes the mode; it is in force when this returns.
    pub(super) async fn switch(&mut self, mode: Mode) -> io::Result<()> {
        let before = std::mem::replace(&mut self.state, State::Closed(None));
        self.state = match mode {
            Mode::Open => State::Open(self.listener(before)?),
            Mode::Closed => {
                drop(before);
                State::Closed(Some(bind_again(self.address.port()).await?))
            }
            Mode::Silent => {
                let listener = self.listener(before)?;
                rustix::net::listen(&listener, 0)?;
                let fillers = fill(self.address).await?;
                State::Silent(listener, fillers)
            }
        };
        Ok(())
    }

    fn listener(&self, state: State) -> io::Result<TcpListener> {
        match state {
            State::Open(listener) => Ok(listener),
            State::Closed(Some(socket)) => socket.listen(BACKLOG),
            State::Closed(None) => bind(self.address.port())?.listen(BACKLOG),
            State::Silent(listener, fillers) => {
                // A second listen(2) only changes the length of the backlog.
                rustix::net::listen(&listener, BACKLOG.cast_signed())?;
                drop(fillers);
                Ok(listener)
            }
        }
    }
}

/// Binds a port whose listener was closed just now. A program that is being started meanwhile has that, too, until it
/// runs.
async fn bind_again(port: u16) -> io::Result<TcpSocket> {
    let end = Instant::now() + TAKEN;
    loop {
        match bind(port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                sleep(LOOK_EVERY).await;
            }
            result => return result,
        }
    }
}

/// A port of 127.0.0.1 that takes no connection: a SYN gets no answer.
#[derive(Debug)]
pub struct SilentPort(Port);

impl SilentPort {
    /// One that was free.
    ///
    /// # Errors
    /// No port is free.
    pub async fn new() -> io::Result<Self> {
        let mut port = Port::open(0)?;
        port.switch(Mode::Silent).await?;
        Ok(Self(port))
    }

    /// Where it does not answer.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }
}

/// A port of 127.0.0.1 that was free a moment ago.
pub(super) fn free_port() -> io::Result<u16> {
    Ok(bind_free()?.local_addr()?.port())
}

/// Binds a free port below the range that the kernel takes for outgoing connections: a client that
/// tries a closed port of that range again and again may at last be connected to itself.
fn bind_free() -> io::Result<TcpSocket> {
    const ATTEMPTS: usize = 100;
    let mut tried = (0..ATTEMPTS).map(|_| bind(rand::random_range(20_000..30_000)));
    tried
        .find_map(Result::ok)
        .ok_or_else(|| io::Error::other("found no free port"))
}

fn bind(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    // Connections that were just closed keep the port busy otherwise.
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    Ok(socket)
}

/// Connects until a connection is no longer answered.
async fn fill(address: SocketAddr) -> io::Result<Vec<TcpStream>> {
    let mut fillers = Vec::new();
    while fillers.len() < FILLERS_MAX {
        match timeout(UNANSWERED, TcpStream::connect(address)).await {
            Ok(filler) => fillers.push(filler?),
            Err(_) => return Ok(fillers),
        }
    }
    Err(io::Error::other(
        "the port answers although its backlog is full",
    ))
}
