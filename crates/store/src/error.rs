//! What can go wrong in a store, and what to do next.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use crate::Revision;

/// Why a store refused or failed. Cloneable, because one failed commit answers many writers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The history at that revision is gone. Read at the latest revision, then watch from the one after it.
    #[error("revision {requested} has been compacted (history starts after revision {compact_revision})")]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// The last compaction.
        compact_revision: Revision,
    },
    /// The revision is not committed yet. Ask again later, or drop the revision: it came from another store.
    #[error("revision {requested} is in the future (the store is at {current})")]
    FutureRevision {
        /// The revision asked for.
        requested: Revision,
        /// The store's latest.
        current: Revision,
    },
    /// The request contradicts the contract (empty key, the same key twice in a transaction). A bug of the caller.
    #[error("invalid request: {0}")]
    InvalidArgument(String),
    /// A key, or a transaction as a whole, is larger than the contract allows. Make it smaller.
    #[error("{what} is too large: {size} (the limit is {limit})")]
    TooLarge {
        /// What is too large, with its unit.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The largest allowed.
        limit: usize,
    },
    /// Another process has the directory open. Stop it, or give this one a directory of its own.
    #[error("data directory {path} is in use by another process; stop it or choose another directory", path = path.display())]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// The directory holds something that is not a store of this format. Choose an empty directory, or the version of
    /// the program that wrote it.
    #[error("{path} is not a data directory of this version: {reason}; choose an empty directory", path = path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The data on disk contradicts itself. Restore a snapshot into an empty directory.
    #[error("data in {path} is damaged: {detail}; restore a snapshot into an empty directory", path = path.display())]
    Corrupt {
        /// The data directory.
        path: PathBuf,
        /// What contradicts what.
        detail: String,
    },
    /// The disk is (nearly) full. Nothing was written; free space, and writes work again. Deletes still work.
    #[error("no space left for {path}: {free} bytes free, {reserve} are kept in reserve; free some space", path = path.display())]
    NoSpace {
        /// The data directory.
        path: PathBuf,
        /// Free bytes on its file system.
        free: u64,
        /// Free bytes below which puts are refused.
        reserve: u64,
    },
    /// A commit failed half way, so what the disk holds is unknown; reads go on where the disk
    /// allows, writes are refused. Fix the cause (see
    /// the first error in the log: full or broken disk) and restart: what was acknowledged is kept.
    #[error("writes stopped after a failed commit ({cause}); fix the disk, then restart")]
    Poisoned {
        /// The first failure.
        cause: String,
    },
    /// The engine or the operating system failed while doing `action`.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was being done, as a verb phrase.
        action: &'static str,
        /// The data directory or file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// A store on another machine did not do what it was asked. After a failed commit it is unknown whether it
    /// happened. Check that the servers run, can be reached and have a quorum.
    #[error("etcd ({endpoints}) cannot {action}: {cause}")]
    Remote {
        /// What was being done, as a verb phrase.
        action: &'static str,
        /// The servers, separated by commas.
        endpoints: String,
        /// What etcd, or the connection to it, said.
        cause: String,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether the same request can succeed later without anyone changing it.
    pub fn is_retriable(&self) -> bool {
        matches!(
            self,
            StoreError::NoSpace { .. }
                | StoreError::FutureRevision { .. }
                | StoreError::Io { .. }
                | StoreError::Remote { .. }
        )
    }
}
