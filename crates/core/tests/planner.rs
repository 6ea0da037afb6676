//! The planner under random events: tries that end in every way and order, answers that come late
//! or never, re-lists, images changed under the gate, agents that start again, clocks that jump.
//!
//! Whatever happens:
//! - once every action is answered, every gate is, within the pod's own time and a little more, also
//!   where the kubelet has missed that its release was written;
//! - no release names a copy that was not proven, or that the registry has refused and, where the kubelet
//!   keeps no records, has given to nobody with the pod's credentials;
//! - what was decided for a pod is sent again as it was;
//! - a pod starts unasked only from what its rollout was given or runs;
//! - every name that was taken away is given back, and nobody tries the image meanwhile;
//! - a pod without a gate is told what it runs and nothing else, and its images are tried only once it has started.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use trylatest_core::config::Config;
use trylatest_core::digest::Digest;
use trylatest_core::identity::Identity;
use trylatest_core::image::ImageName;
use trylatest_core::outcome::{Failure, FailureClass, Outcome};
use trylatest_core::plan::{Action, Ask, Event as Seen, Flow, Moved, Planner, TryEnded, Written};
use trylatest_core::pod::{GateState, GatedPod, PodId, Revision, Start, TryContainer};
use trylatest_core::record::{Facts, ImageRecord, Try, Week};
use trylatest_core::release::{ContainerRelease, FRESHNESS, Release};
use trylatest_core::rules::{NodeRules, PullLimit};
use trylatest_core::settings::Settings;
use trylatest_core::time::Now;
use trylatest_core::verdict::{CachedCopy, Evidence};

const TRY: Duration = Duration::from_secs(30);

const STALL: Duration = Duration::from_secs(5);

/// How long after a pod's own time its gate may be answered: the longest back-off, a last look and
/// the longest pause before a release is sent again.
const GRACE: Duration = Duration::from_secs(20);

/// How long names may be away if the kubelet does nothing at all, one hand-over after the other.
const AWAY: Duration = Duration::from_secs(3 * 130);

/// So many pods and images: few enough to meet often.
const PODS: usize = 2;
const IMAGES: [&str; 6] = [
    "reg.example/a:1",
    "reg.example/a:2",
    "reg.example/b",
    "reg.example/b:2",
    "reg.example/b@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "other.example/c",
];

/// What an administrator writes; no pod waits longer than without it.
const CONFIGS: [&str; 6] = [
    "",
    "ceilings: {try: 2s, max-age: 10s, fallback-on: [network, timeout]}",
    "registries: {reg.example: {try: 5s, stall: 3s, freshness: 20s}, reg.example/b: {max-age: 1m}}",
    "defaults: {fallback-on: [network], max-age: 1h}",
    "defaults: {freshness: 1m}\nceilings: {fallback-on: [blocked]}",
    "namespaces: {de*: {try: 4s, max-age: 1m}, default: {fallback-on: [network]}}\nregistries: {reg.example: {try: 6s}}",
];

fn config(which: usize) -> Config {
    Config::parse(CONFIGS[which]).expect("it is valid")
}

/// How a try or an inspection is answered.
#[derive(Clone, Debug)]
struct Answer {
    failure: Option<FailureClass>,
    before: CachedCopy,
    after: CachedCopy,
    sent: Written,
}

/// What is answered. Alike often, though there are more tries than looks.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Try,
    Look,
    Release,
    /// A name that is to be taken away or given back.
    Name,
}

