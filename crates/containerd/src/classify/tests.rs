//! The rules on real messages, on messages that a hostile registry would like to see, on noise.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::*;

/// Messages that containerd 1.6 and 2.4 gave: for each fault of the registry that the e2e tests know
/// and more, for images that are broken, for nodes whose files and settings are; and for a registry
/// whose every error body and header says "no such host", "not found" and the like.
const REAL: [&str; 2] = [
    include_str!("../../testdata/messages.json"),
    include_str!("../../testdata/hostile.json"),
];

#[derive(Deserialize)]
struct Real {
    containerd: String,
    #[serde(alias = "fault")]
    what: String,
    code: String,
    message: String,
    #[serde(alias = "expected_class")]
    class: FailureClass,
}

fn real() -> Vec<Real> {
    let files = REAL
        .iter()
        .map(|file| serde_json::from_str::<Vec<Real>>(file));
    files.flat_map(Result::unwrap).collect()
}

fn code(name: &str) -> Code {
    (0..=16)
        .map(Code::from_i32)
        .find(|code| format!("{code:?}") == name)
        .unwrap()
}

/// Messages that are hard to provoke, put together as containerd's and Go's sources do it.
const MADE: &[(FailureClass, Code, &str)] = {
    use Code::{
        Cancelled, DeadlineExceeded, FailedPrecondition, NotFound as Missing, Unavailable, Unknown,
    };
    use FailureClass::{
        Invalid, Local, Network, NotFound, RateLimited, ServerError, Timeout, Unauthorized,
    };
    &[
        (
            Unauthorized,
            Unknown,
            "failed to resolve image: pull access denied, repository does not exist or may require authorization",
        ),
        (
            Unauthorized,
            Unknown,
            "failed to authorize: failed to fetch anonymous token: unexpected status: 400 Bad Request",
        ),
        (
            Unauthorized,
            Unknown,
            "failed to authorize: failed to fetch oauth token: unexpected status from POST request to https://a/token: 401 Unauthorized",
        ),
        (
            ServerError,
            Unknown,
            "failed to authorize: failed to fetch anonymous token: unexpected status from GET request to https://a/token?x=y: 503 Service Unavailable",
        ),
        (
            RateLimited,
            Unknown,
            "failed to authorize: failed to fetch anonymous token: unexpected status: 429 Too Many Requests",
        ),
        (
            Network,
            Unknown,
            "failed to authorize: failed to fetch anonymous token: Get \"https://a/token\": dial tcp 10.0.0.1:443: connect: connection refused",
        ),
        // If the token service did not say it, it is not a refusal.
        (
            Network,
            Unknown,
            "failed to authorize: failed to fetch anonymous token: Get \"https://a/token?scope=x\": EOF",
        ),
        (
            Network,
            Unknown,
            "failed to authorize: failed to fetch anonymous token: Get \"https://a/token\": Bad Gateway",
        ),
        (
            Timeout,
            Unknown,
            "failed to authorize: failed to fetch anonymous token: unexpected status: 408 Request Timeout",
        ),
        (
            Network,
            Unknown,
            "failed to authorize: failed to fetch oauth token: Post \"https://a/token\": EOF",
        ),
        (
            Unauthorized,
            Unknown,
            "failed to authorize: failed to fetch oauth token: Get \"https://a/token\": EOF",
        ),
        // What it said and nobody understands is one: the registry has asked for credentials.
        (
            Unauthorized,
            Unknown,
            "failed to resolve image: failed to authorize: failed to fetch anonymous token: unable to decode token response: invalid character '<' looking for beginning of value",
        ),
        (
            Unauthorized,
            Unknown,
            "failed to authorize: failed to fetch anonymous token: unable to decode token response: json: cannot unmarshal number into Go struct field FetchTokenResponse.token of type string",
        ),
        (
            Unauthorized,
            Unknown,
            "failed to resolve image: no realm specified for token auth challenge",
        ),
        (
            NotFound,
            Unknown,
            "failed open: unexpected status code https://r/v2/a/blobs/sha256:00: 404 Not Found",
        ),
        (
            Invalid,
            Unknown,
            "failed to resolve reference \"r/A:1\": invalid reference format: repository name must be lowercase",
        ),
        (
            Invalid,
            Missing,
            "failed to pull and unpack image \"r/a:1\": no match for platform in manifest sha256:00: not found",
        ),
        (
            Invalid,
            FailedPrecondition,
            "failed commit on ref \"layer-sha256:00\": unexpected commit size 5, expected 9: failed precondition",
        ),
        (
            Invalid,
            Unknown,
            "failed commit on ref \"layer-sha256:00\": \"layer-sha256:00\" failed size validation: 5 != 9: failed precondition",
        ),
        (
            Invalid,
            Unknown,
            "failed to extract layer sha256:00: wrong diff id calculated on extraction \"sha256:01\"",
        ),
        (
            Invalid,
            Unknown,
            "failed to unpack: number of layers and diffIDs don't match: 1 != 2",
        ),
        (
            Invalid,
            Unknown,
            "mismatched image rootfs and manifest layers",
        ),
        (
            Invalid,
            Unknown,
            "failed to extract layer sha256:00: archive/tar: invalid tar header: unknown",
        ),
        (
            Invalid,
            Unknown,
            "failed to extract layer sha256:00: gzip: invalid header: unknown",
        ),
        (
            Invalid,
            Unknown,
            "unmarshal image config: json: cannot unmarshal string into Go value of type int",
        ),
        (
            Invalid,
            Unknown,
            "unmarshal image config: invalid character 'n' looking for beginning of value",
        ),
        (
            Invalid,
            Unknown,
            "application/vnd.docker.distribution.manifest.v1+prettyjws not supported",
        ),
        (
            Local,
            Unknown,
            "failed to copy: failed to send write: write /var/lib/containerd/ingest/x/data: no space left on device: unknown",
        ),
        (
            Local,
            Unknown,
            "write /var/lib/containerd/ingest/x/data: disk quota exceeded",
        ),
        (
            Local,
            Unknown,
            "mkdir /var/lib/containerd/x: read-only file system",
        ),
        (
            Local,
            Unknown,
            "write /var/lib/containerd/x: input/output error",
        ),
        (
            Local,
            Unknown,
            "open /var/lib/containerd/x: too many open files",
        ),
        (
            Local,
            Unknown,
            "fork/exec /usr/bin/unpigz: cannot allocate memory",
        ),
        (
            Local,
            Unknown,
            "connection error: desc = \"transport: Error while dialing: dial unix /run/stargz.sock: connect: connection refused\"",
        ),
        // core/metadata/snapshot.go, plugins/snapshots/overlay/overlay.go, core/unpack/unpacker.go
        (
            Local,
            Missing,
            "failed to pull and unpack image \"r/a:1\": failed to prepare extraction snapshot \"extract-1-x sha256:00\": parent snapshot sha256:01 does not exist: not found",
        ),
        (
            Local,
            Missing,
            "parent snapshot sha256:01 does not exist: not found",
        ),
        (
            Local,
            Unknown,
            "failed to commit snapshot extract-1-x sha256:00: failed to rename: rename a b: file exists",
        ),
        (
            Local,
            Unknown,
            "failed to stat snapshot sha256:00: database not open: unknown",
        ),
        // core/mount/temp.go, core/mount/mount_linux.go
        (
            Local,
            Unknown,
            "failed to extract layer sha256:00: failed to mount /var/lib/containerd/tmpmounts/containerd-mount1: mount source: \"overlay\", target: \"/var/lib/containerd/tmpmounts/containerd-mount1\", fstype: overlay, flags: 0, data: \"\", err: no such file or directory",
        ),
        (
            Local,
            Unknown,
            "failed to extract layer sha256:00: mount callback failed on /var/lib/containerd/tmpmounts/containerd-mount1: mkdir /var/lib/containerd/tmpmounts/containerd-mount1/usr: structure needs cleaning: unknown",
        ),
        (
            Local,
            Unknown,
            "open /var/lib/containerd/x: stale file handle",
        ),
        (
            Local,
            Unknown,
            "stat /var/lib/containerd-stargz-grpc/snapshotter: transport endpoint is not connected",
        ),
        // plugins/content/local/locks.go, plugins/content/local/readerat.go, core/metadata/content.go
        (
            Local,
            Unavailable,
            "failed to open writer: ref k8s.io/1/layer-sha256:00 locked for 3m0.5s (since 2026-01-01 12:00:00 +0000 UTC m=+1.5): unavailable",
        ),
        (
            Local,
            Missing,
            "unmarshal image config: blob sha256:00 expected at /var/lib/containerd/io.containerd.content.v1.content/blobs/sha256/00: blob not found: not found",
        ),
        (Local, Missing, "content digest sha256:00: not found"),
        // core/remotes/docker/fetcher.go, internal/cri/server/images/image_pull.go
        (
            Local,
            Missing,
            "failed to copy: httpReadSeeker: failed open: no pull hosts: not found",
        ),
        (
            Local,
            Missing,
            "failed to get image \"r/a:1\" from containerd image store: image \"r/a:1\": not found",
        ),
        // pkg/archive/tar.go, compress/flate, an unpigz that the node has
        (
            Invalid,
            Unknown,
            "failed to extract layer sha256:00: mount callback failed on /x: mkparent /x/a: not a directory: unknown",
        ),
        (
            Invalid,
            Unknown,
            "failed to extract layer sha256:00: mount callback failed on /x: flate: corrupt input before offset 5: unknown",
        ),
        (
            Invalid,
            Unknown,
            "failed to extract layer sha256:00: mount callback failed on /x: exit status 1: unpigz: skipping: <stdin>: corrupted -- invalid deflate data: unknown",
        ),
        // core/remotes/docker/resolver.go, net
        (
            Network,
            Unknown,
            "failed to copy: httpReadSeeker: failed open: unhandled content range in response: bytes 0-9/99",
        ),
        (
            Network,
            Unknown,
            "failed to copy: httpReadSeeker: failed open: unable to discard to offset",
        ),
        (
            Network,
            Unknown,
            "failed to copy: read tcp 10.0.0.2:1->10.0.0.1:443: use of closed network connection",
        ),
        (
            Timeout,
            DeadlineExceeded,
            "failed to resolve reference \"r/a:1\": dial tcp 10.0.0.1:443: i/o timeout",
        ),
        (
            Timeout,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": context deadline exceeded",
        ),
        (
            Timeout,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": dial tcp 10.0.0.1:443: i/o timeout",
        ),
        (
            Timeout,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": net/http: TLS handshake timeout",
        ),
        (
            Timeout,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": net/http: timeout awaiting response headers",
        ),
        (
            Timeout,
            Unknown,
            "failed to copy: read tcp 10.0.0.2:1->10.0.0.1:443: read: connection timed out",
        ),
        (
            Timeout,
            Cancelled,
            "failed to pull and unpack image \"r/a:1\": failed to copy: httpReadSeeker: context canceled",
        ),
        (
            Network,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": dial tcp 10.0.0.1:443: connect: no route to host",
        ),
        (
            Network,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": dial tcp 10.0.0.1:443: connect: network is unreachable",
        ),
        (
            Network,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": dial tcp: lookup r on 10.0.0.10:53: server misbehaving",
        ),
        (
            Network,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": dial tcp: lookup r: Temporary failure in name resolution",
        ),
        (
            Network,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": write tcp 10.0.0.2:1->10.0.0.1:443: write: broken pipe",
        ),
        (
            Network,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": tls: failed to verify certificate: x509: certificate signed by unknown authority",
        ),
        (
            Network,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": remote error: tls: handshake failure",
        ),
        (
            Network,
            Unknown,
            "failed to copy: http2: server sent GOAWAY and closed the connection",
        ),
        (
            Network,
            Unknown,
            "failed to copy: httpReadSeeker: stream error: stream ID 5; INTERNAL_ERROR; received from peer",
        ),
        (
            Network,
            Unknown,
            "failed to copy: http2: client connection lost",
        ),
        (
            Network,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": Service Unavailable",
        ),
        (
            Network,
            Unknown,
            "failed to copy: httpReadSeeker: failed open: unexpected EOF",
        ),
        (
            Network,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": dial tcp 10.0.0.1:443: operation was canceled",
        ),
        // A proxy that does not let the node through: the registry has not heard of it.
        (
            Network,
            Unknown,
            "failed to do request: Head \"https://r/v2/a/manifests/1\": Forbidden",
        ),
        (
            Network,
            Unknown,
            "failed to authorize: failed to fetch anonymous token: Get \"https://a/token\": Proxy Authentication Required",
        ),
        (
            Network,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": proxyconnect tcp: dial tcp 10.0.0.1:3128: connect: connection refused",
        ),
        // A node without a battery has booted.
        (
            Network,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time 1970-01-01T00:02:11Z is before 2026-01-01T00:00:00Z",
        ),
        (
            Network,
            Unknown,
            "failed to copy: http2: server sent GOAWAY and closed the connection; LastStreamID=1999, ErrCode=NO_ERROR, debug=\"\"",
        ),
        (
            Timeout,
            Unknown,
            "failed to copy: httpReadSeeker: failed open: failed to authorize: failed to fetch oauth token: Post \"https://r/service/token\": net/http: TLS handshake timeout",
        ),
        (
            Timeout,
            Unknown,
            "failed to do request: Head \"https://r/v2/\": dial tcp: lookup r on 127.0.0.53:53: read udp 127.0.0.1:40000->127.0.0.53:53: i/o timeout",
        ),
        // A load balancer's page.
        (
            ServerError,
            Unknown,
            "failed to copy: httpReadSeeker: failed open: unexpected status from GET request to https://r/v2/a/blobs/sha256:00: 502 Bad Gateway\n<html><title>502: pull access</title></html>",
        ),
        (
            RateLimited,
            Unknown,
            "failed to resolve image: unexpected status from HEAD request to https://r/v2/a/manifests/1: 429 Too Many Requests\ntoomanyrequests: retry-after: 1.16676ms, allowed: 44000/minute",
        ),
        // An expired token at one registry, an expired signature at another's storage: no refusal.
        (
            FailureClass::Unknown,
            Unknown,
            "failed to resolve image: unexpected status from HEAD request to https://r/v2/a/manifests/1: 400 Bad Request",
        ),
        (
            FailureClass::Unknown,
            Unknown,
            "failed to copy: httpReadSeeker: failed open: unexpected status from GET request to https://blobs/x?sig=y: 400 Bad Request",
        ),
        // A token service in its read-only mode.
        (
            Unauthorized,
            Unknown,
            "failed to resolve reference \"r/a:1\": failed to authorize: failed to fetch oauth token: unexpected status from POST request to https://r/service/token: 403 Forbidden",
        ),
        (
            Invalid,
            Unknown,
            "failed to get converter for \"r/a:1\": Pulling Schema 1 images have been deprecated and disabled by default since containerd v2.0.",
        ),
        (
            Invalid,
            Code::Unimplemented,
            "media type \"application/vnd.docker.distribution.manifest.v1+prettyjws\" is no longer supported since containerd v2.1, please rebuild the image",
        ),
        // The node's user namespace is too small for this image.
        (
            FailureClass::Unknown,
            Unknown,
            "failed to extract layer sha256:00: mount callback failed on /x: failed to Lchown \"/x/a\" for UID 205001, GID 5000: lchown /x/a: invalid argument: unknown",
        ),
    ]
};

