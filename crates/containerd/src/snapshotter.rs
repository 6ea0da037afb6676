//! Which snapshotter CRI unpacks images with.

use std::sync::Mutex;

use k8s_cri::v1::{ImageFsInfoRequest, StatusRequest};
use serde_json::Value;

use crate::calls::Calls;
use crate::containerd::locked;
use crate::runtime::RuntimeError;

/// containerd's default.
const DEFAULT: &str = "overlayfs";

/// The snapshotter's name: given, or asked for once per connection. Only a restart of containerd can
/// change it, and that breaks the connection.
#[derive(Debug)]
pub(crate) struct Snapshotter {
    given: Option<String>,
    /// The name, and the connection over which it was learned.
    learned: Mutex<Option<(u64, String)>>,
}

impl Snapshotter {
    pub(crate) fn new(given: Option<String>) -> Self {
        Self {
            given,
            learned: Mutex::new(None),
        }
    }

    /// The name; asks containerd if it was not given.
    pub(crate) async fn name(&self, calls: &Calls) -> Result<String, RuntimeError> {
        if let Some(given) = &self.given {
            return Ok(given.clone());
        }
        let learned = locked(&self.learned).clone();
        if let Some((connection, name)) = learned
            && connection == calls.connections()
        {
            return Ok(name);
        }
        let said = ask(calls).await?;
        if said.is_none() {
            // With a wrong guess no image counts as unpacked, and images without their layers count as unusable.
            tracing::warn!(
                snapshotter = DEFAULT,
                "containerd does not name its snapshotter; using a guess (set --snapshotter to be sure)"
            );
        }
        let name = said.unwrap_or_else(|| DEFAULT.to_owned());
        tracing::debug!(snapshotter = name, "containerd's snapshotter");
        *locked(&self.learned) = Some((calls.connections(), name.clone()));
        Ok(name)
    }
}

/// 1.x returns its configuration. 2.x leaves the snapshotter out, but says where images are unpacked;
/// if a proxy plugin's snapshotter chooses its own folder, that does not help.
async fn ask(calls: &Calls) -> Result<Option<String>, RuntimeError> {
    let operation = "asking for the snapshotter";
    let (mut runtime, mut images) = (calls.cri_runtime(), calls.cri_images());
    let status = runtime.status(StatusRequest { verbose: true });
    let info = calls.call(operation, status).await?.info;
    if let Some(name) = info.get("config").and_then(|config| configured(config)) {
        return Ok(Some(name));
    }
    let places = images.image_fs_info(ImageFsInfoRequest {});
    let places = calls.call(operation, places).await?.image_filesystems;
    // The first is the one in use.
    let place = places.into_iter().next().and_then(|place| place.fs_id);
    Ok(place.and_then(|place| in_path(&place.mountpoint).map(str::to_owned)))
}

/// The name in CRI's configuration.
pub(crate) fn configured(config: &str) -> Option<String> {
    let config: Value = serde_json::from_str(config).ok()?;
    let name = config.pointer("/containerd/snapshotter")?.as_str()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// The name in the path of a snapshotter's folder.
fn in_path(path: &str) -> Option<&str> {
    let (_root, name) = path.rsplit_once("/io.containerd.snapshotter.v1.")?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_read_from_either_answer() {
        let v1 = r#"{"containerd":{"snapshotter":"zfs","runtimes":{}}}"#;
        let v2 = r#"{"containerd":{"runtimes":{"runc":{"snapshotter":""}}}}"#;
        assert_eq!(configured(v1).as_deref(), Some("zfs"));
        assert_eq!(configured(v2), None);
        assert_eq!(configured("no json"), None);
        let place = "/var/lib/containerd/io.containerd.snapshotter.v1.stargz";
        assert_eq!(in_path(place), Some("stargz"));
        assert_eq!(in_path("/var/lib/containerd-stargz-grpc"), None);
    }
}
