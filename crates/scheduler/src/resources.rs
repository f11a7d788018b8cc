//! What pods ask for and nodes offer, as integers. Answers to upstream's `resourcehelper.PodRequests`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use orlop_api::Quantity;

/// Amounts of resources: CPU in millicores, memory and ephemeral storage in bytes, everything else in its own unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Extended resources and huge pages by name.
    pub scalar: BTreeMap<String, i64>,
}

/// What a container without a request counts as in scores, so that many such containers do not all land on one node.
pub const DEFAULT_MILLI_CPU: i64 = 100;
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

type ResourceList = BTreeMap<String, ApiQuantity>;

impl Resources {
    /// From a resource list of the API. `pods` is not a resource here; quantities that do not parse count as absent.
    pub fn from_list(list: Option<&ResourceList>) -> Self {
        let mut all = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            let Ok(quantity) = Quantity::parse(&quantity.0) else { continue };
            match name.as_str() {
                "cpu" => all.milli_cpu = quantity.milli_value(),
                "memory" => all.memory = quantity.value(),
                "ephemeral-storage" => all.ephemeral_storage = quantity.value(),
                "pods" => {}
                _ => _ = all.scalar.insert(name.clone(), quantity.value()),
            }
        }
        all
    }

    /// One of them by name; 0 when there is none.
    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.milli_cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            _ => self.scalar.get(name).copied().unwrap_or(0),
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
    }

    fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Self, with: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = with(self.milli_cpu, other.milli_cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral_storage = with(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.scalar {
            match self.scalar.get_mut(name) {
                Some(entry) => *entry = with(*entry, *amount),
                None => _ = self.scalar.insert(name.clone(), with(0, *amount)),
            }
        }
    }
}

/// CPU and memory with defaults for containers that ask for none: what scores are computed from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NonZero {
    pub milli_cpu: i64,
    pub memory: i64,
}

/// The requests of a whole pod: its containers and sidecars together, or its hungriest init container if that is more,
/// and its overhead. Pod-level requests (KEP-2837) replace the sum where they are set. A container that was resized
/// in place counts with what it has or wants, whichever is more, unless the resize is infeasible.
pub fn pod_requests(pod: &Pod) -> Resources {
    pod.spec.as_ref().map_or_else(Resources::default, |spec| {
        aggregate(spec, |container| {
            let mut requests = container_requests(container);
            if let Some(actual) = actual_requests(pod, &container.name) {
                if resize_is_infeasible(pod) {
                    return actual;
                }
                requests.raise_to(&actual);
            }
            requests
        })
    })
}

/// The same with defaults for containers that ask for no CPU or memory.
pub fn pod_non_zero_requests(spec: &PodSpec) -> NonZero {
    let all = aggregate(spec, |container| {
        let mut requests = container_requests(container);
        let named = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let has = |name| named.is_some_and(|list| list.contains_key(name));
        if !has("cpu") {
            requests.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !has("memory") {
            requests.memory = DEFAULT_MEMORY;
        }
        requests
    });
    NonZero { milli_cpu: all.milli_cpu, memory: all.memory }
}

fn container_requests(container: &Container) -> Resources {
    Resources::from_list(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
}

/// What the kubelet has given a running container (KEP-1287).
fn actual_requests(pod: &Pod, container: &str) -> Option<Resources> {
    let status = pod.status.as_ref()?;
    let statuses = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let status = statuses.into_iter().find(|status| status.name == container)?;
    let requests = status.resources.as_ref()?.requests.as_ref()?;
    let mut actual = Resources::from_list(Some(requests));
    if let Some(allocated) = &status.allocated_resources {
        actual.raise_to(&Resources::from_list(Some(allocated)));
    }
    Some(actual)
}

fn resize_is_infeasible(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| {
        condition.type_ == "PodResizePending" && condition.reason.as_deref() == Some("Infeasible")
    })
}

fn aggregate(spec: &PodSpec, requests_of: impl Fn(&Container) -> Resources) -> Resources {
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&requests_of(container));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = requests_of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            total.add(&own);
            sidecars.add(&own);
            starting.raise_to(&sidecars);
        } else {
            let mut together = own;
            together.add(&sidecars);
            starting.raise_to(&together);
        }
    }
    total.raise_to(&starting);
    if let Some(list) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        let pod_level = Resources::from_list(Some(list));
        if list.contains_key("cpu") {
            total.milli_cpu = pod_level.milli_cpu;
        }
        if list.contains_key("memory") {
            total.memory = pod_level.memory;
        }
        total.scalar.extend(pod_level.scalar);
    }
    if let Some(overhead) = &spec.overhead {
        total.add(&Resources::from_list(Some(overhead)));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(spec: serde_json::Value, milli_cpu: i64, memory: i64) {
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        let requests = pod_requests(&pod);
        assert_eq!((requests.milli_cpu, requests.memory), (milli_cpu, memory), "{spec}");
    }

    fn container(cpu: &str, memory: &str) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}})
    }

    fn sidecar(cpu: &str, memory: &str) -> serde_json::Value {
        let mut sidecar = container(cpu, memory);
        sidecar["restartPolicy"] = json!("Always");
        sidecar
    }

    #[test]
    fn a_pods_requests() {
        check(json!({"containers": [container("100m", "1Mi"), container("1", "1Mi")]}), 1100, 2 << 20);
        check(json!({"containers": [{"name": "none"}]}), 0, 0);
        check(
            json!({"containers": [container("1", "1")], "initContainers": [container("3", "0"), container("2", "5")]}),
            3000,
            5,
        );
        check(
            json!({"containers": [container("1", "1")], "initContainers": [sidecar("1", "1"), container("3", "0")]}),
            4000,
            2,
        );
        check(
            json!({"containers": [container("1", "1")], "initContainers": [container("3", "0"), sidecar("1", "1")]}),
            3000,
            2,
        );
        check(json!({"containers": [container("1", "1")], "overhead": {"cpu": "250m"}}), 1250, 1);
        check(json!({"containers": [container("1", "1")], "resources": {"requests": {"cpu": "4"}}}), 4000, 1);
    }

    #[test]
    fn a_resized_pod_counts_with_the_larger_of_what_it_has_and_wants() {
        let status = |reason: &str| {
            json!({
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "resources": {"requests": {"cpu": "500m"}}, "allocatedResources": {"cpu": "500m"}}],
                "conditions": [{"type": "PodResizePending", "status": "True", "reason": reason}],
            })
        };
        let check = |wanted: &str, reason: &str, expected: i64| {
            let spec = json!({"containers": [container(wanted, "0")]});
            let pod: Pod = serde_json::from_value(json!({"spec": spec, "status": status(reason)})).unwrap();
            assert_eq!(pod_requests(&pod).milli_cpu, expected);
        };
        check("1", "Deferred", 1000);
        check("100m", "Deferred", 500);
        check("8", "Infeasible", 500);
    }

    #[test]
    fn scores_count_what_asks_for_nothing() {
        let spec: PodSpec =
            serde_json::from_value(json!({"containers": [{"name": "a"}, container("0", "1")]})).unwrap();
        let requests = pod_non_zero_requests(&spec);
        assert_eq!((requests.milli_cpu, requests.memory), (100, (200 << 20) + 1));
    }
}
