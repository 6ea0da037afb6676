//! The conformance suite of container runtimes, on containerd itself: 2.4 and 1.6.
//!
//! The suite is in `trylatest_containerd::conformance`, where it also runs on the fake runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use serde_json::Value;
use trylatest_bootstrap::oci::{Architecture, Config, File, Image, Layer};
use trylatest_containerd::conformance::{self, Fault, Harness, Loss};
use trylatest_containerd::{
    CallObserver, Containerd, ContainerdOptions, ImageRuntime as _, Movement,
};
use trylatest_core::image::ImageName;
use trylatest_e2e::cluster::{ContainerdNode, ContainerdVersion, Run, Tools};
use trylatest_e2e::registry::{self, Challenge, Content, Registry};
use trylatest_e2e::suite::{Case, OnNode, Suite, With};

/// Long enough for a machine that builds something else meanwhile.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Size of each image's only layer. containerd's downloads move in steps of 1 MiB.
const LAYER_BYTES: usize = 5 << 20;

/// Enough for several looks while they are unpacked.
const FILES: usize = 30_000;

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The file in each layer.
const PAD: &str = "pad";

/// The same, as it lies in the layer's unpacked folder.
const UNPACKED_PAD: &str = "fs/pad";

/// One containerd and the registry that it pulls from.
struct OnContainerd {
    runtime: Containerd,
    node: ContainerdNode,
    registry: Registry,
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
        let filter = format!("name=={image}");
        let listed = self.ctr(&["images", "list", &filter]).await;
        let mut words = listed.split_whitespace();
        let digest = words.find(|word| word.starts_with("sha256:"));
        let digest = digest.with_context(|| listed.clone())?.to_owned();
        let manifest = self.document(&digest).await?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        let config = text(&manifest["config"]["digest"])?;
        let layer = text(&manifest["layers"][0]["digest"])?;
        let snapshot = text(&self.document(&config).await?["rootfs"]["diff_ids"][0])?;
        self.ctr(&["snapshots", "rm", &snapshot]).await;
        self.ctr(&["content", "rm", &layer]).await;
        Ok(())
    }

    async fn try_lose(&self, image: &ImageName, loss: Loss) -> anyhow::Result<()> {
        let digest = self
            .registry
            .digest_of(&repository(image), "latest")
            .await?;
        let manifest = self.document(&digest).await?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        let shared = text(&manifest["layers"][1]["digest"])?;
        let blobs = self
            .node
            .root()
            .join("io.containerd.content.v1.content/blobs");
        let blob = blobs.join(shared.replace(':', "/"));
        match loss {
            Loss::SharedLayer => fs::remove_file(&blob)?,
            Loss::SharedLayersBytes => {
                fs::remove_file(&blob)?;
                fs::write(&blob, "")?;
            }
            Loss::Unpacked
            | Loss::UnpackedInUse
            | Loss::UnpackedUnderLook
            | Loss::UnpackedUnderUnpacking => {
                let top = self.topmost(&manifest).await?;
                let folder = self.unpacked(&top, loss).await?;
                fs::remove_dir_all(folder)?;
            }
            Loss::Files | Loss::FilesInUse => {
                let top = self.topmost(&manifest).await?;
                let folder = self.unpacked(&top, loss).await?;
                fs::write(folder.join(UNPACKED_PAD), "")?;
            }
        }
        Ok(())
    }

    /// The name of what the second of two layers is unpacked to.
    async fn topmost(&self, manifest: &Value) -> anyhow::Result<String> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        let config = self.document(&text(&manifest["config"]["digest"])?).await?;
        let [below, above] = [0, 1].map(|n| text(&config["rootfs"]["diff_ids"][n]));
        let chain = format!("{} {}", below?, above?);
        Ok(trylatest_bootstrap::oci::digest(chain.as_bytes()))
    }

    async fn try_is_intact(&self, image: &ImageName) -> anyhow::Result<bool> {
        let repository = repository(image);
        let digest = self.registry.digest_of(&repository, "latest").await?;
        let manifest = self.document(&digest).await?;
        let top = self.topmost(&manifest).await?;
        let key = format!("intact-{}", &top[7..19]);
        let folder = self.node.put_on_top(&top, &key).await?;
        // Unless containerd has just collected it.
        self.ctr(&["snapshots", "rm", &key]).await;
        let pad = fs::metadata(folder.join(UNPACKED_PAD))?;
        Ok(pad.len() == LAYER_BYTES as u64)
    }

    /// The folder of an unpacked layer, found by having something on top of it.
    async fn unpacked(&self, snapshot: &str, loss: Loss) -> anyhow::Result<PathBuf> {
        let whose = match loss {
            Loss::UnpackedUnderLook => "trylatest-look",
            Loss::UnpackedUnderUnpacking => "extract-1",
            _ => "on-top-of",
        };
        let key = format!("{whose}-{}", &snapshot[7..19]);
        let folder = self.node.put_on_top(snapshot, &key).await?;
        // Without a root containerd's garbage collection would remove it.
        let label = ["snapshots", "label", &key, "containerd.io/gc.root=true"];
        self.node.ctr(&label).await?;
        if matches!(loss, Loss::Unpacked | Loss::Files) {
            self.node.ctr(&["snapshots", "rm", &key]).await?;
        }
        Ok(folder)
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
        let name = self.registry.image(repository, tag);
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
        let name = format!("{repository} {version}");
        let content = content(&name, &[&name]).expect("an image is packed");
        let pushed = self.registry.push(&content, &repository, tag).await;
        pushed.expect("the registry takes the image")
    }

    #[expect(
        clippy::expect_used,
        reason = "without a registry no case means anything"
    )]
    async fn push_sharing(&self, image: &ImageName, version: u32) -> String {
        let repository = repository(image);
        let name = format!("{repository} {version}");
        let content = content(&name, &[&name, &repository]).expect("an image is packed");
        let pushed = self.registry.push(&content, &repository, "latest").await;
        pushed.expect("the registry takes the image")
    }

    #[expect(clippy::expect_used, reason = "the image was pulled just before")]
    async fn lose(&self, image: &ImageName, loss: Loss) {
        self.try_lose(image, loss)
            .await
            .expect("the image's parts are found");
    }

    #[expect(clippy::expect_used, reason = "the image is unpacked")]
    async fn is_intact(&self, image: &ImageName) -> bool {
        let intact = self.try_is_intact(image).await;
        intact.expect("the image's parts are found")
    }

    async fn label(&self, name: &str, key: &str, value: &str) {
        let label = format!("{key}={value}");
        self.ctr(&["images", "label", name, &label]).await;
    }

    async fn unlabel(&self, name: &str, key: &str) {
        // An empty value removes it.
        self.label(name, key, "").await;
    }

    async fn labelled(&self, name: &str, key: &str) -> Option<String> {
        let listed = self
            .ctr(&["images", "list", &format!("name=={name}")])
            .await;
        let (_, value) = listed.split_once(&format!("{key}="))?;
        let end = value.find([',', ' ', '\n']).unwrap_or(value.len());
        Some(value[..end].to_owned())
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

    #[expect(clippy::expect_used, reason = "the image is there")]
    async fn remove_by_id(&self, image: &ImageName) {
        let removed = self.node.remove_image(image.as_str()).await;
        removed.expect("CRI removes the image");
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

/// An image with one layer for each of these names. Nothing in it could run; nothing has to.
fn content(name: &str, layers: &[&str]) -> anyhow::Result<Content> {
    let layers = layers.iter().map(|layer| {
        let pad: Vec<u8> = layer.bytes().cycle().take(LAYER_BYTES).collect();
        Layer::plain(&[File {
            path: PAD,
            mode: 0o644,
            content: &pad,
        }])
    });
    Ok(image_of(name, layers.collect::<Result<_, _>>()?))
}

fn image_of(name: &str, layers: Vec<Layer>) -> Content {
    let config = Config {
        architecture: Architecture::HOST,
        entrypoint: &[],
        user: "",
        labels: BTreeMap::from([("name", name)]),
    };
    Image::new(&config, layers).into()
}

/// The case that no other may run beside.
const ALONE: &str = "a_restart_ends_events_and_nothing_else";

/// A node for the suite.
struct Node {
    harness: OnContainerd,
    run: Run,
}

fn runtime(node: &ContainerdNode, written: fn() -> Option<u64>) -> Containerd {
    Containerd::new(ContainerdOptions {
        socket: node.socket().to_path_buf(),
        snapshotter: None,
        call_timeout: CALL_TIMEOUT,
        observer: CallObserver::default(),
        written,
    })
}

/// The node's files are where the tests run.
fn written() -> Option<u64> {
    let here = rustix::fs::statfs(".").ok()?;
    Some(here.f_ffree ^ here.f_bfree.rotate_left(32))
}

/// Once everything has been downloaded, that a layer is being unpacked is all that moves.
async fn unpacking_moves(node: &OnContainerd, sees_writes: bool) -> anyhow::Result<()> {
    let runtime = runtime(&node.node, if sees_writes { written } else { || None });
    let repository = if sees_writes { "files" } else { "walked-files" };
    let paths: Vec<String> = (0..FILES).map(|n| format!("{}/{n}", n / 1000)).collect();
    let file = |path| File {
        path,
        mode: 0o644,
        content: repository.as_bytes(),
    };
    let files: Vec<File<'_>> = paths.iter().map(|path| file(path)).collect();
    let image = image_of(repository, vec![Layer::plain(&files)?]);
    node.registry.push(&image, repository, "latest").await?;
    let image = node.image(repository, "latest");
    let mut marks = BTreeSet::new();
    let mut pull = std::pin::pin!(runtime.pull(&image));
    loop {
        let look = async {
            tokio::time::sleep(LOOK_EVERY).await;
            runtime.movement(&image).await
        };
        // The pull is only borrowed, and a look that is lost is repeated.
        let seen = tokio::select! {
            ended = &mut pull => break ended?,
            seen = look => seen?,
        };
        if seen.total_bytes == Some(seen.bytes) {
            marks.insert(seen.mark);
        }
    }
    ensure!(marks.len() >= 3, "it moved {} times", marks.len());
    Ok(())
}

/// A containerd that is killed while it unpacks leaves the snapshot behind: it does not grow, whatever else is written on
/// the node, and a silent registry is not taken for one that delivers.
async fn what_unpacking_has_left_does_not_move(node: &OnContainerd) -> anyhow::Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let always = || Some(WRITTEN.fetch_add(1, Ordering::Relaxed));
    let runtime = runtime(&node.node, always);
    let image = node.image("left-unpacking", "latest");
    node.push(&image, 1).await;
    runtime.pull(&image).await?;
    let digest = node
        .registry
        .digest_of(&repository(&image), "latest")
        .await?;
    let manifest = node.document(&digest).await?;
    let config = manifest["config"]["digest"]
        .as_str()
        .context("no configuration")?;
    let config = node.document(config).await?;
    let layer = config["rootfs"]["diff_ids"][0]
        .as_str()
        .context("no layer")?;
    let key = format!("extract-1 {layer}");
    node.node.ctr(&["snapshots", "prepare", &key]).await?;
    node.fault(&image, Some(Fault::NeverAnswers)).await;
    let mut marks = BTreeSet::new();
    let looks = async {
        for _ in 0..10 {
            tokio::time::sleep(LOOK_EVERY * 3).await;
            marks.insert(runtime.movement(&image).await?.mark);
        }
        anyhow::Ok(())
    };
    // The pull is dropped.
    let looked = tokio::select! {
        ended = runtime.pull(&image) => Err(anyhow!("the pull ended: {ended:?}")),
        looked = looks => looked,
    };
    node.fault(&image, None).await;
    node.node.ctr(&["snapshots", "rm", &key]).await?;
    looked?;
    ensure!(marks.len() == 1, "it moved: {marks:?}");
    ensure!(
        !marks.contains(&Movement::default().mark),
        "it was not looked at"
    );
    Ok(())
}

impl OnNode for Node {
    async fn start(tools: Tools, containerd: ContainerdVersion) -> anyhow::Result<Self> {
        let run = Run::start(tools.root()).await?;
        let folder = run.folder().join("registry");
        let registry =
            Registry::start(&tools.docker_registry(), &folder, &run.log("registry"), 0).await?;
        let node = ContainerdNode::start(&tools, &run, containerd).await?;
        node.add_registry(&registry.host())?;
        let runtime = runtime(&node, written);
        let harness = OnContainerd {
            runtime,
            node,
            registry,
        };
        Ok(Self { harness, run })
    }

    async fn stop(&self, well: bool) -> anyhow::Result<()> {
        self.run.end(!well).await
    }

    fn logs(&self) -> PathBuf {
        self.run.logs()
    }
}

fn cases<const OLDEST: bool>(on: &str) -> Vec<Case<With<Node, OLDEST>>> {
    let case = |case: conformance::Case<OnContainerd>| {
        let name = format!("{on}::{}", case.name);
        let run = move |node: Arc<With<Node, OLDEST>>| async move {
            let verdict = (case.run)(&node.harness).await;
            verdict.map_err(anyhow::Error::msg)
        };
        if case.name == ALONE {
            Case::exclusive(name, run)
        } else {
            Case::new(name, run)
        }
    };
    let unpacking = [
        (true, "unpacking_is_seen"),
        (false, "unpacking_is_asked_for"),
    ];
    let unpacking = unpacking.map(|(sees_writes, name)| {
        let run = move |node: Arc<With<Node, OLDEST>>| async move {
            Box::pin(unpacking_moves(&node.harness, sees_writes)).await
        };
        Case::new(format!("{on}::{name}"), run)
    });
    let left = |node: Arc<With<Node, OLDEST>>| async move {
        Box::pin(what_unpacking_has_left_does_not_move(&node.harness)).await
    };
    let left = Case::new(format!("{on}::what_unpacking_has_left_does_not_move"), left);
    let conformance = conformance::cases().into_iter().map(case);
    conformance.chain(unpacking).chain([left]).collect()
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.run(cases::<false>("containerd_2_4"));
    suite.run(cases::<true>("containerd_1_6"));
    suite.end()
}
