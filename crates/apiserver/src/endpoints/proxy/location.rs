//! Where a proxied pod, Service or node listens. Names may be `NAME`, `NAME:PORT` or `SCHEME:NAME:PORT`.

use std::net::IpAddr;

use orlop_api::status::ApiError;
use orlop_json::Value;

use super::super::backend::{Backend, CONNECT_TIMEOUT, any_certificate};
use super::super::{Endpoint, kubelet};

/// A name in a proxy path.
#[derive(Debug, PartialEq, Eq)]
struct Target<'a> {
    https: bool,
    name: &'a str,
    port: &'a str,
}

/// Reads a name; `None` when it is not of a known form (upstream's `SplitSchemeNamePort`).
fn parse(text: &str) -> Option<Target<'_>> {
    let parts: Vec<&str> = text.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    (matches!(scheme, "" | "http" | "https") && !name.is_empty()).then_some(Target {
        https: scheme == "https",
        name,
        port,
    })
}

/// Whether an address may be reached through the proxy: not the API server's own host, nor what only it can see.
fn proxyable(address: &str) -> bool {
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => {
            !ip.is_unspecified()
                && !ip.is_loopback()
                && !ip.is_multicast()
                && !ip.is_link_local()
                && !ip.is_broadcast()
        }
        Ok(IpAddr::V6(ip)) => {
            !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !ip.is_unicast_link_local()
        }
        Err(_) => false,
    }
}

fn not_allowed() -> ApiError {
    ApiError::bad_request("address not allowed")
}

fn backend(host: &str, port: u16, https: bool) -> Result<Backend, ApiError> {
    let tls = match https {
        true => Some(any_certificate().map_err(ApiError::internal)?),
        false => None,
    };
    Ok(Backend { host: host.to_owned(), port, tls, timeout: CONNECT_TIMEOUT })
}

/// The server that a proxy request is for.
pub(super) fn resolve(endpoint: &Endpoint<'_>) -> Result<Backend, ApiError> {
    let info = &endpoint.request.info;
    let kind = match info.resource.as_str() {
        "pods" => "pod",
        "services" => "service",
        _ => "node",
    };
    let target = parse(&info.name)
        .ok_or_else(|| ApiError::bad_request(format!("invalid {kind} request {:?}", info.name)))?;
    match kind {
        "pod" => pod(endpoint, &target),
        "service" => service(endpoint, &target),
        _ => node(endpoint, &target),
    }
}

fn object(endpoint: &Endpoint<'_>, kind: &str, plural: &str, name: &str) -> Result<Value, ApiError> {
    let namespace = &endpoint.request.info.namespace;
    let key = if kind == "Node" { name.to_owned() } else { format!("{namespace}/{name}") };
    endpoint
        .server
        .registry
        .resources
        .cache("", kind)
        .and_then(|cache| cache.get(&key))
        .map(|entry| entry.value())
        .ok_or_else(|| ApiError::not_found("", plural, name))
}

fn pod(endpoint: &Endpoint<'_>, target: &Target<'_>) -> Result<Backend, ApiError> {
    let pod = object(endpoint, "Pod", "pods", target.name)?;
    let port = match target.port {
        "" => pod["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|c| c["ports"][0]["containerPort"].as_u64())
            .and_then(|port| u16::try_from(port).ok()),
        text => Some(port_number(text)?),
    };
    let address = pod["status"]["podIP"].as_str().unwrap_or_default();
    if !proxyable(address) {
        return Err(not_allowed());
    }
    backend(address, port.unwrap_or(if target.https { 443 } else { 80 }), target.https)
}

fn port_number(text: &str) -> Result<u16, ApiError> {
    text.parse::<u16>()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| ApiError::bad_request(format!("invalid port {text:?}: a number from 1 to 65535")))
}

fn service(endpoint: &Endpoint<'_>, target: &Target<'_>) -> Result<Backend, ApiError> {
    let unavailable = |message: String| ApiError::generic(503, "ServiceUnavailable", message);
    let mut port_name = target.port.to_owned();
    if let Ok(number) = target.port.parse::<i64>() {
        let service = object(endpoint, "Service", "services", target.name)?;
        let ports = service["spec"]["ports"].as_array();
        port_name = ports
            .into_iter()
            .flatten()
            .find(|port| port["port"].as_i64() == Some(number))
            .map(|port| port["name"].as_str().unwrap_or_default().to_owned())
            .ok_or_else(|| {
                unavailable(format!("no service port {number} found for service {:?}", target.name))
            })?;
    }
    let endpoints = object(endpoint, "Endpoints", "endpoints", target.name)?;
    let mut candidates: Vec<(&str, u16)> = Vec::new();
    for subset in endpoints["subsets"].as_array().into_iter().flatten() {
        for port in subset["ports"].as_array().into_iter().flatten() {
            let number = port["port"].as_u64().and_then(|n| u16::try_from(n).ok());
            let Some(number) = number.filter(|_| port["name"].as_str().unwrap_or_default() == port_name)
            else {
                continue;
            };
            let addresses = subset["addresses"].as_array().into_iter().flatten();
            candidates.extend(addresses.filter_map(|a| a["ip"].as_str()).map(|ip| (ip, number)));
        }
    }
    candidates.retain(|(ip, _)| proxyable(ip));
    use rand::seq::IndexedRandom as _;
    let (ip, port) = candidates
        .choose(&mut rand::rng())
        .ok_or_else(|| unavailable(format!("no endpoints available for service {:?}", target.name)))?;
    backend(ip, *port, target.https)
}

fn node(endpoint: &Endpoint<'_>, target: &Target<'_>) -> Result<Backend, ApiError> {
    let node = object(endpoint, "Node", "nodes", target.name)?;
    let (host, kubelet_port) = kubelet::address(&endpoint.server.options, &node)?;
    if target.port.is_empty() || target.port == kubelet_port.to_string() {
        let tls = Some(endpoint.server.kubelet_connector.clone());
        let timeout = endpoint.server.options.kubelet_timeout;
        return Ok(Backend { host, port: kubelet_port, tls, timeout });
    }
    if !proxyable(&host) {
        return Err(not_allowed());
    }
    backend(&host, port_number(target.port)?, target.https)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |text: &str, expected: Option<(bool, &str, &str)>| {
            let expected = expected.map(|(https, name, port)| Target { https, name, port });
            assert_eq!(parse(text), expected, "{text}");
        };
        check("web", Some((false, "web", "")));
        check("web:80", Some((false, "web", "80")));
        check("web:http-metrics", Some((false, "web", "http-metrics")));
        check("https:web:443", Some((true, "web", "443")));
        check("https:web:", Some((true, "web", "")));
        check("http:web:80", Some((false, "web", "80")));
        check("ftp:web:80", None);
        check("a:b:c:d", None);
        check(":80", None);
    }

    #[test]
    fn addresses_that_are_not_proxied() {
        for (address, expected) in [
            ("10.0.0.1", true),
            ("fd00::1", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("169.254.169.254", false),
            ("224.0.0.1", false),
            ("fe80::1", false),
            ("0.0.0.0", false),
            ("", false),
        ] {
            assert_eq!(proxyable(address), expected, "{address}");
        }
    }
}
