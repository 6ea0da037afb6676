//! Pods without a gate, and containers that restart in place: what is said of them, and what is tried for their next
//! start.

use super::*;
use crate::pod::Start;
use crate::release::ContainerRelease;

/// As long as a start that follows another one waits for a try.
const AFTER_START: Duration = Duration::from_mins(5);

fn unheld(name: &str, world: &World) -> GatedPod {
    GatedPod {
        gate: GateState::NotWanted,
        ..pod(name, world)
    }
}

/// The same pod a moment later: its container runs this, since now.
fn runs(mut pod: GatedPod, copy: &str, world: &World) -> GatedPod {
    let start = Start::Started {
        digest: Some(digest(copy)),
        since: Some(world.now().wall),
        again: false,
    };
    pod.starts.insert("app".into(), start);
    pod
}

fn tries(actions: &[Action]) -> Vec<u64> {
    let tries = actions.iter().filter_map(|action| match action {
        Action::Try { attempt, ask, .. } => {
            assert_eq!(*ask, Ask::Always);
            Some(*attempt)
        }
        _ => None,
    });
    tries.collect()
}

fn told(actions: &[Action]) -> Option<&Release> {
    let mut told = actions.iter().filter_map(|action| match action {
        Action::Settle(_, release) => Some(release),
        Action::Release { .. } | Action::Rewrite(..) | Action::Progress(..) => {
            panic!("it waits for nothing: {action:?}")
        }
        _ => None,
    });
    let first = told.next();
    assert_eq!(told.next(), None);
    first
}

impl World {
    /// What it said to a pod is written.
    fn settles(&mut self, actions: &[Action]) -> ContainerRelease {
        let release = told(actions).expect("it is told").clone();
        let settled = Event::Settled(pod("a", self).id, release.clone(), Written::Done);
        assert_eq!(told(&self.handle(settled)), None);
        release.containers["app"].clone()
    }
}

#[test]
fn it_is_left_alone_until_it_runs_then_told_and_its_image_tried() {
    let mut world = World::new();
    let pod = unheld("a", &world);
    assert_eq!(world.see(&pod), []);
    assert_eq!(
        world.wait(Duration::from_mins(10)),
        [],
        "the kubelet may pull"
    );
    let pod = runs(pod, "1", &world);
    let actions = world.see(&pod);
    let attempts = tries(&actions);
    let given = world.settles(&actions);
    assert_eq!(world.node_images(), [], "nothing is known but that it runs");
    assert_eq!(given.outcome, Outcome::NotHeld);
    assert_eq!(given.digest, Some(digest("1")));
    assert_eq!(given.confirmed, None);
    let line = "started reg.example/app without checking its tag first: sha256:1, never confirmed by TryLatest";
    assert_eq!(given.describe(world.now().wall), line);
    let [attempt] = attempts[..] else {
        panic!("not one try: {actions:?}");
    };
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    assert_eq!(actions, [], "it is what the tag points to");
    assert_eq!(world.wait(Duration::from_hours(9)), [], "refresh is off");
}

#[test]
fn a_tag_that_has_moved_since_is_told_once() {
    let mut world = World::new();
    let pod = runs(unheld("a", &world), "1", &world);
    let actions = world.see(&pod);
    let attempt = tries(&actions)[0];
    world.settles(&actions);
    world.up += Duration::from_secs(1);
    let actions = world.ends(attempt, None, usable("1"), usable("2"));
    let given = world.settles(&actions);
    assert_eq!(given.moved, Some(digest("2")));
    assert_eq!(
        given.describe(world.now().wall),
        "reg.example/app has moved to sha256:2, which is on the node for the next start; this pod runs sha256:1"
    );
    assert_eq!(world.node_images()[0].pods_behind, 1);
    assert_eq!(world.see(&pod), []);
    // The next pod runs it, and so does the first once its container has restarted.
    let next = runs(unheld("b", &world), "2", &world);
    let actions = world.see(&next);
    let release = told(&actions).unwrap();
    let given = &release.containers["app"];
    assert_eq!((&given.digest, &given.moved), (&Some(digest("2")), &None));
    assert!(given.confirmed.is_some());
    let settled = Event::Settled(next.id.clone(), release.clone(), Written::Done);
    world.handle(settled);
    let actions = world.see(&runs(pod, "2", &world));
    let given = world.settles(&actions);
    assert_eq!((given.digest, given.moved), (Some(digest("2")), None));
    assert_eq!(world.node_images()[0].pods_behind, 0);
}

