//! What an administrator configures, and when it applies.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A node whose kubelet looks after who may have which copy, with this configuration.
fn configured(config: &str) -> World {
    let mut world = World::new();
    world.handle(Event::KubeletVerifies(true));
    configure(&mut world, config);
    world
}

fn configure(world: &mut World, config: &str) -> Vec<Action> {
    world.handle(Event::Configured(Config::parse(config).unwrap()))
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// The tries that these actions begin: each image, its name, whether it asks, and its stall deadline.
fn tries(actions: &[Action]) -> Vec<(ImageName, u64, Ask, Duration)> {
    let tries = actions.iter().filter_map(|action| match action {
        Action::Try {
            image,
            attempt,
            ask,
            stall,
        } => Some((image.clone(), *attempt, ask.clone(), *stall)),
        _ => None,
    });
    tries.collect()
}

/// The images whose copies are looked at.
fn looks(actions: &[Action]) -> Vec<&str> {
    let looks = actions.iter().filter_map(|action| match action {
        Action::Inspect(image) => Some(image.repository()),
        _ => None,
    });
    looks.collect()
}

#[test]
fn a_new_configuration_is_for_rounds_that_begin_later() {
    let mut world = configured("defaults: {try: 20s}");
    let first = of(&name("reg.example/first"), &world);
    world.see(&first);
    configure(&mut world, "ceilings: {try: 3s}");
    let second = of(&name("reg.example/second"), &world);
    world.see(&second);
    assert_eq!(looks(&world.wait(3 * SECOND)), ["reg.example/second"]);
    assert_eq!(looks(&world.wait(16 * SECOND)), Vec::<&str>::new());
    assert_eq!(looks(&world.wait(SECOND)), ["reg.example/first"]);
}

#[test]
fn a_pull_keeps_the_stall_deadline_that_it_began_with() {
    let mut world = configured("registries: {reg.example: {stall: 20s}}");
    let slow = name("reg.example/app");
    let pod = of(&slow, &world);
    let actions = world.see(&pod);
    let [(_, attempt, _, stall)] = tries(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(stall, 20 * SECOND);
    let other = of(&name("other.example/app"), &world);
    assert_eq!(tries(&world.see(&other))[0].3, 5 * SECOND);
    configure(&mut world, "");
    let quiet = |still| Flow {
        still,
        ..Flow::default()
    };
    let moved = |world: &mut World, flow| {
        world.handle(Event::Moved(Moved {
            image: slow.clone(),
            attempt,
            flow,
        }))
    };
    assert_eq!(looks(&moved(&mut world, quiet(19 * SECOND))), [""; 0]);
    let actions = moved(&mut world, quiet(20 * SECOND));
    assert_eq!(looks(&actions), ["reg.example/app"]);
    // The next one begins with the new deadline.
    let end = ended(
        slow.clone(),
        attempt,
        None,
        &CachedCopy::Absent,
        usable("1"),
    );
    let actions = world.handle(end);
    world.sent(&actions, Written::Done);
    world.wait(5 * SECOND);
    let mut next = of(&slow, &world);
    next.id.uid = "next".into();
    assert_eq!(tries(&world.see(&next))[0].3, 5 * SECOND);
}

#[test]
fn each_container_has_the_rules_of_its_registry() {
    let mut world = configured(
        "registries: {slow.example: {try: 10s}, reg.example/team: {try: 2s}, reg.example: {try: 4s}}",
    );
    let mut pod = held("a", &world);
    pod.containers = [
        "reg.example/team/app",
        "slow.example/app",
        "reg.example/app",
    ]
    .map(|image| TryContainer {
        name: image.into(),
        written: image.into(),
        image: Ok(name(image)),
    })
    .to_vec();
    world.see(&pod);
    assert_eq!(looks(&world.wait(2 * SECOND)), ["reg.example/team/app"]);
    assert_eq!(looks(&world.wait(2 * SECOND)), ["reg.example/app"]);
    assert_eq!(looks(&world.wait(5 * SECOND)), Vec::<&str>::new());
    assert_eq!(looks(&world.wait(SECOND)), ["slow.example/app"]);
}

#[test]
fn a_pod_that_exceeds_a_ceiling_gets_the_ceiling_and_is_told_once() {
    let mut world = configured("ceilings: {try: 3s, max-age: 24h, fallback-on: [network]}");
    let mut pod = held("a", &world);
    pod.settings = Settings {
        timeout: Some(600 * SECOND),
        max_age: Some(Duration::from_hours(25)),
        fallback_on: Some([FailureClass::Network, FailureClass::Timeout].into()),
        same_digest: false,
    };
    let actions = world.see(&pod);
    let complaints: Vec<&str> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Complain(_, words) => words.split(':').next(),
            _ => None,
        })
        .collect();
    assert_eq!(
        complaints,
        [
            "trylatest.dev/timeout",
            "trylatest.dev/max-age",
            "trylatest.dev/fallback-on"
        ]
    );
    assert_eq!(world.see(&pod), []);
    assert_eq!(looks(&world.wait(3 * SECOND)), ["reg.example/app"]);
    // Nothing came in time, and that is a class beyond the ceiling.
    let actions = world.inspected(&usable("1"));
    let given = &the_release(&actions).containers["app"];
    assert_eq!(given.outcome, Outcome::Refused);
    let note = given.note.as_deref().unwrap();
    assert_eq!(
        note,
        "the administrator's fallback-on does not list timeout"
    );
}

