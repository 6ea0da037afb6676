//! What is said beforehand is what happens then.

use std::collections::VecDeque;

use super::report::rolled_back;
use super::*;
use crate::explain::{CopyState, Explanation, Found, ImageNow, Judge, Step, Subject, UserState};
use crate::pod::Start;
use crate::rules::RuleInForce;

const KEEP: Duration = Duration::from_hours(24);

fn about(name: &ImageName) -> Subject {
    Subject::Image {
        image: name.clone(),
        namespace: None,
    }
}

fn about_pod(pod: &GatedPod) -> Subject {
    Subject::Pod {
        namespace: pod.id.namespace.clone(),
        name: pod.id.name.clone(),
    }
}

fn explained(world: &World, subject: &Subject, copy: &CachedCopy) -> Option<Explanation> {
    let found = world.planner.images_of(subject)?.into_iter();
    let found = found.map(|name| {
        let found = Found {
            copy: copy.clone(),
            kept: Some(Vec::new()),
            record: None,
        };
        (name, found)
    });
    let found = found.collect();
    world.planner.explain(world.now(), subject, &found, KEEP)
}

fn of_image(world: &World, copy: &CachedCopy) -> ImageNow {
    let explanation = explained(world, &about(&image()), copy).unwrap();
    explanation.images.into_iter().next().unwrap()
}

fn step(world: &World, copy: &CachedCopy) -> (Step, Option<Outcome>) {
    let foreseen = of_image(world, copy).now;
    assert!(!foreseen.why.is_empty());
    (foreseen.step, foreseen.outcome)
}

/// The outcome that a class of failures has, as it is said.
fn said(explained: &ImageNow, class: FailureClass) -> Outcome {
    let mut after = explained.after.iter();
    after.find(|after| after.class == class).unwrap().outcome
}

/// What the pod of this world really gets if each of its tries fails like this.
fn really(mut world: World, pod: &GatedPod, class: FailureClass, copy: &CachedCopy) -> Outcome {
    let mut next: VecDeque<Action> = world.see(pod).into();
    loop {
        // Without anything to start from, it is tried until its time is up.
        let Some(action) = next.pop_front() else {
            assert!(world.up < Duration::from_secs(1000), "{class}: no release");
            next.extend(world.wait(Duration::from_secs(1)));
            continue;
        };
        let follows = match action {
            Action::Release { release, .. } => return release.containers["app"].outcome,
            Action::Try { attempt, ask, .. } => {
                let class = match ask {
                    Ask::Never(failure) => failure.class,
                    Ask::Always | Ask::IfAbsent => class,
                };
                world.ends(attempt, Some(class), copy.clone(), copy.clone())
            }
            Action::Inspect(_) => world.inspected(copy),
            Action::TakeAway { image, id } => {
                let taken = Ok(copy.digest().cloned());
                world.handle(Event::TakenAway { image, id, taken })
            }
            _ => Vec::new(),
        };
        next.extend(follows);
    }
}

#[test]
fn a_copy_that_the_name_was_pointed_back_to_is_explained_as_such() {
    let (world, back) = rolled_back();
    let copy = of_image(&world, &usable("1")).copy;
    assert_eq!((copy.confirmed, copy.rolled_back), (None, Some(back)));
    assert_eq!(copy.tag.map(|tag| tag.digest), Some(digest("2")));
    let moved = of_image(&world, &usable("3")).copy;
    assert_eq!(moved.rolled_back, None);
}

#[test]
fn what_is_said_of_a_failure_is_what_a_pod_then_gets() {
    let copies = [
        usable("1"),
        usable("2"),
        CachedCopy::Absent,
        CachedCopy::Unusable { why: "w".into() },
        CachedCopy::Unknown { why: "w".into() },
    ];
    let strict = Settings {
        max_age: Some(Duration::from_secs(10)),
        fallback_on: Some([FailureClass::Network, FailureClass::Unauthorized].into()),
        ..Settings::default()
    };
    let secret = Identity {
        namespace: "default".into(),
        service_account: "default".into(),
        pull_secrets: vec!["s".into()],
    };
    let mut outcomes = BTreeSet::new();
    for verifies in [false, true] {
        for (settings, identity) in [
            (Settings::default(), Identity::default()),
            (strict.clone(), secret.clone()),
            (Settings::default(), secret.clone()),
        ] {
            for (copy, private) in copies.iter().flat_map(|c| [(c, false), (c, true)]) {
                let world = || {
                    let mut world = World::new();
                    let confirmed = Some(confirmation("1"));
                    world.learn(&[written_down(image(), confirmed, private)]);
                    world.handle(Event::KubeletVerifies(verifies));
                    world.handle(Event::Well(true));
                    world
                };
                let mut pod = held("a", &world());
                pod.settings = settings.clone();
                pod.identity = identity.clone();
                // Of a pod that is known and waits for nothing more.
                let mut asked = world();
                let mut known = pod.clone();
                known.gate = GateState::Open;
                asked.see(&known);
                let explained = explained(&asked, &about_pod(&pod), copy).unwrap();
                for class in FailureClass::ALL {
                    let said = said(&explained.images[0], class);
                    let really = really(world(), &pod, class, copy);
                    assert_eq!(
                        said, really,
                        "{class} {copy:?} {private} {verifies} {pod:?}"
                    );
                    outcomes.insert(said);
                }
            }
        }
    }
    let all = [
        Outcome::Fallback,
        Outcome::HandedOver,
        Outcome::Unavailable,
        Outcome::Refused,
    ];
    assert_eq!(outcomes, all.into());
}

