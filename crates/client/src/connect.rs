//! Ways to a `kube::Client`. Callers cannot tell afterwards which one was taken.

use std::path::Path;

use http::header::{HeaderValue, USER_AGENT};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{Service, ServiceExt};

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

/// A client over TLS, as the kubeconfig file says. `user_agent` names the component (it becomes the field manager
/// when none is given).
pub async fn from_kubeconfig(path: &Path, user_agent: &'static str) -> Result<kube::Client, ConnectError> {
    let shown = path.display().to_string();
    let wrong = |source| ConnectError::Kubeconfig { path: shown.clone(), source: Box::new(source) };
    let file = Kubeconfig::read_from(path).map_err(wrong)?;
    let mut config =
        kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(wrong)?;
    config.headers.push((USER_AGENT, HeaderValue::from_static(user_agent)));
    // A watch is quiet for minutes on an idle cluster; the server ends it, not a read timeout.
    config.read_timeout = None;
    kube::Client::try_from(config)
        .map_err(|source| ConnectError::Client { path: shown, source: Box::new(source) })
}

/// A client whose requests go straight into an API server of the same process. `service` is that server's request
/// pipeline under one identity; `user_agent` names the component.
pub fn in_memory<S, B>(service: S, user_agent: &'static str) -> kube::Client
where
    S: Service<http::Request<Body>, Response = http::Response<B>> + Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let named = service.map_request(move |mut request: http::Request<Body>| {
        request.headers_mut().entry(USER_AGENT).or_insert(HeaderValue::from_static(user_agent));
        request
    });
    kube::Client::new(named, "default")
}
