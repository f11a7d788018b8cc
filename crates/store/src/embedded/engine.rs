//! What the store needs from a key-value engine, and redb as that engine.
//!
//! Two tables: `log` maps an [`Id`] to a small record (what happened to which key), `values` maps it to the value.
//! Both are written in one transaction of the engine. A restart reads `log` only; ids grow, so that the trees mostly
//! append. The engine does not verify what it reads, so every record ends with a checksum.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, TableDefinition, WriteTransaction};

use super::directory::io_error;
use crate::StoreError;
use crate::index::{Id, Version};
use crate::plan::Record;

/// A record of the log without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub key: Bytes,
    pub version: Version,
    pub prev: Option<Id>,
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

type Key = &'static [u8; 12];
const LOG: TableDefinition<Key, &[u8]> = TableDefinition::new("log");
const VALUES: TableDefinition<Key, &[u8]> = TableDefinition::new("values");
const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");
/// The compaction revision's name in `numbers`.
const COMPACTED: &str = "compacted";

pub(super) struct Redb {
    db: Database,
    /// The data directory, which errors name.
    path: PathBuf,
}

impl Redb {
    /// Opens the engine's `file`; `path` is the data directory that errors name.
    pub fn open(path: &Path, file: &Path, cache_bytes: usize) -> Result<Redb, StoreError> {
        let open = || Ok(redb::Builder::new().set_cache_size(cache_bytes).create(file)?);
        let db = guard("open", path, open)?;
        let engine = Redb { db, path: path.to_owned() };
        let present = || Ok(engine.db.begin_read()?.list_tables()?.count());
        if guard("open", path, present)? == 0 {
            engine.write("initialise", |txn| {
                txn.open_table(LOG)?;
                txn.open_table(VALUES)?;
                txn.open_table(NUMBERS)?;
                Ok(())
            })?;
        }
        Ok(engine)
    }

    fn write(
        &self,
        action: &'static str,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        guard(action, &self.path, || {
            let mut txn = self.db.begin_write()?;
            txn.set_durability(Durability::Immediate)?;
            // Two-phase commit with the allocator's state: reopening after a crash takes no repair.
            txn.set_quick_repair(true);
            change(&txn)?;
            Ok(txn.commit()?)
        })
    }
}

impl Engine for Redb {
    fn commit(&self, records: &[Record]) -> Result<(), StoreError> {
        self.write("write", |txn| {
            let (mut log, mut values) = (txn.open_table(LOG)?, txn.open_table(VALUES)?);
            for record in records {
                let id = encode_id(record.version.id);
                log.insert(&id, seal(&id, encode_entry(record)).as_slice())?;
                if !record.version.deleted {
                    values.insert(&id, seal(&id, record.value.to_vec()).as_slice())?;
                }
            }
            Ok(())
        })
    }

    fn values(&self, ids: &[Id]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let found: Vec<Option<Result<Bytes, ()>>> = guard("read", &self.path, || {
            let values = self.db.begin_read()?.open_table(VALUES)?;
            let read = |id: &Id| {
                let id = encode_id(*id);
                let sealed = values.get(&id)?;
                Ok(sealed.map(|s| unseal(&id, s.value()).map(Bytes::copy_from_slice).ok_or(())))
            };
            ids.iter().map(read).collect()
        })?;
        let intact = |(id, value): (&Id, Option<Result<Bytes, ()>>)| {
            value.transpose().map_err(|()| self.damaged("value", id.revision))
        };
        ids.iter().zip(found).map(intact).collect()
    }

