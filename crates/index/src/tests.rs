use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use tempfile::TempDir;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::record::{TryResult, Week};

use super::*;

fn now() -> Timestamp {
    "2026-01-31T12:00:00Z".parse().unwrap()
}

fn days(n: u64) -> Duration {
    Duration::from_secs(n * 86_400)
}

fn tried(image: &str, started: Timestamp, result: TryResult) -> Try {
    Try {
        image: image.parse().unwrap(),
        started,
        duration: Duration::from_millis(20),
        result,
        digest: "sha256:1".parse().ok(),
        size_bytes: Some(7),
        copy_unknown: false,
        pulled_for: None,
        refused: false,
        by_hand: false,
    }
}

fn failed(class: FailureClass) -> TryResult {
    TryResult::Failed(Failure::new(class, "why"))
}

fn open(dir: &TempDir) -> Opened {
    Index::open(&dir.path().join("index.redb"), now()).unwrap()
}

#[test]
fn tries_are_there_after_a_reopen() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir).index;
    for n in 0..20 {
        let result = if n % 2 == 0 {
            TryResult::Unchanged
        } else {
            failed(FailureClass::Network)
        };
        index
            .record(&tried("app", now() + Duration::from_secs(n), result))
            .unwrap();
    }
    drop(index);
    let Opened { index, recovered } = open(&dir);
    assert_eq!(recovered, None);
    let record = index.all(now()).unwrap().remove(0);
    assert_eq!(record.tries.len(), TRIES_MAX);
    assert_eq!(record.tries[0].started, now() + Duration::from_secs(19));
    let confirmed = record.facts.confirmed.as_ref().unwrap();
    assert_eq!(confirmed.time, now() + Duration::from_secs(18));
    assert_eq!(confirmed.digest.as_str(), "sha256:1");
    assert_eq!(
        record.week,
        Week {
            tries: 20,
            failures: 10
        }
    );
    assert_eq!(record.image.as_str(), "docker.io/library/app:latest");
}

#[test]
fn a_rollback_is_there_until_it_is_not() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir).index;
    for image in ["app", "other"] {
        let tried = tried(image, now(), TryResult::Fresh);
        index.record(&tried).unwrap();
    }
    let back = RolledBack {
        time: now() + days(1),
        from: "sha256:1".parse().ok(),
        to: "sha256:0".parse().unwrap(),
    };
    let unknown = "unknown".parse().unwrap();
    let all = [
        ("app".parse().unwrap(), back.clone()),
        (unknown, back.clone()),
    ];
    index.set_rolled_back(&all.into()).unwrap();
    drop(index);
    let index = open(&dir).index;
    let [app, other] = index.all(now()).unwrap().try_into().unwrap();
    assert_eq!(app.facts.rolled_back.as_deref(), Some(&back));
    assert_eq!(app.facts.copy.unwrap().digest, back.to);
    assert_eq!(other.facts.rolled_back, None);
    index.set_rolled_back(&BTreeMap::new()).unwrap();
    let [app, _] = index.all(now()).unwrap().try_into().unwrap();
    assert_eq!(app.facts.rolled_back, None);
}

#[test]
fn a_rollback_is_written_only_if_that_changes_something() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir).index;
    let began = tried("app", now(), TryResult::Fresh);
    index.record(&began).unwrap();
    let back = RolledBack {
        time: now() + days(1),
        from: "sha256:1".parse().ok(),
        to: "sha256:0".parse().unwrap(),
    };
    let all = [("app".parse().unwrap(), back.clone())].into();
    let content = || fs::read(&index.file).unwrap();
    let unmarked = content();
    index.set_rolled_back(&BTreeMap::new()).unwrap();
    assert!(content() == unmarked, "there was nothing to write");
    index.set_rolled_back(&all).unwrap();
    let marked = content();
    assert!(marked != unmarked);
    index.set_rolled_back(&all).unwrap();
    assert!(content() == marked, "it was written before");
    // A try that began before has ended since, and knows nothing of it.
    let duration = days(2);
    index.record(&Try { duration, ..began }).unwrap();
    assert_eq!(index.all(now()).unwrap()[0].facts.rolled_back, None);
    index.set_rolled_back(&all).unwrap();
    let record = index.all(now()).unwrap().remove(0);
    assert_eq!(record.facts.rolled_back.as_deref(), Some(&back));
}

