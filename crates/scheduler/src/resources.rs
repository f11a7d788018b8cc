//! What pods ask for and nodes offer, as integers. Answers to upstream's `resourcehelper.PodRequests`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
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
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

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
            let entry = self.scalar.entry(name.clone()).or_default();
            *entry = with(*entry, *amount);
        }
    }
}

fn container_requests(container: &Container) -> Resources {
    Resources::from_list(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
}

/// The requests of a whole pod: its containers and sidecars together, or its hungriest init container if that is more,
/// and its overhead. Pod-level requests (KEP-2837) replace the sum where they are set.
pub fn pod_requests(spec: &PodSpec) -> Resources {
    aggregate(spec, container_requests)
}

/// The same with defaults for containers that ask for no CPU or memory: what scores are computed from.
pub fn pod_non_zero_requests(spec: &PodSpec) -> Resources {
    aggregate(spec, |container| {
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
    }
    total.add(&Resources::from_list(spec.overhead.as_ref()));
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(spec: serde_json::Value, milli_cpu: i64, memory: i64) {
        let parsed: PodSpec = serde_json::from_value(spec.clone()).unwrap();
        let requests = pod_requests(&parsed);
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
    fn scores_count_what_asks_for_nothing() {
        let spec: PodSpec =
            serde_json::from_value(json!({"containers": [{"name": "a"}, container("0", "1")]})).unwrap();
        let requests = pod_non_zero_requests(&spec);
        assert_eq!((requests.milli_cpu, requests.memory), (100, (200 << 20) + 1));
    }
}
