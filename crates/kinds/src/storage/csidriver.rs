//! CSIDriver: what a CSI volume driver can do and wants.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Value, json};

use crate::cursor::{Cursor, child, default_to, same, set_generation};
use crate::metadata::validate_immutable;
use crate::validate::one_of;
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of CSIDrivers.
pub struct CsiDriver;

/// What an update may change, and what another generation comes from.
const MUTABLE: [&str; 5] = [
    "tokenRequests",
    "requiresRepublish",
    "seLinuxMount",
    "nodeAllocatableUpdatePeriodSeconds",
    "serviceAccountTokenInSecrets",
];
/// Bounds of a token's life, in seconds.
const TOKEN_MIN: i64 = 600;
const TOKEN_MAX: i64 = 1 << 32;

fn validate_spec(errs: &mut ErrorList, spec: &Value) {
    let path = Path::new("spec");
    // The first of these names is not quite the field's, upstream too.
    for (key, called) in [
        ("attachRequired", "attachedRequired"),
        ("podInfoOnMount", "podInfoOnMount"),
        ("storageCapacity", "storageCapacity"),
    ] {
        if !spec[key].is_set() {
            errs.push(field::required(&path.child(called), ""));
        }
    }
    one_of(
        errs,
        &path.child("fsGroupPolicy"),
        &spec["fsGroupPolicy"],
        &["File", "None", "ReadWriteOnceWithFSType"],
    );
    validate_token_requests(errs, &path.child("tokenRequests"), &spec["tokenRequests"]);
    for mode in spec["volumeLifecycleModes"].texts() {
        if !matches!(mode, "Persistent" | "Ephemeral") {
            let at = path.child("volumeLifecycleModes");
            errs.push(field::not_supported(&at, mode, &["Persistent", "Ephemeral"]));
        }
    }
    if !spec["seLinuxMount"].is_set() {
        errs.push(field::required(&path.child("seLinuxMount"), ""));
    }
    let period = &spec["nodeAllocatableUpdatePeriodSeconds"];
    if period.is_set() && period.int() < 10 {
        errs.push(field::invalid(
            &path.child("nodeAllocatableUpdatePeriodSeconds"),
            period.int(),
            "must be greater than or equal to 10 seconds",
        ));
    }
    let in_secrets = &spec["serviceAccountTokenInSecrets"];
    if in_secrets.is_set() && spec["tokenRequests"].is_empty() {
        errs.push(field::invalid(
            &path.child("serviceAccountTokenInSecrets"),
            in_secrets.flag(),
            "serviceAccountTokenInSecrets is set but no tokenRequests are specified",
        ));
    }
}

fn validate_token_requests(errs: &mut ErrorList, path: &Path, requests: &Value) {
    let mut audiences: Vec<&str> = Vec::new();
    for (i, request) in requests.items().iter().enumerate() {
        let path = path.index(i);
        let audience = request["audience"].text();
        if audiences.contains(&audience) {
            errs.push(field::duplicate(&path.child("audience"), audience));
            continue;
        }
        audiences.push(audience);
        let seconds = &request["expirationSeconds"];
        let mut bad =
            |why: &str| errs.push(field::invalid(&path.child("expirationSeconds"), seconds.int(), why));
        if seconds.is_set() && seconds.int() < TOKEN_MIN {
            bad("may not specify a duration less than 10 minutes");
        }
        if seconds.int() > TOKEN_MAX {
            bad("may not specify a duration larger than 2^32 seconds");
        }
    }
}

impl Strategy for CsiDriver {
    fn namespaced(&self) -> bool {
        false
    }

