//! What else in the cluster changes pods, their pull policies or their images.

use serde_json::Value;

use super::gather::{Facts, Policy};
use super::{Report, Severity, seen};

/// The API server's plugin that makes every policy `Always`.
const PLUGIN: &str = "AlwaysPullImages";

/// What all of ours begin with.
const OURS: &str = "trylatest-";

/// Where the exceptions are written down.
const EXCEPTIONS: &str = "If it sets Always or refuses IfNotPresent, give it the exception of docs/troubleshooting.md (\"Always pull\").";

/// What an admission rule matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    groups: Vec<String>,
    operations: Vec<String>,
    resources: Vec<String>,
}

impl Rule {
    /// All rules of a webhook's or policy's list.
    pub(super) fn all(rules: &Value) -> Vec<Self> {
        let words = |value: &Value| {
            let all = value.as_array().into_iter().flatten();
            all.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let rules = rules.as_array().into_iter().flatten();
        rules
            .map(|rule| Self {
                groups: words(&rule["apiGroups"]),
                operations: words(&rule["operations"]),
                resources: words(&rule["resources"]),
            })
            .collect()
    }

    /// Whether it sees pods that are created.
    fn sees_new_pods(&self) -> bool {
        let has =
            |all: &[String], words: &[&str]| all.iter().any(|own| words.contains(&own.as_str()));
        has(&self.groups, &["", "*"])
            && has(&self.operations, &["CREATE", "*"])
            && has(&self.resources, &["pods", "*", "*/*", "pods/*"])
    }
}

pub(super) fn examine(facts: &Facts, report: &mut Report) {
    always_pull_images(facts, report);
    let mutating = seen(report, "other MutatingAdmissionPolicies", &facts.mutating);
    others(mutating, "MutatingAdmissionPolicy", report);
    let validating = seen(
        report,
        "other ValidatingAdmissionPolicies",
        &facts.validating,
    );
    others(validating, "ValidatingAdmissionPolicy", report);
    webhooks(facts, report);
    if let Some(pods) = seen(report, "pods that are overruled", &facts.overruled)
        && !pods.is_empty()
    {
        report.add_about(
            Severity::Warning,
            "overruled-pods",
            pods.iter().cloned(),
            "another policy, webhook or plugin has given pods Always or taken their gates away, so nothing holds them",
            "Those that have Always do not start while their registry is away. Find what changes them (kubectl get pod -o yaml \
             --show-managed-fields names no admission: try one policy after the other with --dry-run=server), and give it an \
             exception.",
        );
    }
}

const ENABLE: &str = "--enable-admission-plugins";

/// The plugin shows itself only in the API server's flags, and in what it does.
fn always_pull_images(facts: &Facts, report: &mut Report) {
    let fix = "It makes every pod Always before TryLatest sees it. Remove the plugin from --enable-admission-plugins, and let a \
               policy that spares TryLatest pods do its work.";
    let flags = facts.server_flags.as_deref().unwrap_or_default();
    let written_in_one =
        (flags.iter()).filter_map(|flag| flag.strip_prefix(ENABLE)?.strip_prefix('='));
    let written_in_two =
        (flags.windows(2)).filter_map(|two| (two[0] == ENABLE).then_some(&*two[1]));
    let mut plugins = written_in_one
        .chain(written_in_two)
        .flat_map(|all| all.split(','));
    let switched_on = plugins.any(|plugin| plugin.trim() == PLUGIN);
    // Our own pods ask for IfNotPresent.
    let sets = facts.daemon_sets.as_deref().unwrap_or_default();
    let asked = sets.iter().any(|set| set.pull_policy == "IfNotPresent");
    let agents = facts.agents.iter().flat_map(|agents| agents.values());
    let changed: Vec<_> = agents
        .filter(|agent| asked && agent.pull_policy == "Always")
        .map(|agent| format!("{}/{}", agent.namespace, agent.name))
        .collect();
    if switched_on {
        let what = "the API server runs with the admission plugin AlwaysPullImages";
        report.add(Severity::Error, "always-pull-images", what, fix);
    } else if !changed.is_empty() {
        let what = "the agents' pods have Always although their DaemonSet says IfNotPresent: the plugin AlwaysPullImages, or \
                    another policy";
        report.add_about(Severity::Error, "always-pull-images", changed, what, fix);
    }
    let what = "the API server's admission plugins";
    match &facts.server_flags {
        Ok(flags) if flags.is_empty() => {
            report.not_looked_at(what, "no API server runs as a pod here");
        }
        Ok(_) => report.looked_at(what),
        Err(unseen) => report.not_looked_at(what, unseen.why()),
    }
}

/// Policies of others say in CEL what they touch.
fn others(policies: Option<&Vec<Policy>>, kind: &str, report: &mut Report) {
    let policies = policies.into_iter().flatten();
    for policy in policies.filter(|policy| !policy.name.starts_with(OURS)) {
        let rules = Rule::all(&policy.spec["matchConstraints"]["resourceRules"]);
        let text = policy.spec.to_string();
        let touched = ["imagePullPolicy", "initContainers", ".image"]
            .into_iter()
            .find(|word| text.contains(word));
        let (Some(word), true) = (touched, rules.iter().any(Rule::sees_new_pods)) else {
            continue;
        };
        let severity = match word {
            "imagePullPolicy" => Severity::Warning,
            _ => Severity::Info,
        };
        report.add_about(
            severity,
            "other-policies",
            [format!("{kind}/{}", policy.name)],
            &format!("a policy of somebody else looks at {word} of new pods"),
            EXCEPTIONS,
        );
    }
}

/// A webhook does not say what it does.
fn webhooks(facts: &Facts, report: &mut Report) {
    let Some(webhooks) = seen(report, "mutating webhooks", &facts.webhooks) else {
        return;
    };
    let see = webhooks
        .iter()
        .filter(|webhook| webhook.rules.iter().any(Rule::sees_new_pods));
    let names: Vec<_> = see.map(|webhook| webhook.name.clone()).collect();
    if !names.is_empty() {
        report.add_about(
            Severity::Info,
            "mutating-webhooks",
            names,
            "webhooks may change new pods; what they change cannot be seen",
            EXCEPTIONS,
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_sees_new_pods_or_not() {
        for (group, operation, resource, sees) in [
            ("", "CREATE", "pods", true),
            ("*", "*", "*/*", true),
            ("", "UPDATE", "pods", false),
            ("apps", "CREATE", "deployments", false),
            ("", "CREATE", "services", false),
        ] {
            let rules = Rule::all(&json!([
                {"apiGroups": [group], "operations": [operation], "resources": [resource]},
            ]));
            assert_eq!(rules[0].sees_new_pods(), sees, "{rules:?}");
        }
        assert!(Rule::all(&json!(null)).is_empty());
    }
}
