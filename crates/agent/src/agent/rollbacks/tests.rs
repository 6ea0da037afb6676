use jiff::Timestamp;
use tokio::task::JoinSet;
use trylatest_containerd::Over;
use trylatest_containerd::fake::FakeContainerd;
use trylatest_core::keep::KeptCopy;

use super::*;

fn image() -> ImageName {
    "reg.example/app:latest".parse().unwrap()
}

/// Long ago.
fn back() -> RolledBack {
    RolledBack {
        time: Timestamp::UNIX_EPOCH,
        from: "sha256:two".parse().ok(),
        to: "sha256:one".parse().unwrap(),
    }
}

/// A node whose name points to `two`, and that keeps `one`.
async fn node() -> FakeContainerd {
    let node = FakeContainerd::new();
    node.hold(&image(), "sha256:one", 1);
    node.keep_copy(&one()).await.unwrap();
    node.hold(&image(), "sha256:two", 1);
    node
}

fn one() -> KeptCopy {
    KeptCopy {
        image: image(),
        digest: "sha256:one".parse().unwrap(),
        size_bytes: 1,
        since: Timestamp::UNIX_EPOCH,
        used: Timestamp::UNIX_EPOCH,
        proven: false,
        public: true,
        pinned: true,
    }
}

struct World {
    node: FakeContainerd,
    found: watch::Receiver<Option<Marks>>,
    _tasks: JoinSet<anyhow::Result<()>>,
}

impl World {
    async fn start() -> Self {
        let node = node().await;
        let (sender, found) = watch::channel(None);
        let rollbacks = Rollbacks {
            runtime: Arc::new(node.clone()),
            found: sender,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(rollbacks.run(CancellationToken::new()));
        Self {
            node,
            found,
            _tasks: tasks,
        }
    }

    async fn points_back(&self) {
        let alias = alias::copy(&one());
        self.node
            .point(&image(), &alias, Over::Anything)
            .await
            .unwrap();
    }

    /// What is said once it is this. Ends by itself if it never is: time is paused.
    async fn says(&mut self, expected: &Marks) {
        let wait = self
            .found
            .wait_for(|found| found.as_ref() == Some(expected));
        let said = tokio::time::timeout(LOOK_EVERY / 2, wait).await;
        assert!(said.is_ok_and(|said| said.is_ok()), "{expected:?}");
    }

    fn mark(&self) -> Option<String> {
        self.node.kept(&alias::rolled_back(&image()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollback_is_learned_of_and_its_end_as_well() {
    let mut world = World::start().await;
    world.says(&Marks::new()).await;
    let image = image();
    world.points_back().await;
    world.node.mark_rolled_back(&image, &back()).await.unwrap();
    world.says(&[(image.clone(), back())].into()).await;
    // A try brings what the tag points to.
    world.node.hold(&image, "sha256:two", 1);
    world.says(&Marks::new()).await;
    assert_eq!(world.mark(), None);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_at_work_keeps_its_mark() {
    let mut world = World::start().await;
    world.says(&Marks::new()).await;
    // There is no usable copy, so the command has nothing to undo and leaves no journal.
    world.node.remove(image().as_str());
    let back = RolledBack {
        time: clock::wall(),
        from: None,
        ..back()
    };
    let marked = world.node.mark_rolled_back(&image(), &back).await;
    marked.unwrap();
    // It is looked at.
    sleep(2 * BURST).await;
    assert!(world.mark().is_some());
    world.points_back().await;
    world.says(&[(image(), back)].into()).await;
    assert!(world.mark().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_command_has_only_announced_is_removed() {
    let mut world = World::start().await;
    world
        .node
        .mark_rolled_back(&image(), &back())
        .await
        .unwrap();
    sleep(LOOK_EVERY).await;
    world.says(&Marks::new()).await;
    assert_eq!(world.mark(), None);
}

#[tokio::test(start_paused = true)]
async fn containerd_may_be_away() {
    let mut world = World::start().await;
    world.says(&Marks::new()).await;
    world.node.set_down(true);
    sleep(LOOK_EVERY).await;
    world.node.set_down(false);
    world
        .node
        .mark_rolled_back(&image(), &back())
        .await
        .unwrap();
    world.points_back().await;
    world.says(&[(image(), back())].into()).await;
}
