//! The default pod network of a node: a bridge, and a veth pair per sandbox.
//!
//! Pods reach everything, their neighbours on the node included, through the node's routing: the pod's only on-link
//! destination is the bridge's address. So the node's connection tracking sees both directions of every connection and
//! can undo what Services did to addresses, whether or not the host has the `br_netfilter` module. Where it has,
//! the kernel turns a connection whose translated destination is behind the same bridge into a bridged one, which for
//! a pod that meets itself needs hairpin mode. It answers to what the CNI plug-ins bridge, ptp, host-local and portmap
//! do together.

pub(crate) mod ipam;

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use ipnet::{IpNet, Ipv4Net};
use orlop_cri::{CriError, PodNetwork, PodNetworkAttachment, PodNetworkRequest};
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkUnspec, LinkVeth};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::error::{NetworkError, Result};
use crate::netlink::{self, NextHop};
use crate::{NetworkOptions, nft, table};
use ipam::{HostPort, Ipam, Reservation, check_id};

const DEFAULT_MTU: u32 = 1500;
/// The interface inside a sandbox.
const POD_INTERFACE: &str = "eth0";

/// The pod network of this node. Works in the network namespace of the process; cheap to clone.
#[derive(Clone)]
pub struct BridgeNetwork {
    shared: Arc<Shared>,
}

struct Shared {
    options: NetworkOptions,
    pod_cidr: watch::Receiver<Option<IpNet>>,
    ipam: Mutex<Ipam>,
    /// The bridge, once it is made for a pod CIDR.
    bridge: Mutex<Option<Bridge>>,
}

#[derive(Debug, Clone, Copy)]
struct Bridge {
    cidr: Ipv4Net,
    index: u32,
    mtu: u32,
}

impl Bridge {
    /// The pods' gateway: the first address of the pod CIDR.
    fn gateway(self) -> Ipv4Addr {
        gateway(self.cidr)
    }
}

fn gateway(cidr: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(cidr.network()).saturating_add(1))
}

impl BridgeNetwork {
    /// Reads the reservations of an earlier run, frees those whose interface is gone, and waits for nothing: the
    /// bridge is made when `pod_cidr` (the node's `spec.podCIDR`) is known. Must be called inside a tokio runtime.
    pub async fn open(options: NetworkOptions, pod_cidr: watch::Receiver<Option<IpNet>>) -> Result<Self> {
        options.validate()?;
        let mut ipam = Ipam::open(&options.state_dir.join("sandboxes"))?;
        let handle = netlink::connect()?;
        let links = netlink::links(&handle).await?;
        let present: Vec<&str> = links.iter().filter_map(netlink::name_of).collect();
        // The kernel removes a veth pair with its namespace: no interface means no sandbox.
        let gone: Vec<String> = ipam
            .all()
            .filter(|reservation| !present.contains(&reservation.interface.as_str()))
            .map(|reservation| reservation.sandbox_id.clone())
            .collect();
        for sandbox in &gone {
            ipam.release(sandbox)?;
        }
        if !gone.is_empty() {
            info!(count = gone.len(), "freed pod addresses of sandboxes that are gone");
        }
        let shared = Shared { options, pod_cidr, ipam: Mutex::new(ipam), bridge: Mutex::new(None) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Makes the bridge as soon as the pod CIDR is known, so that the first pod need not wait for it, and follows the
    /// CIDR until `shutdown`. Failures are logged; [`attach`](PodNetwork::attach) tries again.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(self.follow_until(shutdown))
    }

    async fn follow_until(self, shutdown: CancellationToken) {
        let mut pod_cidr = self.shared.pod_cidr.clone();
        let follow = async {
            loop {
                let known = pod_cidr.borrow_and_update().is_some();
                if known && let Err(error) = self.shared.bridge().await {
                    warn!(%error, "the pod network is not ready");
                }
                if pod_cidr.changed().await.is_err() {
                    return;
                }
            }
        };
        shutdown.run_until_cancelled(follow).await;
    }
}

impl Shared {
    fn cidr(&self) -> Result<Ipv4Net> {
        match *self.pod_cidr.borrow() {
            Some(IpNet::V4(cidr)) if cidr.prefix_len() <= 29 => Ok(cidr.trunc()),
            Some(cidr) => Err(NetworkError::Options(format!(
                "pod CIDR {cidr} of node {} is no IPv4 range of at least 8 addresses",
                self.options.node_name
            ))),
            None => Err(NetworkError::NoPodCidr(self.options.node_name.clone())),
        }
    }

