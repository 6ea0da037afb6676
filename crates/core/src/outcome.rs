//! What a container gets, and why a pull failed: the words in releases, Events and metrics.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text;

/// What a container gets after the try for its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// New content was pulled.
    Fresh,
    /// The tag still points to the copy that the node holds.
    Unchanged,
    /// The pod is to start from what its rollout has on the node already, and does: nobody asked the registry.
    Same,
    /// The try failed and the node's cached copy is used.
    Fallback,
    /// Nothing was tried first, because the pod is not held: it started from the node's copy, or from what the
    /// kubelet pulled.
    NotHeld,
    /// The registry wants credentials: the kubelet pulls, and the cached copy waits aside meanwhile.
    HandedOver,
    /// Neither a pull nor a cached copy: the kubelet is left to pull and to report.
    Unavailable,
    /// A cached copy exists, but this pod may not use it.
    Refused,
}

impl Outcome {
    /// Every outcome, in the order in which people read them.
    pub const ALL: [Self; 8] = [
        Self::Fresh,
        Self::Unchanged,
        Self::Same,
        Self::Fallback,
        Self::NotHeld,
        Self::HandedOver,
        Self::Unavailable,
        Self::Refused,
    ];

    /// The word in JSON, metrics and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Unchanged => "unchanged",
            Self::Same => "same",
            Self::Fallback => "fallback",
            Self::NotHeld => "not-held",
            Self::HandedOver => "handed-over",
            Self::Unavailable => "unavailable",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a pull failed, as far as that is known. A message that cannot be read is
/// [`FailureClass::Unknown`], never a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureClass {
    /// No connection, or one that broke: name lookup, refused, reset, unreachable, TLS, a download cut short; or a
    /// proxy wants credentials (407).
    Network,
    /// Nothing moved for the stall deadline, the try's time was up, or the registry answered 408.
    Timeout,
    /// The registry answered 5xx.
    ServerError,
    /// The registry answered 429, or 402: the paid quota is used up.
    RateLimited,
    /// The registry answered 404, 410 or 451: no such repository or tag, or one that it must not serve.
    NotFound,
    /// The registry answered 401 or 403.
    Unauthorized,
    /// What came is unusable: corrupt, wrong digest, wrong platform; or the image name is invalid.
    Invalid,
    /// An image verifier of this node refused what the tag points to. It does not
    /// allow the cached copy by default (`docs/adr/0005-blocked.md`).
    Blocked,
    /// This node's fault: disk full, spoiled files, a bad setting of containerd, containerd down.
    Local,
    /// None of the above could be established.
    Unknown,
}

impl FailureClass {
    /// Whether it may say something of the registry, and not only of one image of it.
    pub const fn is_outage(self) -> bool {
        match self {
            Self::Timeout | Self::Network | Self::ServerError | Self::RateLimited => true,
            Self::NotFound
            | Self::Unauthorized
            | Self::Invalid
            | Self::Blocked
            | Self::Local
            | Self::Unknown => false,
        }
    }

    /// Whether it shows that the registry answers requests.
    pub(crate) const fn is_answer(self) -> bool {
        match self {
            Self::NotFound | Self::Unauthorized | Self::Invalid | Self::Blocked => true,
            Self::Timeout
            | Self::Network
            | Self::ServerError
            | Self::RateLimited
            | Self::Local
            | Self::Unknown => false,
        }
    }

    /// Every class.
    pub const ALL: [Self; 10] = [
        Self::Network,
        Self::Timeout,
        Self::ServerError,
        Self::RateLimited,
        Self::NotFound,
        Self::Unauthorized,
        Self::Invalid,
        Self::Blocked,
        Self::Local,
        Self::Unknown,
    ];

    /// The word in JSON, metrics, messages and the `fallback-on` annotation.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Timeout => "timeout",
            Self::ServerError => "server-error",
            Self::RateLimited => "rate-limited",
            Self::NotFound => "not-found",
            Self::Unauthorized => "unauthorized",
            Self::Invalid => "invalid",
            Self::Blocked => "blocked",
            Self::Local => "local",
            Self::Unknown => "unknown",
        }
    }

    /// Whether a pull may have failed because this node's disk has lost content. In the other classes
    /// the reason is the registry, the way to it or somebody's policy, and another pull fails as well.
    pub const fn may_come_from_the_disk(self) -> bool {
        match self {
            Self::Invalid | Self::Local | Self::Unknown => true,
            Self::Network
            | Self::Timeout
            | Self::ServerError
            | Self::RateLimited
            | Self::NotFound
            | Self::Unauthorized
            | Self::Blocked => false,
        }
    }

    /// Whether a pod without a setting of its own may use the cached copy after such a failure.
    /// [`Self::Unauthorized`] needs proof as well.
    pub const fn falls_back_by_default(self) -> bool {
        !matches!(self, Self::Blocked)
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that is not a failure class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown failure class {0:?}")]
pub struct UnknownClass(pub String);

impl FromStr for FailureClass {
    type Err = UnknownClass;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|class| class.as_str() == word)
            .ok_or_else(|| UnknownClass(word.to_owned()))
    }
}

/// A failed pull: its class, and a message for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure.
    pub class: FailureClass,
    /// One line, without secrets: containerd's or our own message, shortened.
    pub message: String,
}

impl Failure {
    /// Longest [`Failure::message`] in bytes. Messages travel in annotations and Events (1 KiB);
    /// containerd repeats its own prefixes, the useful end fits.
    pub const MESSAGE_MAX_BYTES: usize = 300;

    /// A failure whose message is cut to [`Self::MESSAGE_MAX_BYTES`] and to one line.
    pub fn new(class: FailureClass, message: impl AsRef<str>) -> Self {
        let mut message = text::on_one_line(message.as_ref());
        if message.len() > Self::MESSAGE_MAX_BYTES {
            let mut end = Self::MESSAGE_MAX_BYTES - '…'.len_utf8();
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            message.push('…');
        }
        Self { class, message }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_round_trip() {
        for class in FailureClass::ALL {
            assert_eq!(class.as_str().parse(), Ok(class));
            assert_eq!(serde_json::to_value(class).unwrap(), class.as_str());
        }
        for outcome in Outcome::ALL {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.as_str());
        }
        assert_eq!(
            "dns".parse::<FailureClass>(),
            Err(UnknownClass("dns".into()))
        );
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let failure = Failure::new(FailureClass::Unknown, "ä\n".repeat(400));
        assert!(failure.message.len() <= Failure::MESSAGE_MAX_BYTES);
        assert!(failure.message.ends_with('…'));
        assert!(!failure.message.contains('\n'));
    }
}
