//! What a person who waits sees.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// How often a line says that it still goes on.
const TICK: Duration = Duration::from_secs(15);

/// One line for whoever waits. Standard output belongs to the program that runs afterwards.
pub fn say(line: &str) {
    // Nobody reads it: nothing is lost by going on.
    let _ = writeln!(io::stderr(), "trylatest: {line}");
}

/// The time since it was made.
pub(crate) struct Clock(Instant);

impl Clock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this program decides nothing by the time, it only shows it"
    )]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// As people write it: `42 s`, `3 min 5 s`.
    pub(crate) fn elapsed(&self) -> String {
        let seconds = self.0.elapsed().as_secs();
        match seconds / 60 {
            0 => format!("{seconds} s"),
            minutes => format!("{minutes} min {} s", seconds % 60),
        }
    }
}

/// What a line of a command's standard error is.
pub(crate) enum Line {
    /// It counts as progress and is not shown.
    Step,
    /// It is shown if the command fails.
    Word,
}

/// Runs a command that takes long: says every now and then how many of its `steps` it has done.
///
/// # Errors
/// If it cannot be started, or fails; the message holds what it said.
pub(crate) fn watch(
    name: &str,
    steps: &str,
    mut command: Command,
    read: fn(&str) -> Line,
) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let clock = Clock::start();
    let lines = lines(&mut child)?;
    let mut done = 0;
    let mut words = Vec::new();
    let mut next = TICK;
    loop {
        match lines.recv_timeout(TICK) {
            Ok(line) => match read(&line) {
                Line::Step => done += 1,
                Line::Word => words.push(line),
            },
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if clock.0.elapsed() >= next {
            next = clock.0.elapsed() + TICK;
            say(&format!("  {name}: {done} {steps}, {}", clock.elapsed()));
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("wait for {program}"))?;
    if !status.success() {
        bail!(
            "{name}: {program} ended with {status}:\n{}",
            words.join("\n")
        );
    }
    say(&format!("  {name}: done in {}", clock.elapsed()));
    Ok(())
}

/// What a child says, as it says it. The other end hangs up when the child has no more to say.
fn lines(child: &mut Child) -> anyhow::Result<Receiver<String>> {
    let said = child.stderr.take().context("standard error is piped")?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn read(line: &str) -> Line {
        if line.contains(' ') {
            Line::Word
        } else {
            Line::Step
        }
    }

    #[test]
    fn a_failure_shows_what_was_said_and_no_progress() {
        let command = shell("echo one/package >&2; echo no such thing >&2; exit 3");
        let error = watch("it", "packages", command, read).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("no such thing"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(!error.contains("one/package"), "{error}");
    }

    #[test]
    fn a_success_is_one() {
        watch("it", "packages", shell("echo some words >&2"), read).unwrap();
    }
}
