//! `on` and `off`: the only commands that change something.

use std::fmt::Write as _;

use anyhow::bail;
use kube::api::{DynamicObject, Patch, PatchParams};
use serde::Serialize;
use serde_json::{Map, Value, json};
use trylatest_core::keys;

use crate::args::{Hold, HowArgs, OffArgs, SwitchArgs};
use crate::cluster::Cluster;
use crate::output;
use crate::target::{Kind, Target};

/// The name under which the API server records our changes.
const MANAGER: &str = "kubectl-trylatest";

/// Every container.
const ALL: &str = "*";

/// Switches a workload on, or says how pods are held.
///
/// # Errors
/// It cannot be switched, or the API server refuses.
pub(crate) async fn on(cluster: &Cluster, args: &SwitchArgs) -> anyhow::Result<()> {
    let SwitchArgs {
        target,
        hold,
        how,
        place: _,
    } = args;
    change(cluster, target, &Switch::On(*hold), *how).await
}

/// Switches a workload off.
///
/// # Errors
/// As [`on`].
pub(crate) async fn off(cluster: &Cluster, args: &OffArgs) -> anyhow::Result<()> {
    let OffArgs {
        target,
        how,
        place: _,
    } = args;
    change(cluster, target, &Switch::Off, *how).await
}

/// What is asked for.
#[derive(Debug)]
enum Switch {
    On(Option<Hold>),
    Off,
}

/// What `on` and `off` answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    target: String,
    /// None of a namespace.
    namespace: Option<String>,
    dry_run: bool,
    /// Whether something was changed, or would be.
    changed: bool,
    settings: Vec<Setting>,
    /// What follows, in words.
    notes: Vec<&'static str>,
}

/// A label or an annotation.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Setting {
    place: Setter,
    key: &'static str,
    before: Option<String>,
    after: Option<&'static str>,
}

/// What holds a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Setter {
    Label,
    TemplateAnnotation,
}

/// What is to be sent, and what is to be said.
#[derive(Debug, PartialEq)]
struct Change {
    /// A merge patch; none if everything is as asked already.
    patch: Option<Value>,
    settings: Vec<Setting>,
    notes: Vec<&'static str>,
}

