//! The planner, driven without a clock: what it sees and what it then wants. Here what every pod goes
//! through; in the modules below what is special.

mod by_hand;
mod catch_up;
mod circuit;
mod config;
mod explain;
mod figures;
mod handover;
mod privacy;
mod refresh;
mod repeat;
mod report;
mod runs;
mod same;
mod time;
mod turns;
mod unheld;
mod used;
mod volumes;

use jiff::Timestamp;

use super::*;
use crate::config::Config;
use crate::digest::Digest;
use crate::identity::Identity;
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::pod::{GateState, OtherPolicy, Overruled, Trace, TryContainer};
use crate::record::{Confirmation, Facts, RolledBack, Try};
use crate::release::ContainerRelease;
use crate::settings::Settings;
use crate::verdict::{CachedCopy, Evidence};

const TRY: Duration = Duration::from_secs(30);

/// A planner with a clock of its own, and what it asked for.
struct World {
    planner: Planner,
    up: Duration,
    records: Vec<Try>,
    actions: Vec<Action>,
}

fn rules() -> NodeRules {
    NodeRules {
        try_for: TRY,
        ..NodeRules::default()
    }
}

impl World {
    fn new() -> Self {
        Self {
            planner: Planner::new("node", rules(), &[]),
            up: Duration::from_secs(100),
            records: Vec::new(),
            actions: Vec::new(),
        }
    }

    /// An earlier run of the agent has left these, too.
    fn learn(&mut self, records: &[ImageRecord]) {
        self.planner.knowledge.learn(records);
    }

    fn now(&self) -> Now {
        Now {
            wall: wall(self.up),
            up: self.up,
        }
    }

    /// What the planner wants after this, but for the records, which are kept.
    fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut plan = self.planner.handle(self.now(), event);
        for action in &plan {
            match action {
                Action::Progress(pod, _) => {
                    let showed = Event::Showed(pod.clone());
                    assert_eq!(self.planner.handle(self.now(), showed), []);
                }
                Action::Record(record) => self.records.push(record.clone()),
                _ => {}
            }
        }
        plan.retain(|action| !matches!(action, Action::Record(_)));
        self.actions.extend(plan.iter().cloned());
        plan
    }

    fn see(&mut self, pod: &GatedPod) -> Vec<Action> {
        self.handle(Event::Seen(Box::new(pod.clone())))
    }

    /// Lets time pass, ticking where the planner asked for it.
    fn wait(&mut self, mut for_: Duration) -> Vec<Action> {
        let mut all = Vec::new();
        loop {
            let next = self.planner.next_wakeup(self.now());
            let step = next.map_or(for_, |next| next.min(for_));
            self.up += step;
            for_ -= step;
            all.extend(self.handle(Event::Tick));
            if for_.is_zero() {
                return all;
            }
            assert!(
                !step.is_zero() || self.planner.next_wakeup(self.now()) != Some(Duration::ZERO),
                "the planner spins"
            );
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "its many calls read better")]
    fn ends(
        &mut self,
        attempt: u64,
        failure: Option<FailureClass>,
        before: CachedCopy,
        after: CachedCopy,
    ) -> Vec<Action> {
        let failure = failure.map(|class| Failure::new(class, "why"));
        self.handle(ended(image(), attempt, failure, &before, after))
    }

    fn moved(&mut self, attempt: u64, bytes: u64, flows: bool) -> Vec<Action> {
        self.handle(Event::Moved(Moved {
            image: image(),
            attempt,
            flow: Flow {
                bytes,
                total_bytes: Some(8192),
                flows,
                ..Flow::default()
            },
        }))
    }

    /// Nothing has moved in a try for the stall deadline.
    fn stalls(&mut self, image: &ImageName, attempt: u64, flow: Flow) -> Vec<Action> {
        self.handle(Event::Moved(Moved {
            image: image.clone(),
            attempt,
            flow: Flow {
                still: rules().stall,
                ..flow
            },
        }))
    }

    fn inspected(&mut self, copy: &CachedCopy) -> Vec<Action> {
        self.handle(Event::Inspected(image(), copy.clone()))
    }

    fn sent(&mut self, actions: &[Action], sent: Written) -> Vec<Action> {
        let mut all = Vec::new();
        for action in actions {
            if let Action::Release { pod, release, .. } = action {
                all.extend(self.handle(Event::Written(pod.clone(), release.clone(), sent)));
            }
        }
        all
    }

    fn node_images(&self) -> Vec<NodeImage> {
        let pods = self.planner.pods.values();
        super::report::node_images(&self.planner.knowledge, pods, &rules(), self.now().wall)
    }

    fn waits(&self) -> bool {
        let mut pods = self.planner.pods.values();
        pods.any(|pod| pod.round.is_some())
    }

    fn tries(&self) -> usize {
        let is_try = |a: &&Action| matches!(a, Action::Try { .. });
        self.actions.iter().filter(is_try).count()
    }
}

