//! `resource.k8s.io`: devices that pods may claim (dynamic resource allocation, KEP-4381).

pub mod claim;
mod device;
pub mod deviceclass;
mod selector;
pub mod slice;
mod status;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::hash::Hash;

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::Value;

use crate::cursor::Cursor;
use crate::validate::{csi_driver_name, dns_label, dns_subdomain, invalids};

/// The most requests, subrequest references, selectors, constraints, configurations or results of one list.
const MAX_LIST: usize = 32;
/// The most subrequests of a `firstAvailable` list.
const MAX_ALTERNATIVES: usize = 8;
/// The largest opaque configuration or device status data, in bytes.
const MAX_RAW: usize = 10 * 1024;
const MAX_POOL_NAME: usize = 253;
/// The longest name part of an attribute's or capacity's qualified name.
const MAX_ID: usize = 32;
/// The most binding conditions, and the most binding failure conditions.
const MAX_BINDING_CONDITIONS: usize = 4;
const TAINT_EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

/// Checks the items of a list that may have at most `max`; a longer one is not looked into.
fn each(
    errs: &mut ErrorList,
    path: &Path,
    list: &Value,
    max: usize,
    mut check: impl FnMut(&mut ErrorList, &Path, &Value),
) {
    let items = list.items();
    if items.len() > max {
        errs.push(field::too_many(path, items.len(), max));
        return;
    }
    for (i, item) in items.iter().enumerate() {
        check(errs, &path.index(i), item);
    }
}

/// [`each`], and no two items may have the same key.
fn each_unique<K: Hash + Eq + Into<Value> + Clone>(
    errs: &mut ErrorList,
    path: &Path,
    list: &Value,
    max: usize,
    key: impl Fn(&Value) -> K,
    check: impl FnMut(&mut ErrorList, &Path, &Value),
) {
    let items = list.items();
    each(errs, path, list, max, check);
    if items.len() > max {
        return;
    }
    let mut seen = HashSet::new();
    for (i, item) in items.iter().enumerate() {
        let key = key(item);
        if !seen.insert(key.clone()) {
            errs.push(field::duplicate(&path.index(i), key));
        }
    }
}

/// A pool's name: DNS subdomains with slashes between them.
fn pool_name(errs: &mut ErrorList, path: &Path, name: &str) {
    if name.is_empty() {
        errs.push(field::required(path, ""));
        return;
    }
    if name.len() > MAX_POOL_NAME {
        errs.push(field::too_long(path, MAX_POOL_NAME));
    }
    for part in name.split('/') {
        dns_subdomain(errs, path, part);
    }
}

fn device_class_name(errs: &mut ErrorList, path: &Path, name: &str) {
    if name.is_empty() {
        errs.push(field::required(path, ""));
    } else {
        dns_subdomain(errs, path, name);
    }
}

/// An attribute's or capacity's name: a C identifier, with or without the domain of who defines it.
fn qualified_name(errs: &mut ErrorList, path: &Path, name: &str) {
    match name.split_once('/') {
        None => identifier(errs, path, name),
        Some((domain, id)) => {
            if domain.is_empty() {
                errs.push(field::invalid(path, "", "the domain must not be empty"));
            } else {
                csi_driver_name(errs, path, domain);
            }
            if id.is_empty() {
                errs.push(field::invalid(path, "", "the name must not be empty"));
            } else {
                identifier(errs, path, id);
            }
        }
    }
}

fn fully_qualified_name(errs: &mut ErrorList, path: &Path, name: &str) {
    qualified_name(errs, path, name);
    if !name.contains('/') {
        errs.push(field::invalid(
            path,
            name,
            "a fully qualified name must be a domain and a name separated by a slash",
        ));
    }
}

fn identifier(errs: &mut ErrorList, path: &Path, id: &str) {
    if id.len() > MAX_ID {
        errs.push(field::too_long(path, MAX_ID));
    }
    invalids(errs, path, id, names::is_c_identifier(id));
}

/// A UUID in its normal form.
fn uid(errs: &mut ErrorList, path: &Path, uid: &str) {
    let shape = uid.len() == 36
        && uid.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        });
    if !shape {
        let why = if uid.len() == 36 { "invalid UUID format" } else { "invalid UUID length" };
        let why = if uid.len() == 36 { why.to_owned() } else { format!("{why}: {}", uid.len()) };
        errs.push(field::invalid(path, uid, format!("error validating uid: {why}")));
    } else if uid.bytes().any(|b| b.is_ascii_uppercase()) {
        errs.push(field::invalid(
            path,
            uid,
            "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters",
        ));
    }
}

