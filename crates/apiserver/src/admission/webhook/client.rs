//! How webhooks are called: one HTTPS client for each client configuration, with its trust and its own connections, so
//! that a webhook that is called often is dialled once. A service is reached at its cluster address, under the name
//! `NAME.NAMESPACE.svc`. Upstream's `util/webhook` and `util/proxy`.

mod tls;

use std::fmt;
use std::future::Future;
use std::net::Ipv6Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use orlop_api::field::go_quote;
use orlop_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::credentials::Credentials;
use crate::cache::Cache;

/// The largest answer that is read, in bytes: a patch of the largest object, encoded.
const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(90);

/// Why there is no answer; the text is upstream's.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub struct CallError {
    text: String,
    /// The code of its answer; 503 when there is no answer that can be read.
    pub code: u16,
}

impl CallError {
    fn new(text: String) -> CallError {
        CallError { text, code: 503 }
    }
}

/// A client of one webhook.
pub struct Client {
    pool: Pool<Connector, Full<Bytes>>,
    url: String,
    /// Sent with every request.
    authorization: Option<HeaderValue>,
}

/// Where a connection goes.
#[derive(Clone)]
enum Target {
    /// A host and port of the network.
    Host(String, u16),
    /// A service of the cluster.
    Service { services: Option<Arc<Cache>>, namespace: String, name: String, port: u16 },
}

impl Client {
    /// A client for a `WebhookClientConfig`; `services` is where services are looked up, `credentials` who this server
    /// is to the webhook.
    pub fn new(
        config: &Value,
        services: Option<Arc<Cache>>,
        credentials: &Credentials,
    ) -> Result<Client, CallError> {
        let text =
            |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_string();
        let service = &config["service"];
        let (url, target, host, port) = if service.is_object() {
            let (namespace, name) = (text(service, "namespace"), text(service, "name"));
            let port = service["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
            let host = format!("{name}.{namespace}.svc");
            let path = text(service, "path");
            let path = path.trim_start_matches('/');
            let url = format!("https://{host}:{port}/{path}");
            (url, Target::Service { services, namespace, name, port }, host, port)
        } else {
            let url = text(config, "url");
            let parsed =
                orlop_kinds::admissionregistration::client_config::Url::parse(&url).map_err(|error| {
                    CallError::new(format!("Unparsable webhook URL: parse {}: {error}", go_quote(&url)))
                })?;
            let (host, port) = split_host(&parsed.host);
            (url, Target::Host(host.clone(), port), host, port)
        };
        let shown = credentials.to(&join(&host, port));
        let leaf = shown.and_then(|shown| shown.leaf.as_ref());
        let tls = tls::config(&text(config, "caBundle"), leaf).map_err(CallError::new)?;
        let authorization = shown.and_then(|shown| shown.authorization.clone());
        let name = rustls_pki_types::ServerName::try_from(host)
            .map_err(|error| CallError::new(format!("invalid host of a webhook: {error}")))?;
        let connector = Connector { target, tls: tokio_rustls::TlsConnector::from(tls), name };
        let pool = Pool::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build(connector);
        Ok(Client { pool, url, authorization })
    }

    /// Posts a JSON body and reads the JSON answer within `timeout`.
    pub async fn post(&self, body: Bytes, timeout: Duration) -> Result<Value, CallError> {
        let url = format!("{}?timeout={}s", self.url, timeout.as_secs());
        let failed = |why: String| CallError::new(format!("Post {}: {why}", go_quote(&url)));
        let mut request = http::Request::post(&url)
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::ACCEPT, "application/json, */*")
            .header(http::header::USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(body))
            .map_err(|error| failed(error.to_string()))?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(http::header::AUTHORIZATION, authorization.clone());
        }
        let exchange = async {
            let response = self.pool.request(request).await.map_err(|error| failed(explain(&error)))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| failed(format!("reading the answer: {error}")))?;
            Ok((parts.status.as_u16(), body.to_bytes()))
        };
        let (status, body) = tokio::time::timeout(timeout, exchange)
            .await
            .map_err(|_| failed("context deadline exceeded".into()))??;
        read_answer(status, &body)
    }
}