    fn scan(&self, from: u64, to: u64, visit: Visit<'_>) -> Result<(), StoreError> {
        let start = encode_id(Id { revision: from, sub: 0 });
        let end = encode_id(Id { revision: to, sub: u32::MAX });
        guard("read the log in", &self.path, || {
            let log = self.db.begin_read()?.open_table(LOG)?;
            for item in log.range::<&[u8; 12]>(&start..=&end)? {
                let (id, sealed) = item?;
                let entry =
                    unseal(id.value(), sealed.value()).and_then(|record| decode_entry(id.value(), record));
                let next = match entry {
                    Some(entry) => visit(entry),
                    None => {
                        Err(self.damaged("log record", decode_id(id.value()).map_or(0, |id| id.revision)))
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
        self.write("compact", |txn| {
            let (mut log, mut values) = (txn.open_table(LOG)?, txn.open_table(VALUES)?);
            for id in ids {
                let id = encode_id(*id);
                log.remove(&id)?;
                values.remove(&id)?;
            }
            Ok(())
        })
    }

    fn compacted(&self) -> Result<u64, StoreError> {
        guard("read", &self.path, || {
            let numbers = self.db.begin_read()?.open_table(NUMBERS)?;
            Ok(numbers.get(COMPACTED)?.map_or(0, |n| n.value()))
        })
    }

    fn set_compacted(&self, at: u64) -> Result<(), StoreError> {
        self.write("compact", |txn| {
            txn.open_table(NUMBERS)?.insert(COMPACTED, at)?;
            Ok(())
        })
    }
}

impl Redb {
    fn damaged(&self, what: &str, revision: u64) -> StoreError {
        StoreError::Corrupt {
            path: self.path.clone(),
            detail: format!("the {what} of revision {revision} is damaged"),
        }
    }
}

/// Runs an operation of the engine and says its failure in the store's words. On strange files the engine may panic.
fn guard<T>(
    action: &'static str,
    path: &Path,
    operation: impl FnOnce() -> Result<T, redb::Error>,
) -> Result<T, StoreError> {
    use redb::Error;
    let corrupt = |detail: String| StoreError::Corrupt { path: path.to_owned(), detail };
    match catch_unwind(AssertUnwindSafe(operation)) {
        Err(_) => Err(corrupt(format!("the engine gave up when asked to {action}"))),
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(match error {
            Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => corrupt(e.to_string()),
            Error::Io(e) => io_error(action, path, e),
            Error::DatabaseAlreadyOpen => StoreError::Locked { path: path.to_owned() },
            Error::UpgradeRequired(found) => {
                let reason = format!("the engine's file format is {found}");
                StoreError::Foreign { path: path.to_owned(), reason }
            }
            Error::PreviousIo => StoreError::Poisoned { cause: "the engine met an I/O error before".into() },
            e @ (Error::Corrupted(_)
            | Error::TableTypeMismatch { .. }
            | Error::TableDoesNotExist(_)
            | Error::TypeDefinitionChanged { .. }
            | Error::RepairAborted) => corrupt(e.to_string()),
            e => StoreError::Io { action, path: path.to_owned(), source: Arc::new(e) },
        }),
    }
}

/// Appends a checksum of the bytes and of where they belong.
fn seal(id: &[u8; 12], mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = checksum(id, &bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// The bytes without their checksum, if it is right.
fn unseal<'a>(id: &[u8; 12], sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (bytes, sum) = sealed.split_last_chunk::<4>()?;
    (checksum(id, bytes) == u32::from_le_bytes(*sum)).then_some(bytes)
}

fn checksum(id: &[u8; 12], bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(id);
    hasher.update(bytes);
    hasher.finalize()
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
const HAS_PREV: u8 = 2;

/// One byte of flags, the create revision, the previous version's id if there is one, the key.
fn encode_entry(record: &Record) -> Vec<u8> {
    let mut out = Vec::with_capacity(21 + record.key.len());
    let deleted = if record.version.deleted { DELETED } else { 0 };
    out.push(deleted | if record.prev.is_some() { HAS_PREV } else { 0 });
    out.extend(record.version.create.to_be_bytes());
    out.extend(record.prev.iter().flat_map(|id| encode_id(*id)));
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
    let mut prev = None;
    if flags & HAS_PREV != 0 {
        let (before, key) = rest.split_at_checked(12)?;
        prev = Some(decode_id(before)?);
        rest = key;
    }
    let version = Version { id, create: u64::from_be_bytes(*create), deleted: flags & DELETED != 0 };
    Some(Entry { key: Bytes::copy_from_slice(rest), version, prev })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back() {
        let id = Id { revision: 7, sub: 3 };
        for (deleted, prev) in [(false, None), (false, Some(Id { revision: 6, sub: 1 })), (true, Some(id))] {
            let version = Version { id, create: 5, deleted };
            let record = Record { key: "/registry/a".into(), value: Bytes::new(), version, prev };
            let entry = decode_entry(&encode_id(id), &encode_entry(&record)).unwrap();
            assert_eq!(entry, Entry { key: record.key, version, prev });
        }
    }

    #[test]
    fn damage_and_wrong_places_are_seen() {
        let (id, other) = (encode_id(Id { revision: 7, sub: 3 }), encode_id(Id { revision: 7, sub: 4 }));
        let sealed = seal(&id, b"value".to_vec());
        assert_eq!(unseal(&id, &sealed), Some(&b"value"[..]));
        assert_eq!(unseal(&other, &sealed), None);
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 0x10;
            assert_eq!(unseal(&id, &damaged), None);
        }
        assert_eq!(unseal(&id, b"abc"), None);
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
