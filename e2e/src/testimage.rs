//! The images of the tests: one static program, and a file that says which version this is.
//!
//! Built on this machine by `rustc` alone, so that no image has to come from anywhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use rand::RngExt as _;
use serde_json::{Value, json};

use crate::cluster::Tools;
use crate::registry::{Content, Manifest, digest_of_bytes};

/// The image of pod sandboxes.
pub const PAUSE: &str = "e2e.trylatest.dev/pause:1";

/// This machine's kind, in the words of OCI.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

const SOURCE: &str = include_str!("../testapp/main.rs");
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image that prints `version` (whose last line wants a line feed to show in the log) and waits for SIGTERM, on which it ends at once.
///
/// # Errors
/// If the program cannot be built.
pub fn app(tools: &Tools, version: &str) -> anyhow::Result<Content> {
    app_of_size(tools, version, 0)
}

/// The same with a layer of `padding` random bytes that nothing compresses, different each time.
///
/// # Errors
/// If the program cannot be built.
pub fn app_of_size(tools: &Tools, version: &str, padding: usize) -> anyhow::Result<Content> {
    let mut layers = vec![
        program_layer(tools)?,
        layer("version", version.as_bytes(), 0o644)?,
    ];
    if padding > 0 {
        let mut random = vec![0; padding];
        rand::rng().fill(&mut random[..]);
        layers.push(layer("padding", &random, 0o644)?);
    }
    Ok(content(&["/testapp"], layers))
}

/// The same for a machine of another kind than this one: it can be pulled here and not started.
///
/// # Errors
/// If the program cannot be built.
pub fn app_for_another_machine(tools: &Tools, version: &str) -> anyhow::Result<Content> {
    let other = if ARCHITECTURE == "amd64" {
        "arm64"
    } else {
        "amd64"
    };
    let layers = vec![
        program_layer(tools)?,
        layer("version", version.as_bytes(), 0o644)?,
    ];
    Ok(content_for(other, &["/testapp"], layers))
}

/// The image of pod sandboxes as an archive for `ctr images import`.
///
/// # Errors
/// If the program cannot be built, or the archive not be written.
pub fn pause_archive(tools: &Tools) -> anyhow::Result<PathBuf> {
    let image = content(&["/testapp", "pause"], vec![program_layer(tools)?]);
    let path = built(tools).with_extension("pause.tar");
    if !path.exists() {
        write_archive(&path, PAUSE, &image)?;
    }
    Ok(path)
}

/// Writes an image under one name as an OCI archive.
///
/// # Errors
/// If the file cannot be written.
pub fn write_archive(path: &Path, name: &str, image: &Content) -> anyhow::Result<()> {
    let manifest = &image.manifest.bytes;
    let mut entry = descriptor(&image.manifest.media_type, manifest);
    entry["annotations"] = json!({"io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let layout = json!({"imageLayoutVersion": "1.0.0"}).to_string();
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, "oci-layout", layout.as_bytes(), 0o644)?;
    append(&mut archive, "index.json", index.as_bytes(), 0o644)?;
    for blob in image.blobs.iter().chain([manifest]) {
        let place = digest_of_bytes(blob).replace(':', "/");
        append(&mut archive, &format!("blobs/{place}"), blob, 0o644)?;
    }
    write_whole(path, &archive.into_inner()?)
}

fn content(entrypoint: &[&str], layers: Vec<Bytes>) -> Content {
    content_for(ARCHITECTURE, entrypoint, layers)
}

fn content_for(architecture: &str, entrypoint: &[&str], layers: Vec<Bytes>) -> Content {
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": entrypoint},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| digest_of_bytes(layer)).collect::<Vec<_>>()},
    });
    let config = Bytes::from(config.to_string());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": layers.iter().map(|layer| descriptor(LAYER, layer)).collect::<Vec<_>>(),
    });
    let manifest = Manifest {
        bytes: manifest.to_string().into(),
        media_type: MANIFEST.to_owned(),
    };
    let blobs = std::iter::once(config).chain(layers).collect();
    Content { manifest, blobs }
}

fn descriptor(media_type: &str, blob: &Bytes) -> Value {
    json!({"mediaType": media_type, "digest": digest_of_bytes(blob), "size": blob.len()})
}

fn program_layer(tools: &Tools) -> anyhow::Result<Bytes> {
    layer("testapp", &fs::read(build(tools)?)?, 0o755)
}

fn layer(name: &str, file: &[u8], mode: u32) -> anyhow::Result<Bytes> {
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, name, file, mode)?;
    Ok(archive.into_inner()?.into())
}

fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    name: &str,
    file: &[u8],
    mode: u32,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(file.len().try_into()?);
    archive
        .append_data(&mut header, name, file)
        .with_context(|| format!("pack {name}"))
}

/// Where the program of this source is.
fn built(tools: &Tools) -> PathBuf {
    let digest = digest_of_bytes(SOURCE.as_bytes());
    let short = digest
        .trim_start_matches("sha256:")
        .get(..12)
        .unwrap_or_default();
    tools
        .cache()
        .join("testapp")
        .join(format!("testapp-{short}"))
}

fn build(tools: &Tools) -> anyhow::Result<PathBuf> {
    let program = built(tools);
    if program.exists() {
        return Ok(program);
    }
    let folder = program.parent().context("a program is in a folder")?;
    fs::create_dir_all(folder)?;
    // Test binaries that start together build it each for itself; the last one stays.
    let mine = tempfile::Builder::new().tempdir_in(folder)?;
    let output = mine.path().join("testapp");
    let made = Command::new("rustc")
        .args([
            "--edition=2024",
            "-O",
            "-Cstrip=symbols",
            "-Cpanic=abort",
            "-Ctarget-feature=+crt-static",
            "-o",
        ])
        .arg(&output)
        .arg(tools.root().join("e2e/testapp/main.rs"))
        .current_dir(tools.root())
        .output()
        .context("run rustc")?;
    if !made.status.success() {
        bail!("rustc: {}", String::from_utf8_lossy(&made.stderr));
    }
    fs::rename(&output, &program)?;
    Ok(program)
}

fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().context("a file is in a folder")?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    std::io::Write::write_all(&mut file, bytes)?;
    file.persist(path)
        .with_context(|| format!("write {}", path.display()))?;
    Ok(())
}
