//! The work queue of a controller: each key at most once in the queue and at most once in work, with delays and a
//! back-off per key. Answers to client-go's `util/workqueue`.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::time::{DelayQueue, delay_queue};

use crate::metrics::{QueueStats, Watched, watch_queue};

/// client-go's `DefaultTypedControllerRateLimiter`: 5 ms, doubled by each failure, 1000 s at most.
const BASE_DELAY: Duration = Duration::from_millis(5);
const MAX_DELAY: Duration = Duration::from_secs(1000);
/// The timers reach no further than two years. A key that waits longer comes early; who looks at it sends it off again.
const FAR: Duration = Duration::from_secs(30 * 24 * 60 * 60);

struct State<T> {
    ready: VecDeque<T>,
    /// In `ready`, or to be queued again once its present work is done; with the time when it was added.
    dirty: HashMap<T, Instant>,
    /// With the time when its work began.
    processing: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
    closed: bool,
    /// What has been; what is, is looked up when somebody asks.
    stats: QueueStats,
}

struct Inner<T> {
    state: Mutex<State<T>>,
    changed: Notify,
    delays: mpsc::UnboundedSender<(T, Instant)>,
}

impl<T: Send> Watched for Inner<T> {
    fn stats(&self) -> QueueStats {
        let state = self.state.lock();
        let ages = || state.processing.values().map(Instant::elapsed);
        QueueStats {
            depth: state.ready.len(),
            unfinished: ages().sum(),
            longest: ages().max().unwrap_or_default(),
            ..state.stats.clone()
        }
    }
}

