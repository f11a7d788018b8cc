//! What the parts of a node's network have to agree on.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;

/// Names and ranges of one cluster's network on one node. Every part of the crate takes the same value, because they
/// share one nftables table and one bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkOptions {
    /// Tells several clusters on one host apart: the name of the nftables table. Letters, digits, `-` and `_`.
    pub instance: String,
    /// The bridge that pods are connected to; at most 15 bytes, the kernel's limit for interface names.
    pub bridge: String,
    /// Where address reservations are kept, one file a sandbox. Best on a file system that a reboot empties, as it
    /// empties network namespaces.
    pub state_dir: PathBuf,
    /// `metadata.name` of this node: endpoints with this `nodeName` are local.
    pub node_name: String,
    /// The range of all pods of all nodes. Traffic to it is never masqueraded.
    pub cluster_cidr: Ipv4Net,
    /// The range of `spec.clusterIP`.
    pub service_cidr: Ipv4Net,
    /// The address that cluster DNS answers on by [`ClusterDns`](crate::ClusterDns); `None` when DNS is a Service with
    /// pods like any other.
    pub cluster_dns: Option<Ipv4Addr>,
    /// The DNS domain of the cluster without dots at its ends, e.g. `cluster.local`.
    pub cluster_domain: String,
    /// MTU of pod interfaces in bytes; `None` takes that of the interface with the default route, else 1500.
    pub mtu: Option<u32>,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            instance: "orlop".to_owned(),
            bridge: "orlop0".to_owned(),
            state_dir: PathBuf::from("/run/orlop/network"),
            node_name: String::new(),
            cluster_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16),
            service_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
            cluster_dns: Some(Ipv4Addr::new(10, 96, 0, 10)),
            cluster_domain: "cluster.local".to_owned(),
            mtu: None,
        }
    }
}

impl NetworkOptions {
    /// Refuses names that the kernel or nft would misread.
    pub(crate) fn validate(&self) -> Result<(), crate::NetworkError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let first = self.instance.chars().next();
        if !first.is_some_and(|c| c.is_ascii_alphabetic()) || !self.instance.chars().all(plain) {
            return Err(crate::NetworkError::Options(format!(
                "instance name {:?} must begin with a letter and hold only letters, digits, '-' and '_'",
                self.instance
            )));
        }
        if self.bridge.is_empty()
            || self.bridge.len() > 15
            || !self.bridge.chars().all(|c| plain(c) || c == '.')
        {
            return Err(crate::NetworkError::Options(format!(
                "bridge name {:?} must have 1 to 15 letters, digits, '-', '_' or '.'",
                self.bridge
            )));
        }
        Ok(())
    }
}
