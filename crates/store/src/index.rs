//! Which versions of which key exist: the part of a store that stays in memory.
//!
//! It holds no values. A version is found by its [`Id`], the place of its record in the log. Superseded versions stand
//! in a queue in the order in which they were superseded, so that compaction costs what it removes and not what lives.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;

use crate::Revision;
use crate::StoreError;

/// A record's place in the log: the revision, and the number of the operation within its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id {
    pub revision: u64,
    pub sub: u32,
}

/// One version of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    pub id: Id,
    /// The revision that created the key's present life; for a tombstone, of the life that it ended.
    pub create: u64,
    pub deleted: bool,
}

impl Version {
    /// The version if it is not a tombstone.
    pub fn live(self) -> Option<Version> {
        (!self.deleted).then_some(self)
    }
}

#[derive(Debug)]
struct History {
    latest: Version,
    /// Superseded versions, oldest first.
    older: Vec<Version>,
}

impl History {
    fn at(&self, revision: u64) -> Option<Version> {
        if self.latest.id.revision <= revision {
            return Some(self.latest);
        }
        let after = self.older.partition_point(|v| v.id.revision <= revision);
        after.checked_sub(1).map(|i| self.older[i])
    }
}

#[derive(Debug)]
struct Superseded {
    /// The compaction revision from which on nobody can see the version.
    at: u64,
    key: Bytes,
    id: Id,
}

/// The index; the revision of a fresh store is 1.
#[derive(Debug)]
pub(crate) struct Index {
    keys: BTreeMap<Bytes, History>,
    superseded: VecDeque<Superseded>,
    revision: u64,
    compacted: u64,
}

