//! Waiting for a condition, under a limit.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::TryStreamExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;

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
/// If it is not within `limit`; the message holds its last state, and ends with a line that says what was waited for.
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
    let last = match &last {
        Some(object) => seen(object).context("show the object")?,
        None => "not there".to_owned(),
    };
    // Of a long output only the end may be kept.
    bail!("{name} is {last}\nwaited {limit:?} in vain for {name} until {what}")
}

/// Of an object what says how it is, not what was asked for.
fn seen<K: Resource + serde::Serialize>(object: &K) -> serde_json::Result<String> {
    let meta = object.meta();
    let all = serde_json::to_value(object)?;
    serde_json::to_string_pretty(&json!({
        "annotations": meta.annotations,
        "labels": meta.labels,
        "deletionTimestamp": meta.deletion_timestamp,
        "status": all["status"],
    }))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    #[test]
    fn an_object_shows_how_it_is_and_not_what_was_asked_for() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "app", "annotations": {"released": "yes"}},
            "spec": {"containers": [{"name": "app"}]},
            "status": {"phase": "Running"},
        }))
        .unwrap();
        let seen = seen(&pod).unwrap();
        assert!(
            seen.contains("Running") && seen.contains("released"),
            "{seen}"
        );
        assert!(!seen.contains("containers"), "{seen}");
    }
}
