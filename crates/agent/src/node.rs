//! Commands for people that work on the node's containerd.

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{anyhow, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use trylatest_containerd::{CallObserver, Containerd, ContainerdOptions, RuntimeError};

use crate::agent::disk;
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
                written: disk::written,
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
                said = command(&node, &stop) => said.map_err(with_what_to_do),
                // What was half done is in the journal.
                () = aborted => bail!(
                    "ended at once by a second signal; what was half done is undone when the agent starts next, or by the next \
                     rollback, repair or pull of the image"
                ),
            }
        })
}

/// A person has called this command, maybe not as root, on a machine without containerd, or with it elsewhere.
fn with_what_to_do(error: anyhow::Error) -> anyhow::Error {
    let denied = |cause: &(dyn std::error::Error + 'static)| {
        let cause = cause.downcast_ref::<std::io::Error>();
        cause.is_some_and(|cause| cause.kind() == ErrorKind::PermissionDenied)
    };
    if error.chain().any(denied) {
        return anyhow!("{error:#}; run this as root");
    }
    match error.downcast_ref() {
        Some(RuntimeError::Unreachable { .. }) => anyhow!(
            "{error:#}; run this as root on a node whose containerd runs, or name its socket with --containerd-socket"
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn who_is_not_root_is_told_so() {
        let denied = Err::<(), _>(std::io::Error::from(ErrorKind::PermissionDenied));
        let error = denied.context("locking a file").unwrap_err();
        let message = with_what_to_do(error).to_string();
        assert_eq!(
            message,
            "locking a file: permission denied; run this as root"
        );
    }

    #[test]
    fn without_containerd_the_message_names_the_socket_and_the_flag() {
        let line = [
            "trylatest",
            "rollback",
            "app:1",
            "--containerd-socket=/none.sock",
        ];
        let Command::Rollback(args) = Cli::parse_from(line).command else {
            panic!("another command")
        };
        let asked = on_containerd(args.containerd, Duration::from_secs(5), async |node, _| {
            trylatest_containerd::ImageRuntime::version(node).await?;
            Ok(())
        });
        let message = format!("{:#}", asked.unwrap_err());
        assert!(message.contains("/none.sock: No such file"), "{message}");
        assert!(message.contains("--containerd-socket"), "{message}");
    }
}
