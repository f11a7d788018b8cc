//! VolumeAttachment: the wish that a volume be attached to a node, and how far that is.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Value, json};

use crate::core::persistentvolume::validate_spec as validate_volume;
use crate::core::pod::defaults::round_quantities;
use crate::core::volume_source;
use crate::cursor::{Cursor, child, keep, keep_metadata_for_status};
use crate::validate::{csi_driver_name, object_name, require_text};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of VolumeAttachments.
pub struct VolumeAttachment;

/// Metadata of an attachment, and the message of an error, in bytes.
const MAX_METADATA: usize = 256 * 1024;
const MAX_MESSAGE: usize = 1024;

fn validate(obj: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, false, NameRule::DnsSubdomain);
    let (spec, path) = (&obj["spec"], Path::new("spec"));
    require_text(&mut errs, &path.child("attacher"), spec["attacher"].text());
    validate_source(&mut errs, &path.child("source"), &spec["source"]);
    object_name(&mut errs, &path.child("nodeName"), spec["nodeName"].text(), NameRule::DnsSubdomain);
    validate_status(&mut errs, &obj["status"]);
    errs
}

fn validate_source(errs: &mut ErrorList, path: &Path, source: &Value) {
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let (inline, name) = (&source["inlineVolumeSpec"], &source["persistentVolumeName"]);
    match (inline.is_set(), name.is_set()) {
        (false, false) => errs.push(field::required(path, ONE)),
        (true, true) => errs.push(field::forbidden(path, ONE)),
        (false, true) => {
            if name.text().is_empty() {
                errs.push(field::required(
                    &path.child("persistentVolumeName"),
                    "must specify non empty persistentVolumeName",
                ));
            }
        }
        (true, false) => validate_volume(errs, &path.child("inlineVolumeSpec"), inline, "", true, None),
    }
}

fn validate_status(errs: &mut ErrorList, status: &Value) {
    let path = Path::new("status");
    let size: usize =
        status["attachmentMetadata"].entries().map(|(key, value)| key.len() + value.text().len()).sum();
    if size > MAX_METADATA {
        errs.push(field::too_long(&path.child("attachmentMetadata"), MAX_METADATA));
    }
    for key in ["attachError", "detachError"] {
        let (error, at) = (&status[key], path.child(key));
        if error["message"].text().len() > MAX_MESSAGE {
            // The number in the message is upstream's.
            errs.push(field::too_long(&at.child("message"), MAX_METADATA));
        }
        if error["errorCode"].int() < 0 {
            errs.push(field::invalid(
                &at.child("errorCode"),
                error["errorCode"].int(),
                "must be between 0 and 2147483647, inclusive",
            ));
        }
    }
}

impl Strategy for VolumeAttachment {
    fn namespaced(&self) -> bool {
        false
    }

    fn defaults(&self, obj: &mut Value) {
        if let Some(inline) = obj.pointer_mut("/spec/source/inlineVolumeSpec").filter(|s| s.is_set()) {
            if let Some(capacity) = inline.get_mut("capacity") {
                round_quantities(capacity);
            }
            volume_source::set_defaults(inline);
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({"attached": false});
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["status"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = validate(obj);
        let spec = &obj["spec"];
        csi_driver_name(&mut errs, &Path::new("spec").child("attacher"), spec["attacher"].text());
        let name = &spec["source"]["persistentVolumeName"];
        if name.is_set() {
            let at = Path::new("spec").child("source").child("persistentVolumeName");
            object_name(&mut errs, &at, name.text(), NameRule::DnsSubdomain);
        }
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate(obj);
        errs.extend(metadata::validate_immutable(&obj["spec"], &old["spec"], &Path::new("spec")));
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn prepare_status_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["spec"]);
        keep_metadata_for_status(obj, old);
        child(obj, "status");
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        self.validate_update(obj, old)
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &obj["spec"];
        vec![
            printer::name(obj),
            spec["attacher"].text().into(),
            spec["source"]["persistentVolumeName"].text().into(),
            spec["nodeName"].text().into(),
            obj["status"]["attached"].flag().into(),
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
    use crate::testing::{check_cells, check_create, check_status, check_update};

    fn attachment(source: Value) -> Value {
        json!({"spec": {"attacher": "a", "nodeName": "n", "source": source}})
    }

    #[test]
    fn validation() {
        let check = |source: Value, expected: &[&str]| {
            check_create("storage.k8s.io", "VolumeAttachment", attachment(source), expected);
        };
        check(json!({"persistentVolumeName": "p"}), &[]);
        check(
            json!({}),
            &[
                "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            ],
        );
        let csi = json!({"driver": "d", "volumeHandle": "h"});
        check(json!({"inlineVolumeSpec": {"accessModes": ["ReadWriteOnce"], "csi": csi}}), &[]);
        check(
            json!({"inlineVolumeSpec": {"accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}, "storageClassName": "s",
                "capacity": {"storage": "1Gi"}, "persistentVolumeReclaimPolicy": "Delete"}}),
            &[
                "spec.source.inlineVolumeSpec.capacity: Forbidden: may not be specified in the context of inline volumes",
                "spec.source.inlineVolumeSpec.csi: Required value: has to be specified in the context of inline volumes",
                "spec.source.inlineVolumeSpec.persistentVolumeReclaimPolicy: Forbidden: may only be Retain in the context of inline volumes",
                "spec.source.inlineVolumeSpec.storageClassName: Forbidden: may not be specified in the context of inline volumes",
            ],
        );
    }

    #[test]
    fn updates() {
        let old = attachment(json!({"persistentVolumeName": "p"}));
        let mut new = old.clone();
        new["spec"]["nodeName"] = "m".into();
        check_update(
            "storage.k8s.io",
            "VolumeAttachment",
            new,
            old.clone(),
            &[
                "spec: Invalid value: {\"attacher\":\"a\",\"nodeName\":\"m\",\"source\":{\"persistentVolumeName\":\"p\"}}: field is immutable",
            ],
        );
        check_status(
            "storage.k8s.io",
            "VolumeAttachment",
            json!({"attached": true, "attachError": {"errorCode": -1, "message": "x".repeat(1025)}}),
            old,
            &[
                "status.attachError.message: Too long: may not be more than 262144 bytes",
                "status.attachError.errorCode: Invalid value: -1: must be between 0 and 2147483647, inclusive",
            ],
        );
    }

    #[test]
    fn rows() {
        let mut obj = attachment(json!({"persistentVolumeName": "p"}));
        obj["metadata"] = json!({"name": "v", "creationTimestamp": "2024-01-01T00:00:00Z"});
        check_cells("storage.k8s.io", "VolumeAttachment", obj, json!(["v", "a", "p", "n", false, "24h"]));
    }
}
