//! The group `apps`.

pub mod controllerrevision;
pub mod daemonset;
pub mod deployment;
pub mod replicaset;
pub mod statefulset;

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use serde_json::Value;

use crate::cursor::Cursor;
use crate::validate::{invalids, nonnegative};

/// An `IntOrString` that is a number or a percentage, not negative.
pub(crate) fn positive_int_or_percent(errs: &mut ErrorList, path: &Path, value: &Value) {
    match value.as_str() {
        Some(text) => invalids(errs, path, text, names::is_valid_percent(text)),
        None => nonnegative(errs, path, value),
    }
}

/// A percentage of at most 100. A plain number is fine.
pub(crate) fn not_more_than_100_percent(errs: &mut ErrorList, path: &Path, value: &Value) {
    if let Some(percent) = percent(value)
        && percent > 100
    {
        errs.push(field::invalid(path, value.text(), "must not be greater than 100%"));
    }
}

fn percent(value: &Value) -> Option<i64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

/// The number of an `IntOrString`, whatever its unit; 0 for what is neither.
fn number(value: &Value) -> i64 {
    percent(value).unwrap_or_else(|| value.int())
}

/// Counters of a workload's status: none negative, the parts not more than the whole.
fn validate_replica_counts(errs: &mut ErrorList, status: &Value, counters: &[&str], parts: &[&str]) {
    let path = Path::new("status");
    for key in counters {
        nonnegative(errs, &path.child(key), &status[*key]);
    }
    let all = status["replicas"].int();
    for key in parts {
        if status[*key].int() > all {
            errs.push(field::invalid(
                &path.child(key),
                status[*key].int(),
                "cannot be greater than status.replicas",
            ));
        }
    }
    if status["availableReplicas"].int() > status["readyReplicas"].int() {
        errs.push(field::invalid(
            &path.child("availableReplicas"),
            status["availableReplicas"].int(),
            "cannot be greater than readyReplicas",
        ));
    }
}

/// The collision counter of a workload never goes back.
fn validate_collision_count(errs: &mut ErrorList, status: &Value, old: &Value) {
    let (now, was) = (&status["collisionCount"], &old["collisionCount"]);
    let path = Path::new("status").child("collisionCount");
    nonnegative(errs, &path, now);
    if was.is_set() && (!now.is_set() || now.int() < was.int()) {
        errs.push(field::invalid(&path, now.int(), "cannot be decremented"));
    }
}
