//! StorageClass: how volumes for claims are made.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::{forbid_changes, validate_parameters, validate_provisioner};
use crate::core::pod::warnings::deprecated_node_label;
use crate::cursor::{Cursor, default_to};
use crate::metadata::validate_label_name;
use crate::validate::one_of;
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of StorageClasses.
pub struct StorageClass;

fn validate(obj: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, false, NameRule::DnsSubdomain);
    validate_provisioner(&mut errs, &Path::new("provisioner"), obj["provisioner"].text());
    validate_parameters(&mut errs, &obj["parameters"], true);
    let reclaim = obj["reclaimPolicy"].text();
    if !matches!(reclaim, "" | "Delete" | "Retain") {
        errs.push(field::not_supported(&Path::new("reclaimPolicy"), reclaim, &["Delete", "Retain"]));
    }
    let mode = &obj["volumeBindingMode"];
    let path = Path::new("volumeBindingMode");
    if mode.is_set() {
        one_of(&mut errs, &path, mode, &["Immediate", "WaitForFirstConsumer"]);
    } else {
        errs.push(field::required(&path, ""));
    }
    validate_topologies(&mut errs, &Path::new("allowedTopologies"), &obj["allowedTopologies"]);
    errs
}

/// A term's keys with the set of values of each.
type Term<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Where volumes may be made: no key twice in a term, no term twice.
fn validate_topologies(errs: &mut ErrorList, path: &Path, topologies: &Value) {
    let items = topologies.items();
    // Upstream compares each term with as many empty ones as there are terms, too.
    let mut seen: Vec<Term<'_>> = vec![Term::new(); items.len()];
    for (i, term) in items.iter().enumerate() {
        let path = path.index(i).child("matchLabelExpressions");
        let mut keys = Term::new();
        for (e, requirement) in term["matchLabelExpressions"].items().iter().enumerate() {
            let path = path.index(e);
            let mut values = BTreeSet::new();
            let at = path.child("values");
            if requirement["values"].is_empty() {
                errs.push(field::required(&at, ""));
            }
            for (v, value) in requirement["values"].texts().into_iter().enumerate() {
                if !values.insert(value) {
                    errs.push(field::duplicate(&at.index(v), value));
                }
            }
            let key = requirement["key"].text();
            errs.extend(validate_label_name(key, &path.child("key")));
            if keys.insert(key, values).is_some() {
                errs.push(field::duplicate(&path.child("key"), key));
            }
        }
        for _ in seen.iter().filter(|term| **term == keys) {
            errs.push(field::duplicate(&path, ""));
        }
        seen.push(keys);
    }
}

fn is_default(obj: &Value) -> bool {
    let annotations = &obj["metadata"]["annotations"];
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
        .iter()
        .any(|key| annotations[*key].text() == "true")
}

impl Strategy for StorageClass {
    fn namespaced(&self) -> bool {
        false
    }

    fn defaults(&self, obj: &mut Value) {
        default_to(obj, "reclaimPolicy", "Delete");
        default_to(obj, "volumeBindingMode", "Immediate");
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate(obj)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        forbid_changes(&mut errs, obj, old, &["parameters", "provisioner", "reclaimPolicy"]);
        errs.extend(metadata::validate_immutable(
            &obj["volumeBindingMode"],
            &old["volumeBindingMode"],
            &Path::new("volumeBindingMode"),
        ));
        errs
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        for (i, term) in obj["allowedTopologies"].items().iter().enumerate() {
            for (e, requirement) in term["matchLabelExpressions"].items().iter().enumerate() {
                if let Some(message) = deprecated_node_label(requirement["key"].text()) {
                    let at = Path::new("allowedTopologies").index(i).child("matchLabelExpressions");
                    out.push(format!("{}: {message}", at.index(e).child("key")));
                }
            }
        }
        out
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let name = obj["metadata"]["name"].text();
        let name = if is_default(obj) { format!("{name} (default)") } else { name.to_owned() };
        vec![
            name.into(),
            obj["provisioner"].text().into(),
            obj["reclaimPolicy"].text().into(),
            obj["volumeBindingMode"].text().into(),
            obj["allowVolumeExpansion"].flag().into(),
            printer::age(obj, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_create, check_update, check_warnings};
    use orlop_json::{Value, json};

    #[test]
    fn validation() {
        check_create(
            "storage.k8s.io",
            "StorageClass",
            json!({"provisioner": "p", "volumeBindingMode": "Foo"}),
            &[
                "volumeBindingMode: Unsupported value: \"Foo\": supported values: \"Immediate\", \"WaitForFirstConsumer\"",
            ],
        );
        check_update(
            "storage.k8s.io",
            "StorageClass",
            json!({"provisioner": "q"}),
            json!({"provisioner": "p"}),
            &["provisioner: Forbidden: updates to provisioner are forbidden."],
        );
        let zone = |values: Value| json!({"matchLabelExpressions": [{"key": "failure-domain.beta.kubernetes.io/zone", "values": values}]});
        check_create(
            "storage.k8s.io",
            "StorageClass",
            json!({"provisioner": "p", "reclaimPolicy": "Recycle",
                "allowedTopologies": [zone(json!(["a", "a"])), zone(json!(["a"])), zone(json!([]))]}),
            &[
                "reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\"",
                "allowedTopologies[0].matchLabelExpressions[0].values[1]: Duplicate value: \"a\"",
                "allowedTopologies[1].matchLabelExpressions: Duplicate value: \"\"",
                "allowedTopologies[2].matchLabelExpressions[0].values: Required value",
            ],
        );
        check_warnings(
            "storage.k8s.io",
            "StorageClass",
            json!({"provisioner": "p", "allowedTopologies": [zone(json!(["a"]))]}),
            None,
            &[
                "allowedTopologies[0].matchLabelExpressions[0].key: deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
            ],
        );
    }
}
