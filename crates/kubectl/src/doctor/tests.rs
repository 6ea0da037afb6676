use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::admission::Rule;
use super::gather::{AgentSet, Kubelets, Policy, Renewal, Webhook};
use super::*;
use crate::cluster::Unseen;
use crate::nodes::tests::{agents_of, node};
use crate::nodes::{Place, SeenNode};

fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

/// The objects of one kind, as the manifests have them.
fn applied(kind: &str) -> Vec<Policy> {
    let all = install::manifests(kind).into_iter();
    all.map(|(name, spec)| Policy { name, spec }).collect()
}

/// A cluster in which nothing is wrong.
fn healthy() -> Facts {
    Facts {
        server: Ok("v1.37.2".into()),
        mutating: Ok(applied("MutatingAdmissionPolicy")),
        mutating_bindings: Ok(applied("MutatingAdmissionPolicyBinding")),
        validating: Ok(applied("ValidatingAdmissionPolicy")),
        validating_bindings: Ok(applied("ValidatingAdmissionPolicyBinding")),
        webhooks: Ok(vec![]),
        daemon_sets: Ok(vec![AgentSet {
            namespace: "trylatest-system".into(),
            name: "trylatest-agent".into(),
            image: "ghcr.io/trylatest/trylatest:0.1.0".into(),
            pull_policy: "IfNotPresent".into(),
        }]),
        nodes: Ok(vec![node("a", None), node("b", None)]),
        agents: Ok(agents_of(&[("a", true), ("b", true)])),
        leases: Ok(vec![]),
        server_flags: Ok(vec!["--enable-admission-plugins=NodeRestriction".into()]),
        overruled: Ok(vec![]),
        refused_config: Ok(vec![]),
        kubelets: Ok(Kubelets::default()),
    }
}

/// The names of what is found if this is changed.
fn found(change: impl FnOnce(&mut Facts)) -> Vec<&'static str> {
    let mut facts = healthy();
    change(&mut facts);
    let report = examine(&facts, now());
    report
        .findings
        .iter()
        .map(|finding| finding.check)
        .collect()
}

fn policy(name: &str, resource: &str, expression: &str) -> Policy {
    let rule = json!({"apiGroups": [""], "operations": ["CREATE"], "resources": [resource]});
    let spec = json!({
        "matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": expression}],
    });
    Policy {
        name: name.to_owned(),
        spec,
    }
}

#[test]
fn nothing_is_found_in_a_cluster_that_is_well() {
    let report = examine(&healthy(), now());
    assert_eq!(report.findings, []);
    assert_eq!(report.not_seen, []);
    assert_eq!(report.worst(), None);
    assert_eq!(report.exit_code(), 0);
    let text = anstream::adapter::strip_str(&render(&report)).to_string();
    let seen = format!("looked at {} things\n", report.seen.len());
    assert!(
        text.starts_with(&format!("0 errors, 0 warnings; {seen}")),
        "{text}"
    );
}

#[test]
fn the_install_is_looked_at() {
    assert_eq!(
        found(|f| f.daemon_sets = Ok(vec![])),
        ["agents-not-installed"]
    );
    assert_eq!(
        found(|f| f.server = Ok("v1.35.1".into())),
        ["kubernetes-too-old"]
    );
    let absent = Unseen::Absent("list: not found".into());
    let gone = found(|f| f.mutating = Err(absent.clone()));
    assert_eq!(gone, ["api-missing"]);
    let missing = found(|f| {
        f.mutating_bindings.as_mut().unwrap().remove(1);
    });
    assert_eq!(missing, ["policies-missing"]);
    let edited =
        found(|f| f.validating.as_mut().unwrap()[0].spec["failurePolicy"] = json!("Ignore"));
    assert_eq!(edited, ["policies-differ"]);
    let twice = found(|f| {
        let sets = f.daemon_sets.as_mut().unwrap();
        sets.push(sets[0].clone());
    });
    assert_eq!(twice, ["several-installs"]);
    let mirrored = |image: &str| {
        let image = image.to_owned();
        found(|f| f.daemon_sets.as_mut().unwrap()[0].image = image)
    };
    assert!(mirrored("mirror.example/own/trylatest:0.1.0").is_empty());
    assert_eq!(
        mirrored("mirror.example/own/tl:0.1.0"),
        ["gate-image-differs"]
    );
    assert_eq!(
        mirrored("ghcr.io/trylatest/trylatest:0.0.9"),
        ["gate-image-differs", "other-version"]
    );
}

#[test]
fn other_admission_is_looked_at() {
    for flags in [
        &["--enable-admission-plugins=NodeRestriction,AlwaysPullImages"][..],
        &["--enable-admission-plugins", "AlwaysPullImages"],
    ] {
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        assert_eq!(
            found(|f| f.server_flags = Ok(flags)),
            ["always-pull-images"]
        );
    }
    let changed = found(|f| {
        let agents = f.agents.as_mut().unwrap();
        agents.get_mut("a").unwrap().pull_policy = "Always".into();
    });
    assert_eq!(changed, ["always-pull-images"]);
    let other = |policy| found(|f| f.validating.as_mut().unwrap().push(policy));
    let always = "object.spec.containers.all(c, c.imagePullPolicy == 'Always')";
    assert_eq!(other(policy("always", "pods", always)), ["other-policies"]);
    assert!(other(policy("services", "services", always)).is_empty());
    assert!(other(policy("names", "pods", "object.metadata.name != ''")).is_empty());
    let rules = Rule::all(&json!([
        {"apiGroups": ["*"], "operations": ["CREATE"], "resources": ["pods"]},
    ]));
    let webhook = Webhook {
        name: "mesh/inject".into(),
        rules,
    };
    assert_eq!(
        found(|f| f.webhooks = Ok(vec![webhook])),
        ["mutating-webhooks"]
    );
    assert_eq!(
        found(|f| f.overruled = Ok(vec!["shop/a".into()])),
        ["overruled-pods"]
    );
}

