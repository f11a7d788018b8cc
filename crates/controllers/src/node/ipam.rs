//! Gives every node a range of pod addresses out of the cluster's. Answers to upstream's range allocator.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use orlop_client::{EventRecorder, EventType, Informer, WorkQueue, run_workers};
use parking_lot::Mutex;
use serde_json::json;
use tracing::error;

use crate::error::{Error, unless_gone};
use crate::objects::Meta;
use crate::shell::Shell;

/// An address range; IPv4 ones live in the low 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Cidr {
    first: u128,
    prefix: u8,
    v6: bool,
}

impl Cidr {
    /// `10.244.0.0/16`; host bits are cleared.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.trim().split_once('/')?;
        let (first, v6) = match address.parse().ok()? {
            IpAddr::V4(address) => (u128::from(u32::from(address)), false),
            IpAddr::V6(address) => (u128::from(address), true),
        };
        let prefix: u8 = prefix.parse().ok()?;
        let bits = if v6 { 128 } else { 32 };
        let mut cidr = Self { first, prefix: (prefix <= bits).then_some(prefix)?, v6 };
        cidr.first &= !(cidr.size() - 1);
        Some(cidr)
    }

    /// Addresses in it. A whole IPv6 space would not fit and is no range anybody hands out.
    fn size(&self) -> u128 {
        let bits = if self.v6 { 128 } else { 32 };
        1_u128.checked_shl(u32::from(bits - self.prefix)).unwrap_or(u128::MAX)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.v6 == other.v6
            && self.first < other.first.saturating_add(other.size())
            && other.first < self.first.saturating_add(self.size())
    }

    /// The lowest part of `prefix` that overlaps none of `taken`.
    fn free_part(&self, prefix: u8, taken: &[Self]) -> Option<Self> {
        let mut part = Self { first: self.first, prefix: prefix.max(self.prefix), v6: self.v6 };
        let end = self.first.saturating_add(self.size());
        let mut relevant: Vec<_> = taken.iter().filter(|other| other.overlaps(self)).collect();
        relevant.sort_by_key(|other| other.first);
        while part.first.saturating_add(part.size()) <= end {
            match relevant.iter().find(|other| other.overlaps(&part)) {
                None => return Some(part),
                // Past the obstacle, on the next boundary.
                Some(other) => {
                    let after = other.first.saturating_add(other.size()).max(part.first + part.size());
                    part.first = after.div_ceil(part.size()) * part.size();
                }
            }
        }
        None
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = if self.v6 {
            IpAddr::V6(self.first.into())
        } else {
            IpAddr::V4(u32::try_from(self.first).unwrap_or(0).into())
        };
        write!(f, "{address}/{}", self.prefix)
    }
}

struct Controller {
    nodes: Informer<Node>,
    client: kube::Client,
    recorder: EventRecorder,
    cluster: Vec<Cidr>,
    service: Vec<Cidr>,
    mask: u8,
    /// Given out but maybe not in the cache yet, by node uid.
    given: Mutex<HashMap<String, Vec<Cidr>>>,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let ranges = |text: Option<&String>| -> Result<Vec<Cidr>, Error> {
        let parts = text.iter().flat_map(|text| text.split(','));
        parts
            .map(|part| Cidr::parse(part).ok_or_else(|| Error::Object(format!("{part} is no address range"))))
            .collect()
    };
    let controller = Controller {
        nodes: shell.informers.informer(),
        client: shell.client,
        recorder: shell.recorder,
        cluster: ranges(shell.options.cluster_cidr.as_ref())?,
        service: ranges(shell.options.service_cidr.as_ref())?,
        mask: shell.options.node_cidr_mask_size,
        given: Mutex::default(),
    };
    if controller.cluster.is_empty() {
        // Somebody else hands out pod ranges.
        shell.shutdown.cancelled().await;
        return Ok(());
    }
    controller.nodes.synced().await;
    let queue = WorkQueue::named("cidrallocator_node");
    let own = queue.clone();
    let nodes = controller.nodes.clone();
    controller.nodes.subscribe(move |event| {
        if let orlop_client::InformerEvent::Deleted(_) = event {
            // Its range is free: nodes that wait for one get their turn.
            let without = nodes.list().into_iter().filter(|node| pod_cidrs(node).is_empty());
            without.for_each(|node| own.add(node.name().to_owned()));
        }
        own.add(event.object().name().to_owned());
    });
    // One worker: two would give the same range twice.
    run_workers("node-ipam-controller", queue, 1, shell.shutdown, |name| controller.sync(name)).await;
    Ok(())
}

