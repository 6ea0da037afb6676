//! Private images: what the kubelet is left to pull, and what comes of it.

use super::*;
use crate::pod::Start;
use crate::release::ContainerRelease;
use crate::release::words::{BY_KUBELET, CAME_SINCE, NOT_ASKED};

/// The kubelet keeps records, and everything works.
pub(super) fn well() -> World {
    let mut world = World::new();
    world.handle(Event::KubeletVerifies(true));
    world.handle(Event::Well(true));
    world
}

fn tenant(name: &str, tenant: &str, world: &World) -> GatedPod {
    let identity = Identity {
        namespace: tenant.into(),
        pull_secrets: vec!["registry".into()],
        ..Identity::default()
    };
    GatedPod {
        identity,
        ..held(name, world)
    }
}

pub(super) fn private(name: &str, world: &World) -> GatedPod {
    tenant(name, "default", world)
}

/// The registry refuses the try that these actions begin; there is this copy.
pub(super) fn refused(world: &mut World, actions: &[Action], copy: &CachedCopy) -> Vec<Action> {
    let attempt = the_try(actions);
    let failure = Some(FailureClass::Unauthorized);
    world.ends(attempt, failure, copy.clone(), copy.clone())
}

pub(super) fn the_handover(actions: &[Action]) -> u64 {
    match actions {
        [Action::TakeAway { id, .. }] => *id,
        _ => panic!("{actions:?}"),
    }
}

pub(super) fn taken(world: &mut World, id: u64, kept: Option<&str>) -> Vec<Action> {
    world.handle(Event::TakenAway {
        image: image(),
        id,
        taken: Ok(kept.map(digest)),
    })
}

fn returned(world: &mut World, id: u64, copy: &str) -> Vec<Action> {
    world.handle(Event::Returned {
        image: image(),
        id,
        copy: usable(copy),
    })
}

pub(super) fn given_back(world: &mut World, id: u64, copy: CachedCopy) -> Vec<Action> {
    world.handle(Event::GivenBack {
        image: image(),
        id,
        copy,
        by_kubelet: false,
    })
}

/// A pod whose image's name is away, as its release was written.
fn handed_over(world: &mut World, pod: &GatedPod) -> (GatedPod, u64) {
    let actions = world.see(pod);
    let id = the_handover(&refused(world, &actions, &usable("1")));
    let actions = taken(world, id, Some("1"));
    assert_eq!(outcome(&actions), Outcome::HandedOver);
    world.sent(&actions, Written::Done);
    let mut open = pod.clone();
    open.released = Some(the_release(&actions).clone());
    open.gate = GateState::Open;
    open.starts.insert("app".into(), Start::Next);
    assert_eq!(world.see(&open), []);
    (open, id)
}

fn the_settled(actions: &[Action]) -> &ContainerRelease {
    &the_amended(actions).containers["app"]
}

fn the_amended(actions: &[Action]) -> &Release {
    match actions {
        [Action::Settle(_, release)] => release,
        _ => panic!("{actions:?}"),
    }
}

fn wanting(pod: &GatedPod, class: FailureClass) -> GatedPod {
    let mut pod = pod.clone();
    let why = Failure::new(class, "said the kubelet");
    pod.starts.insert("app".into(), Start::Wanting(why));
    pod
}

pub(super) fn the_give_back(actions: &[Action]) -> u64 {
    match actions {
        [Action::GiveBack { id, .. }] => *id,
        _ => panic!("{actions:?}"),
    }
}

#[test]
fn what_the_kubelet_has_pulled_is_told_and_remembered() {
    for (copy, expected) in [("1", Outcome::Unchanged), ("2", Outcome::Fresh)] {
        let mut world = well();
        let app = private("app", &world);
        let (_, id) = handed_over(&mut world, &app);
        assert_eq!(world.records, [], "nothing is known yet");
        let actions = returned(&mut world, id, copy);
        let settled = the_settled(&actions);
        assert_eq!(settled.outcome, expected);
        assert_eq!(settled.digest, Some(digest(copy)));
        assert_eq!(settled.failure, None);
        let [record] = &world.records[..] else {
            panic!("{:?}", world.records);
        };
        assert_eq!(record.result.as_str(), expected.as_str());
        assert_eq!(record.pulled_for.as_deref(), Some(&app.identity));
        assert_eq!(world.wait(Duration::from_secs(300)), []);
    }
}

/// An init container of the same image may be `Always`: it fails without the registry, whatever copy there is.
#[test]
fn what_fails_before_a_container_ends_the_hand_over_and_says_nothing_of_the_copy() {
    let mut world = well();
    let app = private("app", &world);
    let (mut open, id) = handed_over(&mut world, &app);
    let why = Failure::new(FailureClass::Network, "said the kubelet");
    open.starts.insert("app".into(), Start::Behind(why));
    assert_eq!(the_give_back(&world.see(&open)), id);
    let actions = given_back(&mut world, id, usable("1"));
    assert_eq!(the_settled(&actions).outcome, Outcome::Fallback);
    let [Action::Settle(pod, release)] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    world.handle(Event::Settled(pod.clone(), release.clone(), Written::Done));
    open.released = Some(release.clone());
    world.see(&open);
    assert_eq!(world.wait(Duration::from_mins(5)), []);
}

/// The API server was faster than containerd's event, or than the look at what was pulled.
#[test]
fn a_container_that_starts_before_the_end_of_its_hand_over_is_seen_waits_for_that() {
    for (copy, expected) in [("1", Outcome::Unchanged), ("2", Outcome::Fresh)] {
        let mut world = well();
        let app = private("app", &world);
        let (mut open, id) = handed_over(&mut world, &app);
        let digest = Some(digest(copy));
        open.starts.insert(
            "app".into(),
            Start::Started {
                digest,
                since: None,
                again: false,
            },
        );
        // Nobody needs the name to be away any more.
        assert_eq!(the_give_back(&world.see(&open)), id);
        let actions = world.handle(Event::GivenBack {
            image: image(),
            id,
            copy: usable(copy),
            by_kubelet: true,
        });
        let settled = the_settled(&actions);
        assert_eq!(settled.outcome, expected);
        assert_eq!(settled.note.as_deref(), Some(BY_KUBELET));
    }
}

#[test]
fn a_name_is_given_back_as_soon_as_the_kubelet_fails() {
    let mut world = well();
    let app = private("app", &world);
    let (open, id) = handed_over(&mut world, &app);
    let failing = wanting(&open, FailureClass::ServerError);
    assert_eq!(the_give_back(&world.see(&failing)), id);
    assert_eq!(world.see(&failing), [], "only once");
    let actions = given_back(&mut world, id, usable("1"));
    let settled = the_settled(&actions).clone();
    assert_eq!(settled.outcome, Outcome::Fallback);
    let class = settled.class();
    assert_eq!(class, Some(FailureClass::ServerError));
    let [record] = &world.records[..] else {
        panic!("one start, one try: {:?}", world.records);
    };
    assert_eq!(record.result.failure(), settled.failure.as_ref());
    assert!(record.refused, "the registry's refusal stays known");
    settle(&mut world, &actions, Written::Done);
    // The kubelet waits out its back-off.
    let mut failing = failing;
    failing
        .released
        .as_mut()
        .unwrap()
        .containers
        .insert("app".into(), settled);
    assert_eq!(world.see(&failing), []);
    assert_eq!(world.wait(Duration::from_secs(19)), []);
    // It does not accept the copy for this pod either.
    let actions = world.wait(Duration::from_secs(1));
    assert_eq!(the_settled(&actions).outcome, Outcome::Unavailable);
}