#[test]
fn nodes_and_agents_are_looked_at() {
    let with = |change: fn(&mut SeenNode)| found(|f| change(&mut f.nodes.as_mut().unwrap()[0]));
    assert_eq!(
        with(|n| n.runtime = "containerd://1.6.20".into()),
        ["containerd-pins"]
    );
    assert_eq!(
        with(|n| n.runtime = "cri-o://1.35.0".into()),
        ["runtime-unsupported"]
    );
    assert_eq!(
        with(|n| n.kubelet = "v1.34.9".into()),
        ["kubelet-keeps-no-records"]
    );
    assert_eq!(with(|n| n.disk_pressure = true), ["disk-pressure"]);
    assert_eq!(with(|n| n.name = "c".into()), ["agent-missing"]);
    let cordoned = |n: &mut SeenNode| {
        n.name = "c".into();
        n.place = Place::Cordoned;
    };
    assert!(with(cordoned).is_empty());
    let starts = found(|f| f.agents.as_mut().unwrap().get_mut("a").unwrap().ready = false);
    assert_eq!(starts, ["agent-not-ready"]);
    let skewed = found(|f| {
        f.agents.as_mut().unwrap().get_mut("a").unwrap().image = "trylatest:0.0.9".into();
    });
    assert_eq!(skewed, ["agent-version-skew"]);
    assert_eq!(
        found(|f| f.refused_config = Ok(vec!["line 1".into()])),
        ["config-refused"]
    );
}

#[test]
fn a_clock_is_compared_only_by_a_fresh_lease() {
    let lease = |renewed: &str, written: &str| {
        let renewal = Renewal {
            node: "a".into(),
            renewed: renewed.parse().unwrap(),
            written: written.parse().unwrap(),
        };
        found(|f| f.leases = Ok(vec![renewal]))
    };
    assert!(lease("2026-01-01T11:59:55.9Z", "2026-01-01T11:59:55Z").is_empty());
    assert_eq!(
        lease("2026-01-01T12:01:00Z", "2026-01-01T11:59:55Z"),
        ["clock-skew"]
    );
    assert_eq!(
        lease("2026-01-01T11:59:30Z", "2026-01-01T11:59:55Z"),
        ["clock-skew"]
    );
    // Nobody has renewed it for a minute, or the API server does not note the time of an update.
    assert!(lease("2026-01-01T12:01:00Z", "2026-01-01T11:59:00Z").is_empty());
}

#[test]
fn what_could_not_be_looked_at_is_no_finding_and_is_said() {
    let forbidden = || Unseen::Forbidden("forbidden".into());
    let mut facts = healthy();
    facts.nodes = Err(forbidden());
    facts.kubelets = Err(forbidden());
    facts.server_flags = Ok(vec![]);
    let report = examine(&facts, now());
    assert_eq!(report.findings, []);
    let what: Vec<_> = report
        .not_seen
        .iter()
        .map(|not| not.what.as_str())
        .collect();
    assert_eq!(
        what,
        [
            "the API server's admission plugins",
            "nodes",
            "the kubelets' configurations (needs the right to get nodes/proxy)",
        ]
    );
}

#[test]
fn who_may_look_at_nothing_gets_no_clean_bill() {
    fn forbidden<T>() -> Looked<T> {
        Err(Unseen::Forbidden("forbidden".into()))
    }
    let facts = Facts {
        server: Ok("v1.37.2".into()),
        mutating: forbidden(),
        mutating_bindings: forbidden(),
        validating: forbidden(),
        validating_bindings: forbidden(),
        webhooks: forbidden(),
        daemon_sets: forbidden(),
        nodes: forbidden(),
        agents: forbidden(),
        leases: forbidden(),
        server_flags: forbidden(),
        overruled: forbidden(),
        refused_config: forbidden(),
        kubelets: forbidden(),
    };
    let report = examine(&facts, now());
    assert_eq!(report.findings, []);
    assert_eq!(report.exit_code(), 1, "{:?}", report.seen);
    let text = anstream::adapter::strip_str(&render(&report)).to_string();
    assert!(
        text.contains("0 errors, 0 warnings; could not look at anything"),
        "{text}"
    );
}

#[test]
fn the_same_of_many_nodes_is_one_finding_and_the_worst_comes_first() {
    let mut facts = healthy();
    let nodes = (0..20).map(|n| node(&format!("n{n:02}"), None));
    facts.nodes = Ok(nodes.collect());
    let config: Value = json!({"serializeImagePulls": true});
    facts.kubelets = Ok(Kubelets {
        configs: BTreeMap::from([
            ("n00".to_owned(), config.clone()),
            ("n01".to_owned(), config),
        ]),
        of: 20,
        failed: BTreeMap::new(),
    });
    let report = examine(&facts, now());
    let checks: Vec<_> = report
        .findings
        .iter()
        .map(|f| (f.check, f.about.len()))
        .collect();
    assert_eq!(
        checks,
        [("agent-missing", 20), ("kubelet-pulls-one-by-one", 2)]
    );
    assert_eq!(report.worst(), Some(Severity::Error));
    assert_eq!(
        report.not_seen[0].what,
        "the kubelets' configurations of 18 more nodes"
    );
    let text = anstream::adapter::strip_str(&render(&report)).to_string();
    assert!(
        text.contains(
            "ERROR   nodes have no agent (n00, n01, n02, n03, n04 and 15 more) [agent-missing]\n"
        ),
        "{text}"
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["findings"][0]["severity"], "error");
}
