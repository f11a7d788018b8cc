//! What a pod uses: the requests and limits of its containers together, as the scheduler reckons them.

use jiff::{SignedDuration, Timestamp};
use orlop_api::Quantity;
use orlop_json::Value;

use super::{ResourceList, add, meets, resource_list};
use crate::core::pod::qos;
use crate::core::pod::resources::{is_extended, is_huge_page, is_native};
use crate::cursor::Cursor;

/// Quota resources of cpu and memory: a quota on one of them makes every container say how much it wants.
const MUST_SPECIFY: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

fn max(list: &mut ResourceList, other: &ResourceList) {
    for (name, value) in other {
        match list.get_mut(name) {
            Some(own) if *own >= *value => {}
            Some(own) => *own = *value,
            None => {
                list.insert(name.clone(), *value);
            }
        }
    }
}

fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || is_huge_page(name)
}

/// Whether the pod says for all its containers together what it wants.
fn has_pod_level(spec: &Value) -> bool {
    ["requests", "limits"].iter().any(|list| spec["resources"][*list].entries().any(|(n, _)| is_pod_level(n)))
}

/// `requests` or `limits` of the whole pod by what `of` says of a container: the containers run together, an init
/// container runs alone but for the sidecars before it, and what the pod says of itself counts above all.
fn combine(spec: &Value, list: &str, of: impl Fn(&Value) -> ResourceList) -> ResourceList {
    let mut total = ResourceList::new();
    for container in spec["containers"].items() {
        add(&mut total, &of(container));
    }
    let (mut sidecars, mut init) = (ResourceList::new(), ResourceList::new());
    for container in spec["initContainers"].items() {
        let mut own = of(container);
        if container["restartPolicy"].text() == "Always" {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            add(&mut own, &sidecars);
        }
        max(&mut init, &own);
    }
    max(&mut total, &init);
    for (name, value) in resource_list(&spec["resources"][list]) {
        if is_pod_level(&name) {
            total.insert(name, value);
        }
    }
    total
}

/// `requests` or `limits` of a pod by its spec alone.
pub fn pod_spec_resources(spec: &Value, list: &str) -> ResourceList {
    combine(spec, list, |container| resource_list(&container["resources"][list]))
}

/// Whether the kubelet has said that a resize cannot be done.
fn resize_is_infeasible(pod: &Value) -> bool {
    pod["status"]["conditions"]
        .items()
        .iter()
        .any(|c| c["type"].text() == "PodResizePending" && c["reason"].text() == "Infeasible")
}

/// The larger of what a container wants and what it still holds while a resize is under way.
fn held(pod: &Value, container: &Value, list: &str) -> ResourceList {
    let mut wanted = resource_list(&container["resources"][list]);
    let name = container["name"].text();
    let statuses = ["containerStatuses", "initContainerStatuses"];
    let status = statuses
        .iter()
        .flat_map(|of| pod["status"][*of].items())
        .find(|status| status["name"].text() == name && status.has("resources"));
    let Some(status) = status else { return wanted };
    let actual = resource_list(&status["resources"][list]);
    if resize_is_infeasible(pod) {
        wanted = actual;
    } else {
        max(&mut wanted, &actual);
    }
    if list == "requests" {
        max(&mut wanted, &resource_list(&status["allocatedResources"]));
    }
    wanted
}

/// What a pod asks of its node, overhead included.
pub fn pod_requests(pod: &Value) -> ResourceList {
    let mut total = combine(&pod["spec"], "requests", |container| held(pod, container, "requests"));
    add(&mut total, &resource_list(&pod["spec"]["overhead"]));
    total
}

/// What a pod may use at most, overhead included where there is a limit.
fn pod_limits(pod: &Value) -> ResourceList {
    let mut total = combine(&pod["spec"], "limits", |container| held(pod, container, "limits"));
    for (name, value) in resource_list(&pod["spec"]["overhead"]) {
        if let Some(limit) = total.get_mut(&name) {
            *limit = *limit + value;
        }
    }
    total
}

