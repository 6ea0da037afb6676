//! Scenarios against an API server that is played by a closure: method, path and body.

use std::sync::{Arc, Mutex};

use kube::client::Body;
use tower::service_fn;
use trylatest_core::told::Reason;

use super::*;
use crate::fake;

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(String, String, Value)>>>);

/// A writer whose calls succeed, and what it sent.
fn writer() -> (Writer, Seen) {
    writer_failing(200, Value::Null)
}

/// A writer whose calls are answered with `status`, if that is none of success with this failure.
fn writer_failing(status: u16, failure: Value) -> (Writer, Seen) {
    let seen = Seen::default();
    let log = seen.clone();
    let client = fake::client(move |method, path, body| {
        let call = (method.to_owned(), path.to_owned(), body);
        log.0.lock().unwrap().push(call);
        if status == 200 {
            return fake::accepted(method, path);
        }
        let mut failure = failure.clone();
        let own = json!({"kind": "Status", "status": "Failure", "code": status, "message": "x"});
        failure.as_object_mut().into_iter().for_each(|failure| {
            failure.extend(own.as_object().cloned().unwrap_or_default());
        });
        (status, failure)
    });
    (Writer::new(client, "node-1", Duration::from_secs(5)), seen)
}

fn pod() -> PodId {
    PodId {
        namespace: "ns".into(),
        name: "a".into(),
        uid: "u".into(),
    }
}

fn release() -> Release {
    Release {
        time: "2026-01-01T12:00:00Z".parse().unwrap(),
        containers: [].into(),
        unseen: None,
    }
}

#[tokio::test]
async fn a_release_is_one_patch_of_our_annotations_on_this_very_pod() {
    let (writer, seen) = writer();
    writer.release(&pod(), &release()).await.unwrap();
    let calls = seen.0.lock().unwrap();
    let [(method, path, body)] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    assert_eq!(
        (method.as_str(), path.as_str()),
        ("PATCH", "/api/v1/namespaces/ns/pods/a")
    );
    assert_eq!(
        *body,
        json!({"metadata": {"uid": "u", "annotations": {
            "trylatest.dev/released": r#"{"time":"2026-01-01T12:00:00Z","containers":{}}"#,
            "trylatest.dev/progress": null,
        }}})
    );
}

