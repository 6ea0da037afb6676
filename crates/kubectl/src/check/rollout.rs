//! Whether a workload's rollout has ended, by its status (`kubectl rollout status` asks the same fields).

use serde_json::Value;

use super::number;
use crate::target::Kind;

/// How far a rollout is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rollout {
    /// Every pod is the newest template's, and runs.
    Done,
    /// Not yet; what is missing.
    Waiting(String),
    /// It will not end.
    Failed(String),
}

/// The selector of a workload's pods, as the API server takes it; none if it has none, or one that we cannot write.
pub(super) fn selector(object: &Value) -> Option<String> {
    let selector = object.pointer("/spec/selector")?;
    // A ReplicationController's is only a map.
    let labels = selector.get("matchLabels").unwrap_or(selector);
    let mut terms: Vec<String> = Vec::new();
    for (key, value) in labels.as_object()? {
        if let Some(value) = value.as_str() {
            terms.push(format!("{key}={value}"));
        }
    }
    let expressions = selector.get("matchExpressions").and_then(Value::as_array);
    for expression in expressions.into_iter().flatten() {
        terms.push(term(expression)?);
    }
    (!terms.is_empty()).then(|| terms.join(","))
}

fn term(expression: &Value) -> Option<String> {
    let key = expression["key"].as_str()?;
    let values = expression["values"].as_array();
    let values: Vec<_> = values
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let values = values.join(",");
    Some(match expression["operator"].as_str()? {
        "In" => format!("{key} in ({values})"),
        "NotIn" => format!("{key} notin ({values})"),
        "Exists" => key.to_owned(),
        "DoesNotExist" => format!("!{key}"),
        _ => return None,
    })
}

/// How far the rollout of this object is.
pub(super) fn rollout(kind: Kind, object: &Value) -> Rollout {
    let generation = number(object, "/metadata/generation");
    let observed = number(object, "/status/observedGeneration");
    let has_generation = matches!(
        kind,
        Kind::Deployment
            | Kind::StatefulSet
            | Kind::DaemonSet
            | Kind::ReplicaSet
            | Kind::ReplicationController
    );
    if has_generation && observed < generation {
        return Rollout::Waiting("its controller has not seen the newest template".to_owned());
    }
    match kind {
        Kind::Deployment => deployment(object),
        Kind::StatefulSet => stateful_set(object),
        Kind::DaemonSet => daemon_set(object),
        Kind::ReplicaSet | Kind::ReplicationController => {
            let wanted = wanted(object);
            enough("are ready", number(object, "/status/readyReplicas"), wanted)
        }
        Kind::Job => job(object),
        Kind::Pod => pod(object),
        // Neither has pods of its own.
        Kind::CronJob | Kind::Namespace => Rollout::Done,
    }
}

/// The replicas that are asked for; the API server's default is 1.
fn wanted(object: &Value) -> i64 {
    let replicas = object.pointer("/spec/replicas");
    replicas.and_then(Value::as_i64).unwrap_or(1)
}

fn enough(what: &str, number: i64, wanted: i64) -> Rollout {
    if number >= wanted {
        Rollout::Done
    } else {
        Rollout::Waiting(format!("{number} of {wanted} pods {what}"))
    }
}

/// The first that has not ended.
fn all(steps: impl IntoIterator<Item = Rollout>) -> Rollout {
    let mut steps = steps.into_iter();
    steps
        .find(|step| *step != Rollout::Done)
        .unwrap_or(Rollout::Done)
}

fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == name)
}

fn deployment(object: &Value) -> Rollout {
    let progressing = condition(object, "Progressing");
    if progressing.is_some_and(|c| c["reason"] == "ProgressDeadlineExceeded") {
        return Rollout::Failed("the Deployment has exceeded its progress deadline".to_owned());
    }
    let wanted = wanted(object);
    let updated = number(object, "/status/updatedReplicas");
    if object.pointer("/spec/paused") == Some(&Value::Bool(true)) && updated < wanted {
        return Rollout::Failed("the Deployment is paused (kubectl rollout resume)".to_owned());
    }
    let old = number(object, "/status/replicas") - updated;
    let gone = match old {
        ..=0 => Rollout::Done,
        old => Rollout::Waiting(format!("{old} old pods are still there")),
    };
    let available = number(object, "/status/availableReplicas");
    all([
        enough("have the newest template", updated, wanted),
        gone,
        enough("are available", available, wanted),
    ])
}