/// Host and port of a URL's authority; brackets of an IPv6 address are taken off.
fn split_host(authority: &str) -> (String, u16) {
    if let Some(rest) = authority.strip_prefix('[')
        && let Some((host, port)) = rest.split_once(']')
    {
        return (host.to_string(), port.strip_prefix(':').and_then(|p| p.parse().ok()).unwrap_or(443));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) => (host.to_string(), port.parse().unwrap_or(443)),
        None => (authority.to_string(), 443),
    }
}

/// `host:port` as Go joins it.
fn join(host: &str, port: u16) -> String {
    if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// An answer that is no success is an error of its own, as the generic client of upstream words it.
fn read_answer(status: u16, body: &[u8]) -> Result<Value, CallError> {
    let object: Option<Value> = orlop_json::from_slice(body).ok();
    if (200..=206).contains(&status) {
        return object.filter(Value::is_object).ok_or_else(|| {
            CallError::new(match orlop_json::from_slice::<Value>(body) {
                Err(error) => format!("couldn't get version/kind; json parse error: {error}"),
                Ok(_) => "couldn't get version/kind; json parse error: the answer is not an object".into(),
            })
        });
    }
    if let Some(object) = &object
        && object["kind"] == "Status"
        && let Some(message) = object["message"].as_str().filter(|m| !m.is_empty())
    {
        let code = object["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(status);
        return Err(CallError { text: message.to_string(), code });
    }
    let text = String::from_utf8_lossy(body);
    let text = match text.trim() {
        "" => "unknown",
        text => text,
    };
    let text = match status {
        400 => "the server rejected our request for an unknown reason".into(),
        401 => "the server has asked for the client to provide credentials".into(),
        403 | 406 | 415 => text.chars().take(2048).collect(),
        404 => "the server could not find the requested resource".into(),
        405 => "the server does not allow this method on the requested resource".into(),
        409 => "the server reported a conflict".into(),
        422 => "the server rejected our request due to an error in our request".into(),
        429 => {
            "the server has received too many requests and has asked us to try again later".into()
        }
        503 => "the server is currently unable to handle the request".into(),
        504 => {
            "the server was unable to return a response in the time allotted, but may still be processing the request"
                .into()
        }
        500.. => {
            let text: String = text.chars().take(2048).collect();
            format!("an error on the server ({}) has prevented the request from succeeding", go_quote(&text))
        }
        other => format!("the server responded with the status code {other} but did not return more information"),
    };
    Err(CallError { text, code: status })
}

/// The text of what lies deepest: dialling and the handshake have said it in upstream's words.
fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = error;
    loop {
        if let Some(dial) = at.downcast_ref::<CallError>() {
            return dial.to_string();
        }
        match at.source() {
            Some(source) => at = source,
            None => return if at.to_string().contains("closed") { "EOF".into() } else { at.to_string() },
        }
    }
}

#[derive(Clone)]
struct Connector {
    target: Target,
    tls: tokio_rustls::TlsConnector,
    name: rustls_pki_types::ServerName<'static>,
}

impl Connector {
    async fn connect(self) -> Result<Stream, CallError> {
        let (host, port) = self.target.address()?;
        let shown = join(&host, port);
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|error| {
            CallError::new(match error.kind() {
                std::io::ErrorKind::ConnectionRefused => {
                    format!("dial tcp {shown}: connect: connection refused")
                }
                std::io::ErrorKind::HostUnreachable => format!("dial tcp {shown}: connect: no route to host"),
                std::io::ErrorKind::NetworkUnreachable => {
                    format!("dial tcp {shown}: connect: network is unreachable")
                }
                std::io::ErrorKind::TimedOut => format!("dial tcp {shown}: i/o timeout"),
                _ if error.raw_os_error().is_none() => format!("dial tcp: lookup {host}: no such host"),
                _ => format!("dial tcp {shown}: {error}"),
            })
        })?;
        let _ = stream.set_nodelay(true);
        let stream = self
            .tls
            .connect(self.name.clone(), stream)
            .await
            .map_err(|error| CallError::new(tls::explain(&error, &self.name)))?;
        Ok(Stream(TokioIo::new(stream)))
    }
}