#[test]
fn a_week_is_counted_and_no_more() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir).index;
    for ago in [9, 8, 6, 1, 0] {
        index
            .record(&tried(
                "app",
                now() - days(ago),
                failed(FailureClass::Network),
            ))
            .unwrap();
    }
    assert_eq!(index.all(now()).unwrap()[0].week.failures, 3);
    assert_eq!(index.all(now() + days(30)).unwrap()[0].week.tries, 0);
}

#[test]
fn credentials_are_remembered_until_the_registry_says_otherwise() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir).index;
    for (result, needs) in [
        (failed(FailureClass::Unauthorized), true),
        (failed(FailureClass::Network), true),
        (TryResult::Unchanged, false),
    ] {
        let tried = tried("app", now(), result);
        index.record(&tried).unwrap();
        assert_eq!(index.all(now()).unwrap()[0].facts.needs_credentials, needs);
    }
}

/// As versions before 0.1.0 wrote it. A refusal must outlive an upgrade.
#[test]
fn an_older_entry_is_read() {
    let old = br#"{"needs_credentials":true,"seen":"2026-01-31T12:00:00Z","tries":[],
        "slots":{"81896":{"tries":2,"fallbacks":1}}}"#;
    let stored = crate::stored::Stored::decode(old).unwrap();
    let record = stored.into_record("app".parse().unwrap(), now());
    assert!(record.facts.needs_credentials);
}

#[test]
fn a_silent_containerd_says_nothing_about_the_copy() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir).index;
    index
        .record(&tried("app", now(), TryResult::Fresh))
        .unwrap();
    for (copy_unknown, expected) in [(true, Some("sha256:1")), (false, None)] {
        let tried = Try {
            digest: None,
            size_bytes: None,
            copy_unknown,
            ..tried("app", now(), failed(FailureClass::Local))
        };
        index.record(&tried).unwrap();
        let copy = index.all(now()).unwrap().remove(0).facts.copy;
        assert_eq!(copy.as_ref().map(|copy| copy.digest.as_str()), expected);
    }
}

#[test]
fn images_that_are_gone_and_not_tried_for_30_days_go() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir).index;
    for image in ["here", "gone", "fresh"] {
        let then = if image == "fresh" {
            now()
        } else {
            now() - days(31)
        };
        index.record(&tried(image, then, TryResult::Fresh)).unwrap();
    }
    let names = |index: &Index| -> Vec<String> {
        let all = index.all(now()).unwrap().into_iter();
        all.map(|record| record.image.to_string()).collect()
    };
    index.prune(now(), &["here".parse().unwrap()]).unwrap();
    assert_eq!(
        names(&index),
        [
            "docker.io/library/fresh:latest",
            "docker.io/library/here:latest"
        ]
    );
    // `here` was seen a moment ago, so it stays after it has gone too.
    index.prune(now(), &[]).unwrap();
    assert_eq!(names(&index).len(), 2);
}

#[test]
fn of_images_that_are_gone_the_last_are_remembered() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir).index;
    let found = |digest: &str| LocalCopy {
        digest: digest.parse().unwrap(),
        size_bytes: None,
    };
    let old: Vec<_> = (0..3)
        .map(|n| (format!("old{n}").parse().unwrap(), found("sha256:1")))
        .collect();
    index.seed(&old, now() - days(1)).unwrap();
    let new: Vec<_> = (0..GONE_MAX - 1)
        .map(|n| (format!("new{n}").parse().unwrap(), found("sha256:2")))
        .collect();
    index.seed(&new, now()).unwrap();
    index.prune(now(), &[old[0].0.clone()]).unwrap();
    let all = index.all(now()).unwrap();
    let left = all.iter().map(|record| record.image.to_string());
    let old: Vec<_> = left.filter(|name| name.contains("/old")).collect();
    assert_eq!(all.len(), GONE_MAX + 1);
    // The one that is here, and one of the two others.
    assert_eq!(
        old,
        [
            "docker.io/library/old0:latest",
            "docker.io/library/old1:latest"
        ]
    );
}

