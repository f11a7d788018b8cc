//! Defaults of pods and pod templates: upstream's `SetDefaults_Pod`, `SetDefaults_PodSpec` and what they call.

use orlop_api::Quantity;
use orlop_json::{Key, Value, json};

use crate::core::persistentvolumeclaim::set_spec_defaults;
use crate::core::volume_source;
use crate::cursor::{Cursor, child, default_empty_to, default_to, items_mut, remove};

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Defaults of a pod: those of its spec, and those that only a real pod gets.
pub(super) fn set_pod(pod: &mut Value) {
    let spec = child(pod, "spec");
    set_pod_spec(spec);
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            requests_from_limits(child(container, "resources"));
        }
    }
    if spec["resources"].is_set() {
        pod_level_requests(spec);
    }
    default_to(spec, "enableServiceLinks", true);
    if spec["hostNetwork"].flag() {
        for list in ["containers", "initContainers"] {
            host_network_ports(spec, list);
        }
    }
    sync_ips(child(pod, "status"), "podIP", "podIPs");
    sync_ips(child(pod, "status"), "hostIP", "hostIPs");
}

/// The single address and the list of addresses say the same; the single one wins.
fn sync_ips(status: &mut Value, one: &str, many: &str) {
    let single = status[one].text().to_owned();
    let first = status[many][0]["ip"].text().to_owned();
    if single.is_empty() {
        if !first.is_empty() {
            status[one] = first.into();
        }
    } else if one == "podIP" && single != first {
        status[many] = json!([{"ip": single}]);
    }
}

fn requests_from_limits(resources: &mut Value) {
    let missing: Vec<(Key, Value)> = resources["limits"]
        .entries()
        .filter(|(name, _)| !resources["requests"].has(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    for (name, value) in missing {
        child(resources, "requests")[name.as_str()] = value;
    }
}

/// Pod-level requests come from the containers when each of them asks, else from the pod-level limits.
fn pod_level_requests(spec: &mut Value) {
    let mut sums: Vec<(String, Quantity)> = Vec::new();
    for container in spec["containers"].items() {
        for (name, value) in container["resources"]["requests"].entries() {
            let value = super::resources::quantity(value);
            match sums.iter_mut().find(|(n, _)| n == name) {
                Some((_, sum)) => *sum = *sum + value,
                None => sums.push((name.clone().into(), value)),
            }
        }
    }
    let resources = child(spec, "resources");
    let supported = |name: &str| matches!(name, "cpu" | "memory") || name.starts_with("hugepages-");
    for (name, sum) in sums {
        if supported(&name) && !name.starts_with("hugepages-") && !resources["requests"].has(&name) {
            child(resources, "requests")[name.as_str()] = sum.to_string().into();
        }
    }
    requests_from_limits(resources);
}

fn host_network_ports(spec: &mut Value, list: &str) {
    for container in items_mut(spec, list) {
        for port in items_mut(container, "ports") {
            let container_port = port["containerPort"].clone();
            default_empty_to(port, "hostPort", container_port);
        }
    }
}

/// Defaults of a pod spec, in a pod or in a template.
pub(crate) fn set_pod_spec(spec: &mut Value) {
    for volume in items_mut(spec, "volumes") {
        set_volume(volume);
    }
    for list in CONTAINER_LISTS {
        for container in items_mut(spec, list) {
            set_container(container);
        }
    }
    default_empty_to(spec, "restartPolicy", "Always");
    default_to(spec, "terminationGracePeriodSeconds", 30);
    default_empty_to(spec, "dnsPolicy", "ClusterFirst");
    // Two names of one field.
    let account = spec["serviceAccountName"].text();
    let account = if account.is_empty() { spec["serviceAccount"].text() } else { account };
    if !account.is_empty() {
        let account = account.to_owned();
        spec["serviceAccountName"] = account.clone().into();
        spec["serviceAccount"] = account.into();
    }
    default_to(spec, "securityContext", json!({}));
    default_empty_to(spec, "schedulerName", "default-scheduler");
    if let Some(overhead) = spec.get_mut("overhead") {
        round_quantities(overhead);
    }
    if let Some(resources) = spec.get_mut("resources") {
        set_resources(resources);
    }
}

fn set_resources(resources: &mut Value) {
    for list in ["limits", "requests"] {
        if let Some(list) = resources.get_mut(list) {
            round_quantities(list);
        }
    }
}

/// Resource lists are kept to thousandths, rounded up.
pub(crate) fn round_quantities(list: &mut Value) {
    for value in list.as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
        if let Ok(q) = Quantity::parse(value.text())
            && !q.is_whole_milli()
        {
            *value = q.round_up_milli().to_string().into();
        }
    }
}

fn set_container(container: &mut Value) {
    for port in items_mut(container, "ports") {
        default_empty_to(port, "protocol", "TCP");
    }
    for env in items_mut(container, "env") {
        if env["valueFrom"]["fieldRef"].is_set() {
            default_empty_to(&mut env["valueFrom"]["fieldRef"], "apiVersion", "v1");
        }
        if env["valueFrom"]["fileKeyRef"].is_set() {
            default_to(&mut env["valueFrom"]["fileKeyRef"], "optional", false);
        }
    }
    set_resources(child(container, "resources"));
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).filter(|p| p.is_set()) {
            set_handler(probe);
            default_empty_to(probe, "timeoutSeconds", 1);
            default_empty_to(probe, "periodSeconds", 10);
            default_empty_to(probe, "successThreshold", 1);
            default_empty_to(probe, "failureThreshold", 3);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(hook) =
            container.get_mut("lifecycle").and_then(|l| l.get_mut(hook)).filter(|h| h.is_set())
        {
            set_handler(hook);
        }
    }
    default_empty_to(container, "terminationMessagePath", "/dev/termination-log");
    default_empty_to(container, "terminationMessagePolicy", "File");
    let policy = pull_policy(container["image"].text());
    default_empty_to(container, "imagePullPolicy", policy);
}

