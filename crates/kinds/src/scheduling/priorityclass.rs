//! PriorityClass: a name for a number by which pods are preferred.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use crate::cursor::{Cursor, default_to, set_generation};
use crate::validate::require_one_of;
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of PriorityClasses.
pub struct PriorityClass;

/// The highest value a user may define; above are the system's.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;
const SYSTEM: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

fn validate(obj: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, false, NameRule::DnsSubdomain);
    let (name, value) = (obj["metadata"]["name"].text(), obj["value"].int());
    if name.starts_with("system-") {
        let problem = match SYSTEM.iter().find(|(known, _)| *known == name) {
            None => Some(format!("{name} is not a known system priority class")),
            Some((_, known)) if *known != value => {
                Some(format!("value of {name} PriorityClass must be {known}"))
            }
            Some(_) if obj["globalDefault"].flag() => {
                Some(format!("globalDefault of {name} PriorityClass must be false"))
            }
            Some(_) => None,
        };
        if let Some(problem) = problem {
            errs.push(field::forbidden(
                &Path::new("metadata").child("name"),
                format!(
                    "priority class names with 'system-' prefix are reserved for system use only. error: {problem}"
                ),
            ));
        }
    } else if value > HIGHEST_USER_PRIORITY {
        errs.push(field::forbidden(
            &Path::new("value"),
            format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"),
        ));
    }
    if obj["preemptionPolicy"].is_set() {
        require_one_of(
            &mut errs,
            &Path::new("preemptionPolicy"),
            obj["preemptionPolicy"].text(),
            &["PreemptLowerPriority", "Never"],
        );
    }
    errs
}

impl Strategy for PriorityClass {
    fn namespaced(&self) -> bool {
        false
    }

    fn defaults(&self, obj: &mut Value) {
        default_to(obj, "preemptionPolicy", "PreemptLowerPriority");
    }

    fn prepare_create(&self, obj: &mut Value) {
        set_generation(obj, 1);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        set_generation(obj, old["metadata"]["generation"].int());
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate(obj)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        if obj["value"].int() != old["value"].int() {
            errs.push(field::forbidden(&Path::new("value"), "may not be changed in an update."));
        }
        errs.extend(metadata::validate_immutable(
            &obj["preemptionPolicy"],
            &old["preemptionPolicy"],
            &Path::new("preemptionPolicy"),
        ));
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            printer::name(obj),
            obj["value"].int().into(),
            obj["globalDefault"].flag().into(),
            printer::age(obj, now),
            obj["preemptionPolicy"].text().into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_create, check_update};
    use orlop_json::json;

    const GROUP: &str = "scheduling.k8s.io";

    #[test]
    fn values() {
        check_create(GROUP, "PriorityClass", json!({"value": 5}), &[]);
        check_create(
            GROUP,
            "PriorityClass",
            json!({"value": 1_000_000_001}),
            &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"],
        );
        check_create(
            GROUP,
            "PriorityClass",
            json!({"metadata": {"name": "system-node-critical"}, "value": 2_000_001_000}),
            &[],
        );
        check_update(
            GROUP,
            "PriorityClass",
            json!({"value": 4}),
            json!({"value": 3}),
            &["value: Forbidden: may not be changed in an update."],
        );
    }
}
