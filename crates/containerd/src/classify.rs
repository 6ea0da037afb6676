//! Reads containerd's errors: the class of failure, and a message that may be shown.
//!
//! containerd answers `Unknown` to almost everything, so only its message shows the class. The registry
//! writes parts of a message: error bodies, header values, even the words after a status number. A
//! registry's words must never hide a 401 or 403, because exactly these withhold the cached copy of a
//! private image. Hence:
//!
//! - what a registry wrote is cut off before the message is read, and URLs are taken out;
//! - a status counts as a number in the place where containerd puts it, whatever words follow;
//! - only the signs of a 401 or 403 are looked for in the whole message, too. A registry can fake
//!   them; it then only keeps its own images from being used.
//!
//! [`rules`] has the signs as a table, [`redact`] removes what nobody should see.

mod redact;
mod rules;

use tonic::{Code, Status};
use trylatest_core::outcome::{Failure, FailureClass};

pub(crate) use redact::readable;
use rules::RULES;

use crate::calls;

/// The failure that a pull's status stands for.
pub(crate) fn pull_failure(status: &Status) -> Failure {
    if let Some(why) = calls::broken_connection(status) {
        let why = readable(&why);
        return Failure::new(
            FailureClass::Local,
            format!("containerd cannot be reached: {why}"),
        );
    }
    let class = class(status.code(), status.message());
    Failure::new(class, readable(status.message()))
}

/// The failure that a kubelet's message about a pull stands for: it repeats containerd's, as gRPC words it.
pub fn kubelet_failure(message: &str) -> Failure {
    let code = message
        .split_once("code = ")
        .and_then(|(_, rest)| rest.split_once(' '));
    let code = code.map_or(Code::Unknown, |(word, _)| match word {
        "NotFound" => Code::NotFound,
        "PermissionDenied" => Code::PermissionDenied,
        "Unauthenticated" => Code::Unauthenticated,
        "DeadlineExceeded" => Code::DeadlineExceeded,
        "Canceled" => Code::Cancelled,
        "Unavailable" => Code::Unavailable,
        "ResourceExhausted" => Code::ResourceExhausted,
        "InvalidArgument" => Code::InvalidArgument,
        "FailedPrecondition" => Code::FailedPrecondition,
        "Internal" => Code::Internal,
        _ => Code::Unknown,
    });
    // The kubelet's own limit (pkg/kubelet/images/helpers.go).
    if message.contains("pull QPS exceeded") {
        return Failure::new(
            FailureClass::Local,
            "the kubelet's limit on image pulls per second (registryPullQPS) was exceeded",
        );
    }
    let own = message
        .split_once("desc = ")
        .map_or(message, |(_, own)| own);
    Failure::new(class(code, own), readable(own))
}

/// The class of a failed pull; [`FailureClass::Unknown`] if no rule reads it.
fn class(code: Code, message: &str) -> FailureClass {
    let message = Message::new(code, message);
    let rule = RULES.iter().find(|rule| rule.matches(&message));
    rule.map_or(FailureClass::Unknown, |rule| rule.class)
}

/// A message, taken apart.
#[derive(Debug)]
struct Message {
    code: Code,
    /// All of it, in lower case, without URLs.
    whole: String,
    /// The part of it that containerd wrote.
    own: usize,
}

impl Message {
    fn new(code: Code, message: &str) -> Self {
        let whole = redact::without_urls(&message.to_lowercase());
        let own = FOREIGN
            .iter()
            .filter_map(|mark| whole.find(mark))
            .min()
            .unwrap_or(whole.len());
        Self { code, whole, own }
    }

    fn own(&self) -> &str {
        &self.whole[..self.own]
    }
}

/// Where the registry's words begin: a body on a line of its own (2.x), a body after the status
/// (1.x), the error in a `WWW-Authenticate` header, a response that is not HTTP.
const FOREIGN: &[&str] = &["\n", "server message:", "malformed http response \""];

/// What stands before a status in containerd's messages: 2.x, 1.7 and 1.6, in this order.
const BEFORE_STATUS: &[&str] = &[
    "unexpected status from ",
    "unexpected status code ",
    "unexpected status: ",
    "failed with status code ",
];

/// The HTTP statuses in the message, first one first.
fn statuses(text: &str) -> impl Iterator<Item = u16> {
    let mut places: Vec<usize> = BEFORE_STATUS
        .iter()
        .flat_map(|mark| text.match_indices(mark).map(|(at, _)| at))
        .collect();
    places.sort_unstable();
    places
        .into_iter()
        .filter_map(|at| status_behind(&text[at..]))
}

/// The first `: 123` in the text. The mark before it may itself end in the colon.
fn status_behind(text: &str) -> Option<u16> {
    text.split(": ").skip(1).find_map(|word| {
        let digits = word.get(..3)?;
        let ends = word[3..]
            .chars()
            .next()
            .is_none_or(|next| !next.is_ascii_alphanumeric());
        let number = digits.parse().ok()?;
        (ends && (100..600).contains(&number)).then_some(number)
    })
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
