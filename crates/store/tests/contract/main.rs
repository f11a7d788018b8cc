//! The behaviour suite of the store: every engine passes the same tests.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod basics;
#[cfg(feature = "etcd")]
mod etcd;
mod history;
mod model;
mod watching;

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use orlop_store::embedded::{EmbeddedStore, Options};
use orlop_store::memory::MemoryStore;
use orlop_store::{Event, EventKind, Guard, KeyValue, Op, Revision, Store, Txn, TxnOutcome, WatchStream};

/// A store under test, with the directory that it lives in.
pub struct Subject {
    pub store: Arc<dyn Store>,
    pub dir: Option<tempfile::TempDir>,
    #[cfg(feature = "etcd")]
    pub etcd: Option<etcd::Process>,
}

impl Subject {
    /// Whether a watch fetches events before its reader asks for them.
    #[cfg(feature = "etcd")]
    pub fn reads_ahead(&self) -> bool {
        self.etcd.is_some()
    }

    /// Whether a watch fetches events before its reader asks for them.
    #[cfg(not(feature = "etcd"))]
    pub fn reads_ahead(&self) -> bool {
        false
    }

    pub fn new(store: Arc<dyn Store>, dir: Option<tempfile::TempDir>) -> Subject {
        Subject {
            store,
            dir,
            #[cfg(feature = "etcd")]
            etcd: None,
        }
    }
}

pub fn memory() -> Subject {
    Subject::new(Arc::new(MemoryStore::new()), None)
}

pub fn embedded() -> Subject {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path().join("data"), Options::default()).unwrap();
    Subject::new(Arc::new(store), Some(dir))
}

/// Runs the facts of a module against each engine: `facts!(a, b)` makes the tests `memory::a`, `embedded::a`, ...
#[macro_export]
macro_rules! facts {
    ($($fact:ident),* $(,)?) => {
        mod memory { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $fact() { super::$fact($crate::memory()).await })* }
        mod embedded { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $fact() { super::$fact($crate::embedded()).await })* }
        #[cfg(feature = "etcd")]
        mod etcd { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $fact() { super::$fact($crate::etcd::start().await).await })* }
    };
}

pub fn op_put(key: &str, value: &str) -> Op {
    Op::Put { key: key.to_owned().into(), value: value.to_owned().into() }
}

pub fn op_delete(key: &str) -> Op {
    Op::Delete { key: key.to_owned().into() }
}

pub fn guard(key: &str, revision: u64) -> Guard {
    Guard { key: key.to_owned().into(), mod_revision: Revision(revision) }
}

/// Applies operations that must commit.
pub async fn commit(store: &dyn Store, ops: Vec<Op>) -> u64 {
    match store.txn(Txn { guards: vec![], ops }).await.unwrap() {
        TxnOutcome::Committed(revision) => revision.0,
        failed => panic!("{failed:?}"),
    }
}

pub async fn put(store: &dyn Store, key: &str, value: &str) -> u64 {
    commit(store, vec![op_put(key, value)]).await
}

pub async fn delete(store: &dyn Store, key: &str) -> u64 {
    commit(store, vec![op_delete(key)]).await
}

pub fn kv(key: &str, value: &str, create: u64, modified: u64) -> KeyValue {
    KeyValue {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        create_revision: Revision(create),
        mod_revision: Revision(modified),
    }
}

pub fn put_event(now: KeyValue) -> Event {
    Event { revision: now.mod_revision, kind: EventKind::Put, kv: now }
}

pub fn delete_event(revision: u64, before: KeyValue) -> Event {
    let gone = KeyValue {
        key: before.key,
        value: Bytes::new(),
        create_revision: Revision::NONE,
        mod_revision: Revision(revision),
    };
    Event { revision: Revision(revision), kind: EventKind::Delete, kv: gone }
}

/// The next `n` events; batches must be whole revisions in order, and none empty.
pub async fn take(stream: &mut WatchStream, n: usize) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    while events.len() < n {
        let next = tokio::time::timeout(std::time::Duration::from_secs(20), stream.next()).await;
        let batch =
            next.unwrap_or_else(|_| panic!("no event after {events:?}")).expect("the stream ended").unwrap();
        assert!(!batch.is_empty());
        assert!(events.last().is_none_or(|last| last.revision < batch[0].revision), "a revision is split");
        assert!(batch.is_sorted_by_key(|e| e.revision));
        events.extend(batch);
    }
    assert_eq!(events.len(), n, "{events:?}");
    events
}
