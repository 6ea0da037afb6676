//! Taking over what the previous agent may still hold: the port and the index.
//!
//! A DaemonSet's new pod can start while the old one drains, or, after a forced deletion, before
//! the kubelet has ended it. If the new agent gave up at once, the node would have no agent during the
//! kubelet's growing pauses between restarts.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::info;

/// Longer than an agent's own end takes.
const PATIENCE: Duration = Duration::from_secs(12);

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Takes `what`; if it `is_held`, waits for it up to a deadline.
///
/// # Errors
/// That of the last attempt.
pub(super) async fn take<T, E: std::fmt::Display>(
    what: &str,
    mut open: impl FnMut() -> Result<T, E>,
    is_held: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let until = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        match open() {
            Err(error) if is_held(&error) && Instant::now() < until => {
                if !told {
                    info!(%error, "waiting for {what}: the previous agent may still be stopping");
                    told = true;
                }
                sleep(LOOK_EVERY).await;
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_held_is_waited_for() {
        let left = Cell::new(3);
        let open = || match left.get() {
            0 => Ok("taken"),
            n => {
                left.set(n - 1);
                Err("held")
            }
        };
        assert_eq!(take("it", open, |_| true).await, Ok("taken"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_and_other_errors_are_told_at_once() {
        let start = Instant::now();
        let held = take("it", || Err::<(), _>("held"), |_| true).await;
        assert_eq!(held, Err("held"));
        assert!(start.elapsed() >= PATIENCE);

        let start = Instant::now();
        let broken = take("it", || Err::<(), _>("broken"), |_| false).await;
        assert_eq!(broken, Err("broken"));
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
