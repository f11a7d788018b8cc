//! What the store needs from a key-value engine, and fjall as that engine.
//!
//! Two keyspaces: `log` maps an [`Id`] to a small record (what happened to which key), `values` maps it to the value.
//! Both are written by one atomic batch. A restart reads `log` only; ids grow, so that the trees mostly append. The
//! engine's journal and blocks carry checksums, so that records need none of their own.

use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use super::directory::io_error;
use crate::StoreError;
use crate::index::{Id, Version};
use crate::plan::Record;

/// A record of the log without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub key: Bytes,
    pub version: Version,
}

/// A visitor of the log; it may end the scan.
pub(super) type Visit<'a> = &'a mut dyn FnMut(Entry) -> Result<ControlFlow<()>, StoreError>;

/// The engine's part. Calls may block on the disk.
pub(super) trait Engine: Send + Sync + 'static {
    /// Writes the records as one: after a crash all are there or none. Returns when they are on stable storage.
    fn commit(&self, records: &[Record]) -> Result<(), StoreError>;
    /// The records' values.
    fn values(&self, ids: &[Id]) -> Result<Vec<Option<Bytes>>, StoreError>;
    /// One record's value.
    fn value(&self, id: Id) -> Result<Option<Bytes>, StoreError> {
        Ok(self.values(&[id])?.pop().flatten())
    }
    /// The log's records with revisions `from..=to`, in order.
    fn scan(&self, from: u64, to: u64, visit: Visit<'_>) -> Result<(), StoreError>;
    /// Removes records and values as one, in the order of the calls: a key whose tombstone is gone must not come back
    /// with an older version.
    fn remove(&self, ids: &[Id]) -> Result<(), StoreError>;
    /// The compaction revision; 0 when there was none.
    fn compacted(&self) -> Result<u64, StoreError>;
    /// Stores the compaction revision durably.
    fn set_compacted(&self, at: u64) -> Result<(), StoreError>;
}

/// Bytes of small records and of values that stay in memory before they are written as sorted files.
const LOG_MEMTABLE: u64 = 2 << 20;
const VALUES_MEMTABLE: u64 = 8 << 20;
/// The journal is trimmed above this; the engine's minimum.
const JOURNAL_BYTES: u64 = 64 << 20;
/// Files that the engine keeps open.
const OPEN_FILES: usize = 128;
/// Where the compaction revision stands in `log`: below every real id.
const COMPACTED: [u8; 12] = [0; 12];

pub(super) struct Fjall {
    db: Database,
    log: Keyspace,
    values: Keyspace,
    /// The data directory, which errors name.
    path: PathBuf,
}

impl Fjall {
    /// Opens the engine in `files`; `path` is the data directory that errors name.
    pub fn open(path: &Path, files: &Path, cache_bytes: u64) -> Result<Fjall, StoreError> {
        guard("open", path, || {
            let db = Database::builder(files)
                .cache_size(cache_bytes)
                .max_journaling_size(JOURNAL_BYTES)
                .max_cached_files(Some(OPEN_FILES))
                .worker_threads(2)
                .open()?;
            let sized = |bytes| move || KeyspaceCreateOptions::default().max_memtable_size(bytes);
            let log = db.keyspace("log", sized(LOG_MEMTABLE))?;
            let values = db.keyspace("values", sized(VALUES_MEMTABLE))?;
            Ok(Fjall { db, log, values, path: path.to_owned() })
        })
    }

    fn write(
        &self,
        action: &'static str,
        persist: PersistMode,
        fill: impl FnOnce(&mut OwnedWriteBatch),
    ) -> Result<(), StoreError> {
        guard(action, &self.path, || {
            let mut batch = self.db.batch().durability(Some(persist));
            fill(&mut batch);
            batch.commit()
        })
    }

    fn damaged(&self, detail: String) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), detail }
    }
}

impl Engine for Fjall {
    fn commit(&self, records: &[Record]) -> Result<(), StoreError> {
        // `SyncData` is enough: the journal's file is made and synced at its full size before it is used, and when it
        // has to grow, fdatasync writes the new size too.
        self.write("write", PersistMode::SyncData, |batch| {
            for record in records {
                let id = encode_id(record.version.id);
                batch.insert(&self.log, id, encode_entry(record));
                if !record.version.deleted {
                    batch.insert(&self.values, id, &record.value[..]);
                }
            }
        })
    }

    fn values(&self, ids: &[Id]) -> Result<Vec<Option<Bytes>>, StoreError> {
        guard("read", &self.path, || {
            let read = |id: &Id| Ok(self.values.get(encode_id(*id))?.map(|v| Bytes::copy_from_slice(&v)));
            ids.iter().map(read).collect()
        })
    }

    fn scan(&self, from: u64, to: u64, visit: Visit<'_>) -> Result<(), StoreError> {
        let start = encode_id(Id { revision: from, sub: 0 });
        let end = encode_id(Id { revision: to, sub: u32::MAX });
        guard("read the log in", &self.path, || {
            for item in self.log.range(start..=end) {
                let (id, record) = item.into_inner()?;
                let next = match decode_entry(&id, &record) {
                    Some(entry) => visit(entry),
                    None => {
                        let revision = decode_id(&id).map_or(0, |id| id.revision);
                        Err(self.damaged(format!("the log record of revision {revision} cannot be read")))
                    }
                };
                match next {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => break,
                    Err(error) => return Ok(Err(error)),
                }
            }
            Ok(Ok(()))
        })?
    }