#[test]
fn a_lost_index_is_seeded_and_what_is_known_stays() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir).index;
    index
        .record(&tried("app", now(), TryResult::Fresh))
        .unwrap();
    let found = LocalCopy {
        digest: "sha256:2".parse().unwrap(),
        size_bytes: Some(9),
    };
    let images = ["app", "new"].map(|name| (name.parse().unwrap(), found.clone()));
    index.seed(&images, now()).unwrap();
    let all = index.all(now()).unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(all[0].tries.len(), 1);
    assert_eq!(
        all[0].facts.copy.as_ref().unwrap().digest.as_str(),
        "sha256:1"
    );
    assert_eq!(all[1].facts.confirmed, None);
    assert_eq!(all[1].facts.copy, Some(found));
}

#[test]
fn whatever_is_in_the_file_it_opens_and_keeps_the_old_one() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("index.redb");
    let index = open(&dir).index;
    for n in 0..50 {
        index
            .record(&tried(&format!("app{n}"), now(), TryResult::Fresh))
            .unwrap();
    }
    drop(index);
    let good = fs::read(&path).unwrap();
    let mut recovered = 0;
    let truncated = [1, 16, 64, 512, 4096, 8192, good.len() / 2, good.len() - 1];
    let cut = truncated.iter().map(|&length| good[..length].to_vec());
    let flipped = (0..good.len()).step_by(good.len() / 97 + 1).map(|at| {
        let mut bytes = good.clone();
        for byte in bytes.iter_mut().skip(at).take(64) {
            *byte ^= 0x5a;
        }
        bytes
    });
    let garbage = [b"not an index at all".repeat(1000), vec![0; 9000]];
    for (n, bytes) in cut.chain(flipped).chain(garbage).enumerate() {
        fs::write(&path, &bytes).unwrap();
        let later = now() + Duration::from_secs(n as u64);
        let opened = Index::open(&path, later).unwrap();
        if let Some(moved) = &opened.recovered {
            recovered += 1;
            assert_eq!(fs::read(&moved.moved_to).unwrap().len(), bytes.len());
        }
        opened
            .index
            .record(&tried("app", now(), TryResult::Fresh))
            .unwrap();
        assert!(!opened.index.all(now()).unwrap().is_empty());
    }
    assert!(recovered > 8, "only {recovered} files were found damaged");
    let aside = fs::read_dir(dir.path()).unwrap().count() - 1;
    assert!(aside <= 3, "{aside} damaged files are kept");
}

#[test]
fn an_empty_file_is_a_new_index_and_a_folder_is_moved_aside() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("index.redb");
    fs::write(&path, b"").unwrap();
    drop(open(&dir));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(open(&dir).recovered.is_some());
}

/// Neither opening refuses to say so, nor changes anything.
fn is_newer(path: &Path) {
    let before = fs::read(path).unwrap();
    let error = Index::open(path, now()).err().unwrap();
    assert!(matches!(error, OpenError::Newer { .. }), "{error}");
    assert!(fs::read(path).unwrap() == before, "it was written to");
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

fn with_newer_schema(path: &Path) -> Database {
    let database = Database::create(path).unwrap();
    let write = database.begin_write().unwrap();
    write
        .open_table(META)
        .unwrap()
        .insert("schema", SCHEMA + 1)
        .unwrap();
    write.commit().unwrap();
    database
}

#[test]
fn a_newer_index_is_refused_and_not_touched() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("index.redb");
    drop(open(&dir));
    drop(with_newer_schema(&path));
    is_newer(&path);
    let error = Index::open_read_only(&path).err().unwrap();
    assert!(matches!(error, OpenError::Newer { .. }), "{error}");
}

