//! The conformance suite of container runtimes, on containerd itself: 2.4 and 1.6.
//!
//! The suite is in `trylatest_containerd::conformance`, where it also runs on the fake runtime.

mod node;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use tokio::sync::RwLock;
use trylatest_containerd::Containerd;
use trylatest_containerd::conformance::{self, Fault, Harness};
use trylatest_core::image::ImageName;
use trylatest_e2e::registry::{self, Challenge, Content, Manifest, Registry, digest_of_bytes};

use node::{Node, Version};

/// Debian's docker-registry.
const REGISTRY: &str = "/usr/bin/docker-registry";

/// Size of each image's only layer. containerd's downloads move in steps of 1 MiB.
const LAYER_BYTES: usize = 5 << 20;

/// One containerd and the registry that it pulls from.
struct OnContainerd {
    runtime: Containerd,
    node: Node,
    registry: Arc<Registry>,
    /// Keeps the repositories of the two containerds apart: faults are the repository's.
    prefix: &'static str,
}

impl OnContainerd {
    /// What `ctr` prints in CRI's namespace.
    async fn ctr(&self, arguments: &[&str]) -> String {
        match self.node.ctr(arguments).await {
            Ok(printed) => printed,
            // What is missing then shows in what the case looks at.
            Err(error) => format!("{error:#}"),
        }
    }

    /// A document in the content store.
    async fn document(&self, digest: &str) -> anyhow::Result<Value> {
        let printed = self.ctr(&["content", "get", digest]).await;
        serde_json::from_str(&printed).context(printed)
    }

    async fn try_hollow(&self, image: &ImageName) -> anyhow::Result<()> {
        let repository = repository(image);
        let digest = self.registry.digest_of(&repository, "latest").await?;
        let manifest = self.document(&digest).await?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        let config = text(&manifest["config"]["digest"])?;
        let layer = text(&manifest["layers"][0]["digest"])?;
        let snapshot = text(&self.document(&config).await?["rootfs"]["diff_ids"][0])?;
        self.ctr(&["snapshots", "rm", &snapshot]).await;
        self.ctr(&["content", "rm", &layer]).await;
        Ok(())
    }
}

/// The repository in the registry.
fn repository(image: &ImageName) -> String {
    let path = &image.as_str()[image.registry().len() + 1..];
    path.split_once(':')
        .map_or(path, |(repository, _tag)| repository)
        .to_owned()
}

impl Harness for OnContainerd {
    type Runtime = Containerd;

    fn runtime(&self) -> &Containerd {
        &self.runtime
    }

    #[expect(clippy::expect_used, reason = "the names are the suite's own")]
    fn image(&self, repository: &str, tag: &str) -> ImageName {
        let repository = format!("{}/{repository}", self.prefix);
        let name = self.registry.image(&repository, tag);
        name.parse().expect("an image name")
    }

    #[expect(
        clippy::expect_used,
        reason = "without a registry no case means anything"
    )]
    async fn push(&self, image: &ImageName, version: u32) -> String {
        let repository = repository(image);
        let tag = image
            .as_str()
            .rsplit_once(':')
            .map_or("latest", |(_, tag)| tag);
        let content = content(&format!("{repository} {version}"));
        let pushed = self.registry.push(&content, &repository, tag).await;
        pushed.expect("the registry takes the image")
    }

    #[expect(
        clippy::expect_used,
        reason = "a fault of one repository is always possible"
    )]
    async fn fault(&self, image: &ImageName, fault: Option<Fault>) {
        let repository = repository(image);
        match fault.map(fault_of) {
            None => self.registry.heal_on(&repository),
            Some(fault) => {
                let set = self.registry.fault_on(&repository, fault);
                set.expect("a fault of a repository");
            }
        }
    }

    async fn remove(&self, image: &ImageName) {
        self.ctr(&["images", "rm", "--sync", image.as_str()]).await;
    }

    #[expect(clippy::expect_used, reason = "the image was pulled just before")]
    async fn hollow(&self, image: &ImageName) {
        self.try_hollow(image)
            .await
            .expect("the image's parts are found");
    }

    #[expect(
        clippy::expect_used,
        reason = "without containerd no case means anything"
    )]
    async fn restart(&self) {
        self.node.restart().await.expect("containerd starts again");
    }
}

