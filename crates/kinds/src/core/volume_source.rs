//! Kinds of storage that both pods and persistent volumes can name, and what each must say. Where the two differ, a
//! persistent volume names secrets together with their namespace.

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use crate::cursor::{Cursor, default_empty_to, default_to};
use crate::validate::{dns_label, path_no_backsteps};

/// Who has the source.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A volume of a pod.
    Pod,
    /// A persistent volume.
    PersistentVolume,
}

const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const REGISTRY: &str = "must be a host:port pair or multiple pairs separated by commas";
const MANAGED_DISK: &str =
    "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
const BLOB_DISK: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";

const MALFORMED: &str = "must be valid format";

/// Defaults of the sources of a volume, or of a persistent volume's spec.
pub(crate) fn set_defaults(volume: &mut Value) {
    let mut on = |kind: &str, apply: &dyn Fn(&mut Value)| {
        if let Some(source) = volume.get_mut(kind).filter(|s| s.is_set()) {
            apply(source);
        }
    };
    on("hostPath", &|s| default_to(s, "type", ""));
    on("iscsi", &|s| default_empty_to(s, "iscsiInterface", "default"));
    on("rbd", &|s| {
        default_empty_to(s, "pool", "rbd");
        default_empty_to(s, "user", "admin");
        default_empty_to(s, "keyring", "/etc/ceph/keyring");
    });
    on("azureDisk", &|s| {
        default_to(s, "cachingMode", "ReadWrite");
        default_to(s, "fsType", "ext4");
        default_to(s, "readOnly", false);
        default_to(s, "kind", "Shared");
    });
    on("scaleIO", &|s| {
        default_empty_to(s, "storageMode", "ThinProvisioned");
        default_empty_to(s, "fsType", "xfs");
    });
}

/// What a source must be beyond having its required fields; `complete` says that it has them.
pub(crate) fn validate(
    errs: &mut ErrorList,
    path: &Path,
    kind: &str,
    source: &Value,
    complete: bool,
    owner: Owner,
) {
    match kind {
        "hostPath" if complete => {
            path_no_backsteps(errs, &path.child("path"), source["path"].text());
            let kind = source["type"].text();
            if !HOST_PATH_TYPES.contains(&kind) {
                errs.push(field::not_supported(&path.child("type"), kind, &HOST_PATH_TYPES));
            }
        }
        "local" if complete => path_no_backsteps(errs, &path.child("path"), source["path"].text()),
        "nfs" if !source["path"].text().starts_with('/') => {
            errs.push(field::invalid(&path.child("path"), source["path"].text(), "must be an absolute path"));
        }
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            let partition = source["partition"].int();
            if !(0..=255).contains(&partition) {
                errs.push(field::invalid(
                    &path.child("partition"),
                    partition,
                    "must be between 1 and 255, inclusive",
                ));
            }
        }
        "iscsi" => validate_iscsi(errs, path, source, owner),
        "fc" => validate_fc(errs, path, source),
        "flocker" => validate_flocker(errs, path, source),
        "quobyte" => validate_quobyte(errs, path, source),
        "cinder" => validate_secret(errs, &path.child("secretRef"), &source["secretRef"], owner),
        "storageos" => {
            for key in ["volumeName", "volumeNamespace"] {
                if !source[key].text().is_empty() {
                    dns_label(errs, &path.child(key), source[key].text());
                }
            }
            validate_secret(errs, &path.child("secretRef"), &source["secretRef"], owner);
        }
        "flexVolume" => validate_flex_options(errs, &path.child("options"), &source["options"]),
        "azureDisk" => validate_azure_disk(errs, path, source),
        _ => {}
    }
}

/// A secret by name, in a persistent volume by namespace too.
fn validate_secret(errs: &mut ErrorList, path: &Path, secret: &Value, owner: Owner) {
    if !secret.is_set() {
        return;
    }
    let keys: &[&str] = if owner == Owner::PersistentVolume { &["name", "namespace"] } else { &["name"] };
    for key in keys {
        if secret[*key].text().is_empty() {
            errs.push(field::required(&path.child(key), ""));
        }
    }
}

/// `iqn.2001-04.com.example:storage`, `eui.` and 16, or `naa.` and 32 letters and digits; what is wrong if not.
fn initiator_name(name: &str) -> Result<(), &'static str> {
    let alphanumeric = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric());
    // The expressions' dot stands for any character.
    let tail = name.get(4..).unwrap_or_default();
    let good = match name.get(..3) {
        Some("iqn") => is_iqn(name),
        Some("eui") => tail.len() == 16 && alphanumeric(tail),
        Some("naa") => tail.len() == 32 && alphanumeric(tail),
        _ => return Err("must be valid format starting with iqn, eui, or naa"),
    };
    if good { Ok(()) } else { Err(MALFORMED) }
}

