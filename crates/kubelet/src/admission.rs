//! Whether this node can take a pod at all. Pure; answers to upstream's `pkg/kubelet/lifecycle/predicate.go`: the
//! scheduler has decided already, but others may bind pods too, and nodes change.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};
use orlop_api::Quantity;

use crate::pod::PodExt;
use crate::resources::{ResourceList, pod_request, quantity};
use crate::status::PodFailure;

/// Checks `pod` against the node and the pods admitted before.
pub(crate) fn admit<'a>(
    pod: &Pod,
    node: &Node,
    others: impl Iterator<Item = &'a Pod> + Clone,
    allocatable: &ResourceList,
) -> Result<(), PodFailure> {
    let spec = pod.pod_spec();
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return refuse("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS");
    }
    supported(pod)?;
    fits(pod, others.clone(), allocatable)?;
    if !selected(pod, node) {
        return refuse("NodeAffinity", "Predicate NodeAffinity failed");
    }
    for taint in node.spec.iter().flat_map(|s| s.taints.iter().flatten()).filter(|t| t.effect == "NoExecute")
    {
        if !spec.tolerations.iter().flatten().any(|toleration| tolerates(toleration, taint)) {
            return refuse("TaintToleration", "Predicate TaintToleration failed");
        }
    }
    let wanted = host_ports(pod);
    if others.flat_map(host_ports).any(|taken| wanted.iter().any(|port| collide(port, &taken))) {
        return refuse("NodePorts", "Predicate NodePorts failed");
    }
    Ok(())
}

/// Sysctls that are namespaced and cannot hurt the node: allowed in every pod.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// What a pod asks for and this node cannot enforce is refused: running it without would be worse.
fn supported(pod: &Pod) -> Result<(), PodFailure> {
    let spec = pod.pod_spec();
    let context = spec.security_context.as_ref();
    for sysctl in context.iter().flat_map(|c| c.sysctls.iter().flatten()) {
        let name = sysctl.name.replace('/', ".");
        if !SAFE_SYSCTLS.contains(&name.as_str()) {
            return refuse(
                "SysctlForbidden",
                &format!("forbidden sysctl: \"{}\" not allowlisted", sysctl.name),
            );
        }
        if name.starts_with("net.") && pod.host_network() {
            let message = format!("forbidden sysctl: \"{}\" not allowed with host net enabled", sysctl.name);
            return refuse("SysctlForbidden", &message);
        }
    }
    let of_containers =
        spec.containers.iter().chain(pod.init_containers()).filter_map(|c| c.security_context.as_ref());
    let mut profiles = of_containers
        .filter_map(|c| c.app_armor_profile.as_ref())
        .chain(context.and_then(|c| c.app_armor_profile.as_ref()));
    if profiles.any(|profile| profile.type_ != "Unconfined") {
        return refuse("AppArmor", "Cannot enforce AppArmor: AppArmor is not supported by this kubelet");
    }
    if context.is_some_and(|c| c.supplemental_groups_policy.as_deref() == Some("Strict")) {
        return refuse(
            "SupplementalGroupsPolicyNotSupported",
            "SupplementalGroupsPolicy=Strict is not supported in this node",
        );
    }
    if spec.host_users == Some(false) {
        return refuse(
            "UserNamespacesNotSupported",
            "user namespaces (hostUsers: false) are not supported by this kubelet",
        );
    }
    if let Some(class) = spec.runtime_class_name.as_ref().filter(|name| !name.is_empty()) {
        let message = format!(
            "runtimeClassName {class}: no runtime handler but the default is configured on this node"
        );
        return refuse("RuntimeClassNotSupported", &message);
    }
    let made_for_resources =
        pod.status.as_ref().is_some_and(|status| status.extended_resource_claim_status.is_some());
    if made_for_resources || spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return refuse("UnexpectedAdmissionError", "resourceClaims are not supported by this kubelet");
    }
    Ok(())
}

fn refuse(reason: &str, message: &str) -> Result<(), PodFailure> {
    Err(PodFailure { reason: reason.to_owned(), message: message.to_owned() })
}

fn fits<'a>(
    pod: &Pod,
    others: impl Iterator<Item = &'a Pod> + Clone,
    allocatable: &ResourceList,
) -> Result<(), PodFailure> {
    let insufficient = |name: &str, requested: i64, used: i64, capacity: i64| PodFailure {
        reason: format!("OutOf{name}"),
        message: format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        ),
    };
    let running = others.clone().count();
    let capacity = quantity(Some(allocatable), "pods").map_or(i64::MAX, |q| q.value());
    let used = i64::try_from(running).unwrap_or(i64::MAX);
    if used >= capacity {
        return Err(insufficient("pods", 1, used, capacity));
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        let amount = |q: Quantity| if name == "cpu" { q.milli_value() } else { q.value() };
        let requested = amount(pod_request(pod, name));
        if requested == 0 {
            continue;
        }
        let used = others.clone().map(|other| amount(pod_request(other, name))).sum::<i64>();
        let capacity = quantity(Some(allocatable), name).map_or(0, amount);
        if requested > capacity - used {
            return Err(insufficient(name, requested, used, capacity));
        }
    }
    Ok(())
}

fn selected(pod: &Pod, node: &Node) -> bool {
    let spec = pod.pod_spec();
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    if !spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value)) {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|selector| selects_node(selector, node))
}

