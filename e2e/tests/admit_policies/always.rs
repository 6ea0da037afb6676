//! Beside a mutating policy of somebody else that gives every container `Always`: whatever comes of
//! the pods' policies, nothing is rolled out for ever, and nothing hangs.
//!
//! The API server runs mutating policies in no fixed order, and in another one whenever any of them
//! changes. So these tests ask for either order, and run alone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::suite::Case;

use crate::owned::{replica_sets, settled};
use crate::space::{Space, container, pod_of, policies};
use crate::templates::{KINDS, deployment, object, template, told};
use crate::{Api, SOON};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![
        Case::exclusive("always_deployments_settle", deployments_settle),
        Case::exclusive("always_comes_to_workloads_that_exist", comes_later),
        Case::exclusive("always_and_quiet_updates", quiet_updates),
        Case::exclusive("always_jobs_can_be_deleted", jobs_can_be_deleted),
    ]
}

/// The name of the policy, its binding, and its probe.
const NAME: &str = "always-pull";

/// How long a change of policies may take to count; a second is usual.
const COUNTS: Duration = Duration::from_secs(3);

/// Which policy sees a request first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum First {
    Ours,
    Theirs,
}

impl First {
    pub(crate) const BOTH: [Self; 2] = [Self::Ours, Self::Theirs];
}

/// Their policy.
#[derive(Clone, Copy)]
pub(crate) struct Theirs {
    /// Whether it is asked again after changes of others.
    pub(crate) reinvocation: &'static str,
    /// Which order is asked for.
    pub(crate) with: With,
    /// CEL: whether it leaves the container `c` of `object`, a pod or a template, alone.
    pub(crate) exception: &'static str,
}

impl Theirs {
    pub(crate) const REINVOCATIONS: [&str; 2] = ["Never", "IfNeeded"];
    pub(crate) const NO_EXCEPTION: &str = "false";

    fn plain(reinvocation: &'static str) -> Self {
        Self {
            reinvocation,
            with: With::Templates,
            exception: Self::NO_EXCEPTION,
        }
    }
}

/// The policy and its binding; `round` is there to be changed.
fn policy(space: &Space<'_>, theirs: Theirs, round: u32) -> Value {
    let Theirs {
        reinvocation,
        exception,
        ..
    } = theirs;
    let exception = exception.replace("object", "variables.template");
    let metadata = json!({"name": NAME, "annotations": {"round": round.to_string()}});
    let always = |list: &str| {
        format!(
            "variables.template.spec.?{list}.orValue([]).transformList(i, c, \
             c.?imagePullPolicy.orValue('') != 'Always' && (c.name == '{NAME}' || !({exception})), JSONPatch{{op: 'add', value: 'Always', \
             path: variables.at + '/spec/{list}/' + string(i) + '/imagePullPolicy'}})"
        )
    };
    let rule = |group: &str, resources: &[&str]| {
        json!({
            "apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
            "resources": resources,
        })
    };
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy",
        "metadata": metadata,
        "spec": {
            "failurePolicy": "Fail", "reinvocationPolicy": reinvocation,
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space.name()}},
                "resourceRules": [
                    rule("apps", &["deployments", "statefulsets", "daemonsets", "replicasets"]),
                    rule("batch", &["jobs", "cronjobs"]),
                    rule("", &["pods", "podtemplates", "replicationcontrollers"]),
                ],
            },
            // A pod's policy cannot change.
            "matchConditions": [{
                "name": "not-too-late", "expression": "object.kind != 'Pod' || request.operation == 'CREATE'",
            }],
            "variables": [
                {"name": "template", "expression":
                    "object.kind == 'Pod' ? object : object.kind == 'CronJob' ? object.spec.jobTemplate.spec.template \
                     : object.kind == 'PodTemplate' ? object.template : object.spec.template"},
                {"name": "at", "expression":
                    "object.kind == 'Pod' ? '' : object.kind == 'CronJob' ? '/spec/jobTemplate/spec/template' \
                     : object.kind == 'PodTemplate' ? '/template' : '/spec/template'"},
            ],
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {
                "expression": format!("{} + {}", always("containers"), always("initContainers")),
            }}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": NAME}, "spec": {"policyName": NAME},
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [policy, binding]})
}

