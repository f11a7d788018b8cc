//! The metrics of work queues and clients of this process, by client-go's names.

use orlop_apiserver::metrics::Exposition;
use orlop_client::metrics::{Durations, QueueStats, queues, requests};

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
}
