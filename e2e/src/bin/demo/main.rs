//! `cargo demo`: the whole story on a real kubelet, told as a user would see it.

mod step;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use tokio::time::Instant;
use trylatest_e2e::cluster::{Cluster, ContainerdVersion, Namespace, Options, Tools, wait};
use trylatest_e2e::install::Install;
use trylatest_e2e::registry::{Access, Fault, Scheme, User};
use trylatest_e2e::testimage;
use trylatest_e2e::workload::{Workloads, is_running, release};

use crate::step::{Expected, Ran, Seen, Step, as_expected, falls_back, handed_over, says};

/// Show what TryLatest does, on a real one-node cluster on this machine.
#[derive(Parser)]
#[command(name = "cargo demo", version)]
struct Args {
    /// Leave the cluster running at the end, and print how to use it
    #[arg(long)]
    keep: bool,

    /// Which containerd version runs on the node
    #[arg(long, value_enum, default_value_t)]
    containerd: ContainerdVersion,

    /// The registry's port on 127.0.0.1; 0 picks a free one
    #[arg(long, default_value_t = PORT)]
    registry_port: u16,

    /// Where to write the steps as JSON
    #[arg(long, default_value = "target/demo.json")]
    json: PathBuf,
}

/// The user's manifest: what the README shows, as a Deployment.
const MANIFEST: &str = include_str!("../../../demo/app.yaml");

/// The same with `Always`, for comparison. It has an image of its own that shares nothing with ours:
/// a download for one does not help the other.
const ALWAYS: &str = "plain-always";
const OURS: &str = "my-app";
const REPOSITORIES: [&str; 2] = ["my/app", "plain/always"];

/// The registry's port in the manifest.
const PORT: u16 = 5000;

/// How long a restart may take. The worst of ours is the stall deadline and two container starts.
const LIMIT: Duration = Duration::from_secs(30);

/// How long a gate honours a release by default, and a second.
const FRESHNESS: Duration = Duration::from_secs(121);

/// How long to wait for `Always`: longer than ours takes; it would hang for ever.
const ALWAYS_LIMIT: Duration = Duration::from_secs(12);

