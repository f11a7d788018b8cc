//! What stands around every request: refusal while the server goes, the time limit, panics, metrics, the access log.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use http::HeaderValue;
use http::request::Parts;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use orlop_api::status::ApiError;

use super::body::{self, Body, BoxError, Response};
use super::pipeline::{Identity, RequestBody, Waited};
use super::{cors, discovery, openapi};
use crate::ApiServer;
use crate::metrics::{Gauge, Metrics, RequestLabels, RequestSeries, is_long_running, is_read_only};
use crate::request_info::{Query, RequestInfo};

/// Longest wait for a seat, whatever the time limit.
const MAX_PATIENCE: Duration = Duration::from_secs(60);

/// How a request is to be served.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Whether it may hold its connection as long as it likes.
    pub long_running: bool,
    /// When it must be answered otherwise.
    pub timeout: Duration,
}

impl Limits {
    /// How long it may wait for a seat.
    pub fn patience(&self) -> Duration {
        (self.timeout / 4).min(MAX_PATIENCE)
    }
}

/// Reads a duration as Go's `time.ParseDuration`; the error is its text.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let quoted = orlop_api::field::go_quote(text);
    let invalid = || format!("time: invalid duration {quoted}");
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    let negative = text.starts_with('-');
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanos = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let value: f64 = number.parse().map_err(|_| invalid())?;
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let scale = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            "" => return Err(format!("time: missing unit in duration {quoted}")),
            other => {
                return Err(format!(
                    "time: unknown unit {} in duration {quoted}",
                    orlop_api::field::go_quote(other)
                ));
            }
        };
        nanos += value * scale;
        rest = tail;
    }
    if nanos > i64::MAX as f64 {
        return Err(invalid());
    }
    // A negative time is over at once; upstream reads it so and then ignores it.
    Ok(if negative { Duration::ZERO } else { Duration::from_nanos(nanos as u64) })
}

/// The limits of a request; `timeout` shortens the server's own.
fn limits(info: &RequestInfo, query: &Query, server: Duration) -> Result<Limits, ApiError> {
    let long_running = is_long_running(info);
    let mut limits = Limits { long_running, timeout: server };
    if long_running {
        return Ok(limits);
    }
    if let Some(text) = query.get("timeout").filter(|t| !t.is_empty()) {
        let wanted = parse_duration(text).map_err(|error| {
            ApiError::bad_request(format!("invalid timeout specified in the request URL - {error}"))
        })?;
        if !wanted.is_zero() && wanted < server {
            limits.timeout = wanted;
        }
    }
    Ok(limits)
}

/// Counts a request as under way until it is dropped, and as given up when it was never answered.
struct UnderWay<'a> {
    server: &'a ApiServer,
    kind: usize,
    long_running: bool,
    answered: bool,
}