#[test]
fn an_index_that_was_pushed_again_over_the_same_manifest_has_not_moved() {
    for (digests, moved) in [
        (&["1", "2"][..], None),
        (&[], None),
        (&["2", "3"], Some(digest("2"))),
    ] {
        let mut world = World::new();
        let pod = runs(unheld("a", &world), "1", &world);
        let actions = world.see(&pod);
        let attempt = tries(&actions)[0];
        world.settles(&actions);
        world.up += Duration::from_secs(1);
        let evidence = Evidence {
            digests: digests.iter().map(|name| digest(name)).collect(),
            ..Evidence::of_try(None, &usable("1"), usable("2"), None)
        };
        let actions = world.handle(Event::TryEnded(TryEnded {
            image: image(),
            attempt,
            evidence,
        }));
        let said = told(&actions).and_then(|release| release.containers["app"].moved.clone());
        assert_eq!(said, moved, "{digests:?}");
    }
}

/// What was confirmed before it started may be another copy than the node's.
#[test]
fn only_what_was_said_since_the_start_is_news() {
    let mut world = World::new();
    world.learn(&[written_down(image(), Some(confirmation("2")), false)]);
    let pod = runs(unheld("a", &world), "1", &world);
    world.up += Duration::from_secs(1);
    let actions = world.see(&pod);
    assert_eq!(told(&actions).unwrap().containers["app"].moved, None);
}

/// An init container and the app of one pod are to be of one version.
#[test]
fn an_image_that_a_pod_still_has_to_start_from_is_not_moved() {
    let mut world = World::new();
    world.planner.refresh_every(Duration::from_hours(1));
    let mut pod = unheld("a", &world);
    pod.containers.push(TryContainer {
        name: "later".into(),
        ..pod.containers[0].clone()
    });
    let mut pod = runs(pod, "1", &world);
    let actions = world.see(&pod);
    assert!(tries(&actions).is_empty());
    world.settles(&actions);
    assert!(tries(&world.wait(Duration::from_hours(3))).is_empty());
    let start = pod.starts["app"].clone();
    pod.starts.insert("later".into(), start);
    let actions = world.see(&pod);
    assert_eq!(tries(&actions).len(), 1);
    let release = told(&actions).unwrap();
    assert_eq!(release.containers.len(), 2);
}

/// A container that crashes in a loop, too.
#[test]
fn many_starts_cost_one_try_in_five_minutes() {
    let mut world = World::new();
    let mut pod = unheld("a", &world);
    let mut attempts = 0;
    for n in 0..60 {
        pod = runs(pod, "1", &world);
        let mut actions = world.see(&pod);
        if told(&actions).is_some() {
            world.settles(&actions.clone());
        }
        actions.extend(world.wait(Duration::from_secs(20)));
        for attempt in tries(&actions) {
            attempts += 1;
            world.ends(attempt, None, usable("1"), usable("1"));
        }
        assert_eq!(world.see(&pod), [], "{n}");
    }
    // In 20 minutes.
    assert!((4..=5).contains(&attempts), "{attempts}");
    // The last start was after the last try.
    world.wait(AFTER_START);
    assert_eq!(world.wait(AFTER_START), []);
}

#[test]
fn a_private_image_is_left_alone_after_its_refusal() {
    let mut world = World::new();
    world.handle(Event::KubeletVerifies(true));
    world.handle(Event::Well(true));
    let pod = runs(unheld("a", &world), "1", &world);
    let actions = world.see(&pod);
    let attempt = tries(&actions)[0];
    world.settles(&actions);
    let refused = Some(FailureClass::Unauthorized);
    assert_eq!(world.ends(attempt, refused, usable("1"), usable("1")), []);
    assert_eq!(world.records.len(), 1);
    world.wait(AFTER_START * 2);
    let again = runs(pod, "1", &world);
    assert_eq!(world.see(&again), []);
    assert_eq!(world.wait(AFTER_START * 2), []);
    assert!(!world.planner.is_handing_over());
}

/// The watch shows no pod that has ended.
#[test]
fn a_pod_that_is_over_before_it_was_seen_to_run_has_its_image_tried() {
    let mut world = World::new();
    let mut quick = unheld("a", &world);
    world.see(&quick);
    quick.starts.insert("app".into(), Start::Next);
    world.see(&quick);
    let actions = world.handle(Event::Gone(quick.id.uid.clone()));
    assert_eq!(tries(&actions).len(), 1);
    // One that is deleted before it has begun has nothing to do with it.
    let mut world = World::new();
    let mut deleted = unheld("a", &world);
    world.see(&deleted);
    deleted.terminated = true;
    world.see(&deleted);
    assert_eq!(world.handle(Event::Gone(deleted.id.uid)), []);
}

#[test]
fn an_agent_that_begins_again_repeats_nothing() {
    let mut world = World::new();
    let mut pod = runs(unheld("a", &world), "1", &world);
    let actions = world.see(&pod);
    let attempt = tries(&actions)[0];
    pod.released = told(&actions).cloned();
    world.ends(attempt, None, usable("1"), usable("1"));
    let mut again = World::new();
    again.up = world.up + Duration::from_hours(2);
    let record = ImageRecord {
        tries: world.records.clone(),
        ..written_down(image(), Some(confirmation("1")), false)
    };
    again.learn(&[record]);
    assert_eq!(again.handle(Event::Listed(vec![pod])), []);
    assert_eq!(again.wait(AFTER_START), []);
}

