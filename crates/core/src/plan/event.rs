//! What comes in, and what goes out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use crate::config::Config;
use crate::digest::Digest;
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass};
use crate::pod::{GatedPod, Overruled, PodId};
use crate::record::{RolledBack, Try};
use crate::release::{Progress, Release};
use crate::text;
use crate::verdict::{CachedCopy, Evidence};

/// What has happened outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The whole list of gated pods, after a connect or a re-list.
    Listed(Vec<GatedPod>),
    /// A pod, as the watch shows it now.
    Seen(Box<GatedPod>),
    /// The pod with this uid is gone.
    Gone(String),
    /// The pods, by uid, whose gates the container runtime runs now: the kubelet shows that up to a second later, on a
    /// busy node many seconds.
    GatesRun(BTreeSet<String>),
    /// It does not say any more which gates run: what the kubelet shows counts alone.
    GatesUnknown,
    /// The sandbox of the pod with this uid has started: its gate is next.
    SandboxStarted(String),
    /// A try has ended: the answer to [`Action::Try`].
    TryEnded(TryEnded),
    /// A command on the node has had an image pulled, and the image's name points to what that brought.
    TriedByHand {
        /// How that went.
        tried: Box<Try>,
        /// Every digest under which the node has that content, as in [`Evidence::digests`].
        digests: BTreeSet<Digest>,
    },
    /// A running try, or the kubelet's pull of a hand-over, has come this far.
    Moved(Moved),
    /// The copy that is there: the answer to [`Action::Inspect`].
    Inspected(ImageName, CachedCopy),
    /// By which digests the container runtime has the content that has this one, itself among them: the answer to
    /// [`Action::Compare`]. An empty set if it does not know the content; none if it did not answer.
    Compared(Digest, Option<BTreeSet<Digest>>),
    /// How writing a release went: the answer to [`Action::Release`].
    Written(PodId, Release, Written),
    /// The same for [`Action::Rewrite`].
    Rewritten(PodId, Release, Written),
    /// A sign of life was written: the answer to [`Action::Progress`], if it was.
    Showed(PodId),
    /// A name was taken away: the answer to [`Action::TakeAway`].
    TakenAway {
        /// The image.
        image: ImageName,
        /// The hand-over's name.
        id: u64,
        /// What it had pointed to, if there was a copy; or why it could not be taken.
        taken: Result<Option<Digest>, String>,
    },
    /// The kubelet has pulled: the name is there again.
    Returned {
        /// The image.
        image: ImageName,
        /// The hand-over's name.
        id: u64,
        /// What it points to.
        copy: CachedCopy,
    },
    /// The name is there again: the answer to [`Action::GiveBack`].
    GivenBack {
        /// The image.
        image: ImageName,
        /// The hand-over's name.
        id: u64,
        /// What it points to.
        copy: CachedCopy,
        /// Whether the kubelet had pulled by then.
        by_kubelet: bool,
    },
    /// How writing what became of a release went: the answer to [`Action::Settle`].
    Settled(PodId, Release, Written),
    /// Whether a hand-over could be seen through: containerd's events come, and changes of pods.
    Well(bool),
    /// Whether the kubelet remembers which credentials it has pulled an image with, and starts no other pod
    /// from it; until this is said, it does not.
    KubeletVerifies(bool),
    /// The administrator's configuration is this from now on: for rounds and pulls that begin later.
    Configured(Config),
    /// These names are pointed back to an earlier copy by hand, and no others.
    RolledBack(BTreeMap<ImageName, RolledBack>),
    /// The agent ends: what was taken away is given back.
    Stopping,
    /// Only these images are on the node or remembered by the index.
    Pruned(BTreeSet<ImageName>),
    /// Time has passed.
    Tick,
}