/// The end of a try.
fn ended(
    image: ImageName,
    attempt: u64,
    failure: Option<Failure>,
    before: &CachedCopy,
    after: CachedCopy,
) -> Event {
    Event::TryEnded(TryEnded {
        image,
        attempt,
        evidence: Evidence::of_try(failure, before, after, None),
    })
}

fn wall(up: Duration) -> Timestamp {
    "2026-01-01T12:00:00Z".parse::<Timestamp>().unwrap() + up
}

fn image() -> ImageName {
    "reg.example/app".parse().unwrap()
}

fn pod(name: &str, world: &World) -> GatedPod {
    let id = PodId {
        namespace: "default".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
    };
    let created = Timestamp::from_second(world.now().wall.as_second()).unwrap();
    GatedPod {
        containers: vec![TryContainer {
            name: "app".into(),
            written: "reg.example/app".into(),
            image: Ok(image()),
        }],
        ..GatedPod::new(id, created)
    }
}

/// The same, and its gate runs.
fn held(name: &str, world: &World) -> GatedPod {
    GatedPod {
        gate: GateState::Running {
            since: world.now().wall,
        },
        ..pod(name, world)
    }
}

/// The same after it was released with the first copy, and its gate has opened.
fn started(pod: GatedPod, outcome: Outcome, world: &World) -> GatedPod {
    let container = ContainerRelease {
        digest: Some(digest("1")),
        ..ContainerRelease::new("reg.example/app", outcome)
    };
    let release = Release {
        time: world.now().wall,
        containers: [("app".to_owned(), container)].into(),
        unseen: None,
    };
    GatedPod {
        gate: GateState::Open,
        released: Some(release),
        ..pod
    }
}

/// One of this image alone.
fn of(name: &ImageName, world: &World) -> GatedPod {
    let mut pod = held(name.as_str(), world);
    pod.containers[0].written = name.to_string();
    pod.containers[0].image = Ok(name.clone());
    pod
}

/// A pod whose one container another policy has given `Always`.
fn overruled(trace: Trace, world: &World) -> GatedPod {
    GatedPod {
        containers: Vec::new(),
        overruled: vec![Overruled {
            name: "app".into(),
            policy: OtherPolicy::Always,
            trace,
        }],
        ..pod("a", world)
    }
}

/// What an earlier run of the agent has left of an image.
fn written_down(
    image: ImageName,
    confirmed: Option<Confirmation>,
    needs_credentials: bool,
) -> ImageRecord {
    ImageRecord {
        image,
        facts: Facts {
            confirmed,
            needs_credentials,
            private_to: None,
            copy: None,
            rolled_back: None,
        },
        seen: wall(Duration::ZERO),
        tries: Vec::new(),
        week: crate::record::Week::default(),
    }
}

/// This digest, or a short name for one.
fn digest(name: &str) -> Digest {
    let full = name.parse();
    full.unwrap_or_else(|_| format!("sha256:{name}").parse().unwrap())
}

fn usable(digest: &str) -> CachedCopy {
    CachedCopy::Usable {
        digest: self::digest(digest),
        size_bytes: 7,
    }
}

fn confirmation(digest: &str) -> Confirmation {
    Confirmation {
        time: wall(Duration::ZERO),
        digest: self::digest(digest),
    }
}

fn the_try(actions: &[Action]) -> u64 {
    match actions {
        [Action::Try { attempt, .. }] => *attempt,
        other => panic!("not one try: {other:?}"),
    }
}

fn the_release(actions: &[Action]) -> &Release {
    match actions {
        [Action::Release { release, .. }] => release,
        other => panic!("not one release: {other:?}"),
    }
}

fn outcome(actions: &[Action]) -> Outcome {
    the_release(actions).containers["app"].outcome
}

