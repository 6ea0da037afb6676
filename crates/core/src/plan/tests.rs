use jiff::Timestamp;

use super::*;
use crate::pod::{GateState, TryContainer};
use crate::record::Confirmation;

const TRY: Duration = Duration::from_secs(30);

/// A planner with a clock of its own, and what it asked for.
struct World {
    planner: Planner,
    up: Duration,
    records: Vec<Try>,
    actions: Vec<Action>,
}

impl World {
    fn new() -> Self {
        Self {
            planner: Planner::new(Limits {
                try_for: TRY,
                allow_unverified_fallback: false,
            }),
            up: Duration::from_secs(100),
            records: Vec::new(),
            actions: Vec::new(),
        }
    }

    fn now(&self) -> Now {
        Now {
            wall: wall(self.up),
            up: self.up,
        }
    }

    fn take(&mut self, plan: Plan) -> Vec<Action> {
        self.records.extend(plan.records);
        self.actions.extend(plan.actions.iter().cloned());
        plan.actions
    }

    fn see(&mut self, pod: &GatedPod) -> Vec<Action> {
        let plan = self.planner.pod(self.now(), pod.clone());
        self.take(plan)
    }

    /// Lets time pass, ticking where the planner asked for it.
    fn wait(&mut self, mut for_: Duration) -> Vec<Action> {
        let mut all = Vec::new();
        loop {
            let next = self.planner.next_wakeup(self.now());
            let step = next.map_or(for_, |next| next.min(for_));
            self.up += step;
            for_ -= step;
            let plan = self.planner.tick(self.now());
            all.extend(self.take(plan));
            if for_.is_zero() {
                return all;
            }
            assert!(
                !step.is_zero() || self.planner.next_wakeup(self.now()) != Some(Duration::ZERO),
                "the planner spins"
            );
        }
    }

    fn ends(
        &mut self,
        attempt: u64,
        failure: Option<FailureClass>,
        before: Copy,
        after: Copy,
    ) -> Vec<Action> {
        let ended = Ended {
            image: image(),
            attempt,
            failure: failure.map(|class| Failure::new(class, "why")),
            before,
            after,
        };
        let plan = self.planner.ended(self.now(), &ended);
        self.take(plan)
    }

    fn inspected(&mut self, copy: &Copy) -> Vec<Action> {
        let plan = self.planner.inspected(self.now(), &image(), copy);
        self.take(plan)
    }

