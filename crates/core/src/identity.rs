//! Whose credentials the kubelet pulls an image with, as far as that can be told without reading any.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A pod's namespace, service account, and the names of its pull secrets.
///
/// Two pods that are alike in these get the same credentials from the kubelet: the secrets' contents, the
/// node's own, and what credential plugins hand out for the service account
/// (`pkg/kubelet/kuberuntime/kuberuntime_image.go`, KEP-4412). TryLatest never reads a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The pod's namespace.
    pub namespace: String,
    /// The name of its service account.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_account: String,
    /// The names of its pull secrets, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pull_secrets: Vec<String>,
}

impl Identity {
    /// Whether the pod names pull secrets. Without any, only the node's own credentials and plugins can
    /// open a private image.
    pub fn has_pull_secrets(&self) -> bool {
        !self.pull_secrets.is_empty()
    }

    /// Whether the pod has nothing of its own that could open a private image: only the node's credentials can.
    pub(crate) fn is_anybody(&self) -> bool {
        let account = self.service_account.as_str();
        !self.has_pull_secrets() && (account.is_empty() || account == "default")
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)?;
        if self.has_pull_secrets() {
            write!(f, " with {}", self.pull_secrets.join(", "))?;
        }
        Ok(())
    }
}
