//! The gate's image while TryLatest's own registry cannot be reached: whatever removes it, renames it
//! or closes it to others, gates start. Every test wants the node for itself.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use trylatest_e2e::cluster::wait;
use trylatest_e2e::install::{DAEMON_SET, IMAGE, NAMESPACE};
use trylatest_e2e::registry::Fault;
use trylatest_e2e::testimage;
use trylatest_e2e::workload::{GATE, PodSpec, is_running};

use crate::{Node, SOON, Space, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![],
        alone: tests![
            a_removed_name_comes_back,
            a_cleaner_that_removes_it_by_its_id,
            its_content_is_removed,
            a_policy_moves_it_to_another_registry,
            it_was_pulled_with_a_secret,
            somebody_pulled_it_under_a_mirrors_name,
            a_gate_that_cannot_have_its_image_gets_it,
            a_name_that_is_not_ours_is_reported,
        ],
    }
}

/// TryLatest's repository in its registry, of which the first host of the cluster's takes the place.
const REPOSITORY: &str = "trylatest/trylatest";

/// The API server reads policies once a second.
const KNOWN: Duration = Duration::from_secs(4);

/// The kubelet's pause after a pull that failed is 10 s; the agent and the status come on top.
const RETRIED: Duration = Duration::from_secs(60);

/// A gated pod in a namespace of its own starts while TryLatest's registry is down and its own works.
async fn a_gate_starts(node: &Node, name: &str) -> anyhow::Result<()> {
    let space = node.space(name).await?;
    space.push("one").await?;
    let registry = node.cluster.registry();
    registry.fault(Fault::Unavailable).await?;
    let run = space.run("app", "fresh", "one").await;
    registry.heal().await?;
    run?;
    space.end().await
}

async fn a_removed_name_comes_back(node: &Node) -> anyhow::Result<()> {
    let containerd = node.cluster.containerd();
    let series = "trylatest_gate_image_restored_total";
    let before = node.install.metric(series).await?;
    containerd
        .ctr(&["images", "remove", "--sync", IMAGE])
        .await?;
    is_named(node, IMAGE).await?;
    a_gate_starts(node, "name").await?;
    ensure!(node.install.metric(series).await? > before);
    Ok(())
}

async fn a_cleaner_that_removes_it_by_its_id(node: &Node) -> anyhow::Result<()> {
    node.cluster.containerd().remove_image(IMAGE).await?;
    a_gate_starts(node, "cleaned").await
}

/// By hand, behind CRI's back.
async fn its_content_is_removed(node: &Node) -> anyhow::Result<()> {
    let containerd = node.cluster.containerd();
    let digest = target_of(node, IMAGE).await?;
    let manifest = containerd.ctr(&["content", "get", &digest]).await?;
    let manifest: Value = serde_json::from_str(&manifest)?;
    let layer = manifest["layers"][0]["digest"]
        .as_str()
        .context("a layer")?;
    containerd.ctr(&["content", "remove", layer]).await?;
    let back = || async {
        let listed = containerd.ctr(&["content", "list", "--quiet"]).await?;
        Ok(listed.lines().any(|line| line == layer).then_some(()))
    };
    wait::until("the layer is back", SOON, back).await?;
    a_gate_starts(node, "content").await
}

/// As policies do that send all images to a registry of one's own.
async fn a_policy_moves_it_to_another_registry(node: &Node) -> anyhow::Result<()> {
    let moved = Moved::to(node, "mirror.invalid/ghcr.io/trylatest/trylatest:0.1.0").await?;
    let run = moved.runs(SOON).await;
    moved.undo().await?;
    run
}

/// KEP-2535: the kubelet gives what it has pulled with a secret to pods with that secret alone.
async fn it_was_pulled_with_a_secret(node: &Node) -> anyhow::Result<()> {
    push_own(node).await?;
    let secrets: Api<Secret> = Api::namespaced(node.cluster.client(), NAMESPACE);
    let secret = serde_json::from_value(json!({
        "metadata": {"name": "registry"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson":
            json!({"auths": {"ghcr.io": {"username": "user", "password": "word"}}}).to_string()},
    }))?;
    secrets.create(&PostParams::default(), &secret).await?;
    node.install.away().await?;
    node.cluster.containerd().remove_image(IMAGE).await?;
    pull_secrets(node, &json!([{"name": "registry"}])).await?;
    let back = node.install.back().await;
    let started = match back {
        Ok(()) => a_gate_starts(node, "secret").await,
        Err(error) => Err(error),
    };
    pull_secrets(node, &Value::Null).await?;
    secrets.delete("registry", &DeleteParams::default()).await?;
    node.install.wait_ready().await?;
    started
}

