//! An image that is made on this node, from a program, and needs no registry.
//!
//! What the kubelet remembers of its pulls (KEP-2535) goes by the digest of an image's
//! configuration. So the configuration holds a random number: no registry has ever given this image
//! to anybody, nobody can guess it and have the kubelet pull it, and every pod may start from it.
//!
//! containerd unpacks it by itself when the first container is made, if its snapshot is not there
//! (`WithNewSnapshot` in internal/cri/opts/container.go).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use containerd_client::services::v1::{
    CreateRequest as CreateLease, DeleteContentRequest, DeleteRequest as DeleteLease, Image,
    ReadContentRequest, WriteAction, WriteContentRequest,
};
use containerd_client::types::Descriptor as Target;
use futures::stream;
use k8s_cri::v1::ImageStatusRequest;
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};
use trylatest_core::image::ImageName;

use crate::alias;
use crate::containerd::{Containerd, spec};
use crate::content::{NoDocument, hex_of, read_json, sha256};
use crate::manifest::{Descriptor, Document};
use crate::program::{NAME, Program};
use crate::runtime::{Over, Pointed, RuntimeError};
use crate::{labels, names};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The label of the configuration that holds the random number.
const MARK: &str = "dev.trylatest.made-on-this-node";

/// For writing the layer, some 10 MiB. A disk that takes longer has more urgent troubles.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

const OPERATION: &str = "making an image";

/// A blob to be written.
struct Blob<P> {
    digest: String,
    bytes: u64,
    labels: HashMap<String, String>,
    pieces: P,
}

/// What an alias points to.
enum Found {
    /// All of an image of this program.
    Whole(Image),
    /// The same, without its layer.
    WithoutLayer(Image),
    /// Something else, or nothing.
    Nothing,
}

/// See [`crate::ImageRuntime::make`].
pub(crate) async fn make(
    node: &Containerd,
    program: &Program,
    alias: &str,
) -> Result<bool, RuntimeError> {
    alias::check(alias)?;
    let lease = lease(alias)?;
    // The pin keeps the kubelet's image collector away.
    let labels = names::managed_and_pinned();
    let target = match look(node, program, alias).await? {
        Found::Whole(stored) if names::is_labelled(&stored, &labels) => return Ok(false),
        Found::Whole(stored) => stored.target,
        Found::WithoutLayer(stored) => {
            leased(node, alias, Box::pin(write_layer(node, program, &lease))).await?;
            stored.target
        }
        Found::Nothing => {
            let work = Box::pin(async {
                let target = write_all(node, program, &lease).await?;
                names::point(node, OPERATION, alias, &target, &labels).await
            });
            return leased(node, alias, work).await.map(|()| true);
        }
    };
    if let Some(target) = target {
        names::point(node, OPERATION, alias, &target, &labels).await?;
    }
    Ok(true)
}

/// See [`crate::ImageRuntime::point`].
pub(crate) async fn point(
    node: &Containerd,
    image: &ImageName,
    alias: &str,
    over: Over<'_>,
) -> Result<Pointed, RuntimeError> {
    let name = image.as_str();
    let kept = node.stored(alias).await?.and_then(|kept| kept.target);
    let target = kept.ok_or_else(|| RuntimeError::NotFound {
        operation: OPERATION,
        name: alias.to_owned(),
    })?;
    let mut wanted = names::managed();
    if let Some(there) = node.stored(name).await? {
        if names::is_as_wanted(&there, &target, &wanted) {
            return Ok(Pointed::Already);
        }
        if let Over::Program(program) = over
            && !holds(node, name, program).await?
        {
            return Ok(Pointed::Elsewhere);
        }
        // What others have set on the name is meant for it.
        let theirs = there.labels.into_iter();
        wanted.extend(theirs.filter(|(key, _)| !key.starts_with(labels::GARBAGE)));
    }
    names::point(node, OPERATION, name, &target, &wanted).await?;
    Ok(Pointed::Now)
}

/// See [`crate::ImageRuntime::pointing`].
pub(crate) async fn pointing(
    node: &Containerd,
    alias: &str,
) -> Result<Vec<ImageName>, RuntimeError> {
    let Some(target) = node.stored(alias).await?.and_then(|kept| kept.target) else {
        return Ok(Vec::new());
    };
    let names = node.names_of(&target.digest).await?;
    // As CRI does, which passes over names without a tag or digest: the alias among them.
    let images = names.iter().filter(|name| name.contains([':', '@']));
    Ok(images.filter_map(|name| name.parse().ok()).collect())
}

/// Whether what CRI has under the name is an image of this program alone, wherever it came from: it
/// has the same single layer.
async fn holds(node: &Containerd, name: &str, program: &Program) -> Result<bool, RuntimeError> {
    let mut cri = node.calls.cri_images();
    let request = ImageStatusRequest {
        image: Some(spec(name)),
        verbose: true,
    };
    let call = cri.image_status(request);
    let status = node.calls.call("asking CRI for an image", call).await?;
    let info = status.info.get("info");
    let info: Value = info
        .and_then(|info| serde_json::from_str(info).ok())
        .unwrap_or_default();
    Ok(info["chainID"] == program.layer())
}

