//! Measures the engines that could carry the embedded store, on the layout that it uses: one small record per change
//! (revision → key) and one value (revision → bytes), one durable commit for all transactions that wait (group commit).
//!
//! `cargo bench -p orlop-store --bench engines` prints the table of `docs/decisions/0001-store-engine.md`. Each engine
//! runs in a process of its own, so that memory is told apart; each is reopened after an abort, as after a crash.
//! Bounds: `ENGINES_SECONDS` per row of writers (default 4), `ENGINES_UPDATES` (default 1,000,000).

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::env;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng, rngs::SmallRng};

const VALUE_BYTES: usize = 1024;
const KEYS: u64 = 10_000;
/// How many revisions of history the updates keep.
const HISTORY: u64 = 100_000;
const BATCH: u64 = 1000;

struct Change {
    revision: u64,
    key: Vec<u8>,
    value: Vec<u8>,
}

trait Engine: Send {
    /// Adds changes and removes revisions in one durable commit.
    fn commit(&mut self, changes: &[Change], remove: &[u64]);
    /// Reads all small records, as a restart does, and answers how many there are.
    fn load(&self) -> u64;
    fn read(&self, revision: u64) -> bool;
}

struct Fjall {
    db: fjall::Database,
    log: fjall::Keyspace,
    values: fjall::Keyspace,
}

impl Fjall {
    fn open(path: &Path) -> Fjall {
        let db = fjall::Database::builder(path)
            .cache_size(8 << 20)
            .max_journaling_size(64 << 20)
            .worker_threads(2)
            .open()
            .unwrap();
        let options =
            |memtable: u64| move || fjall::KeyspaceCreateOptions::default().max_memtable_size(memtable);
        let log = db.keyspace("log", options(4 << 20)).unwrap();
        let values = db.keyspace("values", options(8 << 20)).unwrap();
        Fjall { db, log, values }
    }
}

impl Engine for Fjall {
    fn commit(&mut self, changes: &[Change], remove: &[u64]) {
        let mut batch = self.db.batch().durability(Some(fjall::PersistMode::SyncData));
        for change in changes {
            let id = change.revision.to_be_bytes();
            batch.insert(&self.log, id, change.key.as_slice());
            batch.insert(&self.values, id, change.value.as_slice());
        }
        for revision in remove {
            batch.remove(&self.log, revision.to_be_bytes());
            batch.remove(&self.values, revision.to_be_bytes());
        }
        batch.commit().unwrap();
    }
    fn load(&self) -> u64 {
        self.log.iter().map(|guard| guard.into_inner().unwrap().1.len()).filter(|len| *len > 0).count() as u64
    }
    fn read(&self, revision: u64) -> bool {
        self.values.get(revision.to_be_bytes()).unwrap().is_some()
    }
}

const LOG: redb::TableDefinition<u64, &[u8]> = redb::TableDefinition::new("log");
const VALUES: redb::TableDefinition<u64, &[u8]> = redb::TableDefinition::new("values");

struct Redb {
    db: redb::Database,
    quick_repair: bool,
}

impl Redb {
    fn open(path: &Path, quick_repair: bool) -> Redb {
        std::fs::create_dir_all(path).unwrap();
        let db = redb::Builder::new().set_cache_size(8 << 20).create(path.join("store.redb")).unwrap();
        Redb { db, quick_repair }
    }
}

impl Engine for Redb {
    fn commit(&mut self, changes: &[Change], remove: &[u64]) {
        let mut txn = self.db.begin_write().unwrap();
        txn.set_durability(redb::Durability::Immediate).unwrap();
        txn.set_quick_repair(self.quick_repair);
        {
            let mut log = txn.open_table(LOG).unwrap();
            let mut values = txn.open_table(VALUES).unwrap();
            for change in changes {
                log.insert(change.revision, change.key.as_slice()).unwrap();
                values.insert(change.revision, change.value.as_slice()).unwrap();
            }
            for revision in remove {
                log.remove(revision).unwrap();
                values.remove(revision).unwrap();
            }
        }
        txn.commit().unwrap();
    }
    fn load(&self) -> u64 {
        use redb::{ReadableDatabase, ReadableTable};
        let txn = self.db.begin_read().unwrap();
        let Ok(log) = txn.open_table(LOG) else { return 0 };
        log.iter().unwrap().map(|entry| entry.unwrap().1.value().len()).filter(|len| *len > 0).count() as u64
    }
    fn read(&self, revision: u64) -> bool {
        use redb::ReadableDatabase;
        let txn = self.db.begin_read().unwrap();
        txn.open_table(VALUES).unwrap().get(revision).unwrap().is_some()
    }
}

