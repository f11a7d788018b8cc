//! Which pod is which: ordinals, names, labels and volumes of a StatefulSet's pods. Answers to upstream's
//! `stateful_set_utils.go`.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};

use super::claims::{claim_name, templates};
use crate::history::REVISION_LABEL;
use crate::objects::{Meta, controller_ref};
use crate::pod_control::pod_from_template;

const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The name of the set and the ordinal that a pod's name says.
fn parent_and_ordinal(pod: &str) -> Option<(&str, i32)> {
    let (parent, digits) = pod.rsplit_once('-')?;
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().ok().map(|ordinal| (parent, ordinal))).flatten()
}

pub(super) fn is_member(set: &StatefulSet, pod: &Pod) -> bool {
    parent_and_ordinal(pod.name()).is_some_and(|(parent, _)| parent == set.name())
}

/// The ordinal in a pod's name, if it has one.
pub(super) fn ordinal(pod: &Pod) -> Option<i32> {
    parent_and_ordinal(pod.name()).map(|(_, ordinal)| ordinal)
}

pub(super) fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.name())
}

pub(super) fn replicas(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// The ordinals that a set's pods have.
pub(super) fn ordinals(set: &StatefulSet) -> std::ops::Range<i32> {
    let ordinals = set.spec.as_ref().and_then(|spec| spec.ordinals.as_ref());
    let start = ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0);
    start..start.saturating_add(replicas(set))
}

/// The revision a pod was made from; empty when it does not say.
pub(super) fn revision(pod: &Pod) -> &str {
    pod.label(REVISION_LABEL).unwrap_or_default()
}

/// A pod as `template`, which is that of `revision`, says.
pub(super) fn new_pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let mut pod = pod_from_template(template, set.name(), controller_ref(set));
    let name = pod_name(set, ordinal);
    pod.metadata.name = Some(name.clone());
    pod.metadata.namespace = set.metadata.namespace.clone();
    set_identity(&mut pod, &name, ordinal);
    pod.metadata.labels.get_or_insert_default().insert(REVISION_LABEL.to_owned(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain =
        set.spec.as_ref().and_then(|spec| spec.service_name.clone()).filter(|service| !service.is_empty());
    set_storage(set, &mut pod, ordinal);
    pod
}

fn set_identity(pod: &mut Pod, name: &str, ordinal: i32) {
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME_LABEL.to_owned(), name.to_owned());
    labels.insert(POD_INDEX_LABEL.to_owned(), ordinal.to_string());
}

/// Volumes of claim templates take the place of volumes of the same name in the pod template.
fn set_storage(set: &StatefulSet, pod: &mut Pod, ordinal: i32) {
    let claims = templates(set);
    if claims.is_empty() {
        return;
    }
    let spec = pod.spec.get_or_insert_default();
    let mut volumes: Vec<_> = claims
        .iter()
        .map(|template| Volume {
            name: template.name().to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, template, ordinal),
                read_only: None,
            }),
            ..Volume::default()
        })
        .collect();
    let others = spec.volumes.take().unwrap_or_default();
    let is_claim = |volume: &Volume| claims.iter().any(|template| template.name() == volume.name);
    volumes.extend(others.into_iter().filter(|volume| !is_claim(volume)));
    spec.volumes = Some(volumes);
}

fn identity_matches(set: &StatefulSet, pod: &Pod, ordinal: i32) -> bool {
    pod.name() == pod_name(set, ordinal) && pod.label(POD_NAME_LABEL) == Some(pod.name())
}

fn storage_matches(set: &StatefulSet, pod: &Pod, ordinal: i32) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    templates(set).iter().all(|template| {
        let volume = volumes.iter().find(|volume| volume.name == template.name());
        let claim = volume.and_then(|volume| volume.persistent_volume_claim.as_ref());
        claim.is_some_and(|claim| claim.claim_name == claim_name(set, template, ordinal))
    })
}

/// The pod as a member of the set has to be; `None` when it is so.
pub(super) fn repaired(set: &StatefulSet, pod: &Pod) -> Option<Pod> {
    let ordinal = ordinal(pod)?;
    let (identity, storage) = (identity_matches(set, pod, ordinal), storage_matches(set, pod, ordinal));
    if identity && storage {
        return None;
    }
    let mut pod = pod.clone();
    if !identity {
        let name = pod_name(set, ordinal);
        set_identity(&mut pod, &name, ordinal);
    }
    if !storage {
        set_storage(set, &mut pod, ordinal);
    }
    Some(pod)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pretty_assertions::assert_eq;

    #[test]
    fn names_tell_set_and_ordinal() {
        let check = |name: &str, expected: Option<(&str, i32)>| {
            assert_eq!(parent_and_ordinal(name), expected, "{name}");
        };
        check("web-0", Some(("web", 0)));
        check("web-db-12", Some(("web-db", 12)));
        check("web-01", Some(("web", 1)));
        check("web", None);
        check("web-", None);
        check("web-x", None);
        check("web-+1", None);
        check("web-99999999999", None);
    }
}