/// Whether a node selector (of a pod, or of a volume) allows the node.
pub(crate) fn selects_node(selector: &NodeSelector, node: &Node) -> bool {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    selector.node_selector_terms.iter().any(|term| term_matches(term, labels, node))
}

fn term_matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| requirement(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| {
            requirement(
                r,
                (r.key == "metadata.name").then(|| node.metadata.name.as_deref().unwrap_or_default()),
            )
        })
}

fn requirement(rule: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = rule.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|v| v == value));
    let number = |text: &str| text.parse::<i64>().ok();
    match rule.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => {
            value.and_then(number).zip(values.first().and_then(|v| number(v))).is_some_and(|(a, b)| a > b)
        }
        "Lt" => {
            value.and_then(number).zip(values.first().and_then(|v| number(v))).is_some_and(|(a, b)| a < b)
        }
        _ => false,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let empty = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
    if !empty(&toleration.effect) && toleration.effect.as_deref() != Some(&taint.effect) {
        return false;
    }
    if !empty(&toleration.key) && toleration.key.as_deref() != Some(&taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        _ => {
            !empty(&toleration.key)
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
    }
}

/// Protocol, address and number of a host port.
type HostPort = (String, String, i32);

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let sidecars = pod.init_containers().iter().filter(|c| crate::pod::is_sidecar(c));
    let ports = pod.pod_spec().containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|n| *n != 0)?;
            let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
            Some((port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), ip, number))
        })
        .collect()
}

fn collide(a: &HostPort, b: &HostPort) -> bool {
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || a.1 == "0.0.0.0" || b.1 == "0.0.0.0")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let mut full = json!({"containers": [{"name": "c", "resources": spec.get("resources").cloned().unwrap_or(json!({})), "ports": spec.get("ports").cloned().unwrap_or(json!([]))}]});
        for (key, value) in spec.as_object().unwrap() {
            if key != "resources" && key != "ports" {
                full[key] = value.clone();
            }
        }
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": full})).unwrap()
    }

    fn check(spec: Value, expected: Option<(&str, &str)>) {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"disk": "ssd", "cores": "8"}},
            "spec": {"taints": [{"key": "k", "effect": "NoExecute"}, {"key": "s", "effect": "NoSchedule"}]},
        }))
        .unwrap();
        let tolerant = json!([{"key": "k", "operator": "Exists"}]);
        let mut spec = spec;
        if spec.get("tolerations").is_none() {
            spec["tolerations"] = tolerant;
        }
        let other = pod(
            json!({"resources": {"requests": {"cpu": "1"}}, "ports": [{"containerPort": 80, "hostPort": 80}]}),
        );
        let allocatable = serde_json::from_value(json!({"cpu": "2", "memory": "1Gi", "pods": "2"})).unwrap();
        let got = admit(&pod(spec.clone()), &node, [&other].into_iter(), &allocatable);
        let got = got.as_ref().err().map(|f| (f.reason.as_str(), f.message.as_str()));
        assert_eq!(got, expected, "{spec}");
    }

    #[test]
    fn pods_are_admitted_or_refused() {
        check(json!({}), None);
        check(
            json!({"resources": {"requests": {"cpu": "1500m"}}}),
            Some((
                "OutOfcpu",
                "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000",
            )),
        );
        check(
            json!({"resources": {"requests": {"memory": "2Gi"}}}),
            Some((
                "OutOfmemory",
                "Node didn't have enough resource: memory, requested: 2147483648, used: 0, capacity: 1073741824",
            )),
        );
        check(json!({"nodeSelector": {"disk": "ssd"}}), None);
        check(
            json!({"nodeSelector": {"disk": "hdd"}}),
            Some(("NodeAffinity", "Predicate NodeAffinity failed")),
        );
        let affinity = |key: &str, operator: &str, values: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]}}}});
        check(affinity("cores", "Gt", json!(["4"])), None);
        check(affinity("cores", "Lt", json!(["4"])), Some(("NodeAffinity", "Predicate NodeAffinity failed")));
        check(
            json!({"hostUsers": false}),
            Some((
                "UserNamespacesNotSupported",
                "user namespaces (hostUsers: false) are not supported by this kubelet",
            )),
        );
        let sysctl = |name: &str| json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        check(sysctl("net.ipv4.tcp_syncookies"), None);
        check(
            sysctl("kernel.msgmax"),
            Some(("SysctlForbidden", "forbidden sysctl: \"kernel.msgmax\" not allowlisted")),
        );
        check(json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}), None);
        check(json!({"tolerations": []}), Some(("TaintToleration", "Predicate TaintToleration failed")));
        check(
            json!({"ports": [{"containerPort": 1, "hostPort": 80, "hostIP": "127.0.0.1"}]}),
            Some(("NodePorts", "Predicate NodePorts failed")),
        );
        check(json!({"ports": [{"containerPort": 1, "hostPort": 80, "protocol": "UDP"}]}), None);
    }

    #[test]
    fn a_pod_does_not_run_without_the_devices_it_was_given() {
        let unsupported = "resourceClaims are not supported by this kubelet";
        check(
            json!({"resourceClaims": [{"name": "c", "resourceClaimName": "c"}]}),
            Some(("UnexpectedAdmissionError", unsupported)),
        );
        let mut pod = pod(json!({}));
        let made = json!({"extendedResourceClaimStatus": {"requestMappings": [], "resourceClaimName": "c"}});
        pod.status = serde_json::from_value(made).unwrap();
        assert_eq!(supported(&pod).map_err(|failure| failure.message), Err(unsupported.to_owned()));
    }
}