    fn defaults(&self, obj: &mut Value) {
        let spec = child(obj, "spec");
        default_to(spec, "attachRequired", true);
        for key in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
            default_to(spec, key, false);
        }
        default_to(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        if spec["volumeLifecycleModes"].is_empty() {
            spec["volumeLifecycleModes"] = json!(["Persistent"]);
        }
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        if MUTABLE.iter().any(|key| !same(&obj["spec"][*key], &old["spec"][*key])) {
            set_generation(obj, old["metadata"]["generation"].int() + 1);
        }
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, false, NameRule::DnsSubdomain);
        validate_spec(&mut errs, &obj["spec"]);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        let (spec, was) = (&obj["spec"], &old["spec"]);
        validate_spec(&mut errs, spec);
        let path = Path::new("spec");
        for (key, called) in
            [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")]
        {
            errs.extend(validate_immutable(&spec[key], &was[key], &path.child(called)));
        }
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &obj["spec"];
        let modes = spec["volumeLifecycleModes"].texts().join(",");
        let audiences: Vec<&str> =
            spec["tokenRequests"].items().iter().map(|r| r["audience"].text()).collect();
        let audiences =
            if spec["tokenRequests"].is_set() { audiences.join(",") } else { "<unset>".to_owned() };
        vec![
            printer::name(obj),
            spec["attachRequired"].as_bool().unwrap_or(true).into(),
            spec["podInfoOnMount"].flag().into(),
            spec["storageCapacity"].flag().into(),
            audiences.into(),
            spec["requiresRepublish"].flag().into(),
            if modes.is_empty() { "<none>".into() } else { modes.into() },
            printer::age(obj, now),
        ]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_cells, check_create, check_defaults, check_update};

    #[test]
    fn defaults() {
        check_defaults(
            "storage.k8s.io",
            "CSIDriver",
            json!({}),
            json!({"spec": {"attachRequired": true, "podInfoOnMount": false, "storageCapacity": false,
                "requiresRepublish": false, "seLinuxMount": false, "fsGroupPolicy": "ReadWriteOnceWithFSType",
                "volumeLifecycleModes": ["Persistent"]}}),
        );
    }

    #[test]
    fn validation() {
        let check = |spec: Value, expected: &[&str]| {
            check_create("storage.k8s.io", "CSIDriver", json!({"spec": spec}), expected);
        };
        check(json!({}), &[]);
        check(
            json!({"fsGroupPolicy": "Foo", "volumeLifecycleModes": ["Bar"], "nodeAllocatableUpdatePeriodSeconds": 9,
                "serviceAccountTokenInSecrets": true}),
            &[
                "spec.fsGroupPolicy: Unsupported value: \"Foo\": supported values: \"File\", \"None\", \"ReadWriteOnceWithFSType\"",
                "spec.volumeLifecycleModes: Unsupported value: \"Bar\": supported values: \"Persistent\", \"Ephemeral\"",
                "spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 9: must be greater than or equal to 10 seconds",
                "spec.serviceAccountTokenInSecrets: Invalid value: true: serviceAccountTokenInSecrets is set but no tokenRequests are specified",
            ],
        );
        check(
            json!({"tokenRequests": [{"audience": "a", "expirationSeconds": 5}, {"audience": "a"}, {"audience": "b", "expirationSeconds": 1i64 << 33}]}),
            &[
                "spec.tokenRequests[0].expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
                "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
                "spec.tokenRequests[2].expirationSeconds: Invalid value: 8589934592: may not specify a duration larger than 2^32 seconds",
            ],
        );
        check_update(
            "storage.k8s.io",
            "CSIDriver",
            json!({"spec": {"attachRequired": true, "podInfoOnMount": true}}),
            json!({"spec": {"attachRequired": false}}),
            &["spec.attachedRequired: Invalid value: true: field is immutable"],
        );
    }

    #[test]
    fn rows() {
        check_cells(
            "storage.k8s.io",
            "CSIDriver",
            json!({"metadata": {"name": "d", "creationTimestamp": "2024-01-01T00:00:00Z"},
                "spec": {"attachRequired": false, "tokenRequests": [{"audience": "a"}, {"audience": "b"}], "volumeLifecycleModes": ["Persistent", "Ephemeral"]}}),
            json!(["d", false, false, false, "a,b", false, "Persistent,Ephemeral", "24h"]),
        );
    }
}