/// The kubelet tries one credential after the other, and puts what came of them in brackets.
#[test]
fn several_pulls_of_the_kubelet_are_read() {
    let broken = "rpc error: code = Unknown desc = failed to pull and unpack image \"r/a:1\": short read: expected 9 bytes but got 5: unexpected EOF";
    let closed = "rpc error: code = Unknown desc = failed to do request: Head \"https://r/v2/\": dial tcp 10.0.0.1:443: connect: connection refused";
    let refused = "rpc error: code = Unknown desc = failed to resolve image: unexpected status from HEAD request to https://r/v2/a/manifests/1: 403 Forbidden";
    let absent = "rpc error: code = NotFound desc = failed to resolve image: r/a:1: not found";
    for (first, second, class) in [
        (closed, broken, FailureClass::Network),
        (broken, closed, FailureClass::Network),
        (absent, closed, FailureClass::Network),
        (absent, refused, FailureClass::Unauthorized),
        (refused, absent, FailureClass::Unauthorized),
        (closed, refused, FailureClass::Unauthorized),
    ] {
        let message = format!("[{first}, {second}]");
        assert_eq!(kubelet_failure(&message).class, class, "{message}");
    }
}

#[test]
fn every_message_is_read() {
    let mut wrong = Vec::new();
    for real in real() {
        let class = class(code(&real.code), &real.message);
        if class != real.class {
            let Real {
                containerd,
                what,
                message,
                ..
            } = real;
            wrong.push(format!("{class}, {containerd}, {what}: {message}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (expected, code, message) in MADE {
        assert_eq!(class(*code, message), *expected, "{message}");
    }
}

#[test]
fn every_rule_decides_some_message() {
    let real = real();
    let messages = real
        .iter()
        .map(|real| (code(&real.code), real.message.as_str()))
        .chain(MADE.iter().map(|(_, code, message)| (*code, *message)));
    let used: BTreeSet<usize> = messages
        .filter_map(|(code, message)| {
            let message = Message::new(code, message);
            RULES.iter().position(|rule| rule.matches(&message))
        })
        .collect();
    let idle: Vec<_> = (0..RULES.len())
        .filter(|index| !used.contains(index))
        .map(|index| &RULES[index])
        .collect();
    assert!(idle.is_empty(), "these rules decide nothing: {idle:#?}");
}

/// Everything that a registry can make containerd say, if it tries.
const INJECTED: &[&str] = &[
    "no such host",
    "not found",
    "500 Internal Server Error",
    "dial tcp 1.2.3.4:80: connect: connection refused",
    "unexpected status from HEAD request to http://x: 503 Service Unavailable",
    "unexpected status: 404 Not Found",
    "unexpected commit digest",
    "context deadline exceeded",
    "no space left on device",
    "image verifier x blocked pull of y",
    "blocking pull of x: image verifier y returned error",
    "unexpected status: 407 Proxy Authentication Required",
    "blob not found: not found",
    "mount callback failed on x: unexpected EOF",
    "structure needs cleaning",
];

#[test]
fn a_refusal_cannot_be_hidden() {
    for words in INJECTED {
        for refusal in [
            format!(
                "failed to resolve image: unexpected status from HEAD request to https://r/v2/a: 401 Unauthorized\nunknown: {words}"
            ),
            format!(
                "failed to resolve image: unexpected status from HEAD request to https://r/v2/a: 403 Forbidden\n{words}"
            ),
            // The words behind the number are the registry's.
            format!(
                "failed to resolve image: unexpected status from HEAD request to https://r/v2/a: 401 {words}"
            ),
            format!(
                "failed to copy: httpReadSeeker: failed open: unexpected status code https://r/v2/a: 401 x - Server message: {words}"
            ),
            format!("pulling from host r failed with status code [manifests latest]: 403 {words}"),
            // The error in a WWW-Authenticate header comes before containerd's own word.
            format!(
                "failed to copy: httpReadSeeker: failed open: server message: {words}: authorization failed"
            ),
            format!(
                "failed to resolve image: pull access denied, repository does not exist or may require authorization: server message: {words}: authorization failed"
            ),
        ] {
            for code in [Code::Unknown, Code::NotFound, Code::DeadlineExceeded] {
                assert_eq!(
                    class(code, &refusal),
                    FailureClass::Unauthorized,
                    "{refusal}"
                );
            }
        }
    }
}

#[test]
fn a_registry_cannot_speak_as_a_verifier_nor_a_verifier_as_a_registry() {
    let verifier = "image verifier bindir blocked pull of r/a:1 with digest sha256:00 for reason: ";
    for words in [
        format!(
            "failed to resolve image: unexpected status from HEAD request to https://r: 418 {verifier}"
        ),
        format!("failed to resolve image: \"x\\\": {verifier}\" in header not a valid digest: no"),
        format!("failed to do request: Get \"x: {verifier}\": EOF"),
    ] {
        assert_ne!(
            class(Code::Unknown, &words),
            FailureClass::Blocked,
            "{words}"
        );
    }
    let refusals = [
        "unexpected status: 401 Unauthorized",
        "authorization failed",
    ];
    for words in INJECTED.iter().chain(&refusals) {
        let blocked = format!("failed to pull and unpack image \"r/a:1\": {verifier}{words}");
        assert_eq!(
            class(Code::Unknown, &blocked),
            FailureClass::Blocked,
            "{words}"
        );
    }
}

#[test]
fn a_registrys_words_do_not_count() {
    for words in INJECTED {
        let teapot = format!(
            "failed to resolve image: unexpected status from HEAD request to https://r/v2/a: 418 I'm a teapot\nunknown: {words}"
        );
        assert_eq!(
            class(Code::Unknown, &teapot),
            FailureClass::Unknown,
            "{words}"
        );
        let error = format!(
            "failed to copy: unexpected status code https://r/{}/a: 500 x - Server message: {words}",
            words.replace(' ', "%20")
        );
        assert_eq!(
            class(Code::Unknown, &error),
            FailureClass::ServerError,
            "{words}"
        );
    }
}

#[test]
fn what_cannot_be_read_is_unknown() {
    for message in [
        "",
        "something new",
        "snapshot sha256:00: not found",
        "unexpected status: 4010",
        "unexpected status: four",
        "the tag is 404",
    ] {
        assert_eq!(
            class(Code::Unknown, message),
            FailureClass::Unknown,
            "{message}"
        );
        assert_eq!(
            class(Code::NotFound, message),
            FailureClass::Unknown,
            "{message}"
        );
    }
}

#[test]
fn a_broken_connection_is_this_nodes_fault() {
    let broken = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset: no such host");
    let failure = pull_failure(&Status::from_error(Box::new(broken)));
    assert_eq!(failure.class, FailureClass::Local);
    assert!(
        failure.message.contains("containerd cannot be reached"),
        "{failure}"
    );
}

/// Noise from the pieces that the reader looks for; the same each time.
fn noise(mut seed: u64) -> String {
    const PIECES: &[&str] = &[
        "://",
        "https://",
        "\"",
        ": ",
        ":",
        "401",
        "unexpected status: ",
        "failed to copy: ",
        "ä",
        "\u{1f980}",
        "\n",
        "token=",
        "Bearer ",
        "eyJ",
        "server message:",
        "?",
        "@",
        " ",
        "İ",
        "=",
        "failed to pull and unpack image ",
        "password",
        "\u{0}",
        "ß",
        "authorization:",
    ];
    let mut text = String::new();
    loop {
        // xorshift
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let piece = usize::try_from(seed % 60).unwrap();
        match PIECES.get(piece) {
            Some(piece) => text.push_str(piece),
            None if piece == 59 => return text,
            None => text.push_str("xyzzy"),
        }
    }
}

#[test]
fn no_message_breaks_the_reader() {
    for seed in 1..20_000 {
        let message = noise(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let failure = pull_failure(&Status::new(Code::Unknown, &message));
        assert!(
            failure.message.len() <= Failure::MESSAGE_MAX_BYTES,
            "{message:?}"
        );
        assert!(!failure.message.contains('\n'), "{message:?}");
    }
}
