//! Whether TryLatest is installed, all of it and in one version.

use std::sync::LazyLock;

use serde_json::Value;
use trylatest_core::image::ImageName;
use trylatest_core::version::Version;

use super::gather::{AgentSet, Facts, Policy};
use super::{Report, Severity, seen};
use crate::cluster::{Looked, Unseen};

/// What `manifests/policy` says in this version.
const MANIFESTS: [&str; 4] = [
    include_str!("../../../../manifests/policy/pods.yaml"),
    include_str!("../../../../manifests/policy/pod-updates.yaml"),
    include_str!("../../../../manifests/policy/templates.yaml"),
    include_str!("../../../../manifests/policy/agent-rights.yaml"),
];

/// Settings that an overlay may replace.
const SETTINGS: [&str; 2] = ["gateImage", "gateArgs"];

/// The policy that makes gates.
const PODS: &str = "trylatest-pods";

/// The first Kubernetes with the policies.
const OLDEST: Version = Version(1, 36, 0);

const APPLY: &str = "Apply the manifests of this version: kubectl apply -k manifests.";

pub(super) fn examine(facts: &Facts, report: &mut Report) {
    server(facts, report);
    agents(facts, report);
    if let Err(Unseen::Absent(_)) = &facts.mutating {
        report.add(
            Severity::Error,
            "api-missing",
            "the API server does not serve MutatingAdmissionPolicy (admissionregistration.k8s.io/v1)",
            "TryLatest needs Kubernetes 1.36 or later, with this API switched on. Until then the API server refuses pods that \
             say TryLatest.",
        );
        return;
    }
    for (kind, policies, bindings) in [
        (
            "MutatingAdmissionPolicy",
            &facts.mutating,
            &facts.mutating_bindings,
        ),
        (
            "ValidatingAdmissionPolicy",
            &facts.validating,
            &facts.validating_bindings,
        ),
    ] {
        present(report, kind, policies);
        present(report, &format!("{kind}Binding"), bindings);
    }
    gate_image(facts, report);
}

fn server(facts: &Facts, report: &mut Report) {
    // Everybody may see it, and it says nothing of TryLatest: a doctor that sees no more has seen nothing.
    let server = match &facts.server {
        Ok(server) => server,
        Err(unseen) => return report.not_looked_at("the API server's version", unseen.why()),
    };
    if Version::read(server).is_some_and(|version| version < OLDEST) {
        report.add(
            Severity::Error,
            "kubernetes-too-old",
            &format!("the API server is Kubernetes {server}"),
            "TryLatest needs 1.36 or later: update the control plane.",
        );
    }
}

fn agents(facts: &Facts, report: &mut Report) {
    let sets = seen(report, "the agents' DaemonSet", &facts.daemon_sets);
    match sets.map(Vec::as_slice) {
        Some([]) => report.add(
            Severity::Error,
            "agents-not-installed",
            "no DaemonSet of TryLatest's agent is there",
            APPLY,
        ),
        Some([one]) => version_of(one, report),
        Some(several) => {
            let names = several
                .iter()
                .map(|set| format!("{}/{}", set.namespace, set.name));
            report.add_about(
                Severity::Warning,
                "several-installs",
                names,
                "there are several DaemonSets of TryLatest's agent",
                "Two agents on a node get in each other's way: remove all but one.",
            );
        }
        None => {}
    }
}

fn version_of(set: &AgentSet, report: &mut Report) {
    let own = env!("CARGO_PKG_VERSION");
    let tag = set.image.rsplit_once(':').map(|(_, tag)| tag);
    if tag
        .and_then(Version::read)
        .is_some_and(|version| Some(version) != Version::read(own))
    {
        report.add(
            Severity::Info,
            "other-version",
            &format!("the agents are {}, this program is {own}", set.image),
            "Use the program of the agents' version: it compares the policies with those of its own.",
        );
    }
}

/// Every object of this kind that the manifests have is there, and says the same.
fn present(report: &mut Report, kind: &str, looked: &Looked<Vec<Policy>>) {
    let Some(present) = seen(report, &format!("every {kind}"), looked) else {
        return;
    };
    for (name, spec) in manifests(kind) {
        match present.iter().find(|policy| policy.name == name) {
            None => report.add_about(
                Severity::Error,
                "policies-missing",
                [format!("{kind}/{name}")],
                "admission policies of TryLatest are missing",
                &format!("{APPLY} Without them, nothing makes pods TryLatest, or nothing limits what an agent may change."),
            ),
            Some(policy) if !contains(&policy.spec, &spec) => report.add_about(
                Severity::Warning,
                "policies-differ",
                [format!("{kind}/{name}")],
                "admission policies of TryLatest are not those of this version, or were edited",
                APPLY,
            ),
            Some(_) => {}
        }
    }
}

