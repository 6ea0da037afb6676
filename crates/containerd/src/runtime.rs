//! What the agent needs of a container runtime: the seam between the agent and containerd.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use trylatest_core::image::ImageName;
use trylatest_core::outcome::Failure;

use crate::program::Program;

/// What the agent needs of a container runtime.
///
/// Implemented by [`crate::Containerd`] and, for tests, by `fake::FakeContainerd`. Both pass the
/// same conformance suite.
///
/// # Cancel safety
/// Every future may be dropped at any point: nothing is lost but the answer. What dropping
/// [`ImageRuntime::pull`] means is said there.
pub trait ImageRuntime: Send + Sync + 'static {
    /// Pulls what the name points to now, anonymously, the way the kubelet would (CRI PullImage).
    ///
    /// Has **no deadline of its own**: containerd waits for a registry that accepts and never
    /// answers for as long as it is let (measured: 25 minutes). The caller watches
    /// [`ImageRuntime::movement`] and drops the future.
    ///
    /// # Errors
    /// A failure that is classified and fit to be shown.
    ///
    /// # Cancel safety
    /// Dropping the future stops the pull in containerd within 0.1 s. containerd 2.x keeps what was
    /// downloaded of a layer and the next pull goes on from there; 1.6 begins that layer anew.
    fn pull(&self, image: &ImageName) -> impl Future<Output = Result<(), PullError>> + Send;

    /// What has moved so far for a running pull of this image: downloads attributed to it, and
    /// unpacking.
    ///
    /// # Errors
    /// containerd did not answer; the caller then knows nothing of the pull, neither that it moves
    /// nor that it does not.
    fn movement(
        &self,
        image: &ImageName,
    ) -> impl Future<Output = Result<Movement, RuntimeError>> + Send;

    /// Looks for a copy that a container could start from, and proves it: CRI finds the name, the
    /// platform is one that containerd starts, and its content or unpacked snapshot is really there, on
    /// the disk and not only in containerd's database. The calls that
    /// this takes have a deadline together, too.
    ///
    /// # Errors
    /// containerd did not answer in time. That something is missing is no error but [`Local::Absent`] or
    /// [`Local::Unusable`].
    fn local(&self, image: &ImageName) -> impl Future<Output = Result<Local, RuntimeError>> + Send;

    /// The same as [`ImageRuntime::local`], by what containerd's database says alone: files that the
    /// disk has lost are not noticed. It writes nothing and takes a few milliseconds.
    ///
    /// # Errors
    /// As of [`ImageRuntime::local`].
    fn listed(&self, image: &ImageName)
    -> impl Future<Output = Result<Local, RuntimeError>> + Send;

    /// Takes out of containerd's database what it lists of the image and the disk has lost, so that
    /// the next pull fetches it again: of what the name points to, and of what was pulled from its
    /// repository lately. Nothing that is whole is touched.
    ///
    /// # Errors
    /// containerd did not answer. Some may have been removed.
    fn mend(&self, image: &ImageName) -> impl Future<Output = Result<Mended, RuntimeError>> + Send;

    /// Every image that CRI lists by name; nothing is proven of them.
    ///
    /// # Errors
    /// containerd did not answer.
    fn images(&self) -> impl Future<Output = Result<Vec<LocalImage>, RuntimeError>> + Send;

    /// Makes the alias point to what the image points to now: its content stays, whatever happens to
    /// the name. The alias must not read as an image's name (see [`crate::alias`]): one that does
    /// would show up in pod and node statuses.
    ///
    /// # Errors
    /// The image is not there, the alias could be taken for an image, or containerd did not answer.
    fn keep(
        &self,
        image: &ImageName,
        alias: &str,
        pin: Pin,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Removes an alias, if there is one. Content that no name points to goes with it.
    ///
    /// # Errors
    /// containerd did not answer.
    fn forget(&self, alias: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Makes the image's name again from the alias, if the name is gone or points to something that
    /// no container could start from. True if it had to. Otherwise gives the name back the labels that
    /// the alias carries: a pull that was dropped may have moved it without them.
    ///
    /// A name can come to point to what cannot start: a captive portal's page is taken for a manifest, and containerd lets the
    /// name point to it before it finds out (seen on 1.6 and 2.4).
    ///
    /// # Errors
    /// There is no such alias, or containerd did not answer.
    fn restore(
        &self,
        alias: &str,
        image: &ImageName,
    ) -> impl Future<Output = Result<bool, RuntimeError>> + Send;

    /// Makes an image of this program alone, which the alias points to and pins, unless it does so
    /// already and all of the image is there. True if something had to be made.
    ///
    /// No registry has given such an image to anybody, and no two that are made are alike: the
    /// kubelet takes each for one that was on the node before it (KEP-2535), which any pod may use.
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

    /// Follows changes of image names, from now on. Subscribe first, list afterwards.
    ///
    /// The stream never just ends: its last item is an error, because whoever follows would miss
    /// changes from there on. Subscribe again after it.
    ///
    /// # Errors
    /// containerd did not answer.
    fn image_events(&self) -> impl Future<Output = Result<ImageEvents, RuntimeError>> + Send;

    /// What runtime this is.
    ///
    /// # Errors
    /// containerd did not answer.
    fn version(&self) -> impl Future<Output = Result<RuntimeVersion, RuntimeError>> + Send;
}

/// Whether the kubelet's image collector may remove what an alias keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// It may not. containerd 1.6 before 1.6.36 does not know this.
    Pinned,
    /// It may, as without the alias.
    Unpinned,
}

/// What a name may point to and be pointed elsewhere.
#[derive(Clone, Copy, Debug)]
pub enum Over<'a> {
    /// Anything.
    Anything,
    /// An image of the same program alone.
    Program(&'a Program),
}

