//! When a pod's time is up, and when a release is too old.

use super::*;
use crate::record::TryResult;

#[test]
fn without_a_copy_it_tries_again_and_then_leaves_the_pod_to_the_kubelet() {
    let mut world = World::new();
    let mut attempt = the_try(&world.see(&pod("a", &world)));
    let mut released = Vec::new();
    while world.up < Duration::from_secs(200) && released.is_empty() {
        world.ends(
            attempt,
            Some(FailureClass::ServerError),
            CachedCopy::Absent,
            CachedCopy::Absent,
        );
        for action in world.wait(Duration::from_secs(13)) {
            match action {
                Action::Try { attempt: next, .. } => attempt = next,
                Action::Inspect(_) => released.extend(world.inspected(&CachedCopy::Absent)),
                Action::Release { .. } => released.push(action),
                Action::Progress(..) => {}
                Action::Complain(..)
                | Action::Overruled(..)
                | Action::Unanswered(..)
                | Action::Record(_)
                | Action::Compare(..)
                | Action::Unseen(..)
                | Action::Cut { .. }
                | Action::TakeAway { .. }
                | Action::GiveBack { .. }
                | Action::Settle(..)
                | Action::Rewrite(..) => panic!("{action:?}"),
            }
        }
        if !matches!(released.first(), Some(Action::Release { .. })) {
            released.clear();
        }
    }
    assert_eq!(outcome(&released), Outcome::Unavailable);
    let release = &the_release(&released).containers["app"];
    assert_eq!(
        release.failure.as_ref().unwrap().class,
        FailureClass::ServerError
    );
    assert!(world.tries() >= 3, "{}", world.tries());
    assert!(world.up <= Duration::from_secs(100) + TRY + Duration::from_secs(13));
}

/// Bytes that flow are also the registry's word that anybody may have it.
#[test]
fn when_its_time_is_up_a_pod_takes_the_cached_copy_and_the_download_goes_on() {
    let mut world = World::new();
    let mut pod = held("a", &world);
    pod.settings.timeout = Some(Duration::from_secs(5));
    let attempt = the_try(&world.see(&pod));
    world.moved(attempt, 4096, true);
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
    assert!(failure.message.contains("continues"), "{failure}");
    world.sent(&actions, Written::Done);
    assert_eq!(world.records, [], "the try has not ended");
    pod.gate = GateState::Open;
    world.see(&pod);
    // The catch-up ends: remembered, and nothing is sent.
    world.up += Duration::from_secs(9);
    assert_eq!(world.ends(attempt, None, usable("1"), usable("2")), []);
    assert_eq!(world.records.len(), 1);
    assert_eq!(world.records[0].result, TryResult::Fresh);
}

#[test]
fn a_pod_with_a_deadline_of_its_own_keeps_most_of_it() {
    for (deadline, timeout, waits) in [(10, None, 2500), (3600, None, 30_000), (10, Some(6), 6000)]
    {
        let mut world = World::new();
        let mut pod = pod("a", &world);
        pod.active_deadline = Some(Duration::from_secs(deadline));
        pod.settings.timeout = timeout.map(Duration::from_secs);
        let attempt = the_try(&world.see(&pod));
        world.moved(attempt, 1, true);
        let began = world.up;
        let mut looks = Vec::new();
        while looks.is_empty() {
            let actions = world.wait(Duration::from_millis(500));
            looks.extend(
                actions
                    .into_iter()
                    .filter(|a| matches!(a, Action::Inspect(_))),
            );
        }
        assert_eq!(
            world.up.saturating_sub(began),
            Duration::from_millis(waits),
            "{deadline}"
        );
    }
}

/// On a busy node most are released before their gates run, and a write is felt there.
#[test]
fn a_sign_of_life_is_given_when_a_gate_runs_that_can_see_it() {
    let mut world = World::new();
    let pod = pod("a", &world);
    the_try(&world.see(&pod));
    assert_eq!(world.wait(Duration::from_secs(9)), []);
    let actions = world.see(&held("a", &world));
    assert!(matches!(actions[..], [Action::Progress(..)]), "{actions:?}");
    assert_eq!(world.wait(Duration::from_secs(4)), []);
    let actions = world.wait(Duration::from_secs(1));
    assert!(matches!(actions[..], [Action::Progress(..)]), "{actions:?}");
}

#[test]
fn a_gate_that_is_reported_late_gets_its_sign_of_life_all_the_same() {
    let mut world = World::new();
    the_try(&world.see(&pod("a", &world)));
    let actions = world.wait(Duration::from_secs(10));
    assert!(matches!(actions[..], [Action::Progress(..)]), "{actions:?}");
}

