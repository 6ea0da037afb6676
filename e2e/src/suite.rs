//! Test binaries in which all tests share one running fixture, mostly a cluster.
//!
//! For `harness = false` tests, with the command line and output of any Rust test. The fixture is
//! started by the first test that runs, so `--list` and a filter that matches nothing start none,
//! and is ended after the last one, or at Ctrl-C. Tests run at the same time, each in a namespace
//! of its own; one that breaks what others use is [`Case::exclusive`].
//!
//! ```no_run
//! use std::{process::ExitCode, sync::Arc};
//! use trylatest_e2e::{cluster::Cluster, suite::{Case, Suite}};
//!
//! async fn a_pod_runs(cluster: Arc<Cluster>) -> anyhow::Result<()> {
//!     let namespace = cluster.namespace("runs").await?;
//!     // ...
//!     namespace.delete().await
//! }
//!
//! fn main() -> ExitCode {
//!     let mut suite = Suite::new();
//!     suite.run(vec![Case::new("a_pod_runs", a_pod_runs)]);
//!     suite.end()
//! }
//! ```

use std::collections::BTreeMap;
use std::future::Future;
use std::io::IsTerminal as _;
use std::ops::Deref;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, RwLock};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, ContainerdVersion, Options, Tools, interrupted};

/// So many tests run at once unless the command line says otherwise: they wait more than they work.
const THREADS: usize = 8;

/// The shell's exit status for a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// What the tests of a binary share.
pub trait Fixture: Send + Sync + Sized + 'static {
    /// Whether it needs root; without root, its tests are skipped.
    const NEEDS_ROOT: bool = true;

    /// What only this fixture needs and this machine lacks; its tests are then skipped.
    fn missing(_tools: &Tools) -> Option<String> {
        None
    }

    /// Starts it.
    fn start(tools: Tools) -> impl Future<Output = anyhow::Result<Self>> + Send;

    /// Ends it; keeps its logs unless all went `well`.
    fn stop(&self, well: bool) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Where its logs are, for the message of a failed test.
    fn logs(&self) -> PathBuf;
}

impl Fixture for Cluster {
    async fn start(tools: Tools) -> anyhow::Result<Self> {
        Cluster::start(&tools, Options::default()).await
    }

    async fn stop(&self, well: bool) -> anyhow::Result<()> {
        Cluster::stop(self, well).await
    }

    fn logs(&self) -> PathBuf {
        Cluster::logs(self)
    }
}

/// A fixture that is started on either containerd.
pub trait OnNode: Send + Sync + Sized + 'static {
    /// Starts it on a node with this containerd.
    fn start(
        tools: Tools,
        containerd: ContainerdVersion,
    ) -> impl Future<Output = anyhow::Result<Self>> + Send;

    /// As [`Fixture::stop`].
    fn stop(&self, well: bool) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// As [`Fixture::logs`].
    fn logs(&self) -> PathBuf;
}

/// One with the newest containerd, or with the oldest that is tested, where that is there.
pub struct With<T, const OLDEST: bool>(T);

impl<T, const OLDEST: bool> With<T, OLDEST> {
    const CONTAINERD: ContainerdVersion = if OLDEST {
        ContainerdVersion::V1_6
    } else {
        ContainerdVersion::V2
    };
}

impl<T, const OLDEST: bool> Deref for With<T, OLDEST> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: OnNode, const OLDEST: bool> Fixture for With<T, OLDEST> {
    fn missing(tools: &Tools) -> Option<String> {
        tools.missing(Self::CONTAINERD)
    }

    async fn start(tools: Tools) -> anyhow::Result<Self> {
        T::start(tools, Self::CONTAINERD).await.map(Self)
    }

    async fn stop(&self, well: bool) -> anyhow::Result<()> {
        self.0.stop(well).await
    }

    fn logs(&self) -> PathBuf {
        self.0.logs()
    }
}

type Outcome = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// One test.
pub struct Case<F> {
    name: String,
    exclusive: bool,
    test: Box<dyn FnOnce(Arc<F>) -> Outcome + Send>,
}

impl<F> Case<F> {
    /// A test that runs beside others.
    pub fn new<T, R>(name: impl Into<String>, test: T) -> Self
    where
        T: FnOnce(Arc<F>) -> R + Send + 'static,
        R: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        Self {
            name: name.into(),
            exclusive: false,
            test: Box::new(|fixture| Box::pin(test(fixture))),
        }
    }

    /// A test during which no other one uses the fixture, e.g. a reboot.
    pub fn exclusive<T, R>(name: impl Into<String>, test: T) -> Self
    where
        T: FnOnce(Arc<F>) -> R + Send + 'static,
        R: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        Self {
            exclusive: true,
            ..Self::new(name, test)
        }
    }
}

/// A test binary in progress.
pub struct Suite {
    arguments: Arguments,
    runtime: Arc<Runtime>,
    failed: bool,
    failures: Failures,
}