/// What became of a name that was to be pointed to an alias's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointed {
    /// It points there since this call.
    Now,
    /// It did before.
    Already,
    /// It points to something else, which stays.
    Elsewhere,
}

/// Changes of image names. Its last item is an error.
pub type ImageEvents = BoxStream<'static, Result<ImageEvent, RuntimeError>>;

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

/// What the disk had lost of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// What was taken out of containerd's database, in words for a person: it can be fetched again.
    pub removed: Vec<String>,
    /// What could not be, and why.
    pub kept: Vec<String>,
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
/// containerd writes downloads in steps of 1 MiB per layer, so a slow one moves seldom: at 200 KB/s
/// about every 5 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Movement {
    /// Bytes received for this image by now.
    pub bytes: u64,
    /// How many there will be, once the manifest is known.
    pub total_bytes: Option<u64>,
    /// Whether bytes have come in from one look at this pull to another. Without, what is there may
    /// be left over from an earlier one. The kubelet's pull of the same image at the same time cannot
    /// be told from ours.
    pub flows: bool,
    /// Whether it may be waiting in containerd's own queue: nothing of it moves or has moved since it
    /// was first seen, and others' downloads take all that containerd serves at once.
    pub queued: bool,
    /// Differs from an earlier answer's mark iff something moved in between: bytes came in, or a
    /// layer is being unpacked. It means nothing else.
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

/// Name and version of a container runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// E.g. `containerd`.
    pub name: String,
    /// As it says itself, e.g. `v2.4.2` or `1.6.20~ds1`.
    pub version: String,
}

impl fmt::Display for RuntimeVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// A pull that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pulling {image} failed: {failure}")]
pub struct PullError {
    image: ImageName,
    failure: Failure,
}

impl PullError {
    /// A failed pull of this image.
    pub fn new(image: ImageName, failure: Failure) -> Self {
        Self { image, failure }
    }

    /// Why it failed: classified, without secrets, short.
    pub fn failure(&self) -> Failure {
        self.failure.clone()
    }
}

/// A call to containerd that failed. Pulls have their own error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// No answer in time.
    #[error("{operation}: containerd did not answer within {timeout:?}")]
    Timeout {
        /// What was asked.
        operation: &'static str,
        /// How long was waited.
        timeout: Duration,
    },
    /// No connection, or it broke during the call.
    #[error("{operation}: containerd cannot be reached: {why}")]
    Unreachable {
        /// What was asked.
        operation: &'static str,
        /// What the connection said.
        why: String,
    },
    /// containerd answered with an error.
    #[error("{operation}: containerd answered {code:?}: {message}")]
    Answered {
        /// What was asked.
        operation: &'static str,
        /// Its code.
        code: tonic::Code,
        /// Its message, shortened.
        message: String,
    },
    /// There is no such image or alias.
    #[error("{operation}: {name} does not exist")]
    NotFound {
        /// What was asked.
        operation: &'static str,
        /// What is missing.
        name: String,
    },
    /// The alias could be taken for an image's name.
    #[error("invalid alias {alias:?}: it could be taken for an image's name")]
    BadAlias {
        /// The alias.
        alias: String,
    },
    /// The stream of events has ended; what follows would be missed.
    #[error("containerd has ended the event stream")]
    EventsEnded,
}

impl<R: ImageRuntime> ImageRuntime for Arc<R> {
    fn pull(&self, image: &ImageName) -> impl Future<Output = Result<(), PullError>> + Send {
        R::pull(self, image)
    }

    fn movement(
        &self,
        image: &ImageName,
    ) -> impl Future<Output = Result<Movement, RuntimeError>> + Send {
        R::movement(self, image)
    }

    fn local(&self, image: &ImageName) -> impl Future<Output = Result<Local, RuntimeError>> + Send {
        R::local(self, image)
    }

    fn listed(
        &self,
        image: &ImageName,
    ) -> impl Future<Output = Result<Local, RuntimeError>> + Send {
        R::listed(self, image)
    }

    fn mend(&self, image: &ImageName) -> impl Future<Output = Result<Mended, RuntimeError>> + Send {
        R::mend(self, image)
    }

    fn images(&self) -> impl Future<Output = Result<Vec<LocalImage>, RuntimeError>> + Send {
        R::images(self)
    }

    fn keep(
        &self,
        image: &ImageName,
        alias: &str,
        pin: Pin,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send {
        R::keep(self, image, alias, pin)
    }

    fn forget(&self, alias: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send {
        R::forget(self, alias)
    }

    fn restore(
        &self,
        alias: &str,
        image: &ImageName,
    ) -> impl Future<Output = Result<bool, RuntimeError>> + Send {
        R::restore(self, alias, image)
    }

    fn make(
        &self,
        program: &Program,
        alias: &str,
    ) -> impl Future<Output = Result<bool, RuntimeError>> + Send {
        R::make(self, program, alias)
    }

    fn point(
        &self,
        image: &ImageName,
        alias: &str,
        over: Over<'_>,
    ) -> impl Future<Output = Result<Pointed, RuntimeError>> + Send {
        R::point(self, image, alias, over)
    }

    fn pointing(
        &self,
        alias: &str,
    ) -> impl Future<Output = Result<Vec<ImageName>, RuntimeError>> + Send {
        R::pointing(self, alias)
    }

    fn image_events(&self) -> impl Future<Output = Result<ImageEvents, RuntimeError>> + Send {
        R::image_events(self)
    }

    fn version(&self) -> impl Future<Output = Result<RuntimeVersion, RuntimeError>> + Send {
        R::version(self)
    }
}
