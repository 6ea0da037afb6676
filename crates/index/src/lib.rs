//! What this node remembers of its TryLatest images, on disk.
//!
//! One redb file. In: finished tries ([`Index::record`]). Out: [`ImageRecord`]s. Every write is one
//! transaction that is on disk when the call returns, so a kill at any moment loses nothing that
//! was acknowledged. The calls block; the caller runs them on a thread that may block. This crate does
//! not read a clock, know containerd or log anything: what was recovered comes back as data.
//!
//! ```text
//!   meta:   "schema" ─► 1
//!   images: "docker.io/library/nginx:latest" ─► JSON of stored::Stored
//! ```
//!
//! Bounded: [`TRIES_MAX`] tries per image, a week of counts, and [`Index::prune`] drops images that
//! are gone and were not tried for [`KEEP`], or not among the last [`GONE_MAX`].

#[cfg(feature = "fuzz")]
pub mod fuzz;
mod recover;
mod stored;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use trylatest_core::image::ImageName;
use trylatest_core::record::{ImageRecord, LocalCopy, RolledBack, Try};
use trylatest_core::time::age;

pub use crate::recover::Recovered;
use crate::stored::Stored;

/// How many tries are remembered one by one for an image.
pub const TRIES_MAX: usize = 10;

/// How long an image is remembered that is neither on the node nor tried.
pub const KEEP: Duration = Duration::from_hours(30 * 24);

/// How many images are remembered that are not on the node. A node that runs a new tag every few
/// minutes would have tens of thousands in a month.
pub const GONE_MAX: usize = 1000;

/// The layout that this version writes. A larger number in a file means that a newer version wrote it.
const SCHEMA: u64 = 1;

/// redb would take up to 1 GiB. The whole index is some hundred kilobytes.
const CACHE_BYTES: usize = 512 << 10;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");

/// The index, open.
///
/// After a failed read or write redb requires that the file is closed and opened again: the call that
/// fails closes it, and the next one opens it. So a disk that was full for a moment only costs the
/// writes of that moment.
pub struct Index {
    file: PathBuf,
    /// None from a failure to the next call.
    store: RwLock<Option<Store>>,
    reopen: Reopen,
}

type Images<'a> = redb::Table<'a, &'static str, &'static [u8]>;

type ReadImages = redb::ReadOnlyTable<&'static str, &'static [u8]>;

type Reopen = Box<dyn Fn() -> Result<Store, redb::DatabaseError> + Send + Sync>;

enum Store {
    Owned(Database),
    ReadOnly(redb::ReadOnlyDatabase),
}

impl Store {
    fn begin_read(&self) -> Result<redb::ReadTransaction, IndexError> {
        match self {
            Self::Owned(database) => database.begin_read().map_err(reading),
            Self::ReadOnly(database) => database.begin_read().map_err(reading),
        }
    }

    fn begin_write(&self) -> Result<redb::WriteTransaction, IndexError> {
        match self {
            Self::Owned(database) => database.begin_write().map_err(writing),
            Self::ReadOnly(_) => Err(writing(redb::Error::Io(std::io::Error::from(
                std::io::ErrorKind::ReadOnlyFilesystem,
            )))),
        }
    }
}

/// An index after [`Index::open`].
pub struct Opened {
    /// The index.
    pub index: Index,
    /// What was moved aside, if the file was not usable.
    pub recovered: Option<Recovered>,
}

/// An index that cannot be used. Only [`OpenError::Locked`] is worth a retry: it passes when the other
/// process ends.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A newer version wrote it. It was not touched.
    #[error("the index {} was written by a newer version: {what}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// What this version does not know.
        what: String,
    },
    /// Another process has it open.
    #[error("the index {} is in use by another process", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The disk, or a damaged file that could not be moved aside.
    #[error("opening the index {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: Box<redb::Error>,
    },
    /// A damaged file could not be moved aside.
    #[error("moving the damaged index {} aside", path.display())]
    MoveAside {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
}

/// A read or write that failed: the disk is full or broken. Later calls may work again.
#[derive(Debug, thiserror::Error)]
#[error("{attempted} the index")]
pub struct IndexError {
    attempted: &'static str,
    source: Box<redb::Error>,
}

impl IndexError {
    /// redb refuses everything from then on.
    fn is_of_the_disk(&self) -> bool {
        matches!(*self.source, redb::Error::Io(_) | redb::Error::PreviousIo)
    }
}

