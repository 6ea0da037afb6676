//! What the manifests do on a real API server: pods and templates as users write them, as they are
//! stored, and what the agent may change. No kubelet runs here.

mod existing;
mod install;
mod neutral;
mod pods;
mod rights;
mod space;
mod templates;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use trylatest_e2e::cluster::{ControlPlane, ControlPlaneOptions, Run, Tools, wait};
use trylatest_e2e::suite::{Fixture, Suite};

use crate::space::Space;

/// How long the API server and the controllers may take to act on something; a second is usual.
const SOON: Duration = Duration::from_secs(30);

/// An API server with the manifests applied.
struct Api {
    plane: ControlPlane,
    /// `manifests/`.
    manifests: PathBuf,
    run: Run,
}

impl Api {
    /// A namespace for one test.
    async fn space(&self, prefix: &str) -> anyhow::Result<Space<'_>> {
        Space::make(self, prefix, &[]).await
    }

    /// Applies the manifests, and waits until the mutating policies work; the validating ones are
    /// waited for where they are tested.
    async fn install(&self) -> anyhow::Result<()> {
        let manifests = self.manifests.display().to_string();
        self.plane.kubectl(&["apply", "-k", &manifests]).await?;
        self.policies_work().await
    }

    async fn policies_work(&self) -> anyhow::Result<()> {
        let template = json!({
            "apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "probe"},
            "template": {"spec": {"containers": [space::container("app", "TryLatest")]}},
        });
        for probe in [space::pod("probe", "TryLatest"), template] {
            self.accepts_soon(&["create", "--dry-run=server", "-f", "-"], &probe)
                .await?;
        }
        let existing = space::pod("probe", "IfNotPresent");
        let args = ["apply", "-f", "-"];
        self.plane
            .kubectl_with(&args, Some(&existing.to_string()))
            .await?;
        let again = space::pod("probe", "TryLatest");
        self.accepts_soon(&["apply", "--dry-run=server", "-f", "-"], &again)
            .await?;
        let gone = ["delete", "pod", "probe", "--now"];
        self.plane.kubectl(&gone).await.map(|_| ())
    }

    /// A policy works a moment after it was made.
    async fn accepts_soon(&self, args: &[&str], object: &Value) -> anyhow::Result<()> {
        wait::until("the policies work", SOON, || async {
            let answer = self
                .plane
                .kubectl_with(args, Some(&object.to_string()))
                .await;
            match answer {
                Err(error) if format!("{error:#}").contains("Unsupported value") => Ok(None),
                answer => answer.map(Some),
            }
        })
        .await
        .map(|_| ())
    }
}

impl Fixture for Api {
    async fn start(tools: Tools) -> anyhow::Result<Self> {
        let run = Run::start(tools.root()).await?;
        let options = ControlPlaneOptions {
            scheduler: false,
            ..ControlPlaneOptions::default()
        };
        let plane = ControlPlane::start(&tools, &run, options).await?;
        let api = Self {
            plane,
            manifests: tools.root().join("manifests"),
            run,
        };
        api.install().await.context("install the manifests")?;
        Ok(api)
    }

    async fn stop(&self, well: bool) -> anyhow::Result<()> {
        self.plane.stop().await?;
        self.run.end(!well).await
    }

    fn logs(&self) -> PathBuf {
        self.run.logs()
    }
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.run(
        [
            install::cases(),
            pods::cases(),
            neutral::cases(),
            existing::cases(),
            templates::cases(),
            rights::cases(),
        ]
        .into_iter()
        .flatten()
        .collect(),
    );
    suite.exit_code()
}
