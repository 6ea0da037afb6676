//! What moves while an image is pulled: downloads in the content store, layers being unpacked.
//!
//! containerd does not say which pull a download belongs to. But it labels each manifest with the
//! repository that it came from as soon as it has it, and the manifest names its layers; so a
//! download is attributed by its digest. Before the manifest is there, nothing can be attributed, but
//! almost nothing can have moved either.
//!
//! Downloads move in steps of 1 MiB per layer, because containerd writes no less at a time (measured
//! on 1.6 and 2.4): a link that delivers less than that before a deadline looks stalled.
//!
//! Pulls that run at the same time share one look at containerd: separate looks took more of
//! containerd's time than the pulls themselves (30 pulls on containerd 2.4.2: 10.4 s of processor
//! time, 4.8 s without any look). For the same reason no filter here has a pattern: containerd compiles
//! it again for each entry that it compares.
//!
//! Two more limits follow. Tags of one repository that are pulled at the same time share their movement;
//! so do repositories of one name on one host at different ports, because the label leaves the port
//! out (seen on 1.6 and 2.4).

mod shown;

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use containerd_client::services::v1::Info;
use containerd_client::services::v1::snapshots::UsageRequest;
use futures::future::try_join_all;
use prost_types::Timestamp;
use tokio::time::Instant;
use trylatest_core::image::ImageName;

pub(crate) use self::shown::is_unpacking;
use self::shown::{Download, Place, Shown};
use crate::containerd::{Containerd, locked};
use crate::content::{NoDocument, read_json};
use crate::manifest::{Config, Descriptor, Document, Manifest};
use crate::proof;
use crate::runtime::{Movement, RuntimeError};

/// How many manifests and chains are remembered by digest from one look to the next.
const REMEMBERED: usize = 128;

/// How many of the newest manifests of a repository are checked: the one being pulled is among them,
/// because containerd labels it again with each pull.
const NEWEST: usize = 8;

/// For how many looks in a row a download that is whole but not committed counts as movement: a
/// minute, at the agent's four looks a second. One that is left over would stay so for ever.
const WRITING_OUT_MAX: u64 = 240;

/// For how long a layer that has grown is taken to grow while anything is written to its file system. If it hangs, that
/// is noticed so much later.
const MEASURED_FOR: Duration = Duration::from_secs(60);

/// How long a look is shared: less than the time between two looks of one pull.
const SHARED_FOR: Duration = Duration::from_millis(200);

/// What is known about running pulls. It only helps; movement is always read from containerd.
#[derive(Debug)]
pub(crate) struct Progress {
    /// See [`crate::ContainerdOptions`].
    written: fn() -> Option<u64>,
    running: Arc<Mutex<HashMap<ImageName, Seen>>>,
    manifests: Mutex<HashMap<String, Arc<Manifest>>>,
    chains: Mutex<HashMap<String, Arc<Vec<String>>>>,
    /// What was last measured of layers that are being unpacked, by the key of the snapshot.
    measured: Mutex<HashMap<String, Measured>>,
    /// The last look. A caller that comes during a look waits for it.
    shown: tokio::sync::Mutex<Option<Arc<Shown>>>,
}

/// Forgets a pull when it ends or is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    image: ImageName,
    running: Arc<Mutex<HashMap<ImageName, Seen>>>,
}

/// What earlier looks at a running pull have shown.
#[derive(Debug, Default)]
struct Seen {
    /// Digest of the manifest that moves.
    manifest: Option<String>,
    /// Bytes of it.
    bytes: u64,
    /// Whether they have grown from one look to another: then this pull downloads, and the bytes are not
    /// left over from an earlier one. If they shrink, that says nothing about the registry: containerd
    /// drops what is left over and starts again.
    downloads: bool,
    /// Looks since they last changed at which nothing was left but to write it out.
    writing_out: u64,
}

