//! What to do about a claim and about a volume: pure functions of the cached objects. Rules and texts are those of
//! `sig-storage-lib-external-provisioner` and `external-resizer`.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{
    LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeSpec, TopologySelectorTerm,
    VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use orlop_api::Quantity;
use orlop_client::object_reference;

use crate::PROVISIONER;
use crate::directory::PREFIX;

/// Keeps a volume until its directory is gone.
pub(crate) const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const BETA_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const HOSTNAME: &str = "kubernetes.io/hostname";
const ACCESS_MODES: [&str; 2] = ["ReadWriteOnce", "ReadWriteOncePod"];

/// What to do about a claim.
#[derive(Debug, PartialEq)]
pub(crate) enum ClaimStep {
    Nothing,
    /// Its class does not wait for a pod: whichever node is first takes it.
    Take,
    Provision,
    /// It can never get a volume of this kind; the text goes into an event.
    Refuse(String),
    /// It asks for more than its volume says it has: this much.
    Grow(ApiQuantity),
}

/// What to do about a volume of this provisioner on this node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum VolumeStep {
    Nothing,
    /// Its finalizers have to become these.
    Finalizers(Vec<String>),
    Delete,
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether the controllers handed this claim to this provisioner.
pub(crate) fn is_ours(claim: &PersistentVolumeClaim) -> bool {
    let named = annotation(&claim.metadata, STORAGE_PROVISIONER);
    named.or_else(|| annotation(&claim.metadata, BETA_STORAGE_PROVISIONER)) == Some(PROVISIONER)
}

/// The class of a claim.
pub(crate) fn class_name(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&claim.metadata, BETA_CLASS).or(spec).unwrap_or_default()
}

/// The name of a claim's volume.
pub(crate) fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("{PREFIX}{}", claim.metadata.uid.as_deref().unwrap_or_default())
}

/// Whether a volume is one of this provisioner's on the node.
pub(crate) fn is_here(volume: &PersistentVolume, node: &str) -> bool {
    let spec = volume.spec.as_ref();
    let required = spec.and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    let mut terms = required.into_iter().flat_map(|selector| &selector.node_selector_terms);
    annotation(&volume.metadata, PROVISIONED_BY) == Some(PROVISIONER)
        && terms.any(|term| term.match_expressions.as_deref() == Some(&[on_node(node)]))
}

fn on_node(node: &str) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: HOSTNAME.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    }
}

fn storage(list: Option<&BTreeMap<String, ApiQuantity>>) -> Option<&ApiQuantity> {
    list.and_then(|list| list.get("storage"))
}

fn parsed(quantity: Option<&ApiQuantity>) -> Quantity {
    quantity.and_then(|quantity| Quantity::parse(&quantity.0).ok()).unwrap_or(Quantity::ZERO)
}

fn requested(spec: &PersistentVolumeClaimSpec) -> Option<&ApiQuantity> {
    storage(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
}

/// What to do about a claim on `node`. `volume` is the one that was made for it.
pub(crate) fn claim_step(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    volume: Option<&PersistentVolume>,
    node: &str,
) -> ClaimStep {
    let Some(spec) = &claim.spec else { return ClaimStep::Nothing };
    if let Some(volume) = volume {
        return grow(claim, spec, volume, node);
    }
    let bound = spec.volume_name.as_ref().is_some_and(|name| !name.is_empty());
    if bound || claim.metadata.deletion_timestamp.is_some() || !is_ours(claim) {
        return ClaimStep::Nothing;
    }
    let Some(class) = class.filter(|class| class.provisioner == PROVISIONER) else {
        return ClaimStep::Nothing;
    };
    let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
    match annotation(&claim.metadata, SELECTED_NODE).filter(|node| !node.is_empty()) {
        None if waits => ClaimStep::Nothing,
        None => refusal(spec, class).map_or(ClaimStep::Take, ClaimStep::Refuse),
        Some(selected) if selected != node => ClaimStep::Nothing,
        Some(_) => refusal(spec, class).map_or(ClaimStep::Provision, ClaimStep::Refuse),
    }
}

/// Why a claim cannot be served.
fn refusal(spec: &PersistentVolumeClaimSpec, class: &StorageClass) -> Option<String> {
    if spec.volume_mode.as_deref() == Some("Block") {
        return Some(format!("{PROVISIONER} does not support block volume provisioning"));
    }
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    let why = if modes.iter().any(|mode| !ACCESS_MODES.contains(&mode.as_str())) {
        format!("only the access modes {} are supported", ACCESS_MODES.join(" and "))
    } else if spec.selector.is_some() {
        "claim.Spec.Selector is not supported".to_owned()
    } else if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        "data sources are not supported".to_owned()
    } else if spec.volume_attributes_class_name.is_some() {
        "volume attributes classes are not supported".to_owned()
    } else if let Some(parameter) = class.parameters.iter().flatten().map(|(key, _)| key).next() {
        format!("unknown parameter {parameter:?} of the StorageClass")
    } else {
        return None;
    };
    let class = class.metadata.name.as_deref().unwrap_or_default();
    Some(format!("failed to provision volume with StorageClass {class:?}: {why}"))
}