impl<'a> UnderWay<'a> {
    fn new(server: &'a ApiServer, read_only: bool, long_running: bool) -> UnderWay<'a> {
        let under_way = UnderWay { server, kind: usize::from(read_only), long_running, answered: false };
        under_way.add(1);
        under_way
    }

    fn add(&self, n: i64) {
        if !self.long_running {
            self.server.metrics.inflight[self.kind].add(n);
            self.server.drain.under_way.add(n);
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.add(-1);
        if !self.answered {
            self.server.metrics.aborts.inc();
        }
    }
}

/// A long-running request that is counted as long as its body is sent.
struct Running(Arc<RequestSeries>);

impl Running {
    fn gauge(&self) -> &Gauge {
        &self.0.running
    }

    fn new(series: Arc<RequestSeries>) -> Running {
        let running = Running(series);
        running.gauge().add(1);
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.gauge().add(-1);
    }
}

struct Tracked {
    body: Body,
    _running: Running,
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The 429 of a server that protects itself.
pub fn too_many_requests(retry_after: u64) -> Response {
    let mut response = body::text(429, "Too many requests, please try again later.\n");
    let headers = response.headers_mut();
    headers.insert(http::header::RETRY_AFTER, HeaderValue::from(retry_after));
    headers.insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

impl ApiServer {
    /// Serves one request.
    pub async fn handle(
        self: Arc<Self>,
        parts: Parts,
        request_body: RequestBody,
        identity: Identity,
    ) -> Response {
        let started = Instant::now();
        let query = Query::parse(parts.uri.query().unwrap_or(""));
        let info = RequestInfo::parse(&parts.method, parts.uri.path(), &query);
        let labels = RequestLabels::of(&info, &query, parts.headers.get(http::header::CONTENT_TYPE));
        let series = self.metrics.requests.series(labels, || self.exists(&info));
        // Clients in this process end with it.
        let late = match identity {
            Identity::InProcess(_) => None,
            Identity::Connection(_) => {
                self.drain.refuse(parts.uri.path(), self.options.shutdown_send_retry_after)
            }
        };
        let page = self.cors.allowed(&parts.headers);
        let late = late.or_else(|| page.as_ref().and_then(|_| cors::preflight(&parts.method)));
        let log = tracing::enabled!(target: "orlop_apiserver::access", tracing::Level::DEBUG).then(|| {
            let agent = parts.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok());
            (info.verb.clone(), parts.uri.to_string(), agent.unwrap_or("").to_string())
        });
        let response = match (late, limits(&info, &query, self.options.request_timeout)) {
            (Some(response), _) => response,
            (None, Err(error)) => body::error(&error),
            (None, Ok(limits)) => {
                let server = self.clone();
                let mut under_way = UnderWay::new(&self, is_read_only(&info), limits.long_running);
                let running = limits.long_running.then(|| Running::new(series.clone()));
                let serving = server.serve_request(parts, request_body, identity, info, query, limits);
                let response = guarded(&self.metrics, limits, serving).await;
                under_way.answered = true;
                match running {
                    None => response,
                    Some(running) => response.map(|body| Tracked { body, _running: running }.boxed_unsync()),
                }
            }
        };
        let response = match page {
            None => response,
            Some(origin) => {
                let mut response = response;
                cors::allow(origin, response.headers_mut());
                response
            }
        };
        let elapsed = started.elapsed();
        let size = response.body().size_hint().exact();
        let waited = response.extensions().get::<Waited>().map_or(Duration::ZERO, |waited| waited.0);
        series.observe(response.status().as_u16(), elapsed, waited, size);
        if let Some((verb, uri, user_agent)) = log {
            let header =
                |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
            tracing::debug!(
                target: "orlop_apiserver::access",
                verb, uri, user_agent,
                latency = ?elapsed,
                audit_id = header("audit-id"),
                response = response.status().as_u16(),
                "HTTP"
            );
        }
        response
    }

    /// Whether a request names something that is served; what it does not may be any text.
    fn exists(&self, info: &RequestInfo) -> bool {
        if info.is_resource {
            let resources = &self.registry.resources;
            return resources.find(&info.group, &info.version, &info.resource).is_some_and(|resource| {
                info.subresource.is_empty() || resource.subresource(&info.subresource).is_some()
            });
        }
        discovery::is_path(self, &info.path)
            || openapi::is_path(&info.path)
            || crate::endpoints::is_plain_path(&info.path)
    }
}

/// Runs a handler within its time; a panic of it is answered and takes nothing else down.
async fn guarded(
    metrics: &Metrics,
    limits: Limits,
    serving: impl std::future::Future<Output = Response>,
) -> Response {
    let caught = AssertUnwindSafe(serving).catch_unwind();
    let ended = if limits.long_running {
        Ok(caught.await)
    } else {
        tokio::time::timeout(limits.timeout, caught).await
    };
    match ended {
        Ok(Ok(response)) => response,
        Ok(Err(panic)) => {
            metrics.panics.inc();
            let text = panic
                .downcast_ref::<&str>()
                .map(|s| s.to_string())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            tracing::error!(
                panic = text,
                "a request made its handler panic; this is a bug, please report it"
            );
            body::error(&ApiError::internal(
                "This request caused apiserver to panic. Look in the logs for details.",
            ))
        }
        Err(_) => {
            metrics.timeouts.inc();
            let text = "request did not complete within the allotted timeout";
            body::error(&ApiError::timeout(text, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |text: &str, expected: Result<u64, &str>| {
            let got = parse_duration(text).map(|d| d.as_millis() as u64);
            assert_eq!(got, expected.map_err(str::to_string), "{text}");
        };
        check("0", Ok(0));
        check("30s", Ok(30_000));
        check("1m1.5s", Ok(61_500));
        check("250ms", Ok(250));
        check("2h", Ok(7_200_000));
        check("-5s", Ok(0));
        check("", Err("time: invalid duration \"\""));
        check("5", Err("time: missing unit in duration \"5\""));
        check("5x", Err("time: unknown unit \"x\" in duration \"5x\""));
        check("s", Err("time: invalid duration \"s\""));
        check("1.2.3s", Err("time: invalid duration \"1.2.3s\""));
        check("99999999999999h", Err("time: invalid duration \"99999999999999h\""));
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_or_panics_is_answered() {
        let metrics = Metrics::default();
        let limits = Limits { long_running: false, timeout: Duration::from_secs(60) };
        let text = async |response: Response| {
            let code = response.status().as_u16();
            let bytes = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
            let value: orlop_json::Value = orlop_json::from_slice(&bytes).unwrap_or_default();
            (
                code,
                value["reason"].as_str().unwrap_or("").to_string(),
                value["message"].as_str().unwrap_or("").to_string(),
            )
        };
        let slow = guarded(&metrics, limits, std::future::pending()).await;
        assert_eq!(
            text(slow).await,
            (504, "Timeout".into(), "Timeout: request did not complete within the allotted timeout".into())
        );
        let broken = guarded(&metrics, limits, async { panic!("on purpose") }).await;
        assert_eq!(text(broken).await.0, 500);
        assert_eq!((metrics.timeouts.get(), metrics.panics.get()), (1, 1));
    }
}
