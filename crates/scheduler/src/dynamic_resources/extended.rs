//! Extended resources that devices provide (KEP-5004): a class of devices may stand behind the name of a resource, and a
//! pod that asks a node for it gets a claim of its own. Answers to upstream's `extendeddynamicresources.go` and
//! `deviceclass/extendedresourcecache`.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{Container, ContainerExtendedResourceRequest};
use k8s_openapi::api::resource::v1::{
    DeviceClaim, DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim, ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::Claims;
use crate::cache::NodeInfo;
use crate::config::is_extended_resource_name;
use crate::pod_info::PodInfo;

/// Before the name of a class: the resource that always stands for it.
const CLASS_PREFIX: &str = "deviceclass.resource.kubernetes.io/";
/// Marks the claim that the scheduler made for a pod.
const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";

/// The classes behind resources, by `spec.extendedResourceName`.
#[derive(Debug, Default)]
pub struct ResourceNames {
    /// Of several classes with one name the newest counts, and of those the first by name: that helps who replaces
    /// one by another.
    classes: HashMap<String, BTreeSet<(Reverse<i64>, String)>>,
}

impl ResourceNames {
    pub fn replace(&mut self, old: Option<&DeviceClass>, new: Option<&DeviceClass>) {
        if let Some((name, entry)) = old.and_then(entry)
            && let Some(classes) = self.classes.get_mut(name)
        {
            classes.remove(&entry);
            if classes.is_empty() {
                self.classes.remove(name);
            }
        }
        if let Some((name, entry)) = new.and_then(entry) {
            self.classes.entry(name.to_owned()).or_default().insert(entry);
        }
    }

    fn class(&self, resource: &str) -> Option<&str> {
        self.classes.get(resource)?.first().map(|(_, class)| class.as_str())
    }
}

fn entry(class: &DeviceClass) -> Option<(&str, (Reverse<i64>, String))> {
    let created = class.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    let name = class.metadata.name.clone().unwrap_or_default();
    Some((class.spec.extended_resource_name.as_deref()?, (Reverse(created), name)))
}

/// Whether a name can be that of a resource behind which a class stands.
fn may_be_devices(resource: &str) -> bool {
    is_extended_resource_name(resource) || resource.starts_with(CLASS_PREFIX)
}

/// Whether a class stands for this resource now, and did not before.
pub fn stands_for(class: &DeviceClass, before: Option<&DeviceClass>, resource: &str) -> bool {
    let name = |class: &DeviceClass| class.spec.extended_resource_name.clone();
    let explicit = name(class);
    let by_class = || {
        before.is_none()
            && resource
                .strip_prefix(CLASS_PREFIX)
                .is_some_and(|own| class.metadata.name.as_deref() == Some(own))
    };
    by_class() || explicit.as_deref() == Some(resource) && before.and_then(name) != explicit
}

/// A pod that a claim may be for: namespace and uid. Who may write claims may name any uid, but not elsewhere.
pub type Beneficiary = (String, String);

/// The pod for whose resources the scheduler made this claim.
pub fn made_for(claim: &ResourceClaim) -> Option<Beneficiary> {
    let annotations = claim.metadata.annotations.as_ref()?;
    if annotations.get(ANNOTATION).is_none_or(|value| value != "true") {
        return None;
    }
    let mut owners = claim.metadata.owner_references.iter().flatten();
    let pod = owners.find(|owner| owner.controller == Some(true) && owner.kind == "Pod")?;
    Some((claim.metadata.namespace.clone().unwrap_or_default(), pod.uid.clone()))
}

/// The pod as one that a claim may be for.
pub fn beneficiary(pod: &PodInfo) -> Beneficiary {
    (pod.key.namespace.clone(), pod.uid.clone())
}

impl Claims {
    /// The class whose devices a resource is.
    pub fn class_of_resource(&self, resource: &str) -> Option<&str> {
        let by_class = || {
            let class = resource.strip_prefix(CLASS_PREFIX)?;
            self.classes.get_key_value(class).map(|(name, _)| name.as_str())
        };
        self.resource_names.class(resource).or_else(by_class)
    }

    /// Whether devices have to provide a resource on a node: nothing else there does, and a class stands for it.
    pub fn is_left_to_devices(&self, resource: &str, node: &NodeInfo) -> bool {
        node.allocatable.get(resource) <= 0 && self.class_of_resource(resource).is_some()
    }

    /// The resources a pod asks for behind which a class may stand.
    fn resources_of<'a>(&self, pod: &'a PodInfo) -> impl Iterator<Item = &'a str> {
        let wanted = pod.requests.scalar.iter().filter(|(name, amount)| **amount > 0 && may_be_devices(name));
        wanted.map(|(name, _)| name.as_str())
    }

    /// The classes that stand for what a pod asks for.
    pub fn classes_of_resources(&self, pod: &PodInfo) -> impl Iterator<Item = &str> {
        self.resources_of(pod).filter_map(|resource| self.class_of_resource(resource))
    }

    /// The claim that has been made for a pod's resources.
    pub fn made_for(&self, pod: &PodInfo) -> Option<&std::sync::Arc<ResourceClaim>> {
        self.claim(self.made.get(&beneficiary(pod))?)
    }

    /// The claim for what a pod would need of a node's devices; `None` when that is nothing.
    ///
    /// # Errors
    /// Says of a resource that neither devices nor anything else on the node provide.
    pub fn needed_on(&self, pod: &PodInfo, node: &NodeInfo) -> Result<Option<Needed>, &'static str> {
        let mut resources = Vec::new();
        for resource in self.resources_of(pod) {
            if self.is_left_to_devices(resource, node) {
                resources.push(resource);
            } else if !node.allocatable.scalar.contains_key(resource) {
                return Err("cannot fit resource");
            }
        }
        if resources.is_empty() {
            return Ok(None);
        }
        let (mut requests, mut mappings) = (Vec::new(), Vec::new());
        for resource in resources {
            let Some(class) = self.class_of_resource(resource) else { continue };
            ask(pod, resource, class, &mut requests, &mut mappings);
        }
        requests.sort_by(|a: &DeviceRequest, b| a.name.cmp(&b.name));
        Ok(Some(Needed { claim: claim_for(pod, requests), mappings }))
    }
}

