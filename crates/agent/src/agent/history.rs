//! The index, as the agent uses it: never in the way of a release.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};
use trylatest_containerd::ImageRuntime;
use trylatest_core::image::ImageName;
use trylatest_core::record::{ImageRecord, LocalCopy, RolledBack, Try};
use trylatest_index::{Index, IndexError, OpenError, Opened};

use super::api::words;
use super::handover;
use super::metrics::Metrics;
use crate::clock;

/// How long a release waits until its try is on disk. A slower disk is broken, and the pod comes
/// first.
const RECORD_DEADLINE: Duration = Duration::from_secs(1);

/// After a write that failed or hung, releases do not wait for the disk for this long.
const REST: Duration = Duration::from_secs(30);

/// Most calls to the index at once. Each holds a thread as long as the disk hangs.
const CALLS_MAX: usize = 4;

/// The index; none if it cannot be used, in which case the agent runs without.
#[derive(Clone)]
pub(super) struct History {
    index: Option<Arc<Index>>,
    /// The state folder, in which the index is.
    folder: PathBuf,
    calls: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    rest_until: Option<Instant>,
}

impl History {
    /// Opens the index, or logs why the agent runs without it. True if the index was lost.
    pub(super) async fn open(path: &Path, metrics: Arc<Metrics>) -> (Self, bool) {
        let mut rebuilt = false;
        let open = || Index::open(path, clock::wall());
        let held = |error: &OpenError| matches!(error, OpenError::Locked { .. });
        let index = match handover::take("the index", open, held).await {
            Ok(Opened { index, recovered }) => {
                if let Some(recovered) = recovered {
                    rebuilt = true;
                    warn!(
                        moved_to = %recovered.moved_to.display(),
                        error = %recovered.why,
                        "the index was unreadable: it was moved aside and is being rebuilt"
                    );
                }
                Some(Arc::new(index))
            }
            Err(error @ OpenError::Newer { .. }) => {
                warn!(path = %path.display(), %error, "running without history; the index stays as it is");
                None
            }
            Err(error) => {
                warn!(path = %path.display(), %error, "running without history");
                None
            }
        };
        metrics.index.set_open(index.is_some());
        let bytes = index.as_ref().and_then(|index| index.size_bytes());
        let history = Self {
            index,
            folder: path.parent().unwrap_or(path).to_owned(),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            metrics,
            rest_until: None,
        };
        history.show_size(bytes);
        (history, rebuilt)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Records a try. Returns after the deadline at the latest; logs and counts a failure.
    pub(super) async fn record(&mut self, record: Try) {
        if self.rest_until.is_some_and(|until| Instant::now() < until) {
            self.metrics.index.failed();
            return;
        }
        let image = record.image.clone();
        let write = self.blocking(move |index| {
            index.record(&record)?;
            Ok::<_, IndexError>(index.size_bytes())
        });
        let failed = match timeout(RECORD_DEADLINE, write).await {
            Ok(Ok(bytes)) => return self.show_size(bytes.flatten()),
            Ok(Err(error)) => error,
            Err(_) => format!("no answer within {RECORD_DEADLINE:?}"),
        };
        self.rest_until = Some(Instant::now() + REST);
        self.metrics.index.failed();
        warn!(%image, error = failed, "a try could not be written to the index");
    }

    /// Records which names are pointed back to an earlier copy. Returns after the deadline at the latest; logs and
    /// counts a failure.
    pub(super) async fn set_rolled_back(&self, back: BTreeMap<ImageName, RolledBack>) {
        let write = self.blocking(move |index| index.set_rolled_back(&back));
        let failed = match timeout(RECORD_DEADLINE, write).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error,
            Err(_) => format!("no answer within {RECORD_DEADLINE:?}"),
        };
        self.metrics.index.failed();
        warn!(
            error = failed,
            "a rollback could not be written to the index"
        );
    }

