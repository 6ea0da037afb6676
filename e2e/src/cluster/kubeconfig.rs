//! Kubeconfig files, with the paths of certificates in them.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;

use crate::pki::{Authority, Leaf};

/// Writes a kubeconfig for one user to `file`. It is JSON, which is YAML too.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn write(
    file: &Path,
    server: SocketAddr,
    authority: &Authority,
    user: &Leaf,
) -> anyhow::Result<PathBuf> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": {
            "server": format!("https://{server}"),
            "certificate-authority": authority.cert(),
        }}],
        "users": [{"name": "user", "user": {
            "client-certificate": user.cert,
            "client-key": user.key,
        }}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "user"}}],
        "current-context": "e2e",
    });
    let text = serde_json::to_string_pretty(&config)?;
    fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    Ok(file.to_owned())
}
