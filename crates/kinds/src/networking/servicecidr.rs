//! ServiceCIDR: ranges from which Services get their cluster addresses.

use std::collections::HashSet;

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use crate::addresses::{canonical_cidr, parse_cidr_sloppy};
use crate::cursor::{Cursor, keep, keep_metadata_for_status};
use crate::metadata::{IMMUTABLE, validate_object_meta, validate_object_meta_update};
use crate::{NameRule, Strategy, printer};

/// The strategy of ServiceCIDRs.
pub struct ServiceCidr;

fn validate_spec(errs: &mut ErrorList, spec: &Value) {
    let path = Path::new("spec").child("cidrs");
    let ranges = spec["cidrs"].texts();
    if ranges.is_empty() {
        errs.push(field::required(&path, "at least one CIDR required"));
        return;
    }
    if ranges.len() > 2 {
        errs.push(field::invalid(&path, spec.clone(), "may only hold up to 2 values"));
        return;
    }
    for (i, range) in ranges.iter().enumerate() {
        canonical_cidr(errs, &path.index(i), range);
    }
    let families: Vec<bool> = ranges.iter().filter_map(|r| Some(parse_cidr_sloppy(r)?.0.is_ipv4())).collect();
    if families.len() == 2 && families.iter().collect::<HashSet<_>>().len() == 1 {
        errs.push(field::invalid(
            &path,
            spec["cidrs"].clone(),
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        ));
    }
}

impl Strategy for ServiceCidr {
    fn namespaced(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = validate_object_meta(obj, false, NameRule::DnsSubdomain);
        validate_spec(&mut errs, &obj["spec"]);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate_object_meta_update(obj, old);
        let path = Path::new("spec").child("cidrs");
        let (new, before) = (obj["spec"]["cidrs"].texts(), old["spec"]["cidrs"].texts());
        if new.len() == before.len() {
            for (i, (a, b)) in new.iter().zip(&before).enumerate() {
                if a != b {
                    errs.push(field::invalid(&path.index(i), *a, IMMUTABLE));
                }
            }
        } else if before.len() == 1 && new.len() == 2 {
            // A cluster may become dual-stack.
            if new[0] != before[0] {
                errs.push(field::invalid(&path.index(0), new[0], IMMUTABLE));
            }
            validate_spec(&mut errs, &obj["spec"]);
        } else {
            errs.push(field::invalid(&path, obj["spec"]["cidrs"].clone(), IMMUTABLE));
        }
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn prepare_status_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["spec"]);
        keep_metadata_for_status(obj, old);
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![printer::name(obj), obj["spec"]["cidrs"].texts().join(",").into(), printer::age(obj, now)]
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_create, check_update};
    use orlop_json::{Value, json};

    const GROUP: &str = "networking.k8s.io";
    const KIND: &str = "ServiceCIDR";

    #[test]
    fn ranges() {
        let check = |cidrs: Value, expected: &[&str]| {
            check_create(GROUP, KIND, json!({"spec": {"cidrs": cidrs}}), expected);
        };
        check(json!(["10.0.0.0/24", "2001:db8::/64"]), &[]);
        check(json!([]), &["spec.cidrs: Required value: at least one CIDR required"]);
        check(
            json!(["foo", "10.0.0.1/24"]),
            &[
                "spec.cidrs[0]: Invalid value: \"foo\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                "spec.cidrs[1]: Invalid value: \"10.0.0.1/24\": must not have bits set beyond the prefix length",
            ],
        );
        check(
            json!(["10.0.0.0/24", "10.1.0.0/24"]),
            &[
                "spec.cidrs: Invalid value: [\"10.0.0.0/24\",\"10.1.0.0/24\"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
            ],
        );
        let update = |new: Value, old: Value, expected: &[&str]| {
            check_update(
                GROUP,
                KIND,
                json!({"spec": {"cidrs": new}}),
                json!({"spec": {"cidrs": old}}),
                expected,
            );
        };
        update(json!(["10.0.0.0/24", "2001:db8::/64"]), json!(["10.0.0.0/24"]), &[]);
        update(
            json!(["10.1.0.0/24"]),
            json!(["10.0.0.0/24"]),
            &["spec.cidrs[0]: Invalid value: \"10.1.0.0/24\": field is immutable"],
        );
    }
}
