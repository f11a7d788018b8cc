//! Service: a stable name and address for a set of pods. Allocation of addresses and node ports is the API server's;
//! what is here says which of them a service needs, keeps and gives up.

mod addresses;
mod validation;

pub use addresses::{init_ip_families, normalize_cluster_ips, patch_allocated_values};
pub use validation::validate_cluster_ips_related_fields;

use jiff::Timestamp;
use orlop_api::field::{ErrorList, Path};
use orlop_json::{Value, json};

use crate::addresses::{cidr_warning, ip_warning};
use crate::cursor::{Cursor, child, default_empty_to, default_to, items_mut, keep, remove, same};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of Services.
pub struct Service;

/// Whether traffic from outside can reach it: a load balancer, a node port, or external addresses.
pub fn externally_accessible(service: &Value) -> bool {
    let spec = &service["spec"];
    match spec["type"].text() {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !spec["externalIPs"].is_empty(),
        _ => false,
    }
}

/// Whether a port for load balancer health checks is needed.
pub fn needs_health_check(service: &Value) -> bool {
    let spec = &service["spec"];
    spec["type"].text() == "LoadBalancer" && spec["externalTrafficPolicy"].text() == "Local"
}

/// Whether the service has a cluster address (perhaps `None`).
pub fn needs_cluster_ip(service: &Value) -> bool {
    service["spec"]["type"].text() != "ExternalName"
}

