//! What a persistent volume must be: upstream's `ValidatePersistentVolumeSpec`, and what its update may change.

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Value, json};

use super::MOUNT_OPTIONS;
use crate::NameRule;
use crate::core::persistentvolumeclaim::MODE_NAMES;
use crate::core::pod::resources::quantity;
use crate::core::pod::{node_label_values, validate_node_selector_with};
use crate::core::volume_source::{self, Owner};
use crate::cursor::Cursor;
use crate::metadata;
use crate::validate::{csi_driver_name, dns_label, dns_subdomain, object_name, one_of, require_text};

/// Sources in the order upstream looks at them, with the name their errors go by and the fields that must not be empty.
const SOURCES: [(&str, &str, &[&str]); 22] = [
    ("hostPath", "hostPath", &["path"]),
    ("gcePersistentDisk", "persistentDisk", &["pdName"]),
    ("awsElasticBlockStore", "awsElasticBlockStore", &["volumeID"]),
    ("glusterfs", "glusterfs", &["endpoints", "path"]),
    ("flocker", "flocker", &[]),
    ("nfs", "nfs", &["server", "path"]),
    ("rbd", "rbd", &["monitors", "image"]),
    ("quobyte", "quobyte", &[]),
    ("cephfs", "cephfs", &["monitors"]),
    ("iscsi", "iscsi", &["targetPortal", "iqn"]),
    ("cinder", "cinder", &["volumeID"]),
    ("fc", "fc", &[]),
    ("flexVolume", "flexVolume", &["driver"]),
    ("azureFile", "azureFile", &["secretName", "shareName"]),
    ("vsphereVolume", "vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", "photonPersistentDisk", &["pdID"]),
    ("portworxVolume", "portworxVolume", &["volumeID"]),
    ("azureDisk", "azureDisk", &["diskName", "diskURI"]),
    ("scaleIO", "scaleIO", &["gateway", "system", "volumeName"]),
    ("local", "local", &["path"]),
    ("storageos", "storageos", &["volumeName"]),
    ("csi", "csi", &[]),
];

/// Sources that take mount options, which once were an annotation.
const MOUNTABLE: [&str; 13] = [
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "nfs",
    "rbd",
    "quobyte",
    "iscsi",
    "cinder",
    "cephfs",
    "azureFile",
    "vsphereVolume",
    "azureDisk",
    "photonPersistentDisk",
];

/// A volume's spec: of a persistent volume of this name, or inside of an attachment (`inline`), where it says less.
pub(crate) fn validate_spec(
    errs: &mut ErrorList,
    path: &Path,
    spec: &Value,
    name: &str,
    inline: bool,
    old: Option<&Value>,
) {
    const NOT_INLINE: &str = "may not be specified in the context of inline volumes";
    let at = |key: &str| path.child(key);
    if inline {
        for key in ["claimRef", "capacity"] {
            if !spec[key].is_empty() {
                errs.push(field::forbidden(&at(key), NOT_INLINE));
            }
        }
        if !spec["csi"].is_set() {
            errs.push(field::required(&at("csi"), "has to be specified in the context of inline volumes"));
        }
    }
    validate_access_modes(errs, &at("accessModes"), &spec["accessModes"], "");
    if !inline {
        validate_capacity(errs, &at("capacity"), &spec["capacity"]);
    }
    let reclaim = spec["persistentVolumeReclaimPolicy"].text();
    let reclaim_path = at("persistentVolumeReclaimPolicy");
    if inline && !matches!(reclaim, "" | "Retain") {
        errs.push(field::forbidden(&reclaim_path, "may only be Retain in the context of inline volumes"));
    } else if !matches!(reclaim, "" | "Delete" | "Recycle" | "Retain") {
        errs.push(field::not_supported(&reclaim_path, reclaim, &["Delete", "Recycle", "Retain"]));
    }
    let affinity = &spec["nodeAffinity"];
    if affinity.is_set() && inline {
        errs.push(field::forbidden(&at("nodeAffinity"), NOT_INLINE));
    } else if affinity.is_set() {
        if affinity["required"].is_set() {
            let before = old.map(|old| old["nodeAffinity"]["required"]["nodeSelectorTerms"].items());
            let values = node_label_values(before.unwrap_or_default());
            let at = at("nodeAffinity").child("required");
            validate_node_selector_with(errs, &at, &affinity["required"], values);
        } else {
            errs.push(field::required(
                &at("nodeAffinity").child("required"),
                "must specify required node constraints",
            ));
        }
    }
    validate_sources(errs, path, spec, name, inline);
    if spec["hostPath"].is_set() && is_root(spec["hostPath"]["path"].text()) && reclaim == "Recycle" {
        errs.push(field::forbidden(&reclaim_path, "may not be 'recycle' for a hostPath mount of '/'"));
    }
    let class = spec["storageClassName"].text();
    if !class.is_empty() && inline {
        errs.push(field::forbidden(&at("storageClassName"), NOT_INLINE));
    } else if !class.is_empty() {
        object_name(errs, &at("storageClassName"), class, NameRule::DnsSubdomain);
    }
    let mode = &spec["volumeMode"];
    if mode.is_set() && inline && mode.text() != "Filesystem" {
        errs.push(field::forbidden(
            &at("volumeMode"),
            "may not specify volumeMode other than Filesystem in the context of inline volumes",
        ));
    } else if !inline {
        one_of(errs, &at("volumeMode"), mode, &["Block", "Filesystem"]);
    }
    let class = &spec["volumeAttributesClassName"];
    if class.is_set() {
        let path = at("volumeAttributesClassName");
        if class.text().is_empty() {
            errs.push(field::required(&path, "an empty string is disallowed"));
        } else {
            object_name(errs, &path, class.text(), NameRule::DnsSubdomain);
        }
        if !spec["csi"].is_set() {
            errs.push(field::required(
                &at("csi"),
                "has to be specified when using volumeAttributesClassName",
            ));
        }
    }
}

