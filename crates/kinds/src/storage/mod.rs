//! The group `storage.k8s.io`.

pub mod csidriver;
pub mod csinode;
pub mod csistoragecapacity;
pub mod storageclass;
pub mod volumeattachment;
pub mod volumeattributesclass;

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use crate::cursor::Cursor;
use crate::validate::{invalids, require_text};

/// Parameters of a class: so many, and so many bytes together.
const MAX_PARAMETERS: usize = 512;
const MAX_PARAMETER_SIZE: usize = 256 * 1024;

/// The name of a driver or provisioner, in any case.
fn validate_provisioner(errs: &mut ErrorList, path: &Path, name: &str) {
    require_text(errs, path, name);
    if !name.is_empty() {
        let lower = name.to_lowercase();
        invalids(errs, path, &lower, orlop_api::names::is_qualified_name(&lower));
    }
}

fn validate_parameters(errs: &mut ErrorList, parameters: &Value, may_be_empty: bool) {
    let path = Path::new("parameters");
    if parameters.entries().count() > MAX_PARAMETERS {
        errs.push(field::too_long(&path, MAX_PARAMETERS));
        return;
    }
    let mut total = 0;
    for (key, value) in parameters.entries() {
        if key.is_empty() {
            errs.push(field::invalid(&path, key.as_str(), "field can not be empty."));
        }
        total += key.len() + value.text().len();
    }
    if total > MAX_PARAMETER_SIZE {
        errs.push(field::too_long(&path, MAX_PARAMETER_SIZE));
    }
    if !may_be_empty && parameters.is_empty() {
        errs.push(field::required(&path, "must contain at least one key/value pair"));
    }
}

/// One refusal for each of these fields that changed.
fn forbid_changes(errs: &mut ErrorList, obj: &Value, old: &Value, keys: &[&str]) {
    for key in keys {
        if !crate::cursor::same(&obj[*key], &old[*key]) {
            errs.push(field::forbidden(&Path::new(key), format!("updates to {key} are forbidden.")));
        }
    }
}
