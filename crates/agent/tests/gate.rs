//! The gate as a process, with a folder written as the kubelet writes a downward-API volume.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

/// The promise for the time between the file's change and the gate's end.
const REACTION: Duration = Duration::from_millis(50);

/// Far more than any test waits.
const LONG: &str = "--patience=60s";

/// A volume with one `annotations` file.
struct Volume {
    dir: TempDir,
    writes: u32,
}

impl Volume {
    fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let mut volume = Self { dir, writes: 0 };
        volume.write("");
        volume
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A new folder and a link renamed to it, as `pkg/volume/util/atomic_writer.go` does.
    fn write(&mut self, annotations: impl AsRef<[u8]>) {
        self.writes += 1;
        let folder = format!("..{}", self.writes);
        fs::create_dir(self.path().join(&folder)).expect("a folder");
        let file = self.path().join(&folder).join("annotations");
        fs::write(file, annotations).expect("a file");
        let link = self.path().join("..data_tmp");
        symlink(folder, &link).expect("a link");
        fs::rename(link, self.path().join("..data")).expect("a rename");
        let name = self.path().join("annotations");
        if !name.is_symlink() {
            symlink("..data/annotations", name).expect("a link");
        }
    }

    fn gate(&self, args: &[&str]) -> Gate {
        let child = Command::new(env!("CARGO_BIN_EXE_trylatest"))
            .arg("gate")
            .arg("--volume")
            .arg(self.path())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the gate starts");
        Gate { child }
    }
}

struct Gate {
    child: Child,
}

impl Gate {
    /// Waits until it sleeps in `poll`: it has looked at its file by then.
    fn asleep(&self) {
        let wchan = format!("/proc/{}/syscall", self.child.id());
        // The numbers of poll and ppoll on x86_64 and aarch64.
        let polls = ["7 ", "271 ", "73 "];
        while !fs::read_to_string(&wchan)
            .is_ok_and(|call| polls.iter().any(|number| call.starts_with(number)))
        {
            std::thread::yield_now();
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it runs");
    }

    /// Exit code or signal, and everything that it printed.
    fn end(mut self) -> (i32, String) {
        let status = self.child.wait().expect("it ends");
        let mut said = String::new();
        let mut out = self.child.stdout.take().expect("piped");
        out.read_to_string(&mut said).expect("text");
        let mut err = self.child.stderr.take().expect("piped");
        err.read_to_string(&mut said).expect("text");
        let code = status.code().or(status.signal().map(|signal| -signal));
        (code.expect("one of them"), said)
    }
}

/// A line of the file.
fn annotation(key: &str, json: &serde_json::Value) -> String {
    format!("trylatest.dev/{key}={:?}\n", json.to_string())
}

#[expect(clippy::disallowed_methods, reason = "the gate reads this clock too")]
fn ago(seconds: u64) -> String {
    (Timestamp::now() - Duration::from_secs(seconds)).to_string()
}

fn release(seconds_ago: u64, outcome: &str) -> String {
    let app = serde_json::json!({
        "image": "app:latest", "outcome": outcome, "digest": "sha256:1", "class": "network", "message": "refused",
    });
    let json = serde_json::json!({"time": ago(seconds_ago), "containers": {"app": app}});
    annotation("released", &json)
}

fn progress(bytes: u64) -> String {
    let app = serde_json::json!({"image": "app:latest", "attempt": 1, "bytes": bytes});
    let json = serde_json::json!({"time": ago(0), "containers": {"app": app}});
    annotation("progress", &json)
}

fn up() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).expect("positive")
}

#[test]
fn it_opens_soon_after_the_release() {
    // The best of a few: this tests that it is woken up, and not how busy the machine is.
    let reaction = (0..10).map(|_| {
        let mut volume = Volume::new();
        let gate = volume.gate(&[LONG]);
        gate.asleep();
        let start = up();
        volume.write(release(0, "fallback"));
        let (code, said) = gate.end();
        assert_eq!(code, 0, "{said}");
        assert!(
            said.contains("fallback: app: using the cached copy of app:latest"),
            "{said}"
        );
        up().saturating_sub(start)
    });
    let best = reaction.min().expect("ten");
    assert!(best < REACTION, "{best:?}");
}

