//! Removes from a message what nobody should see, and what nobody needs to see.

use trylatest_core::outcome::{Failure, FailureClass};

/// containerd's own wrapping, which tells the reader nothing new.
const WRAPPING: &[&str] = &[
    "failed to pull and unpack image ",
    "failed to resolve reference ",
    "failed to resolve image: ",
    "failed to copy: ",
    "httpReadSeeker: ",
    "failed open: ",
    "failed to do request: ",
];

/// Names of values that are secret, in lower case.
const SECRET_NAMES: &[&str] = &[
    "token",
    "password",
    "passwd",
    "secret",
    "signature",
    "credential",
    "authorization",
    "apikey",
    "api_key",
    "api-key",
];

/// What stands for a secret.
const HIDDEN: &str = "[hidden]";

/// Shortest word after `Bearer` or `Basic` that counts as a credential, not as prose.
const CREDENTIAL_MIN: usize = 12;

/// The message for a person: without wrapping, credentials, query strings and line breaks, short.
pub(crate) fn readable(message: &str) -> String {
    let message = unwrapped(message);
    let message = map_urls(message, redacted_url);
    let message = without_secrets(&message);
    Failure::new(FailureClass::Unknown, message.trim()).message
}

/// The message with each URL reduced to its scheme.
pub(super) fn without_urls(message: &str) -> String {
    map_urls(message, |url| match url.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://"),
        None => url.to_owned(),
    })
}

/// Removes the wrapping at the beginning of the message, with the image's name quoted in it.
pub(super) fn unwrapped(mut message: &str) -> &str {
    while let Some((words, rest)) = WRAPPING
        .iter()
        .find_map(|words| Some((words, message.strip_prefix(words)?)))
    {
        message = rest;
        // After these, a quote is the image's name. After the others it may be text of the registry.
        if !words.ends_with(": ") && rest.starts_with('"') {
            message = rest.split_once(": ").map_or(rest, |(_name, rest)| rest);
        }
    }
    message
}

/// Replaces each URL, which ends at a space, a quote or the colon after it.
fn map_urls(message: &str, replace: impl Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(middle) = rest.find("://") {
        let before = &rest[..middle];
        let scheme = before
            .rfind(|c: char| !c.is_ascii_alphanumeric())
            .map_or(0, |at| {
                at + before[at..].chars().next().map_or(1, char::len_utf8)
            });
        let end = rest[middle..]
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '`' | '\\'))
            .map_or(rest.len(), |end| middle + end);
        let url = rest[scheme..end].trim_end_matches([':', ',', '.', ')', ';']);
        out.push_str(&rest[..scheme]);
        out.push_str(&replace(url));
        out.push_str(&rest[scheme + url.len()..end]);
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// The URL without user, query and fragment.
fn redacted_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit_once('@').map_or(host, |(_user, host)| host);
    format!("{scheme}://{host}{path}")
}

/// Hides values of secret names, credentials after their scheme, and JSON web tokens.
fn without_secrets(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let mut scheme_before = false;
    let mut name_before = Named::No;
    for piece in message.split_inclusive(char::is_whitespace) {
        let word = piece.trim_end();
        let space = &piece[word.len()..];
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let credential = scheme_before && bare.len() >= CREDENTIAL_MIN;
        let last = bare.rsplit(['=', ':', '"']).next().unwrap_or_default();
        scheme_before = last.eq_ignore_ascii_case("bearer") || last.eq_ignore_ascii_case("basic");
        let named = name_before.hides(bare);
        name_before = Named::by(word);
        if credential || named || bare.starts_with("eyJ") {
            out.push_str(HIDDEN);
        } else {
            out.push_str(&without_values(without_query(word)));
        }
        out.push_str(space);
    }
    out
}

/// The word up to a query string: a registry's redirect need not be a full URL.
fn without_query(word: &str) -> &str {
    match word.split_once('?') {
        Some((path, query)) if query.contains('=') => path,
        _ => word,
    }
}

/// Whether a word is a secret's name, with its value in the next word.
#[derive(Clone, Copy)]
enum Named {
    No,
    /// `"token":`, as JSON has it.
    Quoted,
    /// `password:`, or prose such as `fetch token:`.
    Bare,
}

impl Named {
    fn by(word: &str) -> Self {
        let Some(name) = word.strip_suffix([':', '=']) else {
            return Self::No;
        };
        if word.ends_with(':') && is_address(name) {
            return Self::No;
        }
        let lower = name.to_ascii_lowercase();
        let secret = |end: &str| SECRET_NAMES.iter().any(|name| end.ends_with(name));
        match lower.strip_suffix('"') {
            Some(quoted) if secret(quoted.trim_end_matches('\\')) => Self::Quoted,
            None if secret(&lower) => Self::Bare,
            _ => Self::No,
        }
    }