/// Whether a node with these labels may hold volumes of the class.
pub(crate) fn allows(class: &StorageClass, labels: &BTreeMap<String, String>) -> bool {
    let matches = |term: &TopologySelectorTerm| {
        let mut rules = term.match_label_expressions.iter().flatten();
        rules.all(|rule| labels.get(&rule.key).is_some_and(|value| rule.values.contains(value)))
    };
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    terms.is_empty() || terms.iter().any(matches)
}

fn grow(
    claim: &PersistentVolumeClaim,
    spec: &PersistentVolumeClaimSpec,
    volume: &PersistentVolume,
    node: &str,
) -> ClaimStep {
    let status = claim.status.as_ref();
    let bound = status.and_then(|status| status.phase.as_deref()) == Some("Bound");
    let Some(wanted) = requested(spec).filter(|_| bound && is_here(volume, node)) else {
        return ClaimStep::Nothing;
    };
    let has = storage(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()));
    let shown = storage(status.and_then(|status| status.capacity.as_ref()));
    let size = parsed(Some(wanted));
    if size > parsed(has) || size > parsed(shown) {
        ClaimStep::Grow(wanted.clone())
    } else {
        ClaimStep::Nothing
    }
}

/// The volume for a claim.
pub(crate) fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    path: &Path,
    node: &str,
) -> PersistentVolume {
    let spec = claim.spec.clone().unwrap_or_default();
    let policy = class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned());
    let here =
        NodeSelectorTerm { match_expressions: Some(vec![on_node(node)]), ..NodeSelectorTerm::default() };
    let size = requested(&spec).cloned().unwrap_or_default();
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(volume_name(claim)),
            annotations: Some([(PROVISIONED_BY.to_owned(), PROVISIONER.to_owned())].into()),
            finalizers: (policy == "Delete").then(|| vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            capacity: Some([("storage".to_owned(), size)].into()),
            access_modes: spec.access_modes.clone(),
            persistent_volume_reclaim_policy: Some(policy),
            storage_class_name: Some(class_name(claim).to_owned()),
            mount_options: class.mount_options.clone(),
            volume_mode: spec.volume_mode.clone(),
            local: Some(LocalVolumeSource { path: path.display().to_string(), fs_type: None }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![here] }),
            }),
            claim_ref: Some(object_reference(claim)),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

