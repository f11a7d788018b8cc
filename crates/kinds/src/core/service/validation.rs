//! Upstream's `ValidateService`, `ValidateServiceUpdate` and what they call.

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Value, json};

use super::{externally_accessible, is_headless, needs_health_check};
use crate::NameRule;
use crate::cursor::{Cursor, same};
use crate::metadata::{self, validate_labels};
use crate::validate::{
    cidr, dns_label, dns_subdomain, ip, non_special_ip, one_of, port_num_or_name, port_number,
    qualified_name, require_one_of,
};

const BALANCER_ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const FIXED: &str = "may not change once set";

pub(super) fn validate_service(service: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(service, true, NameRule::DnsLabel);
    let meta = &service["metadata"];
    let (hints, mode) = (
        &meta["annotations"]["service.kubernetes.io/topology-aware-hints"],
        &meta["annotations"]["service.kubernetes.io/topology-mode"],
    );
    if hints.is_set() && mode.is_set() && hints != mode {
        errs.push(field::invalid(
            &Path::new("metadata").child("annotations").key("service.kubernetes.io/topology-mode"),
            mode.text(),
            "must match annotations[service.kubernetes.io/topology-aware-hints] when both are specified",
        ));
    }
    let spec = &service["spec"];
    let path = Path::new("spec");
    let kind = spec["type"].text();
    let headless = is_headless(service);
    let ports = spec["ports"].items();
    let ports_path = path.child("ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errs.push(field::required(&ports_path, ""));
    }
    validate_type(&mut errs, &path, spec, kind, headless);
    validate_ports(&mut errs, &ports_path, ports);
    errs.extend(validate_labels(&spec["selector"], &path.child("selector")));
    validate_session_affinity(&mut errs, &path, spec);
    errs.extend(validate_cluster_ips_related_fields(service));
    for (i, address) in spec["externalIPs"].texts().into_iter().enumerate() {
        let path = path.child("externalIPs").index(i);
        if ip(&mut errs, &path, address) {
            non_special_ip(&mut errs, &path, address);
        }
    }
    require_one_of(
        &mut errs,
        &path.child("type"),
        kind,
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
    );
    if kind == "ClusterIP" {
        for (i, port) in ports.iter().enumerate() {
            if port["nodePort"].int() != 0 {
                errs.push(field::forbidden(
                    &ports_path.index(i).child("nodePort"),
                    "may not be used when `type` is 'ClusterIP'",
                ));
            }
        }
    }
    validate_unique_ports(&mut errs, &ports_path, ports);
    validate_source_ranges(&mut errs, &path, service, kind);
    let allocate = &spec["allocateLoadBalancerNodePorts"];
    if allocate.is_set() && kind != "LoadBalancer" {
        errs.push(field::forbidden(&path.child("allocateLoadBalancerNodePorts"), BALANCER_ONLY));
    }
    if !allocate.is_set() && kind == "LoadBalancer" {
        errs.push(field::required(&Path::new("allocateLoadBalancerNodePorts"), ""));
    }
    let class = &spec["loadBalancerClass"];
    if class.is_set() {
        let at = path.child("loadBalancerClass");
        if kind == "LoadBalancer" {
            qualified_name(&mut errs, &at, class.text());
        } else {
            errs.push(field::forbidden(&at, BALANCER_ONLY));
        }
    }
    validate_traffic_policies(&mut errs, &path, service);
    one_of(
        &mut errs,
        &path.child("trafficDistribution"),
        &spec["trafficDistribution"],
        &["PreferClose", "PreferSameNode", "PreferSameZone"],
    );
    errs
}