fn open(engine: &str, path: &Path) -> Box<dyn Engine> {
    match engine {
        "fjall" => Box::new(Fjall::open(path)),
        "redb" => Box::new(Redb::open(path, false)),
        "redb-quick-repair" => Box::new(Redb::open(path, true)),
        other => panic!("unknown engine {other}"),
    }
}

/// Text that compresses about as well as the JSON of a Kubernetes object.
fn value(rng: &mut SmallRng) -> Vec<u8> {
    (0..VALUE_BYTES)
        .map(|i| if i % 3 == 0 { b"{\":,}ame"[i % 8] } else { b'a' + rng.random_range(0..16) })
        .collect()
}

fn key(rng: &mut SmallRng) -> Vec<u8> {
    format!("/registry/pods/namespace-{}/pod-{}", rng.random_range(0..100), rng.random_range(0..KEYS))
        .into_bytes()
}

/// Concurrent writers, each waiting for its own write; one thread commits whatever waits.
fn writers(mut engine: Box<dyn Engine>, writers: usize, run: Duration) -> (f64, Duration, Duration) {
    type Request = (Vec<u8>, Vec<u8>, mpsc::SyncSender<()>);
    let (queue, requests) = mpsc::sync_channel::<Request>(1024);
    let committer = std::thread::spawn(move || {
        let mut revision = 0;
        while let Ok(first) = requests.recv() {
            let mut batch = vec![first];
            batch.extend(requests.try_iter().take(1023));
            let (changes, acks): (Vec<_>, Vec<_>) = batch
                .into_iter()
                .map(|(key, value, ack)| {
                    revision += 1;
                    (Change { revision, key, value }, ack)
                })
                .unzip();
            engine.commit(&changes, &[]);
            acks.into_iter().for_each(|ack| ack.send(()).unwrap());
        }
    });
    let start = Instant::now();
    let threads: Vec<_> = (0..writers)
        .map(|n| {
            let queue = queue.clone();
            std::thread::spawn(move || {
                let mut rng = SmallRng::seed_from_u64(n as u64);
                let (ack, acked) = mpsc::sync_channel(1);
                let mut latencies = Vec::new();
                while start.elapsed() < run {
                    let request = (key(&mut rng), value(&mut rng), ack.clone());
                    let sent = Instant::now();
                    queue.send(request).unwrap();
                    acked.recv().unwrap();
                    latencies.push(sent.elapsed());
                }
                latencies
            })
        })
        .collect();
    drop(queue);
    let mut latencies: Vec<Duration> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
    let took = start.elapsed();
    committer.join().unwrap();
    latencies.sort();
    let quantile = |q: f64| latencies[((latencies.len() - 1) as f64 * q) as usize];
    (latencies.len() as f64 / took.as_secs_f64(), quantile(0.5), quantile(0.99))
}

fn memory(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// MiB that this process caused to be written to disk.
fn written_mib() -> f64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = io.lines().find_map(|l| l.strip_prefix("write_bytes: ")).unwrap();
    line.parse::<f64>().unwrap() / f64::from(1 << 20)
}

fn disk_mib(path: &Path) -> f64 {
    fn blocks(path: &Path) -> u64 {
        let meta = path.symlink_metadata().unwrap();
        let below: u64 = match meta.is_dir() {
            true => std::fs::read_dir(path).unwrap().map(|e| blocks(&e.unwrap().path())).sum(),
            false => 0,
        };
        below + meta.blocks()
    }
    blocks(path) as f64 * 512.0 / f64::from(1 << 20)
}

fn updates(mut engine: Box<dyn Engine>, path: &Path, updates: u64) -> ! {
    let mut rng = SmallRng::seed_from_u64(1);
    // Which revision holds each key, to remove superseded ones as compaction does.
    let mut latest = vec![0u64; KEYS as usize];
    let mut superseded: std::collections::VecDeque<(u64, u64)> = Default::default();
    let start = Instant::now();
    let mut worst = Duration::ZERO;
    let mut revision = 0;
    while revision < updates {
        let changes: Vec<Change> = (0..BATCH)
            .map(|_| {
                revision += 1;
                let n = rng.random_range(0..KEYS);
                let old = std::mem::replace(&mut latest[n as usize], revision);
                if old > 0 {
                    superseded.push_back((revision, old));
                }
                Change {
                    revision,
                    key: format!("/registry/pods/default/pod-{n}").into_bytes(),
                    value: value(&mut rng),
                }
            })
            .collect();
        let mut remove = Vec::new();
        while superseded.front().is_some_and(|(at, _)| at + HISTORY <= revision) {
            remove.push(superseded.pop_front().unwrap().1);
        }
        let commit = Instant::now();
        engine.commit(&changes, &remove);
        worst = worst.max(commit.elapsed());
    }
    let took = start.elapsed().as_secs_f64();
    let present = latest.iter().filter(|r| **r > 0).all(|r| engine.read(*r));
    println!(
        "  {updates} updates in batches of {BATCH}: {:.1} s ({:.0}/s), slowest commit {:.0} ms, all present: {present}",
        took,
        updates as f64 / took,
        worst.as_secs_f64() * 1e3
    );
    println!(
        "  disk at the end {:.0} MiB, RSS {:.0} MiB (peak {:.0})",
        disk_mib(path),
        memory("VmRSS"),
        memory("VmHWM")
    );
    // As a crash: no destructor, no clean shutdown.
    std::process::abort();
}

