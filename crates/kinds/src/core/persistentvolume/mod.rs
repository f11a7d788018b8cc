//! PersistentVolume: a piece of storage of the cluster.

mod validation;

pub(crate) use validation::{validate_access_modes, validate_basic_resource, validate_spec};

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Value, json};

use super::persistentvolumeclaim::{STORAGE_CLASS, short_modes};
use super::pod::defaults::round_quantities;
use super::pod::warnings::deprecated_node_label;
use super::volume_source;
use crate::cursor::{Cursor, child, default_empty_to, default_to, differences, keep, remove, same};
use crate::{Strategy, metadata, printer};
use validation::{renamed_affinity, source_of, validate, validate_mount_options};

/// The strategy of PersistentVolumes.
pub struct PersistentVolume;

const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";

/// Sources that work no more, with what upstream says of each.
const DEPRECATED: [(&str, &str, &str); 6] = [
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

impl Strategy for PersistentVolume {
    fn namespaced(&self) -> bool {
        false
    }

    fn defaults(&self, obj: &mut Value) {
        let spec = child(obj, "spec");
        if let Some(capacity) = spec.get_mut("capacity") {
            round_quantities(capacity);
        }
        volume_source::set_defaults(spec);
        default_empty_to(spec, "persistentVolumeReclaimPolicy", "Retain");
        default_to(spec, "volumeMode", "Filesystem");
        default_empty_to(child(obj, "status"), "phase", "Pending");
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({"phase": "Pending"});
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["status"]);
    }

    fn stamp(&self, obj: &mut Value, old: Option<&Value>, now: &str) {
        let Some(old) = old else {
            obj["status"]["lastPhaseTransitionTime"] = now.into();
            return;
        };
        let (status, was) = (&obj["status"], &old["status"]);
        let untold = status["lastPhaseTransitionTime"].is_null()
            || status["lastPhaseTransitionTime"] == was["lastPhaseTransitionTime"];
        if status["phase"] != was["phase"] && untold {
            obj["status"]["lastPhaseTransitionTime"] = now.into();
        }
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = validate(obj, None);
        validate_mount_options(&mut errs, obj);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate(obj, Some(old));
        validate_mount_options(&mut errs, obj);
        errs.extend(validate(obj, Some(old)));
        let (spec, was) = (&obj["spec"], &old["spec"]);
        let path = Path::new("spec");
        let (mut source, before) = (source_of(spec), source_of(was));
        if before["csi"].is_set() && source["csi"].is_set() && !before["csi"].has("controllerExpandSecretRef")
        {
            // It may be given later.
            remove(&mut source["csi"], "controllerExpandSecretRef");
        }
        if !same(&source, &before) {
            errs.push(field::forbidden(
                &path.child("persistentvolumesource"),
                format!(
                    "spec.persistentvolumesource is immutable after creation\n{}",
                    differences(&before, &source)
                ),
            ));
        }
        let fixed = metadata::validate_immutable;
        errs.extend(fixed(&spec["volumeMode"], &was["volumeMode"], &Path::new("volumeMode")));
        let (affinity, before) = (&spec["nodeAffinity"], &was["nodeAffinity"]);
        if before.is_set() {
            errs.extend(fixed(affinity, &renamed_affinity(before, affinity), &Path::new("nodeAffinity")));
        }
        if was["volumeAttributesClassName"].is_set() && !spec["volumeAttributesClassName"].is_set() {
            errs.push(field::forbidden(
                &path.child("volumeAttributesClassName"),
                "update from non-nil value to nil is forbidden",
            ));
        }
        errs
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        let spec = &obj["spec"];
        for (key, message) in [
            (STORAGE_CLASS, "deprecated since v1.8; use \"storageClassName\" attribute instead"),
            (MOUNT_OPTIONS, "deprecated since v1.31; use \"mountOptions\" attribute instead"),
        ] {
            if obj["metadata"]["annotations"].has(key) {
                out.push(format!("metadata.annotations[{key}]: {message}"));
            }
        }
        if spec["persistentVolumeReclaimPolicy"].text() == "Recycle" {
            out.push(
                "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning."
                    .to_owned(),
            );
        }
        let terms = Path::new("spec").child("nodeAffinity").child("required").child("nodeSelectorTerms");
        for (t, term) in spec["nodeAffinity"]["required"]["nodeSelectorTerms"].items().iter().enumerate() {
            for (e, expression) in term["matchExpressions"].items().iter().enumerate() {
                let key = expression["key"].text();
                if let Some(message) = deprecated_node_label(key) {
                    let at = terms.index(t).child("matchExpressions").index(e).child("key");
                    out.push(format!("{at}: {key} is {message}"));
                }
            }
        }
        for (kind, called, message) in DEPRECATED {
            if spec[kind].is_set() {
                out.push(format!("spec.{called}: {message}"));
            }
        }
        out
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        metadata::validate_object_meta_update(obj, old)
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&obj["spec"], &obj["status"]);
        let deleting = obj["metadata"].has("deletionTimestamp");
        let phase = if deleting { "Terminating" } else { status["phase"].text() };
        let claim = &spec["claimRef"];
        let claim = if claim.is_set() {
            format!("{}/{}", claim["namespace"].text(), claim["name"].text())
        } else {
            String::new()
        };
        let class = match obj["metadata"]["annotations"].get(STORAGE_CLASS) {
            Some(class) => class.text(),
            None => spec["storageClassName"].text(),
        };
        let or_unset = |v: &Value| -> Value { v.as_str().unwrap_or("<unset>").into() };
        vec![
            printer::name(obj),
            spec["capacity"]["storage"].as_str().unwrap_or("0").into(),
            short_modes(&spec["accessModes"]).into(),
            spec["persistentVolumeReclaimPolicy"].text().into(),
            phase.into(),
            claim.into(),
            class.into(),
            or_unset(&spec["volumeAttributesClassName"]),
            status["reason"].text().into(),
            printer::age(obj, now),
            or_unset(&spec["volumeMode"]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_cells, check_create, check_update, check_warnings};

    fn volume(extra: Value) -> Value {
        let mut spec = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "nfs": {"server": "s", "path": "/p"}});
        for (k, v) in extra.as_object().cloned().unwrap_or_default() {
            spec[k] = v;
        }
        json!({"spec": spec})
    }

    #[test]
    fn validation() {
        let check =
            |extra: Value, expected: &[&str]| check_create("", "PersistentVolume", volume(extra), expected);
        check(json!({}), &[]);
        check(
            json!({"capacity": {"storage": "1Gi", "cpu": "1"}}),
            &[
                "spec.capacity: Unsupported value: {\"storage\":\"1Gi\",\"cpu\":\"1\"}: supported values: \"storage\"",
            ],
        );
        check(
            json!({"capacity": {"storage": "0"}}),
            &["spec.capacity[storage]: Invalid value: \"0\": must be greater than zero"],
        );
        check(
            json!({"nfs": null, "csi": {}}),
            &["spec.csi.driver: Required value", "spec.csi.volumeHandle: Required value"],
        );
        check(json!({"nfs": null}), &["spec: Required value: must specify a volume type"]);
        check(
            json!({"hostPath": {"path": "/x"}}),
            &["spec.nfs: Forbidden: may not specify more than 1 volume type"],
        );
        check(
            json!({"nfs": null, "hostPath": {"path": "/a/.."}, "persistentVolumeReclaimPolicy": "Recycle"}),
            &[
                "spec.hostPath.path: Invalid value: \"/a/..\": must not contain '..'",
                "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
            ],
        );
        check(
            json!({"nfs": null, "local": {"path": "/d"}}),
            &["spec.nodeAffinity: Required value: Local volume requires node affinity"],
        );
        check(
            json!({"nfs": null, "local": {"path": "/d"}, "nodeAffinity": {}}),
            &["spec.nodeAffinity.required: Required value: must specify required node constraints"],
        );
        let long = "d".repeat(64);
        check(
            json!({"nfs": null, "csi": {"driver": long}}),
            &[
                "spec.csi.driver: Too long: may not be more than 63 bytes",
                "spec.csi.volumeHandle: Required value",
            ],
        );
        check(
            json!({"nfs": null, "iscsi": {"targetPortal": "p".repeat(63), "iqn": "foo", "lun": 256, "initiatorName": "bar"}}),
            &[
                &format!(
                    "spec.iscsi.targetportal: Invalid value: \"{}\": Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.",
                    "p".repeat(63)
                ),
                "spec.iscsi.iqn: Invalid value: \"foo\": must be valid format",
                "spec.iscsi.lun: Invalid value: 256: must be between 0 and 255, inclusive",
                "spec.iscsi.initiatorname: Invalid value: \"bar\": must be valid format",
            ],
        );
        check(
            json!({"nfs": null, "glusterfs": {"endpoints": "", "path": "", "endpointsNamespace": ""}}),
            &[
                "spec.glusterfs.endpoints: Required value",
                "spec.glusterfs.path: Required value",
                "spec.glusterfs.endpointsNamespace: Invalid value: \"\": if the endpointnamespace is set, it must be a valid namespace name",
            ],
        );
        check(
            json!({"nfs": null, "azureFile": {"secretNamespace": ""}}),
            &[
                "spec.azureFile.secretName: Required value",
                "spec.azureFile.shareName: Required value",
                "spec.azureFile.secretNamespace: Required value",
            ],
        );
        check(
            json!({"accessModes": ["ReadWriteOncePod", "ReadOnlyMany", "Foo"]}),
            &[
                "spec.accessModes: Unsupported value: \"Foo\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
            ],
        );
        check(
            json!({"nodeAffinity": {}}),
            &["spec.nodeAffinity.required: Required value: must specify required node constraints"],
        );
        check(
            json!({"persistentVolumeReclaimPolicy": "Foo", "volumeMode": "Bar", "volumeAttributesClassName": ""}),
            &[
                "spec.persistentVolumeReclaimPolicy: Unsupported value: \"Foo\": supported values: \"Delete\", \"Recycle\", \"Retain\"",
                "spec.volumeMode: Unsupported value: \"Bar\": supported values: \"Block\", \"Filesystem\"",
                "spec.volumeAttributesClassName: Required value: an empty string is disallowed",
                "spec.csi: Required value: has to be specified when using volumeAttributesClassName",
            ],
        );
        check(
            json!({"nfs": null, "csi": {"driver": "d", "volumeHandle": "h", "nodePublishSecretRef": {"name": "N"}}}),
            &[
                "spec.csi.nodePublishSecretRef.name: Invalid value: \"N\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
                "spec.csi.nodePublishSecretRef.namespace: Required value",
            ],
        );
        let mut obj = volume(json!({"nfs": null, "hostPath": {"path": "/x"}}));
        obj["metadata"] = json!({"annotations": {MOUNT_OPTIONS: "ro"}});
        check_create(
            "",
            "PersistentVolume",
            obj,
            &[
                "metadata.annotations.volume.beta.kubernetes.io/mount-options: Forbidden: may not specify mount options for this volume type",
            ],
        );
    }

    #[test]
    fn updates() {
        let update = |new: Value, old: Value, expected: &[&str]| {
            check_update("", "PersistentVolume", volume(new), volume(old), expected);
        };
        update(json!({"capacity": {"storage": "2Gi"}}), json!({}), &[]);
        update(
            json!({"nfs": {"server": "t", "path": "/p"}, "volumeMode": "Block"}),
            json!({}),
            &[
                "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation\n@@ -1 +1 @@\n-nfs: {\"server\":\"s\",\"path\":\"/p\"}\n+nfs: {\"server\":\"t\",\"path\":\"/p\"}\n",
                "volumeMode: Invalid value: \"Block\": field is immutable",
            ],
        );
        let csi = |extra: Value| {
            let mut csi = json!({"driver": "d", "volumeHandle": "h"});
            for (k, v) in extra.as_object().cloned().unwrap_or_default() {
                csi[k] = v;
            }
            json!({"nfs": null, "csi": csi})
        };
        let secret = json!({"controllerExpandSecretRef": {"name": "a", "namespace": "b"}});
        update(csi(secret), csi(json!({})), &[]);
        let zone = |key: &str| json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": key, "operator": "In", "values": ["a"]}]}]}}});
        update(zone("topology.kubernetes.io/zone"), zone("failure-domain.beta.kubernetes.io/zone"), &[]);
        update(
            zone("other"),
            zone("topology.kubernetes.io/zone"),
            &[
                "nodeAffinity: Invalid value: {\"required\":{\"nodeSelectorTerms\":[{\"matchExpressions\":[{\"key\":\"other\",\"operator\":\"In\",\"values\":[\"a\"]}]}]}}: field is immutable",
            ],
        );
    }

    #[test]
    fn phase_times() {
        let mut obj = json!({"status": {"phase": "Pending"}});
        PersistentVolume.stamp(&mut obj, None, "t0");
        assert_eq!(obj["status"]["lastPhaseTransitionTime"], "t0");
        for (status, expected) in [
            (json!({"phase": "Bound"}), json!("t1")),
            (json!({"phase": "Bound", "lastPhaseTransitionTime": "t0"}), json!("t1")),
            (json!({"phase": "Bound", "lastPhaseTransitionTime": "mine"}), json!("mine")),
            (json!({"phase": "Pending"}), json!(null)),
        ] {
            let mut new = json!({"status": status});
            PersistentVolume.stamp(&mut new, Some(&obj), "t1");
            assert_eq!(new["status"]["lastPhaseTransitionTime"], expected, "{new}");
        }
    }

    #[test]
    fn warnings_and_rows() {
        let mut obj = volume(json!({"persistentVolumeReclaimPolicy": "Recycle", "rbd": {}}));
        obj["metadata"] = json!({"annotations": {STORAGE_CLASS: "x"}});
        check_warnings(
            "",
            "PersistentVolume",
            obj,
            None,
            &[
                "metadata.annotations[volume.beta.kubernetes.io/storage-class]: deprecated since v1.8; use \"storageClassName\" attribute instead",
                "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.",
                "spec.rbd: deprecated in v1.28, non-functional in v1.31+",
            ],
        );
        check_cells(
            "",
            "PersistentVolume",
            json!({"metadata": {"name": "v", "creationTimestamp": "2024-01-01T00:00:00Z"},
                "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "persistentVolumeReclaimPolicy": "Retain",
                    "claimRef": {"namespace": "n", "name": "c"}, "storageClassName": "s", "volumeMode": "Filesystem"},
                "status": {"phase": "Bound"}}),
            json!(["v", "1Gi", "RWX", "Retain", "Bound", "n/c", "s", "<unset>", "", "24h", "Filesystem"]),
        );
    }
}
