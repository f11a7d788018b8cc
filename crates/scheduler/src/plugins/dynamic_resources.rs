//! A pod runs where its claims for devices are or can be allocated; they are allocated and reserved for the pod before
//! it is bound (KEP-4381).

use std::sync::Arc;

use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference};
use orlop_client::ObjectKey;

use crate::cache::{Cache, NodeInfo};
use crate::config::DynamicResourcesArgs;
use crate::dynamic_resources::{
    Allocator, allocated_nodes, can_be_reserved, is_allocated, is_reserved_for, missing_class,
};
use crate::framework::{
    ActionType, BoxFuture, Change, ClusterEvent, Diagnosis, EventResource, ExtensionPoint, Filter, Framework,
    Plugin, PostFilter, PreFilter, QueueingHint, Registration, Reservation, Status,
};
use crate::nominator::Nominator;
use crate::pod_info::PodInfo;
use crate::selector::NodeMatcher;
use crate::shell::Shell;

const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

pub struct DynamicResources;

impl DynamicResources {
    /// The timeouts of the arguments bound what upstream measures in time; here the search is bounded in steps.
    pub fn new(_: DynamicResourcesArgs) -> Self {
        Self
    }
}

struct Devices<'a> {
    cache: &'a Cache,
    /// Where the claims are that are allocated already.
    allocated: Vec<NodeMatcher>,
    wanted: Vec<Arc<ResourceClaim>>,
}

impl Filter for Devices<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status> {
        if !self.allocated.iter().all(|nodes| nodes.matches(&node.name, node.labels())) {
            return Err(Status::unschedulable("resourceclaim not available on the node"));
        }
        match Allocator::new(&self.cache.claims, &self.wanted, node).allocate() {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(Status::unschedulable("cannot allocate all claims")),
            Err(reason) => Err(Status::error(reason)),
        }
    }
}

fn uses_claims(pod: &PodInfo) -> bool {
    pod.spec().is_some_and(|spec| spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()))
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
    /// As they were, with the allocation that was decided about.
    claims: Vec<(Arc<ResourceClaim>, Option<AllocationResult>)>,
}

impl Reservation for Taken {
    fn pre_bind(&self, shell: Arc<Shell>) -> BoxFuture<Result<(), Status>> {
        let (pod, claims) = (self.pod.clone(), self.claims.clone());
        Box::pin(async move {
            for (claim, allocation) in claims {
                let written = write(&shell, &pod, &claim, allocation).await;
                written.map_err(|error| {
                    let name = claim.metadata.name.as_deref().unwrap_or_default();
                    Status::error(format!("claim {name}: {error}")).by("DynamicResources")
                })?;
            }
            Ok(())
        })
    }

    fn unreserve(&self, cache: &mut Cache) {
        self.claims.iter().for_each(|(claim, _)| cache.claims.revert(&key(claim)));
    }
}

async fn write(
    shell: &Shell,
    pod: &PodInfo,
    claim: &ResourceClaim,
    allocation: Option<AllocationResult>,
) -> Result<(), kube::Error> {
    let mut claim = claim.clone();
    if allocation.is_some() {
        let finalizers = claim.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
            let status = claim.status.take();
            claim = shell.update_claim(&claim).await?;
            claim.status = claim.status.or(status);
        }
        claim.status.get_or_insert_default().allocation = allocation;
    }
    reserve_for(&mut claim, pod);
    shell.update_claim_status(&claim).await.map(drop)
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
        if uses_claims(pod) {
            cache.claims.compile_for(pod);
        }
    }

    fn pre_filter<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache) -> PreFilter<'a> {
        if !uses_claims(pod) {
            return PreFilter::Skip;
        }
        let claims = match cache.claims.claims_of(pod) {
            Ok(claims) => claims,
            Err(reason) => return PreFilter::Reject(Status::unresolvable(reason)),
        };
        let mut devices = Devices { cache, allocated: Vec::new(), wanted: Vec::new() };
        for claim in claims {
            if is_allocated(&claim) {
                if !is_reserved_for(&claim, pod) && !can_be_reserved(&claim) {
                    return PreFilter::Reject(Status::unschedulable("resourceclaim in use"));
                }
                devices.allocated.extend(allocated_nodes(&claim));
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

    /// An allocated claim that nobody else uses may be what keeps the pod from all nodes: it is given back.
    fn post_filter(
        &self,
        _: &Framework,
        pod: &Arc<PodInfo>,
        cache: &Cache,
        diagnosis: &Diagnosis,
        _: &Nominator,
    ) -> PostFilter {
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
        match claims.iter().filter(unused).find(elsewhere) {
            Some(claim) => {
                let mut freed = ResourceClaim::clone(claim);
                if let Some(status) = &mut freed.status {
                    status.allocation = None;
                    status.reserved_for = None;
                }
                PostFilter::Deallocate(Box::new(freed))
            }
            None => {
                PostFilter::Unschedulable { message: "no new claims to deallocate".to_owned(), clear: false }
            }
        }
    }

    fn reserve(
        &self,
        pod: &Arc<PodInfo>,
        node: &str,
        cache: &mut Cache,
    ) -> Result<Option<Box<dyn Reservation>>, Status> {
        if !uses_claims(pod) {
            return Ok(None);
        }
        let claims = cache.claims.claims_of(pod).map_err(Status::error)?;
        let (allocated, wanted): (Vec<_>, Vec<_>) = claims.into_iter().partition(|claim| is_allocated(claim));
        let Some(info) = cache.node_by_name(node) else {
            return Err(Status::error(format!("node {node:?} not found")));
        };
        let found = Allocator::new(&cache.claims, &wanted, info).allocate().map_err(Status::error)?;
        let Some(found) = found else { return Err(Status::unschedulable("cannot allocate all claims")) };
        let unreserved =
            allocated.into_iter().filter(|claim| !is_reserved_for(claim, pod)).map(|claim| (claim, None));
        let allocated_now = wanted.into_iter().zip(found.into_iter().map(Some));
        let claims: Vec<_> = unreserved.chain(allocated_now).collect();
        for (claim, allocation) in &claims {
            let mut assumed = ResourceClaim::clone(claim);
            if allocation.is_some() {
                assumed.status.get_or_insert_default().allocation.clone_from(allocation);
            }
            reserve_for(&mut assumed, pod);
            cache.claims.assume(&key(claim), Arc::new(assumed));
        }
        Ok((!claims.is_empty()).then(|| Box::new(Taken { pod: pod.clone(), claims }) as Box<dyn Reservation>))
    }
}

fn own(pod: &PodInfo, claim: Option<&ResourceClaim>, cache: &Cache) -> bool {
    let Some(claim) = claim else { return false };
    let claims = cache.claims.claims_of(pod).unwrap_or_default();
    claims.iter().any(|own| own.metadata.uid == claim.metadata.uid)
}
