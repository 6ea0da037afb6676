//! Pulls that stall: pods take their copies, and what only needs more time goes on.

use super::*;
use crate::pod::Start;
use crate::record::TryResult;

/// The manifest is here, and nothing of a layer.
const WAITS_FOR_A_LAYER: Flow = Flow {
    bytes: 100,
    total_bytes: Some(8192),
    flows: false,
    grace: Duration::ZERO,
    still: Duration::ZERO,
    behind: false,
};

/// A pod has taken its copy of an image whose pull stalls like this.
fn fallen_back(world: &mut World, name: &str, flow: Flow) -> u64 {
    let pod = held(name, world);
    let actions = world.see(&pod);
    let attempt = the_try(&actions);
    world.wait(Duration::from_secs(5));
    assert_eq!(
        world.stalls(&image(), attempt, flow),
        [Action::Inspect(image())]
    );
    let actions = world.inspected(&usable("1"));
    let releases: Vec<_> = actions.iter().filter(|a| is_release(a)).cloned().collect();
    assert_eq!(outcome(&releases), Outcome::Fallback);
    world.sent(&actions, Written::Done);
    attempt
}

fn cuts(actions: &[Action]) -> Vec<(u64, Why)> {
    let cut = |action: &Action| match action {
        Action::Cut { attempt, why, .. } => Some((*attempt, *why)),
        _ => None,
    };
    actions.iter().filter_map(cut).collect()
}

#[test]
fn a_pod_takes_its_copy_and_the_next_gets_what_the_pull_brings() {
    let mut world = World::new();
    let attempt = fallen_back(&mut world, "first", WAITS_FOR_A_LAYER);
    let said = world.actions.iter().rev().find_map(|action| match action {
        Action::Release { release, .. } => release.containers["app"].failure.clone(),
        _ => None,
    });
    assert_eq!(
        said.unwrap().message,
        "nothing moved for 5s after 100 B of 8.0 KiB"
    );
    assert!(cuts(&world.wait(Duration::from_secs(7))).is_empty());
    world.moved(attempt, 4096, true);
    assert_eq!(world.ends(attempt, None, usable("1"), usable("2")), []);
    assert_eq!(world.records.last().unwrap().result, TryResult::Fresh);
    let second = held("second", &world);
    let actions = world.see(&second);
    let attempt = the_try(&actions);
    let actions = world.ends(attempt, None, usable("2"), usable("2"));
    assert_eq!(outcome(&actions), Outcome::Unchanged);
}

#[test]
fn a_pull_that_stands_still_is_repeated_once_for_the_next_pod() {
    let mut world = World::new();
    let first = fallen_back(&mut world, "first", WAITS_FOR_A_LAYER);
    world.wait(Duration::from_secs(3));
    let second = held("second", &world);
    assert_eq!(cuts(&world.see(&second)), [(first, Why::Newcomer)]);
    let failure = Some(FailureClass::Timeout);
    let actions = world.ends(first, failure, usable("1"), usable("1"));
    let attempt = the_try(&actions);
    world.wait(Duration::from_secs(5));
    let actions = world.stalls(&image(), attempt, WAITS_FOR_A_LAYER);
    assert_eq!(actions, [Action::Inspect(image())]);
    let actions = world.inspected(&usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fallback);
    world.sent(&actions, Written::Done);
    // From now on it is left alone, and nobody waits for it.
    let third = held("third", &world);
    assert_eq!(world.see(&third), [Action::Inspect(image())]);
    let actions = world.inspected(&usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fallback);
    world.sent(&actions, Written::Done);
    world.ends(attempt, None, usable("1"), usable("2"));
    // What has brought something ends that.
    let attempt = fallen_back(&mut world, "fourth", WAITS_FOR_A_LAYER);
    let fifth = held("fifth", &world);
    assert_eq!(cuts(&world.see(&fifth)), [(attempt, Why::Newcomer)]);
}

