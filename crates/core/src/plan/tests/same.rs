//! Pods that are to run what their rollout has on the node.

use super::*;
use crate::pod::{Revision, Start};
use crate::release::ContainerRelease;

/// A pod of this rollout.
fn of_rollout(name: &str, owner: &str, world: &World) -> GatedPod {
    let mut pod = held(name, world);
    pod.settings.same_digest = true;
    pod.revision = Some(Revision {
        owner: owner.into(),
        version: None,
    });
    pod
}

fn same(name: &str, world: &World) -> GatedPod {
    of_rollout(name, "owner", world)
}

/// Another workload's.
fn stranger(name: &str, world: &World) -> GatedPod {
    held(name, world)
}

fn is_look(actions: &[Action]) -> bool {
    *actions == [Action::Inspect(image())]
}

fn given(actions: &[Action]) -> ContainerRelease {
    the_release(actions).containers["app"].clone()
}

/// Writes the release, and lets the watch show the pod run this.
fn runs(world: &mut World, mut pod: GatedPod, actions: &[Action], copy: &str) -> GatedPod {
    world.sent(actions, Written::Done);
    pod.released = Some(the_release(actions).clone());
    pod.gate = GateState::Open;
    let started = Start::Started {
        digest: Some(digest(copy)),
        since: None,
        again: false,
    };
    pod.starts.insert("app".into(), started);
    world.see(&pod);
    pod
}

/// The first pod of the rollout runs what the registry has given it.
fn first(world: &mut World, copy: &str) -> GatedPod {
    let pod = same("first", world);
    let attempt = the_try(&world.see(&pod));
    let actions = world.ends(attempt, None, CachedCopy::Absent, usable(copy));
    world.wait(Duration::from_secs(10));
    runs(world, pod, &actions, copy)
}

/// One that says that it was released with the first copy.
fn released(name: &str, outcome: Outcome, world: &World) -> GatedPod {
    started(same(name, world), outcome, world)
}

/// A pod of another workload has the image tried.
fn moved(world: &mut World, copy: &str) {
    let pod = stranger("stranger", world);
    let attempt = the_try(&world.see(&pod));
    let actions = world.ends(attempt, None, usable("1"), usable(copy));
    runs(world, pod, &actions, copy);
    world.wait(Duration::from_secs(10));
}

#[test]
fn the_next_pod_starts_from_what_the_first_has_and_asks_nobody() {
    let mut world = World::new();
    first(&mut world, "1");
    assert!(is_look(&world.see(&same("second", &world))));
    let actions = world.inspected(&usable("1"));
    let given = given(&actions);
    assert_eq!(given.outcome, Outcome::Same);
    assert_eq!(given.digest, Some(digest("1")));
    assert_eq!(given.rollout, Some(digest("1")));
    assert!(given.confirmed.is_some() && given.failure.is_none());
    assert!(!given.is_other());
    assert_eq!(world.tries(), 1);
    assert_eq!(world.records.len(), 1);
}

#[test]
fn a_pod_with_little_time_starts_from_it_as_well() {
    for (copy, wanted) in [("1", Outcome::Same), ("2", Outcome::Fallback)] {
        let mut world = World::new();
        first(&mut world, "1");
        let mut hasty = same("hasty", &world);
        hasty.settings.timeout = Some(Duration::from_millis(1));
        assert!(is_look(&world.see(&hasty)));
        assert_eq!(world.wait(Duration::from_millis(20)), []);
        let mut actions = world.inspected(&usable(copy));
        if is_look(&actions) {
            // There is no time for a try.
            actions = world.inspected(&usable(copy));
        }
        assert_eq!(outcome(&actions), wanted);
    }
}

#[test]
fn another_rollout_namespace_or_workload_asks_as_ever() {
    let mut world = World::new();
    first(&mut world, "1");
    let mut elsewhere = same("elsewhere", &world);
    elsewhere.id.namespace = "other".into();
    let mut without = same("without", &world);
    without.settings.same_digest = false;
    let mut later = same("later", &world);
    later.revision.as_mut().unwrap().version = Some("2".into());
    let next = of_rollout("next", "next-owner", &world);
    for pod in [elsewhere, without, later, next] {
        let attempt = the_try(&world.see(&pod));
        let actions = world.ends(attempt, None, usable("1"), usable("1"));
        assert_eq!(given(&actions).rollout, None);
        world.sent(&actions, Written::Done);
        world.wait(Duration::from_secs(10));
    }
}

