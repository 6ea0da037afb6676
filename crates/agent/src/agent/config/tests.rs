//! The file as a volume of a ConfigMap has it.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

/// A volume of a ConfigMap, as the kubelet writes it: the file is a link into `..data`, which is a link to a folder,
/// and replaced as a whole.
struct Volume {
    dir: TempDir,
    version: u32,
}

impl Volume {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        symlink("..data/config.yaml", dir.path().join("config.yaml")).unwrap();
        Self { dir, version: 0 }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("config.yaml")
    }

    fn write(&mut self, content: impl AsRef<[u8]>) {
        self.bring(&[("config.yaml", content.as_ref())]);
    }

    /// Without links to the keys, but for that of the file.
    fn bring(&mut self, keys: &[(&str, &[u8])]) {
        self.version += 1;
        let root = self.dir.path();
        let folder = format!("..version-{}", self.version);
        fs::create_dir(root.join(&folder)).unwrap();
        for (key, content) in keys {
            fs::write(root.join(&folder).join(key), content).unwrap();
        }
        let new = root.join("..data_tmp");
        symlink(&folder, &new).unwrap();
        fs::rename(new, root.join("..data")).unwrap();
    }

    /// As when the ConfigMap is deleted.
    fn empty(&mut self) {
        self.bring(&[]);
    }
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new("1").unwrap())
}

fn shows(metrics: &Metrics, line: &str) -> bool {
    metrics.text().unwrap().lines().any(|shown| shown == line)
}

async fn look(file: &mut ConfigFile) -> bool {
    let found = file.read().await;
    file.take(found)
}

fn parsed(text: &str) -> Config {
    Config::parse(text).unwrap()
}

const GOOD: &str = "defaults: {try: 10s}";
const BAD: &str = "defaults: {tri: 10s, stall: 0s}";

#[tokio::test]
async fn a_file_that_is_missing_or_bad_at_the_start_leaves_everything_to_the_flags() {
    let mut volume = Volume::new();
    let metrics = metrics();
    let file = ConfigFile::open(volume.path(), Arc::clone(&metrics)).await;
    assert_eq!(*file.config(), Config::default());
    assert_eq!(file.news, None);
    assert!(shows(&metrics, "trylatest_config_valid 1"));
    assert!(shows(
        &metrics,
        "trylatest_config_loaded_timestamp_seconds 0"
    ));
    let bad: [&[u8]; 3] = [BAD.as_bytes(), b"\xff\xfe", &vec![b'#'; TEXT_MAX_BYTES + 1]];
    for content in bad {
        volume.write(content);
        let file = ConfigFile::open(volume.path(), Arc::clone(&metrics)).await;
        assert_eq!(*file.config(), Config::default());
        let news = file.news.unwrap();
        assert!(news.refused);
        assert!(
            news.note.contains("flags apply, without ceilings"),
            "{}",
            news.note
        );
        assert!(shows(&metrics, "trylatest_config_valid 0"));
    }
}

#[tokio::test]
async fn a_config_map_without_the_key_is_refused_and_none_at_all_is_not() {
    let mut volume = Volume::new();
    let metrics = metrics();
    volume.write(GOOD);
    let mut file = ConfigFile::open(volume.path(), Arc::clone(&metrics)).await;
    volume.bring(&[("rules.yaml", b"#"), ("config.yml", GOOD.as_bytes())]);
    assert!(!look(&mut file).await);
    assert_eq!(*file.config(), parsed(GOOD));
    assert!(shows(&metrics, "trylatest_config_valid 0"));
    let news = file.news.take().unwrap();
    let why =
        "config.yaml is refused: the ConfigMap has no such key, only config.yml, rules.yaml. Until";
    assert!(news.refused && news.note.contains(why), "{}", news.note);
    // It is deleted.
    volume.empty();
    assert!(look(&mut file).await);
    assert!(shows(&metrics, "trylatest_config_valid 1"));
    let news = file.news.take().unwrap();
    assert!(
        !news.refused && news.note.contains("is gone"),
        "{}",
        news.note
    );
    // It comes with the right key, and the kubelet has not yet made the link to it.
    fs::remove_file(volume.path()).unwrap();
    volume.bring(&[("config.yaml", GOOD.as_bytes()), ("notes", b"#")]);
    assert!(!look(&mut file).await);
    assert_eq!((file.news.take(), file.is_refused), (None, false));
    // A start with the wrong one leaves everything to the flags.
    volume.bring(&[("config.yml", GOOD.as_bytes())]);
    let file = ConfigFile::open(volume.path(), Arc::clone(&metrics)).await;
    assert_eq!(*file.config(), Config::default());
    assert!(file.news.unwrap().note.contains("without ceilings"));
    // Files that no ConfigMap has brought.
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.yml"), GOOD).unwrap();
    let file = ConfigFile::open(dir.path().join("config.yaml"), metrics).await;
    assert_eq!(file.news, None);
}