    fn sent(&mut self, actions: &[Action], sent: Sent) -> Vec<Action> {
        let mut all = Vec::new();
        for action in actions {
            if let Action::Release(id, release) = action {
                let plan = self.planner.sent(self.now(), id, release.clone(), sent);
                all.extend(self.take(plan));
            }
        }
        all
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

fn wall(up: Duration) -> Timestamp {
    "2026-01-01T12:00:00Z".parse::<Timestamp>().unwrap() + up
}

fn image() -> ImageName {
    "reg.example/app".parse().unwrap()
}

fn pod(name: &str, world: &World) -> GatedPod {
    GatedPod {
        id: PodId {
            namespace: "default".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
        },
        created: Timestamp::from_second(world.now().wall.as_second()).unwrap(),
        containers: vec![TryContainer {
            name: "app".into(),
            written: "reg.example/app".into(),
            image: Ok(image()),
        }],
        settings: Settings::default(),
        complaints: Vec::new(),
        gate: GateState::Pending,
        released: None,
        ended: false,
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
        confirmed,
        needs_credentials,
        copy: None,
        seen: wall(Duration::ZERO),
        tries: Vec::new(),
        week: crate::record::Week::default(),
    }
}

fn usable(digest: &str) -> Copy {
    Copy::Usable {
        digest: digest.into(),
        size_bytes: 7,
    }
}

fn confirmation(digest: &str) -> Confirmation {
    Confirmation {
        time: wall(Duration::ZERO),
        digest: digest.into(),
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
        [Action::Release(_, release)] => release,
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
    assert_eq!(release.containers["app"].digest.as_deref(), Some("2"));
    assert_eq!(release.containers["app"].confirmed, Some(wall(world.up)));
    assert_eq!(release.time, world.now().wall);
    assert_eq!(world.records.len(), 1);
    assert_eq!(world.sent(&actions, Sent::Written), []);
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
    let actions = world.wait(Duration::from_millis(900));
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
fn without_a_copy_it_tries_again_and_then_leaves_the_pod_to_the_kubelet() {
    let mut world = World::new();
    let mut attempt = the_try(&world.see(&pod("a", &world)));
    let mut released = Vec::new();
    while world.up < Duration::from_secs(200) && released.is_empty() {
        world.ends(
            attempt,
            Some(FailureClass::NotFound),
            Copy::Absent,
            Copy::Absent,
        );
        for action in world.wait(Duration::from_secs(13)) {
            match action {
                Action::Try { attempt: next, .. } => attempt = next,
                Action::Inspect(_) => released.extend(world.inspected(&Copy::Absent)),
                Action::Release(..) => released.push(action),
                Action::Progress(..) => {}
                Action::Complain(..) => panic!("{action:?}"),
            }
        }
        if !matches!(released.first(), Some(Action::Release(..))) {
            released.clear();
        }
    }
    assert_eq!(outcome(&released), Outcome::Unavailable);
    let release = &the_release(&released).containers["app"];
    assert_eq!(
        release.failure.as_ref().unwrap().class,
        FailureClass::NotFound
    );
    assert!(world.tries() >= 3, "{}", world.tries());
    assert!(world.up <= Duration::from_secs(100) + TRY + Duration::from_secs(13));
}

#[test]
fn a_private_image_that_is_absent_is_left_to_the_kubelet_at_once() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&pod("a", &world)));
    let actions = world.ends(
        attempt,
        Some(FailureClass::Unauthorized),
        Copy::Absent,
        Copy::Absent,
    );
    assert_eq!(outcome(&actions), Outcome::Unavailable);
}

#[test]
fn a_private_image_stays_private_when_the_registry_goes_away() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&pod("a", &world)));
    let actions = world.ends(
        attempt,
        Some(FailureClass::Unauthorized),
        usable("1"),
        usable("1"),
    );
    assert_eq!(outcome(&actions), Outcome::Refused);
    world.wait(Duration::from_secs(5));
    let attempt = the_try(&world.see(&pod("b", &world)));
    let actions = world.ends(
        attempt,
        Some(FailureClass::Network),
        usable("1"),
        usable("1"),
    );
    assert_eq!(outcome(&actions), Outcome::Refused);
    world.wait(Duration::from_secs(5));
    let attempt = the_try(&world.see(&pod("c", &world)));
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    assert_eq!(outcome(&actions), Outcome::Unchanged, "public again");
}

/// Bytes that flow are also the registry's word that anybody may have it.
#[test]
fn when_its_time_is_up_a_pod_takes_the_cached_copy_and_the_download_goes_on() {
    let mut world = World::new();
    let mut pod = pod("a", &world);
    pod.settings.timeout = Some(Duration::from_secs(5));
    let attempt = the_try(&world.see(&pod));
    world.planner.moved(&image(), attempt, 4096, Some(8192));
    let actions = world.wait(Duration::from_secs(5));
    let [Action::Progress(_, progress), Action::Inspect(name)] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!(progress.containers["app"].bytes, 4096);
    assert_eq!(*name, image());
    let actions = world.inspected(&usable("1"));
    let release = &the_release(&actions).containers["app"];
    assert_eq!(release.outcome, Outcome::Fallback);
    let failure = release.failure.as_ref().unwrap();
    assert_eq!(failure.class, FailureClass::Timeout);
    assert!(failure.message.contains("goes on"), "{failure}");
    world.sent(&actions, Sent::Written);
    assert_eq!(world.records.len(), 1);
    assert_eq!(world.records[0].duration, Duration::from_secs(5));
    // The catch-up ends: remembered, and nothing is sent.
    world.up += Duration::from_secs(9);
    assert_eq!(world.ends(attempt, None, usable("1"), usable("2")), []);
    assert_eq!(world.records[1].outcome, Outcome::Fresh);
}

#[test]
fn without_a_copy_a_pod_waits_as_long_as_bytes_flow() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&pod("a", &world)));
    let mut signs = 0;
    for action in world.wait(TRY) {
        match action {
            Action::Inspect(_) => assert_eq!(world.inspected(&Copy::Absent), []),
            Action::Progress(..) => signs += 1,
            other => panic!("{other:?}"),
        }
    }
    let more = world.wait(Duration::from_mins(5));
    assert!(more.iter().all(|a| matches!(a, Action::Progress(..))));
    assert!(signs >= 6 && more.len() >= 59, "{signs} {}", more.len());
    let actions = world.ends(attempt, None, Copy::Absent, usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fresh);
}