/// Access modes of a volume or a claim; `missing` explains that there must be one.
pub(crate) fn validate_access_modes(errs: &mut ErrorList, path: &Path, modes: &Value, missing: &str) {
    let modes = modes.texts();
    if modes.is_empty() {
        errs.push(field::required(path, missing));
    }
    for mode in &modes {
        if !MODE_NAMES.contains(mode) {
            errs.push(field::not_supported(path, *mode, &MODE_NAMES));
        }
    }
    let once = |mode: &&&str| **mode == "ReadWriteOncePod";
    let others = modes.iter().any(|mode| !once(&mode) && MODE_NAMES.contains(mode));
    if modes.iter().any(|mode| once(&mode)) && others {
        errs.push(field::forbidden(path, "may not use ReadWriteOncePod with other access modes"));
    }
}

fn validate_capacity(errs: &mut ErrorList, path: &Path, capacity: &Value) {
    if capacity.is_empty() {
        errs.push(field::required(path, ""));
    }
    if !capacity.has("storage") || capacity.entries().count() > 1 {
        errs.push(field::not_supported(path, capacity.clone(), &["storage"]));
    }
    for (name, value) in capacity.entries() {
        let at = path.key(name);
        validate_basic_resource(errs, &at, value);
        if quantity(value).sign() <= 0 {
            errs.push(field::invalid(&at, value.text(), "must be greater than zero"));
        }
    }
}

/// A quantity below zero is none.
pub(crate) fn validate_basic_resource(errs: &mut ErrorList, path: &Path, value: &Value) {
    if quantity(value).value() < 0 {
        errs.push(field::invalid(path, value.text(), "must be a valid resource quantity"));
    }
}

/// Exactly one source, which has what it needs.
fn validate_sources(errs: &mut ErrorList, path: &Path, spec: &Value, name: &str, inline: bool) {
    let mut found = false;
    for (kind, called, required) in SOURCES {
        let source = &spec[kind];
        if !source.is_set() {
            continue;
        }
        // Upstream lets a flexVolume come after another source.
        if found && kind != "flexVolume" {
            let called = if kind == "cephfs" { "cephFS" } else { kind };
            errs.push(field::forbidden(&path.child(called), "may not specify more than 1 volume type"));
            continue;
        }
        found = true;
        let at = path.child(called);
        if kind == "iscsi" && volume_source::initiator_is_too_long(source, name) {
            errs.push(field::invalid(
                &at.child("targetportal"),
                source["targetPortal"].text(),
                volume_source::INITIATOR_TOO_LONG,
            ));
        }
        let before = errs.len();
        for key in required {
            if source[*key].is_empty() {
                errs.push(field::required(&at.child(key), ""));
            }
        }
        let complete = errs.len() == before;
        volume_source::validate(errs, &at, kind, source, complete, Owner::PersistentVolume);
        match kind {
            "csi" => validate_csi(errs, &at, source),
            "glusterfs" => validate_endpoints_namespace(errs, &at, &source["endpointsNamespace"]),
            "azureFile" if source["secretNamespace"].is_set() => {
                require_text(errs, &at.child("secretNamespace"), source["secretNamespace"].text());
            }
            "local" if inline || !spec["nodeAffinity"].is_set() => {
                errs.push(field::required(
                    &path.child("nodeAffinity"),
                    "Local volume requires node affinity",
                ));
            }
            _ => {}
        }
    }
    if !found {
        errs.push(field::required(path, "must specify a volume type"));
    }
}

