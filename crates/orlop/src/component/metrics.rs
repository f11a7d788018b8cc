//! The metrics of work queues and clients of this process, by client-go's names, and of its scheduler.

use orlop_apiserver::metrics::Exposition;
use orlop_client::metrics::{Durations, QueueStats, queues, requests};
use orlop_scheduler::metrics::{Distribution, Metrics, snapshot};

type Value = fn(&QueueStats) -> f64;
type Spread = fn(&QueueStats) -> &Durations;

const NUMBERS: [(&str, &str, &str, Value); 5] = [
    ("workqueue_adds_total", "counter", "[ALPHA] Total number of adds handled by workqueue", |queue| {
        queue.adds as f64
    }),
    ("workqueue_depth", "gauge", "[ALPHA] Current depth of workqueue", |queue| queue.depth as f64),
    (
        "workqueue_longest_running_processor_seconds",
        "gauge",
        "[ALPHA] How many seconds has the longest running processor for workqueue been running.",
        |queue| queue.longest.as_secs_f64(),
    ),
    ("workqueue_retries_total", "counter", "[ALPHA] Total number of retries handled by workqueue", |queue| {
        queue.retries as f64
    }),
    (
        "workqueue_unfinished_work_seconds",
        "gauge",
        "[ALPHA] How many seconds of work has done that is in progress and hasn't been observed by work_duration. Large \
         values indicate stuck threads. One can deduce the number of stuck threads by observing the rate at which this \
         increases.",
        |queue| queue.unfinished.as_secs_f64(),
    ),
];

const DURATIONS: [(&str, &str, Spread); 2] = [
    (
        "workqueue_queue_duration_seconds",
        "[ALPHA] How long in seconds an item stays in workqueue before being requested",
        |queue| &queue.queued,
    ),
    (
        "workqueue_work_duration_seconds",
        "[ALPHA] How long in seconds processing an item from workqueue takes.",
        |queue| &queue.worked,
    ),
];

/// Writes them.
pub fn render(out: &mut Exposition) {
    let name = "rest_client_requests_total";
    out.family(
        name,
        "counter",
        "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.",
    );
    for (labels, count) in requests() {
        let labels = [("code", &*labels.code()), ("host", labels.host()), ("method", labels.method())];
        out.sample(name, &labels, count as f64);
    }
    let queues = queues();
    for (name, kind, help, value) in NUMBERS {
        out.family(name, kind, help);
        for (queue, stats) in &queues {
            out.sample(name, &[("name", queue)], value(stats));
        }
    }
    for (name, help, durations) in DURATIONS {
        out.family(name, "histogram", help);
        for (queue, stats) in &queues {
            let Durations { buckets, sum } = durations(stats);
            out.distribution(name, &[("name", queue)], Durations::bounds(), buckets, sum.as_secs_f64());
        }
    }
    if let Some(metrics) = snapshot() {
        scheduler(out, &metrics);
    }
}

fn scheduler(out: &mut Exposition, metrics: &Metrics) {
    let spread = |out: &mut Exposition, name: &str, labels: &[(&str, &str)], of: &Distribution| {
        out.distribution(name, labels, of.bounds(), &of.buckets, of.sum);
    };
    let name = "scheduler_schedule_attempts_total";
    out.family(
        name,
        "counter",
        "[STABLE] Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, \
         while 'error' means an internal scheduler problem.",
    );
    for ((profile, outcome), durations) in &metrics.attempts {
        let labels = [("profile", profile.as_str()), ("result", outcome.as_str())];
        out.sample(name, &labels, durations.count() as f64);
    }
    let name = "scheduler_scheduling_attempt_duration_seconds";
    out.family(
        name,
        "histogram",
        "[STABLE] Scheduling attempt latency in seconds (scheduling algorithm + binding)",
    );
    for ((profile, outcome), durations) in &metrics.attempts {
        spread(out, name, &[("profile", profile), ("result", outcome.as_str())], durations);
    }
    let name = "scheduler_pod_scheduling_attempts";
    out.family(name, "histogram", "[STABLE] Number of attempts to successfully schedule a pod.");
    spread(out, name, &[], &metrics.attempts_of_pods);
    let name = "scheduler_pod_scheduling_sli_duration_seconds";
    out.family(
        name,
        "histogram",
        "[BETA] E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue and might \
         involve multiple scheduling attempts.",
    );
    for (attempts, latency) in &metrics.latency {
        spread(out, name, &[("attempts", attempts)], latency);
    }
    let name = "scheduler_pending_pods";
    out.family(
        name,
        "gauge",
        "[STABLE] Number of pending pods, by the queue type. 'active' means number of pods in activeQ; 'backoff' means \
         number of pods in backoffQ; 'unschedulable' means number of pods in unschedulablePods that the scheduler \
         attempted to schedule and failed; 'gated' is the number of unschedulable pods that the scheduler never attempted \
         to schedule because they are gated.",
    );
    let pending = metrics.pending;
    for (queue, count) in [
        ("active", pending.active),
        ("backoff", pending.backoff),
        ("gated", pending.gated),
        ("unschedulable", pending.unschedulable),
    ] {
        out.sample(name, &[("queue", queue)], count as f64);
    }
    let name = "scheduler_preemption_attempts_total";
    let help = "[STABLE] Total preemption attempts in the cluster till now";
    out.single(name, "counter", help, metrics.preemptions as f64);
    let name = "scheduler_preemption_victims";
    out.family(name, "histogram", "[STABLE] Number of selected preemption victims");
    spread(out, name, &[], &metrics.victims);
}
