//! The status of a ResourceClaim: what was allocated, for whom, and what its drivers say of it.

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::claim::RequestNames;
use super::{
    MAX_LIST, binding_conditions, configuration, device_name, each, each_unique, pool_name, raw_object,
    toleration, uid,
};
use crate::core::pod::validate_node_selector;
use crate::cursor::{Cursor, remove, same};
use crate::metadata::validate_immutable;
use crate::validate::{conditions, csi_driver_name, interface_address, require_one_of};

const MAX_CONSUMERS: usize = 256;
const MAX_CONDITIONS: usize = 8;
const MAX_INTERFACE_NAME: usize = 256;
const MAX_HARDWARE_ADDRESS: usize = 128;
const MAX_ADDRESSES: usize = 16;

/// One allocated device (or share of one): driver, pool, device, share.
fn device_id(device: &Value) -> String {
    let id = format!("{}/{}/{}", device["driver"].text(), device["pool"].text(), device["device"].text());
    match device["shareID"].as_str() {
        Some(share) => format!("{id}/{share}"),
        None => id,
    }
}

fn allocated(status: &Value) -> Vec<String> {
    status["allocation"]["devices"]["results"].items().iter().map(device_id).collect()
}

/// Drivers' reports about devices that are deallocated now go with their allocation.
pub(super) fn drop_deallocated(claim: &mut Value, old: &Value) {
    let still = allocated(&claim["status"]);
    let gone: Vec<String> = allocated(&old["status"]).into_iter().filter(|id| !still.contains(id)).collect();
    let Some(devices) = claim["status"].get_mut("devices").and_then(Value::as_array_mut) else { return };
    devices.retain(|device| !gone.contains(&device_id(device)));
    if devices.is_empty() {
        remove(&mut claim["status"], "devices");
    }
}

pub(super) fn validate(errs: &mut ErrorList, claim: &Value, old: &Value) {
    let (status, was) = (&claim["status"], &old["status"]);
    let path = Path::new("status");
    let consumers = path.child("reservedFor");
    let consumer_key = |consumer: &Value| consumer["uid"].text().to_owned();
    each_unique(
        errs,
        &consumers,
        &status["reservedFor"],
        MAX_CONSUMERS,
        consumer_key,
        |errs, path, consumer| {
            for key in ["resource", "name", "uid"] {
                if consumer[key].text().is_empty() {
                    errs.push(field::required(&path.child(key), ""));
                }
            }
        },
    );
    let known = allocated(status);
    let devices = path.child("devices");
    each_unique(errs, &devices, &status["devices"], usize::MAX, device_id, |errs, path, device| {
        validate_device(errs, path, device, &known);
    });
    let allocation = &status["allocation"];
    if !status["reservedFor"].is_empty() {
        if !allocation.is_set() {
            errs.push(field::forbidden(&consumers, "may not be specified when `allocated` is not set"));
        } else if claim["metadata"].has("deletionTimestamp") {
            let before = was["reservedFor"].items();
            if status["reservedFor"].items().iter().any(|new| !before.iter().any(|old| same(old, new))) {
                errs.push(field::forbidden(
                    &consumers,
                    "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
                ));
            }
        }
    }
    let at = path.child("allocation");
    if allocation.is_set() && was["allocation"].is_set() {
        errs.extend(validate_immutable(allocation, &was["allocation"], &at));
    } else if allocation.is_set() {
        validate_allocation(errs, &at, allocation, &RequestNames::of(&claim["spec"]["devices"]));
    }
}

fn validate_allocation(errs: &mut ErrorList, path: &Path, allocation: &Value, known: &RequestNames<'_>) {
    let devices = &allocation["devices"];
    let at = path.child("devices");
    each(errs, &at.child("results"), &devices["results"], MAX_LIST, |errs, path, result| {
        known.check(errs, &path.child("request"), result["request"].text());
        csi_driver_name(errs, &path.child("driver"), result["driver"].text());
        pool_name(errs, &path.child("pool"), result["pool"].text());
        device_name(errs, &path.child("device"), result["device"].text());
        binding_conditions(errs, path, result);
        for (i, item) in result["tolerations"].items().iter().enumerate() {
            toleration(errs, &path.child("tolerations").index(i), item);
        }
        if result["shareID"].is_set() {
            uid(errs, &path.child("shareID"), result["shareID"].text());
        }
    });
    // Those of the class and those of the claim.
    each(errs, &at.child("config"), &devices["config"], 2 * MAX_LIST, |errs, path, config| {
        require_one_of(errs, &path.child("source"), config["source"].text(), &["FromClaim", "FromClass"]);
        known.check_list(errs, &path.child("requests"), &config["requests"]);
        configuration(errs, path, config, false);
    });
    if allocation["nodeSelector"].is_set() {
        validate_node_selector(errs, &path.child("nodeSelector"), &allocation["nodeSelector"]);
    }
}

fn validate_device(errs: &mut ErrorList, path: &Path, device: &Value, known: &[String]) {
    csi_driver_name(errs, &path.child("driver"), device["driver"].text());
    pool_name(errs, &path.child("pool"), device["pool"].text());
    device_name(errs, &path.child("device"), device["device"].text());
    if device["shareID"].is_set() {
        uid(errs, &path.child("shareID"), device["shareID"].text());
    }
    let id = device_id(device);
    if !known.contains(&id) {
        errs.push(field::invalid(path, id, "must be an allocated device in the claim"));
    }
    let reported = &device["conditions"];
    let at = path.child("conditions");
    if reported.items().len() > MAX_CONDITIONS {
        errs.push(field::too_many(&at, reported.items().len(), MAX_CONDITIONS));
    }
    conditions(errs, &at, reported);
    if device["data"].is_set() {
        raw_object(errs, &path.child("data"), &device["data"], false);
    }
    let network = &device["networkData"];
    if !network.is_set() {
        return;
    }
    let path = path.child("networkData");
    for (key, max) in [("interfaceName", MAX_INTERFACE_NAME), ("hardwareAddress", MAX_HARDWARE_ADDRESS)] {
        if network[key].text().len() > max {
            errs.push(field::too_long(&path.child(key), max));
        }
    }
    let key = |address: &Value| address.text().to_owned();
    each_unique(errs, &path.child("ips"), &network["ips"], MAX_ADDRESSES, key, |errs, path, address| {
        interface_address(errs, path, address.text());
    });
}
