//! From requests and limits to quality of service and cgroup numbers. Answers to upstream's `qos` and `cm` helpers
//! (KEP-2837 for pod-level resources). Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use orlop_api::Quantity;
use orlop_cri::LinuxContainerResources;

use crate::pod::{PodExt, is_sidecar};

/// CFS period, microseconds.
const CPU_PERIOD: i64 = 100_000;
/// Shortest CFS quota the kernel takes, microseconds.
const MIN_QUOTA: i64 = 1000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// Pods at or above this priority are critical for the node.
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// A list of resources as the API has it.
pub(crate) type ResourceList = BTreeMap<String, ApiQuantity>;

/// `status.qosClass`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// One quantity of a list; what does not parse (the API server lets nothing such pass) counts as absent.
pub(crate) fn quantity(list: Option<&ResourceList>, name: &str) -> Option<Quantity> {
    Quantity::parse(&list?.get(name)?.0).ok()
}

fn requests(resources: Option<&ResourceRequirements>) -> Option<&ResourceList> {
    resources.and_then(|r| r.requests.as_ref())
}

fn limits(resources: Option<&ResourceRequirements>) -> Option<&ResourceList> {
    resources.and_then(|r| r.limits.as_ref())
}

/// What a container asks for: its request, else its limit.
pub(crate) fn request(container: &Container, name: &str) -> Option<Quantity> {
    let resources = container.resources.as_ref();
    quantity(requests(resources), name).or_else(|| limit(container, name))
}

/// A container's limit.
pub(crate) fn limit(container: &Container, name: &str) -> Option<Quantity> {
    quantity(limits(container.resources.as_ref()), name)
}

