use std::collections::BTreeMap;

use tokio::task::JoinSet;
use trylatest_containerd::fake::FakeContainerd;
use trylatest_core::disk::Amount;
use trylatest_core::image::ImageName;
use trylatest_core::keep::PROVEN_AFTER;
use trylatest_core::record::LocalCopy;

use super::*;
use crate::clock;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn image() -> ImageName {
    "reg.example/app:latest".parse().unwrap()
}

/// A pod uses what the name points to.
fn used(digest: &str) -> Vec<UsedImage> {
    vec![UsedImage {
        image: image(),
        current: Some(LocalCopy {
            digest: digest.parse().unwrap(),
            size_bytes: Some(MIB),
        }),
        public: true,
        runs: BTreeMap::new(),
    }]
}

struct World {
    node: FakeContainerd,
    used: watch::Sender<Option<Vec<UsedImage>>>,
    config: watch::Sender<Config>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    /// Ends with the world.
    _tasks: JoinSet<anyhow::Result<()>>,
}

impl World {
    /// A running task, on a node that holds `one`.
    fn start(limits: Limits) -> Self {
        let node = FakeContainerd::new();
        node.hold(&image(), "sha256:one", MIB);
        Self::on(node, limits)
    }

    fn on(node: FakeContainerd, limits: Limits) -> Self {
        let (sender, used) = watch::channel(None);
        let (config, configured) = watch::channel(Config::default());
        let metrics = Arc::new(Metrics::new("test").unwrap());
        let shelf = Shelf {
            runtime: Arc::new(node.clone()),
            metrics: Arc::clone(&metrics),
            clock: Clock::start(),
            limits,
            config: configured,
            disk: || {
                Some(Disk {
                    total: 100 * GIB,
                    free: 50 * GIB,
                    lacks_inodes: false,
                })
            },
            used,
        };
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(shelf.run(stop.clone()));
        Self {
            node,
            used: sender,
            config,
            metrics,
            stop,
            _tasks: tasks,
        }
    }

    fn uses(&self, used: Vec<UsedImage>) {
        self.used.send_replace(Some(used));
    }

    /// Time passes, which takes none.
    async fn later(&self) {
        sleep(DECIDE_EVERY).await;
    }

    async fn kept(&self) -> Vec<String> {
        let mut kept = self.node.kept_copies().await.unwrap();
        kept.sort_by_key(|copy| copy.since);
        kept.into_iter()
            .map(|copy| copy.digest.as_str().to_owned())
            .collect()
    }

    fn series(&self, name: &str) -> String {
        let text = self.metrics.text().unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap_or_else(|| panic!("{name}")).trim().to_owned()
    }
}

const LIMITS: Limits = Limits {
    time: Duration::from_hours(24),
    size: Amount::Percent(10),
    free: Amount::Percent(20),
    pins: true,
};

#[tokio::test(start_paused = true)]
async fn what_pods_use_is_kept_when_they_are_gone() {
    let world = World::start(LIMITS);
    world.later().await;
    assert!(world.kept().await.is_empty(), "the pods are not known yet");
    world.uses(used("sha256:one"));
    world.later().await;
    assert_eq!(world.kept().await, ["sha256:one"]);
    world.uses(Vec::new());
    world.later().await;
    assert_eq!(world.kept().await, ["sha256:one"]);
    assert_eq!(world.series("trylatest_kept_copies "), "1");
    assert_eq!(world.series("trylatest_kept_bytes "), MIB.to_string());
    assert_eq!(world.series("trylatest_pins_ignored "), "0");
}

#[tokio::test(start_paused = true)]
async fn an_earlier_agents_copies_stay_until_the_pods_are_known() {
    let off = Limits {
        time: Duration::ZERO,
        ..LIMITS
    };
    let first = World::start(LIMITS);
    first.uses(used("sha256:one"));
    first.later().await;
    first.stop.cancel();
    let next = World::on(first.node.clone(), off);
    next.later().await;
    assert_eq!(next.kept().await, ["sha256:one"]);
    next.uses(Vec::new());
    next.later().await;
    assert!(next.kept().await.is_empty(), "nothing is to be kept");
    let let_go = "trylatest_kept_copies_let_go_total{reason=\"age\"} ";
    assert_eq!(next.series(let_go), "1");
}

