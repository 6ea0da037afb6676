//! Child processes that cannot outlive us.
//!
//! Three things end a child: [`Process::stop`] or [`Process::kill`], dropping the [`Process`], and
//! our own death, even by SIGKILL: the kernel then sends SIGKILL to the child (`PDEATHSIG`). That
//! signal is tied to the *thread* that made the child, so one thread, which lives as long as this
//! process, makes all of them. Every child is a process group of its own: Ctrl-C in a terminal
//! reaches only us, and we end the children in the right order.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

/// What to run, where its output goes, and which cgroup it joins.
#[derive(Debug, Clone)]
pub struct Spec {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    log: PathBuf,
    cgroup: Option<PathBuf>,
}

impl Spec {
    /// A program that is called `name` in messages and appends what it prints to the file `log`.
    pub fn new(name: &str, program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            program: program.into(),
            args: Vec::new(),
            envs: Vec::new(),
            log: log.into(),
            cgroup: None,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the child's environment; the rest is inherited.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.envs.push((key.into(), value.into()));
        self
    }

    /// Makes the child, and all its later children with it, a member of the cgroup `folder`.
    #[must_use]
    pub fn cgroup(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(folder.into());
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// If the log cannot be opened, the program cannot be run, or a cgroup refuses it.
    pub async fn spawn(self) -> anyhow::Result<Process> {
        let log = open_log(&self.log)?;
        let mut command = bound_to_us(&self.program, &self.args);
        command
            .envs(self.envs)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = spawn_bound(command)
            .await
            .with_context(|| format!("start {} ({})", self.name, self.program.display()))?;
        let pid = child
            .id()
            .context("a child that was just started has a pid")?;
        let process = Process {
            name: self.name,
            pid,
            log: self.log,
            child,
        };
        if let Some(folder) = &self.cgroup {
            fs::write(folder.join("cgroup.procs"), pid.to_string())
                .with_context(|| format!("move {} to {}", process.name, folder.display()))?;
        }
        Ok(process)
    }
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Fails, with the last lines it printed, if it has ended.
    ///
    /// # Errors
    /// If it has ended, whatever its exit status.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!(
                "{} ended: {}\n{}",
                self.name,
                describe(status),
                tail(&self.log, 15)
            ),
        }
    }

    /// Asks it to end (SIGTERM), and kills it if it has not within `grace`. Returns how it ended;
    /// a child that had ended before is not an error.
    ///
    /// # Errors
    /// If it cannot be signalled or waited for.
    pub async fn stop(&mut self, grace: Duration) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        match tokio::time::timeout(grace, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => self.kill().await,
        }
    }

    /// Kills it (SIGKILL) and waits for its end.
    ///
    /// # Errors
    /// If it cannot be signalled or waited for.
    pub async fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::KILL)?;
        Ok(self.child.wait().await?)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal. The pid cannot be another process's: nobody but us reaps this child.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_pid(self.pid, signal).with_context(|| format!("signal {}", self.name))
    }
}

/// Sends a signal to a process that need not be a child of ours, e.g. one in a container.
///
/// # Errors
/// If there is no such process, or the kernel refuses.
pub fn kill_pid(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("not a pid")?;
    Ok(kill_process(pid, signal)?)
}

/// What a command came to, whatever that is.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; -1 if a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it printed there.
    pub stderr: String,
}

impl Ran {
    /// What it printed, as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON: {self:?}"))
    }

    /// The same, if it has ended with this code.
    ///
    /// # Errors
    /// It has ended with another.
    pub fn expect(self, code: i32) -> anyhow::Result<Self> {
        ensure!(self.code == code, "not {code}: {self:?}");
        Ok(self)
    }
}

