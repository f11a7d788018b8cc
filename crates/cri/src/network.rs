//! The hook by which a runtime gives a new sandbox its network, and takes it away again.
//!
//! It is what CNI's ADD and DEL are to containerd: the runtime knows a network namespace by path and a pod by
//! name; the implementation (Orlop's own pod network or a CNI caller) knows bridges and addresses.

use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;

use crate::{PortMapping, Result};

/// One sandbox that wants a network. For pods on the host's network it is never called.
#[derive(Debug, Clone)]
pub struct PodNetworkRequest {
    /// The sandbox's id, unique on the node for all time: the key under which addresses are reserved.
    pub sandbox_id: String,
    /// `metadata.namespace` of the pod.
    pub namespace: String,
    /// `metadata.name` of the pod.
    pub name: String,
    /// `metadata.uid` of the pod.
    pub uid: String,
    /// A path that opens the sandbox's network namespace, e.g. `/proc/4711/ns/net`.
    pub netns: PathBuf,
    /// Host ports of the pod (`ports[].hostPort`).
    pub port_mappings: Vec<PortMapping>,
}

/// What a sandbox got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNetworkAttachment {
    /// The pod's addresses, primary first; never empty.
    pub ips: Vec<IpAddr>,
}

/// The pod network as a runtime sees it. Every call is idempotent by `sandbox_id`.
#[async_trait]
pub trait PodNetwork: Send + Sync {
    /// Connects a sandbox's network namespace (loopback up, interface `eth0`, routes) and returns its addresses.
    /// Fails while the node has no pod CIDR yet, with an error that says so.
    async fn attach(&self, request: &PodNetworkRequest) -> Result<PodNetworkAttachment>;

    /// Releases what [`attach`](Self::attach) gave. Also succeeds when the namespace or the attachment is already gone.
    async fn detach(&self, sandbox_id: &str) -> Result<()>;

    /// `Ok` when sandboxes can be attached; otherwise the reason, as shown in the runtime's `NetworkReady` condition.
    async fn ready(&self) -> Result<(), String>;
}
