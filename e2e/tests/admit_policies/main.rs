//! What the manifests do on a real API server: pods and templates as users write them, as they are
//! stored, and what the agent may change; and what the agent notices of that API server. No kubelet
//! runs here.

mod always;
mod existing;
mod hold;
mod install;
mod kubectl;
mod neutral;
mod others;
mod owned;
mod pods;
mod quiet;
mod rights;
mod space;
mod templates;
mod uninstall;
mod volumes;
mod watch;

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

/// kubectl's words for a try.
const DRY_RUN: [&str; 4] = ["create", "--dry-run=server", "-f", "-"];

fn template_probe() -> Value {
    json!({
        "apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "probe"},
        "template": {"spec": {"containers": [space::container("app", "TryLatest")]}},
    })
}

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
        self.templates_are_rewritten().await?;
        let probe = space::pod("probe", "TryLatest");
        self.accepts_soon(&DRY_RUN, &probe).await?;
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

    /// Waits until the policy for templates works.
    async fn templates_are_rewritten(&self) -> anyhow::Result<()> {
        self.accepts_soon(&DRY_RUN, &template_probe()).await
    }

    /// Waits until it does not: the literal value is the API server's to refuse then.
    async fn templates_are_refused(&self) -> anyhow::Result<()> {
        wait::until("the policy for templates is gone", SOON, || async {
            let probe = template_probe().to_string();
            let answer = self.plane.kubectl_with(&DRY_RUN, Some(&probe)).await;
            Ok(answer.err())
        })
        .await
        .map(|_| ())
    }

    /// Runs something while the mutating policies are away. Nothing else may run.
    async fn without_policies(
        &self,
        test: impl AsyncFnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let gone = ["pods", "pod-updates", "templates"].map(|name| format!("trylatest-{name}"));
        let bindings: Vec<_> = gone.iter().map(String::as_str).collect();
        let delete = ["delete", "mutatingadmissionpolicybinding"];
        self.plane
            .kubectl(&[&delete[..], &bindings[..]].concat())
            .await?;
        let outcome = async {
            self.templates_are_refused().await?;
            test().await
        }
        .await;
        self.install().await?;
        outcome
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
    if let Some(code) = kubectl::as_program() {
        return code;
    }
    let mut suite = Suite::new();
    suite.run(
        [
            install::cases(),
            pods::cases(),
            hold::cases(),
            volumes::cases(),
            neutral::cases(),
            existing::cases(),
            templates::cases(),
            quiet::cases(),
            owned::cases(),
            always::cases(),
            others::cases(),
            rights::cases(),
            watch::cases(),
            kubectl::cases(),
            uninstall::cases(),
        ]
        .into_iter()
        .flatten()
        .collect(),
    );
    suite.end()
}
