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

/// Whether the scheduler made this claim for a pod's resources: the pod's uid.
pub fn made_for(claim: &ResourceClaim) -> Option<&str> {
    let annotations = claim.metadata.annotations.as_ref()?;
    let own = annotations.get(ANNOTATION).is_some_and(|value| value == "true");
    let mut owners = claim.metadata.owner_references.iter().flatten();
    own.then(|| owners.find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.as_str()))?
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
        self.claim(self.made.get(&pod.uid)?)
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
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::testing::{node, parse, pod_with};
    use serde_json::{Value, json};

    fn class(name: &str, created: &str, resource: Option<&str>) -> Value {
        json!({"metadata": {"name": name, "creationTimestamp": created}, "spec": {"extendedResourceName": resource}})
    }

    const EARLY: &str = "2026-01-01T00:00:00Z";
    const LATE: &str = "2026-01-02T00:00:00Z";

    #[test]
    fn the_class_behind_a_resource() {
        let mut claims = Claims::default();
        let mut set = |name: &str, created: &str, resource: Option<&str>| {
            claims.set_class(name, Some(parse(class(name, created, resource))));
            ["e.com/gpu", "e.com/fpga", "deviceclass.resource.kubernetes.io/b"]
                .map(|resource| claims.class_of_resource(resource).map(str::to_owned).unwrap_or_default())
        };
        assert_eq!(set("b", EARLY, None), ["", "", "b"]);
        assert_eq!(set("b", EARLY, Some("e.com/gpu")), ["b", "", "b"]);
        assert_eq!(set("c", EARLY, Some("e.com/gpu")), ["b", "", "b"], "of the same age: by name");
        assert_eq!(set("a", EARLY, Some("e.com/gpu")), ["a", "", "b"]);
        assert_eq!(set("d", LATE, Some("e.com/gpu")), ["d", "", "b"], "the newest");
        assert_eq!(set("d", LATE, Some("e.com/fpga")), ["a", "d", "b"]);
        for name in ["a", "b", "c", "d"] {
            claims.set_class(name, None);
        }
        assert!(claims.resource_names.classes.is_empty());
        assert_eq!(claims.class_of_resource("deviceclass.resource.kubernetes.io/b"), None);
    }

    #[test]
    fn what_a_class_comes_to_stand_for() {
        let check = |new: Value, old: Option<Value>, resource: &str, expected: bool| {
            let (new, old) = (parse::<DeviceClass>(new), old.map(parse::<DeviceClass>));
            assert_eq!(stands_for(&new, old.as_deref(), resource), expected, "{resource}");
        };
        let plain = || class("a", EARLY, None);
        let named = || class("a", EARLY, Some("e.com/gpu"));
        check(plain(), None, "deviceclass.resource.kubernetes.io/a", true);
        check(plain(), None, "deviceclass.resource.kubernetes.io/b", false);
        check(named(), None, "e.com/gpu", true);
        check(named(), Some(plain()), "e.com/gpu", true);
        check(named(), Some(named()), "e.com/gpu", false);
        check(named(), Some(plain()), "deviceclass.resource.kubernetes.io/a", false);
        check(plain(), Some(named()), "e.com/gpu", false);
    }

    #[test]
    fn requests_and_whose_they_are() {
        let mut cache = Cache::default();
        cache.set_node(node("n", "4", "8Gi"));
        cache.refresh();
        cache.claims.set_class("gpus", Some(parse(class("gpus", EARLY, Some("e.com/gpu")))));
        cache.claims.set_class("nics", Some(parse(class("nics", EARLY, None))));
        let check = |spec: Value, expected: &[&str], mapped: &[&str]| {
            let pod = PodInfo::new(pod_with("p", spec.clone()));
            let needed = cache.claims.needed_on(&pod, cache.node_by_name("n").unwrap()).unwrap().unwrap();
            let requests = needed.claim.spec.devices.unwrap().requests.unwrap();
            let text = |request: &DeviceRequest| {
                let exactly = request.exactly.as_ref().unwrap();
                assert_eq!(exactly.allocation_mode.as_deref(), Some("ExactCount"));
                format!("{} {} {}", request.name, exactly.device_class_name, exactly.count.unwrap())
            };
            assert_eq!(requests.iter().map(text).collect::<Vec<_>>(), expected, "{spec}");
            let text = |mapping: &ContainerExtendedResourceRequest| {
                format!("{} {} {}", mapping.container_name, mapping.resource_name, mapping.request_name)
            };
            assert_eq!(needed.mappings.iter().map(text).collect::<Vec<_>>(), mapped, "{spec}");
        };
        let container =
            |name: &str, requests: Value| json!({"name": name, "resources": {"requests": requests}});
        let gpus = |name: &str, count: i64| container(name, json!({"e.com/gpu": count.to_string()}));
        let sidecar = |name: &str, count: i64| {
            let mut sidecar = gpus(name, count);
            sidecar["restartPolicy"] = json!("Always");
            sidecar
        };
        let (one, two, three) = ("container-0-request-0", "container-1-request-0", "container-2-request-0");
        let gpu = |request: &str, count: i64| format!("{request} gpus {count}");
        let of = |name: &str, request: &str| format!("{name} e.com/gpu {request}");

        check(json!({"containers": [gpus("a", 2)]}), &[&gpu(one, 2)], &[&of("a", one)]);
        check(
            json!({"containers": [gpus("a", 1), container("b", json!({})), gpus("c", 3)]}),
            &[&gpu(one, 1), &gpu(three, 3)],
            &[&of("a", one), &of("c", three)],
        );
        // The place among the container's requests, by name.
        let several = json!({"cpu": "1", "deviceclass.resource.kubernetes.io/nics": "1", "e.com/gpu": "1"});
        check(
            json!({"containers": [container("a", several)]}),
            &["container-0-request-1 nics 1", "container-0-request-2 gpus 1"],
            &[
                "a deviceclass.resource.kubernetes.io/nics container-0-request-1",
                "a e.com/gpu container-0-request-2",
            ],
        );
        // An init container uses what those have that start later.
        check(
            json!({"initContainers": [gpus("i", 2)], "containers": [gpus("a", 1), gpus("b", 5)]}),
            &[&gpu(two, 1), &gpu(three, 5)],
            &[&of("a", two), &of("b", three), &of("i", two), &of("i", three)],
        );
        // What is missing is asked for once, for the hungriest.
        check(
            json!({"initContainers": [gpus("i", 3), gpus("j", 4)], "containers": [gpus("a", 1)]}),
            &[&gpu(two, 3), &gpu(three, 1)],
            &[&of("a", three), &of("i", three), &of("i", two), &of("j", three), &of("j", two)],
        );
        // A sidecar that runs already keeps its own.
        check(
            json!({"initContainers": [sidecar("s", 1), gpus("i", 1)], "containers": [container("a", json!({}))]}),
            &[&gpu(one, 1), &gpu(two, 1)],
            &[&of("s", one), &of("i", two)],
        );
        check(
            json!({"initContainers": [gpus("i", 1), sidecar("s", 1)], "containers": [container("a", json!({}))]}),
            &[&gpu(two, 1)],
            &[&of("s", two), &of("i", two)],
        );
    }

    #[test]
    fn the_claim_is_the_pods() {
        let mut cache = Cache::default();
        cache.set_node(node("n", "4", "8Gi"));
        cache.refresh();
        cache.claims.set_class("gpus", Some(parse(class("gpus", EARLY, Some("e.com/gpu")))));
        let requests = json!({"e.com/gpu": "1"});
        let pod = pod_with("p", json!({"containers": [{"name": "c", "resources": {"requests": requests}}]}));
        let pod = PodInfo::new(pod);
        let needed = cache.claims.needed_on(&pod, cache.node_by_name("n").unwrap()).unwrap().unwrap();
        let claim = serde_json::to_value(&needed.claim.metadata).unwrap();
        let expected = json!({
            "namespace": "default", "generateName": "p-extended-resources-",
            "annotations": {"resource.kubernetes.io/extended-resource-claim": "true"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p", "controller": true}],
        });
        assert_eq!((claim, made_for(&needed.claim)), (expected, Some("p")));

        // What neither devices nor the node's own list provide.
        let unknown = json!({"e.com/gpu": "1", "e.com/other": "1"});
        let pod = pod_with("q", json!({"containers": [{"name": "c", "resources": {"requests": unknown}}]}));
        let refused = cache.claims.needed_on(&PodInfo::new(pod), cache.node_by_name("n").unwrap());
        assert_eq!(refused.err(), Some("cannot fit resource"));
    }
}
