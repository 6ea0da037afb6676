//! What the agent needs of a container runtime: the seam between the agent and containerd.

mod error;
mod version;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use futures::stream::BoxStream;
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::keep::KeptCopy;
use trylatest_core::record::RolledBack;

pub use self::error::{PullError, RuntimeError};
pub use self::version::RuntimeVersion;
use crate::alias::Journal;
use crate::program::Program;

/// What the agent needs of a container runtime.
///
/// Implemented by [`crate::Containerd`] and, for tests, by `fake::FakeContainerd`. Both pass the
/// same conformance suite.
///
/// # Cancel safety
/// Every future may be dropped at any point: only the answer is lost. [`ImageRuntime::pull`] says what
/// dropping it means.
pub trait ImageRuntime: Send + Sync + 'static {
    /// Pulls what the name points to now, anonymously, the way the kubelet would (CRI PullImage).
    ///
    /// Has **no deadline of its own**: containerd waits for a registry that accepts and never
    /// answers for as long as it is let (measured: 25 minutes). The caller watches
    /// [`ImageRuntime::movement`] and drops the future.
    ///
    /// # Errors
    /// A classified failure with a message that may be shown.
    ///
    /// # Cancel safety
    /// Dropping the future stops the pull in containerd within 0.1 s. containerd 2.x keeps what was
    /// downloaded of a layer and the next pull continues from there; 1.6 starts that layer again.
    fn pull(&self, image: &ImageName) -> impl Future<Output = Result<(), PullError>> + Send;

    /// What has moved so far for a running pull of this image: downloads attributed to it, and
    /// unpacking.
    ///
    /// # Errors
    /// containerd did not answer; the caller then does not know whether the pull moves.
    fn movement(
        &self,
        image: &ImageName,
    ) -> impl Future<Output = Result<Movement, RuntimeError>> + Send;

    /// Looks for a copy that a container could start from, and proves it: CRI finds the name, the
    /// platform is one that containerd starts, and its content or unpacked snapshot is really there, on
    /// the disk and not only in containerd's database. The calls for this share a deadline, too.
    ///
    /// # Errors
    /// containerd did not answer in time. If something is missing, that is not an error: the result is
    /// [`Local::Absent`] or [`Local::Unusable`].
    fn local(&self, image: &ImageName) -> impl Future<Output = Result<Local, RuntimeError>> + Send;

    /// The same as [`ImageRuntime::local`], but only by containerd's database: it does not notice files
    /// that the disk has lost. It writes nothing and takes a few milliseconds.
    ///
    /// # Errors
    /// As of [`ImageRuntime::local`].
    fn listed(&self, image: &ImageName)
    -> impl Future<Output = Result<Local, RuntimeError>> + Send;

    /// Removes from containerd's database those parts of the image that the disk has lost, so that the
    /// next pull fetches them again. Covers what the name points to, and what was recently pulled from
    /// its repository. Touches nothing that is whole.
    ///
    /// # Errors
    /// containerd did not answer. Some parts may have been removed.
    fn mend(&self, image: &ImageName) -> impl Future<Output = Result<Mended, RuntimeError>> + Send;

    /// Compares the layers of the copy that the name points to with their digests: whether it could be unpacked again
    /// from what the node holds. Reads all of them, and tells `seen` how far it is.
    ///
    /// # Errors
    /// containerd did not answer.
    fn verify(
        &self,
        image: &ImageName,
        seen: &Seen<'_>,
    ) -> impl Future<Output = Result<Verified, RuntimeError>> + Send;

    /// Who keeps [`ImageRuntime::discard`] from removing anything of the copy that the name points to; none if nobody
    /// does. Takes a moment, and touches nothing.
    ///
    /// # Errors
    /// containerd did not answer.
    fn users(
        &self,
        image: &ImageName,
    ) -> impl Future<Output = Result<Option<Users>, RuntimeError>> + Send;

    /// Removes what is unpacked of the copy that the name points to, and content that [`ImageRuntime::verify`] has
    /// found spoiled: the next pull unpacks and fetches it again. If nothing is spoiled, so does the next container
    /// that starts from the copy, without a registry. What a container or another image has something on top of stays;
    /// if that is the case of the topmost layer, nothing is removed at all.
    ///
    /// # Errors
    /// containerd did not answer. Some parts may have been removed.
    fn discard(
        &self,
        image: &ImageName,
        spoiled: &[Spoiled],
    ) -> impl Future<Output = Result<Discarded, RuntimeError>> + Send;

    /// Every image that CRI lists by name, without a proof.
    ///
    /// # Errors
    /// containerd did not answer.
    fn images(&self) -> impl Future<Output = Result<Vec<LocalImage>, RuntimeError>> + Send;

    /// Makes the alias point to what the image points to now: its content stays, whatever happens to
    /// the name. The alias must not look like an image's name (see [`crate::alias`]): otherwise it would
    /// show up in the status of pods and nodes.
    ///
    /// # Errors
    /// The image is not there, the alias could be taken for an image, or containerd did not answer.
    fn keep(
        &self,
        image: &ImageName,
        alias: &str,
        pin: Pin,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Removes an alias, if there is one, and with it content that no other name points to.
    ///
    /// # Errors
    /// containerd did not answer.
    fn forget(&self, alias: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Restores the image's name from the alias, if the name is gone or points to something that no
    /// container could start from. True if it had to. Otherwise gives the name back the labels that the
    /// alias carries: a pull that was dropped may have moved the name without them.
    ///
    /// A name can point to something that cannot start: containerd takes a captive portal's page for a
    /// manifest, and lets the name point to it before it finds out (seen on 1.6 and 2.4).
    ///
    /// # Errors
    /// There is no such alias, or containerd did not answer.
    fn restore(
        &self,
        alias: &str,
        image: &ImageName,
    ) -> impl Future<Output = Result<bool, RuntimeError>> + Send;

    /// Makes the alias keep the image's copy, and takes the image's name away, until CRI does not find it
    /// any more: the next pull of the kubelet then asks the registry, and fetches nothing that is here.
    /// [`ImageRuntime::restore`] gives the name back. What the name pointed to; none if it did not exist, and
    /// then there is no alias.
    ///
    /// # Errors
    /// The alias could be taken for an image, or containerd did not answer; the name may be away.
    ///
    /// # Cancel safety
    /// If the future is dropped, the name may be away, and [`ImageRuntime::journal`] then lists it.
    fn set_aside(
        &self,
        image: &ImageName,
        alias: &str,
    ) -> impl Future<Output = Result<Option<String>, RuntimeError>> + Send;

    /// Every alias of this kind, and the image whose copy it keeps.
    ///
    /// # Errors
    /// containerd did not answer.
    fn journal(
        &self,
        of: Journal,
    ) -> impl Future<Output = Result<Vec<(String, ImageName)>, RuntimeError>> + Send;

    /// Writes the alias that keeps this copy, and what is to be known of it. One of the image's names, or the alias
    /// itself, must point to the copy.
    ///
    /// # Errors
    /// There is no such copy, or containerd did not answer.
    fn keep_copy(&self, copy: &KeptCopy) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Every copy that [`ImageRuntime::keep_copy`] keeps. [`ImageRuntime::forget`] removes the alias
    /// ([`crate::alias::copy()`]).
    ///
    /// # Errors
    /// containerd did not answer.
    fn kept_copies(&self) -> impl Future<Output = Result<Vec<KeptCopy>, RuntimeError>> + Send;

    /// Every digest by which CRI knows the image that the name points to: of manifests, and of indexes that name them.
    /// Empty if CRI does not know the name.
    ///
    /// # Errors
    /// containerd did not answer.
    fn digests(
        &self,
        image: &ImageName,
    ) -> impl Future<Output = Result<BTreeSet<Digest>, RuntimeError>> + Send;

    /// What these names point to now, without a proof. Those that are not there are left out.
    ///
    /// # Errors
    /// containerd did not answer.
    fn pointed(
        &self,
        images: &BTreeSet<ImageName>,
    ) -> impl Future<Output = Result<BTreeMap<ImageName, Digest>, RuntimeError>> + Send;

    /// Writes down that the image's name is pointed back to what [`RolledBack::to`] says, which the image's kept copy
    /// must be: an alias ([`crate::alias::rolled_back`]), which [`ImageRuntime::forget`] removes. It does not move the
    /// name.
    ///
    /// # Errors
    /// There is no such copy, or containerd did not answer.
    fn mark_rolled_back(
        &self,
        image: &ImageName,
        back: &RolledBack,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Everything that was written down like that, also where the name points to something else by now.
    ///
    /// # Errors
    /// containerd did not answer.
    fn rolled_back(
        &self,
    ) -> impl Future<Output = Result<BTreeMap<ImageName, RolledBack>, RuntimeError>> + Send;

    /// Restores the image's name from the newest of these copies, if that is everybody's and the name is gone. True if
    /// it had to.
    ///
    /// # Errors
    /// containerd did not answer.
    fn restore_kept(
        &self,
        image: &ImageName,
    ) -> impl Future<Output = Result<bool, RuntimeError>> + Send;

    /// Makes an image that contains only this program, and lets the alias point to it and pin it, unless
    /// it does so already and all of the image is there. True if something had to be made.
    ///
    /// No registry has given such an image to anybody, and no two of them are alike: the kubelet treats
    /// each as one that was on the node before (KEP-2535), which any pod may use.
    ///
    /// # Errors
    /// The program or the alias cannot be used, or containerd did not answer.
    fn make(
        &self,
        program: &Program,
        alias: &str,
    ) -> impl Future<Output = Result<bool, RuntimeError>> + Send;

    /// Makes the image's name point to what the alias points to, if what is there may be replaced.
    ///
    /// # Errors
    /// There is no such alias, or containerd did not answer.
    fn point(
        &self,
        image: &ImageName,
        alias: &str,
        over: Over<'_>,
    ) -> impl Future<Output = Result<Pointed, RuntimeError>> + Send;

    /// The image names that point to what the alias points to.
    ///
    /// # Errors
    /// containerd did not answer.
    fn pointing(
        &self,
        alias: &str,
    ) -> impl Future<Output = Result<Vec<ImageName>, RuntimeError>> + Send;

    /// Follows changes of image names from now on. Subscribe first, list afterwards.
    ///
    /// The stream never just ends: its last item is an error, because a follower would miss later
    /// changes. Subscribe again after it.
    ///
    /// # Errors
    /// containerd did not answer.
    fn image_events(&self) -> impl Future<Output = Result<ImageEvents, RuntimeError>> + Send;

    /// The pods in which a container of this name runs: now, and again whenever that changes; and which pods' sandboxes
    /// start meanwhile.
    ///
    /// Like that of [`Self::image_events`], the stream's last item is an error.
    ///
    /// # Errors
    /// containerd did not answer.
    fn pod_events(
        &self,
        container: &str,
    ) -> impl Future<Output = Result<PodEvents, RuntimeError>> + Send;

    /// The runtime's name and version.
    ///
    /// # Errors
    /// containerd did not answer.
    fn version(&self) -> impl Future<Output = Result<RuntimeVersion, RuntimeError>> + Send;
}

/// Whether the kubelet's image collector may remove what an alias keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// It may not; see [`RuntimeVersion::honours_pins`].
    Pinned,
    /// It may, as without the alias.
    Unpinned,
}

/// What a name may point to, if it is to be changed.
#[derive(Clone, Copy, Debug)]
pub enum Over<'a> {
    /// Anything.
    Anything,
    /// Only an image of the same program.
    Program(&'a Program),
}

/// The result of pointing a name to an alias's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointed {
    /// This call made it point there.
    Now,
    /// It already pointed there.
    Already,
    /// It points to something else, which stays.
    Elsewhere,
}

