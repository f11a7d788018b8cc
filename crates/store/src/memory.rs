//! A store in memory, for tests and throw-away servers: the same rules as the durable engine, nothing survives.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::index::{Id, Index, Version};
use crate::plan::{self, Record, Verdict};
use crate::watch::{Hub, Log, Replay};
use crate::{Event, KeyValue, Range, RangeResult, Revision, Store, StoreError, Txn, TxnOutcome, WatchStream};

/// Events that one replayed batch holds before it is cut at the next revision.
const REPLAY_EVENTS: usize = 512;

struct State {
    index: Index,
    records: BTreeMap<Id, Record>,
    bytes: u64,
}

impl State {
    fn key_value(&self, key: &Bytes, version: Version) -> KeyValue {
        let value = self.records.get(&version.id).map(|r| r.value.clone()).unwrap_or_default();
        plan::key_value(key.clone(), value, version)
    }
}

struct Inner {
    state: Mutex<State>,
}

/// The in-memory engine. Clones of the `Arc` share it; dropping the last one ends its watches.
pub struct MemoryStore {
    inner: Arc<Inner>,
    hub: Arc<Hub>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store at revision 1.
    pub fn new() -> MemoryStore {
        let state = State { index: Index::new(0), records: BTreeMap::new(), bytes: 0 };
        MemoryStore { inner: Arc::new(Inner { state: Mutex::new(state) }), hub: Hub::new(Revision(1)) }
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.hub.close();
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        plan::validate(&txn)?;
        let mut state = self.inner.state.lock();
        let guarded: Vec<Bytes> = txn.guards.iter().map(|g| g.key.clone()).collect();
        let revision = state.index.revision() + 1;
        match plan::evaluate(txn, revision, |key| state.index.latest(key)) {
            Verdict::NoChange => Ok(TxnOutcome::Committed(Revision(revision - 1))),
            Verdict::GuardFailed => {
                let current = |key: &Bytes| Some(state.key_value(key, state.index.latest(key)?.live()?));
                Ok(TxnOutcome::GuardFailed { current: guarded.iter().map(current).collect() })
            }
            Verdict::Records(records) => {
                let events: Vec<Event> = records.iter().map(|r| plan::event(r.clone())).collect();
                for record in records {
                    state.bytes += (record.key.len() + record.value.len()) as u64;
                    state.index.apply(&record.key, record.version);
                    state.records.insert(record.version.id, record);
                }
                // Under the state's lock, so that publications come in revision order.
                self.hub.publish(&events, Revision(revision));
                Ok(TxnOutcome::Committed(Revision(revision)))
            }
        }
    }

    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, StoreError> {
        let state = self.inner.state.lock();
        let revision = state.index.readable(at)?;
        Ok(state
            .index
            .at(key, revision)
            .map(|version| state.key_value(&Bytes::copy_from_slice(key), version)))
    }

    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        let state = self.inner.state.lock();
        let revision = state.index.readable(range.at)?;
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        let mut found = Vec::new();
        let start = Bound::Included(&range.start[..]);
        state.index.scan(start, &range.end, revision, limit.saturating_add(1), usize::MAX, &mut found);
        let more = found.len() > limit;
        found.truncate(limit);
        let kvs = found.iter().map(|(key, version)| state.key_value(key, *version)).collect();
        Ok(RangeResult { kvs, more, revision: Revision(revision) })
    }

    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<WatchStream, StoreError> {
        self.inner.state.lock().index.watchable(from)?;
        Ok(self.hub.watch(self.inner.clone(), prefix, from))
    }

    async fn compact(&self, at: Revision) -> Result<(), StoreError> {
        let mut state = self.inner.state.lock();
        state.index.set_compacted(at)?;
        for id in state.index.take_unreadable(usize::MAX) {
            if let Some(record) = state.records.remove(&id) {
                state.bytes -= (record.key.len() + record.value.len()) as u64;
            }
        }
        Ok(())
    }

    fn revision(&self) -> Revision {
        Revision(self.inner.state.lock().index.revision())
    }

    fn compact_revision(&self) -> Revision {
        Revision(self.inner.state.lock().index.compacted())
    }

    async fn size_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.inner.state.lock().bytes)
    }
}

#[async_trait]
impl Log for Inner {
    async fn replay(&self, prefix: &Bytes, from: Revision, to: Revision) -> Result<Replay, StoreError> {
        let state = self.state.lock();
        state.index.watchable(from)?;
        let mut events: Vec<Event> = Vec::new();
        for (id, record) in state.records.range(Id { revision: from.0, sub: 0 }..) {
            if id.revision > to.0 {
                break;
            }
            if events.len() >= REPLAY_EVENTS && id.sub == 0 {
                return Ok(Replay { events, next: Revision(id.revision) });
            }
            if record.key.starts_with(prefix) {
                events.push(plan::event(record.clone()));
            }
        }
        Ok(Replay { events, next: to.next() })
    }
}