#[test]
fn where_others_have_moved_the_name_the_pod_is_tried_and_says_that_it_differs() {
    let mut world = World::new();
    first(&mut world, "1");
    moved(&mut world, "2");
    let second = same("second", &world);
    assert!(is_look(&world.see(&second)));
    let attempt = the_try(&world.inspected(&usable("2")));
    let actions = world.ends(attempt, None, usable("2"), usable("2"));
    let mixed = given(&actions);
    assert_eq!(mixed.outcome, Outcome::Unchanged);
    assert_eq!(mixed.rollout, Some(digest("1")));
    assert!(mixed.is_other());
    let words = mixed.describe(world.now().wall);
    assert!(words.contains("got another digest"), "{words}");
    runs(&mut world, second, &actions, "2");
    // The rollout has both now: no third one is fetched.
    world.wait(Duration::from_secs(10));
    assert!(is_look(&world.see(&same("third", &world))));
    let third = given(&world.inspected(&usable("2")));
    assert_eq!(third.outcome, Outcome::Same);
    assert!(third.is_other());
}

#[test]
fn a_copy_that_is_gone_or_spoiled_is_tried_as_ever() {
    let spoiled = CachedCopy::Unusable { why: "x".into() };
    let unknown = CachedCopy::Unknown { why: "x".into() };
    for copy in [CachedCopy::Absent, spoiled, unknown] {
        let mut world = World::new();
        first(&mut world, "1");
        world.see(&same("second", &world));
        let attempt = the_try(&world.inspected(&copy));
        let actions = world.ends(attempt, None, copy, usable("1"));
        assert_eq!(outcome(&actions), Outcome::Fresh);
        assert!(!given(&actions).is_other());
    }
}

#[test]
fn an_agent_that_begins_again_knows_it_from_the_pods() {
    let mut world = World::new();
    let first = first(&mut world, "1");
    // The container may have ended, and the pod, too.
    let mut ended = first.clone();
    ended.starts.clear();
    ended.terminated = true;
    for first in [first, ended] {
        let mut world = World {
            planner: Planner::new("node", rules(), &[]),
            ..World::new()
        };
        let public = written_down(image(), Some(confirmation("1")), false);
        world.learn(&[public]);
        let second = same("second", &world);
        assert!(is_look(&world.handle(Event::Listed(vec![second, first]))));
        assert_eq!(outcome(&world.inspected(&usable("1"))), Outcome::Same);
    }
}

/// The node has rebooted: the pod's own release says what its rollout has.
#[test]
fn a_pod_whose_gate_runs_again_starts_from_what_it_had() {
    let mut world = World::new();
    let mut pod = first(&mut world, "1");
    world.wait(Duration::from_hours(1));
    pod.starts.clear();
    pod.gate = GateState::Running {
        since: world.now().wall,
    };
    assert!(is_look(&world.see(&pod)));
    assert_eq!(outcome(&world.inspected(&usable("1"))), Outcome::Same);
}

#[test]
fn when_the_rollout_has_left_the_node_another_first_begins() {
    let mut world = World::new();
    first(&mut world, "1");
    world.handle(Event::Gone("uid-first".into()));
    world.wait(Duration::from_secs(10));
    let attempt = the_try(&world.see(&same("second", &world)));
    let actions = world.ends(attempt, None, usable("1"), usable("2"));
    assert_eq!(given(&actions).rollout, None);
}

/// The second comes while the first one's try runs, which is not good for it.
#[test]
fn pods_of_one_burst_get_the_same() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&same("first", &world)));
    world.up += Duration::from_millis(5);
    assert_eq!(world.see(&same("second", &world)), []);
    let actions = world.ends(attempt, None, usable("1"), usable("2"));
    let [Action::Inspect(_), release] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!(outcome(std::slice::from_ref(release)), Outcome::Fresh);
    // Its release is not written yet.
    let actions = world.inspected(&usable("2"));
    assert_eq!(outcome(&actions), Outcome::Same);
    assert_eq!(world.tries(), 1);
}