/// What the owner hears of a copy that may not be the pod's.
const IF_OTHERS: &str = "if this copy was only ever pulled with other credentials, the kubelet does not start the \
                         pod from it";

/// Somebody else's pod has the right secret.
#[test]
fn a_pod_whose_credentials_are_refused_hears_why_it_may_not_start() {
    for (pulled_for, kubelet_verifies, doubt) in [
        ("other", true, Some(IF_OTHERS)),
        // Its secret is no longer valid, and the kubelet knows that it was.
        ("default", true, None),
        // The agent lets it start, and nobody else looks.
        ("default", false, None),
    ] {
        let mut world = well();
        world.handle(Event::KubeletVerifies(kubelet_verifies));
        let mut record = written_down(image(), Some(confirmation("1")), true);
        record.facts.private_to = Some(vec![tenant("any", pulled_for, &world).identity]);
        world.learn(&[record]);
        let app = private("app", &world);
        let attempt = world.see(&app);
        // It waits for the pull of its like.
        let like = private("like", &world);
        assert_eq!(world.see(&like), []);
        let id = the_handover(&self::refused(&mut world, &attempt, &usable("1")));
        let actions = taken(&mut world, id, Some("1"));
        world.sent(&actions, Written::Done);
        let mut open = app;
        open.released = Some(the_release(&actions).clone());
        open.gate = GateState::Open;
        world.see(&wanting(&open, FailureClass::Unauthorized));
        let actions = given_back(&mut world, id, usable("1"));
        let said: Vec<_> = actions.iter().filter_map(said).collect();
        let expected = (Outcome::Fallback, true, doubt.map(str::to_owned));
        assert_eq!(said, [expected.clone(), expected], "{actions:?}");
    }
}

/// An outage hides whether the pod's credentials are right.
#[test]
fn a_pod_of_which_nobody_knows_whether_it_may_have_the_copy_hears_that_in_an_outage() {
    for (pulled_for, doubt) in [("other", Some(IF_OTHERS)), ("default", None)] {
        let mut world = well();
        let mut record = written_down(image(), Some(confirmation("1")), true);
        record.facts.private_to = Some(vec![tenant("any", pulled_for, &world).identity]);
        world.learn(&[record]);
        let attempt = the_try(&world.see(&private("app", &world)));
        let failure = Some(FailureClass::Network);
        let actions = world.ends(attempt, failure, usable("1"), usable("1"));
        let expected = (Outcome::Fallback, false, doubt.map(str::to_owned));
        assert_eq!(said(&actions[0]), Some(expected));
    }
}

/// What a pod is told of its container: also whether the registry has refused the kubelet's pull.
fn said(action: &Action) -> Option<(Outcome, bool, Option<String>)> {
    let (Action::Release { release, .. } | Action::Settle(_, release)) = action else {
        return None;
    };
    let given = &release.containers["app"];
    let refused = given.kubelet_refused;
    Some((given.outcome, refused, given.note.clone()))
}

#[test]
fn a_copy_that_the_kubelet_accepts_after_all_is_not_in_doubt() {
    let mut world = well();
    let app = private("app", &world);
    let (open, id) = handed_over(&mut world, &app);
    let failing = wanting(&open, FailureClass::Unauthorized);
    world.see(&failing);
    let actions = given_back(&mut world, id, usable("1"));
    let (fallback, _, note) = said(&actions[0]).unwrap();
    assert!(fallback == Outcome::Fallback && note.unwrap().ends_with(IF_OTHERS));
    settle(&mut world, &actions, Written::Done);
    let actions = world.wait(Duration::from_secs(20));
    assert_eq!(the_settled(&actions).outcome, Outcome::Unavailable);
    settle(&mut world, &actions, Written::Done);
    let mut started = open;
    started.released = match &actions[..] {
        [Action::Settle(_, release)] => Some(release.clone()),
        _ => None,
    };
    let runs = Start::Started {
        digest: Some(digest("1")),
        since: None,
        again: false,
    };
    started.starts.insert("app".into(), runs);
    let actions = world.see(&started);
    assert_eq!(said(&actions[0]), Some((Outcome::Fallback, false, None)));
}

fn settle(world: &mut World, actions: &[Action], written: Written) -> Vec<Action> {
    match actions {
        [Action::Settle(pod, release)] => {
            world.handle(Event::Settled(pod.clone(), release.clone(), written))
        }
        _ => panic!("{actions:?}"),
    }
}

#[test]
fn what_has_become_of_a_release_is_written_again_until_it_is_there() {
    let mut world = well();
    let app = private("app", &world);
    let (_, id) = handed_over(&mut world, &app);
    let actions = returned(&mut world, id, "2");
    assert_eq!(settle(&mut world, &actions, Written::Failed), []);
    let again = world.wait(Duration::from_secs(7));
    assert_eq!(again, actions);
    assert_eq!(settle(&mut world, &again, Written::Done), []);
    assert_eq!(world.wait(Duration::from_secs(60)), []);
}

#[test]
fn pods_that_wait_get_what_the_kubelet_brings_the_first() {
    let mut world = well();
    let first = private("first", &world);
    let attempt = world.see(&first);
    let second = private("second", &world);
    assert_eq!(world.see(&second), []);
    let id = the_handover(&refused(&mut world, &attempt, &usable("1")));
    let actions = taken(&mut world, id, Some("1"));
    let [Action::Release { pod, .. }] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(*pod, first.id);
    world.sent(&actions, Written::Done);
    let actions = returned(&mut world, id, "2");
    let released = actions.iter().find_map(|action| match action {
        Action::Release { pod, release, .. } => Some((pod, release)),
        _ => None,
    });
    let (pod, release) = released.expect("the second is released");
    assert_eq!(*pod, second.id);
    assert_eq!(release.containers["app"].outcome, Outcome::Fresh);
}

#[test]
fn the_next_pods_of_an_identity_do_not_pay_for_a_failure_again() {
    let mut world = well();
    let app = private("app", &world);
    let (open, id) = handed_over(&mut world, &app);
    world.see(&wanting(&open, FailureClass::Unauthorized));
    given_back(&mut world, id, usable("1"));
    world.wait(Duration::from_secs(3));
    let next = private("next", &world);
    let actions = world.see(&next);
    let actions = refused(&mut world, &actions, &usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fallback);
    let said = &the_release(&actions).containers["app"];
    assert_eq!(said.note, Some(format!("{NOT_ASKED}; {IF_OTHERS}")));
    world.sent(&actions, Written::Done);
    // Another identity may have better credentials.
    world.wait(Duration::from_secs(3));
    let other = tenant("other", "other", &world);
    let actions = world.see(&other);
    let id = the_handover(&refused(&mut world, &actions, &usable("1")));
    let actions = taken(&mut world, id, Some("1"));
    world.sent(&actions, Written::Done);
    returned(&mut world, id, "1");
    // That ends the pause for all.
    world.wait(Duration::from_secs(3));
    let again = private("again", &world);
    let actions = world.see(&again);
    the_handover(&refused(&mut world, &actions, &usable("1")));
}

