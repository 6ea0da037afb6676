//! Manifests, indexes of them and image configurations: only what a proof needs of them.
//!
//! This reads them as leniently as containerd does, and refuses what containerd would refuse.

use serde::Deserialize;

use crate::content;

/// Names a document or layer by its digest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Descriptor {
    pub(crate) digest: String,
    /// In bytes.
    pub(crate) size: u64,
    #[serde(rename = "mediaType", default)]
    pub(crate) media_type: String,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
}

impl Descriptor {
    /// Of what containerd has stored; its sizes are signed.
    pub(crate) fn stored(digest: String, size: i64) -> Self {
        Self {
            digest,
            size: u64::try_from(size).unwrap_or(0),
            media_type: String::new(),
            platform: None,
        }
    }

    /// Whether it is a layer of the root file system, and not something else that comes with the image, such as a
    /// WebAssembly module (`core/images/mediatypes.go`, `IsLayerType`). Without a type, it is one.
    pub(crate) fn is_of_root(&self) -> bool {
        const OCI: &str = "application/vnd.oci.image.layer.";
        const DOCKER: &str = "application/vnd.docker.image.rootfs.";
        const EROFS: &str = "application/vnd.erofs.layer.v1";
        let kind = &self.media_type;
        let is_erofs = kind.split('+').next() == Some(EROFS);
        kind.is_empty() || kind.starts_with(OCI) || kind.starts_with(DOCKER) || is_erofs
    }
}

/// An operating system and architecture.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
}

/// What an image's name points to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Raw")]
pub(crate) enum Document {
    /// One manifest per platform.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest(Manifest),
}

/// One image: its configuration and layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

impl Manifest {
    /// The layers that a container's root file system is made of, lowest first: those that the configuration names.
    pub(crate) fn layers_of_root(&self) -> impl Iterator<Item = &Descriptor> {
        self.layers.iter().filter(|layer| layer.is_of_root())
    }

    /// The size of all that is downloaded for it, in bytes.
    pub(crate) fn total_bytes(&self) -> u64 {
        let layers = self.layers.iter().map(|layer| layer.size);
        layers.fold(self.config.size, u64::saturating_add)
    }

    /// The digests of all that is downloaded for it.
    pub(crate) fn blobs(&self) -> Vec<&str> {
        let layers = self.layers.iter().map(|layer| layer.digest.as_str());
        layers.chain([self.config.digest.as_str()]).collect()
    }
}

#[derive(Deserialize)]
struct Raw {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

impl TryFrom<Raw> for Document {
    type Error = &'static str;

    fn try_from(raw: Raw) -> Result<Self, Self::Error> {
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) => Ok(Self::Index(manifests)),
            (None, Some(config), layers) => Ok(Self::Manifest(Manifest {
                config,
                layers: layers.unwrap_or_default(),
            })),
            // Both at once is a known trick to show different images to different readers.
            _ => Err("neither a manifest nor an index of manifests"),
        }
    }
}

/// An image's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Config {
    #[serde(flatten)]
    pub(crate) platform: Platform,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

impl Config {
    /// How many layers it names.
    pub(crate) fn layers(&self) -> usize {
        self.rootfs.diff_ids.len()
    }

    /// The names of the unpacked layers' snapshots, lowest first: each layer's name depends on all
    /// below it.
    pub(crate) fn chain_ids(&self) -> Vec<String> {
        let mut chain: Vec<String> = Vec::with_capacity(self.rootfs.diff_ids.len());
        for diff in &self.rootfs.diff_ids {
            chain.push(match chain.last() {
                None => diff.clone(),
                Some(below) => content::sha256(format!("{below} {diff}").as_bytes()),
            });
        }
        chain
    }
}

impl Platform {
    /// The platform of the node that this program runs on.
    pub(crate) fn of_this_node() -> Self {
        Self {
            os: std::env::consts::OS.to_owned(),
            architecture: of_rust(std::env::consts::ARCH, cfg!(target_endian = "little"))
                .to_owned(),
        }
    }