fn is_iqn(name: &str) -> bool {
    let Some((authority, unique)) = name.strip_prefix("iqn.").and_then(|rest| rest.split_once(':')) else {
        return false;
    };
    let bytes = authority.as_bytes();
    bytes.len() > 8
        && bytes[..4].iter().all(u8::is_ascii_digit)
        && bytes[4] == b'-'
        && bytes[5..7].iter().all(u8::is_ascii_digit)
        && bytes[7] == b'.'
        && bytes[8..].iter().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(b))
        && !unique.is_empty()
        && !unique.contains([',', ';', '*', '&', '$', '|', ' ', '\t', '\n', '\r', '\u{c}'])
}

fn validate_initiator(errs: &mut ErrorList, path: &Path, name: &str, owner: Owner) {
    if let Err(why) = initiator_name(name) {
        // A persistent volume is told less.
        let why = if owner == Owner::PersistentVolume { MALFORMED } else { why };
        errs.push(field::invalid(path, name, why));
    }
}

/// What upstream says of a name that is too long together with the portal, for a reason of iSCSI's.
pub(crate) const INITIATOR_TOO_LONG: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";

/// Whether the volume's name and the portal are too long together, which counts where there is an initiator's name.
pub(crate) fn initiator_is_too_long(source: &Value, volume: &str) -> bool {
    source["initiatorName"].is_set() && volume.len() + 1 + source["targetPortal"].text().len() > 64
}

fn validate_iscsi(errs: &mut ErrorList, path: &Path, source: &Value, owner: Owner) {
    if !source["iqn"].text().is_empty() {
        validate_initiator(errs, &path.child("iqn"), source["iqn"].text(), owner);
    }
    validate_lun(errs, path, source["lun"].int());
    let secret = &source["secretRef"];
    let wanted = source["chapAuthDiscovery"].flag() || source["chapAuthSession"].flag();
    if wanted && !secret.is_set() {
        errs.push(field::required(&path.child("secretRef"), ""));
    }
    if owner == Owner::PersistentVolume && secret.is_set() && secret["name"].text().is_empty() {
        errs.push(field::required(&path.child("secretRef").child("name"), ""));
    }
    let initiator = &source["initiatorName"];
    if initiator.is_set() {
        validate_initiator(errs, &path.child("initiatorname"), initiator.text(), owner);
    }
}

fn validate_lun(errs: &mut ErrorList, path: &Path, lun: i64) {
    if !(0..=255).contains(&lun) {
        errs.push(field::invalid(&path.child("lun"), lun, "must be between 0 and 255, inclusive"));
    }
}

fn validate_fc(errs: &mut ErrorList, path: &Path, source: &Value) {
    let (wwns, wwids) = (source["targetWWNs"].items(), source["wwids"].items());
    let at = path.child("targetWWNs");
    if wwns.is_empty() && wwids.is_empty() {
        errs.push(field::required(&at, "must specify either targetWWNs or wwids, but not both"));
    }
    if !wwns.is_empty() && !wwids.is_empty() {
        errs.push(field::invalid(
            &at,
            source["targetWWNs"].clone(),
            "targetWWNs and wwids can not be specified simultaneously",
        ));
    }
    if !wwns.is_empty() {
        if source["lun"].is_set() {
            validate_lun(errs, path, source["lun"].int());
        } else {
            errs.push(field::required(&path.child("lun"), "lun is required if targetWWNs is specified"));
        }
    }
}

fn validate_flocker(errs: &mut ErrorList, path: &Path, source: &Value) {
    let (name, uuid) = (source["datasetName"].text(), source["datasetUUID"].text());
    if name.is_empty() && uuid.is_empty() {
        errs.push(field::required(path, "one of datasetName and datasetUUID is required"));
    }
    if !name.is_empty() && !uuid.is_empty() {
        errs.push(field::invalid(
            path,
            "resource",
            "datasetName and datasetUUID can not be specified simultaneously",
        ));
    }
    if name.contains('/') {
        errs.push(field::invalid(&path.child("datasetName"), name, "must not contain '/'"));
    }
}

fn validate_quobyte(errs: &mut ErrorList, path: &Path, source: &Value) {
    let registry = source["registry"].text();
    let at = path.child("registry");
    if registry.is_empty() {
        errs.push(field::required(&at, REGISTRY));
    } else if source["tenant"].text().len() >= 65 {
        errs.push(field::required(
            &path.child("tenant"),
            "must be a UUID and may not exceed a length of 64 characters",
        ));
    } else {
        for pair in registry.split(',') {
            if !is_host_port(pair) {
                errs.push(field::invalid(&at, registry, REGISTRY));
            }
        }
    }
    if source["volume"].text().is_empty() {
        errs.push(field::required(&path.child("volume"), ""));
    }
}