/// KEP-2535: the kubelet keeps its records by content and repository.
async fn somebody_pulled_it_under_a_mirrors_name(node: &Node) -> anyhow::Result<()> {
    push(node, "mirror/trylatest").await?;
    let space = node.space("mirror").await?;
    let image = space.registry.image("mirror/trylatest", "0.1.0");
    let plain = PodSpec::new("plain", &image, "IfNotPresent");
    space.work.create(&plain).await?;
    let pulled = |pod: &Pod| {
        let status = pod.status.as_ref();
        let containers = status.and_then(|status| status.container_statuses.as_ref());
        containers.is_some_and(|all| all.iter().any(|one| !one.image_id.is_empty()))
    };
    space
        .work
        .wait_pod("plain", "its image is pulled", SOON, pulled)
        .await?;
    space.end().await?;
    a_gate_starts(node, "mirrored").await
}

/// The name was not there when the kubelet looked, because no agent was.
async fn a_gate_that_cannot_have_its_image_gets_it(node: &Node) -> anyhow::Result<()> {
    let moved = Moved::to(node, "late.invalid/trylatest:0.1.0").await?;
    node.install.away().await?;
    let created = moved.create_and_wait_for_failure().await;
    node.install.back().await?;
    created?;
    let told = moved
        .space
        .work
        .wait_event("app", "Warning TryLatestGateImage: ", SOON)
        .await?;
    ensure!(told.contains("has made it on this node"), "{told}");
    let work = &moved.space.work;
    work.wait_pod("app", "it runs", RETRIED, is_running).await?;
    let series = "trylatest_gate_image_wanted_total{result=\"made\"}";
    ensure!(node.install.metric(series).await? >= 1.0);
    moved.undo().await
}

async fn a_name_that_is_not_ours_is_reported(node: &Node) -> anyhow::Result<()> {
    let name = "mirror.invalid/nginx:0.1.0";
    let moved = Moved::to(node, name).await?;
    moved.create_and_wait_for_failure().await?;
    let told = moved
        .space
        .work
        .wait_event("app", "Warning TryLatestGateImage: ", SOON)
        .await?;
    ensure!(told.contains(name) && told.contains(GATE), "{told}");
    let names = node.cluster.containerd().ctr(&["images", "list", "-q"]);
    let names = names.await?;
    ensure!(!names.contains("nginx"), "{names}");
    moved.undo().await
}

/// A namespace in which an admission policy gives gates another image.
pub(crate) struct Moved<'a> {
    pub(crate) space: Space<'a>,
}

impl<'a> Moved<'a> {
    pub(crate) async fn to(node: &'a Node, image: &str) -> anyhow::Result<Self> {
        let label = "e2e.trylatest.dev/moved";
        let namespace = node
            .cluster
            .namespace_with("moved", &[(label, "true")])
            .await?;
        let space = node.space_in(namespace)?;
        space.push("one").await?;
        let expression = format!(
            "object.spec.?initContainers.orValue([]).transformList(i, c, c.name == '{GATE}', \
             JSONPatch{{op: 'replace', path: '/spec/initContainers/' + string(i) + '/image', \
             value: '{image}'}})"
        );
        let policy = |round: u32| {
            json!({"apiVersion": "v1", "kind": "List", "items": [
                {
                    "apiVersion": "admissionregistration.k8s.io/v1",
                    "kind": "MutatingAdmissionPolicy",
                    "metadata": {"name": POLICY, "annotations": {"round": round.to_string()}},
                    "spec": {
                        "failurePolicy": "Fail",
                        "reinvocationPolicy": "IfNeeded",
                        "matchConstraints": {
                            "namespaceSelector": {"matchLabels": {label: "true"}},
                            "resourceRules": [{
                                "apiGroups": [""], "apiVersions": ["v1"],
                                "operations": ["CREATE"], "resources": ["pods"],
                            }],
                        },
                        "mutations": [{
                            "patchType": "JSONPatch",
                            "jsonPatch": {"expression": expression},
                        }],
                    },
                },
                {
                    "apiVersion": "admissionregistration.k8s.io/v1",
                    "kind": "MutatingAdmissionPolicyBinding",
                    "metadata": {"name": POLICY},
                    "spec": {"policyName": POLICY},
                },
            ]})
        };
        let moved = Self { space };
        moved.apply(policy, image).await?;
        Ok(moved)
    }

