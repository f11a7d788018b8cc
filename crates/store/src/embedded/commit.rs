//! Group commit: many writers' transactions share one durable batch.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc as sync_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::Shared;
use crate::index::Version;
use crate::plan::{self, Record, Verdict};
use crate::{Event, Op, Revision, StoreError, Txn};

/// Most transactions in one batch.
const BATCH_TXNS: usize = 1024;
/// Bytes of keys and values at which a batch is full.
const BATCH_BYTES: usize = 4 << 20;
/// After a batch of so many, the next one waits for more writers, so many moments at most, as long as all workers of the
/// runtime have something else to do: an fsync costs more CPU than many commits then, and nobody waits who could go on.
const CROWD: usize = 4;
const MOMENT: Duration = Duration::from_micros(100);
const MOMENTS: usize = 3;
/// Free bytes below which a failed commit is put down to a full disk.
const FULL: u64 = 4 << 20;
/// Committed batches whose events wait to be published before the committer waits.
const UNPUBLISHED: usize = 64;

pub(super) struct Request {
    pub txn: Txn,
    pub reply: oneshot::Sender<Result<Reply, StoreError>>,
}

pub(super) enum Reply {
    Committed(Revision),
    /// The revision at which the guards were checked.
    GuardFailed(Revision),
}

/// The committing and the publishing thread; both end when the queue's senders are gone.
pub(super) struct Committer {
    threads: Vec<JoinHandle<()>>,
}

impl Committer {
    pub fn start(shared: Arc<Shared>, requests: mpsc::Receiver<Request>) -> Result<Committer, StoreError> {
        let (committed, to_publish) = sync_mpsc::sync_channel(UNPUBLISHED);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(run).map_err(|e| StoreError::Io {
                action: "start the committer of",
                path: shared.path.clone(),
                source: Arc::new(e),
            })
        };
        let (publisher, committer) = (shared.clone(), shared.clone());
        let runtime = Handle::try_current().ok();
        let threads = vec![
            spawn("store-publish", Box::new(move || publish(&publisher, &to_publish)))?,
            spawn("store-commit", Box::new(move || run(&committer, runtime.as_ref(), requests, &committed)))?,
        ];
        Ok(Committer { threads })
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}

/// Whether no worker of a runtime sleeps.
fn all_busy(runtime: &Handle) -> bool {
    let metrics = runtime.metrics();
    (0..metrics.num_workers()).all(|worker| metrics.worker_park_unpark_count(worker).is_multiple_of(2))
}

fn run(
    shared: &Shared,
    runtime: Option<&Handle>,
    mut requests: mpsc::Receiver<Request>,
    committed: &sync_mpsc::SyncSender<Vec<Record>>,
) {
    let mut last = 0;
    while let Some(first) = requests.blocking_recv() {
        for _ in 0..MOMENTS {
            if last < CROWD || !runtime.is_some_and(all_busy) {
                break;
            }
            std::thread::sleep(MOMENT);
        }
        let mut bytes = weight(&first.txn);
        let mut batch = vec![first];
        while batch.len() < BATCH_TXNS
            && bytes < BATCH_BYTES
            && let Ok(next) = requests.try_recv()
        {
            bytes += weight(&next.txn);
            batch.push(next);
        }
        last = batch.len();
        commit(shared, batch, committed);
    }
}

fn weight(txn: &Txn) -> usize {
    txn.ops
        .iter()
        .map(|op| op.key().len() + if let Op::Put { value, .. } = op { value.len() } else { 0 })
        .sum()
}

