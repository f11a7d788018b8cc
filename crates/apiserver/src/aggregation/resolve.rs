//! Where a Service is: its endpoints, its cluster address, or the name it stands for.

use orlop_json::Value;

use super::{ServiceReference, text};
use crate::registry::Registry;

/// Why a Service leads nowhere; the reason and message of the condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// `reason`
    pub reason: &'static str,
    /// `message`
    pub message: String,
}

/// What the API knows of a Service.
#[derive(Debug, Default)]
pub struct Known {
    /// The Service.
    pub service: Option<Value>,
    /// Its EndpointSlices.
    pub slices: Vec<Value>,
    /// Revisions of them all: anything else is a change.
    pub revisions: Vec<u64>,
}

/// Reads it from the caches.
pub fn look(registry: &Registry, reference: &ServiceReference) -> Known {
    let mut known = Known::default();
    let cache = registry.resources.cache("", "Service");
    if let Some(entry) =
        cache.and_then(|cache| cache.get(&format!("{}/{}", reference.namespace, reference.name)))
    {
        known.revisions.push(entry.revision);
        known.service = Some(entry.value());
    }
    let Some(slices) = registry.resources.cache("discovery.k8s.io", "EndpointSlice") else { return known };
    let prefix = format!("{}/", reference.namespace);
    for (key, entry) in slices.snapshot().0.range::<_, str>(crate::cache::from(&prefix)) {
        if !key.starts_with(&prefix) {
            break;
        }
        let ours = entry
            .labels
            .iter()
            .any(|(k, v)| k.as_ref() == "kubernetes.io/service-name" && v.as_ref() == reference.name);
        if ours {
            known.revisions.push(entry.revision);
            known.slices.push(entry.value());
        }
    }
    known
}

/// `host:port` for dialling, an IPv6 address in brackets.
fn authority(host: &str, port: u64) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The addresses at which a Service can be reached, best first.
pub fn addresses(known: &Known, reference: &ServiceReference) -> Result<Vec<String>, Unavailable> {
    let ServiceReference { namespace, name, port } = reference;
    let unavailable = |reason, message| Err(Unavailable { reason, message });
    let Some(service) = &known.service else {
        return unavailable("ServiceNotFound", format!("service/{name} in \"{namespace}\" is not present"));
    };
    if text(service, "/spec/type") == "ExternalName" {
        return Ok(vec![authority(text(service, "/spec/externalName"), u64::from(*port))]);
    }
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    let Some(found) = ports.into_iter().flatten().find(|p| p["port"] == u64::from(*port)) else {
        return unavailable(
            "ServicePortError",
            format!("service/{name} in \"{namespace}\" is not listening on port {port}"),
        );
    };
    let port_name = found["name"].as_str().unwrap_or("");
    if known.slices.is_empty() {
        return unavailable(
            "EndpointsNotFound",
            format!("cannot find endpointslices for service/{name} in \"{namespace}\""),
        );
    }
    let mut found = Vec::new();
    for slice in &known.slices {
        let ports = slice["ports"].as_array();
        let Some(port) = ports
            .into_iter()
            .flatten()
            .find(|p| p["name"].as_str().unwrap_or("") == port_name)
            .and_then(|p| p["port"].as_u64())
        else {
            continue;
        };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            // Unknown counts as ready.
            if endpoint.pointer("/conditions/ready").and_then(Value::as_bool) == Some(false) {
                continue;
            }
            let addresses = endpoint["addresses"].as_array();
            found.extend(
                addresses.into_iter().flatten().filter_map(Value::as_str).map(|a| authority(a, port)),
            );
        }
    }
    if found.is_empty() {
        return unavailable(
            "MissingEndpoints",
            format!(
                "endpointslices for service/{name} in \"{namespace}\" have no addresses with port name \"{port_name}\""
            ),
        );
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn where_a_service_is() {
        let reference = ServiceReference { namespace: "n".into(), name: "s".into(), port: 443 };
        let check = |service: Value, slices: Value, expected: Result<&[&str], (&str, &str)>| {
            let known = Known {
                service: (!service.is_null()).then_some(service),
                slices: slices.as_array().cloned().unwrap_or_default(),
                revisions: Vec::new(),
            };
            let got = addresses(&known, &reference).map_err(|e| (e.reason, e.message));
            let expected = expected
                .map(|list| list.iter().map(|a| a.to_string()).collect::<Vec<_>>())
                .map_err(|(reason, message)| (reason, message.to_string()));
            assert_eq!(
                got.as_ref().map_err(|(r, m)| (*r, m.clone())),
                expected.as_ref().map_err(|(r, m)| (*r, m.clone()))
            );
        };
        let service =
            |port: u64| json!({"spec": {"type": "ClusterIP", "ports": [{"name": "https", "port": port}]}});
        let slice = |name: &str, ready: bool| {
            json!([{"ports": [{"name": name, "port": 8443}], "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}, {"addresses": ["fd00::1"], "conditions": {"ready": ready}},
            ]}])
        };
        check(Value::Null, json!([]), Err(("ServiceNotFound", "service/s in \"n\" is not present")));
        check(
            service(80),
            json!([]),
            Err(("ServicePortError", "service/s in \"n\" is not listening on port 443")),
        );
        check(
            service(443),
            json!([]),
            Err(("EndpointsNotFound", "cannot find endpointslices for service/s in \"n\"")),
        );
        let missing = "endpointslices for service/s in \"n\" have no addresses with port name \"https\"";
        check(service(443), slice("https", false), Err(("MissingEndpoints", missing)));
        check(service(443), slice("other", true), Err(("MissingEndpoints", missing)));
        check(service(443), slice("https", true), Ok(&["10.0.0.1:8443", "[fd00::1]:8443"]));
        check(
            json!({"spec": {"type": "ExternalName", "externalName": "api.example.com"}}),
            json!([]),
            Ok(&["api.example.com:443"]),
        );
    }
}
