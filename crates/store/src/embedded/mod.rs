//! The durable engine: a log of revisions in one directory.
//!
//! What exists is known from an index in memory; the values stay on disk (fjall, see
//! `docs/decisions/0001-store-engine.md`). One thread takes the transactions that wait, checks them in order, writes
//! them as one batch with one fsync, then acknowledges them all; a second thread hands their events to watchers. Readers
//! look up the index under a short lock and read the disk without any.
//!
//! What holds after a crash: every acknowledged transaction is there, no transaction is there in part. After a failed
//! commit nothing of it is acknowledged and the store refuses writes until it is opened again, because nobody can know
//! what the disk kept.

mod commit;
mod directory;
mod engine;
mod log;
#[cfg(test)]
mod tests;

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};

use crate::index::{Id, Index, Version};
use crate::watch::Hub;
use crate::{KeyValue, Range, RangeResult, Revision, Store, StoreError, Txn, TxnOutcome, WatchStream, plan};
use commit::{Committer, Reply, Request};
use directory::Directory;
use engine::{Engine, Fjall};
use log::LogReader;

/// Keys that a range looks at under one lock.
const SCAN_CHUNK: usize = 1024;
/// Versions that compaction removes in one batch.
const COMPACT_CHUNK: usize = 1024;
/// Transactions that may wait for the committer before writers wait to enqueue.
const QUEUE: usize = 4096;

/// How to open an [`EmbeddedStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Bytes of disk blocks to keep in memory.
    pub cache_bytes: u64,
    /// Free bytes of the file system below which puts are refused with [`StoreError::NoSpace`]. Deletes and
    /// compaction go on, they are what frees space.
    pub reserve_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { cache_bytes: 8 << 20, reserve_bytes: 128 << 20 }
    }
}

/// What readers, the committer and the publisher share.
struct Shared {
    path: PathBuf,
    index: RwLock<Index>,
    engine: Box<dyn Engine>,
    hub: Arc<Hub>,
    /// The first failed commit; from then on writes are refused.
    poison: OnceLock<String>,
    reserve_bytes: u64,
    /// Last, so that the directory is unlocked after the engine is closed.
    directory: Directory,
}

/// A store in a directory. Dropping it finishes what waits, ends its watches and unlocks the directory.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Request>,
    compacting: tokio::sync::Mutex<()>,
    /// Dropped after `queue`: waits for the threads.
    _committer: Committer,
}

impl EmbeddedStore {
    /// Opens the store in `path`, which is created if it does not exist. Blocks while it reads the log's index.
    ///
    /// # Errors
    /// `Locked`, `Foreign`, `Corrupt`, `Io`.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<EmbeddedStore, StoreError> {
        let directory = Directory::open(path.as_ref())?;
        let engine = Fjall::open(directory.path(), &directory.engine_path(), options.cache_bytes)?;
        directory.finish()?;
        EmbeddedStore::start(directory, Box::new(engine), options)
    }

    fn start(
        directory: Directory,
        engine: Box<dyn Engine>,
        options: Options,
    ) -> Result<EmbeddedStore, StoreError> {
        let index = log::load(engine.as_ref(), directory.path())?;
        let hub = Hub::new(Revision(index.revision()));
        let shared = Arc::new(Shared {
            path: directory.path().to_owned(),
            index: RwLock::new(index),
            engine,
            hub,
            poison: OnceLock::new(),
            reserve_bytes: options.reserve_bytes,
            directory,
        });
        let (queue, requests) = mpsc::channel(QUEUE);
        let committer = Committer::start(shared.clone(), requests)?;
        Ok(EmbeddedStore { shared, queue, compacting: tokio::sync::Mutex::new(()), _committer: committer })
    }

    /// Runs a read on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || read(&shared)).await.unwrap_or_else(|e| {
            Err(StoreError::Io { action: "read", path: self.shared.path.clone(), source: Arc::new(e) })
        })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.shared.hub.close();
    }
}