    /// Makes the policy, and changes it until it is asked after ours: the API server runs mutating
    /// policies in no fixed order, and in another one whenever any of them changes.
    async fn apply(&self, policy: impl Fn(u32) -> Value, image: &str) -> anyhow::Result<()> {
        let cluster = &self.space.node.cluster;
        let path = cluster.dir().join("moved.json");
        let file = path.to_str().context("a path that is no text")?;
        let app = self.space.image();
        let pod = tried("probe", &app).object()?;
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let pods = self.space.work.pods();
        let applies = async || {
            let made = pods.create(&dry, &pod).await?;
            let inits = made.spec.and_then(|spec| spec.init_containers);
            let gate = inits.into_iter().flatten().find(|one| one.name == GATE);
            let moved = gate.is_some_and(|gate| gate.image.as_deref() == Some(image));
            Ok(moved.then_some(()))
        };
        let mut round = 0;
        wait::until("the policy is asked after ours", 2 * SOON, || {
            round += 1;
            let written = std::fs::write(&path, policy(round).to_string());
            async {
                written?;
                cluster.kubectl(&["apply", "-f", file]).await?;
                let known = wait::until("it applies", KNOWN, &applies).await;
                Ok(known.ok())
            }
        })
        .await
    }

    async fn runs(&self, limit: Duration) -> anyhow::Result<()> {
        let run = self.space.run_within("app", limit, "fresh", "one").await;
        run.map(drop)
    }

    async fn create_and_wait_for_failure(&self) -> anyhow::Result<()> {
        let image = self.space.image();
        self.space.work.create(&tried("app", &image)).await?;
        let without = |pod: &Pod| {
            let status = pod.status.as_ref();
            let inits = status.and_then(|status| status.init_container_statuses.as_ref());
            inits.into_iter().flatten().any(|init| {
                let waiting = init.state.as_ref().and_then(|state| state.waiting.as_ref());
                let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
                matches!(reason, Some("ErrImagePull" | "ImagePullBackOff"))
            })
        };
        let waits = self
            .space
            .work
            .wait_pod("app", "its gate has no image", SOON, without);
        waits.await.map(drop)
    }

    pub(crate) async fn undo(self) -> anyhow::Result<()> {
        let kinds = "mutatingadmissionpolicies,mutatingadmissionpolicybindings";
        let cluster = &self.space.node.cluster;
        cluster.kubectl(&["delete", kinds, POLICY]).await?;
        self.space.end().await
    }
}

const POLICY: &str = "e2e-moved";

/// Puts the released image where TryLatest's own registry has it.
pub(crate) async fn push_own(node: &Node) -> anyhow::Result<()> {
    push(node, REPOSITORY).await
}

/// Puts the released image into the registry.
async fn push(node: &Node, repository: &str) -> anyhow::Result<()> {
    let released = testimage::released(&node.tools)?;
    let registry = node.cluster.registry();
    registry.push(&released, repository, "0.1.0").await?;
    Ok(())
}

async fn pull_secrets(node: &Node, secrets: &Value) -> anyhow::Result<()> {
    let patch = json!({"spec": {"template": {"spec": {"imagePullSecrets": secrets}}}});
    let sets = node.install.daemon_set();
    let params = PatchParams::default();
    sets.patch(DAEMON_SET, &params, &Patch::Merge(&patch))
        .await?;
    Ok(())
}

pub(crate) async fn is_named(node: &Node, name: &str) -> anyhow::Result<()> {
    let containerd = node.cluster.containerd();
    let named = || async {
        let names = containerd.ctr(&["images", "list", "--quiet"]).await?;
        Ok(names.lines().any(|found| found == name).then_some(()))
    };
    wait::until("the image's name is there", SOON, named).await
}

/// What the name points to.
pub(crate) async fn target_of(node: &Node, name: &str) -> anyhow::Result<String> {
    let filter = format!("name=={name}");
    let listed = node
        .cluster
        .containerd()
        .ctr(&["images", "list", &filter])
        .await?;
    let line = listed.lines().find(|line| line.starts_with(name));
    let digest = line.and_then(|line| {
        line.split_whitespace()
            .find(|word| word.starts_with("sha256:"))
    });
    Ok(digest
        .with_context(|| format!("no digest in {listed}"))?
        .to_owned())
}