/// Changes of image names. Its last item is an error.
pub type ImageEvents = BoxStream<'static, Result<ImageEvent, RuntimeError>>;

/// What the runtime has begun to run for pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodEvent {
    /// The pods, by uid, in which the container runs now.
    Running(BTreeSet<String>),
    /// The sandbox of the pod with this uid has started: its containers are next.
    SandboxStarted(String),
}

/// Changes of pods. Its last item is an error.
pub type PodEvents = BoxStream<'static, Result<PodEvent, RuntimeError>>;

/// What the node holds under an image's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    /// Nothing.
    Absent,
    /// Something that no container could start from.
    Unusable {
        /// What is missing or wrong, in words for a person.
        why: String,
    },
    /// A proven copy.
    Usable(LocalImage),
}

/// Parts of an image that the disk had lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// What was removed from containerd's database, in words for a person: it can be fetched again.
    pub removed: Vec<String>,
    /// What could not be removed, and why.
    pub kept: Vec<String>,
}

/// Learns how many bytes of how many have been read.
pub type Seen<'a> = dyn Fn(u64, u64) + Send + Sync + 'a;

/// What the layers of a copy are worth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// The size of all of them, in bytes.
    pub bytes: u64,
    /// What keeps the copy from being unpacked again. If it is empty, no registry is needed for that.
    pub spoiled: Vec<Spoiled>,
}