#[test]
fn a_pod_is_tried_released_and_left_alone() {
    let mut world = World::new();
    let pod = pod("a", &world);
    let attempt = the_try(&world.see(&pod));
    assert_eq!(world.see(&pod), [], "a second look changes nothing");
    let actions = world.ends(attempt, None, usable("1"), usable("2"));
    let release = the_release(&actions).clone();
    assert_eq!(release.containers["app"].outcome, Outcome::Fresh);
    assert_eq!(release.containers["app"].digest, Some(digest("2")));
    assert_eq!(release.containers["app"].confirmed, Some(wall(world.up)));
    assert_eq!(release.time, world.now().wall);
    assert_eq!(world.records.len(), 1);
    assert_eq!(world.sent(&actions, Written::Done), []);
    assert!(!world.waits());
    // The watch still shows the pod without its release, then with it, then with an open gate.
    assert_eq!(world.see(&pod), []);
    let mut shown = pod;
    shown.released = Some(release);
    assert_eq!(world.see(&shown), []);
    shown.gate = GateState::Open;
    assert_eq!(world.see(&shown), []);
    assert_eq!(world.wait(Duration::from_hours(1)), []);
    assert_eq!(world.planner.next_wakeup(world.now()), None);
}

/// The kubelet asks the registry itself: a try would only hold the pod.
#[test]
fn a_pod_that_is_pulled_at_each_start_is_reported_and_released_at_once() {
    let mut world = World::new();
    let mut pod = overruled(Trace::Policy, &world);
    let actions = world.see(&pod);
    let [Action::Overruled(id, overruled), release] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!((id, overruled), (&pod.id, &pod.overruled));
    let release = the_release(std::slice::from_ref(release));
    assert!(release.opens() && release.containers.is_empty());
    assert_eq!(world.see(&pod), []);
    // Nor does an agent that starts later report it again.
    pod.released = Some(release.clone());
    pod.gate = GateState::Open;
    assert_eq!(World::new().see(&pod), []);
}

#[test]
fn twenty_pods_of_one_image_take_two_tries() {
    let mut world = World::new();
    for n in 0..20 {
        let pod = pod(&n.to_string(), &world);
        for action in world.see(&pod) {
            if let Action::Try { attempt, .. } = action {
                world.up += Duration::from_millis(10);
                world.ends(attempt, None, usable("1"), usable("1"));
            }
        }
        world.wait(Duration::from_millis(20));
    }
    let actions = world.wait(Duration::from_millis(1100));
    let attempt = the_try(&actions);
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    assert_eq!(actions.len(), 19, "every pod is released");
    assert_eq!(world.tries(), 2);
}

#[test]
fn a_check_that_began_before_the_pod_came_is_not_good_for_it() {
    let mut world = World::new();
    let first = the_try(&world.see(&pod("a", &world)));
    world.up += Duration::from_millis(5);
    assert_eq!(world.see(&pod("b", &world)), []);
    let actions = world.ends(first, None, usable("1"), usable("1"));
    assert_eq!(actions.len(), 1, "a alone is released: {actions:?}");
    let second = the_try(&world.wait(Duration::from_secs(1)));
    let actions = world.ends(second, None, usable("1"), usable("2"));
    assert_eq!(outcome(&actions), Outcome::Fresh);
}

#[test]
fn a_check_that_began_after_the_pod_was_created_is_good_though_the_pod_is_seen_late() {
    let mut world = World::new();
    let late = pod("late", &world);
    world.up += Duration::from_secs(3);
    let attempt = the_try(&world.see(&pod("a", &world)));
    world.up += Duration::from_secs(1);
    assert_eq!(world.see(&late), []);
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    assert_eq!(actions.len(), 2);
    assert_eq!(world.tries(), 1);
}

#[test]
fn silence_is_shared_by_pods_that_came_meanwhile_and_answers_are_not() {
    for (class, shared) in [
        (FailureClass::Timeout, true),
        (FailureClass::Network, true),
        (FailureClass::NotFound, false),
        (FailureClass::ServerError, false),
    ] {
        let mut world = World::new();
        let attempt = the_try(&world.see(&pod("a", &world)));
        world.wait(Duration::from_millis(1500));
        world.see(&pod("b", &world));
        let actions = world.ends(attempt, Some(class), usable("1"), usable("1"));
        assert_eq!(actions.len(), if shared { 2 } else { 1 }, "{class}");
    }
}

