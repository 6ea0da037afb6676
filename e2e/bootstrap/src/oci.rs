//! A writer of container images for which no image and no daemon has to be there first.
//!
//! The same input gives the same bytes, on every machine: no time, no owner and no order of its own
//! gets in.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The processor for which an image is, in OCI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `x86_64`.
    Amd64,
    /// `aarch64`.
    Arm64,
}

impl Architecture {
    /// This machine's. Whatever is neither of the two is taken for the first.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") {
        Self::Arm64
    } else {
        Self::Amd64
    };

    /// As it stands in an image's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// What an image says of itself beside its files.
#[derive(Clone, Debug)]
pub struct Config<'a> {
    /// For which processor it is.
    pub architecture: Architecture,
    /// What runs.
    pub entrypoint: &'a [&'a str],
    /// As whom, where the pod does not say; empty: root.
    pub user: &'a str,
    /// The labels.
    pub labels: BTreeMap<&'a str, &'a str>,
}

/// A file of a layer. It belongs to root.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// Without the leading slash.
    pub path: &'a str,
    /// The permissions.
    pub mode: u32,
    /// The content.
    pub content: &'a [u8],
}

/// A layer.
#[derive(Clone, Debug)]
pub struct Layer {
    blob: Vec<u8>,
    media_type: &'static str,
    diff_id: String,
}

impl Layer {
    /// A layer as it is.
    ///
    /// # Errors
    /// If a path is too long for an archive.
    pub fn plain(files: &[File<'_>]) -> io::Result<Self> {
        let blob = archive(files)?;
        Ok(Self {
            diff_id: digest(&blob),
            media_type: LAYER,
            blob,
        })
    }

    /// A compressed layer.
    ///
    /// # Errors
    /// If a path is too long for an archive.
    pub fn gzip(files: &[File<'_>]) -> io::Result<Self> {
        let tar = archive(files)?;
        // Otherwise its header would contain a time and an operating system.
        let builder = GzBuilder::new().mtime(0).operating_system(255);
        let mut encoder = builder.write(Vec::new(), Compression::best());
        encoder.write_all(&tar)?;
        Ok(Self {
            diff_id: digest(&tar),
            media_type: LAYER_GZIP,
            blob: encoder.finish()?,
        })
    }
}

/// An image of one platform: what is uploaded for it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest.
    pub manifest: Vec<u8>,
    /// The manifest's media type.
    pub media_type: &'static str,
    /// The configuration, then the layers.
    pub blobs: Vec<Vec<u8>>,
}

impl Image {
    /// An image of these layers, the lowest first.
    pub fn new(config: &Config<'_>, layers: Vec<Layer>) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let mut process = json!({"Entrypoint": config.entrypoint});
        if !config.user.is_empty() {
            process["User"] = json!(config.user);
        }
        if !config.labels.is_empty() {
            process["Labels"] = json!(config.labels);
        }
        let config = json!({
            "architecture": config.architecture.name(),
            "os": "linux",
            "config": process,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": layers.iter().map(|l| descriptor(l.media_type, &l.blob)).collect::<Vec<_>>(),
        });
        let layers = layers.into_iter().map(|layer| layer.blob);
        Self {
            manifest: manifest.to_string().into_bytes(),
            media_type: MANIFEST,
            blobs: std::iter::once(config).chain(layers).collect(),
        }
    }

