//! The programs that are built from Go modules, each pinned in a module of its own in `e2e/go`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::progress::{Line, say, watch};
use crate::{Tools, oci};

/// One folder of `e2e/go`. Its `tool` block says what is built.
struct Module {
    folder: &'static str,
    /// The required module whose version counts.
    main: &'static str,
    /// What Go calls each program, and what we do.
    programs: &'static [(&'static str, &'static str)],
    tags: &'static str,
    /// Programs that print their version read it from here.
    version_package: Option<&'static str>,
    /// With nothing cached, on 2 cores.
    takes: &'static str,
}

const MODULES: [Module; 3] = [
    Module {
        folder: "etcd",
        main: "go.etcd.io/etcd/server/v3",
        programs: &[("server", "etcd")],
        tags: "",
        version_package: None,
        takes: "half a minute",
    },
    Module {
        folder: "containerd",
        main: "github.com/containerd/containerd/v2",
        programs: &[
            ("containerd", "containerd"),
            ("containerd-shim-runc-v2", "containerd-shim-runc-v2"),
            ("ctr", "ctr"),
        ],
        // Their C libraries would have to be installed, and no test uses them.
        tags: "no_btrfs,no_devmapper,no_zfs",
        version_package: None,
        takes: "a minute",
    },
    Module {
        folder: "kubernetes",
        main: "k8s.io/kubernetes",
        programs: &[
            ("kube-apiserver", "kube-apiserver"),
            ("kube-controller-manager", "kube-controller-manager"),
            ("kube-scheduler", "kube-scheduler"),
            ("kubectl", "kubectl"),
            ("kubelet", "kubelet"),
        ],
        tags: "",
        // Without it kubelet and kubectl say that they are v0.0.0.
        version_package: Some("k8s.io/component-base/version"),
        takes: "6 minutes",
    },
];

/// Builds what is not there yet, or was built from something else.
///
/// # Errors
/// If Go is missing or too old, a module cannot be downloaded, or does not compile.
pub fn build(tools: &Tools) -> anyhow::Result<()> {
    let go = go_version()?;
    for module in &MODULES {
        module.check_go(tools, &go)?;
    }
    for module in &MODULES {
        module.make(tools, &go)?;
    }
    Ok(())
}

