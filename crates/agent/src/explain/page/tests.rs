use serde_json::{Value, json};

use super::*;

fn digest(n: u8) -> String {
    format!("sha256:{}", format!("{n}").repeat(64))
}

/// An outage: the tag was confirmed three hours ago.
pub(crate) fn outage() -> Value {
    json!({
        "time": "2026-01-01T12:00:00Z",
        "node": "node-1",
        "images": [{
            "image": "reg.example/app:latest",
            "now": {
                "step": "not-asked",
                "outcome": "fallback",
                "why": "the registry was not asked, because it failed 12s ago",
            },
            "after": [
                {"class": "network", "outcome": "fallback"},
                {"class": "timeout", "outcome": "fallback"},
                {"class": "unauthorized", "outcome": "handed-over"},
                {"class": "blocked", "outcome": "refused", "note": "not listed"},
            ],
            "copy": {
                "state": "usable",
                "digest": digest(1),
                "sizeBytes": 3 << 20,
                "confirmed": "2026-01-01T09:00:00Z",
            },
            "access": {"needsCredentials": false, "everybodys": true, "judge": "kubelet"},
            "kept": [{
                "digest": digest(1),
                "pinned": true,
                "since": "2025-12-01T12:00:00Z",
                "used": "2026-01-01T11:50:00Z",
            }],
            "tries": [{
                "image": "reg.example/app:latest",
                "started": "2026-01-01T11:59:48Z",
                "durationMillis": 5000,
                "result": "failed",
                "class": "timeout",
                "message": "nothing arrived for 5s",
                "digest": digest(1),
            }, {
                "image": "reg.example/app:latest",
                "started": "2026-01-01T09:00:00Z",
                "durationMillis": 12,
                "result": "unchanged",
                "digest": digest(1),
                "byHand": true,
            }],
            "week": {"tries": 2, "failures": 1},
            "rules": [
                {"key": "try", "value": "30s", "from": "--try", "ceiling": "2m"},
                {"key": "max-age", "value": "none", "from": "default"},
            ],
            "registry": {
                "name": "reg.example",
                "open": {
                    "failure": {"class": "timeout", "message": "nothing arrived for 5s"},
                    "failed": "2026-01-01T11:59:48Z",
                    "probe": "2026-01-01T12:00:08Z",
                },
            },
            "users": [{
                "namespace": "team-a",
                "pod": "web-1",
                "container": "app",
                "state": "runs",
                "since": "2026-01-01T11:59:50Z",
                "outcome": "fallback",
                "digest": digest(1),
            }],
        }],
    })
}

fn page_of(explanation: &Value) -> String {
    page(&serde_json::from_value(explanation.clone()).unwrap())
}

#[test]
fn an_outage_is_a_page_that_says_what_a_pod_would_get_and_why() {
    assert_eq!(
        page_of(&outage()),
        "reg.example/app:latest on node-1, for a pod that sets nothing
  now        fallback, at once: the registry was not asked, because it failed 12s ago
  outcomes   fresh or unchanged if the registry answers in time
             after network, timeout: fallback
             after unauthorized: handed-over
             after blocked: refused: not listed
  copy       sha256:111111111111, 3.0 MiB, confirmed 3h ago
  who        every pod: the registry has given this copy without credentials
  kept       sha256:111111111111, pinned, last used at most 10m ago
  registry   reg.example failed 12s ago, so not every pod asks it (timeout: nothing arrived for 5s); asked again within 8s
  pull       none runs
  tries      12s ago   failed    timeout: nothing arrived for 5s
             3h ago    unchanged sha256:111111111111, by hand
             2 in the last 7 days, 1 of them failed
  rules      try         30s (--try, at most 2m)
             max-age     none (default)
  pods       team-a/web-1 app: has started, fallback, sha256:111111111111, released 10s ago
"
    );
}

#[test]
fn a_pod_that_was_asked_about_is_named_with_its_containers_and_complaints() {
    let mut explanation = outage();
    explanation["pod"] = json!({
        "namespace": "team-a",
        "name": "web-1",
        "identity": {"namespace": "team-a", "serviceAccount": "default"},
        "complaints": ["trylatest.dev/timeout: invalid duration"],
    });
    explanation["images"][0]["containers"] = json!(["app", "sidecar"]);
    let page = page_of(&explanation);
    let mut lines = page.lines();
    assert_eq!(
        lines.next(),
        Some("team-a/web-1: trylatest.dev/timeout: invalid duration")
    );
    assert_eq!(lines.next(), Some(""));
    let line = "reg.example/app:latest on node-1, for a pod like team-a/web-1 (app, sidecar)";
    assert_eq!(lines.next(), Some(line));
    explanation["images"] = json!([]);
    explanation["pod"]["complaints"] = json!([]);
    assert_eq!(
        page_of(&explanation),
        "the pod has no TryLatest container\n"
    );
}