/// Every object of the manifests.
static OBJECTS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let files = MANIFESTS.iter();
    let read = files.map(|file| serde_saphyr::from_multiple(file).unwrap_or_default());
    read.flat_map(|objects: Vec<Value>| objects).collect()
});

/// Name and spec of every object of this kind in the manifests.
pub(super) fn manifests(kind: &str) -> Vec<(String, Value)> {
    let ours = OBJECTS.iter().filter(|object| object["kind"] == kind);
    ours.filter_map(|object| {
        let name = object["metadata"]["name"].as_str()?.to_owned();
        Some((name, object["spec"].clone()))
    })
    .collect()
}

/// Whether an object says all that is wanted. The API server adds defaults, and an overlay may change settings.
fn contains(object: &Value, wanted: &Value) -> bool {
    match (object, wanted) {
        (Value::Object(object), Value::Object(wanted)) => {
            let is_setting = wanted
                .get("name")
                .and_then(Value::as_str)
                .is_some_and(|name| SETTINGS.contains(&name));
            let mut wanted = wanted
                .iter()
                .filter(|(key, _)| !(is_setting && *key == "expression"));
            wanted.all(|(key, value)| object.get(key).is_some_and(|own| contains(own, value)))
        }
        (Value::Array(object), Value::Array(wanted)) => {
            object.len() == wanted.len()
                && object
                    .iter()
                    .zip(wanted)
                    .all(|(own, value)| contains(own, value))
        }
        // Readers of YAML do not agree on the spaces of folded text, and CEL does not care.
        (Value::String(object), Value::String(wanted)) => {
            object.split_whitespace().eq(wanted.split_whitespace())
        }
        (object, wanted) => object == wanted,
    }
}

/// The gate's image is the agent's, or a mirror's name for it: the agent makes no other.
fn gate_image(facts: &Facts, report: &mut Report) {
    let (Ok(policies), Ok(sets)) = (&facts.mutating, &facts.daemon_sets) else {
        return;
    };
    let Some(policy) = policies.iter().find(|policy| policy.name == PODS) else {
        return;
    };
    let (Some(gate), [set]) = (gate_image_of(&policy.spec), &sets[..]) else {
        return;
    };
    let names = (gate.parse::<ImageName>(), set.image.parse::<ImageName>());
    let made = match &names {
        (Ok(gate), Ok(agent)) => gate == agent || agent.is_mirrored_by(gate),
        _ => gate == set.image,
    };
    if !made {
        report.add(
            Severity::Warning,
            "gate-image-differs",
            &format!("the gate's image is {gate}, the agent's {}", set.image),
            "An agent makes only its own image, so every node has to pull the gate's from its registry; if that is down, gated \
             pods do not start. Give both the same name and tag.",
        );
    }
}

/// The text between the quotes of a CEL string.
fn gate_image_of(spec: &Value) -> Option<&str> {
    let variables = spec["variables"].as_array()?;
    let image = variables
        .iter()
        .find(|variable| variable["name"] == "gateImage")?;
    let expression = image["expression"].as_str()?.trim();
    expression.strip_prefix('\'')?.strip_suffix('\'')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_policy_of_the_manifests_is_known() {
        let names = |kind| {
            manifests(kind)
                .into_iter()
                .map(|(name, _)| name)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names("MutatingAdmissionPolicy"),
            [
                "trylatest-pods",
                "trylatest-pod-updates",
                "trylatest-templates"
            ]
        );
        assert_eq!(names("MutatingAdmissionPolicyBinding").len(), 3);
        assert_eq!(names("ValidatingAdmissionPolicy").len(), 3);
        assert_eq!(names("ValidatingAdmissionPolicyBinding").len(), 3);
        let pods = &manifests("MutatingAdmissionPolicy")[0].1;
        assert_eq!(
            gate_image_of(pods),
            Some("ghcr.io/trylatest/trylatest:0.1.0")
        );
    }

    #[test]
    fn defaults_and_settings_make_no_difference_and_edits_do() {
        let wanted = &manifests("MutatingAdmissionPolicy")[0].1;
        let mut stored = wanted.clone();
        stored["matchConstraints"]["matchPolicy"] = json!("Equivalent");
        stored["variables"][0]["expression"] = json!("'mirror.example/trylatest:0.1.0'");
        assert!(contains(&stored, wanted));
        let expression = &mut stored["mutations"][0]["jsonPatch"]["expression"];
        let folded = expression.as_str().unwrap().replace(' ', "\n\n");
        *expression = json!(folded);
        assert!(contains(&stored, wanted));
        let mut edited = stored.clone();
        edited["failurePolicy"] = json!("Fail");
        assert!(!contains(&edited, wanted));
        let mut edited = stored.clone();
        edited["variables"][3]["expression"] = json!("[]");
        assert!(!contains(&edited, wanted));
        let mut longer = stored;
        longer["variables"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "x"}));
        assert!(!contains(&longer, wanted));
    }
}
