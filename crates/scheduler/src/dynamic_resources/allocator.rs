//! Which devices of a node satisfy all claims of a pod: a search with backtracking, bounded in steps. Answers to
//! `dynamic-resource-allocation/structured`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, CapacityRequirements, Device, DeviceAllocationConfiguration, DeviceAllocationResult,
    DeviceConstraint, DeviceRequest, DeviceRequestAllocationResult, DeviceSelector, DeviceSubRequest,
    DeviceTaint, DeviceToleration, ResourceClaim, ResourceSlice,
};
use orlop_api::Quantity;

use super::capacity::{self, Amounts};
use super::{Claims, DeviceId};
use crate::cache::NodeInfo;
use crate::selector::NodeMatcher;

/// How many devices one claim may get.
const MAX_DEVICES: usize = 32;
/// How many devices are tried for one node before the search gives up.
const MAX_STEPS: usize = 100_000;

/// One way to satisfy a request.
struct Alternative<'a> {
    /// `request`, or `request/subrequest`.
    name: String,
    class: &'a str,
    selectors: &'a [DeviceSelector],
    /// `None` for all devices that match.
    count: Option<usize>,
    admin: bool,
    tolerations: &'a [DeviceToleration],
    capacity: Option<&'a CapacityRequirements>,
}

fn alternatives(request: &DeviceRequest) -> Vec<Alternative<'_>> {
    let count = |mode: &Option<String>, count: Option<i64>| match mode.as_deref() {
        Some("All") => None,
        _ => Some(usize::try_from(count.unwrap_or(1)).unwrap_or(1)),
    };
    if let Some(exact) = &request.exactly {
        return vec![Alternative {
            name: request.name.clone(),
            class: &exact.device_class_name,
            selectors: exact.selectors.as_deref().unwrap_or_default(),
            count: count(&exact.allocation_mode, exact.count),
            admin: exact.admin_access == Some(true),
            tolerations: exact.tolerations.as_deref().unwrap_or_default(),
            capacity: exact.capacity.as_ref(),
        }];
    }
    let available = request.first_available.iter().flatten();
    available
        .map(|sub| Alternative {
            name: format!("{}/{}", request.name, sub.name),
            class: &sub.device_class_name,
            selectors: sub.selectors.as_deref().unwrap_or_default(),
            count: count(&sub.allocation_mode, sub.count),
            admin: false,
            tolerations: sub.tolerations.as_deref().unwrap_or_default(),
            capacity: sub.capacity.as_ref(),
        })
        .collect()
}

fn requests(claim: &ResourceClaim) -> &[DeviceRequest] {
    let devices = claim.spec.devices.as_ref();
    devices.and_then(|devices| devices.requests.as_deref()).unwrap_or_default()
}

/// The classes that a claim's requests name, with the requests' own selectors.
pub fn selectors_of(claim: &ResourceClaim) -> Vec<(String, Vec<DeviceSelector>)> {
    let all = requests(claim).iter().flat_map(alternatives);
    all.map(|alternative| (alternative.class.to_owned(), alternative.selectors.to_vec())).collect()
}

/// A class that a claim names and that does not exist.
pub fn missing_class(claim: &ResourceClaim, claims: &Claims) -> Option<(String, String)> {
    let mut all = requests(claim).iter().flat_map(alternatives);
    all.find(|alternative| claims.class(alternative.class).is_none())
        .map(|alternative| (alternative.name, alternative.class.to_owned()))
}

/// How much is liked what a claim got: of alternatives, the first is the best (KEP-4816).
pub fn preference(claim: &ResourceClaim, allocation: &AllocationResult) -> i64 {
    /// `FirstAvailableDeviceRequestMaxSize`.
    const MOST_ALTERNATIVES: usize = 8;
    let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
    let got: BTreeSet<&str> = results.map(|result| result.request.as_str()).collect();
    let of_request = |request: &DeviceRequest| {
        let place = |sub: &DeviceSubRequest| got.contains(format!("{}/{}", request.name, sub.name).as_str());
        let places = request.first_available.iter().flatten().enumerate().filter(|(_, sub)| place(sub));
        places.map(|(place, _)| MOST_ALTERNATIVES.saturating_sub(place) as i64).sum::<i64>()
    };
    requests(claim).iter().map(of_request).sum()
}

