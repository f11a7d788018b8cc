//! Which volume a claim gets, and what becomes of either: pure functions of the cached objects.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeSpec,
};
use k8s_openapi::api::storage::v1::StorageClass;
use orlop_api::Quantity;

use crate::objects::{Meta, matches, selector};

pub(super) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub(super) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
pub(super) const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
pub(super) const BETA_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const BETA_DEFAULT_CLASS: &str = "storageclass.beta.kubernetes.io/is-default-class";

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

fn told(warning: bool, reason: &'static str, message: impl Into<String>) -> Option<Told> {
    Some(Told { warning, reason, message: message.into() })
}

/// What to do about a claim.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ClaimStep {
    /// Bind the two, or finish what was begun.
    Bind(Arc<PersistentVolume>),
    /// It waits for a volume, for this reason.
    Pending(Option<Told>),
    /// Its volume is gone for good.
    Lost(Told),
    /// It has no class: give it this default one and look again.
    AssignClass(String),
    /// A provisioner outside makes its volume.
    Provision(String),
}

/// What to do about a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum VolumeStep {
    Phase(&'static str),
    /// The claim's turn.
    WakeClaim,
    /// Its claim is gone: release and reclaim it.
    Reclaim,
    /// Its claim is bound to another volume.
    Unbind,
}

pub(super) fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    claim.annotation(BETA_CLASS).or(spec).unwrap_or_default()
}

pub(super) fn volume_class(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    volume.annotation(BETA_CLASS).or(spec).unwrap_or_default()
}

/// Whether the volume names the claim, be it without uid.
pub(super) fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| {
        reference.name == claim.metadata.name
            && reference.namespace == claim.metadata.namespace
            && reference.uid.as_deref().is_none_or(|uid| uid.is_empty() || uid == claim.uid())
    })
}

fn storage(quantities: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> Quantity {
    let zero = Quantity::new(0, orlop_api::quantity::Format::BinarySI);
    quantities.and_then(|quantity| Quantity::parse(&quantity.0).ok()).unwrap_or(zero)
}

fn capacity(spec: &PersistentVolumeSpec) -> Quantity {
    storage(spec.capacity.as_ref().and_then(|capacity| capacity.get("storage")))
}

fn requested(spec: &PersistentVolumeClaimSpec) -> Quantity {
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    storage(requests.and_then(|requests| requests.get("storage")))
}

fn same_mode(volume: &PersistentVolumeSpec, claim: &PersistentVolumeClaimSpec) -> bool {
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    mode(&volume.volume_mode) == mode(&claim.volume_mode)
}

fn has_access(volume: &PersistentVolumeSpec, claim: &PersistentVolumeClaimSpec) -> bool {
    let offered = volume.access_modes.as_deref().unwrap_or_default();
    claim.access_modes.iter().flatten().all(|mode| offered.contains(mode))
}

/// Why a volume that a claim asks for by name does not do.
fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let (volume_spec, claim_spec) = (volume.spec.as_ref()?, claim.spec.as_ref()?);
    if capacity(volume_spec) < requested(claim_spec) {
        Some("requested PV is too small")
    } else if volume_class(volume) != claim_class(claim) {
        Some("storageClassName does not match")
    } else if !same_mode(volume_spec, claim_spec) {
        Some("incompatible volumeMode")
    } else if !has_access(volume_spec, claim_spec) {
        Some("incompatible accessMode")
    } else {
        None
    }
}

/// The volume for a claim: the one that names it, else of those with the fewest access modes the smallest. When the
/// binding waits for a pod, the scheduler chooses, and only a volume that names the claim counts.
fn best(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    delayed: bool,
) -> Option<Arc<PersistentVolume>> {
    let spec = claim.spec.as_ref()?;
    let wanted = spec.selector.as_ref().map(selector);
    let fits = |volume: &PersistentVolume| {
        volume.spec.as_ref().is_some_and(|offered| {
            capacity(offered) >= requested(spec)
                && same_mode(offered, spec)
                && has_access(offered, spec)
                && !volume.deleting()
        })
    };
    let fitting: Vec<_> = volumes.iter().filter(|volume| fits(volume)).collect();
    if let Some(named) = fitting.iter().find(|volume| is_for(volume, claim)) {
        return Some(Arc::clone(named));
    }
    if delayed {
        return None;
    }
    let free = fitting.into_iter().filter(|volume| {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        let selected = match &wanted {
            None => true,
            Some(selector) => {
                selector.as_ref().is_some_and(|selector| matches(selector, volume.metadata.labels.as_ref()))
            }
        };
        let attributes = |name: &Option<String>| name.clone().unwrap_or_default();
        let spec_of = |volume: &PersistentVolume| volume.spec.clone().unwrap_or_default();
        phase == Some("Available")
            && spec_of(volume).claim_ref.is_none()
            && selected
            && volume_class(volume) == claim_class(claim)
            && attributes(&spec_of(volume).volume_attributes_class_name)
                == attributes(&spec.volume_attributes_class_name)
    });
    let order = |volume: &&Arc<PersistentVolume>| {
        let spec = volume.spec.clone().unwrap_or_default();
        (spec.access_modes.as_ref().map_or(0, Vec::len), capacity(&spec).value(), volume.name().to_owned())
    };
    free.min_by_key(order).cloned()
}

/// The class of claims that name none: the newest that says it is the default.
pub(super) fn default_class(classes: &[Arc<StorageClass>]) -> Option<&Arc<StorageClass>> {
    let says = |class: &StorageClass| {
        [DEFAULT_CLASS, BETA_DEFAULT_CLASS].iter().any(|key| class.annotation(key) == Some("true"))
    };
    let newest = |class: &&Arc<StorageClass>| (class.created(), std::cmp::Reverse(class.name().to_owned()));
    classes.iter().filter(|class| says(class)).max_by_key(newest)
}