#[test]
fn an_overdue_pod_without_a_copy_ends_with_its_last_try() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&pod("a", &world)));
    world.wait(TRY);
    assert_eq!(world.inspected(&Copy::Absent), []);
    let actions = world.ends(
        attempt,
        Some(FailureClass::Timeout),
        Copy::Absent,
        Copy::Absent,
    );
    assert_eq!(outcome(&actions), Outcome::Unavailable);
}

#[test]
fn a_rebooted_pod_is_tried_anew() {
    let mut world = World::new();
    let mut pod = pod("a", &world);
    let attempt = the_try(&world.see(&pod));
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    world.sent(&actions, Sent::Written);
    pod.released = Some(the_release(&actions).clone());
    pod.gate = GateState::Open;
    world.see(&pod);
    world.wait(Duration::from_mins(10));
    pod.gate = GateState::Running {
        since: world.now().wall,
    };
    let attempt = the_try(&world.see(&pod));
    let actions = world.ends(
        attempt,
        Some(FailureClass::Network),
        usable("1"),
        usable("1"),
    );
    assert_eq!(outcome(&actions), Outcome::Fallback);
    assert_eq!(
        the_release(&actions).containers["app"].confirmed,
        Some(wall(Duration::from_secs(100)))
    );
}

#[test]
fn a_release_that_goes_stale_before_the_gate_ran_is_given_anew_when_it_runs() {
    let mut world = World::new();
    let mut pod = pod("a", &world);
    let attempt = the_try(&world.see(&pod));
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    world.sent(&actions, Sent::Written);
    pod.released = Some(the_release(&actions).clone());
    world.see(&pod);
    assert_eq!(
        world.wait(Duration::from_hours(5)),
        [],
        "its sandbox is not there yet"
    );
    pod.gate = GateState::Running {
        since: world.now().wall,
    };
    the_try(&world.see(&pod));
}

#[test]
fn a_release_that_goes_stale_while_the_gate_runs_is_given_anew() {
    let mut world = World::new();
    let mut pod = pod("a", &world);
    let attempt = the_try(&world.see(&pod));
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    world.sent(&actions, Sent::Written);
    pod.released = Some(the_release(&actions).clone());
    pod.gate = GateState::Running {
        since: world.now().wall,
    };
    world.see(&pod);
    assert_eq!(world.wait(Duration::from_secs(120)), []);
    the_try(&world.wait(Duration::from_secs(1)));
}

#[test]
fn a_release_that_cannot_be_written_is_sent_again_with_a_new_time() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&pod("a", &world)));
    let mut actions = world.ends(attempt, None, usable("1"), usable("1"));
    for _ in 0..20 {
        assert_eq!(world.sent(&actions, Sent::Failed), []);
        actions = world.wait(Duration::from_secs(5));
        let release = the_release(&actions);
        assert!(world.now().wall.duration_since(release.time).as_secs() <= 5);
    }
    world.sent(&actions, Sent::Written);
    assert!(!world.waits());
}

#[test]
fn pods_that_are_gone_owe_nothing() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&pod("a", &world)));
    let plan = world.planner.gone(world.now(), "uid-a");
    world.take(plan);
    assert_eq!(world.ends(attempt, None, usable("1"), usable("1")), []);
    assert_eq!(world.records.len(), 1, "the try is remembered all the same");

    let mut world = World::new();
    let a = pod("a", &world);
    let attempt = the_try(&world.see(&a));
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    assert_eq!(world.sent(&actions, Sent::Gone), []);
    assert_eq!(world.wait(Duration::from_hours(1)), []);
}

