//! What schedulers of this process have done, by upstream's names (`pkg/scheduler/metrics`): for who serves `/metrics`.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A distribution over bounds that double.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    first: f64,
    /// For each of [`bounds`](Self::bounds), and for what lies above; not cumulative.
    pub buckets: Vec<u64>,
    /// All together.
    pub sum: f64,
}

impl Distribution {
    fn new(first: f64, bounds: usize) -> Self {
        Self { first, buckets: vec![0; bounds + 1], sum: 0.0 }
    }

    /// Upper bounds of the buckets.
    pub fn bounds(&self) -> impl Iterator<Item = f64> {
        std::iter::successors(Some(self.first), |bound| Some(bound * 2.0)).take(self.buckets.len() - 1)
    }

    fn note(&mut self, value: f64) {
        let at = self.bounds().position(|bound| value <= bound).unwrap_or(self.buckets.len() - 1);
        self.buckets[at] += 1;
        self.sum += value;
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// How an attempt to schedule a pod ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Something failed.
    Error,
    /// The pod is bound.
    Scheduled,
    /// No node takes it.
    Unschedulable,
}

impl Outcome {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Scheduled => "scheduled",
            Self::Unschedulable => "unschedulable",
        }
    }
}

/// One attempt to schedule a pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    /// Which of the pod's attempts, from 1.
    pub number: u32,
    /// When it began.
    pub began: Instant,
    /// Since when the pod waits, over all attempts; the time in which it was gated is not counted.
    pub waits_since: Instant,
}

/// Pods that wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    /// To be tried next.
    pub active: usize,
    /// Until their back-off ends.
    pub backoff: usize,
    /// For something to change.
    pub unschedulable: usize,
    /// For a plugin to let them be tried at all.
    pub gated: usize,
}

/// From this attempt on, all count as one label.
const MANY_ATTEMPTS: u32 = 15;

/// All of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Seconds of attempts, by profile and outcome (`scheduler_scheduling_attempt_duration_seconds`); their number is
    /// `scheduler_schedule_attempts_total`.
    pub attempts: BTreeMap<(String, Outcome), Distribution>,
    /// Attempts that a scheduled pod took (`scheduler_pod_scheduling_attempts`).
    pub attempts_of_pods: Distribution,
    /// Seconds until a pod was scheduled, by attempts (`scheduler_pod_scheduling_sli_duration_seconds`).
    pub latency: BTreeMap<String, Distribution>,
    /// `scheduler_pending_pods`.
    pub pending: Pending,
    /// `scheduler_preemption_attempts_total`.
    pub preemptions: u64,
    /// Victims of each preemption (`scheduler_preemption_victims`).
    pub victims: Distribution,
}

impl Metrics {
    fn new() -> Self {
        Self {
            attempts: BTreeMap::new(),
            attempts_of_pods: Distribution::new(1.0, 5),
            latency: BTreeMap::new(),
            pending: Pending::default(),
            preemptions: 0,
            victims: Distribution::new(1.0, 7),
        }
    }

    fn attempted(&mut self, profile: &str, outcome: Outcome, attempt: Attempt, now: Instant) {
        let since = |begin| now.saturating_duration_since(begin).as_secs_f64();
        let key = (profile.to_owned(), outcome);
        self.attempts.entry(key).or_insert_with(|| Distribution::new(0.001, 15)).note(since(attempt.began));
        if outcome == Outcome::Scheduled {
            self.attempts_of_pods.note(f64::from(attempt.number));
            let label = match attempt.number {
                MANY_ATTEMPTS.. => format!("{MANY_ATTEMPTS}+"),
                number => number.to_string(),
            };
            let latency = self.latency.entry(label).or_insert_with(|| Distribution::new(0.01, 20));
            latency.note(since(attempt.waits_since));
        }
    }
}

static METRICS: Mutex<Option<Metrics>> = Mutex::new(None);

/// What has been counted; `None` when no scheduler has run in this process.
pub fn snapshot() -> Option<Metrics> {
    METRICS.lock().clone()
}

/// Begins to count.
pub(crate) fn begin() {
    METRICS.lock().get_or_insert_with(Metrics::new);
}

fn with(change: impl FnOnce(&mut Metrics)) {
    if let Some(metrics) = METRICS.lock().as_mut() {
        change(metrics);
    }
}

/// An attempt has ended; one for a bound pod, with the binding.
pub(crate) fn attempted(profile: &str, outcome: Outcome, attempt: Attempt) {
    with(|metrics| metrics.attempted(profile, outcome, attempt, Instant::now()));
}

/// What waits now.
pub(crate) fn pending(pending: Pending) {
    with(|metrics| metrics.pending = pending);
}

/// Preemption has been asked about a pod.
pub(crate) fn preemption_asked() {
    with(|metrics| metrics.preemptions += 1);
}

/// So many pods make room.
pub(crate) fn victims(count: usize) {
    with(|metrics| metrics.victims.note(count as f64));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_by_outcome_and_number() {
        let mut metrics = Metrics::new();
        let start = Instant::now();
        let mut note = |outcome, number, took, waited| {
            let after = |millis| start + std::time::Duration::from_millis(millis);
            let now = after(u64::max(took, waited));
            let attempt = Attempt {
                number,
                began: now - std::time::Duration::from_millis(took),
                waits_since: now - std::time::Duration::from_millis(waited),
            };
            metrics.attempted("default-scheduler", outcome, attempt, now);
        };
        note(Outcome::Unschedulable, 1, 1, 1);
        note(Outcome::Error, 2, 3, 4);
        note(Outcome::Scheduled, 3, 1, 10);
        note(Outcome::Scheduled, 14, 100_000, 11);
        note(Outcome::Scheduled, 15, 1, 20_000_000);
        note(Outcome::Scheduled, 99, 1, 1);
        let of = |outcome| &metrics.attempts[&("default-scheduler".to_owned(), outcome)];
        assert_eq!(of(Outcome::Unschedulable).buckets[0], 1);
        assert_eq!(of(Outcome::Error).buckets[2], 1);
        assert_eq!((of(Outcome::Scheduled).count(), of(Outcome::Scheduled).buckets[15]), (4, 1));
        assert_eq!(metrics.attempts_of_pods.buckets, [0, 0, 1, 0, 2, 1]);
        let labels: Vec<_> = metrics.latency.keys().map(String::as_str).collect();
        assert_eq!(labels, ["14", "15+", "3"]);
        assert_eq!((metrics.latency["3"].buckets[0], metrics.latency["14"].buckets[1]), (1, 1));
        assert_eq!((metrics.latency["15+"].buckets[20], metrics.latency["15+"].buckets[0]), (1, 1));
    }
}
