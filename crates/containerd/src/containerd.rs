//! The real runtime: [`ImageRuntime`] on containerd.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::{GetImageRequest, Image, ListImagesRequest};
use k8s_cri::v1::{
    ImageSpec, ImageStatusRequest, ListImagesRequest as CriListImagesRequest, PullImageRequest,
    VersionRequest,
};
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::keep::KeptCopy;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::record::RolledBack;

use crate::alias::Journal;
use crate::calls::{CallObserver, Calls};
use crate::classify;
use crate::disk::Looks;
use crate::manifest::Platform;
use crate::program::Program;
use crate::progress::Progress;
use crate::proof::Depth;
use crate::runtime::{
    Discarded, ImageEvents, ImageRuntime, Local, LocalImage, Mended, Movement, Over, Pin,
    PodEvents, Pointed, PullError, RuntimeError, RuntimeVersion, Seen, Spoiled, Users, Verified,
};
use crate::snapshotter::Snapshotter;
use crate::{containers, events, kept, labels, made, mend, names, proof, renew, rolled_back};

/// How to reach containerd.
#[derive(Clone, Debug)]
pub struct ContainerdOptions {
    /// Its socket, usually `/run/containerd/containerd.sock`.
    pub socket: PathBuf,
    /// The snapshotter that CRI unpacks images with; if none is given, containerd is asked.
    pub snapshotter: Option<String>,
    /// How long any call but a pull may take. All calls of a proof together may take twice as long.
    pub call_timeout: Duration,
    /// Learns how the calls ended.
    pub observer: CallObserver,
    /// Two answers differ only if something was written in between to the file system that holds the images; none if
    /// the caller does not see that. It spares containerd walks through all files of a layer that is being unpacked.
    pub written: fn() -> Option<u64>,
}

/// containerd on this node. Clones share one connection.
///
/// The connection is made at the first call. After containerd has been restarted the call that
/// finds the old connection broken fails with [`RuntimeError::Unreachable`]; later ones connect
/// again.
#[derive(Clone, Debug)]
pub struct Containerd {
    pub(crate) calls: Calls,
    pub(crate) snapshotter: Arc<Snapshotter>,
    pub(crate) platform: Arc<Platform>,
    pub(crate) looks: Arc<Looks>,
    /// Held while lost content is removed.
    pub(crate) mending: Arc<tokio::sync::Mutex<()>>,
    progress: Arc<Progress>,
}

impl Containerd {
    /// Prepares the connection; nothing is sent yet.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn new(options: ContainerdOptions) -> Self {
        let ContainerdOptions {
            socket,
            snapshotter,
            call_timeout,
            observer,
            written,
        } = options;
        Self {
            calls: Calls::new(&socket, call_timeout, observer),
            snapshotter: Arc::new(Snapshotter::new(snapshotter)),
            platform: Arc::new(Platform::of_this_node()),
            looks: Arc::default(),
            mending: Arc::default(),
            progress: Arc::new(Progress::new(written)),
        }
    }

    /// Whether this containerd runs a pod of this name, or has run it: the one that the kubelet uses knows the pod in
    /// which this program runs.
    ///
    /// # Errors
    /// containerd did not answer.
    pub async fn knows_pod(&self, namespace: &str, name: &str) -> Result<bool, RuntimeError> {
        containers::knows(&self.calls, namespace, name).await
    }

    /// The image under this name in containerd's own store.
    pub(crate) async fn stored(&self, name: &str) -> Result<Option<Image>, RuntimeError> {
        let mut images = self.calls.images();
        let request = GetImageRequest {
            name: name.to_owned(),
        };
        let call = images.get(request);
        let found = self.calls.find("looking an image up", call).await?;
        Ok(found.and_then(|response| response.image))
    }

    /// The names that point to this digest in containerd's own store.
    pub(crate) async fn names_of(&self, digest: &str) -> Result<Vec<String>, RuntimeError> {
        let mut images = self.calls.images();
        let request = ListImagesRequest {
            filters: vec![format!("target.digest=={digest}")],
        };
        let call = images.list(request);
        let listed = self.calls.call("listing an image's names", call).await?;
        Ok(listed.images.into_iter().map(|image| image.name).collect())
    }

    /// The image as CRI knows it under this name.
    pub(crate) async fn in_cri(
        &self,
        name: &str,
    ) -> Result<Option<k8s_cri::v1::Image>, RuntimeError> {
        let mut cri = self.calls.cri_images();
        let request = ImageStatusRequest {
            image: Some(spec(name)),
            verbose: false,
        };
        let call = cri.image_status(request);
        Ok(self
            .calls
            .call("asking CRI for an image", call)
            .await?
            .image)
    }
}

