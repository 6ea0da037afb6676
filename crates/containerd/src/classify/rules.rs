//! The signs by which a failure is told, most telling first.

use std::ops::RangeInclusive;

use tonic::Code;
use trylatest_core::outcome::FailureClass;

use super::{Message, statuses};

/// All signs of a rule must be there; the first rule whose signs are decides.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) class: FailureClass,
    signs: &'static [Sign],
}

#[derive(Debug)]
enum Sign {
    /// containerd's code.
    Code(Code),
    /// The first status in containerd's own words.
    Status(RangeInclusive<u16>),
    /// Any status, wherever in the message: for 401 and 403 alone.
    AnyStatus(u16),
    /// Words of containerd's own, in lower case.
    Says(&'static str),
    /// Words wherever in the message: for 401 and 403 alone.
    SaysAnywhere(&'static str),
    /// containerd's own words end so.
    Ends(&'static str),
}

use FailureClass::{
    Invalid, Local, Network, NotFound, RateLimited, ServerError, Timeout, Unauthorized,
};
use Sign::{AnyStatus, Ends, Says, SaysAnywhere};

const fn rule(class: FailureClass, signs: &'static [Sign]) -> Rule {
    Rule { class, signs }
}

/// The table. Every rule is exercised by a message in `testdata`.
pub(super) const RULES: &[Rule] = &[
    // The registry refuses. First of all, so that nothing hides it.
    rule(Unauthorized, &[AnyStatus(401)]),
    rule(Unauthorized, &[AnyStatus(403)]),
    // A token service that refuses answers 400 or 404 as well.
    rule(
        Timeout,
        &[Says("failed to authorize"), Sign::Status(408..=408)],
    ),
    rule(
        Unauthorized,
        &[Says("failed to authorize"), Sign::Status(400..=428)],
    ),
    // A status is the surest word there is.
    rule(RateLimited, &[Sign::Status(429..=429)]),
    rule(ServerError, &[Sign::Status(500..=599)]),
    rule(NotFound, &[Sign::Status(404..=404)]),
    rule(Unauthorized, &[SaysAnywhere("authorization failed")]),
    rule(Unauthorized, &[SaysAnywhere("pull access denied")]),
    // It has asked for credentials, in words that containerd does not understand.
    rule(Unauthorized, &[Says("token auth challenge")]),
    // A page to log in at, where a token should come from.
    rule(
        Unauthorized,
        &[
            Says("unable to decode token response: "),
            Says("invalid character"),
        ],
    ),
    rule(
        Unauthorized,
        &[
            Says("unable to decode token response: "),
            Says("cannot unmarshal"),
        ],
    ),
    // The name is none, or what came cannot be used.
    rule(Invalid, &[Says("failed to parse image reference")]),
    rule(Invalid, &[Says("invalid reference format")]),
    rule(Invalid, &[Says("no match for platform")]),
    // A captive portal's page, taken for a manifest.
    rule(Invalid, &[Says("unexpected media type ")]),
    rule(Invalid, &[Says("unexpected commit digest")]),
    rule(Invalid, &[Says("unexpected commit size")]),
    rule(Invalid, &[Says("failed size validation")]),
    rule(Invalid, &[Says("failed to read expected number of bytes")]),
    rule(Invalid, &[Says("short read: expected ")]),
    rule(Invalid, &[Says("wrong diff id")]),
    rule(Invalid, &[Says("number of layers and diffids don't match")]),
    rule(
        Invalid,
        &[Says("mismatched image rootfs and manifest layers")],
    ),
    rule(Invalid, &[Says("invalid tar header")]),
    rule(Invalid, &[Says("gzip: invalid")]),
    rule(Invalid, &[Says("cannot unmarshal")]),
    rule(Invalid, &[Says("invalid character")]),
    rule(Invalid, &[Says("manifest.v1+prettyjws not supported")]),
    // This node.
    rule(Local, &[Says("no space left on device")]),
    rule(Local, &[Says("disk quota exceeded")]),
    rule(Local, &[Says("read-only file system")]),
    rule(Local, &[Says("input/output error")]),
    rule(Local, &[Says("too many open files")]),
    rule(Local, &[Says("cannot allocate memory")]),
    rule(Local, &[Says("dial unix ")]),
    // The registry has no such thing. The code alone would not do: containerd gives it for its own
    // losses as well.
    rule(
        NotFound,
        &[
            Sign::Code(Code::NotFound),
            Says("failed to resolve "),
            Ends(": not found"),
        ],
    ),
    rule(
        NotFound,
        &[Sign::Code(Code::NotFound), Ends(" from remote: not found")],
    ),
    rule(
        NotFound,
        &[
            Sign::Code(Code::NotFound),
            Says("failed open: content at http"),
            Ends(" not found: not found"),
        ],
    ),
    // Time was up.
    rule(Timeout, &[Sign::Code(Code::DeadlineExceeded)]),
    rule(Timeout, &[Says("context deadline exceeded")]),
    rule(Timeout, &[Says("i/o timeout")]),
    rule(Timeout, &[Says("tls handshake timeout")]),
    rule(Timeout, &[Says("timeout awaiting response headers")]),
    rule(Timeout, &[Says("connection timed out")]),
    // containerd 2.x gives up by itself a pull that has not moved for minutes.
    rule(
        Timeout,
        &[Sign::Code(Code::Cancelled), Ends("context canceled")],
    ),
    // No connection, or it broke.
    rule(Network, &[Says("connect: connection refused")]),
    rule(Network, &[Says(": no such host")]),
    rule(Network, &[Says("connection reset by peer")]),
    rule(Network, &[Says("no route to host")]),
    rule(Network, &[Says("network is unreachable")]),
    rule(Network, &[Says("server misbehaving")]),
    rule(Network, &[Says("temporary failure in name resolution")]),
    rule(Network, &[Says("broken pipe")]),
    rule(Network, &[Says("x509: ")]),
    rule(Network, &[Says("tls: ")]),
    rule(Network, &[Says("http response to https client")]),
    rule(Network, &[Says("transport connection broken")]),
    rule(Network, &[Says("goaway")]),
    rule(Network, &[Says("stream error: ")]),
    rule(Network, &[Says("client connection lost")]),
    rule(Network, &[Says("stopped after 10 redirects")]),
    rule(Network, &[Ends("unexpected eof")]),
    rule(Network, &[Says("dial tcp")]),
    // The token service gave no answer: the error of Go's HTTP client begins with the method.
    rule(Network, &[Says("failed to fetch anonymous token: get ")]),
    // So too with credentials of containerd's own. A GET that fails comes after a POST that was
    // answered, perhaps with a refusal.
    rule(Network, &[Says("failed to fetch oauth token: post ")]),
    // Asked for credentials, and something is wrong with how; not a connection, as seen above.
    rule(Unauthorized, &[Says("failed to authorize")]),
    // The registry gave no answer, whatever the reason: an answer would have a status.
    rule(Network, &[Says("failed to do request: ")]),
];

impl Rule {
    pub(super) fn matches(&self, message: &Message) -> bool {
        self.signs.iter().all(|sign| sign.is_in(message))
    }
}

impl Sign {
    fn is_in(&self, message: &Message) -> bool {
        let own = message.own();
        match self {
            Self::Code(code) => message.code == *code,
            Self::Status(range) => statuses(own).next().is_some_and(|s| range.contains(&s)),
            Self::AnyStatus(status) => statuses(&message.whole).any(|s| s == *status),
            Self::Says(words) => own.contains(words),
            Self::SaysAnywhere(words) => message.whole.contains(words),
            Self::Ends(words) => own.trim_end().ends_with(words),
        }
    }
}