    fn show_size(&self, bytes: Option<u64>) {
        if let Some(bytes) = bytes {
            self.metrics.index.set_bytes(bytes);
        }
    }

    /// All records.
    pub(super) async fn all(&self) -> Result<Vec<ImageRecord>, String> {
        if self.index.is_none() {
            return Err("the agent runs without history; its log says why".to_owned());
        }
        let read = self.blocking(|index| index.all(clock::wall()));
        read.await.map(Option::unwrap_or_default)
    }

    /// Fills the index again from what containerd holds, after it was lost.
    pub(super) async fn rebuild<R: ImageRuntime>(&self, runtime: &R) {
        match runtime.images().await {
            Ok(images) => {
                let images: Vec<_> = images
                    .into_iter()
                    // Every pull makes a name with a digest beside the tag's.
                    .filter(|local| !local.image.has_digest())
                    .filter_map(|local| {
                        let copy = LocalCopy {
                            digest: local.digest.parse().ok()?,
                            size_bytes: Some(local.size_bytes),
                        };
                        Some((local.image, copy))
                    })
                    .collect();
                let count = images.len();
                let seed = self.blocking(move |index| index.seed(&images, clock::wall()));
                match seed.await {
                    Ok(_) => info!(
                        images = count,
                        "the index is rebuilt from what containerd holds"
                    ),
                    Err(error) => warn!(error, "the index could not be rebuilt"),
                }
            }
            Err(error) => warn!(%error, "the index could not be rebuilt"),
        }
    }

    /// Forgets images that are not on the node and were not tried for a long time. Returns the images
    /// that are left; without an index, those on the node.
    pub(super) async fn prune(&self, present: Vec<ImageName>) -> Option<Vec<ImageName>> {
        if self.index.is_none() {
            return Some(present);
        }
        let pruned = self.blocking(move |index| {
            index.prune(clock::wall(), &present)?;
            index.all(clock::wall())
        });
        match pruned.await {
            Ok(left) => left.map(|left| left.into_iter().map(|record| record.image).collect()),
            Err(error) => {
                self.metrics.index.failed();
                warn!(error, "the index could not be cleaned up");
                None
            }
        }
    }

    /// Runs on a thread that may block. None without an index. A call that has begun continues even if
    /// the caller no longer waits for it.
    fn blocking<T, E>(
        &self,
        work: impl FnOnce(&Index) -> Result<T, E> + Send + 'static,
    ) -> BoxFuture<'static, Result<Option<T>, String>>
    where
        T: Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        let Some(index) = self.index.clone() else {
            return Box::pin(std::future::ready(Ok(None)));
        };
        let calls = Arc::clone(&self.calls);
        Box::pin(async move {
            let permit = timeout(RECORD_DEADLINE, calls.acquire_owned()).await;
            let Ok(Ok(permit)) = permit else {
                return Err(format!("{CALLS_MAX} earlier calls hang"));
            };
            let done = tokio::task::spawn_blocking(move || {
                let done = work(&index).map_err(|e| words(&e));
                drop((permit, index));
                done
            });
            match done.await {
                Ok(done) => done.map(Some),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn a_disk_that_hangs_takes_a_few_threads_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new("test").unwrap());
        let (history, _) = History::open(&dir.path().join("index"), metrics).await;
        let (heal, healed) = mpsc::channel::<()>();
        let healed = Arc::new(std::sync::Mutex::new(healed));
        let mut hung = JoinSet::new();
        for _ in 0..CALLS_MAX {
            let healed = Arc::clone(&healed);
            hung.spawn(history.blocking(move |index| {
                // Ends when the sender goes.
                let _ = healed.lock().map(|healed| healed.recv());
                index.all(clock::wall())
            }));
        }
        while history.calls.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = history.all().await.unwrap_err();
        assert!(refused.contains("earlier calls hang"), "{refused}");
        drop(heal);
        for call in hung.join_all().await {
            call.unwrap();
        }
        assert_eq!(history.all().await.unwrap(), []);
    }
}
