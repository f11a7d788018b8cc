//! What the server counts about itself, by upstream's names and labels.
//!
//! Counting is atomic additions through handles; the text is made when somebody scrapes `/metrics`. Numbers that are
//! known anyway (objects, watchers, seats) are read then and not counted.

pub mod process;
pub mod requests;
mod series;
mod text;
pub mod webhooks;

use std::time::Duration;

pub use requests::{RequestLabels, RequestSeries, Requests, is_long_running, is_read_only};
pub use text::{Counter, Exposition, Gauge, Histogram, Shaping};

/// Upper bounds of the durations of parts of a request, seconds.
const PARTS: &[f64] = &[0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0, 10.0, 15.0, 30.0];
/// Upper bounds of the durations of admission, seconds.
const ADMISSION: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
/// Upper bounds of the durations of authentication and authorization, seconds.
const IDENTITY: &[f64] = &[
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];
/// Upper bounds of the durations of store operations, seconds.
const STORE: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];

/// Upper bounds of the sizes of watch events, bytes.
const EVENTS: &[f64] = &[1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131072.0];

/// What is read from the cache of one kind.
#[derive(Debug)]
pub struct Reads {
    /// Sizes of the events sent to watchers, bytes.
    pub watch_events: Histogram,
    /// Objects of the state that watches began with.
    pub init_events: Counter,
    /// Lists.
    pub lists: Counter,
    /// Objects they looked at.
    pub fetched: Counter,
    /// Objects they returned.
    pub returned: Counter,
}

impl Default for Reads {
    fn default() -> Reads {
        Reads {
            watch_events: Histogram::numbers(EVENTS),
            init_events: Counter::default(),
            lists: Counter::default(),
            fetched: Counter::default(),
            returned: Counter::default(),
        }
    }
}

/// How a request ended for authentication or authorization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An identity was proved, or the request is allowed.
    Yes,
    /// It is not.
    No,
    /// It could not be found out.
    Error,
}

/// Counters and durations of [`Verdict`]s.
#[derive(Debug)]
pub struct Verdicts([(Counter, Histogram); 3]);

impl Default for Verdicts {
    fn default() -> Verdicts {
        Verdicts(std::array::from_fn(|_| (Counter::default(), Histogram::seconds(IDENTITY))))
    }
}

impl Verdicts {
    /// Counts one.
    pub fn observe(&self, verdict: Verdict, elapsed: Duration) {
        let (count, durations) = &self.0[verdict as usize];
        count.inc();
        durations.time(elapsed);
    }

    fn render(&self, out: &mut Exposition, names: [&str; 2], help: [&str; 2], results: [&str; 3]) {
        out.family(names[0], "counter", help[0]);
        for ((count, _), result) in self.0.iter().zip(results) {
            out.sample(names[0], &[("result", result)], count.get() as f64);
        }
        out.family(names[1], "histogram", help[1]);
        for ((_, durations), result) in self.0.iter().zip(results) {
            if durations.count() > 0 {
                out.histogram(names[1], &[("result", result)], durations);
            }
        }
    }
}

/// The operations of admission, in upstream's words.
const OPERATIONS: [&str; 4] = ["CREATE", "UPDATE", "DELETE", "CONNECT"];

/// Durations of one step of admission by operation, admitted and rejected.
#[derive(Debug)]
pub struct AdmissionSteps([[Histogram; 2]; 4]);

impl Default for AdmissionSteps {
    fn default() -> AdmissionSteps {
        AdmissionSteps(std::array::from_fn(|_| std::array::from_fn(|_| Histogram::seconds(ADMISSION))))
    }
}

impl AdmissionSteps {
    /// Notes a step. `operation` in upstream's words.
    pub fn observe(&self, operation: &str, rejected: bool, elapsed: Duration) {
        let at = OPERATIONS.iter().position(|o| *o == operation).unwrap_or(3);
        self.0[at][usize::from(rejected)].time(elapsed);
    }

    fn render(&self, out: &mut Exposition, name: &str, kind: &str, plugin: Option<&str>) {
        for (operation, histograms) in OPERATIONS.iter().zip(&self.0) {
            for (rejected, histogram) in ["false", "true"].iter().zip(histograms) {
                if histogram.count() > 0 {
                    let rest = [("operation", *operation), ("rejected", *rejected), ("type", kind)];
                    let labels: Vec<(&str, &str)> =
                        plugin.map(|p| ("name", p)).into_iter().chain(rest).collect();
                    out.histogram(name, &labels, histogram);
                }
            }
        }
    }
}

