//! Which addresses and families of addresses a service asks for: upstream's `normalizeClusterIPs`,
//! `patchAllocatedValues` and `initIPFamilyFields`. The API server calls these before it allocates.

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Value, json};

use super::{needs_cluster_ip, needs_health_check, needs_node_port, validate_cluster_ips_related_fields};
use crate::cursor::{Cursor, child, default_empty_to, items_mut, remove, same};

/// Makes `clusterIP` and `clusterIPs` agree where the writer set only one of them. The API server calls this before it
/// allocates.
pub fn normalize_cluster_ips(service: &mut Value, old: Option<&Value>) {
    let ip = service["spec"]["clusterIP"].text().to_owned();
    let spec = child(service, "spec");
    let Some(old) = old else {
        if !ip.is_empty() && spec["clusterIPs"].is_empty() {
            spec["clusterIPs"] = json!([ip]);
        }
        return;
    };
    let was = &old["spec"];
    let same_ips = same(&spec["clusterIPs"], &was["clusterIPs"]);
    if ip != was["clusterIP"].text() {
        if same_ips {
            if ip.is_empty() {
                remove(spec, "clusterIPs");
            } else {
                spec["clusterIPs"] = json!([ip]);
            }
        }
    } else if spec["clusterIPs"].is_empty() && !same_ips {
        remove(spec, "clusterIP");
    }
}

/// Fills in what was allocated before and the writer left out, so that a PUT of what was once written is no change.
pub fn patch_allocated_values(service: &mut Value, old: &Value) {
    let was = &old["spec"];
    if needs_cluster_ip(service) && needs_cluster_ip(old) {
        let spec = child(service, "spec");
        if spec["clusterIP"].text().is_empty() && was["clusterIP"].is_set() {
            spec["clusterIP"] = was["clusterIP"].clone();
        }
        if spec["clusterIPs"].is_empty()
            && spec["clusterIP"] == was["clusterIP"]
            && was["clusterIPs"].is_set()
        {
            spec["clusterIPs"] = was["clusterIPs"].clone();
        }
    }
    if needs_node_port(service) && needs_node_port(old) {
        let used: Vec<i64> = service["spec"]["ports"].items().iter().map(|p| p["nodePort"].int()).collect();
        for port in items_mut(child(service, "spec"), "ports") {
            if port["nodePort"].int() != 0 {
                continue;
            }
            let before = was["ports"]
                .items()
                .iter()
                .find(|p| p["port"] == port["port"] && p["protocol"] == port["protocol"]);
            if let Some(before) = before
                && before["nodePort"].int() != 0
                && !used.contains(&before["nodePort"].int())
            {
                port["nodePort"] = before["nodePort"].clone();
            }
        }
    }
    if needs_health_check(service) && needs_health_check(old) {
        default_empty_to(child(service, "spec"), "healthCheckNodePort", was["healthCheckNodePort"].clone());
    }
}

/// Whether an update leaves a service that prefers two families as it is, whatever has become of the cluster.
fn stays_dual_stack_preferring(service: &Value, old: &Value) -> bool {
    const PREFER: &str = "PreferDualStack";
    let (spec, was) = (&service["spec"], &old["spec"]);
    let prefers = |spec: &Value| spec["ipFamilyPolicy"].as_str().is_none_or(|policy| policy == PREFER);
    spec["ipFamilyPolicy"].is_set()
        && spec["type"] == was["type"]
        && matches!(spec["type"].text(), "ClusterIP" | "NodePort" | "LoadBalancer")
        && prefers(spec)
        && prefers(was)
        && same(&spec["clusterIPs"], &was["clusterIPs"])
        && same(&spec["ipFamilies"], &was["ipFamilies"])
}

/// Sets `ipFamilyPolicy` and `ipFamilies` from what was asked, what was before and what the cluster has (`families`, its
/// primary first: `["IPv4"]`), or says why that cannot be. For services with a cluster address, before allocation.
pub fn init_ip_families(service: &mut Value, old: Option<&Value>, families: &[&str]) -> ErrorList {
    if !needs_cluster_ip(service) || old.is_some_and(|old| stays_dual_stack_preferring(service, old)) {
        return ErrorList::new();
    }
    let headless = service["spec"]["clusterIP"].text() == "None" && service["spec"]["selector"].is_empty();
    if !service["spec"]["ipFamilyPolicy"].is_set() {
        // What was before decides; a service without endpoints of its own may be of any family.
        let before = old.map(|old| old["spec"]["ipFamilyPolicy"].text()).unwrap_or_default();
        let policy = match before {
            "" if headless => "RequireDualStack",
            "" => "SingleStack",
            before => before,
        };
        child(service, "spec")["ipFamilyPolicy"] = policy.into();
    }
    let mut errs = validate_cluster_ips_related_fields(service);
    if !errs.is_empty() {
        return errs;
    }
    let spec = child(service, "spec");
    let path = Path::new("spec");
    let policy = spec["ipFamilyPolicy"].text().to_owned();
    let single = policy == "SingleStack";
    let mut refuse = |why: &str| {
        errs.push(field::invalid(&path.child("ipFamilyPolicy"), policy.as_str(), why));
    };
    if let Some(old) = old {
        for (key, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
            let (now, before) = (spec[key].items().len(), old["spec"][key].items().len());
            if !single {
                if now > 0 && now < before {
                    refuse(&format!("must be 'SingleStack' to release the secondary {what}"));
                }
            } else if now > 1 && same(&spec[key], &old["spec"][key]) {
                // The change of policy alone says clearly enough what is wanted.
                if let Some(list) = spec[key].as_array_mut() {
                    list.truncate(1);
                }
            }
        }
    }
    if single {
        for (key, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if spec[key].items().len() == 2 {
                refuse(&format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                ));
            }
        }
    }
    let mut wanted: Vec<String> = spec["ipFamilies"].texts().into_iter().map(str::to_owned).collect();
    // Addresses given by the writer decide their families.
    for (i, ip) in spec["clusterIPs"].texts().into_iter().enumerate() {
        if ip == "None" {
            break;
        }
        if i < wanted.len() {
            continue;
        }
        let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
        if families.contains(&family) {
            wanted.push(family.to_owned());
        } else {
            errs.push(field::invalid(
                &path.child("clusterIPs").index(i),
                spec["clusterIPs"].clone(),
                format!("{family} is not configured on this cluster"),
            ));
        }
    }
    if !errs.is_empty() {
        return errs;
    }
    let primary = families.first().copied().unwrap_or("IPv4");
    let other = |family: &str| if family == "IPv4" { "IPv6" } else { "IPv4" };
    // Its endpoints are the writer's business, whatever the cluster has.
    let free = headless;
    if !free {
        if policy == "RequireDualStack" && families.len() < 2 {
            errs.push(field::invalid(
                &path.child("ipFamilyPolicy"),
                policy.as_str(),
                "this cluster is not configured for dual-stack services",
            ));
        }
        for (i, family) in wanted.iter().enumerate() {
            if !families.contains(&family.as_str()) {
                errs.push(field::invalid(
                    &path.child("ipFamilies").index(i),
                    family.as_str(),
                    "not configured on this cluster",
                ));
            }
        }
        if !errs.is_empty() {
            return errs;
        }
    }
    if wanted.is_empty() {
        wanted.push(primary.to_owned());
    }
    if wanted.len() == 1 && !single && (free || families.len() == 2) {
        let second = other(&wanted[0]).to_owned();
        wanted.push(second);
    }
    spec["ipFamilies"] = json!(wanted);
    errs
}
