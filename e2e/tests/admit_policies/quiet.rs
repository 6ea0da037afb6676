//! Updates that are not about the template leave it as it is stored.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use trylatest_core::keys;
use trylatest_e2e::suite::Case;

use crate::Api;
use crate::owned::owner;
use crate::space::{Apply, Space, annotation, container, image_volume};
use crate::templates::{KINDS, deployment, object, template, told};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![
        Case::new("quiet_updates_roll_nothing_out", nothing_rolls_out),
        Case::new("quiet_updates_of_what_was_left_over", left_over),
        Case::new("a_patch_by_an_applier_is_no_apply", a_patch_by_an_applier),
        Case::new("a_finished_upgrade_forgets_kubectls_record", no_record),
        Case::new("a_job_applied_again_is_what_it_was", a_job_applied_again),
    ]
}

/// Changes everything but the template; neither it nor the generation may follow.
pub(crate) async fn nothing_happens(
    space: &Space<'_>,
    kind: (&str, &str, &str),
    manifest: &Value,
) -> anyhow::Result<()> {
    let name = kind.1.to_lowercase();
    // A Deployment counts changes of its own annotations as well.
    let counts = kind.1 != "Deployment";
    let seen = |stored: &Value| {
        let template = stored.pointer(kind.2).cloned();
        let generation = counts.then(|| stored["metadata"]["generation"].clone());
        (template, generation)
    };
    let before = seen(&space.get(kind.1, &name).await?);
    // A record of something else that says TryLatest, too.
    let mut recorded = manifest.clone();
    recorded["metadata"]["labels"] = json!({"recorded": "only"});
    let object = format!("{}/{name}", kind.1);
    let finalizer = |value: Value| json!({"metadata": {"finalizers": value}}).to_string();
    let (put, gone) = (
        finalizer(json!(["example.com/own"])),
        finalizer(json!(null)),
    );
    // kubectl's way to forget who owns what.
    let reset = json!({"metadata": {"managedFields": [{}]}}).to_string();
    let record = "apply set-last-applied --create-annotation -f -";
    for change in [
        format!("label {object} --overwrite own=x"),
        format!("label {object} own-"),
        format!("annotate {object} --overwrite own=x"),
        record.to_owned(),
        format!("patch {object} --type=merge -p {put}"),
        format!("patch {object} --type=merge -p {gone}"),
        format!("patch {object} --type=merge -p {reset}"),
    ] {
        let args: Vec<_> = change.split(' ').collect();
        let input = change.ends_with("-f -").then_some(&recorded);
        space.kubectl(&args, input).await?;
        let after = seen(&space.get(kind.1, &name).await?);
        ensure!(before == after, "{change}: {before:?} became {after:?}");
    }
    Ok(())
}

async fn nothing_rolls_out(api: Arc<Api>) -> anyhow::Result<()> {
    for by in Apply::BOTH {
        let space = api.space("quiet").await?;
        for kind in KINDS {
            let mut template = template(&[container("app", "TryLatest")]);
            template["spec"]["volumes"] = json!([image_volume("data", "TryLatest")]);
            let manifest = object(kind, &template);
            space.apply_by(by, &manifest).await?;
            nothing_happens(&space, kind, &manifest).await?;
        }
    }
    Ok(())
}

/// The word in a template whose policy says something else: what a policy of somebody else leaves
/// behind, or a change that was made while ours were away.
async fn left_over(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("left-over").await?;
    for kind in KINDS {
        // Ours takes the word out of what is new, unless a controller made it.
        let mut word = object(kind, &template(&[container("app", "Always")]));
        let metadata = format!("{}/metadata", kind.2);
        let metadata = word.pointer_mut(&metadata).context("no metadata")?;
        metadata["annotations"] = json!({ keys::LITERAL: "app" });
        word["metadata"]["ownerReferences"] = json!([owner("example.com/v1", "App")]);
        let stored = space.apply(&word).await?;
        let template = stored.pointer(kind.2).context("no template")?;
        ensure!(
            annotation(template, keys::LITERAL) == Some("app"),
            "{stored:#}"
        );
        // From here on nobody has made it.
        let orphan = json!({"metadata": {"ownerReferences": null}}).to_string();
        let name = kind.1.to_lowercase();
        space
            .kubectl(
                &["patch", kind.1, &name, "--type=merge", "-p", &orphan],
                None,
            )
            .await?;
        nothing_happens(&space, kind, &word).await?;
    }
    Ok(())
}

/// A patch in the name of somebody who has also applied server-side says nothing about the template.
async fn a_patch_by_an_applier(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("applier").await?;
    let manifest = deployment(&[container("app", "TryLatest")]);
    space.apply_by(Apply::Server, &manifest).await?;
    let label = [
        "label",
        "deployment/deployment",
        "own=x",
        "--field-manager=kubectl",
    ];
    space.kubectl(&label, None).await?;
    let restart = [
        "rollout",
        "restart",
        "deployment/deployment",
        "--field-manager=kubectl",
    ];
    space.kubectl(&restart, None).await?;
    let stored = space.get("deployment", "deployment").await?;
    let got = told(&stored);
    ensure!(
        got == (Some("app"), "app=IfNotPresent".to_owned()),
        "{got:?}"
    );
    Ok(())
}

/// Whoever moves to server-side apply takes kubectl's record away by hand.
async fn no_record(api: Arc<Api>) -> anyhow::Result<()> {
    let space = api.space("record").await?;
    space
        .apply(&deployment(&[container("app", "TryLatest")]))
        .await?;
    let forget = "kubectl.kubernetes.io/last-applied-configuration-";
    let annotate = ["annotate", "deployment/deployment", forget];
    space.kubectl(&annotate, None).await?;
    let stored = space.get("deployment", "deployment").await?;
    ensure!(told(&stored).0 == Some("app"), "{stored:#}");
    Ok(())
}

/// Its template cannot change: asking for TryLatest again is not an error, and changes nothing.
async fn a_job_applied_again(api: Arc<Api>) -> anyhow::Result<()> {
    for by in Apply::BOTH {
        for first in ["TryLatest", "Always"] {
            let space = api.space("job").await?;
            let of = |policy: &str| {
                let mut sidecar = container("sidecar", policy);
                sidecar["restartPolicy"] = json!("Always");
                let volume = json!({"name": "data", "image": {
                    "reference": "registry.example/data:v1", "pullPolicy": policy,
                }});
                object(
                    KINDS[5],
                    &json!({"metadata": {}, "spec": {
                        "initContainers": [sidecar], "containers": [container("app", policy)],
                        "volumes": [volume],
                    }}),
                )
            };
            let before = space.apply_by(by, &of(first)).await?;
            let mut again = of("TryLatest");
            again["metadata"]["labels"] = json!({"own": "x"});
            let after = space.apply_by(by, &again).await?;
            ensure!(before["spec"] == after["spec"], "{by:?} {first}: {after:#}");
            ensure!(after["metadata"]["labels"]["own"] == "x");
        }
    }
    Ok(())
}
