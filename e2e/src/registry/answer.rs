//! The answer to one request: the registry's, or the fault's.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{
    CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};

use super::access::{Gatekeeper, Scheme};
use super::fault::{Challenge, Fault, Met};
use super::proxy::Shared;
use super::requests::{Asked, RequestKind};
use super::spoil::{self, Body};
use super::upstream;

/// The connection is to be reset instead of an answer.
#[derive(Debug)]
pub(super) struct ResetConnection;

impl fmt::Display for ResetConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fault resets the connection")
    }
}

impl std::error::Error for ResetConnection {}

/// Counts the request and answers it.
pub(super) async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, ResetConnection> {
    let asked = Asked::of(&request);
    shared.record(&asked);
    if let Some(met) = shared.take(&asked, |fault| fault.replaces(&asked)) {
        match met.fault {
            Fault::NeverAnswers => std::future::pending().await,
            Fault::Reset => return Err(ResetConnection),
            Fault::Latency(latency) => delay(latency, &met).await,
            fault => return Ok(replace(&fault, &asked, request.headers().get(HOST))),
        }
    }
    let host = request.headers().get(HOST);
    match shared.meet(&asked, request.headers()) {
        Gatekeeper::Passes => {}
        Gatekeeper::Gives(token) => return Ok(token_of(&token)),
        Gatekeeper::Challenges(Scheme::Basic) => {
            return Ok(unauthorized(Challenge::Basic, &asked, host));
        }
        Gatekeeper::Challenges(Scheme::Bearer) => {
            let challenge = Challenge::Bearer { token: 401 };
            return Ok(unauthorized(challenge, &asked, host));
        }
    }
    Ok(forward(&shared, &asked, request).await)
}

async fn delay(latency: Duration, met: &Met) {
    // Either the time is up or somebody ended the fault: both let the answer go.
    let _ = tokio::time::timeout(latency, met.ended.cancelled()).await;
}

async fn forward(shared: &Shared, asked: &Asked, request: Request<Incoming>) -> Response<Body> {
    let answer = match upstream::send(shared.upstream(), request).await {
        Ok(answer) => answer,
        Err(error) => {
            return refusal(
                StatusCode::BAD_GATEWAY,
                "UNAVAILABLE",
                &format!("{error:#}"),
                Value::Null,
            );
        }
    };
    let length = content_length(&answer);
    let met = match (answer.status().is_success(), length) {
        (true, Some(length)) => shared
            .take(asked, |fault| fault.spoils(asked, length))
            .map(|met| (met, length)),
        _ => None,
    };
    match met {
        None => answer.map(spoil::intact),
        Some((met, length)) => answer.map(|body| spoil::spoiled(body, met, length)),
    }
}

fn content_length<B>(answer: &Response<B>) -> Option<u64> {
    answer
        .headers()
        .get(CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// What is answered instead of the registry's answer, in the words that registries use.
fn replace(fault: &Fault, asked: &Asked, host: Option<&HeaderValue>) -> Response<Body> {
    match fault {
        Fault::RateLimited { retry_after } => {
            let mut answer = refusal(
                StatusCode::TOO_MANY_REQUESTS,
                "TOOMANYREQUESTS",
                "rate limit exceeded",
                Value::Null,
            );
            let seconds = HeaderValue::from(retry_after.as_secs());
            answer.headers_mut().insert(RETRY_AFTER, seconds);
            answer
        }
        Fault::Unauthorized(Challenge::Bearer { token }) if asked.kind == RequestKind::Token => {
            token_answer(*token)
        }
        Fault::Unauthorized(challenge) => unauthorized(*challenge, asked, host),
        Fault::Forbidden => refusal(
            StatusCode::FORBIDDEN,
            "DENIED",
            "requested access to the resource is denied",
            Value::Null,
        ),
        Fault::NotFound => not_found(asked),
        Fault::HtmlPage => html_page(),
        Fault::Unavailable => refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "UNAVAILABLE",
            "service unavailable",
            Value::Null,
        ),
        _ => refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "UNKNOWN",
            "unknown error",
            Value::Null,
        ),
    }
}

fn not_found(asked: &Asked) -> Response<Body> {
    let reference = asked.reference.as_deref().unwrap_or_default();
    let (code, message, detail) = match asked.kind {
        RequestKind::GetBlob => (
            "BLOB_UNKNOWN",
            "blob unknown to registry",
            json!({ "digest": reference }),
        ),
        _ => (
            "MANIFEST_UNKNOWN",
            "manifest unknown",
            json!({ "Tag": reference }),
        ),
    };
    refusal(StatusCode::NOT_FOUND, code, message, detail)
}

fn unauthorized(challenge: Challenge, asked: &Asked, host: Option<&HeaderValue>) -> Response<Body> {
    let challenge = match challenge {
        Challenge::Basic => "Basic realm=\"registry\"".to_owned(),
        Challenge::Bearer { token } => {
            let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
            let repository = asked.repository.as_deref().unwrap_or_default();
            // A client that comes with the token hears that it is not enough.
            let insufficient = if token == 200 {
                ",error=\"insufficient_scope\""
            } else {
                ""
            };
            format!(
                "Bearer realm=\"http://{host}/token\",service=\"registry\",\
                 scope=\"repository:{repository}:pull\"{insufficient}"
            )
        }
    };
    let message = "authentication required";
    let mut answer = refusal(
        StatusCode::UNAUTHORIZED,
        "UNAUTHORIZED",
        message,
        Value::Null,
    );
    if let Ok(challenge) = HeaderValue::try_from(challenge) {
        answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    answer
}

fn token_of(token: &str) -> Response<Body> {
    let answer = json!({"token": token, "access_token": token, "expires_in": 300});
    json_answer(StatusCode::OK, &answer)
}

fn token_answer(status: u16) -> Response<Body> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if status.is_success() {
        return token_of("worth-nothing");
    }
    refusal(status, "UNAUTHORIZED", "no token for you", Value::Null)
}

fn html_page() -> Response<Body> {
    let page = "<!DOCTYPE html><html><body>Please sign in to use this network.</body></html>";
    let mut answer = Response::new(full(page.into()));
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, html);
    answer
}

fn refusal(status: StatusCode, code: &str, message: &str, detail: Value) -> Response<Body> {
    let mut error = json!({"code": code, "message": message});
    if !detail.is_null() {
        error["detail"] = detail;
    }
    json_answer(status, &json!({ "errors": [error] }))
}

fn json_answer(status: StatusCode, value: &Value) -> Response<Body> {
    let mut answer = Response::new(full(value.to_string().into()));
    *answer.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    answer
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}
