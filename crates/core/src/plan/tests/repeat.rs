//! A release that its gate does not act on.

use super::*;

const AFTER: Duration = Duration::from_secs(5);

/// A pod that was released at once, and whose gate has started since.
fn released(world: &mut World) -> GatedPod {
    let first = pod("a", world);
    let attempt = the_try(&world.see(&first));
    let actions = world.ends(attempt, None, usable("1"), usable("2"));
    world.sent(&actions, Written::Done);
    world.wait(AFTER * 2);
    let mut running = held("a", world);
    running.created = first.created;
    running.released = Some(the_release(&actions).clone());
    assert_eq!(world.see(&running), [], "it has had no time yet");
    running
}

#[test]
fn it_is_written_again_with_a_new_time_a_few_times() {
    let mut world = World::new();
    let mut pod = released(&mut world);
    assert_eq!(world.wait(Duration::from_millis(4999)), []);
    for n in 0..5 {
        let actions = world.wait(Duration::from_millis(if n == 0 { 1 } else { 5000 }));
        let [Action::Rewrite(id, again)] = &actions[..] else {
            panic!("{actions:?}");
        };
        assert_eq!(again.time, world.now().wall);
        let given = pod.released.as_ref().unwrap();
        assert_eq!(again.containers, given.containers);
        // One that is lost does not count.
        let sent = [Written::Done, Written::Failed][n % 2];
        let written = Event::Rewritten(id.clone(), again.clone(), sent);
        assert_eq!(world.handle(written), []);
        if sent == Written::Done {
            pod.released = Some(again.clone());
        }
        assert_eq!(world.see(&pod), []);
    }
    assert_eq!(world.wait(Duration::from_secs(60)), []);
}

#[test]
fn a_gate_that_has_opened_is_left_alone() {
    let mut world = World::new();
    let mut pod = released(&mut world);
    pod.gate = GateState::Open;
    world.see(&pod);
    assert_eq!(world.wait(Duration::from_hours(1)), []);
}

/// On a busy node the kubelet says so seconds later.
#[test]
fn a_gate_that_has_ended_at_the_runtime_is_left_alone_for_a_while() {
    let mut world = World::new();
    let running = released(&mut world);
    let pending = GatedPod {
        gate: GateState::Pending,
        ..running.clone()
    };
    for (ends, until) in [
        (Event::GatesRun([].into()), 15_000),
        // Nobody has said that it has ended.
        (Event::GatesUnknown, 5_000),
    ] {
        world.see(&pending);
        world.handle(Event::GatesRun([running.id.uid.clone()].into()));
        world.handle(ends);
        world.see(&running);
        assert_eq!(world.wait(Duration::from_millis(until - 1)), []);
        assert_eq!(world.wait(Duration::from_millis(1)).len(), 1);
    }
}

#[test]
fn what_no_repeat_has_shown_is_told_as_unseen() {
    let mut world = World::new();
    let mut pod = released(&mut world);
    let actions = world.wait(Duration::from_secs(19));
    assert_eq!(actions.len(), 3);
    let Some(Action::Rewrite(id, again)) = actions.last() else {
        panic!("{actions:?}");
    };
    world.handle(Event::Rewritten(id.clone(), again.clone(), Written::Done));
    world.wait(Duration::from_secs(1));
    pod.gate = gave_up(world.up);
    let actions = world.see(&pod);
    assert!(
        matches!(actions[0], Action::Unseen(_, _, Answer::Released(_))),
        "{actions:?}"
    );
}

/// The agent before this one has written it.
#[test]
fn an_agent_that_comes_later_repeats_it_too() {
    let mut world = World::new();
    let pod = released(&mut world);
    let mut later = World::new();
    later.up = world.up;
    assert_eq!(later.see(&pod), []);
    let actions = later.wait(AFTER);
    assert!(matches!(actions[..], [Action::Rewrite(..)]), "{actions:?}");
}

/// It was under way when the gate opened by itself, and was written last.
#[test]
fn a_repeat_that_overtakes_what_the_release_came_to_is_mended() {
    let mut world = World::new();
    let mut pod = released(&mut world);
    let actions = world.wait(AFTER);
    let [Action::Rewrite(id, again)] = &actions[..] else {
        panic!("{actions:?}");
    };
    pod.gate = gave_up(world.up);
    let actions = world.see(&pod);
    let Some(Action::Rewrite(_, amended)) = actions.last() else {
        panic!("{actions:?}");
    };
    assert!(amended.unseen.is_some());
    world.handle(Event::Rewritten(id.clone(), amended.clone(), Written::Done));
    world.handle(Event::Rewritten(id.clone(), again.clone(), Written::Done));
    pod.released = Some(again.clone());
    let actions = world.see(&pod);
    let [Action::Rewrite(_, mended)] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(
        (mended.unseen, &mended.containers),
        (amended.unseen, &amended.containers)
    );
}

/// The gate has run for longer than a release may take to be seen.
#[test]
fn a_release_that_the_watch_shows_before_its_answer_is_not_repeated_at_once() {
    let mut world = World::new();
    let mut pod = held("a", &world);
    let attempt = the_try(&world.see(&pod));
    world.wait(AFTER * 2);
    let actions = world.ends(attempt, None, usable("1"), usable("2"));
    pod.released = Some(the_release(&actions).clone());
    assert_eq!(world.see(&pod), []);
    world.up += Duration::from_millis(5);
    assert_eq!(world.sent(&actions, Written::Done), []);
    assert_eq!(world.wait(Duration::from_millis(4990)), []);
    // Nor does the watch put it off by showing the same again.
    assert_eq!(world.see(&pod), []);
    let actions = world.wait(Duration::from_millis(20));
    assert!(matches!(actions[..], [Action::Rewrite(..)]), "{actions:?}");
}
