//! Registries that fail, and what is asked of them meanwhile.

use super::*;

/// A node whose kubelet looks after who may have which copy.
fn with_records() -> World {
    let mut world = World::new();
    world.handle(Event::KubeletVerifies(true));
    world
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// A pod of this image comes, and its gate runs: what follows.
fn comes(world: &mut World, image: &str) -> Vec<Action> {
    let mut pod = of(&name(image), world);
    pod.id.uid = format!("uid-{}", world.actions.len());
    world.see(&pod)
}

/// The one try that these actions begin: its image, its name, and whether it asks.
fn tried(actions: &[Action]) -> (ImageName, u64, Ask) {
    let mut tries = actions.iter().filter_map(|action| match action {
        Action::Try {
            image,
            attempt,
            ask,
            ..
        } => Some((image.clone(), *attempt, ask.clone())),
        _ => None,
    });
    let first = tries.next();
    assert!(tries.next().is_none(), "{actions:?}");
    first.unwrap_or_else(|| panic!("no try: {actions:?}"))
}

fn ends(
    world: &mut World,
    attempt: (ImageName, u64, Ask),
    failure: Option<Failure>,
) -> Vec<Action> {
    let (image, attempt, ask) = attempt;
    let failure = match ask {
        Ask::Never(failure) => Some(failure),
        _ => failure,
    };
    let (before, after) = (usable("1"), usable("1"));
    let actions = world.handle(ended(image, attempt, failure, &before, after));
    world.sent(&actions, Written::Done);
    actions
}

/// A try that is not to ask the registry ends, and there is no copy.
fn finds_no_copy(world: &mut World, never: (ImageName, u64, Ask)) -> Vec<Action> {
    let (image, attempt, ask) = never;
    let Ask::Never(failure) = ask else {
        panic!("{ask:?}");
    };
    let absent = CachedCopy::Absent;
    let end = ended(image, attempt, Some(failure), &absent, absent.clone());
    world.handle(end)
}

fn failing(class: FailureClass) -> Failure {
    Failure::new(class, "why")
}

/// A first pod has found the registry silent.
fn silent() -> World {
    let mut world = with_records();
    let attempt = tried(&comes(&mut world, "reg.example/first"));
    world.wait(Duration::from_secs(5));
    ends(&mut world, attempt, Some(failing(FailureClass::Timeout)));
    assert_eq!(world.planner.open_circuits().count(), 1);
    world
}

/// A pod that comes is not tried, and starts from its copy.
fn falls_back_at_once(world: &mut World, image: &str) {
    let attempt = tried(&comes(world, image));
    assert!(matches!(attempt.2, Ask::Never(_)), "{attempt:?}");
    let actions = ends(world, attempt, None);
    let releases: Vec<Action> = actions
        .iter()
        .filter(|action| matches!(action, Action::Release { .. }))
        .cloned()
        .collect();
    assert_eq!(outcome(&releases), Outcome::Fallback);
}

#[test]
fn while_a_registry_is_silent_pods_do_not_wait_for_it() {
    let mut world = silent();
    falls_back_at_once(&mut world, "reg.example/second");
    falls_back_at_once(&mut world, "reg.example/first");
    // Another registry is none of its business.
    let (_, _, ask) = tried(&comes(&mut world, "other.example/app"));
    assert_eq!(ask, Ask::Always);
}

#[test]
fn a_pod_that_comes_later_probes_and_waits_for_that_until_its_gate_runs() {
    let mut world = silent();
    world.wait(Duration::from_secs(2));
    let mut pending = of(&name("reg.example/second"), &world);
    pending.gate = GateState::Pending;
    let (_, _, ask) = tried(&world.see(&pending));
    assert_eq!(ask, Ask::Always);
    // One at a time.
    falls_back_at_once(&mut world, "reg.example/third");
    assert_eq!(world.wait(Duration::from_millis(500)), []);
    let running = GatedPod {
        gate: GateState::Running {
            since: world.now().wall,
        },
        ..pending
    };
    assert_eq!(
        world.see(&running),
        [Action::Inspect(name("reg.example/second"))]
    );
    let looked = Event::Inspected(name("reg.example/second"), usable("1"));
    let actions = world.handle(looked);
    assert_eq!(outcome(&actions), Outcome::Fallback);
    let said = the_release(&actions).containers["app"].failure.clone();
    assert_eq!(
        said.unwrap().to_string(),
        "timeout: the registry, which failed 2s ago, has not answered yet"
    );
}

#[test]
fn an_answer_closes_the_circuit_and_what_fell_back_is_tried_again() {
    let mut world = silent();
    falls_back_at_once(&mut world, "reg.example/second");
    world.wait(Duration::from_secs(2));
    let third = tried(&comes(&mut world, "reg.example/third"));
    assert_eq!(third.2, Ask::Always);
    let actions = ends(&mut world, third, Some(failing(FailureClass::NotFound)));
    assert_eq!(world.planner.open_circuits().count(), 0);
    let again: Vec<&ImageName> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Try { image, ask, .. } if *ask == Ask::Always => Some(image),
            _ => None,
        })
        .collect();
    assert_eq!(
        again,
        [&name("reg.example/first"), &name("reg.example/second")]
    );
}