#[test]
fn an_imported_copy_costs_one_failure_for_all_without_pull_secrets() {
    let mut world = well();
    let of = |tenant: &str, world: &World| GatedPod {
        identity: Identity {
            namespace: tenant.into(),
            ..Identity::default()
        },
        ..held(tenant, world)
    };
    let first = of("first", &world);
    let (open, id) = handed_over(&mut world, &first);
    world.see(&wanting(&open, FailureClass::Unauthorized));
    given_back(&mut world, id, usable("1"));
    world.wait(Duration::from_secs(3));
    let second = of("second", &world);
    let actions = world.see(&second);
    let actions = refused(&mut world, &actions, &usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fallback);
    world.sent(&actions, Written::Done);
    // A pull secret may open it.
    world.wait(Duration::from_secs(3));
    let third = tenant("third", "third", &world);
    let actions = world.see(&third);
    the_handover(&refused(&mut world, &actions, &usable("1")));
}

#[test]
fn nobody_is_handed_over_whose_end_could_not_be_seen() {
    let mut world = well();
    world.handle(Event::Well(false));
    let app = private("app", &world);
    let actions = world.see(&app);
    assert_eq!(refused(&mut world, &actions, &usable("1")), []);
    assert_eq!(world.records, [], "it may be over in a moment");
    let mut actions = world.wait(Duration::from_secs(5));
    actions.retain(|action| !matches!(action, Action::Progress(..)));
    assert_eq!(outcome(&actions), Outcome::Fallback);
    assert_eq!(world.records.len(), 1, "and the try is remembered");
}

#[test]
fn a_registry_that_cannot_say_keeps_its_name() {
    for class in [
        FailureClass::Network,
        FailureClass::Timeout,
        FailureClass::ServerError,
        FailureClass::RateLimited,
    ] {
        let mut world = well();
        let app = private("app", &world);
        let attempt = the_try(&world.see(&app));
        let actions = world.ends(attempt, Some(class), usable("1"), usable("1"));
        assert_eq!(outcome(&actions), Outcome::Fallback, "{class}");
    }
}

#[test]
fn a_missing_tag_is_looked_for_by_the_kubelet_if_the_pod_has_secrets() {
    let mut world = well();
    let app = private("app", &world);
    let attempt = the_try(&world.see(&app));
    let failure = Some(FailureClass::NotFound);
    the_handover(&world.ends(attempt, failure, usable("1"), usable("1")));
    let mut world = well();
    let app = pod("app", &world);
    let attempt = the_try(&world.see(&app));
    let actions = world.ends(attempt, failure, usable("1"), usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fallback);
}

#[test]
fn what_was_had_without_credentials_is_not_asked_for_with_none() {
    let mut world = well();
    let record = written_down(image(), Some(confirmation("1")), false);
    world.learn(&[record]);
    let app = held("app", &world);
    let actions = world.see(&app);
    let actions = refused(&mut world, &actions, &usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fallback);
}

#[test]
fn where_the_kubelet_keeps_no_records_the_agent_does() {
    let mut world = well();
    world.handle(Event::KubeletVerifies(false));
    // There is a copy, and nobody knows whose.
    let app = private("app", &world);
    let actions = world.see(&app);
    let actions = refused(&mut world, &actions, &usable("1"));
    assert_eq!(outcome(&actions), Outcome::Refused);
    world.handle(Event::Gone(app.id.uid));
    // There is none: the kubelet pulls it for this pod.
    world.wait(Duration::from_secs(3));
    let app = private("first", &world);
    let actions = world.see(&app);
    let id = the_handover(&refused(&mut world, &actions, &CachedCopy::Absent));
    let actions = taken(&mut world, id, None);
    world.sent(&actions, Written::Done);
    returned(&mut world, id, "1");
    // From then on its like may have it, in an outage, too, and nobody else.
    for (name, expected) in [("default", Outcome::Fallback), ("other", Outcome::Refused)] {
        world.wait(Duration::from_secs(3));
        let app = tenant(name, name, &world);
        let attempt = the_try(&world.see(&app));
        let failure = Some(FailureClass::Network);
        let actions = world.ends(attempt, failure, usable("1"), usable("1"));
        assert_eq!(outcome(&actions), expected, "{name}");
        world.sent(&actions, Written::Done);
    }
}

#[test]
fn a_kubelet_that_does_not_come_costs_the_stall_deadline() {
    let mut world = well();
    let app = private("app", &world);
    let (_, id) = handed_over(&mut world, &app);
    is_nudge(&world.wait(Duration::from_millis(4999)));
    assert_eq!(world.moved(id, 4096, true), []);
    assert_eq!(
        world.wait(Duration::from_millis(4999)),
        [],
        "something moves"
    );
    assert_eq!(the_give_back(&world.wait(Duration::from_millis(1))), id);
}

/// A change of the pod, so that the kubelet looks at it.
fn is_nudge(actions: &[Action]) {
    match actions {
        [Action::Progress(_, progress)] => assert!(progress.containers["app"].by_kubelet),
        _ => panic!("{actions:?}"),
    }
}

#[test]
fn the_kubelet_is_made_to_say_how_far_it_is_once() {
    let mut world = well();
    let app = private("app", &world);
    let (open, id) = handed_over(&mut world, &app);
    assert_eq!(world.wait(Duration::from_millis(999)), []);
    is_nudge(&world.wait(Duration::from_millis(1)));
    assert_eq!(world.wait(Duration::from_millis(3999)), []);
    let failing = wanting(&open, FailureClass::Unauthorized);
    assert_eq!(the_give_back(&world.see(&failing)), id);
}

#[test]
fn a_kubelet_that_has_not_come_to_the_container_is_left_alone() {
    let mut world = well();
    let app = private("app", &world);
    let (mut open, _) = handed_over(&mut world, &app);
    open.starts.clear();
    world.see(&open);
    assert_eq!(world.wait(Duration::from_secs(60)), []);
}

/// A private image of the same registry, and of another one.
const OTHERS: [&str; 2] = ["reg.example/other", "other.example/private"];

/// A pod of this image that the registry has refused, and what follows for it.
fn of_another_image(world: &mut World, name: &str, image: &str, copy: &CachedCopy) -> Vec<Action> {
    let mut pod = private(name, world);
    let image: ImageName = image.parse().unwrap();
    let container = &mut pod.containers[0];
    container.written = image.as_str().into();
    container.image = Ok(image.clone());
    let actions = world.see(&pod);
    let refused = Some(Failure::new(FailureClass::Unauthorized, "401"));
    world.handle(ended(image, the_try(&actions), refused, copy, copy.clone()))
}

/// A pod whose pull by the kubelet hangs.
fn hanging(world: &mut World) -> GatedPod {
    let app = private("app", world);
    let (open, id) = handed_over(world, &app);
    let waited = world.wait(Duration::from_secs(5));
    assert!(waited.contains(&Action::GiveBack { image: image(), id }));
    given_back(world, id, usable("1"));
    open
}