/// What to do about a claim. `volumes` are those that may do: of its class, or naming it. `pod` is one that uses it and
/// is not scheduled yet.
pub(super) fn claim_step(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    classes: &[Arc<StorageClass>],
    pod: Option<&str>,
) -> ClaimStep {
    let requested = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    let volume = volumes.iter().find(|volume| volume.name() == requested);
    if claim.annotation(BIND_COMPLETED).is_some() {
        return bound(claim, requested, volume);
    }
    if !requested.is_empty() {
        return named(claim, requested, volume);
    }
    let class = classes.iter().find(|class| class.name() == claim_class(claim));
    let waits =
        class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    if let Some(volume) = best(claim, volumes, waits) {
        return ClaimStep::Bind(volume);
    }
    let names_class = claim.annotation(BETA_CLASS).is_some()
        || claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.is_some());
    if !names_class && let Some(default) = default_class(classes) {
        return ClaimStep::AssignClass(default.name().to_owned());
    }
    if waits && claim.annotation(SELECTED_NODE).is_none() {
        return ClaimStep::Pending(match pod {
            Some(pod) => told(false, "WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
            None => {
                told(false, "WaitForFirstConsumer", "waiting for first consumer to be created before binding")
            }
        });
    }
    match (claim_class(claim), class) {
        ("", _) => {
            let text = "no persistent volumes available for this claim and no storage class is set";
            ClaimStep::Pending(told(false, "FailedBinding", text))
        }
        (name, None) => {
            let text = format!("storageclass.storage.k8s.io \"{name}\" not found");
            ClaimStep::Pending(told(true, "ProvisioningFailed", text))
        }
        (_, Some(class)) if class.provisioner.starts_with("kubernetes.io/") => {
            let text = format!("no volume plugin matched name: {}", class.provisioner);
            ClaimStep::Pending(told(true, "ProvisioningFailed", text))
        }
        (_, Some(class)) => ClaimStep::Provision(class.provisioner.clone()),
    }
}

/// The event while a provisioner outside is at work.
pub(super) fn provisioning(provisioner: &str) -> Told {
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system \
         administrator. If volume creation is delayed, please verify that the provisioner is running and correctly \
         registered."
    );
    Told { warning: false, reason: "ExternalProvisioning", message }
}

fn bound(
    claim: &PersistentVolumeClaim,
    requested: &str,
    volume: Option<&Arc<PersistentVolume>>,
) -> ClaimStep {
    let lost = |reason: &'static str, message: &str| {
        ClaimStep::Lost(Told { warning: true, reason, message: message.to_owned() })
    };
    if requested.is_empty() {
        let text = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return lost("ClaimLost", text);
    }
    let Some(volume) = volume else {
        return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    };
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    match reference.map(|reference| reference.uid.as_deref()) {
        None => ClaimStep::Bind(volume.clone()),
        Some(uid) if uid == Some(claim.uid()) => ClaimStep::Bind(volume.clone()),
        Some(_) => {
            let text = "Two claims are bound to the same volume, this one is bound incorrectly";
            lost("ClaimMisbound", text)
        }
    }
}

fn named(
    claim: &PersistentVolumeClaim,
    requested: &str,
    volume: Option<&Arc<PersistentVolume>>,
) -> ClaimStep {
    let Some(volume) = volume else { return ClaimStep::Pending(None) };
    let taken = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
    if !taken {
        return match mismatch(volume, claim) {
            Some(why) => {
                let text = format!("Cannot bind to requested volume \"{requested}\": {why}");
                ClaimStep::Pending(told(true, "VolumeMismatch", text))
            }
            None => ClaimStep::Bind(volume.clone()),
        };
    }
    if is_for(volume, claim) {
        return ClaimStep::Bind(volume.clone());
    }
    let text = format!("volume \"{requested}\" already bound to a different claim.");
    ClaimStep::Pending(told(true, "FailedBinding", text))
}

/// What to do about a volume; `claim` is the one of the name it refers to.
pub(super) fn volume_step(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeStep {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    // A volume that names its claim without uid is reserved for it.
    let Some(uid) = reference.and_then(|reference| reference.uid.as_deref()).filter(|uid| !uid.is_empty())
    else {
        return VolumeStep::Phase("Available");
    };
    // A claim of the same name made anew is another one.
    let Some(claim) = claim.filter(|claim| claim.uid() == uid) else { return VolumeStep::Reclaim };
    match claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default() {
        "" => VolumeStep::WakeClaim,
        name if name == volume.name() => VolumeStep::Phase("Bound"),
        _ if volume.annotation(PROVISIONED_BY).is_some() && policy(volume) == "Delete" => VolumeStep::Reclaim,
        _ => VolumeStep::Unbind,
    }
}

fn policy(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

/// Why a released volume cannot be reclaimed; `None` when it is kept, or another deletes it.
pub(super) fn reclaim_failure(volume: &PersistentVolume) -> Option<Told> {
    match policy(volume) {
        "Retain" => None,
        "Delete" if volume.annotation(PROVISIONED_BY).is_some_and(|by| !by.starts_with("kubernetes.io/")) => {
            None
        }
        "Delete" => {
            let name = volume.name();
            let text = format!(
                "error getting deleter volume plugin for volume \"{name}\": no volume plugin matched"
            );
            told(true, "VolumeFailedDelete", text)
        }
        "Recycle" => told(true, "VolumeFailedRecycle", "No recycler plugin found for the volume!"),
        _ => {
            let text = "Volume has unrecognized PersistentVolumeReclaimPolicy";
            told(true, "VolumeUnknownReclaimPolicy", text)
        }
    }
}
