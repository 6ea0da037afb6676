//! The administrator's configuration file: read at the start, and again whenever it has changed.
//!
//! A volume of a ConfigMap is swapped by a symbolic link, which a watch of the file itself would miss. So the file is
//! read every few seconds, and its bytes are compared. A file that is not valid changes nothing: what applied before
//! still does, and the log, a metric and an Event of the agent's own pod say so.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use trylatest_core::config::{Config, InvalidConfig, TEXT_MAX_BYTES};
use trylatest_core::pod::PodId;
use trylatest_k8s::{Notice, Operation};

use super::api::{Api, words};
use super::metrics::Metrics;
use crate::clock;

/// How often the file is read. The kubelet takes up to a minute and more to bring a changed ConfigMap.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long a read may take.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// Between two tries to write an Event: the first, and the longest; jitter adds up to as much. All agents have the same
/// file, and the same API server.
const TELL_AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Most keys of a ConfigMap that are looked at: there should be one.
const KEYS_MAX: usize = 100;

/// The part of an Event's text for what is wrong; the rest says what to do.
const PROBLEMS_MAX_BYTES: usize = 600;

/// What is where the file should be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// Nothing: the administrator configures nothing.
    Nothing,
    Content(Vec<u8>),
    /// A ConfigMap that has other keys, the first of them in order.
    Others(Vec<String>),
    /// It cannot be read.
    Error(String),
}

impl Found {
    fn read(path: &Path) -> Self {
        let mut content = Vec::new();
        // One byte more than is allowed shows that there are too many.
        let most = TEXT_MAX_BYTES as u64 + 1;
        let read = File::open(path).and_then(|file| file.take(most).read_to_end(&mut content));
        match read {
            Ok(_) => Self::Content(content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::missing(path),
            Err(error) => Self::Error(error.to_string()),
        }
    }

    /// What is there instead of the file. The kubelet keeps the keys of a ConfigMap in a folder of this name, and swaps
    /// it as a whole; it is empty if there is no ConfigMap. Elsewhere other files mean nothing.
    fn missing(path: &Path) -> Self {
        let names = || -> io::Result<Vec<String>> {
            let entries = std::fs::read_dir(path.with_file_name("..data"))?;
            let names = entries.take(KEYS_MAX).map(|entry| {
                let name = entry?.file_name();
                Ok(name.to_string_lossy().into_owned())
            });
            names.collect()
        };
        let mut names = match names() {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Self::Error(error.to_string()),
        };
        names.sort();
        // A ConfigMap that is being brought: the folder is there, and not yet the link to the file in it.
        let is_coming = names.iter().any(|name| path.ends_with(name));
        if is_coming || names.is_empty() {
            return Self::Nothing;
        }
        Self::Others(names)
    }

    fn parse(&self) -> Result<Config, InvalidConfig> {
        match self {
            Self::Nothing => Ok(Config::default()),
            Self::Content(content) => match std::str::from_utf8(content) {
                Ok(text) => Config::parse(text),
                Err(_) => Err(InvalidConfig::of_file("the file is not UTF-8 text")),
            },
            Self::Others(names) => Err(InvalidConfig::of_file(format!(
                "the ConfigMap has no such key, only {}",
                names.join(", ")
            ))),
            Self::Error(error) => Err(InvalidConfig::of_file(format!(
                "the file cannot be read: {error}"
            ))),
        }
    }

    /// The same for the same content, in every run of this program.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match self {
            Self::Nothing => {}
            Self::Content(content) => content.hash(&mut hasher),
            Self::Others(names) => names.hash(&mut hasher),
            Self::Error(error) => error.hash(&mut hasher),
        }
        hasher.finish()
    }
}

/// What the agent's pod is to say of its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
struct News {
    /// It was refused, and not taken again after that.
    refused: bool,
    note: String,
    fingerprint: u64,
}

/// The file, as it was when it was last read.
pub(super) struct ConfigFile {
    path: PathBuf,
    last: Found,
    /// What applies.
    config: Config,
    is_refused: bool,
    metrics: Arc<Metrics>,
    news: Option<News>,
    /// A read under way.
    reading: Option<JoinHandle<Found>>,
}

impl ConfigFile {
    /// Reads the file for the first time. One that is not valid leaves everything to the flags: a node must come up
    /// again, whatever somebody has written.
    pub(super) async fn open(path: PathBuf, metrics: Arc<Metrics>) -> Self {
        let mut file = Self {
            path,
            last: Found::Nothing,
            config: Config::default(),
            is_refused: false,
            metrics,
            news: None,
            reading: None,
        };
        match file.read().await {
            Found::Nothing => {
                file.metrics.config.set(true, None);
                info!(path = %file.path.display(), "there is no configuration file: the agent's flags apply");
            }
            found => drop(file.take(found)),
        }
        file
    }

    /// What applies.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// What follows it, and what it then says.
    pub(super) fn follow(self) -> (ConfigTask, watch::Receiver<Config>) {
        let (changed, receiver) = watch::channel(self.config.clone());
        let task = ConfigTask {
            file: self,
            changed,
        };
        (task, receiver)
    }