fn opening<E: Into<redb::Error>>(error: E) -> IndexError {
    IndexError {
        attempted: "opening",
        source: Box::new(error.into()),
    }
}

fn reading<E: Into<redb::Error>>(error: E) -> IndexError {
    IndexError {
        attempted: "reading",
        source: Box::new(error.into()),
    }
}

fn writing<E: Into<redb::Error>>(error: E) -> IndexError {
    IndexError {
        attempted: "writing",
        source: Box::new(error.into()),
    }
}

impl Index {
    /// Opens the index, or makes a new one. Moves a file aside that is not a usable index, which
    /// [`Opened::recovered`] reports; the caller then fills the new one with [`Index::seed`].
    ///
    /// # Errors
    /// [`OpenError`]; the caller goes on without history.
    pub fn open(path: &Path, now: Timestamp) -> Result<Opened, OpenError> {
        let (database, recovered) = recover::open(path, now)?;
        let path = path.to_owned();
        let file = path.clone();
        // An existing file only: a new one would have no tables.
        let reopen = move || builder().open(&path).map(Store::Owned);
        let index = Self {
            file,
            store: RwLock::new(Some(Store::Owned(database))),
            reopen: Box::new(reopen),
        };
        Ok(Opened { index, recovered })
    }

    /// Opens an index that no agent uses, to read it. Writes to it fail.
    ///
    /// # Errors
    /// [`OpenError`], also for a damaged file: it is left as it is.
    pub fn open_read_only(path: &Path) -> Result<Self, OpenError> {
        let open = builder().open_read_only(path);
        let database = open.map_err(|error| open_error(path, error))?;
        let found = schema(&database).map_err(|source| OpenError::Open {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        check_schema(path, found)?;
        let path = path.to_owned();
        let file = path.clone();
        let reopen = move || builder().open_read_only(&path).map(Store::ReadOnly);
        Ok(Self {
            file,
            store: RwLock::new(Some(Store::ReadOnly(database))),
            reopen: Box::new(reopen),
        })
    }

    /// How large its file is, in bytes; none if the disk does not say.
    pub fn size_bytes(&self) -> Option<u64> {
        let file = std::fs::metadata(&self.file).ok()?;
        Some(file.len())
    }

    /// Records a try. It is on disk when this returns.
    ///
    /// # Errors
    /// [`IndexError`]: nothing was written.
    pub fn record(&self, tried: &Try) -> Result<(), IndexError> {
        let name = tried.image.as_str();
        self.write(|table| {
            let mut stored = table
                .get(name)?
                .and_then(|value| Stored::decode(value.value()))
                .unwrap_or_else(|| Stored::new(tried.started, None));
            stored.add(tried);
            table.insert(name, stored.encode().as_slice())?;
            Ok(())
        })
    }

    /// All records, by image name, except entries that cannot be read.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn all(&self, now: Timestamp) -> Result<Vec<ImageRecord>, IndexError> {
        self.read(|table| {
            let mut records = Vec::new();
            for entry in table.iter()? {
                let (name, value) = entry?;
                let stored = Stored::decode(value.value());
                if let (Ok(image), Some(stored)) = (name.value().parse(), stored) {
                    records.push(stored.into_record(image, now));
                }
            }
            Ok(records)
        })
    }

    /// Records images that are on the node, after the index was lost. Known entries stay.
    ///
    /// # Errors
    /// [`IndexError`]: nothing was written.
    pub fn seed(
        &self,
        images: &[(ImageName, LocalCopy)],
        now: Timestamp,
    ) -> Result<(), IndexError> {
        self.write(|table| {
            for (image, copy) in images {
                if table.get(image.as_str())?.is_none() {
                    let bytes = Stored::new(now, Some(copy.clone())).encode();
                    table.insert(image.as_str(), bytes.as_slice())?;
                }
            }
            Ok(())
        })
    }

    /// Takes over which names are pointed back to an earlier copy: of the images that are known, these and no others.
    /// Writes only what that changes: the agent says it again and again.
    ///
    /// # Errors
    /// [`IndexError`]: nothing was written.
    pub fn set_rolled_back(
        &self,
        back: &BTreeMap<ImageName, RolledBack>,
    ) -> Result<(), IndexError> {
        let back: BTreeMap<&str, &RolledBack> = back
            .iter()
            .map(|(image, back)| (image.as_str(), back))
            .collect();
        let with_change = |name: &str, value: &[u8]| {
            let mut stored = Stored::decode(value)?;
            let changes = stored.set_rolled_back(back.get(name).copied());
            changes.then_some(stored)
        };
        let changed = self.read(|table| {
            let mut changed = Vec::new();
            for entry in table.iter()? {
                let (name, value) = entry?;
                if with_change(name.value(), value.value()).is_some() {
                    changed.push(name.value().to_owned());
                }
            }
            Ok(changed)
        })?;
        if changed.is_empty() {
            return Ok(());
        }
        self.write(|table| {
            for name in &changed {
                // A try may have been recorded since it was read.
                let stored = table
                    .get(name.as_str())?
                    .and_then(|value| with_change(name, value.value()));
                if let Some(stored) = stored {
                    table.insert(name.as_str(), stored.encode().as_slice())?;
                }
            }
            Ok(())
        })
    }

    /// Drops images that are not `present` on the node and were not tried for [`KEEP`]. Of the others
    /// that are not present, keeps only the last [`GONE_MAX`]. Present ones count as seen now.
    ///
    /// # Errors
    /// [`IndexError`]: nothing was dropped.
    pub fn prune(&self, now: Timestamp, present: &[ImageName]) -> Result<(), IndexError> {
        let present: BTreeSet<&str> = present.iter().map(ImageName::as_str).collect();
        self.write(|table| {
            let (mut seen, mut gone) = (Vec::new(), Vec::new());
            table.retain(|name, value| {
                let Some(mut stored) = Stored::decode(value) else {
                    return false;
                };
                let age = age(now, stored.seen());
                if !present.contains(name) {
                    gone.push((age, name.to_owned()));
                    return age <= KEEP;
                }
                if age > KEEP / 2 {
                    stored.saw(now);
                    seen.push((name.to_owned(), stored.encode()));
                }
                true
            })?;
            for (name, bytes) in seen {
                table.insert(name.as_str(), bytes.as_slice())?;
            }
            gone.sort_unstable();
            for (_, name) in gone.iter().skip(GONE_MAX) {
                table.remove(name.as_str())?;
            }
            Ok(())
        })
    }

    /// Reads entries in one transaction.
    fn read<T>(
        &self,
        work: impl FnOnce(&ReadImages) -> Result<T, redb::StorageError>,
    ) -> Result<T, IndexError> {
        self.with(|store| {
            let read = store.begin_read()?;
            work(&read.open_table(IMAGES).map_err(reading)?).map_err(reading)
        })
    }

    /// Changes entries in one transaction.
    fn write(
        &self,
        change: impl FnOnce(&mut Images<'_>) -> Result<(), redb::StorageError>,
    ) -> Result<(), IndexError> {
        self.with(|store| {
            let write = store.begin_write()?;
            change(&mut write.open_table(IMAGES).map_err(writing)?).map_err(writing)?;
            write.commit().map_err(writing)
        })
    }

    /// Works with the open file; [`Index`] says when it is closed and opened.
    fn with<T>(&self, work: impl FnOnce(&Store) -> Result<T, IndexError>) -> Result<T, IndexError> {
        let done = {
            let mut store = self.store.read().unwrap_or_else(PoisonError::into_inner);
            if store.is_none() {
                drop(store);
                self.open_again()?;
                store = self.store.read().unwrap_or_else(PoisonError::into_inner);
            }
            // Another call may have failed in between: it is as good as a failure of this one.
            let store = store
                .as_ref()
                .ok_or_else(|| opening(redb::Error::PreviousIo))?;
            work(store)
        };
        if done.as_ref().is_err_and(IndexError::is_of_the_disk) {
            *self.store.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        done
    }

    fn open_again(&self) -> Result<(), IndexError> {
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        if store.is_none() {
            *store = Some((self.reopen)().map_err(opening)?);
        }
        Ok(())
    }
}

/// The schema of an open database; none if it is new.
fn schema(database: &impl ReadableDatabase) -> Result<Option<u64>, redb::Error> {
    let read = database.begin_read()?;
    match read.open_table(META) {
        Ok(table) => Ok(table.get("schema")?.map(|value| value.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn check_schema(path: &Path, found: Option<u64>) -> Result<(), OpenError> {
    match found {
        Some(found) if found > SCHEMA => Err(OpenError::Newer {
            path: path.to_owned(),
            what: format!("it has schema {found}, and this version knows schemas up to {SCHEMA}"),
        }),
        _ => Ok(()),
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::Locked { path },
        other => OpenError::Open {
            path,
            source: Box::new(other.into()),
        },
    }
}

#[cfg(test)]
mod tests;