/// A registry that has just failed, and a copy that it confirmed an hour ago.
fn in_an_outage(config: &str) -> World {
    let mut world = configured(config);
    let confirmed = Confirmation {
        time: wall(world.up) - Duration::from_hours(1),
        digest: digest("1"),
    };
    for image in ["reg.example/first", "reg.example/second"] {
        let mut record = written_down(name(image), Some(confirmed.clone()), false);
        record.facts.copy = Some(crate::record::LocalCopy {
            digest: digest("1"),
            size_bytes: None,
        });
        world.learn(&[record]);
    }
    let pod = of(&name("reg.example/first"), &world);
    let actions = world.see(&pod);
    let (image, attempt, ..) = tries(&actions).remove(0);
    world.wait(5 * SECOND);
    let silence = Some(Failure::new(FailureClass::Timeout, "silent"));
    let actions = world.handle(ended(image, attempt, silence, &usable("1"), usable("1")));
    world.sent(&actions, Written::Done);
    assert_eq!(world.planner.open_circuits().count(), 1);
    world
}

fn second(world: &mut World) -> Ask {
    let pod = of(&name("reg.example/second"), world);
    tries(&world.see(&pod)).remove(0).2
}

/// Otherwise every pod of the cluster would wait for each registry that fails.
#[test]
fn an_administrators_rule_makes_pods_ask_only_where_it_forbids_the_copy() {
    for allows in [
        "",
        "ceilings: {max-age: 2h}",
        "defaults: {max-age: 2h}",
        "defaults: {fallback-on: [timeout]}",
        "ceilings: {fallback-on: [network, timeout]}",
    ] {
        let ask = second(&mut in_an_outage(allows));
        assert!(matches!(ask, Ask::Never(_)), "{allows}: {ask:?}");
    }
    for forbids in [
        "ceilings: {max-age: 59m}",
        "registries: {reg.example: {max-age: 59m}}",
        "ceilings: {fallback-on: [network]}",
    ] {
        let ask = second(&mut in_an_outage(forbids));
        assert_eq!(ask, Ask::Always, "{forbids}");
    }
}

#[test]
fn a_copy_that_grows_too_old_while_it_is_checked_is_asked_for() {
    let mut world = in_an_outage("ceilings: {max-age: 3607s}");
    let mut pod = of(&name("reg.example/second"), &world);
    pod.settings.timeout = Some(60 * SECOND);
    let actions = world.see(&pod);
    let (image, attempt, ask, _) = tries(&actions).remove(0);
    let Ask::Never(failure) = ask else {
        panic!("{ask:?}");
    };
    world.wait(5 * SECOND);
    let end = ended(image, attempt, Some(failure), &usable("1"), usable("1"));
    let actions = world.handle(end);
    let asks: Vec<Ask> = tries(&actions).into_iter().map(|tried| tried.2).collect();
    assert_eq!(asks, [Ask::Always]);
}

#[test]
fn the_node_reports_what_a_pod_that_sets_nothing_would_get() {
    let mut world = in_an_outage("");
    let outcomes = |world: &mut World| {
        let now = world.now();
        let report = world.planner.take_report(now).unwrap_or_default();
        let outcome = |name: &str| report.iter().find(|i| i.image.repository() == name);
        outcome("reg.example/first").map(|image| image.outcome)
    };
    assert_eq!(outcomes(&mut world), Some(Outcome::Fallback));
    configure(&mut world, "ceilings: {max-age: 59m}");
    // The pod that fell back still runs; the last try is judged by today's rules once it is gone.
    let gone = of(&name("reg.example/first"), &world).id.uid;
    world.handle(Event::Gone(gone));
    assert_eq!(outcomes(&mut world), Some(Outcome::Refused));
}

#[test]
fn freshness_may_differ_by_registry() {
    let mut world = configured("registries: {reg.example/young: {freshness: 1m}}");
    for (image, expected) in [
        ("reg.example/young/app", Ask::IfAbsent),
        ("reg.example/app", Ask::Always),
    ] {
        let confirmed = Confirmation {
            time: wall(world.up) - 30 * SECOND,
            digest: digest("1"),
        };
        world.learn(&[written_down(name(image), Some(confirmed), false)]);
        let pod = of(&name(image), &world);
        assert_eq!(tries(&world.see(&pod))[0].2, expected, "{image}");
    }
}
