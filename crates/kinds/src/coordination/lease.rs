//! Lease: who holds a lock and until when.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use crate::cursor::{Cursor, child, remove};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of Leases.
pub struct Lease;

fn validate_spec(obj: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec");
    let duration = &obj["spec"]["leaseDurationSeconds"];
    if duration.is_set() && duration.int() <= 0 {
        errs.push(field::invalid(
            &path.child("leaseDurationSeconds"),
            duration.int(),
            "must be greater than 0",
        ));
    }
    let transitions = &obj["spec"]["leaseTransitions"];
    if transitions.is_set() && transitions.int() < 0 {
        errs.push(field::invalid(
            &path.child("leaseTransitions"),
            transitions.int(),
            "must be greater than or equal to 0",
        ));
    }
    errs
}

/// Coordinated leader election is off by default upstream, and its fields are dropped then.
fn drop_disabled(obj: &mut Value) {
    let spec = child(obj, "spec");
    remove(spec, "strategy");
    remove(spec, "preferredHolder");
}

impl Strategy for Lease {
    fn prepare_create(&self, obj: &mut Value) {
        drop_disabled(obj);
    }

    fn prepare_update(&self, obj: &mut Value, _old: &Value) {
        drop_disabled(obj);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_generic_object_meta(obj, true, NameRule::DnsSubdomain);
        errs.extend(validate_spec(obj));
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_generic_object_meta_update(obj, old);
        errs.extend(validate_spec(obj));
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![printer::name(obj), obj["spec"]["holderIdentity"].text().into(), printer::age(obj, now)]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_create, check_update};
    use orlop_json::json;

    #[test]
    fn finalizers_need_no_domain() {
        let lease = json!({"metadata": {"finalizers": ["anything"]}});
        check_create("coordination.k8s.io", "Lease", lease.clone(), &[]);
        check_update("coordination.k8s.io", "Lease", lease.clone(), lease, &[]);
    }

    #[test]
    fn positive_duration() {
        check_create("coordination.k8s.io", "Lease", json!({"spec": {}}), &[]);
        check_create(
            "coordination.k8s.io",
            "Lease",
            json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}}),
            &[
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
            ],
        );
    }
}