/// As a kill leaves it: it wants a repair before it can be read.
#[test]
fn a_newer_index_that_was_not_closed_is_refused_and_not_touched() {
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let [open, killed] = dirs.each_ref().map(|dir| dir.path().join("index.redb"));
    let database = with_newer_schema(&open);
    fs::copy(&open, &killed).unwrap();
    let why = Builder::new().open_read_only(&killed).err();
    assert!(matches!(why, Some(DatabaseError::RepairAborted)), "{why:?}");
    is_newer(&killed);
    drop(database);
}

#[test]
fn a_newer_file_format_is_refused_and_not_touched() {
    // redb's docs/design.md: where the two commit slots have the version of the format.
    const VERSIONS: [usize; 2] = [64, 192];
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("index.redb");
    drop(open(&dir));
    let mut bytes = fs::read(&path).unwrap();
    for at in VERSIONS {
        bytes[at] += 1;
    }
    fs::write(&path, &bytes).unwrap();
    is_newer(&path);
    // What is no version at all is damage.
    for at in VERSIONS {
        bytes[at] = 0;
    }
    fs::write(&path, &bytes).unwrap();
    assert!(open(&dir).recovered.is_some());
}

#[test]
fn words_of_a_later_version_cost_the_try_and_not_the_entry() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir).index;
    let refused = tried("app", now(), failed(FailureClass::Unauthorized));
    index.record(&refused).unwrap();
    index
        .write(|table| {
            let name = refused.image.as_str();
            let json = table.get(name)?.map(|value| value.value().to_vec());
            let json = String::from_utf8(json.unwrap()).unwrap();
            let later = json.replace("\"unauthorized\"", "\"quarantined\"");
            assert_ne!(json, later);
            table.insert(name, later.as_bytes())?;
            Ok(())
        })
        .unwrap();
    let record = index.all(now()).unwrap().remove(0);
    assert!(record.facts.needs_credentials);
    assert_eq!(record.tries, []);
}

/// A disk that can be filled.
#[derive(Clone, Debug)]
struct Disk {
    bytes: Arc<InMemoryBackend>,
    full: Arc<AtomicBool>,
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.bytes.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.bytes.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.bytes.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.write(offset, data)
    }
}

#[test]
fn a_disk_that_was_full_for_a_moment_costs_that_moment() {
    let disk = Disk {
        bytes: Arc::new(InMemoryBackend::new()),
        full: Arc::default(),
    };
    let full = Arc::clone(&disk.full);
    let reopen = move || {
        builder()
            .create_with_backend(disk.clone())
            .map(Store::Owned)
    };
    let index = Index {
        file: PathBuf::new(),
        store: RwLock::new(None),
        reopen: Box::new(reopen),
    };
    index
        .record(&tried("before", now(), TryResult::Fresh))
        .unwrap();
    full.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        let error = index
            .record(&tried("lost", now(), TryResult::Fresh))
            .unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(!cause.contains("Previous"), "{cause}");
    }
    full.store(false, Ordering::Relaxed);
    index
        .record(&tried("after", now(), TryResult::Fresh))
        .unwrap();
    assert_eq!(index.all(now()).unwrap().len(), 2);
}

#[test]
fn an_index_in_use_is_locked() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("index.redb");
    let opened = open(&dir);
    let error = Index::open(&path, now()).err().unwrap();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    drop(opened);
    assert!(Index::open(&path, now()).is_ok());
}

#[test]
fn it_is_read_only_where_that_was_asked_for() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("index.redb");
    let index = open(&dir).index;
    index
        .record(&tried("app", now(), TryResult::Fresh))
        .unwrap();
    drop(index);
    let index = Index::open_read_only(&path).unwrap();
    assert_eq!(index.all(now()).unwrap().len(), 1);
    assert!(
        index
            .record(&tried("app", now(), TryResult::Fresh))
            .is_err()
    );
}
