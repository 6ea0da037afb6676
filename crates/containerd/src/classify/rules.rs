//! The signs by which a failure is recognized, the surest first.

use std::ops::RangeInclusive;

use tonic::Code;
use trylatest_core::outcome::FailureClass;

use super::{Message, redact, statuses};

/// All signs of a rule must be present; the first rule for which they are decides.
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
    /// Any status, anywhere in the message: only for 401 and 403.
    AnyStatus(u16),
    /// Words of containerd's own, in lower case.
    Says(&'static str),
    /// Words anywhere in the message: only for 401 and 403.
    SaysAnywhere(&'static str),
    /// containerd's own words, without the image's name, begin like this.
    Begins(&'static str),
    /// containerd's own words end like this.
    Ends(&'static str),
}

use FailureClass::{
    Blocked, Invalid, Local, Network, NotFound, RateLimited, ServerError, Timeout, Unauthorized,
};
use Sign::{AnyStatus, Begins, Ends, Says, SaysAnywhere, Status};

const fn rule(class: FailureClass, signs: &'static [Sign]) -> Rule {
    Rule { class, signs }
}

/// How containerd wraps an error while it unpacks a layer.
const EXTRACTING: &str = "mount callback failed on ";

/// The table. Every rule is exercised by a message in `testdata`.
pub(super) const RULES: &[Rule] = &[
    // A verifier was asked, so the registry has served the manifest: what follows is the verifier's own
    // text (core/transfer/local/pull.go). No registry's text comes before it.
    rule(
        Blocked,
        &[Begins("image verifier "), Says(" blocked pull of ")],
    ),
    // It could not be asked, or its deadline killed it: nobody has said no.
    rule(
        Local,
        &[Begins("blocking pull of "), Says(": image verifier ")],
    ),
    // The registry refuses. This comes before everything else that a registry may have written.
    rule(Unauthorized, &[AnyStatus(401)]),
    rule(Unauthorized, &[AnyStatus(403)]),
    // A proxy between node and registry wants credentials from the node: nobody was asked about this
    // image.
    rule(Network, &[Status(407..=407)]),
    rule(Timeout, &[Status(408..=408)]),
    // A token service that refuses answers 400, 402 or 404 as well.
    rule(
        Unauthorized,
        &[Says("failed to authorize"), Status(400..=428)],
    ),
    // A status is the surest sign.
    rule(RateLimited, &[Status(429..=429)]),
    rule(RateLimited, &[Status(402..=402)]),
    rule(ServerError, &[Status(500..=599)]),
    rule(NotFound, &[Status(404..=404)]),
    rule(NotFound, &[Status(410..=410)]),
    rule(NotFound, &[Status(451..=451)]),
    rule(Unauthorized, &[SaysAnywhere("authorization failed")]),
    rule(Unauthorized, &[SaysAnywhere("pull access denied")]),
    // It has asked for credentials in a way that containerd does not understand.
    rule(Unauthorized, &[Says("token auth challenge")]),
    // A login page instead of a token.
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
    // This node: its disk, its files, its memory. This comes before faults of an image, because a file that
    // a power cut has emptied looks like an invalid one.
    rule(Local, &[Says("no space left on device")]),
    rule(Local, &[Says("disk quota exceeded")]),
    rule(Local, &[Says("read-only file system")]),
    rule(Local, &[Says("input/output error")]),
    rule(Local, &[Says("structure needs cleaning")]),
    rule(Local, &[Says("stale file handle")]),
    rule(Local, &[Says("transport endpoint is not connected")]),
    rule(Local, &[Says("too many open files")]),
    rule(Local, &[Says("cannot allocate memory")]),
    rule(Local, &[Says("dial unix ")]),
    // Content that containerd's database lists but the disk does not have.
    rule(Local, &[Says("failed to get reader from content store: ")]),
    rule(Local, &[Says("blob not found: not found")]),
    rule(Local, &[Says("content digest sha"), Ends(": not found")]),
    // A document cut short. Registries check what is pushed; a local file that is empty looks the
    // same.
    rule(Local, &[Says("unexpected end of json input")]),
    rule(Local, &[Says("ref "), Says(" locked for ")]),
    // The snapshotter. Faults of the layer itself come further down.
    rule(Local, &[Says("prepare extraction snapshot")]),
    rule(Local, &[Says("failed to commit snapshot ")]),
    rule(Local, &[Says("failed to stat snapshot ")]),
    rule(
        Local,
        &[Says("parent snapshot "), Says(" does not exist: not found")],
    ),
    rule(Local, &[Says("failed to mount ")]),
    // containerd's settings for this registry.
    rule(Local, &[Says("no resolve hosts: not found")]),
    rule(Local, &[Says("no pull hosts: not found")]),
    rule(Local, &[Says("unable to load ca cert ")]),
    rule(Local, &[Says("unable to read ca cert ")]),
    rule(Local, &[Says("unable to read cert file ")]),
    rule(Local, &[Says("failed to load x509 key pair: ")]),
    // Pulled, but gone before CRI looked.
    rule(
        Local,
        &[
            Says("failed to get image "),
            Says(" from containerd image store"),
        ],
    ),
    // The name is invalid, or what arrived cannot be used.
    rule(Invalid, &[Says("failed to parse image reference")]),
    rule(Invalid, &[Says("invalid reference format")]),
    rule(Invalid, &[Says("no match for platform")]),
    // A captive portal's page that was taken for a manifest.
    rule(Invalid, &[Says("unexpected media type ")]),
    rule(Invalid, &[Says("unexpected commit digest")]),
    rule(Invalid, &[Says("unexpected commit size")]),
    rule(Invalid, &[Says("failed size validation")]),
    rule(Invalid, &[Says("read past expected size ")]),
    rule(Invalid, &[Says("which reports content size of zero")]),
    rule(Invalid, &[Says("which reports negative content size ")]),
    rule(Invalid, &[Says("in header not a valid digest")]),
    // containerd adds "not found", but the size is the reason.
    rule(Invalid, &[Says("rejecting "), Says(" byte manifest for ")]),
    rule(Invalid, &[Says("wrong diff id")]),
    rule(Invalid, &[Says("number of layers and diffids don't match")]),
    rule(
        Invalid,
        &[Says("mismatched image rootfs and manifest layers")],
    ),
    rule(Invalid, &[Says("no processor for media-type")]),
    rule(Invalid, &[Says("media-type: ")]),
    // It knows a processor, and cannot run it: that of encrypted layers.
    rule(Local, &[Says("failed to get stream processor for ")]),
    rule(Invalid, &[Says("cannot unmarshal")]),
    rule(Invalid, &[Says("invalid character")]),
    rule(Invalid, &[Says("manifest.v1+prettyjws not supported")]),
    rule(
        Invalid,
        &[
            Says("manifest.v1+prettyjws\""),
            Says(" is no longer supported since containerd v2."),
        ],
    ),
    rule(Invalid, &[Says("schema 1 ")]),
    // A layer that cannot be unpacked because of its content.
    rule(Invalid, &[Says("invalid tar header")]),
    rule(Invalid, &[Says("gzip: invalid")]),
    rule(Invalid, &[Says(EXTRACTING), Says("unexpected eof")]),
    rule(Invalid, &[Says(EXTRACTING), Says(": not a directory")]),
    rule(Invalid, &[Says(EXTRACTING), Says("magic number mismatch")]),
    rule(Invalid, &[Says(EXTRACTING), Says("unknown dictionary")]),
    rule(Invalid, &[Says(EXTRACTING), Says("corrupt")]),
    rule(Invalid, &[Says(EXTRACTING), Says(": invalid archive")]),
    rule(
        Invalid,
        &[Says(EXTRACTING), Says("unhandled tar header type ")],
    ),
    // The registry does not have it. The code alone is not enough: containerd also uses it for its own
    // losses.
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
    // It has said what the tag points to, and does not have that.
    rule(
        ServerError,
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
    // containerd 2.x itself gives up a pull that has not moved for minutes.
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
    rule(Network, &[Says("use of closed network connection")]),
    // A download that was resumed, and continued elsewhere.
    rule(Network, &[Says("unhandled content range in response")]),
    rule(Network, &[Says("unable to discard to offset")]),
    rule(Network, &[Says("x509: ")]),
    rule(Network, &[Says("tls: ")]),
    rule(Network, &[Says("http response to https client")]),
    rule(Network, &[Says("transport connection broken")]),
    rule(Network, &[Says("goaway")]),
    rule(Network, &[Says("stream error: ")]),
    rule(Network, &[Says("client connection lost")]),
    rule(Network, &[Says("stopped after 10 redirects")]),
    // A download that broke off and could not be resumed: containerd hides why (core/remotes/docker/httpreadseeker.go,
    // core/content/helpers.go). A page that is shorter than what was asked for looks the same.
    rule(Network, &[Says("failed to read expected number of bytes")]),
    rule(Network, &[Says("short read: expected ")]),
    rule(Network, &[Ends("unexpected eof")]),
    rule(Network, &[Says("dial tcp")]),
    // The token service gave no answer: the error of Go's HTTP client begins with the method.
    rule(Network, &[Says("failed to fetch anonymous token: get ")]),
    // So too with credentials of containerd's own. A GET that fails comes after a POST that was
    // answered, perhaps with a refusal.
    rule(Network, &[Says("failed to fetch oauth token: post ")]),
    // It asked for credentials in a wrong way; a broken connection is covered above.
    rule(Unauthorized, &[Says("failed to authorize")]),
    // The registry did not answer, whatever the reason: an answer would have a status.
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
            Self::Begins(words) => redact::unwrapped(own).starts_with(words),
            Self::Ends(words) => own.trim_end().ends_with(words),
        }
    }
}