#[test]
fn without_a_copy_a_pod_waits_as_long_as_bytes_flow() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&held("a", &world)));
    world.moved(attempt, 1, true);
    let mut signs = 0;
    for action in world.wait(TRY) {
        match action {
            Action::Inspect(_) => assert_eq!(world.inspected(&CachedCopy::Absent), []),
            Action::Progress(..) => signs += 1,
            other => panic!("{other:?}"),
        }
    }
    let more = world.wait(Duration::from_mins(5));
    assert!(more.iter().all(|a| matches!(a, Action::Progress(..))));
    assert!(signs >= 6 && more.len() >= 59, "{signs} {}", more.len());
    let actions = world.ends(attempt, None, CachedCopy::Absent, usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fresh);
}

#[test]
fn an_overdue_pod_without_a_copy_ends_with_its_last_try() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&pod("a", &world)));
    world.wait(TRY);
    assert_eq!(world.inspected(&CachedCopy::Absent), []);
    let actions = world.ends(
        attempt,
        Some(FailureClass::Timeout),
        CachedCopy::Absent,
        CachedCopy::Absent,
    );
    assert_eq!(outcome(&actions), Outcome::Unavailable);
}

#[test]
fn a_rebooted_pod_is_tried_anew() {
    let mut world = World::new();
    let mut pod = pod("a", &world);
    let attempt = the_try(&world.see(&pod));
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    world.sent(&actions, Written::Done);
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
    world.sent(&actions, Written::Done);
    pod.released = Some(the_release(&actions).clone());
    world.see(&pod);
    assert_eq!(
        world.wait(Duration::from_hours(5)),
        [],
        "its sandbox is not there yet"
    );
    let uid = pod.id.uid.clone();
    the_try(&world.handle(Event::GatesRun([uid].into())));
}

#[test]
fn a_release_that_goes_stale_while_the_gate_runs_is_given_anew() {
    let mut world = World::new();
    let mut pod = pod("a", &world);
    let attempt = the_try(&world.see(&pod));
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    world.sent(&actions, Written::Done);
    pod.released = Some(the_release(&actions).clone());
    pod.gate = GateState::Running {
        since: world.now().wall,
    };
    world.see(&pod);
    let is_rewrite = |action: &Action| matches!(action, Action::Rewrite(..));
    let repeats = world.wait(Duration::from_secs(120));
    assert!(repeats.iter().all(is_rewrite), "{repeats:?}");
    the_try(&world.wait(Duration::from_secs(1)));
}

#[test]
fn a_release_that_cannot_be_written_is_sent_again_with_a_new_time() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&pod("a", &world)));
    let mut actions = world.ends(attempt, None, usable("1"), usable("1"));
    for _ in 0..20 {
        assert_eq!(world.sent(&actions, Written::Failed), []);
        let sent = world.now().wall;
        // The longest pause, with its jitter.
        actions = world.wait(Duration::from_millis(6250));
        assert!(the_release(&actions).time > sent);
    }
    world.sent(&actions, Written::Done);
    assert!(!world.waits());
}

#[test]
fn containerd_being_down_neither_hands_out_a_copy_nor_holds_a_pod_for_ever() {
    let mut world = World::new();
    let unknown = || CachedCopy::Unknown { why: "down".into() };
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
                Action::Release { release, .. } => {
                    assert_eq!(release.containers["app"].outcome, Outcome::Unavailable);
                    return;
                }
                Action::Progress(..)
                | Action::Complain(..)
                | Action::Overruled(..)
                | Action::Unanswered(..)
                | Action::Record(_)
                | Action::Compare(..)
                | Action::Unseen(..)
                | Action::Cut { .. }
                | Action::TakeAway { .. }
                | Action::GiveBack { .. }
                | Action::Settle(..)
                | Action::Rewrite(..) => {}
            }
        }
    }
    panic!("the pod is held for ever");
}

#[test]
fn a_forged_time_at_the_end_of_all_times_does_no_harm() {
    for time in ["9999-12-30T22:00:00.999999999Z", "-009999-01-02T01:59:59Z"] {
        let mut world = World::new();
        let mut forged = pod("forged", &world);
        forged.released = Some(Release {
            time: time.parse().unwrap(),
            containers: [].into(),
            unseen: None,
        });
        forged.gate = GateState::Running {
            since: world.now().wall,
        };
        the_try(&world.see(&forged));
        world.wait(Duration::from_secs(1));
    }
}
