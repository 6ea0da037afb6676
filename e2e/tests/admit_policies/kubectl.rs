//! `kubectl trylatest` against a real API server, with nodes and pods whose status we write.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api as Objects;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::process::{self, Ran};
use trylatest_e2e::suite::Case;
use trylatest_kubectl::args::Cli;

use crate::space::{Space, container};
use crate::templates::deployment;
use crate::{Api, SOON};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![
        Case::new("kubectl_tells_what_runs", tells_what_runs),
        Case::new("kubectl_fails_a_rollout_of_old_copies", fails_a_rollout),
        Case::new("kubectl_switches_workloads", switches_workloads),
        Case::new("kubectl_finds_what_is_wrong", finds_what_is_wrong),
        Case::new("kubectl_says_what_it_may_not_see", says_what_it_may_not_see),
    ]
}

/// The program under test is this very one: its first argument says so.
const PROGRAM: &str = "kubectl-trylatest";

/// Runs the program, if that is asked for.
pub(crate) fn as_program() -> Option<ExitCode> {
    let line: Vec<_> = std::env::args_os().skip(1).collect();
    let is_asked = line.first().is_some_and(|word| word == PROGRAM);
    is_asked.then(|| trylatest_kubectl::run(Cli::parse_from(line)))
}

/// How long a run may take.
const RUN: Duration = Duration::from_secs(60);

async fn run(kubeconfig: PathBuf, namespace: &str, line: &str) -> anyhow::Result<Ran> {
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let place = ["-n", namespace];
    let place = place.into_iter().filter(|_| !line.starts_with("doctor"));
    let words = [PROGRAM, &kubeconfig].into_iter().chain(place);
    let words = words.chain(line.split(' '));
    let program = std::env::current_exe()?;
    let ran = tokio::time::timeout(RUN, process::ran(&program, words)).await;
    ran.with_context(|| format!("{line} does not end"))?
}

/// A node with an agent, and a Deployment whose one pod runs there.
struct Stage<'a> {
    api: &'a Api,
    space: Space<'a>,
    node: String,
}