#[test]
fn while_a_pull_of_the_kubelet_hangs_no_pod_with_a_copy_waits_behind_it() {
    let mut world = well();
    let mut open = hanging(&mut world);
    for image in OTHERS {
        let actions = of_another_image(&mut world, image, image, &usable("1"));
        assert_eq!(outcome(&actions), Outcome::Fallback, "{image}");
        world.sent(&actions, Written::Done);
        world.wait(Duration::from_secs(3));
    }
    // It has ended: another registry may be better.
    let failure = Failure::new(FailureClass::Timeout, "why");
    open.starts.insert("app".into(), Start::Wanting(failure));
    world.see(&open);
    let [same, other] = OTHERS;
    let actions = of_another_image(&mut world, "same", same, &usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fallback);
    world.sent(&actions, Written::Done);
    let actions = of_another_image(&mut world, "other", other, &usable("1"));
    the_handover(&actions);
}

#[test]
fn without_a_copy_a_pod_is_left_to_a_kubelet_that_hangs() {
    let mut world = well();
    hanging(&mut world);
    let [same, _] = OTHERS;
    the_handover(&of_another_image(
        &mut world,
        "other",
        same,
        &CachedCopy::Absent,
    ));
}

/// It would be refused for somebody else's pull.
#[test]
fn a_pod_that_must_not_use_the_copy_is_left_to_a_kubelet_that_hangs() {
    let mut world = well();
    hanging(&mut world);
    let [_, other] = OTHERS;
    let mut strict = private("strict", &world);
    strict.settings.max_age = Some(Duration::from_secs(1));
    let name: ImageName = other.parse().unwrap();
    strict.containers[0].written = other.into();
    strict.containers[0].image = Ok(name.clone());
    let attempt = the_try(&world.see(&strict));
    let refused = Some(Failure::new(FailureClass::Unauthorized, "401"));
    let copy = usable("1");
    let actions = world.handle(ended(name, attempt, refused, &copy, copy.clone()));
    the_handover(&actions);
}

#[test]
fn the_brake_ends_when_the_kubelet_pulls_something_or_after_a_while() {
    let [_, other] = OTHERS;
    let mut world = well();
    hanging(&mut world);
    let actions = of_another_image(&mut world, "absent", other, &CachedCopy::Absent);
    let id = the_handover(&actions);
    let image: ImageName = other.parse().unwrap();
    let taken = Ok(None);
    let event = Event::TakenAway {
        image: image.clone(),
        id,
        taken,
    };
    let actions = world.handle(event);
    world.sent(&actions, Written::Done);
    let copy = usable("1");
    world.handle(Event::Returned { image, id, copy });
    world.wait(Duration::from_secs(3));
    the_handover(&of_another_image(&mut world, "next", other, &usable("1")));

    let mut world = well();
    hanging(&mut world);
    world.wait(Duration::from_mins(10));
    the_handover(&of_another_image(&mut world, "later", other, &usable("1")));
}

#[test]
fn a_pod_that_is_gone_hangs_no_more() {
    let mut world = well();
    let open = hanging(&mut world);
    world.handle(Event::Gone(open.id.uid));
    let [_, other] = OTHERS;
    the_handover(&of_another_image(&mut world, "other", other, &usable("1")));
}

#[test]
fn a_name_is_not_away_for_long_before_other_containers() {
    let mut world = well();
    let app = private("app", &world);
    let actions = world.see(&app);
    let id = the_handover(&refused(&mut world, &actions, &usable("1")));
    let actions = taken(&mut world, id, Some("1"));
    world.sent(&actions, Written::Done);
    let mut open = app;
    open.released = Some(the_release(&actions).clone());
    open.gate = GateState::Open;
    assert_eq!(world.see(&open), []);
    assert_eq!(world.wait(Duration::from_secs(119)), []);
    assert_eq!(the_give_back(&world.wait(Duration::from_secs(1))), id);
}

#[test]
fn a_name_is_given_back_when_its_pod_is_gone_or_the_agent_ends() {
    let mut world = well();
    let app = private("app", &world);
    let (open, id) = handed_over(&mut world, &app);
    assert_eq!(the_give_back(&world.handle(Event::Gone(open.id.uid))), id);
    assert_eq!(given_back(&mut world, id, usable("1")), []);
    let [record] = &world.records[..] else {
        panic!("{:?}", world.records);
    };
    assert_eq!(
        record.pulled_for, None,
        "the registry's refusal stays known"
    );
    world.wait(Duration::from_secs(3));
    let app = private("next", &world);
    let (_, id) = handed_over(&mut world, &app);
    assert_eq!(the_give_back(&world.handle(Event::Stopping)), id);
    assert!(world.planner.is_handing_over());
    given_back(&mut world, id, usable("1"));
    assert!(!world.planner.is_handing_over());
}

#[test]
fn a_name_that_could_not_be_taken_is_given_back() {
    let mut world = well();
    let app = private("app", &world);
    let actions = world.see(&app);
    let id = the_handover(&refused(&mut world, &actions, &usable("1")));
    let actions = world.handle(Event::TakenAway {
        image: image(),
        id,
        taken: Err("no answer".into()),
    });
    assert_eq!(the_give_back(&actions), id);
    // It was there all the time: that says nothing about the registry.
    let actions = world.handle(Event::GivenBack {
        image: image(),
        id,
        copy: usable("1"),
        by_kubelet: true,
    });
    assert_eq!(outcome(&actions), Outcome::Fallback);
}

#[test]
fn what_the_kubelet_does_not_accept_is_not_said_to_run() {
    let mut world = well();
    let app = private("app", &world);
    let attempt = the_try(&world.see(&app));
    let failure = Some(FailureClass::Network);
    let actions = world.ends(attempt, failure, usable("1"), usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fallback);
    world.sent(&actions, Written::Done);
    let mut open = app.clone();
    open.released = Some(the_release(&actions).clone());
    open.gate = GateState::Open;
    let actions = world.see(&wanting(&open, FailureClass::Network));
    assert_eq!(the_settled(&actions).outcome, Outcome::Unavailable);
    settle(&mut world, &actions, Written::Done);
    // The registry is back.
    let mut started = open;
    started.released = match &actions[..] {
        [Action::Settle(_, release)] => Some(release.clone()),
        _ => None,
    };
    let runs = Start::Started {
        digest: Some(digest("2")),
        since: None,
        again: false,
    };
    started.starts.insert("app".into(), runs);
    let actions = world.see(&started);
    assert_eq!(the_settled(&actions).outcome, Outcome::Fresh);
}

/// An agent that comes later cannot know more than an outage shows. What the registry says when it is back is told once.
#[test]
fn an_outage_accuses_no_secret_and_the_registry_does_when_it_is_back() {
    let mut world = well();
    let mut open = private("app", &world);
    let left = ContainerRelease {
        failure: Some(Failure::new(FailureClass::Unauthorized, "401")),
        digest: Some(digest("1")),
        ..handed_over_release()
    };
    open.gate = GateState::Open;
    open.released = Some(Release {
        time: world.now().wall,
        containers: [("app".to_owned(), left)].into(),
        unseen: None,
    });
    assert_eq!(world.see(&wanting(&open, FailureClass::Network)), []);
    let actions = world.wait(Duration::from_secs(20));
    let told = |actions: &[Action], open: &GatedPod| {
        let told = the_amended(actions).told_after(open.released.as_ref());
        let [told] = &told[..] else {
            panic!("{told:?}");
        };
        told.note.clone()
    };
    let note = told(&actions, &open);
    assert!(!note.contains("imagePullSecrets"), "{note}");
    settle(&mut world, &actions, Written::Done);
    open.released = Some(the_amended(&actions).clone());
    assert_eq!(world.see(&wanting(&open, FailureClass::Timeout)), []);
    let actions = world.see(&wanting(&open, FailureClass::Unauthorized));
    let note = told(&actions, &open);
    assert!(note.contains("imagePullSecrets"), "{note}");
    settle(&mut world, &actions, Written::Done);
    open.released = Some(the_amended(&actions).clone());
    assert_eq!(world.see(&wanting(&open, FailureClass::Network)), []);
}

