//! PersistentVolumes, claims and what is known of storage, with the bindings the scheduler has decided about and not
//! yet seen confirmed. Which volumes a pod could use on a node is worked out here, purely. Answers to upstream's
//! `volumebinding/binder.go` and `assumecache`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use orlop_api::Quantity;
use orlop_client::ObjectKey;

use crate::pod_info::PodInfo;
use crate::selector::{Labels, NodeMatcher, Selector};

/// Says that the volume controller has finished a binding.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Says that a binding was made by a controller and not by a user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Tells a provisioner where the first consumer will run.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BETA_STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// An object, and what the scheduler has made of it until the API server shows something newer.
#[derive(Debug)]
struct Assumable<K> {
    api: Arc<K>,
    assumed: Option<Arc<K>>,
}

impl<K> Assumable<K> {
    fn latest(&self) -> &Arc<K> {
        self.assumed.as_ref().unwrap_or(&self.api)
    }
}

fn set<K>(map: &mut HashMap<String, Assumable<K>>, key: String, new: Arc<K>, meta: fn(&K) -> &ObjectMeta) {
    match map.get_mut(&key) {
        // A re-list shows the same version again: what was made of it still holds.
        Some(known) if meta(&known.api).resource_version == meta(&new).resource_version => known.api = new,
        Some(known) => *known = Assumable { api: new, assumed: None },
        None => _ = map.insert(key, Assumable { api: new, assumed: None }),
    }
}

/// Everything about storage.
#[derive(Debug, Default)]
pub struct Volumes {
    claims: HashMap<String, Assumable<PersistentVolumeClaim>>,
    volumes: HashMap<String, Assumable<PersistentVolume>>,
    volumes_of_class: HashMap<String, BTreeSet<String>>,
    classes: HashMap<String, Arc<StorageClass>>,
    csi_nodes: HashMap<String, Arc<CSINode>>,
    csi_drivers: HashMap<String, Arc<CSIDriver>>,
    capacities: HashMap<ObjectKey, Arc<CSIStorageCapacity>>,
    /// Names of attached volumes with their attacher, by node and attachment.
    attachments: HashMap<String, HashMap<String, (String, String)>>,
}

/// The claims of a pod, by what has to be done about them.
#[derive(Debug, Default)]
pub struct PodClaims {
    pub bound: Vec<Arc<PersistentVolumeClaim>>,
    /// Bound when the first consumer is scheduled.
    pub delayed: Vec<Arc<PersistentVolumeClaim>>,
    /// Bound by the volume controller on its own; not yet.
    pub immediate: Vec<Arc<PersistentVolumeClaim>>,
}

/// What a pod would use on one node.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct PodVolumes {
    pub bindings: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    pub provisions: Vec<Arc<PersistentVolumeClaim>>,
}

/// Why a pod's volumes keep it off a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    Node,
    Bind,
    Space,
    VolumeMissing,
}

impl Conflict {
    pub fn reason(self) -> &'static str {
        match self {
            Self::Node => "node(s) didn't match PersistentVolume's node affinity",
            Self::Bind => "node(s) didn't find available persistent volumes to bind",
            Self::Space => "node(s) did not have enough free storage",
            Self::VolumeMissing => {
                "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
            }
        }
    }
}

/// `namespace/name`.
pub fn claim_key(meta: &ObjectMeta) -> String {
    ObjectKey::of(meta).to_string()
}

/// Whether a claim is bound for good.
pub fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    let annotated = |annotations: &Labels| annotations.contains_key(BIND_COMPLETED);
    volume_name(claim).is_some() && claim.metadata.annotations.as_ref().is_some_and(annotated)
}

/// `spec.volumeName`.
pub fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

/// The class of a claim; empty for none.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let annotation = claim.metadata.annotations.as_ref().and_then(|all| all.get(BETA_STORAGE_CLASS));
    let field = || claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation.map(String::as_str).or_else(field).unwrap_or_default()
}

fn class_of_volume(volume: &PersistentVolume) -> &str {
    let annotation = volume.metadata.annotations.as_ref().and_then(|all| all.get(BETA_STORAGE_CLASS));
    let field = || volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation.map(String::as_str).or_else(field).unwrap_or_default()
}

