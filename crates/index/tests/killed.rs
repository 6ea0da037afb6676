//! An index whose writer is killed with SIGKILL holds everything that was acknowledged.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::Duration;

use jiff::Timestamp;
use libtest_mimic::{Arguments, Failed, Trial};
use trylatest_core::record::{Try, TryResult};
use trylatest_index::{Index, Opened};

/// The argument that makes this the process that writes.
const WRITE: &str = "write-until-killed";

const ROUNDS: u64 = 25;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(WRITE) {
        return write_until_killed(&args.next().expect("a path"));
    }
    let test = Trial::test("what_was_acknowledged_is_there", acknowledged_is_there);
    libtest_mimic::run(&Arguments::from_args(), vec![test]).exit_code()
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn write_until_killed(path: &str) -> ExitCode {
    let Opened { index, .. } = Index::open(Path::new(path), now()).expect("open");
    let tried = Try {
        image: "app".parse().expect("a name"),
        started: now(),
        duration: Duration::ZERO,
        result: TryResult::Unchanged,
        digest: None,
        size_bytes: None,
        copy_unknown: false,
        pulled_for: None,
        refused: false,
        by_hand: false,
    };
    let mut out = std::io::stdout();
    loop {
        index.record(&tried).expect("record");
        writeln!(out, "acknowledged").expect("the test listens");
        out.flush().expect("the test listens");
    }
}

fn acknowledged_is_there() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("index.redb");
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        acknowledged += killed_after(&path, Duration::from_micros(700 * round))?;
        let Opened { index, recovered } = Index::open(&path, now())?;
        if let Some(recovered) = recovered {
            return Err(format!("round {round}: {recovered:?}").into());
        }
        let found = index.all(now())?.pop().ok_or("no entry")?;
        let found = u64::from(found.week.tries);
        // One more may have been written than was acknowledged.
        if found < acknowledged || found > acknowledged + round + 1 {
            return Err(format!("round {round}: {found} of {acknowledged}").into());
        }
    }
    Ok(())
}

/// Lets a process write, kills it a moment after its first write, and returns how many writes it
/// acknowledged.
fn killed_after(path: &Path, moment: Duration) -> Result<u64, Failed> {
    let mut writer = Command::new(std::env::current_exe()?)
        .arg(WRITE)
        .arg(path)
        .stdout(Stdio::piped())
        .spawn()?;
    let out = writer.stdout.take().ok_or("no output")?;
    let mut lines = BufReader::new(out).lines();
    let first = lines.next().ok_or("nothing was written")?;
    sleep(moment);
    writer.kill()?;
    writer.wait()?;
    let more = lines.filter(|line| line.as_deref().is_ok_and(|line| line == "acknowledged"));
    Ok(u64::from(first.is_ok()) + more.count() as u64)
}