/// What becomes of one container does not change what the others were released with.
#[test]
fn a_copy_that_is_accepted_late_is_said_to_run_whatever_is_written_meanwhile() {
    let mut world = well();
    let mut open = private("app", &world);
    let image = open.containers[0].clone();
    let side = TryContainer {
        name: "side".into(),
        ..image
    };
    open.containers.push(side);
    let left = ContainerRelease {
        digest: Some(digest("1")),
        ..handed_over_release()
    };
    open.gate = GateState::Open;
    let containers = ["app", "side"].map(|name| (name.to_owned(), left.clone()));
    open.released = Some(Release {
        time: world.now().wall,
        containers: containers.into(),
        unseen: None,
    });
    let runs = Start::Started {
        digest: Some(digest("1")),
        since: None,
        again: false,
    };
    world.see(&wanting(&open, FailureClass::Network));
    let mut outcomes = Vec::new();
    let mut actions = world.wait(Duration::from_secs(20));
    for started in ["side", "app"] {
        settle(&mut world, &actions, Written::Done);
        open = wanting(&open, FailureClass::Network);
        open.released = Some(the_amended(&actions).clone());
        open.starts.insert(started.into(), runs.clone());
        actions = world.see(&open);
        let given = &the_amended(&actions).containers[started];
        outcomes.push(given.outcome);
    }
    assert_eq!(outcomes, [Outcome::Fallback, Outcome::Fallback]);
}

/// A kubelet that keeps no records, and a copy that the registry has given to pods like this one.
fn without_records(copy: &str) -> (World, GatedPod) {
    let mut world = well();
    world.handle(Event::KubeletVerifies(false));
    let mut record = written_down(image(), Some(confirmation(copy)), true);
    record.facts.private_to = Some(vec![tenant("any", "default", &world).identity]);
    world.learn(&[record]);
    let app = private("app", &world);
    (world, app)
}

/// It has started from this copy: what it is told, and for whom the kubelet has pulled something meanwhile.
fn starts_from(
    world: &mut World,
    mut pod: GatedPod,
    copy: &str,
    again: bool,
) -> (ContainerRelease, Vec<Identity>) {
    let runs = Start::Started {
        digest: Some(digest(copy)),
        since: None,
        again,
    };
    pod.starts.insert("app".into(), runs);
    world.records.clear();
    let actions = world.see(&pod);
    let settled = the_settled(&actions).clone();
    settle(world, &actions, Written::Done);
    let pulls = world.records.iter();
    let pulled_for = pulls.filter_map(|record| record.pulled_for.as_deref().cloned());
    (settled, pulled_for.collect())
}

/// Where the kubelet keeps no records, a container restarts from whatever another tenant's pod has brought.
#[test]
fn what_a_container_restarts_from_is_no_pull_with_its_own_credentials() {
    for unavailable in [false, true] {
        let (mut world, app) = without_records("1");
        let (mut open, id) = handed_over(&mut world, &app);
        let failing = wanting(&open, FailureClass::ServerError);
        assert_eq!(the_give_back(&world.see(&failing)), id);
        let mut actions = given_back(&mut world, id, usable("1"));
        settle(&mut world, &actions, Written::Done);
        if unavailable {
            actions = world.wait(Duration::from_secs(20));
            settle(&mut world, &actions, Written::Done);
        }
        open.released = Some(the_amended(&actions).clone());
        let (settled, pulled_for) = starts_from(&mut world, open, "2", false);
        assert_eq!(settled.outcome, Outcome::Fresh);
        assert_eq!(pulled_for, [app.identity]);
    }
    // The agent was away meanwhile.
    let (mut world, app) = without_records("1");
    let (open, _) = handed_over(&mut world, &app);
    for (again, expected) in [(false, Outcome::Fresh), (true, Outcome::Fallback)] {
        let (mut later, _) = without_records("1");
        let (settled, pulled_for) = starts_from(&mut later, open.clone(), "2", again);
        assert_eq!(settled.outcome, expected);
        assert_eq!(
            settled.failure, None,
            "what the agent was told says nothing of the start"
        );
        assert_eq!(pulled_for, []);
    }
}

/// It was left without a copy that it may start from; then another tenant's pod has brought one.
#[test]
fn what_was_pulled_for_others_is_no_pull_for_a_pod_that_starts_from_it() {
    for (others, expected) in [("other", Outcome::Fallback), ("default", Outcome::Fresh)] {
        let (mut world, app) = without_records("1");
        let (mut open, id) = handed_over(&mut world, &app);
        world.see(&wanting(&open, FailureClass::ServerError));
        let actions = given_back(&mut world, id, usable("1"));
        settle(&mut world, &actions, Written::Done);
        let actions = world.wait(Duration::from_secs(20));
        settle(&mut world, &actions, Written::Done);
        open.released = Some(the_amended(&actions).clone());
        let mut record = written_down(image(), Some(confirmation("2")), true);
        record.facts.private_to = Some(vec![tenant("any", others, &world).identity]);
        world.learn(&[record]);
        let (settled, pulled_for) = starts_from(&mut world, open, "2", false);
        assert_eq!(settled.outcome, expected);
        assert_eq!(settled.digest, Some(digest("2")));
        let is_own = expected == Outcome::Fresh;
        assert_eq!(pulled_for, Vec::from_iter(is_own.then_some(app.identity)));
    }
}

/// The kubelet's pull for this pod was refused, and an ungated pod's has brought the name back meanwhile.
#[test]
fn a_pull_that_was_refused_has_not_brought_what_is_there_then() {
    let (mut world, app) = without_records("1");
    let (open, id) = handed_over(&mut world, &app);
    let failing = wanting(&open, FailureClass::Unauthorized);
    assert_eq!(the_give_back(&world.see(&failing)), id);
    let actions = world.handle(Event::GivenBack {
        image: image(),
        id,
        copy: usable("2"),
        by_kubelet: true,
    });
    let settled = the_settled(&actions);
    assert_eq!(settled.outcome, Outcome::Fallback);
    assert_eq!(
        (settled.digest.as_ref(), settled.confirmed),
        (Some(&digest("2")), None)
    );
    let [record] = &world.records[..] else {
        panic!("{:?}", world.records);
    };
    assert!(record.result.failure().is_some(), "{record:?}");
}

