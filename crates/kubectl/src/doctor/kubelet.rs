//! The kubelet's own settings, as far as TryLatest depends on them (`KubeletConfiguration` v1beta1).

use serde_json::Value;
use trylatest_core::text;

use super::gather::Facts;
use super::{Report, Severity};

/// Kept copies give way while less than this is free, in percent (`--keep-free`).
const KEEP_FREE: u64 = 20;

/// The kubelet's defaults of `registryPullQPS` and `registryBurst`, which are the agent's.
const QPS: i64 = 5;
const BURST: i64 = 10;

const FEATURE: &str = "KubeletEnsureSecretPulledImages";

pub(super) fn examine(facts: &Facts, report: &mut Report) {
    let what = "the kubelets' configurations (needs the right to get nodes/proxy)";
    let kubelets = match &facts.kubelets {
        Ok(kubelets) => kubelets,
        Err(unseen) => return report.not_looked_at(what, unseen.why()),
    };
    if !kubelets.configs.is_empty() {
        let nodes = text::count(kubelets.configs.len(), "node");
        report.looked_at(&format!("the kubelets' configurations of {nodes}"));
    }
    for (node, config) in &kubelets.configs {
        for (severity, check, what, fix) in findings(config) {
            report.add_about(severity, check, [node.clone()], &what, fix);
        }
    }
    if let Some((node, why)) = kubelets.failed.first_key_value() {
        match kubelets.failed.len() {
            1 => report.not_looked_at(&format!("the kubelet's configuration of {node}"), why),
            failed => {
                let what = format!("the kubelets' configurations of {failed} nodes");
                report.not_looked_at(&what, &format!("{node}: {why}"));
            }
        }
    }
    let left = kubelets.of - kubelets.configs.len() - kubelets.failed.len();
    if left > 0 {
        let nodes = text::count(left, "more node");
        let what = format!("the kubelets' configurations of {nodes}");
        report.not_looked_at(
            &what,
            "see --kubelets; nodes that are not ready are left out",
        );
    }
}

/// What is found, and what to do.
type Found = (Severity, &'static str, String, &'static str);

fn findings(config: &Value) -> Vec<Found> {
    let mut found = Vec::new();
    found.extend(verification(config));
    found.extend(records(config));
    found.extend(collector(config));
    found.extend(eviction(config));
    found.extend(pace(config));
    found.extend(serial(config));
    found
}

fn verification(config: &Value) -> Option<Found> {
    match config["imagePullCredentialsVerificationPolicy"].as_str()? {
        "AlwaysVerify" => Some((
            Severity::Warning,
            "kubelet-always-verifies",
            "the kubelet starts only images that it has pulled itself (imagePullCredentialsVerificationPolicy: AlwaysVerify)"
                .to_owned(),
            "It asks the registry once more for what the agent has brought, and each gate needs TryLatest's registry: in an \
             outage gated pods do not start. Use NeverVerifyPreloadedImages, or allow the gate's image in \
             preloadedImagesVerificationAllowlist.",
        )),
        "NeverVerify" => Some((
            Severity::Info,
            "kubelet-never-verifies",
            "the kubelet lets every pod start from every copy (imagePullCredentialsVerificationPolicy: NeverVerify)".to_owned(),
            "Start the agents there with --kubelet-verifies=no if private images have to stay private.",
        )),
        _ => None,
    }
}

fn records(config: &Value) -> Option<Found> {
    let gates = config["featureGates"].as_object()?;
    (gates.get(FEATURE) == Some(&Value::Bool(false))).then(|| {
        (
            Severity::Warning,
            "kubelet-records-off",
            format!("the kubelet's feature gate {FEATURE} is off"),
            "It keeps no records of who may use a private image's copy. Start the agents there with --kubelet-verifies=no.",
        )
    })
}