impl<'a> Stage<'a> {
    async fn make(api: &'a Api, prefix: &str) -> anyhow::Result<Self> {
        let space = api.space(prefix).await?;
        let node = format!("{}-node", space.name());
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {
            "name": node, "annotations": {keys::NODE_SUMMARY: "1 TryLatest image"},
        }});
        space.create(&object).await?;
        let stage = Self { api, space, node };
        stage.set_fallback("False", "no pod runs one").await?;
        stage.make_agent().await?;
        Ok(stage)
    }

    async fn run(&self, line: &str) -> anyhow::Result<Ran> {
        let kubeconfig = self.api.plane.kubeconfig().to_owned();
        run(kubeconfig, self.space.name(), line).await
    }

    fn pods(&self) -> Objects<Pod> {
        Objects::namespaced(self.api.plane.client(), self.space.name())
    }

    async fn set_fallback(&self, status: &str, message: &str) -> anyhow::Result<()> {
        // In whole seconds, and after any release before it.
        let written = format!("{:.0}", now() + Duration::from_secs(2));
        let status = json!({"status": {
            "nodeInfo": {
                "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "containerd://1.6.20",
                "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "v1.34.1", "machineID": "",
                "operatingSystem": "linux", "osImage": "", "systemUUID": "",
            },
            "conditions": [
                {"type": "Ready", "status": "True"},
                {
                    "type": keys::NODE_CONDITION, "status": status, "message": message,
                    "lastHeartbeatTime": written,
                },
            ],
        }});
        let nodes: Objects<Node> = Objects::all(self.api.plane.client());
        let params = PatchParams::default();
        nodes
            .patch_status(&self.node, &params, &Patch::Strategic(&status))
            .await?;
        Ok(())
    }

    /// A DaemonSet's pod on the node, with a folder of the node.
    async fn make_agent(&self) -> anyhow::Result<()> {
        let labels = json!({
            "app.kubernetes.io/name": "trylatest", "app.kubernetes.io/component": "agent",
        });
        let here = json!({"key": "metadata.name", "operator": "In", "values": [self.node]});
        let here = json!({"nodeSelectorTerms": [{"matchFields": [here]}]});
        let set = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
            "spec": {"selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": here}},
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [container("agent", "IfNotPresent")],
                    "volumes": [{"name": "containerd", "hostPath": {"path": "/run/containerd"}}],
                },
            }},
        });
        self.space.create(&set).await?;
        let agent = self
            .bind("app.kubernetes.io/component=agent", "the DaemonSet")
            .await?;
        let status = json!({"phase": "Running", "conditions": [ready()]});
        self.set_status(&agent, &status).await
    }

    async fn set_status(&self, pod: &str, status: &Value) -> anyhow::Result<()> {
        let patch = json!({ "status": status });
        let params = PatchParams::default();
        self.pods()
            .patch_status(pod, &params, &Patch::Merge(&patch))
            .await?;
        Ok(())
    }

    /// Binds the one pod of the Deployment to the node, and lets it start.
    async fn start_app(&self) -> anyhow::Result<String> {
        let name = self.bind("app=app", "the Deployment").await?;
        let gate = json!({
            "name": keys::GATE, "image": "gate", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "message": "opened after 0.10s"}},
        });
        let status = json!({
            "phase": "Running", "conditions": [ready()], "initContainerStatuses": [gate],
        });
        self.set_status(&name, &status).await?;
        Ok(name)
    }

    /// Binds the pod that a workload has made to the node. Its name.
    async fn bind(&self, selector: &str, workload: &str) -> anyhow::Result<String> {
        let params = ListParams::default().labels(selector);
        let what = format!("{workload} has a pod");
        let name = wait::until(&what, SOON, || async {
            let pods = self.pods().list(&params).await?.items;
            Ok(pods.into_iter().find_map(|pod| pod.metadata.name))
        })
        .await?;
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"kind": "Node", "name": self.node},
        });
        let path = format!(
            "/api/v1/namespaces/{}/pods/{name}/binding",
            self.space.name()
        );
        let raw = ["create", "--raw", &path, "-f", "-"];
        self.space.kubectl(&raw, Some(&binding)).await?;
        Ok(name)
    }

    /// What the agent writes.
    async fn release(&self, pod: &str, outcome: &str) -> anyhow::Result<()> {
        let mut app = json!({
            "image": "registry.example/app:v1", "outcome": outcome,
            "digest": format!("sha256:{}", "a".repeat(64)), "confirmed": now(),
        });
        if outcome == "fallback" {
            app["class"] = json!("network");
            app["message"] = json!("connection refused");
        }
        let release = json!({"time": now(), "containers": {"app": app}});
        let annotations = json!({keys::RELEASED: release.to_string()});
        let patch = json!({"metadata": {"annotations": annotations}});
        let params = PatchParams::default();
        self.pods()
            .patch(pod, &params, &Patch::Merge(&patch))
            .await?;
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the program compares it with its own clock"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

fn ready() -> Value {
    json!({"type": "Ready", "status": "True"})
}

/// One Deployment with the container `app`.
fn app(policy: &str) -> Value {
    let mut app = deployment(&[container("app", policy)]);
    app["metadata"]["name"] = json!("app");
    app["spec"]["replicas"] = json!(1);
    app["spec"]["selector"] = json!({"matchLabels": {"app": "app"}});
    app["spec"]["template"]["metadata"]["labels"] = json!({"app": "app"});
    app
}

async fn tells_what_runs(api: Arc<Api>) -> anyhow::Result<()> {
    let stage = Stage::make(&api, "kubectl").await?;
    stage.space.apply(&app("TryLatest")).await?;
    let pod = stage.start_app().await?;
    stage.release(&pod, "fallback").await?;
    stage
        .set_fallback(
            "True",
            "registry.example/app:v1 (sha256:aaaaaaaaaaaa): network",
        )
        .await?;
    let status = stage.run("status -o json").await?.expect(0)?.json()?;
    let nodes = status["nodes"].as_array().context("no nodes")?;
    let node = nodes
        .iter()
        .find(|node| node["name"] == stage.node.as_str());
    let node = node.context("the node is missing")?;
    ensure!(
        node["agent"] == "ready" && node["fallback"] == true,
        "{node}"
    );
    let image = &status["stale"][0];
    ensure!(
        image["image"] == "registry.example/app:v1" && image["pods"] == 1,
        "{status}"
    );
    let text = stage.run("status").await?.expect(0)?.stdout;
    let scope = format!("in namespace {}: 1 runs an old copy", stage.space.name());
    ensure!(text.contains(&scope), "{text}");
    let all = stage.run("status -A -o json").await?.expect(0)?.json()?;
    ensure!(all["namespace"].is_null(), "{all}");
    ensure!(
        !text.contains('\u{1b}'),
        "colour without a terminal: {text:?}"
    );
    let yaml = stage.run("status -o yaml").await?.expect(0)?.stdout;
    ensure!(yaml.contains("podsFromCache: 1"), "{yaml}");
    let told = stage
        .run(&format!("explain {pod}"))
        .await?
        .expect(0)?
        .stdout;
    for words in [
        "using the cached copy of registry.example/app:v1",
        "/trylatest explain",
    ] {
        ensure!(told.contains(words), "{told}");
    }
    // What the node has taken back is no old copy any more.
    stage.set_fallback("False", "no pod runs one").await?;
    let status = stage.run("status -o json").await?.expect(0)?.json()?;
    ensure!(status["stale"] == json!([]), "{status}");
    let line = format!("explain {}/{pod}", stage.space.name());
    let told_again = stage.run(&line).await?.expect(0)?.stdout;
    ensure!(told_again.contains("using the cached copy"), "{told_again}");
    stage
        .run(&format!("explain other/{pod}"))
        .await?
        .expect(1)?;
    let missing = stage.run("explain nobody").await?.expect(1)?;
    ensure!(
        missing.stderr.contains("\"nobody\" not found"),
        "{missing:?}"
    );
    Ok(())
}

async fn fails_a_rollout(api: Arc<Api>) -> anyhow::Result<()> {
    let stage = Stage::make(&api, "kubectl").await?;
    stage.space.apply(&app("TryLatest")).await?;
    let check = "check deployment/app --timeout";
    let early = stage.run(&format!("{check} 4s")).await?.expect(4)?;
    ensure!(early.stdout.contains("not rolled out"), "{early:?}");
    let pod = stage.start_app().await?;
    stage.release(&pod, "fallback").await?;
    let old = stage.run(&format!("{check} 30s")).await?.expect(3)?;
    ensure!(
        old.stdout.contains("network: connection refused"),
        "{old:?}"
    );
    stage.release(&pod, "unchanged").await?;
    let fresh = stage.run(&format!("{check} 30s --fresh -o json")).await?;
    ensure!(fresh.expect(0)?.json()?["ok"] == true);
    stage.release(&pod, "not-held").await?;
    stage.run(&format!("{check} 30s")).await?.expect(0)?;
    stage
        .run(&format!("{check} 30s --fresh"))
        .await?
        .expect(3)?;
    // A pod that the kubelet still pulls for is waited for.
    stage.release(&pod, "handed-over").await?;
    stage.run(&format!("{check} 4s")).await?.expect(4)?;
    stage.run("check deployment/nobody").await?.expect(1)?;
    Ok(())
}

async fn switches_workloads(api: Arc<Api>) -> anyhow::Result<()> {
    let stage = Stage::make(&api, "kubectl").await?;
    stage.space.apply(&app("Always")).await?;
    let none = stage.start_app().await?;
    let plain = stage
        .run("check deployment/app --timeout 30s")
        .await?
        .expect(1)?;
    ensure!(plain.stderr.contains("no TryLatest container"), "{plain:?}");
    let key = |stored: &Value, key: &str| {
        stored["spec"]["template"]["metadata"]["annotations"][key].clone()
    };
    let dry = stage.run("on deploy/app --dry-run").await?.expect(0)?;
    ensure!(dry.stdout.contains("dry run"), "{dry:?}");
    let stored = stage.space.get("deployment", "app").await?;
    ensure!(key(&stored, keys::CONTAINERS).is_null(), "{stored:#}");
    let on = stage.run("on deploy/app").await?.expect(0)?;
    ensure!(on.stdout.contains("a rollout follows"), "{on:?}");
    let stored = stage.space.get("deployment", "app").await?;
    ensure!(key(&stored, keys::CONTAINERS) == "*", "{stored:#}");
    let gated = ListParams::default().labels(&format!("app=app,{}=true", keys::GATED));
    wait::until("a new pod has a gate", SOON, || async {
        let pods = stage.pods().list(&gated).await?.items;
        Ok(pods
            .into_iter()
            .find(|pod| pod.metadata.name.as_ref() != Some(&none)))
    })
    .await?;
    let again = stage.run("on deploy/app").await?.expect(0)?;
    ensure!(again.stdout.contains("nothing to change"), "{again:?}");
    let again = stage.run("on deploy/app -o json").await?.json()?;
    ensure!(again["changed"] == false, "{again:#}");
    ensure!(again["settings"][0]["after"] == "*", "{again:#}");
    // A literal TryLatest is switched off as well.
    stage.space.apply(&app("TryLatest")).await?;
    stage.run("off deploy/app").await?.expect(0)?;
    let stored = stage.space.get("deployment", "app").await?;
    for gone in [keys::CONTAINERS, keys::LITERAL] {
        ensure!(key(&stored, gone).is_null(), "{stored:#}");
    }
    let namespace = format!("namespace/{}", stage.space.name());
    stage.run(&format!("on {namespace}")).await?.expect(1)?;
    stage
        .run(&format!("on {namespace} --hold none"))
        .await?
        .expect(0)?;
    let stored = stage.space.get("namespace", stage.space.name()).await?;
    ensure!(
        stored["metadata"]["labels"][keys::HOLD] == keys::HOLD_NONE,
        "{stored:#}"
    );
    stage.run("on pod/app").await?.expect(1)?;
    Ok(())
}

async fn finds_what_is_wrong(api: Arc<Api>) -> anyhow::Result<()> {
    let stage = Stage::make(&api, "kubectl").await?;
    let at = now();
    let ahead = at + Duration::from_secs(60);
    for (name, renewed) in [
        (stage.node.clone(), ahead),
        (format!("{}-2", stage.node), at),
    ] {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-node-lease"},
            "spec": {"renewTime": format!("{renewed:.6}")},
        });
        let create = ["-n", "kube-node-lease", "create", "-f", "-"];
        api.plane
            .kubectl_with(&create, Some(&lease.to_string()))
            .await?;
    }
    let ran = stage.run("doctor -o json").await?;
    let report = ran.json()?;
    let findings = report["findings"].as_array().context("no findings")?;
    let about = |check: &str, name: &str| {
        let mut same = findings.iter().filter(|finding| finding["check"] == check);
        same.any(|finding| {
            let about = finding["about"].as_array().into_iter().flatten();
            name.is_empty() || about.into_iter().any(|about| about == name)
        })
    };
    for check in ["containerd-pins", "kubelet-keeps-no-records", "clock-skew"] {
        ensure!(about(check, &stage.node), "no {check}: {report:#}");
    }
    ensure!(
        !about("clock-skew", &format!("{}-2", stage.node)),
        "{report:#}"
    );
    // What is stored is what the manifests say, whatever the API server has added.
    for check in [
        "policies-missing",
        "policies-differ",
        "api-missing",
        "gate-image-differs",
    ] {
        ensure!(!about(check, ""), "{check}: {report:#}");
    }
    ensure!(!about("agent-missing", &stage.node), "{report:#}");
    ensure!(ran.code == 3 || ran.code == 4, "{ran:?}");
    let text = stage.run("doctor").await?.stdout;
    ensure!(text.contains("[containerd-pins]"), "{text}");
    Ok(())
}