#[test]
fn a_relist_drops_what_it_does_not_name_and_begins_what_it_does() {
    let mut world = World::new();
    world.see(&pod("a", &world));
    let b = pod("b", &world);
    let plan = world.planner.reset(world.now(), vec![b]);
    world.take(plan);
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
fn one_refused_container_does_not_open_the_gate() {
    let mut world = World::new();
    let mut pod = pod("a", &world);
    pod.containers.push(TryContainer {
        name: "bad".into(),
        written: "?".into(),
        image: "?".parse(),
    });
    let actions = world.see(&pod);
    assert!(matches!(actions[0], Action::Complain(..)));
    let attempt = the_try(&actions[1..]);
    let actions = world.ends(
        attempt,
        Some(FailureClass::Unauthorized),
        usable("1"),
        usable("1"),
    );
    let release = the_release(&actions);
    assert!(!release.opens());
    assert_eq!(release.containers["bad"].outcome, Outcome::Unavailable);
}

#[test]
fn what_was_written_down_is_known_after_a_restart() {
    let mut world = World::new();
    let confirmed = confirmation("1");
    world
        .planner
        .learn(&[written_down(image(), Some(confirmed.clone()), false)]);
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
fn the_node_reports_who_runs_from_cache() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&pod("a", &world)));
    let actions = world.ends(
        attempt,
        Some(FailureClass::Network),
        usable("1"),
        usable("1"),
    );
    world.sent(&actions, Sent::Written);
    let images = world.planner.node_images();
    assert_eq!(images.len(), 1);
    assert_eq!((images[0].outcome, images[0].pods), (Outcome::Fallback, 1));
    let plan = world.planner.gone(world.now(), "uid-a");
    world.take(plan);
    assert_eq!(world.planner.node_images()[0].pods, 0);
    world.planner.forget(|_| true);
    assert_eq!(world.planner.node_images(), []);
}

#[test]
fn containerd_being_down_neither_hands_out_a_copy_nor_holds_a_pod_for_ever() {
    let mut world = World::new();
    let unknown = || Copy::Unknown { why: "down".into() };
    let mut attempt = the_try(&world.see(&pod("a", &world)));
    for _ in 0..20 {
        let mut actions = world.ends(attempt, Some(FailureClass::Local), unknown(), unknown());
        if actions.is_empty() {
            actions = world.wait(Duration::from_secs(13));
        }
        for action in actions {
            match action {
                Action::Try { attempt: next, .. } => attempt = next,
                Action::Inspect(_) => {
                    let actions = world.inspected(&unknown());
                    if !actions.is_empty() {
                        assert_eq!(outcome(&actions), Outcome::Unavailable);
                        return;
                    }
                }
                Action::Release(_, release) => {
                    assert_eq!(release.containers["app"].outcome, Outcome::Unavailable);
                    return;
                }
                Action::Progress(..) | Action::Complain(..) => {}
            }
        }
    }
    panic!("the pod is held for ever");
}

/// An image of which the registry has said nothing yet.
#[test]
fn a_pod_with_little_time_is_not_faster_than_a_401() {
    let mut world = World::new();
    let mut hasty = pod("hasty", &world);
    hasty.settings.timeout = Some(Duration::from_millis(1));
    let attempt = the_try(&world.see(&hasty));
    let actions = world.wait(Duration::from_secs(1));
    assert_eq!(actions[0], Action::Inspect(image()));
    assert_eq!(world.inspected(&usable("1")), []);
    let actions = world.ends(
        attempt,
        Some(FailureClass::Unauthorized),
        usable("1"),
        usable("1"),
    );
    let app = &the_release(&actions).containers["app"];
    assert_eq!(app.outcome, Outcome::Refused);
}

#[test]
fn a_digest_is_settled_once_the_registry_gave_it_to_anybody() {
    let name = format!("reg.example/app@sha256:{}", "a".repeat(64));
    let name: ImageName = name.parse().unwrap();
    let said = || Some(confirmation("1"));
    for (confirmed, needs_credentials, expected) in [
        (None, false, false),
        (said(), true, false),
        (said(), false, true),
    ] {
        let mut world = World::new();
        let record = written_down(name.clone(), confirmed, needs_credentials);
        world.planner.learn(&[record]);
        let mut by_digest = pod("a", &world);
        by_digest.containers[0].image = Ok(name.clone());
        let actions = world.see(&by_digest);
        let [Action::Try { settled, .. }] = actions.as_slice() else {
            panic!("{actions:?}");
        };
        assert_eq!(*settled, expected);
    }
}

