//! Watchers: from history to live without gap or repeat.
//!
//! A watcher is either *live* (the publisher appends matching events to its queue) or *behind* (it reads the log from a
//! known revision). Both the switch and publishing happen under one lock and compare revisions, so each event reaches
//! a watcher exactly once. A reader that is too slow for its queue falls behind: it costs no memory, it re-reads the log.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{Event, Revision, StoreError, WatchStream};

/// Most bytes that a live watcher's queue holds before the watcher falls behind.
const QUEUE_BYTES: usize = 4 << 20;

/// A piece of the log.
pub(crate) struct Replay {
    pub events: Vec<Event>,
    /// The revision to go on from.
    pub next: Revision,
}

/// Where watchers read what is not in their queue.
#[async_trait]
pub(crate) trait Log: Send + Sync + 'static {
    /// Events of `prefix` from `from` up to at most `to`, whole revisions, as many as fit a sensible batch. `Compacted`
    /// when they are not complete.
    async fn replay(&self, prefix: &Bytes, from: Revision, to: Revision) -> Result<Replay, StoreError>;
}

#[derive(Debug)]
enum Mode {
    /// Gets events with revisions from this one on.
    Live(Revision),
    /// Has to read the log from this revision on.
    Behind(Revision),
}

#[derive(Debug)]
struct Watcher {
    prefix: Bytes,
    mode: Mode,
    queue: VecDeque<Vec<Event>>,
    queued_bytes: usize,
    wake: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    published: Revision,
    closed: bool,
    next_id: u64,
    watchers: HashMap<u64, Watcher>,
}

/// All watchers of a store.
#[derive(Debug)]
pub(crate) struct Hub {
    state: Mutex<State>,
    /// The revision up to which events are handed out, for those who wait for it.
    published: watch::Sender<Revision>,
    queue_bytes: usize,
}

enum Step {
    Yield(Vec<Event>),
    Read { from: Revision, to: Revision },
    Wait,
    End,
}

impl Hub {
    /// A hub for a store that stands at `revision`.
    pub fn new(revision: Revision) -> Arc<Hub> {
        Hub::with_queue(revision, QUEUE_BYTES)
    }

    fn with_queue(revision: Revision, queue_bytes: usize) -> Arc<Hub> {
        let state = State { published: revision, closed: false, next_id: 0, watchers: HashMap::new() };
        Arc::new(Hub { state: Mutex::new(state), published: watch::Sender::new(revision), queue_bytes })
    }

    /// Hands out the events of the revisions up to `to`; calls come in revision order.
    pub fn publish(&self, events: &[Event], to: Revision) {
        let mut state = self.state.lock();
        state.published = to;
        self.published.send_replace(to);
        for watcher in state.watchers.values_mut() {
            let Mode::Live(from) = watcher.mode else {
                continue;
            };
            let matching = |e: &&Event| e.revision >= from && e.kv.key.starts_with(&watcher.prefix);
            let batch: Vec<Event> = events.iter().filter(matching).cloned().collect();
            let Some(first) = batch.first() else { continue };
            let bytes: usize = batch.iter().map(event_bytes).sum();
            if !watcher.queue.is_empty() && watcher.queued_bytes + bytes > self.queue_bytes {
                watcher.mode = Mode::Behind(first.revision);
                continue;
            }
            watcher.queued_bytes += bytes;
            watcher.queue.push_back(batch);
            watcher.wake.notify_one();
        }
    }

    /// Says that revisions `first..=to` are in the log without handing out their events: live watchers read them there.
    pub fn skip(&self, first: Revision, to: Revision) {
        let mut state = self.state.lock();
        state.published = to;
        self.published.send_replace(to);
        for watcher in state.watchers.values_mut() {
            if let Mode::Live(from) = watcher.mode {
                watcher.mode = Mode::Behind(from.max(first));
                watcher.wake.notify_one();
            }
        }
    }

    /// Whether anybody could want events.
    pub fn has_watchers(&self) -> bool {
        !self.state.lock().watchers.is_empty()
    }

    /// Waits until events up to `revision` are handed out (or the hub is gone).
    pub async fn published(&self, revision: Revision) {
        // An error means that the sender is gone, but it lives in `self`.
        let _ = self.published.subscribe().wait_for(|now| *now >= revision).await;
    }

    /// Ends all streams once they have handed out what they have.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        for watcher in state.watchers.values() {
            watcher.wake.notify_one();
        }
    }

    /// A stream of the events of `prefix` from `from` on.
    pub fn watch(self: &Arc<Self>, log: Arc<dyn Log>, prefix: Bytes, from: Revision) -> WatchStream {
        let wake = Arc::new(Notify::new());
        let id = {
            let mut state = self.state.lock();
            let id = state.next_id;
            state.next_id += 1;
            let watcher = Watcher {
                prefix: prefix.clone(),
                mode: Mode::Behind(from),
                queue: VecDeque::new(),
                queued_bytes: 0,
                wake: wake.clone(),
            };
            state.watchers.insert(id, watcher);
            id
        };
        let reader = Reader { hub: self.clone(), id, prefix, wake, log, failed: false };
        futures::stream::unfold(reader, |mut reader| async {
            let item = reader.next().await?;
            Some((item, reader))
        })
        .boxed()
    }

    fn step(&self, id: u64) -> Step {
        let mut state = self.state.lock();
        let (published, closed) = (state.published, state.closed);
        let Some(watcher) = state.watchers.get_mut(&id) else {
            return Step::End;
        };
        if let Some(batch) = watcher.queue.pop_front() {
            watcher.queued_bytes = watcher.queued_bytes.saturating_sub(batch.iter().map(event_bytes).sum());
            return Step::Yield(batch);
        }
        match watcher.mode {
            Mode::Behind(from) if from <= published => Step::Read { from, to: published },
            _ if closed => Step::End,
            Mode::Behind(from) => {
                watcher.mode = Mode::Live(from);
                Step::Wait
            }
            Mode::Live(_) => Step::Wait,
        }
    }

    fn has_read(&self, id: u64, next: Revision) {
        if let Some(watcher) = self.state.lock().watchers.get_mut(&id) {
            watcher.mode = Mode::Behind(next);
        }
    }
}

struct Reader {
    hub: Arc<Hub>,
    id: u64,
    prefix: Bytes,
    wake: Arc<Notify>,
    log: Arc<dyn Log>,
    failed: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Vec<Event>, StoreError>> {
        while !self.failed {
            match self.hub.step(self.id) {
                Step::Yield(batch) => return Some(Ok(batch)),
                Step::Wait => self.wake.notified().await,
                Step::End => return None,
                Step::Read { from, to } => match self.log.replay(&self.prefix, from, to).await {
                    Ok(replay) => {
                        self.hub.has_read(self.id, replay.next);
                        if !replay.events.is_empty() {
                            return Some(Ok(replay.events));
                        }
                    }
                    Err(error) => {
                        self.failed = true;
                        return Some(Err(error));
                    }
                },
            }
        }
        None
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.hub.state.lock().watchers.remove(&self.id);
    }
}

/// What an event weighs in a queue, in bytes.
pub(crate) fn event_bytes(event: &Event) -> usize {
    event.kv.key.len() + event.kv.value.len() + 64
}
