//! A real registry with a fault proxy before it.
//!
//! ```text
//!   containerd ──► FaultProxy (host) ──► docker-registry (back port) ◄── push, tags: no faults
//!                      ▲   └─ counts
//!              Fault ──┘
//! ```
//!
//! Images go in by the back port, pulls come by the proxy: a test can move a tag while the
//! registry is "down". A registry can have several proxies: to its clients these are several hosts, which
//! fail independently of each other.

mod access;
mod answer;
mod distribution;
mod fault;
mod port;
mod proxy;
mod requests;
mod spoil;
mod upstream;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use serde_json::json;
use trylatest_bootstrap::oci::Image;

use crate::cluster::wait::until;
use crate::process::{Process, Spec};

pub(crate) use access::base64;
pub use access::{Access, Scheme, User};
use distribution::Distribution;
pub use distribution::Manifest;
pub use fault::{Challenge, Fault, Rule};
pub use port::SilentPort;
pub use proxy::FaultProxy;
pub use requests::{RequestKind, Requests};

/// How long the registry may take to answer after its start.
const START: Duration = Duration::from_secs(20);

/// How long it may take to end.
const STOP: Duration = Duration::from_secs(5);

/// An image of one platform: what is uploaded for it.
#[derive(Clone, Debug)]
pub struct Content {
    /// The manifest.
    pub manifest: Manifest,
    /// The configuration and the layers, in any order.
    pub blobs: Vec<Bytes>,
}

impl From<Image> for Content {
    fn from(image: Image) -> Self {
        Self {
            manifest: Manifest {
                bytes: image.manifest.into(),
                media_type: image.media_type.to_owned(),
            },
            blobs: image.blobs.into_iter().map(Bytes::from).collect(),
        }
    }
}

/// A registry, with the faults and counts of its first host's [`FaultProxy`]. Dropping it kills it.
pub struct Registry {
    first: Arc<FaultProxy>,
    /// Held here so that none of their ports is given away again: a client remembers what a host has done.
    others: Mutex<Vec<Arc<FaultProxy>>>,
    direct: Distribution,
    process: Process,
}

impl Deref for Registry {
    type Target = FaultProxy;

    fn deref(&self) -> &FaultProxy {
        &self.first
    }
}

impl Registry {
    /// Starts `program` (docker-registry 2.8) with its files under `dir`, what it prints in `log` and
    /// the proxy on `port` of 127.0.0.1 (0: a free one), and waits until it answers.
    ///
    /// # Errors
    /// The port is taken, or the registry does not come up; the message holds its last lines.
    pub async fn start(program: &Path, dir: &Path, log: &Path, port: u16) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let storage = dir.join("storage");
        let (process, address) = launch(program, dir, &storage, log).await?;
        Ok(Self {
            first: Arc::new(FaultProxy::start(port, address)?),
            others: Mutex::default(),
            direct: Distribution::new(address),
            process,
        })
    }

    /// The host that it has from its start.
    pub fn first_host(&self) -> Arc<FaultProxy> {
        Arc::clone(&self.first)
    }

    /// Another host of the same images, with faults, credentials and counts of its own. It listens as long as the
    /// registry, and as long as somebody holds it.
    ///
    /// # Errors
    /// No port is free.
    pub fn add_host(&self) -> anyhow::Result<Arc<FaultProxy>> {
        let host = Arc::new(FaultProxy::start(0, self.direct.address())?);
        // Nothing that happens under this lock leaves half a change.
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.push(Arc::clone(&host));
        Ok(host)
    }

    /// Puts an image under a tag and returns its digest. What the registry has is not sent again.
    ///
    /// # Errors
    /// The registry refuses.
    pub async fn push(
        &self,
        image: &Content,
        repository: &str,
        tag: &str,
    ) -> anyhow::Result<String> {
        for blob in &image.blobs {
            self.direct.put_blob(repository, blob).await?;
        }
        self.put_manifest(&image.manifest, repository, tag).await
    }

    /// Puts a manifest or index whose parts are there already under a tag or its own digest, and
    /// returns its digest.
    ///
    /// # Errors
    /// The registry refuses.
    pub async fn put_manifest(
        &self,
        manifest: &Manifest,
        repository: &str,
        reference: &str,
    ) -> anyhow::Result<String> {
        self.direct
            .put_manifest(repository, reference, manifest)
            .await
    }

    /// What a tag points to.
    ///
    /// # Errors
    /// There is no such tag.
    pub async fn digest_of(&self, repository: &str, tag: &str) -> anyhow::Result<String> {
        self.direct.digest(repository, tag).await
    }

    /// Ends the registry and closes its ports, but for those of hosts that somebody holds.
    ///
    /// # Errors
    /// It cannot be signalled.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.process.stop(STOP).await.map(drop)
    }
}

/// Starts the registry on a free port. That port may be gone until the registry binds it, so a
/// registry that ends at once is started again on another one.
async fn launch(
    program: &Path,
    dir: &Path,
    storage: &Path,
    log: &Path,
) -> anyhow::Result<(Process, SocketAddr)> {
    const ATTEMPTS: usize = 3;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free_port()?));
        let config = dir.join("registry.yml");
        std::fs::write(&config, configuration(storage, address))?;
        let mut process = Spec::new("registry", program, log)
            .arg("serve")
            .arg(&config)
            .spawn()
            .await?;
        match ready(&mut process, address).await {
            Ok(()) => return Ok((process, address)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.context("no attempt was made")?)
}

/// The registry's configuration: JSON, which is YAML too.
fn configuration(storage: &Path, address: SocketAddr) -> String {
    json!({
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": true}},
        "storage": {
            "filesystem": {"rootdirectory": storage},
            "delete": {"enabled": true},
            "maintenance": {"uploadpurging": {"enabled": false}},
        },
        // Signs the state of uploads; without one the registry makes one up and warns.
        "http": {"addr": address.to_string(), "secret": "no secret: loopback only"},
    })
    .to_string()
}

async fn ready(process: &mut Process, address: SocketAddr) -> anyhow::Result<()> {
    let direct = Distribution::new(address);
    until("the registry answers", START, || {
        let runs = process.check();
        async move {
            runs?;
            Ok(direct.ping().await.ok())
        }
    })
    .await
}

#[cfg(test)]
mod tests;
