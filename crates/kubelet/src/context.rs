//! What every part of the kubelet shares: made once, read by all pod workers and by the HTTP server.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use orlop_client::{EventRecorder, Informer};
use orlop_cri::{DnsConfig, Runtime};
use tokio::sync::watch;

use crate::config::dns::parse_resolv_conf;
use crate::fields::FieldContext;
use crate::images::ImageManager;
use crate::node::info::Machine;
use crate::options::Options;
use crate::pod::PodExt;
use crate::probes::ProbeManager;
use crate::resources::ResourceList;
use crate::runtime_status::PodRuntimeStatus;
use crate::status::StatusManager;
use crate::volumes::VolumeManager;

/// The kubelet's shared parts.
pub(crate) struct Context {
    pub options: Options,
    pub client: kube::Client,
    pub runtime: Arc<dyn Runtime>,
    /// Scheme of container ids, `nodeInfo.containerRuntimeVersion`.
    pub runtime_name: String,
    pub runtime_version: String,
    pub machine: Machine,
    pub recorder: EventRecorder,
    pub pods: Informer<Pod>,
    pub services: Informer<Service>,
    pub nodes: Informer<Node>,
    pub status: StatusManager,
    pub volumes: VolumeManager,
    pub probes: ProbeManager,
    pub images: ImageManager,
    /// `Ok` when sandboxes get a network, else why not.
    pub network: watch::Sender<Result<(), String>>,
}

impl Context {
    pub(crate) fn host_ips(&self) -> &[IpAddr] {
        &self.options.node_ips
    }

    pub(crate) fn allocatable(&self) -> ResourceList {
        self.machine.allocatable(&self.options)
    }

    /// The node's resolver configuration, read when needed: it may change under a running kubelet.
    pub(crate) fn host_dns(&self) -> DnsConfig {
        std::fs::read_to_string(&self.options.resolv_conf)
            .map(|text| parse_resolv_conf(&text))
            .unwrap_or_default()
    }

    pub(crate) fn fields(&self, pod: &Pod, status: &PodRuntimeStatus) -> FieldContext {
        let pod_ips = if pod.host_network() { self.host_ips().to_vec() } else { status.ips() };
        FieldContext { host_ips: self.host_ips().to_vec(), pod_ips, allocatable: self.allocatable() }
    }
}