/// The kubelet's first pull failed, and a later one has not. Where nobody else remembers that, the agent does.
#[test]
fn a_private_image_that_was_absent_is_the_pods_whose_kubelet_has_pulled_it() {
    let mut world = well();
    world.handle(Event::KubeletVerifies(false));
    let app = private("app", &world);
    let actions = world.see(&app);
    let id = the_handover(&refused(&mut world, &actions, &CachedCopy::Absent));
    let actions = taken(&mut world, id, None);
    world.sent(&actions, Written::Done);
    let mut open = app.clone();
    open.released = Some(the_release(&actions).clone());
    open.gate = GateState::Open;
    assert_eq!(
        the_give_back(&world.see(&wanting(&open, FailureClass::Unauthorized))),
        id
    );
    let actions = given_back(&mut world, id, CachedCopy::Absent);
    assert_eq!(the_settled(&actions).outcome, Outcome::Unavailable);
    open.released = Some(the_amended(&actions).clone());
    // The watch is faster than the answer.
    assert_eq!(world.see(&wanting(&open, FailureClass::Unauthorized)), []);
    settle(&mut world, &actions, Written::Done);
    let (settled, pulled_for) = starts_from(&mut world, open, "1", false);
    assert_eq!(settled.outcome, Outcome::Fallback);
    assert_eq!(settled.note.as_deref(), Some(CAME_SINCE));
    assert_eq!(pulled_for, [app.identity]);
    world.wait(Duration::from_secs(5));
    let next = private("next", &world);
    let actions = world.see(&next);
    the_handover(&refused(&mut world, &actions, &usable("1")));
}

/// A pod that is left to the kubelet: nothing is there, and the registry could not be asked.
fn without_copy(world: &mut World) -> GatedPod {
    let app = private("app", world);
    let attempt = the_try(&world.see(&app));
    let failure = Some(FailureClass::RateLimited);
    let actions = world.ends(attempt, failure, CachedCopy::Absent, CachedCopy::Absent);
    assert_eq!(outcome(&actions), Outcome::Unavailable);
    world.sent(&actions, Written::Done);
    let mut open = app;
    open.released = Some(the_release(&actions).clone());
    open.gate = GateState::Open;
    open
}

/// The kubelet may have pulled it, or somebody has brought it by hand. Nobody could ask the registry first: it may be
/// public. The agent asks later.
#[test]
fn what_was_absent_in_an_outage_is_nobodys_own() {
    let mut world = well();
    world.handle(Event::KubeletVerifies(false));
    let open = without_copy(&mut world);
    let (settled, pulled_for) = starts_from(&mut world, open, "1", false);
    assert_eq!(settled.outcome, Outcome::Fallback);
    assert!(!settled.runs_fallback(), "{settled:?}");
    assert_eq!(pulled_for, []);
    the_try(&world.wait(Duration::from_secs(300)));
}

/// Another pod's pull has brought it.
#[test]
fn what_the_registry_has_confirmed_since_is_fresh() {
    let mut world = well();
    let open = without_copy(&mut world);
    world.wait(Duration::from_secs(5));
    let mut record = written_down(image(), Some(confirmation("1")), false);
    let confirmed = record.facts.confirmed.as_mut().unwrap();
    confirmed.time = world.now().wall;
    let time = confirmed.time;
    world.learn(&[record]);
    let (settled, _) = starts_from(&mut world, open, "1", false);
    assert_eq!(settled.outcome, Outcome::Fresh);
    assert_eq!(settled.confirmed, Some(time));
}

/// Between the registry's refusal and the hand-over, somebody has moved the name to a copy of others.
#[test]
fn a_pod_is_not_left_to_the_kubelet_with_a_copy_behind_it_that_it_may_not_have() {
    let (mut world, app) = without_records("1");
    let actions = world.see(&app);
    let id = the_handover(&refused(&mut world, &actions, &usable("1")));
    let actions = taken(&mut world, id, Some("2"));
    let release = actions.iter().find_map(|action| match action {
        Action::Release { release, .. } => Some(&release.containers["app"]),
        _ => None,
    });
    assert_eq!(release.map(|given| given.outcome), Some(Outcome::Refused));
    assert!(
        actions.contains(&Action::GiveBack { image: image(), id }),
        "{actions:?}"
    );
}

#[test]
fn a_name_stays_until_the_gate_runs() {
    let mut world = well();
    let mut app = private("app", &world);
    app.gate = GateState::Pending;
    let actions = world.see(&app);
    assert_eq!(refused(&mut world, &actions, &usable("1")), []);
    let running = GatedPod {
        gate: GateState::Running {
            since: world.now().wall,
        },
        ..app
    };
    the_handover(&world.see(&running));
}

#[test]
fn the_runtime_says_first_that_a_gate_runs() {
    for is_known in [true, false] {
        let mut world = well();
        let mut app = private("app", &world);
        app.gate = GateState::Pending;
        let runs = Event::GatesRun([app.id.uid.clone()].into());
        if !is_known {
            world.handle(runs.clone());
        }
        let seen = world.see(&app);
        let ended = refused(&mut world, &seen, &usable("1"));
        if is_known {
            assert_eq!(ended, []);
            the_handover(&world.handle(runs));
        } else {
            the_handover(&ended);
        }
    }
}

#[test]
fn a_gate_that_is_next_is_enough() {
    let begins = |actions: &[Action]| {
        let is_taken = |action: &Action| matches!(action, Action::TakeAway { .. });
        actions.iter().any(is_taken)
    };
    for (late, is_next) in [
        (Duration::ZERO, true),
        (Duration::from_millis(1_999), true),
        (Duration::from_secs(2), false),
    ] {
        let mut world = well();
        let mut app = private("app", &world);
        app.gate = GateState::Pending;
        let seen = world.see(&app);
        world.handle(Event::SandboxStarted(app.id.uid.clone()));
        world.wait(late);
        let ended = refused(&mut world, &seen, &usable("1"));
        assert_eq!(begins(&ended), is_next, "{late:?}");
        let runs = world.handle(Event::GatesRun([app.id.uid.clone()].into()));
        assert_ne!(begins(&runs), is_next, "{late:?}");
    }
}

/// The pods of its image wait for it side by side: the first whose own time is up has the kubelet pull for all.
#[test]
fn a_gate_that_cannot_start_costs_other_pods_no_more_than_their_own_time() {
    let mut world = well();
    let mut stuck = private("stuck", &world);
    stuck.gate = GateState::Pending;
    let seen = world.see(&stuck);
    world.handle(Event::SandboxStarted(stuck.id.uid.clone()));
    let id = the_handover(&refused(&mut world, &seen, &usable("1")));
    let actions = taken(&mut world, id, Some("1"));
    world.sent(&actions, Written::Done);
    let mut waits = Vec::new();
    for name in ["first", "second", "third"] {
        world.wait(Duration::from_secs(5));
        let pod = private(name, &world);
        assert_eq!(world.see(&pod), [], "{name}");
        waits.push(pod.id);
    }
    let is_release = |action: &Action| matches!(action, Action::Release { .. });
    // The first came 10 s before the last.
    let left = TRY.saturating_sub(Duration::from_secs(10));
    let released = |world: &mut World, time| {
        let mut actions = world.wait(time);
        actions.retain(is_release);
        actions
    };
    let moment = Duration::from_millis(1);
    assert_eq!(released(&mut world, left.saturating_sub(moment)), []);
    let first = released(&mut world, moment);
    assert_eq!(outcome(&first), Outcome::HandedOver);
    world.sent(&first, Written::Done);
    // It began before the others came, so the tag may have moved since: they are tried once more, together.
    let actions = returned(&mut world, id, "1");
    let again = actions.iter().find_map(|action| match action {
        Action::Try { attempt, .. } => Some(*attempt),
        _ => None,
    });
    let failure = Some(FailureClass::Unauthorized);
    let copy = usable("1");
    let actions = world.ends(again.expect("a try"), failure, copy.clone(), copy);
    let id = the_handover(&actions);
    let second = taken(&mut world, id, Some("1"));
    assert_eq!(outcome(&second), Outcome::HandedOver);
    world.sent(&second, Written::Done);
    let mut third = returned(&mut world, id, "1");
    third.retain(is_release);
    assert_eq!(outcome(&third), Outcome::Unchanged);
    world.sent(&third, Written::Done);
    let released = [&first, &second, &third].map(|actions| match &actions[..] {
        [Action::Release { pod, .. }] => pod.clone(),
        _ => panic!("{actions:?}"),
    });
    assert_eq!(released[..], waits[..]);
    // The gate that cannot start is in nobody's way again.
    world.wait(Duration::from_secs(3));
    let next = private("next", &world);
    let seen = world.see(&next);
    the_handover(&refused(&mut world, &seen, &usable("1")));
}

