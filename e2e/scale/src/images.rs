//! The images that pods name, and a containerd of each node that has them.

use std::time::Duration;

use trylatest_containerd::fake::{Answer, FakeContainerd};
use trylatest_core::image::ImageName;
use trylatest_core::outcome::FailureClass;

/// How many different ones the pods of a node have.
const IMAGES: usize = 10;

/// The image of the agents' pods, and so of the gates.
pub(crate) const AGENT: &str = "ghcr.io/trylatest/trylatest:0.1.0";

/// How long containerd waits for a connection (measured, all versions).
const DIAL: Duration = Duration::from_secs(30);

const BYTES: u64 = 100 << 20;

/// What a registry does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Registry {
    Works,
    /// It is silent, as behind a dead link: containerd gives up after [`DIAL`].
    Unreachable,
}

/// The image of a node's pod with this number.
pub(crate) fn name(pod: usize) -> String {
    format!("registry.example/team/app-{}:v1", pod % IMAGES)
}

/// Where each tag points.
pub(crate) fn digest(pod: usize) -> String {
    format!("sha256:{:064x}", 0xabc0 + pod % IMAGES)
}

/// A node that has all of them.
pub(crate) fn node() -> anyhow::Result<FakeContainerd> {
    let runtime = FakeContainerd::new();
    for (image, digest) in all()? {
        runtime.push(&image, &digest, BYTES);
        runtime.hold(&image, &digest, BYTES);
    }
    runtime.hold(&AGENT.parse()?, &digest(IMAGES - 1), BYTES);
    Ok(runtime)
}

/// From now on, the node finds the registry so.
pub(crate) fn set(node: &FakeContainerd, registry: Registry) -> anyhow::Result<()> {
    for (image, _) in all()? {
        let answer = match registry {
            Registry::Works => Answer::Succeed,
            Registry::Unreachable => {
                let end = Answer::fail(FailureClass::Timeout);
                Answer::Wait(DIAL, Box::new(end))
            }
        };
        node.answer(&image, answer);
    }
    Ok(())
}

fn all() -> anyhow::Result<Vec<(ImageName, String)>> {
    let images = (0..IMAGES).map(|n| Ok((name(n).parse()?, digest(n))));
    images.collect()
}