/// A part of an image that is missing, or not what its digest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spoiled {
    /// Its digest, if it can be fetched again.
    pub digest: Option<String>,
    /// What is wrong, in words for a person.
    pub why: String,
}

/// Who has something on top of an unpacked layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// Pods as `namespace/name`, perhaps ones whose containers have exited; containers that are no pod's, by their IDs.
    /// If there are none, other images share the layer.
    pub names: Vec<String>,
}

/// How many unpacked layers were removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// So many, from the topmost down.
    pub removed: usize,
    /// So many stay below them.
    pub kept: usize,
    /// Who has something on top of the highest that stays.
    pub users: Users,
}

impl Discarded {
    /// Whether nothing could be removed.
    pub fn is_in_use(&self) -> bool {
        self.removed == 0 && self.kept > 0
    }
}

/// An image on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalImage {
    /// Its name.
    pub image: ImageName,
    /// What the name points to: digest of the manifest, or of the index of manifests.
    pub digest: String,
    /// Its size in bytes as CRI reports it.
    pub size_bytes: u64,
}

/// How far a pull has come.
///
/// containerd writes downloads in steps of 1 MiB per layer, so a slow one moves rarely: at 200 KB/s
/// about every 5 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Movement {
    /// Bytes received for this image by now.
    pub bytes: u64,
    /// How many there will be, once the manifest is known.
    pub total_bytes: Option<u64>,
    /// Whether bytes have arrived between two looks at this pull. If not, the bytes may be left over from
    /// an earlier pull. If the kubelet pulls the same image at the same time, its bytes look like ours.
    pub flows: bool,
    /// Whether it may be waiting in containerd's own queue: nothing of it has moved since it was first
    /// seen, and other downloads take all the places that containerd serves at once.
    pub queued: bool,
    /// The same, but not all of those downloads move.
    pub behind: bool,
    /// Differs from an earlier answer's mark if and only if something moved in between: bytes arrived, or
    /// a layer is being unpacked. It has no other meaning.
    pub mark: u64,
}

/// A name in containerd's image store has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageEvent {
    /// The name as containerd stores it: an [`ImageName`] in full, an alias, or an image ID.
    pub name: String,
    /// What happened to it.
    pub change: ImageChange,
}

/// What happened to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageChange {
    /// It is new.
    Created,
    /// It was written again: it may point elsewhere, or have other labels.
    Updated,
    /// It is gone.
    Deleted,
}