    /// Prose has no digits, except in an HTTP status.
    fn hides(self, next: &str) -> bool {
        let is_status = next.len() == 3 && next.parse().is_ok_and(|n: u16| (100..600).contains(&n));
        match self {
            Self::No => false,
            Self::Quoted => true,
            Self::Bare => next.contains(|c: char| c.is_ascii_digit()) && !is_status,
        }
    }
}

/// Whether this ends in the path of a URL or an image's name, whose last part may have the name of a
/// secret: `https://host/token: 429`, `registry.example/ops/secret-store:1.2`.
fn is_address(text: &str) -> bool {
    let in_path = text
        .trim_end_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .ends_with('/');
    let host = text.split('/').next().unwrap_or_default();
    in_path && (host.is_empty() || host.contains(['.', ':']))
}

/// `name=value` and `"name":"value"` with the value hidden, where the name is a secret's.
fn without_values(word: &str) -> String {
    let lower = word.to_ascii_lowercase();
    let sign = SECRET_NAMES
        .iter()
        .flat_map(|name| lower.match_indices(name).map(|(at, _)| at + name.len()))
        .filter_map(|end| word[end..].find(['=', ':']).map(|at| end + at))
        .filter(|&sign| !(word[sign..].starts_with(':') && is_address(&word[..sign])))
        .min();
    let Some(sign) = sign else {
        return word.to_owned();
    };
    let value = word[sign + 1..].trim_matches(['"', '\'', ',', ';', '}', '{', '\\']);
    if value.is_empty() {
        return word.to_owned();
    }
    format!("{}{HIDDEN}", &word[..=sign])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_goes_and_the_useful_end_stays() {
        for (message, expected) in [
            (
                "failed to pull and unpack image \"r/a:1\": failed to resolve reference \"r/a:1\": r/a:1: not found",
                "r/a:1: not found",
            ),
            (
                "failed to pull and unpack image \"r/a:1\": failed to copy: httpReadSeeker: failed open: failed to do request: Get \"http://h/x\": EOF",
                "Get \"http://h/x\": EOF",
            ),
            ("something else\nand more", "something else and more"),
            ("", ""),
        ] {
            assert_eq!(readable(message), expected);
        }
    }

    #[test]
    fn no_secret_survives() {
        for secret in [
            "Get \"https://user:S3CRETS3CRET@h/x?X-Amz-Signature=S3CRETS3CRET&a=b\": EOF",
            "unexpected status from GET request to https://h/token?account=S3CRETS3CRET: 401",
            "(https://h/a#S3CRETS3CRET).",
            "header Authorization: Bearer S3CRETS3CRET was refused",
            "header authorization:Basic S3CRETS3CRET",
            "password=S3CRETS3CRET",
            "{\"access_token\":\"S3CRETS3CRET\",\"x\":1}",
            "x-api-key:S3CRETS3CRET",
            "saw eyJS3CRETS3CRET.eyJh.x",
            "https://h/token: token=S3CRETS3CRET",
            "h/token:1 password=S3CRETS3CRET",
            "{\"url\":\"h/token:1\",\"token\":\"S3CRETS3CRET\"}",
            "h/secret=S3CRETS3CRET",
            "password: S3CRETS3CRET",
            "token: 429S3CRETS3CRET",
            "http://a@b@S3CRETS3CRET:x@host/",
            "failed to parse Location header \"/x%zz/y?sig=S3CRETS3CRET&se=2099\": invalid",
        ] {
            let shown = readable(secret);
            assert!(!shown.contains("S3CRETS3CRET"), "{secret} => {shown}");
        }
    }

    #[test]
    fn prose_and_addresses_stay() {
        for plain in [
            "authorization failed: no basic auth credentials",
            "failed to fetch anonymous token: unexpected status",
            "Head \"http://127.0.0.1:5000/v2/my/app/manifests/latest\": dial tcp 127.0.0.1:5000: connect: connection refused",
            "lookup h on 10.0.0.10:53: no such host",
            "unexpected status from GET request to https://h/token: 429 Too Many Requests",
            "unexpected status from GET request to https://h/v2/token: 503 Service Unavailable",
            "failed to fetch oauth token: 429 Too Many Requests",
            "reg.example/ops/token:1.2: not found",
            "manifest for reg.example/secret-service:v3 is gone",
        ] {
            assert_eq!(readable(plain), plain);
        }
    }

    #[test]
    fn urls_keep_host_and_path() {
        assert_eq!(
            readable("to https://u:p@h:5000/v2/a/b?x=y: 500 x, see ftp://z?q."),
            "to https://h:5000/v2/a/b: 500 x, see ftp://z."
        );
        assert_eq!(without_urls("to https://h/a: 500"), "to https://: 500");
    }
}