/// Why a pull counts as failed that containerd calls a success: the kubelet starts what the name points to, and that is
/// something else.
fn another(pulled: &str, named: &str) -> Option<Failure> {
    (pulled != named).then(|| {
        let why = format!("containerd pulled {pulled}, but the name points to {named}");
        Failure::new(FailureClass::Local, why)
    })
}

pub(crate) fn spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        ..ImageSpec::default()
    }
}

impl ImageRuntime for Containerd {
    async fn pull(&self, image: &ImageName) -> Result<(), PullError> {
        let _running = self.progress.begin(image);
        let request = PullImageRequest {
            image: Some(spec(image.as_str())),
            auth: None,
            sandbox_config: None,
        };
        let labels = Box::pin(labels::remember(self, image)).await;
        let running = self.calls.begin_pull();
        let pulled = self.calls.cri_images().pull_image(request).await;
        running.ended(&pulled);
        // A pull that failed may have moved the name as well.
        labels::put_back(self, labels).await;
        let failure = match pulled {
            Ok(pulled) => {
                let id = pulled.into_inner().image_ref;
                // If it cannot be asked, the proof that follows says so.
                let named = self.in_cri(image.as_str()).await.ok().flatten();
                let another = named.and_then(|named| another(&id, &named.id));
                another.map_or(Ok(()), Err)
            }
            Err(status) => Err(classify::pull_failure(&status)),
        };
        failure.map_err(|failure| PullError::new(image.clone(), failure))
    }

    async fn movement(&self, image: &ImageName) -> Result<Movement, RuntimeError> {
        self.progress.movement(self, image).await
    }

    async fn local(&self, image: &ImageName) -> Result<Local, RuntimeError> {
        // Boxed: it is large, and every task that tries an image contains it.
        let proof = Box::pin(proof::local(self, image, Depth::Disk));
        self.calls.together("proving a copy", proof).await
    }

    async fn listed(&self, image: &ImageName) -> Result<Local, RuntimeError> {
        let proof = Box::pin(proof::local(self, image, Depth::Database));
        self.calls.together("looking a copy up", proof).await
    }

    async fn mend(&self, image: &ImageName) -> Result<Mended, RuntimeError> {
        Box::pin(mend::mend(self, image)).await
    }

    async fn verify(&self, image: &ImageName, seen: &Seen<'_>) -> Result<Verified, RuntimeError> {
        Box::pin(renew::verify(self, image, seen)).await
    }

    async fn users(&self, image: &ImageName) -> Result<Option<Users>, RuntimeError> {
        Box::pin(renew::users(self, image)).await
    }

    async fn discard(
        &self,
        image: &ImageName,
        spoiled: &[Spoiled],
    ) -> Result<Discarded, RuntimeError> {
        Box::pin(renew::discard(self, image, spoiled)).await
    }

    async fn images(&self) -> Result<Vec<LocalImage>, RuntimeError> {
        let mut cri = self.calls.cri_images();
        let mut native = self.calls.images();
        let (known, stored) = futures::try_join!(
            self.calls.call(
                "listing images",
                cri.list_images(CriListImagesRequest::default())
            ),
            self.calls.call(
                "listing image names",
                native.list(ListImagesRequest::default())
            ),
        )?;
        let targets: HashMap<String, String> = stored
            .images
            .into_iter()
            .filter_map(|image| Some((image.name, image.target?.digest)))
            .collect();
        Ok(known
            .images
            .iter()
            .flat_map(|image| named(image, &targets))
            .collect())
    }

    async fn keep(&self, image: &ImageName, alias: &str, pin: Pin) -> Result<(), RuntimeError> {
        names::keep(self, image, alias, pin).await
    }

    async fn forget(&self, alias: &str) -> Result<(), RuntimeError> {
        names::forget(self, alias).await
    }

    async fn restore(&self, alias: &str, image: &ImageName) -> Result<bool, RuntimeError> {
        names::restore(self, alias, image).await
    }

    async fn set_aside(
        &self,
        image: &ImageName,
        alias: &str,
    ) -> Result<Option<String>, RuntimeError> {
        Box::pin(names::set_aside(self, image, alias)).await
    }

    async fn journal(&self, of: Journal) -> Result<Vec<(String, ImageName)>, RuntimeError> {
        names::journal(self, of).await
    }