/// Requests and limits under the names that quotas use.
fn compute_usage(requests: &ResourceList, limits: &ResourceList) -> ResourceList {
    let mut out = ResourceList::new();
    out.insert("pods".into(), one());
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(request) = requests.get(name) {
            out.insert(name.into(), *request);
            out.insert(format!("requests.{name}"), *request);
        }
        if let Some(limit) = limits.get(name) {
            out.insert(format!("limits.{name}"), *limit);
        }
    }
    for (name, request) in requests {
        if is_huge_page(name) {
            out.insert(name.clone(), *request);
        }
        if is_huge_page(name) || is_extended(name) {
            out.insert(format!("requests.{name}"), *request);
        }
    }
    out
}

pub(super) fn one() -> Quantity {
    Quantity::new(1, orlop_api::quantity::Format::DecimalSI)
}

/// Whether a pod still uses something: it has not ended, and its node has not been lost while it was to end.
fn is_charged(pod: &Value, now: Timestamp) -> bool {
    if matches!(pod["status"]["phase"].text(), "Failed" | "Succeeded") {
        return false;
    }
    let metadata = &pod["metadata"];
    let Ok(deleted) = metadata["deletionTimestamp"].text().parse::<Timestamp>() else { return true };
    let Some(grace) = metadata["deletionGracePeriodSeconds"].as_i64() else { return true };
    deleted.saturating_add(SignedDuration::from_secs(grace)).is_ok_and(|gone| now <= gone)
}

pub(super) fn usage(pod: &Value, now: Timestamp) -> ResourceList {
    let mut out = ResourceList::new();
    if is_charged(pod, now) {
        out = compute_usage(&pod_requests(pod), &pod_limits(pod));
    }
    out.insert("count/pods".into(), one());
    out
}

pub(super) fn matches_resource(name: &str) -> bool {
    matches!(
        name,
        "count/pods"
            | "pods"
            | "ephemeral-storage"
            | "requests.ephemeral-storage"
            | "limits.ephemeral-storage"
    ) || MUST_SPECIFY.contains(&name)
        || is_huge_page(name)
        || name.starts_with("requests.hugepages-")
        || (!is_native(name) && name.starts_with("requests."))
}

/// Every container must say what a quota of cpu or memory counts, unless the pod says it for all.
pub(super) fn constraints(required: &[&str], pod: &Value) -> Result<(), String> {
    let spec = &pod["spec"];
    if has_pod_level(spec) {
        return Ok(());
    }
    let mut required: Vec<&str> =
        required.iter().filter(|name| MUST_SPECIFY.contains(name)).copied().collect();
    required.sort_unstable();
    let mut messages = Vec::new();
    for name in required {
        let mut missing: Vec<&str> = ["containers", "initContainers"]
            .iter()
            .flat_map(|list| spec[*list].items())
            .filter(|container| {
                let resources = &container["resources"];
                let said = compute_usage(
                    &resource_list(&resources["requests"]),
                    &resource_list(&resources["limits"]),
                );
                !said.contains_key(name)
            })
            .map(|container| container["name"].text())
            .collect();
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() {
            messages.push(format!("{name} for: {}", missing.join(",")));
        }
    }
    if messages.is_empty() { Ok(()) } else { Err(format!("must specify {}", messages.join("; "))) }
}

/// Whether an affinity term looks into other namespaces.
fn crosses_namespaces(spec: &Value) -> bool {
    let affinity = &spec["affinity"];
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let required = affinity[*kind]["requiredDuringSchedulingIgnoredDuringExecution"].items().iter();
        let preferred = affinity[*kind]["preferredDuringSchedulingIgnoredDuringExecution"].items().iter();
        required
            .chain(preferred.map(|term| &term["podAffinityTerm"]))
            .any(|term| !term["namespaces"].is_empty() || term.has("namespaceSelector"))
    })
}

