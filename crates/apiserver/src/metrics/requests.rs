//! Series of requests: found by a hash of their labels, kept as atomics.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::text::{Counter, Exposition, Gauge, Histogram};
use crate::request_info::{Query, RequestInfo};

/// Upper bounds of request durations, seconds.
const DURATIONS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// Upper bounds of response sizes, bytes.
const SIZES: &[f64] =
    &[1000.0, 10_000.0, 100_000.0, 1_000_000.0, 10_000_000.0, 100_000_000.0, 1_000_000_000.0];
/// Most series kept: whoever asks for much that exists must not fill the memory.
const MAX_SERIES: usize = 4096;
/// Most status codes of one series.
const MAX_CODES: usize = 12;

/// Who is asked, in the labels.
const COMPONENT: (&str, &str) = ("component", "apiserver");

/// What a request is counted under; borrowed, so that looking it up makes nothing.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct RequestLabels<'a> {
    verb: &'static str,
    dry_run: &'static str,
    scope: &'static str,
    group: &'a str,
    version: &'a str,
    resource: &'a str,
    subresource: &'a str,
}

/// Whether a request holds its connection for as long as it likes.
pub fn is_long_running(info: &RequestInfo) -> bool {
    info.is_resource
        && (info.verb == "watch"
            || matches!(info.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward"))
        || info.path.starts_with("/debug/pprof/")
}

/// Whether a request changes nothing.
pub fn is_read_only(info: &RequestInfo) -> bool {
    matches!(info.verb.as_str(), "get" | "list" | "watch" | "head" | "options")
}

impl<'a> RequestLabels<'a> {
    /// Of a request. `content_type` tells an apply from other patches.
    pub fn of(
        info: &'a RequestInfo,
        query: &Query,
        content_type: Option<&http::HeaderValue>,
    ) -> RequestLabels<'a> {
        let connects =
            matches!(info.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward");
        let applies = || content_type.is_some_and(|v| v.as_bytes().starts_with(b"application/apply-patch"));
        let verb = match info.verb.as_str() {
            _ if info.is_resource && connects => "CONNECT",
            "create" | "post" => "POST",
            "update" | "put" => "PUT",
            "patch" if applies() => "APPLY",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            "get" => "GET",
            "head" => "HEAD",
            "list" => "LIST",
            "watch" if query.flag("sendInitialEvents") => "WATCHLIST",
            "watch" => "WATCH",
            _ => "other",
        };
        let scope =
            match (info.is_resource, info.verb.as_str(), info.name.is_empty(), info.namespace.is_empty()) {
                (false, ..) => "",
                (true, "create", true, false) => "resource",
                (true, _, false, _) => "resource",
                (true, _, true, false) => "namespace",
                (true, "create", true, true) => "resource",
                (true, _, true, true) => "cluster",
            };
        let dry_run = if query.get("dryRun").is_some() { "All" } else { "" };
        RequestLabels {
            verb,
            dry_run,
            scope,
            group: &info.group,
            version: &info.version,
            resource: &info.resource,
            subresource: if info.is_resource { &info.subresource } else { &info.path },
        }
    }

    /// The same without what names a resource: for paths that do not exist.
    pub fn unknown(self) -> RequestLabels<'static> {
        let RequestLabels { verb, dry_run, scope, .. } = self;
        RequestLabels { verb, dry_run, scope, group: "", version: "", resource: "", subresource: "" }
    }

    fn hash_value(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// Counters of one set of labels.
#[derive(Debug)]
pub struct RequestSeries {
    verb: &'static str,
    dry_run: &'static str,
    scope: &'static str,
    names: [Box<str>; 4],
    codes: [(AtomicU32, Counter); MAX_CODES],
    durations: Histogram,
    /// Without the time that was spent waiting for others.
    own_durations: Histogram,
    sizes: Histogram,
    /// Long-running requests under way.
    pub running: Gauge,
}

impl RequestSeries {
    fn new(labels: &RequestLabels<'_>) -> RequestSeries {
        RequestSeries {
            verb: labels.verb,
            dry_run: labels.dry_run,
            scope: labels.scope,
            names: [labels.group, labels.version, labels.resource, labels.subresource].map(Box::from),
            codes: Default::default(),
            durations: Histogram::seconds(DURATIONS),
            own_durations: Histogram::seconds(DURATIONS),
            sizes: Histogram::numbers(SIZES),
            running: Gauge::default(),
        }
    }

    fn is(&self, labels: &RequestLabels<'_>) -> bool {
        let names = [labels.group, labels.version, labels.resource, labels.subresource];
        self.verb == labels.verb
            && self.dry_run == labels.dry_run
            && self.scope == labels.scope
            && self.names.iter().zip(names).all(|(a, b)| a.as_ref() == b)
    }

    /// Counts an answer that took `elapsed`, of which the request `waited` for webhooks and for a seat; `size` of its
    /// body, when that is known.
    pub fn observe(&self, code: u16, elapsed: Duration, waited: Duration, size: Option<u64>) {
        let code = u32::from(code);
        for (slot, count) in &self.codes {
            let known = slot.load(Ordering::Relaxed);
            let taken = known == code
                || known == 0
                    && match slot.compare_exchange(0, code, Ordering::Relaxed, Ordering::Relaxed) {
                        Ok(_) => true,
                        Err(other) => other == code,
                    };
            if taken {
                count.inc();
                break;
            }
        }
        // How long a client likes to watch says nothing about the server.
        if !matches!(self.verb, "WATCH" | "WATCHLIST" | "CONNECT") {
            self.durations.time(elapsed);
            if self.dry_run.is_empty() {
                self.own_durations.time(elapsed.saturating_sub(waited));
            }
        }
        if let Some(size) = size
            && matches!(self.verb, "GET" | "LIST")
            && !self.names[2].is_empty()
        {
            self.sizes.number(size);
        }
    }

    fn labels(&self) -> [(&str, &str); 7] {
        let [group, version, resource, subresource] = &self.names;
        [
            COMPONENT,
            ("group", group),
            ("resource", resource),
            ("scope", self.scope),
            ("subresource", subresource),
            ("verb", self.verb),
            ("version", version),
        ]
    }
}

/// All series.
#[derive(Debug, Default)]
pub struct Requests(RwLock<HashMap<u64, Arc<RequestSeries>>>);

impl Requests {
    /// The series of these labels. A new one is made when `exists` says that they name something; what does not exist
    /// is counted together.
    pub fn series(&self, labels: RequestLabels<'_>, exists: impl FnOnce() -> bool) -> Arc<RequestSeries> {
        let hash = labels.hash_value();
        if let Some(series) = self.0.read().get(&hash)
            && series.is(&labels)
        {
            return series.clone();
        }
        let labels = if exists() { labels } else { labels.unknown() };
        let hash = labels.hash_value();
        let mut all = self.0.write();
        if all.len() >= MAX_SERIES && !all.contains_key(&hash) {
            let labels = labels.unknown();
            return all
                .entry(labels.hash_value())
                .or_insert_with(|| Arc::new(RequestSeries::new(&labels)))
                .clone();
        }
        all.entry(hash).or_insert_with(|| Arc::new(RequestSeries::new(&labels))).clone()
    }

    /// Writes the families.
    pub fn render(&self, out: &mut Exposition) {
        let mut all: Vec<Arc<RequestSeries>> = self.0.read().values().cloned().collect();
        all.sort_by(|a, b| (a.labels(), a.dry_run).cmp(&(b.labels(), b.dry_run)));
        out.family("apiserver_request_total", "counter", "[STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.");
        for series in &all {
            let [component, group, resource, scope, subresource, verb, version] = series.labels();
            for (code, count) in &series.codes {
                let code = code.load(Ordering::Relaxed);
                if code == 0 {
                    continue;
                }
                let code = code.to_string();
                let labels = [
                    ("code", code.as_str()),
                    component,
                    ("dry_run", series.dry_run),
                    group,
                    resource,
                    scope,
                    subresource,
                    verb,
                    version,
                ];
                out.sample("apiserver_request_total", &labels, count.get() as f64);
            }
        }
        let timed: Vec<&Arc<RequestSeries>> = all.iter().filter(|s| s.durations.count() > 0).collect();
        out.family("apiserver_request_duration_seconds", "histogram", "[STABLE] Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.");
        for series in &timed {
            let [component, group, resource, scope, subresource, verb, version] = series.labels();
            let labels =
                [component, ("dry_run", series.dry_run), group, resource, scope, subresource, verb, version];
            out.histogram("apiserver_request_duration_seconds", &labels, &series.durations);
        }
        out.family("apiserver_request_sli_duration_seconds", "histogram", "[BETA] Response latency distribution (not counting webhook duration and priority & fairness queue wait times) in seconds for each verb, group, version, resource, subresource, scope and component.");
        for series in timed.iter().filter(|series| series.dry_run.is_empty()) {
            out.histogram("apiserver_request_sli_duration_seconds", &series.labels(), &series.own_durations);
        }
        out.family("apiserver_response_sizes", "histogram", "[STABLE] Response size distribution in bytes for each group, version, verb, resource, subresource, scope and component.");
        for series in all.iter().filter(|series| series.sizes.count() > 0) {
            out.histogram("apiserver_response_sizes", &series.labels(), &series.sizes);
        }
        out.family("apiserver_longrunning_requests", "gauge", "[STABLE] Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way.");
        for series in all.iter().filter(|series| matches!(series.verb, "WATCH" | "WATCHLIST" | "CONNECT")) {
            out.sample("apiserver_longrunning_requests", &series.labels(), series.running.get() as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn labels() {
        let check =
            |method: Method, target: &str, content_type: Option<&'static str>, expected: [&str; 3]| {
                let (path, query) = target.split_once('?').unwrap_or((target, ""));
                let query = Query::parse(query);
                let info = RequestInfo::parse(&method, path, &query);
                let content_type = content_type.map(http::HeaderValue::from_static);
                let labels = RequestLabels::of(&info, &query, content_type.as_ref());
                assert_eq!([labels.verb, labels.scope, labels.dry_run], expected, "{method} {target}");
            };
        check(Method::GET, "/api/v1/pods", None, ["LIST", "cluster", ""]);
        check(Method::GET, "/api/v1/namespaces/n/pods", None, ["LIST", "namespace", ""]);
        check(Method::GET, "/api/v1/namespaces/n/pods?watch=1", None, ["WATCH", "namespace", ""]);
        check(Method::GET, "/api/v1/pods?watch=1&sendInitialEvents=true", None, ["WATCHLIST", "cluster", ""]);
        check(Method::GET, "/api/v1/namespaces/n/pods/p/log", None, ["CONNECT", "resource", ""]);
        check(Method::POST, "/api/v1/namespaces/n/pods?dryRun=All", None, ["POST", "resource", "All"]);
        check(
            Method::PATCH,
            "/api/v1/nodes/n",
            Some("application/merge-patch+json"),
            ["PATCH", "resource", ""],
        );
        check(
            Method::PATCH,
            "/api/v1/nodes/n",
            Some("application/apply-patch+yaml"),
            ["APPLY", "resource", ""],
        );
        check(Method::GET, "/healthz", None, ["GET", "", ""]);
    }

    #[test]
    fn waiting_for_others_is_not_the_servers_time() {
        let requests = Requests::default();
        let query = Query::default();
        let info = RequestInfo::parse(&Method::GET, "/api/v1/pods", &query);
        let series = requests.series(RequestLabels::of(&info, &query, None), || true);
        series.observe(200, Duration::from_secs(3), Duration::from_secs(2), None);
        let mut out = Exposition::default();
        requests.render(&mut out);
        let text = out.finish();
        let sum = |family: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("{family}_sum")));
            line.and_then(|line| line.rsplit_once(' ')).map(|(_, sum)| sum.to_string())
        };
        assert_eq!(sum("apiserver_request_duration_seconds").as_deref(), Some("3"));
        assert_eq!(sum("apiserver_request_sli_duration_seconds").as_deref(), Some("1"));
    }

    #[test]
    fn what_does_not_exist_is_counted_together() {
        let requests = Requests::default();
        for n in 0..50 {
            let (query, path) = (Query::default(), format!("/api/v1/things{n}"));
            let info = RequestInfo::parse(&Method::GET, &path, &query);
            requests.series(RequestLabels::of(&info, &query, None), || false).observe(
                404,
                Duration::ZERO,
                Duration::ZERO,
                None,
            );
        }
        let mut out = Exposition::default();
        requests.render(&mut out);
        let text = out.finish();
        assert!(text.contains(
            "apiserver_request_total{code=\"404\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"\",scope=\"cluster\",subresource=\"\",verb=\"LIST\",version=\"\"} 50"
        ), "{text}");
        assert_eq!(requests.0.read().len(), 1);
    }
}
