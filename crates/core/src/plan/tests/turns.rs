//! Whose turn it is, and what is shared of a registry's silence.

use super::*;
use crate::plan::turns::TURN;

const STALL: Duration = Duration::from_secs(5);

/// A try that runs in the world below.
struct Running {
    image: ImageName,
    attempt: u64,
    until: Duration,
}

/// A node whose registries take so long for an answer, or never give one.
struct Node {
    world: World,
    running: Vec<Running>,
    most: usize,
    /// No copies are here.
    is_empty: bool,
    /// By pod, when it was released, and how.
    released: BTreeMap<String, (Duration, ContainerSaid)>,
}

type ContainerSaid = crate::release::ContainerRelease;

impl Node {
    fn new() -> Self {
        Self {
            world: World::new(),
            running: Vec::new(),
            most: 0,
            is_empty: false,
            released: BTreeMap::new(),
        }
    }

    /// One whose kubelet looks after who may have which copy.
    fn with_records() -> Self {
        let mut node = Self::new();
        node.world.handle(Event::KubeletVerifies(true));
        node
    }

    /// A pod of an image of its own.
    fn create(&mut self, name: &str, registry: &str, timeout: Option<Duration>) {
        self.create_of(name, format!("{registry}/{name}"), timeout);
    }

    fn create_of(&mut self, name: &str, image: String, timeout: Option<Duration>) {
        let mut pod = pod(name, &self.world);
        pod.containers[0].image = Ok(image.parse().unwrap());
        pod.containers[0].written = image;
        pod.settings.timeout = timeout;
        let actions = self.world.see(&pod);
        self.act(actions);
    }

