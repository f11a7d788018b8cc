//! The revisioned key-value contract and its engines.
//!
//! A store is a log of revisions over an ordered key space, as etcd v3 is: a transaction checks its guards, applies all
//! its operations at one new revision, and every committed change can be read back at that revision or watched from
//! it, until history is compacted. Values are opaque bytes; the crate must never know what a Kubernetes object is.
//!
//! Engines: [`memory::MemoryStore`] for tests and throw-away servers, [`embedded::EmbeddedStore`] for a durable
//! directory, `etcd::EtcdStore` (feature `etcd`) for data on other machines. They pass one behaviour suite
//! (`tests/contract`), and the contract promises nothing that etcd does not.
//!
//! # Rules that hold for every engine
//! * A fresh store stands at revision 1, its first commit is 2 (as etcd), so that "0" is free to mean "none".
//! * All operations of a transaction get the same revision; a key may occur once among them.
//! * Deleting an absent key is no change; a transaction without any change commits at the current revision and makes no
//!   new one.
//! * Reads see every transaction acknowledged before they began.
//! * After `compact(C)`: reads at revisions below `C` and watches from `C` or below answer
//!   [`StoreError::Compacted`]; everything from `C` (reads) and `C`+1 (watches) on is complete.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod compactor;
mod error;
mod index;
mod plan;
mod watch;

pub mod embedded;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod memory;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use compactor::{AutoCompaction, auto_compact};
pub use error::StoreError;

/// Longest key in bytes. The longest Kubernetes key (`/registry/GROUP/RESOURCE/NAMESPACE/NAME`) is under 1 KiB.
pub const MAX_KEY_BYTES: usize = 4096;

/// Most bytes of keys and values that one transaction may carry: etcd's default `--max-request-bytes` (1.5 MiB), so
/// that whatever one engine accepts, the other does.
pub const MAX_TXN_BYTES: usize = 1_572_864;

/// Most operations in one transaction.
pub const MAX_TXN_OPS: usize = 1024;

/// A point in the store's history: the number of the commit. 0 means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

impl Revision {
    /// "No revision": what an absent key's guard carries.
    pub const NONE: Revision = Revision(0);

    /// The revision after this one.
    pub fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One key's state at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, as upstream writes it: `/registry/<resource>/<namespace>/<name>`.
    pub key: Bytes,
    /// The opaque value; empty in the `kv` of a delete event.
    pub value: Bytes,
    /// The revision that created the key; 0 in the `kv` of a delete event.
    pub create_revision: Revision,
    /// The revision that last changed the key.
    pub mod_revision: Revision,
}

/// A condition of a transaction: the key's last change must be exactly this revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The key the condition is about; it need not be among the operations.
    pub key: Bytes,
    /// The expected `mod_revision`; [`Revision::NONE`] means that the key must not exist.
    pub mod_revision: Revision,
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Creates or replaces the key.
    Put {
        /// The key.
        key: Bytes,
        /// The new value.
        value: Bytes,
    },
    /// Removes the key; no change when it does not exist.
    Delete {
        /// The key.
        key: Bytes,
    },
}

impl Op {
    /// The key the operation changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// Guards and operations that are checked and applied as one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// All must hold, or nothing is applied.
    pub guards: Vec<Guard>,
    /// Applied together at one revision.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Puts `key` if its last change is `expected` (0: if it does not exist).
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>, expected: Revision) -> Txn {
        let key = key.into();
        Txn {
            guards: vec![Guard { key: key.clone(), mod_revision: expected }],
            ops: vec![Op::Put { key, value: value.into() }],
        }
    }

    /// Deletes `key` if its last change is `expected`.
    pub fn delete(key: impl Into<Bytes>, expected: Revision) -> Txn {
        let key = key.into();
        Txn {
            guards: vec![Guard { key: key.clone(), mod_revision: expected }],
            ops: vec![Op::Delete { key }],
        }
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Applied, durable and visible at this revision.
    Committed(Revision),
    /// A guard did not hold; nothing was applied.
    GuardFailed {
        /// The guarded keys' present state, in the order of the guards.
        current: Vec<Option<KeyValue>>,
    },
}

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Created (`kv.create_revision == kv.mod_revision`) or replaced.
    Put,
    /// Removed.
    Delete,
    /// No change: the reader has seen everything up to this revision. Only a store that others write too sends it,
    /// alone in its batch; there revisions pass that no event of the watched prefix tells of.
    Progress,
}

/// One committed change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The transaction's revision; equal to `kv.mod_revision`.
    pub revision: Revision,
    /// Put or delete.
    pub kind: EventKind,
    /// The key after the change. For a delete: the value is empty, `create_revision` is 0.
    pub kv: KeyValue,
}