#[test]
fn a_gate_that_waits_for_images_of_volumes_is_not_next() {
    let mut world = well();
    let mut app = private("app", &world);
    app.gate = GateState::Pending;
    app.has_image_volumes = true;
    let seen = world.see(&app);
    world.handle(Event::SandboxStarted(app.id.uid.clone()));
    assert_eq!(refused(&mut world, &seen, &usable("1")), []);
    the_handover(&world.handle(Event::GatesRun([app.id.uid].into())));
}

#[test]
fn a_gate_that_has_opened_is_not_next() {
    let mut world = well();
    let mut app = private("app", &world);
    app.gate = GateState::Open;
    let seen = world.see(&app);
    let started = world.handle(Event::SandboxStarted(app.id.uid));
    assert_eq!((seen, started), (vec![], vec![]));
}

#[test]
fn a_gate_that_the_runtime_has_seen_end_takes_no_name_away() {
    let mut world = well();
    let mut app = private("app", &world);
    app.gate = GateState::Pending;
    world.handle(Event::GatesRun([app.id.uid.clone()].into()));
    let seen = world.see(&app);
    world.handle(Event::GatesRun([].into()));
    assert_eq!(refused(&mut world, &seen, &usable("1")), []);
}

#[test]
fn a_pod_that_cannot_open_takes_no_name_away() {
    let mut world = well();
    let mut app = private("app", &world);
    let other: ImageName = "other.example/strict".parse().unwrap();
    app.settings.max_age = Some(Duration::from_secs(1));
    app.containers.push(TryContainer {
        name: "strict".into(),
        written: other.as_str().into(),
        image: Ok(other.clone()),
    });
    let actions = world.see(&app);
    let attempt = |name: &ImageName| {
        let mut tries = actions.iter().filter_map(|action| match action {
            Action::Try { image, attempt, .. } if image == name => Some(*attempt),
            _ => None,
        });
        tries.next().expect("a try")
    };
    let network = Failure::new(FailureClass::Network, "why");
    let strict = ended(
        other.clone(),
        attempt(&other),
        Some(network),
        &usable("9"),
        usable("9"),
    );
    assert_eq!(world.handle(strict), []);
    let failure = Some(FailureClass::Unauthorized);
    let ends = world.ends(attempt(&image()), failure, usable("1"), usable("1"));
    assert!(!the_release(&ends).opens(), "{ends:?}");
}

#[test]
fn another_tenants_failure_is_its_own() {
    let mut world = well();
    let app = private("app", &world);
    let (_, id) = handed_over(&mut world, &app);
    let mut other = tenant("other", "other", &world);
    other.settings.timeout = Some(Duration::from_secs(1));
    assert_eq!(world.see(&other), []);
    let mut actions = world.wait(Duration::from_secs(1));
    actions.retain(|action| !matches!(action, Action::Progress(..)));
    let release = the_release(&actions).clone();
    assert_eq!(release.containers["app"].outcome, Outcome::HandedOver);
    world.sent(&actions, Written::Done);
    other.released = Some(release);
    other.gate = GateState::Open;
    let actions = world.see(&wanting(&other, FailureClass::Unauthorized));
    assert_eq!(the_settled(&actions).outcome, Outcome::Unavailable);
    // The name stays away for those who may have it.
    let actions = returned(&mut world, id, "2");
    assert_eq!(the_settled(&actions).outcome, Outcome::Fresh);
}

#[test]
fn a_pull_that_ends_well_after_all_is_told() {
    let mut world = well();
    let app = private("app", &world);
    let (open, id) = handed_over(&mut world, &app);
    world.wait(Duration::from_secs(5));
    let actions = given_back(&mut world, id, usable("1"));
    assert_eq!(the_settled(&actions).outcome, Outcome::Fallback);
    settle(&mut world, &actions, Written::Done);
    let mut started = open;
    started.starts.insert(
        "app".into(),
        Start::Started {
            digest: Some(digest("2")),
            since: None,
            again: false,
        },
    );
    let actions = world.see(&started);
    assert_eq!(the_settled(&actions).outcome, Outcome::Fresh);
}

#[test]
fn where_the_kubelet_keeps_no_records_nobody_slips_in_while_a_name_is_away() {
    let mut world = well();
    world.handle(Event::KubeletVerifies(false));
    let mut record = written_down(image(), Some(confirmation("1")), true);
    record.facts.private_to = Some(vec![private("any", &world).identity]);
    world.learn(&[record]);
    let app = private("app", &world);
    let (_, id) = handed_over(&mut world, &app);
    let mut other = tenant("other", "other", &world);
    other.settings.timeout = Some(Duration::from_secs(1));
    assert_eq!(world.see(&other), []);
    let is_release = |action: &Action| matches!(action, Action::Release { .. });
    assert!(!world.wait(Duration::from_secs(4)).iter().any(is_release));
    returned(&mut world, id, "1");
    let actions = world.wait(Duration::from_secs(4));
    let attempt = actions.iter().find_map(|action| match action {
        Action::Try { attempt, .. } => Some(*attempt),
        _ => None,
    });
    let failure = Some(FailureClass::Unauthorized);
    let mut all = match attempt {
        Some(attempt) => world.ends(attempt, failure, usable("1"), usable("1")),
        None => world.inspected(&usable("1")),
    };
    all.retain(is_release);
    assert_eq!(outcome(&all), Outcome::Refused);
}

#[test]
fn without_a_copy_the_kubelet_tries_with_the_pods_own_secrets_at_once() {
    for (secrets, expected) in [(true, 1), (false, 0)] {
        let mut world = well();
        let app = if secrets {
            private("app", &world)
        } else {
            held("app", &world)
        };
        let attempt = the_try(&world.see(&app));
        let failure = Some(FailureClass::RateLimited);
        let actions = world.ends(attempt, failure, CachedCopy::Absent, CachedCopy::Absent);
        assert_eq!(actions.len(), expected, "{actions:?}");
    }
}