#[test]
fn one_image_that_fails_opens_nothing() {
    for class in [
        FailureClass::ServerError,
        FailureClass::Network,
        FailureClass::NotFound,
        FailureClass::Invalid,
        FailureClass::Unauthorized,
    ] {
        let mut world = with_records();
        for _ in 0..5 {
            let attempt = tried(&comes(&mut world, "reg.example/first"));
            assert_eq!(attempt.2, Ask::Always, "{class}");
            let why = Some(failing(class));
            ends(&mut world, attempt, why);
            world.planner.handle(world.now(), Event::Listed(Vec::new()));
            world.wait(Duration::from_secs(3));
        }
        assert_eq!(world.planner.open_circuits().count(), 0, "{class}");
    }
}

#[test]
fn two_images_that_fail_at_once_open_the_circuit_unless_one_was_answered_between() {
    for (answered, open) in [(false, 1), (true, 0)] {
        let mut world = with_records();
        let attempt = tried(&comes(&mut world, "reg.example/first"));
        ends(
            &mut world,
            attempt,
            Some(failing(FailureClass::ServerError)),
        );
        if answered {
            let attempt = tried(&comes(&mut world, "reg.example/healthy"));
            ends(&mut world, attempt, None);
        }
        let attempt = tried(&comes(&mut world, "reg.example/second"));
        assert_eq!(attempt.2, Ask::Always);
        ends(&mut world, attempt, Some(failing(FailureClass::Network)));
        assert_eq!(world.planner.open_circuits().count(), open);
    }
}

#[test]
fn after_429_nobody_asks_before_it_is_time() {
    for (message, pause) in [
        ("429 Too Many Requests", 59),
        (
            "toomanyrequests: retry-after: 1m5.5s, allowed: 44000/minute",
            64,
        ),
        ("Retry-After: 90", 89),
    ] {
        let mut world = with_records();
        let attempt = tried(&comes(&mut world, "reg.example/first"));
        let limited = Failure::new(FailureClass::RateLimited, message);
        ends(&mut world, attempt, Some(limited));
        let before = world.actions.len();
        for second in 0..pause {
            falls_back_at_once(&mut world, &format!("reg.example/app{}", second % 7));
            world.wait(Duration::from_secs(1));
        }
        let asks = |action: &Action| {
            matches!(
                action,
                Action::Try {
                    ask: Ask::Always,
                    ..
                }
            )
        };
        assert!(!world.actions[before..].iter().any(asks), "{message}");
        world.wait(Duration::from_secs(60));
        assert!(world.actions[before..].iter().any(asks), "{message}");
    }
}

#[test]
fn without_a_copy_or_for_a_strict_pod_the_registry_is_asked_all_the_same() {
    let mut world = silent();
    let never = tried(&comes(&mut world, "reg.example/absent"));
    let actions = finds_no_copy(&mut world, never);
    assert_eq!(tried(&actions).2, Ask::Always);
    let mut strict = of(&name("reg.example/strict"), &world);
    strict.settings.max_age = Some(Duration::from_secs(1));
    assert_eq!(tried(&world.see(&strict)).2, Ask::Always);
}