    /// Looks at the file. A disk that hangs must not keep the agent from its pods: one read is under way at most.
    async fn read(&mut self) -> Found {
        let path = self.path.clone();
        let begin = || spawn_blocking(move || Found::read(&path));
        let reading = self.reading.get_or_insert_with(begin);
        let Ok(read) = timeout(READ_WITHIN, reading).await else {
            return Found::Error(format!("no answer within {READ_WITHIN:?}"));
        };
        self.reading = None;
        read.unwrap_or_else(|error| Found::Error(error.to_string()))
    }

    /// Takes over what was found. True if something else applies now.
    fn take(&mut self, found: Found) -> bool {
        if found == self.last {
            return false;
        }
        let parsed = found.parse();
        let is_there = found != Found::Nothing;
        let fingerprint = found.fingerprint();
        self.last = found;
        match parsed {
            Ok(config) => {
                let loaded = is_there.then(clock::wall);
                self.metrics.config.set(true, loaded);
                let changes = self.config.changes(&config);
                let path = self.path.display();
                info!(%path, present = is_there, changes = changes.len(), "the configuration is valid");
                for change in &changes {
                    info!(change, "the configuration has changed");
                }
                if std::mem::take(&mut self.is_refused) {
                    let note = if is_there {
                        format!("the configuration {path} is valid again and applies")
                    } else {
                        format!("the configuration {path} is gone: the agent's flags apply")
                    };
                    self.news = Some(News {
                        refused: false,
                        note,
                        fingerprint,
                    });
                }
                self.config = config;
                !changes.is_empty()
            }
            Err(invalid) => {
                self.refuse(&invalid, fingerprint);
                false
            }
        }
    }

    fn refuse(&mut self, invalid: &InvalidConfig, fingerprint: u64) {
        self.metrics.config.set(false, None);
        self.is_refused = true;
        let path = self.path.display();
        for problem in &invalid.problems {
            error!(%path, %problem, "the configuration is refused");
        }
        let applies = if self.config == Config::default() {
            "the agent's flags apply, without ceilings"
        } else {
            "the configuration before it still applies, until the agent starts again"
        };
        let problems = invalid.summary(PROBLEMS_MAX_BYTES);
        let end = if problems.ends_with('?') { "" } else { "." };
        self.news = Some(News {
            refused: true,
            note: format!(
                "the configuration {path} is refused: {problems}{end} Until it is corrected, {applies}. Check a file \
                 before you apply it: trylatest config check FILE (docs/configuration.md)"
            ),
            fingerprint,
        });
    }
}

/// Follows the file.
pub(super) struct ConfigTask {
    file: ConfigFile,
    changed: watch::Sender<Config>,
}

impl ConfigTask {
    /// Runs until `stop`, and writes Events of the agent's own pod: its namespace and name.
    ///
    /// # Cancel safety
    /// Dropping it loses an Event at most, which the next run of the agent writes.
    pub(super) async fn run(
        self,
        api: Api,
        own_pod: (String, String),
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let follow = self.follow(|news| tell(api.clone(), own_pod.clone(), news));
        stop.run_until_cancelled(Box::pin(follow)).await;
        Ok(())
    }

    /// Looks for changes for ever; `tell` writes an Event, and says whether that is done.
    async fn follow<T: Future<Output = bool>>(mut self, mut tell: impl FnMut(News) -> T) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut tell_at, mut backoff) = (Instant::now(), pauses());
        loop {
            ticks.tick().await;
            let before = self.file.news.clone();
            let found = self.file.read().await;
            if self.file.take(found) {
                self.changed.send_replace(self.file.config.clone());
            }
            if self.file.news != before {
                (tell_at, backoff) = (Instant::now(), pauses());
            }
            if let Some(news) = self.file.news.take_if(|_| tell_at <= Instant::now())
                && !tell(news.clone()).await
            {
                self.file.news = Some(news);
                tell_at = Instant::now() + backoff.next().unwrap_or(TELL_AGAIN.1);
            }
        }
    }
}

fn pauses() -> impl Iterator<Item = Duration> {
    let pauses = ExponentialBuilder::new()
        .with_min_delay(TELL_AGAIN.0)
        .with_max_delay(TELL_AGAIN.1)
        .with_jitter()
        .without_max_times();
    pauses.build()
}

/// Writes an Event of the pod that the agent runs in. True if nothing is left to do.
async fn tell(api: Api, (namespace, name): (String, String), news: News) -> bool {
    let read = api.writer.uid_of(&namespace, &name).await;
    let uid = match api.count(Operation::OwnPod, read) {
        Ok(uid) => uid,
        Err(error) => {
            warn!(error = %words(&error), "the agent's own pod could not be read; retrying");
            return false;
        }
    };
    let pod = PodId {
        namespace,
        name,
        uid,
    };
    let notice = Notice::config(&pod, news.note, news.refused, news.fingerprint);
    api.notify(&pod, &notice).await
}

#[cfg(test)]
mod tests;
