//! ResourceSlice: the devices of a driver's pool, as it publishes them.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::device::{validate_counters, validate_device};
use super::{each_unique, pool_name};
use crate::core::pod::validate_node_selector;
use crate::cursor::{Cursor, bump_generation, items_mut, remove, set_generation};
use crate::metadata::{validate_immutable, validate_object_meta, validate_object_meta_update};
use crate::validate::{csi_driver_name, dns_label, object_name};
use crate::{NameRule, Strategy, printer};

/// The strategy of ResourceSlices.
pub struct ResourceSlice;

const MAX_DEVICES: usize = 128;
/// The most devices where one is tainted or consumes shared counters, which cost the scheduler more.
const MAX_ADVANCED_DEVICES: usize = 64;
const MAX_COUNTER_SETS: usize = 8;
/// How a slice says which nodes reach its devices.
const NODES: &str =
    "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
/// Fields of features that are not enabled by default in v1.36; they are kept where they are stored already.
const DISABLED_ATTRIBUTE_FIELDS: [&str; 4] = ["ints", "bools", "strings", "versions"];

fn drop_disabled_fields(obj: &mut Value) {
    let Some(spec) = obj.get_mut("spec") else { return };
    for device in items_mut(spec, "devices") {
        remove(device, "nodeAllocatableResourceMappings");
        let Some(attributes) = device.get_mut("attributes").and_then(Value::as_object_mut) else { continue };
        for attribute in attributes.values_mut() {
            for key in DISABLED_ATTRIBUTE_FIELDS {
                remove(attribute, key);
            }
        }
    }
}

fn validate_spec(errs: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let path = Path::new("spec");
    csi_driver_name(errs, &path.child("driver"), spec["driver"].text());
    let (pool, at) = (&spec["pool"], path.child("pool"));
    pool_name(errs, &at.child("name"), pool["name"].text());
    let count = pool["resourceSliceCount"].int();
    if count <= 0 {
        errs.push(field::invalid(&at.child("resourceSliceCount"), count, "must be greater than zero"));
    }
    let generation = pool["generation"].int();
    if generation < 0 {
        errs.push(field::invalid(
            &at.child("generation"),
            generation,
            "must be greater than or equal to zero",
        ));
    }
    if let Some(old) = old {
        errs.extend(validate_immutable(&pool["name"], &old["pool"]["name"], &at.child("name")));
        for key in ["driver", "nodeName"] {
            errs.extend(validate_immutable(&spec[key], &old[key], &path.child(key)));
        }
    }
    validate_nodes(errs, &path, spec);
    if spec["sharedCounters"].is_set() && spec["devices"].is_set() {
        errs.push(field::invalid(&path, "", "only one of `sharedCounters` or `devices` is allowed"));
    }
    let devices = spec["devices"].items();
    let advanced = devices.iter().any(|d| !d["taints"].is_empty() || !d["consumesCounters"].is_empty());
    let max = if advanced { MAX_ADVANCED_DEVICES } else { MAX_DEVICES };
    let per_device = spec["perDeviceNodeSelection"].flag();
    let name = |item: &Value| item["name"].text().to_owned();
    each_unique(errs, &path.child("devices"), &spec["devices"], max, name, |errs, path, device| {
        let before = old.and_then(|old| {
            old["devices"].items().iter().find(|d| d["name"].text() == device["name"].text())
        });
        validate_device(errs, path, device, before, per_device);
    });
    let counters = path.child("sharedCounters");
    each_unique(errs, &counters, &spec["sharedCounters"], MAX_COUNTER_SETS, name, |errs, path, set| {
        let name = set["name"].text();
        if name.is_empty() {
            errs.push(field::required(&path.child("name"), ""));
        } else {
            dns_label(errs, &path.child("name"), name);
        }
        validate_counters(errs, &path.child("counters"), &set["counters"]);
    });
}

fn validate_nodes(errs: &mut ErrorList, path: &Path, spec: &Value) {
    let mut chosen: Vec<&str> = Vec::new();
    let (name, selector) = (&spec["nodeName"], &spec["nodeSelector"]);
    if name.is_set() {
        let at = path.child("nodeName");
        if name.text().is_empty() {
            errs.push(field::invalid(&at, "", "must be either unset or set to a non-empty string"));
        } else {
            chosen.push("`nodeName`");
            object_name(errs, &at, name.text(), NameRule::DnsSubdomain);
        }
    }
    if selector.is_set() {
        chosen.push("`nodeSelector`");
        let at = path.child("nodeSelector");
        validate_node_selector(errs, &at, selector);
        if selector["nodeSelectorTerms"].items().len() != 1 {
            errs.push(field::invalid(
                &at.child("nodeSelectorTerms"),
                selector["nodeSelectorTerms"].clone(),
                "must have exactly one node selector term",
            ));
        }
    }
    for (key, quoted) in [("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")]
    {
        match spec[key].as_bool() {
            Some(true) => chosen.push(quoted),
            Some(false) => {
                errs.push(field::invalid(&path.child(key), false, "must be either unset or set to true"));
            }
            None => {}
        }
    }
    match chosen.len() {
        0 => errs.push(field::required(path, NODES)),
        1 => {}
        _ => errs.push(field::invalid(
            path,
            format!("{{{}}}", chosen.join(", ")),
            format!("{NODES}, but multiple fields are set"),
        )),
    }
}

impl Strategy for ResourceSlice {
    fn namespaced(&self) -> bool {
        false
    }

    fn defaults(&self, obj: &mut Value) {
        let Some(spec) = obj.get_mut("spec") else { return };
        for device in items_mut(spec, "devices") {
            super::device::set_defaults(device);
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        set_generation(obj, 1);
        drop_disabled_fields(obj);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        drop_disabled_fields(obj);
        bump_generation(obj, old, &["spec"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = validate_object_meta(obj, false, NameRule::DnsSubdomain);
        validate_spec(&mut errs, &obj["spec"], None);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate_object_meta_update(obj, old);
        validate_spec(&mut errs, &obj["spec"], Some(&old["spec"]));
        errs
    }

    fn selectable_field(&self, obj: &Value, label: &str) -> Option<String> {
        Some(match label {
            "spec.nodeName" => obj["spec"]["nodeName"].text().to_owned(),
            "spec.driver" => obj["spec"]["driver"].text().to_owned(),
            _ => return crate::metadata_field(false, obj, label),
        })
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &obj["spec"];
        vec![
            printer::name(obj),
            spec["nodeName"].text().into(),
            spec["driver"].text().into(),
            spec["pool"]["name"].text().into(),
            printer::age(obj, now),
        ]
    }
}
