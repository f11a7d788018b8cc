//! What can be set about the API server, under upstream's flag names where there is one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::aggregation::InProcess;
use crate::components::{self, Component};
use crate::metrics::Shaping;
use crate::pki::Leaf;

/// An authorizer by upstream's `--authorization-mode` name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorizationMode {
    /// Everything is allowed.
    AlwaysAllow,
    /// Nothing is allowed.
    AlwaysDeny,
    /// Policies of a file.
    Abac,
    /// A service outside decides (`SubjectAccessReview`).
    Webhook,
    /// Kubelets may touch what their pods need.
    Node,
    /// Roles and bindings.
    Rbac,
}

/// A serving certificate for some server names (`--tls-sni-cert-key`).
#[derive(Clone, Debug, Default)]
pub struct SniCertificate {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Names (`*.` wildcards allowed) it is shown for; those in the certificate when empty.
    pub names: Vec<String>,
}

/// Who vouches for users in request headers (`--requestheader-*`): an authenticating proxy.
#[derive(Clone, Debug, Default)]
pub struct RequestHeaderOptions {
    /// `--requestheader-client-ca-file`: PEM text of the CA of the proxies' client certificates.
    pub client_ca_pem: String,
    /// `--requestheader-allowed-names`: common names a proxy may have; any when empty.
    pub allowed_names: Vec<String>,
    /// `--requestheader-username-headers`
    pub username_headers: Vec<String>,
    /// `--requestheader-uid-headers`
    pub uid_headers: Vec<String>,
    /// `--requestheader-group-headers`
    pub group_headers: Vec<String>,
    /// `--requestheader-extra-headers-prefix`
    pub extra_header_prefixes: Vec<String>,
}

/// One OpenID Connect issuer by flags (`--oidc-*`).
#[derive(Clone, Debug, Default)]
pub struct OidcOptions {
    /// `--oidc-issuer-url`
    pub issuer_url: String,
    /// `--oidc-client-id`
    pub client_id: String,
    /// `--oidc-ca-file`
    pub ca_file: Option<PathBuf>,
    /// `--oidc-username-claim`
    pub username_claim: String,
    /// `--oidc-username-prefix`; `-` for none.
    pub username_prefix: String,
    /// `--oidc-groups-claim`
    pub groups_claim: String,
    /// `--oidc-groups-prefix`
    pub groups_prefix: String,
    /// `--oidc-signing-algs`
    pub signing_algs: Vec<String>,
    /// `--oidc-required-claim`
    pub required_claims: BTreeMap<String, String>,
}

/// How a webhook named by flags is asked.
#[derive(Clone, Debug)]
pub struct WebhookOptions {
    /// A kubeconfig file: the cluster is the service, the user this server.
    pub config_file: PathBuf,
    /// Version of the review that is sent: `v1` or `v1beta1`.
    pub version: String,
    /// How long a yes (of an authenticator: any answer) is remembered.
    pub authorized_ttl: Duration,
    /// How long a no is remembered.
    pub unauthorized_ttl: Duration,
}

/// When an audit backend writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditMode {
    /// In batches, behind the requests.
    Batch,
    /// Before the request is answered.
    Blocking,
    /// As `Blocking`, and a request whose reception cannot be recorded fails.
    BlockingStrict,
}

/// Batches of an audit backend.
#[derive(Clone, Debug)]
pub struct AuditBatch {
    /// Events kept before they are dropped.
    pub buffer_size: usize,
    /// Events a batch.
    pub max_size: usize,
    /// How long an incomplete batch waits.
    pub max_wait: Duration,
    /// Batches a second on average, and at once; `None` for no limit.
    pub throttle: Option<(f64, u32)>,
}

/// `--audit-log-*`
#[derive(Clone, Debug)]
pub struct AuditLogOptions {
    /// File; `-` is the standard output.
    pub path: PathBuf,
    /// Days an old file is kept; 0 for ever.
    pub max_age: u32,
    /// Old files kept; 0 for all.
    pub max_backup: u32,
    /// Size in MiB at which a file is put aside; 0 for never.
    pub max_size: u64,
    /// Whether old files are compressed.
    pub compress: bool,
    /// Whether lines are the old text form rather than JSON.
    pub legacy_format: bool,
    /// When.
    pub mode: AuditMode,
    /// Batches.
    pub batch: AuditBatch,
    /// Bytes above which request and response are left out of an event.
    pub truncate: Option<usize>,
}

