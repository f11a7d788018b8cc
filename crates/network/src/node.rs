//! What the Node objects say about the network: this node's pod CIDR, and the way to the pods of the others.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1::Node;
use orlop_client::{Informer, ObjectKey};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::netlink::{self, NextHop};
use crate::{NetworkOptions, Result};

/// `spec.podCIDR` of node `node_name`, as it comes and changes. A CIDR that was once known stays known when the Node
/// object is deleted: its pods keep their addresses.
pub fn pod_cidr(nodes: &Informer<Node>, node_name: &str) -> watch::Receiver<Option<IpNet>> {
    let (sender, receiver) = watch::channel(None);
    let node_name = node_name.to_owned();
    nodes.subscribe(move |event| {
        let node = event.object();
        if node.metadata.name.as_deref() != Some(&node_name) {
            return;
        }
        let Some(text) = node.spec.as_ref().and_then(|spec| spec.pod_cidr.as_ref()) else { return };
        match text.parse::<IpNet>() {
            Ok(cidr) => {
                sender.send_if_modified(|known| {
                    let new = *known != Some(cidr);
                    *known = Some(cidr);
                    new
                });
            }
            Err(error) => warn!(node = node_name, cidr = text, %error, "spec.podCIDR is no CIDR"),
        }
    });
    receiver
}

/// Keeps routes to the pod CIDRs of the other nodes.
///
/// Today nodes must share a link: each route leads straight to the other node's `InternalIP`. A VXLAN for nodes that
/// do not has its place beside [`desired_routes`], as another next hop.
pub struct NodeRoutes {
    options: NetworkOptions,
    nodes: Informer<Node>,
}

impl NodeRoutes {
    /// Routes by what `nodes` says.
    pub fn new(options: NetworkOptions, nodes: Informer<Node>) -> Self {
        Self { options, nodes }
    }

    /// Runs until `shutdown`; the routes stay. Failures are logged and retried.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(self.follow_until(shutdown))
    }

    async fn follow_until(self, shutdown: CancellationToken) {
        let follow = async {
            self.nodes.synced().await;
            let wake = Arc::new(Notify::new());
            let notify = wake.clone();
            // Heartbeats change Nodes all the time; only what routes are made of may wake the loop.
            let last: parking_lot::Mutex<BTreeMap<ObjectKey, Option<(Ipv4Net, Ipv4Addr)>>> =
                Default::default();
            self.nodes.subscribe(move |event| {
                let node = event.object();
                let deleted = matches!(event, orlop_client::InformerEvent::Deleted(_));
                let now = if deleted { None } else { way_to(node) };
                if last.lock().insert(ObjectKey::of(&node.metadata), now) != Some(now) {
                    notify.notify_one();
                }
            });
            let mut pause = Duration::from_secs(1);
            loop {
                match self.reconcile().await {
                    Ok(()) => {
                        pause = Duration::from_secs(1);
                        wake.notified().await;
                    }
                    Err(error) => {
                        warn!(%error, retry_in_s = pause.as_secs(), "routes to other nodes' pods are not complete");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(Duration::from_secs(30));
                    }
                }
            }
        };
        shutdown.run_until_cancelled(follow).await;
    }

    async fn reconcile(&self) -> Result<()> {
        let nodes = self.nodes.list();
        let wanted = desired_routes(nodes.iter().map(AsRef::as_ref), &self.options.node_name);
        let handle = netlink::connect()?;
        let present = netlink::own_routes(&handle).await?;
        let mut failed = Ok(());
        for (cidr, gateway) in &wanted {
            let there =
                present.iter().any(|(to, route)| to == cidr && netlink::gateway_of(route) == Some(*gateway));
            if !there {
                match netlink::replace_route(&handle, *cidr, NextHop::Gateway(*gateway)).await {
                    Ok(()) => info!(%cidr, %gateway, "route to another node's pods"),
                    // One unreachable node must not keep the others from being reached.
                    Err(error) => failed = Err(error),
                }
            }
        }
        for (cidr, route) in present {
            if self.options.cluster_cidr.contains(&cidr) && !wanted.contains_key(&cidr) {
                netlink::delete_route(&handle, cidr, route).await?;
            }
        }
        failed
    }
}

/// Pod CIDR → node address, for every node but `node_name`.
pub fn desired_routes<'a>(
    nodes: impl IntoIterator<Item = &'a Node>,
    node_name: &str,
) -> BTreeMap<Ipv4Net, Ipv4Addr> {
    nodes
        .into_iter()
        .filter(|node| node.metadata.name.as_deref() != Some(node_name))
        .filter_map(way_to)
        .collect()
}

fn way_to(node: &Node) -> Option<(Ipv4Net, Ipv4Addr)> {
    let cidr = node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?;
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    Some((cidr, internal.filter_map(|address| address.address.parse().ok()).next()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn node(name: &str, cidr: Option<&str>, addresses: &[(&str, &str)]) -> Node {
        let addresses: Vec<_> =
            addresses.iter().map(|(kind, ip)| json!({"type": kind, "address": ip})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": name}, "spec": {"podCIDR": cidr}, "status": {"addresses": addresses},
        }))
        .unwrap()
    }

    #[test]
    fn routes_lead_to_other_nodes() {
        let nodes = [
            node("me", Some("10.244.0.0/24"), &[("InternalIP", "192.168.0.1")]),
            node("a", Some("10.244.1.0/24"), &[("Hostname", "a"), ("InternalIP", "192.168.0.2")]),
            node("b", Some("10.244.2.0/24"), &[("InternalIP", "fd00::1"), ("InternalIP", "192.168.0.3")]),
            node("no-cidr", None, &[("InternalIP", "192.168.0.4")]),
            node("no-address", Some("10.244.4.0/24"), &[]),
        ];
        let routes = desired_routes(&nodes, "me");
        let shown: Vec<_> = routes.iter().map(|(to, via)| format!("{to} {via}")).collect();
        assert_eq!(shown, ["10.244.1.0/24 192.168.0.2", "10.244.2.0/24 192.168.0.3"]);
    }

    #[test]
    fn pod_cidr_follows_this_node_only() {
        let nodes = Informer::fixed([node("other", Some("10.244.9.0/24"), &[]), node("me", None, &[])]);
        let cidr = pod_cidr(&nodes, "me");
        assert_eq!(*cidr.borrow(), None);
        nodes.insert(node("me", Some("10.244.3.0/24"), &[]));
        assert_eq!(*cidr.borrow(), Some("10.244.3.0/24".parse().unwrap()));
        nodes.remove(&ObjectKey::new("", "me"));
        assert_eq!(*cidr.borrow(), Some("10.244.3.0/24".parse().unwrap()));
    }
}
