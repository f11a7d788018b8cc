//! What only the durable engine has: the directory, group commit, failing disks.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;

use super::*;
use crate::index::Id;
use crate::plan::Record;

fn open(path: &Path) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open(path, Options::default())
}

async fn put(store: &EmbeddedStore, key: &str, value: &str) -> Result<Revision, StoreError> {
    let op = crate::Op::Put { key: key.to_owned().into(), value: value.to_owned().into() };
    match store.txn(Txn { guards: vec![], ops: vec![op] }).await? {
        TxnOutcome::Committed(revision) => Ok(revision),
        failed => panic!("{failed:?}"),
    }
}

/// Switches of a [`Faulty`] engine.
#[derive(Default)]
struct Faults {
    fail_commits: AtomicBool,
    fail_reads: AtomicBool,
    slow_commits: AtomicBool,
    commits: AtomicUsize,
}

/// A real engine with faults before it.
struct Faulty(Fjall, Arc<Faults>);

impl Engine for Faulty {
    fn commit(&self, records: &[Record]) -> Result<(), StoreError> {
        self.1.commits.fetch_add(1, Ordering::SeqCst);
        if self.1.slow_commits.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(100));
        }
        if self.1.fail_commits.load(Ordering::SeqCst) {
            let error = std::io::Error::from_raw_os_error(nix::libc::EIO);
            return Err(directory::io_error("write", Path::new("/data"), error));
        }
        self.0.commit(records)
    }
    fn values(&self, ids: &[Id]) -> Result<Vec<Option<Bytes>>, StoreError> {
        if self.1.fail_reads.load(Ordering::SeqCst) {
            let error = std::io::Error::from_raw_os_error(nix::libc::EIO);
            return Err(directory::io_error("read", Path::new("/data"), error));
        }
        self.0.values(ids)
    }
    fn scan(&self, from: u64, to: u64, visit: engine::Visit<'_>) -> Result<(), StoreError> {
        self.0.scan(from, to, visit)
    }
    fn remove(&self, ids: &[Id]) -> Result<(), StoreError> {
        self.0.remove(ids)
    }
    fn compacted(&self) -> Result<u64, StoreError> {
        self.0.compacted()
    }
    fn set_compacted(&self, at: u64) -> Result<(), StoreError> {
        self.0.set_compacted(at)
    }
}

fn faulty(path: &Path) -> (EmbeddedStore, Arc<Faults>) {
    let directory = Directory::open(path).unwrap();
    let engine = Fjall::open(path, &directory.engine_path(), 1 << 20).unwrap();
    directory.finish().unwrap();
    let faults = Arc::new(Faults::default());
    let engine = Box::new(Faulty(engine, faults.clone()));
    (EmbeddedStore::start(directory, engine, Options::default()).unwrap(), faults)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_commit_acknowledges_nothing_and_stops_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (store, faults) = faulty(dir.path());
    put(&store, "a", "1").await.unwrap();
    let mut watch = store.watch(Bytes::new(), Revision(2)).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().len(), 1);

    faults.fail_commits.store(true, Ordering::SeqCst);
    let writes = (0..10).map(|n| put(&store, if n % 2 == 0 { "a" } else { "b" }, "2"));
    for result in futures::future::join_all(writes).await {
        assert!(matches!(result, Err(StoreError::Poisoned { .. })), "{result:?}");
    }
    // The disk works again, but nobody knows what it kept.
    faults.fail_commits.store(false, Ordering::SeqCst);
    let error = put(&store, "a", "3").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "writes stopped after a failed commit (cannot write /data: Input/output error (os error 5)); fix the disk, then restart"
    );
    // Reads and the watch tell what was acknowledged.
    assert_eq!(store.get(b"a", None).await.unwrap().unwrap().value, "1");
    assert_eq!(store.revision(), Revision(2));
    assert!(tokio::time::timeout(Duration::from_millis(50), watch.next()).await.is_err());
    drop(store);
    let store = open(dir.path()).unwrap();
    assert_eq!(store.get(b"a", None).await.unwrap().unwrap().value, "1");
    assert_eq!(put(&store, "a", "3").await.unwrap(), Revision(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_share_commits() {
    let dir = tempfile::tempdir().unwrap();
    let (store, faults) = faulty(dir.path());
    faults.slow_commits.store(true, Ordering::SeqCst);
    let keys: Vec<String> = (0..200).map(|n| format!("k/{n}")).collect();
    let results = futures::future::join_all(keys.iter().map(|key| put(&store, key, "v"))).await;
    let mut revisions: Vec<u64> = results.into_iter().map(|r| r.unwrap().0).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (2..202).collect::<Vec<_>>());
    assert!(faults.commits.load(Ordering::SeqCst) < 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_reads_nothing_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (store, faults) = faulty(dir.path());
    put(&store, "a", "1").await.unwrap();
    let mut watch = store.watch(Bytes::new(), Revision(3)).await.unwrap();
    assert!(futures::FutureExt::now_or_never(watch.next()).is_none());
    faults.fail_reads.store(true, Ordering::SeqCst);
    put(&store, "a", "2").await.unwrap();
    let events = watch.next().await.unwrap().unwrap();
    assert_eq!((events.len(), &events[0].kv.value[..]), (1, &b"2"[..]));
}

#[tokio::test]
async fn a_second_opening_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let store = open(&path).unwrap();
    let error = open(&path).err().unwrap();
    assert!(matches!(&error, StoreError::Locked { path: named } if *named == path), "{error}");
    drop(store);
    open(&path).unwrap();
}

#[test]
fn only_the_owner_may_look() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let _store = open(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn strange_directories() {
    let check = |prepare: &dyn Fn(&Path), expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let error = open(dir.path()).err().unwrap().to_string();
        let message = error.replace(&dir.path().display().to_string(), "DIR");
        assert!(message.starts_with(expected), "{message}");
    };
    let write = |name: &'static str, content: &'static [u8]| {
        move |path: &Path| std::fs::write(path.join(name), content).unwrap()
    };
    check(
        &write("notes.txt", b"hello"),
        "DIR is not a data directory of this version: it has no FORMAT file but contains",
    );
    check(
        &write("FORMAT", b"orlop-store 2 fjall\n"),
        "DIR is not a data directory of this version: its format is \"orlop-store 2 fjall\", this version reads",
    );
    check(
        &write("FORMAT", b"\xff\xfe"),
        "DIR is not a data directory of this version: its FORMAT file is not text",
    );
    let damaged = |name: &'static str, content: &'static [u8]| {
        move |path: &Path| {
            drop(open(path).unwrap());
            std::fs::write(path.join("fjall").join(name), content).unwrap();
        }
    };
    check(
        &damaged("version", b"what?"),
        "DIR is not a data directory of this version: the engine's file format is None",
    );
    check(&damaged("keyspaces/1/current", b"what?"), "data in DIR is damaged: ");
    check(
        &|path: &Path| std::fs::write(path.join("FORMAT"), "orlop-store 1 fjall\n").unwrap(),
        "data in DIR is damaged: fjall/version is missing",
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = open(file.path()).err().unwrap().to_string();
    assert!(error.starts_with("cannot create data directory"), "{error}");
}

#[tokio::test]
async fn an_interrupted_creation_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("FORMAT"), "orlop-store creating\n").unwrap();
    std::fs::create_dir(dir.path().join("fjall")).unwrap();
    std::fs::write(dir.path().join("fjall/0.jnl"), "half").unwrap();
    let store = open(dir.path()).unwrap();
    assert_eq!(put(&store, "a", "1").await.unwrap(), Revision(2));
    drop(store);
    assert_eq!(open(dir.path()).unwrap().revision(), Revision(2));
}