struct Candidate<'a> {
    id: DeviceId,
    device: &'a Device,
    slice: &'a ResourceSlice,
}

#[derive(Clone)]
struct Pick {
    claim: usize,
    request: String,
    device: usize,
    admin: bool,
    /// Of a device that is shared.
    part: Option<Amounts>,
}

/// The search for one node.
pub struct Allocator<'a> {
    claims: &'a Claims,
    wanted: &'a [Arc<ResourceClaim>],
    devices: Vec<Candidate<'a>>,
    /// Pools of which slices are missing: nothing can be said of all their devices.
    incomplete: bool,
    picks: Vec<Pick>,
    steps: usize,
    verdicts: HashMap<(usize, usize, String), bool>,
    node: &'a NodeInfo,
}

impl<'a> Allocator<'a> {
    pub fn new(claims: &'a Claims, wanted: &'a [Arc<ResourceClaim>], node: &'a NodeInfo) -> Self {
        let own = claims.slices_of_node.get(&node.name).into_iter().flatten();
        let mut devices = Vec::new();
        let mut incomplete = false;
        for name in own.chain(&claims.shared_slices) {
            let Some(slice) = claims.slices.get(name) else { continue };
            let pool = super::pool(slice);
            let siblings = || claims.slices_of_pool.get(&pool).into_iter().flatten();
            let siblings = || siblings().filter_map(|name| claims.slices.get(name));
            let newest = siblings().map(|slice| slice.spec.pool.generation).max().unwrap_or(0);
            if slice.spec.pool.generation != newest {
                continue;
            }
            let complete = siblings().filter(|slice| slice.spec.pool.generation == newest).count();
            if i64::try_from(complete).unwrap_or(0) < slice.spec.pool.resource_slice_count {
                incomplete = true;
                continue;
            }
            let reachable = |device: &&Device| match slice.spec.per_device_node_selection {
                Some(true) => is_reachable(
                    device.node_name.as_ref(),
                    device.all_nodes,
                    device.node_selector.as_ref(),
                    node,
                ),
                _ => is_reachable(
                    slice.spec.node_name.as_ref(),
                    slice.spec.all_nodes,
                    slice.spec.node_selector.as_ref(),
                    node,
                ),
            };
            for device in slice.spec.devices.iter().flatten().filter(reachable) {
                let id = (pool.0.clone(), pool.1.clone(), device.name.clone());
                devices.push(Candidate { id, device, slice });
            }
        }
        // What is ready at once comes first.
        let waits =
            |device: &Device| device.binding_conditions.as_ref().is_some_and(|names| !names.is_empty());
        devices.sort_by_key(|candidate: &Candidate<'_>| {
            candidate.slice.spec.devices.iter().flatten().any(waits)
        });
        Self {
            claims,
            wanted,
            devices,
            incomplete,
            picks: Vec::new(),
            steps: 0,
            verdicts: HashMap::new(),
            node,
        }
    }

    /// The allocations of all claims in their order; `None` when the node cannot satisfy them.
    pub fn allocate(mut self) -> Result<Option<Vec<AllocationResult>>, String> {
        if !self.request(0, 0)? {
            return Ok(None);
        }
        Ok(Some((0..self.wanted.len()).map(|claim| self.result(claim)).collect()))
    }

    fn request(&mut self, claim: usize, request: usize) -> Result<bool, String> {
        let Some(wanted) = self.wanted.get(claim) else { return Ok(true) };
        let Some(own) = requests(wanted).get(request) else { return self.request(claim + 1, 0) };
        for alternative in alternatives(own) {
            let done = match alternative.count {
                Some(count) => self.pick(claim, request, &alternative, count, 0)?,
                None => self.pick_all(claim, request, &alternative)?,
            };
            if done {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn pick(
        &mut self,
        claim: usize,
        request: usize,
        alternative: &Alternative<'_>,
        missing: usize,
        from: usize,
    ) -> Result<bool, String> {
        if missing == 0 {
            return self.request(claim, request + 1);
        }
        if !self.are_left(claim, request, alternative, missing, from)? {
            return Ok(false);
        }
        for device in from..self.devices.len() {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err("allocating devices took too many steps".to_owned());
            }
            if !self.is_free(device, alternative) || !self.matches(claim, request, alternative, device)? {
                continue;
            }
            if !self.take(claim, alternative, device) {
                continue;
            }
            // A shared device may be given twice.
            let next = if capacity::is_shared(self.devices[device].device) { device } else { device + 1 };
            if self.pick(claim, request, alternative, missing - 1, next)? {
                return Ok(true);
            }
            self.picks.pop();
        }
        Ok(false)
    }

    /// Whether so many devices are left to choose from. Without looking ahead, one device too few would mean trying all
    /// sets of the others.
    fn are_left(
        &mut self,
        claim: usize,
        request: usize,
        alternative: &Alternative<'_>,
        missing: usize,
        from: usize,
    ) -> Result<bool, String> {
        let own = self.picks.iter().filter(|pick| pick.claim == claim).count();
        if own.saturating_add(missing) > MAX_DEVICES {
            return Ok(false);
        }
        let mut left = 0;
        for device in from..self.devices.len() {
            if !self.is_free(device, alternative) || !self.matches(claim, request, alternative, device)? {
                continue;
            }
            left += 1;
            if left == missing || capacity::is_shared(self.devices[device].device) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn pick_all(
        &mut self,
        claim: usize,
        request: usize,
        alternative: &Alternative<'_>,
    ) -> Result<bool, String> {
        if self.incomplete {
            return Ok(false);
        }
        let before = self.picks.len();
        for device in 0..self.devices.len() {
            if !self.matches(claim, request, alternative, device)? {
                continue;
            }
            if !self.is_free(device, alternative) || !self.take(claim, alternative, device) {
                self.picks.truncate(before);
                return Ok(false);
            }
        }
        if self.picks.len() > before && self.request(claim, request + 1)? {
            return Ok(true);
        }
        self.picks.truncate(before);
        Ok(false)
    }

    fn is_free(&self, device: usize, alternative: &Alternative<'_>) -> bool {
        let candidate = &self.devices[device];
        let tolerated = candidate.device.taints.iter().flatten().all(|taint| {
            !matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
                || alternative.tolerations.iter().any(|toleration| tolerates(toleration, taint))
        });
        tolerated && (alternative.admin || self.is_left(device, alternative))
    }

    /// Whether a device is nobody's, or enough of a shared one is left.
    fn is_left(&self, device: usize, alternative: &Alternative<'_>) -> bool {
        let candidate = &self.devices[device];
        let Some(part) = capacity::consumption(candidate.device, alternative.capacity) else { return false };
        if self.claims.taken.contains_key(&candidate.id) {
            return false;
        }
        let mut picks = self.picks.iter().filter(|pick| pick.device == device && !pick.admin);
        if !capacity::is_shared(candidate.device) {
            return !self.claims.shared.contains_key(&candidate.id) && picks.next().is_none();
        }
        let mut all = self.claims.shared.get(&candidate.id).cloned().unwrap_or_default();
        picks
            .filter_map(|pick| pick.part.as_ref())
            .chain([&part])
            .for_each(|part| capacity::add(&mut all, part, 1));
        capacity::suffices(candidate.device, &all)
    }

    fn matches(
        &mut self,
        claim: usize,
        request: usize,
        alternative: &Alternative<'_>,
        device: usize,
    ) -> Result<bool, String> {
        let key =
            (claim * requests(&self.wanted[claim]).len().max(1) + request, device, alternative.name.clone());
        if let Some(known) = self.verdicts.get(&key) {
            return Ok(*known);
        }
        let candidate = &self.devices[device];
        let class = self.claims.class(alternative.class);
        let of_class = class.into_iter().flat_map(|class| class.spec.selectors.iter().flatten());
        let mut chosen = class.is_some();
        for selector in of_class.chain(alternative.selectors) {
            let Some(cel) = &selector.cel else { continue };
            if !chosen {
                break;
            }
            let verdict = self.claims.selectors.matches(
                &cel.expression,
                &candidate.slice.spec.driver,
                candidate.device,
            );
            chosen = verdict.map_err(|reason| {
                let name = self.wanted[claim].metadata.name.as_deref().unwrap_or_default();
                format!(
                    "claim {name}: selector for request {}: CEL runtime error: {reason}",
                    alternative.name
                )
            })?;
        }
        self.verdicts.insert(key, chosen);
        Ok(chosen)
    }

    /// Takes a device unless a constraint of the claim, its size or a shared counter forbids it.
    fn take(&mut self, claim: usize, alternative: &Alternative<'_>, device: usize) -> bool {
        let of = self.devices[device].device;
        let shares = capacity::is_shared(of) && !alternative.admin;
        let part = || capacity::consumption(of, alternative.capacity).unwrap_or_default();
        let pick = Pick {
            claim,
            request: alternative.name.clone(),
            device,
            admin: alternative.admin,
            part: shares.then(part),
        };
        let own = self.picks.iter().filter(|pick| pick.claim == claim).count();
        if own >= MAX_DEVICES {
            return false;
        }
        self.picks.push(pick);
        let constraints =
            self.wanted[claim].spec.devices.as_ref().and_then(|devices| devices.constraints.as_ref());
        let mut constraints = constraints.into_iter().flatten();
        let holds = constraints.all(|constraint| self.holds(claim, constraint))
            && (alternative.admin || self.counters_suffice(device));
        if !holds {
            self.picks.pop();
        }
        holds
    }

    fn holds(&self, claim: usize, constraint: &DeviceConstraint) -> bool {
        let covered = |pick: &&Pick| {
            let main = pick.request.split('/').next().unwrap_or_default();
            let names = constraint.requests.as_deref().unwrap_or_default();
            pick.claim == claim
                && (names.is_empty() || names.iter().any(|name| *name == pick.request || name == main))
        };
        let values = |attribute: &str| -> Vec<Option<serde_json::Value>> {
            let picks = self.picks.iter().filter(covered);
            picks.map(|pick| self.attribute(pick.device, attribute)).collect()
        };
        if let Some(attribute) = &constraint.match_attribute {
            let values = values(attribute);
            return values.iter().all(|value| value.is_some() && *value == values[0]);
        }
        if let Some(attribute) = &constraint.distinct_attribute {
            let values = values(attribute);
            return (0..values.len())
                .all(|place| values[place].is_some() && !values[..place].contains(&values[place]));
        }
        // A kind of constraint that is not known cannot be said to hold.
        false
    }

    fn attribute(&self, device: usize, name: &str) -> Option<serde_json::Value> {
        let candidate = &self.devices[device];
        let attributes = candidate.device.attributes.as_ref()?;
        let short = || {
            let (domain, id) = name.split_once('/')?;
            (domain == candidate.slice.spec.driver).then(|| attributes.get(id)).flatten()
        };
        serde_json::to_value(attributes.get(name).or_else(short)?).ok()
    }

    /// Whether the counters that a device consumes are left by all devices of its pool that are in use (KEP-4815).
    fn counters_suffice(&self, device: usize) -> bool {
        let candidate = &self.devices[device];
        let Some(consumes) = candidate.device.consumes_counters.as_ref() else { return true };
        let pool = (&candidate.id.0, &candidate.id.1);
        let siblings =
            self.claims.slices_of_pool.get(&(pool.0.clone(), pool.1.clone())).into_iter().flatten();
        let siblings: Vec<_> = siblings.filter_map(|name| self.claims.slices.get(name)).collect();
        let newest = siblings.iter().map(|slice| slice.spec.pool.generation).max().unwrap_or(0);
        let current = || siblings.iter().filter(|slice| slice.spec.pool.generation == newest);
        let value = |text: &str| Quantity::parse(text).map_or(0, |quantity| quantity.milli_value());
        let mut left: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for set in current().flat_map(|slice| slice.spec.shared_counters.iter().flatten()) {
            for (name, counter) in &set.counters {
                left.insert((&set.name, name), value(&counter.value.0));
            }
        }
        let in_use = |device: &Device| {
            let id = (pool.0.clone(), pool.1.clone(), device.name.clone());
            self.claims.taken.contains_key(&id)
                || self.claims.shared.contains_key(&id)
                || self.picks.iter().any(|pick| !pick.admin && self.devices[pick.device].id == id)
        };
        let users =
            current().flat_map(|slice| slice.spec.devices.iter().flatten()).filter(|device| in_use(device));
        for consumption in users.flat_map(|device| device.consumes_counters.iter().flatten()) {
            for (name, counter) in &consumption.counters {
                if let Some(left) = left.get_mut(&(consumption.counter_set.as_str(), name.as_str())) {
                    *left -= value(&counter.value.0);
                }
            }
        }
        consumes.iter().all(|consumption| {
            consumption.counters.keys().all(|name| {
                left.get(&(consumption.counter_set.as_str(), name.as_str())).is_some_and(|left| *left >= 0)
            })
        })
    }

    fn result(&self, claim: usize) -> AllocationResult {
        let picks: Vec<_> = self.picks.iter().filter(|pick| pick.claim == claim).collect();
        let wanted = &self.wanted[claim];
        let all: Vec<_> = requests(wanted).iter().flat_map(alternatives).collect();
        let chosen = |name: &str| all.iter().find(|alternative| alternative.name == name);
        let results = picks.iter().map(|pick| {
            let (driver, pool, device) = self.devices[pick.device].id.clone();
            let of = self.devices[pick.device].device;
            let tolerations = chosen(&pick.request).map(|alternative| alternative.tolerations.to_vec());
            DeviceRequestAllocationResult {
                request: pick.request.clone(),
                driver,
                pool,
                device,
                admin_access: pick.admin.then_some(true),
                tolerations: tolerations.filter(|tolerations| !tolerations.is_empty()),
                binding_conditions: of.binding_conditions.clone(),
                binding_failure_conditions: of.binding_failure_conditions.clone(),
                share_id: pick.part.is_some().then(|| uuid::Uuid::new_v4().to_string()),
                consumed_capacity: pick.part.as_ref().map(|part| capacity::quantities(of, part)),
            }
        });
        let mut config = Vec::new();
        let mut used: Vec<&str> = picks.iter().map(|pick| pick.request.as_str()).collect();
        used.dedup();
        for name in &used {
            let class = chosen(name).and_then(|alternative| self.claims.class(alternative.class));
            for own in class.iter().flat_map(|class| class.spec.config.iter().flatten()) {
                config.push(DeviceAllocationConfiguration {
                    source: "FromClass".to_owned(),
                    requests: Some(vec![(*name).to_owned()]),
                    opaque: own.opaque.clone(),
                });
            }
        }
        let devices = wanted.spec.devices.as_ref();
        for own in devices.iter().flat_map(|devices| devices.config.iter().flatten()) {
            let names = own.requests.as_deref().unwrap_or_default();
            let concerns =
                |used: &&str| names.iter().any(|name| name == used || used.split('/').next() == Some(name));
            if names.is_empty() || used.iter().any(concerns) {
                config.push(DeviceAllocationConfiguration {
                    source: "FromClaim".to_owned(),
                    requests: own.requests.clone(),
                    opaque: own.opaque.clone(),
                });
            }
        }
        AllocationResult {
            devices: Some(DeviceAllocationResult {
                results: Some(results.collect()),
                config: Some(config).filter(|config| !config.is_empty()),
            }),
            node_selector: self.node_selector(&picks),
            allocation_timestamp: None,
        }
    }

    /// Where the picked devices can be used.
    fn node_selector(&self, picks: &[&Pick]) -> Option<NodeSelector> {
        let mut shared = None;
        for pick in picks {
            let Candidate { device, slice, .. } = &self.devices[pick.device];
            let per_device = slice.spec.per_device_node_selection == Some(true);
            let (name, selector) = match per_device {
                true => (&device.node_name, &device.node_selector),
                false => (&slice.spec.node_name, &slice.spec.node_selector),
            };
            if name.as_ref().is_some_and(|name| !name.is_empty()) || device.binds_to_node == Some(true) {
                return Some(only(&self.node.name));
            }
            match (&shared, selector) {
                (None, Some(selector)) => shared = Some(selector.clone()),
                // Two devices with different reach: this node has both, which is all that is known.
                (Some(known), Some(selector)) if known != selector => return Some(only(&self.node.name)),
                _ => {}
            }
        }
        shared
    }
}

fn only(node: &str) -> NodeSelector {
    let name = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![name]), match_expressions: None };
    NodeSelector { node_selector_terms: vec![term] }
}

fn is_reachable(
    name: Option<&String>,
    all: Option<bool>,
    selector: Option<&NodeSelector>,
    node: &NodeInfo,
) -> bool {
    match (name.filter(|name| !name.is_empty()), selector) {
        (Some(name), _) => *name == node.name,
        (None, Some(selector)) => NodeMatcher::new(None, Some(selector)).matches(&node.name, node.labels()),
        (None, None) => all == Some(true),
    }
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    if given(&toleration.effect).is_some_and(|effect| effect != taint.effect)
        || given(&toleration.key).is_some_and(|key| key != taint.key)
    {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        _ => toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
    }
}
