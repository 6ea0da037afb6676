//! What the node says of its images.

use super::*;
use crate::pod::Start;

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
    world.sent(&actions, Written::Done);
    let images = world.node_images();
    assert_eq!(images.len(), 1);
    assert_eq!((images[0].outcome, images[0].pods), (Outcome::Fallback, 1));
    world.handle(Event::Gone("uid-a".into()));
    assert_eq!(world.node_images()[0].pods, 0);
    world.handle(Event::Pruned([].into()));
    assert_eq!(world.node_images(), []);
}

#[test]
fn a_silent_containerd_does_not_clear_the_nodes_report() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&pod("a", &world)));
    let failed = Some(FailureClass::Network);
    let actions = world.ends(attempt, failed, usable("1"), usable("1"));
    world.sent(&actions, Written::Done);
    assert!(world.node_images()[0].runs_from_cache());
    world.up += Duration::from_secs(10);
    let attempt = the_try(&world.see(&pod("b", &world)));
    let unknown = || CachedCopy::Unknown {
        why: "no answer".into(),
    };
    world.ends(attempt, Some(FailureClass::Local), unknown(), unknown());
    assert!(world.node_images()[0].runs_from_cache());
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
    world.sent(&actions, Written::Done);
    assert!(!world.node_images()[0].runs_from_cache());
    let users = |world: &World| {
        let image = &world.node_images()[0];
        (image.pods, image.pods_from_cache, image.pods_refused)
    };
    assert_eq!(users(&world), (0, 0, 1));
    // A pod that takes every copy.
    released(&mut world, "other", failed, usable("1"));
    assert_eq!(users(&world), (1, 1, 1));
    // The registry is back, and the refused pod's gate has not run again yet.
    released(&mut world, "third", None, usable("1"));
    assert_eq!(users(&world), (2, 0, 1));
    world.handle(Event::Gone("uid-strict".into()));
    assert_eq!(users(&world), (2, 0, 0));
}

#[test]
fn a_pod_that_an_earlier_run_has_refused_is_reported_without_an_index() {
    let mut world = World::new();
    let mut strict = pod("strict", &world);
    strict.settings.fallback_on = Some([].into());
    let attempt = the_try(&world.see(&strict));
    let failed = Some(FailureClass::Network);
    let actions = world.ends(attempt, failed, usable("1"), usable("1"));
    strict.released = Some(the_release(&actions).clone());
    let mut world = World::new();
    world.see(&strict);
    let [image] = world.node_images().try_into().unwrap();
    assert_eq!((image.outcome, image.class), (Outcome::Refused, failed));
    assert_eq!((image.pods, image.pods_refused), (0, 1));
}

/// A pod for which there is nothing is none that falls back, whatever the last try has come to for others.
#[test]
fn a_pod_that_has_nothing_to_start_from_is_counted_until_it_starts() {
    let failed = Some(FailureClass::Unauthorized);
    let mut world = World::new();
    let mut app = pod("app", &world);
    let attempt = the_try(&world.see(&app));
    let actions = world.ends(attempt, failed, CachedCopy::Absent, CachedCopy::Absent);
    assert_eq!(outcome(&actions), Outcome::Unavailable);
    world.sent(&actions, Written::Done);
    let users = |world: &World| {
        let image = &world.node_images()[0];
        (image.pods, image.pods_from_cache, image.pods_unavailable)
    };
    assert_eq!(users(&world), (1, 0, 1));
    released(&mut world, "other", None, usable("1"));
    assert_eq!(users(&world), (2, 0, 1));
    app.released = Some(the_release(&actions).clone());
    app.gate = GateState::Open;
    let why = Failure::new(FailureClass::Network, "said the kubelet");
    app.starts.insert("app".into(), Start::Wanting(why));
    world.see(&app);
    assert_eq!(users(&world), (2, 0, 1));
    let started = Start::Started {
        digest: None,
        since: None,
        again: false,
    };
    world.planner.take_report(world.now());
    app.starts.insert("app".into(), started);
    world.see(&app);
    assert!(world.planner.take_report(world.now()).is_some());
    assert_eq!(users(&world), (2, 0, 0));
}

/// The name has pointed to a fresh copy, and was pointed back to an earlier one ten seconds later.
pub(super) fn rolled_back() -> (World, RolledBack) {
    let mut world = World::new();
    released(&mut world, "a", None, usable("2"));
    world.up += Duration::from_secs(10);
    let back = RolledBack {
        time: world.now().wall,
        from: Some(digest("2")),
        to: digest("1"),
    };
    world.handle(Event::RolledBack([(image(), back.clone())].into()));
    (world, back)
}

/// A pod that is released after a try of the given end, on a world where time has passed.
pub(super) fn released(
    world: &mut World,
    name: &str,
    failure: Option<FailureClass>,
    after: CachedCopy,
) {
    world.up += Duration::from_secs(10);
    let attempt = the_try(&world.see(&pod(name, world)));
    let actions = world.ends(attempt, failure, usable("1"), after);
    world.sent(&actions, Written::Done);
}

