//! `pods/log`, `exec`, `attach`, `portforward`: passed on to the kubelet of the pod's node over TLS. An upgraded
//! connection (WebSocket, SPDY) is copied byte by byte in both directions; SPDY inside a WebSocket is taken out of it.

use http::{HeaderValue, Method, header};
use hyper_util::rt::TokioIo;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::status::ApiError;
use orlop_json::{Value, json};
use orlop_streaming::upgrade::{self, Wanted};
use orlop_streaming::websocket;

use super::Endpoint;
use super::backend::{self, Backend};
use crate::Options;
use crate::admission::{ObjectKind, Operation, Request};
use crate::http::body::{BoxError, Response};
use crate::request_info::Query;

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            other => {
                use std::fmt::Write as _;
                let _ = write!(out, "%{other:02X}");
            }
        }
    }
    out
}

/// Names of a pod's containers of one sort.
fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    pod["spec"][list].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
}

/// The container that is meant: the named one, or the only one.
fn container(pod: &Value, wanted: &str) -> Result<String, ApiError> {
    let name = pod["metadata"]["name"].as_str().unwrap_or("");
    let (main, init, ephemeral) =
        (names(pod, "containers"), names(pod, "initContainers"), names(pod, "ephemeralContainers"));
    if wanted.is_empty() {
        if let [only] = main.as_slice()
            && init.is_empty()
            && ephemeral.is_empty()
        {
            return Ok(only.to_string());
        }
        if let Some(default) = pod
            .pointer("/metadata/annotations")
            .and_then(|a| a.get("kubectl.kubernetes.io/default-container"))
            .and_then(Value::as_str)
            .filter(|c| main.contains(c))
        {
            return Ok(default.to_string());
        }
        let mut message =
            format!("a container name must be specified for pod {name}, choose one of: [{}]", main.join(" "));
        if !init.is_empty() {
            message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
        }
        if !ephemeral.is_empty() {
            message.push_str(&format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" ")));
        }
        return Err(ApiError::bad_request(message));
    }
    if main.contains(&wanted) || init.contains(&wanted) || ephemeral.contains(&wanted) {
        return Ok(wanted.to_string());
    }
    Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {name}")))
}

/// Checks `PodLogOptions` and turns them into the kubelet's query.
fn log_query(query: &Query, name: &str) -> Result<String, ApiError> {
    let mut errors = ErrorList::new();
    let mut parts = Vec::new();
    for flag in ["follow", "previous", "timestamps"] {
        if query.flag(flag) {
            parts.push(format!("{flag}=true"));
        }
    }
    for (number, minimum) in [("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)] {
        let Some(value) = query.integer(number)? else { continue };
        if value < minimum {
            let why =
                if minimum == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            errors.push(field::invalid(&Path::new(number), value, why));
        } else {
            parts.push(format!("{number}={value}"));
        }
    }
    if let Some(since) = query.get("sinceTime").filter(|t| !t.is_empty()) {
        if query.get("sinceSeconds").is_some() {
            errors.push(field::forbidden(
                &Path::new(""),
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            ));
        }
        parts.push(format!("sinceTime={}", encode(since)));
    }
    if let Some(stream) = query.get("stream").filter(|t| !t.is_empty()) {
        if matches!(stream, "All" | "Stdout" | "Stderr") {
            parts.push(format!("stream={stream}"));
        } else {
            errors.push(field::not_supported(&Path::new("stream"), stream, &["All", "Stderr", "Stdout"]));
        }
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid("", "PodLogOptions", name, errors));
    }
    Ok(parts.join("&"))
}

