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
