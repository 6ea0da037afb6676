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

mod answers;
mod calm;
mod checks;
mod events;
mod pods;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::collection::vec;
use proptest::prelude::*;
use trylatest_core::config::Config;
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::outcome::FailureClass;
use trylatest_core::plan::{Action, Ask, Event as Seen, Flow, Planner, Written};
use trylatest_core::pod::{GateState, GatedPod};
use trylatest_core::record::{Facts, ImageRecord, Try, Week};
use trylatest_core::release::Release;
use trylatest_core::rules::NodeRules;
use trylatest_core::time::Now;
use trylatest_core::verdict::CachedCopy;

use self::events::{Answer, Event, Kind, answers, digest, events};

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
                    let mut given = release.containers.values();
                    prop_assert!(
                        given.all(|given| given.runs.is_none() || given.runs != given.digest)
                    );
                    self.under_way.push(action);
                }
                Action::Cut { attempt, .. } => {
                    let runs = |other: &Action| matches!(other, Action::Try { attempt: id, .. } if id == attempt);
                    prop_assert!(self.under_way.iter().any(runs), "{attempt} does not run");
                }
                Action::Inspect(_) | Action::Compare(..) => self.under_way.push(action),
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
            Event::GatesUnknown => self.tell(Seen::GatesUnknown),
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
                    grace: Duration::ZERO,
                    still,
                    behind: bytes % 2 == 1,
                };
                self.moved(which, flow)
            }
            Event::Pulled { which, digest: n } => self.pulled(which, digest(n)),
            Event::PulledByHand {
                image,
                digest: n,
                seconds,
            } => self.pulled_by_hand(IMAGES[image], digest(n), Duration::from_secs(seconds)),
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
}

fn images_of(pod: &GatedPod) -> impl Iterator<Item = &ImageName> {
    let containers = pod.containers.iter();
    containers.filter_map(|container| container.image.as_ref().ok())
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
        try_for: TRY,
        stall: STALL,
        kubelet_verifies,
        ..NodeRules::default()
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
