//! An API server that is played by a closure, for the unit tests of whoever is written against
//! [`crate::Writer`]. It has no socket, so that tests can pause the time.

use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tower::service_fn;

/// A client whose calls the closure answers: method, path and body in, status and body out. A body that is no JSON is
/// null.
pub fn client(
    answer: impl Fn(&str, &str, Value) -> (u16, Value) + Clone + Send + Sync + 'static,
) -> Client {
    let service = service_fn(move |request: hyper::Request<Body>| {
        let answer = answer.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await?;
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let (status, answer) = answer(parts.method.as_str(), parts.uri.path(), body);
            hyper::Response::builder()
                .status(status)
                .body(Body::from(answer.to_string().into_bytes()))
                .map_err(tower::BoxError::from)
        }
    });
    Client::new(service, "default")
}

/// The answer of an API server that does what it is asked to, as far as a [`crate::Writer`] reads it.
pub fn accepted(method: &str, path: &str) -> (u16, Value) {
    let (api, kind) = if path.ends_with("/events") {
        ("events.k8s.io/v1", "Event")
    } else if path.ends_with("/status") || method == "GET" && path.starts_with("/api/v1/nodes/") {
        ("v1", "Node")
    } else {
        ("meta.k8s.io/v1", "PartialObjectMetadata")
    };
    let answer =
        json!({"apiVersion": api, "kind": kind, "metadata": {"name": "a"}, "eventTime": null});
    (200, answer)
}
