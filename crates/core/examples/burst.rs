//! What the planner takes of the processor when 20 pods start at once, by what the agent does after each event
//! (docs/performance.md):
//!
//! ```sh
//! cargo run --release --package trylatest-core --example burst
//! ```
//!
//! Each number is the least of several bursts: what else the machine does is not the planner's.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use trylatest_core::image::ImageName;
use trylatest_core::node::NodeReport;
use trylatest_core::plan::{Action, Event, Planner, TryEnded, Written};
use trylatest_core::pod::{GateState, GatedPod, PodId, TryContainer};
use trylatest_core::record::{Facts, ImageRecord, Try, TryResult, Week};
use trylatest_core::rules::NodeRules;
use trylatest_core::time::Now;
use trylatest_core::verdict::{CachedCopy, Evidence};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Pods of a burst.
const BURST: usize = 20;

/// Pods that run before.
const BEFORE: usize = 80;

const TIMES: usize = 10;

/// How often the kubelet writes a pod's status while it starts.
const STATUSES: usize = 3;

/// What is measured, in the agent's order.
const STEPS: [&str; 6] = ["decide", "report", "its text", "used", "figures", "timer"];

type Took = [Duration; STEPS.len()];

struct World {
    planner: Planner,
    up: Duration,
    pods: BTreeMap<String, GatedPod>,
    events: usize,
    took: Took,
}

fn main() -> Result<()> {
    println!("images known, pods before, events: microseconds of {STEPS:?}");
    for (known, before) in [(20, BEFORE), (1000, BEFORE)] {
        let (mut least, mut events) = ([Duration::MAX; STEPS.len()], 0);
        for _ in 0..TIMES {
            let mut world = World::new(known)?;
            world.start(0, before)?;
            (world.took, world.events) = (Took::default(), 0);
            world.start(before, BURST)?;
            events = world.events;
            for (least, took) in least.iter_mut().zip(world.took) {
                *least = took.min(*least);
            }
        }
        let least = least.map(|took| took.as_micros());
        println!("{known}, {before}, {events}: {least:?}");
    }
    Ok(())
}

impl World {
    fn new(known: usize) -> Result<Self> {
        let rules = NodeRules {
            kubelet_verifies: true,
            ..NodeRules::default()
        };
        let records: Vec<ImageRecord> = (0..known).map(record).collect::<Result<_>>()?;
        let mut world = Self {
            planner: Planner::new("node", rules, &records),
            up: Duration::from_secs(100),
            pods: BTreeMap::new(),
            events: 0,
            took: Took::default(),
        };
        world.handle(Event::Listed(Vec::new()));
        Ok(world)
    }

    fn now(&self) -> Now {
        let wall = Timestamp::UNIX_EPOCH + self.up;
        Now { wall, up: self.up }
    }

    /// Pods are seen, each of an image of its own, and start.
    fn start(&mut self, first: usize, count: usize) -> Result<()> {
        let all = first..first + count;
        let mut plan = Vec::new();
        for n in all.clone() {
            let pod = pod(n, self.now())?;
            self.pods.insert(pod.id.uid.clone(), pod.clone());
            plan.extend(self.handle(Event::Seen(Box::new(pod))));
        }
        self.carry_out(plan)?;
        for n in all.flat_map(|n| [n; STATUSES]) {
            let pod = self.pods[&uid(n)].clone();
            let plan = self.handle(Event::Seen(Box::new(pod)));
            self.carry_out(plan)?;
        }
        Ok(())
    }

    /// What is wanted succeeds.
    fn carry_out(&mut self, plan: Vec<Action>) -> Result<()> {
        let mut plan = VecDeque::from(plan);
        while let Some(action) = plan.pop_front() {
            let events = match action {
                Action::Try { image, attempt, .. } => {
                    let copy = copy()?;
                    let evidence = Evidence::of_try(None, &copy, copy.clone(), None);
                    vec![Event::TryEnded(TryEnded {
                        image,
                        attempt,
                        evidence,
                    })]
                }
                Action::Release { pod, release, .. } => {
                    let seen = self.pods.get_mut(&pod.uid).ok_or("an unknown pod")?;
                    seen.released = Some(release.clone());
                    let seen = Box::new(seen.clone());
                    vec![
                        Event::Written(pod, release, Written::Done),
                        Event::Seen(seen),
                    ]
                }
                Action::Progress(pod, _) => vec![Event::Showed(pod)],
                Action::Inspect(image) => vec![Event::Inspected(image, copy()?)],
                _ => Vec::new(),
            };
            for event in events {
                plan.extend(self.handle(event));
            }
        }
        Ok(())
    }

    /// What the agent does with an event.
    fn handle(&mut self, event: Event) -> Vec<Action> {
        self.up += Duration::from_millis(2);
        self.events += 1;
        let now = self.now();
        let plan = self.step(0, |planner| planner.handle(now, event));
        let images = self.step(1, |planner| planner.take_report(now));
        self.step(2, |_| images.map(|images| NodeReport::new(images, false)));
        self.step(3, Planner::take_used);
        self.step(4, |planner| planner.figures());
        self.step(5, |planner| planner.next_wakeup(now));
        plan
    }

    #[expect(clippy::disallowed_methods, reason = "it measures real time")]
    fn step<T>(&mut self, step: usize, does: impl FnOnce(&mut Planner) -> T) -> T {
        let begin = Instant::now();
        let done = black_box(does(&mut self.planner));
        self.took[step] += begin.elapsed();
        done
    }
}

fn image(n: usize) -> Result<ImageName> {
    Ok(format!("registry.example/team/app-{n}:latest").parse()?)
}

fn uid(n: usize) -> String {
    format!("uid-{n}")
}

fn copy() -> Result<CachedCopy> {
    Ok(CachedCopy::Usable {
        digest: format!("sha256:{:064x}", 1).parse()?,
        size_bytes: 7,
    })
}

/// What an earlier run has left of an image.
fn record(n: usize) -> Result<ImageRecord> {
    let tried = Try {
        image: image(n)?,
        started: Timestamp::UNIX_EPOCH,
        duration: Duration::from_millis(10),
        result: TryResult::Unchanged,
        digest: copy()?.digest().cloned(),
        size_bytes: Some(7),
        copy_unknown: false,
        pulled_for: None,
        refused: false,
        by_hand: false,
    };
    let mut facts = Facts {
        confirmed: None,
        needs_credentials: false,
        private_to: None,
        copy: None,
        rolled_back: None,
    };
    facts.add(&tried);
    Ok(ImageRecord {
        image: tried.image.clone(),
        facts,
        seen: tried.started,
        tries: vec![tried],
        week: Week::default(),
    })
}

fn pod(n: usize, now: Now) -> Result<GatedPod> {
    let image = image(n)?;
    let id = PodId {
        namespace: "default".to_owned(),
        name: format!("pod-{n}"),
        uid: uid(n),
    };
    Ok(GatedPod {
        containers: vec![TryContainer {
            name: "app".to_owned(),
            written: image.to_string(),
            image: Ok(image),
        }],
        gate: GateState::Running { since: now.wall },
        ..GatedPod::new(id, now.wall)
    })
}
