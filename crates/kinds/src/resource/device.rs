//! A device of a ResourceSlice: attributes, capacities, taints, counters.

use orlop_api::Quantity;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::{
    MAX_ID, TAINT_EFFECTS, binding_conditions, device_name, each, each_unique, label_value, qualified_name,
};
use crate::NameRule;
use crate::core::pod::resources::quantity;
use crate::core::pod::validate_node_selector;
use crate::cursor::{Cursor, same};
use crate::metadata::validate_label_name;
use crate::validate::{NEGATIVE, dns_label, object_name};

const MAX_ATTRIBUTES_AND_CAPACITIES: usize = 32;
const MAX_ATTRIBUTE_VALUE: usize = 64;
const MAX_TAINTS: usize = 16;
const MAX_COUNTERS: usize = 32;
const MAX_CONSUMED_SETS: usize = 2;
const MAX_POLICY_VALUES: usize = 10;
/// The longest qualified name: domain, slash, identifier.
const MAX_QUALIFIED: usize = 63 + 1 + MAX_ID;
const NODES: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";

/// Defaults of a device: a capacity that may be shared is requested whole unless its policy says otherwise.
pub(super) fn set_defaults(device: &mut Value) {
    let Some(capacity) = device.get_mut("capacity").and_then(Value::as_object_mut) else { return };
    for entry in capacity.values_mut() {
        let Some(range) = entry.pointer_mut("/requestPolicy/validRange") else { continue };
        if range.is_set() && !range["min"].is_set() {
            range["min"] = "0".into();
        }
    }
}

/// A key in a path; the middle of one that is too long is left out.
fn shortened(key: &str, max: usize) -> String {
    let max = max.max(16);
    if key.len() <= max || !key.is_ascii() {
        return key.to_owned();
    }
    let rest = max - 3;
    format!("{}...{}", &key[..rest.div_ceil(2)], &key[key.len() - rest / 2..])
}

pub(super) fn validate_counters(errs: &mut ErrorList, path: &Path, counters: &Value) {
    let count = counters.entries().count();
    if count == 0 {
        errs.push(field::required(path, ""));
    } else if count > MAX_COUNTERS {
        errs.push(field::too_many(path, count, MAX_COUNTERS));
    } else {
        for (key, _) in counters.entries() {
            dns_label(errs, path, key);
        }
    }
}

pub(super) fn validate_device(
    errs: &mut ErrorList,
    path: &Path,
    device: &Value,
    old: Option<&Value>,
    per_device_nodes: bool,
) {
    let unchanged = |key: &str| old.is_some_and(|old| same(&old[key], &device[key]));
    device_name(errs, &path.child("name"), device["name"].text());
    let count = device["attributes"].entries().count() + device["capacity"].entries().count();
    if count > MAX_ATTRIBUTES_AND_CAPACITIES {
        errs.push(field::invalid(
            path,
            count,
            format!(
                "the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES_AND_CAPACITIES}"
            ),
        ));
    }
    let at = path.child("attributes");
    for (key, attribute) in device["attributes"].entries() {
        qualified_name(errs, &at, key);
        validate_attribute(errs, &at.key(&shortened(key, MAX_QUALIFIED)), attribute);
    }
    if !unchanged("capacity") {
        let shared = device["allowMultipleAllocations"].flag();
        let at = path.child("capacity");
        for (key, capacity) in device["capacity"].entries() {
            qualified_name(errs, &at, key);
            let policy = &capacity["requestPolicy"];
            let at = at.key(&shortened(key, MAX_QUALIFIED)).child("requestPolicy");
            if policy.is_set() && shared {
                validate_policy(errs, &at, policy, &quantity(&capacity["value"]));
            } else if policy.is_set() {
                errs.push(field::forbidden(&at, "allowMultipleAllocations must be true"));
            }
        }
    }
    if !unchanged("taints") {
        each(errs, &path.child("taints"), &device["taints"], MAX_TAINTS, validate_taint);
    }
    let consumed = path.child("consumesCounters");
    let set = |item: &Value| item["counterSet"].text().to_owned();
    each_unique(errs, &consumed, &device["consumesCounters"], MAX_CONSUMED_SETS, set, |errs, path, item| {
        let name = item["counterSet"].text();
        if name.is_empty() {
            errs.push(field::required(&path.child("counterSet"), ""));
        } else {
            dns_label(errs, &path.child("counterSet"), name);
        }
        validate_counters(errs, &path.child("counters"), &item["counters"]);
    });
    validate_nodes(errs, path, device, per_device_nodes);
    binding_conditions(errs, path, device);
}

