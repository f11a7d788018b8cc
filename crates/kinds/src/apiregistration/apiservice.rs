//! APIService: who serves a group and version, this server itself or a Service in the cluster.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Value, json};

use crate::cursor::{Cursor, default_to, keep};
use crate::metadata::{validate_generic_meta_by, validate_generic_object_meta_update};
use crate::validate::{dns_subdomain, invalids, require_text};
use crate::{NameRule, Strategy, printer};

/// The strategy of APIServices.
pub struct ApiService;

const MAX_GROUP_PRIORITY: i64 = 20_000;
const MAX_VERSION_PRIORITY: i64 = 1_000;

fn validate(obj: &Value) -> ErrorList {
    let spec = &obj["spec"];
    let (group, version) = (spec["group"].text(), spec["version"].text());
    let required = format!("{version}.{group}");
    let rule = |name: &str, _prefix: bool| {
        let mut messages = names::path_segment(name);
        if messages.is_empty() && name != required {
            messages.push(format!("must be `spec.version+\".\"+spec.group`: {}", field::go_quote(&required)));
        }
        messages
    };
    let mut errs = validate_generic_meta_by(&obj["metadata"], false, &rule, &Path::new("metadata"));
    let path = Path::new("spec");
    if group.is_empty() && version != "v1" {
        errs.push(field::required(
            &path.child("group"),
            "only v1 may have an empty group and it better be legacy kube",
        ));
    }
    if !group.is_empty() {
        dns_subdomain(&mut errs, &path.child("group"), group);
    }
    invalids(&mut errs, &path.child("version"), version, names::is_dns1035_label(version));
    for (key, max) in
        [("groupPriorityMinimum", MAX_GROUP_PRIORITY), ("versionPriority", MAX_VERSION_PRIORITY)]
    {
        let priority = spec[key].int();
        if priority <= 0 || priority > max {
            errs.push(field::invalid(
                &path.child(key),
                priority,
                format!("must be positive and less than {max}"),
            ));
        }
    }
    let (service, skip) = (&spec["service"], spec["insecureSkipTLSVerify"].flag());
    let bundle = spec["caBundle"].text();
    if !service.is_set() {
        if !bundle.is_empty() {
            errs.push(field::invalid(
                &path.child("caBundle"),
                format!("{} bytes", crate::core::decoded_len(bundle)),
                "local APIServices may not have a caBundle",
            ));
        }
        if skip {
            errs.push(field::invalid(
                &path.child("insecureSkipTLSVerify"),
                true,
                "local APIServices may not have insecureSkipTLSVerify",
            ));
        }
        return errs;
    }
    for key in ["namespace", "name"] {
        require_text(&mut errs, &path.child("service").child(key), service[key].text());
    }
    if skip && !bundle.is_empty() {
        errs.push(field::invalid(
            &path.child("insecureSkipTLSVerify"),
            true,
            "may not be true if caBundle is present",
        ));
    }
    errs
}

impl Strategy for ApiService {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn namespaced(&self) -> bool {
        false
    }

    fn defaults(&self, obj: &mut Value) {
        if let Some(service) = obj.pointer_mut("/spec/service").filter(|service| service.is_set()) {
            default_to(service, "port", 443);
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({});
        if !obj["spec"]["service"].is_set() {
            obj["status"]["conditions"] = json!([{
                "type": "Available",
                "status": "True",
                "lastTransitionTime": obj["metadata"]["creationTimestamp"],
                "reason": "Local",
                "message": "Local APIServices are always available",
            }]);
        }
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["status"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate(obj)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate_generic_object_meta_update(obj, old);
        errs.extend(validate(obj));
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn prepare_status_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["spec"]);
        keep(
            &mut obj["metadata"],
            &old["metadata"],
            &["labels", "annotations", "finalizers", "ownerReferences"],
        );
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate_generic_object_meta_update(obj, old);
        let path = Path::new("status").child("conditions");
        for (i, condition) in obj["status"]["conditions"].items().iter().enumerate() {
            let status = condition["status"].text();
            if !["True", "False", "Unknown"].contains(&status) {
                errs.push(field::not_supported(
                    &path.index(i).child("status"),
                    status,
                    &["True", "False", "Unknown"],
                ));
            }
        }
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let service = &obj["spec"]["service"];
        let target = if service.is_set() {
            format!("{}/{}", service["namespace"].text(), service["name"].text())
        } else {
            "Local".to_owned()
        };
        let available = obj["status"]["conditions"].items().iter().find(|c| c["type"] == "Available");
        let state = match available.map(|c| (c["status"].text(), c["reason"].text())) {
            None => "Unknown".to_owned(),
            Some(("True", _)) => "True".to_owned(),
            Some((status, "")) => status.to_owned(),
            Some((status, reason)) => format!("{status} ({reason})"),
        };
        vec![printer::name(obj), target.into(), state.into(), printer::age(obj, now)]
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_cells, check_create, check_defaults};
    use orlop_json::{Value, json};

    const GROUP: &str = "apiregistration.k8s.io";

    #[test]
    fn validation() {
        let check = |name: &str, spec: Value, expected: &[&str]| {
            check_create(GROUP, "APIService", json!({"metadata": {"name": name}, "spec": spec}), expected);
        };
        let service = json!({"name": "a", "namespace": "b"});
        let good = json!({"group": "a.b", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1});
        check("v1.a.b", good.clone(), &[]);
        check(
            "x",
            good,
            &["metadata.name: Invalid value: \"x\": must be `spec.version+\".\"+spec.group`: \"v1.a.b\""],
        );
        check(
            "v1.a.b",
            json!({"group": "a.b", "version": "v1", "groupPriorityMinimum": 20001, "service": {}, "caBundle": "eA==",
                "insecureSkipTLSVerify": true}),
            &[
                "spec.groupPriorityMinimum: Invalid value: 20001: must be positive and less than 20000",
                "spec.versionPriority: Invalid value: 0: must be positive and less than 1000",
                "spec.service.namespace: Required value",
                "spec.service.name: Required value",
                "spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present",
            ],
        );
        check(
            "v2.",
            json!({"version": "v2", "groupPriorityMinimum": 1, "versionPriority": 1, "service": service}),
            &["spec.group: Required value: only v1 may have an empty group and it better be legacy kube"],
        );
    }

    #[test]
    fn ports_and_rows() {
        check_defaults(
            GROUP,
            "APIService",
            json!({"spec": {"service": {"name": "a"}}}),
            json!({"spec": {"service": {"name": "a", "port": 443}}}),
        );
        check_cells(
            GROUP,
            "APIService",
            json!({"metadata": {"name": "v1.a", "creationTimestamp": "2024-01-01T00:00:00Z"},
                "spec": {"service": {"name": "a", "namespace": "b"}},
                "status": {"conditions": [{"type": "Available", "status": "False", "reason": "X"}]}}),
            json!(["v1.a", "b/a", "False (X)", "24h"]),
        );
    }
}