#[test]
fn a_pod_without_a_copy_waits_as_long_as_containerd_would() {
    for flow in [WAITS_FOR_A_LAYER, Flow::default()] {
        let mut world = World::new();
        let pod = held("app", &world);
        let actions = world.see(&pod);
        let attempt = the_try(&actions);
        world.wait(Duration::from_secs(5));
        let actions = world.stalls(&image(), attempt, flow);
        assert_eq!(actions, [Action::Inspect(image())]);
        assert_eq!(world.inspected(&CachedCopy::Absent), []);
        // Another pod does not spoil it.
        let other = held("other", &world);
        assert_eq!(world.see(&other), [Action::Inspect(image())]);
        assert_eq!(world.inspected(&CachedCopy::Absent), []);
        // Its time is up on the way.
        let actions = world.wait(Duration::from_secs(26));
        assert!(actions.contains(&Action::Inspect(image())), "{actions:?}");
        assert_eq!(world.inspected(&CachedCopy::Absent), []);
        assert!(cuts(&world.wait(Duration::from_secs(265))).is_empty());
        assert_eq!(
            cuts(&world.wait(Duration::from_secs(15))),
            [(attempt, Why::Hangs)]
        );
        let failure = Some(FailureClass::Timeout);
        let actions = world.ends(attempt, failure, CachedCopy::Absent, CachedCopy::Absent);
        assert_eq!(actions.iter().filter(|a| is_release(a)).count(), 2);
    }
}

#[test]
fn an_early_failure_is_tried_again_within_the_pods_time() {
    let mut world = World::new();
    let pod = held("app", &world);
    let actions = world.see(&pod);
    let attempt = the_try(&actions);
    world.wait(Duration::from_secs(5));
    world.stalls(&image(), attempt, Flow::default());
    assert_eq!(world.inspected(&CachedCopy::Absent), []);
    let failure = Some(FailureClass::Network);
    assert_eq!(
        world.ends(attempt, failure, CachedCopy::Absent, CachedCopy::Absent),
        []
    );
    let actions = world.wait(Duration::from_secs(3));
    let next = actions.iter().find(|a| matches!(a, Action::Try { .. }));
    assert!(next.is_some(), "{actions:?}");
}

#[test]
fn a_pod_that_must_not_use_its_copy_waits_for_its_time() {
    let mut world = World::new();
    let mut pod = held("app", &world);
    pod.settings.max_age = Some(Duration::from_secs(1));
    let actions = world.see(&pod);
    let attempt = the_try(&actions);
    world.wait(Duration::from_secs(5));
    world.stalls(&image(), attempt, WAITS_FOR_A_LAYER);
    assert_eq!(world.inspected(&usable("1")), []);
    world.moved(attempt, 4096, true);
    let actions = world.ends(attempt, None, usable("1"), usable("2"));
    assert_eq!(outcome(&actions), Outcome::Fresh);
}

#[test]
fn what_moves_again_before_the_copy_is_proven_is_waited_for() {
    let mut world = World::new();
    let pod = held("app", &world);
    let actions = world.see(&pod);
    let attempt = the_try(&actions);
    world.wait(Duration::from_secs(5));
    world.stalls(&image(), attempt, WAITS_FOR_A_LAYER);
    world.moved(attempt, 4096, true);
    assert_eq!(world.inspected(&usable("1")), []);
    let actions = world.ends(attempt, None, usable("1"), usable("2"));
    assert_eq!(outcome(&actions), Outcome::Fresh);
}

#[test]
fn what_hangs_for_nobody_is_cut_off_sooner_if_it_may_hold_a_place() {
    for (flow, limit) in [(WAITS_FOR_A_LAYER, 30), (Flow::default(), 300)] {
        let mut world = World::new();
        let attempt = fallen_back(&mut world, "app", flow);
        world.handle(Event::Gone("uid-app".into()));
        let before = world.wait(Duration::from_secs(limit - 1));
        assert!(cuts(&before).is_empty());
        let after = world.wait(Duration::from_secs(2));
        assert_eq!(cuts(&after), [(attempt, Why::Hangs)]);
        assert!(cuts(&world.wait(Duration::from_secs(600))).is_empty());
    }
}