/// Which of our policies theirs is in an order with.
#[derive(Clone, Copy)]
pub(crate) enum With {
    Templates,
    Pods,
}

/// Who saw a new object first; none, if theirs did not see it at all.
async fn order(space: &Space<'_>, with: With) -> anyhow::Result<Option<First>> {
    // A container with this name is not an exception.
    let containers = [container(NAME, "TryLatest")];
    let mut probe = match with {
        With::Templates => deployment(&containers),
        With::Pods => pod_of(NAME, &json!({}), &json!({"containers": containers})),
    };
    probe["metadata"]["name"] = json!(NAME);
    let args = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
    let stored: Value = serde_json::from_str(&space.kubectl(&args, Some(&probe)).await?)?;
    let (policies, ours) = match with {
        With::Templates => {
            let (literal, policies) = told(&stored);
            (policies, literal.is_some())
        }
        With::Pods => (
            policies(&stored["spec"]).join(" "),
            stored["metadata"]["labels"][keys::GATED].is_string(),
        ),
    };
    // The label stays on a pod whose gate was taken away again.
    let theirs = policies == format!("{NAME}=Always");
    Ok(match (theirs, ours, with) {
        (true, false, _) => Some(First::Theirs),
        (true, true, _) | (false, true, With::Pods) => Some(First::Ours),
        _ => None,
    })
}

/// Runs something while their policy is there, and in this order with ours.
pub(crate) async fn beside(
    space: &Space<'_>,
    first: First,
    theirs: Theirs,
    test: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let outcome = async {
        come(space, first, theirs).await?;
        test().await
    }
    .await;
    go(space).await?;
    outcome
}

/// Makes the policy, and changes it until the order is as wanted.
async fn come(space: &Space<'_>, first: First, theirs: Theirs) -> anyhow::Result<()> {
    let mut round = 0;
    wait::until("the policies are in this order", 4 * SOON, || {
        round += 1;
        let policy = policy(space, theirs, round);
        async move {
            space.kubectl(&["apply", "-f", "-"], Some(&policy)).await?;
            let wanted = async || {
                let there = order(space, With::Templates).await?.is_some();
                let right = there && order(space, theirs.with).await? == Some(first);
                Ok(right.then_some(()))
            };
            Ok(wait::until("they count", COUNTS, wanted).await.ok())
        }
    })
    .await
}

async fn go(space: &Space<'_>) -> anyhow::Result<()> {
    for kind in ["mutatingadmissionpolicybinding", "mutatingadmissionpolicy"] {
        let gone = ["delete", kind, NAME, "--ignore-not-found"];
        space.kubectl(&gone, None).await?;
    }
    wait::until("the policy is gone", SOON, || async {
        Ok(order(space, With::Templates).await?.is_none().then_some(()))
    })
    .await
}

/// Two ReplicaSets at most, and no sign that the controller looked for a free name.
async fn is_calm(space: &Space<'_>, context: &str) -> anyhow::Result<Value> {
    let stored = settled(space).await?;
    let count = replica_sets(space).await?.len();
    ensure!(count <= 2, "{context}: {count} ReplicaSets");
    let collisions = &stored["status"]["collisionCount"];
    ensure!(collisions.is_null(), "{context}: {collisions} collisions");
    Ok(stored)
}

async fn deployments_settle(api: Arc<Api>) -> anyhow::Result<()> {
    for first in First::BOTH {
        for reinvocation in Theirs::REINVOCATIONS {
            let space = api.space("always").await?;
            let context = format!("{first:?} {reinvocation}");
            beside(&space, first, Theirs::plain(reinvocation), async || {
                let manifest = deployment(&[container("app", "TryLatest")]);
                space.apply(&manifest).await?;
                let before = is_calm(&space, &context).await?;
                ensure!(replica_sets(&space).await?.len() == 1, "{context}");
                // What is applied again is what is stored.
                space.apply(&manifest).await?;
                space
                    .kubectl(&["label", "deployment/deployment", "own=x"], None)
                    .await?;
                space
                    .kubectl(&["scale", "deployment/deployment", "--replicas=2"], None)
                    .await?;
                let after = is_calm(&space, &context).await?;
                let template = "/spec/template";
                ensure!(
                    before.pointer(template) == after.pointer(template),
                    "{context}"
                );
                ensure!(replica_sets(&space).await?.len() == 1, "{context}");
                Ok(())
            })
            .await?;
            // And when their policy is gone again.
            let label = ["label", "deployment/deployment", "own=y", "--overwrite"];
            space.kubectl(&label, None).await?;
            is_calm(&space, &context).await?;
        }
    }
    Ok(())
}