#[test]
fn another_tenants_wait_ends_no_hand_over() {
    let mut world = well();
    let app = private("app", &world);
    let (mut open, id) = handed_over(&mut world, &app);
    // An init container of its own runs first.
    open.starts.clear();
    world.see(&open);
    let mut other = tenant("other", "other", &world);
    other.gate = GateState::Open;
    other.released = open.released.clone();
    other.starts.insert("app".into(), Start::Next);
    world.see(&other);
    let actions = world.wait(Duration::from_secs(60));
    let given_back = Action::GiveBack { image: image(), id };
    assert!(!actions.contains(&given_back), "{actions:?}");
}

#[test]
fn nothing_is_learned_from_a_release_that_the_agent_has_not_written() {
    let mut world = well();
    let actions = world.see(&held("public", &world));
    let attempt = the_try(&actions);
    let actions = world.ends(attempt, None, CachedCopy::Absent, usable("2"));
    world.sent(&actions, Written::Done);
    let mut forged = private("forged", &world);
    forged.gate = GateState::Open;
    let mut release = the_release(&actions).clone();
    let app = release.containers.get_mut("app").unwrap();
    app.outcome = Outcome::HandedOver;
    app.digest = None;
    forged.released = Some(release);
    let digest = Some(digest("1"));
    forged.starts.insert(
        "app".into(),
        Start::Started {
            digest,
            since: None,
            again: false,
        },
    );
    let records = world.records.len();
    world.see(&forged);
    world.wait(Duration::from_secs(30));
    assert_eq!(world.records.len(), records);
}

/// Its other image's name takes longer to go, and a pod that came meanwhile fails.
#[test]
fn a_pod_whose_name_is_back_before_its_release_is_not_said_to_be_handed_over() {
    let mut world = well();
    let mut app = private("app", &world);
    let slow: ImageName = "reg.example/slow".parse().unwrap();
    app.containers.push(TryContainer {
        name: "slow".into(),
        written: slow.to_string(),
        image: Ok(slow.clone()),
    });
    let mut actions = world.see(&app);
    let refused = Failure::new(FailureClass::Unauthorized, "401");
    while let Some(position) = actions
        .iter()
        .position(|action| matches!(action, Action::Try { .. }))
    {
        let Action::Try { image, attempt, .. } = actions.swap_remove(position) else {
            unreachable!();
        };
        let end = ended(
            image,
            attempt,
            Some(refused.clone()),
            &usable("1"),
            usable("1"),
        );
        actions.extend(world.handle(end));
    }
    let id_of = |name: &ImageName| {
        let ids = actions.iter().find_map(|action| match action {
            Action::TakeAway { image, id } if image == name => Some(*id),
            _ => None,
        });
        ids.expect("it is handed over")
    };
    let (id, slow_id) = (id_of(&image()), id_of(&slow));
    assert_eq!(taken(&mut world, id, Some("1")), []);
    let mut other = tenant("other", "other", &world);
    other.gate = GateState::Open;
    other.released = Some(Release {
        time: world.now().wall,
        containers: [("app".to_owned(), handed_over_release())].into(),
        unseen: None,
    });
    world.see(&wanting(&other, FailureClass::Unauthorized));
    let actions = world.wait(Duration::from_secs(5));
    let given = Action::GiveBack { image: image(), id };
    assert!(actions.contains(&given), "{actions:?}");
    given_back(&mut world, id, usable("1"));
    let actions = world.handle(Event::TakenAway {
        image: slow,
        id: slow_id,
        taken: Ok(Some(digest("1"))),
    });
    let release = actions.iter().find_map(|action| match action {
        Action::Release { release, .. } => Some(release),
        _ => None,
    });
    let release = release.expect("it is released");
    assert_eq!(release.containers["app"].outcome, Outcome::Fallback);
    assert_eq!(release.containers["slow"].outcome, Outcome::HandedOver);
}

fn handed_over_release() -> ContainerRelease {
    ContainerRelease::new("reg.example/app", Outcome::HandedOver)
}

/// Where the kubelet keeps no records, only the agent can know who may have what it pulls.
#[test]
fn a_pull_that_is_faster_than_the_give_back_is_remembered() {
    let mut world = well();
    world.handle(Event::KubeletVerifies(false));
    let mut record = written_down(image(), Some(confirmation("1")), true);
    record.facts.private_to = Some(vec![private("any", &world).identity]);
    world.learn(&[record]);
    let app = private("app", &world);
    let (mut open, id) = handed_over(&mut world, &app);
    // An init container of its own runs, and the registry falls silent.
    open.starts.clear();
    world.see(&open);
    world.wait(Duration::from_secs(10));
    let other: ImageName = "reg.example/other".parse().unwrap();
    let pod = of(&other, &world);
    let attempt = the_try(&world.see(&pod));
    world.wait(Duration::from_secs(5));
    let actions = world.stalls(&other, attempt, Flow::default());
    assert!(actions.contains(&Action::GiveBack { image: image(), id }));
    world.handle(Event::GivenBack {
        image: image(),
        id,
        copy: usable("2"),
        by_kubelet: true,
    });
    let pulled = world
        .records
        .iter()
        .find(|record| record.pulled_for.is_some());
    assert_eq!(pulled.unwrap().digest, Some(digest("2")));
}

/// The other one writes it on its own pod, which has failed, in the moment in which the leader's gate still runs.
#[test]
fn another_tenants_forged_release_ends_no_hand_over() {
    let mut world = well();
    let app = private("app", &world);
    let actions = world.see(&app);
    let id = the_handover(&refused(&mut world, &actions, &usable("1")));
    let actions = taken(&mut world, id, Some("1"));
    let release = the_release(&actions).clone();
    world.sent(&actions, Written::Done);
    let mut forged = wanting(
        &tenant("forged", "other", &world),
        FailureClass::Unauthorized,
    );
    forged.gate = GateState::Open;
    forged.released = Some(release);
    let actions = world.see(&forged);
    let given_back = Action::GiveBack { image: image(), id };
    assert!(!actions.contains(&given_back), "{actions:?}");
}

/// containerd has died just then.
#[test]
fn a_copy_that_cannot_be_looked_at_when_its_name_is_back_is_the_one_before() {
    let mut world = well();
    let app = private("app", &world);
    let (open, id) = handed_over(&mut world, &app);
    world.see(&wanting(&open, FailureClass::Unauthorized));
    let unknown = CachedCopy::Unknown {
        why: "no answer".into(),
    };
    let actions = given_back(&mut world, id, unknown);
    let settled = the_settled(&actions);
    assert_eq!(settled.outcome, Outcome::Fallback);
    assert_eq!(settled.digest, Some(digest("1")));
}

/// The same after a pull that has ended well: it is no fallback.
#[test]
fn what_was_pulled_and_cannot_be_looked_at_is_what_the_container_starts_from() {
    let mut world = well();
    let app = private("app", &world);
    let (mut open, id) = handed_over(&mut world, &app);
    let why = "no answer".into();
    let actions = world.handle(Event::Returned {
        image: image(),
        id,
        copy: CachedCopy::Unknown { why },
    });
    assert_eq!(actions, []);
    let runs = Start::Started {
        digest: Some(digest("2")),
        since: None,
        again: false,
    };
    open.starts.insert("app".into(), runs);
    let actions = world.see(&open);
    let settled = the_settled(&actions);
    assert_eq!(settled.outcome, Outcome::Fresh);
    assert_eq!(settled.digest, Some(digest("2")));
}
