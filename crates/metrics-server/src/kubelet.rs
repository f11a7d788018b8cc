//! How a node's kubelet is reached and asked.

use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http::uri::Authority;
use http_body::Body;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
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
/// More than the answer of a node with thousands of containers. Many kubelets are asked at a time.
const MAX_ANSWER: usize = 8 << 20;

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
        let response = self
            .0
            .get(uri.clone())
            .await
            .map_err(|error| format!("GET {uri}: {:#}", anyhow::Error::new(error)))?;
        let (parts, body) = response.into_parts();
        if !parts.status.is_success() {
            return Err(format!("GET {uri}: status {}", parts.status));
        }
        text(body).await.map_err(|error| format!("GET {uri}: {error}"))
    }
}

/// The whole of an answer that is not too long.
async fn text<B>(body: B) -> Result<String, String>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let whole = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| {
        match error.downcast::<LengthLimitError>() {
            Ok(_) => format!("the answer is longer than {MAX_ANSWER} bytes"),
            Err(error) => format!("{:#}", anyhow::Error::from_boxed(error)),
        }
    })?;
    String::from_utf8(whole.to_bytes().into()).map_err(|error| error.utf8_error().to_string())
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
    use http_body::Frame;
    use http_body_util::StreamBody;
    use serde_json::json;

    #[tokio::test]
    async fn answers_are_bounded() {
        let check = async |chunk: &'static [u8], count: usize, expected: Result<&str, &str>| {
            let frames =
                (0..count).map(move |_| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(chunk))));
            let got = text(StreamBody::new(futures::stream::iter(frames))).await;
            assert_eq!(got, expected.map(str::to_owned).map_err(str::to_owned));
        };
        static CHUNK: [u8; 1 << 16] = [b'#'; 1 << 16];
        check(b"a 1\n", 2, Ok("a 1\na 1\n")).await;
        check(b"", 0, Ok("")).await;
        check(&CHUNK, usize::MAX, Err("the answer is longer than 8388608 bytes")).await;
        check(b"\xff", 1, Err("invalid utf-8 sequence of 1 bytes from index 0")).await;
    }

    #[tokio::test]
    async fn a_kubelet_that_speaks_something_else_is_an_error() {
        use tokio::io::AsyncWriteExt as _;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(&b"SSH-2.0-garbage\r\n".repeat(1000)).await;
            // The next one is never answered.
            let _silent = listener.accept().await;
            std::future::pending::<()>().await
        });
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let kubelets = Kubelets::new(tls);
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}}))
        .unwrap();
        let error = kubelets.read(&node).await.unwrap_err();
        let expected = format!("GET https://127.0.0.1:{port}/metrics/resource: ");
        assert!(error.starts_with(&expected) && error.len() < 300, "{error}");
        let patience = Duration::from_millis(200);
        assert!(tokio::time::timeout(patience, kubelets.read(&node)).await.is_err());
    }

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