#[test]
fn what_hangs_for_nobody_gives_way_one_by_one_to_a_pull_that_waits() {
    let mut world = World::new();
    let names = ["a", "b", "c"].map(|name| format!("{name}.example/app").parse().unwrap());
    let [first, second, healthy]: [ImageName; 3] = names;
    let mut hanging = Vec::new();
    for name in [&first, &second] {
        let pod = of(name, &world);
        let attempt = the_try(&world.see(&pod));
        world.wait(Duration::from_secs(5));
        world.stalls(name, attempt, WAITS_FOR_A_LAYER);
        let actions = world.handle(Event::Inspected(name.clone(), usable("1")));
        world.sent(&actions, Written::Done);
        hanging.push(attempt);
    }
    let pod = of(&healthy, &world);
    let attempt = the_try(&world.see(&pod));
    let stands = |still, behind| {
        Event::Moved(Moved {
            image: healthy.clone(),
            attempt,
            flow: Flow {
                still: Duration::from_millis(still),
                behind,
                ..WAITS_FOR_A_LAYER
            },
        })
    };
    // It has its place, and the registry is slow.
    assert!(cuts(&world.handle(stands(1500, false))).is_empty());
    assert!(cuts(&world.handle(stands(1250, true))).is_empty());
    let cut = |nth: usize| [(hanging[nth], Why::InTheWay)];
    assert_eq!(cuts(&world.handle(stands(1500, true))), cut(0));
    assert!(cuts(&world.handle(stands(1750, true))).is_empty());
    assert!(cuts(&world.wait(Duration::from_millis(1400))).is_empty());
    world.wait(Duration::from_millis(100));
    world.handle(stands(3250, true));
    assert_eq!(cuts(&world.actions), [cut(0), cut(1)].concat());
}

#[test]
fn silence_that_was_cut_off_for_a_newcomer_is_asked_again() {
    let mut world = World::new();
    world.handle(Event::KubeletVerifies(true));
    let hangs = fallen_back(&mut world, "first", Flow::default());
    world.wait(Duration::from_secs(30));
    let second = held("second", &world);
    assert_eq!(cuts(&world.see(&second)), [(hangs, Why::Newcomer)]);
    // More images of that registry than have a turn.
    let others = (0..8).map(|n| format!("reg.example/other-{n}").parse().unwrap());
    for name in others {
        let pod = of(&name, &world);
        world.see(&pod);
    }
    let failure = Some(FailureClass::Timeout);
    let actions = world.ends(hangs, failure, usable("1"), usable("1"));
    let asks = |action: &Action| match action {
        Action::Try {
            image: name, ask, ..
        } => Some(*name == image() && *ask == Ask::Always),
        _ => None,
    };
    let asked: Vec<bool> = actions.iter().filter_map(asks).collect();
    assert_eq!(asked, [true], "{actions:?}");
}

#[test]
fn a_hand_over_does_not_wait_for_what_hangs() {
    let mut world = World::new();
    world.handle(Event::KubeletVerifies(true));
    world.handle(Event::Well(true));
    // Refused, and its gate does not run yet.
    let first = pod("first", &world);
    let attempt = the_try(&world.see(&first));
    let failure = Some(FailureClass::Unauthorized);
    world.ends(attempt, failure, usable("1"), usable("1"));
    world.wait(Duration::from_secs(3));
    let hangs = fallen_back(&mut world, "second", WAITS_FOR_A_LAYER);
    assert_eq!(cuts(&world.actions), [(hangs, Why::HandOver)]);
}

#[test]
fn a_container_that_starts_after_the_pull_has_ended_runs_what_it_brought() {
    let mut world = World::new();
    let attempt = fallen_back(&mut world, "app", WAITS_FOR_A_LAYER);
    world.ends(attempt, None, usable("1"), usable("2"));
    let mut open = held("app", &world);
    open.gate = GateState::Open;
    let digest = Some(digest("2"));
    let since = None;
    let runs = Start::Started {
        digest,
        since,
        again: false,
    };
    open.starts.insert("app".into(), runs);
    let actions = world.see(&open);
    let [Action::Settle(_, release)] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    let app = &release.containers["app"];
    assert_eq!(app.outcome, Outcome::Fresh);
    assert_eq!(app.failure, None);
}

fn is_release(action: &Action) -> bool {
    matches!(action, Action::Release { .. })
}
