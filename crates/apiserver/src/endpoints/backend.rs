//! A request passed on to another server: a node's kubelet, a pod, a Service's endpoint. Upgraded connections
//! (WebSocket, SPDY) are copied byte by byte in both directions.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use orlop_streaming::upgrade;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::http::body::{BoxError, Response};
use crate::http::pipeline::RequestBody;
use crate::outbound::Anybody;

/// How long another server has to accept a connection, when nobody says otherwise.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Another server.
pub(super) struct Backend {
    /// Name or address; IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// How to speak TLS with it; `None` speaks plain HTTP.
    pub tls: Option<TlsConnector>,
    /// How long it has to accept a connection.
    pub timeout: Duration,
}

/// A connection of any kind.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Backend {
    /// `host:port`, with brackets where they belong.
    pub fn authority(&self) -> String {
        let Backend { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Connects.
    ///
    /// # Errors
    /// Worded as upstream words them, for messages that say what was being dialled.
    pub async fn dial(&self) -> Result<Box<dyn Io>, BoxError> {
        let connecting = async {
            let stream = tokio::net::TcpStream::connect((self.host.as_str(), self.port)).await?;
            stream.set_nodelay(true)?;
            let Some(tls) = &self.tls else { return Ok(Box::new(stream) as Box<dyn Io>) };
            let name =
                rustls_pki_types::ServerName::try_from(self.host.clone()).map_err(std::io::Error::other)?;
            Ok(Box::new(tls.connect(name, stream).await?) as Box<dyn Io>)
        };
        let connected: Result<_, std::io::Error> = tokio::time::timeout(self.timeout, connecting)
            .await
            .map_err(|_| format!("dial tcp {}: i/o timeout", self.authority()))?;
        connected.map_err(|error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => {
                format!("dial tcp {}: connect: connection refused", self.authority()).into()
            }
            _ => format!("dial tcp {}: {error}", self.authority()).into(),
        })
    }

    /// Sends a request on a connection of its own; the connection is kept while the answer is read, or upgraded.
    pub async fn send(
        &self,
        request: http::Request<RequestBody>,
    ) -> Result<http::Response<hyper::body::Incoming>, BoxError> {
        let stream = self.dial().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a backend ended");
            }
        });
        Ok(sender.send_request(request).await?)
    }
}

/// A body without content.
pub(super) fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// The caller's headers, without those that speak of the connection, and without the caller's credentials: the API
/// server answers for the request.
pub(super) fn headers(parts: &Parts, upgrades: bool) -> HeaderMap {
    const CONNECTION: [HeaderName; 7] = [
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
    ];
    let named: Vec<String> =
        upgrade::tokens(&parts.headers, &header::CONNECTION).map(str::to_ascii_lowercase).collect();
    let mut kept = HeaderMap::with_capacity(parts.headers.len());
    for (name, value) in &parts.headers {
        let private = *name == header::AUTHORIZATION || name.as_str().starts_with("impersonate-");
        let of_connection = CONNECTION.contains(name) || named.iter().any(|n| n == name.as_str());
        let upgrading = upgrades && (*name == header::CONNECTION || *name == header::UPGRADE);
        if !private && *name != header::HOST && (!of_connection || upgrading) {
            kept.append(name, value.clone());
        }
    }
    kept
}

/// Turns a backend's answer into this server's: joins the two connections after a `101`, passes anything else on.
pub(super) fn answer(
    parts: &Parts,
    mut response: http::Response<hyper::body::Incoming>,
) -> Result<Response, BoxError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let client = client_upgrade(parts)?;
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            let (Ok(client), Ok(backend)) = tokio::join!(client, backend) else { return };
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
        });
        let (parts, _) = response.into_parts();
        return Ok(http::Response::from_parts(parts, crate::http::body::full("")));
    }
    for name in [header::TRANSFER_ENCODING, header::CONNECTION, HeaderName::from_static("keep-alive")] {
        response.headers_mut().remove(name);
    }
    Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()))
}

/// The client's connection, once this server has answered `101`.
pub(super) fn client_upgrade(parts: &Parts) -> Result<hyper::upgrade::OnUpgrade, BoxError> {
    parts
        .extensions
        .get::<hyper::upgrade::OnUpgrade>()
        .cloned()
        .ok_or_else(|| "the client's connection cannot be upgraded: use HTTP/1.1".into())
}

/// A TLS connector that takes any certificate.
pub(super) fn any_certificate() -> Result<TlsConnector, BoxError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Anybody(provider.clone()));
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A value made of text that may hold anything.
pub(super) fn value(text: &str) -> Result<HeaderValue, BoxError> {
    Ok(HeaderValue::from_str(text)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_passed_on() {
        let check = |lines: &[(&str, &str)], upgrades: bool, expected: &[&str]| {
            let mut request = http::Request::builder();
            for (name, value) in lines {
                request = request.header(*name, *value);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let kept: Vec<String> = headers(&parts, upgrades).keys().map(|k| k.to_string()).collect();
            assert_eq!(kept, expected);
        };
        check(&[("authorization", "Bearer x"), ("host", "a"), ("accept", "*/*")], false, &["accept"]);
        check(&[("impersonate-user", "x"), ("x-mine", "1")], false, &["x-mine"]);
        check(&[("connection", "upgrade, x-hop"), ("x-hop", "1"), ("upgrade", "websocket")], false, &[]);
        check(&[("connection", "Upgrade"), ("upgrade", "websocket")], true, &["connection", "upgrade"]);
    }

    #[test]
    fn authorities() {
        let check = |host: &str, expected: &str| {
            let backend = Backend { host: host.into(), port: 80, tls: None, timeout: CONNECT_TIMEOUT };
            assert_eq!(backend.authority(), expected);
        };
        check("10.0.0.1", "10.0.0.1:80");
        check("fd00::1", "[fd00::1]:80");
    }
}
