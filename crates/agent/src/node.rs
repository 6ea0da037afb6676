//! Commands for people that work on the node's containerd.

use std::time::Duration;

use anyhow::bail;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use trylatest_containerd::{CallObserver, Containerd, ContainerdOptions};

use crate::args::ContainerdArgs;

/// Runs a command, and prints what it says. Each call to containerd but pulls may take as long as the deadline. The
/// first SIGINT or SIGTERM tells the command by the token: it ends in order, and says how. A second one ends it at
/// once.
///
/// # Errors
/// Those of the command, or a second signal.
pub(crate) fn run_on_containerd(
    args: ContainerdArgs,
    call_timeout: Duration,
    command: impl AsyncFnOnce(&Containerd, &CancellationToken) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let said = on_containerd(args, call_timeout, command)?;
    crate::printed(format!("{said}\n").as_bytes())
}

/// The same, and returns what comes of it.
///
/// # Errors
/// Those of the command.
pub(crate) fn on_containerd<T>(
    args: ContainerdArgs,
    call_timeout: Duration,
    command: impl AsyncFnOnce(&Containerd, &CancellationToken) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let ContainerdArgs {
        containerd_socket,
        snapshotter,
    } = args;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let node = Containerd::new(ContainerdOptions {
                socket: containerd_socket,
                snapshotter,
                call_timeout,
                observer: CallObserver::default(),
            });
            let stop = CancellationToken::new();
            let signals = (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            );
            let aborted = async {
                let (mut interrupt, mut terminate) = signals;
                for is_second in [false, true] {
                    // Cancel-safe: a signal that came is not waited for again.
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    if !is_second {
                        eprintln!("trylatest: ending in order; a second signal ends it at once");
                        stop.cancel();
                    }
                }
            };
            tokio::select! {
                said = command(&node, &stop) => said,
                // What was half done is in the journal.
                () = aborted => bail!(
                    "ended at once by a second signal; what was half done is undone when the agent starts next, or by the next \
                     rollback, repair or pull of the image"
                ),
            }
        })
}