#[tokio::test(start_paused = true)]
async fn what_somebody_has_removed_is_kept_again() {
    let world = World::start(LIMITS);
    world.uses(used("sha256:one"));
    world.later().await;
    for copy in world.node.kept_copies().await.unwrap() {
        world.node.remove(&alias::copy(&copy));
    }
    sleep(LIST_EVERY).await;
    world.later().await;
    assert_eq!(world.kept().await, ["sha256:one"]);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_not_there_is_kept_once_it_comes() {
    let world = World::on(FakeContainerd::new(), LIMITS);
    world.uses(used("sha256:two"));
    world.later().await;
    assert!(world.kept().await.is_empty());
    world.node.hold(&image(), "sha256:two", MIB);
    sleep(LIST_EVERY).await;
    world.later().await;
    assert_eq!(world.kept().await, ["sha256:two"]);
}

#[tokio::test(start_paused = true)]
async fn containerd_may_be_away() {
    let world = World::start(LIMITS);
    world.node.set_down(true);
    world.uses(used("sha256:one"));
    world.later().await;
    world.node.set_down(false);
    world.later().await;
    assert_eq!(world.kept().await, ["sha256:one"]);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_containerd_refuses_keeps_no_other_away() {
    let node = FakeContainerd::new();
    let first: ImageName = "reg.example/a:latest".parse().unwrap();
    node.hold(&first, "sha256:zero", MIB);
    node.hold(&image(), "sha256:one", MIB);
    let mut both = used("sha256:zero");
    both[0].image = first.clone();
    both.extend(used("sha256:one"));
    let world = World::on(node, LIMITS);
    world.uses(both);
    world.later().await;
    assert_eq!(world.kept().await.len(), 2);
    let copies = world.node.kept_copies().await.unwrap();
    let of_first = copies.iter().find(|copy| copy.image == first).unwrap();
    let alias = alias::copy(of_first);
    world.node.remove(&alias);
    world.node.refuse(&alias);
    for copy in copies.iter().filter(|copy| copy.image != first) {
        world.node.remove(&alias::copy(copy));
    }
    sleep(LIST_EVERY).await;
    world.later().await;
    assert_eq!(world.kept().await, ["sha256:one"]);
    let refusals = world.node.refusals(&alias);
    assert!(refusals > 0, "it was tried");
    world.later().await;
    assert_eq!(world.node.refusals(&alias), refusals + 1, "not at once");
}

#[tokio::test(start_paused = true)]
async fn pins_that_have_no_effect_are_reported() {
    let world = World::start(LIMITS);
    world.node.set_version("1.6.20~ds1");
    world.uses(used("sha256:one"));
    world.later().await;
    assert_eq!(world.series("trylatest_pins_ignored "), "1");
}

#[tokio::test(start_paused = true)]
async fn a_new_configuration_applies_to_what_is_kept() {
    let world = World::start(LIMITS);
    world.uses(used("sha256:one"));
    world.later().await;
    world.uses(Vec::new());
    world.later().await;
    assert_eq!(world.kept().await, ["sha256:one"]);
    let off = Config::parse("registries: {reg.example: {keep: off}}").unwrap();
    world.config.send_replace(off);
    // Sooner than it would decide anew by itself.
    sleep(BURST).await;
    assert!(world.kept().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_copy_that_the_name_was_pointed_back_to_is_not_replaced() {
    for is_pointed_back in [true, false] {
        let world = World::start(LIMITS);
        world.uses(used("sha256:one"));
        world.later().await;
        world.node.hold(&image(), "sha256:two", MIB);
        world.uses(used("sha256:two"));
        world.later().await;
        assert_eq!(world.kept().await, ["sha256:one", "sha256:two"]);
        if is_pointed_back {
            world.node.hold(&image(), "sha256:one", MIB);
        }
        let mut proven = used("sha256:two");
        let two = "sha256:two".parse().unwrap();
        // It may be the wall clock that is new.
        proven[0].runs = [(two, Some(clock::wall() - Duration::from_hours(1)))].into();
        world.uses(proven);
        world.later().await;
        assert_eq!(world.kept().await.len(), 2, "{is_pointed_back}");
        sleep(PROVEN_AFTER + DECIDE_EVERY).await;
        let kept = world.kept().await;
        assert_eq!(kept.len(), if is_pointed_back { 2 } else { 1 }, "{kept:?}");
    }
}
