//! Claims for devices, the slices in which drivers publish them, and what the scheduler has decided about claims and
//! not yet seen confirmed. Answers to upstream's `dynamicresources/dra_manager.go` (KEP-4381).

mod allocator;
mod binding_conditions;
mod capacity;
mod extended;
mod selector;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use orlop_client::ObjectKey;

pub use allocator::{Allocator, missing_class, preference};
pub use binding_conditions::{Readiness, has_binding_conditions, is_overdue, readiness};
pub use extended::{Needed, beneficiary, made_for, stands_for};
use selector::Selectors;

use crate::pod_info::PodInfo;
use crate::selector::NodeMatcher;

/// A device: driver, pool and name.
pub type DeviceId = (String, String, String);

#[derive(Debug)]
struct Known {
    api: Arc<ResourceClaim>,
    /// With the allocation or reservation that the scheduler has decided about.
    assumed: Option<Arc<ResourceClaim>>,
}

impl Known {
    fn latest(&self) -> &Arc<ResourceClaim> {
        self.assumed.as_ref().unwrap_or(&self.api)
    }
}

/// Everything about devices.
#[derive(Debug, Default)]
pub struct Claims {
    claims: HashMap<String, Known>,
    classes: HashMap<String, Arc<DeviceClass>>,
    slices: BTreeMap<String, Arc<ResourceSlice>>,
    slices_of_node: HashMap<String, BTreeSet<String>>,
    /// Slices that are not bound to one node.
    shared_slices: BTreeSet<String>,
    slices_of_pool: HashMap<(String, String), BTreeSet<String>>,
    /// How many claims have each device for themselves; several only by mistake.
    taken: HashMap<DeviceId, u32>,
    /// What claims have of the devices that they share.
    shared: HashMap<DeviceId, capacity::Amounts>,
    selectors: Selectors,
    resource_names: extended::ResourceNames,
    /// The claims that the scheduler made for pods' resources.
    made: HashMap<extended::Beneficiary, String>,
}

/// What a claim holds: the devices, and of those that it shares, how much. Administrative access holds nothing.
fn devices_of(claim: &ResourceClaim) -> impl Iterator<Item = (DeviceId, Option<capacity::Amounts>)> {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let results = allocation.and_then(|allocation| allocation.devices.as_ref()?.results.as_ref());
    let own = results.into_iter().flatten().filter(|result| result.admin_access != Some(true));
    own.map(|result| {
        let part = || result.consumed_capacity.as_ref().map(capacity::amounts).unwrap_or_default();
        let id = (result.driver.clone(), result.pool.clone(), result.device.clone());
        (id, result.share_id.is_some().then(part))
    })
}

/// Whether a claim has its devices.
pub fn is_allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|status| status.allocation.is_some())
}

/// Whether a claim is reserved for a pod.
pub fn is_reserved_for(claim: &ResourceClaim, pod: &PodInfo) -> bool {
    let consumers = claim.status.as_ref().and_then(|status| status.reserved_for.as_ref());
    consumers.into_iter().flatten().any(|consumer| consumer.uid == pod.uid)
}

/// How many pods may use one claim.
const MAX_CONSUMERS: usize = 256;

/// Whether one more pod may use a claim.
pub fn can_be_reserved(claim: &ResourceClaim) -> bool {
    let consumers = claim.status.as_ref().and_then(|status| status.reserved_for.as_ref());
    consumers.is_none_or(|consumers| consumers.len() < MAX_CONSUMERS)
}

/// Where an allocated claim can be used; `None` for everywhere.
pub fn allocated_nodes(claim: &ResourceClaim) -> Option<NodeMatcher> {
    let allocation = claim.status.as_ref()?.allocation.as_ref()?;
    allocation.node_selector.as_ref().map(|selector| NodeMatcher::new(None, Some(selector)))
}

impl Claims {
    pub fn claim(&self, key: &str) -> Option<&Arc<ResourceClaim>> {
        self.claims.get(key).map(Known::latest)
    }

    pub fn class(&self, name: &str) -> Option<&Arc<DeviceClass>> {
        self.classes.get(name)
    }

    pub fn set_claim(&mut self, claim: Arc<ResourceClaim>) {
        let key = ObjectKey::of(&claim.metadata).to_string();
        if let Some(known) = self.claims.get_mut(&key)
            && known.api.metadata.resource_version == claim.metadata.resource_version
        {
            known.api = claim;
            return;
        }
        if let Some(pod) = made_for(&claim) {
            if is_allocated(&claim) {
                self.release(&pod);
            }
            self.made.insert(pod, key.clone());
        }
        self.count(&key, -1);
        self.claims.insert(key.clone(), Known { api: claim, assumed: None });
        self.count(&key, 1);
    }

    pub fn remove_claim(&mut self, key: &str) {
        self.count(key, -1);
        let Some(known) = self.claims.remove(key) else { return };
        if let Some(pod) = made_for(&known.api)
            && self.made.get(&pod).is_some_and(|made| made == key)
        {
            self.made.remove(&pod);
        }
    }

    /// Takes the devices of a claim that is about to be made for a pod's resources.
    pub fn hold(&mut self, pod: &PodInfo, claim: Arc<ResourceClaim>) {
        let key = held(&beneficiary(pod));
        self.claims.insert(key.clone(), Known { api: claim, assumed: None });
        self.count(&key, 1);
    }