/// How many tries begin in ten minutes if each fails like this at once.
fn probes_in_ten_minutes(world: &mut World, failure: &Failure) -> usize {
    let mut probes = 0;
    for _ in 0..600 {
        for action in world.wait(Duration::from_secs(1)) {
            if let Action::Try { image, attempt, .. } = action {
                probes += 1;
                let failed = Some(failure.clone());
                ends(world, (image, attempt, Ask::Always), failed);
            }
        }
    }
    probes
}

#[test]
fn probes_become_rare() {
    let mut world = silent();
    let mut runs = of(&name("reg.example/first"), &world);
    runs.gate = GateState::Open;
    world.handle(Event::Listed(vec![runs]));
    let probes = probes_in_ten_minutes(&mut world, &failing(FailureClass::Network));
    assert!((18..30).contains(&probes), "{probes}");
}

/// A registry that counts requests may ask for milliseconds, each time: all nodes together must not keep it limited.
#[test]
fn probes_become_rare_where_the_registry_asks_for_next_to_nothing() {
    let said = "toomanyrequests: retry-after: 1.16676ms, allowed: 44000/minute";
    let limited = Failure::new(FailureClass::RateLimited, said);
    let mut world = with_records();
    let mut runs = of(&name("reg.example/first"), &world);
    runs.gate = GateState::Open;
    world.handle(Event::Listed(vec![runs]));
    let attempt = tried(&comes(&mut world, "reg.example/second"));
    ends(&mut world, attempt, Some(limited.clone()));
    let probes = probes_in_ten_minutes(&mut world, &limited);
    assert!((15..30).contains(&probes), "{probes}");
}

#[test]
fn an_agent_that_begins_again_recalls_what_had_just_failed() {
    for (ago, open) in [(30, 1), (90, 0)] {
        let mut record = written_down(name("reg.example/app"), None, false);
        let ended = wall(Duration::from_secs(100 - ago));
        record.tries = vec![Try {
            image: record.image.clone(),
            started: ended - Duration::from_secs(5),
            duration: Duration::from_secs(5),
            result: crate::record::TryResult::Failed(Failure::new(FailureClass::Timeout, "why")),
            digest: None,
            size_bytes: None,
            copy_unknown: false,
            pulled_for: None,
            refused: false,
            by_hand: false,
        }];
        let mut world = World::new();
        world.planner = Planner::new("node", rules(), &[record]);
        let now = Now {
            wall: world.now().wall,
            up: Duration::ZERO,
        };
        world.planner.handle(now, Event::KubeletVerifies(true));
        assert_eq!(world.planner.open_circuits().count(), open, "{ago}");
        if open > 0 {
            let open = world.planner.circuits.of(&name("reg.example/app")).unwrap();
            let said = open.not_asked(world.now()).message;
            assert_eq!(
                said,
                "the registry was not asked, because it failed 30s ago"
            );
        }
    }
}

#[test]
fn a_name_that_is_away_comes_back_when_the_registry_fails() {
    let mut world = with_records();
    world.handle(Event::Well(true));
    let attempt = tried(&comes(&mut world, "reg.example/private"));
    let private = attempt.0.clone();
    let actions = ends(
        &mut world,
        attempt,
        Some(failing(FailureClass::Unauthorized)),
    );
    let [Action::TakeAway { id, .. }] = actions[..] else {
        panic!("{actions:?}");
    };
    let taken = Ok(Some(digest("1")));
    let image = private.clone();
    let actions = world.handle(Event::TakenAway { image, id, taken });
    assert_eq!(outcome(&actions), Outcome::HandedOver);
    world.sent(&actions, Written::Done);
    // An init container of its own runs for long.
    world.wait(Duration::from_secs(20));
    let attempt = tried(&comes(&mut world, "reg.example/other"));
    world.wait(Duration::from_secs(5));
    let actions = ends(&mut world, attempt, Some(failing(FailureClass::Timeout)));
    let image = private;
    assert!(
        actions.contains(&Action::GiveBack { image, id }),
        "{actions:?}"
    );
}