#[tokio::test]
async fn damaged_values_are_not_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let value = "a value that can be found in the file".repeat(10);
    {
        let store = open(dir.path()).unwrap();
        put(&store, "a", &value).await.unwrap();
        put(&store, "b", "intact").await.unwrap();
    }
    let file = dir.path().join("fjall/0.jnl");
    let mut bytes = std::fs::read(&file).unwrap();
    let needle = value.as_bytes();
    let places: Vec<usize> =
        (0..bytes.len() - needle.len()).filter(|at| bytes[*at..].starts_with(needle)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at + 20] ^= 1;
    }
    std::fs::write(&file, bytes).unwrap();
    let error = open(dir.path()).err().unwrap();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_hole_in_the_log_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path()).unwrap();
        for key in ["a", "b", "c", "d"] {
            put(&store, key, "v").await.unwrap();
        }
        store.compact(Revision(2)).await.unwrap();
        store.shared.engine.remove(&[Id { revision: 4, sub: 0 }]).unwrap();
    }
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("the log has a hole between the revisions 3 and 5"), "{error}");
}

#[tokio::test]
async fn puts_are_refused_while_the_disk_is_nearly_full() {
    let dir = tempfile::tempdir().unwrap();
    {
        put(&open(dir.path()).unwrap(), "a", "1").await.unwrap();
    }
    let full = Options { reserve_bytes: u64::MAX, ..Options::default() };
    let store = EmbeddedStore::open(dir.path(), full).unwrap();
    let error = put(&store, "b", "1").await.unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }) && error.is_retriable(), "{error}");
    // What frees space goes on.
    assert_eq!(store.txn(Txn::delete("a", Revision(2))).await.unwrap(), TxnOutcome::Committed(Revision(3)));
    store.compact(Revision(3)).await.unwrap();
}

/// A file system of 16 MiB that is filled to the last block. Needs root.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing() {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let none: Option<&str> = None;
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(none, dir.path(), Some("tmpfs"), flags, Some("size=16m"))
        .expect("this test needs root");
    let mounted = Mounted(dir.path().to_owned());
    let path = mounted.0.join("data");
    let options = Options { reserve_bytes: 0, ..Options::default() };

    let store = EmbeddedStore::open(&path, options).unwrap();
    let value = "v".repeat(100_000);
    let mut acknowledged = 0;
    let error = loop {
        match put(&store, &format!("k/{acknowledged:04}"), &value).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1000);
    };
    assert!(matches!(error, StoreError::Poisoned { .. }), "{error}");
    assert!(error.to_string().contains("no space left for"), "{error}");
    assert!(acknowledged > 10);
    drop(store);

    // More room, as an operator would make.
    let flags = nix::mount::MsFlags::MS_REMOUNT;
    nix::mount::mount(none, &mounted.0, Some("tmpfs"), flags, Some("size=64m")).unwrap();
    let store = EmbeddedStore::open(&path, options).unwrap();
    let all = store.range(Range::prefix("k/")).await.unwrap();
    assert!(all.kvs.len() >= acknowledged, "{} of {acknowledged}", all.kvs.len());
    assert!(all.kvs.iter().all(|kv| kv.value == value));
    put(&store, "a", "1").await.unwrap();
}