async fn change(
    cluster: &Cluster,
    target: &Target,
    switch: &Switch,
    how: HowArgs,
) -> anyhow::Result<()> {
    let HowArgs { dry_run, output } = how;
    possible(target, switch)?;
    let objects = cluster.objects(target);
    let what = format!("get {target}");
    let object = cluster.need(&what, objects.get(&target.name)).await?;
    if let Some(owner) = owner(&object) {
        bail!("{target} is made by {owner}, which would undo the change: switch that");
    }
    let change = planned(target, &serde_json::to_value(&object)?, switch);
    if let Some(patch) = &change.patch {
        let params = PatchParams {
            dry_run,
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let what = format!("change {target}");
        let patch = Patch::Merge(patch);
        let sent = objects.patch(&target.name, &params, &patch);
        cluster.need(&what, sent).await?;
    }
    let answer = Answer {
        target: target.to_string(),
        namespace: object.metadata.namespace,
        dry_run,
        changed: change.patch.is_some(),
        settings: change.settings,
        notes: change.notes,
    };
    output::print(output, &answer, text)
}

fn text(answer: &Answer) -> String {
    let suffix = if answer.dry_run {
        " (dry run: nothing was changed)"
    } else {
        ""
    };
    let mut text = format!("{}{suffix}\n", answer.target);
    for setting in &answer.settings {
        let _ = writeln!(text, "  {}", setting.words());
    }
    for note in &answer.notes {
        let _ = writeln!(text, "  {note}");
    }
    if !answer.changed {
        text.push_str("  nothing to change\n");
    }
    text
}

/// What no object of this kind can do.
fn possible(target: &Target, switch: &Switch) -> anyhow::Result<()> {
    match (target.kind, switch) {
        (Kind::Pod, _) => bail!(
            "a pod's pull policy cannot change: switch the workload that it belongs to, or create the pod again with the \
             annotation {}: \"{ALL}\"",
            keys::CONTAINERS
        ),
        (Kind::Job, _) => bail!(
            "a Job's template cannot change: create the Job again with the annotation {}: \"{ALL}\" in its template, or \
             switch the CronJob that makes it",
            keys::CONTAINERS
        ),
        (Kind::Namespace, Switch::On(None) | Switch::Off) => bail!(
            "a namespace cannot make its pods TryLatest: switch its workloads. What a namespace can set is how its TryLatest \
             pods are held: kubectl trylatest on {target} --hold none|gate|inherit"
        ),
        _ => Ok(()),
    }
}

/// Who has made an object and keeps it as it is.
fn owner(object: &DynamicObject) -> Option<String> {
    let mut owners = object.metadata.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    Some(format!("{}/{}", owner.kind.to_lowercase(), owner.name))
}

fn planned(target: &Target, object: &Value, switch: &Switch) -> Change {
    match target.kind.template() {
        Some(at) => in_template(target.kind, at, object, switch),
        None => in_namespace(object, switch),
    }
}

fn in_namespace(object: &Value, switch: &Switch) -> Change {
    let before = object
        .pointer("/metadata/labels")
        .and_then(|all| all[keys::HOLD].as_str());
    let after = match switch {
        Switch::On(Some(Hold::Gate)) => Some(keys::HOLD_GATE),
        Switch::On(Some(Hold::None)) => Some(keys::HOLD_NONE),
        _ => None,
    };
    let setting = Setting {
        place: Setter::Label,
        key: keys::HOLD,
        before: before.map(str::to_owned),
        after,
    };
    let mut notes = Vec::new();
    let patch = (before != after).then(|| {
        notes
            .push("pods that are created from now on follow it; those that exist stay as they are");
        json!({"metadata": {"labels": {keys::HOLD: after}}})
    });
    Change {
        patch,
        settings: vec![setting],
        notes,
    }
}

fn in_template(kind: Kind, at: &str, object: &Value, switch: &Switch) -> Change {
    let annotations = object.pointer(&format!("{at}/metadata/annotations"));
    let before = |key: &str| {
        annotations
            .and_then(|all| all.get(key))
            .and_then(Value::as_str)
    };
    let changes: Vec<(&'static str, Option<&'static str>)> = match switch {
        Switch::On(hold) => {
            let mut changes = vec![(keys::CONTAINERS, Some(ALL))];
            changes.extend(hold.map(|hold| {
                let value = match hold {
                    Hold::Gate => Some(keys::HOLD_GATE),
                    Hold::None => Some(keys::HOLD_NONE),
                    Hold::Inherit => None,
                };
                (keys::HOLD, value)
            }));
            changes
        }
        Switch::Off => [keys::CONTAINERS, keys::VOLUMES, keys::LITERAL]
            .map(|key| (key, None))
            .to_vec(),
    };
    let mut settings = Vec::new();
    let mut patch = Map::new();
    for (key, after) in changes {
        let before = before(key);
        if before != after {
            patch.insert(key.to_owned(), json!(after));
        }
        if before.is_some() || after.is_some() {
            settings.push(Setting {
                place: Setter::TemplateAnnotation,
                key,
                before: before.map(str::to_owned),
                after,
            });
        }
    }
    if patch.is_empty() {
        return Change {
            patch: None,
            settings,
            notes: Vec::new(),
        };
    }
    let mut notes = vec![what_follows(kind, object)];
    if patch.get(keys::LITERAL).is_some() {
        notes.push(
            "its manifest said TryLatest: change that as well, or the next apply switches it on again; until then it has \
             IfNotPresent",
        );
    }
    Change {
        patch: Some(nested(at, json!({"metadata": {"annotations": patch}}))),
        settings,
        notes,
    }
}

impl Setting {
    fn words(&self) -> String {
        let Self {
            place,
            key,
            before,
            after,
        } = self;
        let what = match place {
            Setter::Label => "label",
            Setter::TemplateAnnotation => "template annotation",
        };
        match (before.as_deref(), *after) {
            (before, Some(after)) if before == Some(after) => {
                format!("{what} {key} is {after:?} already")
            }
            (None, Some(after)) => format!("{what} {key} set to {after:?}"),
            (Some(before), Some(after)) => {
                format!("{what} {key} changed from {before:?} to {after:?}")
            }
            (Some(before), None) => format!("{what} {key} removed; it was {before:?}"),
            (None, None) => format!("{what} {key} is not there"),
        }
    }
}

/// What a change of the template means for the pods.
fn what_follows(kind: Kind, object: &Value) -> &'static str {
    let on_delete = object.pointer("/spec/updateStrategy/type") == Some(&json!("OnDelete"));
    let paused = object.pointer("/spec/paused") == Some(&Value::Bool(true));
    match kind {
        Kind::Deployment if paused => {
            "a rollout follows once it is resumed: the Deployment is paused"
        }
        Kind::StatefulSet | Kind::DaemonSet if on_delete => {
            "its pods follow as you delete them: its update strategy is OnDelete"
        }
        Kind::Deployment | Kind::StatefulSet | Kind::DaemonSet => {
            "a rollout follows: its pods are replaced"
        }
        Kind::CronJob => "the next Job follows it; Jobs that exist stay as they are",
        _ => "new pods follow it; pods that exist stay as they are",
    }
}