/// The kubelet restarts the container for it, some time later.
#[test]
fn an_image_that_is_changed_in_the_pod_is_not_taken_for_what_runs() {
    let mut world = World::new();
    let mut pod = runs(unheld("a", &world), "1", &world);
    let actions = world.see(&pod);
    world.settles(&actions);
    "reg.example/other".clone_into(&mut pod.containers[0].written);
    pod.containers[0].image = "reg.example/other".parse();
    assert_eq!(world.see(&pod), []);
    world.up += Duration::from_secs(1);
    let pod = runs(pod, "2", &world);
    let actions = world.see(&pod);
    let given = world.settles(&actions);
    assert_eq!(
        (given.image.as_str(), given.digest),
        ("reg.example/other", Some(digest("2")))
    );
}

#[test]
fn what_could_not_be_written_is_written_later() {
    let mut world = World::new();
    let pod = runs(unheld("a", &world), "1", &world);
    let release = told(&world.see(&pod)).unwrap().clone();
    let failed = Event::Settled(pod.id, release.clone(), Written::Failed);
    assert_eq!(world.handle(failed), []);
    let again = world.wait(Duration::from_secs(30));
    assert_eq!(told(&again).unwrap().containers, release.containers);
}

#[test]
fn settings_that_need_a_gate_are_complained_about() {
    let mut world = World::new();
    let mut pod = unheld("a", &world);
    pod.settings.max_age = Some(Duration::from_secs(60));
    pod.settings.same_digest = true;
    let words = "trylatest.dev/max-age, trylatest.dev/same-digest: no effect on a pod that is not held \
                 (trylatest.dev/hold: none)";
    let complaint = Action::Complain(pod.id.clone(), words.to_owned());
    assert_eq!(world.see(&pod), [complaint]);
    assert_eq!(world.see(&pod), []);
}

/// With `--refresh-every`, also the image of a gated pod whose container restarts.
#[test]
fn a_restart_in_place_has_its_image_tried_if_refresh_is_on() {
    for every in [Duration::ZERO, Duration::from_hours(24)] {
        let mut world = World::new();
        world.planner.refresh_every(every);
        let mut pod = pod("a", &world);
        let attempt = the_try(&world.see(&pod));
        let actions = world.ends(attempt, None, usable("1"), usable("1"));
        pod.released = Some(the_release(&actions).clone());
        world.sent(&actions, Written::Done);
        pod.gate = GateState::Open;
        world.up += Duration::from_secs(1);
        pod = runs(pod, "1", &world);
        assert_eq!(world.see(&pod), []);
        let first = tries(&world.wait(AFTER_START));
        assert!(first.is_empty(), "it is its first start");
        let Some(Start::Started { since, .. }) = pod.starts.get_mut("app") else {
            unreachable!();
        };
        *since = None;
        assert_eq!(world.see(&pod), [], "it waits out its back-off");
        pod = runs(pod, "1", &world);
        let attempts = tries(&world.see(&pod));
        assert_eq!(attempts.is_empty(), every.is_zero());
        if let [attempt] = attempts[..] {
            world.ends(attempt, None, usable("1"), usable("2"));
            assert!(tries(&world.wait(AFTER_START * 2)).is_empty());
        }
    }
}

/// Nobody waits for it: one image after the other, and none of a registry that fails.
#[test]
fn an_outage_is_waited_out() {
    let mut world = World::new();
    let pod = runs(unheld("a", &world), "1", &world);
    let attempt = tries(&world.see(&pod))[0];
    let limited = Some(FailureClass::RateLimited);
    world.ends(attempt, limited, usable("1"), usable("1"));
    assert_eq!(world.planner.open_circuits().count(), 1);
    world.up += Duration::from_secs(1);
    let next = runs(unheld("b", &world), "1", &world);
    assert!(tries(&world.see(&next)).is_empty());
}

/// As a tenant can have it whose pods end at once.
#[test]
fn pods_that_are_gone_at_once_cost_no_more_than_so_much() {
    let mut world = World::new();
    for n in 0..1000 {
        let name = format!("reg.example/own{n}:latest");
        let mut pod = unheld(&format!("p{n}"), &world);
        name.clone_into(&mut pod.containers[0].written);
        pod.containers[0].image = name.parse();
        world.see(&pod);
        // The watch was interrupted meanwhile.
        world.handle(Event::Listed(Vec::new()));
    }
    let mut tried = 0;
    world.up += Duration::from_secs(10);
    while let [Action::Try { image, attempt, .. }] = world.handle(Event::Tick).as_slice() {
        tried += 1;
        let failed = Some(Failure::new(FailureClass::NotFound, "why"));
        let none = CachedCopy::Absent;
        world.handle(ended(image.clone(), *attempt, failed, &none, none.clone()));
        world.up += Duration::from_secs(10);
    }
    assert!((200..=260).contains(&tried), "{tried}");
}
