//! What may happen, and how often.

use std::collections::BTreeSet;

use jiff::Timestamp;
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use trylatest_core::digest::Digest;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::plan::{Action, Written};
use trylatest_core::pod::Start;
use trylatest_core::verdict::CachedCopy;

use super::{CONFIGS, IMAGES, PODS};

/// How a try or an inspection is answered.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) failure: Option<FailureClass>,
    pub(super) before: CachedCopy,
    pub(super) after: CachedCopy,
    pub(super) sent: Written,
}

/// What is answered. Alike often, though there are more tries than looks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Try,
    Look,
    Release,
    /// A name that is to be taken away or given back.
    Name,
}

impl Kind {
    pub(super) fn is_of(self, action: &Action) -> bool {
        match self {
            Self::Try => matches!(action, Action::Try { .. }),
            Self::Look => matches!(action, Action::Inspect(_) | Action::Compare(..)),
            Self::Release => matches!(
                action,
                Action::Release { .. } | Action::Rewrite(..) | Action::Settle(..)
            ),
            Self::Name => matches!(action, Action::TakeAway { .. } | Action::GiveBack { .. }),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A pod is created, with these images and this much time.
    Arrives {
        pod: usize,
        images: Vec<usize>,
        timeout: Option<u64>,
        strict: bool,
        held: bool,
        /// It belongs to this rollout, and is to start from what that has.
        rollout: Option<u8>,
    },
    /// The watch shows a pod as it is.
    Shown(usize),
    /// The watch shows them all.
    Listed,
    Deleted(usize),
    /// An image is changed under the gate.
    Changed {
        pod: usize,
        image: usize,
    },
    GateStarts(usize),
    /// The container runtime says, rightly or not, that these pods' gates run.
    GatesRun(BTreeSet<usize>),
    GatesUnknown,
    /// Likewise, that a pod's sandbox has started.
    SandboxStarts(usize),
    GateGivesUp(usize),
    /// The kubelet will miss that the pod's release is written.
    GateIsBlind(usize),
    /// One of the actions under way of this kind is answered.
    Answered {
        kind: Kind,
        which: usize,
        answer: Answer,
    },
    /// A running try has come this far.
    Moved {
        which: usize,
        bytes: u64,
        flows: bool,
        stalled: bool,
    },
    /// The kubelet has pulled an image whose name is away.
    Pulled {
        which: usize,
        digest: u8,
    },
    /// A command on the node has pulled an image, and has begun so long ago.
    PulledByHand {
        image: usize,
        digest: u8,
        seconds: u64,
    },
    /// The kubelet has come so far with the first container of a pod whose gate is open, or that has none; if it has
    /// started, it does so now.
    Starts {
        pod: usize,
        start: Start,
    },
    /// Whether a hand-over could be seen through.
    Well(bool),
    Time {
        millis: u64,
    },
    /// The wall clock is set.
    Clock {
        seconds: i64,
    },
    /// The administrator writes one of these.
    Configured(usize),
    /// The agent is killed and starts again, with or without its index.
    Restarts {
        index: bool,
    },
}

/// One of them is named by a pod.
pub(super) fn digest(n: u8) -> Digest {
    let named = IMAGES
        .iter()
        .find_map(|image| Some(image.split_once('@')?.1));
    let named = named.filter(|_| n == 2).map(str::to_owned);
    let text = named.unwrap_or_else(|| format!("sha256:{n}"));
    text.parse().expect("a digest")
}

pub(super) fn copies() -> impl Strategy<Value = CachedCopy> {
    prop_oneof![
        3 => (1..3_u8).prop_map(|n| CachedCopy::Usable { digest: digest(n), size_bytes: 7 }),
        3 => Just(CachedCopy::Absent),
        1 => Just(CachedCopy::Unusable { why: "damaged".into() }),
        3 => Just(CachedCopy::Unknown { why: "no answer".into() }),
    ]
}

pub(super) fn answers() -> impl Strategy<Value = Answer> {
    let failure = prop_oneof![
        1 => Just(None),
        2 => prop::sample::select(FailureClass::ALL.to_vec()).prop_map(Some),
        1 => Just(Some(FailureClass::Unauthorized)),
    ];
    let sent =
        prop_oneof![6 => Just(Written::Done), 3 => Just(Written::Failed), 1 => Just(Written::Gone)];
    (failure, copies(), copies(), sent).prop_map(|(failure, before, after, sent)| Answer {
        failure,
        before,
        after,
        sent,
    })
}

fn failure() -> impl Strategy<Value = Failure> {
    let classes = prop::sample::select(FailureClass::ALL.to_vec());
    classes.prop_map(|class| Failure::new(class, "why"))
}

pub(super) fn starts() -> impl Strategy<Value = Start> {
    prop_oneof![
        Just(Start::Next),
        failure().prop_map(Start::Wanting),
        failure().prop_map(Start::Behind),
        // Of an image volume, the kubelet says nothing.
        (0..3_u8, any::<bool>(), any::<bool>()).prop_map(|(n, runs, again)| Start::Started {
            digest: (n > 0).then(|| digest(n)),
            since: runs.then_some(Timestamp::UNIX_EPOCH),
            again,
        }),
    ]
}

pub(super) fn events() -> impl Strategy<Value = Event> {
    let pod = 0..PODS;
    let timeout = prop_oneof![
        Just(None),
        Just(Some(1)),
        Just(Some(2)),
        (1..20_u64).prop_map(Some)
    ];
    prop_oneof![
        4 => (pod.clone(), vec(0..IMAGES.len(), 0..4), timeout, any::<bool>(), prop::bool::weighted(0.7), prop::option::of(0..2_u8)).prop_map(
            |(pod, images, timeout, strict, held, rollout)| Event::Arrives { pod, images, timeout, strict, held, rollout }),
        1 => pod.clone().prop_map(Event::Shown),
        1 => Just(Event::Listed),
        1 => pod.clone().prop_map(Event::Deleted),
        1 => (pod.clone(), 0..IMAGES.len()).prop_map(|(pod, image)| Event::Changed { pod, image }),
        2 => pod.clone().prop_map(Event::GateStarts),
        2 => btree_set(pod.clone(), 0..PODS).prop_map(Event::GatesRun),
        1 => Just(Event::GatesUnknown),
        1 => pod.clone().prop_map(Event::SandboxStarts),
        1 => pod.clone().prop_map(Event::GateGivesUp),
        1 => pod.clone().prop_map(Event::GateIsBlind),
        3 => (any::<usize>(), 1..3_u8).prop_map(|(which, digest)| Event::Pulled { which, digest }),
        1 => (0..IMAGES.len(), 1..3_u8, 0..30_u64).prop_map(
            |(image, digest, seconds)| Event::PulledByHand { image, digest, seconds }),
        3 => (pod, starts()).prop_map(|(pod, start)| Event::Starts { pod, start }),
        1 => any::<bool>().prop_map(Event::Well),
        14 => (
            prop::sample::select(vec![Kind::Try, Kind::Look, Kind::Release, Kind::Name]),
            any::<usize>(),
            answers(),
        ).prop_map(|(kind, which, answer)| Event::Answered { kind, which, answer }),
        2 => (any::<usize>(), 0..9_u64, any::<bool>(), any::<bool>()).prop_map(
            |(which, bytes, flows, stalled)| Event::Moved { which, bytes, flows, stalled }),
        8 => prop_oneof![0..500_u64, 900..2_100_u64, 0..40_000_u64].prop_map(|millis| Event::Time { millis }),
        1 => prop_oneof![-200..200_i64, -100_000..100_000_i64].prop_map(|seconds| Event::Clock { seconds }),
        1 => (0..CONFIGS.len()).prop_map(Event::Configured),
        1 => any::<bool>().prop_map(|index| Event::Restarts { index }),
    ]
}