#[derive(Deserialize)]
struct MadeConfig {
    architecture: String,
    config: Process,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct Process {
    #[serde(rename = "Labels", default)]
    labels: HashMap<String, String>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// Looks what is there, without trust in what the database says of the layer's file.
async fn look(node: &Containerd, program: &Program, alias: &str) -> Result<Found, RuntimeError> {
    let Some(stored) = node.stored(alias).await? else {
        return Ok(Found::Nothing);
    };
    let Some(target) = &stored.target else {
        return Ok(Found::Nothing);
    };
    match config_of(node, target).await {
        Ok(Some(config)) if is_of(&config, program, node) => {}
        Ok(_) | Err(NoDocument::Unusable(_) | NoDocument::Corrupt(_)) => return Ok(Found::Nothing),
        Err(NoDocument::Runtime(error)) => return Err(error),
    }
    Ok(if layer_is_there(node, program).await? {
        Found::Whole(stored)
    } else {
        Found::WithoutLayer(stored)
    })
}

fn is_of(config: &MadeConfig, program: &Program, node: &Containerd) -> bool {
    config.config.labels.contains_key(MARK)
        && config.rootfs.diff_ids == [program.layer()]
        && config.architecture == node.platform.architecture
}

async fn config_of(node: &Containerd, target: &Target) -> Result<Option<MadeConfig>, NoDocument> {
    let root = Descriptor {
        digest: target.digest.clone(),
        size: u64::try_from(target.size).unwrap_or(0),
        platform: None,
    };
    match read_json(&node.calls, &root, "manifest").await? {
        Document::Manifest(manifest) => {
            let config = read_json(&node.calls, &manifest.config, "configuration").await?;
            Ok(Some(config))
        }
        Document::Index(_) => Ok(None),
    }
}

/// Reads the layer's last byte: the database may name a file that is gone or cut off.
async fn layer_is_there(node: &Containerd, program: &Program) -> Result<bool, RuntimeError> {
    let mut content = node.calls.content();
    let last = program.layer_bytes().saturating_sub(1);
    let request = ReadContentRequest {
        digest: program.layer().to_owned(),
        offset: i64::try_from(last).unwrap_or(i64::MAX),
        size: 1,
    };
    node.calls
        .within("reading from the content store", async {
            let read = async {
                let mut chunks = content.read(request).await?.into_inner();
                let chunk = chunks.message().await?;
                Ok(chunk.is_some_and(|chunk| chunk.data.len() == 1))
            };
            match read.await {
                Ok(there) => Ok(there),
                Err(status) if is_missing(&status) => Ok(false),
                Err(status) => Err(status),
            }
        })
        .await
}

/// Not in the database; its file is gone, or shorter than it should be.
fn is_missing(status: &Status) -> bool {
    matches!(status.code(), Code::NotFound | Code::OutOfRange)
}

/// Writes layer, configuration and manifest: what a name has to point to.
async fn write_all(
    node: &Containerd,
    program: &Program,
    lease: &Lease,
) -> Result<Target, RuntimeError> {
    write_layer(node, program, lease).await?;
    let mark = random().map_err(|error| unreadable(&error))?;
    let config = json!({
        "architecture": node.platform.architecture,
        "os": node.platform.os,
        "config": {
            "Entrypoint": [format!("/{NAME}")],
            // As in the released image. The agent's manifest asks for root itself.
            "User": "65532:65532",
            "Labels": {
                "org.opencontainers.image.title": NAME,
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                MARK: mark,
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [program.layer()]},
    });
    let snapshotter = node.snapshotter.name(&node.calls).await?;
    // The snapshot of the released image is the same, and stays when that image goes.
    let snapshot = format!("containerd.io/gc.ref.snapshot.{snapshotter}");
    let config = document(
        node,
        lease,
        CONFIG,
        &config,
        [(snapshot, program.layer().to_owned())],
    )
    .await?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": [{
            "mediaType": LAYER,
            "digest": program.layer(),
            "size": program.layer_bytes(),
        }],
    });
    let parts = [
        (
            "containerd.io/gc.ref.content.config".to_owned(),
            config["digest"].as_str().unwrap_or_default().to_owned(),
        ),
        (
            "containerd.io/gc.ref.content.l.0".to_owned(),
            program.layer().to_owned(),
        ),
    ];
    let manifest = document(node, lease, MANIFEST, &manifest, parts).await?;
    Ok(Target {
        media_type: MANIFEST.to_owned(),
        digest: manifest["digest"].as_str().unwrap_or_default().to_owned(),
        size: manifest["size"].as_i64().unwrap_or_default(),
        annotations: HashMap::new(),
    })
}

/// Writes a document; its descriptor.
async fn document<const N: usize>(
    node: &Containerd,
    lease: &Lease,
    media_type: &str,
    document: &Value,
    labels: [(String, String); N],
) -> Result<Value, RuntimeError> {
    let bytes = document.to_string().into_bytes();
    let descriptor = json!({
        "mediaType": media_type,
        "digest": sha256(&bytes),
        "size": bytes.len(),
    });
    let blob = Blob {
        digest: sha256(&bytes),
        bytes: bytes.len() as u64,
        labels: HashMap::from(labels),
        pieces: std::iter::once(Ok(bytes)),
    };
    write(node, lease, blob).await?;
    Ok(descriptor)
}

