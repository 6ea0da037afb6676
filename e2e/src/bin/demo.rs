//! `cargo demo`: the whole story on a real kubelet, told as a user would see it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use tokio::time::Instant;
use trylatest_e2e::cluster::{Cluster, ContainerdVersion, Namespace, Options, Tools, wait};
use trylatest_e2e::install::Install;
use trylatest_e2e::registry::Fault;
use trylatest_e2e::testimage;
use trylatest_e2e::workload::{Workloads, is_running, release};

/// Show what TryLatest does, on a real one-node cluster on this machine.
#[derive(Parser)]
#[command(name = "cargo demo", version)]
struct Args {
    /// Leave the cluster running at the end, and print how to use it
    #[arg(long)]
    keep: bool,

    /// Which containerd runs the node
    #[arg(long, value_enum, default_value_t)]
    containerd: Version,

    /// Where the steps are written as JSON
    #[arg(long, default_value = "target/demo.json")]
    json: PathBuf,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Version {
    /// Built from its Go module
    #[default]
    #[value(name = "2.4")]
    V2,
    /// Debian's
    #[value(name = "1.6")]
    V1_6,
}

/// The user's manifest: what the README shows, as a Deployment.
const MANIFEST: &str = include_str!("../../demo/app.yaml");

/// The same with `Always`, for comparison.
const ALWAYS: &str = "plain-always";
const OURS: &str = "my-app";

/// The registry's port in the manifest.
const PORT: u16 = 5000;

/// How long a restart may take. The worst of ours is the stall deadline and two container starts.
const LIMIT: Duration = Duration::from_secs(30);

/// How long a gate honours a release by default, and a second.
const FRESHNESS: Duration = Duration::from_secs(121);

/// How long `Always` is waited for: longer than ours takes, and it would wait for ever.
const ALWAYS_LIMIT: Duration = Duration::from_secs(12);

/// One step, as it is written to the JSON file.
#[derive(Serialize)]
struct Step {
    name: &'static str,
    expected: &'static str,
    outcome: String,
    class: Option<String>,
    digest: Option<String>,
    version: String,
    ours_ms: Option<u128>,
    always_ms: Option<u128>,
    ok: bool,
    problem: Option<String>,
}

struct Demo {
    cluster: Cluster,
    work: Workloads,
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
            containerd: match args.containerd {
                Version::V2 => ContainerdVersion::V2,
                Version::V1_6 => ContainerdVersion::V1_6,
            },
            registry_port: PORT,
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
        steps: Vec::new(),
    };
    let told = demo.tell(&tools).await;
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
            "A user applies this Deployment, and the same with imagePullPolicy: Always for comparison",
        );
        println!("{}", indent(MANIFEST));
        self.first_start().await?;
        self.step("restart, the tag unchanged", "unchanged", None, "v1")
            .await?;

        self.push(tools, "v2").await?;
        self.step("restart, the tag moved", "fresh", None, "v2")
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
            self.step(name, "fallback", Some(class), "v2").await?;
            self.cluster.registry().heal().await?;
        }
        self.reboot().await?;

        self.push(tools, "v3").await?;
        self.step(
            "the registry is back, the tag moved meanwhile",
            "fresh",
            None,
            "v3",
        )
        .await
    }

    /// Applies both Deployments on a node that has never seen the image.
    async fn first_start(&mut self) -> anyhow::Result<()> {
        let name = "first start, the image is not on the node";
        say(name);
        let ours = self.apply(OURS, MANIFEST).await?;
        let always = MANIFEST
            .replace(OURS, ALWAYS)
            .replace("TryLatest", "Always");
        let always = self.apply(ALWAYS, &always).await?;
        let pod = self.work.current(OURS).await?;
        let pod = pod.metadata.name.unwrap_or_default();
        self.finish(name, "fresh", None, "v1", &pod, Some(ours), Some(always))
            .await
    }

    /// Restarts both Deployments and tells what a user sees.
    async fn step(
        &mut self,
        name: &'static str,
        expected: &'static str,
        class: Option<&str>,
        version: &str,
    ) -> anyhow::Result<()> {
        say(name);
        let (pod, ours) = self.work.restart(OURS, LIMIT).await?;
        let (_, always) = self.work.restart(ALWAYS, ALWAYS_LIMIT).await?;
        self.finish(name, expected, class, version, &pod, ours, always)
            .await
    }

    /// Reboots the node while the registry is closed.
    async fn reboot(&mut self) -> anyhow::Result<()> {
        say("the node reboots while the registry is closed");
        // Both run, from the same copy, before the lights go out.
        self.work.restart(OURS, LIMIT).await?;
        self.work.restart(ALWAYS, LIMIT).await?;
        let pod = self.work.current(OURS).await?;
        let plain = self.work.current(ALWAYS).await?;
        self.until_stale(&pod).await?;
        self.cluster.registry().fault(Fault::Closed).await?;
        self.cluster.reboot().await?;
        let ours = self.work.runs_again(&pod, LIMIT).await;
        let always = self.work.runs_again(&plain, ALWAYS_LIMIT).await;
        let name = "the node reboots while the registry is closed";
        let pod = pod.metadata.name.unwrap_or_default();
        self.finish(name, "fallback", Some("network"), "v2", &pod, ours, always)
            .await?;
        self.cluster.registry().heal().await
    }

    #[expect(clippy::too_many_arguments, reason = "one line of the story each")]
    async fn finish(
        &mut self,
        name: &'static str,
        expected: &'static str,
        class: Option<&str>,
        version: &str,
        pod: &str,
        ours: Option<Duration>,
        always: Option<Duration>,
    ) -> anyhow::Result<()> {
        println!(
            "  TryLatest: {}   Always: {}\n",
            running_after(ours, LIMIT),
            running_after(always, ALWAYS_LIMIT)
        );
        let said = self.work.wait_log(pod, "my-container", LIMIT).await;
        self.show("logs", &["logs", pod, "-c", "trylatest-gate"])
            .await;
        self.show("logs", &["logs", pod, "-c", "my-container"])
            .await;
        let event = format!("TryLatest{}", upper_first(expected));
        let event = self.work.wait_event(pod, &event, LIMIT).await;
        println!(
            "{}",
            indent(&format!("Event: {}", event.as_deref().unwrap_or("none")))
        );
        let fallback = expected == "fallback";
        let condition = self
            .cluster
            .wait_node_condition("TryLatestFallback", fallback, LIMIT)
            .await;
        self.show_node().await;

        let release = self
            .work
            .released(pod, "my-container")
            .await
            .unwrap_or_default();
        let word = |key: &str| release[key].as_str().map(str::to_owned);
        let said = said.unwrap_or_default();
        let mut problems = Vec::new();
        let mut check = |ok: bool, what: String| {
            if !ok {
                problems.push(what);
            }
        };
        check(
            ours.is_some(),
            format!("the pod does not run within {LIMIT:?}"),
        );
        check(
            word("outcome").as_deref() == Some(expected),
            format!("the release says {release}"),
        );
        check(
            word("class").as_deref() == class,
            format!("the release says {release}"),
        );
        check(
            said.contains(version),
            format!("the app says {said:?}, not {version}"),
        );
        if let Err(error) = &event {
            check(false, error.root_cause().to_string());
        }
        if let Err(error) = &condition {
            check(false, error.root_cause().to_string());
        }
        let step = Step {
            name,
            expected,
            outcome: word("outcome").unwrap_or_default(),
            class: word("class"),
            digest: word("digest"),
            version: said.trim().to_owned(),
            ours_ms: ours.map(|took| took.as_millis()),
            always_ms: always.map(|took| took.as_millis()),
            ok: problems.is_empty(),
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
        };
        if let Some(problem) = &step.problem {
            println!("  NOT AS IT SHOULD BE: {problem}");
        }
        self.steps.push(step);
        Ok(())
    }

    async fn push(&self, tools: &Tools, version: &str) -> anyhow::Result<()> {
        let image = testimage::app(tools, &format!("{version}\n"))?;
        let digest = self
            .cluster
            .registry()
            .push(&image, "my/app", "latest")
            .await?;
        say(&format!(
            "127.0.0.1:{PORT}/my/app:latest now points to {version}, {digest}"
        ));
        Ok(())
    }

    /// Applies a manifest, and waits until its pod runs: how long that took.
    async fn apply(&self, deployment: &str, manifest: &str) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let file = self.cluster.dir().join(format!("{deployment}.yaml"));
        std::fs::write(&file, manifest)?;
        let path = file.to_str().context("a path that is no text")?;
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
            "  waiting {} s until the pod's release is stale: a node is rarely rebooted within two minutes of a pod's start",
            left.as_secs()
        );
        tokio::time::sleep(left).await;
        Ok(())
    }

    async fn show(&self, verb: &str, args: &[&str]) {
        println!("  $ kubectl {}", args.join(" "));
        match self.cluster.kubectl(args).await {
            Ok(said) => println!("{}", indent(&said)),
            Err(error) => println!("{}", indent(&format!("{verb}: {error:#}"))),
        }
    }

    /// The lines of `kubectl describe node` that are ours.
    async fn show_node(&self) {
        println!("  $ kubectl describe node | grep -i trylatest");
        match self.cluster.kubectl(&["describe", "node"]).await {
            Ok(said) => {
                // A long annotation stands on the line below its name.
                let lines: Vec<&str> = said.lines().collect();
                for pair in lines.windows(2) {
                    let ours = |line: &str| line.to_lowercase().contains("trylatest");
                    let above = ours(pair[0]) && pair[0].ends_with(':');
                    if (ours(pair[1]) || above) && !pair[1].contains("trylatest-system") {
                        println!("    {}", pair[1].trim());
                    }
                }
                println!();
            }
            Err(error) => println!("{}", indent(&format!("{error:#}"))),
        }
    }

    fn write(&self, path: &std::path::Path) -> anyhow::Result<()> {
        let json = serde_json::json!({ "steps": self.steps });
        std::fs::write(path, format!("{json:#}\n"))
            .with_context(|| format!("writing {}", path.display()))
    }

    fn summary(&self) {
        say("The story in short (seconds from restart to Running)");
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
