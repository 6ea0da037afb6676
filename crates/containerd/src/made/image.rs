//! The image itself: how much of it is there, and the documents that describe it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};

use containerd_client::services::v1::Image;
use containerd_client::types::Descriptor as Target;
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::Code;

use super::OPERATION;
use super::blob::{Blob, Lease, layer_is_there, write, write_layer};
use crate::containerd::Containerd;
use crate::content::{NoDocument, hex_of, read_json, sha256};
use crate::manifest::{Descriptor, Document};
use crate::program::{NAME, Program};
use crate::runtime::RuntimeError;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The label of the configuration that holds the random number.
const MARK: &str = "dev.trylatest.made-on-this-node";

/// What an alias points to.
pub(super) enum Found {
    /// All of an image of this program.
    Whole(Image),
    /// The same, without its layer.
    WithoutLayer(Image),
    /// Something else, or nothing.
    Nothing,
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

/// Looks what is there, without trusting what the database says about the layer's file.
pub(super) async fn look(
    node: &Containerd,
    program: &Program,
    alias: &str,
) -> Result<Found, RuntimeError> {
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
    let root = Descriptor::stored(target.digest.clone(), target.size);
    match read_json(&node.calls, &root, "manifest").await? {
        Document::Manifest(manifest) => {
            let config = read_json(&node.calls, &manifest.config, "configuration").await?;
            Ok(Some(config))
        }
        Document::Index(_) => Ok(None),
    }
}

/// Writes layer, configuration and manifest: what a name has to point to.
pub(super) async fn write_all(
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
