//! The agent's memory over a simulated outage: its tasks of pods, of kept copies and of the node's report, on a
//! containerd and an API server in memory, an index on disk, and a clock that jumps. What is left out has no state that
//! grows with pods: the watch (kube's), the gate's image, and HTTP.
//!
//! What is counted is everything that the process has allocated, also by what plays the world around the agent. The
//! heap's own slack and the binary's pages come on top.

use std::alloc::System;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use serde_json::Value;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use trylatest_containerd::fake::{Answer, FakeContainerd};
use trylatest_core::config::Config;
use trylatest_core::disk::{Amount, Disk};
use trylatest_core::identity::Identity;
use trylatest_core::image::ImageName;
use trylatest_core::keep::Limits;
use trylatest_core::keys;
use trylatest_core::outcome::{Failure, FailureClass, Outcome};
use trylatest_core::plan::Planner;
use trylatest_core::pod::{GateState, GatedPod, PodId, Start, TryContainer};
use trylatest_core::release::Release;
use trylatest_core::rules::NodeRules;
use trylatest_core::settings::Settings;
use trylatest_k8s::{PodChange, Writer, fake};

use super::api::Api;
use super::health::Health;
use super::history::History;
use super::metrics::{Channel, Metrics};
use super::node::NodeWriter;
use super::offers;
use super::pods::Pods;
use super::questions;
use super::shelf::Shelf;
use crate::args::Verifies;
use crate::clock::{self, Clock};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Between two pods: 10,000 come and go in a day.
const ARRIVE_EVERY: Duration = Duration::from_millis(24 * 3_600_000 / 10_000);

const HOUR: Duration = Duration::from_hours(1);

/// When the registries fail, until the end.
const OUTAGE_AFTER: Duration = Duration::from_mins(15);

/// The hour after which the heap is compared: pods, caches and circuits are then as many as they will be.
const WARM: usize = 1;

/// The most that the heap may be then. It is less than 3 MiB.
const WARM_MAX: u64 = 4 << 20;

/// How far the heap may be from that later.
const CHANGE_MAX: u64 = 2 << 20;

/// How often the watch begins again.
const LIST_EVERY: Duration = Duration::from_secs(330);

/// Images that pods name again and again, at each registry.
const TAGS: u64 = 40;

/// What a registry does in the outage.
const REGISTRIES: [&str; 5] = [
    "refuses.example",
    "silent.example",
    "errors.example",
    "slow.example",
    // It answers, and wants credentials that nobody has.
    "private.example",
];

const GIB: u64 = 1 << 30;

