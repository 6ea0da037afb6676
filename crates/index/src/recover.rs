//! Opens the file, or moves it aside and starts a new one if it is not a usable index.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use redb::backends::InMemoryBackend;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError,
};

use crate::{IMAGES, META, OpenError, SCHEMA, builder, check_schema, open_error, schema};

/// Damaged files that are kept for a person to look at.
const ASIDE_MAX: usize = 3;

/// A damaged file was moved aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Where it is now.
    pub moved_to: PathBuf,
    /// What was wrong with it.
    pub why: String,
}

pub(crate) fn open(
    path: &Path,
    now: Timestamp,
) -> Result<(Database, Option<Recovered>), OpenError> {
    refuse_newer(path)?;
    let damage = match try_open(path) {
        Ok(database) => return Ok((database, None)),
        Err(Problem::Final(error)) => return Err(error),
        Err(Problem::Damaged(why)) => why,
    };
    let moved_to = move_aside(path, now).map_err(|source| OpenError::MoveAside {
        path: path.to_owned(),
        source,
    })?;
    match try_open(path) {
        Ok(database) => {
            let why = damage;
            Ok((database, Some(Recovered { moved_to, why })))
        }
        Err(Problem::Final(error)) => Err(error),
        Err(Problem::Damaged(why)) => Err(OpenError::Open {
            path: path.to_owned(),
            source: Box::new(redb::Error::Corrupted(why)),
        }),
    }
}

/// Opening for writes changes a file, so this looks for a newer index without writing: read-only or, if
/// the file needs a repair first, in a copy. If it cannot be read this way, it is not known to be newer,
/// and the caller decides later.
fn refuse_newer(path: &Path) -> Result<(), OpenError> {
    let looked = catch_unwind(AssertUnwindSafe(|| match builder().open_read_only(path) {
        Ok(database) => Ok(schema(&database)),
        Err(DatabaseError::RepairAborted) => builder()
            .create_with_backend(copy(path)?)
            .map(|database| schema(&database)),
        Err(error) => Err(error),
    }));
    match looked {
        Ok(Ok(Ok(found))) => check_schema(path, found),
        Ok(Err(DatabaseError::Storage(StorageError::Corrupted(why))))
            if is_of_a_newer_format(&why) =>
        {
            Err(OpenError::Newer {
                path: path.to_owned(),
                what: why,
            })
        }
        _ => Ok(()),
    }
}

/// redb has no separate error for a format that it does not know yet, only this text.
fn is_of_a_newer_format(why: &str) -> bool {
    let numbers = why
        .strip_prefix("Expected file format version <= ")
        .and_then(|rest| rest.split_once(", found "));
    let [known, found] = match numbers {
        Some((known, found)) => [known, found].map(|number| number.parse::<u8>().ok()),
        None => return false,
    };
    found > known && known.is_some()
}

/// The file in memory. It is some hundred kilobytes.
fn copy(path: &Path) -> Result<InMemoryBackend, StorageError> {
    let bytes = fs::read(path).map_err(StorageError::Io)?;
    let backend = InMemoryBackend::new();
    backend
        .set_len(bytes.len() as u64)
        .and_then(|()| backend.write(0, &bytes))
        .map_err(StorageError::Io)?;
    Ok(backend)
}

enum Problem {
    /// Moving the file aside would not help, or must not happen.
    Final(OpenError),
    /// The file is not a usable index.
    Damaged(String),
}

/// Opens and reads everything once, so that damage shows now and not during an outage.
fn try_open(path: &Path) -> Result<Database, Problem> {
    if path.is_dir() {
        return Err(Problem::Damaged("it is a folder".to_owned()));
    }
    // redb checks its checksums; a file that was made to fool them may still trip an assertion.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let database = builder()
            .set_check_integrity_on_open(true)
            .create(path)
            .map_err(|error| problem(path, error))?;
        prepare(path, &database)?;
        Ok(database)
    }));
    opened.unwrap_or_else(|_| Err(Problem::Damaged("reading it panicked".to_owned())))
}

fn prepare(path: &Path, database: &Database) -> Result<(), Problem> {
    let unreadable = |error: redb::Error| match error {
        redb::Error::Io(_) => Problem::Final(OpenError::Open {
            path: path.to_owned(),
            source: Box::new(error),
        }),
        other => Problem::Damaged(other.to_string()),
    };
    let found = schema(database).map_err(unreadable)?;
    check_schema(path, found).map_err(Problem::Final)?;
    let write = || -> Result<(), redb::Error> {
        if found.is_none() {
            let write = database.begin_write()?;
            write.open_table(META)?.insert("schema", SCHEMA)?;
            write.open_table(IMAGES)?;
            write.commit()?;
        }
        let read = database.begin_read()?;
        for entry in read.open_table(IMAGES)?.iter()? {
            entry?;
        }
        Ok(())
    };
    write().map_err(unreadable)
}

fn problem(path: &Path, error: DatabaseError) -> Problem {
    match error {
        DatabaseError::Storage(StorageError::Io(ref io))
            if !matches!(
                io.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Problem::Final(open_error(path, error))
        }
        DatabaseError::DatabaseAlreadyOpen
        | DatabaseError::LockProtocolMismatch
        | DatabaseError::TransactionInProgress => Problem::Final(open_error(path, error)),
        damaged => Problem::Damaged(damaged.to_string()),
    }
}

fn move_aside(path: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let prefix = format!("{}.corrupt-", file_name(path));
    let moved_to = path.with_file_name(format!("{prefix}{}", now.as_second()));
    if moved_to.is_dir() {
        fs::remove_dir_all(&moved_to)?;
    }
    fs::rename(path, &moved_to)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut aside: Vec<PathBuf> = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|other| file_name(other).starts_with(&prefix))
        .collect();
    aside.sort();
    for old in aside.iter().rev().skip(ASIDE_MAX) {
        if old.is_dir() {
            fs::remove_dir_all(old)?;
        } else {
            fs::remove_file(old)?;
        }
    }
    Ok(moved_to)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