/// Whether its controller leaves it to others to delete old pods.
fn is_on_delete(object: &Value) -> bool {
    object.pointer("/spec/updateStrategy/type") == Some(&Value::from("OnDelete"))
}

/// So many of these pods have the newest template. If others are left, nobody but the user replaces them.
fn replaced_by_hand(updated: i64, pods: i64, wanted: i64) -> Rollout {
    match enough("have the newest template", updated, wanted) {
        Rollout::Waiting(why) if pods > updated => Rollout::Failed(format!(
            "{why}, and its update strategy is OnDelete: delete the old pods (kubectl delete pod), then check again"
        )),
        so_far => so_far,
    }
}

fn stateful_set(object: &Value) -> Rollout {
    let ready = enough(
        "are ready",
        number(object, "/status/readyReplicas"),
        wanted(object),
    );
    let updated = number(object, "/status/updatedReplicas");
    if is_on_delete(object) {
        let pods = number(object, "/status/replicas");
        return all([replaced_by_hand(updated, pods, wanted(object)), ready]);
    }
    let partition = number(object, "/spec/updateStrategy/rollingUpdate/partition");
    let is_new =
        object.pointer("/status/updateRevision") == object.pointer("/status/currentRevision");
    let renewed = match partition {
        0 if is_new => Rollout::Done,
        partition => enough(
            "have the newest template",
            updated,
            wanted(object) - partition,
        ),
    };
    all([ready, renewed])
}

fn daemon_set(object: &Value) -> Rollout {
    let wanted = number(object, "/status/desiredNumberScheduled");
    let available = enough(
        "are available",
        number(object, "/status/numberAvailable"),
        wanted,
    );
    let updated = number(object, "/status/updatedNumberScheduled");
    if is_on_delete(object) {
        let pods = number(object, "/status/currentNumberScheduled");
        return all([replaced_by_hand(updated, pods, wanted), available]);
    }
    all([
        enough("have the newest template", updated, wanted),
        available,
    ])
}

/// Its pods have started, or have ended well.
fn job(object: &Value) -> Rollout {
    let is_true = |name| condition(object, name).filter(|c| c["status"] == "True");
    if let Some(failed) = is_true("Failed") {
        let message = failed["message"].as_str().unwrap_or("the Job has failed");
        return Rollout::Failed(trylatest_core::text::on_one_line(message));
    }
    if is_true("Complete").is_some() {
        return Rollout::Done;
    }
    if object.pointer("/spec/suspend") == Some(&Value::Bool(true)) {
        return Rollout::Failed("the Job is suspended".to_owned());
    }
    let active = number(object, "/status/active").max(1);
    enough("are ready", number(object, "/status/ready"), active)
}