impl Seen {
    /// Takes a look into account. A download that is whole but not yet committed is being written to the
    /// disk. Nothing measures that, and it may take longer than any deadline, so it counts as
    /// movement.
    fn look(&mut self, chosen: &Candidate, bytes: u64) {
        let same = self.manifest.as_ref() == Some(&chosen.digest);
        self.downloads |= same && bytes > self.bytes;
        if bytes != self.bytes {
            self.writing_out = 0;
        }
        if self.downloads && chosen.writing_out && self.writing_out < WRITING_OUT_MAX {
            self.writing_out += 1;
        }
        self.bytes = bytes;
        if !same {
            self.manifest = Some(chosen.digest.clone());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        locked(&self.running).remove(&self.image);
    }
}

/// A manifest of the repository, and which parts of it move.
struct Candidate {
    digest: String,
    updated: (i64, i32),
    manifest: Arc<Manifest>,
    /// Bytes of it in the content store, by digest: whole blobs and running downloads.
    received: BTreeMap<String, u64>,
    /// What tells how far unpacking is, by the key of the snapshot it goes into.
    unpacking: BTreeMap<String, Unpacked>,
    downloading: bool,
    /// Some download is whole, but not committed.
    writing_out: bool,
}

/// How far the unpacking of a layer is.
#[derive(Hash)]
enum Unpacked {
    /// It has grown between the last two times it was measured, and since the look before something was written to the
    /// file system.
    Written(u64),
    /// The size in bytes, as containerd adds it up.
    Size(i64),
}

/// The size of what was unpacked of a layer.
#[derive(Clone, Copy, Debug)]
struct Measured {
    size: i64,
    at: Instant,
    /// Whether it was another at the time before. What a containerd that was killed has left behind never is.
    grows: bool,
}

impl Measured {
    fn after(size: i64, at: Instant, before: Option<&Self>) -> Self {
        let grows = before.is_some_and(|before| before.size != size);
        Self { size, at, grows }
    }

    /// Whether a change of the file system is taken for one of this layer.
    fn stands_for_it(&self, now: Instant) -> bool {
        self.grows && now < self.at + MEASURED_FOR
    }
}

impl Candidate {
    fn moves(&self) -> bool {
        self.downloading || !self.unpacking.is_empty()
    }
}

impl Progress {
    /// Nothing runs.
    pub(crate) fn new(written: fn() -> Option<u64>) -> Self {
        Self {
            written,
            running: Arc::default(),
            manifests: Mutex::default(),
            chains: Mutex::default(),
            measured: Mutex::default(),
            shown: tokio::sync::Mutex::default(),
        }
    }

    /// A pull begins; it ends when the answer is dropped.
    pub(crate) fn begin(&self, image: &ImageName) -> Running {
        locked(&self.running).insert(image.clone(), Seen::default());
        Running {
            image: image.clone(),
            running: Arc::clone(&self.running),
        }
    }

    /// See [`crate::ImageRuntime::movement`].
    pub(crate) async fn movement(
        &self,
        node: &Containerd,
        image: &ImageName,
    ) -> Result<Movement, RuntimeError> {
        let shown = self.shown(node).await?;
        let remembered = locked(&self.running)
            .get(image)
            .and_then(|seen| seen.manifest.clone());
        let looks = manifests_of(&shown.manifests, image)
            .into_iter()
            .map(|info| self.look(node, info, &shown, remembered.as_deref()));
        let candidates: Vec<Candidate> = try_join_all(looks).await?.into_iter().flatten().collect();

        let mut mark = DefaultHasher::new();
        for candidate in candidates.iter().filter(|candidate| candidate.moves()) {
            candidate.received.hash(&mut mark);
            candidate.unpacking.hash(&mut mark);
        }
        let mut running = locked(&self.running);
        let seen = running.get_mut(image);
        let chosen = candidates
            .iter()
            .filter(|candidate| candidate.moves() || remembered.as_ref() == Some(&candidate.digest))
            .max_by_key(|candidate| candidate.updated);
        let Some(chosen) = chosen else {
            let place = shown.place(None);
            return Ok(Movement {
                queued: place == Place::Queued,
                behind: place == Place::Behind,
                ..Movement::default()
            });
        };
        let bytes = chosen.received.values().sum();
        let mut flows = false;
        if let Some(seen) = seen {
            seen.look(chosen, bytes);
            seen.writing_out.hash(&mut mark);
            flows = seen.downloads;
        }
        let place = shown.place(Some(&chosen.manifest.blobs()));
        Ok(Movement {
            bytes,
            total_bytes: Some(chosen.manifest.total_bytes()),
            flows,
            queued: place == Place::Queued,
            behind: place == Place::Behind,
            mark: mark.finish(),
        })
    }

