//! What can be set about the API server, under upstream's flag names where there is one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::pki::Leaf;

/// An authorizer by upstream's `--authorization-mode` name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorizationMode {
    /// Everything is allowed.
    AlwaysAllow,
    /// Kubelets may touch what their pods need.
    Node,
    /// Roles and bindings.
    Rbac,
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
    /// `--service-account-issuer`.
    pub service_account_issuer: String,
    /// `--api-audiences`.
    pub api_audiences: Vec<String>,
    /// `--service-account-signing-key-file`: PEM text; generated when absent.
    pub service_account_signing_key: Option<Leaf>,
    /// `--service-account-max-token-expiration`, seconds; 0 sets no limit.
    pub service_account_max_token_expiration: i64,
    /// `--service-cluster-ip-range` (IPv4).
    pub service_cidr: (Ipv4Addr, u8),
    /// `--service-node-port-range`, both ends included.
    pub service_node_port_range: (u16, u16),
    /// `--kubelet-certificate-authority`: PEM text; the cluster's CA when absent.
    pub kubelet_ca_pem: Option<String>,
    /// `--kubelet-client-certificate` and key; issued by the cluster's CA when absent.
    pub kubelet_client: Option<Leaf>,
    /// `--event-ttl`, seconds.
    pub event_ttl: u64,
    /// `--min-request-timeout`, seconds: lower bound of the random time-out of a watch.
    pub min_request_timeout: u64,
    /// How many events each kind keeps for watchers that come late and for continued lists.
    pub watch_cache_size: usize,
    /// Plurals (`jobs`, `ingresses`) of kinds that are served but that nothing in this cluster acts on: who creates
    /// one is warned. Upstream has no such option; a server that is used with controllers of its own leaves it empty.
    pub unattended_resources: Vec<String>,
    /// `--etcd-compaction-interval`, seconds; 0 turns it off.
    pub compaction_interval: u64,
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
            service_account_issuer: "https://kubernetes.default.svc".to_string(),
            api_audiences: vec!["https://kubernetes.default.svc".to_string()],
            service_account_signing_key: None,
            service_account_max_token_expiration: 0,
            service_cidr: (Ipv4Addr::new(10, 96, 0, 0), 16),
            service_node_port_range: (30_000, 32_767),
            kubelet_ca_pem: None,
            kubelet_client: None,
            event_ttl: 3600,
            min_request_timeout: 1800,
            watch_cache_size: 10_000,
            unattended_resources: Vec::new(),
            compaction_interval: 300,
        }
    }
}