#[test]
fn a_forged_time_at_the_end_of_all_times_does_no_harm() {
    for time in ["9999-12-30T22:00:00.999999999Z", "-009999-01-02T01:59:59Z"] {
        let mut world = World::new();
        let mut forged = pod("forged", &world);
        forged.released = Some(Release {
            time: time.parse().unwrap(),
            containers: [].into(),
        });
        forged.gate = GateState::Running {
            since: world.now().wall,
        };
        the_try(&world.see(&forged));
        world.wait(Duration::from_secs(1));
    }
}

#[test]
fn a_silent_containerd_does_not_clear_the_nodes_report() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&pod("a", &world)));
    let failed = Some(FailureClass::Network);
    let actions = world.ends(attempt, failed, usable("1"), usable("1"));
    world.sent(&actions, Sent::Written);
    assert!(world.planner.node_images()[0].runs_from_cache());
    world.up += Duration::from_secs(10);
    let attempt = the_try(&world.see(&pod("b", &world)));
    let unknown = || Copy::Unknown {
        why: "no answer".into(),
    };
    world.ends(attempt, Some(FailureClass::Local), unknown(), unknown());
    assert!(world.planner.node_images()[0].runs_from_cache());
}

#[test]
fn a_refused_pod_runs_from_no_cache() {
    let mut world = World::new();
    let mut strict = pod("strict", &world);
    strict.settings.fallback_on = Some([].into());
    let attempt = the_try(&world.see(&strict));
    let failed = Some(FailureClass::Network);
    let actions = world.ends(attempt, failed, usable("1"), usable("1"));
    assert_eq!(outcome(&actions), Outcome::Refused);
    world.sent(&actions, Sent::Written);
    assert!(!world.planner.node_images()[0].runs_from_cache());
}

/// A pod that is released after a try of the given end, on a world where time has passed.
fn released(world: &mut World, name: &str, failure: Option<FailureClass>, after: Copy) {
    world.up += Duration::from_secs(10);
    let attempt = the_try(&world.see(&pod(name, world)));
    let actions = world.ends(attempt, failure, usable("1"), after);
    world.sent(&actions, Sent::Written);
}

fn from_cache(world: &World) -> (usize, usize) {
    let images = world.planner.node_images();
    (images[0].pods, images[0].pods_from_cache)
}

#[test]
fn a_pod_runs_from_cache_until_the_registry_says_that_its_copy_is_right() {
    let failed = Some(FailureClass::Network);
    let mut world = World::new();
    released(&mut world, "a", failed, usable("1"));
    assert_eq!(from_cache(&world), (1, 1));
    // The registry is back, and the tag has moved: the first pod still runs the copy before.
    released(&mut world, "b", None, usable("2"));
    assert_eq!(from_cache(&world), (2, 1));

    let mut world = World::new();
    released(&mut world, "a", failed, usable("1"));
    released(&mut world, "b", None, usable("1"));
    assert_eq!(from_cache(&world), (2, 0));
    // A pod that was released with what the tag pointed to does not run from cache.
    released(&mut world, "c", failed, usable("1"));
    assert_eq!(from_cache(&world), (3, 2));
    let plan = world.planner.gone(world.now(), "uid-c");
    world.take(plan);
    let plan = world.planner.gone(world.now(), "uid-a");
    world.take(plan);
    assert_eq!(from_cache(&world), (1, 0));
}

#[test]
fn pods_released_by_an_earlier_run_are_reported_without_an_index() {
    let mut world = World::new();
    released(&mut world, "a", Some(FailureClass::Network), usable("1"));
    let mut pod = pod("a", &world);
    let mut releases = world.actions.iter().filter_map(|action| match action {
        Action::Release(_, release) => Some(release.clone()),
        _ => None,
    });
    pod.released = releases.next_back();
    pod.gate = GateState::Open;
    let mut world = World::new();
    world.see(&pod);
    assert_eq!(from_cache(&world), (1, 1));
}

#[test]
fn the_age_belongs_to_the_copy_and_not_to_the_name() {
    let mut world = World::new();
    released(&mut world, "a", None, usable("1"));
    world.up += Duration::from_secs(10);
    let attempt = the_try(&world.see(&pod("b", &world)));
    // Somebody has imported another copy by hand.
    let failed = Some(FailureClass::Network);
    let actions = world.ends(attempt, failed, usable("2"), usable("2"));
    assert_eq!(the_release(&actions).containers["app"].confirmed, None);
}
