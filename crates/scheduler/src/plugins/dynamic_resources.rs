//! A pod runs where its claims for devices are or can be allocated; they are allocated and reserved for the pod before
//! it is bound (KEP-4381). For extended resources that only devices provide a claim is made (KEP-5004).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodExtendedResourceClaimStatus;
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use orlop_client::ObjectKey;
use parking_lot::Mutex;

use crate::cache::{Cache, NodeInfo};
use crate::config::DynamicResourcesArgs;
use crate::dynamic_resources::{
    Allocator, Needed, Readiness, allocated_nodes, beneficiary, can_be_reserved, has_binding_conditions,
    is_allocated, is_overdue, is_reserved_for, made_for, missing_class, preference, readiness,
};
use crate::framework::{
    ActionType, BoxFuture, Change, ClusterEvent, Code, Diagnosis, EventResource, ExtensionPoint, Filter,
    Framework, Plugin, PostFilter, PreFilter, QueueingHint, Registration, Reservation, Scorer, Status,
    default_normalize_score,
};
use crate::go_duration;
use crate::nominator::Nominator;
use crate::pod_info::PodInfo;
use crate::selector::NodeMatcher;
use crate::shell::{CLAIM_FINALIZER, Shell};

/// What upstream gives devices to become ready.
const BINDING_TIMEOUT: Duration = Duration::from_secs(600);

pub struct DynamicResources {
    /// How long devices may take to become ready.
    binding_timeout: Duration,
}

impl DynamicResources {
    /// The arguments' other timeout bounds what upstream measures in time; here the search is bounded in steps.
    pub fn new(args: DynamicResourcesArgs) -> Self {
        let given = args.binding_timeout.and_then(|timeout| go_duration::parse(&timeout));
        let timeout = given.and_then(|nanos| u64::try_from(nanos).ok()).map(Duration::from_nanos);
        Self { binding_timeout: timeout.unwrap_or(BINDING_TIMEOUT) }
    }

    /// Whether the driver has failed to make an allocated claim's devices ready, or takes too long.
    fn is_unavailable(&self, claim: &ResourceClaim) -> bool {
        match readiness(claim) {
            Readiness::Ready => false,
            Readiness::Failed(_) => true,
            Readiness::Waiting => is_overdue(claim, self.binding_timeout, Timestamp::now()),
        }
    }
}

struct Devices<'a> {
    cache: &'a Cache,
    pod: &'a PodInfo,
    /// Where the claims are that are allocated already.
    allocated: Vec<NodeMatcher>,
    /// Whether one of those has devices that do not become ready.
    unavailable: bool,
    wanted: Vec<Arc<ResourceClaim>>,
}

impl<'a> Devices<'a> {
    fn of(pod: &'a PodInfo, cache: &'a Cache, wanted: Vec<Arc<ResourceClaim>>) -> Self {
        Self { cache, pod, allocated: Vec::new(), unavailable: false, wanted }
    }

    /// What the pod would get on a node: its claims that are to be allocated and the one for its extended resources,
    /// if it needs one there.
    fn allocate(&self, node: &NodeInfo) -> Result<Allocated, Status> {
        let claims = &self.cache.claims;
        let needed = claims.needed_on(self.pod, node).map_err(Status::unresolvable)?;
        let mut wanted = self.wanted.clone();
        wanted.extend(needed.iter().map(|needed| Arc::new(needed.claim.clone())));
        if wanted.is_empty() {
            return Ok(Allocated { results: Vec::new(), needed });
        }
        match Allocator::new(claims, &wanted, node).allocate() {
            Ok(Some(results)) => Ok(Allocated { results, needed }),
            Ok(None) => Err(Status::unresolvable("cannot allocate all claims")),
            Err(reason) => Err(Status::error(reason)),
        }
    }
}

/// An allocation for each claim that was to be allocated, then that of the needed one.
struct Allocated {
    results: Vec<AllocationResult>,
    needed: Option<Needed>,
}

impl Filter for Devices<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status> {
        // What an earlier attempt has left may not be valid any more: it is deleted when no node is found.
        if self.cache.claims.made_for(self.pod).is_some() {
            return Err(Status::unresolvable("cannot schedule extended resource claim"));
        }
        let reached =
            !self.unavailable && self.allocated.iter().all(|nodes| nodes.matches(&node.name, node.labels()));
        let allocated = self.allocate(node).map(drop);
        if reached { allocated } else { Err(Status::unresolvable("resourceclaim not available on the node")) }
    }
}