    /// The last look, or a new one if it is too old.
    ///
    /// # Cancel safety
    /// If a look is dropped, the next caller that waits for it starts it again.
    async fn shown(&self, node: &Containerd) -> Result<Arc<Shown>, RuntimeError> {
        let mut last = self.shown.lock().await;
        let now = Instant::now();
        if let Some(shown) = last.as_ref().filter(|shown| now < shown.at + SHARED_FOR) {
            return Ok(Arc::clone(shown));
        }
        let written = (self.written)();
        let shown = Arc::new(Shown::look(node, now, written, last.as_deref()).await?);
        *last = Some(Arc::clone(&shown));
        Ok(shown)
    }

    /// Checks which parts of one manifest are there and move. None if it is not one of ours, or if nothing
    /// of it can move and no look has shown that the pull is about it.
    async fn look(
        &self,
        node: &Containerd,
        info: &Info,
        shown: &Shown,
        remembered: Option<&str>,
    ) -> Result<Option<Candidate>, RuntimeError> {
        let Some(manifest) = self.manifest(node, info).await? else {
            return Ok(None);
        };
        let downloads = &shown.downloads;
        let mut blobs = manifest.blobs().into_iter();
        let downloads_it = blobs.any(|blob| downloads.contains_key(blob));
        let is_remembered = remembered == Some(info.digest.as_str());
        if !downloads_it && !is_remembered && shown.unpacking.is_empty() {
            return Ok(None);
        }
        let chain = self.chain(node, &manifest.config).await?;
        let keys = chain.as_ref().map_or_else(Vec::new, |chain| {
            let mine = |key: &&String| layer_of(key, chain).is_some();
            shown.unpacking.iter().filter(mine).collect()
        });
        if !downloads_it && !is_remembered && keys.is_empty() {
            return Ok(None);
        }
        let mut received = BTreeMap::new();
        let mut downloading = false;
        let mut writing_out = false;
        let whole = proof::present(node, &manifest).await?;
        for (layer, whole) in manifest.layers.iter().zip(&whole) {
            if *whole {
                received.insert(layer.digest.clone(), layer.size);
            } else if let Some(Download { bytes, .. }) = downloads.get(&layer.digest) {
                received.insert(layer.digest.clone(), *bytes);
                downloading = true;
                writing_out |= *bytes >= layer.size;
            }
        }
        if chain.is_some() {
            received.insert(manifest.config.digest.clone(), manifest.config.size);
        } else if let Some(Download { bytes, .. }) = downloads.get(&manifest.config.digest) {
            received.insert(manifest.config.digest.clone(), *bytes);
            downloading = true;
        }
        // containerd prepares a layer's snapshot before its download is done, so only a layer that is
        // there counts as being unpacked.
        let layers = manifest.layers.iter().zip(&whole);
        let layers = layers.filter(|(layer, _)| layer.is_of_root());
        let whole: Vec<bool> = layers.map(|(_, whole)| *whole).collect();
        let is_whole = |key: &&&String| {
            let layer = layer_of(key, chain.as_deref().unwrap_or(&Vec::new()));
            layer.is_some_and(|layer| whole.get(layer) == Some(&true))
        };
        let keys = keys.iter().filter(is_whole).copied();
        let unpacking = self.unpacked(node, keys, shown).await?;
        let updated = info
            .updated_at
            .map_or((0, 0), |Timestamp { seconds, nanos }| (seconds, nanos));
        Ok(Some(Candidate {
            digest: info.digest.clone(),
            updated,
            manifest,
            received,
            unpacking,
            downloading,
            writing_out,
        }))
    }

