//! Image volumes: held like containers, but the kubelet does not say which copy it has mounted.

use super::*;
use crate::pod::Start;
use crate::release::ContainerRelease;

const VOLUME: &str = "volume/models";

/// A pod whose volume has the image.
fn with_volume(name: &str, world: &World) -> GatedPod {
    let mut pod = held(name, world);
    VOLUME.clone_into(&mut pod.containers[0].name);
    pod.has_image_volumes = true;
    pod
}

/// The same a moment later: what mounts it has started.
fn mounts(mut pod: GatedPod, world: &World) -> GatedPod {
    let start = Start::Started {
        digest: None,
        since: Some(world.now().wall),
        again: false,
    };
    pod.starts.insert(VOLUME.into(), start);
    pod
}

fn told(actions: &[Action]) -> Option<&ContainerRelease> {
    actions.iter().find_map(|action| match action {
        Action::Settle(_, release) => Some(&release.containers[VOLUME]),
        _ => None,
    })
}

#[test]
fn a_volume_is_tried_and_released_beside_the_containers() {
    let mut world = World::new();
    let mut pod = with_volume("a", &world);
    let app = TryContainer {
        name: "app".into(),
        written: "reg.example/other".into(),
        image: "reg.example/other".parse(),
    };
    pod.containers.insert(0, app);
    let actions = world.see(&pod);
    let tries: BTreeMap<ImageName, u64> = actions
        .iter()
        .map(|action| match action {
            Action::Try { image, attempt, .. } => (image.clone(), *attempt),
            _ => panic!("{actions:?}"),
        })
        .collect();
    let other = pod.containers[0].image.clone().unwrap();
    let same = usable("7");
    let other = ended(other.clone(), tries[&other], None, &same, same.clone());
    assert_eq!(world.handle(other), []);
    let actions = world.ends(tries[&image()], None, usable("1"), usable("2"));
    let release = the_release(&actions);
    assert_eq!(release.containers["app"].outcome, Outcome::Unchanged);
    assert_eq!(release.containers[VOLUME].outcome, Outcome::Fresh);
    assert_eq!(release.containers[VOLUME].digest, Some(digest("2")));
}

/// A pod that is not held: the agent cannot know what it has mounted, and says so instead of a digest.
#[test]
fn which_copy_is_mounted_is_not_guessed() {
    let mut world = World::new();
    let mut pod = with_volume("a", &world);
    pod.gate = GateState::NotWanted;
    assert_eq!(world.see(&pod), [], "the kubelet may pull");
    let pod = mounts(pod, &world);
    let actions = world.see(&pod);
    let given = told(&actions).expect("it is told").clone();
    assert_eq!((given.outcome, &given.digest), (Outcome::NotHeld, &None));
    assert_eq!(
        given.describe(world.now().wall),
        "started reg.example/app without checking its tag first; the kubelet does not say which copy"
    );
    let release = actions.iter().find_map(|action| match action {
        Action::Settle(_, release) => Some(release.clone()),
        _ => None,
    });
    let settled = Event::Settled(pod.id.clone(), release.unwrap(), Written::Done);
    assert_eq!(told(&world.handle(settled)), None);
    let attempt = actions.iter().find_map(|action| match action {
        Action::Try { attempt, .. } => Some(*attempt),
        _ => None,
    });
    world.up += Duration::from_secs(1);
    let actions = world.ends(
        attempt.expect("it is tried"),
        None,
        usable("1"),
        usable("2"),
    );
    assert_eq!(actions, [], "it may have been the new one all along");
    assert_eq!(world.node_images()[0].pods_behind, 0);
    assert_eq!(world.planner.take_used().unwrap()[0].runs, BTreeMap::new());
}

/// The end of a hand-over says what the kubelet has pulled, not the pod's status.
#[test]
fn a_private_volume_is_left_to_the_kubelet_and_told_when_it_is_there() {
    for (copy, expected) in [("1", Outcome::Unchanged), ("2", Outcome::Fresh)] {
        let mut world = World::new();
        world.handle(Event::KubeletVerifies(true));
        world.handle(Event::Well(true));
        let mut pod = with_volume("a", &world);
        pod.gate = GateState::Pending;
        let attempt = the_try(&world.see(&pod));
        let refused = Some(FailureClass::Unauthorized);
        world.handle(Event::SandboxStarted(pod.id.uid.clone()));
        assert_eq!(world.ends(attempt, refused, usable("1"), usable("1")), []);
        let actions = world.handle(Event::GatesRun([pod.id.uid.clone()].into()));
        let [Action::TakeAway { id, .. }] = actions[..] else {
            panic!("{actions:?}");
        };
        let taken = Ok(Some(digest("1")));
        let image = image();
        let actions = world.handle(Event::TakenAway {
            image: image.clone(),
            id,
            taken,
        });
        let release = the_release(&actions).clone();
        assert_eq!(release.containers[VOLUME].outcome, Outcome::HandedOver);
        world.sent(&actions, Written::Done);
        // The kubelet pulls as soon as it looks at the pod: before the gate's end, or after it.
        let copy_there = usable(copy);
        let actions = world.handle(Event::Returned {
            image,
            id,
            copy: copy_there,
        });
        let settled = told(&actions).expect("it is told");
        assert_eq!(settled.outcome, expected);
        assert_eq!(settled.digest, Some(digest(copy)));
        let settled = settled.clone();
        let [Action::Settle(id, release)] = &actions[..] else {
            panic!("{actions:?}");
        };
        world.handle(Event::Settled(id.clone(), release.clone(), Written::Done));
        let mut open = GatedPod {
            gate: GateState::Open,
            ..pod
        };
        open.released = Some(release.clone());
        assert_eq!(world.see(&mounts(open, &world)), [], "{settled:?} stays");
    }
}

#[test]
fn a_volume_whose_image_has_no_valid_name_is_complained_of_as_one() {
    let mut world = World::new();
    let mut pod = with_volume("a", &world);
    pod.containers[0].image = "Not An Image".parse();
    let actions = world.see(&pod);
    let Some(Action::Complain(_, words)) = actions.first() else {
        panic!("{actions:?}");
    };
    assert!(
        words.starts_with("volume/models: invalid image name"),
        "{words}"
    );
}