/// The kubelet's path and query for a connect request.
fn target(subresource: &str, pod: &Value, query: &Query) -> Result<String, ApiError> {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or("");
    let name = pod["metadata"]["name"].as_str().unwrap_or("");
    match subresource {
        "log" => {
            let parameters = log_query(query, name)?;
            let container = container(pod, query.value("container"))?;
            Ok(format!("/containerLogs/{namespace}/{name}/{container}?{parameters}"))
        }
        "exec" | "attach" => {
            let container = container(pod, query.value("container"))?;
            let mut parts: Vec<String> =
                [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")]
                    .iter()
                    .filter(|(option, _)| query.flag(option))
                    .map(|(_, parameter)| format!("{parameter}=1"))
                    .collect();
            if parts.is_empty() || parts == ["tty=1"] {
                return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
            }
            if subresource == "exec" {
                let command: Vec<String> =
                    query.all("command").map(|c| format!("command={}", encode(c))).collect();
                if command.is_empty() {
                    return Err(ApiError::bad_request(
                        "you must specify at least 1 command for the container",
                    ));
                }
                parts.extend(command);
            }
            Ok(format!("/{subresource}/{namespace}/{name}/{container}?{}", parts.join("&")))
        }
        _ => {
            let ports: Vec<String> = query
                .all("ports")
                .flat_map(|ports| ports.split(','))
                .filter(|port| !port.is_empty())
                .map(|port| format!("port={}", encode(port)))
                .collect();
            Ok(format!("/portForward/{namespace}/{name}?{}", ports.join("&")))
        }
    }
}

/// The options object of a connection, which is what admission sees; reading a log is no connection.
fn connect_options(subresource: &str, query: &Query) -> Option<(ObjectKind<'static>, Value)> {
    let kind = match subresource {
        "exec" => "PodExecOptions",
        "attach" => "PodAttachOptions",
        "portforward" => "PodPortForwardOptions",
        _ => return None,
    };
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    if subresource == "portforward" {
        let ports: Vec<i32> =
            query.all("ports").flat_map(|ports| ports.split(',')).filter_map(|p| p.parse().ok()).collect();
        if !ports.is_empty() {
            options["ports"] = json!(ports);
        }
    } else {
        for flag in ["stdin", "stdout", "stderr", "tty"] {
            if query.flag(flag) {
                options[flag] = json!(true);
            }
        }
        if let Some(container) = query.get("container").filter(|c| !c.is_empty()) {
            options["container"] = json!(container);
        }
        if subresource == "exec" {
            options["command"] = json!(query.all("command").collect::<Vec<_>>());
        }
    }
    Some((ObjectKind::new("", "v1", kind), options))
}

/// The address of a node's kubelet, and the port it says it serves on.
pub(super) fn address(options: &Options, node: &Value) -> Result<(String, u16), ApiError> {
    let addresses = node["status"]["addresses"].as_array().map_or(&[][..], Vec::as_slice);
    let of =
        |kind: &String| addresses.iter().find(|a| a["type"] == *kind).and_then(|a| a["address"].as_str());
    let Some(host) = options.kubelet_address_types.iter().find_map(of) else {
        let text = |address: &Value, field: &str| address[field].as_str().unwrap_or("").to_string();
        let known: Vec<String> =
            addresses.iter().map(|a| format!("{{{} {}}}", text(a, "type"), text(a, "address"))).collect();
        let known = known.join(" ");
        return Err(ApiError::internal(format!("no preferred addresses found; known addresses: [{known}]")));
    };
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    Ok((host.to_string(), port.unwrap_or(options.kubelet_port)))
}

pub(super) async fn connect(endpoint: &Endpoint<'_>) -> Result<Response, ApiError> {
    let info = &endpoint.request.info;
    let method_ok = match info.subresource.as_str() {
        "log" => endpoint.request.parts.method == Method::GET,
        _ => matches!(endpoint.request.parts.method, Method::GET | Method::POST),
    };
    if !method_ok {
        return Err(super::method_not_allowed());
    }
    let registry = &endpoint.server.registry;
    let pod = registry.get(&endpoint.call(false, ""))?.value();
    let node_name = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("");
    if node_name.is_empty() && info.subresource != "log" {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", info.name)));
    }
    if let Some((kind, mut options)) = connect_options(&info.subresource, &endpoint.request.query) {
        let call = endpoint.call(false, "");
        let mut request = Request::new(&call, Operation::Connect, &mut options, None).of_kind(Some(kind));
        registry.admit(&mut request).await?;
    }
    let path = target(&info.subresource, &pod, &endpoint.request.query)?;
    if node_name.is_empty() {
        // A pod that has no node yet has no log.
        let mut empty = Response::new(crate::http::body::full(""));
        *empty.status_mut() = http::StatusCode::NO_CONTENT;
        return Ok(empty);
    }
    let node = registry
        .resources
        .cache("", "Node")
        .and_then(|cache| cache.get(node_name))
        .ok_or_else(|| ApiError::not_found("", "nodes", node_name))?
        .value();
    let (host, port) = address(&endpoint.server.options, &node)?;
    let kubelet = Backend {
        host,
        port,
        tls: Some(endpoint.server.kubelet_connector.clone()),
        timeout: endpoint.server.options.kubelet_timeout,
    };
    let response = forward(endpoint, &kubelet, &path)
        .await
        .map_err(|error| ApiError::internal(format!("error dialing backend: {error}")))?;
    Ok(response)
}

/// The subprotocol in which kubectl carries SPDY through a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const PORT_FORWARD: &str = "portforward.k8s.io";

async fn forward(endpoint: &Endpoint<'_>, kubelet: &Backend, path: &str) -> Result<Response, BoxError> {
    let parts = &endpoint.request.parts;
    let tunnels = endpoint.request.info.subresource == "portforward"
        && upgrade::wanted(&parts.headers) == Wanted::WebSocket
        && upgrade::has_token(&parts.headers, &header::SEC_WEBSOCKET_PROTOCOL, TUNNEL);
    let mut headers = backend::headers(parts, true);
    headers.remove(header::ACCEPT_ENCODING);
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::HOST, backend::value(&kubelet.authority())?);
    let mut method = parts.method.clone();
    if tunnels {
        let of_websocket: Vec<_> =
            headers.keys().filter(|name| name.as_str().starts_with("sec-websocket-")).cloned().collect();
        for name in of_websocket {
            headers.remove(name);
        }
        headers.insert(header::UPGRADE, HeaderValue::from_static(upgrade::SPDY));
        headers.insert(upgrade::STREAM_PROTOCOL, HeaderValue::from_static(PORT_FORWARD));
        method = Method::POST;
    }
    let mut request = http::Request::builder().method(method).uri(path);
    if let Some(all) = request.headers_mut() {
        *all = headers;
    }
    let mut response = kubelet.send(request.body(backend::empty())?).await?;
    if tunnels && response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
        return tunnel(parts, &mut response);
    }
    let mut response = backend::answer(parts, response)?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS
        && !response.headers().contains_key(header::CONTENT_TYPE)
    {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    Ok(response)
}