/// A value at this JSON pointer, in objects around it.
fn nested(at: &str, value: Value) -> Value {
    let keys = at.split('/').skip(1).collect::<Vec<_>>();
    keys.into_iter()
        .rev()
        .fold(value, |inner, key| json!({ key: inner }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(target: &str, object: &Value, switch: &Switch) -> Change {
        planned(&target.parse().unwrap(), object, switch)
    }

    fn answer(change: Change) -> Answer {
        Answer {
            target: "deployment/a".to_owned(),
            namespace: Some("shop".to_owned()),
            dry_run: false,
            changed: change.patch.is_some(),
            settings: change.settings,
            notes: change.notes,
        }
    }

    fn shown(change: Change) -> String {
        text(&answer(change))
    }

    #[test]
    fn a_program_reads_what_has_changed() {
        let annotations = json!({"trylatest.dev/containers": "web"});
        let object = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
        let change = plan("deployment/a", &object, &Switch::On(Some(Hold::None)));
        let place = "template-annotation";
        let expected = json!({
            "target": "deployment/a", "namespace": "shop", "dryRun": false, "changed": true,
            "settings": [
                {"place": place, "key": "trylatest.dev/containers", "before": "web", "after": "*"},
                {"place": place, "key": "trylatest.dev/hold", "before": null, "after": "none"},
            ],
            "notes": ["a rollout follows: its pods are replaced"],
        });
        assert_eq!(serde_json::to_value(answer(change)).unwrap(), expected);
    }

    #[test]
    fn a_workload_is_switched_on_by_its_template() {
        let change = plan("deployment/a", &json!({"spec": {}}), &Switch::On(None));
        let annotations = json!({"trylatest.dev/containers": "*"});
        let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
        assert_eq!(change.patch, Some(patch));
        assert_eq!(
            shown(change),
            "deployment/a\n  template annotation trylatest.dev/containers set to \"*\"\n  a rollout follows: its pods are \
             replaced\n"
        );
        let object = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
        let again = plan("deployment/a", &object, &Switch::On(None));
        assert_eq!(again.patch, None);
        assert_eq!(
            shown(again),
            "deployment/a\n  template annotation trylatest.dev/containers is \"*\" already\n  nothing to change\n"
        );
        let held = plan("deployment/a", &object, &Switch::On(Some(Hold::None)));
        let patch = held.patch.unwrap();
        let annotations = &patch["spec"]["template"]["metadata"]["annotations"];
        assert_eq!(*annotations, json!({"trylatest.dev/hold": "none"}));
    }

    #[test]
    fn off_also_takes_what_admission_has_written() {
        let annotations = json!({"trylatest.dev/literal": "app", "own": "x"});
        let template = json!({"template": {"metadata": {"annotations": annotations}}});
        let object = json!({"spec": {"jobTemplate": {"spec": template}}});
        let change = plan("cronjob/a", &object, &Switch::Off);
        let annotations = json!({"trylatest.dev/literal": null});
        let template = json!({"template": {"metadata": {"annotations": annotations}}});
        let patch = json!({"spec": {"jobTemplate": {"spec": template}}});
        assert_eq!(change.patch, Some(patch));
        assert!(
            change
                .notes
                .iter()
                .any(|note| note.contains("the next apply"))
        );
        assert_eq!(plan("cronjob/a", &json!({}), &Switch::Off).patch, None);
    }

    #[test]
    fn what_follows_is_said() {
        for (target, spec, words) in [
            (
                "deployment/a",
                json!({"paused": true}),
                "once it is resumed",
            ),
            (
                "daemonset/a",
                json!({"updateStrategy": {"type": "OnDelete"}}),
                "as you delete them",
            ),
            ("replicaset/a", json!({}), "new pods follow it"),
            ("cronjob/a", json!({}), "the next Job"),
        ] {
            let change = plan(target, &json!({ "spec": spec }), &Switch::On(None));
            assert!(
                change.notes.iter().any(|note| note.contains(words)),
                "{change:?}"
            );
        }
    }

    #[test]
    fn a_namespace_can_set_how_pods_are_held_and_nothing_else() {
        let namespace: Target = "ns/shop".parse().unwrap();
        for switch in [Switch::On(None), Switch::Off] {
            let error = possible(&namespace, &switch).unwrap_err();
            assert!(error.to_string().contains("--hold"), "{error}");
        }
        let none = Switch::On(Some(Hold::None));
        possible(&namespace, &none).unwrap();
        let change = plan("ns/shop", &json!({}), &none);
        let labels = json!({"trylatest.dev/hold": "none"});
        assert_eq!(change.patch, Some(json!({"metadata": {"labels": labels}})));
        let labelled = json!({"metadata": {"labels": labels}});
        assert_eq!(plan("ns/shop", &labelled, &none).patch, None);
        let back = plan("ns/shop", &labelled, &Switch::On(Some(Hold::Inherit)));
        let labels = json!({"trylatest.dev/hold": null});
        assert_eq!(back.patch, Some(json!({"metadata": {"labels": labels}})));
    }

    #[test]
    fn pods_and_jobs_cannot_be_switched() {
        for target in ["pod/a", "job/a"] {
            assert!(possible(&target.parse().unwrap(), &Switch::On(None)).is_err());
        }
    }
}
