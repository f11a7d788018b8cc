//! Who answers for a group and version: a server of this process, or a connection pool to one elsewhere. TLS by the APIService's trust, this server's proxy certificate, HTTP/2 when the
//! other side has it, connections of their own for requests that take them over.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use orlop_json::Value;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Answer, ServiceReference, text};
use crate::http::body::{Body, BoxError, Response};
use crate::pki::{self, Leaf};
use http_body_util::BodyExt as _;

/// How long a backend has to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Where distributions keep the certificates that everybody trusts.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A backend.
pub enum Backend {
    /// Behind connections.
    Elsewhere(Box<Pool>),
    /// In this process.
    InProcess(Answer),
}

/// Connections to a backend.
pub struct Pool {
    client: Client<Dial, Body>,
    dial: Dial,
}

/// Whom to believe, as the APIService says: unequal values need another backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    ca_bundle: String,
    insecure: bool,
    server_name: String,
}

impl Trust {
    /// Of an APIService.
    pub fn of(object: &Value, service: &ServiceReference) -> Trust {
        Trust {
            ca_bundle: text(object, "/spec/caBundle").to_string(),
            insecure: object.pointer("/spec/insecureSkipTLSVerify").and_then(Value::as_bool).unwrap_or(false),
            server_name: format!("{}.{}.svc", service.name, service.namespace),
        }
    }

    fn config(&self, leaf: Option<&Leaf>, http2: bool) -> Result<rustls::ClientConfig, String> {
        let bundle = if !self.ca_bundle.is_empty() {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(&self.ca_bundle)
                .map_err(|error| format!("caBundle: {error}"))?;
            String::from_utf8(bytes).map_err(|error| format!("caBundle: {error}"))?
        } else if self.insecure {
            String::new()
        } else {
            SYSTEM_ROOTS.iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
        };
        let mut config = pki::client_config(&bundle, leaf).map_err(|error| error.to_string())?;
        if self.insecure {
            let provider = config.crypto_provider().clone();
            config.dangerous().set_certificate_verifier(Arc::new(crate::outbound::Anybody(provider)));
        }
        let http2: &[&[u8]] = if http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
        config.alpn_protocols = http2.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }
}

/// Makes connections.
#[derive(Clone)]
struct Dial {
    pooled: TlsConnector,
    alone: TlsConnector,
    server_name: rustls_pki_types::ServerName<'static>,
    addresses: Arc<Mutex<(Vec<String>, usize)>>,
}

impl Dial {
    /// The next address in turn.
    fn address(&self) -> Option<String> {
        let mut addresses = self.addresses.lock();
        let at = addresses.1;
        addresses.1 = at.wrapping_add(1);
        let count = addresses.0.len();
        addresses.0.get(at % count.max(1)).cloned()
    }

    async fn connect(&self, tls: &TlsConnector) -> Result<TlsStream<TcpStream>, BoxError> {
        let address = self.address().ok_or("no address")?;
        let connect = async {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            tls.connect(self.server_name.clone(), stream).await
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(format!("dial tcp {address}: {error}").into()),
            Err(_) => Err(format!("dial tcp {address}: i/o timeout").into()),
        }
    }
}

/// A connection that knows which protocol was agreed on.
struct Stream(TokioIo<TlsStream<TcpStream>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        match self.0.inner().get_ref().1.alpn_protocol() {
            Some(b"h2") => connected.negotiated_h2(),
            _ => connected,
        }
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl tower::Service<http::Uri> for Dial {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move { Ok(Stream(TokioIo::new(dial.connect(&dial.pooled).await?))) })
    }
}

impl Backend {
    /// With this trust; the error is the text for whoever asks.
    pub fn new(trust: &Trust, leaf: Option<&Leaf>) -> Result<Backend, String> {
        let server_name = rustls_pki_types::ServerName::try_from(trust.server_name.clone())
            .map_err(|error| format!("{}: {error}", trust.server_name))?;
        let dial = Dial {
            pooled: TlsConnector::from(Arc::new(trust.config(leaf, true)?)),
            alone: TlsConnector::from(Arc::new(trust.config(leaf, false)?)),
            server_name,
            addresses: Arc::default(),
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(16)
            .build(dial.clone());
        Ok(Backend::Elsewhere(Box::new(Pool { client, dial })))
    }

    /// Where it is now.
    pub fn set_addresses(&self, found: Vec<String>) {
        let Backend::Elsewhere(pool) = self else { return };
        let mut addresses = pool.dial.addresses.lock();
        if addresses.0 != found {
            *addresses = (found, 0);
        }
    }

    /// One request over the pool. The URI's host is a name for the pool only.
    pub async fn send(&self, request: http::Request<Body>) -> Result<Response, String> {
        let pool = match self {
            Backend::Elsewhere(pool) => pool,
            Backend::InProcess(answer) => return Ok(answer(request).await),
        };
        let response =
            pool.client.request(request).await.map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
        Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()))
    }

    /// Whether an answer may take its connection over: a server of this process has none.
    pub fn has_connections(&self) -> bool {
        matches!(self, Backend::Elsewhere(_))
    }

    /// One request over a connection of its own, which the answer may take over.
    pub async fn send_alone(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<hyper::body::Incoming>, String> {
        let Backend::Elsewhere(pool) = self else { return Err("no connection".to_string()) };
        let stream = pool.dial.connect(&pool.dial.alone).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to an aggregated API server ended");
            }
        });
        sender.send_request(request).await.map_err(|error| format!("{:#}", anyhow::Error::new(error)))
    }
}
