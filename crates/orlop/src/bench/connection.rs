//! One HTTP/1.1 connection, with as little of a client around it as possible: on the same machine, what the client
//! spends the server does not get.

use std::path::Path;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{AsyncBufReadExt, Stream, TryStreamExt};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::{Method, Request, Response};
use http_body_util::{BodyDataStream, BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::client::legacy::connect::HttpConnector;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{Layer, ServiceExt, service_fn};

/// A server and who talks to it.
pub struct Target {
    config: kube::Config,
    authorization: Option<HeaderValue>,
}

impl Target {
    /// The current context of a kubeconfig, with whatever way of authentication it names.
    pub async fn open(kubeconfig: &Path) -> anyhow::Result<Self> {
        let shown = || kubeconfig.display().to_string();
        let file = Kubeconfig::read_from(kubeconfig).with_context(shown)?;
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .with_context(shown)?;
        // Tokens, files of tokens and plug-ins end in one header; it is made once.
        let authorization = match config.auth_layer()? {
            Some(layer) => {
                let probe = service_fn(|request: Request<Empty<Bytes>>| async move {
                    Ok::<_, tower::BoxError>(Response::new(request.headers().get(AUTHORIZATION).cloned()))
                });
                let answer = layer.layer(probe).oneshot(Request::new(Empty::new())).await;
                answer.map_err(|error| anyhow::anyhow!(error)).with_context(shown)?.into_body()
            }
            None => None,
        };
        Ok(Self { config, authorization })
    }

    /// A new connection.
    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let url = &self.config.cluster_url;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = self.config.rustls_https_connector_with_connector(tcp)?;
        let stream = connector.oneshot(url.clone()).await;
        let stream = stream.map_err(|error| anyhow::anyhow!(error)).with_context(|| url.to_string())?;
        let (sender, connection) = handshake(stream).await?;
        tokio::spawn(connection);
        let authority = url.authority().with_context(|| format!("{url} names no server"))?;
        Ok(Connection {
            sender,
            prefix: url.path().trim_end_matches('/').to_owned(),
            host: HeaderValue::from_str(authority.as_str())?,
            authorization: self.authorization.clone(),
        })
    }
}

/// A request: what the benchmarks differ in.
pub struct Call {
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// JSON, or empty.
    pub body: String,
}

impl Call {
    /// A request without a body.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: String::new() }
    }

    /// The same with this body.
    pub fn with(self, body: String) -> Self {
        Self { body, ..self }
    }
}

/// One connection to the server; requests go one after the other.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    prefix: String,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
}

impl Connection {
    /// Sends a request and reads the whole answer; one that is not a success is an error.
    pub async fn send(&mut self, call: Call) -> anyhow::Result<Bytes> {
        let what = format!("{} {}", call.method, call.path);
        let response = self.start(call).await.with_context(|| what.clone())?;
        let status = response.status();
        let body = response.into_body().collect().await.with_context(|| what.clone())?.to_bytes();
        if !status.is_success() {
            bail!("{what}: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }

    /// Starts a watch and gives its lines, one event each, as they arrive.
    pub async fn watch(
        mut self,
        path: String,
    ) -> anyhow::Result<impl Stream<Item = std::io::Result<String>> + Unpin> {
        let response = self.start(Call::new(Method::GET, path.clone())).await?;
        let status = response.status();
        if !status.is_success() {
            bail!("GET {path}: {status}");
        }
        // The connection ends when nothing can send on it any more, so the stream keeps the sender.
        let keep = self.sender;
        let data = BodyDataStream::new(response.into_body()).map_err(std::io::Error::other);
        let data = data.inspect_ok(move |_| _ = &keep);
        Ok(Box::pin(data).into_async_read().lines())
    }

    async fn start(&mut self, call: Call) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(call.method)
            .uri(format!("{}{}", self.prefix, call.path))
            .header(HOST, &self.host)
            .header(USER_AGENT, "orlop-bench")
            .header(ACCEPT, "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if !call.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::from(call.body))?;
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }
}
