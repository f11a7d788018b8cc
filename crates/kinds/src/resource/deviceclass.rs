//! DeviceClass: what kind of device a request may name, and how it is set up.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::{MAX_LIST, configuration, each, selectors};
use crate::core::pod::resources::is_extended;
use crate::cursor::{Cursor, bump_generation, same, set_generation};
use crate::metadata::{validate_object_meta, validate_object_meta_update};
use crate::{NameRule, Strategy, printer};

/// The strategy of DeviceClasses.
pub struct DeviceClass;

fn validate_spec(errs: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let path = Path::new("spec");
    selectors(errs, &path.child("selectors"), &spec["selectors"]);
    let stored = old.is_some_and(|old| same(&spec["config"], &old["config"]));
    each(errs, &path.child("config"), &spec["config"], MAX_LIST, |errs, path, config| {
        configuration(errs, path, config, stored);
    });
    let extended = &spec["extendedResourceName"];
    if extended.is_set() && !is_extended(extended.text()) {
        errs.push(field::invalid(
            &path.child("extendedResourceName"),
            extended.text(),
            "must be a valid extended resource name",
        ));
    }
}

impl Strategy for DeviceClass {
    fn namespaced(&self) -> bool {
        false
    }

    fn prepare_create(&self, obj: &mut Value) {
        set_generation(obj, 1);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        bump_generation(obj, old, &["spec"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = validate_object_meta(obj, false, NameRule::DnsSubdomain);
        validate_spec(&mut errs, &obj["spec"], None);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate_object_meta(obj, false, NameRule::DnsSubdomain);
        errs.extend(validate_object_meta_update(obj, old));
        validate_spec(&mut errs, &obj["spec"], Some(&old["spec"]));
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![printer::name(obj), printer::age(obj, now)]
    }
}