/// Checks the transactions in order, as if each were alone, and commits what they change as one batch.
fn commit(shared: &Shared, batch: Vec<Request>, committed: &sync_mpsc::SyncSender<Vec<Record>>) {
    let (mut records, mut replies) = (Vec::new(), Vec::new());
    let refusal = shared.refuse_if_poisoned().err();
    let no_space = shared.directory.check_space(shared.reserve_bytes).err();
    {
        let index = shared.index.read();
        let mut pending: HashMap<Bytes, Version> = HashMap::new();
        let mut revision = index.revision();
        for Request { txn, reply } in batch {
            let puts = txn.ops.iter().any(|op| matches!(op, Op::Put { .. }));
            if let Some(error) = refusal.as_ref().or(no_space.as_ref().filter(|_| puts)) {
                // Nobody listens when the writer has given up; that is fine here and below.
                let _ = reply.send(Err(error.clone()));
                continue;
            }
            let latest = |key: &[u8]| pending.get(key).copied().or_else(|| index.latest(key));
            let answer = match plan::evaluate(txn, revision + 1, latest) {
                Verdict::GuardFailed => Reply::GuardFailed(Revision(revision)),
                Verdict::NoChange => Reply::Committed(Revision(revision)),
                Verdict::Records(new) => {
                    revision += 1;
                    pending.extend(new.iter().map(|r| (r.key.clone(), r.version)));
                    records.extend(new);
                    Reply::Committed(Revision(revision))
                }
            };
            replies.push((reply, answer));
        }
    }
    if !records.is_empty() {
        if let Err(error) = shared.engine.commit(&records) {
            let mut cause = match &error {
                StoreError::Poisoned { cause } => cause.clone(),
                error => error.to_string(),
            };
            // The engine's own threads fail without saying why; a full disk is the likely reason.
            if let Err(full) = shared.directory.check_space(shared.reserve_bytes.max(FULL)) {
                cause = format!("{cause}; {full}");
            }
            tracing::error!(path = %shared.path.display(), %error, "a commit failed; the store refuses writes from now on");
            let cause = shared.poison.get_or_init(|| cause);
            // Also those that change nothing: they may have been judged by what was not committed.
            for (reply, _) in replies {
                let _ = reply.send(Err(StoreError::Poisoned { cause: cause.clone() }));
            }
            return;
        }
        let mut index = shared.index.write();
        for record in &records {
            index.apply(&record.key, record.version);
        }
    }
    for (reply, answer) in replies {
        let _ = reply.send(Ok(answer));
    }
    if !records.is_empty() && committed.send(records).is_err() {
        tracing::error!("the store's publisher is gone; watches stand still");
    }
}

fn publish(shared: &Shared, committed: &sync_mpsc::Receiver<Vec<Record>>) {
    while let Ok(records) = committed.recv() {
        let revision = |record: Option<&Record>| Revision(record.map_or(0, |r| r.version.id.revision));
        let (first, last) = (revision(records.first()), revision(records.last()));
        if !shared.hub.has_watchers() {
            shared.hub.skip(first, last);
            continue;
        }
        shared.hub.publish(&events(records), last);
    }
}

/// The records' events.
pub(super) fn events(records: Vec<Record>) -> Vec<Event> {
    records.into_iter().map(plan::event).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Barrier;
    use std::time::Instant;

    use super::*;

    fn becomes(busy: bool, runtime: &Handle) -> bool {
        let end = Instant::now() + Duration::from_secs(20);
        while all_busy(runtime) != busy {
            if Instant::now() > end {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    #[test]
    fn a_runtime_is_busy_when_its_last_worker_is() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let occupy = |end: &Arc<Barrier>| {
            let (began, end) = (Arc::new(Barrier::new(2)), end.clone());
            let seen = began.clone();
            runtime.spawn(async move {
                seen.wait();
                end.wait();
            });
            began.wait();
        };
        let end = Arc::new(Barrier::new(3));
        assert!(becomes(false, runtime.handle()), "two idle workers");
        occupy(&end);
        assert!(becomes(false, runtime.handle()), "one idle worker");
        occupy(&end);
        assert!(becomes(true, runtime.handle()), "no idle worker");
        end.wait();
        assert!(becomes(false, runtime.handle()), "two idle workers again");
    }
}