impl Kind {
    fn is_of(self, action: &Action) -> bool {
        match self {
            Self::Try => matches!(action, Action::Try { .. }),
            Self::Look => matches!(action, Action::Inspect(_)),
            Self::Release => matches!(
                action,
                Action::Release { .. } | Action::Rewrite(..) | Action::Settle(..)
            ),
            Self::Name => matches!(action, Action::TakeAway { .. } | Action::GiveBack { .. }),
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
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
fn digest(n: u8) -> Digest {
    let named = IMAGES
        .iter()
        .find_map(|image| Some(image.split_once('@')?.1));
    let named = named.filter(|_| n == 2).map(str::to_owned);
    let text = named.unwrap_or_else(|| format!("sha256:{n}"));
    text.parse().expect("a digest")
}

fn copies() -> impl Strategy<Value = CachedCopy> {
    prop_oneof![
        3 => (1..3_u8).prop_map(|n| CachedCopy::Usable { digest: digest(n), size_bytes: 7 }),
        3 => Just(CachedCopy::Absent),
        1 => Just(CachedCopy::Unusable { why: "damaged".into() }),
        3 => Just(CachedCopy::Unknown { why: "no answer".into() }),
    ]
}

fn answers() -> impl Strategy<Value = Answer> {
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

fn starts() -> impl Strategy<Value = Start> {
    prop_oneof![
        Just(Start::Next),
        prop::sample::select(FailureClass::ALL.to_vec())
            .prop_map(|class| Start::Wanting(Failure::new(class, "why"))),
        // Of an image volume, the kubelet says nothing.
        (0..3_u8, any::<bool>()).prop_map(|(n, runs)| Start::Started {
            digest: (n > 0).then(|| digest(n)),
            since: runs.then_some(Timestamp::UNIX_EPOCH),
        }),
    ]
}

fn events() -> impl Strategy<Value = Event> {
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
        1 => pod.clone().prop_map(Event::SandboxStarts),
        1 => pod.clone().prop_map(Event::GateGivesUp),
        1 => pod.clone().prop_map(Event::GateIsBlind),
        3 => (any::<usize>(), 1..3_u8).prop_map(|(which, digest)| Event::Pulled { which, digest }),
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

/// The planner, and everything around it.
struct World {
    planner: Planner,
    up: Duration,
    wall: Timestamp,
    /// As the API server has them.
    pods: BTreeMap<usize, GatedPod>,
    under_way: Vec<Action>,
    /// What was proven of each image, ever.
    proven: BTreeSet<(ImageName, Digest)>,
    /// Decisions that could not be written yet, by the pod's uid.
    decided: BTreeMap<String, Release>,
    /// Pods whose first decision was looked at.
    judged: BTreeSet<String>,
    records: Vec<Try>,
    /// The registry's last answer about each image: whether it gave it to anybody.
    answers: BTreeMap<ImageName, bool>,
    /// Pods whose next change the kubelet misses.
    hidden: BTreeSet<usize>,
    /// Names that are being taken away, are away, or are being given back, with their hand-over.
    away: BTreeMap<ImageName, u64>,
    /// Who has been given what: everybody, or a tenant.
    given: BTreeSet<(ImageName, Digest, Option<String>)>,
    /// Images that a pod with a gate has named, or a pod without one has started from.
    named: BTreeSet<ImageName>,
    /// Whether the kubelet keeps records of who may have what.
    verifies: bool,
    /// Whether images are tried again without a pod.
    refreshes: bool,
    born: usize,
    /// What the pods of each rollout were given, or run.
    has: BTreeMap<String, BTreeSet<Digest>>,
}

impl World {
    fn new(verifies: bool, refreshes: bool) -> Self {
        let mut planner = planner(verifies, refreshes, &[]);
        let now = Now {
            wall: Timestamp::UNIX_EPOCH,
            up: Duration::ZERO,
        };
        planner.handle(now, Seen::Well(true));
        Self {
            planner,
            up: Duration::from_secs(100),
            wall: "2026-01-01T12:00:00Z".parse().expect("a time"),
            pods: BTreeMap::new(),
            under_way: Vec::new(),
            proven: BTreeSet::new(),
            decided: BTreeMap::new(),
            judged: BTreeSet::new(),
            records: Vec::new(),
            answers: BTreeMap::new(),
            hidden: BTreeSet::new(),
            away: BTreeMap::new(),
            given: BTreeSet::new(),
            named: BTreeSet::new(),
            verifies,
            refreshes,
            born: 0,
            has: BTreeMap::new(),
        }
    }

    fn now(&self) -> Now {
        Now {
            wall: self.wall,
            up: self.up,
        }
    }

    /// Tells the planner, takes over what it wants, and looks at every release.
    fn tell(&mut self, event: Seen) -> Result<(), TestCaseError> {
        for action in self.planner.handle(self.now(), event) {
            match &action {
                Action::Release { pod, release, .. } => {
                    prop_assert!(self.is_held(pod), "{pod:?} waits for nothing");
                    self.look_at(pod, release)?;
                    self.under_way.push(action);
                }
                Action::Rewrite(pod, again) => {
                    prop_assert!(self.is_held(pod), "{pod:?} waits for nothing");
                    self.look_again(pod, again)?;
                    self.under_way.push(action);
                }
                Action::Try { image, ask, .. } => {
                    let may_look = self.verifies || !self.is_private(image);
                    prop_assert!(*ask != Ask::IfAbsent || may_look, "{image}");
                    prop_assert!(!self.away.contains_key(image), "{image} is away");
                    prop_assert!(self.named.contains(image), "{image} has not started");
                    self.under_way.push(action);
                }
                Action::TakeAway { image, id } => {
                    let tried = |other: &Action| matches!(other, Action::Try { image: tried, .. } if tried == image);
                    prop_assert!(!self.under_way.iter().any(tried), "{image} is tried");
                    let names = |pod: &GatedPod| images_of(pod).any(|name| name == image);
                    let mut pods = self.pods.values();
                    let waits = pods.any(|pod| pod.gate != GateState::NotWanted && names(pod));
                    prop_assert!(waits, "nobody waits for {image}");
                    let before = self.away.insert(image.clone(), *id);
                    prop_assert_eq!(before, None, "{} is away", image);
                    self.under_way.push(action);
                }
                Action::GiveBack { image, id } => {
                    prop_assert_eq!(self.away.get(image), Some(id), "{} is there", image);
                    self.under_way.push(action);
                }
                Action::Settle(pod, release) if !self.is_held(pod) => {
                    self.look_at_told(pod, release)?;
                    self.under_way.push(action);
                }
                Action::Settle(pod, release) => {
                    let now = self.pods.values().find(|other| other.id == *pod);
                    let now = now.and_then(|pod| pod.released.as_ref());
                    prop_assert!(
                        now.is_none_or(|now| now.containers.len() == release.containers.len())
                    );
                    self.under_way.push(action);
                }
                Action::Cut { attempt, .. } => {
                    let runs = |other: &Action| matches!(other, Action::Try { attempt: id, .. } if id == attempt);
                    prop_assert!(self.under_way.iter().any(runs), "{attempt} does not run");
                }
                Action::Inspect(_) => self.under_way.push(action),
                Action::Progress(pod, _) => {
                    prop_assert!(self.is_held(pod), "{pod:?} waits for nothing");
                    self.tell(Seen::Showed(pod.clone()))?;
                }
                Action::Record(tried) => self.records.push(tried.clone()),
                _ => {}
            }
        }
        Ok(())
    }

    fn is_held(&self, id: &PodId) -> bool {
        let pod = self.pods.values().find(|pod| pod.id == *id);
        pod.is_none_or(|pod| pod.gate != GateState::NotWanted)
    }

    /// A pod without a gate is told what it runs.
    fn look_at_told(&self, id: &PodId, release: &Release) -> Result<(), TestCaseError> {
        let pod = self.pods.values().find(|pod| pod.id == *id);
        let pod = pod.expect("it is not held");
        for (name, given) in &release.containers {
            prop_assert_eq!(given.outcome, Outcome::NotHeld);
            prop_assert!(given.rollout.is_none() && given.runs.is_none());
            prop_assert!(given.moved.is_none() || given.moved != given.digest);
            prop_assert!(given.moved.is_none() || given.digest.is_some());
            if let Some(Start::Started { digest, .. }) = pod.starts.get(name)
                && digest.is_some()
            {
                prop_assert_eq!(&given.digest, digest);
            }
        }
        Ok(())
    }

    /// What was decided is written again as it was, but for what it came to.
    fn look_again(&self, id: &PodId, again: &Release) -> Result<(), TestCaseError> {
        let pod = self.pods.values().find(|pod| pod.id == *id);
        if let Some(released) = pod.and_then(|pod| pod.released.as_ref())
            && again.unseen.is_none()
        {
            prop_assert_eq!(&released.containers, &again.containers);
        }
        Ok(())
    }

    fn look_at(&mut self, id: &PodId, release: &Release) -> Result<(), TestCaseError> {
        let tenant = self.pods.values().find(|pod| pod.id == *id);
        let tenant = tenant.map(|pod| pod.identity.namespace.clone());
        for (name, container) in &release.containers {
            let starts = matches!(
                container.outcome,
                Outcome::Fresh | Outcome::Unchanged | Outcome::Same | Outcome::Fallback
            );
            self.look_at_rollout(id, container)?;
            prop_assert!(
                !starts || container.digest.is_some(),
                "{name}: {container:?}"
            );
            if container.outcome == Outcome::HandedOver {
                let image: ImageName = container.image.parse().expect("an image's name");
                prop_assert!(
                    self.away.contains_key(&image) || !self.judged.insert(id.uid.clone()),
                    "{container:?} is there"
                );
            }
            if let Some(digest) = &container.digest {
                let image = container.image.parse().expect("an image's name");
                prop_assert!(
                    self.proven.contains(&(image, digest.clone())),
                    "{container:?} was never proven"
                );
            }
        }
        let is_new = self.judged.insert(id.uid.clone());
        // With more containers, one may have been decided before the refusal.
        if is_new && let [container] = &release.containers.values().collect::<Vec<_>>()[..] {
            let image = container.image.parse().expect("an image's name");
            let starts = matches!(
                container.outcome,
                Outcome::Fallback | Outcome::Unchanged | Outcome::Same
            );
            prop_assert!(
                !starts
                    || self.verifies
                    || !self.is_private(&image)
                    || self.was_given(&image, container.digest.as_ref(), tenant),
                "{container:?} is private"
            );
        }
        let pod = self.pods.values().find(|pod| pod.id == *id).cloned();
        for given in release.containers.values() {
            if let Some(pod) = &pod {
                self.rollout_has(pod, given.digest.as_ref());
            }
        }
        if let Some(decided) = self.decided.insert(id.uid.clone(), release.clone()) {
            prop_assert_eq!(&decided.containers, &release.containers);
        }
        Ok(())
    }

    /// Nothing counts as what a rollout has that none of its pods was given or runs; nobody else starts unasked.
    fn look_at_rollout(&self, id: &PodId, given: &ContainerRelease) -> Result<(), TestCaseError> {
        if given.outcome != Outcome::Same && given.rollout.is_none() {
            return Ok(());
        }
        let pod = self.pods.values().find(|pod| pod.id == *id);
        let Some(pod) = pod else {
            return Ok(());
        };
        prop_assert!(pod.settings.same_digest, "{given:?}");
        // Of a pod with more containers, one may be decided, and its release waits for the others.
        let is_fellow = |other: &&GatedPod| other.revision == pod.revision;
        let mut fellows = self.pods.values().filter(is_fellow);
        if fellows.any(|fellow| fellow.containers.len() > 1) {
            return Ok(());
        }
        let owner = pod.revision.as_ref().map(|revision| &revision.owner);
        let has = owner.and_then(|owner| self.has.get(owner));
        let is_known = |digest: Option<&Digest>| {
            digest.is_none_or(|digest| has.is_some_and(|has| has.contains(digest)))
        };
        prop_assert!(is_known(given.rollout.as_ref()), "{given:?}: {has:?}");
        prop_assert!(
            given.outcome != Outcome::Same || is_known(given.digest.as_ref()),
            "{given:?}: {has:?}"
        );
        Ok(())
    }

    /// What a rollout's pods were ever given, or run.
    fn rollout_has(&mut self, pod: &GatedPod, digest: Option<&Digest>) {
        if let (Some(revision), Some(digest)) = (&pod.revision, digest) {
            let has = self.has.entry(revision.owner.clone()).or_default();
            has.insert(digest.clone());
        }
    }

    fn show(&mut self, pod: usize) -> Result<(), TestCaseError> {
        let Some(pod) = self.pods.get(&pod).cloned() else {
            return Ok(());
        };
        self.tell(Seen::Seen(Box::new(pod)))
    }

    fn list(&mut self) -> Result<(), TestCaseError> {
        let pods = self.pods.values().cloned().collect();
        self.tell(Seen::Listed(pods))
    }

    fn happens(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Arrives {
                pod,
                images,
                timeout,
                strict,
                held,
                rollout,
            } => self.arrives(pod, &images, timeout, strict, held, rollout),
            Event::Shown(pod) => self.show(pod),
            Event::Listed => self.list(),
            Event::Deleted(pod) => self.deleted(pod),
            Event::Changed { pod, image } => self.changed(pod, image),
            Event::GateStarts(pod) => self.gate_starts(pod),
            Event::GatesRun(pods) => self.gates_run(&pods),
            Event::SandboxStarts(pod) => match self.pods.get(&pod) {
                Some(pod) => self.tell(Seen::SandboxStarted(pod.id.uid.clone())),
                None => Ok(()),
            },
            Event::GateGivesUp(pod) => self.gate_gives_up(pod),
            Event::GateIsBlind(slot) => {
                let pod = self.pods.get(&slot);
                if pod.is_some_and(|pod| pod.released.is_none()) {
                    self.hidden.insert(slot);
                }
                Ok(())
            }
            Event::Answered {
                kind,
                which,
                answer,
            } => {
                let mut candidates = Vec::new();
                for (n, action) in self.under_way.iter().enumerate() {
                    if kind.is_of(action) {
                        candidates.push(n);
                    }
                }
                if candidates.is_empty() {
                    return Ok(());
                }
                let action = self.under_way.remove(candidates[which % candidates.len()]);
                self.answered(action, answer)
            }
            Event::Moved {
                which,
                bytes,
                flows,
                stalled,
            } => {
                let still = if stalled { STALL } else { Duration::ZERO };
                let flow = Flow {
                    bytes,
                    // Not before the manifest has come.
                    total_bytes: (bytes > 0).then_some(8),
                    flows: flows && bytes > 0 && !stalled,
                    still,
                    behind: bytes % 2 == 1,
                };
                self.moved(which, flow)
            }
            Event::Pulled { which, digest: n } => self.pulled(which, digest(n)),
            Event::Starts { pod, start } => self.starts(pod, start),
            Event::Well(is_well) => self.tell(Seen::Well(is_well)),
            Event::Configured(which) => self.tell(Seen::Configured(config(which))),
            Event::Time { millis } => self.time(Duration::from_millis(millis)),
            Event::Clock { seconds } => {
                self.wall += SignedDuration::from_secs(seconds);
                self.decided.clear();
                self.gates_read()
            }
            Event::Restarts { index } => self.restarts(index),
        }
    }

    /// The kubelet has come so far with the first container of this pod.
    fn starts(&mut self, slot: usize, mut start: Start) -> Result<(), TestCaseError> {
        let wall = self.wall;
        if let Start::Started { since, .. } = &mut start {
            *since = since.map(|_| wall);
        }
        if let Some(pod) = self.pods.get_mut(&slot)
            && matches!(pod.gate, GateState::Open | GateState::NotWanted)
            && let Some(first) = pod.containers.first()
        {
            pod.starts.insert(first.name.clone(), start.clone());
            if let Start::Started { digest, .. } = start {
                // Its other containers never start here.
                let mut others = pod.containers[1..].iter();
                if others.all(|other| other.image != first.image) {
                    self.named.extend(first.image.clone());
                }
                let pod = pod.clone();
                self.rollout_has(&pod, digest.as_ref());
            }
        }
        self.show(slot)
    }

    fn arrives(
        &mut self,
        pod: usize,
        images: &[usize],
        timeout: Option<u64>,
        strict: bool,
        held: bool,
        rollout: Option<u8>,
    ) -> Result<(), TestCaseError> {
        if self.pods.contains_key(&pod) {
            return Ok(());
        }
        self.born += 1;
        let containers = images.iter().enumerate().map(|(n, image)| TryContainer {
            name: format!("c{n}"),
            written: IMAGES[*image].to_owned(),
            image: IMAGES[*image].parse(),
        });
        let settings = Settings {
            timeout: timeout.map(Duration::from_secs),
            max_age: strict.then_some(Duration::from_secs(60)),
            fallback_on: None,
            same_digest: rollout.is_some(),
        };
        let revision = rollout.map(|n| Revision {
            owner: format!("owner{n}"),
            version: None,
        });
        let new = GatedPod {
            id: PodId {
                namespace: "default".into(),
                name: format!("pod{pod}"),
                uid: format!("uid{}", self.born),
            },
            created: Timestamp::from_second(self.wall.as_second()).expect("a time"),
            containers: containers.collect(),
            settings,
            revision,
            active_deadline: None,
            complaints: Vec::new(),
            has_image_volumes: false,
            overruled: Vec::new(),
            gate: if held {
                GateState::Pending
            } else {
                GateState::NotWanted
            },
            gate_image: None,
            identity: Identity {
                namespace: format!("tenant{pod}"),
                ..Identity::default()
            },
            starts: BTreeMap::new(),
            released: None,
            terminated: false,
        };
        if held {
            self.named.extend(images_of(&new).cloned());
        }
        self.pods.insert(pod, new);
        self.show(pod)
    }

    fn deleted(&mut self, pod: usize) -> Result<(), TestCaseError> {
        self.hidden.remove(&pod);
        let Some(pod) = self.pods.remove(&pod) else {
            return Ok(());
        };
        self.decided.remove(&pod.id.uid);
        // It may have run meanwhile.
        self.named.extend(images_of(&pod).cloned());
        self.tell(Seen::Gone(pod.id.uid))
    }

    fn changed(&mut self, pod: usize, image: usize) -> Result<(), TestCaseError> {
        let written = IMAGES[image];
        if let Some(pod) = self.pods.get_mut(&pod)
            && let Some(container) = pod.containers.first_mut()
            && container.written != written
        {
            written.clone_into(&mut container.written);
            container.image = written.parse();
            if pod.gate != GateState::NotWanted || pod.starts.contains_key(&container.name) {
                self.named.extend(container.image.clone());
            }
            self.decided.remove(&pod.id.uid);
        }
        self.show(pod)
    }

    /// The kubelet runs the gate, for the first time or after a reboot.
    fn gate_starts(&mut self, pod: usize) -> Result<(), TestCaseError> {
        let since = Timestamp::from_second(self.wall.as_second()).expect("a time");
        if let Some(pod) = self.pods.get_mut(&pod)
            && pod.gate != GateState::NotWanted
        {
            pod.gate = GateState::Running { since };
            self.decided.remove(&pod.id.uid);
        }
        self.gate_reads(pod);
        self.show(pod)
    }

    fn gates_run(&mut self, pods: &BTreeSet<usize>) -> Result<(), TestCaseError> {
        let pods = pods.iter().filter_map(|pod| self.pods.get(pod));
        let run = pods.map(|pod| pod.id.uid.clone()).collect();
        self.tell(Seen::GatesRun(run))
    }

    fn gate_gives_up(&mut self, pod: usize) -> Result<(), TestCaseError> {
        let at = self.wall;
        if let Some(pod) = self.pods.get_mut(&pod)
            && pod.gate != GateState::NotWanted
        {
            pod.gate = GateState::GaveUp { since: at, at };
            self.decided.remove(&pod.id.uid);
        }
        self.show(pod)
    }

    /// Gates look again at their release every few seconds.
    fn gates_read(&mut self) -> Result<(), TestCaseError> {
        for pod in 0..PODS {
            let before = self.pods.get(&pod).map(|pod| pod.gate);
            self.gate_reads(pod);
            if before != self.pods.get(&pod).map(|pod| pod.gate) {
                self.show(pod)?;
            }
        }
        Ok(())
    }

    /// A gate that runs acts on a fresh release at once.
    fn gate_reads(&mut self, pod: usize) {
        let wall = self.wall;
        if self.hidden.contains(&pod) {
            return;
        }
        let Some(pod) = self.pods.get_mut(&pod) else {
            return;
        };
        let fresh = pod
            .released
            .as_ref()
            .filter(|r| r.is_fresh(wall, FRESHNESS));
        if let (Some(release), GateState::Running { .. }) = (fresh, pod.gate) {
            pod.gate = if release.opens() {
                GateState::Open
            } else {
                GateState::Pending
            };
        }
    }

    fn answered(&mut self, action: Action, answer: Answer) -> Result<(), TestCaseError> {
        match action {
            Action::Try {
                image,
                attempt,
                ask,
                ..
            } => {
                self.prove(&image, &answer.after);
                let failure = match &ask {
                    Ask::Always => answer.failure.map(|class| Failure::new(class, "why")),
                    Ask::IfAbsent => None,
                    Ask::Never(failure) => Some(failure.clone()),
                };
                if ask == Ask::Always {
                    let class = failure.as_ref().map(|failure| failure.class);
                    if class == Some(FailureClass::Unauthorized) {
                        self.answers.insert(image.clone(), false);
                    } else if class.is_none()
                        && let Some(digest) = answer.after.digest()
                    {
                        self.answers.insert(image.clone(), true);
                        self.given.insert((image.clone(), digest.clone(), None));
                    }
                }
                let evidence = Evidence::of_try(failure, &answer.before, answer.after, None);
                self.tell(Seen::TryEnded(TryEnded {
                    image,
                    attempt,
                    evidence,
                }))
            }
            Action::Inspect(image) => {
                self.prove(&image, &answer.after);
                self.tell(Seen::Inspected(image, answer.after))
            }
            Action::Release { pod, release, .. } => self.written(&pod, release, answer.sent, false),
            Action::Rewrite(pod, release) => self.written(&pod, release, answer.sent, true),
            Action::Settle(id, release) => {
                let pod = self.pods.values_mut().find(|pod| pod.id == id);
                let mut sent = answer.sent;
                match pod {
                    None => sent = Written::Gone,
                    Some(_) if sent == Written::Gone => sent = Written::Failed,
                    Some(pod) if sent == Written::Done => pod.released = Some(release.clone()),
                    Some(_) => {}
                }
                self.tell(Seen::Settled(id, release, sent))
            }
            Action::TakeAway { image, id } => {
                self.prove(&image, &answer.before);
                let taken = match (&answer.before, answer.sent) {
                    (_, Written::Failed) => Err("no answer".to_owned()),
                    (copy, _) => Ok(copy.digest().cloned()),
                };
                self.tell(Seen::TakenAway { image, id, taken })
            }
            Action::GiveBack { image, id } => {
                self.away.remove(&image);
                self.prove(&image, &answer.after);
                let by_kubelet = answer.failure.is_none();
                if by_kubelet {
                    self.gives_to_all(&image, &answer.after);
                }
                self.tell(Seen::GivenBack {
                    image,
                    id,
                    copy: answer.after,
                    by_kubelet,
                })
            }
            _ => Ok(()),
        }
    }

    /// The kubelet has pulled an image whose name is away.
    fn pulled(&mut self, which: usize, digest: Digest) -> Result<(), TestCaseError> {
        let under_way = &self.under_way;
        let is_settled = |image: &ImageName| {
            !under_way.iter().any(|action| {
                matches!(action, Action::TakeAway { image: other, .. } | Action::GiveBack { image: other, .. } if other == image)
            })
        };
        let away = self.away.iter().filter(|(image, _)| is_settled(image));
        let away: Vec<_> = away.map(|(image, id)| (image.clone(), *id)).collect();
        if away.is_empty() {
            return Ok(());
        }
        let (image, id) = away[which % away.len()].clone();
        self.away.remove(&image);
        let copy = CachedCopy::Usable {
            digest,
            size_bytes: 7,
        };
        self.prove(&image, &copy);
        self.gives_to_all(&image, &copy);
        self.tell(Seen::Returned { image, id, copy })
    }

    /// The test does not know which tenant's pod leads.
    fn gives_to_all(&mut self, image: &ImageName, copy: &CachedCopy) {
        let Some(digest) = copy.digest() else {
            return;
        };
        let tenants = (0..PODS).map(|pod| Some(format!("tenant{pod}")));
        let given = tenants.map(|tenant| (image.clone(), digest.clone(), tenant));
        self.given.extend(given);
    }

    fn was_given(
        &self,
        image: &ImageName,
        digest: Option<&Digest>,
        tenant: Option<String>,
    ) -> bool {
        let Some(digest) = digest else {
            return true;
        };
        let given = |to| self.given.contains(&(image.clone(), digest.clone(), to));
        given(None) || given(tenant)
    }

    /// Whether the registry has refused the image, or has never given it and has refused another one of
    /// its repository.
    fn is_private(&self, image: &ImageName) -> bool {
        let same = |other: &&ImageName| other.repository() == image.repository();
        let refused = |other: &ImageName| self.answers.get(other) == Some(&false);
        match self.answers.get(image) {
            Some(given) => !given,
            None => self.answers.keys().filter(same).any(refused),
        }
    }

    fn prove(&mut self, image: &ImageName, copy: &CachedCopy) {
        if let Some(digest) = copy.digest() {
            self.proven.insert((image.clone(), digest.clone()));
        }
    }

    fn written(
        &mut self,
        id: &PodId,
        release: Release,
        sent: Written,
        again: bool,
    ) -> Result<(), TestCaseError> {
        let found = self.pods.iter().find(|(_, pod)| pod.id == *id);
        let slot = found.map(|(slot, _)| *slot);
        // The API server knows whether the pod is there.
        let sent = match (slot, sent) {
            (None, Written::Done | Written::Gone) => Written::Gone,
            (Some(_), Written::Gone) => Written::Failed,
            (_, sent) => sent,
        };
        if sent == Written::Done {
            self.decided.remove(&id.uid);
            if let Some(slot) = slot
                && let Some(pod) = self.pods.get_mut(&slot)
            {
                // The kubelet misses one change, and sees the next.
                self.hidden
                    .retain(|hidden| *hidden != slot || pod.released.is_none());
                pod.released = Some(release.clone());
            }
        }
        self.tell(if again {
            Seen::Rewritten(id.clone(), release, sent)
        } else {
            Seen::Written(id.clone(), release, sent)
        })?;
        if let Some(slot) = slot {
            self.gate_reads(slot);
            self.show(slot)?;
        }
        Ok(())
    }

    fn moved(&mut self, which: usize, flow: Flow) -> Result<(), TestCaseError> {
        let tries: Vec<_> = self
            .under_way
            .iter()
            .filter_map(|action| match action {
                Action::Try { image, attempt, .. } => Some((image.clone(), *attempt)),
                _ => None,
            })
            .collect();
        if tries.is_empty() {
            return Ok(());
        }
        let (image, attempt) = tries[which % tries.len()].clone();
        self.tell(Seen::Moved(Moved {
            image,
            attempt,
            flow,
        }))
    }

    /// Lets time pass, with a tick whenever the planner asked for one.
    fn time(&mut self, mut left: Duration) -> Result<(), TestCaseError> {
        let mut at_once = 0;
        loop {
            let next = self.planner.next_wakeup(self.now());
            let step = next.map_or(left, |next| next.min(left));
            at_once = if step.is_zero() { at_once + 1 } else { 0 };
            prop_assert!(at_once < 10, "the planner spins");
            self.up += step;
            self.wall += step;
            left = left.saturating_sub(step);
            self.tell(Seen::Tick)?;
            self.gates_read()?;
            if left.is_zero() {
                return Ok(());
            }
        }
    }

    fn restarts(&mut self, index: bool) -> Result<(), TestCaseError> {
        if !index {
            self.answers.clear();
            self.given.clear();
            self.records.clear();
        }
        let records = remembered(&self.records, self.wall);
        self.planner = planner(self.verifies, self.refreshes, &records);
        // The agent gives back what it finds away before it begins.
        self.away.clear();
        self.tell(Seen::Well(true))?;
        self.under_way.clear();
        self.decided.clear();
        self.judged.clear();
        self.list()
    }

    /// From here on everything is answered soon, for better or worse; no gate may wait at the end.
    fn calms_down(&mut self, answers: &[Answer], kubelet_works: bool) -> Result<(), TestCaseError> {
        self.tell(Seen::GatesRun(BTreeSet::new()))?;
        let mut answers = answers.iter().cycle();
        let patience = self.pods.values().map(|pod| pod.settings.timeout);
        let patience = patience.map(|own| own.unwrap_or(TRY)).max();
        let grace = if kubelet_works { GRACE } else { GRACE + AWAY };
        let end = self.up + patience.unwrap_or_default() + grace;
        while self.up < end {
            while !self.under_way.is_empty() {
                let action = self.under_way.remove(0);
                let mut answer = answers.next().expect("at least one").clone();
                answer.sent = Written::Done;
                self.answered(action, answer)?;
            }
            // A hand-over begins when its gate runs.
            let waits = |pod: &GatedPod| pod.gate == GateState::Pending && !is_released(pod);
            let waiting = self.pods.iter().find(|(_, pod)| waits(pod));
            if let Some(slot) = waiting.map(|(slot, _)| *slot) {
                self.gate_starts(slot)?;
                continue;
            }
            if kubelet_works && !self.away.is_empty() {
                self.pulled(0, digest(1))?;
                continue;
            }
            let Some(next) = self.planner.next_wakeup(self.now()) else {
                break;
            };
            self.time(
                next.max(Duration::from_millis(10))
                    .min(end.saturating_sub(self.up)),
            )?;
        }
        for pod in self.pods.values() {
            let answered = match pod.gate {
                GateState::Open | GateState::NotWanted | GateState::GaveUp { .. } => true,
                GateState::Running { .. } => false,
                GateState::Pending => is_released(pod),
            };
            prop_assert!(answered, "a gate waits for ever: {pod:?}");
        }
        prop_assert!(self.away.is_empty(), "away: {:?}", self.away);
        prop_assert!(!self.planner.is_handing_over());
        Ok(())
    }
}

fn images_of(pod: &GatedPod) -> impl Iterator<Item = &ImageName> {
    let containers = pod.containers.iter();
    containers.filter_map(|container| container.image.as_ref().ok())
}

/// Whether it has a release that is about its images, or that its gate takes for a refusal until it is
/// stale.
fn is_released(pod: &GatedPod) -> bool {
    pod.released.as_ref().is_some_and(|release| {
        !release.opens()
            || pod.containers.iter().all(|container| {
                let given = release.containers.get(&container.name);
                given.is_some_and(|given| given.image == container.written)
            })
    })
}

fn planner(verifies: bool, refreshes: bool, records: &[ImageRecord]) -> Planner {
    let mut planner = Planner::new("node", rules(verifies), records);
    planner.refresh_every(if refreshes { REFRESH } else { Duration::ZERO });
    planner
}

/// Some of the times that pass are longer, some shorter.
const REFRESH: Duration = Duration::from_secs(20);

fn rules(kubelet_verifies: bool) -> NodeRules {
    NodeRules {
        kubelet_pulls: PullLimit::default(),
        try_for: TRY,
        stall: STALL,
        freshness: Duration::ZERO,
        kubelet_verifies,
        allow_unverified_fallback: false,
        config: Config::default(),
    }
}

/// What the index would say of these tries.
fn remembered(records: &[Try], now: Timestamp) -> Vec<ImageRecord> {
    let mut images: BTreeMap<&ImageName, ImageRecord> = BTreeMap::new();
    for record in records {
        let image = images.entry(&record.image).or_insert_with(|| ImageRecord {
            image: record.image.clone(),
            facts: Facts::default(),
            seen: now,
            tries: Vec::new(),
            week: Week::default(),
        });
        image.facts.add(record);
        image.tries = vec![record.clone()];
    }
    images.into_values().collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(3000)
    })]

    #[test]
    fn every_gate_is_answered(
        events in vec(events(), 1..60),
        answers in vec(answers(), 1..8),
        verifies in any::<bool>(),
        refreshes in any::<bool>(),
        kubelet_works in any::<bool>(),
    ) {
        let mut world = World::new(verifies, refreshes);
        for event in events {
            world.happens(event)?;
        }
        world.calms_down(&answers, kubelet_works)?;
    }
}

/// One container waits for its last try when another's look moves the round's deadline.
#[test]
fn a_last_try_is_the_last_whatever_the_other_container_waits_for() {
    let answer = |kind, copy: CachedCopy| Event::Answered {
        kind,
        which: 0,
        answer: Answer {
            failure: Some(FailureClass::NotFound),
            before: copy.clone(),
            after: copy,
            sent: Written::Done,
        },
    };
    let flows = |which| Event::Moved {
        which,
        bytes: 1,
        flows: true,
        stalled: false,
    };
    let unknown = CachedCopy::Unknown { why: "x".into() };
    let mut world = World::new(false, false);
    for event in [
        Event::Arrives {
            pod: 0,
            images: vec![0, 2],
            timeout: Some(1),
            strict: false,
            held: true,
            rollout: None,
        },
        flows(0),
        flows(1),
        Event::Time { millis: 1000 },
        answer(Kind::Look, CachedCopy::Absent),
        answer(Kind::Look, unknown.clone()),
        answer(Kind::Try, CachedCopy::Absent),
    ] {
        world.happens(event).expect("no rule is broken");
    }
    let answers = [Answer {
        failure: None,
        before: CachedCopy::Absent,
        after: unknown,
        sent: Written::Done,
    }];
    world
        .calms_down(&answers, true)
        .expect("the gate is answered");
}

/// The registry refuses an image, and the agent is killed before the kubelet could have pulled it.
#[test]
fn a_refusal_survives_the_agent() {
    let copy = CachedCopy::Usable {
        digest: digest(1),
        size_bytes: 7,
    };
    let fails = |class, after: &CachedCopy| Event::Answered {
        kind: Kind::Try,
        which: 0,
        answer: Answer {
            failure: Some(class),
            before: copy.clone(),
            after: after.clone(),
            sent: Written::Done,
        },
    };
    let mut world = World::new(false, false);
    for event in [
        Event::Arrives {
            pod: 0,
            images: vec![0],
            timeout: None,
            strict: false,
            held: true,
            rollout: None,
        },
        // The kubelet is to pull it.
        fails(FailureClass::Unauthorized, &CachedCopy::Absent),
        Event::Restarts { index: true },
        // Somebody has brought it meanwhile.
        fails(FailureClass::Network, &copy),
    ] {
        world.happens(event).expect("no rule is broken");
    }
    let release = world.decided.values().next().expect("it is decided");
    assert!(!release.opens(), "{release:?}");
}
