//! Ways to a `kube::Client`. Callers cannot tell afterwards which one was taken.

use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{HeaderValue, USER_AGENT};
use http::{Request, Response};
use kube::client::{Body, ClientBuilder};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use tower::layer::layer_fn;
use tower::{BoxError, Service, ServiceExt};

use crate::metrics;
use crate::trim::Trimmed;

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig file is missing, unreadable or wrong.
    #[error("kubeconfig {path}: {source}; pass --kubeconfig with a file that names a cluster and a user")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// There is no kubeconfig, and this process does not run in a pod.
    #[error("no API server: {0}; pass --kubeconfig with a file that names a cluster and a user")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// `--master` is no address.
    #[error("--master {address:?} is no URL, such as https://10.0.0.1:6443")]
    Address {
        /// As given.
        address: String,
    },
    /// The TLS or HTTP stack refused the configuration.
    #[error("client for {path}: {source}")]
    Client {
        /// The file.
        path: String,
        /// What was refused.
        #[source]
        source: Box<kube::Error>,
    },
}

/// How an API server is reached, and as whom. Cheap to clone.
#[derive(Clone)]
pub struct Connection {
    config: kube::Config,
    /// Where that comes from, for messages.
    shown: String,
}

impl Connection {
    /// From a kubeconfig file, or from the pod that this process runs in. `server` is the address instead of the one
    /// found there; `user_agent` names the component.
    pub async fn open(
        kubeconfig: Option<&Path>,
        server: Option<&str>,
        user_agent: &'static str,
    ) -> Result<Connection, ConnectError> {
        let shown = kubeconfig.map_or_else(|| "this pod".to_owned(), |path| path.display().to_string());
        let mut config = match kubeconfig {
            Some(path) => {
                let wrong =
                    |source| ConnectError::Kubeconfig { path: shown.clone(), source: Box::new(source) };
                let file = Kubeconfig::read_from(path).map_err(wrong)?;
                kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(wrong)?
            }
            None => kube::Config::incluster().map_err(|source| ConnectError::InCluster(Box::new(source)))?,
        };
        if let Some(server) = server {
            config.cluster_url =
                server.parse().map_err(|_| ConnectError::Address { address: server.to_owned() })?;
        }
        config.headers.push((USER_AGENT, HeaderValue::from_static(user_agent)));
        // A watch is quiet for minutes on an idle cluster; the server ends it, not a read timeout.
        config.read_timeout = None;
        Ok(Connection { config, shown })
    }

    /// A client with the credentials found.
    pub fn client(&self) -> Result<kube::Client, ConnectError> {
        let refused = |source| ConnectError::Client { path: self.shown.clone(), source: Box::new(source) };
        let builder = ClientBuilder::try_from(self.config.clone()).map_err(refused)?;
        let host: Arc<str> = self.config.cluster_url.authority().map_or("", |host| host.as_str()).into();
        Ok(builder.with_layer(&layer_fn(|inner| Counted { inner, host: host.clone() })).build())
    }

    /// A client that shows no credentials.
    pub fn anonymous(&self) -> Result<kube::Client, ConnectError> {
        let mut bare = self.clone();
        bare.config.auth_info = AuthInfo::default();
        bare.client()
    }

    /// The authorities that the server's certificate is checked with, as PEM.
    pub fn ca_pem(&self) -> Option<String> {
        let certificates = self.config.root_cert.as_ref()?;
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        let text = |der: &Vec<u8>| pem::encode_config(&pem::Pem::new("CERTIFICATE", der.clone()), config);
        Some(certificates.iter().map(text).collect())
    }
}

/// How long a server may take until it begins to answer. It gives itself 60 s; who takes longer is gone without a word,
/// and whoever waits for it would wait for ever.
const ANSWER: Duration = Duration::from_secs(90);

/// A transport that gives a server [`ANSWER`] to begin its answer, and counts what it sends.
struct Counted<S> {
    inner: S,
    host: Arc<str>,
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<B>, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (host, method) = (self.host.clone(), request.method().clone());
        let answer = tokio::time::timeout(ANSWER, self.inner.call(request));
        async move {
            let answer = answer.await.unwrap_or_else(|_| Err(format!("no answer within {ANSWER:?}").into()));
            let code = answer.as_ref().ok().map(|response| response.status().as_u16());
            metrics::count_request(&host, &method, code);
            answer
        }
        .boxed()
    }
}

/// A client over TLS, as the kubeconfig file says. `user_agent` names the component (it becomes the field manager
/// when none is given).
pub async fn from_kubeconfig(path: &Path, user_agent: &'static str) -> Result<kube::Client, ConnectError> {
    Connection::open(Some(path), None, user_agent).await?.client()
}

/// A client whose requests go straight into an API server of the same process. `service` is that server's request
/// pipeline under one identity; `user_agent` names the component. What is watched comes without
/// `metadata.managedFields`.
pub fn in_memory<S, B>(service: S, user_agent: &'static str) -> kube::Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let named = service.map_request(move |mut request: Request<Body>| {
        request.headers_mut().entry(USER_AGENT).or_insert(HeaderValue::from_static(user_agent));
        request
    });
    kube::Client::new(Trimmed(named), "default")
}