    async fn keep_copy(&self, copy: &KeptCopy) -> Result<(), RuntimeError> {
        kept::keep_copy(self, copy).await
    }

    async fn kept_copies(&self) -> Result<Vec<KeptCopy>, RuntimeError> {
        kept::kept_copies(self).await
    }

    async fn digests(&self, image: &ImageName) -> Result<BTreeSet<Digest>, RuntimeError> {
        let known = self.in_cri(image.as_str()).await?;
        let names = known.map(|known| known.repo_digests).unwrap_or_default();
        // Of any repository: content is shared.
        let digests = names.iter().filter_map(|name| name.rsplit_once('@'));
        Ok(digests
            .filter_map(|(_, digest)| digest.parse().ok())
            .collect())
    }

    async fn pointed(
        &self,
        images: &BTreeSet<ImageName>,
    ) -> Result<BTreeMap<ImageName, Digest>, RuntimeError> {
        names::pointed(self, images).await
    }

    async fn mark_rolled_back(
        &self,
        image: &ImageName,
        back: &RolledBack,
    ) -> Result<(), RuntimeError> {
        rolled_back::mark(self, image, back).await
    }

    async fn rolled_back(&self) -> Result<BTreeMap<ImageName, RolledBack>, RuntimeError> {
        rolled_back::list(self).await
    }

    async fn restore_kept(&self, image: &ImageName) -> Result<bool, RuntimeError> {
        kept::restore_kept(self, image).await
    }

    async fn make(&self, program: &Program, alias: &str) -> Result<bool, RuntimeError> {
        // Boxed: it is large, and runs only for a moment.
        Box::pin(made::make(self, program, alias)).await
    }

    async fn point(
        &self,
        image: &ImageName,
        alias: &str,
        over: Over<'_>,
    ) -> Result<Pointed, RuntimeError> {
        made::point(self, image, alias, over).await
    }

    async fn pointing(&self, alias: &str) -> Result<Vec<ImageName>, RuntimeError> {
        made::pointing(self, alias).await
    }

    async fn image_events(&self) -> Result<ImageEvents, RuntimeError> {
        events::of_images(&self.calls).await
    }

    async fn pod_events(&self, container: &str) -> Result<PodEvents, RuntimeError> {
        containers::pod_events(&self.calls, container).await
    }

    async fn version(&self) -> Result<RuntimeVersion, RuntimeError> {
        let mut cri = self.calls.cri_runtime();
        let call = cri.version(VersionRequest::default());
        let answer = self.calls.call("asking for the version", call).await?;
        Ok(RuntimeVersion {
            name: answer.runtime_name,
            version: answer.runtime_version,
        })
    }
}

/// One entry per name of an image that CRI lists, with a tag or with a digest.
fn named(image: &k8s_cri::v1::Image, targets: &HashMap<String, String>) -> Vec<LocalImage> {
    let names = image.repo_tags.iter().chain(&image.repo_digests);
    names
        .filter_map(|name| {
            Some(LocalImage {
                image: name.parse().ok()?,
                digest: targets.get(name)?.clone(),
                size_bytes: image.size,
            })
        })
        .collect()
}

/// Locks even after a panic elsewhere: what the lock guards is only ever replaced as a whole.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_that_has_not_moved_the_name_has_failed() {
        assert_eq!(another("sha256:new", "sha256:new"), None);
        let failure = another("sha256:new", "sha256:old").unwrap();
        assert_eq!(failure.class, FailureClass::Local);
        assert_eq!(
            failure.message,
            "containerd pulled sha256:new, but the name points to sha256:old"
        );
    }

    #[test]
    fn an_image_is_listed_under_each_of_its_names() {
        let by_digest = format!("r/app@sha256:{}", "a".repeat(64));
        let image = k8s_cri::v1::Image {
            repo_tags: vec!["r/app:1".into(), "r/app:2".into(), "r/app:gone".into()],
            repo_digests: vec![by_digest.clone()],
            ..k8s_cri::v1::Image::default()
        };
        let names = ["r/app:1", "r/app:2", &by_digest];
        let targets = names.map(|name| (name.to_owned(), "sha256:t".to_owned()));
        let listed = named(&image, &HashMap::from(targets));
        let expected = names.map(|name| name.parse().unwrap());
        let found: Vec<ImageName> = listed.into_iter().map(|local| local.image).collect();
        assert_eq!(found, expected);
    }
}