/// Runs a command to its end.
///
/// # Errors
/// If it cannot be run.
///
/// # Cancel safety
/// Dropping it kills the command.
pub async fn ran<A: Into<OsString>>(
    program: &Path,
    args: impl IntoIterator<Item = A>,
) -> anyhow::Result<Ran> {
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let output = output_of(program, &args, None).await;
    let output = output.with_context(|| format!("run {}", program.display()))?;
    Ok(Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a command to its end and returns what it printed on stdout; `input` is its stdin.
///
/// # Errors
/// If it cannot be run or exits non-zero; the message then holds its stderr.
pub async fn run<A: Into<OsString>>(
    program: &Path,
    args: impl IntoIterator<Item = A>,
    input: Option<&[u8]>,
) -> anyhow::Result<String> {
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let shown = || {
        let words = args.iter().map(|arg| arg.to_string_lossy());
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        std::iter::once(name)
            .chain(words)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let output = output_of(program, &args, input).await.with_context(shown)?;
    if !output.status.success() {
        bail!(
            "{}: {}\n{}{}",
            shown(),
            describe(output.status),
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn output_of(program: &Path, args: &[OsString], input: Option<&[u8]>) -> io::Result<Output> {
    use tokio::io::AsyncWriteExt as _;

    let mut command = bound_to_us(program, args);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .stdin(match input {
            Some(_) => Stdio::piped(),
            None => Stdio::null(),
        });
    let mut child = spawn_bound(command).await?;
    let stdin = child.stdin.take();
    let feed = async {
        // A command that ends without reading all of its input says itself what it made of it.
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            let _ = stdin.write_all(input).await;
        }
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    output
}

/// A command whose process dies with the thread that spawns it.
fn bound_to_us(program: &Path, args: &[OsString]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .args(args)
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// What the spawning thread is asked to do.
struct Request {
    command: Command,
    runtime: tokio::runtime::Handle,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// The way to the thread that makes all children. It ends with the process, never before.
static SPAWNER: LazyLock<mpsc::Sender<Request>> = LazyLock::new(|| {
    let (requests, inbox) = mpsc::channel::<Request>();
    std::thread::spawn(move || {
        for mut request in inbox {
            let _context = request.runtime.enter();
            // Nobody waits for it any more: the child is dropped, and so killed.
            drop(request.reply.send(request.command.spawn()));
        }
    });
    requests
});

async fn spawn_bound(command: Command) -> io::Result<Child> {
    let (reply, answer) = oneshot::channel();
    let request = Request {
        command,
        runtime: tokio::runtime::Handle::current(),
        reply,
    };
    let gone = || io::Error::other("the thread that starts processes is gone");
    SPAWNER.send(request).map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("open the log {}", path.display()))
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit status {}", status.code().unwrap_or(-1)),
    }
}

/// The last lines of a log, for an error message.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::wait::until;

    /// The child has printed that its trap is set.
    async fn is_up(log: &Path) {
        let up = || async { Ok((tail(log, 1) == "up").then_some(())) };
        let up = until("the child is up", Duration::from_secs(10), up).await;
        up.unwrap();
    }

    #[tokio::test]
    async fn what_a_command_prints_comes_back_and_so_does_its_failure() {
        let said = run(Path::new("sh"), ["-c", "cat"], Some(b"hello"))
            .await
            .unwrap();
        assert_eq!(said, "hello");
        let error = run(Path::new("sh"), ["-c", "echo why >&2; exit 3"], None)
            .await
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("exit status 3") && text.contains("why"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_stopped_child_is_gone_and_its_output_is_in_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done";
        let mut child = Spec::new("child", "sh", &log)
            .args(["-c", script])
            .spawn()
            .await
            .unwrap();
        is_up(&log).await;
        child.check().unwrap();
        let status = child.stop(Duration::from_secs(10)).await.unwrap();
        assert_eq!(status.code(), Some(7));
        assert_eq!(tail(&log, 1), "bye");
        assert!(child.check().is_err());
    }

    #[tokio::test]
    async fn a_child_that_ignores_sigterm_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = "trap '' TERM; echo up; while :; do sleep 0.05; done";
        let mut child = Spec::new("child", "sh", &log)
            .args(["-c", script])
            .spawn()
            .await
            .unwrap();
        is_up(&log).await;
        let status = child.stop(Duration::from_millis(100)).await.unwrap();
        assert_eq!(status.signal(), Some(9));
    }
}
