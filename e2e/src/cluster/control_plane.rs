//! etcd, kube-apiserver, and on demand kube-controller-manager and kube-scheduler.
//!
//! Set up as a careful administrator would: TLS everywhere, clients known by certificates, the
//! Node and RBAC authorizers, NodeRestriction, tokens bound to their pods, an audit log.

mod setup;

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::kubeconfig;
use super::namespace::Namespace;
use super::part::Part;
use super::run::Run;
use super::wait::until;
use crate::pki::{Authority, Subject, TokenKeys};
use crate::process;
use setup::Setup;
use trylatest_bootstrap::Tools;

/// How long the API server may take to be ready; 4 s is usual on 2 cores, more when several start.
const READY: Duration = Duration::from_secs(60);

/// The user by whom the API server is known to kubelets.
const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// What is asked of a control plane.
#[derive(Clone, Debug)]
pub struct ControlPlaneOptions {
    /// Start kube-controller-manager: service accounts, Deployments, garbage collection.
    pub controllers: bool,
    /// Start kube-scheduler.
    pub scheduler: bool,
}

impl Default for ControlPlaneOptions {
    fn default() -> Self {
        Self {
            controllers: true,
            scheduler: true,
        }
    }
}

/// A running control plane. Dropping it kills it.
pub struct ControlPlane {
    etcd: Part,
    apiserver: Part,
    controllers: Option<Part>,
    scheduler: Option<Part>,
    authority: Authority,
    server: SocketAddr,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    audit: PathBuf,
    client: Client,
}

impl ControlPlane {
    /// Starts it in a run, and waits until the API server is ready.
    ///
    /// # Errors
    /// If a part does not start, or the API server is not ready in a minute; the message holds the
    /// last lines that it printed.
    pub async fn start(
        tools: &Tools,
        run: &Run,
        options: ControlPlaneOptions,
    ) -> anyhow::Result<Self> {
        let pki = run.sub("pki")?;
        let authority = Authority::new(&pki, "kubernetes")?;
        let server = SocketAddr::from((run.slot().address(), run.slot().apiserver_port()?));
        let admin = authority.issue(
            "admin",
            &Subject {
                name: "admin",
                group: Some("system:masters"),
                serves: &[],
            },
        )?;
        let kubeconfig =
            kubeconfig::write(&run.folder().join("kubeconfig"), server, &authority, &admin)?;
        let setup = Setup {
            tools,
            run,
            authority: &authority,
            server,
        };
        let (etcd, etcd_flags) = setup.etcd().await?;
        let keys = TokenKeys::new(&pki)?;
        let audit = run.logs().join("audit.log");
        let apiserver = setup.apiserver(&etcd_flags, &keys, &audit).await?;
        let client = client(&kubeconfig).await?;
        until("the API server is ready", READY, || async {
            apiserver.check().await?;
            etcd.check().await?;
            Ok(is_ready(&client).await.then_some(()))
        })
        .await?;
        allow_kubelet_access(&client).await?;
        let controllers = if options.controllers {
            Some(setup.controllers(&keys).await?)
        } else {
            None
        };
        let scheduler = if options.scheduler {
            Some(setup.scheduler().await?)
        } else {
            None
        };
        let kubectl = tools.kubectl();
        Ok(Self {
            etcd,
            apiserver,
            controllers,
            scheduler,
            authority,
            server,
            kubeconfig,
            kubectl,
            audit,
            client,
        })
    }

    /// A client with an administrator's rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The kubeconfig of the administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The folder of kubectl, and of the other programs that were built.
    pub fn programs(&self) -> &Path {
        self.kubectl.parent().unwrap_or(Path::new("."))
    }

