//! What commands on the node have pulled.

use super::*;
use crate::record::TryResult;

/// A pull by hand that began so long ago, and has just ended.
fn by_hand(world: &World, ago: Duration, result: TryResult) -> Event {
    let tried = Try {
        image: image(),
        started: wall(world.up.saturating_sub(ago)),
        duration: ago,
        result,
        digest: Some(digest("2")),
        size_bytes: Some(7),
        copy_unknown: false,
        pulled_for: None,
        refused: false,
        by_hand: true,
    };
    Event::TriedByHand {
        tried: Box::new(tried),
        digests: [digest("2"), digest("3")].into(),
    }
}

/// The registry is silent, and the node holds `2`: what a pod gets that wants it confirmed within the hour.
fn in_an_outage(world: &mut World) -> Release {
    let mut strict = held("strict", world);
    strict.settings.max_age = Some(Duration::from_hours(1));
    let attempt = the_try(&world.see(&strict));
    let silence = Some(FailureClass::Network);
    let actions = world.ends(attempt, silence, usable("2"), usable("2"));
    the_release(&actions).clone()
}

#[test]
fn what_was_pulled_by_hand_is_confirmed_in_the_next_outage() {
    let mut world = World::new();
    let refused = in_an_outage(&mut world);
    assert_eq!(refused.containers["app"].outcome, Outcome::Refused);
    for result in [TryResult::Fresh, TryResult::Unchanged] {
        let mut world = World::new();
        let event = by_hand(&world, Duration::from_secs(3), result);
        assert_eq!(world.handle(event.clone()), []);
        assert_eq!(world.records.len(), 1);
        assert!(world.records[0].by_hand);
        // Whoever has had no answer says it again.
        assert_eq!(world.handle(event), []);
        assert_eq!(world.records.len(), 1);
        let release = in_an_outage(&mut world);
        let app = &release.containers["app"];
        assert_eq!(app.outcome, Outcome::Fallback);
        assert_eq!(app.confirmed, Some(wall(Duration::from_secs(97))));
        assert_eq!(app.digest, Some(digest("2")));
        let known = world.planner.knowledge.of_name(&image()).unwrap();
        assert_eq!(known.is_other_content(&digest("3")), Some(false));
    }
}

#[test]
fn what_the_registry_has_said_since_stays() {
    let mut world = World::new();
    world.wait(Duration::from_secs(20));
    let attempt = the_try(&world.see(&pod("a", &world)));
    world.ends(attempt, None, usable("1"), usable("1"));
    world.handle(by_hand(&world, Duration::from_secs(20), TryResult::Fresh));
    assert_eq!(world.records.len(), 1);
    let facts = world.planner.knowledge.facts(&image());
    assert!(facts.confirmed_at(&digest("1")).is_some());
    // But not what a clock says that was ahead.
    let ahead = Confirmation {
        time: wall(world.up + Duration::from_hours(1)),
        digest: digest("1"),
    };
    world.learn(&[written_down(image(), Some(ahead), false)]);
    world.handle(by_hand(&world, Duration::from_secs(3), TryResult::Fresh));
    let facts = world.planner.knowledge.facts(&image());
    assert!(facts.confirmed_at(&digest("2")).is_some());
}

#[test]
fn only_a_word_of_the_registry_counts() {
    let mut world = World::new();
    let failed = TryResult::Failed(Failure::new(FailureClass::Network, "why"));
    world.handle(by_hand(&world, Duration::from_secs(3), failed));
    assert_eq!(world.records, []);
    assert_eq!(world.planner.open_circuits().count(), 0);
}