/// `--audit-webhook-*`
#[derive(Clone, Debug)]
pub struct AuditWebhookOptions {
    /// kubeconfig file of the receiver.
    pub config_file: PathBuf,
    /// First pause after a failure.
    pub initial_backoff: Duration,
    /// When.
    pub mode: AuditMode,
    /// Batches.
    pub batch: AuditBatch,
    /// Bytes above which request and response are left out of an event.
    pub truncate: Option<usize>,
}

/// What is recorded about requests, and where. Nothing without a policy.
#[derive(Clone, Debug, Default)]
pub struct AuditOptions {
    /// `--audit-policy-file`
    pub policy_file: Option<PathBuf>,
    /// `--audit-log-*`
    pub log: Option<AuditLogOptions>,
    /// `--audit-webhook-*`
    pub webhook: Option<AuditWebhookOptions>,
}

/// Settings of an API server. `Options::default()` serves a cluster of its own in memory with upstream's defaults.
#[derive(Clone)]
pub struct Options {
    /// `--bind-address` and `--secure-port`.
    pub bind_address: SocketAddr,
    /// `--advertise-address`: the address published in the `kubernetes` Endpoints; without it, the bind
    /// address when it names one, else the first address of the route to the outside.
    pub advertise_address: Option<IpAddr>,
    /// Port published beside the advertise address when it is not the bind port.
    pub advertise_port: Option<u16>,
    /// `--tls-cert-file` and `--tls-private-key-file`; issued by the cluster's CA when absent.
    pub serving_cert: Option<(PathBuf, PathBuf)>,
    /// `--tls-sni-cert-key`
    pub sni_certificates: Vec<SniCertificate>,
    /// `--tls-min-version`: whether TLS 1.2 clients are refused.
    pub tls13_only: bool,
    /// `--tls-cipher-suites` by their Go names; the default ones when empty.
    pub tls_cipher_suites: Vec<String>,
    /// Names and addresses a self-issued serving certificate is valid for, besides the usual ones.
    pub extra_sans: Vec<String>,
    /// Where the CA, leaf certificates and signing keys are kept; nothing is kept when absent.
    pub cert_dir: Option<PathBuf>,
    /// `--client-ca-file`: PEM text of the CA whose client certificates are believed.
    pub client_ca_pem: Option<String>,
    /// `--token-auth-file`.
    pub token_auth_file: Option<PathBuf>,
    /// `--anonymous-auth`.
    pub anonymous_auth: bool,
    /// `--authorization-mode`, asked in this order.
    pub authorization_modes: Vec<AuthorizationMode>,
    /// `--authorization-config`: a file that names the authorizers instead of the modes.
    pub authorization_config: Option<PathBuf>,
    /// `--authorization-webhook-*`
    pub authorization_webhook: Option<WebhookOptions>,
    /// `--authorization-policy-file`: policies of the ABAC mode.
    pub authorization_policy_file: Option<PathBuf>,
    /// `--authentication-config`
    pub authentication_config: Option<PathBuf>,
    /// `--oidc-*`
    pub oidc: Option<OidcOptions>,
    /// `--requestheader-*`
    pub request_header: Option<RequestHeaderOptions>,
    /// `--authentication-token-webhook-*`
    pub token_webhook: Option<WebhookOptions>,
    /// `--enable-bootstrap-token-auth`
    pub bootstrap_token_auth: bool,
    /// `--service-account-issuer`.
    pub service_account_issuer: String,
    /// Further issuers whose tokens are accepted: the second and later `--service-account-issuer`.
    pub further_service_account_issuers: Vec<String>,
    /// `--service-account-key-file`: PEM texts of keys that tokens are checked with besides the signing key.
    pub service_account_keys: Vec<String>,
    /// `--service-account-jwks-uri`
    pub service_account_jwks_uri: Option<String>,
    /// `--service-account-lookup`: whether a token's objects must still exist.
    pub service_account_lookup: bool,
    /// `--service-account-extend-token-expiration`
    pub service_account_extend_token_expiration: bool,
    /// `--api-audiences`.
    pub api_audiences: Vec<String>,
    /// `--service-account-signing-key-file`: PEM text; generated when absent.
    pub service_account_signing_key: Option<Leaf>,
    /// `--service-account-max-token-expiration`, seconds; 0 sets no limit.
    pub service_account_max_token_expiration: i64,
    /// `--service-cluster-ip-range`: the primary range, and one of the other family for dual stack.
    pub service_cidrs: Vec<(IpAddr, u8)>,
    /// `--service-node-port-range`, both ends included.
    pub service_node_port_range: (u16, u16),
    /// `--kubelet-certificate-authority`: PEM text; the cluster's CA when absent.
    pub kubelet_ca_pem: Option<String>,
    /// `--kubelet-client-certificate` and key; issued by the cluster's CA when absent.
    pub kubelet_client: Option<Leaf>,
    /// `--kubelet-preferred-address-types`: which address of a node is used, best first.
    pub kubelet_address_types: Vec<String>,
    /// `--kubelet-port`: port of kubelets whose node does not say one.
    pub kubelet_port: u16,
    /// `--kubernetes-service-node-port`: node port of the `kubernetes` Service; 0 for none.
    pub kubernetes_node_port: u16,
    /// `--allow-privileged`. Upstream's flag is off when it is not given; a cluster of its own needs privileged pods.
    pub allow_privileged: bool,
    /// `--default-not-ready-toleration-seconds`
    pub default_not_ready_toleration_seconds: i64,
    /// `--default-unreachable-toleration-seconds`
    pub default_unreachable_toleration_seconds: i64,
    /// `--cors-allowed-origins`: expressions.
    pub cors_allowed_origins: Vec<String>,
    /// `--event-ttl`, seconds.
    pub event_ttl: u64,
    /// `--min-request-timeout`, seconds: lower bound of the random time-out of a watch.
    pub min_request_timeout: u64,
    /// How many events each kind keeps for watchers that come late and for continued lists.
    pub watch_cache_size: usize,
    /// Plurals (`jobs`, `ingresses`) of kinds that are served but that nothing in this cluster acts on: who creates
    /// one is warned. Upstream has no such option; a server that is used with controllers of its own leaves it empty.
    pub unattended_resources: Vec<String>,
    /// `--etcd-healthcheck-timeout` and `--etcd-readycheck-timeout`: how long the store may take to answer a check.
    pub store_check_timeouts: [Duration; 2],
    /// `--etcd-compaction-interval`, seconds; 0 turns it off.
    pub compaction_interval: u64,
    /// `--external-hostname`: the host in addresses given to others (OpenID discovery).
    pub external_hostname: Option<String>,
    /// `--enable-admission-plugins`: plugins beyond the default ones. `NodeRestriction` is among them here, as in every
    /// cluster that is set up with care; upstream's flag is empty when it is not given.
    pub enable_admission_plugins: Vec<String>,
    /// `--disable-admission-plugins`
    pub disable_admission_plugins: Vec<String>,
    /// `--admission-control-config-file`
    pub admission_control_config_file: Option<PathBuf>,
    /// `--audit-*`
    pub audit: AuditOptions,
    /// `--encryption-provider-config`
    pub encryption_provider_config: Option<PathBuf>,
    /// `--encryption-provider-config-automatic-reload`
    pub encryption_automatic_reload: bool,
    /// `--max-requests-inflight`; 0 sets no limit (without priority and fairness).
    pub max_requests_inflight: usize,
    /// `--max-mutating-requests-inflight`
    pub max_mutating_requests_inflight: usize,
    /// `--enable-priority-and-fairness`
    pub priority_and_fairness: bool,
    /// `--request-timeout`
    pub request_timeout: Duration,
    /// `--goaway-chance`: share of HTTP/2 requests after which the connection is asked to end, at most 0.02.
    pub goaway_chance: f64,
    /// `--shutdown-delay-duration`: how long requests are served after the signal, while `/readyz` says no.
    pub shutdown_delay: Duration,
    /// `--shutdown-watch-termination-grace-period`: over how long watches end then.
    pub shutdown_watch_grace: Duration,
    /// `--shutdown-send-retry-after`
    pub shutdown_send_retry_after: bool,
    /// `--feature-gates` that were set.
    pub feature_gates: BTreeMap<String, bool>,
    /// `--runtime-config` that was set: `api/all`, `group/version`, `group/version/resource`.
    pub runtime_config: BTreeMap<String, bool>,
    /// `--disable-http2-serving`
    pub http1_only: bool,
    /// `--tls-curve-preferences`: key exchanges by their IANA numbers, best first; the default ones when empty.
    pub tls_curves: Vec<u16>,
    /// `--http2-max-streams-per-connection`; 0 for the default.
    pub http2_max_streams: u32,
    /// `--strict-transport-security-directives`
    pub strict_transport_security: Vec<String>,
    /// `--proxy-client-cert-file` and key: shown to aggregated API servers.
    pub proxy_client: Option<Leaf>,
    /// `--disabled-metrics` and `--allow-metric-labels`
    pub metrics: Shaping,
    /// `--kubelet-timeout`: how long a kubelet has to accept a connection.
    pub kubelet_timeout: Duration,
    /// The components of the control plane that ComponentStatus tells of, by name, besides the store.
    pub components: Vec<(String, Arc<dyn Component>)>,
    /// API servers of this process that answer for groups of their own.
    pub in_process: Vec<InProcess>,
    /// What `/metrics` shows of other components in this process.
    pub more_metrics: Option<fn(&mut crate::metrics::Exposition)>,
    /// The command line as it was understood, for `/configz` and `/flagz`: flag name and value.
    pub flags: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            bind_address: SocketAddr::from(([0, 0, 0, 0], 6443)),
            advertise_address: None,
            advertise_port: None,
            serving_cert: None,
            extra_sans: Vec::new(),
            cert_dir: None,
            client_ca_pem: None,
            token_auth_file: None,
            anonymous_auth: true,
            authorization_modes: vec![AuthorizationMode::Node, AuthorizationMode::Rbac],
            authorization_config: None,
            authorization_webhook: None,
            authorization_policy_file: None,
            authentication_config: None,
            oidc: None,
            request_header: None,
            token_webhook: None,
            bootstrap_token_auth: false,
            further_service_account_issuers: Vec::new(),
            service_account_keys: Vec::new(),
            service_account_jwks_uri: None,
            service_account_lookup: true,
            service_account_extend_token_expiration: true,
            sni_certificates: Vec::new(),
            tls13_only: false,
            tls_cipher_suites: Vec::new(),
            service_account_issuer: "https://kubernetes.default.svc".to_string(),
            api_audiences: vec!["https://kubernetes.default.svc".to_string()],
            service_account_signing_key: None,
            service_account_max_token_expiration: 0,
            service_cidrs: vec![(Ipv4Addr::new(10, 96, 0, 0).into(), 16)],
            service_node_port_range: (30_000, 32_767),
            kubelet_ca_pem: None,
            kubelet_client: None,
            // The host name, which upstream tries first, need not be resolvable here.
            kubelet_address_types: ["InternalIP", "Hostname", "ExternalIP"].map(String::from).to_vec(),
            kubelet_port: 10_250,
            kubernetes_node_port: 0,
            allow_privileged: true,
            default_not_ready_toleration_seconds: 300,
            default_unreachable_toleration_seconds: 300,
            cors_allowed_origins: Vec::new(),
            event_ttl: 3600,
            min_request_timeout: 1800,
            watch_cache_size: 10_000,
            unattended_resources: Vec::new(),
            store_check_timeouts: [Duration::from_secs(2); 2],
            compaction_interval: 300,
            external_hostname: None,
            enable_admission_plugins: vec!["NodeRestriction".to_string()],
            disable_admission_plugins: Vec::new(),
            admission_control_config_file: None,
            audit: AuditOptions::default(),
            encryption_provider_config: None,
            encryption_automatic_reload: false,
            max_requests_inflight: 400,
            max_mutating_requests_inflight: 200,
            priority_and_fairness: true,
            request_timeout: Duration::from_secs(60),
            goaway_chance: 0.0,
            shutdown_delay: Duration::ZERO,
            shutdown_watch_grace: Duration::ZERO,
            shutdown_send_retry_after: false,
            feature_gates: BTreeMap::new(),
            runtime_config: BTreeMap::new(),
            http1_only: false,
            tls_curves: Vec::new(),
            http2_max_streams: 0,
            strict_transport_security: Vec::new(),
            proxy_client: None,
            metrics: Shaping::default(),
            kubelet_timeout: Duration::from_secs(5),
            components: components::at_their_ports(),
            in_process: Vec::new(),
            more_metrics: None,
            flags: Vec::new(),
        }
    }
}