#[test]
fn silence_is_remembered_when_nothing_comes_and_once() {
    let mut world = with_records();
    let (image, attempt, _) = tried(&comes(&mut world, "reg.example/first"));
    world.wait(Duration::from_secs(5));
    world.stalls(&image, attempt, Flow::default());
    world.stalls(&image, attempt, Flow::default());
    let result = |record: &Try| record.result.class();
    let records: Vec<_> = world.records.iter().map(result).collect();
    assert_eq!(records, [Some(FailureClass::Timeout)]);
    assert_eq!(world.planner.open_circuits().count(), 1);
    world.wait(Duration::from_secs(60));
    ends(
        &mut world,
        (image, attempt, Ask::Always),
        Some(failing(FailureClass::Timeout)),
    );
    assert_eq!(world.records.len(), 1);
}

/// Requests are containerd's: one for a try of a tag that has not moved, up to six for one that is answered 429.
fn asking(actions: &[Action]) -> usize {
    let asks = |action: &&Action| {
        matches!(
            action,
            Action::Try {
                ask: Ask::Always,
                ..
            }
        )
    };
    actions.iter().filter(asks).count()
}

/// Lets every try that these actions begin end at once, and those that follow from that.
fn let_end(world: &mut World, mut actions: Vec<Action>, failure: Option<&Failure>) {
    while let Some(action) = actions.pop() {
        if let Action::Try {
            image,
            attempt,
            ask,
            ..
        } = action
        {
            actions.extend(ends(world, (image, attempt, ask), failure.cloned()));
        }
    }
}

#[test]
fn a_burst_of_200_pods_of_20_images_costs_one_try_for_each_if_answers_may_be_10s_old() {
    let mut world = with_records();
    world.planner.rules.freshness = Duration::from_secs(10);
    for n in 0..200 {
        let actions = comes(&mut world, &format!("reg.example/app{}", n % 20));
        let_end(&mut world, actions, None);
        let actions = world.wait(Duration::from_millis(50));
        let_end(&mut world, actions, None);
    }
    assert_eq!(asking(&world.actions), 20);
}

#[test]
fn a_minute_of_429_costs_500_pods_of_one_image_one_try() {
    let mut world = with_records();
    let limited = failing(FailureClass::RateLimited);
    for _ in 0..500 {
        let actions = comes(&mut world, "reg.example/app");
        let_end(&mut world, actions, Some(&limited));
        let actions = world.wait(Duration::from_millis(120));
        let_end(&mut world, actions, Some(&limited));
    }
    assert_eq!(asking(&world.actions), 1);
}

/// A day in which the registry is away, and in which pods come and go.
#[test]
fn a_day_of_outage_leaves_nothing_behind() {
    let mut world = with_records();
    let silence = failing(FailureClass::Timeout);
    for n in 0..10_000 {
        let actions = comes(&mut world, &format!("reg.example/app{}", n % 50));
        let_end(&mut world, actions, Some(&silence));
        let actions = world.wait(Duration::from_millis(8640));
        let_end(&mut world, actions, Some(&silence));
        world.handle(Event::Listed(Vec::new()));
        world.actions.clear();
        world.records.clear();
    }
    assert!(world.planner.pods.is_empty());
    assert_eq!(world.planner.images.len(), 50);
    let idle = |image: &Image| image.attempt.is_none() && image.handover.is_none();
    assert!(world.planner.images.values().all(idle));
    assert_eq!(world.planner.open_circuits().count(), 1);
    world.handle(Event::Pruned(BTreeSet::new()));
    assert_eq!(world.planner.known_images(), 0);
    assert_eq!(world.planner.open_circuits().count(), 0);
}

fn progress(world: &mut World, image: &ImageName, attempt: u64, bytes: u64) -> Vec<Action> {
    world.handle(Event::Moved(Moved {
        image: image.clone(),
        attempt,
        flow: Flow {
            bytes,
            total_bytes: Some(8192),
            flows: true,
            ..Flow::default()
        },
    }))
}

