//! The PersistentVolumeClaims behind a StatefulSet's pods, and who owns them: by the retention policy a claim goes with
//! the set, with a pod that is scaled away, or never (KEP-1847).

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::identity::{ordinal, ordinals};
use crate::objects::{Meta, controller_ref};

/// Finds a claim of the set's namespace by name.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>;

/// What is to be done about the claims of one pod.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ClaimWork {
    pub(super) create: Vec<PersistentVolumeClaim>,
    /// With other owners.
    pub(super) update: Vec<PersistentVolumeClaim>,
    /// Names of claims that are on their way out: the pod has to wait until they are gone.
    pub(super) going: Vec<String>,
    /// Names of claims that somebody else controls, so that the retention policy cannot be kept.
    pub(super) conflicting: Vec<String>,
}

impl ClaimWork {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Retention {
    delete_with_set: bool,
    delete_when_scaled: bool,
}

fn retention(set: &StatefulSet) -> Retention {
    let policy = set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |when: Option<&String>| when.is_some_and(|when| when == "Delete");
    Retention {
        delete_with_set: deletes(policy.and_then(|policy| policy.when_deleted.as_ref())),
        delete_when_scaled: deletes(policy.and_then(|policy| policy.when_scaled.as_ref())),
    }
}

pub(super) fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|spec| spec.volume_claim_templates.as_deref()).unwrap_or_default()
}

pub(super) fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", template.name(), set.name())
}

/// Whether a claim may belong to one of the set's pods.
pub(super) fn may_be_claim_of(set: &StatefulSet, claim: &str) -> bool {
    templates(set).iter().any(|template| {
        let rest = claim.strip_prefix(template.name()).and_then(|rest| rest.strip_prefix('-'));
        let rest = rest.and_then(|rest| rest.strip_prefix(set.name()));
        rest.and_then(|rest| rest.strip_prefix('-')).is_some_and(|rest| rest.parse::<i32>().is_ok())
    })
}

fn new_claim(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> PersistentVolumeClaim {
    let mut claim = template.clone();
    claim.metadata.name = Some(claim_name(set, template, ordinal));
    claim.metadata.namespace = set.metadata.namespace.clone();
    let selected = set.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone());
    claim.metadata.labels.get_or_insert_default().extend(selected.unwrap_or_default());
    claim.status = None;
    let Retention { delete_with_set, .. } = retention(set);
    if delete_with_set {
        claim.metadata.owner_references.get_or_insert_default().push(controller_ref(set));
    }
    claim
}

/// What the claims of a pod need before the pod can run: those that are missing are made, the others get the owners
/// they should have.
pub(super) fn for_running(set: &StatefulSet, pod: &Pod, lookup: Lookup<'_>) -> ClaimWork {
    let mut work = for_retention(set, pod, lookup);
    let Some(ordinal) = ordinal(pod) else { return work };
    for template in templates(set) {
        match lookup(&claim_name(set, template, ordinal)) {
            None => work.create.push(new_claim(set, template, ordinal)),
            Some(claim) if claim.deleting() => work.going.push(claim.name().to_owned()),
            Some(_) => {}
        }
    }
    work
}

/// Brings the owners of a pod's claims in line with the retention policy; touches no claim that does not exist.
pub(super) fn for_retention(set: &StatefulSet, pod: &Pod, lookup: Lookup<'_>) -> ClaimWork {
    let mut work = ClaimWork::default();
    let Some(ordinal) = ordinal(pod) else { return work };
    for template in templates(set) {
        let Some(claim) = lookup(&claim_name(set, template, ordinal)) else { continue };
        let Some(owners) = owners(set, pod, &claim) else { continue };
        if has_unexpected_controller(set, pod, &claim) {
            work.conflicting.push(claim.name().to_owned());
        }
        let mut claim = (*claim).clone();
        claim.metadata.owner_references = Some(owners).filter(|owners| !owners.is_empty());
        work.update.push(claim);
    }
    work
}

/// Whether a claim of the pod still belongs to an earlier pod of that name and will go with it. A new pod must not take
/// it: the data would vanish under it.
pub(super) fn is_stale(set: &StatefulSet, pod: &Pod, lookup: Lookup<'_>) -> bool {
    let Some(ordinal) = ordinal(pod) else { return false };
    retention(set).delete_when_scaled
        && templates(set)
            .iter()
            .filter_map(|template| lookup(&claim_name(set, template, ordinal)))
            .any(|claim| has_stale_owner(&claim, pod))
}

