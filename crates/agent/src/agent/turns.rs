//! How many tries run at once: a node with hundreds of images asks its registries in turn after a
//! reboot, and no slow download keeps the others from beginning.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Most tries at once. containerd bounds the downloads.
const TRIES_MAX: usize = 64;

/// How long a try counts against [`TRIES_MAX`].
const TURN: Duration = Duration::from_secs(10);

/// Shared by all tries of the node.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Semaphore>);

impl Turns {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(TRIES_MAX)))
    }

    /// Runs `work` when it is its turn.
    ///
    /// # Cancel safety
    /// As `work`.
    pub(super) async fn wait_and_run<F: Future>(&self, work: impl FnOnce() -> F) -> F::Output {
        // The semaphore is never closed; without a permit the try would run all the same.
        let permit = self.0.acquire().await;
        // On the heap, and only now: what waits is many, and should be small.
        let mut work = Box::pin(work());
        if let Ok(done) = timeout(TURN, &mut work).await {
            return done;
        }
        drop(permit);
        work.await
    }
}

#[cfg(test)]
mod tests {
    use futures::future::{join_all, pending, select};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn slow_downloads_let_others_begin() {
        let turns = Turns::new();
        let slow = join_all((0..TRIES_MAX).map(|_| turns.wait_and_run(pending::<()>)));
        let start = Instant::now();
        let next = turns.wait_and_run(|| async { start.elapsed() });
        select(slow, std::pin::pin!(next)).await;
        assert_eq!(start.elapsed(), TURN);
    }

    #[tokio::test(start_paused = true)]
    async fn short_tries_wait_for_nobody_but_the_bound() {
        let turns = Turns::new();
        let second = async || tokio::time::sleep(Duration::from_secs(1)).await;
        let start = Instant::now();
        join_all((0..=TRIES_MAX).map(|_| turns.wait_and_run(second))).await;
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }
}