    fn remove(&self, ids: &[Id]) -> Result<(), StoreError> {
        // Not synced: a removal that is lost is done again, and the journal keeps the order.
        self.write("compact", PersistMode::Buffer, |batch| {
            for id in ids {
                batch.remove(&self.log, encode_id(*id));
                batch.remove(&self.values, encode_id(*id));
            }
        })
    }

    fn compacted(&self) -> Result<u64, StoreError> {
        let Some(found) = guard("read", &self.path, || self.log.get(COMPACTED))? else { return Ok(0) };
        let number = found[..].try_into().map(u64::from_be_bytes);
        number.map_err(|_| self.damaged("the compaction revision cannot be read".into()))
    }

    fn set_compacted(&self, at: u64) -> Result<(), StoreError> {
        self.write("compact", PersistMode::SyncData, |batch| {
            batch.insert(&self.log, COMPACTED, at.to_be_bytes())
        })
    }
}

/// Runs an operation of the engine and says its failure in the store's words. On strange files the engine may panic.
fn guard<T>(
    action: &'static str,
    path: &Path,
    operation: impl FnOnce() -> fjall::Result<T>,
) -> Result<T, StoreError> {
    use fjall::Error;
    let corrupt = |detail: String| StoreError::Corrupt { path: path.to_owned(), detail };
    let cut_off =
        |e: &io::Error| matches!(e.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData);
    match catch_unwind(AssertUnwindSafe(operation)) {
        Err(_) => Err(corrupt(format!("the engine gave up when asked to {action}"))),
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(match error {
            Error::Io(e) | Error::Storage(fjall::LsmError::Io(e)) if cut_off(&e) => corrupt(e.to_string()),
            Error::Io(e) | Error::Storage(fjall::LsmError::Io(e)) => io_error(action, path, e),
            Error::Locked => StoreError::Locked { path: path.to_owned() },
            Error::Poisoned => StoreError::Poisoned { cause: "the engine could not write before".into() },
            Error::InvalidVersion(found) => {
                let reason = format!("the engine's file format is {found:?}");
                StoreError::Foreign { path: path.to_owned(), reason }
            }
            e @ Error::KeyspaceDeleted => {
                StoreError::Io { action, path: path.to_owned(), source: Arc::new(e) }
            }
            e => corrupt(e.to_string()),
        }),
    }
}

fn encode_id(id: Id) -> [u8; 12] {
    let mut out = [0; 12];
    out[..8].copy_from_slice(&id.revision.to_be_bytes());
    out[8..].copy_from_slice(&id.sub.to_be_bytes());
    out
}

fn decode_id(bytes: &[u8]) -> Option<Id> {
    let (revision, sub) = bytes.split_first_chunk::<8>()?;
    Some(Id { revision: u64::from_be_bytes(*revision), sub: u32::from_be_bytes(sub.try_into().ok()?) })
}

const DELETED: u8 = 1;
/// Logs once held the id of the version before; it is passed over.
const HAS_PREV: u8 = 2;

/// One byte of flags, the create revision, the key.
fn encode_entry(record: &Record) -> Vec<u8> {
    let mut out = Vec::with_capacity(9 + record.key.len());
    out.push(if record.version.deleted { DELETED } else { 0 });
    out.extend(record.version.create.to_be_bytes());
    out.extend(&record.key[..]);
    out
}

fn decode_entry(id: &[u8], record: &[u8]) -> Option<Entry> {
    let id = decode_id(id)?;
    let (flags, rest) = record.split_first()?;
    let (create, mut rest) = rest.split_first_chunk::<8>()?;
    if flags & !(DELETED | HAS_PREV) != 0 {
        return None;
    }
    if flags & HAS_PREV != 0 {
        rest = rest.split_at_checked(12)?.1;
    }
    let version = Version { id, create: u64::from_be_bytes(*create), deleted: flags & DELETED != 0 };
    Some(Entry { key: Bytes::copy_from_slice(rest), version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back() {
        let id = Id { revision: 7, sub: 3 };
        for deleted in [false, true] {
            let version = Version { id, create: 5, deleted };
            let record = Record { key: "/registry/a".into(), value: Bytes::new(), version };
            let entry = decode_entry(&encode_id(id), &encode_entry(&record)).unwrap();
            assert_eq!(entry, Entry { key: record.key, version });
        }
        let with_id_before =
            [&[HAS_PREV, 0, 0, 0, 0, 0, 0, 0, 5][..], &encode_id(id), b"/registry/a"].concat();
        let version = Version { id, create: 5, deleted: false };
        let entry = decode_entry(&encode_id(id), &with_id_before);
        assert_eq!(entry, Some(Entry { key: "/registry/a".into(), version }));
    }

    #[test]
    fn damaged_records_are_refused() {
        let id = encode_id(Id { revision: 7, sub: 3 });
        for record in
            [&b""[..], &[0], &[4, 0, 0, 0, 0, 0, 0, 0, 5, b'a'], &[2, 0, 0, 0, 0, 0, 0, 0, 5, 1, 2, 3]]
        {
            assert_eq!(decode_entry(&id, record), None, "{record:?}");
        }
        assert_eq!(decode_entry(b"short", &[0; 20]), None);
    }
}