fn validate_type(errs: &mut ErrorList, path: &Path, spec: &Value, kind: &str, headless: bool) {
    match kind {
        "LoadBalancer" | "NodePort" if headless => errs.push(field::invalid(
            &path.child("clusterIPs").index(0),
            "None",
            format!("may not be set to 'None' for {kind} services"),
        )),
        "ExternalName" => {
            for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if !spec[key].is_empty() {
                    errs.push(field::forbidden(&path.child(key), "may not be set for ExternalName services"));
                }
            }
            let name = spec["externalName"].text();
            let name = name.strip_suffix('.').unwrap_or(name);
            let at = path.child("externalName");
            if name.is_empty() {
                errs.push(field::required(&at, ""));
            } else {
                dns_subdomain(errs, &at, name);
            }
        }
        _ => {}
    }
}

fn validate_ports(errs: &mut ErrorList, path: &Path, ports: &[Value]) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = port["name"].text();
        if !name.is_empty() {
            dns_label(errs, &path.child("name"), name);
            if seen.contains(&name) {
                errs.push(field::duplicate(&path.child("name"), name));
            }
            seen.push(name);
        } else if ports.len() > 1 {
            errs.push(field::required(&path.child("name"), ""));
        }
        port_number(errs, &path.child("port"), port["port"].int());
        require_one_of(errs, &path.child("protocol"), port["protocol"].text(), &["SCTP", "TCP", "UDP"]);
        port_num_or_name(errs, &path.child("targetPort"), &port["targetPort"]);
        if port["appProtocol"].is_set() {
            qualified_name(errs, &path.child("appProtocol"), port["appProtocol"].text());
        }
    }
}

fn validate_unique_ports(errs: &mut ErrorList, path: &Path, ports: &[Value]) {
    let same_protocol = |a: &Value, b: &Value| a["protocol"] == b["protocol"];
    for (i, port) in ports.iter().enumerate() {
        let node = port["nodePort"].int();
        if node != 0 && ports[..i].iter().any(|p| p["nodePort"].int() == node && same_protocol(p, port)) {
            errs.push(field::duplicate(&path.index(i).child("nodePort"), node));
        }
    }
    for (i, port) in ports.iter().enumerate() {
        if ports[..i].iter().any(|p| p["port"] == port["port"] && same_protocol(p, port)) {
            let key = json!({
                "Name": "",
                "Protocol": port["protocol"],
                "AppProtocol": null,
                "Port": port["port"],
                "TargetPort": 0,
                "NodePort": 0,
            });
            errs.push(field::duplicate(&path.index(i), key));
        }
    }
}

fn validate_session_affinity(errs: &mut ErrorList, path: &Path, spec: &Value) {
    let affinity = spec["sessionAffinity"].text();
    require_one_of(errs, &path.child("sessionAffinity"), affinity, &["ClientIP", "None"]);
    let config = &spec["sessionAffinityConfig"];
    let path = path.child("sessionAffinityConfig");
    if affinity == "None" && config.is_set() {
        errs.push(field::forbidden(&path, "must not be set when session affinity is None"));
    }
    if affinity != "ClientIP" {
        return;
    }
    const WHEN: &str = "when session affinity type is ClientIP";
    let timeout = &config["clientIP"]["timeoutSeconds"];
    let at = path.child("clientIP");
    if !config.is_set() {
        errs.push(field::required(&path, WHEN));
    } else if !config["clientIP"].is_set() {
        errs.push(field::required(&at, WHEN));
    } else if !timeout.is_set() {
        errs.push(field::required(&at.child("timeoutSeconds"), WHEN));
    } else if !(1..=86_400).contains(&timeout.int()) {
        errs.push(field::invalid(
            &at.child("timeoutSeconds"),
            timeout.int(),
            "must be greater than 0 and less than 86400",
        ));
    }
}

fn validate_source_ranges(errs: &mut ErrorList, path: &Path, service: &Value, kind: &str) {
    let ranges = service["spec"]["loadBalancerSourceRanges"].texts();
    let annotation = &service["metadata"]["annotations"][SOURCE_RANGES];
    if !ranges.is_empty() {
        // Upstream names the field like this.
        let at = path.child("LoadBalancerSourceRanges");
        if kind != "LoadBalancer" {
            errs.push(field::forbidden(&at, BALANCER_ONLY));
        }
        for (i, range) in ranges.into_iter().enumerate() {
            cidr(errs, &at.index(i), range.trim());
        }
    } else if annotation.is_set() {
        let at = Path::new("metadata").child("annotations").key(SOURCE_RANGES);
        if kind != "LoadBalancer" {
            errs.push(field::forbidden(&at, BALANCER_ONLY));
        }
        let text = annotation.text().trim();
        if !text.is_empty() {
            for range in text.split(',') {
                cidr(errs, &at, range.trim());
            }
        }
    }
}