/// Whether Go's `net.SplitHostPort` takes it.
fn is_host_port(pair: &str) -> bool {
    let Some((host, port)) = pair.rsplit_once(':') else { return false };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    (bracketed || !host.contains(':')) && !inner.contains(['[', ']']) && !port.contains(['[', ']'])
}

fn validate_flex_options(errs: &mut ErrorList, path: &Path, options: &Value) {
    for (key, _) in options.entries() {
        let namespace = key.split_once('/').map_or(key.as_str(), |(namespace, _)| namespace);
        let namespace = format!(".{}", namespace.to_lowercase());
        if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
            errs.push(field::invalid(
                &path.key(key),
                key.as_str(),
                "kubernetes.io and k8s.io namespaces are reserved",
            ));
        }
    }
}

fn validate_azure_disk(errs: &mut ErrorList, path: &Path, source: &Value) {
    for (key, valid) in
        [("cachingMode", ["None", "ReadOnly", "ReadWrite"]), ("kind", ["Dedicated", "Managed", "Shared"])]
    {
        crate::validate::one_of(errs, &path.child(key), &source[key], &valid);
    }
    let (kind, uri) = (&source["kind"], source["diskURI"].text());
    let (prefix, form) = match kind.text() {
        "Managed" => ("/subscriptions/", MANAGED_DISK),
        _ => ("https://", BLOB_DISK),
    };
    if kind.is_set() && !uri.starts_with(prefix) {
        errs.push(field::not_supported(&path.child("diskURI"), uri, &[form]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::texts;
    use orlop_json::json;
    use pretty_assertions::assert_eq;

    #[test]
    fn sources() {
        let check = |kind: &str, source: Value, expected: &[&str]| {
            let mut errs = ErrorList::new();
            validate(&mut errs, &Path::new(kind), kind, &source, true, Owner::PersistentVolume);
            assert_eq!(texts(&errs), expected, "{source}");
        };
        check("iscsi", json!({"iqn": "iqn.2001-04.com.example:a"}), &[]);
        check("iscsi", json!({"iqn": "eui.0123456789abcdef"}), &[]);
        check(
            "iscsi",
            json!({"iqn": "iqn.x", "lun": 256, "chapAuthSession": true, "initiatorName": "foo"}),
            &[
                "iscsi.iqn: Invalid value: \"iqn.x\": must be valid format",
                "iscsi.lun: Invalid value: 256: must be between 0 and 255, inclusive",
                "iscsi.secretRef: Required value",
                "iscsi.initiatorname: Invalid value: \"foo\": must be valid format",
            ],
        );
        check(
            "flocker",
            json!({"datasetName": "a/b", "datasetUUID": "u"}),
            &[
                "flocker: Invalid value: \"resource\": datasetName and datasetUUID can not be specified simultaneously",
                "flocker.datasetName: Invalid value: \"a/b\": must not contain '/'",
            ],
        );
        check("quobyte", json!({"registry": "a:1,[::1]:2", "volume": "v"}), &[]);
        check(
            "quobyte",
            json!({"registry": "a"}),
            &[
                "quobyte.registry: Invalid value: \"a\": must be a host:port pair or multiple pairs separated by commas",
                "quobyte.volume: Required value",
            ],
        );
        check(
            "flexVolume",
            json!({"options": {"a": "b", "x.kubernetes.io/y": "z"}}),
            &[
                "flexVolume.options[x.kubernetes.io/y]: Invalid value: \"x.kubernetes.io/y\": kubernetes.io and k8s.io namespaces are reserved",
            ],
        );
        check(
            "azureDisk",
            json!({"cachingMode": "Foo", "kind": "Managed", "diskURI": "x"}),
            &[
                "azureDisk.cachingMode: Unsupported value: \"Foo\": supported values: \"None\", \"ReadOnly\", \"ReadWrite\"",
                "azureDisk.diskURI: Unsupported value: \"x\": supported values: \"/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}\"",
            ],
        );
        check(
            "storageos",
            json!({"volumeName": "A", "secretRef": {"name": "s"}}),
            &[
                "storageos.volumeName: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                "storageos.secretRef.namespace: Required value",
            ],
        );
        check(
            "local",
            json!({"path": "/a/../b"}),
            &["local.path: Invalid value: \"/a/../b\": must not contain '..'"],
        );
    }
}