/// Their policy changes what it sees first, as it would without TryLatest; ours adds nothing to that.
async fn comes_later(api: Arc<Api>) -> anyhow::Result<()> {
    for first in First::BOTH {
        for reinvocation in Theirs::REINVOCATIONS {
            let space = api.space("later").await?;
            let context = format!("{first:?} {reinvocation}");
            let manifest = deployment(&[container("app", "TryLatest")]);
            space.apply(&manifest).await?;
            settled(&space).await?;
            beside(&space, first, Theirs::plain(reinvocation), async || {
                for change in ["own=x", "own=y", "own=z"] {
                    let label = ["label", "deployment/deployment", change, "--overwrite"];
                    space.kubectl(&label, None).await?;
                    let stored = is_calm(&space, &context).await?;
                    let (_, policies) = told(&stored);
                    ensure!(policies == "app=Always", "{context}: {policies}");
                    let generation = &stored["metadata"]["generation"];
                    ensure!(*generation == 2, "{context} {change}: {generation}");
                }
                Ok(())
            })
            .await?;
            is_calm(&space, &context).await?;
        }
    }
    Ok(())
}

/// Labels, finalizers, and kubectl's own notes change no generation of any kind.
async fn quiet_updates(api: Arc<Api>) -> anyhow::Result<()> {
    for first in First::BOTH {
        let space = api.space("quiet").await?;
        let tryings = template(&[container("app", "TryLatest")]);
        beside(&space, first, Theirs::plain("Never"), async || {
            for kind in KINDS {
                space.apply(&object(kind, &tryings)).await?;
            }
            for kind in KINDS {
                crate::quiet::nothing_happens(&space, kind, &object(kind, &tryings)).await?;
            }
            Ok(())
        })
        .await?;
        // What their policy has left behind is not a reason either.
        for kind in KINDS {
            crate::quiet::nothing_happens(&space, kind, &object(kind, &tryings)).await?;
        }
    }
    Ok(())
}

/// A Job that is complete as soon as the controller sees it.
fn job(name: &str, ttl: Option<u32>) -> Value {
    let mut job = object(KINDS[5], &template(&[container("app", "TryLatest")]));
    job["metadata"]["name"] = json!(name);
    job["spec"]["suspend"] = json!(false);
    job["spec"]["completions"] = json!(0);
    job["spec"]["ttlSecondsAfterFinished"] = json!(ttl);
    job
}

async fn jobs_can_be_deleted(api: Arc<Api>) -> anyhow::Result<()> {
    for first in First::BOTH {
        let space = api.space("jobs").await?;
        let delete = |name| {
            [
                "delete",
                "job",
                name,
                "--cascade=foreground",
                "--timeout=20s",
            ]
        };
        beside(&space, first, Theirs::plain("Never"), async || {
            for name in ["now", "later"] {
                space.apply(&job(name, None)).await?;
                // Applied again, it says what cannot change any more.
                space.apply(&job(name, None)).await?;
            }
            space.kubectl(&delete("now"), None).await?;
            space.create(&job("by-itself", Some(0))).await?;
            wait::until("the Job has cleaned up after itself", SOON, || async {
                let args = [
                    "get",
                    "job",
                    "by-itself",
                    "--ignore-not-found",
                    "-o",
                    "name",
                ];
                let left = space.kubectl(&args, None).await?;
                Ok(left.is_empty().then_some(()))
            })
            .await
        })
        .await?;
        space.kubectl(&delete("later"), None).await?;
    }
    Ok(())
}