#[test]
fn a_download_that_began_before_does_not_end_a_429_and_one_that_stands_still_is_no_answer() {
    let mut world = with_records();
    let (image, attempt, _) = tried(&comes(&mut world, "reg.example/big"));
    progress(&mut world, &image, attempt, 10);
    let second = tried(&comes(&mut world, "reg.example/second"));
    ends(&mut world, second, Some(failing(FailureClass::RateLimited)));
    progress(&mut world, &image, attempt, 20);
    assert_eq!(world.planner.open_circuits().count(), 1);
    // Silence: what came before says nothing of now.
    let mut world = with_records();
    let (image, attempt, _) = tried(&comes(&mut world, "reg.example/big"));
    progress(&mut world, &image, attempt, 10);
    world.wait(Duration::from_millis(100));
    let silent = tried(&comes(&mut world, "reg.example/silent"));
    for _ in 0..5 {
        world.wait(Duration::from_secs(1));
        progress(&mut world, &image, attempt, 10);
    }
    ends(&mut world, silent, Some(failing(FailureClass::Timeout)));
    assert_eq!(world.planner.open_circuits().count(), 1);
}

/// It may be another tenant's, and nobody else looks after that.
#[test]
fn where_the_kubelet_keeps_no_records_an_image_nobody_knows_waits_for_the_registrys_word() {
    let mut world = World::new();
    let limited = tried(&comes(&mut world, "reg.example/mine"));
    ends(
        &mut world,
        limited,
        Some(failing(FailureClass::RateLimited)),
    );
    assert_eq!(world.planner.open_circuits().count(), 1);
    let theirs = tried(&comes(&mut world, "reg.example/theirs"));
    assert_eq!(theirs.2, Ask::Always);
    let waited = world.wait(Duration::from_millis(1900));
    assert_eq!(waited, [], "it is waited for");
    let actions = ends(
        &mut world,
        theirs,
        Some(failing(FailureClass::Unauthorized)),
    );
    assert_eq!(outcome(&actions), Outcome::Refused);
}

#[test]
fn without_a_copy_the_next_try_follows_at_once() {
    let mut world = silent();
    let never = tried(&comes(&mut world, "reg.example/absent"));
    world.wait(Duration::from_millis(900));
    let actions = finds_no_copy(&mut world, never);
    assert_eq!(tried(&actions).2, Ask::Always);
}

#[test]
fn a_probe_that_is_answered_is_waited_for_like_any_try() {
    let mut world = silent();
    world.wait(Duration::from_secs(2));
    let (image, attempt, ask) = tried(&comes(&mut world, "reg.example/second"));
    assert_eq!(ask, Ask::Always);
    world.wait(Duration::from_millis(50));
    progress(&mut world, &image, attempt, 10);
    let actions = world.wait(Duration::from_secs(4));
    let looks = |action: &Action| matches!(action, Action::Inspect(name) if *name == image);
    assert!(!actions.iter().any(looks), "{actions:?}");
}

#[test]
fn a_burst_of_failures_counts_once() {
    let mut world = with_records();
    let tries: Vec<_> = (0..4)
        .map(|n| tried(&comes(&mut world, &format!("reg.example/app{n}"))))
        .collect();
    for attempt in tries {
        ends(
            &mut world,
            attempt,
            Some(failing(FailureClass::RateLimited)),
        );
    }
    world.actions.clear();
    world.wait(Duration::from_secs(100));
    assert_eq!(asking(&world.actions), 1);
}

#[test]
fn the_first_image_that_failed_is_tried_again_too() {
    let mut world = with_records();
    for name in ["reg.example/first", "reg.example/second"] {
        let attempt = tried(&comes(&mut world, name));
        ends(
            &mut world,
            attempt,
            Some(failing(FailureClass::ServerError)),
        );
    }
    world.wait(Duration::from_secs(2));
    let third = tried(&comes(&mut world, "reg.example/third"));
    let actions = ends(&mut world, third, None);
    assert_eq!(asking(&actions), 2, "{actions:?}");
}

/// The address is quoted as well, and anybody can choose it.
#[test]
fn a_registrys_pause_is_not_read_from_an_address() {
    for address in [
        "https://reg.example/v2/app/manifests/retry-after3600: 429 Too Many Requests",
        "https://reg.example/v2/retry-after/manifests/1: 429 Too Many Requests",
        "https://reg.example/v2/app/manifests/x-retry-after: 3600",
    ] {
        let mut world = with_records();
        let attempt = tried(&comes(&mut world, "reg.example/first"));
        let limited = Failure::new(FailureClass::RateLimited, address);
        ends(&mut world, attempt, Some(limited));
        world.actions.clear();
        world.wait(Duration::from_secs(100));
        assert_eq!(asking(&world.actions), 1, "{address}");
    }
}