impl Scorer for Devices<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let Ok(allocated) = self.allocate(node) else { return 0 };
        self.wanted.iter().zip(&allocated.results).map(|(claim, result)| preference(claim, result)).sum()
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        default_normalize_score(scores, false);
    }
}

fn uses_claims(pod: &PodInfo) -> bool {
    pod.spec().is_some_and(|spec| spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()))
}

/// Whether the pod has claims, or asks for resources that devices may have to provide.
fn is_concerned(pod: &PodInfo, cache: &Cache) -> bool {
    uses_claims(pod) || cache.claims.classes_of_resources(pod).next().is_some()
}

fn has_alternatives(claim: &ResourceClaim) -> bool {
    let requests = claim.spec.devices.iter().flat_map(|devices| devices.requests.iter().flatten());
    requests.into_iter().any(|request| request.first_available.is_some())
}

fn key(claim: &ResourceClaim) -> String {
    ObjectKey::of(&claim.metadata).to_string()
}

fn reserve_for(claim: &mut ResourceClaim, pod: &PodInfo) {
    let consumer = ResourceClaimConsumerReference {
        resource: "pods".to_owned(),
        name: pod.key.name.clone(),
        uid: pod.uid.clone(),
        ..ResourceClaimConsumerReference::default()
    };
    claim.status.get_or_insert_default().reserved_for.get_or_insert_default().push(consumer);
}

/// Claims taken for a pod.
struct Taken {
    pod: Arc<PodInfo>,
    node: String,
    /// As they were, with the allocation that was decided about.
    claims: Vec<(Arc<ResourceClaim>, Option<AllocationResult>)>,
    /// The claim that is made for the pod's extended resources.
    needed: Option<(Needed, AllocationResult)>,
    /// That claim, once it is there.
    made: Arc<Mutex<Option<Made>>>,
    /// The names of claims whose devices have to become ready first.
    awaited: Vec<String>,
    binding_timeout: Duration,
}

struct Made {
    shell: Arc<Shell>,
    claim: ResourceClaim,
}

impl Reservation for Taken {
    fn pre_bind(&self, shell: Arc<Shell>) -> BoxFuture<Result<(), Status>> {
        let (pod, claims, needed) = (self.pod.clone(), self.claims.clone(), self.needed.clone());
        let node = self.node.clone();
        let (made, mut awaited, timeout) = (self.made.clone(), self.awaited.clone(), self.binding_timeout);
        Box::pin(async move {
            let failed =
                |name: &str, error| Status::error(format!("claim {name}: {error}")).by("DynamicResources");
            for (claim, allocation) in claims {
                let written = write(&shell, &pod, &claim, allocation).await;
                written.map_err(|error| failed(claim.metadata.name.as_deref().unwrap_or_default(), error))?;
            }
            if let Some((needed, allocation)) = needed {
                let of_resources = |error| failed("for extended resources", error);
                let claim = shell.create_claim(&needed.claim).await.map_err(of_resources)?;
                *made.lock() = Some(Made { shell: shell.clone(), claim: claim.clone() });
                let written = write(&shell, &pod, &claim, Some(allocation)).await.map_err(of_resources)?;
                let name = claim.metadata.name.unwrap_or_default();
                if has_binding_conditions(&written) {
                    awaited.push(name.clone());
                }
                let status = PodExtendedResourceClaimStatus {
                    request_mappings: needed.mappings,
                    resource_claim_name: name,
                };
                shell.write_extended_claim(&pod, &status).await.map_err(of_resources)?;
            }
            if awaited.is_empty() {
                return Ok(());
            }
            let ready = shell.devices_are_ready(&pod, &node, &awaited, timeout).await;
            ready.map_err(|reason| Status::error(reason).by("DynamicResources"))
        })
    }

    fn unreserve(&self, cache: &mut Cache) {
        self.claims.iter().for_each(|(claim, _)| cache.claims.revert(&key(claim)));
        if self.needed.is_some() {
            cache.claims.release(&beneficiary(&self.pod));
        }
        if let Some(Made { shell, claim }) = self.made.lock().take() {
            shell.delete_claim(claim);
        }
    }
}