fn validate_traffic_policies(errs: &mut ErrorList, path: &Path, service: &Value) {
    let spec = &service["spec"];
    let external = spec["externalTrafficPolicy"].text();
    let at = path.child("externalTrafficPolicy");
    if externally_accessible(service) {
        require_one_of(errs, &at, external, &["Cluster", "Local"]);
    } else if !external.is_empty() {
        errs.push(field::invalid(&at, external, "may only be set for externally-accessible services"));
    }
    let port = spec["healthCheckNodePort"].int();
    let at = path.child("healthCheckNodePort");
    if !needs_health_check(service) {
        if port != 0 {
            errs.push(field::invalid(
                &at,
                port,
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            ));
        }
    } else if port == 0 {
        errs.push(field::required(&at, ""));
    } else {
        port_number(errs, &at, port);
    }
    let internal = &spec["internalTrafficPolicy"];
    let at = path.child("internalTrafficPolicy");
    if internal.is_set() {
        one_of(errs, &at, internal, &["Cluster", "Local"]);
    } else if matches!(spec["type"].text(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        errs.push(field::required(&at, ""));
    }
}

/// What is wrong with `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy` together. The API server asks this
/// before it allocates.
pub fn validate_cluster_ips_related_fields(service: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let spec = &service["spec"];
    if spec["type"].text() == "ExternalName" {
        return errs;
    }
    let path = Path::new("spec");
    let (ips_path, families_path) = (path.child("clusterIPs"), path.child("ipFamilies"));
    let first = spec["clusterIP"].text();
    let ips = spec["clusterIPs"].texts();
    let families = spec["ipFamilies"].texts();
    let list = || spec["clusterIPs"].clone();
    if first.is_empty() {
        if !ips.is_empty() {
            errs.push(field::invalid(&ips_path, list(), "must be empty when `clusterIP` is not specified"));
        }
    } else if ips.is_empty() {
        errs.push(field::required(&ips_path, ""));
    } else if ips[0] != first {
        errs.push(field::invalid(&ips_path, list(), "first value must match `clusterIP`"));
    }
    for (i, family) in families.iter().enumerate() {
        if !["IPv4", "IPv6"].contains(family) {
            errs.push(field::not_supported(&families_path.index(i), *family, &["IPv4", "IPv6"]));
        }
        if families[..i].contains(family) {
            errs.push(field::duplicate(&families_path.index(i), *family));
        }
    }
    one_of(
        &mut errs,
        &path.child("ipFamilyPolicy"),
        &spec["ipFamilyPolicy"],
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
    );
    let mut broken = false;
    for (i, address) in ips.iter().enumerate() {
        if i == 0 && *address == "None" {
            if ips.len() > 1 {
                broken = true;
                errs.push(field::invalid(&ips_path, list(), "'None' must be the first and only value"));
            }
            continue;
        }
        broken |= !ip(&mut errs, &ips_path.index(i), address);
    }
    if ips.len() > 2 {
        errs.push(field::invalid(&ips_path, list(), "may only hold up to 2 values"));
    }
    if broken {
        return errs;
    }
    let v6 = ips.iter().filter(|a| a.contains(':')).count();
    if ips.len() > 1 && (v6 == 0 || v6 == ips.len()) {
        errs.push(field::invalid(&ips_path, list(), "may specify no more than one IP for each IP family"));
    }
    if !is_headless(service) && errs.is_empty() {
        for (i, (address, family)) in ips.iter().zip(&families).enumerate() {
            if (*family == "IPv6") != address.contains(':') {
                errs.push(field::invalid(
                    &ips_path.index(i),
                    *address,
                    format!("expected an {family} value as indicated by `ipFamilies[{i}]`"),
                ));
            }
        }
    }
    errs
}

pub(super) fn validate_service_update(service: &Value, old: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta_update(service, old);
    let (spec, was) = (&service["spec"], &old["spec"]);
    let path = Path::new("spec");
    let named = |s: &Value| s["type"].text() == "ExternalName";
    if !named(spec) && !named(was) {
        let headless = (is_headless(service), is_headless(old));
        if headless != (true, true) {
            validate_change(&mut errs, &path, spec, was, "clusterIPs", "clusterIP");
        }
        validate_change(&mut errs, &path, spec, was, "ipFamilies", "ipFamily");
    }
    let balanced = |s: &Value| s["type"].text() == "LoadBalancer";
    if balanced(spec) && balanced(was) && !same(&spec["loadBalancerClass"], &was["loadBalancerClass"]) {
        errs.push(field::invalid(&path.child("loadBalancerClass"), spec["loadBalancerClass"].clone(), FIXED));
    }
    if needs_health_check(old)
        && needs_health_check(service)
        && spec["healthCheckNodePort"] != was["healthCheckNodePort"]
    {
        errs.push(field::forbidden(&path.child("healthCheckNodePort"), "field is immutable"));
    }
    errs.extend(validate_service(service));
    errs
}

/// A second address or family may come and go; the first is there to stay.
fn validate_change(errs: &mut ErrorList, path: &Path, spec: &Value, was: &Value, key: &str, one: &str) {
    let (new, before) = (spec[key].texts(), was[key].texts());
    let at = path.child(key);
    let list = || spec[key].clone();
    if new.len() == before.len() {
        for (i, (a, b)) in new.iter().zip(&before).enumerate() {
            if a != b {
                errs.push(field::invalid(&at.index(i), list(), FIXED));
            }
        }
        return;
    }
    if before.is_empty() {
        return;
    }
    if new.is_empty() {
        errs.push(field::invalid(&at.index(0), list(), format!("primary {one} can not be unset")));
        return;
    }
    if new[0] != before[0] {
        errs.push(field::invalid(&at.index(0), list(), FIXED));
    }
    if new.len() < before.len() && spec["ipFamilyPolicy"].text() != "SingleStack" {
        errs.push(field::invalid(
            &path.child("ipFamilyPolicy"),
            spec["ipFamilyPolicy"].clone(),
            format!("must be set to 'SingleStack' when releasing the secondary {one}"),
        ));
    }
}

pub(super) fn validate_load_balancer_status(errs: &mut ErrorList, service: &Value) {
    let path = Path::new("status").child("loadBalancer").child("ingress");
    let ingress = service["status"]["loadBalancer"]["ingress"].items();
    if service["spec"]["type"].text() != "LoadBalancer" && !ingress.is_empty() {
        errs.push(field::forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'"));
        return;
    }
    for (i, entry) in ingress.iter().enumerate() {
        let path = path.index(i);
        let (address, host, mode) = (entry["ip"].text(), entry["hostname"].text(), &entry["ipMode"]);
        if !address.is_empty() {
            ip(errs, &path.child("ip"), address);
            if !mode.is_set() {
                errs.push(field::required(&path.child("ipMode"), "must be specified when `ip` is set"));
            }
        } else if mode.is_set() {
            errs.push(field::forbidden(&path.child("ipMode"), "may not be specified when `ip` is not set"));
        }
        one_of(errs, &path.child("ipMode"), mode, &["Proxy", "VIP"]);
        if !host.is_empty() {
            let at = path.child("hostname");
            dns_subdomain(errs, &at, host);
            if host.parse::<std::net::IpAddr>().is_ok() {
                errs.push(field::invalid(&at, host, "must be a DNS name, not an IP address"));
            }
        }
    }
}