fn set_handler(handler: &mut Value) {
    if let Some(http) = handler.get_mut("httpGet").filter(|h| h.is_set()) {
        default_empty_to(http, "path", "/");
        default_empty_to(http, "scheme", "HTTP");
    }
    if let Some(grpc) = handler.get_mut("grpc").filter(|g| g.is_set()) {
        default_to(grpc, "service", "");
    }
}

/// `Always` for the tag `latest`, which is also the tag of a reference without one; else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    let name_and_tag = match image.split_once('@') {
        // Digested without a tag is not "latest".
        Some((name, _)) if !has_tag(name) => return "IfNotPresent",
        Some((name, _)) => name,
        None => image,
    };
    let valid = !name_and_tag.is_empty()
        && !name_and_tag.bytes().any(|b| !(b.is_ascii_alphanumeric() || b"._-/:[]".contains(&b)));
    // A reference that does not parse has no tag at all.
    if valid && (!has_tag(name_and_tag) || name_and_tag.ends_with(":latest")) {
        "Always"
    } else {
        "IfNotPresent"
    }
}

fn has_tag(name: &str) -> bool {
    name.rsplit('/').next().unwrap_or_default().contains(':')
}

const VOLUME_MODE: i32 = 0o644;

fn set_volume(volume: &mut Value) {
    let sources = volume.entries().filter(|(key, value)| *key != "name" && value.is_set()).count();
    if sources == 0 {
        volume["emptyDir"] = json!({});
        return;
    }
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(kind).filter(|s| s.is_set()) {
            default_to(source, "defaultMode", VOLUME_MODE);
        }
    }
    if let Some(api) = volume.get_mut("downwardAPI") {
        set_downward_items(api);
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in items_mut(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken").filter(|t| t.is_set()) {
                default_to(token, "expirationSeconds", 3600);
            }
            if let Some(certificate) = source.get_mut("podCertificate").filter(|t| t.is_set()) {
                default_to(certificate, "maxExpirationSeconds", 86_400);
            }
            if let Some(api) = source.get_mut("downwardAPI") {
                set_downward_items(api);
            }
        }
    }
    volume_source::set_defaults(volume);
    let mut on = |kind: &str, apply: &dyn Fn(&mut Value)| {
        if let Some(source) = volume.get_mut(kind).filter(|s| s.is_set()) {
            apply(source);
        }
    };
    on("image", &|s| {
        let policy = pull_policy(s["reference"].text());
        default_empty_to(s, "pullPolicy", policy);
    });
    on("ephemeral", &|s| {
        if s["volumeClaimTemplate"].is_set() {
            set_spec_defaults(child(&mut s["volumeClaimTemplate"], "spec"));
        }
    });
}

fn set_downward_items(source: &mut Value) {
    for item in items_mut(source, "items") {
        if item["fieldRef"].is_set() {
            default_empty_to(&mut item["fieldRef"], "apiVersion", "v1");
        }
    }
}

/// Takes out of a pod's spec what belongs to features that are off by default. It was sent, so its sender owns it.
pub(crate) fn drop_disabled_fields(spec: &mut Value) {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items_mut(spec, list) {
            if let Some(lifecycle) = container.get_mut("lifecycle")
                && lifecycle.has("stopSignal")
            {
                remove(lifecycle, "stopSignal");
                if lifecycle.is_empty() {
                    remove(container, "lifecycle");
                }
            }
        }
    }
    remove(spec, "schedulingGroup");
    for volume in items_mut(spec, "volumes") {
        let Some(projected) = volume.get_mut("projected") else { continue };
        for source in items_mut(projected, "sources") {
            remove(source, "clusterTrustBundle");
            remove(source, "podCertificate");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::pull_policy;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, expected) in [
            ("i", "Always"),
            ("i:latest", "Always"),
            ("i:1", "IfNotPresent"),
            ("localhost:5000/app", "Always"),
            ("localhost:5000/app:1", "IfNotPresent"),
            ("i@sha256:abc", "IfNotPresent"),
            ("", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), expected, "{image}");
        }
    }
}