async fn write_layer(
    node: &Containerd,
    program: &Program,
    lease: &Lease,
) -> Result<(), RuntimeError> {
    if layer_is_there(node, program).await? {
        // Under the lease as well: an image that goes away now would take it along.
        return write(node, lease, layer(program)).await;
    }
    // containerd writes nothing that its database names already.
    let mut content = node.calls.content();
    let request = DeleteContentRequest {
        digest: program.layer().to_owned(),
    };
    let delete = content.delete(request);
    node.calls
        .find("removing a layer that is gone", delete)
        .await?;
    write(node, lease, layer(program)).await
}

fn layer(program: &Program) -> Blob<impl Iterator<Item = io::Result<Vec<u8>>> + Send + 'static> {
    Blob {
        digest: program.layer().to_owned(),
        bytes: program.layer_bytes(),
        labels: HashMap::new(),
        pieces: program.pieces(),
    }
}

/// Writes a blob into the content store, unless it is there.
async fn write<P>(node: &Containerd, lease: &Lease, blob: Blob<P>) -> Result<(), RuntimeError>
where
    P: Iterator<Item = io::Result<Vec<u8>>> + Send + 'static,
{
    let mut content = node.calls.content();
    let mut request = Request::new(stream::iter(requests(blob)));
    request
        .metadata_mut()
        .insert("containerd-lease", lease.clone());
    let write = async {
        let mut answers = content.write(request).await?.into_inner();
        let mut committed = false;
        while let Some(answer) = answers.message().await? {
            committed = answer.action() == WriteAction::Commit;
        }
        if committed {
            Ok(())
        } else {
            Err(Status::aborted("the blob was not written to its end"))
        }
    };
    let write = async {
        match write.await {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            written => written,
        }
    };
    let operation = "writing into the content store";
    node.calls
        .within_time(WRITE_DEADLINE, operation, write)
        .await
}

/// What is sent for a blob: its pieces, then that they are all. Where a piece cannot be read, the end
/// is not said, and nothing comes of it.
fn requests<P>(blob: Blob<P>) -> impl Iterator<Item = WriteContentRequest> + Send + 'static
where
    P: Iterator<Item = io::Result<Vec<u8>>> + Send + 'static,
{
    let Blob {
        digest,
        bytes,
        labels,
        pieces,
    } = blob;
    let template = WriteContentRequest {
        action: WriteAction::Write.into(),
        r#ref: format!("trylatest-{digest}"),
        total: i64::try_from(bytes).unwrap_or(i64::MAX),
        expected: digest,
        ..WriteContentRequest::default()
    };
    let commit = WriteContentRequest {
        action: WriteAction::Commit.into(),
        offset: template.total,
        labels,
        ..template.clone()
    };
    let mut offset = 0;
    pieces
        .map(Some)
        .chain(std::iter::once(None))
        .map_while(move |piece| match piece {
            Some(Ok(data)) => {
                let at = offset;
                offset += i64::try_from(data.len()).unwrap_or(0);
                Some(WriteContentRequest {
                    offset: at,
                    data,
                    ..template.clone()
                })
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "a piece of the program could not be read");
                None
            }
            None => Some(commit.clone()),
        })
}

/// Says in a call that a lease holds what it writes.
type Lease = MetadataValue<Ascii>;

/// The lease has the alias's name, so one that an agent leaves behind that is killed is found again.
fn lease(alias: &str) -> Result<Lease, RuntimeError> {
    Lease::try_from(alias).map_err(|_| RuntimeError::BadAlias {
        alias: alias.to_owned(),
    })
}

/// Does the work while a lease holds what it writes, until the alias does.
async fn leased<T>(
    node: &Containerd,
    alias: &str,
    work: impl Future<Output = Result<T, RuntimeError>>,
) -> Result<T, RuntimeError> {
    unlease(node, alias).await?;
    let mut leases = node.calls.leases();
    let request = CreateLease {
        id: alias.to_owned(),
        labels: HashMap::new(),
    };
    let create = leases.create(request);
    node.calls.call("making a lease", create).await?;
    let done = work.await;
    if let Err(error) = unlease(node, alias).await {
        // The next one replaces it.
        tracing::debug!(%error, "a lease stays");
    }
    done
}

async fn unlease(node: &Containerd, alias: &str) -> Result<(), RuntimeError> {
    let mut leases = node.calls.leases();
    let request = DeleteLease {
        id: alias.to_owned(),
        sync: false,
    };
    let delete = leases.delete(request);
    let ended = node.calls.find("ending a lease", delete).await;
    ended.map(|_was_there| ())
}

/// A number that nobody can guess.
fn random() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(hex_of(&bytes))
}

fn unreadable(error: &io::Error) -> RuntimeError {
    RuntimeError::Answered {
        operation: OPERATION,
        code: Code::Internal,
        message: format!("/dev/urandom: {error}"),
    }
}