/// A user who may look at nothing gets that said, and no false alarm.
async fn says_what_it_may_not_see(api: Arc<Api>) -> anyhow::Result<()> {
    let stage = Stage::make(&api, "kubectl").await?;
    let create = ["create", "serviceaccount", "nobody"];
    stage.space.kubectl(&create, None).await?;
    let token = stage
        .space
        .kubectl(&["create", "token", "nobody"], None)
        .await?;
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    let written = std::fs::read_to_string(api.plane.kubeconfig())?;
    let mut config: Value = serde_json::from_str(&written).context("the kubeconfig is JSON")?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    std::fs::write(&kubeconfig, config.to_string())?;
    let as_nobody = |line: &'static str| run(kubeconfig.clone(), stage.space.name(), line);
    let report = as_nobody("doctor -o json").await?.expect(1)?.json()?;
    ensure!(report["seen"] == json!([]), "{report:#}");
    let not_seen = report["notSeen"].as_array().context("no list")?;
    ensure!(not_seen.len() > 8, "{report:#}");
    ensure!(report["findings"] == json!([]), "{report:#}");
    let text = as_nobody("doctor --request-timeout 0").await?.expect(1)?;
    ensure!(
        text.stdout.contains("could not look at anything"),
        "{text:?}"
    );
    let status = as_nobody("status").await?.expect(1)?;
    ensure!(status.stderr.contains("cannot list resource"), "{status:?}");
    shows_the_pods_that_it_may(&stage, &kubeconfig).await
}

/// Somebody who may list the pods of one namespace, and looks at it or at more.
async fn shows_the_pods_that_it_may(stage: &Stage<'_>, kubeconfig: &Path) -> anyhow::Result<()> {
    let as_nobody = |line: &'static str| run(kubeconfig.to_owned(), stage.space.name(), line);
    let account = format!("--serviceaccount={}:nobody", stage.space.name());
    for create in [
        ["create", "role", "pods", "--verb=list", "--resource=pods"],
        ["create", "rolebinding", "pods", "--role=pods", &account],
    ] {
        stage.space.kubectl(&create, None).await?;
    }
    // The API server takes a moment to know the role.
    let own = wait::until("it may list its pods", SOON, || async {
        let ran = as_nobody("status -o json --request-timeout 5").await?;
        Ok((ran.code == 0).then_some(ran))
    })
    .await?
    .json()?;
    ensure!(own["namespace"] == stage.space.name(), "{own:#}");
    // With -A, the namespace does not matter, and nothing is shown in place of all.
    let all = as_nobody("status -A").await?.expect(1)?;
    ensure!(all.stderr.contains("at the cluster scope"), "{all:?}");
    Ok(())
}
