//! The agent's tasks on a node that is made up: many of them fit into one process, to see what a fleet costs the API
//! server.
//!
//! Everything that speaks to the API server is what [`super::run`] starts, with the flags' defaults and an index on
//! disk. Left out are the HTTP server and the socket, which wait for requests, the log and the signals. containerd is in
//! memory, and whoever simulates decides how its pulls go. The gate's image is not made but kept as it was pulled.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use tokio_util::sync::CancellationToken;
use trylatest_containerd::fake::FakeContainerd;
use trylatest_k8s::Client;

use super::config::ConfigFile;
use super::health::Health;
use super::metrics::Metrics;
use super::{Node, Started, Tasks, VERSION, early_end, made};
use crate::args::{Cli, Command};

/// The node of a simulated agent.
pub struct SimulatedNode {
    /// The node's name; the API server has a node of this name.
    pub name: String,
    /// Namespace and name of the pod that the agent runs in, which is there, too.
    pub pod: (String, String),
    /// The folder of the agent's index.
    pub state_dir: PathBuf,
    /// What has the pod's rights.
    pub client: Client,
    /// The node's containerd.
    pub runtime: FakeContainerd,
}

/// A simulated agent at work. Dropping it kills it.
pub struct SimulatedAgent {
    tasks: Tasks,
    stop: CancellationToken,
}

impl SimulatedNode {
    /// Starts the node's agent.
    ///
    /// # Errors
    /// The state folder cannot be made.
    pub async fn start(self) -> anyhow::Result<SimulatedAgent> {
        let (namespace, pod) = &self.pod;
        let state_dir = made(self.state_dir)?;
        let flags = [
            format!("--node-name={}", self.name),
            format!("--pod-namespace={namespace}"),
            format!("--pod-name={pod}"),
            format!("--state-dir={}", state_dir.display()),
        ];
        let words = ["trylatest", "agent"].map(str::to_owned);
        let cli = Cli::try_parse_from(words.into_iter().chain(flags)).context("the flags")?;
        let Command::Agent(args) = cli.command else {
            anyhow::bail!("another command than `agent`");
        };
        let metrics = Arc::new(Metrics::new(VERSION)?);
        let config = ConfigFile::open(args.config.clone(), Arc::clone(&metrics)).await;
        let node = Node {
            client: self.client,
            runtime: Arc::new(self.runtime),
            metrics,
            health: Arc::new(Health::new()),
            // Not a program: thousands of agents would read this process's file.
            program: "/dev/null".into(),
        };
        let stop = CancellationToken::new();
        let Started { tasks, .. } = Box::pin(node.start(*args, config, &stop)).await;
        Ok(SimulatedAgent { tasks, stop })
    }
}

impl SimulatedAgent {
    /// Why the agent has ended by itself, if it has.
    pub fn ended(&mut self) -> Option<anyhow::Error> {
        let ended = self.tasks.try_join_next()?;
        Some(early_end(Some(ended)))
    }

    /// Ends it as SIGTERM does; it writes what is decided.
    ///
    /// # Errors
    /// A task that has failed.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if !matches!(ended, Ok((_, Ok(())))) {
                return Err(early_end(Some(ended)));
            }
        }
        Ok(())
    }
}
