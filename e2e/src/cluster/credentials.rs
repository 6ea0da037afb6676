//! A credential plugin of the kubelet, whose answers a test decides
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
        let script = format!("#!/bin/sh\ncat >/dev/null\n. '{}'\n", answer.display());
        let program = bin.join(NAME);
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        plugin.say("exit 1\n")?;
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1",
            "kind": "CredentialProviderConfig",
            "providers": [{
                "name": NAME,
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "matchImages": [format!("{host}/{PREFIX}")],
                "defaultCacheDuration": "0s",
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
        let PluginAnswer::Gives(User { name, password }) = answer else {
            return self.say(match answer {
                PluginAnswer::Hangs => "exec sleep 300\n",
                PluginAnswer::Rubbish => "echo this is no answer\n",
                PluginAnswer::Crashes | PluginAnswer::Gives(_) => "exit 1\n",
            });
        };
        let answer = json!({
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "kind": "CredentialProviderResponse",
            "cacheKeyType": "Image",
            "cacheDuration": "0s",
            "auth": {(self.host.clone()): {"username": name, "password": password}},
        });
        self.say(&format!("cat <<'END'\n{answer}\nEND\n"))
    }

    fn say(&self, script: &str) -> anyhow::Result<()> {
        // It may be asked at any moment.
        let new = self.folder.join("answer.new");
        fs::write(&new, script)?;
        fs::rename(&new, self.answer())?;
        Ok(())
    }

    fn bin(&self) -> PathBuf {
        self.folder.join("bin")
    }

    fn answer(&self) -> PathBuf {
        self.folder.join("answer.sh")
    }

    fn config(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }
}