fn from_cache(world: &World) -> (usize, usize) {
    let images = world.node_images();
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
    // The registry's word on the first pod's copy stands; a new one waits for its own.
    released(&mut world, "c", failed, usable("1"));
    assert_eq!(from_cache(&world), (3, 1));
    world.handle(Event::Gone("uid-c".into()));
    assert_eq!(from_cache(&world), (2, 0));
}

/// The try that a pod has not waited for ends after its release, and began before.
#[test]
fn the_end_of_the_try_that_a_pod_did_not_wait_for_confirms_its_copy() {
    let mut world = World::new();
    let mut hasty = pod("hasty", &world);
    hasty.settings.timeout = Some(Duration::from_secs(1));
    let attempt = the_try(&world.see(&hasty));
    world.moved(attempt, 1, true);
    world.wait(Duration::from_secs(1));
    let actions = world.inspected(&usable("1"));
    world.sent(&actions, Written::Done);
    assert_eq!(from_cache(&world), (1, 1));
    world.up += Duration::from_secs(1);
    world.ends(attempt, None, usable("1"), usable("1"));
    assert_eq!(from_cache(&world), (1, 0));
    // To write the release again changes nothing about when it was decided.
    let repeats = world.see(&held("hasty", &world));
    assert_eq!(repeats, []);
    let repeats = world.wait(Duration::from_secs(6));
    let [Action::Rewrite(id, again)] = &repeats[..] else {
        panic!("{repeats:?}");
    };
    world.handle(Event::Rewritten(id.clone(), again.clone(), Written::Done));
    let mut hasty = held("hasty", &world);
    hasty.released = Some(again.clone());
    world.see(&hasty);
    assert_eq!(from_cache(&world), (1, 0));
}

/// The pod's owner may have written any release.
#[test]
fn a_release_says_no_more_of_an_image_than_that_its_pod_fell_back() {
    for (ahead, outcome, expected) in [
        (0, Outcome::Fallback, Outcome::Fallback),
        (60, Outcome::Fallback, Outcome::Unchanged),
        (0, Outcome::Refused, Outcome::Unchanged),
        (0, Outcome::Fresh, Outcome::Unchanged),
    ] {
        let mut world = World::new();
        released(&mut world, "a", None, usable("1"));
        world.up += Duration::from_secs(10);
        let mut forged = pod("forged", &world);
        forged.gate = GateState::Open;
        let ours = world.actions.iter().find_map(|action| match action {
            Action::Release { release, .. } => Some(release.clone()),
            _ => None,
        });
        let mut release = ours.unwrap();
        release.time = world.now().wall + Duration::from_secs(ahead);
        release.containers.get_mut("app").unwrap().outcome = outcome;
        forged.released = Some(release);
        world.see(&forged);
        assert_eq!(
            world.node_images()[0].outcome,
            expected,
            "{outcome} {ahead}"
        );
    }
}

#[test]
fn pods_released_by_an_earlier_run_are_reported_without_an_index() {
    let mut world = World::new();
    released(&mut world, "a", Some(FailureClass::Network), usable("1"));
    let mut pod = pod("a", &world);
    let mut releases = world.actions.iter().filter_map(|action| match action {
        Action::Release { release, .. } => Some(release.clone()),
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

#[test]
fn a_rollback_is_said_until_a_try_succeeds() {
    let (mut world, back) = rolled_back();
    let [report] = world.node_images().try_into().unwrap();
    assert_eq!(report.digest, Some(digest("1")));
    assert_eq!(report.rolled_back.as_deref(), Some(&back));
    let used = world.planner.take_used().unwrap();
    assert!(used[0].public, "only such copies are rolled back to");
    // An outage: the next pod starts from what the name points to, and knows why.
    world.up += Duration::from_secs(10);
    let attempt = the_try(&world.see(&pod("b", &world)));
    let failed = Some(FailureClass::Network);
    let actions = world.ends(attempt, failed, usable("1"), usable("1"));
    let Some(Action::Release { release, .. }) = actions.first() else {
        panic!("not released: {actions:?}");
    };
    let given = &release.containers["app"];
    assert_eq!(given.rolled_back, Some(back));
    let line = given.describe(world.now().wall);
    let words =
        "using the cached copy of reg.example/app: sha256:1, rolled back from sha256:2 10s ago";
    assert!(line.starts_with(words), "{line}");
    world.sent(&actions, Written::Done);
    assert!(world.node_images()[0].rolled_back.is_some());
    released(&mut world, "c", None, usable("2"));
    let [report] = world.node_images().try_into().unwrap();
    assert_eq!(report.rolled_back, None);
    assert_eq!(report.digest, Some(digest("2")));
}
