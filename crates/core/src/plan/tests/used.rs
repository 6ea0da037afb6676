//! Which copies the pods use.

use super::*;
use crate::keep::UsedImage;
use crate::pod::Start;

fn used(world: &mut World) -> Vec<UsedImage> {
    world.planner.take_used().expect("it may have changed")
}

#[test]
fn what_pods_wait_for_and_run_is_used_until_they_end() {
    let mut world = World::new();
    assert_eq!(used(&mut world), []);
    assert_eq!(world.planner.take_used(), None);
    let mut app = pod("a", &world);
    let attempt = the_try(&world.see(&app));
    let [waits] = used(&mut world).try_into().unwrap();
    assert_eq!((waits.image, waits.current), (image(), None));
    let actions = world.ends(attempt, None, usable("1"), usable("2"));
    world.sent(&actions, Written::Done);
    let since = Some(wall(world.up));
    let runs = Start::Started {
        digest: Some(digest("1")),
        since,
        again: false,
    };
    app.starts.insert("app".into(), runs);
    world.see(&app);
    let [runs] = used(&mut world).try_into().unwrap();
    assert_eq!(runs.current.unwrap().digest, digest("2"));
    assert!(runs.public, "it was had without credentials");
    assert_eq!(runs.runs, [(digest("1"), since)].into());
    world.wait(Duration::from_secs(1));
    assert_eq!(world.planner.take_used(), None);
    app.terminated = true;
    world.see(&app);
    assert_eq!(used(&mut world), []);
}

#[test]
fn what_the_registry_refuses_is_not_everybodys() {
    let mut world = World::new();
    let attempt = the_try(&world.see(&pod("a", &world)));
    let refused = Some(FailureClass::Unauthorized);
    world.ends(attempt, refused, usable("1"), usable("1"));
    assert!(!used(&mut world)[0].public);
}