#[tokio::test]
async fn a_pod_that_is_gone_or_another_is_not_tried_again() {
    let invalid = |field: &str| {
        json!({"reason": "Invalid", "details": {"causes": [
            {"reason": "FieldValueInvalid", "message": "field is immutable", "field": field},
        ]}})
    };
    for (status, failure, gone) in [
        (404, json!({"reason": "NotFound"}), true),
        (422, invalid("metadata.uid"), true),
        (422, invalid("metadata.annotations"), false),
        (409, json!({"reason": "Conflict"}), false),
    ] {
        let (writer, _) = writer_failing(status, failure);
        let error = writer.release(&pod(), &release()).await.unwrap_err();
        assert_eq!(!error.is_retryable(), gone, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_without_an_answer_ends_at_its_deadline() {
    let service = service_fn(|_: hyper::Request<Body>| {
        std::future::pending::<Result<hyper::Response<Body>, tower::BoxError>>()
    });
    let writer = Writer::new(Client::new(service, "default"), "n", Duration::from_secs(5));
    let error = writer.release(&pod(), &release()).await.unwrap_err();
    assert!(matches!(error, ApiError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn an_event_names_the_pod_and_fits() {
    let (writer, seen) = writer();
    let notice = Notice {
        reason: "TryLatestFallback",
        warning: true,
        note: "ä".repeat(1000),
        once: None,
    };
    let now = "2026-01-01T12:00:00Z".parse().unwrap();
    writer.notify(&pod(), &notice, now).await.unwrap();
    let calls = seen.0.lock().unwrap();
    let (method, path, body) = &calls[0];
    assert_eq!(method, "POST");
    assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/ns/events");
    assert_eq!(body["type"], "Warning");
    assert_eq!(body["regarding"]["uid"], "u");
    assert_eq!(body["note"].as_str().unwrap().len(), 1024);
}

/// If the name is taken, the Event was written before.
#[tokio::test]
async fn what_is_told_once_has_a_name_of_its_own() {
    let at: jiff::Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
    let notice = Notice::unanswered(&pod(), at, Silence::NoAgent);
    let (writer, seen) = writer();
    writer.notify(&pod(), &notice, at).await.unwrap();
    let name = seen.0.lock().unwrap()[0].2["metadata"]["name"].clone();
    assert_eq!(name, format!("trylatest-unanswered-u-{}", at.as_second()));
    let unseen = Notice::unseen(&pod(), at, &Answer::AtWork);
    let name = format!("trylatest-unseen-u-{}", at.as_second());
    assert_eq!(unseen.once, Some(name));
    let (writer, _) = writer_failing(409, json!({"reason": "AlreadyExists"}));
    writer.notify(&pod(), &notice, at).await.unwrap();
}

#[tokio::test]
async fn a_nodes_report_is_one_patch_of_two_annotations_and_one_condition() {
    let (writer, seen) = writer();
    let report = NodeReport::new(Vec::new(), false);
    let now = "2026-01-01T12:00:00.5Z".parse().unwrap();
    writer.report_node(&report, now, now).await.unwrap();
    let calls = seen.0.lock().unwrap();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].1, "/api/v1/nodes/node-1/status");
    let conditions = calls[0].2["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 1);
    assert_eq!(conditions[0]["type"], "TryLatestFallback");
    assert_eq!(conditions[0]["status"], "False");
    assert_eq!(conditions[0]["lastHeartbeatTime"], "2026-01-01T12:00:00Z");
    let annotations = calls[0].2["metadata"]["annotations"].as_object().unwrap();
    assert_eq!(annotations.len(), 2);
}

/// An agent that starts again with the same bad file does not write it twice.
#[tokio::test]
async fn a_node_that_has_no_room_for_annotations_gets_the_condition() {
    let (writer, seen) = writer_failing(422, json!({"reason": "Invalid"}));
    let report = NodeReport::new(Vec::new(), true);
    let now = "2026-01-01T12:00:00Z".parse().unwrap();
    writer.report_node(&report, now, now).await.unwrap_err();
    let calls = seen.0.lock().unwrap();
    let [(.., both), (.., condition)] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    assert_eq!(both["status"], condition["status"]);
    assert!(both["metadata"].is_object() && condition["metadata"].is_null());
}

#[tokio::test]
async fn a_refused_configuration_is_a_warning_about_the_agents_pod_once_for_each_content() {
    let (writer, seen) = writer();
    let now = "2026-01-01T12:00:00Z".parse().unwrap();
    for (refused, content) in [(true, 1), (true, 2), (false, 1)] {
        let notice = Notice::config(&pod(), "line 1".into(), refused, content);
        writer.notify(&pod(), &notice, now).await.unwrap();
    }
    let calls = seen.0.lock().unwrap();
    let shown = calls.iter().map(|(_, _, body)| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&body["metadata"]["name"]), text(&body["type"]))
    });
    let of = |name: &str, kind: &str| (name.to_owned(), kind.to_owned());
    assert_eq!(
        shown.collect::<Vec<_>>(),
        [
            of("trylatest-config-refused-u-0000000000000001", "Warning"),
            of("trylatest-config-refused-u-0000000000000002", "Warning"),
            of("trylatest-config-valid-u-0000000000000001", "Normal"),
        ]
    );
    assert_eq!(calls[0].2["reason"], "TryLatestConfig");
    assert_eq!(calls[0].2["regarding"]["name"], "a");
}

/// Reason and type of every Event.
#[test]
fn the_page_lists_every_event() {
    let at = "2026-01-01T12:00:00Z".parse().unwrap();
    let notices = [
        Notice::bad_setting(String::new()),
        Notice::config(&pod(), String::new(), true, 1),
        Notice::overruled(&pod(), &[]),
        Notice::gate_image(&pod(), String::new()),
        Notice::unanswered(&pod(), at, Silence::NoAgent),
        Notice::unseen(&pod(), at, &Answer::AtWork),
    ];
    let of_releases = Reason::ALL.map(|reason| {
        let note = String::new();
        Notice::of_release(Told { reason, note })
    });
    let all = notices.into_iter().chain(of_releases);
    let word = |warning| if warning { "Warning" } else { "Normal" };
    let mut all: Vec<_> = all.map(|n| (n.reason, word(n.warning))).collect();
    all.sort_unstable();
    let page = include_str!("../../../../docs/events.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut listed: Vec<_> = rows
        .filter_map(|row| {
            let (reason, rest) = row.split_once("` | ")?;
            Some((reason, rest.split_once(" | ")?.0))
        })
        .collect();
    listed.sort_unstable();
    assert_eq!(listed, all);
}
