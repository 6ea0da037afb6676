//! Waiting for a condition, under a limit.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::TryStreamExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// How often a condition is looked at that cannot be watched.
const AGAIN: Duration = Duration::from_millis(20);

/// Looks again and again until `look` finds something.
///
/// # Errors
/// What `look` fails with, or that it has found nothing within `limit`.
///
/// # Cancel safety
/// Dropping it drops the look in progress.
pub async fn until<T, F>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let found = async {
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    match tokio::time::timeout(limit, found).await {
        Ok(found) => found,
        Err(_) => bail!("waited {limit:?} in vain until {what}"),
    }
}

/// Watches one object until it is as wanted, and returns it. It need not exist yet.
///
/// # Errors
/// If it is not within `limit`; the message holds its last state.
///
/// # Cancel safety
/// Dropping it ends the watch.
pub async fn object<K>(
    api: Api<K>,
    name: &str,
    what: &str,
    limit: Duration,
    wanted: impl Fn(&K) -> bool,
) -> anyhow::Result<K>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut last = None;
    let found = async {
        let mut stream = std::pin::pin!(watcher(api, config).default_backoff().applied_objects());
        loop {
            match stream.try_next().await {
                Ok(Some(object)) if wanted(&object) => return Ok(object),
                Ok(Some(object)) => last = Some(object),
                Ok(None) => bail!("the watch of {name} ended"),
                // The watcher starts again by itself, after a pause.
                Err(_) => {}
            }
        }
    };
    if let Ok(found) = tokio::time::timeout(limit, found).await {
        return found;
    }
    if let Some(object) = &mut last {
        // Who set which field is most of the text, and of no help here.
        object.meta_mut().managed_fields = None;
    }
    let last = last.as_ref().map(serde_json::to_string_pretty).transpose();
    let last = last.context("show the object")?;
    let last = last.as_deref().unwrap_or("not there");
    bail!("waited {limit:?} in vain until {what}; {name} is {last}")
}
