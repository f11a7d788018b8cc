//! The group `apps`.

pub mod controllerrevision;
pub mod daemonset;
pub mod deployment;
pub mod replicaset;
pub mod statefulset;

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Value, json};

use crate::cursor::Cursor;
use crate::metadata::validate_immutable;
use crate::validate::{invalids, nonnegative};

/// The pods of a Deployment, ReplicaSet or DaemonSet are told by the same labels for ever.
fn validate_selector_stays(errs: &mut ErrorList, obj: &Value, old: &Value) {
    let path = Path::new("spec").child("selector");
    errs.extend(validate_immutable(&obj["spec"]["selector"], &old["spec"]["selector"], &path));
}

/// An update strategy of an unknown type, shown as upstream's struct prints.
fn unknown_strategy(path: &Path, strategy: &Value, known: &[&str]) -> field::FieldError {
    let rolling = &strategy["rollingUpdate"];
    let rolling = match rolling.is_set() {
        true => {
            let part = |key: &str| if rolling[key].is_set() { rolling[key].clone() } else { 0.into() };
            json!({"MaxUnavailable": part("maxUnavailable"), "MaxSurge": part("maxSurge")})
        }
        false => Value::Null,
    };
    let shown = json!({"Type": strategy["type"].text(), "RollingUpdate": rolling});
    field::not_supported(path, shown, known)
}

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