/// Somebody else's try is about to end: it says more than what is here now.
#[test]
fn a_try_for_others_is_waited_for() {
    let mut world = World::new();
    first(&mut world, "1");
    let attempt = the_try(&world.see(&stranger("stranger", &world)));
    assert!(is_look(&world.see(&same("second", &world))));
    assert_eq!(world.inspected(&usable("1")), []);
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    let is_second =
        |action: &&Action| matches!(action, Action::Release { pod, .. } if pod.name == "second");
    let second: Vec<Action> = actions.iter().filter(is_second).cloned().collect();
    let given = given(&second);
    assert_eq!(given.outcome, Outcome::Unchanged);
    assert_eq!(given.rollout, Some(digest("1")));
}

/// The download that goes on in the background may take minutes: nobody waits for that.
#[test]
fn a_rollout_that_fell_back_stays_with_that_and_says_so() {
    let mut world = World::new();
    let pod = same("first", &world);
    let attempt = the_try(&world.see(&pod));
    let looks = world.stalls(&image(), attempt, Flow::default());
    assert!(is_look(&looks));
    let actions = world.inspected(&usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fallback);
    runs(&mut world, pod, &actions, "1");
    world.wait(Duration::from_secs(3));
    let second = same("second", &world);
    assert!(is_look(&world.see(&second)));
    let actions = world.inspected(&usable("1"));
    // Where the agent decides who may have it, the registry has to speak first: it looks again because that is silent.
    assert!(is_look(&actions));
    world.handle(Event::Gone(second.id.uid));
    world.handle(Event::KubeletVerifies(true));
    assert!(is_look(&world.see(&same("third", &world))));
    let actions = world.inspected(&usable("1"));
    let given = given(&actions);
    assert_eq!(given.outcome, Outcome::Fallback);
    assert_eq!(given.failure.unwrap().class, FailureClass::Timeout);
    assert!(world.node_images()[0].pods_from_cache > 0);
}

#[test]
fn what_a_rollout_fell_back_to_is_no_fallback_once_it_is_confirmed() {
    let mut world = World::new();
    let public = written_down(image(), Some(confirmation("1")), false);
    world.learn(&[public]);
    let pod = same("first", &world);
    let attempt = the_try(&world.see(&pod));
    let failure = Some(FailureClass::NotFound);
    let actions = world.ends(attempt, failure, usable("1"), usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fallback);
    runs(&mut world, pod, &actions, "1");
    world.wait(Duration::from_secs(10));
    moved(&mut world, "1");
    world.see(&same("second", &world));
    assert_eq!(outcome(&world.inspected(&usable("1"))), Outcome::Same);
}

#[test]
fn a_copy_that_is_too_old_is_not_taken_unasked() {
    let mut world = World::new();
    first(&mut world, "1");
    world.wait(Duration::from_hours(2));
    let mut strict = same("strict", &world);
    strict.settings.max_age = Some(Duration::from_hours(1));
    assert!(is_look(&world.see(&strict)));
    let attempt = the_try(&world.inspected(&usable("1")));
    let failure = Some(FailureClass::Network);
    let actions = world.ends(attempt, failure, usable("1"), usable("1"));
    assert_eq!(outcome(&actions), Outcome::Refused);
}

/// Anybody may write a release, and name any owner.
#[test]
fn a_forged_release_opens_no_private_image() {
    let mut world = World::new();
    let private = written_down(image(), Some(confirmation("1")), true);
    world.learn(&[private]);
    world.see(&released("forged", Outcome::Fresh, &world));
    assert!(is_look(&world.see(&same("second", &world))));
    // The registry has given it to somebody, and not to this pod.
    let mut record = written_down(image(), Some(confirmation("1")), true);
    record.facts.private_to = Some(vec![]);
    world.learn(&[record]);
    let attempt = the_try(&world.inspected(&usable("1")));
    let failure = Some(FailureClass::Network);
    let actions = world.ends(attempt, failure, usable("1"), usable("1"));
    assert_eq!(outcome(&actions), Outcome::Refused);
}

#[test]
fn an_image_that_only_such_pods_use_is_left_alone() {
    let mut world = World::new();
    world.planner.refresh_every(Duration::from_hours(1));
    first(&mut world, "1");
    assert_eq!(world.wait(Duration::from_hours(10)), []);
    // A fallback is not made up for, either.
    let registry = Failure::new(FailureClass::RateLimited, "why");
    let now = world.now();
    world
        .planner
        .registry_failed(now, &image(), Duration::from_secs(3), &registry);
    world.wait(Duration::from_hours(1));
    assert_eq!(world.tries(), 1);
}