    /// Where the API server listens.
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// The authority of the API server and its clients.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What the API server's audit log holds by now, oldest first: an object for each request that
    /// changes something, with its user, verb, object and answer.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn audit(&self) -> anyhow::Result<Vec<Value>> {
        self.audit_since(0)
    }

    /// Where the audit log ends by now, for [`ControlPlane::audit_since`].
    ///
    /// # Errors
    /// If there is none.
    pub fn audit_end(&self) -> anyhow::Result<u64> {
        let log = fs::metadata(&self.audit).context("find the audit log")?;
        Ok(log.len())
    }

    /// What was added to the audit log since it ended at `end`, oldest first. The API server writes a request down
    /// before it answers.
    ///
    /// # Errors
    /// As [`ControlPlane::audit`].
    pub fn audit_since(&self, end: u64) -> anyhow::Result<Vec<Value>> {
        let mut log = File::open(&self.audit).context("open the audit log")?;
        // After 100 MB the API server begins a new file.
        if end <= log.metadata()?.len() {
            log.seek(SeekFrom::Start(end))?;
        }
        let mut text = String::new();
        log.read_to_string(&mut text)
            .context("read the audit log")?;
        // The last line may be in the making.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let events = whole.lines().map(serde_json::from_str);
        events
            .collect::<Result<_, _>>()
            .context("read an audit event")
    }

    /// Makes a namespace whose name starts with `prefix`, with these labels, in which
    /// pods can be made.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn namespace(
        &self,
        prefix: &str,
        labels: &[(&str, &str)],
    ) -> anyhow::Result<Namespace> {
        Namespace::make(self.client(), prefix, labels, self.controllers.is_some()).await
    }

    /// Runs kubectl as the administrator and returns what it printed.
    ///
    /// # Errors
    /// If it exits non-zero; the message holds its stderr.
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.kubectl_with(args, None).await
    }

    /// The same with `input` as kubectl's stdin, for `-f -`.
    ///
    /// # Errors
    /// As [`ControlPlane::kubectl`].
    pub async fn kubectl_with(&self, args: &[&str], input: Option<&str>) -> anyhow::Result<String> {
        let config = format!("--kubeconfig={}", self.kubeconfig.display());
        let args = std::iter::once(config.as_str()).chain(args.iter().copied());
        process::run(&self.kubectl, args, input.map(str::as_bytes)).await
    }

    /// Ends the API server at once, as a crash does.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn stop_apiserver(&self) -> anyhow::Result<()> {
        self.apiserver.kill().await
    }

    /// Starts the API server again, waits until it is ready, and lets the controllers and the scheduler begin again.
    ///
    /// # Errors
    /// If it is not ready in a minute.
    pub async fn start_apiserver(&self) -> anyhow::Result<()> {
        self.apiserver.start().await?;
        self.wait_ready().await?;
        self.begin_again().await
    }

    /// Starts the controllers and the scheduler again. They would notice by themselves that the API server is back,
    /// but late after several outages: each of their watches doubles its pause with every failure within 2 minutes,
    /// from 0.8 s to 30 s, and jitter can double that (`client-go/tools/cache/reflector.go`, `defaultBackoffMax`).
    async fn begin_again(&self) -> anyhow::Result<()> {
        for part in self.controllers.iter().chain(&self.scheduler) {
            part.kill().await?;
            part.start().await?;
        }
        Ok(())
    }

    async fn wait_ready(&self) -> anyhow::Result<()> {
        until("the API server is ready again", READY, || async {
            self.apiserver.check().await?;
            Ok(is_ready(&self.client).await.then_some(()))
        })
        .await
    }

    /// Stops the API server in its tracks: connections stay, and nothing answers on them.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn freeze_apiserver(&self) -> anyhow::Result<()> {
        self.apiserver.signal(Signal::STOP).await
    }

    /// Undoes [`ControlPlane::freeze_apiserver`], and lets the controllers and the scheduler begin again.
    ///
    /// # Errors
    /// As [`ControlPlane::start_apiserver`].
    pub async fn thaw_apiserver(&self) -> anyhow::Result<()> {
        self.apiserver.signal(Signal::CONT).await?;
        self.wait_ready().await?;
        self.begin_again().await
    }

    /// Fails if a part has ended by itself.
    ///
    /// # Errors
    /// With the last lines of the part's log.
    pub async fn check(&self) -> anyhow::Result<()> {
        let always = [&self.etcd, &self.apiserver];
        for part in always
            .into_iter()
            .chain(&self.controllers)
            .chain(&self.scheduler)
        {
            part.check().await?;
        }
        Ok(())
    }

    /// Ends all parts, etcd last: an API server without etcd lingers.
    ///
    /// # Errors
    /// If one cannot be signalled.
    pub async fn stop(&self) -> anyhow::Result<()> {
        if let Some(scheduler) = &self.scheduler {
            scheduler.kill().await?;
        }
        if let Some(controllers) = &self.controllers {
            controllers.kill().await?;
        }
        // Nothing in its memory is worth the minute it may take to end in order.
        self.apiserver.kill().await?;
        self.etcd.kill().await
    }
}

async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn is_ready(client: &Client) -> bool {
    let Ok(request) = http_get("/readyz") else {
        return false;
    };
    client.request_text(request).await.is_ok()
}

fn http_get(path: &str) -> anyhow::Result<hyper::Request<Vec<u8>>> {
    Ok(hyper::Request::get(path).body(Vec::new())?)
}

/// Lets the API server reach into kubelets, for `kubectl logs` and `kubectl exec`.
async fn allow_kubelet_access(client: &Client) -> anyhow::Result<()> {
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": KUBELET_CLIENT},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:kubelet-api-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": KUBELET_CLIENT}],
    }))?;
    let api: Api<ClusterRoleBinding> = Api::all(client.clone());
    api.create(&PostParams::default(), &binding)
        .await
        .context("bind the API server's role on kubelets")?;
    Ok(())
}
