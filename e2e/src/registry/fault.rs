//! What can go wrong between containerd and the registry, as data.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::requests::{Asked, RequestKind};

/// One way in which the registry fails. `Display` is what a test prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The port refuses, and every open connection is closed. Only for the whole registry.
    Closed,
    /// A SYN gets no answer, and open connections fall silent, as when a cable is pulled. Those go
    /// on when it ends; new ones when the client's kernel sends its next SYN (after 1, 3, 7 s …).
    /// Only for the whole registry.
    Blackhole,
    /// Requests are taken and never answered, not even after the fault has ended.
    NeverAnswers,
    /// The connection is reset once the request is in.
    Reset,
    /// 500 for every request.
    InternalError,
    /// 503 for every request.
    Unavailable,
    /// 429 for every request, with Retry-After.
    RateLimited {
        /// What Retry-After says, in whole seconds.
        retry_after: Duration,
    },
    /// 401 for every request, with this challenge.
    Unauthorized(Challenge),
    /// 403 for every request.
    Forbidden,
    /// 404 for manifests and blobs, in a registry's own words.
    NotFound,
    /// 200 and an HTML page for every request, as captive portals do.
    HtmlPage,
    /// The manifest's bytes are changed; length and digest header are right.
    CorruptManifest,
    /// A blob's first bytes come, then nothing more, not even after the fault has ended. Blobs
    /// that are no longer than this come whole.
    StalledBlob {
        /// How many bytes come.
        after_bytes: u64,
    },
    /// Blobs come at this pace, and at full speed once the fault has ended.
    SlowBlob {
        /// The pace of each download.
        bytes_per_second: u64,
    },
    /// The connection is closed after half of what was asked of a blob.
    CutBlob,
    /// A blob's bytes are changed, its length is right.
    CorruptBlob,
    /// Each answer comes this much later, and at once when the fault ends.
    Latency(Duration),
}

/// How a 401 asks for credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// User name and password.
    Basic,
    /// A token from `/token` at the same address.
    Bearer {
        /// The status with which `/token` answers. With 200 it hands out a token, and the registry
        /// does not accept it: what public registries do for images that need an account.
        token: u16,
    },
}

impl Fault {
    /// The fault for the first `count` requests that it can meet; those after see none.
    #[must_use]
    pub fn times(self, count: u32) -> Rule {
        Rule::from(self).times(count)
    }

    /// The fault for requests of this kind alone, e.g. for blobs while manifests are answered.
    #[must_use]
    pub fn only(self, kind: RequestKind) -> Rule {
        Rule {
            only: Some(kind),
            ..Rule::from(self)
        }
    }

    /// Whether it is the port's, so that no request is needed to see it.
    pub(super) fn is_of_port(&self) -> bool {
        matches!(self, Self::Closed | Self::Blackhole)
    }

    /// The fault for requests that carry credentials, while anonymous ones are answered.
    #[must_use]
    pub fn with_credentials(self) -> Rule {
        Rule {
            with_credentials: true,
            ..Rule::from(self)
        }
    }

    /// Whether it comes in place of, or before, the registry's answer to this request.
    pub(super) fn replaces(&self, asked: &Asked) -> bool {
        use RequestKind::{GetBlob, GetManifest, HeadManifest};
        match self {
            Self::NeverAnswers
            | Self::Reset
            | Self::InternalError
            | Self::Unavailable
            | Self::RateLimited { .. }
            | Self::Unauthorized(_)
            | Self::Forbidden
            | Self::HtmlPage
            | Self::Latency(_) => true,
            Self::NotFound => matches!(asked.kind, HeadManifest | GetManifest | GetBlob),
            Self::Closed
            | Self::Blackhole
            | Self::CorruptManifest
            | Self::StalledBlob { .. }
            | Self::SlowBlob { .. }
            | Self::CutBlob
            | Self::CorruptBlob => false,
        }
    }

