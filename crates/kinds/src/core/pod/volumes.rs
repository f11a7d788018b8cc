//! Volumes: exactly one source each, and what each source needs.

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::env::{VOLUME_FIELDS, validate_field_ref, validate_resource_field_ref};
use super::tolerated::Tolerated;
use crate::NameRule;
use crate::core::persistentvolumeclaim::validate_claim_spec;
use crate::core::pod_template::validate_template_metadata;
use crate::core::volume_source::{self, Owner};
use crate::cursor::Cursor;
use crate::validate::{
    csi_driver_name, dns_label, label_selector, local_descending_path, local_non_reserved_path, object_name,
    require_one_of, require_text, signer_name,
};

const MODE_MESSAGE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Sources in the order upstream looks at them, each with the fields that must not be empty.
const SOURCES: [(&str, &[&str]); 29] = [
    ("emptyDir", &[]),
    ("hostPath", &["path"]),
    ("gitRepo", &["repository"]),
    ("gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("secret", &["secretName"]),
    ("nfs", &["server", "path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("glusterfs", &["endpoints", "path"]),
    ("flocker", &[]),
    ("persistentVolumeClaim", &["claimName"]),
    ("rbd", &["monitors", "image"]),
    ("cinder", &["volumeID"]),
    ("cephfs", &["monitors"]),
    ("quobyte", &[]),
    ("downwardAPI", &[]),
    ("fc", &[]),
    ("flexVolume", &["driver"]),
    ("configMap", &["name"]),
    ("azureFile", &["secretName", "shareName"]),
    ("vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("storageos", &["volumeName"]),
    ("projected", &[]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("csi", &[]),
    ("ephemeral", &[]),
];

/// The source kinds that need code of their own beyond [`SOURCES`], `image` among them.
const IMAGE: (&str, &[&str]) = ("image", &[]);

/// `spec.volumes`. `pod_name` is `None` in templates. Returns the volumes that may be mounted: those without errors.
pub(super) fn validate_volumes<'a>(
    errs: &mut ErrorList,
    path: &Path,
    volumes: &'a Value,
    pod_name: Option<&str>,
    tolerated: Tolerated,
) -> Vec<&'a Value> {
    let mut good: Vec<&Value> = Vec::new();
    let made_claims: Vec<String> = volumes
        .items()
        .iter()
        .filter(|v| v["ephemeral"].is_set())
        .filter_map(|v| claim_name(pod_name, v["name"].text()))
        .collect();
    for (i, volume) in volumes.items().iter().enumerate() {
        let path = path.index(i);
        let mut own = ErrorList::new();
        validate_source(&mut own, &path, volume, pod_name, tolerated);
        let name = volume["name"].text();
        if name.is_empty() {
            own.push(field::required(&path.child("name"), ""));
        } else {
            dns_label(&mut own, &path.child("name"), name);
        }
        if good.iter().any(|v| v["name"].text() == name) {
            own.push(field::duplicate(&path.child("name"), name));
        }
        if own.is_empty() {
            good.push(volume);
        }
        errs.append(&mut own);
        let claim = &volume["persistentVolumeClaim"]["claimName"];
        if claim.is_set() && made_claims.iter().any(|c| c == claim.text()) {
            errs.push(field::invalid(
                &path.child("persistentVolumeClaim").child("claimName"),
                claim.text(),
                "must not reference a PVC that gets created for an ephemeral volume",
            ));
        }
    }
    good
}

/// The claim that is made for a pod's ephemeral volume; none in a template or where a name is missing.
fn claim_name(pod_name: Option<&str>, volume: &str) -> Option<String> {
    let pod_name = pod_name.filter(|name| !name.is_empty())?;
    (!volume.is_empty()).then(|| format!("{pod_name}-{volume}"))
}

fn validate_source(
    errs: &mut ErrorList,
    path: &Path,
    volume: &Value,
    pod_name: Option<&str>,
    tolerated: Tolerated,
) {
    let mut found = false;
    for (kind, required) in SOURCES.iter().chain([&IMAGE]) {
        let source = &volume[*kind];
        if !source.is_set() {
            continue;
        }
        if found {
            let path = path.child(name_when_repeated(kind));
            errs.push(field::forbidden(&path, "may not specify more than 1 volume type"));
        } else {
            found = true;
            let path_of = path.child(if *kind == "gcePersistentDisk" { "persistentDisk" } else { kind });
            let before = errs.len();
            for key in *required {
                if source[*key].is_empty() {
                    errs.push(field::required(&path_of.child(key), ""));
                }
            }
            let complete = errs.len() == before;
            if *kind == "projected" {
                validate_mode(errs, &path_of.child("defaultMode"), &source["defaultMode"]);
                validate_projections(errs, &path_of, source, tolerated);
            } else {
                validate_kind(errs, &path_of, kind, source, complete, pod_name.is_some());
            }
            if *kind == "ephemeral" {
                validate_claim_name(errs, &path.child("name"), volume["name"].text(), pod_name);
            }
        }
        // Looked at even where another source came first.
        if *kind == "iscsi" && volume_source::initiator_is_too_long(source, volume["name"].text()) {
            let name = volume["name"].text();
            errs.push(field::invalid(&path.child("name"), name, volume_source::INITIATOR_TOO_LONG));
        }
    }
    if !found {
        errs.push(field::required(path, "must specify a volume type"));
    }
}

/// The claim of an ephemeral volume must have a name that a claim can have.
fn validate_claim_name(errs: &mut ErrorList, path: &Path, name: &str, pod_name: Option<&str>) {
    let Some(claim) = claim_name(pod_name, name) else { return };
    for msg in NameRule::DnsSubdomain.check(&claim, false) {
        errs.push(field::invalid(path, name, format!("PVC name {claim:?}: {msg}")));
    }
}

/// Upstream's spelling of some sources where there is more than one.
fn name_when_repeated(kind: &str) -> &str {
    match kind {
        "cephfs" => "cephFS",
        "downwardAPI" => "downwarAPI",
        other => other,
    }
}

/// What a source must be beyond having its required fields; `complete` says that it has them. A template (`!in_pod`) may
/// leave the reference of an image to whoever makes its pods.
fn validate_kind(
    errs: &mut ErrorList,
    path: &Path,
    kind: &str,
    source: &Value,
    complete: bool,
    in_pod: bool,
) {
    match kind {
        "emptyDir" if super::resources::quantity(&source["sizeLimit"]).sign() < 0 => {
            errs.push(field::forbidden(
                &path.child("sizeLimit"),
                "SizeLimit field must be a valid resource quantity",
            ));
        }
        "gitRepo" => {
            local_descending_path(errs, &path.child("directory"), source["directory"].text());
        }
        "secret" | "configMap" => {
            validate_mode(errs, &path.child("defaultMode"), &source["defaultMode"]);
            validate_items(errs, &path.child("items"), &source["items"]);
        }
        "downwardAPI" => {
            validate_mode(errs, &path.child("defaultMode"), &source["defaultMode"]);
            for file in source["items"].items() {
                validate_downward_file(errs, path, file);
            }
        }
        "csi" => {
            csi_driver_name(errs, &path.child("driver"), source["driver"].text());
            let secret = &source["nodePublishSecretRef"];
            match secret["name"].text() {
                _ if !secret.is_set() => {}
                "" => errs.push(field::required(&path.child("nodePublishSecretRef").child("name"), "")),
                // Upstream reports it one step too high.
                name => object_name(errs, &path.child("name"), name, NameRule::DnsSubdomain),
            }
        }
        "ephemeral" => validate_claim_template(errs, path, &source["volumeClaimTemplate"]),
        "image" => {
            if in_pod {
                require_text(errs, &path.child("reference"), source["reference"].text());
            }
            require_one_of(
                errs,
                &path.child("pullPolicy"),
                source["pullPolicy"].text(),
                &["Always", "IfNotPresent", "Never"],
            );
        }
        _ => volume_source::validate(errs, path, kind, source, complete, Owner::Pod),
    }
}

fn validate_claim_template(errs: &mut ErrorList, path: &Path, template: &Value) {
    let path = path.child("volumeClaimTemplate");
    if !template.is_set() {
        errs.push(field::required(&path, ""));
        return;
    }
    validate_template_metadata(errs, &path.child("metadata"), &template["metadata"]);
    validate_claim_spec(errs, &path.child("spec"), &template["spec"]);
}

fn validate_mode(errs: &mut ErrorList, path: &Path, mode: &Value) {
    if mode.is_set() && !(0..=0o777).contains(&mode.int()) {
        errs.push(field::invalid(path, mode.int(), MODE_MESSAGE));
    }
}

fn validate_items(errs: &mut ErrorList, path: &Path, items: &Value) {
    for (i, item) in items.items().iter().enumerate() {
        validate_item(errs, &path.index(i), item);
    }
}

fn validate_item(errs: &mut ErrorList, path: &Path, item: &Value) {
    require_text(errs, &path.child("key"), item["key"].text());
    require_text(errs, &path.child("path"), item["path"].text());
    local_non_reserved_path(errs, &path.child("path"), item["path"].text());
    validate_mode(errs, &path.child("mode"), &item["mode"]);
}

fn validate_downward_file(errs: &mut ErrorList, path: &Path, file: &Value) {
    require_text(errs, &path.child("path"), file["path"].text());
    local_non_reserved_path(errs, &path.child("path"), file["path"].text());
    let (field_ref, resource_ref) = (&file["fieldRef"], &file["resourceFieldRef"]);
    if field_ref.is_set() {
        validate_field_ref(errs, &path.child("fieldRef"), field_ref, &VOLUME_FIELDS);
        if resource_ref.is_set() {
            errs.push(field::invalid(
                path,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            ));
        }
    } else if resource_ref.is_set() {
        validate_resource_field_ref(errs, &path.child("resourceFieldRef"), resource_ref, true);
    } else {
        errs.push(field::required(path, "one of fieldRef and resourceFieldRef is required"));
    }
    validate_mode(errs, &path.child("mode"), &file["mode"]);
}

fn validate_projections(errs: &mut ErrorList, path: &Path, projected: &Value, tolerated: Tolerated) {
    let mut taken: Vec<&str> = Vec::new();
    for (i, source) in projected["sources"].items().iter().enumerate() {
        let at = path.child("sources").index(i);
        let mut count = 0;
        for kind in ["secret", "configMap"] {
            let from = &source[kind];
            if !from.is_set() {
                continue;
            }
            count += 1;
            require_text(errs, &at.child(kind).child("name"), from["name"].text());
            for (k, item) in from["items"].items().iter().enumerate() {
                validate_item(errs, &at.child(kind).child("items").index(k), item);
                take(errs, path, &mut taken, item["path"].text(), from["name"].text());
            }
        }
        let downward = &source["downwardAPI"];
        if downward.is_set() {
            count += 1;
            for file in downward["items"].items() {
                validate_downward_file(errs, &at.child("downwardAPI"), file);
                let file = file["path"].text();
                take(errs, path, &mut taken, file, file);
            }
        }
        let token = &source["serviceAccountToken"];
        if token.is_set() {
            count += 1;
            let seconds = token["expirationSeconds"].int();
            let expiration = at.child("serviceAccountToken").child("expirationSeconds");
            if seconds < 600 {
                errs.push(field::invalid(
                    &expiration,
                    seconds,
                    "may not specify a duration less than 10 minutes",
                ));
            }
            if seconds > 1 << 32 {
                errs.push(field::invalid(
                    &expiration,
                    seconds,
                    "may not specify a duration larger than 2^32 seconds",
                ));
            }
            let file = token["path"].text();
            if file.is_empty() {
                errs.push(field::required(&path.child("path"), ""));
            } else if !tolerated.token_paths {
                local_non_reserved_path(errs, &path.child("path"), file);
            }
        }
        let bundle = &source["clusterTrustBundle"];
        if bundle.is_set() {
            count += 1;
            validate_trust_bundle(errs, &at.child("clusterTrustBundle"), bundle);
            take(errs, path, &mut taken, bundle["path"].text(), bundle["path"].text());
        }
        if source["podCertificate"].is_set() {
            count += 1;
        }
        if count > 1 {
            errs.push(field::forbidden(&at, "may not specify more than 1 volume type per source"));
        }
    }
}

/// Two projections may not write the same file.
fn take<'a>(errs: &mut ErrorList, path: &Path, taken: &mut Vec<&'a str>, file: &'a str, value: &str) {
    if file.is_empty() {
        return;
    }
    if taken.contains(&file) {
        errs.push(field::invalid(path, value, "conflicting duplicate paths"));
    } else {
        taken.push(file);
    }
}

/// What is wrong with a ClusterTrustBundle's name: one that belongs to a signer begins with the signer's name, the slash
/// in it a colon.
fn trust_bundle_name(name: &str) -> Vec<String> {
    let Some((signer, rest)) = name.rsplit_once(':') else {
        return NameRule::DnsSubdomain.check(name, false);
    };
    let prefix = format!("{}:", signer.replace('/', ":"));
    if !name.starts_with(&prefix) {
        return vec![format!(
            "ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}"
        )];
    }
    NameRule::DnsSubdomain.check(rest, false)
}

fn validate_trust_bundle(errs: &mut ErrorList, path: &Path, bundle: &Value) {
    let (name, signer) = (&bundle["name"], &bundle["signerName"]);
    match (name.is_set(), signer.is_set()) {
        (true, true) => {
            errs.push(field::invalid(path, bundle.clone(), "only one of name and signerName may be used"))
        }
        (true, false) => {
            if name.text().is_empty() {
                errs.push(field::required(&path.child("name"), "must be a valid object name"));
            }
            for msg in trust_bundle_name(name.text()) {
                errs.push(field::invalid(
                    &path.child("name"),
                    name.text(),
                    format!("not a valid clustertrustbundlename: {msg}"),
                ));
            }
            if bundle["labelSelector"].is_set() {
                errs.push(field::invalid(
                    &path.child("labelSelector"),
                    bundle["labelSelector"].clone(),
                    "labelSelector must be unset if name is specified",
                ));
            }
        }
        (false, true) => {
            if signer.text().is_empty() {
                errs.push(field::required(&path.child("signerName"), "must be a valid signer name"));
            }
            signer_name(errs, &path.child("signerName"), signer.text());
            label_selector(errs, &path.child("labelSelector"), &bundle["labelSelector"]);
        }
        (false, false) => errs.push(field::required(path, "either name or signerName must be specified")),
    }
    require_text(errs, &path.child("path"), bundle["path"].text());
    local_non_reserved_path(errs, &path.child("path"), bundle["path"].text());
}