    /// What a pull by digest names.
    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// The image under one full name, as an archive for `ctr images import` and its like.
    ///
    /// # Errors
    /// None that memory does not cause.
    pub fn archive(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut entry = descriptor(self.media_type, &self.manifest);
        // containerd reads the first; tools that know OCI's layout only, the second.
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        entry["annotations"] = json!({
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": tag,
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        let index = index.to_string();
        let blobs = self.blobs.iter().chain([&self.manifest]);
        let blobs: Vec<_> = blobs
            .map(|blob| (format!("blobs/{}", digest(blob).replace(':', "/")), blob))
            .collect();
        let mut files = vec![
            file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
            file("index.json", index.as_bytes()),
        ];
        files.extend(blobs.iter().map(|(path, blob)| file(path, blob)));
        archive(&files)
    }
}

/// Writes a file, whole or not at all, unless it holds the same already. Says whether it wrote.
///
/// # Errors
/// If it cannot be written.
pub fn write_if_changed(path: &Path, content: &[u8]) -> io::Result<bool> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // Several processes may write the same file.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let ours = folder.join(name);
    let written = fs::write(&ours, content).and_then(|()| fs::rename(&ours, path));
    if written.is_err() {
        let _ = fs::remove_file(&ours);
    }
    written.map(|()| true)
}

/// A digest as registries write it.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn file<'a>(path: &'a str, content: &'a [u8]) -> File<'a> {
    File {
        path,
        mode: 0o644,
        content,
    }
}

fn archive(files: &[File<'_>]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(file.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(file.content.len() as u64);
        archive.append_data(&mut header, file.path, file.content)?;
    }
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn image(layer: Layer) -> Image {
        let config = Config {
            architecture: Architecture::Amd64,
            entrypoint: &["/app", "run"],
            user: "65532:65532",
            labels: BTreeMap::from([("b", "2"), ("a", "1")]),
        };
        Image::new(&config, vec![layer])
    }

    fn app() -> File<'static> {
        File {
            path: "app",
            mode: 0o755,
            content: b"program",
        }
    }

    /// The files of an archive by their paths.
    fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (path, content)
        });
        entries.collect()
    }

    /// The blob that a descriptor names, after a look at its size.
    fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let name = descriptor["digest"].as_str().unwrap().replace(':', "/");
        let blob = &files[&format!("blobs/{name}")];
        assert_eq!(descriptor["size"], blob.len());
        blob
    }

    #[test]
    fn the_digest_is_the_same_on_every_machine() {
        let image = image(Layer::plain(&[app()]).unwrap());
        let seen = "sha256:9b3fb29229487e2e85ab21580bbcb323b1ab759095145ae80847d24053d587a4";
        assert_eq!(image.digest(), seen);
    }

    #[test]
    fn the_same_content_is_the_same_archive() {
        let one = image(Layer::gzip(&[app()]).unwrap());
        let other = image(Layer::gzip(&[app()]).unwrap());
        let name = "example.com/app:1";
        assert_eq!(one.archive(name).unwrap(), other.archive(name).unwrap());
    }

    #[test]
    fn an_archive_leads_from_the_name_to_the_program() {
        let image = image(Layer::gzip(&[app()]).unwrap());
        let files = unpack(&image.archive("example.com:5000/app:1.2").unwrap());
        assert!(files.contains_key("oci-layout"));
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let entry = &index["manifests"][0];
        assert_eq!(entry["digest"], image.digest());
        let names = &entry["annotations"];
        assert_eq!(
            names["io.containerd.image.name"],
            "example.com:5000/app:1.2"
        );
        assert_eq!(names["org.opencontainers.image.ref.name"], "1.2");

        let manifest: Value = serde_json::from_slice(blob(&files, entry)).unwrap();
        let config: Value = serde_json::from_slice(blob(&files, &manifest["config"])).unwrap();
        assert_eq!(config["architecture"], "amd64");
        assert_eq!(config["config"]["Entrypoint"], json!(["/app", "run"]));
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Labels"], json!({"a": "1", "b": "2"}));

        let mut tar = Vec::new();
        let layer = blob(&files, &manifest["layers"][0]);
        flate2::read::GzDecoder::new(layer)
            .read_to_end(&mut tar)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&tar)]));
        assert_eq!(unpack(&tar)["app"], b"program");
    }

    #[test]
    fn a_program_belongs_to_root_and_can_run() {
        let tar = archive(&[app()]).unwrap();
        let mut tar = tar::Archive::new(&tar[..]);
        let entry = tar.entries().unwrap().next().unwrap().unwrap();
        let header = entry.header();
        assert_eq!(header.mode().unwrap(), 0o755);
        assert_eq!(header.uid().unwrap(), 0);
        assert_eq!(header.gid().unwrap(), 0);
        assert_eq!(header.mtime().unwrap(), 0);
    }

    #[test]
    fn a_file_is_written_only_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/file");
        assert!(write_if_changed(&path, b"one").unwrap());
        assert!(!write_if_changed(&path, b"one").unwrap());
        assert!(write_if_changed(&path, b"two").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
