//! What work queues and clients of this process have done, by upstream's names: for who serves `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;

/// Upper bounds of the durations of queues, in nanoseconds: twelve powers of ten from 10 ns, as client-go has them.
const BOUNDS: [u64; 12] = [
    10,
    100,
    1_000,
    10_000,
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
    10_000_000_000,
    100_000_000_000,
    1_000_000_000_000,
];

/// A distribution of durations.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Durations {
    /// For each of [`bounds`](Self::bounds), and for what lies above; not cumulative.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// All together.
    pub sum: Duration,
}

impl Durations {
    /// Upper bounds of the buckets in seconds.
    pub fn bounds() -> impl Iterator<Item = f64> {
        // Multiplied as client-go does it, so that the labels are the same to the last digit.
        std::iter::successors(Some(10e-9), |bound| Some(bound * 10.0)).take(BOUNDS.len())
    }

    pub(crate) fn note(&mut self, elapsed: Duration) {
        let nanos = elapsed.as_nanos();
        let at = BOUNDS.iter().position(|bound| nanos <= u128::from(*bound)).unwrap_or(BOUNDS.len());
        self.buckets[at] += 1;
        self.sum = self.sum.saturating_add(elapsed);
    }

    fn add(&mut self, other: &Self) {
        for (sum, count) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += count;
        }
        self.sum = self.sum.saturating_add(other.sum);
    }
}

/// What queues of one name have done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct QueueStats {
    /// Keys that wait to be worked on (`workqueue_depth`).
    pub depth: usize,
    /// Keys queued so far (`workqueue_adds_total`).
    pub adds: u64,
    /// How often a key was to be queued after a delay (`workqueue_retries_total`).
    pub retries: u64,
    /// How long keys waited (`workqueue_queue_duration_seconds`).
    pub queued: Durations,
    /// How long work on them took (`workqueue_work_duration_seconds`).
    pub worked: Durations,
    /// The ages of all work that goes on (`workqueue_unfinished_work_seconds`).
    pub unfinished: Duration,
    /// That of the oldest (`workqueue_longest_running_processor_seconds`).
    pub longest: Duration,
}

impl QueueStats {
    fn add(&mut self, other: &Self) {
        self.depth += other.depth;
        self.adds += other.adds;
        self.retries += other.retries;
        self.queued.add(&other.queued);
        self.worked.add(&other.worked);
        self.unfinished += other.unfinished;
        self.longest = self.longest.max(other.longest);
    }
}

/// A queue as it is looked at.
pub(crate) trait Watched: Send + Sync {
    fn stats(&self) -> QueueStats;
}

type Queues = Vec<(&'static str, Weak<dyn Watched>)>;

static QUEUES: Mutex<Queues> = Mutex::new(Vec::new());

/// Makes a queue known by its name; it is forgotten when it is dropped.
pub(crate) fn watch_queue(name: &'static str, queue: Weak<dyn Watched>) {
    let mut queues = QUEUES.lock();
    queues.retain(|(_, queue)| queue.strong_count() > 0);
    queues.push((name, queue));
}

/// The queues of this process that have names.
pub fn queues() -> BTreeMap<&'static str, QueueStats> {
    let mut all: BTreeMap<&'static str, QueueStats> = BTreeMap::new();
    let queues = QUEUES.lock().clone();
    for (name, queue) in queues {
        if let Some(queue) = queue.upgrade() {
            all.entry(name).or_default().add(&queue.stats());
        }
    }
    all
}

/// What is told about a request: the status code (`<error>` when none came) and the method, and the server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestLabels {
    code: Option<u16>,
    host: Arc<str>,
    method: String,
}

impl RequestLabels {
    /// The status code.
    pub fn code(&self) -> String {
        self.code.map_or_else(|| "<error>".to_owned(), |code| code.to_string())
    }

    /// Name or address and port of the server.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The method.
    pub fn method(&self) -> &str {
        &self.method
    }
}

static REQUESTS: Mutex<BTreeMap<RequestLabels, u64>> = Mutex::new(BTreeMap::new());

pub(crate) fn count_request(host: &Arc<str>, method: &Method, code: Option<u16>) {
    let labels = RequestLabels { code, host: host.clone(), method: method.as_str().to_owned() };
    *REQUESTS.lock().entry(labels).or_insert(0) += 1;
}

/// The requests that this process has sent over connections (`rest_client_requests_total`).
pub fn requests() -> BTreeMap<RequestLabels, u64> {
    REQUESTS.lock().clone()
}