/// A deduplicating, delaying, rate-limiting queue of keys. Cheap to clone; clones share the queue.
pub struct WorkQueue<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for WorkQueue<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<T: Clone + Eq + Hash + Send + 'static> Default for WorkQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + Eq + Hash + Send + 'static> WorkQueue<T> {
    /// An empty queue. Must be called on a tokio runtime: a task of its own keeps the delays, and ends with the queue.
    pub fn new() -> Self {
        let (delays, requests) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashMap::new(),
                processing: HashMap::new(),
                failures: HashMap::new(),
                closed: false,
                stats: QueueStats::default(),
            }),
            changed: Notify::new(),
            delays,
        });
        tokio::spawn(keep_delays(Arc::downgrade(&inner), requests));
        Self { inner }
    }

    /// The same; what it does is shown by [`metrics::queues`](crate::metrics::queues) under this name.
    pub fn named(name: &'static str) -> Self {
        let queue = Self::new();
        let watched: Arc<dyn Watched> = queue.inner.clone();
        watch_queue(name, Arc::downgrade(&watched));
        queue
    }

    /// Queues a key now. A key in work is queued again when that work is done.
    pub fn add(&self, key: T) {
        let mut state = self.inner.state.lock();
        if state.closed || state.dirty.contains_key(&key) {
            return;
        }
        state.stats.adds += 1;
        state.dirty.insert(key.clone(), Instant::now());
        if state.processing.contains_key(&key) {
            return;
        }
        state.ready.push_back(key);
        drop(state);
        self.inner.changed.notify_one();
    }

    /// Queues a key after `delay`, or after 30 days when that is longer. Of several delays for one key the earliest
    /// counts.
    pub fn add_after(&self, key: T, delay: Duration) {
        self.inner.state.lock().stats.retries += 1;
        if delay.is_zero() {
            return self.add(key);
        }
        // Fails only when the queue's task is gone with the runtime.
        let _ = self.inner.delays.send((key, Instant::now() + delay.min(FAR)));
    }

    /// Queues a key after its back-off, which grows with every call until [`forget`](Self::forget).
    pub fn add_rate_limited(&self, key: T) {
        let failures = {
            let mut state = self.inner.state.lock();
            let count = state.failures.entry(key.clone()).or_default();
            *count += 1;
            *count
        };
        let delay =
            BASE_DELAY.saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX)).min(MAX_DELAY);
        self.add_after(key, delay);
    }

    /// Ends a key's back-off: its work succeeded, or there is nothing left to do.
    pub fn forget(&self, key: &T) {
        self.inner.state.lock().failures.remove(key);
    }

    /// How often [`add_rate_limited`](Self::add_rate_limited) was called for the key since it was forgotten.
    pub fn failures(&self, key: &T) -> u32 {
        self.inner.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// The next key, now in work until [`done`](Self::done); `None` once the queue is closed and empty.
    pub async fn get(&self) -> Option<T> {
        loop {
            let changed = self.inner.changed.notified();
            {
                let mut state = self.inner.state.lock();
                if let Some(key) = state.ready.pop_front() {
                    let now = Instant::now();
                    if let Some(added) = state.dirty.remove(&key) {
                        state.stats.queued.note(now - added);
                    }
                    state.processing.insert(key.clone(), now);
                    if !state.ready.is_empty() {
                        self.inner.changed.notify_one();
                    }
                    return Some(key);
                }
                if state.closed {
                    self.inner.changed.notify_one();
                    return None;
                }
            }
            changed.await;
        }
    }

    /// Ends a key's work; queues it again if it was added meanwhile.
    pub fn done(&self, key: &T) {
        let mut state = self.inner.state.lock();
        if let Some(begun) = state.processing.remove(key) {
            state.stats.worked.note(begun.elapsed());
        }
        if state.dirty.contains_key(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.inner.changed.notify_one();
        }
    }

    /// Takes no more keys; [`get`](Self::get) drains what is queued and then returns `None`.
    pub fn close(&self) {
        self.inner.state.lock().closed = true;
        self.inner.changed.notify_one();
    }

    /// Keys that wait to be worked on, without delayed ones.
    pub fn len(&self) -> usize {
        self.inner.state.lock().ready.len()
    }

    /// Whether no key waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Holds delayed keys until they are due. Ends when the last handle of the queue is dropped.
async fn keep_delays<T: Clone + Eq + Hash + Send + 'static>(
    queue: std::sync::Weak<Inner<T>>,
    mut requests: mpsc::UnboundedReceiver<(T, Instant)>,
) {
    let mut delays = DelayQueue::new();
    let mut waiting: HashMap<T, (delay_queue::Key, Instant)> = HashMap::new();
    loop {
        tokio::select! {
            request = requests.recv() => {
                let Some((key, due)) = request else { return };
                match waiting.get(&key) {
                    Some((_, earlier)) if *earlier <= due => {}
                    Some((slot, _)) => {
                        delays.reset_at(slot, due);
                        let slot = *slot;
                        waiting.insert(key, (slot, due));
                    }
                    None => {
                        let slot = delays.insert_at(key.clone(), due);
                        waiting.insert(key, (slot, due));
                    }
                }
            }
            Some(expired) = delays.next(), if !delays.is_empty() => {
                let key = expired.into_inner();
                waiting.remove(&key);
                let Some(inner) = queue.upgrade() else { return };
                WorkQueue { inner }.add(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_queued_once_and_worked_on_by_one() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.get().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.get().await, Some("b"));
        assert!(queue.is_empty(), "a is in work: it must wait");
        queue.done(&"a");
        assert_eq!(queue.get().await, Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_named_queue_does_is_shown() {
        let queue = WorkQueue::named("shown");
        let other = WorkQueue::named("shown");
        let stats = || crate::metrics::queues()["shown"].clone();
        assert_eq!(stats(), QueueStats::default());
        queue.add("a");
        queue.add("a");
        other.add("b");
        assert_eq!((stats().depth, stats().adds), (2, 2));
        tokio::time::sleep(Duration::from_secs(3)).await;
        queue.get().await;
        queue.add("a");
        tokio::time::sleep(Duration::from_secs(20)).await;
        let busy = stats();
        assert_eq!((busy.depth, busy.adds), (1, 3), "what is added again waits until the work is done");
        assert_eq!((busy.unfinished, busy.longest), (Duration::from_secs(20), Duration::from_secs(20)));
        assert_eq!((busy.queued.sum, busy.queued.buckets[9]), (Duration::from_secs(3), 1));
        queue.done(&"a");
        queue.add_rate_limited("c");
        let after = stats();
        assert_eq!((after.depth, after.retries, after.unfinished), (2, 1, Duration::ZERO));
        assert_eq!((after.worked.sum, after.worked.buckets[10]), (Duration::from_secs(20), 1));
        drop((queue, other));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!crate::metrics::queues().contains_key("shown"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_several_delays_counts() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(60));
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(30));
        assert_eq!(queue.get().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), 5);
        queue.done(&"a");
        let nothing = tokio::time::timeout(Duration::from_secs(120), queue.get()).await;
        assert!(nothing.is_err(), "the later delays are gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_too_long_to_be_kept_is_cut() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::MAX);
        queue.add_after("b", Duration::from_secs(5));
        assert_eq!(queue.get().await, Some("b"));
        assert_eq!(queue.get().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), FAR.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn the_back_off_doubles_until_forgotten_and_has_a_limit() {
        let queue = WorkQueue::new();
        for expected in [5, 10, 20, 40] {
            let start = Instant::now();
            queue.add_rate_limited("a");
            assert_eq!(queue.get().await, Some("a"));
            assert!(start.elapsed().as_millis().abs_diff(expected) <= 1, "{:?}", start.elapsed());
            queue.done(&"a");
        }
        for _ in 0..80 {
            queue.add_rate_limited("b");
        }
        queue.forget(&"a");
        assert_eq!((queue.failures(&"a"), queue.failures(&"b")), (0, 80));
    }

    #[tokio::test]
    async fn a_closed_queue_drains_and_releases_every_worker() {
        let queue = WorkQueue::new();
        queue.add(1);
        let workers: Vec<_> = (0..3)
            .map(|_| {
                tokio::spawn({
                    let queue = queue.clone();
                    async move {
                        while let Some(key) = queue.get().await {
                            queue.done(&key);
                        }
                    }
                })
            })
            .collect();
        queue.close();
        for worker in workers {
            tokio::time::timeout(Duration::from_secs(5), worker).await.unwrap().unwrap();
        }
    }
}