fn collector(config: &Value) -> Option<Found> {
    let low = config["imageGCLowThresholdPercent"].as_u64()?;
    (low < 100 - KEEP_FREE).then(|| {
        (
            Severity::Warning,
            "kubelet-collects-early",
            format!("the kubelet's image collector goes on until only {low}% of the disk is used (imageGCLowThresholdPercent)"),
            "Kept copies give way too late for that: start the agents there with a --keep-free of more than what it leaves free.",
        )
    })
}

fn eviction(config: &Value) -> Option<Found> {
    let thresholds =
        ["evictionHard", "evictionSoft"].map(|key| config[key]["imagefs.available"].as_str());
    let percent = |text: &str| text.trim().strip_suffix('%')?.parse::<f64>().ok();
    let mut all = thresholds.into_iter().flatten();
    #[expect(clippy::cast_precision_loss, reason = "a percentage")]
    let high = all.find(|text| percent(text).is_some_and(|percent| percent > KEEP_FREE as f64))?;
    Some((
        Severity::Warning,
        "kubelet-evicts-early",
        format!("the kubelet evicts pods below {high} of free disk for images"),
        "Kept copies give way too late for that: start the agents there with a --keep-free above it.",
    ))
}

/// The agent leaves private images to the kubelet at the pace of these defaults, unless it is told another.
fn pace(config: &Value) -> Option<Found> {
    let qps = config["registryPullQPS"].as_i64()?;
    let burst = config["registryBurst"].as_i64().unwrap_or(BURST);
    (qps > 0 && (qps < QPS || burst < BURST)).then(|| {
        (
            Severity::Info,
            "kubelet-rations-pulls",
            format!("the kubelet pulls fewer images at once than by default (registryPullQPS {qps}, registryBurst {burst})"),
            "If many private images start at once, some wait for its back-off of 10 s. Start the agents there with these \
             numbers as --registry-pull-qps and --registry-burst, or raise the kubelet's.",
        )
    })
}

fn serial(config: &Value) -> Option<Found> {
    (config["serializeImagePulls"] == Value::Bool(true)).then(|| {
        (
            Severity::Info,
            "kubelet-pulls-one-by-one",
            "the kubelet pulls one image after the other (serializeImagePulls)".to_owned(),
            "A pull of a private image that hangs holds up every pod whose image is not on the node. Set it to false, with \
             maxParallelImagePulls.",
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_setting_is_found_and_its_default_is_not() {
        let quiet = json!({
            "imagePullCredentialsVerificationPolicy": "NeverVerifyPreloadedImages",
            "imageGCLowThresholdPercent": 80, "registryPullQPS": 5, "registryBurst": 10, "serializeImagePulls": false,
            "evictionHard": {"imagefs.available": "15%"}, "featureGates": {},
        });
        assert_eq!(findings(&quiet), []);
        assert_eq!(findings(&json!(null)), []);
        for (key, value, check) in [
            (
                "imagePullCredentialsVerificationPolicy",
                json!("AlwaysVerify"),
                "kubelet-always-verifies",
            ),
            (
                "imagePullCredentialsVerificationPolicy",
                json!("NeverVerify"),
                "kubelet-never-verifies",
            ),
            (
                "featureGates",
                json!({FEATURE: false}),
                "kubelet-records-off",
            ),
            (
                "imageGCLowThresholdPercent",
                json!(50),
                "kubelet-collects-early",
            ),
            (
                "evictionHard",
                json!({"imagefs.available": "25%"}),
                "kubelet-evicts-early",
            ),
            (
                "evictionSoft",
                json!({"imagefs.available": "20.5%"}),
                "kubelet-evicts-early",
            ),
            ("registryPullQPS", json!(2), "kubelet-rations-pulls"),
            ("registryBurst", json!(5), "kubelet-rations-pulls"),
            (
                "serializeImagePulls",
                json!(true),
                "kubelet-pulls-one-by-one",
            ),
        ] {
            let mut config = quiet.clone();
            config[key] = value;
            let checks: Vec<_> = findings(&config).iter().map(|found| found.1).collect();
            assert_eq!(checks, [check], "{config}");
        }
    }
}