/// One thing to do. Nothing has to be awaited by the caller but [`Action::Record`]: answers come
/// back as events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Remember this try, before anything that follows.
    Record(Try),
    /// Prove the copy there is, pull, prove again.
    Try {
        /// What to pull.
        image: ImageName,
        /// Names this try.
        attempt: u64,
        /// Whether the registry is asked.
        ask: Ask,
        /// How long nothing may move before it has stalled.
        stall: Duration,
    },
    /// End this try's pull; [`Event::TryEnded`] follows.
    Cut {
        /// What is pulled.
        image: ImageName,
        /// The try's name.
        attempt: u64,
        /// What it is cut off for.
        why: Why,
    },
    /// Prove the copy there is, now.
    Inspect(ImageName),
    /// Look by which digests the content is known that has this one, of this image's repository.
    Compare(ImageName, Digest),
    /// Write the release to the pod.
    Release {
        /// Which pod.
        pod: PodId,
        /// What to write.
        release: Release,
        /// Since when, on [`Now::up`](crate::time::Now::up), the pod has waited for it.
        waits_since: Duration,
    },
    /// Write a sign of life to the pod.
    Progress(PodId, Progress),
    /// Write to the pod a release that it has, again or with what it came to.
    Rewrite(PodId, Release),
    /// Keep the image's copy under an alias, take its name away until CRI does not find it any more, and say
    /// when the name is there again.
    TakeAway {
        /// The image.
        image: ImageName,
        /// Names this hand-over.
        id: u64,
    },
    /// Give the name back to the copy, unless it is there again, until that has worked.
    GiveBack {
        /// The image.
        image: ImageName,
        /// Names the hand-over.
        id: u64,
    },
    /// Write to a pod what has become of its release, and say so to its owner.
    Settle(PodId, Release),
    /// Report to the pod's owner what is wrong, as a Warning Event.
    Complain(PodId, String),
    /// Report to the pod's owner, once, that another admission policy has changed its pull policies.
    Overruled(PodId, Vec<Overruled>),
    /// Report to the pod's owner, once, that its gate has opened by itself at this time: no agent
    /// answered.
    Unanswered(PodId, Timestamp, Silence),
    /// The same, but an agent did answer, or was at work, and the gate could not see it.
    Unseen(PodId, Timestamp, Answer),
}

/// Why a pull that stands still is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has stood still for too long.
    Hangs,
    /// Another pull waits, maybe for its place among containerd's downloads.
    InTheWay,
    /// A pod has come that may be luckier.
    Newcomer,
    /// The kubelet is to pull the image.
    HandOver,
    /// Its registry answers others again.
    RegistryIsBack,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hangs => "nothing has moved for too long",
            Self::InTheWay => "another pull waits",
            Self::Newcomer => "a new try may be luckier",
            Self::HandOver => "the kubelet is to pull the image",
            Self::RegistryIsBack => "the registry answers again",
        })
    }
}

/// Why no answer has reached a gate, as far as this agent knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// It was not there, or too late.
    NoAgent,
    /// It has an answer, and the API server does not take it.
    Unwritten,
}

/// What a gate did not see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The agent had tried for a while, and said so.
    AtWork,
    /// The release, as the pod carries it once it is amended.
    Released(Release),
}

/// Whether a try asks the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// It pulls.
    Always,
    /// Not if a copy is here: the registry has given it to anybody, and the name is a digest, which cannot move,
    /// or that was a moment ago. The copy is only proven; if there is none, the next try asks.
    IfAbsent,
    /// It does not: the try has failed already, with this.
    Never(Failure),
}

/// A try that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TryEnded {
    /// The image.
    pub image: ImageName,
    /// The try's name.
    pub attempt: u64,
    /// What it has shown.
    pub evidence: Evidence,
}

/// A running try has come this far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The image.
    pub image: ImageName,
    /// The try's name.
    pub attempt: u64,
    /// How far.
    pub flow: Flow,
}

/// How much of an image has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Bytes that are here.
    pub bytes: u64,
    /// How many there will be, once that is known.
    pub total_bytes: Option<u64>,
    /// Whether any came during this try: then the registry gives them to it. What an earlier try
    /// has left behind says nothing of that kind.
    pub flows: bool,
    /// For how long nothing has moved; none of it while the pull waits in the container runtime's own queue.
    pub still: Duration,
    /// How much longer nothing may move, because the container runtime is busy: it may be its own doing.
    pub grace: Duration,
    /// It may be waiting for its place among the container runtime's downloads, behind some that do not move.
    pub behind: bool,
}

impl Flow {
    /// Whether nothing has moved for longer than this, and what is allowed beyond.
    pub fn has_stalled(&self, stall: Duration) -> bool {
        self.still >= stall + self.grace
    }

    /// Why a pull is not waited for any longer.
    pub fn stood_still(&self) -> Failure {
        let still = text::short_duration(self.still);
        let words = match (self.bytes, self.total_bytes) {
            (0, _) => format!("nothing arrived for {still}"),
            (bytes, total) => {
                let bytes = text::bytes(bytes);
                let total = total.map(|total| format!(" of {}", text::bytes(total)));
                let total = total.unwrap_or_default();
                format!("nothing moved for {still} after {bytes}{total}")
            }
        };
        Failure::new(FailureClass::Timeout, words)
    }
}

/// How writing a release went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The API server has it.
    Done,
    /// There is no such pod any more.
    Gone,
    /// It may work later.
    Failed,
}
