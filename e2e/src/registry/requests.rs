//! What was asked of the registry: read from method and path, and counted.

use std::collections::BTreeMap;
use std::fmt;

use hyper::header::AUTHORIZATION;
use hyper::{Method, Request, Uri};

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequestKind {
    /// `/v2/`: is this a registry?
    Ping,
    /// What does the tag point to?
    HeadManifest,
    /// A manifest or an index.
    GetManifest,
    /// A layer or a configuration.
    GetBlob,
    /// A token of the proxy's own token endpoint.
    Token,
    /// Anything else, pushes among it.
    Other,
}

impl fmt::Display for RequestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ping => "ping",
            Self::HeadManifest => "head-manifest",
            Self::GetManifest => "get-manifest",
            Self::GetBlob => "get-blob",
            Self::Token => "token",
            Self::Other => "other",
        })
    }
}

/// A request, as far as faults and counts care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) kind: RequestKind,
    pub(super) repository: Option<String>,
    /// Tag or digest.
    pub(super) reference: Option<String>,
    /// Whether credentials came with it, good or bad.
    pub(super) has_credentials: bool,
}

impl Asked {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        Self {
            has_credentials: request.headers().contains_key(AUTHORIZATION),
            ..Self::read(request.method(), request.uri())
        }
    }

    fn read(method: &Method, uri: &Uri) -> Self {
        let path = uri.path();
        if path == "/token" {
            return Self::new(RequestKind::Token, scope(uri), None);
        }
        let Some(rest) = path.strip_prefix("/v2") else {
            return Self::new(RequestKind::Other, None, None);
        };
        if matches!(rest, "" | "/") {
            return Self::new(RequestKind::Ping, None, None);
        }
        let rest = rest.trim_start_matches('/');
        for (part, is_manifest) in [("/manifests/", true), ("/blobs/", false)] {
            let Some((repository, reference)) = rest.rsplit_once(part) else {
                continue;
            };
            let kind = match (is_manifest, method) {
                (true, &Method::HEAD) => RequestKind::HeadManifest,
                (true, &Method::GET) => RequestKind::GetManifest,
                (false, &Method::GET) => RequestKind::GetBlob,
                _ => RequestKind::Other,
            };
            return Self::new(
                kind,
                Some(repository.to_owned()),
                Some(reference.to_owned()),
            );
        }
        Self::new(RequestKind::Other, None, None)
    }

    fn new(kind: RequestKind, repository: Option<String>, reference: Option<String>) -> Self {
        Self {
            kind,
            repository,
            reference,
            has_credentials: false,
        }
    }
}

/// The repository of a token request's scope, `repository:NAME:pull`.
fn scope(uri: &Uri) -> Option<String> {
    let query = uri.query()?.replace("%3A", ":").replace("%2F", "/");
    let (_, scope) = query.split_once("scope=repository:")?;
    Some(scope.split_once(':')?.0.to_owned())
}

/// How many requests came, by repository and kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    counts: BTreeMap<(Option<String>, RequestKind), u64>,
}

impl Requests {
    /// Of this kind, for all repositories.
    pub fn count(&self, kind: RequestKind) -> u64 {
        self.sum(|_, counted| counted == kind)
    }

    /// Of this kind, for one repository.
    pub fn count_on(&self, repository: &str, kind: RequestKind) -> u64 {
        self.sum(|name, counted| name == Some(repository) && counted == kind)
    }

    /// Of all kinds, for all repositories.
    pub fn total(&self) -> u64 {
        self.sum(|_, _| true)
    }

    /// Of all kinds, for one repository.
    pub fn total_on(&self, repository: &str) -> u64 {
        self.sum(|name, _| name == Some(repository))
    }

    /// Those that came after `earlier` was taken.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let news = self.counts.iter().filter_map(|(key, count)| {
            let news = count.saturating_sub(earlier.counts.get(key).copied().unwrap_or(0));
            (news > 0).then(|| (key.clone(), news))
        });
        Self {
            counts: news.collect(),
        }
    }

    pub(super) fn record(&mut self, asked: &Asked) {
        let key = (asked.repository.clone(), asked.kind);
        *self.counts.entry(key).or_default() += 1;
    }

    fn sum(&self, counts: impl Fn(Option<&str>, RequestKind) -> bool) -> u64 {
        let matching = self
            .counts
            .iter()
            .filter(|((name, kind), _)| counts(name.as_deref(), *kind));
        matching.map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.counts.is_empty() {
            return f.write_str("no requests");
        }
        for (index, ((repository, kind), count)) in self.counts.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{count} {kind}")?;
            if let Some(repository) = repository {
                write!(f, " of {repository}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &Method, uri: &str) -> (RequestKind, Option<String>) {
        let asked = Asked::read(method, &uri.parse().unwrap());
        (asked.kind, asked.repository)
    }

    #[test]
    fn paths_are_read_as_the_distribution_api_has_them() {
        let app = Some("my/app".to_owned());
        let cases = [
            (Method::GET, "/v2/", RequestKind::Ping, None),
            (
                Method::HEAD,
                "/v2/my/app/manifests/latest?ns=x",
                RequestKind::HeadManifest,
                app.clone(),
            ),
            (
                Method::GET,
                "/v2/my/app/manifests/sha256:0",
                RequestKind::GetManifest,
                app.clone(),
            ),
            (
                Method::PUT,
                "/v2/my/app/manifests/latest",
                RequestKind::Other,
                app.clone(),
            ),
            (
                Method::GET,
                "/v2/my/app/blobs/sha256:0",
                RequestKind::GetBlob,
                app.clone(),
            ),
            (
                Method::HEAD,
                "/v2/my/app/blobs/sha256:0",
                RequestKind::Other,
                app.clone(),
            ),
            (
                Method::GET,
                "/token?service=r&scope=repository%3Amy%2Fapp%3Apull",
                RequestKind::Token,
                app,
            ),
            (Method::GET, "/token", RequestKind::Token, None),
            (Method::GET, "/metrics", RequestKind::Other, None),
        ];
        for (method, uri, kind, repository) in cases {
            assert_eq!(read(&method, uri), (kind, repository), "{method} {uri}");
        }
    }

    #[test]
    fn counts_are_told_apart_and_can_be_compared() {
        let asked = |uri: &str| Asked::read(&Method::GET, &uri.parse().unwrap());
        let mut requests = Requests::default();
        assert_eq!(requests.to_string(), "no requests");
        requests.record(&asked("/v2/"));
        requests.record(&asked("/v2/a/manifests/1"));
        let earlier = requests.clone();
        requests.record(&asked("/v2/a/manifests/1"));
        requests.record(&asked("/v2/b/manifests/1"));
        assert_eq!(requests.count(RequestKind::GetManifest), 3);
        assert_eq!((requests.total(), requests.total_on("b")), (4, 1));
        assert_eq!(
            requests.since(&earlier).to_string(),
            "1 get-manifest of a, 1 get-manifest of b"
        );
    }
}
