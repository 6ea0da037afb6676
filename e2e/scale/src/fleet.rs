//! The nodes and their agents: each with a pod of its own, a token that is bound to it, a connection and an index.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tempfile::TempDir;
use trylatest::agent::simulation::{SimulatedAgent, SimulatedNode};
use trylatest_containerd::fake::FakeContainerd;

use crate::images::{self, Registry};
use crate::plane::Plane;
use crate::traffic::Traffic;

/// How many agents are started at once.
const AT_ONCE: usize = 16;

const NAMESPACE: &str = "trylatest-system";
const ACCOUNT: &str = "trylatest-agent";

/// Where indexes are kept: thousands of them, each of which waits for the disk, would measure the disk.
const STATE: &str = "/dev/shm";

/// Files of an agent: its connection, its index, and one to spare. And those of the rest.
const FILES: (u64, u64) = (3, 512);

pub(crate) struct Fleet {
    agents: Vec<SimulatedAgent>,
    nodes: Vec<FakeContainerd>,
    admin: Client,
    pub(crate) traffic: Arc<Traffic>,
    state: TempDir,
}

/// The name of a node.
pub(crate) fn node(number: usize) -> String {
    format!("node-{number:05}")
}

impl Fleet {
    /// Makes so many nodes and starts their agents.
    pub(crate) async fn start(plane: &Plane, size: usize) -> anyhow::Result<Self> {
        enough_files(size)?;
        let mut fleet = Self {
            agents: Vec::with_capacity(size),
            nodes: Vec::with_capacity(size),
            admin: plane.client(None).await?,
            traffic: Traffic::new(size),
            state: tempfile::tempdir_in(STATE).context("make a folder for the indexes")?,
        };
        let started: Vec<_> = stream::iter(0..size)
            .map(|number| fleet.start_one(plane, number))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        (fleet.agents, fleet.nodes) = started.into_iter().unzip();
        Ok(fleet)
    }

    async fn start_one(
        &self,
        plane: &Plane,
        number: usize,
    ) -> anyhow::Result<(SimulatedAgent, FakeContainerd)> {
        let name = node(number);
        self.make_node(&name).await.context("make a node")?;
        let token = self.token(&name).await.context("make an agent's pod")?;
        let runtime = images::node()?;
        let client = plane.client(Some(token)).await?;
        let agent = SimulatedNode {
            state_dir: self.state.path().join(&name),
            client: self.traffic.counting(client, number),
            pod: (NAMESPACE.to_owned(), name.clone()),
            name,
            runtime: runtime.clone(),
        };
        Ok((agent.start().await?, runtime))
    }

    async fn make_node(&self, name: &str) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.admin.clone());
        let node = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        nodes.create(&PostParams::default(), &node).await?;
        let info = [
            "machineID",
            "systemUUID",
            "bootID",
            "kernelVersion",
            "osImage",
            "containerRuntimeVersion",
            "kubeProxyVersion",
            "operatingSystem",
            "architecture",
        ];
        let mut info: serde_json::Map<_, _> = info
            .into_iter()
            .map(|key| (key.to_owned(), json!("")))
            .collect();
        info.insert("kubeletVersion".to_owned(), json!("v1.37.2"));
        let status = json!({"status": {
            "nodeInfo": info, "conditions": [{"type": "Ready", "status": "True"}],
        }});
        let (params, patch) = (PatchParams::default(), Patch::Merge(status));
        nodes.patch_status(name, &params, &patch).await?;
        Ok(())
    }

    /// Makes the agent's pod, and a token as its kubelet would give it.
    async fn token(&self, node: &str) -> anyhow::Result<String> {
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), NAMESPACE);
        let pod = serde_json::from_value(json!({
            "metadata": {"name": node},
            "spec": {
                "nodeName": node, "serviceAccountName": ACCOUNT,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "agent", "image": images::AGENT}],
            },
        }))?;
        let pod = pods.create(&PostParams::default(), &pod).await?;
        let request: TokenRequest = serde_json::from_value(json!({
            "metadata": {},
            "spec": {"audiences": [], "expirationSeconds": 24 * 3600, "boundObjectRef": {
                "kind": "Pod", "apiVersion": "v1", "name": node, "uid": pod.metadata.uid,
            }},
        }))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin.clone(), NAMESPACE);
        let params = PostParams::default();
        let made = accounts.create_token_request(ACCOUNT, &params, &request);
        let token = made.await?.status.and_then(|status| status.token);
        token.context("no token")
    }

    pub(crate) fn size(&self) -> usize {
        self.agents.len()
    }

    /// Every node finds the registry so from now on.
    pub(crate) fn find(&self, registry: Registry) -> anyhow::Result<()> {
        self.nodes
            .iter()
            .try_for_each(|node| images::set(node, registry))
    }

    /// Fails if an agent has ended by itself.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.agents.iter_mut().find_map(SimulatedAgent::ended) {
            Some(error) => Err(error.context("an agent has ended")),
            None => Ok(()),
        }
    }

    /// How many nodes say that pods run copies that they fell back to.
    pub(crate) async fn fallen_back(&self) -> anyhow::Result<usize> {
        let nodes: Api<Node> = Api::all(self.admin.clone());
        let nodes = nodes.list(&ListParams::default()).await?;
        let says = |node: &Node| {
            let status = node.status.as_ref();
            let conditions = status.and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().any(|condition| {
                condition.type_ == trylatest_core::keys::NODE_CONDITION
                    && condition.status == "True"
            })
        };
        Ok(nodes.iter().filter(|node| says(node)).count())
    }

    /// Ends all agents as SIGTERM does.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        let stopped = stream::iter(self.agents).map(anyhow::Ok);
        stopped
            .try_for_each_concurrent(AT_ONCE, SimulatedAgent::stop)
            .await
    }

    /// What the indexes take.
    pub(crate) fn index_bytes(&self) -> anyhow::Result<u64> {
        use std::os::unix::fs::MetadataExt as _;

        let mut bytes = 0;
        for folder in std::fs::read_dir(self.state.path())? {
            let index = folder?.path().join("index.redb");
            bytes += index.metadata()?.blocks() * 512;
        }
        Ok(bytes)
    }
}

/// Lets this process have as many files as it needs, if it may.
fn enough_files(agents: usize) -> anyhow::Result<()> {
    let (each, rest) = FILES;
    let needed = agents as u64 * each + rest;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    ensure!(
        limit.maximum.is_none_or(|maximum| maximum >= needed),
        "{agents} agents need {needed} open files, and this process may have {:?} (ulimit -Hn)",
        limit.maximum
    );
    let current = Some(needed);
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).context("allow more open files")
}