/// Makes the last of the batches that `torn` wrote look as after a power loss while it was written: a block of it never
/// reached the disk. (For redb the same moment leaves unreferenced pages; there is nothing to damage.)
fn tear_fjall(path: &Path) {
    let journal = path.join("0.jnl");
    let mut bytes = std::fs::read(&journal).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap();
    // A value is 16 KiB (a larger ConfigMap), so this is within the last one.
    let block = (end - 6 * 1024) / 4096 * 4096;
    bytes[block..block + 4096].fill(0);
    std::fs::write(&journal, bytes).unwrap();
}

fn child(step: &str, engine: &str, path: &Path) {
    let start = Instant::now();
    let opened = open(engine, path);
    match step {
        "writers" => {
            let n = env::var("ENGINES_WRITERS").unwrap().parse().unwrap();
            let seconds = env::var("ENGINES_SECONDS").map_or(4, |s| s.parse().unwrap());
            let (rate, p50, p99) = writers(opened, n, Duration::from_secs(seconds));
            println!(
                "  {n:>3} writers: {rate:>7.0} writes/s, p50 {:>7.2} ms, p99 {:>7.2} ms, RSS {:.0} MiB, {:.1} KiB written each",
                p50.as_secs_f64() * 1e3,
                p99.as_secs_f64() * 1e3,
                memory("VmRSS"),
                written_mib() * 1024.0 / (rate * seconds as f64)
            );
        }
        "updates" => {
            updates(opened, path, env::var("ENGINES_UPDATES").map_or(1_000_000, |s| s.parse().unwrap()));
        }
        "reopen" => {
            let open = start.elapsed();
            let records = opened.load();
            println!(
                "  reopen after a crash: {:.0} ms, with all {records} records read {:.0} ms, disk {:.0} MiB, RSS {:.0} MiB",
                open.as_secs_f64() * 1e3,
                start.elapsed().as_secs_f64() * 1e3,
                disk_mib(path),
                memory("VmRSS")
            );
        }
        "torn" => {
            let mut engine = opened;
            let mut rng = SmallRng::seed_from_u64(2);
            for batch in 0..4u64 {
                let change = |n| Change {
                    revision: batch * 100 + n,
                    key: key(&mut rng),
                    value: (0..16).flat_map(|_| value(&mut rng)).collect(),
                };
                let changes: Vec<Change> = (1..=100).map(change).collect();
                engine.commit(&changes, &[]);
            }
            std::process::abort();
        }
        "after-torn" => println!("  opened with {} records, 300 were acknowledged", opened.load()),
        "rest" => {
            std::thread::sleep(Duration::from_secs(2));
            println!(
                "  at rest, two seconds later: disk {:.0} MiB, RSS {:.0} MiB",
                disk_mib(path),
                memory("VmRSS")
            );
        }
        other => panic!("unknown step {other}"),
    }
}

fn main() {
    if let (Ok(step), Ok(engine), Ok(path)) =
        (env::var("ENGINES_STEP"), env::var("ENGINES_ENGINE"), env::var("ENGINES_PATH"))
    {
        return child(&step, &engine, Path::new(&path));
    }
    let only = env::var("ENGINES_ONLY").ok();
    for engine in ["fjall", "redb", "redb-quick-repair"] {
        if only.as_deref().is_some_and(|only| only != engine) {
            continue;
        }
        println!("{engine}");
        let dir = tempfile::tempdir().unwrap();
        let run = |step: &str, writers: usize, path: &Path| {
            Command::new(env::current_exe().unwrap())
                .envs([("ENGINES_STEP", step), ("ENGINES_ENGINE", engine)])
                .env("ENGINES_PATH", path)
                .env("ENGINES_WRITERS", writers.to_string())
                .status()
                .unwrap()
        };
        for writers in [1, 8, 64] {
            run("writers", writers, &dir.path().join(format!("writers-{writers}")));
        }
        let path = dir.path().join("updates");
        run("updates", 0, &path);
        run("reopen", 0, &path);
        run("rest", 0, &path);
        if engine == "fjall" {
            let path = dir.path().join("torn");
            run("torn", 0, &path);
            tear_fjall(&path);
            println!("  power loss within a batch that was not acknowledged:");
            let opened = run("after-torn", 0, &path);
            println!("  {}", if opened.success() { "opened" } else { "the engine refuses to open" });
        }
    }
}
