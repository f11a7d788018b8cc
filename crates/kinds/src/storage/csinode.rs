//! CSINode: the CSI drivers of a node.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use crate::cursor::{Cursor, remove};
use crate::validate::{csi_driver_name, nonnegative, qualified_name};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of CSINodes.
pub struct CsiNode;

/// Longest name that a driver gives a node.
const NODE_ID_MAX: usize = 192;

fn validate(obj: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, false, NameRule::DnsSubdomain);
    let path = Path::new("spec").child("drivers");
    let drivers = obj["spec"]["drivers"].items();
    for (i, driver) in drivers.iter().enumerate() {
        let path = path.index(i);
        let name = driver["name"].text();
        csi_driver_name(&mut errs, &path.child("name"), name);
        let id = driver["nodeID"].text();
        let at = path.child("nodeID");
        if id.is_empty() {
            errs.push(field::required(&at, ""));
        }
        if id.len() > NODE_ID_MAX {
            errs.push(field::invalid(&at, id, format!("must be {NODE_ID_MAX} characters or less")));
        }
        nonnegative(&mut errs, &path.child("allocatable").child("count"), &driver["allocatable"]["count"]);
        if drivers[..i].iter().any(|d| d["name"].text() == name) {
            errs.push(field::duplicate(&path.child("name"), name));
        }
        let keys = driver["topologyKeys"].texts();
        for (k, key) in keys.iter().enumerate() {
            if key.is_empty() {
                errs.push(field::required(&path, ""));
            }
            if keys[..k].contains(key) {
                errs.push(field::duplicate(&path, *key));
            }
            qualified_name(&mut errs, &path, key);
        }
    }
    errs
}

impl Strategy for CsiNode {
    fn namespaced(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate(obj)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate(obj);
        // How many volumes fit may change; everything else of a driver that stays does not.
        let fixed = |driver: &Value| {
            let mut driver = driver.clone();
            remove(&mut driver, "allocatable");
            driver
        };
        let path = Path::new("spec").child("drivers");
        for before in old["spec"]["drivers"].items() {
            for now in obj["spec"]["drivers"].items().iter().filter(|d| d["name"] == before["name"]) {
                errs.extend(metadata::validate_immutable(&fixed(now), &fixed(before), &path));
            }
        }
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![printer::name(obj), obj["spec"]["drivers"].items().len().into(), printer::age(obj, now)]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_cells, check_create, check_update};
    use orlop_json::{Value, json};

    #[test]
    fn validation() {
        let check = |drivers: Value, expected: &[&str]| {
            check_create("storage.k8s.io", "CSINode", json!({"spec": {"drivers": drivers}}), expected);
        };
        check(json!(null), &[]);
        check(json!([{"name": "d", "nodeID": "n", "topologyKeys": ["a/b"]}]), &[]);
        check(
            json!([{"name": "d", "nodeID": "", "allocatable": {"count": -1}}, {"name": "d", "nodeID": "x".repeat(193), "topologyKeys": ["a", "a"]}]),
            &[
                "spec.drivers[0].nodeID: Required value",
                "spec.drivers[0].allocatable.count: Invalid value: -1: must be greater than or equal to 0",
                &format!(
                    "spec.drivers[1].nodeID: Invalid value: \"{}\": must be 192 characters or less",
                    "x".repeat(193)
                ),
                "spec.drivers[1].name: Duplicate value: \"d\"",
                "spec.drivers[1]: Duplicate value: \"a\"",
            ],
        );
    }

    #[test]
    fn updates_and_rows() {
        let node = |id: &str, count: i64| json!({"spec": {"drivers": [{"name": "d", "nodeID": id, "allocatable": {"count": count}}]}});
        check_update("storage.k8s.io", "CSINode", node("a", 2), node("a", 1), &[]);
        check_update(
            "storage.k8s.io",
            "CSINode",
            node("b", 1),
            node("a", 1),
            &["spec.drivers: Invalid value: {\"name\":\"d\",\"nodeID\":\"b\"}: field is immutable"],
        );
        let mut obj = node("a", 1);
        obj["metadata"] = json!({"name": "n", "creationTimestamp": "2024-01-01T00:00:00Z"});
        check_cells("storage.k8s.io", "CSINode", obj, json!(["n", 1, "24h"]));
    }
}