#[test]
fn pods_that_are_gone_owe_nothing() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&pod("a", &world)));
    world.handle(Event::Gone("uid-a".into()));
    assert_eq!(world.ends(attempt, None, usable("1"), usable("1")), []);
    assert_eq!(world.records.len(), 1, "the try is remembered all the same");

    let mut world = World::new();
    let a = pod("a", &world);
    let attempt = the_try(&world.see(&a));
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    assert_eq!(world.sent(&actions, Written::Gone), []);
    assert_eq!(world.wait(Duration::from_hours(1)), []);
}

#[test]
fn a_relist_drops_what_it_does_not_name_and_begins_what_it_does() {
    let mut world = World::new();
    world.see(&pod("a", &world));
    let b = pod("b", &world);
    world.handle(Event::Listed(vec![b]));
    assert_eq!(world.planner.pods.keys().collect::<Vec<_>>(), ["uid-b"]);
    assert!(world.waits());
}

#[test]
fn a_bad_name_is_complained_of_and_left_to_the_kubelet_at_once() {
    let mut world = World::new();
    let mut pod = pod("a", &world);
    pod.complaints = vec!["bad duration".into()];
    pod.containers[0].image = "Not A Name".parse();
    let actions = world.see(&pod);
    let [
        Action::Complain(_, first),
        Action::Complain(_, second),
        release,
    ] = actions.as_slice()
    else {
        panic!("{actions:?}");
    };
    assert_eq!(first, "bad duration");
    assert!(second.contains("Not A Name"));
    assert_eq!(outcome(std::slice::from_ref(release)), Outcome::Unavailable);
}

#[test]
fn a_pod_without_containers_is_released_at_once() {
    let mut world = World::new();
    let mut pod = pod("a", &world);
    pod.containers.clear();
    assert!(the_release(&world.see(&pod)).opens());
}

#[test]
fn what_was_written_down_is_known_after_a_restart() {
    let mut world = World::new();
    let confirmed = confirmation("1");
    world.learn(&[written_down(image(), Some(confirmed.clone()), false)]);
    let attempt = the_try(&world.see(&pod("a", &world)));
    let actions = world.ends(
        attempt,
        Some(FailureClass::NotFound),
        usable("1"),
        usable("1"),
    );
    let app = &the_release(&actions).containers["app"];
    assert_eq!(app.confirmed, Some(confirmed.time));
}

#[test]
fn an_image_that_is_changed_while_the_gate_holds_is_tried_too() {
    let mut world = World::new();
    let mut pod = pod("a", &world);
    let first = the_try(&world.see(&pod));
    pod.containers[0].written = "reg.example/new".into();
    pod.containers[0].image = Ok("reg.example/new".parse().unwrap());
    let second = the_try(&world.see(&pod));
    assert_eq!(
        world.ends(first, None, usable("1"), usable("1")),
        [],
        "the old image is no answer"
    );
    let new = pod.containers[0].image.clone().unwrap();
    let actions = world.handle(ended(new, second, None, &CachedCopy::Absent, usable("2")));
    let app = &the_release(&actions).containers["app"];
    assert_eq!(app.image, "reg.example/new");
    assert_eq!(app.digest, Some(digest("2")));
}

/// A gate that waited for 20 s.
fn gave_up(at: Duration) -> GateState {
    GateState::GaveUp {
        since: wall(at) - Duration::from_secs(20),
        at: wall(at),
    }
}

#[test]
fn a_release_that_no_gate_saw_is_told_once_and_amended() {
    let mut world = World::new();
    let mut pod = pod("a", &world);
    pod.settings.max_age = Some(Duration::from_secs(1));
    let attempt = the_try(&world.see(&pod));
    let failure = Some(FailureClass::Network);
    let actions = world.ends(attempt, failure, usable("1"), usable("1"));
    assert_eq!(outcome(&actions), Outcome::Refused);
    world.sent(&actions, Written::Done);
    pod.released = Some(the_release(&actions).clone());
    world.wait(Duration::from_secs(20));
    pod.gate = gave_up(world.up);
    let actions = world.see(&pod);
    let [
        Action::Unseen(_, _, Answer::Released(told)),
        Action::Rewrite(id, amended),
    ] = &actions[..]
    else {
        panic!("{actions:?}");
    };
    assert_eq!(told, amended);
    assert_eq!(amended.unseen, Some(wall(world.up)));
    assert_eq!(amended.containers["app"].outcome, Outcome::Fallback);
    // The watch lags behind.
    assert_eq!(world.see(&pod), []);
    // What could not be written is written when the pod is seen again, and not told again.
    world.handle(Event::Rewritten(
        id.clone(),
        amended.clone(),
        Written::Failed,
    ));
    let again = world.see(&pod);
    assert!(matches!(&again[..], [Action::Rewrite(..)]), "{again:?}");
    world.handle(Event::Rewritten(id.clone(), amended.clone(), Written::Done));
    pod.released = Some(amended.clone());
    assert_eq!(world.see(&pod), []);
    // So does an agent that comes later.
    assert_eq!(World::new().see(&pod), []);
    // Another run of the gate gets an answer of its own, however soon it comes.
    pod.gate = GateState::Running {
        since: world.now().wall,
    };
    the_try(&world.see(&pod));
}

