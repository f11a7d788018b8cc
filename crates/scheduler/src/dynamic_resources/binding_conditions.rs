//! Devices that become ready only once they are allocated: the driver says so in conditions of the claim's status, for
//! which the binding of a pod waits (KEP-5007).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::resource::v1::{DeviceRequestAllocationResult, ResourceClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// Whether the devices of a claim are ready for the pod to be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    Waiting,
    /// The driver has given up.
    Failed(String),
}

fn results(claim: &ResourceClaim) -> Option<&[DeviceRequestAllocationResult]> {
    let allocation = claim.status.as_ref()?.allocation.as_ref()?;
    Some(allocation.devices.as_ref().and_then(|devices| devices.results.as_deref()).unwrap_or_default())
}

fn conditions(result: &DeviceRequestAllocationResult) -> &[String] {
    result.binding_conditions.as_deref().unwrap_or_default()
}

/// Whether there is something to wait for at all.
pub fn has_binding_conditions(claim: &ResourceClaim) -> bool {
    results(claim).unwrap_or_default().iter().any(|result| !conditions(result).is_empty())
}

/// What the driver has said of a claim's devices. One that is not allocated is not ready.
pub fn readiness(claim: &ResourceClaim) -> Readiness {
    let Some(results) = results(claim) else { return Readiness::Waiting };
    for result in results.iter().filter(|result| !conditions(result).is_empty()) {
        let statuses = claim.status.as_ref().and_then(|status| status.devices.as_deref()).unwrap_or_default();
        let mut same = statuses.iter().filter(|status| {
            (&status.driver, &status.pool, &status.device) == (&result.driver, &result.pool, &result.device)
        });
        let Some(status) = same.next() else { return Readiness::Waiting };
        let said = status.conditions.as_deref().unwrap_or_default();
        let holds = |name: &String| -> Option<&Condition> {
            said.iter().find(|condition| condition.type_ == *name && condition.status == "True")
        };
        if let Some(failed) = result.binding_failure_conditions.iter().flatten().find_map(holds) {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            return Readiness::Failed(format!(
                "claim {name} binding failed: reason={}, message={:?}",
                failed.reason, failed.message
            ));
        }
        if !conditions(result).iter().all(|name| holds(name).is_some()) {
            return Readiness::Waiting;
        }
    }
    Readiness::Ready
}

/// Whether a claim's devices should have been ready by now.
pub fn is_overdue(claim: &ResourceClaim, timeout: Duration, now: Timestamp) -> bool {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let since = allocation.and_then(|allocation| allocation.allocation_timestamp.as_ref());
    let waited = |since: Timestamp| {
        now.duration_since(since) > SignedDuration::try_from(timeout).unwrap_or(SignedDuration::MAX)
    };
    has_binding_conditions(claim) && since.is_some_and(|since| waited(since.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::parse;
    use serde_json::{Value, json};

    fn claim(conditions: Value, since: &str) -> ResourceClaim {
        let id = json!({"driver": "d", "pool": "p", "device": "slow"});
        let mut result = id.clone();
        result["request"] = json!("r");
        result["bindingConditions"] = json!(["Attached", "Ready"]);
        result["bindingFailureConditions"] = json!(["Broken"]);
        let quick = json!({"driver": "d", "pool": "p", "device": "quick", "request": "r"});
        let mut device = id;
        device["conditions"] = conditions;
        ResourceClaim::clone(&parse(json!({
            "metadata": {"name": "c"}, "spec": {},
            "status": {
                "allocation": {"devices": {"results": [quick, result]}, "allocationTimestamp": since},
                "devices": [device],
            },
        })))
    }

    fn condition(kind: &str, status: &str) -> Value {
        json!({"type": kind, "status": status, "reason": "Why", "message": "so \"it\" is", "lastTransitionTime": SINCE})
    }

    const SINCE: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn what_the_driver_says() {
        let check = |conditions: Value, expected: Readiness| {
            assert_eq!(readiness(&claim(conditions.clone(), SINCE)), expected, "{conditions}");
        };
        let (attached, ready) = (condition("Attached", "True"), condition("Ready", "True"));
        check(json!([]), Readiness::Waiting);
        check(json!([attached]), Readiness::Waiting);
        check(json!([attached, condition("Ready", "False")]), Readiness::Waiting);
        check(json!([attached, ready]), Readiness::Ready);
        check(json!([attached, ready, condition("Broken", "False")]), Readiness::Ready);
        let failed = "claim c binding failed: reason=Why, message=\"so \\\"it\\\" is\"";
        check(json!([attached, ready, condition("Broken", "True")]), Readiness::Failed(failed.to_owned()));
        let mut silent = claim(json!([]), SINCE);
        silent.status.as_mut().unwrap().devices = None;
        assert_eq!(readiness(&silent), Readiness::Waiting);
        silent.status = None;
        assert_eq!((readiness(&silent), has_binding_conditions(&silent)), (Readiness::Waiting, false));
    }

    #[test]
    fn devices_take_too_long() {
        let minute = Duration::from_secs(60);
        let after = |seconds: i64| SINCE.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds);
        let waiting = claim(json!([]), SINCE);
        assert!(!is_overdue(&waiting, minute, after(60)));
        assert!(is_overdue(&waiting, minute, after(61)));
        assert!(!is_overdue(&waiting, Duration::MAX, after(61)));
        let mut quick = waiting;
        let allocation = quick.status.as_mut().unwrap().allocation.as_mut().unwrap();
        allocation.devices.as_mut().unwrap().results.as_mut().unwrap().pop();
        assert!(!is_overdue(&quick, minute, after(61)), "nothing to wait for");
    }
}