    /// A pod of a name that the registry has given to anybody, and that cannot move.
    fn create_by_digest(&mut self, n: usize, registry: &str, timeout: Option<Duration>) {
        let digest = format!("sha256:{}", "a".repeat(64));
        let image = format!("{registry}/pinned{n}@{digest}");
        let confirmed = Some(confirmation(&digest));
        let record = written_down(image.parse().unwrap(), confirmed, false);
        self.world.learn(&[record]);
        self.create_of(&format!("pinned{n}"), image, timeout);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Try {
                    image,
                    attempt,
                    ask,
                    ..
                } => {
                    let took = match (&ask, image.registry()) {
                        (Ask::Never(_), _) => Duration::ZERO,
                        (_, "silent.example") => STALL,
                        (_, "slow.example") => Duration::from_secs(4),
                        _ => Duration::from_millis(400),
                    };
                    let until = self.world.up + took;
                    match ask {
                        Ask::Never(failure) => self.end(&image, attempt, Some(failure)),
                        Ask::IfAbsent => self.look(image, attempt),
                        Ask::Always => self.running.push(Running {
                            image,
                            attempt,
                            until,
                        }),
                    }
                }
                Action::Inspect(image) => {
                    let actions = self.world.handle(Event::Inspected(image, usable("1")));
                    self.act(actions);
                }
                Action::Release { pod, release, .. } => {
                    let said = release.containers["app"].clone();
                    let after = self.world.up;
                    self.released.insert(pod.name.clone(), (after, said));
                    let actions = self
                        .world
                        .handle(Event::Written(pod, release, Written::Done));
                    self.act(actions);
                }
                Action::Progress(..) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn look(&mut self, image: ImageName, attempt: u64) {
        let copy = if self.is_empty {
            CachedCopy::Absent
        } else {
            usable("1")
        };
        self.ended(ended(image, attempt, None, &copy.clone(), copy));
    }

    fn end(&mut self, image: &ImageName, attempt: u64, failure: Option<Failure>) {
        let after = usable(if failure.is_none() { "2" } else { "1" });
        self.ended(ended(image.clone(), attempt, failure, &usable("1"), after));
    }

    fn ended(&mut self, ended: Event) {
        let actions = self.world.handle(ended);
        self.act(actions);
    }

    /// Lets everything end.
    fn run(&mut self) {
        loop {
            let busy = self.running.iter().filter(|r| self.in_turn(r)).count();
            self.most = self.most.max(busy);
            let next = self.running.iter().map(|running| running.until).min();
            let Some(next) = next else {
                assert!(!self.world.waits(), "nothing runs, and pods wait");
                return;
            };
            let wakeup = self.world.planner.next_wakeup(self.world.now());
            let wakeup = wakeup.map_or(next, |after| self.world.up + after);
            if wakeup < next {
                let actions = self.world.wait(wakeup.saturating_sub(self.world.up));
                self.act(actions);
                continue;
            }
            let actions = self.world.wait(next.saturating_sub(self.world.up));
            self.act(actions);
            let over = self.running.iter().position(|r| r.until <= self.world.up);
            let Running { image, attempt, .. } = self.running.swap_remove(over.unwrap());
            let silent = image.registry() == "silent.example";
            let failure = Failure::new(FailureClass::Timeout, "nothing came for 5s");
            self.end(&image, attempt, silent.then_some(failure));
        }
    }

    fn in_turn(&self, running: &Running) -> bool {
        let started = self.world.planner.images[&running.image].attempt.as_ref();
        started.is_some_and(|attempt| self.world.up < attempt.started.up + TURN)
    }

    /// When the last of a registry's pods was released, after the beginning.
    fn last(&self, prefix: &str) -> Duration {
        let of = self
            .released
            .iter()
            .filter(|(name, _)| name.starts_with(prefix));
        let last = of.map(|(_, (at, _))| *at).max().unwrap();
        last.saturating_sub(Duration::from_secs(100))
    }

    fn outcomes(&self, prefix: &str) -> Vec<Outcome> {
        let of = self
            .released
            .iter()
            .filter(|(name, _)| name.starts_with(prefix));
        of.map(|(_, (_, said))| said.outcome).collect()
    }
}

#[test]
fn thirty_images_are_tried_a_few_at_a_time_and_each_is_asked_for() {
    let mut node = Node::new();
    for n in 0..30 {
        node.create(&format!("app{n}"), "reg.example", None);
    }
    node.run();
    assert!(node.most <= 4, "{} at once", node.most);
    assert_eq!(node.outcomes("app"), [Outcome::Fresh; 30]);
    assert_eq!(node.last("app"), Duration::from_millis(400) * 8);
}

#[test]
fn the_silence_of_a_registry_is_waited_out_once() {
    let mut node = Node::with_records();
    for n in 0..30 {
        node.create(&format!("app{n}"), "silent.example", None);
    }
    node.run();
    assert_eq!(node.outcomes("app"), [Outcome::Fallback; 30]);
    // Those that were asked for meanwhile have begun while turns were given back.
    assert!(node.last("app") < STALL * 2, "{:?}", node.last("app"));
    let said: Vec<String> = node
        .released
        .values()
        .map(|(_, said)| said.failure.as_ref().unwrap().to_string())
        .collect();
    let shared = said
        .iter()
        .filter(|said| said.contains("the registry was not asked, because it failed "));
    assert!(shared.count() >= 15, "{said:#?}");
    assert!(said.iter().all(|said| said.starts_with("timeout: ")));
}

#[test]
fn a_silent_registry_leaves_turns_to_a_healthy_one() {
    let mut node = Node::with_records();
    for n in 0..30 {
        node.create(&format!("silent{n}"), "silent.example", None);
    }
    for n in 0..8 {
        node.create(&format!("app{n}"), "reg.example", None);
    }
    node.run();
    assert_eq!(node.outcomes("app"), [Outcome::Fresh; 8]);
    assert!(node.last("app") <= TURN, "{:?}", node.last("app"));
    assert_eq!(node.outcomes("silent"), [Outcome::Fallback; 30]);
    assert!(node.last("silent") < STALL * 2);
}

#[test]
fn a_registry_that_answers_slowly_is_not_silent() {
    let mut node = Node::new();
    for n in 0..30 {
        node.create(&format!("app{n}"), "slow.example", None);
    }
    node.run();
    assert_eq!(node.outcomes("app"), [Outcome::Fresh; 30]);
    assert!(node.last("app") < TRY, "{:?}", node.last("app"));
}

#[test]
fn silence_is_not_shared_where_anybody_was_answered_or_the_failure_came_at_once() {
    for (answers, took, shared) in [
        (false, STALL, true),
        (true, STALL, false),
        (false, TURN / 2, false),
    ] {
        let mut node = Node::with_records();
        for n in 0..30 {
            node.create(&format!("app{n}"), "reg.example", None);
        }
        let running = std::mem::take(&mut node.running);
        node.world.wait(took / 2);
        if answers {
            let first = &running[0];
            node.end(&first.image.clone(), first.attempt, None);
        }
        node.world.wait(took / 2);
        let before = node.released.len();
        let failure = Failure::new(FailureClass::Network, "unreachable");
        let second = &running[1];
        node.end(&second.image, second.attempt, Some(failure));
        let asked_nobody = node.released.len() - before - 1;
        assert_eq!(asked_nobody > 0, shared, "{answers} {took:?}");
    }
}

#[test]
fn a_pod_whose_turn_has_not_come_blames_nobody_else() {
    let mut node = Node::new();
    for n in 0..5 {
        let image = format!("reg.example/app{n}").parse().unwrap();
        let record = written_down(image, Some(confirmation("1")), false);
        node.world.learn(&[record]);
    }
    for n in 0..5 {
        let timeout = (n == 4).then_some(Duration::from_secs(1));
        node.create(&format!("app{n}"), "reg.example", timeout);
    }
    assert_eq!(node.running.len(), 4);
    let actions = node.world.wait(Duration::from_secs(1));
    node.act(actions);
    let (_, said) = &node.released["app4"];
    assert_eq!(said.outcome, Outcome::Fallback);
    let failure = said.failure.as_ref().unwrap();
    assert_eq!(failure.class, FailureClass::Local);
    assert!(
        failure.message.contains("waiting for its turn"),
        "{failure}"
    );
}

/// It may be private, and its turn is soon.
#[test]
fn a_pod_whose_image_was_never_given_to_anybody_waits_for_its_turn() {
    let mut node = Node::new();
    for n in 0..5 {
        let timeout = (n == 4).then_some(Duration::from_millis(100));
        node.create(&format!("app{n}"), "reg.example", timeout);
    }
    let actions = node.world.wait(Duration::from_millis(200));
    node.act(actions);
    assert!(node.released.is_empty());
    node.run();
    assert_eq!(node.outcomes("app"), [Outcome::Fresh; 5]);
}

#[test]
fn a_newcomer_does_not_hide_that_its_image_waits_for_its_turn() {
    let mut node = Node::new();
    for n in 0..5 {
        node.create(&format!("app{n}"), "reg.example", None);
    }
    let hasty = Some(Duration::from_millis(100));
    node.create_of("hasty", "reg.example/app4".to_owned(), hasty);
    let actions = node.world.wait(Duration::from_millis(200));
    node.act(actions);
    assert!(node.released.is_empty(), "{:?}", node.released);
    node.run();
    assert_eq!(node.outcomes("hasty"), [Outcome::Fresh]);
}

/// Nothing has to be asked for them, whatever the registry does.
#[test]
fn names_by_digest_that_are_here_wait_for_nobody() {
    let mut node = Node::new();
    for n in 0..30 {
        node.create(&format!("silent{n}"), "silent.example", None);
    }
    for n in 0..30 {
        node.create_by_digest(n, "silent.example", Some(Duration::from_millis(1)));
    }
    node.run();
    assert_eq!(node.outcomes("pinned"), [Outcome::Unchanged; 30]);
    assert_eq!(node.last("pinned"), Duration::ZERO);
}

#[test]
fn names_by_digest_that_are_not_here_take_turns() {
    let mut node = Node::new();
    node.is_empty = true;
    for n in 0..30 {
        node.create_by_digest(n, "reg.example", None);
    }
    assert_eq!(node.running.len(), 4);
    node.run();
    assert_eq!(node.outcomes("pinned"), [Outcome::Fresh; 30]);
    assert_eq!(node.last("pinned"), Duration::from_millis(400) * 8);
}

#[test]
fn an_answer_that_is_young_enough_serves_later_pods() {
    let mut world = World::new();
    world.planner.rules.freshness = Duration::from_secs(60);
    let first = held("first", &world);
    let actions = world.see(&first);
    let attempt = the_try(&actions);
    let actions = world.ends(attempt, None, CachedCopy::Absent, usable("1"));
    world.sent(&actions, Written::Done);
    world.wait(Duration::from_secs(30));
    let second = held("second", &world);
    let actions = world.see(&second);
    let [Action::Try { ask, attempt, .. }] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!(*ask, Ask::IfAbsent);
    // Somebody has let the tag point elsewhere on the node.
    let actions = world.ends(*attempt, None, usable("2"), usable("2"));
    let [Action::Try { ask, attempt, .. }] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!(*ask, Ask::Always);
    let actions = world.ends(*attempt, None, usable("2"), usable("1"));
    assert_eq!(outcome(&actions), Outcome::Fresh);
    world.sent(&actions, Written::Done);
    world.wait(Duration::from_secs(5));
    let third = held("third", &world);
    let actions = world.see(&third);
    let [Action::Try { ask, attempt, .. }] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!(*ask, Ask::IfAbsent);
    let actions = world.ends(*attempt, None, usable("1"), usable("1"));
    assert_eq!(outcome(&actions), Outcome::Unchanged);
    world.sent(&actions, Written::Done);
    world.wait(Duration::from_secs(61));
    let fourth = held("fourth", &world);
    let actions = world.see(&fourth);
    assert!(matches!(
        actions.as_slice(),
        [Action::Try {
            ask: Ask::Always,
            ..
        }]
    ));
}
