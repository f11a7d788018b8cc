//! How a node's kubelet is reached and asked.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Uri;
use http::uri::Authority;
use http_body_util::{BodyExt as _, Empty};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use k8s_openapi::api::core::v1::Node;

/// Kinds of addresses, best first.
const ADDRESS_TYPES: [&str; 3] = ["InternalIP", "ExternalIP", "Hostname"];
/// The port of a kubelet whose node does not say.
const PORT: i32 = 10250;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// More than the answer of a node with thousands of containers.
const MAX_ANSWER: usize = 32 << 20;

/// Connections to the kubelets.
#[derive(Clone)]
pub(crate) struct Kubelets(Client<HttpsConnector<HttpConnector>, Empty<Bytes>>);

impl Kubelets {
    pub(crate) fn new(tls: rustls::ClientConfig) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_all_versions()
            .wrap_connector(tcp);
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_timer(TokioTimer::new()).pool_idle_timeout(Duration::from_secs(90));
        Self(client.build(https))
    }

    /// What a node's kubelet says at `/metrics/resource`.
    pub(crate) async fn read(&self, node: &Node) -> Result<String, String> {
        let uri =
            Uri::builder().scheme("https").authority(authority(node)?).path_and_query("/metrics/resource");
        let uri = uri.build().map_err(|error| error.to_string())?;
        let response =
            self.0.get(uri.clone()).await.map_err(|error| format!("GET {uri}: {}", chain(&error)))?;
        let (parts, mut body) = response.into_parts();
        if !parts.status.is_success() {
            return Err(format!("GET {uri}: status {}", parts.status));
        }
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| format!("GET {uri}: {error}"))?.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > MAX_ANSWER {
                return Err(format!("GET {uri}: the answer is longer than {MAX_ANSWER} bytes"));
            }
            bytes.extend_from_slice(&data);
        }
        String::from_utf8(bytes.into()).map_err(|error| format!("GET {uri}: {error}"))
    }
}

/// An error with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Where the kubelet of a node listens, as the node says.
fn authority(node: &Node) -> Result<Authority, String> {
    let status = node.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let of = |kind: &&str| addresses.iter().find(|address| address.type_ == **kind);
    let host = &ADDRESS_TYPES.iter().find_map(of).ok_or("the node has no address")?.address;
    let endpoint = status
        .and_then(|status| status.daemon_endpoints.as_ref())
        .and_then(|endpoints| endpoints.kubelet_endpoint.as_ref());
    let port = endpoint.map(|endpoint| endpoint.port).filter(|port| *port > 0).unwrap_or(PORT);
    let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    text.parse().map_err(|error| format!("{text}: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn where_kubelets_are() {
        let check = |addresses: &[(&str, &str)], port: i32, expected: Result<&str, &str>| {
            let addresses: Vec<_> =
                addresses.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect();
            let node = serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {
                "addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            }}));
            let got = authority(&node.unwrap()).map(|authority| authority.to_string());
            assert_eq!(got, expected.map(str::to_owned).map_err(str::to_owned));
        };
        check(&[("Hostname", "n"), ("InternalIP", "10.0.0.1")], 1234, Ok("10.0.0.1:1234"));
        check(&[("Hostname", "n")], 0, Ok("n:10250"));
        check(&[("InternalIP", "fd00::1")], 10250, Ok("[fd00::1]:10250"));
        check(&[("InternalDNS", "n.example")], 10250, Err("the node has no address"));
        check(&[], 10250, Err("the node has no address"));
    }
}
