//! The images of the tests: one static program, and a file that says which version this is.
//!
//! Built on this machine by `rustc` alone, so that no image has to come from anywhere.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};
use rand::RngExt as _;
use serde_json::{Value, json};
use trylatest_bootstrap::oci::{self, Architecture, Config, File, Image, Layer};

use crate::cluster::Tools;
use crate::registry::{Content, Manifest};

/// The image of pod sandboxes.
pub const PAUSE: &str = "e2e.trylatest.dev/pause:1";

/// As `node_modules` and the like have.
const FILES_A_FOLDER: usize = 100;

const SOURCE: &str = include_str!("../testapp/main.rs");

/// An image that prints `version` (whose last line wants a line feed to show in the log) and waits
/// for SIGTERM, on which it ends at once.
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
    let image = image(Architecture::HOST, &["/testapp"], layers);
    Ok(image.into())
}

/// The same with a layer of so many small files, different each time.
///
/// # Errors
/// If the program cannot be built.
pub fn app_of_files(tools: &Tools, version: &str, count: usize) -> anyhow::Result<Content> {
    let salt: [u8; 16] = rand::random();
    let paths: Vec<String> = (0..count)
        .map(|n| format!("files/{}/{n}", n / FILES_A_FOLDER))
        .collect();
    let files: Vec<File<'_>> = paths
        .iter()
        .map(|path| File {
            path,
            mode: 0o644,
            content: &salt,
        })
        .collect();
    let layers = vec![
        program_layer(tools)?,
        layer("version", version.as_bytes(), 0o644)?,
        Layer::plain(&files).context("pack the files")?,
    ];
    Ok(image(Architecture::HOST, &["/testapp"], layers).into())
}

/// The same in a single layer that no other image has, nor the same image made again: whoever pulls it
/// downloads all of it.
///
/// # Errors
/// If the program cannot be built.
pub fn app_of_its_own(tools: &Tools, version: &str) -> anyhow::Result<Content> {
    let program = fs::read(build(tools)?)?;
    let salt: [u8; 16] = rand::random();
    let file = |path, content, mode| File {
        path,
        mode,
        content,
    };
    let files = [
        file("testapp", &program[..], 0o755),
        file("version", version.as_bytes(), 0o644),
        file("salt", &salt[..], 0o644),
    ];
    let layers = vec![Layer::plain(&files).context("pack the app")?];
    Ok(image(Architecture::HOST, &["/testapp"], layers).into())
}

/// The same, but its configuration says that it is for a machine of another kind than this one.
///
/// # Errors
/// If the program cannot be built.
pub fn app_for_another_machine(tools: &Tools, version: &str) -> anyhow::Result<Content> {
    let other = match Architecture::HOST {
        Architecture::Amd64 => Architecture::Arm64,
        Architecture::Arm64 => Architecture::Amd64,
    };
    let layers = vec![
        program_layer(tools)?,
        layer("version", version.as_bytes(), 0o644)?,
    ];
    let image = image(other, &["/testapp"], layers);
    Ok(image.into())
}

/// The same, but its configuration says that it is for another operating system.
///
/// # Errors
/// If the program cannot be built.
pub fn app_for_another_system(tools: &Tools, version: &str) -> anyhow::Result<Content> {
    let layers = vec![
        program_layer(tools)?,
        layer("version", version.as_bytes(), 0o644)?,
    ];
    let mut image = image(Architecture::HOST, &["/testapp"], layers);
    let config = image.blobs.first_mut().context("a configuration")?;
    let before = oci::digest(config);
    // Of the same length, so that the manifest's sizes stay true.
    *config = replaced(config, r#""os":"linux""#, r#""os":"plan9""#)?;
    let after = oci::digest(config);
    image.manifest = replaced(&image.manifest, &before, &after)?;
    Ok(image.into())
}

/// The same with something that is no layer of a file system before its layers, as an image that also has a
/// WebAssembly module.
///
/// # Errors
/// If the program cannot be built.
pub fn app_with_a_module(tools: &Tools, version: &str) -> anyhow::Result<Content> {
    let mut content = app(tools, version)?;
    let module = format!("\0asm{version}").into_bytes();
    let mut manifest: Value = serde_json::from_slice(&content.manifest.bytes)?;
    let layers = manifest["layers"].as_array_mut().context("no layers")?;
    let descriptor = json!({
        "mediaType": "application/vnd.wasm.content.layer.v1+wasm",
        "digest": oci::digest(&module),
        "size": module.len(),
    });
    layers.insert(0, descriptor);
    content.manifest.bytes = serde_json::to_vec(&manifest)?.into();
    content.blobs.push(module.into());
    Ok(content)
}

fn replaced(text: &[u8], from: &str, to: &str) -> anyhow::Result<Vec<u8>> {
    let text = std::str::from_utf8(text)?;
    anyhow::ensure!(text.contains(from), "no {from} in {text}");
    Ok(text.replace(from, to).into_bytes())
}

/// TryLatest's own image as it is released.
///
/// # Errors
/// It is not built.
pub fn released(tools: &Tools) -> anyhow::Result<Content> {
    let path = tools.image();
    let read = || {
        let mut blobs = BTreeMap::new();
        let mut archive = tar::Archive::new(fs::File::open(&path)?);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let name = entry.path()?.display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            blobs.insert(name, bytes);
        }
        anyhow::Ok(blobs)
    };
    let mut files = read().with_context(|| format!("read {}", path.display()))?;
    let index: Value = serde_json::from_slice(files.get("index.json").context("no index")?)?;
    let digest = index["manifests"][0]["digest"].as_str();
    let digest = digest.context("no manifest")?.replace(':', "/");
    let manifest = files.remove(&format!("blobs/{digest}"));
    let blobs = files
        .into_iter()
        .filter(|(name, _)| name.starts_with("blobs/"));
    Ok(Content {
        manifest: Manifest {
            bytes: manifest.context("no manifest")?.into(),
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        },
        blobs: blobs.map(|(_, bytes)| bytes.into()).collect(),
    })
}

/// The image of pod sandboxes as an archive for `ctr images import`.
///
/// # Errors
/// If the program cannot be built, or the archive not be written.
pub fn pause_archive(tools: &Tools) -> anyhow::Result<PathBuf> {
    let layers = vec![program_layer(tools)?];
    let image = image(Architecture::HOST, &["/testapp", "pause"], layers);
    let path = built(tools).with_extension("pause.tar");
    oci::write_if_changed(&path, &image.archive(PAUSE)?)
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn image(architecture: Architecture, entrypoint: &[&str], layers: Vec<Layer>) -> Image {
    let config = Config {
        architecture,
        entrypoint,
        user: "",
        labels: BTreeMap::new(),
    };
    Image::new(&config, layers)
}

fn program_layer(tools: &Tools) -> anyhow::Result<Layer> {
    layer("testapp", &fs::read(build(tools)?)?, 0o755)
}

fn layer(path: &str, content: &[u8], mode: u32) -> anyhow::Result<Layer> {
    let file = File {
        path,
        mode,
        content,
    };
    Layer::plain(&[file]).with_context(|| format!("pack {path}"))
}

/// Where the program of this source is.
fn built(tools: &Tools) -> PathBuf {
    let digest = oci::digest(SOURCE.as_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_its_own_shares_nothing_with_its_twin() {
        let tools = Tools::here().unwrap();
        let [one, other] = ["v1\n"; 2].map(|version| app_of_its_own(&tools, version).unwrap());
        assert_eq!(one.blobs.len(), 2, "a layer and the configuration");
        assert!(one.blobs.iter().all(|blob| !other.blobs.contains(blob)));
    }
}