struct Demo {
    cluster: Cluster,
    work: Workloads,
    /// The digest of each version of our image.
    pushed: BTreeMap<&'static str, String>,
    steps: Vec<Step>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new();
    match runtime.map(|runtime| runtime.block_on(run(args))) {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::FAILURE,
        Ok(Err(error)) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<bool> {
    let tools = Tools::locate_here()?;
    say(
        "Starting etcd, kube-apiserver, controller-manager, scheduler, containerd, a registry and a kubelet",
    );
    let cluster = Cluster::start(
        &tools,
        Options {
            containerd: args.containerd,
            registry_port: args.registry_port,
            ..Options::default()
        },
    )
    .await?;
    say("Installing TryLatest: ctr images import, kubectl apply -k");
    Install::new(&cluster, &tools, &[]).await?;
    let work = Workloads::from(Namespace::existing(cluster.client(), "default"));
    let mut demo = Demo {
        cluster,
        work,
        pushed: BTreeMap::new(),
        steps: Vec::new(),
    };
    let told = Box::pin(demo.tell(&tools)).await;
    demo.write(&args.json)?;
    let ok = told.is_ok() && demo.steps.iter().all(|step| step.ok);
    demo.summary();
    if let Err(error) = &told {
        eprintln!("demo: {error:#}");
    }
    if args.keep {
        demo.cluster.keep_until_interrupted().await?;
    }
    if !ok {
        eprintln!("logs are kept in {}", demo.cluster.dir().display());
    }
    demo.cluster.stop(ok).await?;
    Ok(ok)
}

impl Demo {
    async fn tell(&mut self, tools: &Tools) -> anyhow::Result<()> {
        self.push(tools, "v1").await?;
        say(
            "A user applies this Deployment, and the same one with imagePullPolicy: Always for comparison",
        );
        println!("{}", indent(&self.manifest()));
        self.first_start().await?;
        self.step("restart, the tag unchanged", as_expected("unchanged", "v1"))
            .await?;

        self.push(tools, "v2").await?;
        self.step("restart, the tag moved", as_expected("fresh", "v2"))
            .await?;

        for (name, fault, class) in [
            ("the registry is closed", Fault::Closed, "network"),
            (
                "the registry accepts and never answers",
                Fault::NeverAnswers,
                "timeout",
            ),
            ("the registry answers 404", Fault::NotFound, "not-found"),
        ] {
            self.cluster.registry().fault(fault).await?;
            self.step(name, falls_back(class, "v2")).await?;
            // The kubelet pulls one image after the other, even for pods that are gone: a pull that still
            // hangs would be in the way of the next step.
            self.cluster.registry().hang_up().await?;
            self.cluster.registry().heal().await?;
        }
        Box::pin(self.reboot()).await?;

        self.push(tools, "v3").await?;
        self.step(
            "the registry is back, the tag moved meanwhile",
            as_expected("fresh", "v3"),
        )
        .await?;
        Box::pin(self.private(tools)).await
    }

    /// The images become private, and then the registry goes away.
    async fn private(&mut self, tools: &Tools) -> anyhow::Result<()> {
        say("The images become private, and the namespace's service account gets a pull secret");
        let user = User::new("alice", "a-password");
        let registry = self.cluster.registry();
        let host = registry.host();
        self.work.pull_secret("registry", &host, &user).await?;
        let secrets = r#"{"imagePullSecrets": [{"name": "registry"}]}"#;
        self.show(&["patch", "serviceaccount", "default", "-p", secrets])
            .await;
        for repository in REPOSITORIES {
            let access = Access::new(Scheme::Basic, std::slice::from_ref(&user));
            self.cluster.registry().protect(repository, access);
        }
        self.push(tools, "v4").await?;
        self.step(
            "restart, the image is private and the tag moved",
            handed_over("fresh", "v4"),
        )
        .await?;
        self.step(
            "restart, the image is private and the tag unchanged",
            handed_over("unchanged", "v4"),
        )
        .await?;
        self.cluster.registry().fault(Fault::Closed).await?;
        let name = "restart, the image is private and the registry is closed";
        self.step(name, falls_back("network", "v4")).await?;
        self.cluster.registry().heal().await
    }

    /// The user's manifest, for the registry's port.
    fn manifest(&self) -> String {
        let host = self.cluster.registry().host();
        MANIFEST.replace(&format!("127.0.0.1:{PORT}"), &host)
    }

    /// Applies both Deployments on a node that has never seen their images.
    async fn first_start(&mut self) -> anyhow::Result<()> {
        let name = "first start, the image is not on the node";
        say(name);
        let manifest = self.manifest();
        let ours = self.apply(OURS, &manifest).await?;
        let always = manifest
            .replace(OURS, ALWAYS)
            .replace(REPOSITORIES[0], REPOSITORIES[1])
            .replace("TryLatest", "Always");
        let always = self.apply(ALWAYS, &always).await?;
        let pod = self.work.current(OURS).await?;
        let ran = Ran {
            pod: pod.metadata.name.unwrap_or_default(),
            ours: Some(ours),
            always: Some(always),
        };
        self.finish(name, as_expected("fresh", "v1"), ran).await
    }

    /// Restarts both Deployments, one after the other so that they do not share the cores, and shows
    /// what a user sees.
    async fn step(&mut self, name: &'static str, expected: Expected) -> anyhow::Result<()> {
        say(name);
        let (pod, ours) = self.work.restart(OURS, LIMIT).await?;
        let (_, always) = self.work.restart(ALWAYS, ALWAYS_LIMIT).await?;
        self.finish(name, expected, Ran { pod, ours, always }).await
    }

    /// Reboots the node while the registry is closed.
    async fn reboot(&mut self) -> anyhow::Result<()> {
        let name = "the node reboots while the registry is closed";
        say(name);
        for deployment in [OURS, ALWAYS] {
            let (_, ran) = self.work.restart(deployment, LIMIT).await?;
            ran.with_context(|| format!("{deployment} does not run before the reboot"))?;
        }
        let pod = self.work.current(OURS).await?;
        let plain = self.work.current(ALWAYS).await?;
        self.until_stale(&pod).await?;
        self.cluster.registry().fault(Fault::Closed).await?;
        self.cluster.reboot().await?;
        let (ours, always) = tokio::join!(
            self.work.runs_again(&pod, LIMIT),
            self.work.runs_again(&plain, ALWAYS_LIMIT)
        );
        let pod = pod.metadata.name.unwrap_or_default();
        self.finish(name, falls_back("network", "v2"), Ran { pod, ours, always })
            .await?;
        self.cluster.registry().heal().await
    }

    /// Shows a step, and records whether it showed what it should.
    async fn finish(
        &mut self,
        name: &'static str,
        expected: Expected,
        ran: Ran,
    ) -> anyhow::Result<()> {
        println!(
            "  TryLatest: {}   Always: {}\n",
            running_after(ran.ours, LIMIT),
            running_after(ran.always, ALWAYS_LIMIT)
        );
        let seen = self.see(expected, &ran.pod).await?;
        let step = Step::new(name, expected, &ran, &seen);
        if let Some(problem) = &step.problem {
            println!("  NOT AS IT SHOULD BE: {problem}");
        }
        self.steps.push(step);
        Ok(())
    }

    /// Prints what a user sees of our pod and of the node, once it is there.
    async fn see(&self, expected: Expected, pod: &str) -> anyhow::Result<Seen> {
        let app_log = self.work.wait_log(pod, "my-container", LIMIT).await;
        let gate_log = self.show(&["logs", pod, "-c", "trylatest-gate"]).await;
        self.show(&["logs", pod, "-c", "my-container"]).await;
        let event = format!("TryLatest{}", upper_first(expected.outcome));
        let event = self.work.wait_event(pod, &event, LIMIT).await.ok();
        let shown = event.as_deref().unwrap_or("none");
        println!("{}", indent(&format!("Event: {shown}")));
        let node = self.wait_node(expected).await.ok();
        self.show_node().await;
        Ok(Seen {
            gate_log,
            app_log: app_log.unwrap_or_default(),
            event,
            node,
            release: self
                .work
                .released(pod, "my-container")
                .await
                .unwrap_or_default(),
        })
    }

    /// Waits until the node says what this step did, and not the one before: it is written at most once
    /// in ten seconds.
    async fn wait_node(&self, expected: Expected) -> anyhow::Result<Node> {
        let nodes: Api<Node> = Api::all(self.cluster.client());
        let (name, what) = (self.cluster.node_name(), "the node says so");
        let digest = self.pushed.get(expected.version);
        let digest = digest.context("this version was not pushed")?;
        let told = |node: &Node| says(node, expected, digest);
        wait::object(nodes, &name, what, LIMIT, told).await
    }

    async fn push(&mut self, tools: &Tools, version: &'static str) -> anyhow::Result<()> {
        let host = self.cluster.registry().host();
        for repository in REPOSITORIES {
            let image = testimage::app_of_its_own(tools, &format!("{version}\n"))?;
            let registry = self.cluster.registry();
            let digest = registry.push(&image, repository, "latest").await?;
            say(&format!(
                "{host}/{repository}:latest now points to {version}, {digest}"
            ));
            if repository == REPOSITORIES[0] {
                self.pushed.insert(version, digest);
            }
        }
        Ok(())
    }

    /// Applies a manifest, and waits until its pod runs: how long that took.
    async fn apply(&self, deployment: &str, manifest: &str) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let file = self.cluster.dir().join(format!("{deployment}.yaml"));
        std::fs::write(&file, manifest)?;
        let path = file.to_str().context("the path is not valid UTF-8")?;
        let said = self.cluster.kubectl(&["apply", "-f", path]).await?;
        println!("  $ kubectl apply -f {deployment}.yaml\n{}", indent(&said));
        let running = || async {
            let pod = self.work.current(deployment).await.ok();
            Ok(pod.filter(is_running))
        };
        wait::until("the pod runs", LIMIT, running).await?;
        Ok(start.elapsed())
    }

    #[expect(clippy::disallowed_methods, reason = "the demo runs in real time")]
    /// A release is honoured for two minutes, also by a gate that runs again after a reboot. The
    /// story is about a node that was up for longer.
    async fn until_stale(&self, pod: &Pod) -> anyhow::Result<()> {
        let release = release(pod).context("the pod carries no release")?;
        let time: jiff::Timestamp = release["time"].as_str().context("no time")?.parse()?;
        let stale = time + FRESHNESS;
        let left = (jiff::Timestamp::now().duration_until(stale))
            .try_into()
            .unwrap_or(Duration::ZERO);
        println!(
            "  waiting {} s until the pod's release is stale: a node rarely reboots within two minutes of a pod's start",
            left.as_secs()
        );
        tokio::time::sleep(left).await;
        Ok(())
    }

    /// Prints a command and what it says, and returns that.
    async fn show(&self, args: &[&str]) -> String {
        println!("  $ kubectl {}", args.join(" "));
        let said = self.cluster.kubectl(args).await;
        let said = said.unwrap_or_else(|error| format!("{error:#}"));
        println!("{}", indent(&said));
        said
    }

    /// The lines of `kubectl describe node` that are ours.
    async fn show_node(&self) {
        println!("  $ kubectl describe node | grep -i trylatest");
        match self.cluster.kubectl(&["describe", "node"]).await {
            Ok(said) => {
                // An annotation of several lines, or a long one, is below its name.
                let mut is_below = false;
                for line in said.lines() {
                    let is_ours = line.to_lowercase().contains("trylatest");
                    is_below &= !line.contains(": ") && !line.ends_with(':');
                    if (is_ours || is_below) && !line.contains("trylatest-system") {
                        println!("    {}", line.trim());
                    }
                    is_below |= is_ours && line.ends_with(':');
                }
                println!();
            }
            Err(error) => println!("{}", indent(&format!("{error:#}"))),
        }
    }

    fn write(&self, path: &std::path::Path) -> anyhow::Result<()> {
        let json = serde_json::json!({
            "limit_ms": LIMIT.as_millis(),
            "always_limit_ms": ALWAYS_LIMIT.as_millis(),
            "steps": self.steps,
        });
        std::fs::write(path, format!("{json:#}\n"))
            .with_context(|| format!("writing {}", path.display()))
    }

    fn summary(&self) {
        say(&format!(
            "The story in short (seconds from restart to Running; never: not within {})",
            ALWAYS_LIMIT.as_secs()
        ));
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(["", "TryLatest", "Always", "outcome", "runs"]);
        for step in &self.steps {
            let outcome = match &step.class {
                Some(class) => format!("{} ({class})", step.outcome),
                None => step.outcome.clone(),
            };
            table.add_row([
                step.name.to_owned(),
                seconds(step.ours_ms),
                seconds(step.always_ms),
                outcome,
                if step.ok {
                    step.version.clone()
                } else {
                    "NOT AS IT SHOULD BE".to_owned()
                },
            ]);
        }
        println!("{}", table.trim_fmt());
    }
}

fn say(what: &str) {
    println!("\n== {what}");
}

fn indent(text: &str) -> String {
    text.lines().fold(String::new(), |mut out, line| {
        let _ = writeln!(out, "    {line}");
        out
    })
}

fn upper_first(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_uppercase() + rest
}

fn running_after(took: Option<Duration>, limit: Duration) -> String {
    match took {
        Some(took) => format!("Running after {:.1} s", took.as_secs_f64()),
        None => format!("not Running after {} s", limit.as_secs()),
    }
}

fn seconds(ms: Option<u128>) -> String {
    match ms.and_then(|ms| u64::try_from(ms).ok()) {
        Some(ms) => format!("{:.1}", Duration::from_millis(ms).as_secs_f64()),
        None => "never".to_owned(),
    }
}
