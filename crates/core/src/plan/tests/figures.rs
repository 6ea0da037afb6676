//! What the metrics show.

use super::handover::{given_back, private, refused, taken, the_give_back, the_handover, well};
use super::*;
use crate::record::LocalCopy;

fn figures(world: &World) -> Figures {
    world.planner.figures()
}

#[test]
fn a_pod_waits_until_its_release_is_written() {
    let mut world = World::new();
    let began = world.up;
    let attempt = the_try(&world.see(&pod("a", &world)));
    let waiting = Standing {
        count: 1,
        since: Some(began),
    };
    assert_eq!(figures(&world).waiting, waiting);
    world.up += Duration::from_secs(3);
    assert_eq!(waiting.age(world.now()), Duration::from_secs(3));
    world.see(&of(&"reg.example/other".parse().unwrap(), &world));
    let two = Standing {
        count: 2,
        ..waiting
    };
    assert_eq!(figures(&world).waiting, two);
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    assert_eq!(figures(&world).waiting, two, "decided is not written");
    world.sent(&actions, Written::Done);
    assert_eq!(figures(&world).waiting.since, Some(world.up));
    assert_eq!(figures(&world).pods, 2);
    let mut ended = pod("a", &world);
    ended.terminated = true;
    world.see(&ended);
    assert_eq!(figures(&world).pods, 1);
}

#[test]
fn pulls_that_run_are_counted_with_their_bytes() {
    let mut world = World::new();
    let other: ImageName = "reg.example/other".parse().unwrap();
    let attempt = the_try(&world.see(&pod("a", &world)));
    let silent = the_try(&world.see(&of(&other, &world)));
    world.moved(attempt, 4096, true);
    let pulls = Pulls {
        moving: 2,
        stalled: 0,
        received_bytes: 4096,
        expected_bytes: 8192,
    };
    assert_eq!(figures(&world).pulls, pulls);
    world.stalls(&other, silent, Flow::default());
    let one_stalled = Pulls {
        moving: 1,
        stalled: 1,
        ..pulls
    };
    assert_eq!(figures(&world).pulls, one_stalled);
    world.ends(attempt, None, usable("1"), usable("2"));
    let one = Pulls {
        stalled: 1,
        ..Pulls::default()
    };
    assert_eq!(figures(&world).pulls, one);
}

fn falls_back(world: &mut World, name: &str, copy: &str) {
    world.up += Duration::from_secs(10);
    let attempt = the_try(&world.see(&pod(name, world)));
    let failed = Some(FailureClass::Network);
    let actions = world.ends(attempt, failed, usable(copy), usable(copy));
    assert_eq!(outcome(&actions), Outcome::Fallback);
    world.sent(&actions, Written::Done);
}

#[test]
fn the_oldest_copy_is_as_old_as_the_registrys_last_word_on_it() {
    let mut world = World::new();
    world.learn(&[ImageRecord {
        image: image(),
        facts: Facts {
            confirmed: Some(confirmation("1")),
            copy: Some(LocalCopy {
                digest: digest("1"),
                size_bytes: None,
            }),
            ..Facts::default()
        },
        seen: wall(Duration::ZERO),
        tries: Vec::new(),
        week: crate::record::Week::default(),
    }]);
    assert_eq!(figures(&world).fallback, Fallback::default());
    falls_back(&mut world, "a", "1");
    let one = Fallback {
        pods: 1,
        images: 1,
        unconfirmed: 0,
        oldest: Some(wall(Duration::ZERO)),
    };
    assert_eq!(figures(&world).fallback, one);
    // The tag has moved: the pod runs what it has, which gets no younger by that.
    world.up += Duration::from_secs(10);
    let attempt = the_try(&world.see(&pod("b", &world)));
    let actions = world.ends(attempt, None, usable("1"), usable("2"));
    world.sent(&actions, Written::Done);
    assert_eq!(figures(&world).fallback, one);
    falls_back(&mut world, "c", "2");
    let two = Fallback { pods: 2, ..one };
    assert_eq!(figures(&world).fallback, two);
    world.handle(Event::Gone("uid-a".into()));
    let newer = figures(&world).fallback.oldest;
    assert!(newer > one.oldest, "{newer:?}");
}

#[test]
fn a_copy_that_no_registry_has_confirmed_has_no_age() {
    let mut world = World::new();
    falls_back(&mut world, "a", "1");
    let unknown = Fallback {
        pods: 1,
        images: 1,
        unconfirmed: 1,
        oldest: None,
    };
    assert_eq!(figures(&world).fallback, unknown);
}

#[test]
fn a_name_is_away_until_it_is_given_back() {
    let mut world = well();
    let began = world.up;
    let actions = world.see(&private("app", &world));
    let id = the_handover(&refused(&mut world, &actions, &usable("1")));
    assert_eq!(figures(&world).away, Standing::default());
    let actions = taken(&mut world, id, Some("1"));
    world.sent(&actions, Written::Done);
    let away = Standing {
        count: 1,
        since: Some(began),
    };
    assert_eq!(figures(&world).away, away);
    the_give_back(&world.handle(Event::Stopping));
    assert_eq!(figures(&world).away, away, "it is not back yet");
    given_back(&mut world, id, usable("1"));
    assert_eq!(figures(&world).away, Standing::default());
}

#[test]
fn registries_that_have_given_something_come_first() {
    let mut world = World::new();
    let names = ["a.example/app", "b.example/app"].map(|name| name.parse::<ImageName>().unwrap());
    let [silent, good] = &names;
    for name in &names {
        world.see(&of(name, &world));
    }
    assert_eq!(world.planner.registries(), ["a.example", "b.example"]);
    let [first, second] = [silent, good].map(|name| {
        let attempt = world.planner.images[name].attempt.as_ref();
        attempt.unwrap().id
    });
    let failed = Failure::new(FailureClass::Network, "why");
    let nothing = CachedCopy::Absent;
    world.handle(ended(
        silent.clone(),
        first,
        Some(failed),
        &nothing,
        nothing.clone(),
    ));
    world.handle(ended(good.clone(), second, None, &nothing, usable("1")));
    assert_eq!(world.planner.registries(), ["b.example", "a.example"]);
}
