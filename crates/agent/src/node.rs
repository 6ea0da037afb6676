//! Commands for people that work on the node's containerd.

use std::time::Duration;

use trylatest_containerd::{CallObserver, Containerd, ContainerdOptions};

use crate::args::ContainerdArgs;

/// Runs a command, and prints what it says. Each call to containerd but pulls may take as long as the deadline.
///
/// # Errors
/// Those of the command.
pub(crate) fn run_on_containerd(
    args: ContainerdArgs,
    call_timeout: Duration,
    command: impl AsyncFnOnce(&Containerd) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let ContainerdArgs {
        containerd_socket,
        snapshotter,
    } = args;
    let said = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let node = Containerd::new(ContainerdOptions {
                socket: containerd_socket,
                snapshotter,
                call_timeout,
                observer: CallObserver::default(),
            });
            command(&node).await
        })?;
    crate::printed(format!("{said}\n").as_bytes())
}