    /// How far the unpacking into each of these snapshots is. To measure it, containerd walks through all files.
    async fn unpacked(
        &self,
        node: &Containerd,
        keys: impl Iterator<Item = &String>,
        shown: &Shown,
    ) -> Result<BTreeMap<String, Unpacked>, RuntimeError> {
        let snapshotter = node.snapshotter.name(&node.calls).await?;
        let before = locked(&self.measured).clone();
        let found = try_join_all(keys.map(async |key| {
            let last = before.get(key);
            let stands_for_it = last.is_some_and(|last| last.stands_for_it(shown.at));
            if let Some(mark) = shown.written.filter(|_| stands_for_it) {
                return Ok((key.clone(), Unpacked::Written(mark)));
            }
            let request = UsageRequest {
                snapshotter: snapshotter.clone(),
                key: key.clone(),
            };
            let mut snapshots = node.calls.snapshots();
            let call = snapshots.usage(request);
            // It may have been committed, and its key be gone, since the list was made.
            let usage = node.calls.find("measuring a snapshot", call).await?;
            let size = usage.map_or(0, |usage| usage.size);
            let measured = Measured::after(size, shown.at, last);
            locked(&self.measured).insert(key.clone(), measured);
            Ok::<_, RuntimeError>((key.clone(), Unpacked::Size(size)))
        }));
        let found = found.await?.into_iter().collect();
        locked(&self.measured).retain(|key, _| shown.unpacking.contains(key));
        Ok(found)
    }

    async fn manifest(
        &self,
        node: &Containerd,
        info: &Info,
    ) -> Result<Option<Arc<Manifest>>, RuntimeError> {
        if let Some(manifest) = locked(&self.manifests).get(&info.digest) {
            return Ok(Some(Arc::clone(manifest)));
        }
        let descriptor = Descriptor::stored(info.digest.clone(), info.size);
        match read_json(&node.calls, &descriptor, "manifest").await {
            Ok(Document::Manifest(manifest)) => {
                let manifest = Arc::new(manifest);
                remember(&self.manifests, &info.digest, &manifest);
                Ok(Some(manifest))
            }
            Ok(Document::Index(_)) | Err(NoDocument::Unusable(_) | NoDocument::Corrupt(_)) => {
                Ok(None)
            }
            Err(NoDocument::Runtime(error)) => Err(error),
        }
    }

    /// The names of the layers' snapshots; none until the configuration has arrived.
    async fn chain(
        &self,
        node: &Containerd,
        config: &Descriptor,
    ) -> Result<Option<Arc<Vec<String>>>, RuntimeError> {
        if let Some(chain) = locked(&self.chains).get(&config.digest) {
            return Ok(Some(Arc::clone(chain)));
        }
        match read_json::<Config>(&node.calls, config, "configuration").await {
            Ok(read) => {
                let chain = Arc::new(read.chain_ids());
                remember(&self.chains, &config.digest, &chain);
                Ok(Some(chain))
            }
            Err(NoDocument::Unusable(_) | NoDocument::Corrupt(_)) => Ok(None),
            Err(NoDocument::Runtime(error)) => Err(error),
        }
    }
}

fn remember<T>(known: &Mutex<HashMap<String, Arc<T>>>, digest: &str, value: &Arc<T>) {
    let mut known = locked(known);
    if known.len() >= REMEMBERED {
        known.clear();
    }
    known.insert(digest.to_owned(), Arc::clone(value));
}

/// The newest manifests that containerd has from the image's repository.
pub(crate) async fn newest_manifests(
    node: &Containerd,
    image: &ImageName,
) -> Result<Vec<Info>, RuntimeError> {
    let all = shown::manifests(node).await?;
    Ok(manifests_of(&all, image).into_iter().cloned().collect())
}

/// Of these manifests, the newest that came from the image's repository.
fn manifests_of<'a>(manifests: &'a [Info], image: &ImageName) -> Vec<&'a Info> {
    let host = host_without_port(image.registry());
    let label = format!("containerd.io/distribution.source.{host}");
    let path = image.repository()[image.registry().len()..].trim_start_matches('/');
    let is_from = |info: &&Info| {
        let from = info.labels.get(&label);
        from.is_some_and(|from| from.split(',').any(|from| from == path))
    };
    let mut infos: Vec<&Info> = manifests.iter().filter(is_from).collect();
    infos.sort_by_key(|info| {
        let updated = info.updated_at.unwrap_or_default();
        std::cmp::Reverse((updated.seconds, updated.nanos))
    });
    infos.truncate(NEWEST);
    infos
}

