//! The gate: an init container that only waits for the agent's release.
//!
//! It runs in every gated pod, so it is small: no async runtime, no thread, no network. It sleeps
//! in `poll` until the kubelet replaces the file.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use trylatest_core::gate::{End, Gate, Reading, Step, annotation};
use trylatest_core::keys;
use trylatest_core::time::Now;

use crate::args::GateArgs;
use crate::clock;

/// The file's name in the volume, as the admission policy mounts it.
const FILE: &str = "annotations";

/// Where the kubelet reads a container's last message, by default.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Look at the file at least this often, in case an event is lost. It is one small read.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// If the kernel gives no inotify instance (they are limited per user), look this often.
const LOOK_WITHOUT_EVENTS: Duration = Duration::from_millis(40);

/// Waits at the gate. 0 opens it, 1 refuses the pod's start.
pub fn run(args: &GateArgs) -> ExitCode {
    exit_on_signals();
    let GateArgs {
        volume,
        patience,
        freshness,
    } = args;
    // Subscribe first, look afterwards: nothing is missed.
    let changes = Changes::of(volume);
    let start = now();
    let mut gate = Gate::new(start, *patience, *freshness);
    println!("waiting for this node's TryLatest agent");
    let mut unreadable = None;
    loop {
        let reading = read(&volume.join(FILE), &mut unreadable);
        let now = now();
        let (lines, step) = gate.observe(now, &reading);
        for line in &lines {
            println!("{line}");
        }
        let waited = now.up.saturating_sub(start.up).as_secs_f64();
        let (end, more, code) = match step {
            Step::Wait(at_most) => {
                changes.wait(at_most);
                continue;
            }
            Step::Open => (End::Opened, String::new(), ExitCode::SUCCESS),
            Step::OpenUnanswered => {
                let patience = humantime::format_duration(*patience);
                let more = format!(
                    ": no sign of a TryLatest agent for {patience}; the pod starts as with \
                     IfNotPresent, from this node's copy if there is one"
                );
                (End::Unanswered, more, ExitCode::SUCCESS)
            }
            Step::Refuse => {
                let freshness = humantime::format_duration(*freshness);
                let more = format!(
                    "; if the kubelet restarts this container, the agent looks again after {freshness}"
                );
                (End::Refused, more, ExitCode::FAILURE)
            }
        };
        let last = format!("{} after {waited:.2}s{more}", end.as_str());
        println!("{last}");
        say_in_status(&lines, &last);
        return code;
    }
}

/// Leaves the end of the story in the pod's status, where `kubectl describe pod` shows it. The kubelet
/// makes the file; if it is missing, as outside of a pod, nothing is lost.
fn say_in_status(lines: &[String], last: &str) {
    let words = [lines, &[last.to_owned()]].concat().join("\n");
    let file = fs::OpenOptions::new().write(true).open(TERMINATION_LOG);
    if let Ok(mut file) = file {
        let _ = file.write_all(words.as_bytes());
    }
}

/// The first process of a container ignores signals that it does not handle, and a deleted pod
/// would wait out its grace period.
fn exit_on_signals() {
    for signal in [SIGTERM, SIGINT] {
        let always = Arc::new(AtomicBool::new(true));
        if let Err(error) = flag::register_conditional_shutdown(signal, 128 + signal, always) {
            println!("cannot handle signal {signal}: {error}");
        }
    }
}

/// Reads the annotations. A file that cannot be read counts as empty, and is reported once: the
/// patience decides then.
fn read(file: &Path, told: &mut Option<String>) -> Reading {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            let words = format!("cannot read {}: {error}", file.display());
            if told.as_ref() != Some(&words) {
                println!("{words}");
                *told = Some(words);
            }
            return Reading::default();
        }
    };
    Reading {
        released: parse(&text, keys::RELEASED),
        progress: parse(&text, keys::PROGRESS),
    }
}

fn parse<T: DeserializeOwned>(file: &str, key: &str) -> Option<T> {
    serde_json::from_str(&annotation(file, key)?).ok()
}

/// Changes of the volume. The kubelet writes a new folder and renames a link to it
/// (`pkg/volume/util/atomic_writer.go`), so the gate watches the volume's folder.
struct Changes {
    inotify: Option<OwnedFd>,
}

impl Changes {
    fn of(volume: &Path) -> Self {
        let subscribe = || -> io::Result<OwnedFd> {
            let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let what = inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::CREATE
                | inotify::WatchFlags::CLOSE_WRITE;
            inotify::add_watch(&fd, volume, what)?;
            Ok(fd)
        };
        Self {
            inotify: subscribe().ok(),
        }
    }

    /// Sleeps until something changes, but `at_most` this long.
    fn wait(&self, at_most: Duration) {
        let Some(fd) = &self.inotify else {
            std::thread::sleep(at_most.min(LOOK_WITHOUT_EVENTS));
            return;
        };
        let timeout = Timespec::try_from(at_most.min(LOOK_EVERY)).ok();
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        // An interrupted wait only means to look earlier.
        if poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0) {
            let mut buffer = [0; 4096];
            while rustix::io::read(fd, &mut buffer).is_ok_and(|read| read > 0) {}
        }
    }
}

fn now() -> Now {
    // CLOCK_BOOTTIME would count the time that a node is suspended.
    let up = clock_gettime(ClockId::Monotonic);
    Now {
        wall: clock::wall(),
        up: Duration::try_from(up).unwrap_or_default(),
    }
}