impl Index {
    pub fn new(compacted: u64) -> Index {
        Index { keys: BTreeMap::new(), superseded: VecDeque::new(), revision: compacted.max(1), compacted }
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn compacted(&self) -> u64 {
        self.compacted
    }

    /// The key's newest version, which may be a tombstone.
    pub fn latest(&self, key: &[u8]) -> Option<Version> {
        self.keys.get(key).map(|h| h.latest)
    }

    /// The key's version at `revision`, unless it did not exist then.
    pub fn at(&self, key: &[u8], revision: u64) -> Option<Version> {
        self.keys.get(key)?.at(revision)?.live()
    }

    /// Adds a version; they come in the order of their ids.
    pub fn apply(&mut self, key: &Bytes, version: Version) {
        let at = version.id.revision;
        self.revision = self.revision.max(at);
        match self.keys.get_mut(key) {
            Some(history) => {
                // A tombstone stands in the queue since it was made.
                if !history.latest.deleted {
                    self.superseded.push_back(Superseded { at, key: key.clone(), id: history.latest.id });
                }
                history.older.push(history.latest);
                history.latest = version;
            }
            None => {
                self.keys.insert(key.clone(), History { latest: version, older: Vec::new() });
            }
        }
        if version.deleted {
            self.superseded.push_back(Superseded { at, key: key.clone(), id: version.id });
        }
    }

    /// The revision to read at: `at` checked against what is there, or the latest.
    pub fn readable(&self, at: Option<Revision>) -> Result<u64, StoreError> {
        match at {
            None => Ok(self.revision),
            Some(requested) if requested.0 > self.revision => {
                Err(StoreError::FutureRevision { requested, current: Revision(self.revision) })
            }
            Some(requested) if requested.0 < self.compacted => Err(self.compacted_error(requested)),
            Some(requested) => Ok(requested.0),
        }
    }

    /// Whether events from `from` on are complete.
    pub fn watchable(&self, from: Revision) -> Result<(), StoreError> {
        if self.compacted > 0 && from.0 <= self.compacted { Err(self.compacted_error(from)) } else { Ok(()) }
    }

    fn compacted_error(&self, requested: Revision) -> StoreError {
        StoreError::Compacted { requested, compact_revision: Revision(self.compacted) }
    }

    /// Up to `limit` keys of `[start, end)` (empty `end`: no end) that exist at `revision`, after looking at no more
    /// than `budget` keys; with the place to go on from when there is more to look at.
    pub fn scan(
        &self,
        start: Bound<&[u8]>,
        end: &[u8],
        revision: u64,
        limit: usize,
        budget: usize,
        out: &mut Vec<(Bytes, Version)>,
    ) -> Option<Bytes> {
        if let Bound::Included(s) | Bound::Excluded(s) = start
            && !end.is_empty()
            && s >= end
        {
            return None;
        }
        let upper = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
        for (looked, (key, history)) in self.keys.range::<[u8], _>((start, upper)).enumerate() {
            if let Some(version) = history.at(revision).and_then(Version::live) {
                out.push((key.clone(), version));
            }
            if out.len() >= limit || looked + 1 >= budget {
                return Some(key.clone());
            }
        }
        None
    }

    /// Marks revisions below `at` unreadable. False when they already were.
    pub fn set_compacted(&mut self, at: Revision) -> Result<bool, StoreError> {
        if at.0 > self.revision {
            return Err(StoreError::FutureRevision { requested: at, current: Revision(self.revision) });
        }
        if at.0 <= self.compacted {
            return Ok(false);
        }
        self.compacted = at.0;
        Ok(true)
    }

    /// Takes out at most `limit` versions that compaction made unreadable; the caller removes their records.
    pub fn take_unreadable(&mut self, limit: usize) -> Vec<Id> {
        let mut out = Vec::new();
        while out.len() < limit
            && let Some(next) = self.superseded.front()
            && next.at <= self.compacted
        {
            let Some(next) = self.superseded.pop_front() else {
                break;
            };
            out.push(next.id);
            let Some(history) = self.keys.get_mut(&next.key) else {
                continue;
            };
            // Versions of a key are superseded oldest first.
            if history.older.first().is_some_and(|v| v.id == next.id) {
                history.older.remove(0);
                if history.older.is_empty() {
                    history.older = Vec::new();
                }
            } else if history.latest.id == next.id {
                self.keys.remove(&next.key);
            }
        }
        if self.superseded.is_empty() {
            self.superseded = VecDeque::new();
        }
        out
    }

    /// How many versions wait for a compaction.
    #[cfg(test)]
    pub fn superseded(&self) -> usize {
        self.superseded.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(revision: u64, create: u64, deleted: bool) -> Version {
        Version { id: Id { revision, sub: 0 }, create, deleted }
    }

    #[test]
    fn compaction_takes_what_nobody_can_read() {
        let key = Bytes::from("a");
        let mut index = Index::new(0);
        index.apply(&key, version(2, 2, false));
        index.apply(&key, version(3, 2, false));
        index.apply(&key, version(4, 2, true));
        index.apply(&key, version(5, 5, false));
        assert_eq!(index.at(b"a", 2).unwrap().id.revision, 2);
        assert_eq!(index.at(b"a", 4), None);

        assert!(index.set_compacted(Revision(3)).unwrap());
        assert_eq!(index.take_unreadable(10), vec![Id { revision: 2, sub: 0 }]);
        assert_eq!(index.at(b"a", 3).unwrap().id.revision, 3);

        assert!(index.set_compacted(Revision(5)).unwrap());
        assert_eq!(index.take_unreadable(10).len(), 2);
        assert_eq!(index.superseded(), 0);
        assert_eq!(index.at(b"a", 5).unwrap().id.revision, 5);
        assert!(!index.set_compacted(Revision(5)).unwrap());
    }

    #[test]
    fn a_deleted_key_leaves_nothing() {
        let key = Bytes::from("a");
        let mut index = Index::new(0);
        index.apply(&key, version(2, 2, false));
        index.apply(&key, version(3, 2, true));
        index.set_compacted(Revision(3)).unwrap();
        assert_eq!(index.take_unreadable(1).len(), 1);
        assert_eq!(index.take_unreadable(1).len(), 1);
        assert!(index.keys.is_empty());
        assert_eq!(index.revision(), 3);
    }
}