async fn write(
    shell: &Shell,
    pod: &PodInfo,
    claim: &ResourceClaim,
    mut allocation: Option<AllocationResult>,
) -> Result<ResourceClaim, kube::Error> {
    let mut claim = claim.clone();
    if let Some(allocation) = &mut allocation {
        allocation.allocation_timestamp = Some(Time(Timestamp::now()));
        let finalizers = claim.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|finalizer| finalizer == CLAIM_FINALIZER) {
            finalizers.push(CLAIM_FINALIZER.to_owned());
            let status = claim.status.take();
            claim = shell.update_claim(&claim).await?;
            claim.status = claim.status.or(status);
        }
    }
    if allocation.is_some() {
        claim.status.get_or_insert_default().allocation = allocation;
    }
    reserve_for(&mut claim, pod);
    shell.update_claim_status(&claim).await
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[
            ExtensionPoint::PreEnqueue,
            ExtensionPoint::PreFilter,
            ExtensionPoint::Filter,
            ExtensionPoint::PostFilter,
            ExtensionPoint::Score,
            ExtensionPoint::Reserve,
            ExtensionPoint::PreBind,
        ]
    }

    fn events_to_register(&self) -> Vec<Registration> {
        let changed = ActionType::ADD | ActionType::UPDATE;
        vec![
            Registration::new(EventResource::ResourceClaim, changed | ActionType::DELETE),
            Registration::new(EventResource::ResourceSlice, changed),
            Registration::new(EventResource::DeviceClass, changed),
            Registration::new(EventResource::TargetPod, ActionType::UPDATE_POD_GENERATED_CLAIM),
            Registration::new(EventResource::Node, ActionType::ADD | ActionType::UPDATE_NODE_LABEL),
        ]
    }

    fn queueing_hint(&self, pod: &PodInfo, event: &ClusterEvent, cache: &Cache) -> QueueingHint {
        match &event.change {
            // Devices that come free may serve any claim; other changes only those of the pod's own claims.
            Change::ResourceClaim(Some(old), new) if is_allocated(old) => QueueingHint::queue_if(
                !new.as_ref().is_some_and(|new| is_allocated(new)) || own(pod, new.as_deref(), cache),
            ),
            // One that was made in vain for the pod's own resources is gone.
            Change::ResourceClaim(Some(old), None) if made_for(old) == Some(beneficiary(pod)) => {
                QueueingHint::Queue
            }
            Change::ResourceClaim(_, new) => QueueingHint::queue_if(own(pod, new.as_deref(), cache)),
            _ => QueueingHint::Queue,
        }
    }

    fn pre_enqueue(&self, pod: &PodInfo, cache: &Cache) -> Result<(), Status> {
        if !uses_claims(pod) {
            return Ok(());
        }
        cache.claims.claims_of(pod).map(drop).map_err(Status::unresolvable)
    }

    fn prepare(&self, pod: &PodInfo, cache: &mut Cache) {
        if is_concerned(pod, cache) {
            cache.claims.compile_for(pod);
        }
    }

    fn pre_filter<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache) -> PreFilter<'a> {
        if !is_concerned(pod, cache) {
            return PreFilter::Skip;
        }
        let claims = match cache.claims.claims_of(pod) {
            Ok(claims) => claims,
            Err(reason) => return PreFilter::Reject(Status::unresolvable(reason)),
        };
        let mut devices = Devices::of(pod, cache, Vec::new());
        for claim in claims {
            if is_allocated(&claim) {
                if !is_reserved_for(&claim, pod) && !can_be_reserved(&claim) {
                    return PreFilter::Reject(Status::unresolvable("resourceclaim in use"));
                }
                devices.allocated.extend(allocated_nodes(&claim));
                devices.unavailable |= self.is_unavailable(&claim);
                continue;
            }
            if let Some((request, class)) = missing_class(&claim, &cache.claims) {
                let message = format!("request {request}: device class {class} does not exist");
                return PreFilter::Reject(Status::unresolvable(message));
            }
            devices.wanted.push(claim);
        }
        PreFilter::Filter(Box::new(devices))
    }

    /// An allocated claim that nobody else uses may be what keeps the pod from all nodes: it is given back. So is one
    /// that an earlier attempt made.
    fn post_filter(
        &self,
        _: &Framework,
        pod: &Arc<PodInfo>,
        cache: &Cache,
        diagnosis: &Diagnosis,
        _: &Nominator,
    ) -> PostFilter {
        let nothing = |message: &str| PostFilter::Unschedulable { message: message.to_owned(), clear: false };
        // Upstream looks at what it has noted in PreFilter: nothing, when PreFilter ended with its own refusal; and it
        // finds no note at all when another plugin's refusal came before.
        let ended = diagnosis.absent.as_ref().filter(|status| {
            !diagnosis.pre_filter.is_empty() && status.code == Code::UnschedulableAndUnresolvable
        });
        match ended {
            Some(status) if status.plugin != self.name() => {
                return PostFilter::Unresolvable("not found".to_owned());
            }
            Some(_) => return nothing("no new claims to deallocate"),
            None if !is_concerned(pod, cache) => return nothing("no new claims to deallocate"),
            None => {}
        }
        let rejected = diagnosis.unschedulable_plugins.contains(self.name());
        let claims = if rejected { cache.claims.claims_of(pod).unwrap_or_default() } else { Vec::new() };
        let unused = |claim: &&Arc<ResourceClaim>| {
            let consumers = claim.status.as_ref().and_then(|status| status.reserved_for.as_deref());
            is_allocated(claim)
                && consumers.unwrap_or_default().iter().all(|consumer| consumer.uid == pod.uid)
        };
        let elsewhere = |claim: &&Arc<ResourceClaim>| {
            allocated_nodes(claim)
                .is_some_and(|nodes| cache.nodes().any(|node| !nodes.matches(&node.name, node.labels())))
        };
        let hopeless = |claim: &&Arc<ResourceClaim>| self.is_unavailable(claim) || elsewhere(claim);
        match claims.iter().filter(unused).find(hopeless) {
            Some(claim) => {
                let mut freed = ResourceClaim::clone(claim);
                if let Some(status) = &mut freed.status {
                    status.allocation = None;
                    status.reserved_for = None;
                    status.devices = None;
                }
                PostFilter::Deallocate(Box::new(freed))
            }
            None => match cache.claims.made_for(pod) {
                Some(made) => PostFilter::DeleteClaim(Box::new(ResourceClaim::clone(made))),
                None => nothing("still not schedulable"),
            },
        }
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cache: &'a Cache,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Scorer + 'a>> {
        if !uses_claims(pod) {
            return None;
        }
        let mut wanted = cache.claims.claims_of(pod).ok()?;
        wanted.retain(|claim| !is_allocated(claim));
        let chooses = wanted.iter().any(|claim| has_alternatives(claim));
        chooses.then(|| Box::new(Devices::of(pod, cache, wanted)) as Box<dyn Scorer>)
    }

    fn reserve(
        &self,
        pod: &Arc<PodInfo>,
        node: &str,
        cache: &mut Cache,
    ) -> Result<Option<Box<dyn Reservation>>, Status> {
        if !is_concerned(pod, cache) {
            return Ok(None);
        }
        let claims = cache.claims.claims_of(pod).map_err(Status::error)?;
        let (allocated, wanted): (Vec<_>, Vec<_>) = claims.into_iter().partition(|claim| is_allocated(claim));
        let Some(info) = cache.node_by_name(node) else {
            return Err(Status::error(format!("node {node:?} not found")));
        };
        let awaited = allocated.iter().filter(|claim| has_binding_conditions(claim));
        let mut awaited: Vec<_> = awaited.filter_map(|claim| claim.metadata.name.clone()).collect();
        let devices = Devices::of(pod, cache, wanted.clone());
        let Allocated { mut results, needed } = devices.allocate(info)?;
        let needed = needed.and_then(|needed| Some((needed, results.pop()?)));
        let unreserved =
            allocated.into_iter().filter(|claim| !is_reserved_for(claim, pod)).map(|claim| (claim, None));
        let allocated_now = wanted.into_iter().zip(results.into_iter().map(Some));
        let claims: Vec<_> = unreserved.chain(allocated_now).collect();
        for (claim, allocation) in &claims {
            let mut assumed = ResourceClaim::clone(claim);
            if allocation.is_some() {
                assumed.status.get_or_insert_default().allocation.clone_from(allocation);
            }
            reserve_for(&mut assumed, pod);
            if allocation.is_some() && has_binding_conditions(&assumed) {
                awaited.extend(assumed.metadata.name.clone());
            }
            cache.claims.assume(&key(claim), Arc::new(assumed));
        }
        if let Some((needed, allocation)) = &needed {
            let mut held = needed.claim.clone();
            held.status.get_or_insert_default().allocation = Some(allocation.clone());
            cache.claims.hold(pod, Arc::new(held));
        }
        if claims.is_empty() && needed.is_none() && awaited.is_empty() {
            return Ok(None);
        }
        Ok(Some(Box::new(Taken {
            pod: pod.clone(),
            node: node.to_owned(),
            claims,
            needed,
            made: Arc::default(),
            awaited,
            binding_timeout: self.binding_timeout,
        })))
    }
}

fn own(pod: &PodInfo, claim: Option<&ResourceClaim>, cache: &Cache) -> bool {
    let Some(claim) = claim else { return false };
    let claims = cache.claims.claims_of(pod).unwrap_or_default();
    claims.iter().any(|own| own.metadata.uid == claim.metadata.uid)
}