pub(super) fn matches_scope(requirement: &Value, pod: &Value) -> bool {
    let spec = &pod["spec"];
    let terminating = spec["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    let best_effort = || qos::class(spec) == "BestEffort";
    match requirement["scopeName"].text() {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => {
            let class = spec["priorityClassName"].text();
            meets(requirement, if class.is_empty() { &[] } else { std::slice::from_ref(&class) })
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(spec),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::print;
    use orlop_json::json;

    #[test]
    fn what_a_pod_uses() {
        let now = Timestamp::UNIX_EPOCH;
        let check = |pod: Value, expected: &str| assert_eq!(print(&usage(&pod, now)), expected, "{pod}");
        let container = |requests: Value| json!({"name": "c", "resources": {"requests": requests}});
        check(json!({"spec": {"containers": [container(json!({}))]}}), "count/pods=1,pods=1");
        check(
            json!({"spec": {"containers": [container(json!({"cpu": "1", "example.com/gpu": "2", "hugepages-2Mi": "4Mi"})), container(json!({"cpu": "500m"}))]}}),
            "count/pods=1,cpu=1500m,hugepages-2Mi=4Mi,pods=1,requests.cpu=1500m,requests.example.com/gpu=2,requests.hugepages-2Mi=4Mi",
        );
        let mut sidecar = container(json!({"cpu": "1"}));
        sidecar["restartPolicy"] = json!("Always");
        check(
            json!({"spec": {"initContainers": [sidecar, container(json!({"cpu": "3"}))], "containers": [container(json!({"cpu": "1"}))], "overhead": {"cpu": "100m"}}}),
            "count/pods=1,cpu=4100m,pods=1,requests.cpu=4100m",
        );
        check(
            json!({"spec": {"resources": {"requests": {"cpu": "5"}}, "containers": [container(json!({"cpu": "1"}))]}}),
            "count/pods=1,cpu=5,pods=1,requests.cpu=5",
        );
        check(
            json!({"spec": {"containers": [container(json!({"cpu": "1"}))]}, "status": {"phase": "Failed"}}),
            "count/pods=1",
        );
        check(
            json!({"metadata": {"deletionTimestamp": "1969-01-01T00:00:00Z", "deletionGracePeriodSeconds": 1}, "spec": {"containers": [container(json!({"cpu": "1"}))]}}),
            "count/pods=1",
        );
        check(
            json!({"spec": {"containers": [container(json!({"cpu": "1"}))]}, "status": {"containerStatuses": [
                {"name": "c", "resources": {"requests": {"cpu": "2"}}, "allocatedResources": {"cpu": "1"}}]}}),
            "count/pods=1,cpu=2,pods=1,requests.cpu=2",
        );
    }

    #[test]
    fn containers_must_say_what_they_want() {
        let pod = json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}, {"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
        let check = |required: &[&str], expected: Result<(), &str>| {
            assert_eq!(constraints(required, &pod), expected.map_err(String::from));
        };
        check(&["pods", "requests.storage"], Ok(()));
        check(
            &["requests.cpu", "limits.memory"],
            Err("must specify limits.memory for: a,b,c; requests.cpu for: a,b"),
        );
    }

    #[test]
    fn scopes() {
        let check = |scope: &str, operator: &str, values: &[&str], spec: Value, expected: bool| {
            let requirement = json!({"scopeName": scope, "operator": operator, "values": values});
            assert_eq!(matches_scope(&requirement, &json!({"spec": spec})), expected, "{requirement} {spec}");
        };
        check("Terminating", "Exists", &[], json!({"activeDeadlineSeconds": 5}), true);
        check("NotTerminating", "Exists", &[], json!({}), true);
        check("BestEffort", "Exists", &[], json!({"containers": [{"name": "c"}]}), true);
        check("PriorityClass", "In", &["high"], json!({"priorityClassName": "high"}), true);
        check("PriorityClass", "In", &["high"], json!({}), false);
        check("PriorityClass", "NotIn", &["high"], json!({}), true);
        check("PriorityClass", "Exists", &[], json!({"priorityClassName": "x"}), true);
        check("PriorityClass", "DoesNotExist", &[], json!({"priorityClassName": "x"}), false);
        let term = json!([{"topologyKey": "z", "namespaceSelector": {}}]);
        let affinity =
            json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
        check("CrossNamespacePodAffinity", "Exists", &[], affinity, true);
        check("VolumeAttributesClass", "Exists", &[], json!({}), false);
    }
}
