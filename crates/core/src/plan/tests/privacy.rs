//! Who may have a copy: what the registry has refused stays refused.

use super::*;

#[test]
fn a_private_image_that_is_absent_is_left_to_the_kubelet_at_once() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&pod("a", &world)));
    let actions = world.ends(
        attempt,
        Some(FailureClass::Unauthorized),
        CachedCopy::Absent,
        CachedCopy::Absent,
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

/// What an earlier pull has left behind says nothing; bytes of this try do.
#[test]
fn a_pod_with_little_time_waits_for_the_first_word_and_no_longer() {
    let mut world = World::new();
    let mut hasty = pod("hasty", &world);
    hasty.settings.timeout = Some(Duration::from_secs(1));
    let attempt = the_try(&world.see(&hasty));
    world.moved(attempt, 4096, false);
    let actions = world.wait(Duration::from_secs(1));
    assert_eq!(actions, [Action::Inspect(image())]);
    assert_eq!(world.inspected(&usable("1")), []);
    assert_eq!(world.moved(attempt, 4096, false), []);
    assert_eq!(world.moved(attempt, 5000, true), [Action::Inspect(image())]);
    let actions = world.inspected(&usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fallback);
}

/// A gate that waits for the registry in vain may lose its patience.
#[test]
fn what_the_registry_has_refused_is_refused_without_a_wait() {
    let somebody = Identity {
        namespace: "other".into(),
        ..Identity::default()
    };
    for (confirmed, private_to, expected) in [
        (None, None, Outcome::Refused),
        (Some(confirmation("2")), None, Outcome::Refused),
        (Some(confirmation("1")), Some(somebody), Outcome::Refused),
        // For whom the kubelet has pulled it.
        (
            Some(confirmation("1")),
            Some(Identity::default()),
            Outcome::Fallback,
        ),
        // It was had without credentials once.
        (Some(confirmation("1")), None, Outcome::Fallback),
    ] {
        let mut world = World::new();
        let mut record = written_down(image(), confirmed, true);
        record.facts.private_to = private_to.map(|identity| vec![identity]);
        world.learn(&[record]);
        let mut hasty = pod("hasty", &world);
        hasty.settings.timeout = Some(Duration::from_secs(1));
        the_try(&world.see(&hasty));
        world.wait(Duration::from_secs(1));
        let actions = world.inspected(&usable("1"));
        assert_eq!(outcome(&actions), expected);
    }
}

/// It may wait behind others' long downloads, which no stall deadline ends.
#[test]
fn a_first_word_that_does_not_come_is_waited_for_half_a_minute() {
    let mut world = World::new();
    let mut hasty = pod("hasty", &world);
    hasty.settings.timeout = Some(Duration::from_secs(1));
    let attempt = the_try(&world.see(&hasty));
    let looks = |actions: &[Action]| actions.contains(&Action::Inspect(image()));
    assert!(looks(&world.wait(Duration::from_secs(1))));
    assert_eq!(world.inspected(&usable("1")), []);
    assert!(!looks(&world.wait(Duration::from_secs(29))));
    assert!(looks(&world.wait(Duration::from_secs(1))));
    let actions = world.inspected(&usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fallback);
    world.sent(&actions, Written::Done);
    // The refusal that comes after all is remembered.
    let refused = Some(FailureClass::Unauthorized);
    world.ends(attempt, refused, usable("1"), usable("1"));
    let attempt = the_try(&world.see(&pod("next", &world)));
    let network = Some(FailureClass::Network);
    let actions = world.ends(attempt, network, usable("1"), usable("1"));
    assert_eq!(outcome(&actions), Outcome::Refused);
}

#[test]
fn a_name_without_a_word_of_its_own_is_as_private_as_its_repository() {
    let digest: ImageName = format!("reg.example/app@sha256:{}", "a".repeat(64))
        .parse()
        .unwrap();
    let other = "reg.example/other".parse::<ImageName>().unwrap();
    for (name, expected) in [(digest, Outcome::Refused), (other, Outcome::Fallback)] {
        let mut world = World::new();
        world.learn(&[written_down(image(), None, true)]);
        let mut pod = pod("a", &world);
        pod.containers[0].image = Ok(name.clone());
        let attempt = the_try(&world.see(&pod));
        let failure = Failure::new(FailureClass::Network, "why");
        let ended = ended(name, attempt, Some(failure), &usable("1"), usable("1"));
        let actions = world.handle(ended);
        assert_eq!(outcome(&actions), expected);
    }
}

#[test]
fn a_private_copy_that_cannot_be_looked_at_is_not_left_to_the_kubelet() {
    let unknown = || CachedCopy::Unknown {
        why: "no answer".into(),
    };
    for (private, expected) in [(true, Outcome::Refused), (false, Outcome::Unavailable)] {
        let mut world = World::new();
        world.learn(&[written_down(image(), Some(confirmation("1")), private)]);
        let attempt = the_try(&world.see(&pod("a", &world)));
        world.wait(TRY);
        // It is looked at again while the try runs.
        assert_eq!(world.inspected(&unknown()), []);
        let again = world.wait(Duration::from_secs(2));
        assert!(again.contains(&Action::Inspect(image())), "{again:?}");
        let actions = world.ends(attempt, Some(FailureClass::Local), unknown(), unknown());
        assert_eq!(outcome(&actions), expected);
    }
}

#[test]
fn a_digest_is_only_looked_at_once_the_registry_gave_it_to_anybody() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let name: ImageName = format!("reg.example/app@{digest}").parse().unwrap();
    let said = || Some(confirmation(&digest));
    for (given_as, confirmed, needs_credentials, expected) in [
        (&name, None, false, false),
        (&name, said(), true, false),
        (&name, said(), false, true),
        // It was had by a tag.
        (&image(), said(), false, true),
        (&image(), Some(confirmation("1")), false, false),
    ] {
        let mut world = World::new();
        let record = written_down(given_as.clone(), confirmed, needs_credentials);
        world.learn(&[record]);
        let mut by_digest = pod("a", &world);
        by_digest.containers[0].image = Ok(name.clone());
        let actions = world.see(&by_digest);
        let [Action::Try { ask, .. }] = actions.as_slice() else {
            panic!("{actions:?}");
        };
        assert_eq!(*ask == Ask::IfAbsent, expected);
    }
}
