//! Reading the log: all of it when the store opens, pieces of it for watchers that are behind.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;

use super::engine::{Engine, Entry};
use super::{Shared, commit};
use crate::index::{Id, Index};
use crate::plan::Record;
use crate::watch::{Log, Replay, event_bytes};
use crate::{Event, Revision, StoreError};

/// Where one replayed batch is cut: events, bytes of events, records looked at.
const REPLAY_EVENTS: usize = 512;
const REPLAY_BYTES: usize = 1 << 20;
const REPLAY_RECORDS: usize = 16_384;
/// Revisions whose values are read in one go.
const PIECE: u64 = 16;

/// Builds the index from the log's small records.
pub(super) fn load(engine: &dyn Engine, path: &Path) -> Result<Index, StoreError> {
    let mut index = Index::new(engine.compacted()?);
    engine.scan(1, u64::MAX, &mut |entry| {
        let Id { revision, .. } = entry.version.id;
        if entry.version.create == 0 || entry.version.create > revision || entry.key.is_empty() {
            let detail = format!("the record of revision {revision} makes no sense");
            return Err(StoreError::Corrupt { path: path.to_owned(), detail });
        }
        // Above the compaction revision nothing is ever removed, so a hole is a loss.
        if revision > index.compacted() && revision > index.revision() + 1 {
            let detail =
                format!("the log has a hole between the revisions {} and {revision}", index.revision());
            return Err(StoreError::Corrupt { path: path.to_owned(), detail });
        }
        index.apply(&entry.key, entry.version);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(index)
}

/// The log as watchers see it; gone when the store is.
pub(super) struct LogReader(pub Weak<Shared>);

#[async_trait]
impl Log for LogReader {
    async fn replay(&self, prefix: &Bytes, from: Revision, to: Revision) -> Result<Replay, StoreError> {
        let shared = self.0.upgrade().ok_or(StoreError::Closed)?;
        let path = shared.path.clone();
        let prefix = prefix.clone();
        tokio::task::spawn_blocking(move || read(&shared, &prefix, from, to))
            .await
            .unwrap_or_else(|e| Err(StoreError::Io { action: "read the log in", path, source: Arc::new(e) }))
    }
}

fn read(shared: &Shared, prefix: &[u8], from: Revision, to: Revision) -> Result<Replay, StoreError> {
    let mut matching: Vec<Entry> = Vec::new();
    let (mut next, mut looked, mut last) = (to.next(), 0, 0);
    shared.engine.scan(from.0.max(1), to.0, &mut |entry| {
        let revision = entry.version.id.revision;
        looked += 1;
        if revision != last && (matching.len() >= REPLAY_EVENTS || looked > REPLAY_RECORDS) {
            next = Revision(revision);
            return Ok(ControlFlow::Break(()));
        }
        last = revision;
        if entry.key.starts_with(prefix) {
            matching.push(entry);
        }
        Ok(ControlFlow::Continue(()))
    })?;

    // In pieces, so that large values do not add up in memory.
    let mut events: Vec<Event> = Vec::with_capacity(matching.len());
    let mut bytes = 0;
    let mut rest = matching.into_iter().peekable();
    while let Some(first) = rest.peek() {
        let revision = first.version.id.revision;
        if bytes > REPLAY_BYTES && events.last().is_some_and(|e| e.revision.0 < revision) {
            next = Revision(revision);
            break;
        }
        let piece: Vec<Entry> =
            std::iter::from_fn(|| rest.next_if(|e| e.version.id.revision < revision + PIECE)).collect();
        let new = commit::events(with_values(shared, piece, from)?);
        bytes += new.iter().map(event_bytes).sum::<usize>();
        events.extend(new);
    }
    // Checked last: whatever was missing above, compaction took it only after announcing itself.
    shared.index.read().watchable(from)?;
    Ok(Replay { events, next })
}

fn with_values(shared: &Shared, entries: Vec<Entry>, from: Revision) -> Result<Vec<Record>, StoreError> {
    let ids: Vec<Id> = entries.iter().map(|e| e.version.id).collect();
    let record = |(Entry { key, version }, value): (Entry, Option<Bytes>)| {
        let value = match value {
            Some(value) => value,
            None if version.deleted => Bytes::new(),
            None => {
                shared.index.read().watchable(from)?;
                let detail = format!("the log has no value at revision {}", version.id.revision);
                return Err(StoreError::Corrupt { path: shared.path.clone(), detail });
            }
        };
        Ok(Record { key, value, version })
    };
    entries.into_iter().zip(shared.engine.values(&ids)?).map(record).collect()
}