/// A line of the page.
fn line<'a>(page: &'a str, section: &str) -> &'a str {
    let mut lines = page.lines().map(str::trim_start);
    let line = lines.find_map(|line| line.strip_prefix(section));
    line.unwrap_or_else(|| panic!("no {section} in {page}"))
        .trim_start()
}

#[test]
fn what_is_not_known_or_not_there_is_said() {
    let mut explanation = outage();
    let image = &mut explanation["images"][0];
    image["copy"] = json!({"state": "unknown", "why": "containerd did not answer"});
    image["kept"] = Value::Null;
    (image["tries"], image["users"], image["week"]) = (json!([]), json!([]), Value::Null);
    image["registry"]["open"] = Value::Null;
    image["pull"] = json!({
        "began": "2026-01-01T11:59:57Z",
        "bytes": 1 << 20,
        "totalBytes": 4 << 20,
        "standsStill": true,
    });
    let page = page_of(&explanation);
    assert_eq!(line(&page, "copy"), "not known: containerd did not answer");
    assert_eq!(line(&page, "kept"), "not known: containerd did not answer");
    assert_eq!(line(&page, "tries"), "none is remembered");
    assert_eq!(line(&page, "pods"), "none on this node");
    assert_eq!(
        line(&page, "registry"),
        "reg.example: its circuit is closed, it is asked"
    );
    assert_eq!(
        line(&page, "pull"),
        "since 3s, 1.0 MiB of 4.0 MiB, and nothing moves"
    );
}

/// The registry may well have confirmed it, once.
#[test]
fn a_copy_that_the_name_was_pointed_back_to_is_not_called_unconfirmed() {
    let mut explanation = outage();
    let copy = &mut explanation["images"][0]["copy"];
    copy["confirmed"] = Value::Null;
    copy["rolledBack"] = json!({
        "time": "2026-01-01T11:55:00Z", "from": digest(2), "to": digest(1),
    });
    copy["tag"] = json!({"time": "2026-01-01T09:00:00Z", "digest": digest(2)});
    let page = page_of(&explanation);
    let words = "sha256:111111111111, 3.0 MiB, rolled back from sha256:222222222222 5m ago";
    assert_eq!(line(&page, "copy"), words);
    let tag = "the registry said 3h ago that the tag points to sha256:222222222222";
    assert!(page.contains(tag), "{page}");
}

#[test]
fn who_may_use_the_copy_depends_on_who_decides() {
    let copy = |with: bool| CopyNow {
        state: CopyState::Usable,
        why: None,
        digest: digest(1).parse().ok().filter(|_| with),
        size_bytes: None,
        confirmed: None,
        rolled_back: None,
        tag: None,
    };
    let identity = Identity {
        namespace: "team-a".to_owned(),
        service_account: "default".to_owned(),
        pull_secrets: vec!["s".to_owned()],
    };
    let private = |judge, pulled_for: &[Identity]| Access {
        needs_credentials: true,
        everybodys: false,
        judge,
        pulled_for: pulled_for.to_vec(),
    };
    for (given, with, words) in [
        (private(Judge::Kubelet, &[]), true, "the kubelet decides"),
        (
            private(Judge::Nobody, &[]),
            true,
            "--allow-unverified-fallback",
        ),
        (private(Judge::Agent, &[]), true, "no pod"),
        (private(Judge::Agent, &[]), false, "there is no copy"),
        (
            private(Judge::Agent, &[identity]),
            true,
            "team-a/default with s",
        ),
    ] {
        let words_of = access(&given, &copy(with));
        assert!(words_of.contains(words), "{words_of}");
    }
}

#[test]
fn a_busy_node_does_not_fill_the_page() {
    let mut explanation = outage();
    let user = explanation["images"][0]["users"][0].clone();
    explanation["images"][0]["users"] = json!(vec![user; USERS_MAX + 5]);
    explanation["images"][0]["moreUsers"] = json!(7);
    let page = page_of(&explanation);
    assert!(page.ends_with("             and 12 more\n"), "{page}");
    assert!(page.lines().count() < USERS_MAX + 30);
}