    /// Whether it spoils the body that the registry sends for this request.
    pub(super) fn spoils(&self, asked: &Asked, length: u64) -> bool {
        match self {
            Self::CorruptManifest => asked.kind == RequestKind::GetManifest,
            Self::StalledBlob { after_bytes } => {
                asked.kind == RequestKind::GetBlob && length > *after_bytes
            }
            Self::SlowBlob { .. } | Self::CutBlob | Self::CorruptBlob => {
                asked.kind == RequestKind::GetBlob
            }
            Self::Closed
            | Self::Blackhole
            | Self::NeverAnswers
            | Self::Reset
            | Self::InternalError
            | Self::Unavailable
            | Self::RateLimited { .. }
            | Self::Unauthorized(_)
            | Self::Forbidden
            | Self::NotFound
            | Self::HtmlPage
            | Self::Latency(_) => false,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed port"),
            Self::Blackhole => f.write_str("SYN without answer"),
            Self::NeverAnswers => f.write_str("accepts and never answers"),
            Self::Reset => f.write_str("connection reset"),
            Self::InternalError => f.write_str("500"),
            Self::Unavailable => f.write_str("503"),
            Self::RateLimited { retry_after } => {
                write!(f, "429, retry after {} s", retry_after.as_secs())
            }
            Self::Unauthorized(Challenge::Basic) => f.write_str("401 Basic"),
            Self::Unauthorized(Challenge::Bearer { token }) => {
                write!(f, "401 Bearer, token endpoint answers {token}")
            }
            Self::Forbidden => f.write_str("403"),
            Self::NotFound => f.write_str("404"),
            Self::HtmlPage => f.write_str("200 with an HTML page"),
            Self::CorruptManifest => f.write_str("corrupt manifest"),
            Self::StalledBlob { after_bytes } => write!(f, "blob stalls after {after_bytes} bytes"),
            Self::SlowBlob { bytes_per_second } => write!(f, "blob at {bytes_per_second} bytes/s"),
            Self::CutBlob => f.write_str("blob cut half-way"),
            Self::CorruptBlob => f.write_str("corrupt blob"),
            Self::Latency(latency) => write!(f, "latency of {} ms", latency.as_millis()),
        }
    }
}

/// A fault, for which requests it is, and how often it is still to be seen.
#[derive(Clone, Debug)]
pub struct Rule {
    pub(super) fault: Fault,
    /// None is every kind that the fault can meet.
    only: Option<RequestKind>,
    /// Whether those without credentials are spared.
    with_credentials: bool,
    /// None is for ever. A rule that is used up stays, so that what it started goes on.
    left: Option<u32>,
    /// Cancelled when somebody ends or replaces the rule.
    ended: CancellationToken,
}

impl From<Fault> for Rule {
    fn from(fault: Fault) -> Self {
        Self {
            fault,
            only: None,
            with_credentials: false,
            left: None,
            ended: CancellationToken::new(),
        }
    }
}

impl Rule {
    /// Makes the rule one for the first `count` requests.
    #[must_use]
    pub fn times(mut self, count: u32) -> Self {
        self.left = Some(count);
        self
    }

    /// Whether it picks among requests, which the port cannot.
    pub(super) fn is_picky(&self) -> bool {
        self.left.is_some() || self.only.is_some() || self.with_credentials
    }

    fn is_for(&self, asked: &Asked) -> bool {
        let kind = asked.kind;
        if self.with_credentials && !asked.has_credentials {
            return false;
        }
        let bearer = matches!(self.fault, Fault::Unauthorized(Challenge::Bearer { .. }));
        // Who is sent to the token endpoint finds it, whichever request sent him there.
        (bearer && kind == RequestKind::Token) || self.only.is_none_or(|only| only == kind)
    }

    fn take(&mut self) -> Option<Met> {
        match &mut self.left {
            Some(0) => return None,
            Some(left) => *left -= 1,
            None => {}
        }
        Some(Met {
            fault: self.fault.clone(),
            ended: self.ended.clone(),
        })
    }
}

/// A fault that a request has met.
pub(super) struct Met {
    pub(super) fault: Fault,
    pub(super) ended: CancellationToken,
}

/// The faults in force. One for a repository goes before the one for all.
#[derive(Debug, Default)]
pub(super) struct Rules {
    everywhere: Option<Rule>,
    by_repository: HashMap<String, Rule>,
}

impl Rules {
    pub(super) fn set(&mut self, rule: Option<Rule>) {
        end(std::mem::replace(&mut self.everywhere, rule));
    }

    pub(super) fn set_on(&mut self, repository: &str, rule: Option<Rule>) {
        end(match rule {
            Some(rule) => self.by_repository.insert(repository.to_owned(), rule),
            None => self.by_repository.remove(repository),
        });
    }

    pub(super) fn clear(&mut self) {
        end(self.everywhere.take());
        let others = self.by_repository.drain();
        others.for_each(|(_, rule)| end(Some(rule)));
    }

    /// The fault for a request, among those that `meets` accepts; counts it.
    pub(super) fn take(&mut self, asked: &Asked, meets: impl Fn(&Fault) -> bool) -> Option<Met> {
        let own = asked.repository.as_deref();
        let own = own.and_then(|name| self.by_repository.get_mut(name));
        own.into_iter()
            .chain(&mut self.everywhere)
            .filter(|rule| rule.is_for(asked) && meets(&rule.fault))
            .find_map(Rule::take)
    }
}

fn end(rule: Option<Rule>) {
    if let Some(rule) = rule {
        rule.ended.cancel();
    }
}
