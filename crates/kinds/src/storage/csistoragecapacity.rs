//! CSIStorageCapacity: how much a driver can still make of a storage class in one part of the cluster.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use crate::core::pod::resources::quantity;
use crate::cursor::Cursor;
use crate::validate::{NEGATIVE, label_selector, object_name};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of CSIStorageCapacities.
pub struct CsiStorageCapacity;

impl Strategy for CsiStorageCapacity {
    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
        label_selector(&mut errs, &Path::new("nodeTopology"), &obj["nodeTopology"]);
        let class = Path::new("storageClassName");
        object_name(&mut errs, &class, obj["storageClassName"].text(), NameRule::DnsSubdomain);
        for key in ["capacity", "maximumVolumeSize"] {
            if quantity(&obj[key]).sign() < 0 {
                errs.push(field::invalid(&Path::new(key), obj[key].text(), NEGATIVE));
            }
        }
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        for key in ["nodeTopology", "storageClassName"] {
            errs.extend(metadata::validate_immutable(&obj[key], &old[key], &Path::new(key)));
        }
        errs
    }

    fn cells(&self, obj: &Value, _now: Timestamp) -> Vec<Value> {
        vec![printer::name(obj), printer::created_at(obj)]
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
    fn validation() {
        let good =
            json!({"storageClassName": "s", "capacity": "1Gi", "nodeTopology": {"matchLabels": {"a": "b"}}});
        check_create("storage.k8s.io", "CSIStorageCapacity", good.clone(), &[]);
        check_create(
            "storage.k8s.io",
            "CSIStorageCapacity",
            json!({"storageClassName": "s", "capacity": "-1", "maximumVolumeSize": "-2"}),
            &[
                "capacity: Invalid value: \"-1\": must be greater than or equal to 0",
                "maximumVolumeSize: Invalid value: \"-2\": must be greater than or equal to 0",
            ],
        );
        let bare = json!({"storageClassName": "s"});
        let empty = json!({"storageClassName": "s", "nodeTopology": {}});
        for (new, old, shown) in [(&bare, &empty, "null"), (&empty, &bare, "{}")] {
            check_update(
                "storage.k8s.io",
                "CSIStorageCapacity",
                new.clone(),
                old.clone(),
                &[&format!("nodeTopology: Invalid value: {shown}: field is immutable")],
            );
        }
        check_update(
            "storage.k8s.io",
            "CSIStorageCapacity",
            json!({"storageClassName": "t", "nodeTopology": {"matchLabels": {"a": "c"}}}),
            good,
            &[
                "nodeTopology: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable",
                "storageClassName: Invalid value: \"t\": field is immutable",
            ],
        );
    }
}