/// Accepts the client's WebSocket and carries the kubelet's SPDY connection in it.
fn tunnel(
    parts: &http::request::Parts,
    response: &mut http::Response<hyper::body::Incoming>,
) -> Result<Response, BoxError> {
    let headers = upgrade::accept_websocket(&parts.headers, Some(TUNNEL))
        .ok_or("the request has no Sec-WebSocket-Key header")?;
    let client = backend::client_upgrade(parts)?;
    let kubelet = hyper::upgrade::on(response);
    tokio::spawn(async move {
        let (Ok(client), Ok(kubelet)) = tokio::join!(client, kubelet) else { return };
        let socket = websocket::server(TokioIo::new(client)).await;
        websocket::tunnel(socket, TokioIo::new(kubelet)).await;
    });
    let mut answer = http::Response::new(crate::http::body::full(""));
    *answer.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = headers;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses() {
        let check = |types: &[&str], status: Value, expected: Result<(&str, u16), &str>| {
            let types = types.iter().map(|kind| kind.to_string()).collect();
            let options = Options { kubelet_address_types: types, kubelet_port: 99, ..Options::default() };
            let got = address(&options, &json!({"status": status})).map_err(|e| e.status().message.clone());
            assert_eq!(got, expected.map(|(h, p)| (h.to_string(), p)).map_err(str::to_string));
        };
        let addresses =
            json!([{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "n"}]);
        let port = json!({"kubeletEndpoint": {"Port": 7}});
        check(
            &["Hostname", "InternalIP"],
            json!({"addresses": addresses, "daemonEndpoints": port}),
            Ok(("n", 7)),
        );
        check(&["InternalDNS", "InternalIP"], json!({"addresses": addresses}), Ok(("10.0.0.1", 99)));
        check(
            &["ExternalIP"],
            json!({"addresses": addresses}),
            Err(
                "Internal error occurred: no preferred addresses found; known addresses: [{InternalIP 10.0.0.1} {Hostname n}]",
            ),
        );
    }

    #[test]
    fn kubelet_paths() {
        let pod =
            json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "c"}]}});
        let check = |subresource: &str, query: &str, expected: &str| {
            assert_eq!(target(subresource, &pod, &Query::parse(query)).unwrap(), expected);
        };
        check("log", "tailLines=5&follow=true", "/containerLogs/n/p/c?follow=true&tailLines=5");
        check(
            "exec",
            "command=sh&command=-c&command=echo%20a%26b&stdin=true&stdout=true&tty=true",
            "/exec/n/p/c?input=1&output=1&tty=1&command=sh&command=-c&command=echo%20a%26b",
        );
        check("portforward", "ports=80", "/portForward/n/p?port=80");
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let error = container(&two, "").unwrap_err();
        assert_eq!(
            error.status().message,
            "a container name must be specified for pod p, choose one of: [a b]"
        );
    }
}