/// A question about consecutive keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Range {
    /// First key, inclusive.
    pub start: Bytes,
    /// End, exclusive; empty means to the last key.
    pub end: Bytes,
    /// Most keys to answer with; 0 means all.
    pub limit: usize,
    /// Read as of this revision; `None` means the latest.
    pub at: Option<Revision>,
}

impl Range {
    /// All keys that begin with `prefix`, at the latest revision.
    pub fn prefix(prefix: impl Into<Bytes>) -> Range {
        let start = prefix.into();
        let end = prefix_end(&start);
        Range { start, end, limit: 0, at: None }
    }

    /// The same range with at most `limit` keys.
    pub fn limit(self, limit: usize) -> Range {
        Range { limit, ..self }
    }

    /// The same range as of revision `at`.
    pub fn at(self, at: Revision) -> Range {
        Range { at: Some(at), ..self }
    }
}

/// The answer to a [`Range`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeResult {
    /// The keys in byte order.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit cut the answer short. The next page starts at the last key plus one zero byte, `at` `revision`.
    pub more: bool,
    /// The revision that was read.
    pub revision: Revision,
}

/// Batches of events in revision order. All events of one revision are in one batch; no batch is empty. After an error
/// (`Compacted` when the reader fell behind compaction) the stream ends. It ends without error when the store closes.
pub type WatchStream = BoxStream<'static, Result<Vec<Event>, StoreError>>;

/// What is read to see whether a store answers, as upstream does; it need not exist.
const HEALTH_KEY: &[u8] = b"/registry/health";

/// The revisioned key-value contract; see the crate's documentation for the rules.
#[async_trait]
pub trait Store: Send + Sync {
    /// Checks the guards and applies the operations, durably, before it returns.
    ///
    /// When the returned future is dropped the transaction may or may not have been applied.
    ///
    /// # Errors
    /// `InvalidArgument`, `TooLarge`: the transaction itself. `NoSpace`, `Poisoned`, `Io`, `Closed`: the engine; then
    /// nothing was acknowledged.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;

    /// The key's state, or `None` when it does not exist.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision` for `at`; engine errors.
    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, StoreError>;

    /// Consecutive keys.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision` for `at`; engine errors.
    async fn range(&self, range: Range) -> Result<RangeResult, StoreError>;

    /// The changes of keys that begin with `prefix`, with revisions `>= from`: first those in the history, then new
    /// ones as they are committed, without gap or repeat. `from` may lie in the future.
    ///
    /// # Errors
    /// `Compacted` when history from `from` on is not complete any more.
    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<WatchStream, StoreError>;

    /// Forgets what only readers below revision `at` could see. Compacting below what is compacted is no change.
    ///
    /// # Errors
    /// `FutureRevision` when `at` is not committed yet; engine errors.
    async fn compact(&self, at: Revision) -> Result<(), StoreError>;

    /// The latest revision.
    fn revision(&self) -> Revision;

    /// The revision of the last compaction; 0 when there was none.
    fn compact_revision(&self) -> Revision;

    /// Whether other processes write to this store too, so that [`Store::revision`] may be behind.
    fn is_shared(&self) -> bool {
        false
    }

    /// The latest revision, including what other processes have committed before the call. Watches hear of it, by an
    /// event or by [`EventKind::Progress`].
    ///
    /// # Errors
    /// Engine errors.
    async fn latest(&self) -> Result<Revision, StoreError> {
        Ok(self.revision())
    }

    /// Whether the store can be read and written now.
    ///
    /// # Errors
    /// Why it cannot.
    async fn check(&self) -> Result<(), StoreError> {
        self.get(HEALTH_KEY, None).await.map(drop)
    }

    /// How many servers hold the data; a store in this process is one.
    fn servers(&self) -> usize {
        1
    }

    /// [`Store::check`] of one of the [`Store::servers`], counted from 0.
    ///
    /// # Errors
    /// Why it does not answer.
    async fn check_server(&self, _server: usize) -> Result<(), StoreError> {
        self.check().await
    }

    /// Bytes that the store occupies (on disk; in memory for the memory engine).
    ///
    /// # Errors
    /// Engine errors.
    async fn size_bytes(&self) -> Result<u64, StoreError>;
}

/// The first key after all keys that begin with `prefix`; empty (no end) when there is none.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|b| *b != 0xff) {
        None => Bytes::new(),
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        let check = |prefix: &[u8], end: &[u8]| assert_eq!(prefix_end(prefix), end);
        check(b"", b"");
        check(b"/registry/pods/", b"/registry/pods0");
        check(b"a\xff", b"b");
        check(b"\xff\xff", b"");
    }
}
