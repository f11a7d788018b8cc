//! StorageClass: how volumes for claims are made.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use serde_json::Value;

use crate::cursor::{Cursor, default_to, same};
use crate::validate::{qualified_name, require_one_of};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of StorageClasses.
pub struct StorageClass;

fn validate(obj: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, false, NameRule::DnsSubdomain);
    let provisioner = obj["provisioner"].text();
    let path = Path::new("provisioner");
    if provisioner.is_empty() {
        errs.push(field::required(&path, ""));
    } else {
        qualified_name(&mut errs, &path, &provisioner.to_lowercase());
    }
    let parameters = Path::new("parameters");
    if obj["parameters"].entries().count() > 512 {
        errs.push(field::too_long(&Path::new("Provisioner Parameters Length"), 512));
        return errs;
    }
    let mut total = 0;
    for (key, value) in obj["parameters"].entries() {
        if key.is_empty() {
            errs.push(field::invalid(&parameters, key.as_str(), "field can not be empty."));
        }
        total += key.len() + value.text().len();
    }
    if total > 256 * 1024 {
        errs.push(field::too_long(&parameters, 256 * 1024));
    }
    if obj["reclaimPolicy"].is_set() {
        require_one_of(
            &mut errs,
            &Path::new("reclaimPolicy"),
            obj["reclaimPolicy"].text(),
            &["Delete", "Retain"],
        );
    }
    require_one_of(
        &mut errs,
        &Path::new("volumeBindingMode"),
        obj["volumeBindingMode"].text(),
        &["Immediate", "WaitForFirstConsumer"],
    );
    errs
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
        for key in ["parameters", "provisioner", "reclaimPolicy"] {
            if !same(&obj[key], &old[key]) {
                errs.push(field::forbidden(&Path::new(key), format!("updates to {key} are forbidden.")));
            }
        }
        errs.extend(metadata::validate_immutable(
            &obj["volumeBindingMode"],
            &old["volumeBindingMode"],
            &Path::new("volumeBindingMode"),
        ));
        errs
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

    fn allow_create_on_update(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_create, check_update};
    use serde_json::json;

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
    }
}