/// Whether a volume can be used on a node.
pub fn volume_fits_node(volume: &PersistentVolume, name: &str, labels: &Labels) -> bool {
    let required = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    required.is_none_or(|selector| NodeMatcher::new(None, Some(selector)).matches(name, labels))
}

fn bytes(quantity: Option<&ApiQuantity>) -> i64 {
    quantity.and_then(|quantity| Quantity::parse(&quantity.0).ok()).map_or(0, |quantity| quantity.value())
}

fn requested(claim: &PersistentVolumeClaim) -> i64 {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    bytes(resources.and_then(|resources| resources.requests.as_ref()?.get("storage")))
}

fn capacity(volume: &PersistentVolume) -> i64 {
    bytes(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage")))
}

fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return false };
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && reference.uid.as_ref().is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
}

impl Volumes {
    pub fn claim(&self, key: &str) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(key).map(Assumable::latest)
    }

    pub fn volume(&self, name: &str) -> Option<&Arc<PersistentVolume>> {
        self.volumes.get(name).map(Assumable::latest)
    }

    pub fn class(&self, name: &str) -> Option<&Arc<StorageClass>> {
        self.classes.get(name)
    }

    pub fn csi_node(&self, name: &str) -> Option<&Arc<CSINode>> {
        self.csi_nodes.get(name)
    }

    pub fn csi_driver(&self, name: &str) -> Option<&Arc<CSIDriver>> {
        self.csi_drivers.get(name)
    }

    /// The volumes attached to a node, with their attachers.
    pub fn attached(&self, node: &str) -> impl Iterator<Item = (&str, &str)> {
        let attachments = self.attachments.get(node).into_iter().flat_map(HashMap::values);
        attachments.map(|(volume, attacher)| (volume.as_str(), attacher.as_str()))
    }

    pub fn set_claim(&mut self, claim: Arc<PersistentVolumeClaim>) {
        set(&mut self.claims, claim_key(&claim.metadata), claim, |claim| &claim.metadata);
    }

    pub fn remove_claim(&mut self, key: &str) {
        self.claims.remove(key);
    }

    pub fn set_volume(&mut self, volume: Arc<PersistentVolume>) {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let class = class_of_volume(&volume).to_owned();
        self.forget_class(&name);
        self.volumes_of_class.entry(class).or_default().insert(name.clone());
        set(&mut self.volumes, name, volume, |volume| &volume.metadata);
    }

    pub fn remove_volume(&mut self, name: &str) {
        self.forget_class(name);
        self.volumes.remove(name);
    }

    fn forget_class(&mut self, name: &str) {
        let Some(known) = self.volumes.get(name) else { return };
        let class = class_of_volume(&known.api);
        if let Some(names) = self.volumes_of_class.get_mut(class) {
            names.remove(name);
            if names.is_empty() {
                self.volumes_of_class.remove(class);
            }
        }
    }

    pub fn set_class(&mut self, name: &str, class: Option<Arc<StorageClass>>) {
        put(&mut self.classes, name.to_owned(), class);
    }

    pub fn set_csi_node(&mut self, name: &str, node: Option<Arc<CSINode>>) {
        put(&mut self.csi_nodes, name.to_owned(), node);
    }

    pub fn set_csi_driver(&mut self, name: &str, driver: Option<Arc<CSIDriver>>) {
        put(&mut self.csi_drivers, name.to_owned(), driver);
    }

    pub fn set_capacity(&mut self, key: ObjectKey, capacity: Option<Arc<CSIStorageCapacity>>) {
        put(&mut self.capacities, key, capacity);
    }

    pub fn set_attachment(&mut self, attachment: &VolumeAttachment, gone: bool) {
        let spec = &attachment.spec;
        let name = attachment.metadata.name.clone().unwrap_or_default();
        let on_node = self.attachments.entry(spec.node_name.clone()).or_default();
        match spec.source.persistent_volume_name.clone().filter(|_| !gone) {
            Some(volume) => _ = on_node.insert(name, (volume, spec.attacher.clone())),
            None => _ = on_node.remove(&name),
        }
        if on_node.is_empty() {
            self.attachments.remove(&spec.node_name);
        }
    }

    /// A pod's claims. Fails with what keeps the pod from being scheduled anywhere.
    pub fn claims_of(&self, pod: &PodInfo) -> Result<PodClaims, String> {
        let mut claims = PodClaims::default();
        for used in &pod.claims {
            let name = &used.name;
            let Some(claim) = self.claim(&format!("{}/{name}", pod.key.namespace)) else {
                return Err(match used.ephemeral {
                    true => format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""
                    ),
                    false => format!("persistentvolumeclaim \"{name}\" not found"),
                });
            };
            if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
                let volume = volume_name(claim).unwrap_or_default();
                return Err(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
                ));
            }
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            let mut owners = claim.metadata.owner_references.iter().flatten();
            if used.ephemeral && !owners.any(|owner| owner.controller == Some(true) && owner.uid == pod.uid) {
                return Err(format!(
                    "PVC {}/{name} was not created for pod {} (pod is not owner)",
                    pod.key.namespace, pod.key
                ));
            }
            if is_fully_bound(claim) {
                claims.bound.push(claim.clone());
            } else if volume_name(claim).is_none() && self.is_delayed(claim) {
                claims.delayed.push(claim.clone());
            } else {
                claims.immediate.push(claim.clone());
            }
        }
        Ok(claims)
    }

    fn is_delayed(&self, claim: &PersistentVolumeClaim) -> bool {
        let class = self.class(class_of_claim(claim));
        class.and_then(|class| class.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer")
    }

    /// What a pod with these claims would use on a node, or all that is in its way.
    pub fn find(&self, claims: &PodClaims, name: &str, labels: &Labels) -> Result<PodVolumes, Vec<Conflict>> {
        let mut conflicts = Vec::new();
        let mut volumes = PodVolumes::default();
        let bound = claims.bound.iter().map(|claim| self.volume(volume_name(claim).unwrap_or_default()));
        let bound: Vec<_> = bound.collect();
        if bound.iter().flatten().any(|volume| !volume_fits_node(volume, name, labels)) {
            conflicts.push(Conflict::Node);
        }
        match self.find_delayed(&claims.delayed, name, labels) {
            Ok(found) => volumes = found,
            Err(conflict) => conflicts.push(conflict),
        }
        if bound.iter().any(Option::is_none) {
            conflicts.push(Conflict::VolumeMissing);
        }
        if conflicts.is_empty() { Ok(volumes) } else { Err(conflicts) }
    }

    fn find_delayed(
        &self,
        claims: &[Arc<PersistentVolumeClaim>],
        name: &str,
        labels: &Labels,
    ) -> Result<PodVolumes, Conflict> {
        let mut found = PodVolumes::default();
        let mut to_match = Vec::new();
        for claim in claims {
            match claim.metadata.annotations.as_ref().and_then(|all| all.get(SELECTED_NODE)) {
                Some(selected) if selected != name => return Err(Conflict::Bind),
                Some(_) => found.provisions.push(claim.clone()),
                None => to_match.push(claim.clone()),
            }
        }
        // The smallest claims first, so that they do not take the large volumes.
        to_match.sort_by_key(|claim| requested(claim));
        let mut chosen = BTreeSet::new();
        for claim in to_match {
            match self.match_volume(&claim, name, labels, &chosen) {
                Some(volume) => {
                    chosen.extend(volume.metadata.name.clone());
                    found.bindings.push((volume.clone(), claim));
                }
                None => found.provisions.push(claim),
            }
        }
        for claim in &found.provisions {
            self.can_provision(claim, labels)?;
        }
        Ok(found)
    }

    /// The smallest volume that serves a claim on a node, or the one that is reserved for it.
    fn match_volume(
        &self,
        claim: &PersistentVolumeClaim,
        node: &str,
        labels: &Labels,
        chosen: &BTreeSet<String>,
    ) -> Option<&Arc<PersistentVolume>> {
        let spec = claim.spec.as_ref()?;
        let wanted = requested(claim);
        let selector = spec.selector.as_ref().map(|selector| Selector::of(Some(selector)));
        let none = Labels::new();
        let mut best: Option<(i64, &Arc<PersistentVolume>)> = None;
        for name in self.volumes_of_class.get(class_of_claim(claim))? {
            let Some(volume) = self.volume(name).filter(|_| !chosen.contains(name)) else { continue };
            let Some(own) = &volume.spec else { continue };
            let reserved = is_bound_to(volume, claim);
            let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
            if own.claim_ref.is_some() && !reserved
                || capacity(volume) < wanted
                || mode(&own.volume_mode) != mode(&spec.volume_mode)
                || volume.metadata.deletion_timestamp.is_some()
            {
                continue;
            }
            let fits = volume_fits_node(volume, node, labels);
            if reserved {
                return fits.then_some(volume);
            }
            let available =
                volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available");
            let offered = own.access_modes.as_deref().unwrap_or_default();
            let modes = spec.access_modes.iter().flatten().all(|mode| offered.contains(mode));
            let selected = selector
                .as_ref()
                .is_none_or(|selector| selector.matches(volume.metadata.labels.as_ref().unwrap_or(&none)));
            let attributes = |class: &Option<String>| class.clone().unwrap_or_default();
            let same_attributes = attributes(&own.volume_attributes_class_name)
                == attributes(&spec.volume_attributes_class_name);
            if available && fits && modes && selected && same_attributes {
                let size = capacity(volume);
                if best.is_none_or(|(smallest, _)| size < smallest) {
                    best = Some((size, volume));
                }
            }
        }
        best.map(|(_, volume)| volume)
    }

    fn can_provision(&self, claim: &PersistentVolumeClaim, labels: &Labels) -> Result<(), Conflict> {
        let Some(class) = self.class(class_of_claim(claim)) else { return Err(Conflict::Bind) };
        if class.provisioner.is_empty() || class.provisioner == NO_PROVISIONER {
            return Err(Conflict::Bind);
        }
        let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
        if !topologies.is_empty() && !topologies.iter().any(|term| topology_matches(term, labels)) {
            return Err(Conflict::Bind);
        }
        if self.has_capacity(class, requested(claim), labels) { Ok(()) } else { Err(Conflict::Space) }
    }

    /// Only drivers that publish their capacity can lack it.
    fn has_capacity(&self, class: &StorageClass, size: i64, labels: &Labels) -> bool {
        let tracked = self
            .csi_driver(&class.provisioner)
            .is_some_and(|driver| driver.spec.storage_capacity == Some(true));
        let name = class.metadata.name.as_deref().unwrap_or_default();
        !tracked
            || size == 0
            || self.capacities.values().any(|capacity| {
                capacity.storage_class_name == name
                    && volume_limit(capacity).is_some_and(|limit| limit >= size)
                    && Selector::of(capacity.node_topology.as_ref()).matches(labels)
            })
    }

    /// Takes volumes for a pod on a node until they are seen bound.
    pub fn assume(&mut self, found: &PodVolumes, node: &str) -> PodVolumes {
        let mut assumed = PodVolumes::default();
        for (volume, claim) in &found.bindings {
            let bound = Arc::new(bind(volume, claim));
            if let Some(known) = self.volumes.get_mut(volume.metadata.name.as_deref().unwrap_or_default()) {
                known.assumed = Some(bound.clone());
            }
            assumed.bindings.push((bound, claim.clone()));
        }
        for claim in &found.provisions {
            let mut selected = PersistentVolumeClaim::clone(claim);
            let annotations = selected.metadata.annotations.get_or_insert_default();
            annotations.insert(SELECTED_NODE.to_owned(), node.to_owned());
            let selected = Arc::new(selected);
            if let Some(known) = self.claims.get_mut(&claim_key(&claim.metadata)) {
                known.assumed = Some(selected.clone());
            }
            assumed.provisions.push(selected);
        }
        assumed
    }

    /// Gives back what was assumed.
    pub fn revert(&mut self, assumed: &PodVolumes) {
        for (volume, _) in &assumed.bindings {
            if let Some(known) = self.volumes.get_mut(volume.metadata.name.as_deref().unwrap_or_default()) {
                known.assumed = None;
            }
        }
        for claim in &assumed.provisions {
            if let Some(known) = self.claims.get_mut(&claim_key(&claim.metadata)) {
                known.assumed = None;
            }
        }
    }
}

