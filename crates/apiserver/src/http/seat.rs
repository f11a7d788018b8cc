//! The seat of a request in priority and fairness, or its place under the plain limits that stand in for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};

use super::body::Response;
use super::filters::{Limits, too_many_requests};
use crate::ApiServer;
use crate::authn::{MASTERS, UserInfo};
use crate::flowcontrol::inflight::Place;
use crate::flowcontrol::{Permit, Schema};
use crate::metrics::is_read_only;
use crate::request_info::{Query, RequestInfo};

const FLOW_SCHEMA: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const PRIORITY_LEVEL: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
/// Advice of the plain limits, seconds.
const RETRY_AFTER: u64 = 1;

/// What a request holds while it is served; for a watch, while it begins.
pub(super) enum Seat {
    /// Nothing: long-running, or nobody limits.
    None,
    /// It was matched, after a wait; the permit is missing when it was refused.
    Flow(Arc<Schema>, #[allow(dead_code)] Option<Permit>, Duration),
    /// A place under a plain limit.
    Place(#[allow(dead_code)] tokio::sync::OwnedSemaphorePermit),
}

impl Seat {
    /// How long the request waited for it.
    pub(super) fn waited(&self) -> Duration {
        match self {
            Seat::Flow(_, _, waited) => *waited,
            _ => Duration::ZERO,
        }
    }

    /// Tells the client what its request was matched to.
    pub(super) fn note(&self, headers: &mut HeaderMap) {
        let Seat::Flow(schema, ..) = self else { return };
        let (schema, level) = schema.uids();
        for (name, uid) in [(FLOW_SCHEMA, schema), (PRIORITY_LEVEL, level)] {
            if let Some(uid) = uid {
                headers.insert(name, uid.clone());
            }
        }
    }
}

impl ApiServer {
    /// Waits for a seat; the error is the answer to a request that gets none.
    pub(super) async fn take_seat(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
        query: &Query,
        limits: Limits,
        seat: &mut Seat,
    ) -> Result<(), Response> {
        if limits.long_running && info.verb != "watch" {
            return Ok(());
        }
        let dropped = |retry_after: u64| {
            self.metrics.dropped[usize::from(is_read_only(info))].inc();
            too_many_requests(retry_after)
        };
        let Some(flows) = &self.flows else {
            if limits.long_running {
                return Ok(());
            }
            match self.max_in_flight.enter(is_read_only(info)) {
                Place::Held(place) => *seat = Seat::Place(place),
                Place::Unlimited => {}
                // Administrators must be able to help.
                Place::Full if user.in_group(MASTERS) => {}
                Place::Full => return Err(dropped(RETRY_AFTER)),
            }
            return Ok(());
        };
        let begun = Instant::now();
        let cache = || {
            let resource = self.registry.resources.find(&info.group, &info.version, &info.resource)?;
            resource.cache.clone()
        };
        let stats = || cache().map(|cache| cache.stats());
        let watchers = || {
            let Some(cache) = cache() else { return 0 };
            let key = match info.namespace.as_str() {
                "" => info.name.clone(),
                namespace => [namespace, "/", &info.name].concat(),
            };
            cache.interested(&info.namespace, &key) as u64
        };
        let admitted = flows.admit(user, info, query, limits.patience(), stats, watchers).await;
        let waited = begun.elapsed();
        self.metrics.flow_control_filter.time(waited);
        match admitted {
            Ok((schema, permit)) => {
                *seat = Seat::Flow(schema, Some(permit), waited);
                Ok(())
            }
            Err(refused) => {
                *seat = Seat::Flow(refused.schema, None, waited);
                Err(dropped(refused.retry_after))
            }
        }
    }
}