fn validate_nodes(errs: &mut ErrorList, path: &Path, device: &Value, per_device: bool) {
    let (name, selector, all) = (&device["nodeName"], &device["nodeSelector"], &device["allNodes"]);
    if !per_device {
        if name.is_set() || selector.is_set() || all.is_set() {
            errs.push(field::invalid(
                path,
                Value::Null,
                "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
            ));
        }
        return;
    }
    let mut chosen: Vec<&str> = Vec::new();
    if name.is_set() {
        let at = path.child("nodeName");
        if name.text().is_empty() {
            errs.push(field::invalid(&at, "", "must not be empty"));
        } else {
            chosen.push("`nodeName`");
            object_name(errs, &at, name.text(), NameRule::DnsSubdomain);
        }
    }
    if selector.is_set() {
        chosen.push("`nodeSelector`");
        validate_node_selector(errs, &path.child("nodeSelector"), selector);
    }
    match all.as_bool() {
        Some(true) => chosen.push("`allNodes`"),
        Some(false) => {
            errs.push(field::invalid(&path.child("allNodes"), false, "must be either unset or set to true"))
        }
        None => {}
    }
    match chosen.len() {
        0 => errs.push(field::required(path, NODES)),
        1 => {}
        _ => errs.push(field::invalid(path, format!("{{{}}}", chosen.join(", ")), NODES)),
    }
}

fn validate_attribute(errs: &mut ErrorList, path: &Path, attribute: &Value) {
    let mut values = 0;
    for key in ["bool", "int", "string", "version"] {
        if !attribute[key].is_set() {
            continue;
        }
        values += 1;
        let (text, at) = (attribute[key].text(), path.child(key));
        if key == "version" && !is_semver(text) {
            errs.push(field::invalid(&at, text, "must be a string compatible with semver.org spec 2.0.0"));
        }
        if text.len() > MAX_ATTRIBUTE_VALUE {
            errs.push(field::too_long(&at, MAX_ATTRIBUTE_VALUE));
        }
    }
    match values {
        0 => errs.push(field::invalid(path, "", "exactly one value must be specified")),
        1 => {}
        _ => errs.push(field::invalid(path, attribute.clone(), "exactly one value must be specified")),
    }
}

/// semver.org 2.0.0.
fn is_semver(text: &str) -> bool {
    let (text, build) = match text.split_once('+') {
        Some((text, build)) => (text, Some(build)),
        None => (text, None),
    };
    let (core, pre) = match text.split_once('-') {
        Some((core, pre)) => (core, Some(pre)),
        None => (text, None),
    };
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let number = |part: &str| digits(part) && (part == "0" || !part.starts_with('0'));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|pre| pre.split('.').all(|p| word(p) && (!digits(p) || number(p))))
        && build.is_none_or(|build| build.split('.').all(word))
}

fn validate_taint(errs: &mut ErrorList, path: &Path, taint: &Value) {
    errs.extend(validate_label_name(taint["key"].text(), &path.child("key")));
    if !taint["value"].text().is_empty() {
        label_value(errs, &path.child("value"), taint["value"].text());
    }
    match taint["effect"].text() {
        "" => errs.push(field::required(&path.child("effect"), "")),
        effect if TAINT_EFFECTS.contains(&effect) => {}
        other => errs.push(field::not_supported(&path.child("effect"), other, &TAINT_EFFECTS)),
    }
}