#[test]
fn an_hour_of_outage_takes_little_memory() {
    let this = std::env::current_exe().unwrap();
    // Without the crate's name, as the test harness has it.
    let (_, module) = module_path!().split_once("::").unwrap();
    // Alone in its process: other tests allocate, too.
    let mut hour = Command::new(this)
        .args(["--exact", &format!("{module}::an_hour_of_outage")])
        .args(["--ignored", "--nocapture"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert!(hour.wait().unwrap().success());
}

#[tokio::test(start_paused = true)]
#[ignore = "the test above runs it in a process of its own"]
async fn an_hour_of_outage() {
    outage_of(1).await;
}

#[tokio::test(start_paused = true)]
#[ignore = "it takes minutes, and has to be alone in its process: `just test-day`"]
async fn a_day_of_outage() {
    outage_of(24).await;
}

async fn outage_of(hours: usize) {
    let heap = World::start().await.run(hours).await;
    let kib: Vec<u64> = heap.iter().map(|bytes| bytes >> 10).collect();
    let warm = heap[WARM];
    assert!(warm <= WARM_MAX, "it is large: {kib:?} KiB");
    let is_flat = heap[WARM..]
        .iter()
        .all(|at| at.abs_diff(warm) <= CHANGE_MAX);
    assert!(is_flat, "it is not flat: {kib:?} KiB");
}

/// Past the test harness, which keeps what a good test prints.
fn say(words: &str) {
    writeln!(std::io::stderr(), "{words}").unwrap();
}

/// What has been allocated and not freed.
fn heap() -> u64 {
    let stats = HEAP.stats();
    (stats.bytes_allocated - stats.bytes_deallocated) as u64
}

/// What is to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Arrives,
    /// The gate begins to wait.
    Waits(u32),
    /// The gate has opened.
    Opens(u32),
    /// The kubelet goes on after the gate.
    Starts(u32),
    Ends(u32),
    Goes(u32),
    List,
    Outage,
    Hour,
}

/// Releases that were written, by the pods' names.
type Releases = mpsc::UnboundedReceiver<(String, Release)>;

/// Everything around the agent.
struct World {
    images: FakeContainerd,
    changes: mpsc::UnboundedSender<PodChange>,
    released: Releases,
    pods: BTreeMap<u32, GatedPod>,
    /// Names that no other pod has.
    once: BTreeMap<u32, ImageName>,
    next: BTreeSet<(Instant, Next)>,
    born: u32,
    random: u64,
    outcomes: BTreeMap<Outcome, u32>,
    alive: (usize, usize),
    is_outage: bool,
    hangs: bool,
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
    state: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let images = FakeContainerd::new();
        for image in (0..REGISTRIES.len()).flat_map(|at| (0..TAGS).map(move |n| image(at, n))) {
            images.hold(&image, &digest(image.as_str()), GIB / 4);
            images.push(&image, &digest(image.as_str()), GIB / 4);
        }
        let (wrote, released) = mpsc::unbounded_channel();
        let client = fake::client(move |method, path, body| {
            if let Some(release) = release_in(&body) {
                let name = path.rsplit('/').next().unwrap_or_default().to_owned();
                let _ = wrote.send((name, release));
            }
            fake::accepted(method, path)
        });
        let (changes, watched) = mpsc::unbounded_channel();
        let mut world = Self {
            images: images.clone(),
            changes,
            released,
            pods: BTreeMap::new(),
            once: BTreeMap::new(),
            next: BTreeSet::new(),
            born: 0,
            random: 1,
            outcomes: BTreeMap::new(),
            alive: (usize::MAX, 0),
            is_outage: false,
            hangs: false,
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
            state,
        };
        let metrics = Arc::new(Metrics::new("test").unwrap());
        let api = Api {
            writer: Writer::new(client, "node", Duration::from_secs(5)),
            metrics: Arc::clone(&metrics),
        };
        world.start_agent(api, metrics, watched).await;
        world
    }

    /// As [`super::start`] does.
    async fn start_agent(
        &mut self,
        api: Api,
        metrics: Arc<Metrics>,
        watched: mpsc::UnboundedReceiver<PodChange>,
    ) {
        let index = self.state.path().join("index");
        let (history, _) = History::open(&index, Arc::clone(&metrics)).await;
        let runtime = Arc::new(self.images.clone());
        let health = Arc::new(Health::new());
        // The task that looks after the gate's image says so.
        health.set_runtime(true);
        let (report, reported) = watch::channel(None);
        let (use_of, used) = watch::channel(None);
        let (_, config) = watch::channel(Config::default());
        let (gates, _) = offers::channel(1, metrics.calls.overflows(Channel::Gates));
        let rules = NodeRules {
            kubelet_verifies: true,
            ..NodeRules::default()
        };
        let mut planner = Planner::new("node", rules, &[]);
        planner.refresh_every(HOUR);
        let pods = Pods {
            runtime: Arc::clone(&runtime),
            api: api.clone(),
            history,
            metrics: Arc::clone(&metrics),
            health,
            planner,
            clock: Clock::start(),
            config: config.clone(),
            disk_floor: Amount::Percent(15),
            rolled_back: watch::channel(None).1,
            keep_for: 14 * 24 * HOUR,
            kubelet_verifies: Verifies::Yes,
            report,
            used: use_of,
            gates,
            questions: questions::channel().1,
        };
        let keeper = Shelf {
            runtime,
            metrics,
            clock: Clock::start(),
            limits: Limits {
                time: 14 * 24 * HOUR,
                size: Amount::Percent(10),
                free: Amount::Percent(20),
                pins: true,
            },
            config,
            disk: || {
                Some(Disk {
                    total: 200 * GIB,
                    free: 100 * GIB,
                    lacks_inodes: false,
                })
            },
            used,
        };
        let node = NodeWriter {
            api,
            report: reported,
        };
        let watch = stream::unfold(watched, async |mut watched| {
            Some((Ok(watched.recv().await?), watched))
        });
        self.tasks.spawn(pods.run(watch, self.stop.clone()));
        self.tasks.spawn(keeper.run(self.stop.clone()));
        self.tasks.spawn(node.run(self.stop.clone()));
    }

    /// So many hours, and the heap at the beginning and after each of them.
    async fn run(mut self, hours: usize) -> Vec<u64> {
        let begin = Instant::now();
        let mut heaps = Vec::with_capacity(hours + 1);
        for first in [Next::Hour, Next::List, Next::Arrives] {
            self.next.insert((begin, first));
        }
        self.next.insert((begin + OUTAGE_AFTER, Next::Outage));
        while heaps.len() <= hours {
            let due = self.next.first().unwrap().0;
            // Both lose nothing when they are not chosen.
            tokio::select! {
                Some((pod, release)) = self.released.recv() => self.was_released(&pod, release),
                ended = self.tasks.join_next() => panic!("a task has ended: {ended:?}"),
                () = sleep_until(due) => {
                    let (_, next) = self.next.pop_first().unwrap();
                    if next == Next::Hour {
                        let heap = heap();
                        say(&format!("hour {}: {} KiB", heaps.len(), heap >> 10));
                        heaps.push(heap);
                        self.fail(heaps.len());
                        self.next.insert((due + HOUR, Next::Hour));
                    } else {
                        self.happens(next);
                    }
                }
            }
        }
        self.was_lively(begin.elapsed());
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
        heaps
    }

    /// It was what it is meant to be.
    fn was_lively(&self, after: Duration) {
        let Self {
            born,
            alive: (least, most),
            outcomes,
            ..
        } = self;
        say(&format!(
            "{born} pods, {least} to {most} at once: {outcomes:?}"
        ));
        assert!(u128::from(*born) >= after.as_millis() / ARRIVE_EVERY.as_millis());
        assert!(*least >= 30 && *most <= 110);
        for outcome in [Outcome::Fallback, Outcome::Unavailable, Outcome::Refused] {
            assert!(outcomes.get(&outcome) > Some(&20), "{outcome}");
        }
        assert!(outcomes.values().sum::<u32>() + 110 >= *born);
    }

    fn happens(&mut self, next: Next) {
        match next {
            Next::Hour => {}
            Next::Outage => {
                self.is_outage = true;
                self.fail(1);
            }
            Next::List => {
                let pods = self.pods.values().cloned().collect();
                self.changes.send(PodChange::Reset(pods)).unwrap();
                self.later(LIST_EVERY, Next::List);
            }
            Next::Arrives => {
                self.arrives();
                self.later(ARRIVE_EVERY, Next::Arrives);
                let alive = self.pods.len();
                self.alive.1 = self.alive.1.max(alive);
                // The first ones are few.
                if self.born > 400 {
                    self.alive.0 = self.alive.0.min(alive);
                }
            }
            Next::Waits(pod) => {
                let since = clock::wall();
                self.shows(pod, |pod| pod.gate = GateState::Running { since });
            }
            Next::Opens(pod) => {
                self.shows(pod, |pod| {
                    pod.gate = GateState::Open;
                    let first = pod.containers[0].name.clone();
                    pod.starts.insert(first, Start::Next);
                });
                self.later(Duration::from_secs(1), Next::Starts(pod));
            }
            Next::Starts(pod) => self.starts(pod),
            Next::Ends(pod) => {
                self.shows(pod, |pod| pod.terminated = true);
                self.later(Duration::from_secs(2), Next::Goes(pod));
            }
            Next::Goes(pod) => {
                if let Some(gone) = self.pods.remove(&pod) {
                    self.changes.send(PodChange::Gone(gone.id.uid)).unwrap();
                }
                // The kubelet collects what no pod uses; a copy that the agent keeps goes with its alias.
                if let Some(image) = self.once.remove(&pod) {
                    self.images.remove_by_id(&image);
                    self.images.forget_pulls(&image);
                }
            }
        }
    }

    fn later(&mut self, pause: Duration, next: Next) {
        self.next.insert((Instant::now() + pause, next));
    }

    /// A pod changes, and the watch shows it.
    fn shows(&mut self, pod: u32, change: impl FnOnce(&mut GatedPod)) {
        if let Some(pod) = self.pods.get_mut(&pod) {
            change(pod);
            self.changes
                .send(PodChange::Seen(Box::new(pod.clone())))
                .unwrap();
        }
    }

    /// Once there is an outage, no registry gives anything; how it fails depends on the hour.
    fn fail(&mut self, hour: usize) {
        if !self.is_outage {
            return;
        }
        self.hangs = hour.is_multiple_of(6);
        for at in 0..REGISTRIES.len() {
            for n in 0..TAGS {
                self.images.answer(&image(at, n), outage(at, self.hangs));
            }
        }
    }

    fn arrives(&mut self) {
        let number = self.born;
        self.born += 1;
        let namespace = format!("team-{}", self.random(20));
        let at = usize::try_from(self.random(5)).unwrap();
        let mut images = vec![image(at, self.random(TAGS))];
        if self.random(4) == 0 {
            let at = usize::try_from(self.random(5)).unwrap();
            images.push(image(at, self.random(TAGS)));
        }
        // A build, for example: half of these were brought to the node, the others are nowhere.
        if self.random(10) == 0 {
            let image: ImageName = format!("{}/build:{number}", REGISTRIES[at])
                .parse()
                .unwrap();
            self.images.answer_once(&image, outage(at, self.hangs));
            if self.random(2) == 0 {
                self.images.hold(&image, &digest(image.as_str()), GIB / 4);
            }
            self.once.insert(number, image.clone());
            images[0] = image;
        }
        let settings = Settings {
            timeout: (self.random(5) == 0).then_some(Duration::from_secs(10)),
            max_age: (self.random(20) == 0).then_some(2 * HOUR),
            ..Settings::default()
        };
        let pod = pod(number, namespace, &images, settings);
        self.pods.insert(number, pod);
        self.shows(number, |_| ());
        self.later(Duration::from_millis(500), Next::Waits(number));
        let life = Duration::from_secs(60 + self.random(1090));
        self.later(life, Next::Ends(number));
    }

    /// The agent has answered: the gate acts on it.
    fn was_released(&mut self, name: &str, release: Release) {
        let Some(number) = name.strip_prefix("pod-").and_then(|n| n.parse().ok()) else {
            return;
        };
        for container in release.containers.values() {
            *self.outcomes.entry(container.outcome).or_default() += 1;
        }
        let opens = release.opens();
        let is_open = self
            .pods
            .get(&number)
            .is_some_and(|pod| pod.gate == GateState::Open);
        self.shows(number, |pod| {
            pod.released = Some(release);
            if !opens {
                pod.gate = GateState::Pending;
            }
        });
        if !opens {
            // It fails, and the kubelet starts it again.
            self.later(Duration::from_mins(3), Next::Waits(number));
        } else if !is_open {
            self.later(Duration::from_secs(1), Next::Opens(number));
        }
    }

    /// The kubelet starts the containers from what it finds; its own pulls fail.
    fn starts(&mut self, number: u32) {
        let images = self.images.clone();
        let since = Some(clock::wall());
        self.shows(number, |pod| {
            for container in &pod.containers {
                let image = container.image.as_ref().unwrap();
                let start = match images.kept(image.as_str()) {
                    Some(digest) => Start::Started {
                        digest: digest.parse().ok(),
                        since,
                        again: false,
                    },
                    None => Start::Wanting(Failure::new(FailureClass::Unauthorized, "401")),
                };
                pod.starts.insert(container.name.clone(), start);
            }
        });
        let waits = |pod: &GatedPod| pod.starts.values().any(|s| matches!(s, Start::Wanting(_)));
        if self.pods.get(&number).is_some_and(waits) {
            self.later(Duration::from_secs(20), Next::Starts(number));
        }
    }

    /// Less than `below`: the same in each run (splitmix64).
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

fn image(at: usize, n: u64) -> ImageName {
    format!("{}/app-{}:v{n}", REGISTRIES[at], n / 4)
        .parse()
        .unwrap()
}

/// A different one for each image.
fn digest(image: &str) -> String {
    let letters = image.bytes().fold(7_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    format!("sha256:{letters:064x}")
}

/// What a pull from a registry comes to.
///
/// Pulls hang in some hours only: each of them is looked at four times a second, which takes most of the test's time.
fn outage(at: usize, hangs: bool) -> Answer {
    match at {
        1 if hangs => Answer::Hang,
        3 if hangs => {
            let end = Answer::fail(FailureClass::Timeout);
            let some = Answer::Receive(
                GIB >> 10,
                Box::new(Answer::Wait(Duration::from_secs(40), Box::new(end))),
            );
            Answer::Wait(Duration::from_secs(2), Box::new(some))
        }
        2 => Answer::fail(FailureClass::ServerError),
        4 => Answer::fail(FailureClass::Unauthorized),
        _ => Answer::fail(FailureClass::Network),
    }
}

fn release_in(body: &Value) -> Option<Release> {
    let text = body["metadata"]["annotations"][keys::RELEASED].as_str()?;
    serde_json::from_str(text).ok()
}

fn pod(number: u32, namespace: String, images: &[ImageName], settings: Settings) -> GatedPod {
    let containers = images.iter().enumerate();
    let containers = containers.map(|(at, image)| TryContainer {
        name: format!("container-{at}"),
        written: image.to_string(),
        image: Ok(image.clone()),
    });
    let id = PodId {
        namespace: namespace.clone(),
        name: format!("pod-{number}"),
        uid: format!("00000000-0000-0000-0000-{number:012}"),
    };
    GatedPod {
        containers: containers.collect(),
        identity: Identity {
            namespace,
            service_account: "default".to_owned(),
            pull_secrets: Vec::new(),
        },
        settings,
        ..GatedPod::new(id, clock::wall())
    }
}