#[test]
fn a_release_that_is_there_opens_at_once() {
    let mut volume = Volume::new();
    volume.write(release(1, "fresh"));
    let (code, said) = volume.gate(&[LONG]).end();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("fresh: app: pulled app:latest"), "{said}");
}

#[test]
fn a_stale_release_does_not_open() {
    let mut volume = Volume::new();
    volume.write(release(121, "fresh"));
    let (code, said) = volume.gate(&["--patience=100ms"]).end();
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("no sign of a TryLatest agent for 100ms"),
        "{said}"
    );
    assert!(!said.contains("fresh: app"), "{said}");
}

#[test]
fn a_refusal_fails() {
    let mut volume = Volume::new();
    let gate = volume.gate(&[LONG]);
    gate.asleep();
    volume.write(release(0, "refused"));
    let (code, said) = gate.end();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("must not use the cached copy"), "{said}");
}

#[test]
fn progress_is_told_once() {
    let mut volume = Volume::new();
    let first = progress(1024);
    volume.write(&first);
    let gate = volume.gate(&[LONG]);
    gate.asleep();
    // Another annotation changes; the progress is the same.
    volume.write(format!("other=\"x\"\n{first}"));
    gate.asleep();
    volume.write(format!("{first}{}", release(0, "fresh")));
    let (code, said) = gate.end();
    assert_eq!(code, 0, "{said}");
    assert_eq!(
        said.matches("trying: app: pulling app:latest, 1.0 KiB")
            .count(),
        1,
        "{said}"
    );
}

#[test]
fn whatever_the_file_holds_the_patience_decides() {
    let good = release(0, "fresh");
    let mut contents = vec![
        Vec::new(),
        vec![0xff; 300],
        b"trylatest.dev/released".to_vec(),
    ];
    contents.extend([1, 2, 30, 3].map(|left| good.as_bytes()[..good.len() - left].to_vec()));
    contents.push(b"trylatest.dev/released=\"{}\"\n".to_vec());
    contents.push(b"trylatest.dev/released=\"[1,2]\"\n\n=\n\"".to_vec());
    contents.push(vec![b'x'; 1 << 20]);
    for content in contents {
        let mut volume = Volume::new();
        volume.write(&content);
        let (code, said) = volume.gate(&["--patience=20ms"]).end();
        // Only the last line break may be missing without a loss.
        let whole = content.len() + 1 == good.len();
        assert_eq!(code, 0, "{said}");
        assert_eq!(said.contains("no sign of"), !whole, "{content:?}: {said}");
    }
}

#[test]
fn without_a_volume_it_says_so_once_and_opens() {
    let volume = Volume::new();
    let nowhere = volume.path().join("nowhere");
    let gate = Command::new(env!("CARGO_BIN_EXE_trylatest"))
        .args(["gate", "--patience=150ms", "--volume"])
        .arg(nowhere)
        .output()
        .expect("the gate starts");
    let said = String::from_utf8_lossy(&gate.stdout);
    assert!(gate.status.success(), "{said}");
    assert_eq!(said.matches("cannot read").count(), 1, "{said}");
}

#[test]
fn a_deleted_pod_does_not_wait_for_it() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let volume = Volume::new();
        let gate = volume.gate(&[LONG]);
        gate.asleep();
        gate.signal(signal);
        assert_eq!(gate.end().0, code);
    }
}

#[test]
fn what_cannot_be_used_is_named() {
    let volume = Volume::new();
    for bad in ["--patience=soon", "--freshness=0s", "--patience=5"] {
        let (code, said) = volume.gate(&[bad]).end();
        assert_eq!(code, 2, "{said}");
        let option = bad.split('=').next().expect("a name");
        assert!(said.contains(option), "{said}");
    }
    let by_environment = Command::new(env!("CARGO_BIN_EXE_trylatest"))
        .arg("gate")
        .env("TRYLATEST_PATIENCE", "soon")
        .output()
        .expect("the gate starts");
    assert_eq!(by_environment.status.code(), Some(2));
    let said = String::from_utf8_lossy(&by_environment.stderr);
    assert!(said.contains("--patience"), "{said}");
}