    /// Whether containerd runs images of the other platform on this one: its own, and the 32-bit
    /// one of the same family. Variants (`v7`, `v8`) are not compared: containerd asks the processor.
    pub(crate) fn runs(&self, other: &Self) -> bool {
        // containerd ignores the case of both, and takes what is missing for this node's own.
        let (os, theirs) = (
            other.os.to_ascii_lowercase(),
            other.architecture.to_ascii_lowercase(),
        );
        let theirs = architecture(&theirs);
        (os.is_empty() || os == self.os)
            && (theirs.is_empty()
                || theirs == self.architecture
                || matches!(
                    (self.architecture.as_str(), theirs),
                    ("amd64", "386") | ("arm64", "arm")
                ))
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// Architectures as images name them, from the other names that containerd reads
/// (`platforms/database.go`, `normalizeArch`).
fn architecture(name: &str) -> &str {
    match name {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "i386" => "386",
        "armhf" | "armel" => "arm",
        other => other,
    }
}

/// Architectures as Go and images name them, from Rust's names, which leave out the byte order.
fn of_rust(name: &str, little_endian: bool) -> &str {
    match (name, little_endian) {
        ("x86", _) => "386",
        ("x86_64", _) => "amd64",
        ("aarch64", _) => "arm64",
        ("powerpc64", true) => "ppc64le",
        ("powerpc64", false) => "ppc64",
        ("powerpc", _) => "ppc",
        ("mips" | "mips32r6", true) => "mipsle",
        ("mips" | "mips32r6", false) => "mips",
        ("mips64" | "mips64r6", true) => "mips64le",
        ("mips64" | "mips64r6", false) => "mips64",
        ("loongarch64", _) => "loong64",
        // arm, riscv64, s390x, sparc64 and what Go does not know.
        (other, _) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(os: &str, architecture: &str) -> Platform {
        Platform {
            os: os.into(),
            architecture: architecture.into(),
        }
    }

    #[test]
    fn a_manifest_and_an_index_are_told_apart() {
        let manifest = r#"{"schemaVersion":2,"config":{"digest":"sha256:c","size":3},
            "layers":[{"digest":"sha256:l","size":4,"annotations":{}}]}"#;
        let Document::Manifest(manifest) = serde_json::from_str(manifest).unwrap() else {
            panic!("a manifest");
        };
        assert_eq!(manifest.total_bytes(), 7);
        let index = r#"{"manifests":[{"digest":"sha256:m","size":1,
            "platform":{"os":"linux","architecture":"arm64","variant":"v8"}}]}"#;
        let Document::Index(manifests) = serde_json::from_str(index).unwrap() else {
            panic!("an index");
        };
        assert_eq!(manifests[0].platform, Some(platform("linux", "arm64")));
    }

    #[test]
    fn what_comes_with_an_image_is_no_layer_of_its_root() {
        for (media_type, is_of_root) in [
            ("", true),
            ("application/vnd.oci.image.layer.v1.tar+zstd", true),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar",
                true,
            ),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                true,
            ),
            ("application/vnd.erofs.layer.v1+zstd", true),
            ("application/vnd.wasm.content.layer.v1+wasm", false),
            ("application/vnd.in-toto+json", false),
        ] {
            let layer = Descriptor {
                media_type: media_type.to_owned(),
                ..Descriptor::stored("sha256:l".into(), 4)
            };
            assert_eq!(layer.is_of_root(), is_of_root, "{media_type}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for bad in [
            "{}",
            "[]",
            r#"{"layers":[]}"#,
            r#"{"manifests":[],"config":{"digest":"sha256:c","size":3}}"#,
            r#"{"config":{"digest":"sha256:c","size":-3}}"#,
        ] {
            assert!(serde_json::from_str::<Document>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_chain_names_each_layer_with_those_below_it() {
        let config: Config = serde_json::from_str(
            r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:a","sha256:b"]}}"#,
        )
        .unwrap();
        assert_eq!(
            config.chain_ids(),
            ["sha256:a".to_owned(), content::sha256(b"sha256:a sha256:b")]
        );
        assert_eq!(config.platform, platform("linux", "amd64"));
    }

    #[test]
    fn a_node_runs_what_containerd_would_choose_for_it() {
        for (node, image, runs) in [
            ("amd64", "amd64", true),
            ("amd64", "x86_64", true),
            ("amd64", "386", true),
            ("amd64", "arm64", false),
            ("arm64", "arm", true),
            ("arm64", "aarch64", true),
            ("386", "amd64", false),
        ] {
            let node = platform("linux", node);
            assert!(
                node.runs(&platform("Linux", "")),
                "containerd takes it for its own"
            );
            assert_eq!(
                node.runs(&platform("", &image.to_uppercase())),
                runs,
                "{node} {image}"
            );
            assert_eq!(node.runs(&platform("linux", image)), runs, "{node} {image}");
            assert!(!node.runs(&platform("windows", image)));
        }
        assert_eq!(
            Platform::of_this_node().to_string(),
            format!(
                "linux/{}",
                of_rust(std::env::consts::ARCH, cfg!(target_endian = "little"))
            )
        );
    }

    #[test]
    fn variants_of_arm_run_on_both_arms() {
        for variant in ["v5", "v6", "v7", "v8"] {
            let image = format!(r#"{{"architecture":"arm","os":"linux","variant":"{variant}"}}"#);
            let image: Platform = serde_json::from_str(&image).unwrap();
            assert!(platform("linux", "arm").runs(&image));
            assert!(platform("linux", "arm64").runs(&image));
            assert!(!platform("linux", "amd64").runs(&image));
        }
    }

    /// Every architecture for which Rust and Go have a Linux, by the names of both.
    #[test]
    fn architectures_have_their_go_names() {
        for (rust, little_endian, go) in [
            ("x86", true, "386"),
            ("x86_64", true, "amd64"),
            ("arm", true, "arm"),
            ("aarch64", true, "arm64"),
            ("powerpc64", true, "ppc64le"),
            ("powerpc64", false, "ppc64"),
            ("s390x", false, "s390x"),
            ("riscv64", true, "riscv64"),
            ("loongarch64", true, "loong64"),
            ("mips", false, "mips"),
            ("mips", true, "mipsle"),
            ("mips64", false, "mips64"),
            ("mips64", true, "mips64le"),
            ("mips64r6", true, "mips64le"),
            ("sparc64", false, "sparc64"),
        ] {
            let name = of_rust(rust, little_endian);
            assert_eq!(name, go, "{rust}");
            assert_eq!(architecture(name), go, "containerd reads {go} as itself");
        }
    }
}
