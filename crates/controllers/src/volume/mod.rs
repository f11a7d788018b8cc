//! Persistent volumes: claims and volumes find each other, volumes come to the nodes that need them, and nothing goes
//! while it is used.

pub(crate) mod attach;
pub(crate) mod binder;
pub(crate) mod ephemeral;
pub(crate) mod expand;
pub(crate) mod protection;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};

use crate::objects::Meta;

/// The claim of a pod's volume: named, or made for the pod alone.
pub(crate) fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name(), volume.name)),
        (None, None) => None,
    }
}

/// The claims of all volumes of a pod.
pub(crate) fn claim_names(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| claim_name(pod, volume)).collect()
}

/// The name of the index of pods by `namespace/claim`.
pub(crate) const BY_CLAIM: &str = "claim";

pub(crate) fn index_by_claim(pods: &orlop_client::Informer<Pod>) {
    pods.add_index(BY_CLAIM, |pod: &Pod| {
        claim_names(pod).iter().map(|name| format!("{}/{name}", pod.namespace())).collect()
    });
}

/// The pods that use a claim. One that is not scheduled yet does not: no kubelet would start it with a claim that is
/// being deleted.
pub(crate) fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let scheduled = !crate::objects::node_name(pod).is_empty();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut named = volumes.filter(|volume| claim_name(pod, volume).as_deref() == Some(claim.name()));
    let owned = || claim.controller().is_some_and(|owner| owner.uid == pod.uid());
    scheduled && named.any(|volume| volume.ephemeral.is_none() || owned())
}