/// The registry's word for the suite's.
fn fault_of(fault: Fault) -> registry::Fault {
    match fault {
        Fault::HangsUp => registry::Fault::Reset,
        Fault::NeverAnswers => registry::Fault::NeverAnswers,
        Fault::Status(401) => registry::Fault::Unauthorized(Challenge::Basic),
        Fault::Status(403) => registry::Fault::Forbidden,
        Fault::Status(404) => registry::Fault::NotFound,
        Fault::Status(429) => registry::Fault::RateLimited {
            retry_after: Duration::from_secs(1),
        },
        Fault::Status(503) => registry::Fault::Unavailable,
        Fault::Status(_) => registry::Fault::InternalError,
        Fault::StalledBlob => registry::Fault::StalledBlob {
            after_bytes: LAYER_BYTES as u64 / 2,
        },
        Fault::SlowBlob => registry::Fault::SlowBlob {
            bytes_per_second: LAYER_BYTES as u64 / 3,
        },
        Fault::CorruptBlob => registry::Fault::CorruptBlob,
        Fault::HtmlPage => registry::Fault::HtmlPage,
    }
}

/// An image whose only layer no other image has. Nothing in it could run; nothing has to.
fn content(name: &str) -> Content {
    let layer = Bytes::from(layer(name));
    let config = Bytes::from(
        json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Labels": {"name": name}},
            "rootfs": {"type": "layers", "diff_ids": [digest_of_bytes(&layer)]},
        })
        .to_string(),
    );
    let part = |media_type: &str, blob: &Bytes| json!({"mediaType": media_type, "digest": digest_of_bytes(blob), "size": blob.len()});
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": part("application/vnd.oci.image.config.v1+json", &config),
        "layers": [part("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    Content {
        manifest: Manifest {
            bytes: manifest.to_string().into(),
            media_type: media_type.to_owned(),
        },
        blobs: vec![config, layer],
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}

/// A tar archive with one file, filled with the repeated name.
fn layer(name: &str) -> Vec<u8> {
    let file: Vec<u8> = name.bytes().cycle().take(LAYER_BYTES).collect();
    let mut header = tar::Header::new_ustar();
    header.set_size(file.len() as u64);
    header.set_mode(0o644);
    let mut archive = tar::Builder::new(Vec::new());
    archive
        .append_data(&mut header, "pad", file.as_slice())
        .and_then(|()| archive.into_inner())
        .unwrap_or_default()
}

/// The case that no other may run beside.
const ALONE: &str = "a_restart_ends_events_and_nothing_else";

/// One trial for each case of the suite. They run in parallel, but for the one that restarts
/// containerd.
fn trials(version: &str, harness: OnContainerd, handle: &tokio::runtime::Handle) -> Vec<Trial> {
    let harness = Arc::new(RwLock::new(harness));
    let trial = |case: conformance::Case<OnContainerd>| {
        let (harness, handle) = (Arc::clone(&harness), handle.clone());
        Trial::test(format!("{version}::{}", case.name), move || {
            let verdict = handle.block_on(async {
                if case.name == ALONE {
                    (case.run)(&*harness.write().await).await
                } else {
                    (case.run)(&*harness.read().await).await
                }
            });
            verdict.map_err(Failed::from)
        })
    };
    conformance::cases().into_iter().map(trial).collect()
}

/// What is missing to run the suite on this containerd.
fn missing(version: Version) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let needed = [version.program(), node::built("ctr"), REGISTRY.into()];
    let missing = needed.iter().find(|program| !program.exists())?;
    Some(format!("needs {}", missing.display()))
}

async fn harness(version: Version, registry: &Arc<Registry>) -> anyhow::Result<OnContainerd> {
    let (node, runtime) = Node::start(version, &registry.host()).await?;
    Ok(OnContainerd {
        runtime,
        node,
        registry: Arc::clone(registry),
        prefix: match version {
            Version::V2 => "v2",
            Version::V1_6 => "v1-6",
        },
    })
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::from_args();
    let runtime = tokio::runtime::Runtime::new()?;
    let mut all = Vec::new();
    let mut registry: Option<Arc<Registry>> = None;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    for version in [Version::V2, Version::V1_6] {
        if let Some(why) = missing(version) {
            eprintln!("{}: ignored: {why}", version.name());
            let ignored = |case: conformance::Case<OnContainerd>| {
                let name = format!("{}::{}", version.name(), case.name);
                Trial::test(name, || Ok(())).with_ignored_flag(true)
            };
            all.extend(conformance::cases().into_iter().map(ignored));
            continue;
        }
        let harness = runtime.block_on(async {
            let shared = match &registry {
                Some(shared) => Arc::clone(shared),
                None => Arc::new(Registry::start(Path::new(REGISTRY), dir.path(), 0).await?),
            };
            registry = Some(Arc::clone(&shared));
            harness(version, &shared).await
        })?;
        all.extend(trials(version.name(), harness, runtime.handle()));
    }
    let conclusion = libtest_mimic::run(&arguments, all);
    Ok(conclusion.exit_code())
}
