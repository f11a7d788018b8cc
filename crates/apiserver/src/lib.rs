//! The Kubernetes API server: HTTP, authentication, authorization, admission, the registry and its watch cache,
//! discovery. It alone opens the store; everybody else, in this process or another, is its client. It must never know
//! what a controller, scheduler or kubelet does with the objects it serves.
//!
//! The way of a write: connection → TLS → request info → authenticate → authorize → decode → mutate → validate →
//! commit with the expected revision → cache → answer; the same committed event goes to every watcher.

#![forbid(unsafe_code)]

pub mod admission;
pub mod aggregation;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod cache;
pub mod components;
pub mod custom;
pub mod encryption;
pub mod endpoints;
mod expressions;
pub mod flowcontrol;
pub mod http;
pub mod managed;
pub mod metrics;
pub mod options;
pub mod outbound;
pub mod pki;
pub mod registry;
pub mod request_info;
pub mod resources;
pub mod runtime_config;
pub mod services;

mod configuration;
mod housekeeping;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use orlop_store::Store;
use tokio_util::sync::CancellationToken;

pub use authn::UserInfo;
pub use http::in_memory::InMemory;
pub use options::{AuthorizationMode, Options};

use authn::service_account::Bindings;
use authn::{Authenticator, ServiceAccountTokens, TokenFile};
use authz::Authorizer;
use cache::Caches;
use flowcontrol::FlowControl;
use flowcontrol::inflight::MaxInFlight;
use http::drain::Drain;
use metrics::Metrics;
use pki::{CertificateAuthority, Leaf, PkiError, Subject};
use registry::Registry;
use resources::Resources;
use runtime_config::RuntimeConfig;

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate or key.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The store could not be read.
    #[error("store: {0}")]
    Store(#[from] orlop_store::StoreError),
    /// A file named by an option could not be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The admission plugins' options contradict each other or name what is not there.
    #[error(transparent)]
    Admission(#[from] admission::PluginError),
    /// A configuration file, or options that contradict each other.
    #[error("{0}")]
    Configuration(String),
    /// The address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The objects of a fresh cluster could not be created.
    #[error("bootstrap: {0}")]
    Bootstrap(#[from] orlop_api::status::ApiError),
}

/// In how many steps watches end when a server goes gently.
const WATCH_GROUPS: usize = 64;

/// An API server.
pub struct ApiServer {
    /// Its settings.
    pub options: Options,
    pub(crate) registry: Registry,
    pub(crate) authenticator: Authenticator,
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) metrics: Arc<Metrics>,
    /// Priority and fairness, or the plain limits that stand in for it.
    pub(crate) flows: Option<Arc<FlowControl>>,
    pub(crate) max_in_flight: MaxInFlight,
    pub(crate) drain: Drain,
    /// API servers behind this one.
    pub(crate) aggregator: aggregation::Aggregator,
    pub(crate) started: std::time::SystemTime,
    pub(crate) kubelet_connector: tokio_rustls::TlsConnector,
    pub(crate) openapi: http::openapi::Documents,
    pub(crate) discovery: http::discovery::Documents,
    pub(crate) custom: custom::CustomResources,
    pub(crate) client_ca_pem: String,
    pub(crate) authorities: authn::peer::Authorities,
    pub(crate) audit: Option<Arc<audit::Audit>>,
    ca: CertificateAuthority,
    stop: CancellationToken,
    /// Watches are spread over these, so that they can end one after the other.
    watches_end: Vec<CancellationToken>,
    next_watch: AtomicUsize,
    pub(crate) cors: http::cors::Cors,
    ready: AtomicBool,
    /// What the last check of the store found.
    pub(crate) store_healthy: AtomicBool,
}

impl ApiServer {
    /// Loads the state from `store`, creates what a fresh cluster must have, and begins to follow the store.
    pub fn new(options: Options, store: Arc<dyn Store>) -> BoxFuture<'static, Result<Arc<ApiServer>, Error>> {
        Box::pin(Self::open(options, store))
    }

    async fn open(options: Options, store: Arc<dyn Store>) -> Result<Arc<ApiServer>, Error> {
        let encryption = options
            .encryption_provider_config
            .as_ref()
            .map(|path| {
                encryption::EncryptedStore::new(store.clone(), path, resources::storage_prefixes())
                    .map(Arc::new)
                    .map_err(|error| Error::Configuration(format!("--encryption-provider-config {error}")))
            })
            .transpose()?;
        let store: Arc<dyn Store> = match &encryption {
            Some(encrypted) => {
                let wrong = |error| Error::Configuration(format!("--encryption-provider-config: {error}"));
                encrypted.prime().await.map_err(wrong)?;
                encrypted.clone()
            }
            None => store,
        };
        let audit = audit::Audit::start(&options.audit).map_err(Error::Configuration)?;
        let ca = match &options.cert_dir {
            Some(dir) => CertificateAuthority::load_or_generate(dir, "ca", "orlop-ca")?,
            None => CertificateAuthority::generate("orlop-ca")?,
        };
        let client_ca_pem = options.client_ca_pem.clone().unwrap_or_else(|| ca.cert_pem().to_string());
        let signing = match (&options.service_account_signing_key, &options.cert_dir) {
            (Some(key), _) => key.clone(),
            (None, Some(dir)) => pki::load_or_generate_signing_key(dir, "sa")?,
            (None, None) => pki::generate_signing_key()?,
        };
        let kubelet_client = match &options.kubelet_client {
            Some(leaf) => leaf.clone(),
            None => ca.issue(&Subject::client("kube-apiserver-kubelet-client", &["system:masters"]), 365)?,
        };
        let kubelet_ca = options.kubelet_ca_pem.as_deref().unwrap_or(ca.cert_pem());
        let kubelet_tls = pki::client_config(kubelet_ca, Some(&kubelet_client))?;
        let token_file = match &options.token_auth_file {
            Some(path) => {
                TokenFile::load(path).map_err(|source| Error::File { path: path.clone(), source })?
            }
            None => TokenFile::default(),
        };

        let caches = Caches::new();
        let served = RuntimeConfig::parse(&options.runtime_config).map_err(Error::Configuration)?;
        let resources = Resources::load(&caches, options.watch_cache_size, &served);
        // What authorization reads; a cache of a kind that is served is found, not made again.
        let read =
            |prefix: &str| caches.add(prefix, options.watch_cache_size, Box::new(|_| Default::default()));
        let rbac = authz::rbac::Rbac::new(
            read("/registry/roles/"),
            read("/registry/clusterroles/"),
            read("/registry/rolebindings/"),
            read("/registry/clusterrolebindings/"),
        );
        let sources = authz::node::Sources {
            pods: read("/registry/pods/"),
            claims: read("/registry/persistentvolumeclaims/"),
            volumes: read("/registry/persistentvolumes/"),
            attachments: read("/registry/volumeattachments/"),
            slices: read("/registry/resourceslices/"),
        };
        let node = authz::node::NodeAuthorizer::new(sources, bootstrap::node_rules());
        let caches = Arc::new(caches);
        let stop = CancellationToken::new();
        caches.start(store.clone(), stop.clone()).await?;

        let chain = authz::config::chain(&options).map_err(Error::Configuration)?;
        let authorizer = Arc::new(Authorizer { chain: ArcSwap::from_pointee(chain), rbac, node });
        let bindings = Bindings {
            accounts: resources.cache("", "ServiceAccount"),
            pods: resources.cache("", "Pod"),
            secrets: resources.cache("", "Secret"),
            nodes: resources.cache("", "Node"),
        };
        let bootstrap = options.bootstrap_token_auth.then(|| resources.cache("", "Secret")).flatten();
        let settings = authn::service_account::Settings {
            issuer: &options.service_account_issuer,
            further_issuers: &options.further_service_account_issuers,
            signing: &signing,
            keys: &options.service_account_keys,
            api_audiences: &options.api_audiences,
            lookup: options.service_account_lookup,
        };
        let authenticator = Authenticator {
            request_header: options.request_header.clone(),
            token_file,
            service_accounts: ServiceAccountTokens::new(&settings, bindings)?,
            bootstrap: bootstrap.map(authn::bootstrap_token::BootstrapTokens::new),
            configured: ArcSwap::from_pointee(
                configuration::authentication(&options).map_err(Error::Configuration)?,
            ),
            webhook: options
                .token_webhook
                .as_ref()
                .map(authn::webhook::TokenWebhook::new)
                .transpose()
                .map_err(|error| Error::Configuration(error.to_string()))?,
            anonymous: options.anonymous_auth,
            api_audiences: options.api_audiences.clone(),
        };
        let proxies = options.request_header.as_ref().map(|header| header.client_ca_pem.as_str());
        let authorities = authn::peer::Authorities::new(Some(&client_ca_pem), proxies)?;
        let allocators = services::Allocators::new(&options.service_cidrs, options.service_node_port_range);
        if let Some(services) = resources.cache("", "Service") {
            let objects: Vec<orlop_json::Value> = services.snapshot().0.values().map(|e| e.value()).collect();
            allocators.load(objects.iter());
        }
        let metrics: Arc<Metrics> = Arc::default();
        let dynamic = admission::Dynamic::start(&resources, &stop, admission::webhook_credentials(&options)?);
        let registry = Registry {
            metrics: metrics.clone(),
            unattended: options.unattended_resources.clone(),
            allow_privileged: options.allow_privileged,
            store,
            caches,
            resources,
            admission: admission::plugins(&options)?,
            dynamic,
            allocators,
            authorizer: authorizer.clone(),
            encryption,
        };
        let seats = options.max_requests_inflight.saturating_add(options.max_mutating_requests_inflight);
        let flows = options
            .priority_and_fairness
            .then(|| Arc::new(FlowControl::new(u32::try_from(seats).unwrap_or(u32::MAX / 4).max(1))));
        metrics.name_plugins(registry.admission.iter().map(|plugin| plugin.name()));
        let watch_groups = if options.shutdown_watch_grace.is_zero() { 1 } else { WATCH_GROUPS };
        let cors = http::cors::Cors::new(&options.cors_allowed_origins).map_err(Error::Configuration)?;
        let server = Arc::new(ApiServer {
            flows: flows.clone(),
            max_in_flight: MaxInFlight::new(
                options.max_requests_inflight,
                options.max_mutating_requests_inflight,
            ),
            drain: Drain::default(),
            aggregator: aggregation::Aggregator::new(&options)?,
            started: std::time::SystemTime::now(),
            options,
            registry,
            authenticator,
            authorizer,
            metrics,
            kubelet_connector: tokio_rustls::TlsConnector::from(Arc::new(kubelet_tls)),
            openapi: http::openapi::Documents::default(),
            discovery: http::discovery::Documents::default(),
            custom: custom::CustomResources::default(),
            client_ca_pem,
            authorities,
            audit,
            ca,
            watches_end: (0..watch_groups).map(|_| stop.child_token()).collect(),
            next_watch: AtomicUsize::new(0),
            cors,
            stop,
            ready: AtomicBool::new(false),
            store_healthy: AtomicBool::new(true),
        });
        custom::start(&server).await?;
        bootstrap::run(&server).await?;
        if let Some(flows) = &flows {
            flowcontrol::follow::load(&server, flows);
            flowcontrol::follow::start(&server, flows);
        }
        server.ready.store(true, Ordering::Release);
        housekeeping::start(&server);
        configuration::follow(&server);
        aggregation::start(&server);
        Ok(server)
    }

    /// The cluster's certificate authority.
    pub fn ca(&self) -> &CertificateAuthority {
        &self.ca
    }

    /// A token for a service account that is to be kept in a Secret; the Secret has to hold it for the token to be good.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn secret_token(
        &self,
        namespace: &str,
        (account, uid): (&str, &str),
        secret: &str,
    ) -> Result<String, authn::TokenError> {
        let account = authn::BoundObject { name: account.to_owned(), uid: uid.to_owned() };
        self.authenticator.service_accounts.issue_legacy(namespace, &account, secret)
    }

    /// Whether the bootstrap objects exist.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Whether a Service answers for a group and version that a server of this process would answer for.
    pub fn is_served_elsewhere(&self, group: &str, version: &str) -> bool {
        self.aggregator.is_elsewhere(group, version)
    }

    /// Whether the server is shutting down.
    pub fn is_stopping(&self) -> bool {
        self.drain.has_begun() || self.stop.is_cancelled()
    }

    /// Cancelled when a watch that begins now shall end.
    pub(crate) fn watch_end(&self) -> CancellationToken {
        let at = self.next_watch.fetch_add(1, Ordering::Relaxed) % self.watches_end.len();
        self.watches_end[at].clone()
    }

    /// Cancelled when the server is over: what it does on its own ends.
    pub(crate) fn stopped(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Ends every watch, spread over the grace period; requests under way are still served.
    pub async fn end_watches(&self) {
        // The grace period is divided by a small number of groups.
        let pause = self.options.shutdown_watch_grace / self.watches_end.len() as u32;
        for end in &self.watches_end {
            end.cancel();
            tokio::time::sleep(pause).await;
        }
    }

    /// Ends every watch, and the feeding of the cache: nothing can be served any more.
    pub fn stop_watches(&self) {
        self.stop.cancel();
    }

    /// Settings of the server's TLS: the configured certificate, or one issued by the cluster's CA for every name the
    /// server is known by.
    pub fn tls_config(&self) -> Result<Arc<rustls::ServerConfig>, Error> {
        let leaf = match &self.options.serving_cert {
            Some((cert, key)) => {
                let read = |path: &std::path::PathBuf| {
                    std::fs::read_to_string(path).map_err(|source| Error::File { path: path.clone(), source })
                };
                Leaf { cert_pem: read(cert)?, key_pem: read(key)? }
            }
            None => {
                let mut names: Vec<String> = [
                    "kubernetes",
                    "kubernetes.default",
                    "kubernetes.default.svc",
                    "kubernetes.default.svc.cluster.local",
                    "localhost",
                    "127.0.0.1",
                    "::1",
                ]
                .map(String::from)
                .to_vec();
                names.push(self.registry.allocators.first().to_string());
                names.push(self.advertise_address().to_string());
                names.extend(self.options.extra_sans.iter().cloned());
                names.sort();
                names.dedup();
                self.ca.issue(&Subject::server("kube-apiserver", names), 365)?
            }
        };
        let mut named = Vec::new();
        for sni in &self.options.sni_certificates {
            let read = |path: &std::path::PathBuf| {
                std::fs::read_to_string(path).map_err(|source| Error::File { path: path.clone(), source })
            };
            let leaf = Leaf { cert_pem: read(&sni.certificate)?, key_pem: read(&sni.key)? };
            named.push((sni.names.clone(), leaf));
        }
        let tls = pki::ServerTls {
            named,
            tls13_only: self.options.tls13_only,
            cipher_suites: &self.options.tls_cipher_suites,
            curves: &self.options.tls_curves,
            http1_only: self.options.http1_only,
        };
        Ok(Arc::new(pki::server_config(&leaf, &tls)?))
    }

    /// The address under which others reach this server.
    pub fn advertise_address(&self) -> IpAddr {
        if let Some(address) = self.options.advertise_address {
            return address;
        }
        let bound = self.options.bind_address.ip();
        if !bound.is_unspecified() {
            return bound;
        }
        // Connecting a datagram socket sends nothing; it only asks the kernel which address it would use.
        std::net::UdpSocket::bind("0.0.0.0:0")
            .and_then(|socket| socket.connect("192.0.2.1:9").map(|()| socket))
            .and_then(|socket| socket.local_addr())
            .map(|address| address.ip())
            .unwrap_or(IpAddr::from([127, 0, 0, 1]))
    }

    /// Publishes the `kubernetes` Service's endpoints for this server, listening on `port`.
    pub fn publish(&self, port: u16) -> BoxFuture<'_, Result<(), Error>> {
        let port = self.options.advertise_port.unwrap_or(port);
        Box::pin(async move { Ok(bootstrap::publish(self, self.advertise_address(), port).await?) })
    }
}

/// Runs a server of its own until `shutdown`: binds, publishes, serves. `started` is told the bound address.
pub async fn run(
    options: Options,
    store: Arc<dyn Store>,
    shutdown: CancellationToken,
    started: impl FnOnce(&Arc<ApiServer>, SocketAddr),
) -> Result<(), Error> {
    let address = options.bind_address;
    let server = ApiServer::new(options, store).await?;
    let tls = server.tls_config()?;
    let listener =
        tokio::net::TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    let bound = listener.local_addr().map_err(|source| Error::Listen { address, source })?;
    server.publish(bound.port()).await?;
    started(&server, bound);
    server.serve(listener, tls, shutdown).await;
    Ok(())
}
