//! ResourceClaim and ResourceClaimTemplate: which devices somebody wants.

use std::collections::HashMap;

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Value, json};

use super::{
    MAX_ALTERNATIVES, MAX_LIST, configuration, device_class_name, each, each_unique, fully_qualified_name,
    selectors, status, toleration,
};
use crate::core::pod_template::validate_template_metadata;
use crate::cursor::{Cursor, default_empty_to, items_mut, keep, keep_metadata_for_status};
use crate::metadata::{validate_object_meta, validate_object_meta_update};
use crate::validate::dns_label;
use crate::{NameRule, Strategy, metadata, printer};

const REFERENCE: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// The strategy of ResourceClaims.
pub struct ResourceClaim;

/// The strategy of ResourceClaimTemplates.
pub struct ResourceClaimTemplate;

/// Names of requests, each with the names of its alternatives.
pub(super) struct RequestNames<'a>(HashMap<&'a str, Vec<&'a str>>);

impl<'a> RequestNames<'a> {
    pub(super) fn of(devices: &'a Value) -> RequestNames<'a> {
        let alternatives =
            |request: &'a Value| request["firstAvailable"].items().iter().map(|s| s["name"].text()).collect();
        RequestNames(
            devices["requests"].items().iter().map(|r| (r["name"].text(), alternatives(r))).collect(),
        )
    }

    fn has(&self, name: &str) -> bool {
        let (request, alternative) = match name.split_once('/') {
            Some((request, alternative)) => (request, Some(alternative)),
            None => (name, None),
        };
        self.0.get(request).is_some_and(|known| alternative.is_none_or(|a| known.contains(&a)))
    }

    /// A reference to a request, or to one of its alternatives as `request/alternative`.
    pub(super) fn check(&self, errs: &mut ErrorList, path: &Path, name: &str) {
        if name.matches('/').count() > 1 {
            errs.push(field::invalid(path, name, REFERENCE));
            return;
        }
        for segment in name.split('/') {
            dns_label(errs, path, segment);
        }
        if !self.has(name) {
            errs.push(field::invalid(path, name, REFERENCE));
        }
    }

    /// A list of references without repetition.
    pub(super) fn check_list(&self, errs: &mut ErrorList, path: &Path, list: &Value) {
        each_unique(
            errs,
            path,
            list,
            MAX_LIST,
            |name| name.text().to_owned(),
            |errs, path, name| {
                self.check(errs, path, name.text());
            },
        );
    }
}

fn set_request_defaults(request: &mut Value) {
    default_empty_to(request, "allocationMode", "ExactCount");
    if request["allocationMode"] == "ExactCount" {
        default_empty_to(request, "count", 1);
    }
    for toleration in items_mut(request, "tolerations") {
        default_empty_to(toleration, "operator", "Equal");
    }
}

fn set_defaults(spec: &mut Value) {
    let Some(devices) = spec.get_mut("devices") else { return };
    for request in items_mut(devices, "requests") {
        if request["exactly"].is_set() {
            set_request_defaults(&mut request["exactly"]);
        }
        for alternative in items_mut(request, "firstAvailable") {
            set_request_defaults(alternative);
        }
    }
}

fn validate_spec(errs: &mut ErrorList, path: &Path, spec: &Value) {
    let devices = &spec["devices"];
    let path = path.child("devices");
    let known = RequestNames::of(devices);
    let name = |item: &Value| item["name"].text().to_owned();
    each_unique(
        errs,
        &path.child("requests"),
        &devices["requests"],
        MAX_LIST,
        name,
        |errs, path, request| {
            dns_label(errs, &path.child("name"), request["name"].text());
            let (exactly, alternatives) = (&request["exactly"], &request["firstAvailable"]);
            match (exactly.is_set(), !alternatives.is_empty()) {
                (false, false) => errs
                    .push(field::required(path, "exactly one of `exactly` or `firstAvailable` is required")),
                (true, true) => errs.push(field::invalid(
                    path,
                    Value::Null,
                    "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
                )),
                (true, false) => validate_request(errs, &path.child("exactly"), exactly),
                (false, true) => {
                    let path = path.child("firstAvailable");
                    each_unique(
                        errs,
                        &path,
                        alternatives,
                        MAX_ALTERNATIVES,
                        name,
                        |errs, path, alternative| {
                            dns_label(errs, &path.child("name"), alternative["name"].text());
                            validate_request(errs, path, alternative);
                        },
                    );
                }
            }
        },
    );
    each(errs, &path.child("constraints"), &devices["constraints"], MAX_LIST, |errs, path, constraint| {
        known.check_list(errs, &path.child("requests"), &constraint["requests"]);
        let (same, distinct) = (&constraint["matchAttribute"], &constraint["distinctAttribute"]);
        if same.is_set() {
            fully_qualified_name(errs, &path.child("matchAttribute"), same.text());
        } else if distinct.is_set() {
            fully_qualified_name(errs, &path.child("distinctAttribute"), distinct.text());
        } else {
            errs.push(field::required(
                path,
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
            ));
        }
    });
    each(errs, &path.child("config"), &devices["config"], MAX_LIST, |errs, path, config| {
        known.check_list(errs, &path.child("requests"), &config["requests"]);
        configuration(errs, path, config, false);
    });
}

fn validate_request(errs: &mut ErrorList, path: &Path, request: &Value) {
    device_class_name(errs, &path.child("deviceClassName"), request["deviceClassName"].text());
    selectors(errs, &path.child("selectors"), &request["selectors"]);
    let count = request["count"].int();
    match request["allocationMode"].text() {
        "All" => {
            if count != 0 {
                errs.push(field::invalid(
                    &path.child("count"),
                    count,
                    "must not be specified when allocationMode is 'All'",
                ));
            }
        }
        "ExactCount" => {
            if count <= 0 {
                errs.push(field::invalid(&path.child("count"), count, "must be greater than zero"));
            }
        }
        other => {
            errs.push(field::not_supported(&path.child("allocationMode"), other, &["All", "ExactCount"]))
        }
    }
    for (i, item) in request["tolerations"].items().iter().enumerate() {
        toleration(errs, &path.child("tolerations").index(i), item);
    }
}

/// The paths of the requests that ask for administrative access, which only some namespaces may.
pub fn admin_access_requests(spec: &Value, path: &Path) -> Vec<Path> {
    let path = path.child("devices").child("requests");
    let asks = |request: &Value| request["exactly"]["adminAccess"].flag();
    let requests = spec["devices"]["requests"].items();
    (0..requests.len())
        .filter(|i| asks(&requests[*i]))
        .map(|i| path.index(i).child("exactly").child("adminAccess"))
        .collect()
}

impl Strategy for ResourceClaim {
    fn defaults(&self, obj: &mut Value) {
        if let Some(spec) = obj.get_mut("spec") {
            set_defaults(spec);
        }
        if let Some(devices) = obj.pointer_mut("/status/allocation/devices") {
            for result in items_mut(devices, "results") {
                for toleration in items_mut(result, "tolerations") {
                    default_empty_to(toleration, "operator", "Equal");
                }
            }
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({});
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["status"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = validate_object_meta(obj, true, NameRule::DnsSubdomain);
        validate_spec(&mut errs, &Path::new("spec"), &obj["spec"]);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate_object_meta(obj, true, NameRule::DnsSubdomain);
        errs.extend(validate_object_meta_update(obj, old));
        errs.extend(metadata::validate_immutable(&obj["spec"], &old["spec"], &Path::new("spec")));
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn prepare_status_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["spec"]);
        keep_metadata_for_status(obj, old);
        status::drop_deallocated(obj, old);
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate_object_meta_update(obj, old);
        status::validate(&mut errs, obj, old);
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let mut states: Vec<&str> = Vec::new();
        let deleted = obj["metadata"].has("deletionTimestamp");
        if deleted {
            states.push("deleted");
        }
        if obj["status"]["allocation"].is_set() {
            states.push("allocated");
            if !obj["status"]["reservedFor"].is_empty() {
                states.push("reserved");
            }
        } else if !deleted {
            states.push("pending");
        }
        vec![printer::name(obj), states.join(",").into(), printer::age(obj, now)]
    }
}

impl Strategy for ResourceClaimTemplate {
    fn defaults(&self, obj: &mut Value) {
        if let Some(spec) = obj.pointer_mut("/spec/spec") {
            set_defaults(spec);
        }
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = validate_object_meta(obj, true, NameRule::DnsSubdomain);
        let path = Path::new("spec");
        validate_template_metadata(&mut errs, &path.child("metadata"), &obj["spec"]["metadata"]);
        validate_spec(&mut errs, &path.child("spec"), &obj["spec"]["spec"]);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate_object_meta_update(obj, old);
        errs.extend(metadata::validate_immutable(&obj["spec"], &old["spec"], &Path::new("spec")));
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![printer::name(obj), printer::age(obj, now)]
    }
}