fn references(claim: &PersistentVolumeClaim) -> &[OwnerReference] {
    claim.metadata.owner_references.as_deref().unwrap_or_default()
}

/// By kind and name, whatever the uid.
fn means<O: kube::Resource<DynamicType = ()>>(reference: &OwnerReference, owner: &O) -> bool {
    reference.api_version == O::api_version(&())
        && reference.kind == O::kind(&())
        && reference.name == owner.name()
}

fn has_stale_owner<O: kube::Resource<DynamicType = ()>>(claim: &PersistentVolumeClaim, owner: &O) -> bool {
    let named = references(claim).iter().find(|reference| means(reference, owner));
    named.is_some_and(|reference| reference.uid != owner.uid())
}

fn owns<O: kube::Resource<DynamicType = ()>>(owner: &O, claim: &PersistentVolumeClaim) -> bool {
    references(claim).iter().any(|reference| reference.uid == owner.uid())
}

fn has_unexpected_controller(set: &StatefulSet, pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let policy = retention(set);
    if !policy.delete_with_set && !policy.delete_when_scaled {
        // A claim that is kept for ever may well be somebody else's.
        return false;
    }
    references(claim).iter().any(|reference| {
        if means(reference, set) {
            reference.uid != set.uid()
        } else if means(reference, pod) {
            reference.uid != pod.uid()
        } else {
            reference.controller == Some(true)
        }
    })
}

