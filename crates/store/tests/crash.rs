//! `kill -9` at random moments: every acknowledged transaction is there after reopening, none in part.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use orlop_store::embedded::{EmbeddedStore, Options};
use orlop_store::{Op, Range, Revision, Store, Txn, TxnOutcome};
use rand::Rng;

const CHILD: &str = "ORLOP_STORE_CRASH_DIR";
const ROUNDS: usize = 10;
const WRITERS: usize = 8;
const PARTS: usize = 3;

#[test]
#[ignore = "runs as the child of kill_minus_nine, until it is killed"]
fn child() {
    let dir = std::env::var(CHILD).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(EmbeddedStore::open(dir, Options::default()).unwrap());
        let run = std::process::id();
        let writers: Vec<_> =
            (0..WRITERS).map(|w| tokio::spawn(write(store.clone(), format!("{run}-{w}")))).collect();
        let compactor = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                store.compact(Revision(store.revision().0.saturating_sub(50).max(1))).await.unwrap();
            }
        });
        futures::future::join_all(writers).await;
        compactor.await.unwrap();
    });
}

/// Writes `PARTS` keys in each transaction, overwrites a counter, and says what was acknowledged.
async fn write(store: Arc<EmbeddedStore>, name: String) {
    for n in 0u64.. {
        let value = format!("{n} {}", "v".repeat((n as usize * 97) % 3000));
        let mut ops: Vec<Op> = (0..PARTS)
            .map(|part| Op::Put {
                key: format!("/part/{name}/{n:08}/{part}").into(),
                value: value.clone().into(),
            })
            .collect();
        ops.push(Op::Put { key: format!("/counter/{name}").into(), value: n.to_string().into() });
        if n >= 20 {
            let old = n - 20;
            ops.extend(
                (0..PARTS).map(|part| Op::Delete { key: format!("/part/{name}/{old:08}/{part}").into() }),
            );
        }
        let TxnOutcome::Committed(revision) = store.txn(Txn { guards: vec![], ops }).await.unwrap() else {
            panic!()
        };
        let line = format!("ack {name} {n} {revision}\n");
        // One write call, so that a line is whole or absent.
        std::io::stdout().write_all(line.as_bytes()).unwrap();
    }
}

/// Kills the child at a random moment: while it opens the store, or after its first acknowledged write.
fn round(dir: &Path, while_opening: bool, acknowledged: &mut BTreeMap<String, u64>) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--ignored", "--nocapture"])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pipe = child.stdout.take().unwrap();
    let (first, first_seen) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { break };
            if let Some(ack) = line.find("ack ").map(|at| line[at..].to_owned()) {
                seen.push(ack);
                let _ = first.send(());
            }
        }
        seen
    });
    if !while_opening {
        first_seen.recv_timeout(Duration::from_secs(60)).expect("the child writes nothing");
    }
    std::thread::sleep(Duration::from_millis(rand::rng().random_range(0..300)));
    child.kill().unwrap();
    child.wait().unwrap();
    let mut last = 0;
    for ack in reader.join().unwrap() {
        let words: Vec<&str> = ack.split_whitespace().collect();
        acknowledged.insert(words[1].to_owned(), words[2].parse().unwrap());
        last = last.max(words[3].parse().unwrap());
    }
    last
}

#[test]
fn kill_minus_nine() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let mut acknowledged = BTreeMap::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for n in 0..ROUNDS {
        let last = round(&path, n % 4 == 3, &mut acknowledged);
        let store = EmbeddedStore::open(&path, Options::default()).unwrap();
        assert!(store.revision().0 >= last, "round {n}: revision {} after {last}", store.revision());
        runtime.block_on(verify(&store, &acknowledged));
    }
}

async fn verify(store: &EmbeddedStore, acknowledged: &BTreeMap<String, u64>) {
    let mut counters = BTreeMap::new();
    for kv in store.range(Range::prefix("/counter/")).await.unwrap().kvs {
        let name = String::from_utf8(kv.key["/counter/".len()..].to_vec()).unwrap();
        let n: u64 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
        counters.insert(name, (n, kv.mod_revision));
    }
    for (name, n) in acknowledged {
        let (found, _) = counters.get(name).unwrap_or_else(|| panic!("{name} is lost, {n} was acknowledged"));
        assert!(found >= n, "{name}: {found}, but {n} was acknowledged");
    }
    // Whole transactions only: the counter says exactly which parts must be there.
    let mut parts: BTreeMap<String, usize> = BTreeMap::new();
    for kv in store.range(Range::prefix("/part/")).await.unwrap().kvs {
        let key = String::from_utf8(kv.key.to_vec()).unwrap();
        let (transaction, _) = key["/part/".len()..].rsplit_once('/').unwrap();
        let (_, n) = transaction.rsplit_once('/').unwrap();
        let n: u64 = n.parse().unwrap();
        assert_eq!(kv.value, format!("{n} {}", "v".repeat((n as usize * 97) % 3000)));
        *parts.entry(transaction.to_owned()).or_default() += 1;
    }
    assert!(parts.values().all(|count| *count == PARTS), "part of a transaction: {parts:?}");
    let expected: usize = counters.values().map(|(n, _)| (*n as usize + 1).min(20)).sum();
    assert_eq!(parts.len(), expected);
}
