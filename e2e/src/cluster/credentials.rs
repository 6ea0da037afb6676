//! Credential plugins of the kubelet, whose answers a test decides
//! (`credentialprovider.kubelet.k8s.io/v1`).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;

use crate::registry::User;

/// The plugin's name, which is its file's.
const NAME: &str = "test-provider";

/// Repositories that begin like this are its.
const PREFIX: &str = "plugin";

/// The same of the plugin that is given a token of the pod's service account (KEP-4412).
const BY_ACCOUNT: &str = "test-account-provider";
const BY_ACCOUNT_PREFIX: &str = "account-plugin";

/// Whom that token is for. The kubelet may ask for it only where a role says so.
pub const AUDIENCE: &str = "e2e-registry";

/// What the kubelet is told of it, and where its answer is.
#[derive(Clone, Debug)]
pub struct CredentialPlugin {
    folder: PathBuf,
    host: String,
}

/// What the plugin does when it is asked.
#[derive(Clone, Copy, Debug)]
pub enum PluginAnswer<'a> {
    /// It answers with this user's credentials.
    Gives(&'a User),
    /// It does not end.
    Hangs,
    /// It exits with code 1.
    Crashes,
    /// It prints something else.
    Rubbish,
}

impl CredentialPlugin {
    /// Writes the plugin and its configuration under `folder`, for repositories of the registry `host` that
    /// begin with `plugin`. It crashes until it is told what to do.
    pub(super) fn write(folder: &Path, host: &str) -> anyhow::Result<Self> {
        let plugin = Self {
            folder: folder.to_owned(),
            host: host.to_owned(),
        };
        let bin = plugin.bin();
        fs::create_dir_all(&bin).with_context(|| format!("make {}", bin.display()))?;
        let answer = plugin.answer();
        let answer = answer.display();
        let script = format!("#!/bin/sh\ncat >/dev/null\n. '{answer}'\n");
        write_program(&bin.join(NAME), &script)?;
        let answer = plugin.answer_by_account();
        let answer = answer.display();
        let claims = r#"sed -n 's/.*"serviceAccountToken":"\([^"]*\)".*/\1/p' | cut -d. -f2 | tr '_-' '/+' | base64 -d 2>/dev/null"#;
        let script = format!("#!/bin/sh\nclaims=$({claims})\n. '{answer}'\n");
        write_program(&bin.join(BY_ACCOUNT), &script)?;
        write_answer(&plugin.answer(), "exit 1\n")?;
        write_answer(&plugin.answer_by_account(), "exit 1\n")?;
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1",
            "kind": "CredentialProviderConfig",
            "providers": [{
                "name": NAME,
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "matchImages": [format!("{host}/{PREFIX}")],
                "defaultCacheDuration": "0s",
            }, {
                "name": BY_ACCOUNT,
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "matchImages": [format!("{host}/{BY_ACCOUNT_PREFIX}")],
                "defaultCacheDuration": "0s",
                "tokenAttributes": {
                    "serviceAccountTokenAudience": AUDIENCE,
                    "cacheType": "Token",
                    "requireServiceAccount": true,
                },
            }],
        });
        fs::write(plugin.config(), config.to_string())?;
        Ok(plugin)
    }

    pub(super) fn flags(&self) -> [String; 2] {
        [
            format!(
                "--image-credential-provider-config={}",
                self.config().display()
            ),
            format!(
                "--image-credential-provider-bin-dir={}",
                self.bin().display()
            ),
        ]
    }

    /// What it does from now on.
    ///
    /// # Errors
    /// Its file cannot be written.
    pub fn set(&self, answer: PluginAnswer<'_>) -> anyhow::Result<()> {
        let script = match answer {
            PluginAnswer::Gives(user) => &self.gives(user),
            PluginAnswer::Hangs => "exec sleep 300\n",
            PluginAnswer::Rubbish => "echo this is no answer\n",
            PluginAnswer::Crashes => "exit 1\n",
        };
        write_answer(&self.answer(), script)
    }

    /// From now on the plugin for repositories that begin with `account-plugin` answers with this user's
    /// credentials if the pod runs as the service account of this name, and crashes otherwise.
    ///
    /// # Errors
    /// Its file cannot be written.
    pub fn set_for_account(&self, account: &str, user: &User) -> anyhow::Result<()> {
        let claim = format!(r#""serviceaccount":{{"name":"{account}""#);
        let script = format!("case $claims in *'{claim}'*) ;; *) exit 1;; esac\n");
        let script = script + &self.gives(user);
        write_answer(&self.answer_by_account(), &script)
    }

    fn gives(&self, User { name, password }: &User) -> String {
        let answer = json!({
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "kind": "CredentialProviderResponse",
            "cacheKeyType": "Image",
            "cacheDuration": "0s",
            "auth": {(self.host.clone()): {"username": name, "password": password}},
        });
        format!("cat <<'END'\n{answer}\nEND\n")
    }

    fn bin(&self) -> PathBuf {
        self.folder.join("bin")
    }

    fn answer(&self) -> PathBuf {
        self.folder.join("answer.sh")
    }

    fn answer_by_account(&self) -> PathBuf {
        self.folder.join("answer-by-account.sh")
    }

    fn config(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }
}

fn write_program(path: &Path, script: &str) -> anyhow::Result<()> {
    fs::write(path, script).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The plugin may be asked at any moment.
fn write_answer(path: &Path, script: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, script).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, path)?;
    Ok(())
}