fn go_version() -> anyhow::Result<String> {
    let output = Command::new("go").arg("version").output();
    let output = output.context(
        "Go is missing, and the cluster's programs are written in Go: install a current version \
         (https://go.dev/doc/install), with `go` on the PATH",
    )?;
    ensure!(output.status.success(), "`go version` fails");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Major and minor number in `go version go1.26.8 linux/amd64` or in `1.26.0`; none for a Go that was
/// built from its sources in between.
fn release(version: &str) -> Option<(u32, u32)> {
    let version = version
        .trim_start_matches("go version ")
        .trim_start_matches("go");
    let mut numbers = version.split(['.', ' ']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

impl Module {
    /// Go before 1.21 would fail on the module's own requirement, with another message.
    fn check_go(&self, tools: &Tools, go: &str) -> anyhow::Result<()> {
        let go_mod = read(&self.source(tools).join("go.mod"))?;
        let needed = go_mod.lines().find_map(|line| line.strip_prefix("go "));
        let needed = needed.with_context(|| format!("{}: go.mod names no Go", self.folder))?;
        ensure!(
            release(go).is_none_or(|found| Some(found) >= release(needed)),
            "the cluster's programs need Go {needed} or newer, and this is {go}: \
             https://go.dev/doc/install"
        );
        Ok(())
    }

    fn source(&self, tools: &Tools) -> PathBuf {
        tools.root().join("e2e/go").join(self.folder)
    }

    fn make(&self, tools: &Tools, go: &str) -> anyhow::Result<()> {
        let source = self.source(tools);
        let go_mod = read(&source.join("go.mod"))?;
        let version = required(&go_mod, self.main)
            .with_context(|| format!("{} does not require {}", self.folder, self.main))?;
        let flags = self.flags(version)?;
        let stamp = stamp(&[
            &go_mod,
            &read(&source.join("go.sum"))?,
            &flags.join("\n"),
            go,
        ]);
        let stamp_path = tools.cache().join("stamps").join(self.folder);
        let built = self
            .programs
            .iter()
            .all(|(_, name)| tools.built(name).exists());
        if built && fs::read_to_string(&stamp_path).is_ok_and(|old| old == stamp) {
            return Ok(());
        }
        let name = format!("{} {version}", self.folder);
        say(&format!(
            "Building {name} (about {} on 2 cores if nothing is cached)",
            self.takes
        ));
        let staging = tools.cache().join("staging").join(self.folder);
        compile(&name, &source, &flags, &staging)?;
        // Until the last program is in its place, nothing says that they belong together.
        let _ = fs::remove_file(&stamp_path);
        self.install(tools, &staging)?;
        oci::write_if_changed(&stamp_path, stamp.as_bytes())?;
        Ok(())
    }

    fn flags(&self, version: &str) -> anyhow::Result<Vec<String>> {
        let version = match self.version_package {
            Some(package) => version_flags(package, version)?,
            None => String::new(),
        };
        let mut flags = vec![
            "-buildvcs=false".to_owned(),
            "-trimpath".to_owned(),
            format!("-ldflags=-s -w{version}"),
        ];
        if !self.tags.is_empty() {
            flags.push(format!("-tags={}", self.tags));
        }
        Ok(flags)
    }

    /// Each program is whole at every moment; one that runs goes on with its old file.
    fn install(&self, tools: &Tools, staging: &Path) -> anyhow::Result<()> {
        for (from, name) in self.programs {
            let to = tools.built(name);
            let folder = to.parent().map(PathBuf::from).unwrap_or_default();
            fs::create_dir_all(&folder)?;
            fs::rename(staging.join(from), &to)
                .with_context(|| format!("put {name} into {}", folder.display()))?;
        }
        fs::remove_dir(staging).context("the `tool` block has more programs than we know")
    }
}

fn compile(name: &str, source: &Path, flags: &[String], staging: &Path) -> anyhow::Result<()> {
    // What an interrupted build left there may be half a program, and go would take it for whole.
    let _ = fs::remove_dir_all(staging);
    fs::create_dir_all(staging).with_context(|| format!("make {}", staging.display()))?;
    let mut command = Command::new("go");
    command
        .args(["build", "-v"])
        .args(flags)
        .arg("-o")
        // With the slash it is a folder for all of them.
        .arg(staging.join(""))
        .arg("tool")
        .current_dir(source)
        // What the machine's owner has set for other programs is not for these.
        .env("GOFLAGS", "-mod=readonly")
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0");
    watch(name, "packages", command, said_by_go)
}

/// Where Kubernetes' programs look for what they say they are.
fn version_flags(package: &str, version: &str) -> anyhow::Result<String> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (Some(major), Some(minor), Some(_)) = (numbers.next(), numbers.next(), numbers.next())
    else {
        bail!("{version} is not a version");
    };
    Ok(format!(
        " -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    ))
}

/// With `-v` each package is a line without a space; downloads are progress too.
fn said_by_go(line: &str) -> Line {
    if line.starts_with("go: downloading ") || !line.contains(' ') {
        Line::Step
    } else {
        Line::Word
    }
}

/// The version of a module that a go.mod requires.
fn required<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let line = line.trim().trim_start_matches("require ");
        let version = line.strip_prefix(module)?.strip_prefix(' ')?;
        version.split_whitespace().next()
    })
}

/// Changes when anything does of which the programs are made.
fn stamp(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // The length keeps a part's end apart from the next one's beginning.
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    oci::hex(&hash.finalize())
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_requires_what_it_is_named_for() {
        let tools = Tools::here().unwrap();
        for module in &MODULES {
            let path = tools
                .root()
                .join("e2e/go")
                .join(module.folder)
                .join("go.mod");
            let go_mod = read(&path).unwrap();
            let version = required(&go_mod, module.main);
            assert!(
                version.is_some_and(|v| v.starts_with('v')),
                "{}",
                module.main
            );
        }
    }

    #[test]
    fn a_go_that_is_too_old_is_named() {
        let tools = Tools::here().unwrap();
        for go in [
            "go version go1.19.8 linux/amd64",
            "go version go1.25.1 linux/amd64",
        ] {
            let error = MODULES[2].check_go(&tools, go).unwrap_err().to_string();
            assert!(
                error.contains("or newer, and this is go version go1."),
                "{error}"
            );
        }
        for go in [
            "go version go1.99 linux/amd64",
            "go version go2.0.1 linux/amd64",
            "go version devel x",
        ] {
            MODULES[2].check_go(&tools, go).unwrap();
        }
    }

    #[test]
    fn a_version_is_read_in_either_form() {
        let block = "require (\n\texample.com/a/b v1.0.0 // indirect\n\texample.com/a v2.3.4\n)\n";
        assert_eq!(required(block, "example.com/a"), Some("v2.3.4"));
        assert_eq!(required(block, "example.com/a/b"), Some("v1.0.0"));
        let line = "require example.com/a v2.3.4\n";
        assert_eq!(required(line, "example.com/a"), Some("v2.3.4"));
        assert_eq!(required(line, "example.com"), None);
    }

    #[test]
    fn kubernetes_is_told_its_version() {
        let flags = MODULES[2].flags("v1.37.2").unwrap().join(" ");
        for part in ["gitVersion=v1.37.2", "gitMajor=1 ", "gitMinor=37"] {
            assert!(flags.contains(part), "{flags}");
        }
        assert!(MODULES[2].flags("latest").is_err());
    }

    #[test]
    fn a_stamp_changes_with_each_part() {
        let stamps = [
            stamp(&["mod", "sum", "flags", "go"]),
            stamp(&["mod1", "sum", "flags", "go"]),
            stamp(&["mod", "sum1", "flags", "go"]),
            stamp(&["mod", "sum", "flags1", "go"]),
            stamp(&["mod", "sum", "flags", "go1"]),
            stamp(&["mods", "um", "flags", "go"]),
        ];
        for (number, one) in stamps.iter().enumerate() {
            assert!(!stamps[number + 1..].contains(one));
        }
        assert_eq!(stamps[0], stamp(&["mod", "sum", "flags", "go"]));
    }

    #[test]
    fn what_go_says_is_progress_or_is_kept() {
        assert!(matches!(said_by_go("k8s.io/api/core/v1"), Line::Step));
        assert!(matches!(said_by_go("go: downloading a v1"), Line::Step));
        assert!(matches!(said_by_go("# k8s.io/api/core/v1"), Line::Word));
        assert!(matches!(said_by_go("./a.go:1:2: undefined: x"), Line::Word));
    }
}