    /// The bridge, made if need be.
    async fn bridge(&self) -> Result<Bridge> {
        let cidr = self.cidr()?;
        let mut known = self.bridge.lock().await;
        if let Some(bridge) = known.filter(|bridge| bridge.cidr == cidr) {
            return Ok(bridge);
        }
        let bridge = self.make_bridge(cidr).await?;
        *known = Some(bridge);
        info!(bridge = self.options.bridge, %cidr, mtu = bridge.mtu, "pod network is ready");
        Ok(bridge)
    }

    async fn make_bridge(&self, cidr: Ipv4Net) -> Result<Bridge> {
        let name = &self.options.bridge;
        let handle = netlink::connect()?;
        let mtu = self.mtu(&handle).await?;
        if netlink::link_index(&handle, name).await?.is_none() {
            // A bridge without an address of its own takes its ports' and changes it as they come and go.
            let message = LinkBridge::new(name)
                .mcast_snooping(false)
                .address(hardware_address(gateway(cidr)))
                .mtu(mtu)
                .up()
                .build();
            match handle
                .link()
                .add(message)
                .execute()
                .await
                .map_err(NetworkError::netlink(format!("create bridge {name}")))
            {
                Err(error) if error.errno() != libc::EEXIST => return Err(error),
                _ => {}
            }
        }
        let Some(index) = netlink::link_index(&handle, name).await? else {
            return Err(NetworkError::Other(format!(
                "bridge {name} is gone again: does something else remove it?"
            )));
        };
        let address = Ipv4Net::new(gateway(cidr), cidr.prefix_len()).unwrap_or(cidr);
        for old in netlink::addresses(&handle, index).await?.into_iter().filter(|old| *old != address) {
            netlink::delete_address(&handle, index, old).await?;
        }
        netlink::add_address(&handle, index, address, true).await?;
        netlink::set_up(&handle, index, name).await?;
        netlink::set_sysctl("net/ipv4/ip_forward", "1")?;
        // Pods reach each other through the node on purpose. The kernel would advise against it all the time, and these
        // messages use up what its rate limit leaves for "port unreachable". It asks both settings.
        for interface in ["all", name.as_str()] {
            netlink::set_sysctl(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
        }
        // Host ports answer on 127.0.0.1; the raw-prerouting chain keeps pods from using it themselves.
        netlink::set_sysctl(&format!("net/ipv4/conf/{name}/route_localnet"), "1")?;

        table::ensure(&self.options).await?;
        let table = &self.options.instance;
        let cluster = self.options.cluster_cidr;
        let mut text = format!("flush chain ip {table} pod-masquerade\n");
        text.push_str(&format!(
            "add rule ip {table} pod-masquerade ip saddr {cidr} ip daddr != {cluster} \
             ip daddr != 224.0.0.0/4 oifname != \"{name}\" goto masquerade-source\n"
        ));
        text.push_str(&host_port_rules(table, self.ipam.lock().await.all()));
        nft::apply(table, &text).await?;
        Ok(Bridge { cidr, index, mtu })
    }

    async fn mtu(&self, handle: &Handle) -> Result<u32> {
        if let Some(mtu) = self.options.mtu {
            return Ok(mtu);
        }
        let Some(uplink) = netlink::default_interface(handle).await? else { return Ok(DEFAULT_MTU) };
        let links = netlink::links(handle).await?;
        let uplink = links.iter().find(|link| link.header.index == uplink);
        Ok(uplink.and_then(netlink::mtu_of).unwrap_or(DEFAULT_MTU))
    }

    async fn attach(&self, request: &PodNetworkRequest) -> Result<PodNetworkAttachment> {
        check_id(&request.sandbox_id)?;
        let bridge = self.bridge().await?;
        let pod = format!("{}/{}", request.namespace, request.name);
        let host_ports: Vec<_> =
            request.port_mappings.iter().filter(|port| port.host_port > 0).map(HostPort::of).collect();
        let reservation =
            self.ipam.lock().await.reserve(bridge.cidr, &request.sandbox_id, &pod, host_ports)?;
        let attachment = PodNetworkAttachment { ips: vec![reservation.ip.into()] };
        let handle = netlink::connect()?;
        if reservation.attached && netlink::link_index(&handle, &reservation.interface).await?.is_some() {
            return Ok(attachment);
        }
        // What an attempt that did not finish left behind.
        netlink::delete_link(&handle, &reservation.interface).await?;
        let connected = match self.connect(&handle, bridge, &reservation, request).await {
            // The bridge was removed under us; make it again, once.
            Err(error) if [libc::ENODEV, libc::EINVAL].contains(&error.errno()) => {
                *self.bridge.lock().await = None;
                let bridge = self.bridge().await?;
                netlink::delete_link(&handle, &reservation.interface).await?;
                self.connect(&handle, bridge, &reservation, request).await
            }
            result => result,
        };
        if let Err(error) = connected {
            let undone = self.detach(&request.sandbox_id).await;
            if let Err(undo) = undone {
                warn!(sandbox = request.sandbox_id, error = %undo, "a failed attach was not undone");
            }
            return Err(error);
        }
        if !reservation.host_ports.is_empty() {
            self.write_host_ports().await?;
        }
        self.ipam.lock().await.attached(&request.sandbox_id)?;
        Ok(attachment)
    }

    /// Makes the veth pair with one end as a port of the bridge and the other as `eth0` of the sandbox, and sets up
    /// the sandbox's side.
    async fn connect(
        &self,
        handle: &Handle,
        bridge: Bridge,
        reservation: &Reservation,
        request: &PodNetworkRequest,
    ) -> Result<()> {
        let netns = std::fs::File::open(&request.netns)
            .map_err(NetworkError::file("open network namespace", &request.netns))?;
        let interface = &reservation.interface;
        let peer = LinkUnspec::new_with_name(POD_INTERFACE)
            .address(hardware_address(reservation.ip))
            .mtu(bridge.mtu)
            .setns_by_fd(netns.as_raw_fd())
            .build();
        let pair = LinkVeth::new(interface, POD_INTERFACE)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .mtu(bridge.mtu)
            .controller(bridge.index)
            .up()
            .build();
        let pod = format!("{}/{}", request.namespace, request.name);
        handle
            .link()
            .add(pair)
            .execute()
            .await
            .map_err(NetworkError::netlink(format!("create veth pair {interface} for pod {pod}")))?;
        let Some(index) = netlink::link_index(handle, interface).await? else {
            return Err(NetworkError::Other(format!("interface {interface} of pod {pod} vanished")));
        };
        // See the module's comment.
        let hairpin = LinkBridgePort::new(index).hairpin(true).build();
        handle
            .link()
            .set_port(hairpin)
            .execute()
            .await
            .map_err(NetworkError::netlink(format!("set hairpin mode on bridge port {interface}")))?;

        let address = Ipv4Net::new(reservation.ip, bridge.cidr.prefix_len()).unwrap_or(bridge.cidr);
        let gateway = bridge.gateway();
        netlink::in_namespace(&request.netns, move |inside| async move {
            if let Some(lo) = netlink::link_index(&inside, "lo").await? {
                netlink::set_up(&inside, lo, "lo").await?;
            }
            let Some(eth0) = netlink::link_index(&inside, POD_INTERFACE).await? else {
                return Err(NetworkError::Other(format!("{POD_INTERFACE} did not arrive in the sandbox")));
            };
            netlink::add_address(&inside, eth0, address, false).await?;
            netlink::set_up(&inside, eth0, POD_INTERFACE).await?;
            netlink::replace_route(&inside, Ipv4Net::from(gateway), NextHop::Device(eth0)).await?;
            netlink::replace_route(&inside, Ipv4Net::default(), NextHop::Gateway(gateway)).await
        })
        .await
    }

    async fn detach(&self, sandbox_id: &str) -> Result<()> {
        check_id(sandbox_id)?;
        let Some(reservation) = self.ipam.lock().await.get(sandbox_id).cloned() else { return Ok(()) };
        let handle = netlink::connect()?;
        netlink::delete_link(&handle, &reservation.interface).await?;
        self.ipam.lock().await.release(sandbox_id)?;
        if !reservation.host_ports.is_empty() {
            self.write_host_ports().await?;
        }
        Ok(())
    }

    /// Makes the host port maps equal to the reservations. All of them each time: a node has few.
    async fn write_host_ports(&self) -> Result<()> {
        // Held while nft runs, so that two writers cannot pass each other.
        let ipam = self.ipam.lock().await;
        let table = &self.options.instance;
        nft::apply(table, &host_port_rules(table, ipam.all())).await
    }
}

/// The locally administered hardware address `0a:58:` and the IPv4 address: one that is given again means the same
/// hardware address, so nobody's neighbour cache is wrong.
fn hardware_address(ip: Ipv4Addr) -> Vec<u8> {
    let [a, b, c, d] = ip.octets();
    vec![0x0a, 0x58, a, b, c, d]
}

fn host_port_rules<'a>(table: &str, reservations: impl Iterator<Item = &'a Reservation>) -> String {
    let mut text = format!(
        "flush map ip {table} host-ports-any\nflush map ip {table} host-ports-address\nflush set ip {table} host-port-pods\n"
    );
    let mut add = |set: &str, element: String| {
        text.push_str(&format!("add element ip {table} {set} {{ {element} }}\n"));
    };
    for reservation in reservations.filter(|reservation| !reservation.host_ports.is_empty()) {
        let ip = reservation.ip;
        add("host-port-pods", format!("{ip} . {ip}"));
        for port in &reservation.host_ports {
            let protocol = port.protocol.to_ascii_lowercase();
            let rest = format!("{protocol} . {} : {ip} . {}", port.host_port, port.container_port);
            match port.host_ip {
                None => add("host-ports-any", rest),
                Some(std::net::IpAddr::V4(host)) => add("host-ports-address", format!("{host} . {rest}")),
                // The table is IPv4; nothing can arrive on an IPv6 host address for an IPv4 pod.
                Some(std::net::IpAddr::V6(_)) => {}
            }
        }
    }
    text
}

#[async_trait]
impl PodNetwork for BridgeNetwork {
    async fn attach(&self, request: &PodNetworkRequest) -> orlop_cri::Result<PodNetworkAttachment> {
        self.shared.attach(request).await.map_err(|error| match error {
            NetworkError::Options(_) => CriError::InvalidArgument(error.to_string()),
            NetworkError::NoPodCidr(_) => CriError::FailedPrecondition(error.to_string()),
            error => CriError::Internal(format!(
                "connect sandbox {} of pod {}/{} to the network: {error}",
                request.sandbox_id, request.namespace, request.name
            )),
        })
    }

    async fn detach(&self, sandbox_id: &str) -> orlop_cri::Result<()> {
        self.shared
            .detach(sandbox_id)
            .await
            .map_err(|error| CriError::Internal(format!("disconnect sandbox {sandbox_id}: {error}")))
    }

    async fn ready(&self) -> Result<(), String> {
        self.shared.bridge().await.map(|_| ()).map_err(|error| error.to_string())
    }
}
