//! The manifests as a user fills them in for this node, and what the README says to remove them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::{DAEMON_SET, NAMESPACE};
use crate::cluster::{Cluster, Tools};

const IMAGE_NAME: &str = "ghcr.io/trylatest/trylatest";

/// What the README says to remove TryLatest, for the manifests in this folder: the arguments of kubectl, in order.
///
/// # Errors
/// The README does not say it any more.
pub fn uninstall(manifests: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let readme = include_str!("../../../README.md");
    let (_, below) = readme
        .split_once("\n## Uninstall\n")
        .context("no such part")?;
    let (_, code) = below.split_once("```sh\n").context("no commands")?;
    let (code, _) = code.split_once("```").context("no end")?;
    let commands = code.lines().map(|line| {
        let mut words = line.split(' ');
        ensure!(words.next() == Some("kubectl"), "{line}");
        let word = |word| if word == "manifests" { manifests } else { word };
        Ok(words.map(|own| word(own).to_owned()).collect())
    });
    commands.collect()
}

/// The overlay that users copy, filled in for this node as they would, with one more patch that none
/// of them needs: a state folder that goes with the run, and probes at this node's own address, because other
/// clusters share its loopback.
pub(super) fn write(
    cluster: &Cluster,
    tools: &Tools,
    state: &Path,
    args: &[&str],
) -> anyhow::Result<PathBuf> {
    let folder = cluster.dir().join("install");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let containerd = cluster.containerd().socket();
    let containerd = containerd.parent().and_then(Path::to_str);
    let api = cluster.control_plane().server();
    // kustomize takes no absolute paths.
    let depth = folder.strip_prefix(tools.root());
    let depth = depth.context("a run is in the repository")?.components();
    let manifests = depth.map(|_| "../").collect::<String>() + "manifests";
    let patch = "  - path: agent.yaml\n";
    let last_flag = "            - --try=30s\n";
    let flags = args.iter().map(|flag| format!("            - {flag}\n"));
    let fills: [(&str, Changes<'_>); 2] = [
        (
            "kustomization.yaml",
            &[
                ("../..", &manifests, 2),
                ("registry.example/mirror/trylatest", IMAGE_NAME, 1),
                // What most users have: the gate's own flags, which it reads with less memory.
                (GATE_PATCH, "", 1),
                // The tests have rules of their own.
                (CONFIG_MAP, "", 1),
                (patch, &format!("{patch}  - path: state.yaml\n"), 1),
            ],
        ),
        (
            "agent.yaml",
            &[
                ("127.0.0.1", &api.ip().to_string(), 2),
                ("6443", &api.port().to_string(), 1),
                ("/run/k3s/containerd", containerd.context("no path")?, 1),
                (
                    last_flag,
                    &(last_flag.to_owned() + &flags.collect::<String>()),
                    1,
                ),
            ],
        ),
    ];
    let example = tools.root().join("manifests/overlays/example-node");
    for (file, changes) in fills {
        let from = example.join(file);
        let text = fs::read_to_string(&from).with_context(|| format!("read {}", from.display()))?;
        let filled = filled(&text, changes).with_context(|| from.display().to_string())?;
        fs::write(folder.join(file), filled)?;
    }
    let probe = json!({"httpGet": {"host": cluster.address()}});
    let state = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": DAEMON_SET, "namespace": NAMESPACE},
        "spec": {"template": {"spec": {
            "volumes": [{"name": "state", "hostPath": {"path": state}}],
            // However full this machine's disk is.
            "containers": [{"name": "agent", "livenessProbe": probe, "readinessProbe": probe, "env": [
                {"name": DISK_FLOOR, "value": "0"}, {"name": "TRYLATEST_KEEP_FREE", "value": "0"},
            ]}],
        }}},
    });
    fs::write(folder.join("state.yaml"), format!("{state:#}\n"))?;
    Ok(folder)
}

/// What stays free on the disk; nothing has to, unless a test says otherwise.
pub const DISK_FLOOR: &str = "TRYLATEST_DISK_FLOOR";

/// The example's patch of the gate's flags.
const GATE_PATCH: &str = "  - path: gate.yaml
    target:
      kind: MutatingAdmissionPolicy
      name: trylatest-pods
";

/// The example's rules for registries.
const CONFIG_MAP: &str = "configMapGenerator:
  - name: trylatest-config
    namespace: trylatest-system
    files: [config.yaml]
    options:
      disableNameSuffixHash: true
      labels:
        app.kubernetes.io/name: trylatest
";

/// What is replaced by what, and how often it is there.
type Changes<'a> = &'a [(&'a str, &'a str, usize)];

/// The text with these changes; each place is there as often as is said.
fn filled(text: &str, changes: Changes<'_>) -> anyhow::Result<String> {
    let mut filled = text.to_owned();
    for (from, to, times) in changes {
        let found = filled.matches(from).count();
        ensure!(
            found == *times,
            "{from:?} is there {found} times, not {times}"
        );
        filled = filled.replace(from, to);
    }
    Ok(filled)
}