fn pod_cidrs(node: &Node) -> Vec<Cidr> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.iter().flatten().chain(spec.pod_cidr.iter());
    all.filter_map(|text| Cidr::parse(text)).collect()
}

/// One range of each of the cluster's for a node, or `None` when one is used up.
fn allocate(cluster: &[Cidr], mask: u8, taken: &[Cidr]) -> Option<Vec<Cidr>> {
    cluster.iter().map(|range| range.free_part(if range.v6 { 64 } else { mask }, taken)).collect()
}

impl Controller {
    async fn sync(&self, name: String) -> Result<Option<Duration>, Error> {
        let nodes: Vec<Arc<Node>> = self.nodes.list();
        let taken = {
            let mut given = self.given.lock();
            given.retain(|uid, _| nodes.iter().any(|node| node.uid() == uid && pod_cidrs(node).is_empty()));
            let known = nodes.iter().flat_map(|node| pod_cidrs(node));
            known
                .chain(given.values().flatten().copied())
                .chain(self.service.iter().copied())
                .collect::<Vec<_>>()
        };
        let Some(node) = nodes.iter().find(|node| node.name() == name) else { return Ok(None) };
        if !pod_cidrs(node).is_empty() || node.deleting() {
            return Ok(None);
        }
        let given = self.given.lock().get(node.uid()).cloned();
        let Some(ranges) = given.or_else(|| allocate(&self.cluster, self.mask, &taken)) else {
            error!(node = %name, "no pod range is left for the node: widen --cluster-cidr or remove nodes");
            let text = format!("Node {name} status is now: CIDRNotAvailable");
            self.recorder.event(&**node, EventType::Normal, "CIDRNotAvailable", text);
            return Ok(None);
        };
        self.given.lock().insert(node.uid().to_owned(), ranges.clone());
        let texts: Vec<_> = ranges.iter().map(ToString::to_string).collect();
        let body =
            json!({"metadata": {"uid": node.uid()}, "spec": {"podCIDR": texts.first(), "podCIDRs": texts}});
        let api = Api::<Node>::all(self.client.clone());
        unless_gone(api.patch(&name, &PatchParams::default(), &Patch::Merge(body)).await)?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn gives_the_lowest_free_range() {
        let check = |cluster: &str, taken: &[&str], expected: Option<&str>| {
            let cluster: Vec<_> = cluster.split(',').map(|text| Cidr::parse(text).unwrap()).collect();
            let taken: Vec<_> = taken.iter().map(|text| Cidr::parse(text).unwrap()).collect();
            let given = allocate(&cluster, 24, &taken);
            let shown =
                given.map(|ranges| ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
            assert_eq!(shown.as_deref(), expected, "{taken:?}");
        };
        check("10.244.0.0/16", &[], Some("10.244.0.0/24"));
        check("10.244.0.0/16", &["10.244.0.0/24", "10.244.2.0/24"], Some("10.244.1.0/24"));
        check("10.244.0.0/16", &["10.244.0.0/17"], Some("10.244.128.0/24"));
        check("10.244.0.0/16", &["10.244.0.128/25"], Some("10.244.1.0/24"));
        check("10.244.0.0/23", &["10.244.0.0/24", "10.244.1.0/24"], None);
        check("10.96.0.0/15", &["10.96.0.0/16"], Some("10.97.0.0/24"));
        check("10.244.0.0/16,fd00::/56", &["10.244.0.0/24"], Some("10.244.1.0/24,fd00::/64"));
        assert_eq!(Cidr::parse("10.244.7.9/16").unwrap().to_string(), "10.244.0.0/16");
        assert!(Cidr::parse("10.244.0.0/33").is_none() && Cidr::parse("x").is_none());
    }
}