/// A claim that is not written yet.
#[derive(Debug, Clone)]
pub struct Needed {
    pub claim: ResourceClaim,
    /// Which containers' resources the requests are for.
    pub mappings: Vec<ContainerExtendedResourceRequest>,
}

fn claim_for(pod: &PodInfo, requests: Vec<DeviceRequest>) -> ResourceClaim {
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: pod.key.name.clone(),
        uid: pod.uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    ResourceClaim {
        metadata: ObjectMeta {
            namespace: Some(pod.key.namespace.clone()),
            generate_name: Some(format!("{}-extended-resources-", pod.key.name)),
            owner_references: Some(vec![owner]),
            annotations: Some([(ANNOTATION.to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: ResourceClaimSpec {
            devices: Some(DeviceClaim { requests: Some(requests), ..DeviceClaim::default() }),
        },
        status: None,
    }
}

/// The requests for one resource. Containers that run on (sidecars among them) have devices of their own; what an init
/// container uses while it lives is theirs that start after it, and what is missing is asked for once, for the
/// hungriest.
fn ask(
    pod: &PodInfo,
    resource: &str,
    class: &str,
    requests: &mut Vec<DeviceRequest>,
    mappings: &mut Vec<ContainerExtendedResourceRequest>,
) {
    let Some(spec) = pod.spec() else { return };
    let starting = spec.init_containers.as_deref().unwrap_or_default();
    let containers: Vec<&Container> = starting.iter().chain(&spec.containers).collect();
    let is_short =
        |at: usize| at < starting.len() && containers[at].restart_policy.as_deref() != Some("Always");
    let lasting: Vec<Option<(String, i64)>> = (0..containers.len())
        .map(|at| {
            amount(containers[at], resource)
                .filter(|_| !is_short(at))
                .map(|count| (name(at, containers[at], resource), count))
        })
        .collect();
    let mapping = |at: usize, request: &str| ContainerExtendedResourceRequest {
        container_name: containers[at].name.clone(),
        resource_name: resource.to_owned(),
        request_name: request.to_owned(),
    };
    let request = |(name, count): (String, i64)| DeviceRequest {
        name,
        exactly: Some(ExactDeviceRequest {
            device_class_name: class.to_owned(),
            allocation_mode: Some("ExactCount".to_owned()),
            count: Some(count),
            ..ExactDeviceRequest::default()
        }),
        first_available: None,
    };
    mappings.extend(lasting.iter().enumerate().filter_map(|(at, own)| Some(mapping(at, &own.as_ref()?.0))));

    // The containers that ask for more than what they can use of others, all for the same.
    let mut extra: Option<(String, i64)> = None;
    let mut used: Vec<(usize, Option<&str>)> = Vec::new();
    for at in (0..starting.len()).filter(|at| is_short(*at)) {
        let Some(mut missing) = amount(containers[at], resource) else { continue };
        for (later, count) in lasting[at..].iter().flatten() {
            if missing <= 0 {
                break;
            }
            used.push((at, Some(later)));
            missing -= count;
        }
        if missing > 0 {
            used.push((at, None));
            if extra.as_ref().is_none_or(|(_, most)| *most < missing) {
                extra = Some((name(at, containers[at], resource), missing));
            }
        }
    }
    let shared = extra.as_ref().map(|(name, _)| name.as_str());
    mappings.extend(used.into_iter().filter_map(|(at, request)| Some(mapping(at, request.or(shared)?))));
    requests.extend(extra.into_iter().chain(lasting.into_iter().flatten()).map(request));
}

/// How much of a resource a container asks for.
fn amount(container: &Container, resource: &str) -> Option<i64> {
    let asked = container.resources.as_ref()?.requests.as_ref()?.get(resource)?;
    let amount = orlop_api::Quantity::parse(&asked.0).ok()?.value();
    (amount > 0).then_some(amount)
}

/// A request's name: the container's place among all of the pod, and the resource's among the container's.
fn name(at: usize, container: &Container, resource: &str) -> String {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let place = requests.and_then(|requests| requests.keys().position(|name| name == resource)).unwrap_or(0);
    format!("container-{at}-request-{place}")
}

#[cfg(test)]
mod tests;
