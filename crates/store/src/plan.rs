//! From a transaction to the records it adds to the log: pure rules, shared by the engines.

use std::collections::HashSet;

use bytes::Bytes;

use crate::index::{Id, Version};
use crate::{
    Event, EventKind, KeyValue, MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Revision, StoreError, Txn,
};

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub key: Bytes,
    pub value: Bytes,
    pub version: Version,
}

/// What evaluating a transaction says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    GuardFailed,
    /// Nothing to do: no new revision.
    NoChange,
    Records(Vec<Record>),
}

/// Refuses what no engine may accept.
pub(crate) fn validate(txn: &Txn) -> Result<(), StoreError> {
    let too_large = |what, size, limit| Err(StoreError::TooLarge { what, size, limit });
    if txn.ops.len() > MAX_TXN_OPS || txn.guards.len() > MAX_TXN_OPS {
        return too_large("transaction (operations)", txn.ops.len().max(txn.guards.len()), MAX_TXN_OPS);
    }
    for key in txn.guards.iter().map(|g| &g.key).chain(txn.ops.iter().map(Op::key)) {
        if key.is_empty() {
            return Err(StoreError::InvalidArgument("a key is empty".into()));
        }
        if key.len() > MAX_KEY_BYTES {
            return too_large("key (bytes)", key.len(), MAX_KEY_BYTES);
        }
    }
    let mut bytes = 0;
    let mut seen = HashSet::with_capacity(txn.ops.len());
    for op in &txn.ops {
        bytes += op.key().len();
        if let Op::Put { value, .. } = op {
            bytes += value.len();
        }
        if !seen.insert(op.key()) {
            let key = String::from_utf8_lossy(op.key());
            return Err(StoreError::InvalidArgument(format!("key {key:?} occurs twice in the transaction")));
        }
    }
    if bytes > MAX_TXN_BYTES { too_large("transaction (bytes)", bytes, MAX_TXN_BYTES) } else { Ok(()) }
}

/// Checks the guards and makes the records of `revision`. `latest` answers a key's newest version.
pub(crate) fn evaluate(txn: Txn, revision: u64, latest: impl Fn(&[u8]) -> Option<Version>) -> Verdict {
    let live = |key: &[u8]| latest(key).and_then(Version::live);
    let holds = |key: &[u8], expected: Revision| live(key).map_or(0, |v| v.id.revision) == expected.0;
    if !txn.guards.iter().all(|g| holds(&g.key, g.mod_revision)) {
        return Verdict::GuardFailed;
    }
    let mut records = Vec::with_capacity(txn.ops.len());
    for op in txn.ops {
        let existing = live(op.key());
        // MAX_TXN_OPS keeps the number of records far below u32::MAX.
        let id = Id { revision, sub: records.len() as u32 };
        let create = existing.map_or(revision, |v| v.create);
        match op {
            Op::Put { key, value } => {
                records.push(Record { key, value, version: Version { id, create, deleted: false } });
            }
            Op::Delete { key } if existing.is_some() => {
                let version = Version { id, create, deleted: true };
                records.push(Record { key, value: Bytes::new(), version });
            }
            Op::Delete { .. } => {}
        }
    }
    if records.is_empty() { Verdict::NoChange } else { Verdict::Records(records) }
}

/// A version with its value.
pub(crate) fn key_value(key: Bytes, value: Bytes, version: Version) -> KeyValue {
    KeyValue {
        key,
        value,
        create_revision: Revision(if version.deleted { 0 } else { version.create }),
        mod_revision: Revision(version.id.revision),
    }
}

/// The event of a record.
pub(crate) fn event(record: Record) -> Event {
    let Record { key, value, version } = record;
    Event {
        revision: Revision(version.id.revision),
        kind: if version.deleted { EventKind::Delete } else { EventKind::Put },
        kv: key_value(key, value, version),
    }
}