impl Shared {
    fn refuse_if_poisoned(&self) -> Result<(), StoreError> {
        match self.poison.get() {
            Some(cause) => Err(StoreError::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    fn get(&self, key: &Bytes, at: Option<Revision>) -> Result<Option<KeyValue>, StoreError> {
        loop {
            let (revision, version) = {
                let index = self.index.read();
                let revision = index.readable(at)?;
                (revision, index.at(key, revision))
            };
            let Some(version) = version else { return Ok(None) };
            match self.engine.value(version.id)? {
                Some(value) => return Ok(Some(plan::key_value(key.clone(), value, version))),
                None => self.explain_missing(key, at, revision)?,
            }
        }
    }

    fn range(&self, range: &Range) -> Result<RangeResult, StoreError> {
        loop {
            let revision = self.index.read().readable(range.at)?;
            let limit = if range.limit == 0 { usize::MAX } else { range.limit };
            let found = self.find(range, revision, limit.saturating_add(1));
            let more = found.len() > limit;
            let mut kvs = Vec::with_capacity(found.len().min(limit));
            let mut complete = true;
            let ids: Vec<Id> = found.iter().take(limit).map(|(_, version)| version.id).collect();
            for ((key, version), value) in found.into_iter().zip(self.engine.values(&ids)?) {
                let Some(value) = value else {
                    self.explain_missing(&key, range.at, revision)?;
                    complete = false;
                    break;
                };
                kvs.push(plan::key_value(key, value, version));
            }
            // A compaction meanwhile may have taken keys out of the index.
            match range.at {
                Some(at) => {
                    self.index.read().readable(Some(at))?;
                }
                None => complete &= self.index.read().compacted() <= revision,
            }
            if complete {
                return Ok(RangeResult { kvs, more, revision: Revision(revision) });
            }
        }
    }

    /// The versions of a range, looked up in pieces so that writers never wait long.
    fn find(&self, range: &Range, revision: u64, limit: usize) -> Vec<(Bytes, Version)> {
        let mut found = Vec::new();
        let mut after: Option<Bytes> = None;
        loop {
            let start = match &after {
                None => Bound::Included(&range.start[..]),
                Some(key) => Bound::Excluded(&key[..]),
            };
            after = self.index.read().scan(start, &range.end, revision, limit, SCAN_CHUNK, &mut found);
            if after.is_none() || found.len() >= limit {
                return found;
            }
        }
    }

    /// Why an indexed value is not on disk: compaction took it since (then a read of the latest is tried again), or the
    /// data is damaged.
    fn explain_missing(&self, key: &Bytes, at: Option<Revision>, revision: u64) -> Result<(), StoreError> {
        let index = self.index.read();
        index.readable(at)?;
        if index.compacted() > revision {
            return Ok(());
        }
        let key = String::from_utf8_lossy(key);
        Err(StoreError::Corrupt {
            path: self.path.clone(),
            detail: format!("no value of {key:?} at {revision}"),
        })
    }

    /// What the guarded keys held when the guards failed, or hold now if that is compacted.
    fn current(&self, keys: &[Bytes], at: Revision) -> Result<Vec<Option<KeyValue>>, StoreError> {
        let read = |at| keys.iter().map(|key| self.get(key, at)).collect();
        match read(Some(at)) {
            Err(StoreError::Compacted { .. }) => read(None),
            other => other,
        }
    }

    /// Removes one piece of what compaction made unreadable; false when nothing is left.
    fn remove_unreadable(&self) -> Result<bool, StoreError> {
        let ids = self.index.write().take_unreadable(COMPACT_CHUNK);
        if ids.is_empty() {
            return Ok(false);
        }
        self.engine.remove(&ids)?;
        Ok(true)
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        plan::validate(&txn)?;
        self.shared.refuse_if_poisoned()?;
        let guarded: Vec<Bytes> = txn.guards.iter().map(|g| g.key.clone()).collect();
        let (reply, answer) = oneshot::channel();
        self.queue.send(Request { txn, reply }).await.map_err(|_| StoreError::Closed)?;
        match answer.await.map_err(|_| StoreError::Closed)?? {
            Reply::Committed(revision) => Ok(TxnOutcome::Committed(revision)),
            Reply::GuardFailed(at) => {
                let current = self.read(move |shared| shared.current(&guarded, at)).await?;
                Ok(TxnOutcome::GuardFailed { current })
            }
        }
    }

    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, StoreError> {
        let key = Bytes::copy_from_slice(key);
        self.read(move |shared| shared.get(&key, at)).await
    }

    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        self.read(move |shared| shared.range(&range)).await
    }

    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<WatchStream, StoreError> {
        self.shared.index.read().watchable(from)?;
        // Weak: a forgotten stream does not keep the directory locked.
        let log = Arc::new(LogReader(Arc::downgrade(&self.shared)));
        Ok(self.shared.hub.watch(log, prefix, from))
    }

    async fn compact(&self, at: Revision) -> Result<(), StoreError> {
        let _one_at_a_time = self.compacting.lock().await;
        {
            let index = self.shared.index.read();
            index.readable(Some(at.max(Revision(index.compacted()))))?;
            if at.0 <= index.compacted() {
                return Ok(());
            }
        }
        // Events up to `at` still need the values that are about to go.
        self.shared.hub.published(at).await;
        self.read(move |shared| {
            // On disk first: what is gone must never again look like history.
            shared.engine.set_compacted(at.0)?;
            shared.index.write().set_compacted(at)?;
            Ok(())
        })
        .await?;
        while self.read(Shared::remove_unreadable).await? {}
        Ok(())
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.shared.refuse_if_poisoned()?;
        self.get(crate::HEALTH_KEY, None).await.map(drop)
    }

    fn revision(&self) -> Revision {
        Revision(self.shared.index.read().revision())
    }

    fn compact_revision(&self) -> Revision {
        Revision(self.shared.index.read().compacted())
    }

    async fn size_bytes(&self) -> Result<u64, StoreError> {
        self.read(|shared| shared.directory.size_bytes()).await
    }
}