    /// Gives back what [`hold`](Self::hold) took: the claim has been made, or will not be.
    pub fn release(&mut self, pod: &extended::Beneficiary) {
        if self.claims.is_empty() {
            return;
        }
        let key = held(pod);
        self.count(&key, -1);
        self.claims.remove(&key);
    }

    fn count(&mut self, key: &str, sign: i32) {
        let Some(known) = self.claims.get(key) else { return };
        for (device, part) in devices_of(known.latest()) {
            let Some(part) = part else {
                let count = self.taken.entry(device.clone()).or_default();
                *count = count.saturating_add_signed(sign);
                if *count == 0 {
                    self.taken.remove(&device);
                }
                continue;
            };
            let all = self.shared.entry(device.clone()).or_default();
            capacity::add(all, &part, sign.into());
            if all.values().all(|amount| *amount == 0) {
                self.shared.remove(&device);
            }
        }
    }

    /// Takes a claim as it will be until the API server shows something newer.
    pub fn assume(&mut self, key: &str, claim: Arc<ResourceClaim>) {
        self.count(key, -1);
        if let Some(known) = self.claims.get_mut(key) {
            known.assumed = Some(claim);
        }
        self.count(key, 1);
    }

    /// Gives back what was assumed.
    pub fn revert(&mut self, key: &str) {
        self.count(key, -1);
        if let Some(known) = self.claims.get_mut(key) {
            known.assumed = None;
        }
        self.count(key, 1);
    }

    pub fn set_class(&mut self, name: &str, class: Option<Arc<DeviceClass>>) {
        let old = match &class {
            Some(class) => self.classes.insert(name.to_owned(), class.clone()),
            None => self.classes.remove(name),
        };
        self.resource_names.replace(old.as_deref(), class.as_deref());
    }

    pub fn set_slice(&mut self, name: &str, slice: Option<Arc<ResourceSlice>>) {
        if let Some(old) = self.slices.remove(name) {
            self.shared_slices.remove(name);
            forget(&mut self.slices_of_pool, &pool(&old), name);
            if let Some(node) = &old.spec.node_name {
                forget(&mut self.slices_of_node, node, name);
            }
        }
        let Some(slice) = slice else { return };
        self.slices_of_pool.entry(pool(&slice)).or_default().insert(name.to_owned());
        match slice.spec.node_name.as_ref().filter(|node| !node.is_empty()) {
            Some(node) => _ = self.slices_of_node.entry(node.clone()).or_default().insert(name.to_owned()),
            None => _ = self.shared_slices.insert(name.to_owned()),
        }
        self.slices.insert(name.to_owned(), slice);
    }

    /// The claims of a pod, with the names they have in its spec. Fails with what the pod waits for.
    pub fn claims_of(&self, pod: &PodInfo) -> Result<Vec<Arc<ResourceClaim>>, String> {
        let wanted = pod.spec().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default();
        let mut claims = Vec::new();
        for reference in wanted {
            let name = match &reference.resource_claim_name {
                Some(name) => name.clone(),
                None => {
                    let statuses =
                        pod.pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_ref());
                    let mut own =
                        statuses.into_iter().flatten().filter(|status| status.name == reference.name);
                    match own.next() {
                        // The template made no claim, on purpose.
                        Some(status) if status.resource_claim_name.is_none() => continue,
                        Some(status) => status.resource_claim_name.clone().unwrap_or_default(),
                        None => return Err(format!("pod \"{}\": ResourceClaim not created yet", pod.key)),
                    }
                }
            };
            let Some(claim) = self.claim(&format!("{}/{name}", pod.key.namespace)) else {
                return Err(format!("resourceclaim.resource.k8s.io \"{name}\" not found"));
            };
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("resourceclaim \"{name}\" is being deleted"));
            }
            if reference.resource_claim_name.is_none() {
                let mut owners = claim.metadata.owner_references.iter().flatten();
                if !owners.any(|owner| owner.controller == Some(true) && owner.uid == pod.uid) {
                    return Err(format!(
                        "ResourceClaim {}/{name} was not created for pod {} (pod is not owner)",
                        pod.key.namespace, pod.key
                    ));
                }
            }
            claims.push(claim.clone());
        }
        Ok(claims)
    }

    /// Makes the selectors ready that the allocation for a pod evaluates.
    pub fn compile_for(&mut self, pod: &PodInfo) {
        for claim in self.claims_of(pod).unwrap_or_default() {
            for (class, selectors) in allocator::selectors_of(&claim) {
                let class = self.classes.get(&class).cloned();
                let of_class = class.iter().flat_map(|class| class.spec.selectors.iter().flatten());
                for selector in of_class.chain(&selectors) {
                    if let Some(cel) = &selector.cel {
                        self.selectors.compile(&cel.expression);
                    }
                }
            }
        }
        let classes = self.classes_of_resources(pod).filter_map(|class| self.class(class).cloned());
        for class in classes.collect::<Vec<_>>() {
            for cel in class.spec.selectors.iter().flatten().filter_map(|selector| selector.cel.as_ref()) {
                self.selectors.compile(&cel.expression);
            }
        }
    }
}

/// The key of a claim that is not there yet: no object has such a name.
fn held((namespace, uid): &extended::Beneficiary) -> String {
    format!("{namespace}/<extended-resources>/{uid}")
}

fn pool(slice: &ResourceSlice) -> (String, String) {
    (slice.spec.driver.clone(), slice.spec.pool.name.clone())
}

fn forget<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<String>>, key: &K, name: &str) {
    if let Some(names) = map.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            map.remove(key);
        }
    }
}
