//! What comes as Debian packages: a few are installed, those that would start a service or stand in
//! the way of the machine's own are only unpacked.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use rustix::process::geteuid;

use crate::Tools;
use crate::progress::{Clock, say};

/// For what something is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To build TryLatest.
    Image,
    /// To run a cluster, too.
    Cluster,
}

/// A package that is installed.
struct Package {
    name: &'static str,
    proof: Proof,
    need: Need,
}

/// By what one sees that a package is there, from wherever it came.
enum Proof {
    Program(&'static str),
    File(&'static str),
}

const INSTALLED: [Package; 4] = [
    Package {
        name: "protobuf-compiler",
        proof: Proof::Program("protoc"),
        need: Need::Image,
    },
    // For libFuzzer.
    Package {
        name: "g++",
        proof: Proof::Program("c++"),
        need: Need::Cluster,
    },
    Package {
        name: "runc",
        proof: Proof::File("/usr/sbin/runc"),
        need: Need::Cluster,
    },
    Package {
        name: "containernetworking-plugins",
        proof: Proof::File("/usr/lib/cni/ptp"),
        need: Need::Cluster,
    },
];

/// A package that is unpacked below `target`. Its programs need no library but the C library.
struct Unpacked {
    name: &'static str,
    /// Without the leading slash.
    program: &'static str,
    /// How the version begins.
    version: &'static str,
    /// Whether nothing but its own tests needs it: they are skipped without it.
    optional: bool,
}

const REGISTRY: Unpacked = Unpacked {
    name: "docker-registry",
    program: "usr/bin/docker-registry",
    version: "2.",
    optional: false,
};

/// The oldest containerd that is tested. Debian 12 has it, others have not.
const CONTAINERD: Unpacked = Unpacked {
    name: "containerd",
    program: "usr/bin/containerd",
    version: "1.6.",
    optional: true,
};

/// Reads the alerts and dashboards, with promtool. Installed, it would start a service.
const PROMETHEUS: Unpacked = Unpacked {
    name: "prometheus",
    program: "usr/bin/prometheus",
    version: "2.",
    optional: true,
};

/// Whether there is a containerd 1.6, the machine's own or an unpacked one.
pub(crate) fn has_containerd(tools: &Tools) -> bool {
    CONTAINERD.is_there(tools)
}

/// Brings in what is missing.
///
/// # Errors
/// If something is missing that cannot be brought in here (not root, or no Debian); the message
/// holds the command to run. If apt fails.
pub fn bring_in(tools: &Tools, need: Need) -> anyhow::Result<()> {
    let packages: Vec<_> = INSTALLED
        .iter()
        .filter(|package| need == Need::Cluster || package.need == Need::Image)
        .filter(|package| !package.proof.holds())
        .map(|package| package.name)
        .collect();
    let unpacked: Vec<_> = [REGISTRY, CONTAINERD, PROMETHEUS]
        .into_iter()
        .filter(|package| need == Need::Cluster && !package.is_there(tools))
        .collect();
    if packages.is_empty() && unpacked.is_empty() {
        return Ok(());
    }
    let debian = Proof::Program("apt-get").holds();
    if !packages.is_empty() {
        ensure!(debian && geteuid().is_root(), remedy(debian, &packages));
        install(&packages)?;
    }
    for package in unpacked {
        package.bring_in(tools, debian)?;
    }
    Ok(())
}

fn remedy(debian: bool, packages: &[&str]) -> String {
    let packages = packages.join(" ");
    let command = format!("apt-get install --no-install-recommends {packages}");
    if debian {
        format!("packages are missing, and only root can install them: sudo {command}")
    } else {
        format!(
            "programs are missing, and this is not a Debian-like system. Install what these Debian \
             packages contain, in the same places: {packages} (on Debian: {command})"
        )
    }
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    say(&format!("Installing {}", packages.join(", ")));
    let clock = Clock::start();
    update();
    apt(
        Path::new("/"),
        &["install", "--yes", "--no-install-recommends"],
        packages,
    )?;
    say(&format!("  done in {}", clock.elapsed()));
    Ok(())
}

/// A source that does not answer may be one from which nothing is needed.
fn update() {
    if let Err(error) = apt(Path::new("/"), &["update"], &[]) {
        say(&format!(
            "  continuing with the present package lists: {error:#}"
        ));
    }
}

fn apt(folder: &Path, args: &[&str], packages: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("apt-get")
        .args(["-qq", "-o", "DPkg::Lock::Timeout=120"])
        .args(args)
        .args(packages)
        .current_dir(folder)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .context("run apt-get")?;
    ensure!(
        status.success(),
        "`apt-get {} {}` ended with {status}",
        args.join(" "),
        packages.join(" ")
    );
    Ok(())
}

impl Proof {
    fn holds(&self) -> bool {
        match self {
            Self::Program(name) => Command::new(name).arg("--version").output().is_ok(),
            Self::File(path) => Path::new(path).exists(),
        }
    }
}

impl Unpacked {
    fn is_there(&self, tools: &Tools) -> bool {
        if tools.unpacked(self.name).join(self.program).exists() {
            return true;
        }
        let system = Path::new("/").join(self.program);
        let output = Command::new(system).arg("--version").output();
        // `containerd github.com/containerd/containerd 1.6.20~ds1 …`
        output.is_ok_and(|output| {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            said.split_whitespace()
                .any(|word| word.starts_with(self.version))
        })
    }

    fn bring_in(&self, tools: &Tools, debian: bool) -> anyhow::Result<()> {
        let mut listed = if debian { self.listed()? } else { Vec::new() };
        if listed.is_empty() && debian && geteuid().is_root() {
            update();
            listed = self.listed()?;
        }
        let version = listed.iter().find(|v| v.starts_with(self.version));
        match version {
            Some(version) => self.unpack(tools, version),
            None if self.optional => {
                say(&format!(
                    "This machine's package lists have no {} {}x: tests that need it are skipped",
                    self.name, self.version
                ));
                Ok(())
            }
            None => bail!(
                "this machine's package lists have no {} {}x: put the program at /{}",
                self.name,
                self.version,
                self.program
            ),
        }
    }

    /// The versions that could be downloaded, the newest first.
    fn listed(&self) -> anyhow::Result<Vec<String>> {
        let output = Command::new("apt-cache")
            .args(["madison", self.name])
            .output()
            .context("run apt-cache")?;
        Ok(versions(&String::from_utf8_lossy(&output.stdout)))
    }

    fn unpack(&self, tools: &Tools, version: &str) -> anyhow::Result<()> {
        say(&format!("Unpacking Debian's {} {version}", self.name));
        let staging = tools.cache().join("staging/debian").join(self.name);
        if staging.exists() {
            fs::remove_dir_all(&staging)?;
        }
        fs::create_dir_all(&staging).with_context(|| format!("make {}", staging.display()))?;
        let wanted = format!("{}={version}", self.name);
        apt(&staging, &["download"], &[&wanted])?;
        let files = staging.join("files");
        let status = Command::new("dpkg-deb")
            .arg("--extract")
            .arg(only_file(&staging)?)
            .arg(&files)
            .status()
            .context("run dpkg-deb")?;
        ensure!(status.success(), "dpkg-deb ended with {status}");
        let place = tools.unpacked(self.name);
        fs::create_dir_all(place.parent().unwrap_or(&place))?;
        fs::rename(&files, &place).with_context(|| format!("make {}", place.display()))?;
        fs::remove_dir_all(&staging)?;
        Ok(())
    }
}

fn only_file(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut files = fs::read_dir(folder)?;
    let file = files.next().context("apt-get has downloaded nothing")??;
    Ok(file.path())
}

/// The second column of what `apt-cache madison` prints.
fn versions(madison: &str) -> Vec<String> {
    let columns = madison.lines().filter_map(|line| line.split('|').nth(1));
    columns.map(|version| version.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_the_second_column() {
        let madison = "containerd | 1.7.24~ds1-6 | http://example.com/debian trixie/main\n\
                       containerd | 1.6.20~ds1-1+deb12u1 | http://example.com/debian bookworm/main\n";
        assert_eq!(versions(madison), ["1.7.24~ds1-6", "1.6.20~ds1-1+deb12u1"]);
        assert!(versions("").is_empty());
    }

    #[test]
    fn the_remedy_is_a_command_to_copy() {
        let said = remedy(true, &["runc", "protobuf-compiler"]);
        let command = "sudo apt-get install --no-install-recommends runc protobuf-compiler";
        assert!(said.ends_with(command), "{said}");
        assert!(!remedy(false, &["runc"]).contains("sudo"));
    }

    #[test]
    fn proofs() {
        assert!(Proof::Program("sh").holds());
        assert!(!Proof::Program("no-such-program-anywhere").holds());
        assert!(Proof::File("/").holds());
        assert!(!Proof::File("/no/such/file").holds());
    }
}