/// Everything that is counted in one place; parts of the server keep more of their own.
#[derive(Debug)]
pub struct Metrics {
    /// Requests.
    pub requests: Requests,
    /// Requests that change something and are served now, and those that do not.
    pub inflight: [Gauge; 2],
    /// Requests that were refused by the server to protect itself (429), by [`is_read_only`].
    pub dropped: [Counter; 2],
    /// Requests whose time was over (504).
    pub timeouts: Counter,
    /// Requests whose handler panicked.
    pub panics: Counter,
    /// Requests whose client went away.
    pub aborts: Counter,
    /// Handshakes that failed.
    pub tls_handshake_errors: Counter,
    /// Connections sent elsewhere.
    pub goaways: Counter,
    /// Authentication.
    pub authentication: Verdicts,
    /// Authorization.
    pub authorization: Verdicts,
    /// The mutating and the validating step of admission.
    pub admission: [AdmissionSteps; 2],
    /// The same for each plugin, in the order they are asked.
    pub plugins: std::sync::OnceLock<Vec<(&'static str, [AdmissionSteps; 2])>>,
    /// Webhooks and policies.
    pub extensions: webhooks::Extensions,
    /// Time in priority and fairness.
    pub flow_control_filter: Histogram,
    /// Transactions of the store: puts, deletes.
    pub store_writes: [Histogram; 2],
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            requests: Requests::default(),
            inflight: Default::default(),
            dropped: Default::default(),
            timeouts: Counter::default(),
            panics: Counter::default(),
            aborts: Counter::default(),
            tls_handshake_errors: Counter::default(),
            goaways: Counter::default(),
            authentication: Verdicts::default(),
            authorization: Verdicts::default(),
            admission: Default::default(),
            plugins: Default::default(),
            extensions: Default::default(),
            flow_control_filter: Histogram::seconds(PARTS),
            store_writes: std::array::from_fn(|_| Histogram::seconds(STORE)),
        }
    }
}

impl Metrics {
    /// Names the admission plugins, in the order they are asked.
    pub fn name_plugins(&self, names: impl Iterator<Item = &'static str>) {
        let _ = self.plugins.set(names.map(|name| (name, Default::default())).collect());
    }

    /// Notes what a plugin did in the mutating (0) or validating (1) step.
    pub fn plugin(&self, at: usize, step: usize, operation: &str, rejected: bool, elapsed: Duration) {
        if let Some((_, steps)) = self.plugins.get().and_then(|plugins| plugins.get(at)) {
            steps[step].observe(operation, rejected, elapsed);
        }
    }

    /// Writes what is counted here.
    pub fn render(&self, out: &mut Exposition) {
        self.requests.render(out);
        out.family("apiserver_current_inflight_requests", "gauge", "[STABLE] Maximal number of currently used inflight request limit of this apiserver per request kind in last second.");
        for (kind, gauge) in ["mutating", "readOnly"].iter().zip(&self.inflight) {
            out.sample("apiserver_current_inflight_requests", &[("request_kind", kind)], gauge.get() as f64);
        }
        out.family(
            "apiserver_dropped_requests_total",
            "counter",
            "[ALPHA] Number of requests dropped with 'Try again later' response.",
        );
        for (kind, count) in ["mutating", "readOnly"].iter().zip(&self.dropped) {
            out.sample("apiserver_dropped_requests_total", &[("request_kind", kind)], count.get() as f64);
        }
        out.family(
            "apiserver_request_terminations_total",
            "counter",
            "[ALPHA] Number of requests which apiserver terminated in self-defense.",
        );
        let refused: u64 = self.dropped.iter().map(Counter::get).sum();
        for (code, count) in [("429", refused), ("504", self.timeouts.get()), ("500", self.panics.get())] {
            let labels = [("code", code), ("component", "apiserver")];
            out.sample("apiserver_request_terminations_total", &labels, count as f64);
        }
        out.single("apiserver_request_aborts_total", "counter", "[ALPHA] Number of requests which apiserver aborted possibly due to a timeout, for each group, version, verb, resource, subresource and scope.", self.aborts.get() as f64);
        out.single(
            "apiserver_tls_handshake_errors_total",
            "counter",
            "[ALPHA] Number of requests dropped with 'TLS handshake error from' error.",
            self.tls_handshake_errors.get() as f64,
        );
        out.family(
            "apiserver_request_filter_duration_seconds",
            "histogram",
            "[ALPHA] Request filter latency distribution in seconds, for each filter type.",
        );
        out.histogram(
            "apiserver_request_filter_duration_seconds",
            &[("filter", "priorityandfairness")],
            &self.flow_control_filter,
        );
        self.authentication.render(
            out,
            ["authentication_attempts", "authentication_duration_seconds"],
            [
                "[ALPHA] Counter of authenticated attempts.",
                "[ALPHA] Authentication duration in seconds broken out by result.",
            ],
            ["success", "failure", "error"],
        );
        self.authorization.render(
            out,
            ["authorization_attempts_total", "authorization_duration_seconds"],
            ["[ALPHA] Counter of authorization attempts broken down by result. It can be either 'allowed', 'denied', 'no-opinion' or 'error'.", "[ALPHA] Authorization duration in seconds broken out by result."],
            ["allowed", "denied", "error"],
        );
        out.family("apiserver_admission_step_admission_duration_seconds", "histogram", "[STABLE] Admission sub-step latency histogram in seconds, broken out for each operation and API resource and step type (validate or admit).");
        for (kind, steps) in ["admit", "validate"].iter().zip(&self.admission) {
            steps.render(out, "apiserver_admission_step_admission_duration_seconds", kind, None);
        }
        let name = "apiserver_admission_controller_admission_duration_seconds";
        out.family(name, "histogram", "[STABLE] Admission controller latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).");
        for (plugin, steps) in self.plugins.get().into_iter().flatten() {
            for (kind, steps) in ["admit", "validate"].iter().zip(steps) {
                steps.render(out, name, kind, Some(plugin));
            }
        }
        self.extensions.render(out);
        out.family(
            "etcd_request_duration_seconds",
            "histogram",
            "[ALPHA] Etcd request latency in seconds for each operation and object type.",
        );
        for (operation, histogram) in ["put", "delete"].iter().zip(&self.store_writes) {
            out.histogram("etcd_request_duration_seconds", &[("operation", operation)], histogram);
        }
    }
}