#[test]
fn a_message_that_cannot_be_read_neither_opens_nor_closes() {
    let mut world = silent();
    world.wait(Duration::from_secs(2));
    let attempt = tried(&comes(&mut world, "reg.example/second"));
    ends(&mut world, attempt, Some(failing(FailureClass::Unknown)));
    assert_eq!(world.planner.open_circuits().count(), 1);
}

#[test]
fn pulls_that_hang_are_started_over_once_the_registry_answers_at_once() {
    for (took, cuts) in [(1, 1), (30, 0)] {
        let mut world = with_records();
        let (image, attempt, _) = tried(&comes(&mut world, "reg.example/hangs"));
        world.wait(Duration::from_secs(5));
        world.stalls(&image, attempt, Flow::default());
        world.handle(Event::Inspected(image.clone(), usable("1")));
        world.wait(Duration::from_secs(2));
        let probe = tried(&comes(&mut world, "reg.example/second"));
        assert_eq!(probe.2, Ask::Always);
        world.wait(Duration::from_secs(took));
        world.actions.clear();
        ends(&mut world, probe, None);
        let cut = Action::Cut {
            image,
            attempt,
            why: Why::RegistryIsBack,
        };
        let count = world
            .actions
            .iter()
            .filter(|action| **action == cut)
            .count();
        assert_eq!(count, cuts, "{took}");
    }
}

#[test]
fn a_few_pulls_that_hang_leave_other_images_to_probe_with() {
    let mut world = silent();
    let mut probes = 0;
    for n in 0..10 {
        world.wait(Duration::from_secs(2));
        let (image, attempt, ask) = tried(&comes(&mut world, &format!("reg.example/app{n}")));
        if ask == Ask::Always {
            probes += 1;
            world.wait(Duration::from_secs(5));
            world.stalls(&image, attempt, Flow::default());
        } else {
            ends(&mut world, (image, attempt, ask), None);
        }
    }
    assert!((2..=4).contains(&probes), "{probes}");
}

/// They need not have stalled for that: pods that come one right after the other would take all images.
#[test]
fn probes_that_are_not_answered_yet_leave_other_images_to_probe_with() {
    let mut world = silent();
    let asks = [0, 1, 2].map(|n| {
        world.wait(Duration::from_millis(1100));
        tried(&comes(&mut world, &format!("reg.example/app{n}"))).2
    });
    let probes = asks.iter().filter(|ask| **ask == Ask::Always).count();
    assert_eq!(probes, 2, "{asks:?}");
}

/// A pull-through proxy may need longer for one image than the stall deadline.
#[test]
fn a_pull_is_started_over_once_for_a_registry_that_answers_others() {
    let mut world = with_records();
    let (image, attempt, _) = tried(&comes(&mut world, "reg.example/slow"));
    let mut attempts = vec![attempt];
    for n in 0..3 {
        world.wait(Duration::from_secs(5));
        let attempt = *attempts.last().unwrap();
        world.stalls(&image, attempt, Flow::default());
        world.handle(Event::Inspected(image.clone(), usable("1")));
        world.wait(Duration::from_secs(2));
        let quick = tried(&comes(&mut world, &format!("reg.example/quick{n}")));
        let actions = ends(&mut world, quick, None);
        let cut =
            |action: &Action| matches!(action, Action::Cut { attempt: cut, .. } if *cut == attempt);
        if actions.iter().any(cut) {
            let end = (image.clone(), attempt, Ask::Always);
            let actions = ends(&mut world, end, Some(failing(FailureClass::Timeout)));
            attempts.push(tried(&actions).1);
        }
    }
    assert_eq!(attempts.len(), 2);
}

#[test]
fn a_strict_pod_is_not_served_by_a_try_that_asked_nobody() {
    let mut world = silent();
    let never = tried(&comes(&mut world, "reg.example/second"));
    assert!(matches!(never.2, Ask::Never(_)));
    let mut strict = of(&name("reg.example/second"), &world);
    strict.settings.max_age = Some(Duration::from_secs(1));
    assert_eq!(world.see(&strict), []);
    let actions = ends(&mut world, never, None);
    let refused = |action: &Action| {
        let Action::Release { release, .. } = action else {
            return false;
        };
        release.containers["app"].outcome == Outcome::Refused
    };
    assert!(!actions.iter().any(refused), "{actions:?}");
    let actions = [actions, world.wait(Duration::from_secs(1))].concat();
    assert_eq!(asking(&actions), 1, "{actions:?}");
}

