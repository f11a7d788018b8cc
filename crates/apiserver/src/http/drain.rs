//! How a server goes: it says so on `/readyz`, waits until nobody sends it new work, lets requests under way finish, ends
//! watches. Upstream's counterpart is the termination of `genericapiserver`.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio_util::sync::CancellationToken;

use super::body::{self, Response};
use crate::metrics::Gauge;

const SERVING: u8 = 0;
const SHUTTING_DOWN: u8 = 1;
const CLOSED: u8 = 2;

/// Seconds after which a client that is sent elsewhere may come again.
const RETRY_ELSEWHERE: &str = "5";

/// The state of the going.
#[derive(Debug, Default)]
pub struct Drain {
    state: AtomicU8,
    /// Cancelled when connections shall end: no request is taken after it.
    pub closing: CancellationToken,
    /// Requests under way that end by themselves.
    pub under_way: Gauge,
}

impl Drain {
    /// Whether the shutdown has begun: `/readyz` fails.
    pub fn has_begun(&self) -> bool {
        self.state.load(Ordering::Acquire) >= SHUTTING_DOWN
    }

    /// The signal came.
    pub fn begin(&self) {
        self.state.fetch_max(SHUTTING_DOWN, Ordering::AcqRel);
    }

    /// No new requests.
    pub fn close(&self) {
        self.state.fetch_max(CLOSED, Ordering::AcqRel);
        self.closing.cancel();
    }

    /// The answer to a request that comes too late. `retry_after`: whether clients are sent elsewhere as soon as the
    /// shutdown has begun (`--shutdown-send-retry-after`). Health checks are always answered.
    pub fn refuse(&self, path: &str, retry_after: bool) -> Option<Response> {
        let state = self.state.load(Ordering::Acquire);
        if state == SERVING || ["/readyz", "/livez", "/healthz"].iter().any(|health| path.starts_with(health))
        {
            return None;
        }
        let (mut response, after) = if state == CLOSED {
            let error = orlop_api::status::ApiError::service_unavailable("apiserver is shutting down");
            (body::error(&error), "1")
        } else if retry_after {
            let text = "The apiserver is shutting down, please try again later.\n";
            (body::text(429, text), RETRY_ELSEWHERE)
        } else {
            return None;
        };
        let headers = response.headers_mut();
        headers.insert(http::header::RETRY_AFTER, http::HeaderValue::from_static(after));
        headers.insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
        headers.insert(http::header::X_CONTENT_TYPE_OPTIONS, http::HeaderValue::from_static("nosniff"));
        Some(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let check = |drain: &Drain, path: &str, retry: bool, expected: Option<(u16, &str)>| {
            let got = drain.refuse(path, retry).map(|r| {
                (r.status().as_u16(), r.headers()["retry-after"].to_str().unwrap_or("").to_string())
            });
            assert_eq!(got, expected.map(|(code, after)| (code, after.to_string())), "{path}");
        };
        let drain = Drain::default();
        check(&drain, "/api/v1/pods", true, None);
        drain.begin();
        check(&drain, "/api/v1/pods", false, None);
        check(&drain, "/api/v1/pods", true, Some((429, "5")));
        check(&drain, "/livez/ping", true, None);
        drain.close();
        check(&drain, "/api/v1/pods", false, Some((503, "1")));
        check(&drain, "/readyz", true, None);
        assert!(drain.has_begun() && drain.closing.is_cancelled());
    }
}
