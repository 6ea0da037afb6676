//! `trylatest doctor`: what only the node itself can see. It reads, and asks nobody.
//!
//! `kubectl trylatest doctor` looks at everything else. The agent's own pod does not see the node's files; what is not
//! there is listed and not a finding.

mod mirrors;

use std::fmt::{Display, Write as _};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use trylatest_core::doctor::{Finding, Report, Severity};
use trylatest_core::text;

use crate::args::{DoctorArgs, TextOrJson};

/// Most registries that are looked at.
const REGISTRIES_MAX: usize = 1_000;

/// Longest file that is read.
const FILE_MAX: u64 = 64 << 10;

/// What the agent leaves free by default (`--disk-floor`), and what it lets kept copies go for (`--keep-free`), in
/// percent.
const FLOOR: u64 = 15;
const KEEP_FREE: u64 = 20;

/// Looks, and prints what it has found. The exit code is that of the worst finding, or says that nothing was seen.
///
/// # Errors
/// stdout cannot be written.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let DoctorArgs {
        root,
        certs_dir,
        kubelet_dir,
        containerd_dir,
        output,
    } = args;
    let mut report = Report::default();
    registries(&below(root, certs_dir), &mut report);
    records(&below(root, kubelet_dir), &mut report);
    disk(&below(root, containerd_dir), &mut report);
    let report = report.sorted();
    let text = match output {
        TextOrJson::Text => render(&report),
        TextOrJson::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    crate::printed(text.as_bytes())?;
    Ok(ExitCode::from(report.exit_code()))
}

/// A path of the node, where its root is.
fn below(root: &Path, path: &Path) -> std::path::PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// What was looked at; none, and a note of it, if it could not be.
fn seen<T, E: Display>(report: &mut Report, what: &str, looked: Result<T, E>) -> Option<T> {
    match looked {
        Ok(seen) => {
            report.looked_at(what);
            Some(seen)
        }
        Err(error) => {
            report.not_looked_at(what, &error.to_string());
            None
        }
    }
}

/// The folder in which containerd looks for a registry's mirrors, by the name of the registry.
fn registries(folder: &Path, report: &mut Report) {
    let what = format!("registry mirrors in {}", folder.display());
    let Some(entries) = seen(report, &what, fs::read_dir(folder)) else {
        return;
    };
    for entry in entries.take(REGISTRIES_MAX).flatten() {
        let name = text::on_one_line(&entry.file_name().to_string_lossy());
        match read(&entry.path().join("hosts.toml")) {
            Ok(Some(hosts)) => report.findings.extend(mirrors::findings(&name, &hosts)),
            Ok(None) => {}
            Err(error) => {
                report.not_looked_at(&format!("mirrors of {name}"), &format!("{error:#}"));
            }
        }
    }
}

/// A file's text; none if it is not there.
fn read(path: &Path) -> anyhow::Result<Option<String>> {
    let file = match File::open(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        file => file?,
    };
    let mut text = String::new();
    let read = file.take(FILE_MAX + 1).read_to_string(&mut text);
    read.with_context(|| format!("read {}", path.display()))?;
    anyhow::ensure!(
        text.len() as u64 <= FILE_MAX,
        "{} is too long",
        path.display()
    );
    Ok(Some(text))
}

/// The kubelet's records of who may use an image (KEP-2535): `image_manager/pulled` and `pulling` below its folder.
fn records(kubelet: &Path, report: &mut Report) {
    let what = format!("the kubelet's records in {}", kubelet.display());
    let counts = fs::read_dir(kubelet).and_then(|_| {
        let manager = kubelet.join("image_manager");
        Ok((
            count(&manager.join("pulled"))?,
            count(&manager.join("pulling"))?,
        ))
    });
    match seen(report, &what, counts) {
        Some((None, _)) => report.add(
            Severity::Info,
            "kubelet-keeps-no-records",
            "the kubelet keeps no records of who may use a private image's copy",
            "Kubernetes 1.35 and later do, unless the feature gate KubeletEnsureSecretPulledImages is off. There, start the \
                  agent with --kubelet-verifies=no.",
        ),
        Some((Some(_), Some(pulling))) if pulling > 0 => report.add(
            Severity::Info,
            "kubelet-pulls",
            &format!("the kubelet has {} under way, or cut off", text::count(pulling, "pull")),
            "After one that was cut off, the kubelet asks the registry before it gives the image to any pod. If nothing is \
                  being pulled now, pull it once more while the registry answers.",
        ),
        _ => {}
    }
}

