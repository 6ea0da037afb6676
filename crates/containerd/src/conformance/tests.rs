//! The suite, run on the fake.

use trylatest_core::outcome::FailureClass;

use super::*;
use crate::fake::{Answer, FakeContainerd, Lost};

/// The fake has the registry built in.
#[derive(Default)]
struct InMemory {
    node: FakeContainerd,
}

const SIZE: u64 = 4 << 20;

impl Harness for InMemory {
    type Runtime = FakeContainerd;

    fn runtime(&self) -> &FakeContainerd {
        &self.node
    }

    fn image(&self, repository: &str, tag: &str) -> ImageName {
        format!("registry.example/{repository}:{tag}")
            .parse()
            .unwrap()
    }

    async fn push(&self, image: &ImageName, version: u32) -> String {
        let digest = format!("sha256:{version:064x}");
        self.node.push(image, &digest, SIZE);
        digest
    }

    async fn push_sharing(&self, image: &ImageName, version: u32) -> String {
        self.push(image, version).await
    }

    async fn lose(&self, image: &ImageName, loss: Loss) {
        let what = match loss {
            Loss::Unpacked | Loss::UnpackedUnderLook | Loss::UnpackedUnderUnpacking => {
                Lost::Unpacked
            }
            Loss::UnpackedInUse => Lost::UnpackedInUse,
            Loss::SharedLayer | Loss::SharedLayersBytes => Lost::SharedLayer,
            Loss::Files => Lost::File,
            Loss::FilesInUse => Lost::FileInUse,
        };
        self.node.lose(image, Some(what));
    }

    async fn is_intact(&self, image: &ImageName) -> bool {
        self.node.lost(image).is_none()
    }

    async fn label(&self, name: &str, key: &str, value: &str) {
        self.node.label(name, key, value);
    }

    async fn unlabel(&self, name: &str, key: &str) {
        self.node.unlabel(name, key);
    }

    async fn labelled(&self, name: &str, key: &str) -> Option<String> {
        self.node.labels(name).remove(key)
    }

    async fn fault(&self, image: &ImageName, fault: Option<Fault>) {
        let answer = match fault {
            None => Answer::Succeed,
            Some(Fault::HangsUp) => Answer::fail(FailureClass::Network),
            Some(Fault::NeverAnswers) => Answer::Hang,
            Some(Fault::Status(401 | 403)) => Answer::fail(FailureClass::Unauthorized),
            Some(Fault::Status(404)) => Answer::fail(FailureClass::NotFound),
            Some(Fault::Status(429)) => Answer::fail(FailureClass::RateLimited),
            Some(Fault::Status(_)) => Answer::fail(FailureClass::ServerError),
            Some(Fault::StalledBlob) => Answer::Receive(SIZE / 2, Box::new(Answer::Hang)),
            Some(Fault::SlowBlob) => Answer::download(8, SIZE / 8, Duration::from_millis(200)),
            Some(Fault::CorruptBlob | Fault::HtmlPage) => Answer::fail(FailureClass::Invalid),
        };
        self.node.answer(image, answer);
    }

    async fn remove(&self, image: &ImageName) {
        self.node.remove(image.as_str());
    }

    async fn remove_by_id(&self, image: &ImageName) {
        self.node.remove_by_id(image);
    }

    async fn hollow(&self, image: &ImageName) {
        self.node.hollow(image);
    }

    async fn restart(&self) {
        self.node.set_down(true);
        self.node.set_down(false);
    }
}

#[tokio::test(start_paused = true)]
async fn the_fake_conforms() {
    let harness = InMemory::default();
    for case in cases::<InMemory>() {
        let verdict = (case.run)(&harness).await;
        assert_eq!(verdict, Ok(()), "{}", case.name);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_pull_runs_no_more() {
    let harness = InMemory::default();
    let image = harness.image("dropped", "latest");
    harness.node.answer(&image, Answer::Hang);
    let pull = harness.node.pull(&image);
    let ended = tokio::time::timeout(Duration::from_secs(1), pull).await;
    assert!(ended.is_err());
    assert_eq!(
        (harness.node.pulls(&image), harness.node.running(&image)),
        (1, 0)
    );
}