/// What to do about a volume that [`is_here`].
pub(crate) fn volume_step(volume: &PersistentVolume) -> VolumeStep {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let deletes = policy == Some("Delete");
    let deleting = volume.metadata.deletion_timestamp.is_some();
    let mut finalizers = volume.metadata.finalizers.clone().unwrap_or_default();
    let guarded = finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    if guarded && !deletes {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        return VolumeStep::Finalizers(finalizers);
    }
    if !guarded && deletes && !deleting && phase == "Bound" {
        finalizers.push(FINALIZER.to_owned());
        return VolumeStep::Finalizers(finalizers);
    }
    // Without the finalizer, a volume that is being deleted has lost its directory before.
    if deletes && phase == "Released" && (guarded || !deleting) {
        VolumeStep::Delete
    } else {
        VolumeStep::Nothing
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::serde::de::DeserializeOwned;
    use pretty_assertions::assert_eq;
    use serde_json::{Value, json};

    fn object<K: DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    fn merged(mut base: Value, more: Value) -> Value {
        base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        base
    }

    fn claim(annotations: Value, spec: Value) -> PersistentVolumeClaim {
        let ours = json!({STORAGE_PROVISIONER: PROVISIONER});
        let base = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "c", "resources": {"requests": {"storage": "1Gi"}}});
        object(
            json!({"metadata": {"name": "data", "namespace": "a", "uid": "1", "annotations": merged(ours, annotations)},
            "spec": merged(base, spec)}),
        )
    }

    fn class(more: Value) -> StorageClass {
        object(merged(
            json!({"metadata": {"name": "c"}, "provisioner": PROVISIONER, "volumeBindingMode": "WaitForFirstConsumer"}),
            more,
        ))
    }

    #[test]
    fn whose_claim_it_is() {
        let check = |what: &str, annotations: Value, spec: Value, of: Value, expected: ClaimStep| {
            let step = claim_step(&claim(annotations, spec), Some(&class(of)), None, "n");
            assert_eq!(step, expected, "{what}");
        };
        let here = || json!({SELECTED_NODE: "n"});
        let now = || json!({"volumeBindingMode": "Immediate"});
        check("no pod yet", json!({}), json!({}), json!({}), ClaimStep::Nothing);
        check("chosen", here(), json!({}), json!({}), ClaimStep::Provision);
        check("elsewhere", json!({SELECTED_NODE: "m"}), json!({}), json!({}), ClaimStep::Nothing);
        check("at once", json!({}), json!({}), now(), ClaimStep::Take);
        check("at once, taken", here(), json!({}), now(), ClaimStep::Provision);
        check("at once, elsewhere", json!({SELECTED_NODE: "m"}), json!({}), now(), ClaimStep::Nothing);
        check("bound", here(), json!({"volumeName": "v"}), json!({}), ClaimStep::Nothing);
        let other = merged(here(), json!({STORAGE_PROVISIONER: "other.example.com"}));
        check("another's", other, json!({}), json!({}), ClaimStep::Nothing);
        check("class of another", here(), json!({}), json!({"provisioner": "x"}), ClaimStep::Nothing);
        let step = claim_step(&claim(here(), json!({})), None, None, "n");
        assert_eq!(step, ClaimStep::Nothing, "no class");
    }

    #[test]
    fn what_cannot_be_had() {
        let check = |spec: Value, of: Value, expected: Option<&str>| {
            let text = match claim_step(
                &claim(json!({SELECTED_NODE: "n"}), spec.clone()),
                Some(&class(of)),
                None,
                "n",
            ) {
                ClaimStep::Refuse(text) => Some(text),
                _ => None,
            };
            let why = text.as_deref().map(|text| {
                text.strip_prefix("failed to provision volume with StorageClass \"c\": ").unwrap_or(text)
            });
            assert_eq!(why, expected, "{spec}");
        };
        check(json!({"accessModes": ["ReadWriteOncePod"]}), json!({}), None);
        check(
            json!({"volumeMode": "Block"}),
            json!({}),
            Some("orlop.io/local-path does not support block volume provisioning"),
        );
        check(
            json!({"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}),
            json!({}),
            Some("only the access modes ReadWriteOnce and ReadWriteOncePod are supported"),
        );
        check(json!({"selector": {}}), json!({}), Some("claim.Spec.Selector is not supported"));
        let source = json!({"kind": "PersistentVolumeClaim", "name": "x"});
        check(json!({"dataSource": source}), json!({}), Some("data sources are not supported"));
        check(
            json!({"volumeAttributesClassName": "gold"}),
            json!({}),
            Some("volume attributes classes are not supported"),
        );
        check(
            json!({}),
            json!({"parameters": {"type": "ssd"}}),
            Some("unknown parameter \"type\" of the StorageClass"),
        );
    }

    #[test]
    fn a_volume_says_where_it_is() {
        let made = volume(
            &claim(json!({}), json!({})),
            &class(json!({"mountOptions": ["ro"]})),
            Path::new("/storage/pvc-1"),
            "n",
        );
        let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n"]}]}]}});
        assert_eq!(
            serde_json::to_value(&made).unwrap(),
            json!({"apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": {"name": "pvc-1", "annotations": {PROVISIONED_BY: PROVISIONER}, "finalizers": [FINALIZER]},
                "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Delete",
                    "storageClassName": "c", "mountOptions": ["ro"], "local": {"path": "/storage/pvc-1"}, "nodeAffinity": affinity,
                    "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "a", "name": "data", "uid": "1"}}})
        );
        assert!(is_here(&made, "n") && !is_here(&made, "m"));
        let kept = volume(
            &claim(json!({}), json!({})),
            &class(json!({"reclaimPolicy": "Retain"})),
            Path::new("/storage/pvc-1"),
            "n",
        );
        assert_eq!(kept.metadata.finalizers, None);
        assert!(!is_here(&PersistentVolume::default(), "n"));
    }

    #[test]
    fn growing() {
        let check = |what: &str, wanted: &str, has: &str, shown: &str, node: &str, expected: Option<&str>| {
            let mut claim = claim(json!({}), json!({"volumeName": "pvc-1"}));
            let mut volume = volume(&claim, &class(json!({})), Path::new("/storage/pvc-1"), "n");
            let sized = |size: &str| Some([("storage".to_owned(), ApiQuantity(size.to_owned()))].into());
            volume.spec.as_mut().unwrap().capacity = sized(has);
            claim.spec.as_mut().unwrap().resources.as_mut().unwrap().requests = sized(wanted);
            claim.status = object(json!({"phase": "Bound", "capacity": {"storage": shown}}));
            let step = claim_step(&claim, None, Some(&volume), node);
            let expected =
                expected.map_or(ClaimStep::Nothing, |size| ClaimStep::Grow(ApiQuantity(size.to_owned())));
            assert_eq!(step, expected, "{what}");
        };
        check("as it is", "1Gi", "1Gi", "1Gi", "n", None);
        check("more", "2Gi", "1Gi", "1Gi", "n", Some("2Gi"));
        check("half done", "2Gi", "2Gi", "1Gi", "n", Some("2Gi"));
        check("less", "1Gi", "2Gi", "2Gi", "n", None);
        check("elsewhere", "2Gi", "1Gi", "1Gi", "m", None);
    }

    #[test]
    fn volumes_end_when_they_are_released() {
        let check = |what: &str,
                     policy: &str,
                     phase: &str,
                     finalizers: Value,
                     deleted: bool,
                     expected: VolumeStep| {
            let time = deleted.then_some("2026-01-01T00:00:00Z");
            let volume = object(
                json!({"metadata": {"name": "pvc-1", "finalizers": finalizers, "deletionTimestamp": time},
                "spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": phase}}),
            );
            assert_eq!(volume_step(&volume), expected, "{what}");
        };
        let both = || json!(["kubernetes.io/pv-protection", FINALIZER]);
        let plain = || json!(["kubernetes.io/pv-protection"]);
        let set = |list: Value| VolumeStep::Finalizers(object(list));
        check("in use", "Delete", "Bound", both(), false, VolumeStep::Nothing);
        check("not bound yet", "Delete", "Pending", json!([FINALIZER]), false, VolumeStep::Nothing);
        check("released", "Delete", "Released", both(), false, VolumeStep::Delete);
        check("released, never guarded", "Delete", "Released", plain(), false, VolumeStep::Delete);
        check("deleted and released", "Delete", "Released", both(), true, VolumeStep::Delete);
        check("deleted in use", "Delete", "Bound", both(), true, VolumeStep::Nothing);
        check("done", "Delete", "Released", json!([]), true, VolumeStep::Nothing);
        check("kept", "Retain", "Released", plain(), false, VolumeStep::Nothing);
        check("to be kept", "Retain", "Bound", both(), false, set(plain()));
        check("not to be kept", "Delete", "Bound", plain(), false, set(both()));
    }

    #[test]
    fn topologies() {
        let check = |terms: Value, expected: bool| {
            let labels = [("zone".to_owned(), "a".to_owned())].into();
            assert_eq!(allows(&class(json!({"allowedTopologies": terms})), &labels), expected, "{terms}");
        };
        let zone = |name: &str| json!({"matchLabelExpressions": [{"key": "zone", "values": [name]}]});
        check(json!(null), true);
        check(json!([zone("a")]), true);
        check(json!([zone("b")]), false);
        check(json!([zone("b"), zone("a")]), true);
    }
}