/// How many entries a folder has; none if it is not there.
fn count(folder: &Path) -> io::Result<Option<usize>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(Some(entries.take(REGISTRIES_MAX).count())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn disk(containerd: &Path, report: &mut Report) {
    let what = format!("the disk of {}", containerd.display());
    let Some(stat) = seen(report, &what, rustix::fs::statvfs(containerd)) else {
        return;
    };
    report.findings.extend(room(stat.f_bavail, stat.f_blocks));
    report.findings.extend(inodes(stat.f_ffree, stat.f_files));
}

/// How much is left, of which all is this.
fn room(free: u64, all: u64) -> Option<Finding> {
    let percent = u128::from(free) * 100 / u128::from(all.max(1));
    let (check, fix) = match percent {
        _ if all == 0 => return None,
        left if left < u128::from(FLOOR) => (
            "disk-full",
            "New images that have a copy here are not downloaded (--disk-floor), and kept copies are not pinned: free some disk.",
        ),
        left if left < u128::from(KEEP_FREE) => (
            "disk-nearly-full",
            "Kept copies are not pinned (--keep-free), so the kubelet may collect them: free some disk.",
        ),
        _ => return None,
    };
    let what = format!("{percent}% of the disk that holds the images is free");
    Some(Finding::new(Severity::Warning, check, what, fix))
}

/// While less than a tenth of them are free, the agent takes the disk for full. Some file systems have no fixed number.
fn inodes(free: u64, all: u64) -> Option<Finding> {
    (all > 0 && free < all / 10).then(|| {
        Finding::new(
            Severity::Warning,
            "disk-lacks-inodes",
            "less than 10% of the inodes of the disk that holds the images are free (df -i)",
            "New images that have a copy here are not downloaded, and kept copies are not pinned: remove files from it.",
        )
    })
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let word = finding.severity.word();
        let Finding {
            what, check, fix, ..
        } = finding;
        let _ = writeln!(text, "{word} {what} [{check}]\n        {fix}");
    }
    for not_seen in &report.not_seen {
        let _ = writeln!(text, "NOT LOOKED AT {}: {}", not_seen.what, not_seen.why);
    }
    let findings = text::count(report.findings.len(), "finding");
    let _ = writeln!(text, "{findings}; {}", report.coverage());
    if report.seen.is_empty() {
        text.push_str(
            "This command reads the node's files: run it on the node, or use --root. See --help.\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(root: &Path) -> Report {
        let mut report = Report::default();
        registries(&below(root, Path::new("/certs.d")), &mut report);
        records(&below(root, Path::new("/kubelet")), &mut report);
        report
    }

    #[test]
    fn a_nodes_files_are_looked_at_and_what_is_missing_is_said() {
        let root = tempfile::tempdir().unwrap();
        let report = looked(root.path());
        assert_eq!((report.findings.len(), report.not_seen.len()), (0, 2));
        assert_eq!(report.exit_code(), 1);
        let text = render(&report);
        assert!(
            text.contains("0 findings; could not look at anything"),
            "{text}"
        );
        assert!(text.contains("use --root"), "{text}");
        let registry = root.path().join("certs.d/registry.example");
        fs::create_dir_all(&registry).unwrap();
        fs::create_dir_all(root.path().join("certs.d/old-style")).unwrap();
        fs::write(
            registry.join("hosts.toml"),
            "[host.\"https://mirror.example\"]\n",
        )
        .unwrap();
        fs::create_dir_all(root.path().join("kubelet")).unwrap();
        let report = looked(root.path());
        assert_eq!(report.not_seen, []);
        let checks: Vec<_> = report
            .findings
            .iter()
            .map(|finding| finding.check)
            .collect();
        let expected = [
            "mirror-without-dial-timeout",
            "mirror-resolves",
            "kubelet-keeps-no-records",
        ];
        assert_eq!(checks, expected);
        let manager = root.path().join("kubelet/image_manager");
        fs::create_dir_all(manager.join("pulled")).unwrap();
        fs::create_dir_all(manager.join("pulling")).unwrap();
        assert_eq!(looked(root.path()).findings.len(), 2);
        fs::write(manager.join("pulling/sha256-a"), "").unwrap();
        let report = looked(root.path());
        assert_eq!(
            report.findings[2].what,
            "the kubelet has 1 pull under way, or cut off"
        );
        assert!(render(&report).ends_with("3 findings; looked at 2 things\n"));
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read() {
        let root = tempfile::tempdir().unwrap();
        let registry = root.path().join("certs.d/registry.example");
        fs::create_dir_all(&registry).unwrap();
        let long = "#".repeat(usize::try_from(FILE_MAX).unwrap() + 1);
        fs::write(registry.join("hosts.toml"), long).unwrap();
        assert!(looked(root.path()).not_seen[0].why.contains("too long"));
    }

    #[test]
    fn room_is_compared_with_what_the_agent_wants() {
        let check = |free, all| room(free, all).map(|finding| finding.check);
        assert_eq!(check(20, 100), None);
        assert_eq!(check(19, 100), Some("disk-nearly-full"));
        assert_eq!(check(14, 100), Some("disk-full"));
        assert_eq!(check(0, 0), None);
        assert_eq!(inodes(10, 100), None);
        assert!(inodes(9, 100).is_some());
        assert_eq!(inodes(0, 0), None);
    }
}
