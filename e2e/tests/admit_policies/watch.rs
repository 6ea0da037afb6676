//! The agent's watch of its pods: whoever stops answering is noticed, and who answers is not asked
//! again.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use trylatest_containerd::kubelet_failure;
use trylatest_e2e::suite::Case;
use trylatest_k8s::{PodChange, WatchError, client, watch_pods};

use crate::space::{Space, container, pod_of};
use crate::{Api, SOON};

pub(crate) fn cases() -> Vec<Case<Api>> {
    vec![
        Case::exclusive("a_stopped_api_server_is_noticed", a_stopped_api_server),
        Case::new("a_silent_connection_is_noticed", a_silent_connection),
    ]
}

/// How long nobody may answer before the agent notices.
const NOTICED: Duration = Duration::from_secs(15);

/// A node and the watch of its pods.
struct Watched<'a> {
    space: Space<'a>,
    changes: BoxStream<'static, Result<PodChange, WatchError>>,
}

impl<'a> Watched<'a> {
    /// Begins to watch through `server`, which leads to the API server.
    async fn begin(api: &'a Api, prefix: &str, server: SocketAddr) -> anyhow::Result<Self> {
        let space = api.space(prefix).await?;
        let kubeconfig = Kubeconfig::read_from(api.plane.kubeconfig())?;
        let options = KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        config.cluster_url = format!("https://{server}").parse()?;
        config.tls_server_name = Some(api.plane.server().ip().to_string());
        let changes = watch_pods(client(config)?, space.name(), kubelet_failure).boxed();
        let mut watched = Self { space, changes };
        // Its API server may be slow; the watch is shown to work before anything is done to it.
        watched.create("first").await?;
        watched.sees("first").await?;
        Ok(watched)
    }

    /// Creates a pod on the node.
    async fn create(&mut self, name: &str) -> anyhow::Result<()> {
        let spec = json!({
            "nodeName": self.space.name(), "tolerations": [{"operator": "Exists"}],
            "containers": [container("app", "TryLatest")],
        });
        let pod = pod_of(name, &json!({}), &spec);
        self.space.create(&pod).await.map(|_| ())
    }

    /// Waits until the watch has shown a pod, in a list or by itself.
    async fn sees(&mut self, name: &str) -> anyhow::Result<()> {
        let seen = async {
            while let Some(change) = self.changes.next().await {
                let pods = match change {
                    Ok(PodChange::Reset(pods)) => pods,
                    Ok(PodChange::Seen(pod)) => vec![*pod],
                    Ok(PodChange::Gone(_)) | Err(_) => continue,
                };
                if pods.iter().any(|pod| pod.id.name == name) {
                    return Ok(());
                }
            }
            anyhow::bail!("the watch has ended")
        };
        tokio::time::timeout(SOON, seen)
            .await
            .with_context(|| format!("the watch does not show {name}"))?
    }

    /// Waits until the watch says that it is interrupted.
    async fn notices(&mut self) -> anyhow::Result<()> {
        let interrupted = async {
            while let Some(change) = self.changes.next().await {
                if change.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(NOTICED, interrupted)
            .await
            .context("nobody notices")
    }
}

/// Its kernel goes on to acknowledge whatever is sent: only its process could answer.
async fn a_stopped_api_server(api: Arc<Api>) -> anyhow::Result<()> {
    let mut watched = Watched::begin(&api, "stopped", api.plane.server()).await?;
    api.plane.freeze_apiserver().await?;
    let noticed = watched.notices().await;
    api.plane.thaw_apiserver().await?;
    noticed?;
    watched.create("later").await?;
    watched.sees("later").await
}

/// As behind a load balancer that has forgotten the connection, and takes new ones.
async fn a_silent_connection(api: Arc<Api>) -> anyhow::Result<()> {
    let proxy = Proxy::start(api.plane.server()).await?;
    let mut watched = Watched::begin(&api, "silent", proxy.address).await?;
    ensure!(proxy.connections() == 1, "{}", proxy.connections());
    proxy.silence();
    watched.create("behind").await?;
    watched.notices().await?;
    watched.sees("behind").await?;
    ensure!(proxy.connections() == 2, "{}", proxy.connections());
    Ok(())
}

/// A TCP proxy. What is open when it falls silent stays open, and nothing comes through any more.
struct Proxy {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    silence: watch::Sender<usize>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    async fn start(server: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let accepted = Arc::new(AtomicUsize::new(0));
        let (silence, silent) = watch::channel(0);
        let mut tasks = JoinSet::new();
        let counted = accepted.clone();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((inside, _)) = listener.accept().await {
                let number = counted.fetch_add(1, Ordering::Relaxed);
                open.spawn(carry(inside, server, number, silent.clone()));
            }
        });
        Ok(Self {
            address,
            accepted,
            silence,
            _tasks: tasks,
        })
    }

    fn connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Nothing comes through on the connections of by now.
    fn silence(&self) {
        self.silence.send_replace(self.connections());
    }
}

async fn carry(
    mut inside: TcpStream,
    server: SocketAddr,
    number: usize,
    mut silent: watch::Receiver<usize>,
) {
    let Ok(mut outside) = TcpStream::connect(server).await else {
        return;
    };
    let is_silent = tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut inside, &mut outside) => false,
        silent = silent.wait_for(|silent| *silent > number) => silent.is_ok(),
    };
    if is_silent {
        // Until the proxy goes: both ends are held, and neither is read.
        std::future::pending::<()>().await;
    }
}