/// The owners a claim should have; `None` when it has them, or when it is not ours to decide.
fn owners(set: &StatefulSet, pod: &Pod, claim: &PersistentVolumeClaim) -> Option<Vec<OwnerReference>> {
    if has_stale_owner(claim, set) || has_stale_owner(claim, pod) {
        // Left over from an earlier set or pod of the name: the garbage collector decides.
        return None;
    }
    let others = || -> Vec<_> {
        let ours = |reference: &&OwnerReference| means(reference, set) || means(reference, pod);
        references(claim).iter().filter(|reference| !ours(reference)).cloned().collect()
    };
    if has_unexpected_controller(set, pod, claim) {
        return (owns(set, claim) || owns(pod, claim)).then(others);
    }
    let policy = retention(set);
    let scaled_away = !ordinal(pod).is_some_and(|ordinal| ordinals(set).contains(&ordinal));
    let by_pod = policy.delete_when_scaled && scaled_away;
    let by_set = policy.delete_with_set && !by_pod;
    let controls = |uid: &str| {
        let own = references(claim).iter().filter(|reference| reference.uid == uid);
        own.clone().count() > 0 && own.clone().all(|reference| reference.controller == Some(true))
    };
    let right = |wanted: bool, owned: bool, uid: &str| if wanted { controls(uid) } else { !owned };
    if right(by_set, owns(set, claim), set.uid()) && right(by_pod, owns(pod, claim), pod.uid()) {
        return None;
    }
    let mut wanted = others();
    wanted.extend(by_set.then(|| controller_ref(set)));
    wanted.extend(by_pod.then(|| controller_ref(pod)));
    Some(wanted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objects::testing::object;
    use pretty_assertions::assert_eq;
    use serde_json::{Value, json};

    fn set(deleted: &str, scaled: &str) -> StatefulSet {
        object(json!({"metadata": {"name": "web", "namespace": "a", "uid": "s"}, "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": {},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled},
            "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"x": "y"}},
                "spec": {"accessModes": ["ReadWriteOnce"]}}]}}))
    }

    fn pod(ordinal: i32) -> Pod {
        object(json!({"metadata": {"name": format!("web-{ordinal}"), "namespace": "a", "uid": "p"}}))
    }

    fn reference(kind: &str, name: &str, uid: &str, controller: bool) -> Value {
        let version = if kind == "Pod" { "v1" } else { "apps/v1" };
        json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": controller})
    }

    /// Shows the owners after the work as `kind:uid`, `as it was` when nothing is to be done.
    fn check(policy: (&str, &str), ordinal: i32, owners: Value, expected: &str) {
        let claim: Arc<PersistentVolumeClaim> = Arc::new(object(json!({
            "metadata": {"name": format!("data-web-{ordinal}"), "ownerReferences": owners}})));
        let name = format!("data-web-{ordinal}");
        let lookup = |wanted: &str| (wanted == name).then(|| claim.clone());
        let work = for_retention(&set(policy.0, policy.1), &pod(ordinal), &lookup);
        let shown = match &work.update[..] {
            [] => "as it was".to_owned(),
            [claim] => references(claim)
                .iter()
                .map(|reference| format!("{}:{}", reference.kind, reference.uid))
                .collect::<Vec<_>>()
                .join(" "),
            _ => panic!("one claim"),
        };
        assert_eq!(shown, expected, "{policy:?} ordinal {ordinal} {owners}");
    }

    #[test]
    fn owners_follow_the_retention_policy() {
        let (retain, delete) = ("Retain", "Delete");
        let (set, pod) = (
            || reference("StatefulSet", "web", "s", true),
            |n: i32| reference("Pod", &format!("web-{n}"), "p", true),
        );
        check((retain, retain), 0, json!([]), "as it was");
        check((retain, retain), 0, json!([set()]), "");
        check((delete, retain), 0, json!([]), "StatefulSet:s");
        check((delete, retain), 5, json!([]), "StatefulSet:s");
        check((delete, retain), 0, json!([set()]), "as it was");
        check((retain, delete), 0, json!([]), "as it was");
        check((retain, delete), 5, json!([]), "Pod:p");
        check((retain, delete), 5, json!([pod(5)]), "as it was");
        check((retain, delete), 0, json!([pod(0)]), "");
        check((delete, delete), 0, json!([]), "StatefulSet:s");
        check((delete, delete), 5, json!([set()]), "Pod:p");
        check((delete, delete), 0, json!([pod(0)]), "StatefulSet:s");
        check((delete, retain), 0, json!([reference("StatefulSet", "web", "s", false)]), "StatefulSet:s");
    }

    #[test]
    fn claims_of_others_are_left_alone() {
        let delete = ("Delete", "Delete");
        let other = || reference("Backup", "b", "o", true);
        check(delete, 0, json!([other()]), "as it was");
        check(delete, 0, json!([other(), reference("StatefulSet", "web", "s", true)]), "Backup:o");
        check(delete, 0, json!([reference("Backup", "b", "o", false)]), "Backup:o StatefulSet:s");
        check(delete, 0, json!([reference("StatefulSet", "web", "old", true)]), "as it was");
        check(delete, 0, json!([reference("Pod", "web-0", "old", true)]), "as it was");
    }

    #[test]
    fn a_claim_of_an_earlier_pod_blocks_the_next() {
        let check = |scaled: &str, uid: &str, expected: bool| {
            let claim: Arc<PersistentVolumeClaim> = Arc::new(object(json!({
                "metadata": {"name": "data-web-1", "ownerReferences": [reference("Pod", "web-1", uid, true)]}})));
            let lookup = |_: &str| Some(claim.clone());
            assert_eq!(is_stale(&set("Retain", scaled), &pod(1), &lookup), expected, "{scaled} {uid}");
        };
        check("Delete", "old", true);
        check("Delete", "p", false);
        check("Retain", "old", false);
    }

    #[test]
    fn missing_claims_are_made_and_going_ones_waited_for() {
        let work = for_running(&set("Delete", "Retain"), &pod(1), &|_| None);
        assert_eq!(
            serde_json::to_value(&work.create[0]).unwrap(),
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {"name": "data-web-1", "namespace": "a", "labels": {"app": "web", "x": "y"},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "s",
                        "controller": true, "blockOwnerDeletion": true}]},
                "spec": {"accessModes": ["ReadWriteOnce"]}})
        );
        let going: Arc<PersistentVolumeClaim> = Arc::new(object(json!({
            "metadata": {"name": "data-web-1", "deletionTimestamp": "2026-01-01T00:00:00Z"}})));
        let work = for_running(&set("Retain", "Retain"), &pod(1), &|_| Some(going.clone()));
        assert_eq!(work, ClaimWork { going: vec!["data-web-1".to_owned()], ..ClaimWork::default() });
    }

    #[test]
    fn claims_lead_to_their_set() {
        let set = set("Retain", "Retain");
        for (name, expected) in [
            ("data-web-0", true),
            ("data-web-12", true),
            ("data-web", false),
            ("data-web-x", false),
            ("log-web-0", false),
        ] {
            assert_eq!(may_be_claim_of(&set, name), expected, "{name}");
        }
    }
}
