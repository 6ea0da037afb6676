//! Images that are tried although no pod waits for that.

use super::*;

const EVERY: Duration = Duration::from_hours(1);

/// A pod runs what was had without credentials.
fn running(world: &mut World) {
    world.planner.refresh_every(EVERY);
    let attempt = the_try(&world.see(&pod("a", world)));
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    world.sent(&actions, Written::Done);
}

fn tries(actions: &[Action]) -> usize {
    let tries = actions
        .iter()
        .filter(|action| matches!(action, Action::Try { .. }));
    tries.count()
}

#[test]
fn a_running_pods_image_is_tried_again_and_again() {
    let mut world = World::new();
    running(&mut world);
    assert_eq!(tries(&world.wait(EVERY / 2)), 0);
    let attempt = the_try(&world.wait(EVERY));
    world.ends(attempt, None, usable("1"), usable("2"));
    assert_eq!(tries(&world.wait(EVERY / 2)), 0);
    let attempt = the_try(&world.wait(EVERY));
    // An outage opens the circuit, and what is due waits for its end.
    world.ends(
        attempt,
        Some(FailureClass::RateLimited),
        usable("2"),
        usable("2"),
    );
    assert_eq!(world.planner.open_circuits().count(), 1);
}

#[test]
fn without_pods_or_if_it_is_off_nothing_is_tried() {
    let mut world = World::new();
    running(&mut world);
    world.handle(Event::Gone("uid-a".into()));
    assert_eq!(tries(&world.wait(EVERY * 3)), 0);
    let mut world = World::new();
    running(&mut world);
    world.planner.refresh_every(Duration::ZERO);
    assert_eq!(tries(&world.wait(EVERY * 3)), 0);
}

/// Within the freshness, a try would only look, and be due again at once.
#[test]
fn an_answer_that_is_young_enough_is_not_refreshed() {
    let mut world = World::new();
    world.planner.rules.freshness = EVERY * 4;
    running(&mut world);
    assert_eq!(tries(&world.wait(EVERY * 3)), 0);
    assert_eq!(tries(&world.wait(EVERY)), 1);
}

#[test]
fn private_images_are_left_to_their_pods() {
    let mut world = World::new();
    world.planner.refresh_every(EVERY);
    world.handle(Event::KubeletVerifies(true));
    let attempt = the_try(&world.see(&pod("a", &world)));
    let refused = Some(FailureClass::Unauthorized);
    let actions = world.ends(attempt, refused, usable("1"), usable("1"));
    world.sent(&actions, Written::Done);
    assert_eq!(tries(&world.wait(EVERY * 3)), 0);
}

#[test]
fn many_images_are_spread() {
    let mut world = World::new();
    world.planner.refresh_every(EVERY);
    for n in 0..20 {
        let name = format!("reg.example/app{n}:latest");
        let mut pod = pod(&format!("p{n}"), &world);
        name.clone_into(&mut pod.containers[0].written);
        pod.containers[0].image = name.parse();
        let attempt = the_try(&world.see(&pod));
        let image: ImageName = name.parse().unwrap();
        let actions = world.handle(ended(image, attempt, None, &usable("1"), usable("1")));
        world.sent(&actions, Written::Done);
    }
    world.up += EVERY * 2;
    for n in 1..=20 {
        let actions = world.handle(Event::Tick);
        assert_eq!(tries(&actions), 1, "{n}");
        let [Action::Try { image, attempt, .. }] = actions.as_slice() else {
            panic!("{actions:?}");
        };
        world.handle(ended(
            image.clone(),
            *attempt,
            None,
            &usable("1"),
            usable("1"),
        ));
        assert_eq!(tries(&world.handle(Event::Tick)), 0, "one at a time");
        world.up += Duration::from_secs(10);
    }
    assert_eq!(tries(&world.handle(Event::Tick)), 0);
}