fn selectors(errs: &mut ErrorList, path: &Path, list: &Value) {
    each(errs, path, list, MAX_LIST, |errs, path, selector| {
        let (path, cel) = (path.child("cel"), &selector["cel"]);
        match cel.is_set() {
            false => errs.push(field::required(&path, "")),
            true => selector::validate(errs, &path.child("expression"), cel["expression"].text()),
        }
    });
}

/// The driver-specific part of a configuration entry.
fn configuration(errs: &mut ErrorList, path: &Path, config: &Value, stored: bool) {
    let path = path.child("opaque");
    let opaque = &config["opaque"];
    if !opaque.is_set() {
        errs.push(field::required(&path, ""));
        return;
    }
    csi_driver_name(errs, &path.child("driver"), opaque["driver"].text());
    raw_object(errs, &path.child("parameters"), &opaque["parameters"], stored);
}

/// A raw JSON object of bounded size.
fn raw_object(errs: &mut ErrorList, path: &Path, raw: &Value, stored: bool) {
    match raw {
        Value::Null => errs.push(field::required(path, "")),
        _ if !stored && raw.to_string().len() > MAX_RAW => errs.push(field::too_long(path, MAX_RAW)),
        Value::Object(_) => {}
        _ => errs.push(field::invalid(path, "<value omitted>", "must be a valid JSON object")),
    }
}

fn label_value(errs: &mut ErrorList, path: &Path, value: &str) {
    invalids(errs, path, value, names::is_valid_label_value(value));
}

fn toleration(errs: &mut ErrorList, path: &Path, toleration: &Value) {
    let (key, value) = (toleration["key"].text(), toleration["value"].text());
    if !key.is_empty() {
        errs.extend(crate::metadata::validate_label_name(key, &path.child("key")));
    }
    match toleration["operator"].text() {
        "Exists" => {
            if !value.is_empty() {
                errs.push(field::invalid(&path.child("value"), value, "must be empty for operator `Exists`"));
            }
        }
        "Equal" => label_value(errs, &path.child("value"), value),
        "" => errs.push(field::required(&path.child("operator"), "")),
        other => errs.push(field::not_supported(&path.child("operator"), other, &["Equal", "Exists"])),
    }
    let effect = toleration["effect"].text();
    if !effect.is_empty() && !TAINT_EFFECTS.contains(&effect) {
        errs.push(field::not_supported(&path.child("effect"), effect, &TAINT_EFFECTS));
    }
}

/// Conditions a device must, and must not, have before a pod is bound that uses it: both lists or none.
fn binding_conditions(errs: &mut ErrorList, path: &Path, holder: &Value) {
    let (wanted, failed) = (&holder["bindingConditions"], &holder["bindingFailureConditions"]);
    let (wanted_path, failed_path) =
        (path.child("bindingConditions"), path.child("bindingFailureConditions"));
    for (path, list) in [(&wanted_path, wanted), (&failed_path, failed)] {
        each(errs, path, list, MAX_BINDING_CONDITIONS, |errs, path, name| {
            errs.extend(crate::metadata::validate_label_name(name.text(), path));
        });
    }
    let (wanted, failed) = (wanted.texts(), failed.texts());
    for (i, name) in wanted.iter().enumerate() {
        if wanted[..i].contains(name) {
            errs.push(field::duplicate(&wanted_path.index(i), *name));
        }
    }
    for (i, name) in failed.iter().enumerate() {
        if failed[..i].contains(name) {
            errs.push(field::duplicate(&failed_path.index(i), *name));
        }
        if wanted.contains(name) {
            errs.push(field::invalid(
                &failed_path.index(i),
                *name,
                "bindingFailureConditions must not overlap with bindingConditions",
            ));
        }
    }
    if wanted.is_empty() && !failed.is_empty() {
        errs.push(field::invalid(
            &wanted_path,
            Value::Null,
            "bindingConditions are required to use bindingFailureConditions",
        ));
    }
    if failed.is_empty() && !wanted.is_empty() {
        errs.push(field::invalid(
            &failed_path,
            Value::Null,
            "bindingFailureConditions are required to use bindingConditions",
        ));
    }
}

fn device_name(errs: &mut ErrorList, path: &Path, name: &str) {
    dns_label(errs, path, name);
}
