//! A control plane with TryLatest's manifests and no node.

use std::time::Duration;

use anyhow::Context as _;
use kube::Client;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use serde_json::json;
use trylatest_e2e::cluster::{ControlPlane, ControlPlaneOptions, Run, Tools, wait};

/// How long the policies may take to work; a second is usual.
const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Plane {
    control: ControlPlane,
    run: Run,
}

impl Plane {
    /// Without controllers: they would move the pods of nodes that send no heartbeat.
    pub(crate) async fn start(tools: &Tools) -> anyhow::Result<Self> {
        let run = Run::start(tools.root()).await?;
        let options = ControlPlaneOptions {
            controllers: false,
            scheduler: false,
        };
        let control = ControlPlane::start(tools, &run, options).await?;
        let plane = Self { control, run };
        let manifests = tools.root().join("manifests").display().to_string();
        let apply = ["apply", "-k", &manifests];
        plane.control.kubectl(&apply).await?;
        plane.policies_work().await?;
        Ok(plane)
    }

    pub(crate) fn control(&self) -> &ControlPlane {
        &self.control
    }

    async fn policies_work(&self) -> anyhow::Result<()> {
        let namespace = self.control.namespace("probe", &[]).await?;
        let probe = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "probe", "namespace": namespace.name()},
            "spec": {"containers": [{"name": "app", "image": "app", "imagePullPolicy": "TryLatest"}]},
        });
        let probe = probe.to_string();
        let create = ["create", "--dry-run=server", "-f", "-"];
        wait::until("the policies work", SOON, || async {
            let answer = self.control.kubectl_with(&create, Some(&probe)).await;
            match answer {
                Err(error) if format!("{error:#}").contains("Unsupported value") => Ok(None),
                answer => answer.map(Some),
            }
        })
        .await
        .map(drop)
    }

    /// A client with a connection of its own and the agent's ways to notice silence: the administrator's, or with the
    /// rights of this token.
    pub(crate) async fn client(&self, token: Option<String>) -> anyhow::Result<Client> {
        let kubeconfig = Kubeconfig::read_from(self.control.kubeconfig())?;
        let options = KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        if let Some(token) = token {
            config.auth_info = AuthInfo {
                token: Some(token.into()),
                ..AuthInfo::default()
            };
        }
        trylatest_k8s::client(config).context("make a client")
    }

    pub(crate) async fn stop(&self, well: bool) -> anyhow::Result<()> {
        self.control.stop().await?;
        self.run.end(!well).await
    }
}