#[test]
fn what_comes_first_is_what_the_planner_then_does() {
    // A registry that nothing is known of is asked.
    let mut world = World::new();
    world.handle(Event::KubeletVerifies(true));
    assert_eq!(step(&world, &usable("1")), (Step::Ask, None));
    assert_eq!(step(&world, &CachedCopy::Absent), (Step::Ask, None));
    // Its try stands still: who comes has it begun again once, and then gets the copy.
    let attempt = the_try(&world.see(&held("a", &world)));
    assert_eq!(step(&world, &usable("1")), (Step::Ask, None));
    world.wait(Duration::from_secs(5));
    world.stalls(&image(), attempt, Flow::default());
    world.inspected(&usable("1"));
    assert_eq!(step(&world, &usable("1")).0, Step::PassedOver);
    let explained = of_image(&world, &usable("1"));
    assert!(explained.pull.unwrap().stands_still);
    // It ends: the registry is not asked for a moment.
    world.ends(
        attempt,
        Some(FailureClass::Timeout),
        usable("1"),
        usable("1"),
    );
    let not_asked = (Step::NotAsked, Some(Outcome::Fallback));
    assert_eq!(step(&world, &usable("1")), not_asked);
    let open = of_image(&world, &usable("1")).registry.open.unwrap();
    assert_eq!(open.failure.class, FailureClass::Timeout);
    assert!(open.failed <= world.now().wall && open.probe > world.now().wall);
    // Without a copy there is nothing to lose.
    assert_eq!(step(&world, &CachedCopy::Absent), (Step::Ask, None));
    let never = world.see(&held("b", &world));
    let never = never.iter().any(|action| {
        matches!(
            action,
            Action::Try {
                ask: Ask::Never(_),
                ..
            }
        )
    });
    assert!(never);
}

#[test]
fn a_pod_that_comes_later_finds_out_whether_the_registry_is_back() {
    let mut world = World::new();
    world.handle(Event::KubeletVerifies(true));
    let attempt = the_try(&world.see(&held("a", &world)));
    world.wait(Duration::from_secs(5));
    world.ends(
        attempt,
        Some(FailureClass::Timeout),
        usable("1"),
        usable("1"),
    );
    world.up += Duration::from_secs(2);
    assert_eq!(step(&world, &usable("1")), (Step::Probe, None));
    let asks = world.see(&held("b", &world));
    let asks = asks.iter().any(|action| {
        matches!(
            action,
            Action::Try {
                ask: Ask::Always,
                ..
            }
        )
    });
    assert!(asks);
}

#[test]
fn what_the_registry_has_just_said_is_not_asked_again() {
    let mut world = World::new();
    world.planner.rules.freshness = Duration::from_mins(1);
    let attempt = the_try(&world.see(&held("a", &world)));
    world.ends(attempt, None, usable("1"), usable("1"));
    let look = (Step::Look, Some(Outcome::Unchanged));
    assert_eq!(step(&world, &usable("1")), look);
    // Somebody has moved the name.
    assert_eq!(step(&world, &usable("2")), (Step::Ask, None));
    world.up += Duration::from_mins(2);
    assert_eq!(step(&world, &usable("1")), (Step::Ask, None));
}

#[test]
fn a_pod_without_a_gate_is_said_to_start_at_once() {
    let mut world = World::new();
    let mut pod = pod("a", &world);
    pod.gate = GateState::NotWanted;
    world.see(&pod);
    let explained = explained(&world, &about_pod(&pod), &usable("1")).unwrap();
    let foreseen = &explained.images[0].now;
    assert_eq!(foreseen.step, Step::NotHeld);
    assert_eq!(foreseen.outcome, Some(Outcome::NotHeld));
}

#[test]
fn a_pod_that_is_not_known_has_no_answer() {
    let world = World::new();
    let subject = about_pod(&held("a", &world));
    assert_eq!(world.planner.images_of(&subject), None);
    let found = BTreeMap::new();
    let now = world.now();
    assert_eq!(world.planner.explain(now, &subject, &found, KEEP), None);
}