fn pod(object: &Value) -> Rollout {
    match object.pointer("/status/phase").and_then(Value::as_str) {
        Some("Succeeded") => Rollout::Done,
        Some("Failed") => Rollout::Failed("the pod has failed".to_owned()),
        _ if condition(object, "Ready").is_some_and(|c| c["status"] == "True") => Rollout::Done,
        _ => Rollout::Waiting("the pod is not ready".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn waits(kind: Kind, object: &Value) -> String {
        match rollout(kind, object) {
            Rollout::Done => "done".to_owned(),
            Rollout::Waiting(why) => format!("waits: {why}"),
            Rollout::Failed(why) => format!("failed: {why}"),
        }
    }

    #[test]
    fn a_deployment_is_done_when_all_pods_are_new_and_available() {
        let with = |status: Value| {
            let mut object =
                json!({"metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": status});
            object["status"]["observedGeneration"] = json!(2);
            waits(Kind::Deployment, &object)
        };
        let done = json!({"replicas": 3, "updatedReplicas": 3, "availableReplicas": 3});
        assert_eq!(with(done), "done");
        let one = json!({"replicas": 3, "updatedReplicas": 1, "availableReplicas": 3});
        assert_eq!(with(one), "waits: 1 of 3 pods have the newest template");
        let old = json!({"replicas": 4, "updatedReplicas": 3, "availableReplicas": 3});
        assert_eq!(with(old), "waits: 1 old pods are still there");
        let starting = json!({"replicas": 3, "updatedReplicas": 3, "availableReplicas": 2});
        assert_eq!(with(starting), "waits: 2 of 3 pods are available");
        let stuck =
            json!({"conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]});
        assert!(with(stuck).starts_with("failed: "));
        let unseen = json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 1}});
        assert!(waits(Kind::Deployment, &unseen).contains("has not seen"));
    }

    #[test]
    fn sets_and_jobs_have_their_own_words() {
        let set = json!({"spec": {"replicas": 2}, "status": {
            "readyReplicas": 2, "updatedReplicas": 1, "currentRevision": "a", "updateRevision": "b",
        }});
        assert_eq!(
            waits(Kind::StatefulSet, &set),
            "waits: 1 of 2 pods have the newest template"
        );
        let mut part = set.clone();
        part["spec"]["updateStrategy"] = json!({"rollingUpdate": {"partition": 1}});
        assert_eq!(waits(Kind::StatefulSet, &part), "done");
        let set = json!({"status": {
            "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 1,
        }});
        assert_eq!(
            waits(Kind::DaemonSet, &set),
            "waits: 1 of 2 pods are available"
        );
        let job = json!({"status": {"active": 1, "ready": 0}});
        assert_eq!(waits(Kind::Job, &job), "waits: 0 of 1 pods are ready");
        let job = json!({"status": {"conditions": [{"type": "Complete", "status": "True"}]}});
        assert_eq!(waits(Kind::Job, &job), "done");
        let pod = json!({"status": {"phase": "Pending"}});
        assert_eq!(waits(Kind::Pod, &pod), "waits: the pod is not ready");
    }

    #[test]
    fn old_pods_that_nobody_replaces_end_the_check() {
        let on_delete = json!({"updateStrategy": {"type": "OnDelete"}, "replicas": 2});
        let set = |updated, pods| {
            let status = json!({"readyReplicas": 2, "updatedReplicas": updated, "replicas": pods});
            waits(
                Kind::StatefulSet,
                &json!({"spec": on_delete, "status": status}),
            )
        };
        let daemons = |updated, pods| {
            let status = json!({
                "desiredNumberScheduled": 2, "updatedNumberScheduled": updated,
                "currentNumberScheduled": pods, "numberAvailable": 2,
            });
            waits(
                Kind::DaemonSet,
                &json!({"spec": on_delete, "status": status}),
            )
        };
        let old = "failed: 1 of 2 pods have the newest template, and its update strategy is OnDelete: delete the old pods";
        let deleted = "waits: 1 of 2 pods have the newest template";
        for with in [&set as &dyn Fn(i64, i64) -> String, &daemons] {
            assert!(with(1, 2).starts_with(old), "{}", with(1, 2));
            // The old pod has been deleted, and the new one is on its way.
            assert_eq!(with(1, 1), deleted);
            assert_eq!(with(2, 2), "done");
        }
    }

    #[test]
    fn selectors_are_written_as_the_api_server_reads_them() {
        let object = json!({"spec": {"selector": {
            "matchLabels": {"app": "a"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["x", "y"]},
                {"key": "old", "operator": "DoesNotExist"},
            ],
        }}});
        assert_eq!(
            selector(&object).as_deref(),
            Some("app=a,tier in (x,y),!old")
        );
        let controller = json!({"spec": {"selector": {"app": "a"}}});
        assert_eq!(selector(&controller).as_deref(), Some("app=a"));
        assert_eq!(selector(&json!({"spec": {}})), None);
    }
}