fn put<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => _ = map.insert(key, value),
        None => _ = map.remove(&key),
    }
}

/// How large a volume may be: the maximum if one is published, or else all that is left.
pub fn volume_limit(capacity: &CSIStorageCapacity) -> Option<i64> {
    let limit = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref());
    limit.map(|limit| bytes(Some(limit)))
}

fn topology_matches(term: &TopologySelectorTerm, labels: &Labels) -> bool {
    let mut requirements = term.match_label_expressions.iter().flatten();
    requirements.all(|one| labels.get(&one.key).is_some_and(|value| one.values.contains(value)))
}

/// A volume reserved for a claim.
fn bind(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> PersistentVolume {
    let mut bound = volume.clone();
    let spec = bound.spec.get_or_insert_default();
    if spec.claim_ref.is_none() {
        let annotations = bound.metadata.annotations.get_or_insert_default();
        annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
    }
    spec.claim_ref = Some(ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        ..ObjectReference::default()
    });
    bound
}

/// What is seen of a pod's volumes while their binding is under way.
pub struct Progress<'a> {
    pub node: &'a Node,
    pub claim: &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    pub volume: &'a dyn Fn(&str) -> Option<Arc<PersistentVolume>>,
}

impl Progress<'_> {
    /// Whether everything is bound; an error when it never will be, so that the pod has to be scheduled again.
    /// `written` are the objects as the API server has answered them.
    pub fn check(&self, written: &PodVolumes) -> Result<bool, String> {
        let none = Labels::new();
        let labels = self.node.metadata.labels.as_ref().unwrap_or(&none);
        let node = self.node.metadata.name.clone().unwrap_or_default();
        let fits = |volume: &PersistentVolume| {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            if volume_fits_node(volume, &node, labels) {
                return Ok(());
            }
            Err(format!(
                "pv \"{name}\" node affinity doesn't match node \"{node}\": no matching NodeSelectorTerms"
            ))
        };
        let mut all = true;
        for (volume, claim) in &written.bindings {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let now = (self.volume)(name).ok_or_else(|| {
                format!("failed to check binding: could not find v1.PersistentVolume \"{name}\"")
            })?;
            let key = claim_key(&claim.metadata);
            let claim = (self.claim)(&key).ok_or_else(|| {
                format!("failed to check binding: could not find v1.PersistentVolumeClaim \"{key}\"")
            })?;
            if is_older(&now.metadata, &volume.metadata) {
                return Ok(false);
            }
            fits(&now)?;
            let reference = now.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            if reference.and_then(|reference| reference.uid.as_ref()).is_none_or(String::is_empty) {
                return Err(format!("ClaimRef got reset for pv \"{name}\""));
            }
            all &= is_fully_bound(&claim);
        }
        for claim in &written.provisions {
            let key = claim_key(&claim.metadata);
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let now = (self.claim)(&key).ok_or_else(|| {
                format!("failed to check provisioning pvc: could not find v1.PersistentVolumeClaim \"{key}\"")
            })?;
            if is_older(&now.metadata, &claim.metadata) {
                return Ok(false);
            }
            let Some(annotations) = &now.metadata.annotations else {
                return Err(format!("selectedNode annotation reset for PVC \"{name}\""));
            };
            if annotations.get(SELECTED_NODE) != Some(&node) {
                return Err(format!("provisioning failed for PVC \"{name}\""));
            }
            if let Some(volume) = volume_name(&now) {
                match (self.volume)(volume) {
                    Some(volume) => fits(&volume)?,
                    None => return Ok(false),
                }
            }
            all &= is_fully_bound(&now);
        }
        Ok(all)
    }
}

/// Whether a cache has not yet caught up with what was written.
fn is_older(seen: &ObjectMeta, written: &ObjectMeta) -> bool {
    let version =
        |meta: &ObjectMeta| meta.resource_version.as_ref().and_then(|text| text.parse::<u64>().ok());
    version(seen) < version(written)
}
