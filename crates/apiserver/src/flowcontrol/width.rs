//! How many seats a request will take, before it is served: a list by the bytes it will hold at once, a write by the
//! watchers that its event goes to.

use std::time::Duration;

use super::queueset::Width;
use crate::cache::CacheStats;
use crate::request_info::{Query, RequestInfo};

/// Most seats of a request, whatever the level allows.
pub const MAX_SEATS: u32 = 10;
/// Bytes that one seat pays for.
const BYTES_PER_SEAT: u64 = 100_000;
/// A list that is streamed from memory holds no more than this at once, bytes.
const STREAMED: u64 = 1_000_000;
/// Watchers that one seat pays for.
const WATCHES_PER_SEAT: u64 = 10;
/// What delivering an event to them takes.
const EVENT: Duration = Duration::from_millis(5);

/// Whether a request is one the lists' estimate is for.
fn lists(info: &RequestInfo, query: &Query) -> bool {
    match info.verb.as_str() {
        "list" => true,
        // A watch is wide when it begins with the state.
        "watch" => query
            .get("sendInitialEvents")
            .is_some_and(|v| matches!(v, "true" | "1" | "True" | "t" | "T" | "TRUE")),
        _ => false,
    }
}

/// The seats of a request of a level that gives at most `max_seats` to one. `stats` finds what is known of the stored
/// objects, `watchers` counts those who will be told of a write.
pub fn estimate(
    info: &RequestInfo,
    query: &Query,
    max_seats: u32,
    stats: impl FnOnce() -> Option<CacheStats>,
    watchers: impl FnOnce() -> u64,
) -> Width {
    let max_seats = max_seats.clamp(1, MAX_SEATS);
    if !info.is_resource {
        return Width::ONE;
    }
    match info.verb.as_str() {
        "list" | "watch" if !info.name.is_empty() || !lists(info, query) => Width::ONE,
        "list" | "watch" => {
            // Resources of other servers cost this one nothing.
            let Some(stats) = stats() else { return Width::ONE };
            Width { initial: list_seats(stats, query).clamp(1, max_seats), ..Width::ONE }
        }
        "create" | "update" | "patch" | "delete"
            if info.subresource.is_empty() || info.subresource == "status" =>
        {
            write_width(watchers(), max_seats)
        }
        _ => Width::ONE,
    }
}

/// Every list is served from memory here, so it holds one page, and never more than the stream does.
fn list_seats(stats: CacheStats, query: &Query) -> u32 {
    let limit = query.value("limit").parse::<u64>().unwrap_or(0);
    let objects = if limit > 0 { limit.min(stats.objects) } else { stats.objects };
    let average = stats.bytes.checked_div(stats.objects).unwrap_or(0);
    let held = (objects.saturating_mul(average)).min(STREAMED);
    u32::try_from(held.div_ceil(BYTES_PER_SEAT)).unwrap_or(u32::MAX)
}

fn write_width(watchers: u64, max_seats: u32) -> Width {
    if watchers < WATCHES_PER_SEAT {
        return Width::ONE;
    }
    let seats = u32::try_from(watchers.div_ceil(WATCHES_PER_SEAT)).unwrap_or(u32::MAX);
    // Narrower and longer when the level does not allow so many: the work stays the same.
    let last = seats.min(max_seats);
    Width { initial: 1, last, additional: EVENT.saturating_mul(seats) / last }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn widths() {
        let check = |method: Method,
                     target: &str,
                     objects: u64,
                     bytes: u64,
                     watchers: u64,
                     max: u32,
                     expected: (u32, u32, u64)| {
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let query = Query::parse(query);
            let info = RequestInfo::parse(&method, path, &query);
            let got = estimate(&info, &query, max, || Some(CacheStats { objects, bytes }), || watchers);
            assert_eq!(
                (got.initial, got.last, got.additional.as_millis() as u64),
                expected,
                "{method} {target}"
            );
        };
        let get = || Method::GET;
        check(get(), "/api/v1/pods", 0, 0, 0, 10, (1, 0, 0));
        check(get(), "/api/v1/pods", 5000, 5_000_000, 0, 10, (10, 0, 0));
        check(get(), "/api/v1/pods", 5000, 5_000_000, 0, 4, (4, 0, 0));
        check(get(), "/api/v1/pods?limit=500", 5000, 5_000_000, 0, 10, (5, 0, 0));
        check(get(), "/api/v1/pods?limit=10", 5000, 5_000_000, 0, 10, (1, 0, 0));
        check(get(), "/api/v1/pods?fieldSelector=metadata.name%3Dx", 5000, 5_000_000, 0, 10, (1, 0, 0));
        check(get(), "/api/v1/pods?watch=1", 5000, 5_000_000, 0, 10, (1, 0, 0));
        check(get(), "/api/v1/pods?watch=1&sendInitialEvents=true", 5000, 5_000_000, 0, 10, (10, 0, 0));
        check(get(), "/api/v1/namespaces/n/pods/p", 5000, 5_000_000, 99, 10, (1, 0, 0));
        check(Method::POST, "/api/v1/namespaces/n/pods", 0, 0, 9, 10, (1, 0, 0));
        check(Method::POST, "/api/v1/namespaces/n/pods", 0, 0, 10, 10, (1, 1, 5));
        check(Method::POST, "/api/v1/namespaces/n/pods", 0, 0, 95, 10, (1, 10, 5));
        check(Method::POST, "/api/v1/namespaces/n/pods", 0, 0, 400, 10, (1, 10, 20));
        check(Method::POST, "/api/v1/namespaces/n/pods", 0, 0, 400, 0, (1, 1, 200));
        check(get(), "/version", 0, 0, 0, 10, (1, 0, 0));
    }
}