/// What fell back is tried again, as after an answer to the agent.
#[test]
fn a_pull_by_hand_shows_that_the_registry_is_back() {
    let mut world = silent();
    falls_back_at_once(&mut world, "reg.example/second");
    let tried = Try {
        image: name("reg.example/by-hand"),
        started: world.now().wall,
        duration: Duration::ZERO,
        result: crate::record::TryResult::Unchanged,
        digest: Some(digest("1")),
        size_bytes: None,
        copy_unknown: false,
        pulled_for: None,
        refused: false,
        by_hand: true,
    };
    let actions = world.handle(Event::TriedByHand {
        tried: Box::new(tried),
        digests: BTreeSet::new(),
    });
    assert_eq!(world.planner.open_circuits().count(), 0);
    assert_eq!(asking(&actions), 2, "{actions:?}");
}

#[test]
fn nothing_shortens_the_pause_that_a_registry_asks_for() {
    let mut world = with_records();
    let attempt = tried(&comes(&mut world, "reg.example/first"));
    let limited = Failure::new(FailureClass::RateLimited, "retry-after: 10m");
    ends(&mut world, attempt, Some(limited));
    for (n, class) in [FailureClass::Timeout, FailureClass::NotFound]
        .into_iter()
        .enumerate()
    {
        world.wait(Duration::from_secs(5));
        let mut strict = of(&name(&format!("reg.example/strict{n}")), &world);
        strict.settings.max_age = Some(Duration::from_hours(1));
        let attempt = tried(&world.see(&strict));
        assert_eq!(attempt.2, Ask::Always);
        world.wait(Duration::from_secs(5));
        ends(&mut world, attempt, Some(failing(class)));
        world.handle(Event::Gone(strict.id.uid));
    }
    world.actions.clear();
    world.wait(Duration::from_mins(9));
    assert_eq!(asking(&world.actions), 0);
    world.wait(Duration::from_mins(1));
    let later = tried(&comes(&mut world, "reg.example/later"));
    assert_eq!(later.2, Ask::Always);
}

/// It knows images by their pods, and has tried none.
#[test]
fn an_agent_that_has_just_begun_probes_with_what_fell_back_before() {
    let mut world = silent();
    let records = world.records.clone();
    let mut runs = of(&name("reg.example/first"), &world);
    runs.gate = GateState::Open;
    let mut record = written_down(runs.containers[0].image.clone().unwrap(), None, false);
    record.tries = records;
    world.planner = Planner::new("node", rules(), &[record]);
    world.handle(Event::KubeletVerifies(true));
    assert_eq!(world.planner.open_circuits().count(), 1);
    world.handle(Event::Listed(vec![runs]));
    let actions = world.wait(Duration::from_secs(10));
    assert_eq!(asking(&actions), 1, "{actions:?}");
}

/// The pod that found the registry silent is gone.
#[test]
fn what_has_not_fallen_back_is_a_probe_if_nothing_else_is_used() {
    let mut world = with_records();
    let other = tried(&comes(&mut world, "reg.example/other"));
    ends(&mut world, other, None);
    world.wait(Duration::from_secs(1));
    let mut pod = of(&name("reg.example/first"), &world);
    pod.id.uid = "gone".into();
    let attempt = tried(&world.see(&pod));
    world.wait(Duration::from_secs(5));
    ends(&mut world, attempt, Some(failing(FailureClass::Timeout)));
    assert_eq!(world.planner.open_circuits().count(), 1);
    world.handle(Event::Gone(pod.id.uid));
    let probe = tried(&world.wait(Duration::from_secs(10)));
    assert_eq!(
        (&probe.0, &probe.2),
        (&name("reg.example/other"), &Ask::Always)
    );
    ends(&mut world, probe, None);
    assert_eq!(world.planner.open_circuits().count(), 0);
}