/// How much of a shared capacity one request may ask for.
fn validate_policy(errs: &mut ErrorList, path: &Path, policy: &Value, capacity: &Quantity) {
    let (values, range) = (&policy["validValues"], &policy["validRange"]);
    if !values.is_empty() && range.is_set() {
        errs.push(field::forbidden(
            path,
            "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time",
        ));
        return;
    }
    let default = &policy["default"];
    if !values.is_empty() {
        if default.is_set() {
            validate_values(errs, &path.child("validValues"), values.items(), &quantity(default), capacity);
        } else {
            errs.push(field::required(&path.child("default"), "required when validValues is defined"));
        }
    } else if range.is_set() {
        if default.is_set() {
            validate_range(errs, &path.child("validRange"), range, &quantity(default), capacity);
        } else {
            errs.push(field::required(&path.child("default"), "required when validRange is defined"));
        }
    }
}

fn validate_values(
    errs: &mut ErrorList,
    path: &Path,
    values: &[Value],
    default: &Quantity,
    capacity: &Quantity,
) {
    let quantities: Vec<Quantity> = values.iter().map(quantity).collect();
    for (i, pair) in quantities.windows(2).enumerate() {
        if pair[0] > pair[1] {
            errs.push(field::invalid(
                &path.index(i + 1),
                pair[1].to_string(),
                "values must be sorted in ascending order",
            ));
        }
    }
    let mut default_found = false;
    if quantities.len() > MAX_POLICY_VALUES {
        errs.push(field::too_many(path, quantities.len(), MAX_POLICY_VALUES));
    } else {
        for (i, option) in quantities.iter().enumerate() {
            if option > capacity {
                errs.push(field::invalid(
                    &path.index(i),
                    option.to_string(),
                    format!("option is larger than capacity value: {capacity}"),
                ));
            }
            default_found |= option == default;
        }
        for (i, option) in quantities.iter().enumerate() {
            if quantities[..i].iter().any(|earlier| earlier.value() == option.value()) {
                errs.push(field::duplicate(&path.index(i), option.value().to_string()));
            }
        }
    }
    if !default_found {
        errs.push(field::invalid(
            path,
            default.to_string(),
            "default value is not valid according to the requestPolicy",
        ));
    }
}

fn validate_range(errs: &mut ErrorList, path: &Path, range: &Value, default: &Quantity, capacity: &Quantity) {
    if !range["min"].is_set() {
        errs.push(field::required(&path.child("min"), "required when validRange is defined"));
        return;
    }
    let min = quantity(&range["min"]);
    let max = range["max"].is_set().then(|| quantity(&range["max"]));
    let mut bad = |key: &str, value: &Quantity, why: String| {
        errs.push(field::invalid(&path.child(key), value.to_string(), why));
    };
    if min > *capacity {
        bad("min", &min, format!("min is larger than capacity value: {capacity}"));
    }
    if *default < min {
        bad("default", default, format!("default is less than min: {min}"));
    }
    if let Some(max) = &max {
        if min > *max {
            bad("max", &min, format!("min is larger than max: {max}"));
        }
        if max > capacity {
            bad("max", max, format!("max is larger than capacity value: {capacity}"));
        }
        if default > max {
            bad("default", default, format!("default is more than max: {max}"));
        }
    }
    if !range["step"].is_set() {
        return;
    }
    let step = quantity(&range["step"]);
    if step.sign() <= 0 {
        bad("step", &step, "must be greater than zero".to_owned());
        return;
    }
    let added = min + step;
    if added > *capacity {
        bad("step", &step, format!("one step {added} is larger than capacity value: {capacity}"));
    }
    if min.sign() < 0 {
        bad("min", &min, NEGATIVE.to_owned());
        return;
    }
    let width = i128::from(step.value()).max(1);
    for value in [Some(default), max.as_ref()].into_iter().flatten() {
        if (i128::from(value.value()) - i128::from(min.value())) % width != 0 {
            bad("step", value, format!("value is not a multiple of a given step ({step}) from ({min})"));
        }
    }
}