/// Whether each of its ports gets a port on the nodes.
pub fn needs_node_port(service: &Value) -> bool {
    let spec = &service["spec"];
    match spec["type"].text() {
        "NodePort" => true,
        "LoadBalancer" => spec["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true),
        _ => false,
    }
}

/// Whether `spec.clusterIP` is `None`.
pub fn is_headless(service: &Value) -> bool {
    let ips = service["spec"]["clusterIPs"].items();
    ips.len() == 1 && ips[0].text() == "None"
}

/// What a change of type makes meaningless is dropped, unless the writer just set it.
fn drop_type_dependent_fields(service: &mut Value, old: &Value) {
    let unchanged = |new: &Value, key: &str| same(&new["spec"][key], &old["spec"][key]);
    let mut drop: Vec<&str> = Vec::new();
    if needs_cluster_ip(old) && !needs_cluster_ip(service) {
        drop.extend(["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]);
    }
    if needs_health_check(old) && !needs_health_check(service) {
        drop.push("healthCheckNodePort");
    }
    let balanced = |s: &Value| s["spec"]["type"].text() == "LoadBalancer";
    if balanced(old) && !balanced(service) {
        drop.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if externally_accessible(old) && !externally_accessible(service) {
        drop.push("externalTrafficPolicy");
    }
    for key in drop {
        if unchanged(service, key) {
            remove(child(service, "spec"), key);
        }
    }
    let ports =
        |s: &Value| -> Vec<i64> { s["spec"]["ports"].items().iter().map(|p| p["nodePort"].int()).collect() };
    if needs_node_port(old)
        && service["spec"]["type"] != old["spec"]["type"]
        && !needs_node_port(service)
        && ports(service) == ports(old)
    {
        for port in items_mut(child(service, "spec"), "ports") {
            remove(port, "nodePort");
        }
    }
}

fn ip_warnings(out: &mut Vec<String>, path: &Path, list: &Value) {
    out.extend(list.texts().into_iter().enumerate().filter_map(|(i, ip)| ip_warning(&path.index(i), ip)));
}

fn external_ip(service: &Value) -> String {
    let spec = &service["spec"];
    let external = spec["externalIPs"].texts();
    match spec["type"].text() {
        "ExternalName" => spec["externalName"].text().to_owned(),
        "LoadBalancer" => {
            let mut addresses: Vec<&str> = service["status"]["loadBalancer"]["ingress"]
                .items()
                .iter()
                .map(|i| if i["ip"].text().is_empty() { i["hostname"].text() } else { i["ip"].text() })
                .filter(|a| !a.is_empty())
                .collect();
            addresses.sort_unstable();
            addresses.dedup();
            addresses.extend(external);
            if addresses.is_empty() { "<pending>".to_owned() } else { addresses.join(",") }
        }
        "ClusterIP" | "NodePort" => {
            if external.is_empty() {
                "<none>".to_owned()
            } else {
                external.join(",")
            }
        }
        _ => "<unknown>".to_owned(),
    }
}

fn ports(service: &Value) -> String {
    let all: Vec<String> = service["spec"]["ports"]
        .items()
        .iter()
        .map(|p| {
            let (port, node, protocol) = (p["port"].int(), p["nodePort"].int(), p["protocol"].text());
            if node > 0 { format!("{port}:{node}/{protocol}") } else { format!("{port}/{protocol}") }
        })
        .collect();
    if all.is_empty() { "<none>".to_owned() } else { all.join(",") }
}

impl Strategy for Service {
    fn name_rule(&self) -> NameRule {
        NameRule::DnsLabel
    }

    fn defaults(&self, obj: &mut Value) {
        let spec = child(obj, "spec");
        default_empty_to(spec, "sessionAffinity", "None");
        match spec["sessionAffinity"].text() {
            "None" => remove(spec, "sessionAffinityConfig"),
            "ClientIP" if !spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].is_set() => {
                spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10_800}});
            }
            _ => {}
        }
        default_empty_to(spec, "type", "ClusterIP");
        for port in items_mut(spec, "ports") {
            default_empty_to(port, "protocol", "TCP");
            let number = port["port"].clone();
            default_empty_to(port, "targetPort", number);
        }
        if externally_accessible(obj) {
            default_empty_to(child(obj, "spec"), "externalTrafficPolicy", "Cluster");
        }
        let spec = child(obj, "spec");
        if matches!(spec["type"].text(), "ClusterIP" | "NodePort" | "LoadBalancer") {
            default_to(spec, "internalTrafficPolicy", "Cluster");
        }
        if spec["type"].text() == "LoadBalancer" {
            default_to(spec, "allocateLoadBalancerNodePorts", true);
            let balancer = child(child(obj, "status"), "loadBalancer");
            for ingress in items_mut(balancer, "ingress") {
                if !ingress["ip"].text().is_empty() {
                    default_to(ingress, "ipMode", "VIP");
                }
            }
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        normalize_cluster_ips(obj, None);
        obj["status"] = json!({"loadBalancer": {}});
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["status"]);
        normalize_cluster_ips(obj, Some(old));
        patch_allocated_values(obj, old);
        drop_type_dependent_fields(obj, old);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validation::validate_service(obj)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        validation::validate_service_update(obj, old)
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
        let spec = &obj["spec"];
        let path = Path::new("spec");
        let named = spec["type"].text() == "ExternalName";
        let headless = spec["type"].text() == "ClusterIP" && spec["clusterIP"].text() == "None";
        let external = !spec["externalIPs"].is_empty();
        let mut out = Vec::new();
        if obj["metadata"]["annotations"].has(HINTS) {
            out.push(format!(
                "annotation {HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"
            ));
        }
        if !matches!(spec["clusterIP"].text(), "" | "None") {
            ip_warnings(&mut out, &path.child("clusterIPs"), &spec["clusterIPs"]);
        }
        let warn = |out: &mut Vec<String>, applies: bool, text: &str| {
            if applies {
                out.push(text.to_owned());
            }
        };
        warn(
            &mut out,
            headless && !spec["loadBalancerIP"].text().is_empty(),
            "spec.loadBalancerIP is ignored for headless services",
        );
        warn(&mut out, headless && external, "spec.externalIPs is ignored for headless services");
        warn(
            &mut out,
            headless && spec["sessionAffinity"].text() != "None",
            "spec.SessionAffinity is ignored for headless services",
        );
        ip_warnings(&mut out, &path.child("externalIPs"), &spec["externalIPs"]);
        warn(
            &mut out,
            external && !headless && !named,
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
        );
        out.extend(ip_warning(&path.child("loadBalancerIP"), spec["loadBalancerIP"].text()));
        for (i, range) in spec["loadBalancerSourceRanges"].texts().into_iter().enumerate() {
            out.extend(cidr_warning(&path.child("loadBalancerSourceRanges").index(i), range));
        }
        warn(&mut out, named && external, "spec.externalIPs is ignored when spec.type is \"ExternalName\"");
        warn(
            &mut out,
            !named && !spec["externalName"].text().is_empty(),
            "spec.externalName is ignored when spec.type is not \"ExternalName\"",
        );
        warn(
            &mut out,
            spec["trafficDistribution"].text() == "PreferClose",
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
        );
        out
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        validation::validate_load_balancer_status(&mut errs, obj);
        errs
    }

    fn selectable_field(&self, obj: &Value, label: &str) -> Option<String> {
        match label {
            "spec.clusterIP" => Some(obj["spec"]["clusterIP"].text().to_owned()),
            "spec.type" => Some(obj["spec"]["type"].text().to_owned()),
            _ => crate::metadata_field(true, obj, label),
        }
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &obj["spec"];
        let cluster_ip = match spec["clusterIPs"][0].text() {
            "" => "<none>",
            ip => ip,
        };
        vec![
            printer::name(obj),
            spec["type"].text().into(),
            cluster_ip.into(),
            external_ip(obj).into(),
            ports(obj).into(),
            printer::age(obj, now),
            printer::format_labels(&spec["selector"]).into(),
        ]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_cells, check_create, check_defaults, check_update};

    fn service(extra: Value) -> Value {
        let mut spec = json!({"selector": {"app": "x"}, "ports": [{"port": 80}]});
        for (k, v) in extra.as_object().cloned().unwrap_or_default() {
            spec[k] = v;
        }
        json!({"spec": spec})
    }

    fn check(spec: Value, expected: &[&str]) {
        check_create("", "Service", service(spec), expected);
    }

    #[test]
    fn defaults() {
        check_defaults(
            "",
            "Service",
            service(json!({"sessionAffinity": "ClientIP"})),
            json!({"spec": {"selector": {"app": "x"}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
                "type": "ClusterIP", "internalTrafficPolicy": "Cluster"}}),
        );
        check_defaults(
            "",
            "Service",
            json!({"spec": {"type": "ExternalName", "externalName": "a.b"}}),
            json!({"spec": {"type": "ExternalName", "externalName": "a.b", "sessionAffinity": "None"}}),
        );
    }

    #[test]
    fn validation() {
        check(json!({}), &[]);
        check(json!({"ports": []}), &["spec.ports: Required value"]);
        check(
            json!({"ports": [{"port": 80}, {"port": 81}]}),
            &["spec.ports[0].name: Required value", "spec.ports[1].name: Required value"],
        );
        check(
            json!({"externalTrafficPolicy": "Local"}),
            &[
                "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
            ],
        );
        check(
            json!({"internalTrafficPolicy": "Foo"}),
            &[
                "spec.internalTrafficPolicy: Unsupported value: \"Foo\": supported values: \"Cluster\", \"Local\"",
            ],
        );
        check(
            json!({"clusterIP": "foo"}),
            &[
                "spec.clusterIPs[0]: Invalid value: \"foo\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ],
        );
        check(
            json!({"externalIPs": ["010.1.2.3"]}),
            &["spec.externalIPs[0]: Invalid value: \"010.1.2.3\": must not have leading 0s"],
        );
        check(
            json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["1.2.3.4"]}),
            &[
                "spec.LoadBalancerSourceRanges[0]: Invalid value: \"1.2.3.4\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ],
        );
        check(
            json!({"allocateLoadBalancerNodePorts": true}),
            &[
                "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
            ],
        );
        check(
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 90000}}}),
            &[
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 90000: must be greater than 0 and less than 86400",
            ],
        );
    }

    #[test]
    fn allocated_values_are_kept_and_never_changed() {
        let old = || service(json!({"clusterIP": "10.96.0.5"}));
        check_update("", "Service", service(json!({})), old(), &[]);
        check_update(
            "",
            "Service",
            service(json!({"clusterIP": "10.96.0.6", "clusterIPs": ["10.96.0.5"]})),
            old(),
            &["spec.clusterIPs[0]: Invalid value: [\"10.96.0.6\"]: may not change once set"],
        );
        let mut was = service(
            json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}]}),
        );
        was["metadata"] = json!({});
        let mut new = service(json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}));
        Service.prepare_update(&mut new, &was);
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30001);
        let mut new = service(
            json!({"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}]}),
        );
        Service.prepare_update(&mut new, &was);
        assert!(!new["spec"]["ports"][0].has("nodePort"));
    }

    #[test]
    fn families() {
        let check = |spec: Value, expected: Result<Value, &str>| {
            let mut s = service(spec);
            Service.defaults(&mut s);
            normalize_cluster_ips(&mut s, None);
            let errs = init_ip_families(&mut s, None, &["IPv4"]);
            match expected {
                Ok(families) => {
                    assert_eq!(errs, []);
                    assert_eq!(json!([s["spec"]["ipFamilyPolicy"], s["spec"]["ipFamilies"]]), families);
                }
                Err(text) => assert_eq!(crate::testing::texts(&errs), [text]),
            }
        };
        check(json!({}), Ok(json!(["SingleStack", ["IPv4"]])));
        check(json!({"ipFamilyPolicy": "PreferDualStack"}), Ok(json!(["PreferDualStack", ["IPv4"]])));
        check(
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            Err(
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
        );
        check(
            json!({"ipFamilies": ["IPv6"]}),
            Err("spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"),
        );
        check(
            json!({"selector": {}, "clusterIP": "None", "ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"}),
            Ok(json!(["RequireDualStack", ["IPv6", "IPv4"]])),
        );
    }

    #[test]
    fn rows() {
        let meta = json!({"name": "x", "creationTimestamp": "2024-01-01T00:00:00Z"});
        check_cells(
            "",
            "Service",
            json!({"metadata": meta, "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.9"], "selector": {"b": "2", "a": "1"},
                "ports": [{"port": 80, "nodePort": 30001, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
            json!(["x", "NodePort", "10.96.0.9", "<none>", "80:30001/TCP,53/UDP", "24h", "a=1,b=2"]),
        );
        check_cells(
            "",
            "Service",
            json!({"metadata": meta, "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.9"]},
                "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}}),
            json!(["x", "LoadBalancer", "10.96.0.9", "1.2.3.4", "<none>", "24h", "<none>"]),
        );
    }
}