#[test]
fn an_image_is_known_by_its_copy_its_tries_or_its_pods() {
    let mut world = World::new();
    assert!(!of_image(&world, &CachedCopy::Absent).is_known());
    assert!(of_image(&world, &usable("1")).is_known());
    let why = "containerd does not answer".to_owned();
    assert!(of_image(&world, &CachedCopy::Unknown { why }).is_known());
    world.see(&held("a", &world));
    assert!(of_image(&world, &CachedCopy::Absent).is_known());
}

#[test]
fn a_name_that_is_away_is_said_to_be_the_kubelets_and_the_copy_to_be_kept() {
    let mut world = World::new();
    world.handle(Event::KubeletVerifies(true));
    world.handle(Event::Well(true));
    let attempt = the_try(&world.see(&held("a", &world)));
    let refused = Some(FailureClass::Unauthorized);
    let actions = world.ends(attempt, refused, usable("1"), usable("1"));
    let [Action::TakeAway { id, image }] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    let (id, image) = (*id, image.clone());
    let taken = Ok(Some(digest("1")));
    world.handle(Event::TakenAway { image, id, taken });
    let explained = of_image(&world, &CachedCopy::Absent);
    assert_eq!(explained.now.step, Step::Kubelet);
    assert_eq!(explained.copy.state, CopyState::Aside);
    assert_eq!(explained.copy.digest, Some(digest("1")));
    assert!(explained.pull.unwrap().by_kubelet_for.is_some());
    assert!(explained.access.needs_credentials);
    assert_eq!(explained.access.judge, Judge::Kubelet);
}

#[test]
fn who_waits_and_who_runs_is_listed_and_nothing_changes() {
    let mut world = World::new();
    let mut runs = held("runs", &world);
    let attempt = the_try(&world.see(&runs));
    let actions = world.ends(attempt, None, usable("1"), usable("1"));
    world.sent(&actions, Written::Done);
    runs.gate = GateState::Open;
    let started = Start::Started {
        digest: Some(digest("1")),
        since: Some(world.now().wall),
        again: false,
    };
    runs.starts = [("app".to_owned(), started)].into();
    world.see(&runs);
    world.up += Duration::from_secs(10);
    world.see(&held("waits", &world));
    world.up += Duration::from_secs(1);
    let before = format!("{:?}", world.planner);
    let explained = of_image(&world, &usable("1"));
    assert_eq!(format!("{:?}", world.planner), before);
    let users = explained.users.iter();
    let users: Vec<_> = users
        .map(|user| (user.pod.as_str(), user.state, user.outcome))
        .collect();
    assert_eq!(
        users,
        [
            ("waits", UserState::Waits, None),
            ("runs", UserState::Runs, Some(Outcome::Unchanged))
        ]
    );
    let waits = explained.users[0].since.unwrap();
    assert_eq!(waits, world.now().wall - Duration::from_secs(1));
    assert_eq!(explained.users[1].digest, Some(digest("1")));
    assert_eq!(
        explained.copy.confirmed,
        Some(wall(Duration::from_secs(100)))
    );
    assert!(explained.access.everybodys);
    assert_eq!(
        explained.tries.len(),
        1,
        "without the index, the last one is known"
    );
    assert!(explained.pull.is_some());
}

#[test]
fn the_rules_are_those_of_the_pod_and_its_namespace() {
    let mut world = World::new();
    let config = "registries: {reg.example: {stall: 9s}}\nnamespaces: {default: {try: 7s}}";
    let config = Config::parse(config).unwrap();
    world.handle(Event::Configured(config));
    let rule = |rules: &[RuleInForce], key: &str| {
        let rule = rules.iter().find(|rule| rule.key == key).unwrap();
        (rule.value.clone(), rule.from.clone())
    };
    let in_force = |world: &World, subject: &Subject| {
        let explained = explained(world, subject, &usable("1")).unwrap();
        explained.images[0].rules.clone()
    };
    let of_image = in_force(&world, &about(&image()));
    let [flag, section] = [("30s", "--try"), ("9s", "registries[reg.example]")]
        .map(|(value, from)| (value.to_owned(), from.to_owned()));
    assert_eq!(rule(&of_image, "try"), flag);
    assert_eq!(rule(&of_image, "stall"), section);
    assert_eq!(rule(&of_image, "keep"), ("1d".into(), "--keep-for".into()));
    let in_namespace = Subject::Image {
        image: image(),
        namespace: Some("default".to_owned()),
    };
    let of_namespace = in_force(&world, &in_namespace);
    assert_eq!(rule(&of_namespace, "try").1, "namespaces[default]");
    let mut pod = held("a", &world);
    pod.settings.timeout = Some(Duration::from_secs(3));
    world.see(&pod);
    let of_pod = in_force(&world, &about_pod(&pod));
    let own = (
        "3s".to_owned(),
        "the pod's trylatest.dev/timeout".to_owned(),
    );
    assert_eq!(rule(&of_pod, "try"), own);
}
