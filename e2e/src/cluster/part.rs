//! One program of the cluster, that can be ended and started again.

use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::Mutex;

use crate::process::{Process, Spec};

/// How long a part may take to end in order.
const GRACE: Duration = Duration::from_secs(5);

/// A program that runs, or does not. Safe to share: calls wait for each other.
#[derive(Debug)]
pub struct Part {
    spec: Spec,
    process: Mutex<Option<Process>>,
}

impl Part {
    /// Starts the program.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn start_new(spec: Spec) -> anyhow::Result<Self> {
        let process = spec.clone().spawn().await?;
        Ok(Self {
            spec,
            process: Mutex::new(Some(process)),
        })
    }

    /// Starts the program again, if it does not run.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn start(&self) -> anyhow::Result<()> {
        let mut process = self.process.lock().await;
        if process.is_none() {
            *process = Some(self.spec.clone().spawn().await?);
        }
        Ok(())
    }

    /// Ends the program with SIGTERM; with SIGKILL if that does not help.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn stop(&self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.lock().await.take() {
            process.stop(GRACE).await?;
        }
        Ok(())
    }

    /// Ends the program with SIGKILL.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn kill(&self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.lock().await.take() {
            process.kill().await?;
        }
        Ok(())
    }

    /// Sends a signal to the program, if it runs.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        match &*self.process.lock().await {
            Some(process) => process.signal(signal),
            None => Ok(()),
        }
    }

    /// The process id of the program, if it runs.
    pub async fn pid(&self) -> Option<u32> {
        self.process.lock().await.as_ref().map(Process::pid)
    }

    /// Fails, with the last lines of its log, if the program should run and has ended.
    ///
    /// # Errors
    /// If it has ended by itself.
    pub async fn check(&self) -> anyhow::Result<()> {
        match &mut *self.process.lock().await {
            Some(process) => process.check(),
            None => Ok(()),
        }
    }
}