fn validate_endpoints_namespace(errs: &mut ErrorList, path: &Path, namespace: &Value) {
    if !namespace.is_set() {
        return;
    }
    let (at, namespace) = (path.child("endpointsNamespace"), namespace.text());
    if namespace.is_empty() {
        errs.push(field::invalid(
            &at,
            namespace,
            "if the endpointnamespace is set, it must be a valid namespace name",
        ));
    } else {
        dns_label(errs, &at, namespace);
    }
}

fn validate_csi(errs: &mut ErrorList, path: &Path, csi: &Value) {
    csi_driver_name(errs, &path.child("driver"), csi["driver"].text());
    require_text(errs, &path.child("volumeHandle"), csi["volumeHandle"].text());
    for key in [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ] {
        let (secret, at) = (&csi[key], path.child(key));
        if !secret.is_set() {
            continue;
        }
        let (name, namespace) = (secret["name"].text(), secret["namespace"].text());
        if name.is_empty() {
            errs.push(field::required(&at.child("name"), ""));
        } else {
            dns_subdomain(errs, &at.child("name"), name);
        }
        if namespace.is_empty() {
            errs.push(field::required(&at.child("namespace"), ""));
        } else {
            dns_label(errs, &at.child("namespace"), namespace);
        }
    }
}

/// Whether a path is the root after Go's `path.Clean`.
fn is_root(path: &str) -> bool {
    let mut depth = 0usize;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => depth = depth.saturating_sub(1),
            _ => depth += 1,
        }
    }
    path.starts_with('/') && depth == 0
}

pub(super) fn validate(obj: &Value, old: Option<&Value>) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, false, NameRule::DnsSubdomain);
    let name = obj["metadata"]["name"].text();
    let before = old.map(|old| &old["spec"]);
    validate_spec(&mut errs, &Path::new("spec"), &obj["spec"], name, false, before);
    errs
}

/// Mount options as an annotation are for kinds of storage that are mounted.
pub(super) fn validate_mount_options(errs: &mut ErrorList, obj: &Value) {
    let mountable = MOUNTABLE.iter().any(|kind| obj["spec"][*kind].is_set());
    if !mountable && obj["metadata"]["annotations"].has(MOUNT_OPTIONS) {
        errs.push(field::forbidden(
            &Path::new("metadata").child("annotations").child(MOUNT_OPTIONS),
            "may not specify mount options for this volume type",
        ));
    }
}

/// The source of a volume, and nothing else of its spec.
pub(super) fn source_of(spec: &Value) -> Value {
    let mut out = json!({});
    for (kind, ..) in SOURCES {
        if spec[kind].is_set() {
            out[kind] = spec[kind].clone();
        }
    }
    out
}

/// The old affinity with the old names of labels replaced where the new one uses the names of today.
pub(super) fn renamed_affinity(old: &Value, new: &Value) -> Value {
    const TODAY: [(&str, &str); 5] = [
        ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
        ("beta.kubernetes.io/os", "kubernetes.io/os"),
        ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
        ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
        ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
    ];
    let mut out = old.clone();
    let terms = out.pointer_mut("/required/nodeSelectorTerms").and_then(Value::as_array_mut);
    for (t, term) in terms.into_iter().flatten().enumerate() {
        let wanted = &new["required"]["nodeSelectorTerms"][t]["matchExpressions"];
        let expressions = term.get_mut("matchExpressions").and_then(Value::as_array_mut);
        for (e, expression) in expressions.into_iter().flatten().enumerate() {
            let today = TODAY.iter().find(|(before, _)| *before == expression["key"].text());
            if let Some((_, today)) = today
                && wanted[e]["key"].text() == *today
            {
                expression["key"] = (*today).into();
            }
        }
    }
    out
}
