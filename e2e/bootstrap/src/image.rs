//! TryLatest's own container image: one static program and nothing else.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::oci::{self, Architecture, Config, File, Image, Layer};
use crate::progress::say;
use crate::{Tools, cargo};

/// The version of this repository.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The image's name without the version, as the manifests have it.
const NAME: &str = "ghcr.io/trylatest/trylatest";

/// Static, so that the image needs no other file. Without position independence a static program
/// of glibc is smaller and needs no relocation at its start.
const RUSTFLAGS: [&str; 2] = ["-Ctarget-feature=+crt-static", "-Crelocation-model=static"];

/// What stands in the program in place of the builder's folders: panics name source files, and the
/// same sources give the same image wherever they are built.
const PLACES: [&str; 2] = ["/cargo", "/trylatest"];

/// As cargo takes flags that may hold spaces.
const SEPARATOR: &str = "\u{1f}";

/// Builds the program, and writes the image's archive if it is another than before.
///
/// # Errors
/// If something that is needed for the target is missing (the message says what to install), the
/// program does not compile, or the archive cannot be written.
pub fn build(tools: &Tools, architecture: Architecture) -> anyhow::Result<()> {
    let target = Target::of(architecture);
    if architecture != Architecture::HOST {
        target.check()?;
    }
    let program = compile(tools.root(), &target)?;
    let archive = image(architecture, &program)?.archive(&format!("{NAME}:{VERSION}"))?;
    let path = place(tools, architecture);
    let new = oci::write_if_changed(&path, &archive)
        .with_context(|| format!("write {}", path.display()))?;
    if new {
        let kib = archive.len() / 1024;
        say(&format!("Wrote {} ({kib} KiB)", path.display()));
    }
    Ok(())
}

/// This machine's image has the plain name.
fn place(tools: &Tools, architecture: Architecture) -> PathBuf {
    let image = tools.image();
    if architecture == Architecture::HOST {
        return image;
    }
    image.with_file_name(format!("trylatest-{}.tar", architecture.name()))
}

fn image(architecture: Architecture, program: &[u8]) -> anyhow::Result<Image> {
    let layer = Layer::gzip(&[File {
        path: "trylatest",
        mode: 0o755,
        content: program,
    }])?;
    let config = Config {
        architecture,
        entrypoint: &["/trylatest"],
        // The gate needs no more. The agent's manifest asks for root itself.
        user: "65532:65532",
        labels: BTreeMap::from([
            ("org.opencontainers.image.title", "trylatest"),
            ("org.opencontainers.image.version", VERSION),
            (
                "org.opencontainers.image.source",
                "https://github.com/trylatest/trylatest",
            ),
            ("org.opencontainers.image.licenses", "Apache-2.0"),
        ]),
    };
    Ok(Image::new(&config, vec![layer]))
}

/// What the compiler calls an architecture, and what it needs.
struct Target {
    triple: &'static str,
    /// The linker, and Debian's packages that bring it.
    linker: &'static str,
    packages: &'static str,
}

impl Target {
    fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::Amd64 => Self {
                triple: "x86_64-unknown-linux-gnu",
                linker: "x86_64-linux-gnu-gcc",
                packages: "gcc-x86-64-linux-gnu libc6-dev-amd64-cross",
            },
            Architecture::Arm64 => Self {
                triple: "aarch64-unknown-linux-gnu",
                linker: "aarch64-linux-gnu-gcc",
                packages: "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
            },
        }
    }

    /// Everything that a foreign target needs, before minutes go by.
    fn check(&self) -> anyhow::Result<()> {
        let output = Command::new("rustc")
            .args(["--print", "target-libdir", "--target", self.triple])
            .output()
            .context("run rustc")?;
        let libraries = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        ensure!(
            output.status.success() && libraries.exists(),
            "Rust's standard library for {0} is missing: rustup target add {0}",
            self.triple
        );
        if Command::new(self.linker).arg("--version").output().is_err() {
            bail!(
                "the linker {} is missing: apt-get install {}",
                self.linker,
                self.packages
            );
        }
        Ok(())
    }
}

/// Whether anything is to be done is cargo's to say; what it prints is the progress.
fn compile(root: &Path, target: &Target) -> anyhow::Result<Vec<u8>> {
    say("Building the image's program (about 5 minutes on 2 cores if nothing is cached)");
    let folder = root.join("target/image-build");
    let hidden = [cargo_home()?, root.to_owned()];
    let remapped = hidden.iter().zip(PLACES).map(|(from, to)| {
        let from = from.to_str().context("a path that is no text")?;
        Ok(format!("--remap-path-prefix={from}={to}"))
    });
    let remapped = remapped.collect::<anyhow::Result<Vec<_>>>()?;
    let flags = [&RUSTFLAGS.map(str::to_owned)[..], &remapped].concat();
    let mut command = cargo();
    command
        .args(["build", "--release", "--locked", "--package", "trylatest"])
        // With a target, build scripts and macros are spared the flags.
        .args(["--target", target.triple, "--target-dir"])
        .arg(&folder)
        .current_dir(root)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(SEPARATOR));
    if target.triple != Target::of(Architecture::HOST).triple {
        let name = target.triple.to_uppercase().replace('-', "_");
        command.env(format!("CARGO_TARGET_{name}_LINKER"), target.linker);
    }
    let status = command.status().context("run cargo")?;
    ensure!(status.success(), "the image's program does not build");
    let program = folder.join(target.triple).join("release/trylatest");
    let program = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    for place in hidden {
        let place = place.as_os_str().as_encoded_bytes();
        ensure!(
            !program.windows(place.len()).any(|part| part == place),
            "the image's program names the folder {}",
            place.escape_ascii()
        );
    }
    Ok(program)
}

/// Where cargo keeps the sources of dependencies.
fn cargo_home() -> anyhow::Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(PathBuf::from(home));
    }
    let home = env::home_dir().context("neither CARGO_HOME nor a home folder is known")?;
    Ok(home.join(".cargo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_name_this_image() {
        let tools = Tools::here().unwrap();
        let manifests = tools.root().join("manifests");
        for file in ["base/daemonset.yaml", "policy/pods.yaml"] {
            let text = fs::read_to_string(manifests.join(file)).unwrap();
            assert!(text.contains(&format!("{NAME}:{VERSION}")), "{file}");
        }
    }

    #[test]
    fn only_the_machines_own_image_has_the_plain_name() {
        let tools = Tools::here().unwrap();
        let other = match Architecture::HOST {
            Architecture::Amd64 => Architecture::Arm64,
            Architecture::Arm64 => Architecture::Amd64,
        };
        assert_eq!(place(&tools, Architecture::HOST), tools.image());
        let name = format!("trylatest-{}.tar", other.name());
        assert!(place(&tools, other).ends_with(name));
    }
}
