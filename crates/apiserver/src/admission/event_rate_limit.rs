//! `EventRateLimit`: how many events may be written in a time, by the whole server, a namespace, a user, or about one
//! object from one source. Token buckets; those used longest ago are forgotten.

use std::collections::HashMap;
use std::time::Instant;

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::Value;
use parking_lot::Mutex;

use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::registry::Registry;

const DEFAULT_CACHE_SIZE: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Server,
    Namespace,
    User,
    SourceAndObject,
}

struct Bucket {
    tokens: f64,
    updated: Instant,
}

struct Limit {
    kind: Kind,
    qps: f64,
    burst: f64,
    size: usize,
    buckets: Mutex<HashMap<String, Bucket>>,
}

impl Limit {
    fn parse(value: &Value) -> Result<Limit, String> {
        let kind = match value.text("type") {
            "Server" => Kind::Server,
            "Namespace" => Kind::Namespace,
            "User" => Kind::User,
            "SourceAndObject" => Kind::SourceAndObject,
            other => return Err(format!("unknown event rate limit type: {other}")),
        };
        let number = |field: &str| value.get(field).and_then(Value::as_i64).unwrap_or(0);
        if number("qps") <= 0 || number("burst") <= 0 || number("cacheSize") < 0 {
            return Err("qps and burst must be positive, cacheSize must not be negative".to_string());
        }
        let size = match usize::try_from(number("cacheSize")) {
            Ok(0) | Err(_) => DEFAULT_CACHE_SIZE,
            Ok(size) => size,
        };
        Ok(Limit {
            kind,
            qps: number("qps") as f64,
            burst: number("burst") as f64,
            size,
            buckets: Mutex::new(HashMap::new()),
        })
    }

    fn key(&self, request: &Request<'_>) -> String {
        match self.kind {
            Kind::Server => String::new(),
            Kind::Namespace => request.call.namespace.to_string(),
            Kind::User => request.call.user.name.clone(),
            Kind::SourceAndObject => {
                let event = &*request.object;
                // The two versions of events call these differently.
                let of = |core: &str, new: &str| {
                    if event.has(core) { event[core].clone() } else { event[new].clone() }
                };
                let source = of("source", "deprecatedSource");
                let object = of("involvedObject", "regarding");
                let source = ["component", "host"].map(|field| source.text(field).to_string());
                let object = ["kind", "namespace", "name", "uid", "apiVersion"]
                    .map(|field| object.text(field).to_string());
                source.concat() + &object.concat()
            }
        }
    }

    /// Takes a token of the key's bucket, if there is one.
    fn accept(&self, key: &str, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        if buckets.len() >= self.size && !buckets.contains_key(key) {
            // A full bucket and a new one are the same; the one that was used longest ago is the fullest.
            let oldest = buckets.iter().min_by_key(|(_, bucket)| bucket.updated).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| buckets.remove(&oldest));
        }
        let bucket = buckets.entry(key.to_string()).or_insert(Bucket { tokens: self.burst, updated: now });
        let passed = now.saturating_duration_since(bucket.updated).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * self.qps).min(self.burst);
        bucket.updated = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

pub(super) struct EventRateLimit {
    limits: Vec<Limit>,
}

impl EventRateLimit {
    /// With the plugin's configuration, which it must have.
    pub(super) fn new(configuration: Option<&Value>) -> Result<EventRateLimit, String> {
        let limits = configuration.map_or(&[][..], |configuration| configuration.items("limits"));
        if limits.is_empty() {
            return Err("limits: Invalid value: []: must not be empty".to_string());
        }
        Ok(EventRateLimit { limits: limits.iter().map(Limit::parse).collect::<Result<_, _>>()? })
    }
}

#[async_trait]
impl Admission for EventRateLimit {
    fn name(&self) -> &'static str {
        "EventRateLimit"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        matches!(request.operation, Operation::Create | Operation::Update)
            && (request.is_core("events") || request.is("events.k8s.io", "events"))
    }

    async fn validate(&self, _registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let now = Instant::now();
        let mut refused = None;
        // Every limit is charged, also after one has refused.
        for limit in &self.limits {
            let key = limit.key(request);
            if !limit.accept(&key, now) {
                refused = Some(format!("limit reached on type {:?} for key {key}", limit.kind));
            }
        }
        match refused {
            Some(message) => Err(ApiError::generic(429, "TooManyRequests", message)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;
    use std::time::Duration;

    #[test]
    fn buckets() {
        let limit =
            Limit::parse(&json!({"type": "Namespace", "qps": 2, "burst": 2, "cacheSize": 1})).unwrap();
        let start = Instant::now();
        let check = |key: &str, millis: u64, expected: bool| {
            assert_eq!(limit.accept(key, start + Duration::from_millis(millis)), expected, "{key} {millis}");
        };
        check("a", 0, true);
        check("a", 0, true);
        check("a", 0, false);
        check("a", 600, true);
        // There is room for one bucket only.
        check("b", 600, true);
        check("a", 600, true);
        assert_eq!(Limit::parse(&json!({"type": "X"})).err().unwrap(), "unknown event rate limit type: X");
        assert!(EventRateLimit::new(None).is_err());
    }
}