impl Target {
    fn address(&self) -> Result<(String, u16), CallError> {
        let Target::Service { services, namespace, name, port } = self else {
            return match self {
                Target::Host(host, port) => Ok((host.clone(), *port)),
                Target::Service { .. } => Err(CallError::new(String::new())),
            };
        };
        let service = services
            .as_ref()
            .and_then(|cache| cache.get(&format!("{namespace}/{name}")))
            .ok_or_else(|| CallError::new(format!("service {} not found", go_quote(name))))?
            .value();
        let spec = &service["spec"];
        let text = |key: &str| spec.get(key).and_then(Value::as_str).unwrap_or("");
        match text("type") {
            "ExternalName" => Ok((text("externalName").to_string(), *port)),
            "" | "ClusterIP" | "NodePort" | "LoadBalancer" => {
                if text("clusterIP") == "None" {
                    return Err(CallError::new("cannot route to service with ClusterIP \"None\"".into()));
                }
                let ports = spec["ports"].as_array();
                if !ports.is_some_and(|all| all.iter().any(|p| p["port"].as_u64() == Some(u64::from(*port))))
                {
                    return Err(CallError::new(format!(
                        "no service port {port} found for service {}",
                        go_quote(name)
                    )));
                }
                Ok((text("clusterIP").to_string(), *port))
            }
            other => Err(CallError::new(format!("unsupported service type {}", go_quote(other)))),
        }
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = CallError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, CallError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

struct Stream(TokioIo<TlsStream<TcpStream>>);

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let (_, session) = self.0.inner().get_ref();
        if session.alpn_protocol() == Some(b"h2") {
            Connected::new().negotiated_h2()
        } else {
            Connected::new()
        }
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;

    #[test]
    fn hosts() {
        let check = |authority: &str, expected: (&str, u16)| {
            assert_eq!(split_host(authority), (expected.0.to_string(), expected.1));
        };
        check("a.example", ("a.example", 443));
        check("a.example:8443", ("a.example", 8443));
        check("[::1]:9443", ("::1", 9443));
        check("[::1]", ("::1", 443));
        assert_eq!(join("::1", 443), "[::1]:443");
    }

    #[test]
    fn answers_that_are_no_success() {
        let check = |status: u16, body: &str, expected: &str| {
            assert_eq!(read_answer(status, body.as_bytes()).unwrap_err().text, expected);
        };
        check(404, "404 page not found", "the server could not find the requested resource");
        check(500, "boom\n", "an error on the server (\"boom\") has prevented the request from succeeding");
        check(403, "{\"kind\":\"Status\",\"message\":\"no\"}", "no");
        assert_eq!(read_answer(200, b"{\"a\":1}").unwrap(), json!({"a": 1}));
        assert!(read_answer(200, b"hello").unwrap_err().text.starts_with("couldn't get version/kind"));
    }

    #[tokio::test]
    async fn failures_are_told_as_upstream_tells_them() {
        let client =
            Client::new(&json!({"url": "https://127.0.0.1:1/x"}), None, &Credentials::default()).unwrap();
        let error = client.post(Bytes::new(), Duration::from_secs(2)).await.unwrap_err();
        assert_eq!(
            error.text,
            "Post \"https://127.0.0.1:1/x?timeout=2s\": dial tcp 127.0.0.1:1: connect: connection refused"
        );
        let service = json!({"service": {"name": "s", "namespace": "n", "path": "/p", "port": 8443}});
        let client = Client::new(&service, None, &Credentials::default()).unwrap();
        let error = client.post(Bytes::new(), Duration::from_secs(2)).await.unwrap_err();
        assert_eq!(error.text, "Post \"https://s.n.svc:8443/p?timeout=2s\": service \"s\" not found");
    }
}