impl Suite {
    /// Reads the command line.
    ///
    /// # Panics
    /// If no thread can be started.
    #[expect(
        clippy::new_without_default,
        reason = "it reads the command line, and may end the process"
    )]
    pub fn new() -> Self {
        let mut arguments = Arguments::from_args();
        arguments.test_threads.get_or_insert(THREADS);
        Self {
            arguments,
            runtime: Arc::new(Runtime::new().expect("a test binary can start threads")),
            failed: false,
            failures: Failures::default(),
        }
    }

    /// Runs tests on a fixture of their own. May be called again with other tests: they run after
    /// these.
    pub fn run<F: Fixture>(&mut self, cases: Vec<Case<F>>) {
        let shared = Arc::new(Shared::<F> {
            fixture: OnceCell::new(),
            turn: RwLock::new(()),
        });
        let mut watch = JoinSet::new();
        watch.spawn_on(end_when_interrupted(shared.clone()), self.runtime.handle());
        let skip = why_skipped::<F>().map(Arc::<str>::from);
        let trials = cases
            .into_iter()
            .map(|case| self.trial(case, shared.clone(), skip.clone()));
        let conclusion = libtest_mimic::run(&self.arguments, trials.collect());
        self.failed |= conclusion.has_failed();
        drop(watch);
        if let Err(error) = self.runtime.block_on(shared.end(!conclusion.has_failed())) {
            eprintln!("cleaning up failed: {}", told(&error));
            self.failed = true;
        }
    }

    /// Prints a line for each test that has failed. What the process reports to its caller.
    pub fn end(&self) -> ExitCode {
        for (name, why) in &*self.failures.all() {
            eprintln!("FAILED {name}: {why}");
        }
        if self.failed {
            ExitCode::from(101)
        } else {
            ExitCode::SUCCESS
        }
    }

    fn trial<F: Fixture>(
        &self,
        case: Case<F>,
        shared: Arc<Shared<F>>,
        skip: Option<Arc<str>>,
    ) -> Trial {
        let runtime = self.runtime.clone();
        let failures = self.failures.clone();
        let name = case.name.clone();
        Trial::ignorable_test(case.name.clone(), move || {
            if let Some(reason) = skip {
                return Ok(Completion::ignored_with(reason));
            }
            failures.begun(&name);
            let outcome = runtime.block_on(shared.run(case));
            failures.ended(&name, &outcome);
            outcome.map_err(|error| Failed::from(told(&error)))?;
            Ok(Completion::Completed)
        })
    }
}

/// Why each test has failed that has, in a line.
#[derive(Clone, Default)]
struct Failures(Arc<Mutex<BTreeMap<String, String>>>);

impl Failures {
    /// A test begins: unless it comes to an end, it has panicked.
    fn begun(&self, name: &str) {
        let panicked = "it panicked".to_owned();
        self.all().insert(name.to_owned(), panicked);
    }

    fn ended(&self, name: &str, outcome: &anyhow::Result<()>) {
        match outcome {
            Ok(()) => self.all().remove(name),
            Err(error) => self.all().insert(name.to_owned(), last_line(error)),
        };
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The fixture of some tests, once one of them has started it.
struct Shared<F> {
    fixture: OnceCell<Result<Arc<F>, String>>,
    /// Held for reading by tests that run beside others, for writing by exclusive ones.
    turn: RwLock<()>,
}

impl<F: Fixture> Shared<F> {
    async fn run(&self, case: Case<F>) -> anyhow::Result<()> {
        let fixture = self.fixture().await?;
        let logs = format!("the logs are in {}", fixture.logs().display());
        let outcome = if case.exclusive {
            let _turn = self.turn.write().await;
            (case.test)(fixture).await
        } else {
            let _turn = self.turn.read().await;
            (case.test)(fixture).await
        };
        outcome.context(logs)
    }

    /// A start that failed is not tried again: it would fail as slowly for each test.
    async fn fixture(&self) -> anyhow::Result<Arc<F>> {
        let start = async {
            let fixture = F::start(Tools::locate_here()?).await?;
            anyhow::Ok(Arc::new(fixture))
        };
        let started = self
            .fixture
            .get_or_init(async || start.await.map_err(|error| told(&error)));
        started.await.clone().map_err(anyhow::Error::msg)
    }

    async fn end(&self, well: bool) -> anyhow::Result<()> {
        let Some(Ok(fixture)) = self.fixture.get() else {
            return Ok(());
        };
        if !well {
            eprintln!("the logs are kept in {}", fixture.logs().display());
        }
        fixture.stop(well).await
    }
}

async fn end_when_interrupted<F: Fixture>(shared: Arc<Shared<F>>) {
    if interrupted().await.is_err() {
        // Without handlers a signal ends this process, and the fixture's own guard the rest.
        return;
    }
    if std::io::stderr().is_terminal() {
        eprintln!("\ncleaning up");
    }
    if let Err(error) = shared.end(false).await {
        eprintln!("cleaning up failed: {}", told(&error));
    }
    std::process::exit(INTERRUPTED);
}

/// An error with its causes, a line each: some are long texts, and none needs a backtrace.
fn told(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    causes.join("\n")
}

/// What an error comes down to: the last line of its last cause.
fn last_line(error: &anyhow::Error) -> String {
    let told = told(error);
    let mut lines = told.lines().map(str::trim);
    let last = lines.rfind(|line| !line.is_empty());
    last.unwrap_or_default().to_owned()
}

/// Why the tests of a fixture cannot run on this machine, if they cannot.
fn why_skipped<F: Fixture>() -> Option<String> {
    if F::NEEDS_ROOT && !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    match Tools::locate_here() {
        Ok(tools) => F::missing(&tools),
        Err(error) => Some(format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_test_is_told_by_the_last_line_of_its_last_cause() {
        let failures = Failures::default();
        for name in ["passes", "fails", "panics"] {
            failures.begun(name);
        }
        failures.ended("passes", &Ok(()));
        let error = anyhow::anyhow!("app is {{}}\nwaited 1s in vain\n");
        failures.ended("fails", &Err(error.context("the logs")));
        let told = failures.all().clone();
        let expected = [("fails", "waited 1s in vain"), ("panics", "it panicked")];
        let expected = expected.map(|(name, why)| (name.to_owned(), why.to_owned()));
        assert_eq!(told, BTreeMap::from(expected));
    }
}
