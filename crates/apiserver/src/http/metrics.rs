//! `/metrics`: request counts and durations by upstream's names, watchers, and the process itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;

use crate::request_info::RequestInfo;

/// What a request is counted under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
}

impl RequestLabels {
    /// Of a request.
    pub fn of(info: &RequestInfo) -> RequestLabels {
        let verb = match info.verb.as_str() {
            "create" => "POST",
            "update" => "PUT",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            _ => "other",
        };
        let scope = match (info.is_resource, info.name.is_empty(), info.namespace.is_empty()) {
            (false, _, _) => "",
            (true, false, _) => "resource",
            (true, true, false) => "namespace",
            (true, true, true) => "cluster",
        };
        RequestLabels {
            verb: verb.to_string(),
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            scope,
        }
    }

    fn text(&self) -> String {
        format!(
            "group=\"{}\",resource=\"{}\",scope=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
            self.group, self.resource, self.scope, self.subresource, self.verb, self.version
        )
    }
}

/// Upper bounds of the duration histogram, seconds.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 2.0, 5.0, 15.0, 60.0];

#[derive(Default)]
struct Durations {
    buckets: [u64; BUCKETS.len()],
    sum: f64,
    count: u64,
}

/// Counters of a server.
#[derive(Default)]
pub struct Metrics {
    totals: Mutex<BTreeMap<(RequestLabels, u16), u64>>,
    durations: Mutex<BTreeMap<RequestLabels, Durations>>,
}

/// Most label combinations kept: paths that exist nowhere must not fill the memory.
const MAX_SERIES: usize = 4096;

impl Metrics {
    /// Counts an answer.
    pub fn observe(&self, labels: &RequestLabels, code: u16, elapsed: Duration) {
        // Unknown resources are counted together.
        let labels = if code == 404 || code == 405 {
            &RequestLabels {
                resource: String::new(),
                subresource: String::new(),
                group: String::new(),
                version: String::new(),
                ..labels.clone()
            }
        } else {
            labels
        };
        {
            let mut totals = self.totals.lock();
            if totals.len() < MAX_SERIES || totals.contains_key(&(labels.clone(), code)) {
                *totals.entry((labels.clone(), code)).or_default() += 1;
            }
        }
        // The duration of a watch says nothing.
        if labels.verb == "WATCH" {
            return;
        }
        let mut durations = self.durations.lock();
        if durations.len() < MAX_SERIES || durations.contains_key(labels) {
            let entry = durations.entry(labels.clone()).or_default();
            let seconds = elapsed.as_secs_f64();
            for (at, bound) in BUCKETS.iter().enumerate() {
                if seconds <= *bound {
                    entry.buckets[at] += 1;
                }
            }
            entry.sum += seconds;
            entry.count += 1;
        }
    }

    /// The exposition text; `watchers` are registered watches by resource.
    pub fn render(&self, watchers: &[(String, usize)]) -> String {
        let mut out = String::new();
        out.push_str("# HELP apiserver_request_total Counter of apiserver requests broken out for each verb, group, version, resource, scope and HTTP response code.\n# TYPE apiserver_request_total counter\n");
        for ((labels, code), count) in self.totals.lock().iter() {
            let _ = writeln!(out, "apiserver_request_total{{code=\"{code}\",{}}} {count}", labels.text());
        }
        out.push_str("# HELP apiserver_request_duration_seconds Response latency distribution in seconds.\n# TYPE apiserver_request_duration_seconds histogram\n");
        for (labels, durations) in self.durations.lock().iter() {
            let text = labels.text();
            for (at, bound) in BUCKETS.iter().enumerate() {
                let _ = writeln!(
                    out,
                    "apiserver_request_duration_seconds_bucket{{{text},le=\"{bound}\"}} {}",
                    durations.buckets[at]
                );
            }
            let _ = writeln!(
                out,
                "apiserver_request_duration_seconds_bucket{{{text},le=\"+Inf\"}} {c}\napiserver_request_duration_seconds_sum{{{text}}} {}\napiserver_request_duration_seconds_count{{{text}}} {c}",
                durations.sum,
                c = durations.count
            );
        }
        out.push_str("# HELP apiserver_longrunning_requests Gauge of all active long-running apiserver requests.\n# TYPE apiserver_longrunning_requests gauge\n");
        for (resource, count) in watchers {
            let _ = writeln!(
                out,
                "apiserver_longrunning_requests{{resource=\"{resource}\",verb=\"WATCH\"}} {count}"
            );
        }
        process(&mut out);
        out
    }
}

/// Memory, CPU time and files of this process, from `/proc/self`.
fn process(out: &mut String) {
    if let Ok(stat) = std::fs::read_to_string("/proc/self/stat")
        && let Some((_, rest)) = stat.rsplit_once(") ")
    {
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        // utime and stime count in hundredths of a second, rss in pages of 4 KiB.
        let _ = writeln!(
            out,
            "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total {}",
            (number(11) + number(12)) / 100.0
        );
        let _ = writeln!(
            out,
            "# TYPE process_virtual_memory_bytes gauge\nprocess_virtual_memory_bytes {}",
            number(20)
        );
        let _ = writeln!(
            out,
            "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {}",
            number(21) * 4096.0
        );
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        let _ = writeln!(out, "# TYPE process_open_fds gauge\nprocess_open_fds {}", files.count());
    }
}