/// In the node's report, where nothing else is known.
#[test]
fn a_start_without_a_try_is_no_try() {
    for (outcome, tried) in [(Outcome::Same, 0), (Outcome::Fresh, 1)] {
        let mut world = World::new();
        world.see(&released("a", outcome, &world));
        assert_eq!(world.node_images().len(), tried, "{outcome:?}");
    }
}

/// Otherwise the rollout's next pod would find the name moved.
#[test]
fn a_restart_in_place_moves_no_name() {
    let mut world = World::new();
    world.planner.refresh_every(Duration::from_hours(1));
    let mut pod = first(&mut world, "1");
    for _ in 0..2 {
        let start = Start::Started {
            digest: Some(digest("1")),
            since: Some(world.now().wall),
            again: false,
        };
        pod.starts.insert("app".into(), start);
        assert_eq!(world.see(&pod), []);
        assert_eq!(world.wait(Duration::from_mins(10)), []);
    }
}

/// Its namespace has got `hold: none` meanwhile. What it has started from is what its rollout has; nobody sees to what
/// it will start from, and its image is tried as if it did not ask for that.
#[test]
fn a_pod_without_a_gate_counts_and_gets_nothing_of_it() {
    let mut world = World::new();
    world.planner.refresh_every(Duration::from_hours(1));
    let mut pod = same("unheld", &world);
    pod.gate = GateState::NotWanted;
    let start = Start::Started {
        digest: Some(digest("1")),
        since: Some(world.now().wall),
        again: false,
    };
    pod.starts.insert("app".into(), start);
    let actions = world.see(&pod);
    let [
        Action::Complain(_, words),
        Action::Settle(id, release),
        attempt,
    ] = actions.as_slice()
    else {
        panic!("{actions:?}");
    };
    assert!(words.starts_with("trylatest.dev/same-digest: no effect"));
    let told = &release.containers["app"];
    assert_eq!((told.outcome, &told.rollout), (Outcome::NotHeld, &None));
    let attempt = the_try(std::slice::from_ref(attempt));
    world.handle(Event::Settled(id.clone(), release.clone(), Written::Done));
    world.ends(attempt, None, usable("1"), usable("1"));
    let attempt = the_try(&world.wait(Duration::from_hours(2)));
    world.ends(attempt, None, usable("1"), usable("1"));
    world.wait(Duration::from_secs(10));
    assert!(is_look(&world.see(&same("second", &world))));
    assert_eq!(outcome(&world.inspected(&usable("1"))), Outcome::Same);
}

/// The first of a rollout, which restarts after its name was moved.
#[test]
fn a_container_that_leaves_its_rollouts_digest_is_reported_once() {
    let mut world = World::new();
    let mut pod = first(&mut world, "1");
    moved(&mut world, "2");
    let started = |copy: &str, world: &World| Start::Started {
        digest: Some(digest(copy)),
        since: Some(world.now().wall),
        again: true,
    };
    pod.starts.insert("app".into(), started("2", &world));
    let [Action::Compare(_, runs)] = &world.see(&pod)[..] else {
        panic!("it is not compared");
    };
    let actions = world.handle(Event::Compared(runs.clone(), Some([digest("2")].into())));
    let [Action::Settle(id, release)] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    let given = &release.containers["app"];
    assert_eq!(given.digest, Some(digest("1")));
    assert_eq!(given.runs, Some(digest("2")));
    assert!(given.is_other());
    let settled = Event::Settled(id.clone(), release.clone(), Written::Done);
    assert_eq!(world.handle(settled), []);
    pod.released = Some(release.clone());
    assert_eq!(world.see(&pod), []);
    pod.starts.insert("app".into(), started("1", &world));
    let actions = world.see(&pod);
    let [Action::Settle(_, release)] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert!(!release.containers["app"].is_other());
}

#[test]
fn a_look_that_is_older_than_the_end_of_a_try_decides_nothing() {
    let mut world = World::new();
    first(&mut world, "1");
    let other = stranger("stranger", &world);
    let attempt = the_try(&world.see(&other));
    world.see(&same("next", &world));
    let actions = world.ends(attempt, None, usable("1"), usable("2"));
    let stale = world.inspected(&usable("1"));
    let given = [actions, stale].concat();
    let wrong = |action: &Action| matches!(action, Action::Release { pod, release, .. } if pod.name == "next" && release.containers["app"].outcome == Outcome::Same);
    assert!(!given.iter().any(wrong), "{given:?}");
}