#[tokio::test]
async fn a_folder_in_the_files_place_is_refused() {
    let dir = TempDir::new().unwrap();
    let metrics = metrics();
    let file = ConfigFile::open(dir.path().to_owned(), Arc::clone(&metrics)).await;
    assert!(file.news.unwrap().note.contains("cannot be read"));
}

#[tokio::test]
async fn a_bad_file_leaves_the_one_before_it_and_says_why() {
    let mut volume = Volume::new();
    let metrics = metrics();
    volume.write(GOOD);
    let mut file = ConfigFile::open(volume.path(), Arc::clone(&metrics)).await;
    assert_eq!(*file.config(), parsed(GOOD));
    volume.write(BAD);
    assert!(!look(&mut file).await);
    assert_eq!(*file.config(), parsed(GOOD));
    assert!(shows(&metrics, "trylatest_config_valid 0"));
    // What applies was loaded some time ago, and still is.
    assert!(!shows(
        &metrics,
        "trylatest_config_loaded_timestamp_seconds 0"
    ));
    let news = file.news.take().unwrap();
    let start = format!(
        "the configuration {} is refused: line 1, column 12: defaults.tri: unknown key; did you mean \"try\"?; line 1, \
         column 29: defaults.stall: invalid duration \"0s\": it must be more than 0 and at most 24h; write it like 5s or \
         1m30s. Until it is corrected, the configuration before it still applies",
        volume.path().display()
    );
    assert!(news.note.starts_with(&start), "{}", news.note);
    // Not "?.".
    volume.write("defaults: {tri: 10s}");
    assert!(!look(&mut file).await);
    let note = file.news.take().unwrap().note;
    assert!(
        note.contains("did you mean \"try\"? Until it is corrected"),
        "{note}"
    );
    // It is read again and again, and said once.
    assert!(!look(&mut file).await);
    assert_eq!(file.news, None);
    // The one before, again: nothing changes but that all is well.
    volume.write(GOOD);
    assert!(!look(&mut file).await);
    assert!(shows(&metrics, "trylatest_config_valid 1"));
    assert!(!file.news.take().unwrap().refused);
    // A ConfigMap that is deleted is meant to be.
    volume.empty();
    assert!(look(&mut file).await);
    assert_eq!(*file.config(), Config::default());
    assert!(shows(
        &metrics,
        "trylatest_config_loaded_timestamp_seconds 0"
    ));
}

#[tokio::test(start_paused = true)]
async fn a_swapped_volume_is_noticed_and_an_event_is_written_until_that_works() {
    let mut volume = Volume::new();
    let file = ConfigFile::open(volume.path(), metrics()).await;
    let (task, mut changed) = file.follow();
    let told = RefCell::new(Vec::new());
    let (written, mut wrote) = tokio::sync::mpsc::unbounded_channel();
    let mut failures = 3;
    let run = task.follow(|news: News| {
        let fails = failures > 0;
        if fails {
            failures -= 1;
        } else {
            told.borrow_mut().push(news.refused);
            let _ = written.send(());
        }
        std::future::ready(!fails)
    });
    let script = async {
        volume.write(GOOD);
        changed.changed().await.unwrap();
        assert_eq!(*changed.borrow_and_update(), parsed(GOOD));
        volume.write(BAD);
        wrote.recv().await.unwrap();
        assert!(!changed.has_changed().unwrap());
        volume.write("defaults: {try: 20s}");
        changed.changed().await.unwrap();
        wrote.recv().await.unwrap();
    };
    tokio::select! {
        () = run => panic!("it has ended"),
        () = script => {}
    }
    assert_eq!(*told.borrow(), [true, false]);
}