#[test]
fn an_answer_that_came_too_late_or_to_an_earlier_run_was_not_unseen() {
    for (seconds_before, amends) in [(1, true), (200, false)] {
        let mut world = World::new();
        world.up += Duration::from_secs(1000);
        let mut pod = pod("a", &world);
        pod.released = Some(Release {
            time: world.now().wall - Duration::from_secs(seconds_before),
            containers: BTreeMap::new(),
            unseen: None,
        });
        pod.gate = gave_up(world.up);
        let actions = world.see(&pod);
        assert!(matches!(actions[0], Action::Unanswered(..)), "{actions:?}");
        assert_eq!(actions.len(), if amends { 2 } else { 1 }, "{actions:?}");
    }
}

#[test]
fn an_agent_at_work_that_no_gate_saw_is_told() {
    for (seconds, unseen) in [(6, false), (8, true)] {
        let mut world = World::new();
        let mut pod = held("a", &world);
        the_try(&world.see(&pod));
        world.wait(Duration::from_secs(seconds));
        pod.gate = gave_up(world.up);
        let actions = world.see(&pod);
        let told = matches!(actions[..], [Action::Unseen(_, _, Answer::AtWork)]);
        assert_eq!(told, unseen, "{actions:?}");
        assert!(!world.waits());
    }
}

/// A webhook or policy refuses every update of pods.
#[test]
fn an_answer_that_the_api_server_does_not_take_is_told() {
    let mut world = World::new();
    let mut pod = held("a", &world);
    let attempt = the_try(&world.see(&pod));
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    world.sent(&actions, Written::Failed);
    pod.gate = gave_up(world.up);
    let actions = world.see(&pod);
    let told = matches!(actions[..], [Action::Unanswered(_, _, Silence::Unwritten)]);
    assert!(told, "{actions:?}");
    assert!(!world.waits());
}

#[test]
fn a_sign_of_life_that_was_not_written_is_none() {
    let mut world = World::new();
    let mut pod = held("a", &world);
    the_try(&world.see(&pod));
    world.up += Duration::from_secs(2);
    let plan = world.planner.handle(world.now(), Event::Tick);
    assert!(matches!(plan[..], [Action::Progress(..)]));
    world.up += Duration::from_secs(18);
    pod.gate = gave_up(world.up);
    let actions = world.see(&pod);
    assert!(
        matches!(actions[..], [Action::Unanswered(..)]),
        "{actions:?}"
    );
}

#[test]
fn pods_whose_policies_were_changed_long_ago_are_no_news() {
    let mut world = World::new();
    let mut pod = overruled(Trace::Template, &world);
    let told = |actions: &[Action]| actions.iter().any(|a| matches!(a, Action::Overruled(..)));
    world.up += Duration::from_hours(2);
    assert!(!told(&world.see(&pod)));
    pod.id.uid = "uid-b".into();
    pod.created = world.now().wall;
    assert!(told(&world.see(&pod)));
}

#[test]
fn an_unanswered_gate_is_told_once() {
    let mut world = World::new();
    let mut pod = pod("a", &world);
    pod.gate = gave_up(Duration::ZERO);
    let told = Action::Unanswered(pod.id.clone(), wall(Duration::ZERO), Silence::NoAgent);
    assert_eq!(world.see(&pod), [told]);
    assert_eq!(world.see(&pod), []);
    // After a reboot it runs again, and may give up again.
    pod.gate = gave_up(Duration::from_secs(1));
    assert_eq!(world.see(&pod).len(), 1);
    // An agent that comes back much later does not count it again.
    let mut later = World::new();
    later.up += Duration::from_hours(2);
    assert_eq!(later.see(&pod), []);
}