/// The host as containerd writes it into the label.
fn host_without_port(registry: &str) -> &str {
    match registry
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, _port)) => address,
        None => registry
            .split_once(':')
            .map_or(registry, |(host, _port)| host),
    }
}

/// Which of the layers is unpacked into the snapshot of this key.
fn layer_of(key: &str, chain: &[String]) -> Option<usize> {
    let (_unique, name) = key.rsplit_once(' ')?;
    chain.iter().position(|layer| layer == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_found_by_repository() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (image, host, from, expected) in [
            ("nginx", "docker.io", "library/nginx", true),
            ("nginx", "docker.io", "my/nginx,library/nginx", true),
            ("nginx", "docker.io", "my/library/nginx", false),
            ("127.0.0.1:5000/my/app.x:v1", "127.0.0.1", "my/app.x", true),
            ("127.0.0.1:5000/my/app.x:v1", "127.0.0.1", "my/appyx", false),
            ("[::1]:5000/app:v1", "::1", "app", true),
            (
                &format!("ghcr.io/my/app:v1@{digest}"),
                "ghcr.io",
                "my/app",
                true,
            ),
        ] {
            let label = format!("containerd.io/distribution.source.{host}");
            let info = Info {
                labels: HashMap::from([(label, from.to_owned())]),
                ..Info::default()
            };
            let found = manifests_of(std::slice::from_ref(&info), &image.parse().unwrap()).len();
            assert_eq!(found == 1, expected, "{image} {from}");
        }
    }

    fn candidate(writing_out: bool) -> Candidate {
        let config = Descriptor {
            digest: "sha256:c".into(),
            size: 1,
            media_type: String::new(),
            platform: None,
        };
        let layers = Vec::new();
        Candidate {
            digest: "sha256:m".into(),
            updated: (0, 0),
            manifest: Arc::new(Manifest { config, layers }),
            received: BTreeMap::new(),
            unpacking: BTreeMap::new(),
            downloading: true,
            writing_out,
        }
    }

    #[test]
    fn writing_out_moves_only_what_was_seen_to_be_downloaded() {
        let mut left_over = Seen::default();
        let mut downloaded = Seen::default();
        for bytes in [1, 2] {
            left_over.look(&candidate(true), 9);
            downloaded.look(&candidate(false), bytes);
        }
        assert_eq!((left_over.downloads, left_over.writing_out), (false, 0));
        assert_eq!((downloaded.downloads, downloaded.writing_out), (true, 0));
        for looks in 1..3 {
            downloaded.look(&candidate(true), 9);
            assert_eq!(downloaded.writing_out, looks);
        }
    }

    #[test]
    fn writing_out_moves_for_a_minute_after_the_last_byte() {
        let mut seen = Seen::default();
        seen.look(&candidate(false), 8);
        for bytes in [9, 11] {
            for _ in 0..2 * WRITING_OUT_MAX {
                seen.look(&candidate(true), bytes);
            }
            assert_eq!(seen.writing_out, WRITING_OUT_MAX);
            seen.look(&candidate(true), bytes + 1);
            assert_eq!(seen.writing_out, 1);
        }
    }

    #[test]
    fn bytes_that_go_do_not_come() {
        let mut seen = Seen::default();
        for bytes in [9, 3, 0] {
            seen.look(&candidate(false), bytes);
            assert!(!seen.downloads, "{bytes} bytes");
        }
        seen.look(&candidate(false), 1);
        assert!(seen.downloads);
    }

    #[test]
    fn a_pull_is_forgotten_when_it_is_dropped() {
        let progress = Progress::new(|| None);
        let image: ImageName = "my/app".parse().unwrap();
        let running = progress.begin(&image);
        assert!(locked(&progress.running).contains_key(&image));
        drop(running);
        assert!(locked(&progress.running).is_empty());
    }
}