/// The quality of service class, from cpu and memory only.
pub(crate) fn qos_class(pod: &Pod) -> QosClass {
    let spec = pod.pod_spec();
    let mut lists: Vec<Option<&ResourceRequirements>> = Vec::new();
    if spec.resources.is_some() {
        lists.push(spec.resources.as_ref());
    } else {
        lists.extend(spec.containers.iter().chain(pod.init_containers()).map(|c| c.resources.as_ref()));
    }
    let mut any = false;
    let mut guaranteed = true;
    for resources in lists {
        for name in ["cpu", "memory"] {
            let limit = quantity(limits(resources), name).filter(|q| !q.is_zero());
            let request = quantity(requests(resources), name).or(limit).filter(|q| !q.is_zero());
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// What a pod asks for of one resource: containers and sidecars together, or a larger init step; plus overhead. A
/// pod-level request takes the place of the sum.
pub(crate) fn pod_request(pod: &Pod, name: &str) -> Quantity {
    let spec = pod.pod_spec();
    let overhead = quantity(spec.overhead.as_ref(), name).unwrap_or(Quantity::ZERO);
    if let Some(of_pod) = quantity(requests(spec.resources.as_ref()), name) {
        return of_pod + overhead;
    }
    let get = |container: &Container| request(container, name).unwrap_or(Quantity::ZERO);
    let mut sum = spec.containers.iter().map(get).fold(Quantity::ZERO, |a, b| a + b);
    let mut sidecars = Quantity::ZERO;
    let mut largest = Quantity::ZERO;
    for init in pod.init_containers() {
        if is_sidecar(init) {
            sidecars = sidecars + get(init);
            largest = largest.max(sidecars);
        } else {
            largest = largest.max(sidecars + get(init));
        }
    }
    sum = sum + sidecars;
    sum.max(largest) + overhead
}

/// Millicores to cgroup shares (v1 scale).
pub(crate) fn cpu_shares(milli: i64) -> u64 {
    let shares = if milli <= 0 { MIN_SHARES } else { milli.saturating_mul(1024) / 1000 };
    shares.clamp(MIN_SHARES, MAX_SHARES).unsigned_abs()
}

/// Millicores to a CFS quota; `None` when there is no limit.
pub(crate) fn cpu_quota(milli: i64) -> Option<i64> {
    (milli > 0).then(|| (milli.saturating_mul(CPU_PERIOD) / 1000).max(MIN_QUOTA))
}

/// How readily the kernel kills the container when memory runs out.
pub(crate) fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i32 {
    if pod.pod_spec().priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL_PRIORITY) {
        return -997;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let own = |c: &Container| {
                let asked =
                    quantity(requests(c.resources.as_ref()), "memory").unwrap_or(Quantity::ZERO).value();
                let score = 1000 - asked.saturating_mul(1000) / memory_capacity.max(1);
                i32::try_from(score.clamp(3, 999)).unwrap_or(999)
            };
            let score = own(container);
            if is_sidecar(container) && pod.init_containers().iter().any(|c| c.name == container.name) {
                // A sidecar must not be killed before the containers it serves.
                return pod.pod_spec().containers.iter().map(own).min().unwrap_or(score).min(score);
            }
            score
        }
    }
}

/// The cgroup limits of one container.
pub(crate) fn container_resources(
    pod: &Pod,
    container: &Container,
    memory_capacity: i64,
) -> LinuxContainerResources {
    let cpu_limit = limit(container, "cpu").map_or(0, |q| q.milli_value());
    let cpu_request = request(container, "cpu").map_or(0, |q| q.milli_value());
    let mut hugepages = BTreeMap::new();
    for (name, value) in container.resources.iter().flat_map(|r| r.limits.iter().flatten()) {
        if let Some(size) = name.strip_prefix("hugepages-")
            && let (Ok(size), Ok(value)) = (Quantity::parse(size), Quantity::parse(&value.0))
        {
            hugepages.insert(page_size_name(size.value()), value.value().unsigned_abs());
        }
    }
    LinuxContainerResources {
        cpu_period: Some(CPU_PERIOD.unsigned_abs()),
        cpu_quota: cpu_quota(cpu_limit),
        cpu_shares: Some(cpu_shares(cpu_request)),
        memory_limit_in_bytes: limit(container, "memory").map(|q| q.value()).filter(|bytes| *bytes > 0),
        oom_score_adj: Some(oom_score_adj(pod, container, memory_capacity)),
        hugepage_limits: hugepages,
        ..LinuxContainerResources::default()
    }
}

/// `2MB`, `1GB`: how the kernel's hugetlb files name a page size.
fn page_size_name(bytes: i64) -> String {
    if bytes % (1 << 30) == 0 {
        format!("{}GB", bytes >> 30)
    } else if bytes % (1 << 20) == 0 {
        format!("{}MB", bytes >> 20)
    } else {
        format!("{}KB", bytes >> 10)
    }
}

/// The cgroup limits of the pod as a whole.
pub(crate) fn pod_resources(pod: &Pod) -> LinuxContainerResources {
    let mut out =
        LinuxContainerResources { cpu_period: Some(CPU_PERIOD.unsigned_abs()), ..Default::default() };
    if qos_class(pod) == QosClass::BestEffort {
        out.cpu_shares = Some(MIN_SHARES.unsigned_abs());
        return out;
    }
    out.cpu_shares = Some(cpu_shares(pod_request(pod, "cpu").milli_value()));
    out.cpu_quota = pod_limit(pod, "cpu").and_then(|q| cpu_quota(q.milli_value()));
    out.memory_limit_in_bytes = pod_limit(pod, "memory").map(|q| q.value()).filter(|bytes| *bytes > 0);
    out
}

/// The pod's limit of a resource; `None` when any container has none, for then the pod as a whole has none.
fn pod_limit(pod: &Pod, name: &str) -> Option<Quantity> {
    let spec = pod.pod_spec();
    let overhead = quantity(spec.overhead.as_ref(), name).unwrap_or(Quantity::ZERO);
    if let Some(of_pod) = quantity(limits(spec.resources.as_ref()), name) {
        return Some(of_pod + overhead);
    }
    let mut sum = Quantity::ZERO;
    for container in &spec.containers {
        sum = sum + limit(container, name)?;
    }
    let mut sidecars = Quantity::ZERO;
    let mut largest = Quantity::ZERO;
    for init in pod.init_containers() {
        let own = limit(init, name)?;
        if is_sidecar(init) {
            sidecars = sidecars + own;
            largest = largest.max(sidecars);
        } else {
            largest = largest.max(sidecars + own);
        }
    }
    Some((sum + sidecars).max(largest) + overhead)
}

/// The pod's cgroup below the cgroup root.
pub(crate) fn pod_cgroup(parent: &str, pod: &Pod) -> String {
    let uid = pod.uid();
    match qos_class(pod) {
        QosClass::Guaranteed => format!("{parent}/pod{uid}"),
        QosClass::Burstable => format!("{parent}/burstable/pod{uid}"),
        QosClass::BestEffort => format!("{parent}/besteffort/pod{uid}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": containers,
        }))
        .unwrap()
    }

    fn one(resources: serde_json::Value) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": resources}]}))
    }

    #[test]
    fn quality_of_service() {
        for (resources, expected) in [
            (json!({}), QosClass::BestEffort),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), QosClass::Guaranteed),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}),
                QosClass::Guaranteed,
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1"}}),
                QosClass::Burstable,
            ),
            (json!({"requests": {"cpu": "1m"}}), QosClass::Burstable),
            (json!({"limits": {"memory": "1Gi"}}), QosClass::Burstable),
            (json!({"requests": {"cpu": "0"}}), QosClass::BestEffort),
            (json!({"limits": {"ephemeral-storage": "1Gi"}}), QosClass::BestEffort),
        ] {
            assert_eq!(qos_class(&one(resources.clone())), expected, "{resources}");
        }
    }

    #[test]
    fn shares_and_quota() {
        for (milli, shares, quota) in [
            (0, 2, None),
            (1, 2, Some(1000)),
            (100, 102, Some(10_000)),
            (1000, 1024, Some(100_000)),
            (1_000_000, 262_144, Some(100_000_000)),
        ] {
            assert_eq!((cpu_shares(milli), cpu_quota(milli)), (shares, quota), "{milli}");
        }
    }

    #[test]
    fn oom_scores() {
        let score = |resources: serde_json::Value| {
            let pod = one(resources);
            oom_score_adj(&pod, &pod.spec.as_ref().unwrap().containers[0], 4_000_000_000)
        };
        assert_eq!(score(json!({})), 1000);
        assert_eq!(score(json!({"limits": {"cpu": "1", "memory": "1G"}})), -997);
        assert_eq!(score(json!({"requests": {"memory": "1G"}})), 750);
        assert_eq!(score(json!({"requests": {"memory": "1"}})), 999);
        assert_eq!(score(json!({"requests": {"memory": "4G"}})), 3);
        assert_eq!(score(json!({"requests": {"cpu": "1"}})), 999);
    }

    #[test]
    fn a_pod_asks_for_the_larger_of_its_steps() {
        let cpu = |c: &str| json!({"requests": {"cpu": c}});
        let pod = pod(json!({
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": cpu("200m")},
                {"name": "init", "resources": cpu("1")},
            ],
            "containers": [{"name": "a", "resources": cpu("300m")}, {"name": "b", "resources": cpu("400m")}],
            "overhead": {"cpu": "50m"},
        }));
        assert_eq!(pod_request(&pod, "cpu").milli_value(), 1250);
        assert_eq!(pod_resources(&pod).cpu_quota, None);
        assert_eq!(pod_cgroup("/orlop/kubepods", &pod), "/orlop/kubepods/burstable/podu");
    }

    #[test]
    fn container_numbers() {
        let pod = one(
            json!({"limits": {"cpu": "500m", "memory": "64Mi", "hugepages-2Mi": "4Mi"}, "requests": {"cpu": "250m"}}),
        );
        let got = container_resources(&pod, &pod.spec.as_ref().unwrap().containers[0], 1 << 30);
        assert_eq!(got.cpu_quota, Some(50_000));
        assert_eq!(got.cpu_shares, Some(256));
        assert_eq!(got.memory_limit_in_bytes, Some(64 << 20));
        assert_eq!(got.hugepage_limits["2MB"], 4 << 20);
    }
}
