//! What volume claims and device claims use.

use std::collections::BTreeMap;

use orlop_api::Quantity;
use orlop_api::quantity::Format;
use orlop_json::Value;

use super::pods::one;
use super::{ResourceList, meets};
use crate::core::pod::resources::quantity;
use crate::cursor::Cursor;

const BY_STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
const BY_DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// How a claim named its class before there was a field for it.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
/// Devices a request for all of them may at most get.
const ALL_DEVICES: i64 = 32;

pub(super) fn matches_volume_resource(name: &str) -> bool {
    let plain = |name: &str| matches!(name, "persistentvolumeclaims" | "requests.storage");
    name == "count/persistentvolumeclaims"
        || plain(name)
        || name.rsplit_once(BY_STORAGE_CLASS).is_some_and(|(_, resource)| plain(resource))
}

/// The storage a claim is charged for, in whole bytes: what it asks for, or more when more is already allocated.
fn storage(claim: &Value) -> Option<Quantity> {
    let whole = |value: Quantity| {
        if value.is_integer() { value } else { Quantity::new(value.value(), value.format()) }
    };
    let asked = &claim["spec"]["resources"]["requests"]["storage"];
    let asked = asked.is_set().then(|| whole(quantity(asked)))?;
    let allocated = quantity(&claim["status"]["allocatedResources"]["storage"]);
    Some(if allocated > asked { whole(allocated) } else { asked })
}

pub(super) fn volume_usage(claim: &Value) -> ResourceList {
    let mut out = ResourceList::new();
    out.insert("count/persistentvolumeclaims".into(), one());
    let annotated = claim["metadata"]["annotations"].get(CLASS_ANNOTATION).and_then(Value::as_str);
    let class = annotated.unwrap_or_else(|| claim["spec"]["storageClassName"].text());
    let mut charge = |resource: &str, value: Quantity| {
        if !class.is_empty() {
            out.insert(format!("{class}{BY_STORAGE_CLASS}{resource}"), value);
        }
        out.insert(resource.into(), value);
    };
    charge("persistentvolumeclaims", one());
    if let Some(storage) = storage(claim) {
        charge("requests.storage", storage);
    }
    out
}

/// The VolumeAttributesClasses a claim has, wants or is being moved to.
fn attributes_classes(claim: &Value) -> Vec<&str> {
    let (spec, status) = (&claim["spec"], &claim["status"]);
    let mut names: Vec<&str> = [
        spec["volumeAttributesClassName"].text(),
        status["currentVolumeAttributesClassName"].text(),
        status["modifyVolumeStatus"]["targetVolumeAttributesClassName"].text(),
    ]
    .into_iter()
    .filter(|name| !name.is_empty())
    .collect();
    names.sort_unstable();
    names.dedup();
    names
}

pub(super) fn matches_volume_scope(requirement: &Value, claim: &Value) -> bool {
    requirement["scopeName"].text() == "VolumeAttributesClass"
        && meets(requirement, &attributes_classes(claim))
}

/// Whether a change of a claim's status changes what it is charged for.
pub(super) fn status_matters(new: &Value, old: &Value) -> bool {
    let allocated = |claim: &Value| quantity(&claim["status"]["allocatedResources"]["storage"]);
    allocated(new) != allocated(old) || attributes_classes(new) != attributes_classes(old)
}

pub(super) fn matches_device_resource(name: &str) -> bool {
    name == "count/resourceclaims.resource.k8s.io" || name.ends_with(BY_DEVICE_CLASS)
}

/// How many devices a request may get.
fn devices(request: &Value) -> i64 {
    match request["allocationMode"].text() {
        "ExactCount" => request["count"].int(),
        "All" => ALL_DEVICES,
        // A mode of a later version is not counted.
        _ => 0,
    }
}

pub(super) fn device_usage(claim: &Value) -> ResourceList {
    let mut by_class: BTreeMap<&str, i64> = BTreeMap::new();
    for request in claim["spec"]["devices"]["requests"].items() {
        let alternatives = request["firstAvailable"].items();
        if alternatives.is_empty() {
            // Before v1 the exact request stood in the request itself.
            let exact = if request.has("exactly") { &request["exactly"] } else { request };
            let sum = by_class.entry(exact["deviceClassName"].text()).or_default();
            *sum = sum.saturating_add(devices(exact));
            continue;
        }
        // One of them will be taken: the worst case of each class counts.
        let mut worst: BTreeMap<&str, i64> = BTreeMap::new();
        for alternative in alternatives {
            let most = worst.entry(alternative["deviceClassName"].text()).or_default();
            *most = (*most).max(devices(alternative));
        }
        for (class, count) in worst {
            let sum = by_class.entry(class).or_default();
            *sum = sum.saturating_add(count);
        }
    }
    let mut out: ResourceList = by_class
        .into_iter()
        .map(|(class, count)| (format!("{class}{BY_DEVICE_CLASS}"), Quantity::new(count, Format::DecimalSI)))
        .collect();
    out.insert("count/resourceclaims.resource.k8s.io".into(), one());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::print;
    use orlop_json::json;

    #[test]
    fn what_claims_use() {
        let check = |claim: Value, expected: &str| assert_eq!(print(&volume_usage(&claim)), expected);
        check(json!({"spec": {}}), "count/persistentvolumeclaims=1,persistentvolumeclaims=1");
        check(
            json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}}),
            "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=1,requests.storage=1Gi",
        );
        check(
            json!({"spec": {"resources": {"requests": {"storage": "1Gi"}}}, "status": {"allocatedResources": {"storage": "2Gi"}}}),
            "count/persistentvolumeclaims=1,persistentvolumeclaims=1,requests.storage=2Gi",
        );
        let check = |requests: Value, expected: &str| {
            assert_eq!(print(&device_usage(&json!({"spec": {"devices": {"requests": requests}}}))), expected);
        };
        check(
            json!([{"exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}}, {"exactly": {"deviceClassName": "gpu", "allocationMode": "All"}}]),
            "count/resourceclaims.resource.k8s.io=1,gpu.deviceclass.resource.k8s.io/devices=34",
        );
        check(
            json!([{"firstAvailable": [{"deviceClassName": "a", "allocationMode": "ExactCount", "count": 1}, {"deviceClassName": "a", "allocationMode": "ExactCount", "count": 3}, {"deviceClassName": "b", "allocationMode": "ExactCount", "count": 1}]}]),
            "a.deviceclass.resource.k8s.io/devices=3,b.deviceclass.resource.k8s.io/devices=1,count/resourceclaims.resource.k8s.io=1",
        );
    }

    #[test]
    fn volume_scope() {
        let check = |operator: &str, values: &[&str], claim: Value, expected: bool| {
            let requirement =
                json!({"scopeName": "VolumeAttributesClass", "operator": operator, "values": values});
            assert_eq!(matches_volume_scope(&requirement, &claim), expected, "{requirement} {claim}");
        };
        let silver = json!({"spec": {"volumeAttributesClassName": "silver"}, "status": {"currentVolumeAttributesClassName": "gold"}});
        check("In", &["gold"], silver.clone(), true);
        check("Exists", &[], silver.clone(), true);
        check("DoesNotExist", &[], silver, false);
        check("NotIn", &["gold"], json!({"spec": {}}), true);
    }
}
