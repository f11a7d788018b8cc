//! What a kubelet is told at its start; the fields mirror upstream's flags and `KubeletConfiguration`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;

use crate::eviction::EvictionHard;

/// Version of the Kubernetes API level that this kubelet reports (`nodeInfo.kubeletVersion`).
pub const KUBELET_VERSION: &str = "v1.36.0";

/// Certificates of the kubelet's HTTPS server.
#[derive(Clone)]
pub struct ServingTls {
    /// Certificate chain, leaf first, PEM.
    pub cert_pem: String,
    /// Private key, PEM.
    pub key_pem: String,
    /// The CA whose client certificates are accepted, PEM (`--client-ca-file`).
    pub client_ca_pem: String,
}

/// Configuration of one kubelet.
#[derive(Clone)]
pub struct Options {
    /// `metadata.name` of the node object, also its host name (`--hostname-override`).
    pub node_name: String,
    /// The node's addresses, primary first (`--node-ip`).
    pub node_ips: Vec<IpAddr>,
    /// Where pods' volumes and files live (`--root-dir`, upstream's `/var/lib/kubelet`).
    pub root_dir: PathBuf,
    /// Where container logs live (upstream's `/var/log/pods`).
    pub log_dir: PathBuf,
    /// Address of the HTTPS server (upstream: port 10250).
    pub listen: SocketAddr,
    /// The port the node object advertises for the HTTPS server; `None` means the one that is listened on.
    pub advertised_port: Option<u16>,
    /// TLS of the HTTPS server; without it the server does not start and `kubectl logs` and `exec` cannot work.
    pub tls: Option<ServingTls>,
    /// Cluster DNS servers (`clusterDNS`).
    pub cluster_dns: Vec<IpAddr>,
    /// Cluster domain (`clusterDomain`), e.g. `cluster.local`.
    pub cluster_domain: String,
    /// The node's own resolver file (`resolvConf`).
    pub resolv_conf: PathBuf,
    /// cgroup under which all pods' cgroups are, absolute below the cgroup root.
    pub cgroup_parent: String,
    /// When the node counts as short of memory or disk (`evictionHard`).
    pub eviction_hard: EvictionHard,
    /// Pods the node takes (`maxPods`).
    pub max_pods: u32,
    /// Memory kept for the system, bytes: capacity minus this is allocatable.
    pub reserved_memory: u64,
    /// CPU kept for the system, millicores.
    pub reserved_cpu_millis: u64,
    /// Labels the node registers with (`--node-labels`).
    pub node_labels: BTreeMap<String, String>,
    /// Taints the node registers with (`registerWithTaints`).
    pub register_with_taints: Vec<Taint>,
    /// `spec.providerID` the node registers with.
    pub provider_id: Option<String>,
    /// Whether the kubelet creates its node object (`registerNode`).
    pub register_node: bool,
    /// How often the lease is renewed (upstream: a quarter of 40 s).
    pub lease_renew_interval: Duration,
    /// How often the node status is written when nothing changed (`nodeStatusReportFrequency`).
    pub node_status_report_frequency: Duration,
    /// How often the node status is computed (`nodeStatusUpdateFrequency`).
    pub node_status_update_frequency: Duration,
    /// The safety net below the runtime's events: how often every pod is looked at in any case.
    pub relist_period: Duration,
    /// Bytes at which a container's log is rotated (`containerLogMaxSize`).
    pub container_log_max_size: u64,
    /// Log files kept per container (`containerLogMaxFiles`).
    pub container_log_max_files: usize,
    /// First back-off of a crashing container; doubled up to `max_container_backoff`.
    pub initial_container_backoff: Duration,
    /// Longest back-off of a crashing container.
    pub max_container_backoff: Duration,
}

impl Options {
    /// Upstream's defaults for a node with this name and address.
    pub fn new(node_name: impl Into<String>, node_ip: IpAddr) -> Self {
        Self {
            node_name: node_name.into(),
            node_ips: vec![node_ip],
            root_dir: PathBuf::from("/var/lib/kubelet"),
            log_dir: PathBuf::from("/var/log/pods"),
            listen: SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 10250),
            advertised_port: None,
            tls: None,
            cluster_dns: vec![IpAddr::from([10, 96, 0, 10])],
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            cgroup_parent: "/orlop/kubepods".to_owned(),
            eviction_hard: EvictionHard::default(),
            max_pods: 110,
            reserved_memory: 0,
            reserved_cpu_millis: 0,
            node_labels: BTreeMap::new(),
            register_with_taints: Vec::new(),
            provider_id: None,
            register_node: true,
            lease_renew_interval: Duration::from_secs(10),
            node_status_report_frequency: Duration::from_secs(300),
            node_status_update_frequency: Duration::from_secs(10),
            relist_period: Duration::from_secs(60),
            container_log_max_size: 10 << 20,
            container_log_max_files: 5,
            initial_container_backoff: Duration::from_secs(10),
            max_container_backoff: Duration::from_secs(300),
        }
    }

    /// `<root>/pods/<uid>`.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    /// `<logs>/<namespace>_<name>_<uid>`.
    pub(crate) fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.log_dir.join(format!("{namespace}_{name}_{uid}"))
    }
}
