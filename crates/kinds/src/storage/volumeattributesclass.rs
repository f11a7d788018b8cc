//! VolumeAttributesClass: attributes of volumes that can change while they are in use.

use jiff::Timestamp;
use orlop_api::field::{ErrorList, Path};
use orlop_json::Value;

use super::{forbid_changes, validate_parameters, validate_provisioner};
use crate::cursor::Cursor;
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of VolumeAttributesClasses.
pub struct VolumeAttributesClass;

impl Strategy for VolumeAttributesClass {
    fn namespaced(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, false, NameRule::DnsSubdomain);
        validate_provisioner(&mut errs, &Path::new("driverName"), obj["driverName"].text());
        validate_parameters(&mut errs, &obj["parameters"], false);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        forbid_changes(&mut errs, obj, old, &["driverName", "parameters"]);
        errs.extend(self.validate_create(obj));
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![printer::name(obj), obj["driverName"].text().into(), printer::age(obj, now)]
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_cells, check_create, check_update};
    use orlop_json::json;

    #[test]
    fn validation() {
        let good = json!({"driverName": "d", "parameters": {"a": "b"}});
        check_create("storage.k8s.io", "VolumeAttributesClass", good.clone(), &[]);
        check_create(
            "storage.k8s.io",
            "VolumeAttributesClass",
            json!({}),
            &[
                "driverName: Required value",
                "parameters: Required value: must contain at least one key/value pair",
            ],
        );
        check_update(
            "storage.k8s.io",
            "VolumeAttributesClass",
            json!({"driverName": "e", "parameters": {"a": "c"}}),
            good,
            &[
                "driverName: Forbidden: updates to driverName are forbidden.",
                "parameters: Forbidden: updates to parameters are forbidden.",
            ],
        );
        check_cells(
            "storage.k8s.io",
            "VolumeAttributesClass",
            json!({"metadata": {"name": "v", "creationTimestamp": "2024-01-01T00:00:00Z"}, "driverName": "d"}),
            json!(["v", "d", "24h"]),
        );
    }
}
